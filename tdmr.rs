// SPDX-License-Identifier: GPL-2.0

//! Planning TDMRs (TD Memory Regions) and the reserved areas inside them.
//!
//! [`plan`] covers the kernel's memory with [`Tdmr`]s, and `place` finds room for their metadata
//! (PAMT). Then [`reserve`] lists what inside a TDMR must not be used.
//!
//! A plan is tried in three shapes, and the first that fits the limits is taken:
//!
//! 1. As the C implementation in Linux 7.3 does it: a TDMR for each memory region, rounded out to
//!    1 GB, unless earlier TDMRs cover it already. A TDMR in which reserved areas run short is cut
//!    at GB boundaries.
//! 2. Where TDMRs run short: one for each stretch of touching GBs, cut likewise.
//! 3. Where they still do: `bridge` also joins stretches over GBs without memory.
//!
//! Proven, and tested against exhaustive search: if any TDMRs that cover the memory need at most
//! the offered reserved areas for holes, and are not more than offered, a plan is found. For the
//! areas of a part of a TDMR are never more than those of the whole, so cutting as late as possible
//! takes the fewest TDMRs. Where the plan of the C fits the limits, the PAMTs take as many bytes as
//! its; otherwise each TDMR beyond the C's costs two pages at most (two of the three tables round
//! up), and only the third shape covers GBs without memory, as few as possible.
//!
//! Limits are the module's word and are not trusted: nothing is sized by them, the lists grow by
//! what the memory map needs, so 0 gives an error and 65535 simply never gets in the way.
//!
//! Pure: `core` only, never panics; the storage is lent by the caller.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use core::fmt;

use crate::bridge::{
    self,
    Stop, //
};
use crate::holes::{
    Memory,
    OutOfOrder, //
};
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
use crate::share;
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

/// What a plan should be good for beyond covering the memory. Never a reason to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goal {
    /// As many TDMRs as this are wanted, to initialise them in parallel. Each one more than needed
    /// may cost two pages of PAMT.
    pub min_tdmrs: u16,
    /// TDMRs should not be larger than so many GB, to need less contiguous memory for a PAMT.
    pub max_gb: u64,
}

impl Goal {
    /// As few TDMRs as the memory map takes.
    pub const PLAIN: Goal = Goal {
        min_tdmrs: 0,
        max_gb: u64::MAX,
    };

    /// As many TDMRs as keep so many CPUs busy to the end: some for each, since they take each
    /// other's when their own are done, and not all are of the same size.
    pub fn for_cpus(cpus: usize) -> Goal {
        const FOR_EACH: usize = 4;
        if cpus < 2 {
            return Goal::PLAIN;
        }
        Goal {
            min_tdmrs: u16::try_from(cpus.saturating_mul(FOR_EACH)).unwrap_or(u16::MAX),
            ..Goal::PLAIN
        }
    }
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
        /// TDMRs the map needs at least.
        used: usize,
        /// TDMRs the module offers.
        max: u16,
    },
    /// A region, rounded out to 1 GB, would end beyond what TDX can address.
    BeyondLimit {
        /// The region.
        region: PhysRange,
    },
    /// Memory regions overlap or are not in ascending order.
    OutOfOrder {
        /// The region that starts too low.
        region: PhysRange,
        /// The one before it.
        previous: PhysRange,
    },
    /// A TDMR needs more reserved areas than the module offers.
    ReservedAreasExhausted {
        /// The TDMR, or the GB that no TDMR can cover.
        tdmr: PhysRange,
        /// Areas that it needs without PAMTs.
        holes: usize,
        /// Areas more that the PAMTs in it take.
        pamts: usize,
        /// Reserved areas the module offers for each TDMR.
        max: u16,
    },
    /// The caller's storage is full.
    OutOfMemory,
}

impl From<OutOfOrder> for PlanError {
    fn from(error: OutOfOrder) -> Self {
        PlanError::OutOfOrder {
            region: error.region,
            previous: error.previous,
        }
    }
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
            PlanError::OutOfOrder { region, previous } => write!(
                f,
                "memory {region} is not behind the memory listed before it, {previous}"
            ),
            PlanError::ReservedAreasExhausted {
                tdmr,
                holes,
                pamts,
                max,
            } => write!(
                f,
                "TDMR {tdmr}: reserved areas exhausted: it needs {} ({holes} for holes, {pamts} \
                 for PAMTs), the TDX module offers {max}",
                holes.saturating_add(*pamts)
            ),
            PlanError::OutOfMemory => f.write_str("out of memory for the plan of TDMRs"),
        }
    }
}

/// Room that [`plan`] needs while it works.
#[derive(Debug, Default)]
pub struct Scratch<S, C> {
    /// Where a TDMR can start.
    pub stops: S,
    /// What it costs to go on from there.
    pub costs: C,
}

/// Covers `memory` with TDMRs, appended to the emptied `out` in ascending order. In each, holes need
/// at most `budget` reserved areas.
///
/// # Errors
///
/// [`PlanError`]; `out` is then of no use.
pub fn plan<S, N, C>(
    memory: &Memory<'_>,
    limits: &Limits,
    budget: usize,
    goal: &Goal,
    scratch: &mut Scratch<N, C>,
    out: &mut S,
) -> Result<(), PlanError>
where
    S: Store<Tdmr>,
    N: Store<Stop>,
    C: Store<u64>,
{
    let max = usize::from(limits.max_tdmrs);
    let shapes = |memory: &Memory<'_>, out: &mut S| -> Result<bool, PlanError> {
        Ok(cut(memory, limits, budget, cover(memory.regions()), out)?
            || cut(memory, limits, budget, stretches(memory.regions()), out)?)
    };
    if !shapes(memory, out)? {
        bridge::plan(memory, limits, budget, scratch, out)?;
    }
    share::split(goal, max, out)?;
    for tdmr in out.as_mut_slice() {
        tdmr.node = first_node(memory.regions(), tdmr.range);
    }
    Ok(())
}

/// Cuts each of `spans` into TDMRs of at most `budget` reserved areas, as few as possible. `false`
/// if they are too many.
fn cut<S: Store<Tdmr>>(
    memory: &Memory<'_>,
    limits: &Limits,
    budget: usize,
    spans: impl Iterator<Item = Result<PhysRange, PlanError>>,
    out: &mut S,
) -> Result<bool, PlanError> {
    out.clear();
    for span in spans {
        let mut rest = Some(span?);
        while let Some(left) = rest {
            let range = first_part(memory, limits, budget, left)?;
            if out.as_slice().len() >= usize::from(limits.max_tdmrs) {
                return Ok(false);
            }
            push(out, range)?;
            rest = PhysRange::new(range.end(), left.end());
        }
    }
    if out.as_slice().is_empty() {
        return Err(PlanError::NoMemoryToCover);
    }
    Ok(true)
}

/// The longest first part of `range` that needs at most `budget` reserved areas.
///
/// # Errors
///
/// [`PlanError::ReservedAreasExhausted`] if one GB needs more: then there is no plan.
pub(crate) fn first_part(
    memory: &Memory<'_>,
    limits: &Limits,
    budget: usize,
    range: PhysRange,
) -> Result<PhysRange, PlanError> {
    memory.reach(range, budget).ok_or_else(|| {
        let end = range.start().checked_add(PageSize::Size1G.bytes());
        let gigabyte = end.and_then(|end| PhysRange::new(range.start(), end));
        let tdmr = gigabyte.unwrap_or(range);
        let none: &[PhysRange] = &[];
        let max = limits.max_reserved;
        PlanError::ReservedAreasExhausted {
            tdmr,
            holes: memory.forced(tdmr, none, None),
            // What was to be left for PAMTs is short, too.
            pamts: usize::from(max).saturating_sub(budget),
            max,
        }
    })
}

/// The TDMR over `range`, which starts and ends at whole GBs.
pub(crate) fn over(memory: &Memory<'_>, range: PhysRange) -> Option<Tdmr> {
    Tdmr::new(range, first_node(memory.regions(), range))
}

/// Appends a TDMR whose node is not known yet. `range` starts and ends at whole GBs.
pub(crate) fn push<S: Store<Tdmr>>(out: &mut S, range: PhysRange) -> Result<(), PlanError> {
    let node = NodeId::new(-1);
    out.push(Tdmr { range, node })
        .map_err(|_| PlanError::OutOfMemory)
}

/// The TDMRs of the C: for each region the part, rounded out to 1 GB, that earlier TDMRs do not
/// cover; ascending.
fn cover(regions: &[Region]) -> impl Iterator<Item = Result<PhysRange, PlanError>> + Clone + '_ {
    let mut covered = PhysAddr::ZERO;
    regions.iter().filter_map(move |region| {
        let Some(wanted) = region.bytes().round_out(PageSize::Size1G) else {
            return Some(Err(PlanError::BeyondLimit {
                region: region.bytes(),
            }));
        };
        let start = wanted.start().max(covered);
        covered = wanted.end().max(covered);
        PhysRange::new(start, wanted.end()).map(Ok)
    })
}

/// The stretches of touching GBs that have memory, ascending.
pub(crate) fn stretches(
    regions: &[Region],
) -> impl Iterator<Item = Result<PhysRange, PlanError>> + '_ {
    let mut spans = cover(regions).peekable();
    core::iter::from_fn(move || {
        let first = match spans.next()? {
            Ok(first) => first,
            error => return Some(error),
        };
        let mut end = first.end();
        while let Some(Ok(next)) = spans.peek() {
            if next.start() != end {
                break;
            }
            end = next.end();
            spans.next();
        }
        PhysRange::new(first.start(), end).map(Ok)
    })
}

/// The node of the first memory inside `range`, or no node.
fn first_node(regions: &[Region], range: PhysRange) -> NodeId {
    regions
        .iter()
        .find(|region| region.bytes().end() > range.start())
        .map_or(NodeId::new(-1), Region::node)
}

/// Lists the reserved areas of `tdmr` in the emptied `out`, ascending. `pamts` are the chunks of
/// PAMTs of *all* TDMRs, in any order.
///
/// All that is not usable memory is reserved if the areas suffice for that, as the C does; else
/// only what the TDX module wants to be reserved.
///
/// # Errors
///
/// [`PlanError::ReservedAreasExhausted`] or [`PlanError::OutOfMemory`]; `out` is then of no use.
pub fn reserve<S, P>(
    memory: &Memory<'_>,
    tdmr: &Tdmr,
    pamts: &[P],
    limits: &Limits,
    out: &mut S,
) -> Result<(), PlanError>
where
    S: Store<PhysRange>,
    P: PamtMemory,
{
    check(memory, tdmr, pamts, limits)?;
    let gaps = || memory.gaps(tdmr.range(), pamts, None);
    let max = usize::from(limits.max_reserved);
    let all = gaps().nth(max).is_none();
    out.clear();
    for gap in gaps() {
        let area = if all { Some(gap.whole) } else { gap.forced };
        if let Some(area) = area {
            out.push(area).map_err(|_| PlanError::OutOfMemory)?;
        }
    }
    Ok(())
}

/// Checks that the reserved areas of `tdmr` suffice.
///
/// # Errors
///
/// [`PlanError::ReservedAreasExhausted`].
pub fn check<P: PamtMemory>(
    memory: &Memory<'_>,
    tdmr: &Tdmr,
    pamts: &[P],
    limits: &Limits,
) -> Result<(), PlanError> {
    let areas = memory.forced(tdmr.range(), pamts, None);
    if areas <= usize::from(limits.max_reserved) {
        return Ok(());
    }
    let none: &[PhysRange] = &[];
    let holes = memory.forced(tdmr.range(), none, None);
    Err(PlanError::ReservedAreasExhausted {
        tdmr: tdmr.range(),
        holes,
        pamts: areas.saturating_sub(holes),
        max: limits.max_reserved,
    })
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

    /// Plans in storage of fixed size and compares with `(start, end, node)` in GB.
    fn plans(
        regions: &[Region],
        cmrs: &[Region],
        limits: &Limits,
        goal: &Goal,
        expected: &[(u64, u64, i32)],
    ) -> Result<bool, PlanError> {
        let mut tdmrs = [tdmr(0, GB, 0)?; 16];
        let mut stops = [Stop::NONE; 8];
        let mut costs = [0; 64];
        let mut out = SliceStore::new(&mut tdmrs);
        let mut scratch = Scratch {
            stops: SliceStore::new(&mut stops),
            costs: SliceStore::new(&mut costs),
        };
        let memory = Memory::new(regions, cmrs)?;
        let budget = limits.max_reserved.into();
        plan(&memory, limits, budget, goal, &mut scratch, &mut out)?;
        let found = out.as_slice().iter().map(|tdmr| {
            let range = tdmr.range();
            let gigabytes = |addr: PhysAddr| PageSize::Size1G.pages_in(addr.get());
            let node = tdmr.node().get();
            (gigabytes(range.start()), gigabytes(range.end()), node)
        });
        Ok(found.eq(expected.iter().copied()))
    }

    /// Limits with other numbers.
    fn limits(max_tdmrs: u16, max_reserved: u16) -> Limits {
        Limits {
            max_tdmrs,
            max_reserved,
        }
    }

    #[test]
    fn no_memory_plans_no_tdmr() {
        assert_eq!(
            plans(&[], &[], &LIMITS, &Goal::PLAIN, &[]),
            Err(PlanError::NoMemoryToCover)
        );
    }

    #[test]
    fn each_region_is_rounded_out_and_keeps_its_node() -> Result<(), PlanError> {
        let regions = [
            region(1 << 20, 2 * GB - 4096, 0)?,
            region(4 * GB, 6 * GB, 0)?,
            region(6 * GB, 7 * GB + 4096, 1)?,
        ];
        let expected = [(0, 2, 0), (4, 6, 0), (6, 8, 1)];
        assert!(plans(&regions, &[], &LIMITS, &Goal::PLAIN, &expected)?);
        Ok(())
    }

    #[test]
    fn covered_regions_take_no_tdmr_and_overhang_takes_the_rest() -> Result<(), PlanError> {
        let regions = [
            region(1 << 20, 5 << 20, 0)?,
            region(6 << 20, 7 << 20, 0)?,
            region(8 << 20, 2 * GB + 4096, 1)?,
        ];
        let expected = [(0, 1, 0), (1, 3, 1)];
        assert!(plans(&regions, &[], &LIMITS, &Goal::PLAIN, &expected)?);
        Ok(())
    }

    #[test]
    fn regions_out_of_order_are_an_error() -> Result<(), PlanError> {
        let regions = [region(GB, 2 * GB, 0)?, region(2 * GB - 4096, 3 * GB, 0)?];
        let error = PlanError::OutOfOrder {
            region: bytes(2 * GB - 4096, 3 * GB)?,
            previous: bytes(GB, 2 * GB)?,
        };
        assert_eq!(plans(&regions, &[], &LIMITS, &Goal::PLAIN, &[]), Err(error));
        Ok(())
    }

    #[test]
    fn tdmrs_are_joined_when_they_run_short() -> Result<(), PlanError> {
        let regions = [
            region(GB, 2 * GB, 0)?,
            region(2 * GB, 3 * GB, 1)?,
            region(5 * GB, 6 * GB, 1)?,
            region(7 * GB, 8 * GB, 1)?,
        ];
        let plain = |max_tdmrs, expected: &[_]| {
            plans(
                &regions,
                &[],
                &limits(max_tdmrs, 16),
                &Goal::PLAIN,
                expected,
            )
        };
        assert!(plain(4, &[(1, 2, 0), (2, 3, 1), (5, 6, 1), (7, 8, 1)])?);
        assert!(plain(3, &[(1, 3, 0), (5, 6, 1), (7, 8, 1)])?);
        // The smallest hole is joined first.
        assert!(plain(2, &[(1, 3, 0), (5, 8, 1)])?);
        assert!(plain(1, &[(1, 8, 0)])?);
        let error = PlanError::TooManyTdmrs { used: 1, max: 0 };
        assert_eq!(plain(0, &[]), Err(error));
        // Without reserved areas nothing can be joined.
        let error = PlanError::TooManyTdmrs { used: 3, max: 2 };
        assert_eq!(
            plans(&regions, &[], &limits(2, 0), &Goal::PLAIN, &[]),
            Err(error)
        );
        Ok(())
    }

    #[test]
    fn tdmrs_are_split_when_reserved_areas_run_short() -> Result<(), PlanError> {
        let regions = [
            region(4096, GB - 4096, 0)?,
            region(GB, 2 * GB - 4096, 0)?,
            region(2 * GB, 3 * GB, 0)?,
        ];
        let whole = [region(0, 3 * GB, 0)?];
        let first = limits(8, 2);
        // [0, 1) has holes at both ends, [1, 2) at the end.
        assert!(plans(
            &regions,
            &[],
            &first,
            &Goal::PLAIN,
            &[(0, 1, 0), (1, 2, 0), (2, 3, 0)]
        )?);
        // Both GBs are one TDMR of the C, and have three holes.
        let two = [
            region(4096, GB + 4096, 0)?,
            region(GB + 8192, 2 * GB - 4096, 0)?,
        ];
        assert!(plans(&two, &[], &limits(8, 3), &Goal::PLAIN, &[(0, 2, 0)])?);
        assert!(plans(
            &two,
            &[],
            &first,
            &Goal::PLAIN,
            &[(0, 1, 0), (1, 2, 0)]
        )?);
        // What is convertible is no hole.
        let none = limits(8, 0);
        assert!(plans(
            &regions,
            &whole,
            &none,
            &Goal::PLAIN,
            &[(0, 1, 0), (1, 2, 0), (2, 3, 0)]
        )?);
        let error = PlanError::ReservedAreasExhausted {
            tdmr: bytes(0, GB)?,
            holes: 2,
            pamts: 0,
            max: 1,
        };
        assert_eq!(
            plans(&regions, &[], &limits(8, 1), &Goal::PLAIN, &[]),
            Err(error)
        );
        Ok(())
    }

    #[test]
    fn goal_splits_as_far_as_there_are_tdmrs() -> Result<(), PlanError> {
        let regions = [region(GB, 2 * GB, 0)?, region(4 * GB, 12 * GB, 0)?];
        let goal = |min_tdmrs, max_gb| Goal { min_tdmrs, max_gb };
        let split = |max_tdmrs, goal, expected: &[_]| {
            plans(&regions, &[], &limits(max_tdmrs, 16), &goal, expected)
        };
        let three = [(1, 2, 0), (4, 8, 0), (8, 12, 0)];
        assert!(split(16, goal(2, u64::MAX), &[(1, 2, 0), (4, 12, 0)])?);
        assert!(split(16, goal(3, u64::MAX), &three)?);
        assert!(split(3, goal(9, 1), &three)?);
        assert!(split(16, goal(0, 7), &three)?);
        let four = [(1, 2, 0), (4, 6, 0), (6, 9, 0), (9, 12, 0)];
        assert!(split(16, goal(4, u64::MAX), &four)?);
        Ok(())
    }

    #[test]
    fn cpus_want_some_tdmrs_each_unless_there_is_one() {
        assert_eq!(Goal::for_cpus(0), Goal::PLAIN);
        assert_eq!(Goal::for_cpus(1), Goal::PLAIN);
        assert_eq!(Goal::for_cpus(2).min_tdmrs, 8);
        assert_eq!(Goal::for_cpus(usize::MAX).min_tdmrs, u16::MAX);
    }

    #[test]
    fn memory_up_to_the_limit_is_planned() -> Result<(), PlanError> {
        let limit = PhysAddr::LIMIT.get();
        let regions = [region(limit - 4096, limit, 0)?];
        let last = (limit / GB - 1, limit / GB, 0);
        assert!(plans(&regions, &[], &LIMITS, &Goal::PLAIN, &[last])?);
        Ok(())
    }

    #[test]
    fn all_is_reserved_if_there_is_room_else_what_must_be() -> Result<(), PlanError> {
        let regions = [
            region(4096, 1 << 20, 0)?,
            region(2 << 20, 3 << 20, 0)?,
            region(4 << 20, GB, 0)?,
        ];
        // The second hole is convertible, of the third the upper half.
        let cmrs = [region(4096, (3 << 20) + 4096, 0)?, region(5 << 20, GB, 0)?];
        let memory = Memory::new(&regions, &cmrs)?;
        let tdmr = tdmr(0, GB, 0)?;
        let pamts = [bytes(4 << 20, 5 << 20)?, bytes(GB - 4096, GB + 4096)?];
        let mut space = [bytes(0, 1)?; 4];
        let mut out = SliceStore::new(&mut space);
        reserve(&memory, &tdmr, &pamts, &limits(1, 4), &mut out)?;
        let all = [
            bytes(0, 4096)?,
            bytes(1 << 20, 2 << 20)?,
            bytes(3 << 20, 5 << 20)?,
            bytes(GB - 4096, GB)?,
        ];
        assert_eq!(out.as_slice(), &all);
        reserve(&memory, &tdmr, &pamts, &limits(1, 3), &mut out)?;
        let forced = [
            bytes(0, 4096)?,
            bytes((3 << 20) + 4096, 5 << 20)?,
            bytes(GB - 4096, GB)?,
        ];
        assert_eq!(out.as_slice(), &forced);
        let error = PlanError::ReservedAreasExhausted {
            tdmr: tdmr.range(),
            holes: 2,
            pamts: 1,
            max: 2,
        };
        assert_eq!(
            reserve(&memory, &tdmr, &pamts, &limits(1, 2), &mut out),
            Err(error)
        );
        Ok(())
    }

    #[test]
    fn full_storage_is_an_error() -> Result<(), PlanError> {
        let regions = [region(GB, 2 * GB, 0)?, region(3 * GB, 4 * GB, 0)?];
        let goal = Goal {
            min_tdmrs: 17,
            ..Goal::PLAIN
        };
        let many = [region(GB, 60 * GB, 0)?];
        assert_eq!(
            plans(&many, &[], &LIMITS, &goal, &[]),
            Err(PlanError::OutOfMemory)
        );
        let mut space = [bytes(0, 1)?; 1];
        let mut out = SliceStore::new(&mut space);
        let memory = Memory::new(&regions, &[])?;
        let wide = tdmr(0, 4 * GB, 0)?;
        let none: &[PhysRange] = &[];
        assert_eq!(
            reserve(&memory, &wide, none, &LIMITS, &mut out),
            Err(PlanError::OutOfMemory)
        );
        Ok(())
    }
}
