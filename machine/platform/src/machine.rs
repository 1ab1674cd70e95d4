// SPDX-License-Identifier: GPL-2.0

//! The machine as a whole: [`Machine`] and what its processors do outside SEAMCALL.
//!
//! Every method takes `&self`; QEMU runs each virtual processor in a thread of its own. Locks: each
//! method takes one of the machine's locks at a time and calls the TDX module with none held; only
//! the lock of the P-SEAMLDR is the outermost of all, and held as long as a processor is inside.
//! `seam` adds the SEAMCALL itself.

use crate::config::MachineConfig;
use crate::counts::Counts;
use crate::cpuid::{self, CpuidRegs};
use crate::inject::Injector;
use crate::kernels::Kernels;
use crate::lp::Lp;
use crate::msr::{MCG_STATUS, Msrs, Write as MsrWrite};
use crate::nmi::Nmis;
use crate::private::{Area, CoarseMap, LINE, Owner, PrivateMap};
use crate::seamldr::Seamldr;
use crate::summary::{CpuSummary, Moment, Progress, Summary};
use crate::tds::Tds;
use crate::trace::Trace;
use crate::violation::{Kind, Violation};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tdx_module::Module;

/// The stack of a processor.
pub trait Stack {
    /// Return addresses that are probably on it, innermost first. Takes its time: asked for violations
    /// only.
    fn backtrace(&self) -> Vec<u64>;
}

/// How the guest accesses memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Load.
    Load,
    /// Store that reaches memory as a whole line, some time.
    Store,
    /// Store that goes around the caches.
    NonTemporal,
}

/// Where the machine is: which processor executes what, with what privilege.
#[derive(Clone, Copy, Default)]
pub struct At<'a> {
    /// Logical processor.
    pub lp: u32,
    /// Address of the instruction.
    pub rip: u64,
    /// Current privilege level, 0 to 3.
    pub cpl: u8,
    /// Kernel instructions that all processors together have executed, if they are counted.
    pub executed: u64,
    /// The stack, if it can be looked at.
    pub stack: Option<&'a dyn Stack>,
}

/// Memory and processors: what conversions and flushes are judged by.
pub(crate) struct State {
    pub(crate) lps: Vec<Lp>,
    pub(crate) private: PrivateMap,
    pub(crate) progress: Progress,
    pub(crate) kernels: Kernels,
    /// Time of the last TDH.PHYMEM.CACHE.WB by package and KeyID.
    pub(crate) write_backs: BTreeMap<(usize, u16), u64>,
    pub(crate) tds: Tds,
    /// Memory that was converted while the module used it.
    pub(crate) taken: Option<u64>,
}

impl State {
    /// May the cache of processor `n`, which is in `package`, hold lines of `area` dirty?
    fn may_hold(&self, n: u32, package: u32, area: &Area) -> bool {
        let Some(lp) = self.lps.get(n as usize) else {
            return false;
        };
        if area.owner == Owner::Pamt {
            // Any leaf may write PAMT entries, locks if nothing else.
            return lp.is_dirty();
        }
        let done = self.write_backs.get(&(package as usize, area.hkid));
        lp.may_hold(area.written) && done.is_none_or(|&done| done < area.written)
    }
}

/// What is told to the outside.
pub(crate) struct Report {
    pub(crate) trace: Trace,
    pub(crate) summary: Summary,
    pub(crate) log: Box<dyn Write + Send>,
}

/// One simulated TDX machine.
pub struct Machine {
    pub(crate) config: MachineConfig,
    pub(crate) msrs: Msrs,
    /// What a SEAMCALL with RAX bit 63 clear reaches, if there is anything.
    module: Mutex<Option<Arc<Module>>>,
    /// The module that was there last: it left its handoff data in memory.
    pub(crate) last_module: Mutex<Option<Arc<Module>>>,
    /// Only one processor can be inside: the one that holds the lock.
    pub(crate) seamldr: Mutex<Seamldr>,
    /// Advances with every event that order matters for.
    clock: AtomicU64,
    /// Calls of [`Machine::unsupported`].
    unsupported: AtomicU64,
    pub(crate) coarse: CoarseMap,
    pub(crate) state: Mutex<State>,
    pub(crate) injector: Mutex<Injector>,
    pub(crate) report: Mutex<Report>,
    counts: Mutex<Counts>,
    nmis: Mutex<Nmis>,
    switched_on: Instant,
}

/// A panic while a lock was held must not take the guest down with it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The module that firmware loads at RESET, if it loads one.
fn firmware_module(config: &MachineConfig) -> Result<Option<Arc<Module>>, String> {
    let module = Module::new(config.module.clone()).map_err(|e| e.to_string())?;
    Ok(config.module_loaded.then(|| Arc::new(module)))
}

impl Machine {
    /// A machine that has just been switched on. `trace` takes the trace, `log` lines for people.
    ///
    /// # Errors
    ///
    /// What is wrong with `config`, in words.
    pub fn new(
        config: MachineConfig,
        trace: Box<dyn Write + Send>,
        log: Box<dyn Write + Send>,
    ) -> Result<Machine, String> {
        config.check()?;
        Ok(Machine {
            msrs: Msrs::new(&config),
            module: Mutex::new(firmware_module(&config)?),
            last_module: Mutex::new(None),
            seamldr: Mutex::new(Seamldr::new(config.seamldr.clone())),
            clock: AtomicU64::new(1),
            unsupported: AtomicU64::new(0),
            coarse: CoarseMap::new(config.max_phys_addr),
            state: Mutex::new(State {
                lps: vec![Lp::default(); config.cpus as usize],
                private: PrivateMap::default(),
                progress: Progress::default(),
                kernels: Kernels::new(config.cpus),
                write_backs: BTreeMap::new(),
                tds: Tds::default(),
                taken: None,
            }),
            injector: Mutex::new(Injector::new(config.inject.clone())),
            report: Mutex::new(Report {
                trace: Trace::new(trace),
                summary: Summary::default(),
                log,
            }),
            counts: Mutex::new(Counts::new(config.counted.clone(), config.cpus)),
            nmis: Mutex::new(Nmis::new(&config.nmis)),
            switched_on: Instant::now(),
            config,
        })
    }

    /// The moment in which the processor `at` names is now.
    pub(crate) fn moment(&self, at: At) -> Moment {
        Moment {
            micros: u64::try_from(self.switched_on.elapsed().as_micros()).unwrap_or(u64::MAX),
            executed: at.executed,
        }
    }

    /// The configuration given to [`Machine::new`].
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Calls of the functions to be counted.
    pub fn counts(&self) -> MutexGuard<'_, Counts> {
        lock(&self.counts)
    }

    pub(crate) fn module(&self) -> Option<Arc<Module>> {
        lock(&self.module).clone()
    }

    /// Puts another module, or none, in the place of the present one; answers that one.
    pub(crate) fn replace_module(&self, module: Option<Arc<Module>>) -> Option<Arc<Module>> {
        std::mem::replace(&mut *lock(&self.module), module)
    }

    pub(crate) fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Runs `f` on a processor; `None` if there is no such processor.
    pub(crate) fn with_lp<T>(&self, lp: u32, f: impl FnOnce(&mut Lp) -> T) -> Option<T> {
        lock(&self.state).lps.get_mut(lp as usize).map(f)
    }

    /// RESET: firmware loads a fresh module, and nothing is private any more. Counters stay.
    pub fn reset(&self) {
        // The configuration was accepted once, so the old module stays only if it cannot be made.
        if let Ok(module) = firmware_module(&self.config) {
            self.replace_module(module);
        }
        *lock(&self.last_module) = None;
        *lock(&self.seamldr) = Seamldr::new(self.config.seamldr.clone());
        let mut state = lock(&self.state);
        let left = state.left(self.config.erratum);
        state.kernels.reset(left);
        state.lps.iter_mut().for_each(Lp::reset);
        state.private = PrivateMap::default();
        self.coarse.clear();
        state.progress.forget();
        state.write_backs.clear();
        state.tds.reset();
        state.taken = None;
        drop(state);
        lock(&self.report).summary.resets += 1;
        self.event("reset", 0, json!({}));
    }

    /// Value that RDMSR gets on `lp`, or `None` where QEMU decides.
    pub fn rdmsr(&self, lp: u32, msr: u32) -> Option<u64> {
        if msr == MCG_STATUS {
            // The handler of machine checks looks at what happened.
            self.with_lp(lp, |lp| lp.machine_check_due = false);
        }
        self.msrs.read(msr)
    }

    /// RDMSR must fault though QEMU would answer.
    pub fn rdmsr_faults(&self, msr: u32) -> bool {
        self.msrs.read_faults(msr)
    }

    /// What WRMSR does.
    pub fn wrmsr(&self, msr: u32) -> MsrWrite {
        self.msrs.write(msr)
    }

    /// CPUID's answer, made from QEMU's.
    pub fn cpuid(&self, leaf: u32, subleaf: u32, native: CpuidRegs) -> CpuidRegs {
        cpuid::patch(&self.config, leaf, subleaf, native)
    }

    /// CR4.VMXE of `lp` as the guest set it.
    pub fn vmxe(&self, lp: u32) -> bool {
        self.with_lp(lp, |lp| lp.vmxe).unwrap_or(false)
    }

    /// The guest wrote CR4 on `lp`. `false` asks for #GP: VMXE may not be cleared in VMX operation,
    /// nor set without VMX.
    pub fn set_vmxe(&self, lp: u32, on: bool) -> bool {
        let vmx = self.config.vmx;
        self.with_lp(lp, |lp| {
            let legal = if on { vmx } else { !lp.vmxon };
            lp.vmxe = if legal { on } else { lp.vmxe };
            legal
        })
        .unwrap_or(!on)
    }

    /// In VMX operation.
    pub fn in_vmx(&self, lp: u32) -> bool {
        self.with_lp(lp, |lp| lp.vmxon).unwrap_or(false)
    }

    /// VMXON succeeded.
    pub fn vmxon(&self, at: At) {
        self.with_lp(at.lp, |lp| lp.vmxon = true);
        self.event("vmxon", at.lp, json!({}));
    }

    /// VMXOFF succeeded.
    pub fn vmxoff(&self, at: At) {
        self.with_lp(at.lp, |lp| lp.vmxon = false);
        self.event("vmxoff", at.lp, json!({}));
    }

    /// WBINVD in CPL 0. WBNOINVD writes back as well, so it counts the same.
    pub fn wbinvd(&self, lp: u32) {
        self.with_lp(lp, Lp::flush);
        lock(&self.state).kernels.wbinvd(lp);
    }

    /// A processor is at an instruction at which NMIs may come (the places in the configuration).
    /// Answers whether one does.
    pub fn nmi_comes(&self, at: At) -> bool {
        let Some(place) = lock(&self.nmis).reach(at.rip) else {
            return false;
        };
        let details = json!({ "function": place.function.name, "call": place.call });
        self.event("nmi", at.lp, details);
        true
    }

    /// MOVDIR64B wrote the line at `pa`: it is ordinary memory now.
    pub fn movdir64b(&self, at: At, pa: u64) {
        let line = pa & !(LINE - 1)..(pa & !(LINE - 1)) + LINE;
        let mut state = lock(&self.state);
        let Some(area) = state.private.find(line.clone()) else {
            return;
        };
        let dirty: Vec<_> = (0..self.config.cpus)
            .filter(|&n| state.may_hold(n, self.config.package_of(n), &area))
            .collect();
        if area.used && area.owner != Owner::Pamt {
            state.taken.get_or_insert(pa);
        }
        let converted = state.private.release(line);
        let pamt = area.owner == Owner::Pamt;
        state.kernels.converted(at.lp, converted, pamt);
        drop(state);
        lock(&self.report).summary.converted_bytes += converted;
        if !dirty.is_empty() {
            let text = format!(
                "private line ({}, KeyID {}) converted while the caches of CPU {dirty:?} may hold it dirty",
                area.owner.name(),
                area.hkid
            );
            self.violation(at, Kind::ConvertedDirty, Some(pa), text);
        }
    }

    /// Could there be private memory around `pa`? Cheap: it asks about 2 MB at once and never forgets
    /// before a RESET.
    pub fn may_be_private(&self, pa: u64) -> bool {
        self.coarse.contains(pa)
    }

    /// A load or store of `len` bytes at `pa`, if memory is watched. Answers the address of the poisoned
    /// line, if it is one that gives the processor a machine check.
    pub fn access(&self, at: At, pa: u64, len: u64, access: Access) -> Option<u64> {
        let range = pa..pa.saturating_add(len);
        let area = lock(&self.state).private.find(range.clone())?;
        if !self.config.erratum && !area.used {
            // Any store makes the line ordinary memory, and a load before it does no harm.
            return None;
        }
        let (kind, verb) = match access {
            Access::Load => (Kind::PrivateRead, "read"),
            Access::Store | Access::NonTemporal => (Kind::PrivateWrite, "written"),
        };
        let text = format!(
            "private memory ({}, KeyID {}) {verb} with KeyID 0",
            area.owner.name(),
            area.hkid
        );
        self.violation(at, kind, Some(pa), text);
        match access {
            _ if !self.config.strict => None,
            Access::Load => self.consume(at, range),
            Access::Store => None,
            Access::NonTemporal => {
                self.poison(at, range);
                None
            }
        }
    }

    /// Private lines were written in part.
    fn poison(&self, at: At, range: Range<u64>) {
        let lines = lock(&self.state).private.poison(range.clone());
        if lines > 0 {
            lock(&self.report).summary.poisoned_lines += lines;
            self.memory_event("poisoned", at, range.start);
        }
    }

    /// Memory is read. Answers the poisoned line that is in it, unless the processor has yet to take an
    /// earlier machine check.
    fn consume(&self, at: At, range: Range<u64>) -> Option<u64> {
        let mut state = lock(&self.state);
        let line = state.private.poisoned(range)?;
        let lp = state.lps.get_mut(at.lp as usize)?;
        if std::mem::replace(&mut lp.machine_check_due, true) {
            return None;
        }
        drop(state);
        lock(&self.report).summary.machine_checks += 1;
        self.memory_event("machine-check", at, line);
        Some(line)
    }

    fn memory_event(&self, name: &str, at: At, pa: u64) {
        let details = json!({ "rip": format!("{:#x}", at.rip), "address": format!("{pa:#x}") });
        self.event(name, at.lp, details);
    }

    /// Reports something the machine cannot do, in the log and the trace.
    ///
    /// The log gets the first few only: a virtual machine that is no TD makes hundreds.
    pub fn unsupported(&self, at: At, what: &str) {
        const LOGGED: u64 = 20;
        if self.unsupported.fetch_add(1, Ordering::Relaxed) < LOGGED {
            self.log(&format!("CPU {} at {:#x}: {what}", at.lp, at.rip));
        }
        self.event(
            "unsupported",
            at.lp,
            json!({ "rip": format!("{:#x}", at.rip), "text": what }),
        );
    }

    pub(crate) fn event(&self, name: &str, lp: u32, details: Value) {
        lock(&self.report).trace.event(name, lp, details);
    }

    /// Writes a line for people.
    pub fn log(&self, text: &str) {
        let _ = writeln!(lock(&self.report).log, "tdx-machine: {text}");
    }

    pub(crate) fn violation(&self, at: At, kind: Kind, address: Option<u64>, text: String) {
        let wanted = lock(&self.report).trace.has_room(kind);
        let stack = at.stack.filter(|_| wanted);
        let violation = Violation {
            kind,
            cpu: at.lp,
            rip: at.rip,
            backtrace: stack.map(Stack::backtrace).unwrap_or_default(),
            address,
            text,
        };
        let allowed = self.config.allow.contains(&kind);
        let mut report = lock(&self.report);
        if report.trace.violation(&violation) {
            let word = if allowed {
                "allowed violation"
            } else {
                "VIOLATION"
            };
            let _ = writeln!(report.log, "tdx-machine: {word} {violation}");
        }
        report.summary.count_violation(violation, allowed);
    }

    /// Ends the trace and sums up.
    pub fn finish(&self) -> Summary {
        let (bring_up, totals, cpus, unconverted, tds, guests, kernels) = {
            let mut state = lock(&self.state);
            let left = state.left(self.config.erratum);
            let kernels = state.kernels.report(left);
            let cpus = (0..)
                .zip(&state.lps)
                .map(|(n, lp)| CpuSummary::new(self.config.package_of(n), lp));
            (
                state.progress.report(),
                state.private.totals(),
                cpus.collect(),
                state.private.unconverted(),
                state.tds.count(),
                state.tds.guests(),
                kernels,
            )
        };
        let mut unused = lock(&self.injector).unused();
        unused.extend(lock(&self.nmis).unused());
        let instructions = self.counts().report();
        let mut report = lock(&self.report);
        report.trace.flush(None);
        let mut summary = report.summary.clone();
        summary.bring_up = bring_up;
        summary.set_private(totals);
        summary.cpus = cpus;
        summary.kernels = kernels;
        summary.unconverted_bytes = unconverted;
        (summary.tds_created, summary.tds_alive) = tds;
        summary.guests = guests;
        summary.unused_injections = unused;
        summary.instructions = instructions;
        summary
    }
}
