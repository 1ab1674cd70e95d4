// SPDX-License-Identifier: GPL-2.0

//! Holes: what inside a TDMR is not memory for TDs, and which of that must be reserved.
//!
//! The TDX module asks of a TDMR that everything outside its reserved areas lies in Convertible
//! Memory Regions (CMRs) and in no PAMT; it does not ask that the kernel knows the memory. So
//! between two stretches of memory of the kernel there is one *gap*, made of holes and PAMTs in any
//! order, and it takes one reserved area: from the first byte that must be reserved to the last.
//! A gap that is all convertible needs none.
//!
//! [`Memory`] is the map that this is read from, [`Gap`] what is found.
//!
//! Pure: `core` only, never panics. Next door: `tdmr` plans and reserves with it, `place` looks
//! for places of PAMTs.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use crate::memlist::{
    NodeId,
    Region, //
};
use crate::pamt::PamtMemory;
use crate::range::{
    PageSize,
    PhysAddr,
    PhysRange, //
};

/// The memory of the kernel and what firmware says can be converted for TDX.
///
/// Memory outside every CMR counts as convertible here: that is for the TDX module to judge, and
/// without a list of CMRs (old modules do not tell) it leaves exactly what the kernel knows.
///
/// # Invariants
///
/// `regions` ascend and are disjoint.
#[derive(Clone, Copy, Debug)]
pub struct Memory<'a> {
    regions: &'a [Region],
    cmrs: &'a [Region],
}

/// Two regions that are not ascending and disjoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfOrder {
    /// The region that starts too low.
    pub region: PhysRange,
    /// The one before it.
    pub previous: PhysRange,
}

impl<'a> Memory<'a> {
    /// `regions` ascend and are disjoint; `cmrs` may come in any order and overlap.
    ///
    /// # Errors
    ///
    /// [`OutOfOrder`] names two regions.
    pub fn new(regions: &'a [Region], cmrs: &'a [Region]) -> Result<Self, OutOfOrder> {
        for (first, second) in regions.iter().zip(regions.iter().skip(1)) {
            let (previous, region) = (first.bytes(), second.bytes());
            if region.start() < previous.end() {
                return Err(OutOfOrder { region, previous });
            }
        }
        Ok(Memory { regions, cmrs })
    }

    /// The kernel's memory.
    pub const fn regions(&self) -> &'a [Region] {
        self.regions
    }

    /// The parts of the kernel's memory that are in no CMR, ascending, with their nodes: the TDX
    /// module refuses to have them. None if there is no list of CMRs.
    pub fn outside_cmrs(&self) -> impl Iterator<Item = (PhysRange, NodeId)> + 'a {
        let cmrs = self.cmrs;
        let list = move || cmrs.iter().map(Region::bytes);
        let known = self.regions.iter().filter(move |_| !cmrs.is_empty());
        known.flat_map(move |region| {
            let mut at = region.bytes().start();
            let top = region.bytes().end();
            core::iter::from_fn(move || {
                while let Some(end) = end_of(list(), at) {
                    at = end;
                }
                let end = next_start(list(), at).map_or(top, |start| start.min(top));
                let part = PhysRange::new(at, end)?;
                at = end;
                Some((part, region.node()))
            })
        })
    }

    /// The gaps between stretches of usable memory in `range`, ascending. Usable is the kernel's
    /// memory without `pamts` and without `extra`, one more PAMT.
    pub fn gaps<'b, P: PamtMemory>(
        &self,
        range: PhysRange,
        pamts: &'b [P],
        extra: Option<PhysRange>,
    ) -> Gaps<'a, 'b, P> {
        Gaps {
            ground: Ground {
                memory: *self,
                pamts,
                extra,
            },
            next: Some(range.start()),
            end: range.end(),
        }
    }

    /// How many areas of `range` must be reserved.
    pub fn forced<P: PamtMemory>(
        &self,
        range: PhysRange,
        pamts: &[P],
        extra: Option<PhysRange>,
    ) -> usize {
        self.gaps(range, pamts, extra)
            .filter_map(|gap| gap.forced)
            .fold(0, |sum: usize, _| sum.saturating_add(1))
    }

    /// The longest part of `range`, from its start, that ends at a whole GB of addresses or with
    /// `range` and needs at most `budget` reserved areas, PAMTs not counted. `None` if already the
    /// first GB needs more. `range` starts and ends at whole GBs.
    pub fn reach(&self, range: PhysRange, budget: usize) -> Option<PhysRange> {
        let none: &[PhysRange] = &[];
        let end = self
            .gaps(range, none, None)
            .filter_map(|gap| gap.forced)
            .nth(budget)
            .map_or(range.end(), |first_too_many| {
                first_too_many.start().align_down(PageSize::Size1G)
            });
        PhysRange::new(range.start(), end)
    }

    /// The same from the end of `range` down: the longest part that starts at a whole GB of
    /// addresses or with `range`. `None` if already the last GB needs more.
    pub fn reach_down(&self, range: PhysRange, budget: usize) -> Option<PhysRange> {
        let none: &[PhysRange] = &[];
        let too_many = self.forced(range, none, None).saturating_sub(budget);
        let start = match too_many.checked_sub(1) {
            None => range.start(),
            Some(last) => {
                let mut areas = self.gaps(range, none, None).filter_map(|gap| gap.forced);
                areas.nth(last)?.end().align_up(PageSize::Size1G)?
            }
        };
        PhysRange::new(start, range.end())
    }
}

/// A stretch of a TDMR in which there is no usable memory, as long as it can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// All of it.
    pub whole: PhysRange,
    /// The smallest range that holds all that must be reserved.
    pub forced: Option<PhysRange>,
}

/// What covers an address, and up to where.
struct Ground<'a, 'b, P> {
    memory: Memory<'a>,
    pamts: &'b [P],
    extra: Option<PhysRange>,
}

impl<P: PamtMemory> Ground<'_, '_, P> {
    fn pamts(&self) -> impl Iterator<Item = PhysRange> + '_ {
        self.pamts.iter().map(PamtMemory::range).chain(self.extra)
    }

    fn regions(&self) -> impl Iterator<Item = PhysRange> + '_ {
        self.memory.regions.iter().map(Region::bytes)
    }

    fn cmrs(&self) -> impl Iterator<Item = PhysRange> + '_ {
        self.memory.cmrs.iter().map(Region::bytes)
    }

    /// The end of the usable memory at `addr`; `None` if there is none.
    fn usable_to(&self, addr: PhysAddr) -> Option<PhysAddr> {
        if end_of(self.pamts(), addr).is_some() {
            return None;
        }
        // Regions that touch are one stretch of memory.
        let mut end = end_of(self.regions(), addr)?;
        while let Some(further) = end_of(self.regions(), end) {
            end = further;
        }
        Some(next_start(self.pamts(), addr).map_or(end, |pamt| end.min(pamt)))
    }

    /// The end of what must be reserved at `addr`, where there is no usable memory; `None` if
    /// nothing there must be.
    fn forced_to(&self, addr: PhysAddr) -> Option<PhysAddr> {
        if let Some(end) = end_of(self.pamts(), addr) {
            return Some(end);
        }
        if end_of(self.cmrs(), addr).is_some() {
            return None;
        }
        Some(next_start(self.pamts().chain(self.cmrs()), addr).unwrap_or(PhysAddr::LIMIT))
    }

    /// The end of what need not be reserved at `addr`, where there is neither usable memory nor a
    /// PAMT.
    fn free_to(&self, addr: PhysAddr) -> PhysAddr {
        let end = end_of(self.cmrs(), addr).unwrap_or(PhysAddr::LIMIT);
        next_start(self.pamts(), addr).map_or(end, |pamt| end.min(pamt))
    }
}

/// The highest end of the `ranges` that hold `addr`.
fn end_of(ranges: impl Iterator<Item = PhysRange>, addr: PhysAddr) -> Option<PhysAddr> {
    ranges
        .filter(|range| range.contains_addr(addr))
        .map(PhysRange::end)
        .max()
}

/// The lowest start of the `ranges` that start above `addr`.
fn next_start(ranges: impl Iterator<Item = PhysRange>, addr: PhysAddr) -> Option<PhysAddr> {
    ranges
        .map(PhysRange::start)
        .filter(|start| *start > addr)
        .min()
}

/// See [`Memory::gaps`].
pub struct Gaps<'a, 'b, P> {
    ground: Ground<'a, 'b, P>,
    /// Where to go on, unless the end was reached.
    next: Option<PhysAddr>,
    end: PhysAddr,
}

impl<P: PamtMemory> Gaps<'_, '_, P> {
    /// The end of the gap that starts at `start`, where there is no usable memory.
    fn gap_end(&self, start: PhysAddr) -> PhysAddr {
        let mut at = start;
        // Usable memory starts with a region or behind a PAMT.
        while at < self.end && self.ground.usable_to(at).is_none() {
            at = match end_of(self.ground.pamts(), at) {
                Some(behind) => behind,
                None => next_start(self.ground.regions().chain(self.ground.pamts()), at)
                    .unwrap_or(self.end),
            };
        }
        at.min(self.end)
    }

    /// The smallest range in `gap` that holds all that must be reserved.
    fn forced(&self, gap: PhysRange) -> Option<PhysRange> {
        let mut found: Option<PhysRange> = None;
        let mut at = gap.start();
        while at < gap.end() {
            at = match self.ground.forced_to(at) {
                Some(end) => {
                    let end = end.min(gap.end());
                    let start = found.map_or(at, PhysRange::start);
                    found = PhysRange::new(start, end);
                    end
                }
                None => self.ground.free_to(at),
            };
        }
        found
    }
}

impl<P: PamtMemory> Iterator for Gaps<'_, '_, P> {
    type Item = Gap;

    fn next(&mut self) -> Option<Gap> {
        let mut start = self.next?;
        while start < self.end {
            match self.ground.usable_to(start) {
                Some(end) => start = end,
                None => break,
            }
        }
        let end = self.gap_end(start);
        self.next = Some(end);
        let whole = PhysRange::new(start, end)?;
        Some(Gap {
            whole,
            forced: self.forced(whole),
        })
    }
}

#[cfg(any(test, CONFIG_INTEL_TDX_HOST_KUNIT_TEST))]
#[cfg_attr(
    CONFIG_INTEL_TDX_HOST_KUNIT_TEST,
    kernel::macros::kunit_tests(tdx_host_holes)
)]
mod tests {
    use super::*;
    use crate::range::PfnRange;

    /// Frames as a region; what makes no range becomes an error.
    fn region(start: u64, end: u64) -> Result<Region, ()> {
        let frames = PfnRange::from_raw(start, end).ok_or(())?;
        Ok(Region::new(frames, NodeId::new(3)))
    }

    /// Frames as bytes.
    fn bytes(start: u64, end: u64) -> Result<PhysRange, ()> {
        Ok(region(start, end)?.bytes())
    }

    #[test]
    fn gaps_lie_before_between_and_behind_memory() -> Result<(), ()> {
        let regions = [region(2, 4)?, region(4, 5)?, region(7, 8)?];
        // The second gap is convertible but for its middle, the last but for its end.
        let cmrs = [region(8, 9)?, region(2, 6)?, region(7, 8)?];
        let memory = Memory::new(&regions, &cmrs).map_err(|_| ())?;
        let gap = |start, end, from, to| -> Result<_, ()> {
            Ok(Some(Gap {
                whole: bytes(start, end)?,
                forced: Some(bytes(from, to)?),
            }))
        };
        let none: &[PhysRange] = &[];
        let mut found = memory.gaps(bytes(0, 10)?, none, None);
        assert_eq!(found.next(), gap(0, 2, 0, 2)?);
        assert_eq!(found.next(), gap(5, 7, 6, 7)?);
        assert_eq!(found.next(), gap(8, 10, 9, 10)?);
        assert_eq!(found.next(), None);
        assert_eq!(memory.gaps(bytes(2, 5)?, none, None).next(), None);
        assert_eq!(memory.forced(bytes(0, 9)?, none, None), 2);
        Ok(())
    }

    #[test]
    fn pamts_join_what_they_touch() -> Result<(), ()> {
        let regions = [region(0, 10)?, region(12, 20)?];
        let memory = Memory::new(&regions, &[]).map_err(|_| ())?;
        let all = bytes(0, 20)?;
        let forced = |pamts: &[PhysRange], extra| memory.forced(all, pamts, extra);
        assert_eq!(forced(&[], None), 1);
        assert_eq!(forced(&[bytes(9, 10)?], None), 1);
        assert_eq!(forced(&[bytes(12, 13)?], Some(bytes(8, 10)?)), 1);
        assert_eq!(forced(&[bytes(0, 1)?], Some(bytes(18, 30)?)), 3);
        // Two holes and all between them are one area.
        assert_eq!(
            forced(&[bytes(0, 1)?, bytes(1, 9)?], Some(bytes(9, 10)?)),
            1
        );
        Ok(())
    }

    #[test]
    fn memory_outside_cmrs_is_found() -> Result<(), ()> {
        let regions = [region(0, 10)?, region(12, 20)?];
        let cmrs = [region(14, 30)?, region(2, 4)?];
        let memory = Memory::new(&regions, &cmrs).map_err(|_| ())?;
        let mut outside = memory.outside_cmrs().map(|(part, _)| part);
        assert_eq!(outside.next(), Some(bytes(0, 2)?));
        assert_eq!(outside.next(), Some(bytes(4, 10)?));
        assert_eq!(outside.next(), Some(bytes(12, 14)?));
        assert_eq!(outside.next(), None);
        let unknown = Memory::new(&regions, &[]).map_err(|_| ())?;
        assert!(unknown.outside_cmrs().next().is_none());
        Ok(())
    }
}
