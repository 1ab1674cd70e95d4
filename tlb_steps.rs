// SPDX-License-Identifier: GPL-2.0

//! The steps of TLB tracking for callers whose language cannot order them.
//!
//! [`Steps`] does what the types of [`crate::tlb`] do, with the same types inside, but checks the
//! order when a step comes: one out of order is refused with the step where the removal is, and
//! nothing has happened.
//!
//! Pure: `core` only, never panics. Neighbours: `tlb` has the rules, `tlb_c` offers this to KVM.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use core::fmt;
use core::mem;

use crate::operand::GpaAndLevel;
use crate::range::PhysAddr;
use crate::store::Store;
use crate::tlb::{
    BlockError,
    Blocking,
    Removing,
    Td,
    Tracked,
    Tracker, //
};

/// How far a removal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is none.
    Idle,
    /// Ranges are being blocked.
    Blocking,
    /// A new epoch has begun; vCPUs of the one before may still run.
    Tracked,
    /// No vCPU knows the ranges any more.
    Removing,
}

/// What the caller can do at this step.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Idle => "nothing is blocked: block first",
            Step::Blocking => "ranges are being blocked: track comes next",
            Step::Tracked => "a new epoch has begun: kick comes next",
            Step::Removing => "ranges are being removed: remove the rest first",
        })
    }
}

/// Why a step was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepError<E> {
    /// It is not the turn of this step; the removal is there.
    Order(Step),
    /// The list of ranges is full: remove those first.
    Full,
    /// The call failed; the removal is where it was.
    Call(E),
}

/// A TD, its epochs, and at most one removal.
pub struct Steps<T, S>(State<T, S>);

enum State<T, S> {
    Idle(Tracker<T>, S),
    Blocking(Blocking<Tracker<T>, T, S>),
    Tracked(Tracked<Tracker<T>, T, S>),
    Removing(Removing<Tracker<T>, T, S>),
    /// On the way from one of the others to the next; never seen by a caller.
    Between,
}

impl<T: Td, S: Store<GpaAndLevel>> Steps<T, S> {
    /// Tracks `td`, of which nobody else may start epochs; `ranges` is where a removal remembers
    /// what it is about.
    pub const fn new(td: T, ranges: S) -> Self {
        Steps(State::Idle(Tracker::new(td), ranges))
    }

    /// How far the removal is.
    pub const fn step(&self) -> Step {
        match self.0 {
            State::Idle(..) | State::Between => Step::Idle,
            State::Blocking(_) => Step::Blocking,
            State::Tracked(_) => Step::Tracked,
            State::Removing(_) => Step::Removing,
        }
    }

    fn out_of_order<R, E>(&self) -> Result<R, StepError<E>> {
        Err(StepError::Order(self.step()))
    }

    /// Blocks one more range; the first one begins a removal.
    ///
    /// # Errors
    ///
    /// [`StepError`]: out of order once the new epoch has begun.
    pub fn block(&mut self, at: GpaAndLevel) -> Result<(), StepError<T::Error>> {
        self.0 = match mem::replace(&mut self.0, State::Between) {
            State::Idle(tracker, ranges) => State::Blocking(tracker.start_owned(ranges)),
            other => other,
        };
        let State::Blocking(blocking) = &mut self.0 else {
            return self.out_of_order();
        };
        let result = blocking.block(at).map_err(|e| match e {
            BlockError::Call(e) => StepError::Call(e),
            BlockError::Full => StepError::Full,
        });
        if blocking.pending().is_empty() {
            self.cancel();
        }
        result
    }

    /// Starts the epoch in which no vCPU can enter with a translation of the blocked ranges.
    ///
    /// # Errors
    ///
    /// [`StepError`]: out of order unless ranges are being blocked.
    pub fn track(&mut self) -> Result<(), StepError<T::Error>> {
        if self.step() != Step::Blocking {
            return self.out_of_order();
        }
        let mut result = Ok(());
        self.0 = match mem::replace(&mut self.0, State::Between) {
            State::Blocking(blocking) => match blocking.track() {
                Ok(tracked) => State::Tracked(tracked),
                Err((e, blocking)) => {
                    result = Err(StepError::Call(e));
                    State::Blocking(blocking)
                }
            },
            other => other,
        };
        result
    }

    /// Makes the vCPUs that entered before the new epoch leave the guest.
    ///
    /// # Errors
    ///
    /// [`StepError`]: out of order unless the new epoch has just begun.
    pub fn kick(&mut self) -> Result<(), StepError<T::Error>> {
        if self.step() != Step::Tracked {
            return self.out_of_order();
        }
        self.0 = match mem::replace(&mut self.0, State::Between) {
            State::Tracked(tracked) => State::Removing(tracked.kick()),
            other => other,
        };
        Ok(())
    }

    /// Takes the next range from the TD and says where its memory lies; [`None`] after the last,
    /// which ends the removal.
    ///
    /// # Errors
    ///
    /// [`StepError`]: out of order before the kick. A range that was refused is pending, and the
    /// next call tries it again.
    pub fn remove_next(&mut self) -> Result<Option<(GpaAndLevel, PhysAddr)>, StepError<T::Error>> {
        let State::Removing(removing) = &mut self.0 else {
            return self.out_of_order();
        };
        match removing.remove_next() {
            Some(result) => result.map(Some).map_err(StepError::Call),
            None => {
                self.cancel();
                Ok(None)
            }
        }
    }

    /// Ends the removal, if there is one. What it has not removed stays blocked; it can be blocked
    /// again by another.
    pub fn cancel(&mut self) {
        self.0 = match mem::replace(&mut self.0, State::Between) {
            State::Blocking(removal) => idle(removal.finish()),
            State::Tracked(removal) => idle(removal.finish()),
            State::Removing(removal) => idle(removal.finish()),
            other => other,
        };
    }
}

fn idle<T, S>((tracker, ranges): (Tracker<T>, S)) -> State<T, S> {
    State::Idle(tracker, ranges)
}

#[cfg(any(test, CONFIG_INTEL_TDX_HOST_KUNIT_TEST))]
#[cfg_attr(
    CONFIG_INTEL_TDX_HOST_KUNIT_TEST,
    kernel::macros::kunit_tests(tdx_host_tlb_steps)
)]
mod tests {
    use super::*;
    use crate::operand::SeptLevel;
    use crate::status::SeamcallStatus;
    use crate::store::SliceStore;

    /// Writes down which calls were made, and refuses the one it is told to.
    #[derive(Default)]
    struct Recorder {
        calls: [u8; 12],
        made: usize,
        refuse: Option<u8>,
    }

    impl Recorder {
        fn note(&mut self, call: u8) -> Result<(), SeamcallStatus> {
            if self.refuse == Some(call) {
                return Err(SeamcallStatus::OPERAND_INVALID);
            }
            if let Some(slot) = self.calls.get_mut(self.made) {
                *slot = call;
            }
            self.made += 1;
            Ok(())
        }

        fn calls(&self) -> &[u8] {
            self.calls.get(..self.made).unwrap_or(&[])
        }
    }

    impl Td for &mut Recorder {
        type Error = SeamcallStatus;

        fn block(&mut self, _at: GpaAndLevel) -> Result<(), SeamcallStatus> {
            self.note(b'B')
        }

        fn track(&mut self) -> Result<(), SeamcallStatus> {
            self.note(b'T')
        }

        fn remove(&mut self, at: GpaAndLevel) -> Result<PhysAddr, SeamcallStatus> {
            self.note(b'R')?;
            PhysAddr::new(at.gpa()).ok_or(SeamcallStatus::OPERAND_INVALID)
        }

        fn status(error: &SeamcallStatus) -> SeamcallStatus {
            *error
        }

        fn kick_vcpus(&mut self) {
            let _ = self.note(b'K');
        }

        fn hold_vcpus(&mut self) {}

        fn release_vcpus(&mut self) {}
    }

    const PAGE: GpaAndLevel = match GpaAndLevel::new(0x3000, SeptLevel::Size4K) {
        Some(at) => at,
        None => panic!(),
    };

    #[test]
    fn steps_in_order_are_done_again_and_again() {
        let mut td = Recorder::default();
        let mut space = [PAGE; 2];
        let mut steps = Steps::new(&mut td, SliceStore::new(&mut space));
        for _ in 0..2 {
            assert_eq!(steps.block(PAGE), Ok(()));
            assert_eq!(steps.block(PAGE), Ok(()));
            assert_eq!(steps.block(PAGE), Err(StepError::Full));
            assert_eq!(steps.track(), Ok(()));
            assert_eq!(steps.kick(), Ok(()));
            for _ in 0..2 {
                let removed = steps.remove_next();
                assert_eq!(removed.map(|page| page.map(|(at, _)| at)), Ok(Some(PAGE)));
            }
            assert_eq!(steps.step(), Step::Removing);
            assert_eq!(steps.remove_next(), Ok(None));
            assert_eq!(steps.step(), Step::Idle);
        }
        assert_eq!(td.calls(), b"BBTKRRBBTKRR");
    }

    #[test]
    fn every_other_order_is_refused_without_a_call() {
        // Which of block, track, kick and remove may be done at each step.
        for (prefix, allowed) in [("", "B"), ("B", "BT"), ("BT", "K"), ("BTK", "R")] {
            for next in ["B", "T", "K", "R"] {
                let mut td = Recorder::default();
                let mut space = [PAGE; 2];
                let mut steps = Steps::new(&mut td, SliceStore::new(&mut space));
                for step in prefix.bytes() {
                    assert_eq!(make(&mut steps, step), Ok(()));
                }
                let before = steps.step();
                let result = next.bytes().map(|step| make(&mut steps, step)).next();
                let good = allowed.contains(next);
                let expected = if good {
                    Ok(())
                } else {
                    Err(StepError::Order(before))
                };
                assert_eq!(result, Some(expected));
                assert!(good || steps.step() == before);
                assert_eq!(td.made, prefix.len() + usize::from(good));
            }
        }
    }

    fn make(
        steps: &mut Steps<&mut Recorder, SliceStore<'_, GpaAndLevel>>,
        step: u8,
    ) -> Result<(), StepError<SeamcallStatus>> {
        match step {
            b'B' => steps.block(PAGE),
            b'T' => steps.track(),
            b'K' => steps.kick(),
            _ => steps.remove_next().map(|_| ()),
        }
    }

    #[test]
    fn refused_call_leaves_the_removal_where_it_was() {
        for (refused, step) in [
            (b'B', Step::Idle),
            (b'T', Step::Blocking),
            (b'R', Step::Removing),
        ] {
            let mut td = Recorder {
                refuse: Some(refused),
                ..Recorder::default()
            };
            let mut space = [PAGE; 2];
            let mut steps = Steps::new(&mut td, SliceStore::new(&mut space));
            let failure = b"BTKR"
                .iter()
                .find_map(|&step| make(&mut steps, step).err());
            assert_eq!(
                failure,
                Some(StepError::Call(SeamcallStatus::OPERAND_INVALID))
            );
            assert_eq!(steps.step(), step);
        }
    }

    #[test]
    fn cancelled_epoch_is_kicked_before_the_next() {
        let mut td = Recorder::default();
        let mut space = [PAGE; 2];
        let mut steps = Steps::new(&mut td, SliceStore::new(&mut space));
        for step in b"BT" {
            assert_eq!(make(&mut steps, *step), Ok(()));
        }
        steps.cancel();
        assert_eq!(steps.step(), Step::Idle);
        for step in b"BTKR" {
            assert_eq!(make(&mut steps, *step), Ok(()));
        }
        assert_eq!(td.calls(), b"BTBKTKR");
    }
}
