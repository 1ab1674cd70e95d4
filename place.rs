// SPDX-License-Identifier: GPL-2.0

//! From memory to TDMRs and the places of their PAMTs.
//!
//! Where PAMTs land is known only when they are allocated, and each chunk of them takes a reserved
//! area of the TDMR it lies in unless it touches a hole. So [`place`] plans, allocates and checks,
//! and when the check fails it gives all back and goes on:
//!
//! 1. One chunk for the neighbouring TDMRs of a node, on that node, anywhere.
//! 2. One chunk for all TDMRs, anywhere.
//! 3. Each PAMT at a spot where it costs nothing, beside a hole or another PAMT, then where areas
//!    are left; table by table if need be.
//! 4. A plan that leaves one area of each TDMR free, and one chunk for all: it takes one area of a
//!    TDMR, so if the memory can be had, this cannot fail.
//! 5. That plan, and spots.
//! 6. A plan of which the holes alone need more areas than there are, and spots: a table that fills
//!    the memory between two holes makes one area of the two.
//! 7. Plans with their cuts elsewhere (`early`), and spots.
//!
//! A chunk that cannot be had in one piece is asked for in smaller ones: for half of the TDMRs,
//! for one, for one table. When nothing helps, all is tried again with TDMRs of half the size, whose
//! tables are half as large, as far as the TDX module offers TDMRs.
//!
//! Proven: nothing is accepted that the check does not accept, and step 4 never fails it. So if the
//! holes leave an area in every TDMR, a plan is found wherever the memory for it can be had.
//! Heuristic: spots are taken one after the other, the first good one each. Where memory is so
//! scarce, or so many areas are used up, that only some arrangement of all tables fits, it can be
//! missed; tests count how often that is. The search is bounded, whatever the TDX module says its
//! limits are.
//!
//! Pure: `core` only, never panics; storage and memory are lent by the caller.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use core::fmt;

use crate::bridge::Stop;
use crate::early;
use crate::holes::Memory;
use crate::pamt::{
    self,
    Pamt,
    PamtAllocator,
    PamtEntrySizes,
    PamtError,
    PamtLayout,
    PamtMemory, //
};
use crate::range::{
    PageSize,
    PhysAddr, //
};
use crate::spot::{
    self,
    Order, //
};
use crate::store::Store;
use crate::tdmr::{
    self,
    Goal,
    Limits,
    PlanError,
    Scratch,
    Tdmr, //
};

/// TDMRs and their PAMTs; the lists of TDMRs and PAMTs have the same order.
#[derive(Debug, Default)]
pub struct Plan<T, P, C> {
    /// The TDMRs, ascending.
    pub tdmrs: T,
    /// Where the tables of each lie.
    pub pamts: P,
    /// The memory that holds the tables.
    pub chunks: C,
}

/// Why there is no plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceError {
    /// The TDMRs or their reserved areas.
    Plan(PlanError),
    /// The PAMTs.
    Pamt(PamtError),
}

impl From<PlanError> for PlaceError {
    fn from(error: PlanError) -> Self {
        PlaceError::Plan(error)
    }
}

impl From<PamtError> for PlaceError {
    fn from(error: PamtError) -> Self {
        PlaceError::Pamt(error)
    }
}

impl fmt::Display for PlaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlaceError::Plan(error) => error.fmt(f),
            PlaceError::Pamt(error) => error.fmt(f),
        }
    }
}

/// How the PAMTs are laid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Neighbouring TDMRs of a node share a chunk.
    Nodes,
    /// All share a chunk.
    One,
    /// Each where it costs the fewest areas.
    Spots(Order),
}

/// Where TDMRs that touch are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cuts {
    /// As late as possible.
    Late,
    /// As early as possible.
    Early,
}

/// The ways to try, and how many more of the reserved areas than there are the holes may take: less
/// than none can take more TDMRs, and so more bytes.
fn ways() -> impl Iterator<Item = (i8, Cuts, Way)> {
    let [small, middle, large] = PageSize::ALL;
    let orders = [
        Order::Largest,
        Order::Tables([large, middle, small]),
        Order::Tables([middle, large, small]),
        Order::Tables([large, small, middle]),
        Order::Tables([middle, small, large]),
        Order::Tables([small, large, middle]),
        Order::Tables([small, middle, large]),
    ];
    let chunks = [(0, Way::Nodes), (0, Way::One)];
    let spots = move |more| {
        orders
            .into_iter()
            .map(move |order| (more, Way::Spots(order)))
    };
    let one = [(-1, Way::One)];
    let late = chunks
        .into_iter()
        .chain(spots(0))
        .chain(one)
        .chain(spots(-1))
        .chain([1, 2, 3].into_iter().flat_map(spots));
    let early = [0, 1, 2, 3].into_iter().flat_map(spots);
    late.map(|(more, way)| (more, Cuts::Late, way))
        .chain(early.map(|(more, way)| (more, Cuts::Early, way)))
}

/// What is to be placed, and by whom.
pub struct Task<'a, A> {
    /// The memory to cover.
    pub memory: Memory<'a>,
    /// What the TDX module allows.
    pub limits: Limits,
    /// Bytes the TDX module keeps per page.
    pub entries: PamtEntrySizes,
    /// What is wanted beyond that.
    pub goal: Goal,
    /// Where PAMT memory comes from.
    pub allocator: &'a mut A,
    /// How much more may be looked at before it is too much; [`EFFORT`] to begin with.
    pub effort: u32,
}

/// Spots and TDMRs to look at: enough for any machine on which looking helps, and less than a second
/// on one where it does not.
pub const EFFORT: u32 = 20_000;

/// Plans TDMRs and places their PAMTs, in the emptied lists of `plan`.
///
/// # Errors
///
/// [`PlaceError`] of the last way that was tried; the memory is given back then.
pub fn place<A, T, P, C, N, K>(
    task: &mut Task<'_, A>,
    scratch: &mut Scratch<N, K>,
    plan: &mut Plan<T, P, C>,
) -> Result<(), PlaceError>
where
    A: PamtAllocator,
    T: Store<Tdmr>,
    P: Store<Pamt>,
    C: Store<A::Memory>,
    N: Store<Stop>,
    K: Store<u64>,
{
    let mut goal = task.goal;
    loop {
        let result = with_goal(task, &goal, scratch, plan);
        if result.is_err() {
            plan.chunks.clear();
        }
        if !result.is_err_and(needs_luck) {
            return result;
        }
        // Smaller tables might fit, unless TDMRs have run short or are of 1 GB already.
        let Ok(largest) = largest_gb(task, &goal, scratch, plan) else {
            return result;
        };
        goal.max_gb = largest / 2;
        let smaller = largest_gb(task, &goal, scratch, plan);
        if goal.max_gb == 0 || smaller.is_ok_and(|gb| gb >= largest) {
            return result;
        }
    }
}

/// Whether the error is about a limit, or where memory was to be had, so that another way can
/// succeed.
fn needs_luck(error: PlaceError) -> bool {
    match error {
        PlaceError::Plan(
            PlanError::ReservedAreasExhausted { .. } | PlanError::TooManyTdmrs { .. },
        ) => true,
        PlaceError::Plan(_) => false,
        PlaceError::Pamt(PamtError::NoMemory { .. } | PamtError::NoPlace { .. }) => true,
        PlaceError::Pamt(_) => false,
    }
}

/// GB of the largest TDMR that `goal` leads to.
fn largest_gb<A, T, P, C, N, K>(
    task: &Task<'_, A>,
    goal: &Goal,
    scratch: &mut Scratch<N, K>,
    plan: &mut Plan<T, P, C>,
) -> Result<u64, PlanError>
where
    T: Store<Tdmr>,
    N: Store<Stop>,
    K: Store<u64>,
{
    let tdmrs = &mut plan.tdmrs;
    let budget = task.limits.max_reserved.into();
    tdmr::plan(&task.memory, &task.limits, budget, goal, scratch, tdmrs)?;
    let sizes = tdmrs.as_slice().iter().map(|tdmr| tdmr.range().size());
    Ok(PageSize::Size1G.pages_in(sizes.max().unwrap_or(0)))
}

/// Tries one way after the other.
fn with_goal<A, T, P, C, N, K>(
    task: &mut Task<'_, A>,
    goal: &Goal,
    scratch: &mut Scratch<N, K>,
    plan: &mut Plan<T, P, C>,
) -> Result<(), PlaceError>
where
    A: PamtAllocator,
    T: Store<Tdmr>,
    P: Store<Pamt>,
    C: Store<A::Memory>,
    N: Store<Stop>,
    K: Store<u64>,
{
    let mut last = None;
    for (more, cuts, way) in ways() {
        let budget = i32::from(task.limits.max_reserved).saturating_add(more.into());
        let budget = usize::try_from(budget).unwrap_or(0);
        let tdmrs = &mut plan.tdmrs;
        match tdmr::plan(&task.memory, &task.limits, budget, goal, scratch, tdmrs) {
            Ok(()) => {}
            Err(error) if needs_luck(error.into()) => {
                // The first error of all says what the memory map lacks.
                last = last.or(Some(error.into()));
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        if cuts == Cuts::Early && !early::move_cuts_down(&task.memory, budget, tdmrs.as_mut_slice())
        {
            continue;
        }
        if let (0, Some(first)) = (task.limits.max_reserved, tdmrs.as_slice().first()) {
            // All memory that could hold a PAMT is in TDMRs.
            return Err(
                last.unwrap_or(PlaceError::Plan(PlanError::ReservedAreasExhausted {
                    tdmr: first.range(),
                    holes: 0,
                    pamts: 1,
                    max: 0,
                })),
            );
        }
        match attempt(task, way, plan) {
            Ok(()) => return Ok(()),
            Err(error) if !needs_luck(error) => return Err(error),
            Err(error) if more > 0 || cuts == Cuts::Early => last = last.or(Some(error)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or(PlaceError::Plan(PlanError::NoMemoryToCover)))
}

/// Places the PAMTs of the TDMRs in `plan` one way, and checks the reserved areas.
fn attempt<A, T, P, C>(
    task: &mut Task<'_, A>,
    way: Way,
    plan: &mut Plan<T, P, C>,
) -> Result<(), PlaceError>
where
    A: PamtAllocator,
    T: Store<Tdmr>,
    P: Store<Pamt>,
    C: Store<A::Memory>,
{
    plan.chunks.clear();
    plan.pamts.clear();
    for tdmr in plan.tdmrs.as_slice() {
        let layout = PamtLayout::new(tdmr.range(), &task.entries)?;
        let unplaced = Pamt::at(layout, PhysAddr::ZERO);
        let pushed = plan.pamts.push(unplaced);
        pushed.map_err(|_| PlaceError::Pamt(PamtError::OutOfMemory))?;
    }
    let tdmrs = plan.tdmrs.as_slice();
    let pamts = plan.pamts.as_mut_slice();
    match way {
        Way::Spots(order) => spot::place_all(task, order, tdmrs, pamts, &mut plan.chunks)?,
        _ => in_chunks(task, way, tdmrs, pamts, &mut plan.chunks)?,
    }
    for tdmr in tdmrs {
        tdmr::check(&task.memory, tdmr, plan.chunks.as_slice(), &task.limits)?;
    }
    Ok(())
}

/// Allocates chunks for runs of TDMRs, as long as `way` says and the allocator can give.
fn in_chunks<A, C>(
    task: &mut Task<'_, A>,
    way: Way,
    tdmrs: &[Tdmr],
    pamts: &mut [Pamt],
    chunks: &mut C,
) -> Result<(), PamtError>
where
    A: PamtAllocator,
    C: Store<A::Memory>,
{
    let mut tdmrs = tdmrs;
    let mut pamts = pamts;
    while let Some(first) = tdmrs.first() {
        let alike = |tdmr: &&Tdmr| way == Way::One || tdmr.node() == first.node();
        let mut wanted = tdmrs
            .iter()
            .take_while(alike)
            .fold(0usize, |n, _| n.saturating_add(1));
        loop {
            let bytes = bytes_of(pamts, wanted);
            if let Some(memory) = task.allocator.allocate(bytes, first.node()) {
                let memory = pamt::checked(memory, bytes)?;
                lay_out(pamts, wanted, memory.range().start());
                chunks.push(memory).map_err(|_| PamtError::OutOfMemory)?;
                break;
            }
            if wanted <= 1 {
                each_table(task, first, pamts.first_mut(), chunks)?;
                break;
            }
            wanted = wanted.div_ceil(2);
        }
        tdmrs = tdmrs.get(wanted..).unwrap_or(&[]);
        pamts = pamts.get_mut(wanted..).unwrap_or(&mut []);
    }
    Ok(())
}

/// Bytes of the first `count` PAMTs.
fn bytes_of(pamts: &[Pamt], count: usize) -> u64 {
    let first = pamts.iter().take(count);
    first.fold(0u64, |sum, pamt| sum.saturating_add(pamt.total()))
}

/// Lays the first `count` PAMTs one behind the other from `start` on.
fn lay_out(pamts: &mut [Pamt], count: usize, start: PhysAddr) {
    let mut next = start;
    for pamt in pamts.iter_mut().take(count) {
        *pamt = pamt.moved_to(next);
        next = next.checked_add(pamt.total()).unwrap_or(next);
    }
}

/// Allocates each table of `tdmr` for itself.
fn each_table<A, C>(
    task: &mut Task<'_, A>,
    tdmr: &Tdmr,
    pamt: Option<&mut Pamt>,
    chunks: &mut C,
) -> Result<(), PamtError>
where
    A: PamtAllocator,
    C: Store<A::Memory>,
{
    let Some(pamt) = pamt else {
        return Ok(());
    };
    for level in PageSize::ALL {
        let bytes = pamt.table(level).size;
        let memory = task.allocator.allocate(bytes, tdmr.node());
        let memory = memory.ok_or(PamtError::NoMemory {
            tdmr: tdmr.range(),
            bytes,
            node: tdmr.node(),
        })?;
        let memory = pamt::checked(memory, bytes)?;
        pamt.move_table(level, memory.range().start());
        chunks.push(memory).map_err(|_| PamtError::OutOfMemory)?;
    }
    Ok(())
}
