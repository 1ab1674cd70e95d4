// SPDX-License-Identifier: GPL-2.0

//! TLB tracking: how memory is taken from a TD that runs.
//!
//! A page may leave a TD only when no vCPU can still have its translation cached. The module
//! checks that, but the order is the host's: block the ranges, start a new epoch, make every vCPU
//! leave the guest once, remove the pages. Each step is a value that the next one consumes:
//!
//! ```text
//! Tracker::start() -> Blocking --track()--> Tracked --kick()--> Removing --remove_next()--> pages
//! ```
//!
//! so a page cannot be removed, nor the new epoch left out or started after the kick, in code that
//! compiles. Where the steps come one by one from outside the language, [`crate::tlb_steps`] checks
//! them when they come, on top of the same types.
//!
//! # Epochs
//!
//! The module counts the vCPUs that run in the current epoch and in the one before, no further
//! back. It therefore refuses a new epoch (PREVIOUS_TLB_EPOCH_BUSY) while a vCPU runs that entered
//! the guest before the last one began. All users of one TD must share one [`Tracker`], and each
//! removal has it from start to end: an epoch begins only after the kick of the one before.
//!
//! # Contention
//!
//! A call that meets a vCPU or another call at a lock returns OPERAND_BUSY, and a new epoch that
//! comes too early PREVIOUS_TLB_EPOCH_BUSY. Both are gone once all vCPUs are out of the guest, so
//! `insist` holds the vCPUs out and makes the call once more; what fails then is an error. It is
//! the only place that knows this rule.
//!
//! Pure: `core` only, never panics. Neighbours: `td` makes the calls, `operand` has the positions.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use core::borrow::BorrowMut;
use core::marker::PhantomData;

use crate::operand::GpaAndLevel;
use crate::range::PhysAddr;
use crate::status::SeamcallStatus;
use crate::store::Store;

/// The calls about one TD that tracking needs, and power over its vCPUs.
pub trait Td {
    /// A call that failed.
    type Error;

    /// TDH.MEM.RANGE.BLOCK.
    ///
    /// # Errors
    ///
    /// The module's refusal.
    fn block(&mut self, at: GpaAndLevel) -> Result<(), Self::Error>;

    /// TDH.MEM.TRACK.
    ///
    /// # Errors
    ///
    /// The module's refusal.
    fn track(&mut self) -> Result<(), Self::Error>;

    /// TDH.MEM.PAGE.REMOVE; returns where the page lies.
    ///
    /// # Errors
    ///
    /// The module's refusal.
    fn remove(&mut self, at: GpaAndLevel) -> Result<PhysAddr, Self::Error>;

    /// The status word of `error`.
    fn status(error: &Self::Error) -> SeamcallStatus;

    /// Makes each vCPU leave the guest once; returns when all did. They may enter again.
    fn kick_vcpus(&mut self);

    /// Makes all vCPUs leave the guest, and keeps them out until [`Td::release_vcpus`].
    fn hold_vcpus(&mut self);

    /// Ends [`Td::hold_vcpus`].
    fn release_vcpus(&mut self);
}

/// Whether `status` says that vCPUs or another call were in the way.
fn is_contention(status: SeamcallStatus) -> bool {
    status.is(SeamcallStatus::OPERAND_BUSY) || status.is(SeamcallStatus::PREVIOUS_TLB_EPOCH_BUSY)
}

/// Makes `call`; if it meets contention, once more with all vCPUs held out of the guest.
fn insist<T: Td, R>(
    td: &mut T,
    mut call: impl FnMut(&mut T) -> Result<R, T::Error>,
) -> Result<R, T::Error> {
    match call(td) {
        Err(e) if is_contention(T::status(&e)) => {
            td.hold_vcpus();
            let result = call(td);
            td.release_vcpus();
            result
        }
        result => result,
    }
}

/// A TD and its epochs. One for each TD; who shares it puts a lock around it.
pub struct Tracker<T> {
    td: T,
    /// A new epoch has begun and the vCPUs were not kicked since.
    kick_due: bool,
}

impl<T: Td> Tracker<T> {
    /// Tracks `td`, of which nobody else may start epochs.
    pub const fn new(td: T) -> Self {
        Tracker {
            td,
            kick_due: false,
        }
    }

    /// The TD, for calls that do not concern tracking.
    pub fn td(&mut self) -> &mut T {
        &mut self.td
    }

    /// Starts to take memory from the TD; `ranges`, emptied first, remembers what.
    pub fn start<S: Store<GpaAndLevel>>(&mut self, ranges: S) -> Blocking<&mut Self, T, S> {
        Removal::new(self, ranges)
    }

    /// The same for a caller that cannot keep a borrow: the removal takes the tracker with it, and
    /// [`Removal::finish`] gives it back.
    pub fn start_owned<S: Store<GpaAndLevel>>(self, ranges: S) -> Blocking<Self, T, S> {
        Removal::new(self, ranges)
    }

    fn kick(&mut self) {
        self.td.kick_vcpus();
        self.kick_due = false;
    }
}

/// Memory on its way out of a TD; `STEP` says how far it is.
///
/// `B` is the [`Tracker`] of the TD `T`, borrowed or owned; `S` remembers the ranges. Dropped
/// half-way, its ranges stay blocked: the guest faults on them until somebody starts again, which
/// the module allows.
#[must_use = "blocked memory is of no use to anybody"]
pub struct Removal<B, T, S, STEP> {
    tracker: B,
    ranges: S,
    /// How many of `ranges` are gone.
    removed: usize,
    step: PhantomData<(T, STEP)>,
}

/// Step: ranges are being blocked.
pub enum Block {}
/// Step: a new epoch has begun.
pub enum Track {}
/// Step: no vCPU knows the ranges any more.
pub enum Remove {}

/// No vCPU makes new translations of the ranges, but it may have old ones.
pub type Blocking<B, T, S> = Removal<B, T, S, Block>;
/// vCPUs that enter from now on have no translation of the ranges.
pub type Tracked<B, T, S> = Removal<B, T, S, Track>;
/// No vCPU has a translation of the ranges.
pub type Removing<B, T, S> = Removal<B, T, S, Remove>;

/// Why a range was not blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError<E> {
    /// The call failed.
    Call(E),
    /// The list of ranges is full: remove those first.
    Full,
}

impl<B, T, S, STEP> Removal<B, T, S, STEP>
where
    B: BorrowMut<Tracker<T>>,
    T: Td,
    S: Store<GpaAndLevel>,
{
    /// The ranges that are not removed yet.
    pub fn pending(&self) -> &[GpaAndLevel] {
        self.ranges.as_slice().get(self.removed..).unwrap_or(&[])
    }

    /// Ends here. What is pending stays blocked, as when the removal is dropped.
    pub fn finish(self) -> (B, S) {
        (self.tracker, self.ranges)
    }

    fn tracker(&mut self) -> &mut Tracker<T> {
        self.tracker.borrow_mut()
    }

    fn next_step<NEXT>(self) -> Removal<B, T, S, NEXT> {
        Removal {
            tracker: self.tracker,
            ranges: self.ranges,
            removed: self.removed,
            step: PhantomData,
        }
    }
}

impl<B, T, S> Blocking<B, T, S>
where
    B: BorrowMut<Tracker<T>>,
    T: Td,
    S: Store<GpaAndLevel>,
{
    fn new(tracker: B, mut ranges: S) -> Self {
        ranges.clear();
        Removal {
            tracker,
            ranges,
            removed: 0,
            step: PhantomData,
        }
    }

    /// Blocks one more range.
    ///
    /// # Errors
    ///
    /// [`BlockError`], and the range is as before; those blocked earlier can go on without it.
    pub fn block(&mut self, at: GpaAndLevel) -> Result<(), BlockError<T::Error>> {
        // First the list, which can be undone without the module.
        let before = self.ranges.as_slice().len();
        self.ranges.push(at).map_err(|_| BlockError::Full)?;
        let result = insist(&mut self.tracker().td, |td| td.block(at));
        if result.is_err() {
            self.ranges.truncate(before);
        }
        result.map_err(BlockError::Call)
    }

    /// Starts the epoch in which no vCPU can enter with a translation of the ranges.
    ///
    /// # Errors
    ///
    /// The module's refusal, and the ranges, which are still blocked, for another attempt.
    pub fn track(mut self) -> Result<Tracked<B, T, S>, (T::Error, Self)> {
        let tracker = self.tracker();
        if tracker.kick_due {
            // Somebody began an epoch and dropped it.
            tracker.kick();
        }
        match insist(&mut tracker.td, Td::track) {
            Ok(()) => {
                tracker.kick_due = true;
                Ok(self.next_step())
            }
            Err(e) => Err((e, self)),
        }
    }
}

impl<B, T, S> Tracked<B, T, S>
where
    B: BorrowMut<Tracker<T>>,
    T: Td,
    S: Store<GpaAndLevel>,
{
    /// Makes the vCPUs that entered before the new epoch leave the guest.
    pub fn kick(mut self) -> Removing<B, T, S> {
        self.tracker().kick();
        self.next_step()
    }
}

impl<B, T, S> Removing<B, T, S>
where
    B: BorrowMut<Tracker<T>>,
    T: Td,
    S: Store<GpaAndLevel>,
{
    /// Takes the next range from the TD and says where its memory lies; [`None`] after the last.
    ///
    /// The memory still holds private lines: flush them and make them normal before using it.
    ///
    /// # Errors
    ///
    /// The module's refusal; the range is pending and the next call tries it again.
    pub fn remove_next(&mut self) -> Option<Result<(GpaAndLevel, PhysAddr), T::Error>> {
        let at = *self.pending().first()?;
        let result = insist(&mut self.tracker().td, |td| td.remove(at));
        if result.is_ok() {
            self.removed = self.removed.saturating_add(1);
        }
        Some(result.map(|page| (at, page)))
    }
}

#[cfg(any(test, CONFIG_INTEL_TDX_HOST_KUNIT_TEST))]
#[cfg_attr(
    CONFIG_INTEL_TDX_HOST_KUNIT_TEST,
    kernel::macros::kunit_tests(tdx_host_tlb)
)]
mod tests {
    use super::*;
    use crate::operand::SeptLevel;
    use crate::store::SliceStore;

    const PAGES: usize = 4;
    const VCPUS: usize = 2;

    /// The module's side of tracking, for one TD: epochs, who runs in which, when each page was
    /// blocked. And the host's power over the vCPUs.
    struct Model {
        epoch: u64,
        /// The epoch in which a vCPU that is in the guest entered.
        entered: [Option<u64>; VCPUS],
        /// Epoch of blocking, for each page that is.
        blocked: [Option<u64>; PAGES],
        present: [bool; PAGES],
        /// Whether vCPUs enter again as soon as they may.
        eager: bool,
        held: bool,
        /// How many calls find a lock taken.
        busy: u32,
        kicks: u32,
        holds: u32,
    }

    impl Model {
        fn new() -> Self {
            Model {
                epoch: 1,
                entered: [Some(1); VCPUS],
                blocked: [None; PAGES],
                present: [true; PAGES],
                eager: true,
                held: false,
                busy: 0,
                kicks: 0,
                holds: 0,
            }
        }

        fn index(at: GpaAndLevel) -> usize {
            (at.gpa() >> 12) as usize % PAGES
        }

        fn inside(&self, epoch: u64) -> bool {
            self.entered.contains(&Some(epoch))
        }

        fn contended(&mut self) -> Result<(), SeamcallStatus> {
            if self.busy == 0 || self.held {
                return Ok(());
            }
            self.busy -= 1;
            Err(SeamcallStatus::OPERAND_BUSY)
        }
    }

    impl Td for &mut Model {
        type Error = SeamcallStatus;

        fn block(&mut self, at: GpaAndLevel) -> Result<(), SeamcallStatus> {
            self.contended()?;
            self.blocked[Model::index(at)] = Some(self.epoch);
            Ok(())
        }

        fn track(&mut self) -> Result<(), SeamcallStatus> {
            self.contended()?;
            if self.inside(self.epoch - 1) {
                return Err(SeamcallStatus::PREVIOUS_TLB_EPOCH_BUSY);
            }
            self.epoch += 1;
            Ok(())
        }

        fn remove(&mut self, at: GpaAndLevel) -> Result<PhysAddr, SeamcallStatus> {
            self.contended()?;
            let index = Model::index(at);
            let blocked = self.blocked[index].ok_or(SeamcallStatus::GPA_RANGE_NOT_BLOCKED)?;
            let before = self.epoch - 1;
            if blocked > before || (blocked == before && self.inside(before)) {
                return Err(SeamcallStatus::TLB_TRACKING_NOT_DONE);
            }
            self.blocked[index] = None;
            self.present[index] = false;
            PhysAddr::new(at.gpa()).ok_or(SeamcallStatus::OPERAND_INVALID)
        }

        fn status(error: &SeamcallStatus) -> SeamcallStatus {
            *error
        }

        fn kick_vcpus(&mut self) {
            self.kicks += 1;
            let epoch = self.epoch;
            let again = self.eager.then_some(epoch);
            self.entered = [again; VCPUS];
        }

        fn hold_vcpus(&mut self) {
            self.holds += 1;
            self.held = true;
            self.entered = [None; VCPUS];
        }

        fn release_vcpus(&mut self) {
            self.held = false;
        }
    }

    fn page(index: u64) -> GpaAndLevel {
        // The address is aligned, so there is no other case.
        GpaAndLevel::new(index << 12, SeptLevel::Size4K).unwrap_or(PAGE_0)
    }

    const PAGE_0: GpaAndLevel = match GpaAndLevel::new(0, SeptLevel::Size4K) {
        Some(at) => at,
        None => panic!(),
    };

    /// Removes `pages` in one go; the number of pages removed, or the first failure.
    fn zap(tracker: &mut Tracker<&mut Model>, pages: &[u64]) -> Result<usize, SeamcallStatus> {
        let mut space = [PAGE_0; PAGES];
        let mut blocking = tracker.start(SliceStore::new(&mut space));
        for &index in pages {
            match blocking.block(page(index)) {
                Ok(()) => {}
                Err(BlockError::Call(e)) => return Err(e),
                Err(BlockError::Full) => return Err(SeamcallStatus::SYS_BUSY),
            }
        }
        let mut removing = blocking.track().map_err(|(e, _)| e)?.kick();
        let mut count = 0;
        while let Some(result) = removing.remove_next() {
            result?;
            count += 1;
        }
        Ok(count)
    }

    #[test]
    fn pages_leave_a_running_td() {
        let mut model = Model::new();
        let mut tracker = Tracker::new(&mut model);
        assert_eq!(zap(&mut tracker, &[0, 1]), Ok(2));
        assert_eq!(zap(&mut tracker, &[3]), Ok(1));
        assert_eq!(model.present, [false, false, true, false]);
        // One epoch and one kick for each go, however many pages.
        assert_eq!((model.epoch, model.kicks, model.holds), (3, 2, 0));
    }

    #[test]
    fn model_catches_each_wrong_order() {
        let mut model = Model::new();
        let mut td = &mut model;
        // Without blocking.
        assert_eq!(
            td.remove(page(0)),
            Err(SeamcallStatus::GPA_RANGE_NOT_BLOCKED)
        );
        // Without a new epoch, and with the kick before it.
        assert_eq!(td.block(page(0)), Ok(()));
        assert_eq!(
            td.remove(page(0)),
            Err(SeamcallStatus::TLB_TRACKING_NOT_DONE)
        );
        td.kick_vcpus();
        assert_eq!(td.track(), Ok(()));
        assert_eq!(
            td.remove(page(0)),
            Err(SeamcallStatus::TLB_TRACKING_NOT_DONE)
        );
        // A second epoch without a kick in between.
        assert_eq!(td.track(), Err(SeamcallStatus::PREVIOUS_TLB_EPOCH_BUSY));
        td.kick_vcpus();
        assert_eq!(td.remove(page(0)).map(PhysAddr::get), Ok(0));
    }

    #[test]
    fn busy_call_is_made_again_with_vcpus_held_out() {
        for busy in [1, 2] {
            let mut model = Model::new();
            model.busy = busy;
            assert_eq!(zap(&mut Tracker::new(&mut model), &[2]), Ok(1));
            assert_eq!(model.holds, busy);
            assert!(!model.held && !model.present[2]);
        }
    }

    #[test]
    fn dropped_epoch_is_kicked_before_the_next() {
        let mut model = Model::new();
        let mut tracker = Tracker::new(&mut model);
        let mut space = [PAGE_0; PAGES];
        let mut blocking = tracker.start(SliceStore::new(&mut space));
        assert_eq!(blocking.block(page(0)), Ok(()));
        assert!(blocking.track().is_ok());
        // The page is blocked still; another one can go, and then this one.
        assert_eq!(zap(&mut tracker, &[1]), Ok(1));
        assert_eq!(zap(&mut tracker, &[0]), Ok(1));
        assert_eq!((model.kicks, model.holds), (3, 0));
    }

    #[test]
    fn epoch_started_by_somebody_else_costs_a_hold() {
        let mut model = Model::new();
        let mut other = &mut model;
        assert_eq!(other.track(), Ok(()));
        assert_eq!(zap(&mut Tracker::new(&mut model), &[0]), Ok(1));
        assert_eq!(model.holds, 1);
    }

    #[test]
    fn full_list_and_refusals_leave_the_rest_removable() {
        let mut model = Model::new();
        model.eager = false;
        let mut tracker = Tracker::new(&mut model);
        let mut space = [PAGE_0; 1];
        let mut blocking = tracker.start(SliceStore::new(&mut space));
        assert_eq!(blocking.block(page(0)), Ok(()));
        assert_eq!(blocking.block(page(1)), Err(BlockError::Full));
        assert_eq!(blocking.pending(), &[page(0)]);
        assert!(blocking.tracker().td().blocked[1].is_none());
        let mut count = 0;
        if let Ok(tracked) = blocking.track() {
            let mut removing = tracked.kick();
            while let Some(Ok(_)) = removing.remove_next() {
                count += 1;
            }
            assert!(removing.pending().is_empty());
        }
        assert_eq!(count, 1);
    }
}
