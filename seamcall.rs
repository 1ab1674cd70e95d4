// SPDX-License-Identifier: GPL-2.0

//! The SEAMCALL instruction: the one door to the TDX module.
//!
//! [`call`] is the usual way in: it repeats a call that found no entropy, and returns what the
//! module wrote only when the module wrote it. [`call_once`] never repeats. Both mark the cache of
//! the CPU as possibly holding dirty private lines *before* the call, because an NMI of a crashing
//! CPU can stop this one right after it, and both refuse once [`shut_down`] was called.
//!
//! A failure is a [`SeamcallError`]; [`SeamcallError::report`] says in the log which leaf failed,
//! the status by name, what it means and what to do, and turns it into an errno.
//!
//! TDH.VP.ENTER alone goes another way, `vp_enter.S`, by the same rules.
//!
//! KVM makes these calls for every page of a TD, so what each of them needs is inlined down to the
//! instruction, and what is rare is not.
//!
//! C it replaces: `seamcall_internal.h` and `seamcall.S` in `arch/x86/virt/vmx/tdx`.

use core::arch::asm;
use core::fmt;
use kernel::bindings;
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Full, //
};

use crate::explain::{
    explain,
    Details,
    Explanation, //
};
use crate::guards::PreemptDisabled;
use crate::leaf::Leaf;
use crate::status::{
    SeamcallStatus,
    StatusClass, //
};

/// How often a call is made that finds no entropy: as often as RDRAND is tried elsewhere.
const ENTROPY_ATTEMPTS: u32 = 10;

/// How often a call is made that the module is too busy to serve.
const BUSY_ATTEMPTS: u32 = 1000;

/// Registers that a leaf reads and writes, RAX excepted.
#[derive(Clone, Copy, Default)]
pub(crate) struct Args {
    /// RCX.
    pub(crate) rcx: u64,
    /// RDX.
    pub(crate) rdx: u64,
    /// R8.
    pub(crate) r8: u64,
    /// R9.
    pub(crate) r9: u64,
    /// R10.
    pub(crate) r10: u64,
    /// R11.
    pub(crate) r11: u64,
}

/// What the module answered to a call that did what was asked.
pub(crate) struct Reply {
    /// [`SeamcallStatus::SUCCESS`], or a success that comes with information.
    pub(crate) status: SeamcallStatus,
    /// The registers the module returned.
    pub(crate) out: Args,
}

/// Why a call did not do what was asked.
#[derive(Clone, Copy)]
pub(crate) enum Cause {
    /// The module was not reached: the instruction failed. The kernel's own status codes.
    NotReached(SeamcallStatus),
    /// The module refused, with these registers.
    Refused(SeamcallStatus, Args),
    /// An operand cannot be right: the call was not made. What the module would have answered.
    NotMade(SeamcallStatus),
    /// TDX was shut down earlier: the call was not made.
    ShutDown,
}

/// A call that failed.
#[must_use]
#[derive(Clone, Copy)]
pub(crate) struct SeamcallError {
    /// What was called.
    pub(crate) leaf: Leaf,
    /// Why it failed.
    pub(crate) cause: Cause,
}

impl SeamcallError {
    /// The status, as the C interfaces return it.
    pub(crate) fn status(&self) -> SeamcallStatus {
        match self.cause {
            Cause::NotReached(status) | Cause::Refused(status, _) | Cause::NotMade(status) => {
                status
            }
            Cause::ShutDown => SeamcallStatus::SEAMCALL_VMFAILINVALID,
        }
    }

    /// The errno for it: `ENODEV` no module, `EOPNOTSUPP` TDX off in the BIOS, `EACCES` not in VMX
    /// operation, `ESHUTDOWN` TDX shut down, `EINVAL` impossible operand, `EIO` refused by the
    /// module.
    pub(crate) fn errno(&self) -> Error {
        match self.cause {
            Cause::NotReached(SeamcallStatus::SEAMCALL_VMFAILINVALID) => ENODEV,
            Cause::NotReached(SeamcallStatus::SEAMCALL_GP) => EOPNOTSUPP,
            Cause::NotReached(SeamcallStatus::SEAMCALL_UD) => EACCES,
            Cause::NotMade(_) => EINVAL,
            Cause::ShutDown => ESHUTDOWN,
            _ => EIO,
        }
    }

    /// What the status means and what to do about it, if there is something to say.
    fn explanation(&self) -> Option<Explanation> {
        match self.cause {
            Cause::NotReached(status) | Cause::Refused(status, _) => explain(self.leaf, status),
            Cause::NotMade(_) | Cause::ShutDown => None,
        }
    }

    /// Says in the log what happened while doing `what`, and returns the errno. Any context.
    pub(crate) fn report(&self, what: impl kernel::fmt::Display) -> Error {
        let errno = self.errno();
        pr_err!(
            "{} failed while {what}: {self} ({})\n",
            self.leaf,
            errno.to_errno()
        );
        if let Some(explanation) = self.explanation() {
            pr_err!("{}\n", explanation.remedy);
        }
        errno
    }
}

impl fmt::Display for SeamcallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            Cause::ShutDown => return f.write_str("TDX was shut down"),
            Cause::NotReached(status) => write!(f, "{status}")?,
            Cause::NotMade(status) => {
                return write!(f, "not made, for {status}{}", Details(status))
            }
            Cause::Refused(status, out) => {
                write!(f, "{status}{}", Details(status))?;
                if is_about_cpuid(status) {
                    write!(
                        f,
                        ", CPUID leaf {:#x} subleaf {:#x}",
                        out.rcx as u32,
                        out.rcx >> 32
                    )?;
                }
            }
        }
        match self.explanation() {
            Some(explanation) => write!(f, ": {}", explanation.meaning),
            None => Ok(()),
        }
    }
}

/// Whether RCX says, next to `status`, which CPUID leaf and subleaf the module objects to.
fn is_about_cpuid(status: SeamcallStatus) -> bool {
    status.is(SeamcallStatus::INCORRECT_CPUID_VALUE)
        || status.is(SeamcallStatus::INCONSISTENT_CPUID_FIELD)
}

/// Set on the way to the next kernel: no call may start after.
///
/// Not mangled, because `vp_enter.S` reads it too.
#[export_name = "tdx_host_shut_down"]
static SHUT_DOWN: Atomic<i32> = Atomic::new(0);

/// Operand of an instruction: the variable of this CPU with the address `{dirty}`.
#[cfg(CONFIG_SMP)]
macro_rules! of_this_cpu {
    ($address:literal) => {
        concat!("gs:[rip + ", $address, "]")
    };
}

/// There is only one CPU.
#[cfg(not(CONFIG_SMP))]
macro_rules! of_this_cpu {
    ($address:literal) => {
        concat!("[rip + ", $address, "]")
    };
}

/// Marks the cache of this CPU and executes SEAMCALL with `leaf` in RAX. Outputs replace `args`.
///
/// Returns RAX, or the kernel's own status if the module was not reached; `args` is good for
/// nothing then.
#[inline(always)]
fn seamcall(leaf: Leaf, args: &mut Args, _preempt: &PreemptDisabled) -> SeamcallStatus {
    let mut rax = leaf.raw();

    // SAFETY: The first instruction writes a variable of this CPU, which the guard keeps the task
    // on. The TDX module saves all registers that are not outputs of the leaf, and the callers of
    // this file pass it only memory that they own or that it already has. A fault is caught by the
    // exception table, and goes on at 662 with the number of the exception in RAX.
    unsafe {
        asm!(
            concat!("mov byte ptr ", of_this_cpu!("{dirty}"), ", 1"),
            "661: .byte 0x66, 0x0f, 0x01, 0xcf", // SEAMCALL
            "jnc 663f",
            "mov rax, {no_module}",
            "jmp 663f",
            "662:",
            "mov rcx, {fault}",
            "or rax, rcx",
            "663:",
            ".pushsection __ex_table, \"a\"",
            ".balign 4",
            ".long 661b - .",
            ".long 662b - .",
            ".long {fixup}",
            ".popsection",
            dirty = sym bindings::cache_state_incoherent,
            no_module = const SeamcallStatus::SEAMCALL_VMFAILINVALID.raw(),
            fault = const FAULT,
            fixup = const bindings::tdx_glue_const_TDX_GLUE_EX_TYPE_FAULT,
            inout("rax") rax,
            inout("rcx") args.rcx,
            inout("rdx") args.rdx,
            inout("r8") args.r8,
            inout("r9") args.r9,
            inout("r10") args.r10,
            inout("r11") args.r11,
        );
    }
    SeamcallStatus::from_raw(rax)
}

/// The kernel's own status for an exception that SEAMCALL raised, without the exception's number.
const FAULT: u64 = SeamcallStatus::SEAMCALL_GP.raw() & !0xffff_ffff;

/// Whether [`shut_down`] was called.
#[inline(always)]
fn is_shut_down() -> bool {
    // SAFETY: The variable is valid, and only accessed atomically. What `load(Relaxed)` does, but
    // that is a function in C, and this is on the way of every call.
    unsafe { SHUT_DOWN.as_ptr().read_volatile() != 0 }
}

/// Makes one call on this CPU, unless TDX was shut down: then there is no status.
#[inline(always)]
fn attempt(leaf: Leaf, args: &mut Args) -> Option<SeamcallStatus> {
    let preempt = PreemptDisabled::new();
    if is_shut_down() {
        return None;
    }
    Some(seamcall(leaf, args, &preempt))
}

/// Makes the same call as often as may be while it finds no entropy, after a first attempt.
#[cold]
#[inline(never)]
fn attempt_again(leaf: Leaf, args: &mut Args) -> Option<SeamcallStatus> {
    let mut out = *args;
    let mut status = attempt(leaf, &mut out);
    for _ in 2..ENTROPY_ATTEMPTS {
        if !status.is_some_and(found_no_entropy) {
            break;
        }
        out = *args;
        status = attempt(leaf, &mut out);
    }
    *args = out;
    status
}

/// Whether the same call may find entropy another time.
#[inline(always)]
fn found_no_entropy(status: SeamcallStatus) -> bool {
    status.is(SeamcallStatus::RND_NO_ENTROPY)
}

/// What an attempt has come to.
#[inline(always)]
fn sort(leaf: Leaf, status: Option<SeamcallStatus>, out: Args) -> Result<Reply, SeamcallError> {
    let cause = match status.map(|status| (status, status.class())) {
        Some((status, StatusClass::Success | StatusClass::SuccessWithInfo)) => {
            return Ok(Reply { status, out })
        }
        Some((status, StatusClass::Software)) => Cause::NotReached(status),
        Some((status, _)) => Cause::Refused(status, out),
        None => Cause::ShutDown,
    };
    Err(SeamcallError { leaf, cause })
}

/// Calls the module once. Any context, #MC and NMI included.
///
/// # Errors
///
/// [`SeamcallError`], TDX_RND_NO_ENTROPY among them.
pub(crate) fn call_once(leaf: Leaf, args: Args) -> Result<Reply, SeamcallError> {
    let mut out = args;
    let status = attempt(leaf, &mut out);
    sort(leaf, status, out)
}

/// Calls the module; repeats the call, at most nine times, while it finds no entropy.
///
/// Each attempt starts from `args`, whatever the one before left in the registers. Any context;
/// preemption is off only during an attempt.
///
/// # Errors
///
/// [`SeamcallError`].
#[inline(always)]
pub(crate) fn call(leaf: Leaf, args: Args) -> Result<Reply, SeamcallError> {
    let mut out = args;
    let mut status = attempt(leaf, &mut out);
    if status.is_some_and(found_no_entropy) {
        // A copy of its own goes into memory, so that `out` need not.
        let mut again = args;
        status = attempt_again(leaf, &mut again);
        out = again;
    }
    sort(leaf, status, out)
}

/// Whether the module may be less busy later.
#[inline(always)]
fn is_busy(status: SeamcallStatus) -> bool {
    status.is(SeamcallStatus::SYS_BUSY)
        || status.is(SeamcallStatus::OPERAND_BUSY)
        || status.is(SeamcallStatus::KEY_GENERATION_FAILED)
}

/// Calls the module, and again while it is busy, at most `attempts` times with a `pause` in between.
fn call_again(
    leaf: Leaf,
    args: Args,
    attempts: u32,
    pause: impl Fn(),
) -> Result<Reply, SeamcallError> {
    let mut result = call(leaf, args);
    for _ in 1..attempts {
        match &result {
            Err(e) if is_busy(e.status()) => {
                pause();
                result = call(leaf, args);
            }
            _ => break,
        }
    }
    result
}

/// [`call_again`] that sleeps in between.
fn call_sleeping(leaf: Leaf, args: Args, attempts: u32) -> Result<Reply, SeamcallError> {
    // SAFETY: Called in task context, with preemption enabled.
    call_again(leaf, args, attempts, || unsafe {
        bindings::tdx_glue_cond_resched()
    })
}

/// Calls the module again while it is busy, at most [`BUSY_ATTEMPTS`] times in all. Sleeps.
pub(crate) fn call_patiently(leaf: Leaf, args: Args) -> Result<Reply, SeamcallError> {
    call_sleeping(leaf, args, BUSY_ATTEMPTS)
}

/// The same, for calls that are made thousands of times: the usual answer costs no more than [`call`].
#[inline(always)]
pub(crate) fn call_patiently_often(leaf: Leaf, args: Args) -> Result<Reply, SeamcallError> {
    match call(leaf, args) {
        Err(e) if is_busy(e.status()) => call_sleeping(leaf, args, BUSY_ATTEMPTS - 1),
        result => result,
    }
}

/// The same as [`call_patiently`] for any context.
pub(crate) fn call_spinning(leaf: Leaf, args: Args) -> Result<Reply, SeamcallError> {
    call_again(leaf, args, BUSY_ATTEMPTS, kernel::processor::cpu_relax)
}

/// Flushes the cache of this CPU if SEAMCALLs may have left dirty private lines in it.
///
/// Any context; slow (WBINVD).
pub(crate) fn flush_this_cpu(_preempt: &PreemptDisabled) {
    // SAFETY: Reads and writes a variable of this CPU, which the guard keeps the task on; WBINVD
    // has no requirements.
    unsafe {
        if bindings::tdx_glue_cache_incoherent() {
            bindings::tdx_glue_wbinvd();
            bindings::tdx_glue_cache_set_coherent();
        }
    }
}

/// Evidence that no call starts any more, but those that are given this.
pub(crate) struct ShutDown(());

/// Lets no call start from here on. Any context.
///
/// Calls that have started go on: each runs with preemption off, to its end on a CPU that lives.
pub(crate) fn shut_down() -> ShutDown {
    if !is_shut_down() {
        SHUT_DOWN.xchg(1, Full);
    }
    ShutDown(())
}

/// Calls the module once although TDX was shut down: for the calls that the way out needs.
///
/// Any context.
pub(crate) fn call_after_shutdown(
    leaf: Leaf,
    args: Args,
    _shut_down: &ShutDown,
) -> Result<Reply, SeamcallError> {
    let mut out = args;
    let status = seamcall(leaf, &mut out, &PreemptDisabled::new());
    sort(leaf, Some(status), out)
}

#[cfg(CONFIG_INTEL_TDX_HOST_KUNIT_TEST)]
#[kernel::macros::kunit_tests(tdx_host_seamcall)]
mod tests {
    use super::*;

    fn error(cause: Cause) -> SeamcallError {
        SeamcallError {
            leaf: Leaf::TDH_SYS_RD,
            cause,
        }
    }

    #[test]
    fn each_cause_has_its_errno() {
        let errno = |cause| error(cause).errno();
        let no_module = SeamcallStatus::SEAMCALL_VMFAILINVALID;
        assert_eq!(errno(Cause::NotReached(no_module)), ENODEV);
        let fault = |vector| Cause::NotReached(SeamcallStatus::from_raw(FAULT | vector));
        assert_eq!(errno(fault(13)), EOPNOTSUPP);
        assert_eq!(errno(fault(6)), EACCES);
        assert_eq!(errno(fault(14)), EIO);
        assert_eq!(errno(Cause::ShutDown), ESHUTDOWN);
        let refused = Cause::Refused(SeamcallStatus::SYS_BUSY, Args::default());
        assert_eq!(errno(refused), EIO);
    }

    #[test]
    fn instruction_that_faults_is_caught() {
        let mut args = Args {
            rcx: 1,
            ..Args::default()
        };
        // No such leaf: refused by a module, and without one not reached. Nothing else happens.
        let status = seamcall(Leaf::from_raw(0xffff), &mut args, &PreemptDisabled::new());
        assert!(!status.is_success());
        if status.class() == StatusClass::Software {
            let known = [
                SeamcallStatus::SEAMCALL_VMFAILINVALID,
                SeamcallStatus::SEAMCALL_GP,
                SeamcallStatus::SEAMCALL_UD,
            ];
            assert!(known.contains(&status));
        }
    }
}
