// SPDX-License-Identifier: GPL-2.0

//! Work that all CPUs do together, step by step, while nothing else runs.
//!
//! [`run`] stops the machine and takes every online CPU through a list of [`Step`]s: none begins
//! the next step before all have ended the one before, and none after one has failed. The steps
//! get [`AllStopped`] as evidence.
//!
//! Neighbour: [`crate::update`], whose steps these are.
//!
//! C it replaces: the state machine in `arch/x86/virt/vmx/tdx/seamldr.c`.

use kernel::bindings;
use kernel::error::to_result;
use kernel::ffi::{
    c_int,
    c_void, //
};
use kernel::prelude::*;
use kernel::sync::atomic::{
    Acquire,
    Atomic,
    Full,
    Relaxed,
    Release, //
};
use kernel::types::NotThreadSafe;

use crate::cpu;
use crate::guards::CpuHotplugRead;

/// Evidence that every online CPU is in [`run`], with interrupts off.
///
/// # Invariants
///
/// It is so while a value exists.
pub(crate) struct AllStopped<'a> {
    failed: &'a Atomic<u32>,
    _cpu: NotThreadSafe,
}

impl AllStopped<'_> {
    /// Whether a step has failed on some CPU: what this one does is in vain.
    pub(crate) fn in_vain(&self) -> bool {
        self.failed.load(Relaxed) != 0
    }
}

/// Who takes part in a step; all others wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// The boot CPU, which cannot go offline.
    BootCpu,
    /// Each CPU, in no order.
    All,
}

/// One step of the work `J`.
pub(crate) struct Step<J> {
    /// Who takes part.
    pub(crate) who: Who,
    /// What they do. Interrupts are off: no sleeping, no waiting for another CPU.
    pub(crate) work: fn(&J, &AllStopped<'_>) -> Result,
}

/// The first failure of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    /// Index of the step.
    pub(crate) step: usize,
    /// Why.
    pub(crate) error: Error,
}

/// What the CPUs share.
struct Shared<'a, J> {
    job: &'a J,
    steps: &'a [Step<J>],
    /// How many CPUs take part.
    cpus: u32,
    /// Index of the step that may be done now.
    current: Atomic<u32>,
    /// How many CPUs have done the current step.
    arrived: Atomic<u32>,
    /// 0, or 1 plus the index of the first step that failed.
    failed: Atomic<u32>,
    /// Its errno.
    errno: Atomic<i32>,
}

impl<J> Shared<'_, J> {
    /// Notes that step `index` has failed, if it is the first failure.
    fn fail(&self, index: u32, error: Error) {
        if self.failed.cmpxchg(0, index + 1, Full).is_ok() {
            self.errno.store(error.to_errno(), Relaxed);
        }
    }

    /// Notes that this CPU has done step `index`. The last one lets all go on.
    fn arrive(&self, index: u32) {
        let before = self.arrived.fetch_add(1u32, Full);
        if before + 1 == self.cpus && self.failed.load(Relaxed) == 0 {
            self.arrived.store(0, Relaxed);
            self.current.store(index + 1, Release);
        }
    }

    /// Waits until step `index` may be done; whether it ever may.
    fn wait_for(&self, index: u32) -> bool {
        while self.current.load(Acquire) != index {
            if self.failed.load(Relaxed) != 0 {
                return false;
            }
            // SAFETY: Has no requirements.
            unsafe { bindings::tdx_glue_relax_stopped() };
        }
        true
    }

    /// This CPU's part.
    fn attend(&self, stopped: &AllStopped<'_>) {
        let boot_cpu = cpu::this_cpu() == 0;
        for (index, step) in (0..).zip(self.steps) {
            if !self.wait_for(index) {
                return;
            }
            if boot_cpu || step.who == Who::All {
                if let Err(e) = (step.work)(self.job, stopped) {
                    self.fail(index, e);
                }
            }
            self.arrive(index);
        }
    }

    /// How it ended, once no CPU takes part any more.
    fn result(&self) -> Result<(), Failed> {
        match self.failed.load(Relaxed).checked_sub(1) {
            None => Ok(()),
            Some(step) => Err(Failed {
                step: step as usize,
                error: Error::from_errno(self.errno.load(Relaxed)),
            }),
        }
    }
}

/// Runs on every online CPU, with interrupts off.
///
/// # Safety
///
/// `data` points to a [`Shared`] with this `J`, and all online CPUs run this function with it.
unsafe extern "C" fn attend<J: Sync>(data: *mut c_void) -> c_int {
    // SAFETY: Promised by the caller. It is shared only for reading.
    let shared = unsafe { &*data.cast::<Shared<'_, J>>() };
    // INVARIANT: All online CPUs are here.
    shared.attend(&AllStopped {
        failed: &shared.failed,
        _cpu: NotThreadSafe,
    });
    0
}

/// Does `steps` of `job` on all CPUs. Task context, sleeps; everything else stands still meanwhile.
///
/// # Errors
///
/// The first step that failed.
pub(crate) fn run<J: Sync>(
    job: &J,
    steps: &[Step<J>],
    _plugged: &CpuHotplugRead,
) -> Result<(), Failed> {
    let mut shared = Shared {
        job,
        steps,
        // SAFETY: Has no requirements.
        cpus: unsafe { bindings::tdx_glue_nr_online_cpus() },
        current: Atomic::new(0),
        arrived: Atomic::new(0),
        failed: Atomic::new(0),
        errno: Atomic::new(0),
    };
    // SAFETY: `shared` lives until the call returns. The CPU hotplug lock is held, so `cpus` is
    // right and all of them run the function.
    let ret =
        unsafe { bindings::tdx_glue_stop_machine(Some(attend::<J>), (&raw mut shared).cast()) };
    // The machine may be going down: then nothing was done.
    to_result(ret).map_err(|error| Failed { step: 0, error })?;
    shared.result()
}

#[cfg(CONFIG_INTEL_TDX_HOST_KUNIT_TEST)]
#[kernel::macros::kunit_tests(tdx_host_lockstep)]
mod tests {
    use super::*;

    /// Counts who does what, on the real CPUs of this machine.
    struct Count {
        done: [Atomic<u32>; 3],
        /// How often a CPU found another one out of step.
        out_of_step: Atomic<u32>,
    }

    impl Count {
        fn new() -> Self {
            Count {
                done: [const { Atomic::new(0) }; 3],
                out_of_step: Atomic::new(0),
            }
        }

        /// Does step `index`, which `before` CPUs must have prepared in the step before.
        fn step(&self, index: usize, before: u32) -> Result {
            if index > 0 && self.done[index - 1].load(Relaxed) != before {
                self.out_of_step.fetch_add(1u32, Full);
            }
            self.done[index].fetch_add(1u32, Full);
            Ok(())
        }

        fn counts(&self) -> [u32; 3] {
            [0, 1, 2].map(|index| self.done[index].load(Relaxed))
        }
    }

    fn cpus() -> u32 {
        // SAFETY: Has no requirements.
        unsafe { bindings::tdx_glue_nr_online_cpus() }
    }

    const FIRST: Step<Count> = Step {
        who: Who::BootCpu,
        work: |count, _| count.step(0, 0),
    };
    const SECOND: Step<Count> = Step {
        who: Who::All,
        work: |count, _| count.step(1, 1),
    };
    const THIRD: Step<Count> = Step {
        who: Who::All,
        work: |count, _| count.step(2, cpus()),
    };

    #[test]
    fn no_cpu_runs_ahead() {
        let count = Count::new();
        let plugged = CpuHotplugRead::new();
        for _ in 0..5 {
            let count = Count::new();
            assert!(run(&count, &[FIRST, SECOND, THIRD], &plugged).is_ok());
            assert_eq!(count.counts(), [1, cpus(), cpus()]);
            assert_eq!(count.out_of_step.load(Relaxed), 0);
        }
        assert!(run(&count, &[], &plugged).is_ok());
    }

    #[test]
    fn failure_on_one_cpu_ends_it_for_all() {
        const FAIL: Step<Count> = Step {
            who: Who::BootCpu,
            work: |count, _| count.step(1, 1).and(Err(EIO)),
        };
        let count = Count::new();
        let result = run(&count, &[FIRST, FAIL, THIRD], &CpuHotplugRead::new());
        let failed = Failed {
            step: 1,
            error: EIO,
        };
        assert_eq!(result, Err(failed));
        assert_eq!(count.counts(), [1, 1, 0]);
    }
}
