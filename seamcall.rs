// SPDX-License-Identifier: GPL-2.0

//! The SEAMCALL instruction: the one door to the TDX module.
//!
//! [`call`] is the usual way in: it repeats a call that found no entropy, and returns what the
//! module wrote only when the module wrote it. [`call_once`] never repeats. Both mark the cache of
//! the CPU as possibly holding dirty private lines *before* the call, because an NMI of a crashing
//! CPU can stop this one right after it, and both refuse once [`disable_module`] has begun.
//!
//! A failure is a [`SeamcallError`]; [`SeamcallError::report`] says in the log which leaf failed,
//! the status by name, what it means and what to do, and turns it into an errno.
//!
//! TDH.VP.ENTER alone goes another way, `vp_enter.S`, by the same rules.
//!
//! C it replaces: `seamcall_internal.h`, `seamcall.S` and `tdx_sys_disable()` in
//! `arch/x86/virt/vmx/tdx`.

use core::arch::asm;
use core::fmt;
use kernel::bindings;
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Full,
    Relaxed, //
};

use crate::explain::{
    explain,
    Details,
    Explanation, //
};
use crate::fields::TdxFeatures0;
use crate::guards::PreemptDisabled;
use crate::leaf::Leaf;
use crate::status::SeamcallStatus;

/// How often a call is made that finds no entropy: as often as RDRAND is tried elsewhere.
const ENTROPY_ATTEMPTS: u32 = 10;

/// How often a call is made that the module is too busy to serve.
const BUSY_ATTEMPTS: u32 = 1000;

/// How often TDH.SYS.DISABLE is made without an end before giving up.
///
/// Each interrupted call makes some progress and each busy one locks out new competitors, so a
/// working module needs far fewer. A broken one must not hang a reboot.
const DISABLE_ATTEMPTS: u32 = 10_000_000;

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

/// How the instruction itself ended.
enum Exit {
    /// The module ran and returned RAX.
    Returned(u64),
    /// CF was set: there is no module.
    VmFailInvalid,
    /// The instruction raised this exception.
    Fault(u64),
}

/// Set when TDH.SYS.DISABLE is about to be made: no other call may start after.
///
/// Not mangled, because `vp_enter.S` reads it too.
#[export_name = "tdx_host_shut_down"]
static SHUT_DOWN: Atomic<i32> = Atomic::new(0);

/// Executes SEAMCALL with `leaf` in RAX. Outputs replace `args` when the module ran.
#[inline(always)]
fn seamcall(leaf: Leaf, args: &mut Args, _preempt: &PreemptDisabled) -> Exit {
    /// Value of `state` when the fixup ran, neither of what SBB leaves there.
    const FAULTED: u32 = 2;

    let mut rax = leaf.raw();
    let mut state = FAULTED;

    // SAFETY: Marks this CPU, which the guard keeps the task on.
    unsafe { bindings::tdx_glue_cache_set_incoherent(true) };

    // SAFETY: The TDX module saves all registers that are not outputs of the leaf, and the callers
    // of this file pass it only memory that they own or that it already has. A fault is caught by
    // the exception table: the fixup leaves the vector in RAX and skips the SBB, so that `state`
    // keeps its value; otherwise SBB makes it 0 (CF clear) or all ones (CF set).
    unsafe {
        asm!(
            "661: .byte 0x66, 0x0f, 0x01, 0xcf", // SEAMCALL
            "sbb {state:e}, {state:e}",
            "662:",
            ".pushsection __ex_table, \"a\"",
            ".balign 4",
            ".long 661b - .",
            ".long 662b - .",
            ".long {fixup}",
            ".popsection",
            state = inout(reg) state,
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

    match state {
        0 => Exit::Returned(rax),
        FAULTED => Exit::Fault(rax),
        _ => Exit::VmFailInvalid,
    }
}

/// Makes one call on this CPU and sorts the answer.
#[inline]
fn attempt(leaf: Leaf, args: Args) -> Result<Reply, SeamcallError> {
    let error = |cause| SeamcallError { leaf, cause };
    let preempt = PreemptDisabled::new();
    if leaf != Leaf::TDH_SYS_DISABLE && SHUT_DOWN.load(Relaxed) != 0 {
        return Err(error(Cause::ShutDown));
    }
    let mut out = args;
    let exit = seamcall(leaf, &mut out, &preempt);
    drop(preempt);
    match exit {
        Exit::Returned(rax) => {
            let status = SeamcallStatus::from_raw(rax);
            if status.is_success() {
                Ok(Reply { status, out })
            } else {
                Err(error(Cause::Refused(status, out)))
            }
        }
        Exit::VmFailInvalid => Err(error(Cause::NotReached(
            SeamcallStatus::SEAMCALL_VMFAILINVALID,
        ))),
        Exit::Fault(vector) => Err(error(Cause::NotReached(fault_status(vector)))),
    }
}

/// The kernel's own status for an exception that SEAMCALL raised.
const fn fault_status(vector: u64) -> SeamcallStatus {
    let class = SeamcallStatus::SEAMCALL_GP.raw() & !0xffff_ffff;
    SeamcallStatus::from_raw(class | (vector & 0xffff_ffff))
}

/// Calls the module once. Any context, #MC and NMI included.
///
/// # Errors
///
/// [`SeamcallError`], TDX_RND_NO_ENTROPY among them.
pub(crate) fn call_once(leaf: Leaf, args: Args) -> Result<Reply, SeamcallError> {
    attempt(leaf, args)
}

/// Calls the module; repeats the call, at most nine times, while it finds no entropy.
///
/// Each attempt starts from `args`, whatever the one before left in the registers. Any context;
/// preemption is off only during an attempt.
///
/// # Errors
///
/// [`SeamcallError`].
pub(crate) fn call(leaf: Leaf, args: Args) -> Result<Reply, SeamcallError> {
    let mut result = attempt(leaf, args);
    for _ in 1..ENTROPY_ATTEMPTS {
        match &result {
            Err(e) if e.status().is(SeamcallStatus::RND_NO_ENTROPY) => {
                result = attempt(leaf, args);
            }
            _ => break,
        }
    }
    result
}

/// Whether the module may be less busy later.
fn is_busy(status: SeamcallStatus) -> bool {
    status.is(SeamcallStatus::SYS_BUSY)
        || status.is(SeamcallStatus::OPERAND_BUSY)
        || status.is(SeamcallStatus::KEY_GENERATION_FAILED)
}

/// Calls the module again while it is busy, a bounded number of times, with a `pause` in between.
fn call_again(leaf: Leaf, args: Args, pause: impl Fn()) -> Result<Reply, SeamcallError> {
    let mut result = call(leaf, args);
    for _ in 1..BUSY_ATTEMPTS {
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

/// Calls the module again while it is busy, a bounded number of times. Sleeps.
pub(crate) fn call_patiently(leaf: Leaf, args: Args) -> Result<Reply, SeamcallError> {
    // SAFETY: Called in task context, with preemption enabled.
    call_again(leaf, args, || unsafe { bindings::tdx_glue_cond_resched() })
}

/// The same for any context.
pub(crate) fn call_spinning(leaf: Leaf, args: Args) -> Result<Reply, SeamcallError> {
    call_again(leaf, args, kernel::processor::cpu_relax)
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
            bindings::tdx_glue_cache_set_incoherent(false);
        }
    }
}

/// Whether `status` asks for the same TDH.SYS.DISABLE again.
fn wants_again(status: SeamcallStatus) -> bool {
    status.is(SeamcallStatus::INTERRUPTED_RESUMABLE) || status.is(SeamcallStatus::SYS_BUSY)
}

/// Shuts TDX down for good: no SEAMCALL is made from here on, and the module gives up its memory.
///
/// A module without TDH.SYS.DISABLE keeps its memory, which the log says. Does nothing without TDX.
/// Any context, a crash included: no lock, no allocation, no endless loop.
pub(crate) fn disable_module() {
    if SHUT_DOWN.xchg(1, Full) != 0 || !crate::platform_has_tdx() {
        return;
    }
    let known_to_lack = |features: TdxFeatures0| !features.contains(TdxFeatures0::SYS_DISABLE);
    if crate::module_features().is_some_and(known_to_lack) {
        pr_info!(
            "this TDX module has no TDH.SYS.DISABLE: TDX stays unavailable to the next kernel until the machine is reset\n"
        );
        return;
    }
    let mut result = attempt(Leaf::TDH_SYS_DISABLE, Args::default());
    for _ in 1..DISABLE_ATTEMPTS {
        match &result {
            Err(e) if wants_again(e.status()) => {
                result = attempt(Leaf::TDH_SYS_DISABLE, Args::default());
            }
            _ => break,
        }
    }
    match result {
        Ok(_) => {}
        // Without a module, or outside VMX after a failed bring-up, there is nothing to disable.
        Err(e) if matches!(e.cause, Cause::NotReached(_)) => {}
        Err(e) => {
            e.report("shutting TDX down");
        }
    }
}

/// Shuts TDX down before another kernel starts: called by the crash path, with the other CPUs
/// stopped, and before a normal kexec.
///
/// # Safety
///
/// None beyond being called by C.
#[export]
pub unsafe extern "C" fn tdx_sys_disable() {
    disable_module();
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
        assert_eq!(errno(Cause::NotReached(fault_status(13))), EOPNOTSUPP);
        assert_eq!(errno(Cause::NotReached(fault_status(6))), EACCES);
        assert_eq!(errno(Cause::NotReached(fault_status(14))), EIO);
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
        let exit = seamcall(Leaf::from_raw(0xffff), &mut args, &PreemptDisabled::new());
        match exit {
            Exit::Returned(rax) => assert!(!SeamcallStatus::from_raw(rax).is_success()),
            Exit::Fault(vector) => assert!(vector == 6 || vector == 13),
            Exit::VmFailInvalid => assert_eq!(args.rcx, 1),
        }
    }
}
