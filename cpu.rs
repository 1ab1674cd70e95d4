// SPDX-License-Identifier: GPL-2.0

//! Each CPU's part: ready for SEAMCALLs when it comes online, clean when it leaves.
//!
//! A CPU is ready when it is in VMX operation and TDH.SYS.LP.INIT has succeeded on it; the very
//! first one also makes TDH.SYS.INIT. A CPU that leaves flushes its cache, which may hold dirty
//! lines of private memory, and drops its use of VMX.
//!
//! [`CpuReadiness`] keeps the hotplug callbacks registered while it lives. Neighbours:
//! [`crate::seamcall`] makes the calls, [`crate::keyid`] knows whether TDs exist.
//!
//! C it replaces: `tdx_cpu_enable()`, `tdx_online_cpu()`, `tdx_offline_cpu()` and the syscore
//! hooks in `arch/x86/virt/vmx/tdx/tdx.c`.

use core::ptr;
use kernel::bindings;
use kernel::cpu::nr_cpu_ids;
use kernel::error::{
    from_result,
    to_result, //
};
use kernel::ffi::{
    c_int,
    c_uint,
    c_void, //
};
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use kernel::types::Opaque;

use crate::guards::{
    CpuHotplugRead,
    PreemptDisabled,
    SysInitLock, //
};
use crate::kexec;
use crate::leaf::Leaf;
use crate::lockstep::AllStopped;
use crate::memlist::NodeId;
use crate::seamcall::{
    self,
    Args, //
};

/// Whether TDH.SYS.INIT has succeeded since boot or since the module was shut down for an update.
/// Written with [`SysInitLock`] held, or while all CPUs are stopped.
static SYS_INIT_DONE: Atomic<i32> = Atomic::new(0);

/// Makes TDH.SYS.INIT unless it was made; one CPU does it for all.
///
/// Only success is remembered: a failure stays the caller's, and the next CPU may try again.
fn init_module_once() -> Result {
    let _lock = SysInitLock::new();
    if SYS_INIT_DONE.load(Relaxed) == 0 {
        // RCX holds attributes, all of them reserved.
        seamcall::call_spinning(Leaf::TDH_SYS_INIT, Args::default())
            .map_err(|e| e.report("starting the TDX module"))?;
        SYS_INIT_DONE.store(1, Relaxed);
    }
    Ok(())
}

/// Makes this CPU ready for SEAMCALLs. VMX must be on, and the task bound to the CPU; interrupts
/// may be off.
///
/// # Errors
///
/// That of the call that failed, after the log said why.
pub(crate) fn init_this_cpu() -> Result {
    let cpu = this_cpu();
    // SAFETY: The CPU exists, and only it writes its variable while it is online.
    if unsafe { bindings::tdx_glue_lp_initialized(cpu) } {
        return Ok(());
    }
    init_module_once()?;
    seamcall::call_spinning(Leaf::TDH_SYS_LP_INIT, Args::default())
        .map_err(|e| e.report(fmt!("preparing CPU {cpu} for SEAMCALLs")))?;
    // SAFETY: As above.
    unsafe { bindings::tdx_glue_set_lp_initialized(cpu, true) };
    Ok(())
}

/// Number of the CPU this task runs on. It may be out of date at once unless the task is bound.
pub(crate) fn this_cpu() -> u32 {
    // SAFETY: Has no requirements.
    unsafe { bindings::raw_smp_processor_id() }
}

/// The CPUs that can ever exist.
pub(crate) fn possible_cpus() -> impl Iterator<Item = u32> {
    // SAFETY: The numbers are below `nr_cpu_ids`.
    (0..nr_cpu_ids()).filter(|&cpu| unsafe { bindings::tdx_glue_cpu_possible(cpu) })
}

/// A CPU that the module knows and that is offline, if there is one.
pub(crate) fn known_but_offline(_plugged: &CpuHotplugRead) -> Option<u32> {
    // SAFETY: The CPU is possible.
    let known = |&cpu: &u32| unsafe { bindings::tdx_glue_lp_initialized(cpu) };
    possible_cpus()
        .filter(known)
        .find(|&cpu| !online_cpus().any(|online| online == cpu))
}

/// Forgets that TDH.SYS.INIT and TDH.SYS.LP.INIT were made: the module is another one.
///
/// Only while all CPUs are stopped.
pub(crate) fn forget_initialization(_stopped: &AllStopped<'_>) {
    SYS_INIT_DONE.store(0, Relaxed);
    for cpu in possible_cpus() {
        // SAFETY: The CPU is possible, and no CPU does anything else meanwhile.
        unsafe { bindings::tdx_glue_set_lp_initialized(cpu, false) };
    }
}

/// Enters VMX operation on this CPU, or adds a user to it.
fn vmx_get() -> Result {
    // SAFETY: Has no requirements; each success is balanced by one `tdx_glue_vmx_put`.
    to_result(unsafe { bindings::tdx_glue_vmx_get() }).inspect_err(|e| {
        pr_err!(
            "VMX cannot be used ({}): enable VT-x in the BIOS, and load no other hypervisor\n",
            e.to_errno()
        )
    })
}

/// Leaves VMX operation on this CPU unless somebody else uses it.
///
/// # Safety
///
/// Balances one successful [`vmx_get`] on this CPU.
unsafe fn vmx_put() {
    // SAFETY: Promised by the caller.
    unsafe { bindings::tdx_glue_vmx_put() };
}

/// CPU hotplug: this CPU has come online. Runs on it, in a thread bound to it; may sleep.
extern "C" fn online(_cpu: c_uint) -> c_int {
    from_result(|| {
        vmx_get()?;
        // Without a module no TD runs here or elsewhere, and the CPU is as good as any other.
        if !crate::is_lost() {
            // The TDX module may have refused, but it ran.
            init_this_cpu().inspect_err(|_| release_this_cpu())?;
        }
        Ok(0)
    })
}

/// Package of `cpu`.
fn package(cpu: u32) -> u32 {
    // SAFETY: Reads the topology of a possible CPU.
    unsafe { bindings::tdx_glue_cpu_package(cpu) }
}

/// Node of `cpu`.
pub(crate) fn node(cpu: u32) -> NodeId {
    // SAFETY: Reads the topology of a possible CPU.
    NodeId::new(unsafe { bindings::tdx_glue_cpu_node(cpu) })
}

/// The online CPUs, in ascending order. They may change while one iterates.
pub(crate) fn online_cpus() -> impl Iterator<Item = u32> {
    // SAFETY: The numbers are below `nr_cpu_ids`.
    (0..nr_cpu_ids()).filter(|&cpu| unsafe { bindings::tdx_glue_cpu_online(cpu) })
}

/// Package of the CPU that `guard` keeps this task on.
pub(crate) fn this_package(_guard: &PreemptDisabled) -> u32 {
    package(this_cpu())
}

/// One online CPU of each package, with the package's number.
///
/// Packages are few, so looking back over the CPUs before is cheap enough.
pub(crate) fn one_cpu_per_package() -> impl Iterator<Item = (u32, u32)> {
    online_cpus()
        .filter(|&cpu| !online_cpus().any(|other| other < cpu && package(other) == package(cpu)))
        .map(|cpu| (cpu, package(cpu)))
}

/// CPU hotplug: this CPU is about to go offline. Runs on it, may sleep.
///
/// While TDs exist the last CPU of a package stays: keys of TDs are freed package by package.
extern "C" fn offline(cpu: c_uint) -> c_int {
    let alone = || !online_cpus().any(|other| other != cpu && package(other) == package(cpu));
    if crate::keyid::any_in_use() && alone() {
        pr_warn!(
            "TDX requires all packages to have an online CPU. Delete all TDs in order to offline all CPUs of a package.\n"
        );
        return EBUSY.to_errno();
    }
    release_this_cpu();
    0
}

/// Flushes the cache of this CPU if it may hold dirty lines of private memory, and drops VMX.
///
/// No SEAMCALL may follow on this CPU until [`online`] has run again.
fn release_this_cpu() {
    let preempt = PreemptDisabled::new();
    seamcall::flush_this_cpu(&preempt);
    // SAFETY: `online` has taken a reference on this CPU, and calls this for it at most once.
    unsafe { vmx_put() };
}

/// Keeps CPU hotplug callbacks registered, so that each online CPU is ready for SEAMCALLs.
///
/// Dropping it releases all CPUs: caches flushed, VMX off.
pub(crate) struct CpuReadiness(c_int);

impl CpuReadiness {
    /// Makes all online CPUs ready, and each one that comes online later. Task context, sleeps.
    ///
    /// # Errors
    ///
    /// That of the first CPU that fails, after all others were released. The CPU has said in the
    /// log why.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: The name is a C string literal and the callbacks are functions: all live for
        // ever, as the callbacks of built-in code may.
        let state = unsafe {
            bindings::__cpuhp_setup_state(
                bindings::cpuhp_state_CPUHP_AP_ONLINE_DYN,
                c"virt/tdx:online".as_char_ptr(),
                true,
                Some(online),
                Some(offline),
                false,
            )
        };
        to_result(state)?;
        Ok(Self(state))
    }
}

impl Drop for CpuReadiness {
    fn drop(&mut self) {
        // SAFETY: The state was registered by `new` and is removed once.
        unsafe { bindings::__cpuhp_remove_state(self.0, true) };
    }
}

/// Suspend, on the last CPU, interrupts off: VMX must be off before firmware takes over.
extern "C" fn suspend(_data: *mut c_void) -> c_int {
    // SAFETY: `online` has taken a reference on this CPU; `resume` takes it again.
    unsafe { vmx_put() };
    0
}

/// Resume, on the same CPU, interrupts off. The other CPUs come back through [`online`].
extern "C" fn resume(_data: *mut c_void) {
    if vmx_get().is_err() {
        pr_err!("TDs cannot run on the boot CPU after resume\n");
    }
}

/// Reboot, power-off or kexec, in task context, all CPUs alive: no TDX activity from here on.
extern "C" fn shutdown(_data: *mut c_void) {
    extern "C" fn release(_info: *mut c_void) {
        release_this_cpu();
    }
    kexec::leave();
    // SAFETY: `release` may run in an interrupt on each CPU.
    unsafe { bindings::tdx_glue_on_each_cpu(Some(release)) };
}

/// The hooks for suspend, resume and shutdown, as C wants them.
struct Syscore {
    ops: bindings::syscore_ops,
    syscore: Opaque<bindings::syscore>,
}

// SAFETY: `ops` is never written; `syscore` is only touched by the C code it is registered with,
// which serialises itself.
unsafe impl Sync for Syscore {}

static SYSCORE: Syscore = Syscore {
    ops: bindings::syscore_ops {
        suspend: Some(suspend),
        resume: Some(resume),
        shutdown: Some(shutdown),
    },
    syscore: Opaque::zeroed(),
};

/// Registers the hooks for suspend, resume and shutdown; they stay for ever. Task context.
///
/// Call once, when bring-up has succeeded: until then every CPU is released by [`CpuReadiness`].
pub(crate) fn register_power_hooks() {
    let syscore = SYSCORE.syscore.get();
    // SAFETY: Called once (see above), so nobody else touches `syscore` yet; it lives for ever.
    unsafe {
        (*syscore).ops = ptr::from_ref(&SYSCORE.ops);
        bindings::register_syscore(syscore);
    }
}

#[cfg(CONFIG_INTEL_TDX_HOST_KUNIT_TEST)]
#[kernel::macros::kunit_tests(tdx_host_cpu)]
mod tests {
    use super::*;

    #[test]
    fn each_package_is_served_once() {
        let packages = || one_cpu_per_package().map(|(_, package)| package);
        assert!(packages().count() >= 1);
        for cpu in online_cpus() {
            assert_eq!(packages().filter(|&p| p == package(cpu)).count(), 1);
        }
    }
}
