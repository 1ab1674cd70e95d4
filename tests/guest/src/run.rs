// SPDX-License-Identifier: GPL-2.0
//! Runs the vCPUs of TDs, a thread each, until the TD ends: [`Running`].
//!
//! A vCPU that the TD halts sleeps inside `KVM_RUN`. A signal brings it out now
//! and then, so that the client sees that it sleeps, or that it shall stop.

use crate::exits::Step;
use crate::exits::step;
use crate::failure::Context;
use crate::failure::Failure;
use crate::td::Td;
use kvm_bindings::KVM_MP_STATE_HALTED;
use kvm_ioctls::VcpuFd;
use rustix::thread::CpuSet;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;
use vmm_sys_util::signal::Killable;
use vmm_sys_util::signal::SIGRTMIN;
use vmm_sys_util::signal::register_signal_handler;

/// How often vCPUs are brought out of `KVM_RUN`.
const TICK: Duration = Duration::from_millis(100);

/// When a run is over, and how it is done.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Exits of all vCPUs together after which the TD is stopped.
    pub max_exits: Option<u64>,
    /// Stop the TD when each of its vCPUs is halted.
    pub until_halt: bool,
    /// Time after which the run has failed.
    pub timeout: Duration,
    /// Move each vCPU to the next CPU before each `KVM_RUN`.
    pub roam: bool,
}

/// How a TD ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A vCPU shut down (triple fault).
    Shutdown,
    /// The TD switched itself off.
    PowerOff,
    /// All vCPUs are halted.
    Halted,
    /// It was stopped after the exits it was allowed.
    MaxExits,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shutdown => "shutdown",
            Self::PowerOff => "power off",
            Self::Halted => "halted",
            Self::MaxExits => "stopped after the exits allowed",
        })
    }
}

/// Exits by kind.
pub type Counts = BTreeMap<&'static str, u64>;

/// What the threads of a TD tell each other.
#[derive(Default)]
struct Progress {
    /// How it ended; vCPUs stop when this is set. The first word counts.
    end: Option<Result<End, Failure>>,
    counts: Counts,
    /// Whether each vCPU is halted.
    halted: Vec<bool>,
}

/// A TD whose vCPUs run.
pub struct Running {
    td: Arc<Td>,
    progress: Arc<Mutex<Progress>>,
    threads: Vec<JoinHandle<()>>,
    limits: Limits,
    started: Instant,
}

impl Running {
    /// Start the vCPUs of a TD.
    ///
    /// # Errors
    ///
    /// No thread can be had.
    pub fn start(td: Td, vcpus: Vec<VcpuFd>, limits: Limits) -> Result<Self, Failure> {
        register_signal_handler(SIGRTMIN(), on_signal).step("install the signal handler")?;
        let progress = Progress {
            halted: vec![false; vcpus.len()],
            ..Default::default()
        };
        let progress = Arc::new(Mutex::new(progress));
        let td = Arc::new(td);
        let mut running = Self {
            td,
            progress,
            threads: Vec::new(),
            limits,
            started: Instant::now(),
        };
        for (id, vcpu) in vcpus.into_iter().enumerate() {
            let (td, progress) = (Arc::clone(&running.td), Arc::clone(&running.progress));
            let name = format!("td{}-vcpu{id}", td.number);
            let body = move || vcpu_thread(&td, id, vcpu, &progress, &limits);
            match std::thread::Builder::new()
                .name(name)
                .spawn(body)
                .step("start a vCPU's thread")
            {
                Ok(thread) => running.threads.push(thread),
                Err(e) => {
                    running.finish(Err(e));
                    return running.join().map(|_| running);
                }
            }
        }
        Ok(running)
    }

    /// Wait until the TD has ended, and destroy it.
    ///
    /// # Errors
    ///
    /// A vCPU failed, or time ran out.
    pub fn wait(mut self) -> Result<(End, Counts), Failure> {
        let result = self.join();
        let removed = self.td.memory.remove(&self.td.vm);
        let counts = std::mem::take(&mut lock(&self.progress).counts);
        // What came first is what matters: a broken VM refuses the rest.
        let end = result?;
        removed.map(|()| (end, counts))
    }

    fn join(&mut self) -> Result<End, Failure> {
        while !self.threads.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(TICK.min(Duration::from_millis(10)));
            self.tick();
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                return Err(Failure::new("a vCPU's thread panicked"));
            }
        }
        lock(&self.progress)
            .end
            .take()
            .unwrap_or_else(|| Err(Failure::new("no vCPU ended the TD")))
    }

    /// Look after the vCPUs, which may sleep.
    fn tick(&self) {
        if self.started.elapsed() > self.limits.timeout {
            let exits = lock(&self.progress).counts.clone();
            let seconds = self.limits.timeout.as_secs();
            self.finish(Err(Failure::new(format!(
                "not ended after {seconds} s; exits: {}",
                list(&exits)
            ))));
        }
        let progress = lock(&self.progress);
        if progress.end.is_none() && !self.limits.until_halt {
            return;
        }
        drop(progress);
        std::thread::sleep(TICK);
        for thread in self.threads.iter().filter(|t| !t.is_finished()) {
            // It fails only for a thread that is gone.
            let _ = thread.kill(SIGRTMIN());
        }
    }

    fn finish(&self, end: Result<End, Failure>) {
        lock(&self.progress).end.get_or_insert(end);
    }
}

/// Nothing to do: the signal's effect is that `KVM_RUN` returns.
extern "C" fn on_signal(_: i32, _: *mut libc::siginfo_t, _: *mut std::ffi::c_void) {}

/// Progress is plain data, so that a panic elsewhere does not spoil it.
fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(|e| e.into_inner())
}

fn vcpu_thread(td: &Td, id: usize, mut vcpu: VcpuFd, progress: &Mutex<Progress>, limits: &Limits) {
    let result = vcpu_loop(td, id, &mut vcpu, progress, limits);
    if let Some(end) = result.map_err(|e| e.of(format!("vCPU {id}"))).transpose() {
        lock(progress).end.get_or_insert(end);
    }
}

/// Run a vCPU until the TD ends. `None`: another vCPU or the main thread ended it.
fn vcpu_loop(
    td: &Td,
    id: usize,
    vcpu: &mut VcpuFd,
    progress: &Mutex<Progress>,
    limits: &Limits,
) -> Result<Option<End>, Failure> {
    let cpus = if limits.roam { cpus()? } else { Vec::new() };
    let mut next = cpus.iter().cycle().skip(id);
    loop {
        if lock(progress).end.is_some() {
            return Ok(None);
        }
        if let Some(cpu) = next.next() {
            move_to(*cpu)?;
        }
        let (kind, end) = match step(td, vcpu)? {
            Step::Interrupted => {
                let halted =
                    vcpu.get_mp_state().step("KVM_GET_MP_STATE")?.mp_state == KVM_MP_STATE_HALTED;
                let mut progress = lock(progress);
                if let Some(mine) = progress.halted.get_mut(id) {
                    *mine = halted;
                }
                if limits.until_halt && progress.halted.iter().all(|&halted| halted) {
                    return Ok(Some(End::Halted));
                }
                continue;
            }
            Step::Continue(kind) => (kind, None),
            Step::Ended(kind, end) => (kind, Some(end)),
        };
        let mut progress = lock(progress);
        *progress.counts.entry(kind).or_default() += 1;
        if end.is_some() {
            return Ok(end);
        }
        if limits
            .max_exits
            .is_some_and(|most| progress.counts.values().sum::<u64>() >= most)
        {
            return Ok(Some(End::MaxExits));
        }
    }
}

/// CPUs on which this process may run.
fn cpus() -> Result<Vec<usize>, Failure> {
    let set = rustix::thread::sched_getaffinity(None).step("sched_getaffinity")?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|&cpu| set.is_set(cpu))
        .collect())
}

/// Move this thread to a CPU. One that has gone offline is passed over.
fn move_to(cpu: usize) -> Result<(), Failure> {
    let mut set = CpuSet::new();
    set.set(cpu);
    match rustix::thread::sched_setaffinity(None, &set) {
        Err(rustix::io::Errno::INVAL) => Ok(()),
        result => result.step("sched_setaffinity"),
    }
}

/// Exits by kind, as text.
pub fn list(counts: &Counts) -> String {
    if counts.is_empty() {
        return "none".into();
    }
    counts
        .iter()
        .map(|(kind, count)| format!("{kind} {count}"))
        .collect::<Vec<_>>()
        .join(", ")
}
