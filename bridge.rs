// SPDX-License-Identifier: GPL-2.0

//! Planning when TDMRs run short: joining memory over GBs that have none.
//!
//! Each joined GB costs a PAMT for memory that is not there (4 MB and a little), so as few as
//! possible are joined. Two facts make that a small problem. A TDMR that does not end where a
//! stretch of memory ends can end where its reserved areas run out, since moving the cut up never
//! makes the next TDMR need more. So a TDMR starts where a stretch starts or where one before it ran
//! out: a [`Stop`]. And what is best behind a stop does not depend on what lies before it, but for
//! the number of TDMRs that are left. So a table of stops by TDMRs left, filled from the top of
//! memory downwards, holds the fewest bytes joined, exactly.
//!
//! Pure: `core` only, never panics. Called by `tdmr::plan`, which says what the limits are.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use crate::holes::Memory;
use crate::range::{
    PhysAddr,
    PhysRange, //
};
use crate::store::Store;
use crate::tdmr::{
    self,
    Limits,
    PlanError,
    Scratch,
    Tdmr, //
};

/// A place where a TDMR can start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// From there to the end of the stretch of memory.
    stretch: PhysRange,
    /// How far a TDMR can go from there before its reserved areas run out.
    reach: PhysAddr,
}

impl Stop {
    /// No place: fills storage that is lent.
    pub const NONE: Stop = match PhysRange::new(PhysAddr::ZERO, PhysAddr::LIMIT) {
        Some(stretch) => Stop {
            stretch,
            reach: PhysAddr::LIMIT,
        },
        None => panic!("not empty"),
    };
}

/// A cost above all others: there is no way.
const NO_WAY: u64 = u64::MAX;

/// Covers `memory` with at most `limits.max_tdmrs` TDMRs of at most `budget` reserved areas.
///
/// # Errors
///
/// [`PlanError`].
pub(crate) fn plan<S, N, C>(
    memory: &Memory<'_>,
    limits: &Limits,
    budget: usize,
    scratch: &mut Scratch<N, C>,
    out: &mut S,
) -> Result<(), PlanError>
where
    S: Store<Tdmr>,
    N: Store<Stop>,
    C: Store<u64>,
{
    find_stops(memory, limits, budget, &mut scratch.stops)?;
    let stops = scratch.stops.as_slice();
    // No way passes a stop twice.
    let max = usize::from(limits.max_tdmrs).min(stops.len());
    let used = fewest(stops);
    if used > max {
        return Err(PlanError::TooManyTdmrs {
            used,
            max: limits.max_tdmrs,
        });
    }
    let table = Table::fill(stops, max, &mut scratch.costs)?;
    table.follow(out)
}

/// Lists all places where a TDMR can start, ascending.
fn find_stops<N: Store<Stop>>(
    memory: &Memory<'_>,
    limits: &Limits,
    budget: usize,
    out: &mut N,
) -> Result<(), PlanError> {
    out.clear();
    let mut top = PhysAddr::ZERO;
    for stretch in tdmr::stretches(memory.regions()) {
        let stretch = stretch?;
        let reach = stretch.end();
        out.push(Stop { stretch, reach })
            .map_err(|_| PlanError::OutOfMemory)?;
        top = stretch.end();
    }
    let mut index = 0usize;
    while let Some(&stop) = out.as_slice().get(index) {
        let Some(all) = PhysRange::new(stop.stretch.start(), top) else {
            break;
        };
        let reach = tdmr::first_part(memory, limits, budget, all)?.end();
        if let Some(stop) = out.as_mut_slice().get_mut(index) {
            stop.reach = reach;
        }
        add_stop(out, reach)?;
        index = index.saturating_add(1);
    }
    Ok(())
}

/// Adds a stop at `start` unless it is there already or not inside a stretch.
fn add_stop<N: Store<Stop>>(out: &mut N, start: PhysAddr) -> Result<(), PlanError> {
    let inside = |stop: &&Stop| stop.stretch.contains_addr(start);
    let known = |stop: &Stop| stop.stretch.start() == start;
    if out.as_slice().iter().any(known) {
        return Ok(());
    }
    let Some(end) = out.as_slice().iter().find(inside).map(|s| s.stretch.end()) else {
        return Ok(());
    };
    let Some(stretch) = PhysRange::new(start, end) else {
        return Ok(());
    };
    let mut moving = Stop {
        stretch,
        reach: end,
    };
    // Each higher stop moves one place up; the highest is appended.
    for old in out.as_mut_slice() {
        if old.stretch.start() > moving.stretch.start() {
            core::mem::swap(old, &mut moving);
        }
    }
    out.push(moving).map_err(|_| PlanError::OutOfMemory)
}

/// The fewest TDMRs that cover everything.
fn fewest(stops: &[Stop]) -> usize {
    let mut used = 0usize;
    let mut covered = PhysAddr::ZERO;
    for stop in stops {
        if stop.stretch.start() >= covered {
            used = used.saturating_add(1);
            covered = stop.reach;
        }
    }
    used
}

/// A TDMR from a stop: where it ends, bytes it joins, and the index of the next stop.
#[derive(Clone, Copy)]
struct Way {
    end: PhysAddr,
    joined: u64,
    next: usize,
}

/// The TDMRs that can start at the stop `index`: to the end of each stretch in reach, and to where
/// its reserved areas run out.
fn ways(stops: &[Stop], index: usize) -> impl Iterator<Item = Way> + '_ {
    let from = stops.get(index).copied();
    let mut joined = 0u64;
    let mut last_end = from.map_or(PhysAddr::ZERO, |stop| stop.stretch.start());
    let later = stops.iter().skip(index);
    later.map_while(move |stop| {
        let reach = from?.reach;
        let (start, end) = (stop.stretch.start(), stop.stretch.end());
        if start >= reach {
            return None;
        }
        // Bytes between the stretch before and this one; stops inside a stretch add none.
        joined = joined.saturating_add(start.get().saturating_sub(last_end.get()));
        last_end = end;
        let end = end.min(reach);
        let next = stops.partition_point(|stop| stop.stretch.start() < end);
        Some(Way { end, joined, next })
    })
}

/// Fewest bytes joined from each stop on, by how many TDMRs are left.
struct Table<'a> {
    stops: &'a [Stop],
    costs: &'a [u64],
    /// TDMRs there are in all.
    max: usize,
}

impl<'a> Table<'a> {
    /// Fills the table from the top of memory down.
    fn fill<C: Store<u64>>(
        stops: &'a [Stop],
        max: usize,
        costs: &'a mut C,
    ) -> Result<Self, PlanError> {
        costs.clear();
        for _ in 0..stops.len().saturating_mul(max) {
            costs.push(NO_WAY).map_err(|_| PlanError::OutOfMemory)?;
        }
        for index in (0..stops.len()).rev() {
            for left in 1..=max {
                let table = Table {
                    stops,
                    costs: costs.as_slice(),
                    max,
                };
                let best = ways(stops, index)
                    .map(|way| table.cost_of(way, left))
                    .min()
                    .unwrap_or(NO_WAY);
                if let Some(cost) = costs.as_mut_slice().get_mut(cell(max, index, left)) {
                    *cost = best;
                }
            }
        }
        Ok(Table {
            stops,
            costs: costs.as_slice(),
            max,
        })
    }

    /// Bytes joined by `way` and behind it, with `left` TDMRs, its own included.
    fn cost_of(&self, way: Way, left: usize) -> u64 {
        let behind = if way.next >= self.stops.len() {
            0
        } else if left <= 1 {
            NO_WAY
        } else {
            let at = cell(self.max, way.next, left.saturating_sub(1));
            self.costs.get(at).copied().unwrap_or(NO_WAY)
        };
        way.joined.saturating_add(behind)
    }

    /// Appends the TDMRs of the best way to the emptied `out`.
    fn follow<S: Store<Tdmr>>(&self, out: &mut S) -> Result<(), PlanError> {
        out.clear();
        let (mut index, mut left) = (0, self.max);
        while let Some(stop) = self.stops.get(index) {
            let best = ways(self.stops, index).min_by_key(|way| self.cost_of(*way, left));
            let chosen = best.and_then(|way| {
                PhysRange::new(stop.stretch.start(), way.end).map(|range| (range, way.next))
            });
            let Some((range, next)) = chosen.filter(|(_, next)| *next > index && left > 0) else {
                // Cannot be: the fewest TDMRs are not more than there are.
                return Err(PlanError::TooManyTdmrs {
                    used: fewest(self.stops),
                    max: u16::try_from(self.max).unwrap_or(u16::MAX),
                });
            };
            tdmr::push(out, range)?;
            index = next;
            left = left.saturating_sub(1);
        }
        Ok(())
    }
}

/// Where the table keeps the stop `index` with `left` TDMRs, of which there are 1 to `max`.
fn cell(max: usize, index: usize, left: usize) -> usize {
    index
        .saturating_mul(max)
        .saturating_add(left.saturating_sub(1))
}
