// SPDX-License-Identifier: GPL-2.0

//! Does any legal plan exist? Answered by trying all, for small machines.
//!
//! All ways to cover the memory with TDMRs, and for each all ways to lay the tables, one after the
//! other, at the ends of the stretches of free memory: a table elsewhere can be moved to an end, or
//! to a table at an end, and then takes no more reserved areas. Tables across a TDMR's border are
//! only tried at the ends of stretches. Plain numbers, no code under test.

use std::vec::Vec;

use crate::c_rules::pamt_sizes;
use crate::interval::{
    interval,
    Interval, //
};

const GB: u64 = 1 << 30;

/// A machine and the limits of its TDX module.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The kernel's memory, ascending, disjoint; all of it is free.
    pub memory: Vec<Interval>,
    /// Convertible memory; holds all of `memory`.
    pub cmrs: Vec<Interval>,
    /// TDMRs there can be.
    pub max_tdmrs: usize,
    /// Reserved areas each can have.
    pub max_reserved: usize,
}

/// What the search says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is a plan whose PAMTs take so many bytes; not always the smallest.
    Legal(u64),
    /// There is none.
    Impossible,
    /// The search was given up.
    Unknown,
}

/// Steps after which the search is given up.
const PATIENCE: u32 = 2_000;

/// Looks for a legal plan.
pub fn search(instance: &Instance) -> Answer {
    let top = instance.memory.last().map_or(0, |last| last.end);
    let blocks = top.div_ceil(GB);
    let mut covers = Vec::new();
    cover(instance, 0, blocks, &mut Vec::new(), &mut covers);
    covers.sort_by_key(|tdmrs| (bytes(tdmrs), tdmrs.len()));
    let mut answer = Answer::Impossible;
    for tdmrs in &covers {
        let mut sizes: Vec<u64> = tdmrs.iter().flat_map(|t| pamt_sizes(*t, [16; 3])).collect();
        sizes.sort_by_key(|size| core::cmp::Reverse(*size));
        let mut steps = PATIENCE;
        if lay(instance, tdmrs, &sizes, &mut Vec::new(), &mut steps) {
            return Answer::Legal(bytes(tdmrs));
        }
        if steps == 0 {
            answer = Answer::Unknown;
        }
    }
    answer
}

/// Bytes of the PAMTs of `tdmrs`.
pub fn bytes(tdmrs: &[Interval]) -> u64 {
    let sizes = tdmrs.iter().flat_map(|tdmr| pamt_sizes(*tdmr, [16; 3]));
    sizes.sum()
}

/// All lists of TDMRs that cover the memory from block `from` on, after `done`.
fn cover(
    instance: &Instance,
    from: u64,
    blocks: u64,
    done: &mut Vec<Interval>,
    covers: &mut Vec<Vec<Interval>>,
) {
    if from == blocks {
        covers.push(done.clone());
        return;
    }
    let block = interval(from * GB, (from + 1) * GB);
    if !instance.memory.iter().any(|region| region.meets(block)) {
        cover(instance, from + 1, blocks, done, covers);
    }
    if done.len() < instance.max_tdmrs {
        for to in from + 1..=blocks {
            done.push(interval(from * GB, to * GB));
            cover(instance, to, blocks, done, covers);
            done.pop();
        }
    }
}

/// Lays the tables of `sizes` in turn; `true` once all lie and no TDMR has too many areas.
fn lay(
    instance: &Instance,
    tdmrs: &[Interval],
    sizes: &[u64],
    placed: &mut Vec<Interval>,
    steps: &mut u32,
) -> bool {
    let left: u64 = sizes.iter().sum();
    if *steps == 0
        || tdmrs
            .iter()
            .any(|tdmr| least(instance, *tdmr, placed, left) > instance.max_reserved)
    {
        return false;
    }
    *steps -= 1;
    let Some((&size, rest)) = sizes.split_first() else {
        return true;
    };
    let mut spots: Vec<Interval> = Vec::new();
    let everything = interval(0, 1 << 52);
    for range in tdmrs.iter().copied().chain([everything]) {
        for piece in usable(instance, range, placed) {
            if piece.size() >= size {
                spots.push(interval(piece.start, piece.start + size));
                spots.push(interval(piece.end - size, piece.end));
            }
        }
    }
    spots.sort();
    spots.dedup();
    for spot in spots {
        placed.push(spot);
        let found = lay(instance, tdmrs, rest, placed, steps);
        placed.pop();
        if found {
            return true;
        }
    }
    false
}

/// Stretches of memory in `range` that no table takes; regions that touch are one.
fn usable(instance: &Instance, range: Interval, placed: &[Interval]) -> Vec<Interval> {
    crate::host::joined(&instance.memory)
        .into_iter()
        .map(|region| interval(region.start.max(range.start), region.end.min(range.end)))
        .filter(|region| region.start < region.end)
        .flat_map(|region| region.without(placed))
        .collect()
}

/// A lower bound for the reserved areas of `tdmr` when `left` more bytes of tables are laid: each
/// stretch of memory that they could fill might join two areas.
fn least(instance: &Instance, tdmr: Interval, placed: &[Interval], left: u64) -> usize {
    let areas = areas(instance, tdmr, placed);
    let mut pieces: Vec<u64> = usable(instance, tdmr, placed)
        .iter()
        .map(|p| p.size())
        .collect();
    pieces.sort();
    let mut budget = left;
    let fillable = pieces.iter().take_while(|size| {
        let fits = **size <= budget;
        budget = budget.saturating_sub(**size);
        fits
    });
    areas.saturating_sub(fillable.count())
}

/// The reserved areas that `tdmr` needs: what is not convertible and what tables take, as one where
/// no usable memory lies between.
fn areas(instance: &Instance, tdmr: Interval, placed: &[Interval]) -> usize {
    let mut marks: Vec<(u64, bool)> = Vec::new();
    marks.extend(
        tdmr.without(&instance.cmrs)
            .iter()
            .map(|hole| (hole.start, true)),
    );
    let inside = placed.iter().filter(|table| table.meets(tdmr));
    marks.extend(inside.map(|table| (table.start.max(tdmr.start), true)));
    marks.extend(
        usable(instance, tdmr, placed)
            .iter()
            .map(|piece| (piece.start, false)),
    );
    marks.sort();
    let forced: Vec<bool> = marks.into_iter().map(|(_, forced)| forced).collect();
    let before = core::iter::once(&false).chain(&forced);
    before
        .zip(&forced)
        .filter(|(before, now)| !**before && **now)
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(memory: &[Interval], max_tdmrs: usize, max_reserved: usize) -> Instance {
        Instance {
            memory: memory.to_vec(),
            cmrs: memory.to_vec(),
            max_tdmrs,
            max_reserved,
        }
    }

    #[test]
    fn small_machines_are_decided() {
        let memory = [interval(0, GB), interval(GB + 4096, 2 * GB - 4096)];
        assert_eq!(
            search(&machine(&memory, 2, 2)),
            Answer::Legal((8 << 20) + (20 << 10))
        );
        // Two TDMRs: the second has two holes.
        assert_eq!(search(&machine(&memory, 2, 1)), Answer::Impossible);
        assert_eq!(search(&machine(&memory, 0, 16)), Answer::Impossible);
        // Beside a hole a table takes no area; there is no hole in the first GB.
        assert_eq!(
            search(&machine(&memory[..1], 1, 1)),
            Answer::Legal((4 << 20) + (12 << 10))
        );
        assert_eq!(search(&machine(&memory[..1], 1, 0)), Answer::Impossible);
    }

    #[test]
    fn tables_that_fill_memory_between_holes_join_them() {
        // 4 KB, 8 KB and 4 MB between holes are just what the three tables take.
        let mb = 1 << 20;
        let memory = [
            interval(mb, mb + 4096),
            interval(2 * mb, 2 * mb + 8192),
            interval(3 * mb, 7 * mb),
            interval(8 * mb, GB),
        ];
        assert_eq!(
            search(&machine(&memory, 1, 1)),
            Answer::Legal((4 << 20) + (12 << 10))
        );
        let memory = [interval(mb, mb + 8192), interval(2 * mb, GB - 4096)];
        assert_eq!(search(&machine(&memory, 1, 1)), Answer::Impossible);
    }
}
