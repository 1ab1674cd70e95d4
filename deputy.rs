// SPDX-License-Identifier: GPL-2.0

//! Work of others, done by a CPU that a crash has stopped.
//!
//! The CPU that goes on to the next kernel must neither hang nor crash again in code of somebody
//! else. So it leaves that to one of the CPUs that wait, stopped, for the machine's end
//! ([`Desk::serve`]), and watches ([`Desk::give`]): if the work hangs there, it goes on without it.
//!
//! Neighbour: [`crate::chain`], whose users are that work.

use kernel::bindings;
use kernel::sync::atomic::{
    Acquire,
    Atomic,
    Full,
    Relaxed,
    Release, //
};

use crate::bringup::Stopwatch;

/// How many deputies may be lost.
const JOBS: usize = 8;

/// What [`Desk::offered`] says if it is not 1 plus the index of a job.
const NOTHING: u32 = 0;
const CLOSED: u32 = u32::MAX;

/// How long to wait: times are in nanoseconds.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    /// For a deputy that takes the job. One that has flushed its caches is there at once.
    pub(crate) take: u64,
    /// For a sign of life from the work.
    pub(crate) progress: u64,
    /// How much progress there can be. Work that makes more goes round in circles.
    pub(crate) most: u64,
}

/// What became of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    /// It was done, with this result.
    Done(u64),
    /// It gives no sign of life. Whoever does it may still go on, now or later.
    Hangs,
    /// No deputy took it, and none will.
    NotTaken,
}

/// Place of one job.
struct Job<T> {
    work: Atomic<*mut T>,
    done: Atomic<u32>,
    result: Atomic<u64>,
}

/// Where jobs are given to deputies, one at a time, by one CPU.
pub(crate) struct Desk<T> {
    /// A job that hangs keeps its place: its deputy may still write there.
    jobs: [Job<T>; JOBS],
    /// How many jobs hang.
    hanging: Atomic<u32>,
    /// 1 plus the index of the job that waits for a deputy, or [`NOTHING`], or [`CLOSED`].
    offered: Atomic<u32>,
}

impl<T> Desk<T> {
    pub(crate) const fn new() -> Self {
        Self {
            jobs: [const {
                Job {
                    work: Atomic::new(core::ptr::null_mut()),
                    done: Atomic::new(0),
                    result: Atomic::new(0),
                }
            }; JOBS],
            hanging: Atomic::new(0),
            offered: Atomic::new(NOTHING),
        }
    }

    /// Gives `work` to a deputy, and waits until it is done or hangs. One CPU; any context.
    ///
    /// `progress` is a number that grows while the work goes on.
    pub(crate) fn give(
        &self,
        work: *mut T,
        patience: Patience,
        progress: impl Fn() -> u64,
    ) -> Given {
        let index = self.hanging.load(Relaxed);
        let Some(job) = self.jobs.get(index as usize) else {
            return Given::NotTaken;
        };
        job.work.store(work, Relaxed);
        job.done.store(0, Relaxed);
        let offer = index + 1;
        self.offered.store(offer, Release);
        let since = Stopwatch::now();
        while self.offered.load(Relaxed) == offer {
            if Stopwatch::now().saturating_sub(since) > patience.take
                && self.offered.cmpxchg(offer, NOTHING, Full).is_ok()
            {
                return Given::NotTaken;
            }
            relax();
        }
        let begin = progress();
        let (mut seen, mut since) = (begin, Stopwatch::now());
        while job.done.load(Acquire) == 0 {
            let (progress, now) = (progress(), Stopwatch::now());
            if progress != seen && progress.wrapping_sub(begin) <= patience.most {
                (seen, since) = (progress, now);
            } else if now.saturating_sub(since) > patience.progress {
                self.hanging.store(index + 1, Relaxed);
                return Given::Hangs;
            }
            relax();
        }
        Given::Done(job.result.load(Relaxed))
    }

    /// Does jobs, each by `work`, until the desk is closed. Any context.
    pub(crate) fn serve(&self, work: impl Fn(*mut T) -> u64) {
        loop {
            let offer = self.offered.load(Acquire);
            if offer == CLOSED {
                return;
            }
            let job = offer
                .checked_sub(1)
                .and_then(|index| self.jobs.get(index as usize));
            match job {
                Some(job) if self.offered.cmpxchg(offer, NOTHING, Full).is_ok() => {
                    job.result.store(work(job.work.load(Relaxed)), Relaxed);
                    job.done.store(1, Release);
                }
                _ => relax(),
            }
        }
    }

    /// Lets all deputies go, now and later.
    pub(crate) fn close(&self) {
        self.offered.store(CLOSED, Release);
    }
}

/// Between two looks at what another CPU does.
fn relax() {
    // SAFETY: Has no requirements.
    unsafe { bindings::tdx_glue_relax_stopped() };
}

#[cfg(CONFIG_INTEL_TDX_HOST_KUNIT_TEST)]
#[kernel::macros::kunit_tests(tdx_host_deputy)]
mod tests {
    use super::*;
    use crate::guards::CpuHotplugRead;
    use crate::lockstep::{
        self,
        Step,
        Who, //
    };

    const MS: u64 = 1_000_000;

    /// Long enough for a CPU of a busy host.
    const PATIENT: Patience = Patience {
        take: 10_000 * MS,
        progress: 10_000 * MS,
        most: u64::MAX,
    };

    /// Jobs of the test: numbers, of which these are special.
    const HANGS: u64 = 7;
    const CREEPS: u64 = 8;
    const CIRCLES: u64 = 9;

    struct Office {
        desk: Desk<u64>,
        /// How far the job is that creeps.
        progress: Atomic<u64>,
        /// Set when the jobs that hang may end.
        free: Atomic<u32>,
        /// How many deputies were let go.
        gone: Atomic<u32>,
    }

    impl Office {
        fn new() -> Self {
            Self {
                desk: Desk::new(),
                progress: Atomic::new(0),
                free: Atomic::new(0),
                gone: Atomic::new(0),
            }
        }

        fn give(&self, mut work: u64, patience: Patience) -> Given {
            self.desk
                .give(&raw mut work, patience, || self.progress.load(Relaxed))
        }

        /// What deputies do: the number, doubled.
        fn work(&self, work: *mut u64) -> u64 {
            // SAFETY: `give` waits for what it has given, or the job hangs, and was read here.
            let work = unsafe { work.read() };
            let mut watch = Stopwatch::start();
            let mut spent = 0;
            while work == HANGS && self.free.load(Acquire) == 0 {
                relax();
            }
            while work == CIRCLES && self.free.load(Acquire) == 0 {
                self.progress.fetch_add(1u64, Relaxed);
                relax();
            }
            while work == CREEPS && spent < 200 * MS {
                spent += watch.lap().nanos();
                self.progress.fetch_add(1u64, Relaxed);
                relax();
            }
            work * 2
        }

        fn serve(&self) {
            self.desk.serve(|work| self.work(work));
            self.gone.fetch_add(1u32, Full);
        }
    }

    fn cpus() -> u32 {
        // SAFETY: Has no requirements.
        unsafe { bindings::tdx_glue_nr_online_cpus() }
    }

    /// The boot CPU does `give`, and all others serve.
    fn with_deputies(office: &Office, give: fn(&Office)) {
        struct Both<'a>(&'a Office, fn(&Office));
        let step = Step::<Both<'_>> {
            who: Who::All,
            work: |both, _| {
                if crate::cpu::this_cpu() != 0 {
                    both.0.serve();
                    return Ok(());
                }
                (both.1)(both.0);
                both.0.free.store(1, Release);
                both.0.desk.close();
                Ok(())
            },
        };
        let both = Both(office, give);
        assert!(lockstep::run(&both, &[step], &CpuHotplugRead::new()).is_ok());
        assert_eq!(office.gone.load(Relaxed), cpus() - 1);
    }

    #[test]
    fn job_without_a_deputy_is_not_taken() {
        let office = Office::new();
        let at_once = Patience { take: 0, ..PATIENT };
        assert_eq!(office.give(1, at_once), Given::NotTaken);
        office.desk.close();
        // Returns: nobody may wait who comes late.
        office.serve();
        assert_eq!(office.desk.offered.load(Relaxed), CLOSED);
    }

    #[test]
    fn deputies_do_job_after_job() {
        assert!(cpus() > 1);
        let office = Office::new();
        with_deputies(&office, |office| {
            for work in 20..40 {
                assert_eq!(office.give(work, PATIENT), Given::Done(work * 2));
            }
        });
    }

    #[test]
    fn job_that_hangs_costs_a_deputy_and_no_more() {
        assert!(cpus() > 1);
        let office = Office::new();
        with_deputies(&office, |office| {
            let soon = Patience {
                progress: 20 * MS,
                ..PATIENT
            };
            assert_eq!(office.give(HANGS, soon), Given::Hangs);
            // Meanwhile the others go on, if there are any, in another place.
            if cpus() > 2 {
                assert_eq!(office.give(3, PATIENT), Given::Done(6));
            }
            assert_eq!(office.desk.hanging.load(Relaxed), 1);
            assert_eq!(office.desk.jobs[0].done.load(Relaxed), 0);
        });
        // Its late result is nobody's.
        assert_eq!(office.desk.jobs[0].result.load(Relaxed), HANGS * 2);
        assert_ne!(office.desk.jobs[1].result.load(Relaxed), HANGS * 2);
    }

    #[test]
    fn job_that_goes_on_has_all_the_time() {
        assert!(cpus() > 1);
        let office = Office::new();
        with_deputies(&office, |office| {
            let soon = Patience {
                progress: 100 * MS,
                ..PATIENT
            };
            assert_eq!(office.give(CREEPS, soon), Given::Done(CREEPS * 2));
        });
    }

    #[test]
    fn job_that_goes_round_in_circles_hangs() {
        assert!(cpus() > 1);
        let office = Office::new();
        with_deputies(&office, |office| {
            let soon = Patience {
                progress: 20 * MS,
                most: 100,
                ..PATIENT
            };
            assert_eq!(office.give(CIRCLES, soon), Given::Hangs);
            assert!(office.progress.load(Relaxed) > 100);
        });
    }

    #[test]
    fn places_for_jobs_that_hang_run_out() {
        let office = Office::new();
        office.desk.hanging.store(JOBS as u32, Relaxed);
        assert_eq!(office.give(1, PATIENT), Given::NotTaken);
    }
}
