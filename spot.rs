// SPDX-License-Identifier: GPL-2.0

//! Spots for PAMTs: places where they take few reserved areas, or none.
//!
//! A PAMT beside a hole or beside another PAMT joins its reserved area, and one that fills all memory
//! between two holes makes one area of both. `place_all` asks for memory at the ends of each
//! stretch of usable memory: first where it saves an area, then where it takes none, then wherever
//! areas are left. Its order is either large PAMTs first, which leaves small places for small tables,
//! or the tables of one page size after the other: small tables that fill small places bring larger
//! ones beside a hole.
//!
//! Pure: `core` only, never panics. Called by `place` when chance did not do.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use crate::holes::Memory;
use crate::pamt::{
    self,
    Pamt,
    PamtAllocator,
    PamtError,
    PamtMemory, //
};
use crate::place::Task;
use crate::range::{
    PageSize,
    PhysAddr,
    PhysRange, //
};
use crate::store::Store;
use crate::tdmr::{
    Limits,
    Tdmr, //
};

/// What is placed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The PAMT of the largest TDMR.
    Largest,
    /// The tables for one page size, then another, then the third.
    Tables([PageSize; 3]),
}

/// Places all `pamts`, those of `tdmrs` in the same order. A TDMR that has too many reserved areas
/// at the start may still have them at the end, others do not get too many.
///
/// # Errors
///
/// [`PamtError::NoPlace`] for the first PAMT that has none, or [`PamtError::OutOfMemory`].
pub(crate) fn place_all<A, C>(
    task: &mut Task<'_, A>,
    order: Order,
    tdmrs: &[Tdmr],
    pamts: &mut [Pamt],
    chunks: &mut C,
) -> Result<(), PamtError>
where
    A: PamtAllocator,
    C: Store<A::Memory>,
{
    if let Order::Tables(levels) = order {
        for level in levels {
            for (tdmr, pamt) in tdmrs.iter().zip(&mut *pamts) {
                place_table(task, tdmrs, tdmr, pamt, level, chunks)?;
            }
        }
        return Ok(());
    }
    // Placed are those in front of `below` in the order by size and index.
    let mut below = None;
    while let Some(index) = next_smaller(pamts, below) {
        let (Some(tdmr), Some(pamt)) = (tdmrs.get(index), pamts.get_mut(index)) else {
            break;
        };
        below = Some((pamt.total(), index));
        if let Some(memory) = find(task, tdmrs, tdmr, pamt.total(), chunks)? {
            *pamt = pamt.moved_to(memory.range().start());
            chunks.push(memory).map_err(|_| PamtError::OutOfMemory)?;
            continue;
        }
        for level in PageSize::ALL {
            place_table(task, tdmrs, tdmr, pamt, level, chunks)?;
        }
    }
    Ok(())
}

/// Places one table of `tdmr`.
fn place_table<A, C>(
    task: &mut Task<'_, A>,
    tdmrs: &[Tdmr],
    tdmr: &Tdmr,
    pamt: &mut Pamt,
    level: PageSize,
    chunks: &mut C,
) -> Result<(), PamtError>
where
    A: PamtAllocator,
    C: Store<A::Memory>,
{
    let bytes = pamt.table(level).size;
    let memory = find(task, tdmrs, tdmr, bytes, chunks)?.ok_or(PamtError::NoPlace {
        tdmr: tdmr.range(),
        bytes,
        max: task.limits.max_reserved,
    })?;
    pamt.move_table(level, memory.range().start());
    chunks.push(memory).map_err(|_| PamtError::OutOfMemory)
}

/// The index of the PAMT that follows `below`, a size and an index, in the order from the largest
/// to the smallest; of equals the lower index is first.
fn next_smaller(pamts: &[Pamt], below: Option<(u64, usize)>) -> Option<usize> {
    let follows = |&(index, size): &(usize, u64)| match below {
        None => true,
        Some((last, at)) => size < last || (size == last && index > at),
    };
    let sizes = pamts.iter().map(Pamt::total).enumerate();
    sizes
        .filter(follows)
        .min_by_key(|&(index, size)| (u64::MAX.saturating_sub(size), index))
        .map(|(index, _)| index)
}

/// Memory of `bytes` bytes at a good spot for a table of `tdmr`.
fn find<A, C>(
    task: &mut Task<'_, A>,
    tdmrs: &[Tdmr],
    tdmr: &Tdmr,
    bytes: u64,
    chunks: &C,
) -> Result<Option<A::Memory>, PamtError>
where
    A: PamtAllocator,
    C: Store<A::Memory>,
{
    if task.effort == 0 {
        return Ok(None);
    }
    let chunks = chunks.as_slice();
    let ground = Ground {
        memory: task.memory,
        limits: task.limits,
        tdmrs,
        chunks,
    };
    for worst in [Cost::Saves, Cost::Free, Cost::Fits] {
        spend(&mut task.effort, tdmrs.len());
        for spot in ground.spots(bytes, true).chain(ground.spots(bytes, false)) {
            spend(&mut task.effort, 1);
            if task.effort == 0 {
                return Ok(None);
            }
            if ground.cost(spot) > worst {
                continue;
            }
            if let Some(memory) = task.allocator.allocate_in(bytes, spot) {
                return pamt::checked(memory, bytes).map(Some);
            }
        }
    }
    // The ends are not to be had. Anywhere, then, and at last in each stretch.
    let anywhere = task.allocator.allocate(bytes, tdmr.node());
    if let Some(memory) = anywhere.filter(|memory| ground.cost(memory.range()) <= Cost::Fits) {
        return pamt::checked(memory, bytes).map(Some);
    }
    for stretch in ground.stretches().filter(|s| s.size() >= bytes) {
        let memory = task.allocator.allocate_in(bytes, stretch);
        if let Some(memory) = memory.filter(|memory| ground.cost(memory.range()) <= Cost::Fits) {
            return pamt::checked(memory, bytes).map(Some);
        }
    }
    Ok(None)
}

/// Takes `amount` from what may still be looked at.
fn spend(effort: &mut u32, amount: usize) {
    *effort = effort.saturating_sub(u32::try_from(amount).unwrap_or(u32::MAX));
}

/// What there is when a spot is looked for.
struct Ground<'a, M> {
    memory: Memory<'a>,
    limits: Limits,
    tdmrs: &'a [Tdmr],
    chunks: &'a [M],
}

impl<M: PamtMemory> Ground<'_, M> {
    /// Stretches of usable memory without PAMTs: inside each TDMR, then across all.
    fn stretches(&self) -> impl Iterator<Item = PhysRange> + '_ {
        let all = PhysRange::new(PhysAddr::ZERO, PhysAddr::LIMIT);
        let ranges = self.tdmrs.iter().map(Tdmr::range).chain(all);
        ranges.flat_map(|range| {
            let mut next = Some(range.start());
            let gaps = self.memory.gaps(range, self.chunks, None);
            let ends = gaps.map(|gap| (gap.whole.start(), gap.whole.end()));
            // The end of the range closes the last stretch as another gap would.
            ends.chain(core::iter::once((range.end(), range.end())))
                .filter_map(move |(start, end)| {
                    let stretch = PhysRange::new(next?, start);
                    next = Some(end);
                    stretch
                })
        })
    }

    /// The ends, `bytes` long, of all stretches; if `fill`, of those that are just as long.
    fn spots(&self, bytes: u64, fill: bool) -> impl Iterator<Item = PhysRange> + '_ {
        let wanted = move |stretch: &PhysRange| (stretch.size() == bytes) == fill;
        self.stretches().filter(wanted).flat_map(move |stretch| {
            let low = PhysRange::from_size(stretch.start(), bytes);
            let start = stretch.end().get().checked_sub(bytes);
            let high = start.and_then(|start| PhysRange::from_raw(start, stretch.end().get()));
            let inside = move |spot: &PhysRange| stretch.contains(*spot);
            low.into_iter().chain(high).filter(inside)
        })
    }

    /// What it means for the reserved areas to have a PAMT at `spot`.
    fn cost(&self, spot: PhysRange) -> Cost {
        let touched = self.tdmrs.iter().filter(|tdmr| tdmr.range().overlaps(spot));
        let costs = touched.map(|tdmr| {
            let areas = |extra| self.memory.forced(tdmr.range(), self.chunks, extra);
            let (with, without) = (areas(Some(spot)), areas(None));
            if with < without {
                Cost::Saves
            } else if with == without {
                Cost::Free
            } else if with <= usize::from(self.limits.max_reserved) {
                Cost::Fits
            } else {
                Cost::TooMuch
            }
        });
        costs.max().unwrap_or(Cost::Free)
    }
}

/// What a spot costs, in the order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cost {
    /// A reserved area less.
    Saves,
    /// None.
    Free,
    /// One that is left.
    Fits,
    /// One that is not left.
    TooMuch,
}
