// SPDX-License-Identifier: GPL-2.0

//! Cuts between TDMRs moved down.
//!
//! `tdmr` cuts as late as possible, which takes the fewest TDMRs. Where reserved areas are so short
//! that only some places are left for a PAMT, the cut decides which: a place beside a hole may be
//! too near to the start of its TDMR, and reach into the one below, which has no area left. So
//! `move_cuts_down` makes as many TDMRs of the same memory with each cut as early as possible.
//!
//! Pure: `core` only, never panics. Called by `place`.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use crate::holes::Memory;
use crate::range::{
    PageSize,
    PhysRange, //
};
use crate::tdmr::{
    self,
    Tdmr, //
};

/// Moves each cut between two of `tdmrs` that touch as far down as the upper one needs at most
/// `budget` reserved areas for holes. `false` if none moves.
///
/// The upper ones go first. What is left of the lower one is a part of it, and needs no more areas
/// than the whole did.
pub(crate) fn move_cuts_down(memory: &Memory<'_>, budget: usize, tdmrs: &mut [Tdmr]) -> bool {
    let mut moved = false;
    let mut rest = tdmrs;
    while let [below @ .., upper] = rest {
        if let Some(lower) = below.last_mut() {
            if let Some((first, second)) = cut_early(memory, budget, lower, upper) {
                (*lower, *upper) = (first, second);
                moved = true;
            }
        }
        rest = below;
    }
    moved
}

/// The same memory with an earlier cut, if there is one.
fn cut_early(
    memory: &Memory<'_>,
    budget: usize,
    lower: &Tdmr,
    upper: &Tdmr,
) -> Option<(Tdmr, Tdmr)> {
    let (low, high) = (lower.range(), upper.range());
    if low.end() != high.start() {
        return None;
    }
    // The lower one keeps a GB.
    let earliest = low.start().checked_add(PageSize::Size1G.bytes())?;
    let most = PhysRange::new(earliest, high.end())?;
    let range = memory.reach_down(most, budget)?;
    if range.start() >= high.start() {
        return None;
    }
    let first = PhysRange::new(low.start(), range.start())?;
    Some((tdmr::over(memory, first)?, tdmr::over(memory, range)?))
}

#[cfg(any(test, CONFIG_INTEL_TDX_HOST_KUNIT_TEST))]
#[cfg_attr(
    CONFIG_INTEL_TDX_HOST_KUNIT_TEST,
    kernel::macros::kunit_tests(tdx_host_early)
)]
mod tests {
    use super::*;
    use crate::memlist::{
        NodeId,
        Region, //
    };
    use crate::range::PfnRange;

    /// Frames of a GB.
    const GB: u64 = 1 << 18;

    fn region(start: u64, end: u64, node: i32) -> Result<Region, ()> {
        let frames = PfnRange::from_raw(start, end).ok_or(())?;
        Ok(Region::new(frames, NodeId::new(node)))
    }

    fn tdmr(memory: &Memory<'_>, start: u64, end: u64) -> Result<Tdmr, ()> {
        let range = PfnRange::from_raw(start * GB, end * GB).ok_or(())?.bytes();
        tdmr::over(memory, range).ok_or(())
    }

    #[test]
    fn cuts_move_down_to_the_hole_below() -> Result<(), ()> {
        // Holes at the start and at the end, none between.
        let regions = [region(256, 2 * GB, 0)?, region(2 * GB, 3 * GB - 1, 1)?];
        let memory = Memory::new(&regions, &regions).map_err(|_| ())?;
        let mut tdmrs = [tdmr(&memory, 0, 2)?, tdmr(&memory, 2, 3)?];
        assert!(move_cuts_down(&memory, 1, &mut tdmrs));
        assert_eq!(tdmrs, [tdmr(&memory, 0, 1)?, tdmr(&memory, 1, 3)?]);
        assert_eq!(tdmrs.map(|tdmr| tdmr.node().get()), [0, 0]);
        // There they stay.
        assert!(!move_cuts_down(&memory, 1, &mut tdmrs));
        Ok(())
    }

    #[test]
    fn holes_that_take_all_areas_keep_a_cut_where_it_is() -> Result<(), ()> {
        let regions = [region(256, 2 * GB - 1, 0)?, region(2 * GB, 3 * GB - 1, 0)?];
        let memory = Memory::new(&regions, &regions).map_err(|_| ())?;
        let mut tdmrs = [tdmr(&memory, 0, 2)?, tdmr(&memory, 2, 3)?];
        assert!(!move_cuts_down(&memory, 1, &mut tdmrs));
        // With another one the lower TDMR keeps a GB.
        assert!(move_cuts_down(&memory, 2, &mut tdmrs));
        assert_eq!(tdmrs, [tdmr(&memory, 0, 1)?, tdmr(&memory, 1, 3)?]);
        Ok(())
    }

    #[test]
    fn tdmrs_that_do_not_touch_stay() -> Result<(), ()> {
        let regions = [region(256, GB, 0)?, region(2 * GB, 3 * GB, 0)?];
        let memory = Memory::new(&regions, &regions).map_err(|_| ())?;
        let mut tdmrs = [tdmr(&memory, 0, 1)?, tdmr(&memory, 2, 3)?];
        assert!(!move_cuts_down(&memory, 16, &mut tdmrs));
        Ok(())
    }
}
