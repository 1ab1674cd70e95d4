// SPDX-License-Identifier: GPL-2.0

//! Planning TDMRs (TD Memory Regions) and the reserved areas inside them.
//!
//! Three steps, each a pure function of its arguments: [`plan`] covers the TDX memory with
//! [`Tdmr`]s, `pamt::allocate_all` finds room for their metadata, and [`reserve`] lists what
//! inside a TDMR must not be used: the holes between memory regions, and the PAMTs.
//!
//! The result is the same as that of the C implementation in Linux 7.3: one TDMR for each memory
//! region, rounded out to 1 GB, unless earlier TDMRs cover it already; one reserved area for each
//! hole and for each PAMT chunk. No attempt is made to need fewer of either.
//!
//! Limits are the module's word and are not trusted: nothing is sized by them, the lists grow by
//! what the memory map needs, so 0 gives an error and 65535 simply never gets in the way.
//!
//! Pure: `core` only, never panics; the storage is lent by the caller.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use core::fmt;

use crate::memlist::{
    NodeId,
    Region, //
};
use crate::range::{
    PageSize,
    PhysAddr,
    PhysRange, //
};
use crate::store::Store;

/// Warn the operator when fewer than this many TDMRs are left unused.
pub const FEW_TDMRS_LEFT: usize = 4;

/// What the TDX module allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most TDMRs that TDH.SYS.CONFIG takes.
    pub max_tdmrs: u16,
    /// Most reserved areas in one TDMR.
    pub max_reserved: u16,
}

/// A planned TD Memory Region: where it lies, and the node its metadata should come from.
///
/// # Invariants
///
/// Starts and ends at multiples of 1 GB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tdmr {
    range: PhysRange,
    node: NodeId,
}

impl Tdmr {
    /// A TDMR over `range`; `None` unless that starts and ends at multiples of 1 GB.
    pub const fn new(range: PhysRange, node: NodeId) -> Option<Self> {
        if range.is_aligned(PageSize::Size1G) {
            Some(Tdmr { range, node })
        } else {
            None
        }
    }

    /// The addresses the TDMR covers.
    pub const fn range(&self) -> PhysRange {
        self.range
    }

    /// The node of the first memory inside the TDMR.
    pub const fn node(&self) -> NodeId {
        self.node
    }
}

/// Why no plan could be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// There is no memory to cover.
    NoMemoryToCover,
    /// The memory map needs more TDMRs than the module offers.
    TooManyTdmrs {
        /// TDMRs the map needs.
        used: usize,
        /// TDMRs the module offers.
        max: u16,
    },
    /// A region, rounded out to 1 GB, would end beyond what TDX can address.
    BeyondLimit {
        /// The region.
        region: PhysRange,
    },
    /// A TDMR needs more reserved areas than the module offers.
    ReservedAreasExhausted {
        /// The TDMR.
        tdmr: PhysRange,
        /// Holes in it that are not TDX memory.
        holes: usize,
        /// PAMT chunks that lie in it.
        pamts: usize,
        /// Reserved areas the module offers for each TDMR.
        max: u16,
    },
    /// Two reserved areas overlap: a PAMT lies in a hole or in another PAMT.
    ReservedOverlap {
        /// The TDMR.
        tdmr: PhysRange,
        /// The area that overlaps an earlier one.
        area: PhysRange,
    },
    /// The caller's storage is full.
    OutOfMemory,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlanError::NoMemoryToCover => f.write_str("no memory to cover with TDMRs"),
            PlanError::TooManyTdmrs { used, max } => write!(
                f,
                "TDMRs exhausted: the memory map needs {used}, the TDX module offers {max}"
            ),
            PlanError::BeyondLimit { region } => write!(
                f,
                "memory {region} does not fit in a TDMR below {}",
                PhysAddr::LIMIT
            ),
            PlanError::ReservedAreasExhausted {
                tdmr,
                holes,
                pamts,
                max,
            } => write!(
                f,
                "TDMR {tdmr}: reserved areas exhausted: {holes} holes and {pamts} PAMTs in it, \
                 the TDX module offers {max}"
            ),
            PlanError::ReservedOverlap { tdmr, area } => {
                write!(f, "TDMR {tdmr}: reserved area {area} overlaps another one")
            }
            PlanError::OutOfMemory => f.write_str("out of memory for the plan of TDMRs"),
        }
    }
}

/// Covers `regions` (ascending, disjoint) with TDMRs, appended to the emptied `out` in ascending
/// order.
///
/// # Errors
///
/// [`PlanError`]; `out` is then of no use.
pub fn plan<S: Store<Tdmr>>(
    regions: &[Region],
    limits: &Limits,
    out: &mut S,
) -> Result<(), PlanError> {
    out.clear();
    let mut used = 0usize;
    for tdmr in cover(regions) {
        let tdmr = tdmr?;
        used = used.saturating_add(1);
        // Beyond the limit only the count matters: the error should say how many it takes.
        if used <= usize::from(limits.max_tdmrs) {
            out.push(tdmr).map_err(|_| PlanError::OutOfMemory)?;
        }
    }
    if used == 0 {
        return Err(PlanError::NoMemoryToCover);
    }
    if used > usize::from(limits.max_tdmrs) {
        return Err(PlanError::TooManyTdmrs {
            used,
            max: limits.max_tdmrs,
        });
    }
    Ok(())
}

/// The TDMRs that `regions` take, ascending: for each region the part, rounded out to 1 GB, that
/// earlier TDMRs do not cover.
fn cover(regions: &[Region]) -> impl Iterator<Item = Result<Tdmr, PlanError>> + '_ {
    let mut covered = PhysAddr::ZERO;
    regions.iter().filter_map(move |region| {
        let Some(wanted) = region.bytes().round_out(PageSize::Size1G) else {
            return Some(Err(PlanError::BeyondLimit {
                region: region.bytes(),
            }));
        };
        let start = wanted.start().max(covered);
        let range = PhysRange::new(start, wanted.end())?;
        covered = wanted.end();
        Some(Ok(Tdmr {
            range,
            node: first_node(regions, range),
        }))
    })
}

/// The node of the first memory inside `range`, or no node.
fn first_node(regions: &[Region], range: PhysRange) -> NodeId {
    regions
        .iter()
        .find(|region| region.bytes().end() > range.start())
        .map_or(NodeId::new(-1), Region::node)
}

/// The parts of `tdmr` that no region covers, ascending.
pub fn holes(regions: &[Region], tdmr: PhysRange) -> impl Iterator<Item = PhysRange> + '_ {
    let mut next = tdmr.start();
    let inside = regions
        .iter()
        .filter_map(move |region| region.bytes().intersection(tdmr))
        .map(|memory| (memory.start(), memory.end()));
    // The end of the TDMR closes the last hole as another region would.
    inside
        .chain(core::iter::once((tdmr.end(), tdmr.end())))
        .filter_map(move |(start, end)| {
            let hole = PhysRange::new(next, start);
            next = end;
            hole
        })
}

/// Lists the reserved areas of `tdmr` in the emptied `out`, ascending: the holes between
/// `regions` and the parts of `pamts` that lie in it. `pamts` are the PAMT chunks of *all* TDMRs,
/// in any order.
///
/// # Errors
///
/// [`PlanError::ReservedAreasExhausted`], [`PlanError::ReservedOverlap`] or
/// [`PlanError::OutOfMemory`]; `out` is then of no use.
pub fn reserve<S, P>(
    regions: &[Region],
    tdmr: &Tdmr,
    pamts: P,
    limits: &Limits,
    out: &mut S,
) -> Result<(), PlanError>
where
    S: Store<PhysRange>,
    P: Iterator<Item = PhysRange> + Clone,
{
    let range = tdmr.range();
    let pamts = pamts.filter_map(|pamt| pamt.intersection(range));
    let hole_count = count(holes(regions, range));
    let pamt_count = count(pamts.clone());
    if hole_count.saturating_add(pamt_count) > usize::from(limits.max_reserved) {
        return Err(PlanError::ReservedAreasExhausted {
            tdmr: range,
            holes: hole_count,
            pamts: pamt_count,
            max: limits.max_reserved,
        });
    }

    let mut areas = ReservedAreas::new(out);
    for area in holes(regions, range).chain(pamts) {
        areas.insert(area).map_err(|error| match error {
            InsertError::Overlap => PlanError::ReservedOverlap { tdmr: range, area },
            InsertError::Full => PlanError::OutOfMemory,
        })?;
    }
    Ok(())
}

/// How many items there are; `Iterator::count()` has an overflow check that can panic.
fn count(items: impl Iterator) -> usize {
    items.fold(0, |sum: usize, _| sum.saturating_add(1))
}

/// Why an area was not inserted.
enum InsertError {
    /// It overlaps an area that is there already.
    Overlap,
    /// The storage is full.
    Full,
}

/// A set of disjoint areas, kept in ascending order in somebody else's storage.
struct ReservedAreas<'a, S> {
    store: &'a mut S,
}

impl<'a, S: Store<PhysRange>> ReservedAreas<'a, S> {
    /// An empty set in `store`.
    fn new(store: &'a mut S) -> Self {
        store.clear();
        ReservedAreas { store }
    }

    /// Puts `area` where it belongs.
    fn insert(&mut self, area: PhysRange) -> Result<(), InsertError> {
        if self.store.as_slice().iter().any(|old| old.overlaps(area)) {
            return Err(InsertError::Overlap);
        }
        // Each higher area moves one place up; the highest is appended.
        let mut moving = area;
        let higher = |old: &&mut PhysRange| old.start() > area.start();
        for old in self.store.as_mut_slice().iter_mut().filter(higher) {
            core::mem::swap(old, &mut moving);
        }
        self.store.push(moving).map_err(|_| InsertError::Full)
    }
}

#[cfg(any(test, CONFIG_INTEL_TDX_HOST_KUNIT_TEST))]
#[cfg_attr(
    CONFIG_INTEL_TDX_HOST_KUNIT_TEST,
    kernel::macros::kunit_tests(tdx_host_tdmr)
)]
mod tests {
    use super::*;
    use crate::range::PfnRange;
    use crate::store::SliceStore;

    const LIMITS: Limits = Limits {
        max_tdmrs: 64,
        max_reserved: 16,
    };

    const GB: u64 = 1 << 30;

    /// Bytes as a range; what makes no range becomes an error.
    fn bytes(start: u64, end: u64) -> Result<PhysRange, PlanError> {
        PhysRange::from_raw(start, end).ok_or(PlanError::NoMemoryToCover)
    }

    fn region(start: u64, end: u64, nid: i32) -> Result<Region, PlanError> {
        PfnRange::from_raw(start >> 12, end >> 12)
            .map(|frames| Region::new(frames, NodeId::new(nid)))
            .ok_or(PlanError::NoMemoryToCover)
    }

    fn tdmr(start: u64, end: u64, nid: i32) -> Result<Tdmr, PlanError> {
        Tdmr::new(bytes(start, end)?, NodeId::new(nid)).ok_or(PlanError::NoMemoryToCover)
    }

    #[test]
    fn no_memory_plans_no_tdmr() -> Result<(), PlanError> {
        let mut space = [tdmr(0, GB, 0)?; 1];
        let mut out = SliceStore::new(&mut space);
        assert_eq!(
            plan(&[], &LIMITS, &mut out),
            Err(PlanError::NoMemoryToCover)
        );
        assert!(out.as_slice().is_empty());
        Ok(())
    }

    #[test]
    fn each_region_is_rounded_out_and_keeps_its_node() -> Result<(), PlanError> {
        let regions = [
            region(1 << 20, 2 * GB - 4096, 0)?,
            region(4 * GB, 6 * GB, 0)?,
            region(6 * GB, 7 * GB + 4096, 1)?,
        ];
        let mut space = [tdmr(0, GB, 0)?; 4];
        let mut out = SliceStore::new(&mut space);
        plan(&regions, &LIMITS, &mut out)?;
        let expected = [
            tdmr(0, 2 * GB, 0)?,
            tdmr(4 * GB, 6 * GB, 0)?,
            tdmr(6 * GB, 8 * GB, 1)?,
        ];
        assert_eq!(out.as_slice(), &expected);
        Ok(())
    }

    #[test]
    fn covered_regions_take_no_tdmr_and_overhang_takes_the_rest() -> Result<(), PlanError> {
        let regions = [
            region(1 << 20, 5 << 20, 0)?,
            region(6 << 20, 7 << 20, 0)?,
            region(8 << 20, 2 * GB + 4096, 1)?,
        ];
        let mut space = [tdmr(0, GB, 0)?; 4];
        let mut out = SliceStore::new(&mut space);
        plan(&regions, &LIMITS, &mut out)?;
        let expected = [tdmr(0, GB, 0)?, tdmr(GB, 3 * GB, 1)?];
        assert_eq!(out.as_slice(), &expected);
        Ok(())
    }

    #[test]
    fn too_many_tdmrs_says_how_many() -> Result<(), PlanError> {
        let regions = [
            region(GB, 2 * GB, 0)?,
            region(3 * GB, 4 * GB, 0)?,
            region(5 * GB, 6 * GB, 0)?,
        ];
        let mut space = [tdmr(0, GB, 0)?; 4];
        let mut out = SliceStore::new(&mut space);
        for max_tdmrs in [0, 1, 2] {
            let limits = Limits {
                max_tdmrs,
                ..LIMITS
            };
            let error = PlanError::TooManyTdmrs {
                used: 3,
                max: max_tdmrs,
            };
            assert_eq!(plan(&regions, &limits, &mut out), Err(error));
        }
        let limits = Limits {
            max_tdmrs: u16::MAX,
            ..LIMITS
        };
        assert_eq!(plan(&regions, &limits, &mut out), Ok(()));
        assert_eq!(out.as_slice().len(), 3);
        Ok(())
    }

    #[test]
    fn memory_up_to_the_limit_is_planned() -> Result<(), PlanError> {
        let regions = [region(
            PhysAddr::LIMIT.get() - 4096,
            PhysAddr::LIMIT.get(),
            0,
        )?];
        let mut space = [tdmr(0, GB, 0)?; 1];
        let mut out = SliceStore::new(&mut space);
        plan(&regions, &LIMITS, &mut out)?;
        let end = out.as_slice().first().map(|tdmr| tdmr.range().end());
        assert_eq!(end, Some(PhysAddr::LIMIT));
        Ok(())
    }

    #[test]
    fn holes_lie_before_between_and_behind_memory() -> Result<(), PlanError> {
        let regions = [
            region(1 << 20, 5 << 20, 0)?,
            region(5 << 20, 6 << 20, 1)?,
            region(7 << 20, 8 << 20, 0)?,
            region(2 * GB, 3 * GB, 0)?,
        ];
        let mut found = holes(&regions, bytes(0, GB)?);
        assert_eq!(found.next(), Some(bytes(0, 1 << 20)?));
        assert_eq!(found.next(), Some(bytes(6 << 20, 7 << 20)?));
        assert_eq!(found.next(), Some(bytes(8 << 20, GB)?));
        assert_eq!(found.next(), None);
        assert_eq!(holes(&regions, bytes(2 * GB, 3 * GB)?).next(), None);
        Ok(())
    }

    #[test]
    fn pamts_are_clipped_and_sorted_among_holes() -> Result<(), PlanError> {
        let regions = [region(GB + 4096, 3 * GB, 0)?];
        let pamts = [
            bytes(2 * GB - 8192, 2 * GB + 4096)?,
            bytes(GB + 8192, GB + 16384)?,
            bytes(5 * GB, 6 * GB)?,
        ];
        let mut space = [bytes(0, 1)?; 4];
        let mut out = SliceStore::new(&mut space);
        let reserve =
            |tdmr: &Tdmr, out: &mut _| reserve(&regions, tdmr, pamts.iter().copied(), &LIMITS, out);
        reserve(&tdmr(GB, 2 * GB, 0)?, &mut out)?;
        let expected = [
            bytes(GB, GB + 4096)?,
            bytes(GB + 8192, GB + 16384)?,
            bytes(2 * GB - 8192, 2 * GB)?,
        ];
        assert_eq!(out.as_slice(), &expected);
        reserve(&tdmr(2 * GB, 3 * GB, 0)?, &mut out)?;
        assert_eq!(out.as_slice(), &[bytes(2 * GB, 2 * GB + 4096)?]);
        Ok(())
    }

    #[test]
    fn reserved_areas_full_is_an_error() -> Result<(), PlanError> {
        let regions = [region(1 << 20, 2 << 20, 0)?, region(3 << 20, 4 << 20, 0)?];
        let pamts = [bytes(1 << 20, (1 << 20) + 4096)?];
        let tdmr = tdmr(0, GB, 0)?;
        let mut space = [bytes(0, 1)?; 4];
        let mut out = SliceStore::new(&mut space);
        for max_reserved in [0, 3] {
            let limits = Limits {
                max_reserved,
                ..LIMITS
            };
            let error = PlanError::ReservedAreasExhausted {
                tdmr: tdmr.range(),
                holes: 3,
                pamts: 1,
                max: max_reserved,
            };
            assert_eq!(
                reserve(&regions, &tdmr, pamts.iter().copied(), &limits, &mut out),
                Err(error)
            );
        }
        let limits = Limits {
            max_reserved: 4,
            ..LIMITS
        };
        assert!(reserve(&regions, &tdmr, pamts.iter().copied(), &limits, &mut out).is_ok());
        Ok(())
    }

    #[test]
    fn pamt_in_a_hole_or_in_another_pamt_is_an_error() -> Result<(), PlanError> {
        let regions = [region(2 << 20, GB, 0)?];
        let tdmr = tdmr(0, GB, 0)?;
        let mut space = [bytes(0, 1)?; 4];
        let mut out = SliceStore::new(&mut space);
        let in_hole = bytes(1 << 20, 3 << 20)?;
        let error = |area| {
            Err(PlanError::ReservedOverlap {
                tdmr: tdmr.range(),
                area,
            })
        };
        assert_eq!(
            reserve(&regions, &tdmr, [in_hole].into_iter(), &LIMITS, &mut out),
            error(in_hole)
        );
        let first = bytes(4 << 20, 6 << 20)?;
        let second = bytes(5 << 20, 7 << 20)?;
        assert_eq!(
            reserve(
                &regions,
                &tdmr,
                [first, second].into_iter(),
                &LIMITS,
                &mut out
            ),
            error(second)
        );
        Ok(())
    }

    #[test]
    fn full_storage_is_an_error() -> Result<(), PlanError> {
        let regions = [region(GB, 2 * GB, 0)?, region(3 * GB, 4 * GB, 0)?];
        let mut space = [tdmr(0, GB, 0)?; 1];
        let mut out = SliceStore::new(&mut space);
        assert_eq!(
            plan(&regions, &LIMITS, &mut out),
            Err(PlanError::OutOfMemory)
        );
        let mut space = [bytes(0, 1)?; 1];
        let mut out = SliceStore::new(&mut space);
        let wide = tdmr(0, 4 * GB, 0)?;
        assert_eq!(
            reserve(&regions, &wide, core::iter::empty(), &LIMITS, &mut out),
            Err(PlanError::OutOfMemory)
        );
        Ok(())
    }
}
