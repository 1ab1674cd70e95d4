// SPDX-License-Identifier: GPL-2.0

//! A job that falls into parts, done by several CPUs at once.
//!
//! [`run`] is called by one task and returns when all is done or something has failed. The calling
//! task works too; a thread on each of the other CPUs helps. Threads, not work items: a part keeps
//! its CPU busy for long, which the shared work queues are not for, and a thread is where its name
//! says. Which CPU does which part is for [`crate::turns`] to say.
//!
//! The workers share a mutex, which is taken for each part, and nothing is taken or allocated under
//! it.

use core::ffi::CStr;
use core::marker::PhantomData;
use core::pin::Pin;
use core::ptr::NonNull;
use kernel::alloc::flags::GFP_KERNEL;
use kernel::bindings;
use kernel::error::from_err_ptr;
use kernel::ffi::{
    c_int,
    c_void, //
};
use kernel::new_mutex;
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use kernel::sync::Mutex;
use pin_init::stack_pin_init;

use crate::cpu;
use crate::memlist::NodeId;
use crate::turns::{
    crew,
    Part,
    Turns, //
};

/// Asks those who are at work to stop, since somebody has failed.
pub(crate) struct Stop(Atomic<i32>);

impl Stop {
    /// Whether to return soon, successfully and without finishing. Any context.
    pub(crate) fn is_wanted(&self) -> bool {
        self.0.load(Relaxed) != 0
    }

    fn want(&self) {
        self.0.store(1, Relaxed);
    }
}

/// What the workers share and change.
struct Progress<E> {
    left: Turns<KVec<Part>>,
    /// The first failure.
    failure: Option<E>,
    /// How many workers have done a part or more.
    workers: usize,
}

/// What the workers share.
#[pin_data]
struct Job<F, E> {
    #[pin]
    progress: Mutex<Progress<E>>,
    stop: Stop,
    work: F,
}

impl<F, E> Job<F, E>
where
    F: Fn(usize, &Stop) -> Result<(), E> + Sync,
    E: Send + Unpin,
{
    /// Does one part after the other until none is left or somebody fails.
    fn work(&self) {
        let mut first = true;
        while !self.stop.is_wanted() {
            let Some(part) = self.take(first) else {
                break;
            };
            first = false;
            if let Err(e) = (self.work)(part, &self.stop) {
                self.stop.want();
                self.progress.lock().failure.get_or_insert(e);
            }
        }
    }

    /// The next part for this CPU; `first` if it has done none so far.
    fn take(&self, first: bool) -> Option<usize> {
        let mut progress = self.progress.lock();
        let part = progress.left.next(cpu::node(cpu::this_cpu()))?;
        progress.workers = progress.workers.saturating_add(first.into());
        Some(part)
    }

    /// What a helper's thread runs.
    ///
    /// # Safety
    ///
    /// `job` points to a value of this type that outlives the thread.
    unsafe extern "C" fn help(job: *mut c_void) -> c_int {
        // SAFETY: Promised by the caller. Shared references may be used by any thread: `F` is `Sync`,
        // what else is shared is behind a lock or atomic, and a failure may be sent.
        unsafe { &*job.cast::<Self>() }.work();
        0
    }
}

/// A thread that helps with a [`Job`]; dropping it waits until the thread has ended.
///
/// # Invariants
///
/// `thread` was made by kthread_create_on_cpu() and this owns a reference to it.
struct Helper<'a> {
    thread: NonNull<bindings::task_struct>,
    job: PhantomData<&'a ()>,
}

impl<'a> Helper<'a> {
    /// Starts a thread on `cpu`. Sleeps.
    ///
    /// # Safety
    ///
    /// The result is dropped, not leaked.
    unsafe fn start<F, E>(job: Pin<&'a Job<F, E>>, cpu: u32) -> Result<Self>
    where
        F: Fn(usize, &Stop) -> Result<(), E> + Sync,
        E: Send + Unpin,
    {
        const NAME: &CStr = c"tdx_init/%u";
        let data = core::ptr::from_ref(job.get_ref()).cast_mut().cast();
        let help = Some(Job::<F, E>::help as unsafe extern "C" fn(*mut c_void) -> c_int);
        // SAFETY: The thread ends before the helper does, which the borrow of the job outlives. The
        // name has the one conversion that the function fills in.
        let thread =
            unsafe { bindings::kthread_create_on_cpu(help, data, cpu, NAME.as_char_ptr()) };
        let thread = NonNull::new(from_err_ptr(thread)?).ok_or(ENOMEM)?;
        // SAFETY: The thread has not run, so it exists; the reference keeps its structure when it
        // ends. It is woken once.
        unsafe {
            bindings::get_task_struct(thread.as_ptr());
            bindings::wake_up_process(thread.as_ptr());
        }
        // INVARIANT: Just made, and the reference just taken.
        Ok(Self {
            thread,
            job: PhantomData,
        })
    }
}

impl Drop for Helper<'_> {
    fn drop(&mut self) {
        // A thread that has not begun will not: there is nothing left for it.
        // SAFETY: By the type invariant this is a kernel thread with a reference to give back.
        unsafe { bindings::kthread_stop_put(self.thread.as_ptr()) };
    }
}

/// The other CPUs that shall help; fewer than would be good when memory is short.
fn helping_cpus(parts: &[Part]) -> KVec<(u32, NodeId)> {
    let here = cpu::this_cpu();
    let mut others = KVec::new();
    for cpu in cpu::online_cpus().filter(|&cpu| cpu != here) {
        if others.push((cpu, cpu::node(cpu)), GFP_KERNEL).is_err() {
            break;
        }
    }
    let mut chosen = KVec::new();
    // One part is for this CPU.
    let _ = crew(parts, parts.len().saturating_sub(1), &others, &mut chosen);
    chosen
}

/// Does all `parts` of a job, on as many CPUs as help: `work` gets the place of a part in the list.
/// Answers how many CPUs took part. Task context, sleeps.
///
/// Each part is done once. A CPU that no thread can be started on is missed, but never needed. CPUs
/// may come and go.
///
/// # Errors
///
/// The first failure of `work`. The others were asked to [`Stop`] then and have returned.
pub(crate) fn run<F, E>(parts: KVec<Part>, work: F) -> Result<usize, E>
where
    F: Fn(usize, &Stop) -> Result<(), E> + Sync,
    E: Send + Unpin,
{
    let cpus = helping_cpus(&parts);

    let progress = Progress {
        left: Turns::new(parts),
        failure: None,
        workers: 0,
    };
    stack_pin_init!(let job = pin_init!(Job {
        progress <- new_mutex!(progress, "tdx_host::parallel"),
        stop: Stop(Atomic::new(0)),
        work,
    }));
    let job = job.as_ref();
    let mut helpers = KVec::new();
    for (cpu, _) in cpus {
        if helpers.reserve(1, GFP_KERNEL).is_err() {
            break;
        }
        // SAFETY: It is dropped below.
        if let Ok(helper) = unsafe { Helper::start(job, cpu) } {
            let _ = helpers.push(helper, GFP_KERNEL);
        }
    }
    job.work();
    drop(helpers);

    let mut progress = job.progress.lock();
    match progress.failure.take() {
        Some(failure) => Err(failure),
        None => Ok(progress.workers),
    }
}

#[cfg(CONFIG_INTEL_TDX_HOST_KUNIT_TEST)]
#[kernel::macros::kunit_tests(tdx_host_parallel)]
mod tests {
    use super::*;

    const PARTS: usize = 100;

    fn parts() -> Result<KVec<Part>> {
        let mut parts = KVec::with_capacity(PARTS, GFP_KERNEL)?;
        for size in 0..PARTS {
            parts.push(Part::new(NodeId::new(0), size as u64), GFP_KERNEL)?;
        }
        Ok(parts)
    }

    #[test]
    fn each_part_is_done_once() -> Result {
        let done = [const { Atomic::<i32>::new(0) }; PARTS];
        let workers = run(parts()?, |part, _| -> Result {
            done[part].fetch_add(1, Relaxed);
            Ok(())
        })?;
        assert!(done.iter().all(|count| count.load(Relaxed) == 1));
        assert!((1..=cpu::online_cpus().count()).contains(&workers));
        Ok(())
    }

    /// Every CPU waits for the others inside its first part, so none can be left out.
    #[test]
    fn all_cpus_are_inside_at_once() -> Result {
        let cpus = cpu::online_cpus().count().min(PARTS);
        let inside = Atomic::<i32>::new(0);
        let workers = run(parts()?, |_, _| -> Result {
            inside.fetch_add(1, Relaxed);
            while inside.load(Relaxed) < cpus as i32 {
                // SAFETY: Task context, preemption is enabled.
                unsafe { bindings::tdx_glue_cond_resched() };
            }
            Ok(())
        })?;
        assert_eq!(workers, cpus);
        Ok(())
    }

    #[test]
    fn failure_stops_all_and_is_told() -> Result {
        let begun = Atomic::<i32>::new(0);
        let result = run(parts()?, |_, stop| {
            if begun.fetch_add(1, Relaxed) == 0 {
                return Err(EIO);
            }
            while !stop.is_wanted() {
                // SAFETY: Task context, preemption is enabled.
                unsafe { bindings::tdx_glue_cond_resched() };
            }
            Ok(())
        });
        assert_eq!(result, Err(EIO));
        assert!(begun.load(Relaxed) as usize <= cpu::online_cpus().count());
        Ok(())
    }

    #[test]
    fn nothing_to_do_is_done() {
        assert_eq!(run(KVec::new(), |_, _| Err(EIO)), Ok(0));
    }
}
