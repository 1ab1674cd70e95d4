// SPDX-License-Identifier: GPL-2.0

//! Intel TDX host support: brings the TDX module up and keeps it usable.
//!
//! The module is firmware that runs TDs (confidential virtual machines) and that the kernel talks
//! to with the SEAMCALL instruction. This file is the root: it detects the platform early in boot
//! ([`tdx_init`]), brings the module up once all CPUs run ([`tdx_enable`]), and holds the result.
//!
//! # The house
//!
//! Arrows point down: a file uses only files below it.
//!
//! | File | Holds |
//! |---|---|
//! | `tdx_host` | detection, the state of TDX, what C asks about it |
//! | [`bringup`] | the order of initialisation, step by step |
//! | [`tdh`], [`tlb_c`], [`update`] | the calls about TDs and TLB tracking for KVM; runtime update |
//! | [`td`] | the same calls, typed |
//! | [`cpu`], [`memory`], [`mce`] | CPU hotplug and power; memory hotplug; machine checks |
//! | [`kexec`], [`chain`], [`deputy`] | what the next kernel finds: shut down, memory reset and its users; CPUs that a crash has stopped |
//! | [`sysinfo`], [`sysconfig`] | what the module says; what it is given |
//! | [`tdmr_init`], [`parallel`], [`turns`] | TDMRs initialised by many CPUs; work on many CPUs; pure: who does what |
//! | [`keyid`], [`pamt_alloc`], [`reset`], [`books`] | guest KeyIDs; memory for PAMTs; private memory made normal; where it can be |
//! | [`seamcall`], [`lockstep`], [`guards`], [`log`] | the instruction and its errors; all CPUs in step; locks and contexts as values; printing |
//! | [`tlb_steps`], [`tlb`], [`image`], [`metadata`], [`abi`] | pure: order of TLB tracking, decoding, ABI structures |
//! | [`place`], [`spot`], [`early`], [`tdmr`], [`bridge`], [`share`], [`pamt`], [`holes`] | pure: planning TDMRs and their PAMTs |
//! | [`plug`], [`memlist`] | pure: which memory may come online; which is TDX memory |
//! | [`explain`], [`operand`], [`status`], [`leaf`], [`fields`], [`partition`], [`store`], [`range`] | pure: numbers, names, units |
//!
//! Pure files use `core` only; cargo compiles them too, for property tests. `glue.c` has what only
//! C can spell, `vp_enter.S` the one call that uses all registers.
//!
//! C it replaces: `arch/x86/virt/vmx/tdx/tdx.c`.

use kernel::bindings;
use kernel::error::from_result;
use kernel::ffi::c_int;
use kernel::pr_info_once;
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use kernel::sync::SetOnce;

pub mod abi;
pub mod books;
pub mod bridge;
pub mod bringup;
pub mod chain;
pub mod cpu;
pub mod deputy;
pub mod early;
pub mod explain;
pub mod fields;
pub mod guards;
pub mod holes;
pub mod image;
pub mod kexec;
pub mod keyid;
pub mod leaf;
pub mod lockstep;
pub mod log;
pub mod mce;
pub mod memlist;
pub mod memory;
pub mod metadata;
pub mod operand;
pub mod pamt;
pub mod pamt_alloc;
pub mod parallel;
pub mod partition;
pub mod place;
pub mod plug;
pub mod range;
pub mod reset;
pub mod seamcall;
pub mod share;
pub mod spot;
pub mod status;
pub mod store;
pub mod sysconfig;
pub mod sysinfo;
pub mod td;
pub mod tdh;
pub mod tdmr;
pub mod tdmr_init;
#[cfg(CONFIG_INTEL_TDX_HOST_KUNIT_TEST)]
pub mod test_guest;
#[cfg(CONFIG_INTEL_TDX_HOST_KUNIT_TEST)]
pub mod test_td;
#[cfg(CONFIG_INTEL_TDX_HOST_KUNIT_TEST)]
pub mod test_tlb;
pub mod tlb;
pub mod tlb_c;
pub mod tlb_steps;
pub mod turns;
pub mod update;

use bringup::{
    Ready,
    Stopwatch, //
};
use cpu::CpuReadiness;
use fields::TdxFeatures0;
use guards::MemHotplugRead;
use partition::{
    KeyIdError,
    KeyIdPartition,
    TdxKeyIds, //
};

/// Prefix of every line in the log.
const __LOG_PREFIX: &[u8] = b"virt/tdx\0";

/// The platform can run TDs: what firmware gave the kernel. Set by [`tdx_init`].
static PLATFORM: SetOnce<TdxKeyIds> = SetOnce::new();

/// TDX is up. Set once by [`tdx_enable`].
static READY: SetOnce<Ready> = SetOnce::new();

/// TDX is off, and this is why. Set at most once.
static OFF: SetOnce<Error> = SetOnce::new();

/// TDX came up, but the module was shut down for an update. Written while all CPUs are stopped; it
/// stays set if the update fails.
static LOST: Atomic<i32> = Atomic::new(0);

/// Whether firmware, CPU and kernel allow TDX. Any context.
pub(crate) fn platform_has_tdx() -> bool {
    PLATFORM.as_ref().is_some()
}

/// The memory that TDs can use, once TDX is up and unless an update has lost the module. Any context.
pub(crate) fn tdx_memory() -> Option<&'static memory::TdxMemory> {
    ready().map(|ready| &ready.memory)
}

/// The TDX module's own tables, once TDX is up. Any context.
pub(crate) fn pamts() -> Option<&'static pamt_alloc::HandedPamts> {
    READY.as_ref().map(|ready| &ready.pamts)
}

/// What the TDX module can do, once TDX is up. Any context.
pub(crate) fn module_features() -> Option<TdxFeatures0> {
    ready().map(|ready| TdxFeatures0::from_raw(ready.features.load(Relaxed)))
}

/// What bring-up left behind, once TDX is up and unless an update has lost the module. Any context.
pub(crate) fn ready() -> Option<&'static Ready> {
    READY.as_ref().filter(|_| !is_lost())
}

/// Whether there is no module to call any more, after an update that failed half-way. Any context.
pub(crate) fn is_lost() -> bool {
    LOST.load(Relaxed) != 0
}

/// Notes whether there is no module to call, because it was shut down and has no successor yet.
pub(crate) fn set_lost(lost: bool, _stopped: &lockstep::AllStopped<'_>) {
    LOST.store(lost.into(), Relaxed);
}

/// The KeyID of the TDX module's own memory; [`None`] if the platform has no TDX. Any context.
pub(crate) fn global_keyid() -> Option<partition::KeyId> {
    PLATFORM.as_ref().map(TdxKeyIds::global)
}

/// Reads an MSR of this CPU; [`None`] if it has no such MSR.
fn rdmsr(msr: u32) -> Option<u64> {
    let mut value = 0;
    // SAFETY: `value` is a local; the read is fault-safe.
    let ret = unsafe { bindings::tdx_glue_rdmsr_safe(msr, &mut value) };
    (ret == 0).then_some(value)
}

/// Whether the kernel could hibernate, which would lose the content of TDs.
fn can_hibernate() -> bool {
    #[cfg(CONFIG_HIBERNATION)]
    // SAFETY: Has no requirements.
    return unsafe { bindings::hibernation_available() };
    #[cfg(not(CONFIG_HIBERNATION))]
    false
}

/// S3 resets the processor, which loses TDX: take the ACPI code's way into it.
fn forbid_s3() {
    #[cfg(all(CONFIG_ACPI, CONFIG_SUSPEND))]
    {
        pr_info!("Disable ACPI S3. Turn off TDX in the BIOS to use ACPI S3.\n");
        // SAFETY: Early boot, one CPU: nobody reads or writes the pointer at the same time.
        unsafe { bindings::acpi_suspend_lowlevel = None };
    }
}

/// Notes the errata of this processor as CPU bugs, for this file and for C.
fn note_errata() {
    // SAFETY: Have no requirements: early boot, before CPU bugs are final.
    unsafe {
        let vfm = bindings::tdx_glue_boot_cpu_vfm();
        if vfm == bindings::tdx_glue_const_TDX_GLUE_VFM_SAPPHIRERAPIDS
            || vfm == bindings::tdx_glue_const_TDX_GLUE_VFM_EMERALDRAPIDS
        {
            bindings::tdx_glue_set_bug_pw_mce();
            pr_info!("processor has the partial-write erratum\n");
        }
    }
    // Without VMX there is no such MSR, and no P-SEAMLDR to call either.
    let basic = rdmsr(bindings::MSR_IA32_VMX_BASIC).unwrap_or(0);
    if basic & VMX_BASIC_NO_SEAMRET_INVD_VMCS == 0 {
        // SAFETY: As above.
        unsafe { bindings::tdx_glue_set_bug_seamret_invd_vmcs() };
    }
}

/// Bit of IA32_VMX_BASIC: returning from the P-SEAMLDR leaves the current VMCS pointer alone.
const VMX_BASIC_NO_SEAMRET_INVD_VMCS: u64 = 1 << 60;

/// Decides whether TDX can be used at all, and prepares the kernel for it.
///
/// `Ok(None)` is a machine without TDX. Every other outcome has its line in the log.
fn detect() -> Result<Option<TdxKeyIds>> {
    let Some(msr) = rdmsr(bindings::MSR_IA32_MKTME_KEYID_PARTITIONING) else {
        return Ok(None);
    };
    let keyids = match TdxKeyIds::new(KeyIdPartition::from_msr(msr)) {
        Ok(keyids) => keyids,
        Err(KeyIdError::NoTdxKeyIds) => return Ok(None),
        Err(e) => {
            pr_err!("initialization failed: {e}\n");
            return Err(ENOSPC);
        }
    };
    pr_info!("BIOS enabled: private KeyID range {keyids}\n");
    if can_hibernate() {
        pr_err!(
            "initialization failed: Hibernation support is enabled: boot with \"nohibernate\" to use TDX\n"
        );
        return Err(EPERM);
    }
    memory::watch().inspect_err(|e| {
        pr_err!(
            "initialization failed: cannot watch memory hotplug ({})\n",
            e.to_errno()
        );
    })?;
    Ok(Some(keyids))
}

/// Detects TDX early in boot, on the boot CPU, before the other CPUs start.
///
/// # Safety
///
/// Called once, by `identify_boot_cpu()`.
#[export]
pub unsafe extern "C" fn tdx_init() {
    // SAFETY: This is the first function of this crate to run, and runs once.
    unsafe { keyid::init_lock() };
    match detect() {
        Ok(Some(keyids)) => {
            forbid_s3();
            // SAFETY: Early boot, before CPU features are final.
            unsafe { bindings::tdx_glue_set_platform() };
            note_errata();
            PLATFORM.populate(keyids);
        }
        Ok(None) => {}
        Err(why) => {
            OFF.populate(why);
        }
    }
}

/// What TDX needs of the processor besides SEAM.
fn check_processor() -> Result {
    /// One requirement: how to ask, its name, the errno without it.
    type Need = (unsafe extern "C" fn() -> bool, &'static str, Error);
    let needs: [Need; 3] = [
        (bindings::tdx_glue_has_xsave, "XSAVE", EINVAL),
        (bindings::tdx_glue_has_movdir64b, "MOVDIR64B", EINVAL),
        (bindings::tdx_glue_has_selfsnoop, "Self-snoop", ENODEV),
    ];
    for (has, name, errno) in needs {
        // SAFETY: Have no requirements.
        if !unsafe { has() } {
            pr_err!(
                "{name} is required for TDX, but the processor lacks it or the kernel command line disables it ({})\n",
                errno.to_errno()
            );
            return Err(errno);
        }
    }
    Ok(())
}

/// Brings TDX up.
///
/// Locks: CPU hotplug is taken and released by [`CpuReadiness`], before the memory hotplug lock,
/// which is held until the list of TDX memory is published.
fn enable(keyids: &TdxKeyIds) -> Result {
    check_processor()?;
    let mut watch = Stopwatch::start();
    let cpus = CpuReadiness::new()?;
    pr_info!(
        "online CPUs ready for TDX: {}, in {}\n",
        cpu::online_cpus().count(),
        watch.lap()
    );
    {
        let plugged = MemHotplugRead::new();
        let ready = bringup::run(keyids.global(), &plugged)?;
        keyid::init(keyids.guests())?;
        READY.populate(ready);
    }
    // The callbacks stay: CPUs come and go for as long as the kernel runs.
    core::mem::forget(cpus);
    cpu::register_power_hooks();
    pr_info!("TDX-Module initialized\n");
    Ok(())
}

/// Brings TDX up at `subsys_initcall` time: all CPUs run, memory is not yet fragmented.
///
/// Returns 0 or the errno that keeps TDX off. Task context.
///
/// # Safety
///
/// Called once, as an initcall, after [`tdx_init`].
#[export]
pub unsafe extern "C" fn tdx_enable() -> c_int {
    from_result(|| {
        let Some(keyids) = PLATFORM.as_ref() else {
            let why = OFF.copy().unwrap_or(ENODEV);
            if why == ENODEV {
                pr_info!("no TDX: firmware gave it no KeyIDs, enable TDX in the BIOS to use it\n");
            }
            return Err(why);
        };
        enable(keyids).map(|()| 0).inspect_err(|&why| {
            OFF.populate(why);
            pr_err!("TDX-Module initialization failed ({})\n", why.to_errno());
        })
    })
}

/// The TDX module's metadata, or null while TDX is not up or after a failed update has lost the
/// module: then the log says once more why.
///
/// The metadata stays valid for ever. Any context that may print.
///
/// # Safety
///
/// None beyond being called by C, which must not write through the pointer.
#[export]
pub unsafe extern "C" fn tdx_get_sysinfo() -> *const bindings::tdx_sys_info {
    match ready() {
        Some(ready) => ready.sysinfo.as_ptr(),
        None => {
            if is_lost() {
                pr_info_once!("the TDX module was lost in a failed update, see above\n");
            } else if let Some(why) = OFF.as_ref() {
                pr_info_once!("TDX is off since boot ({}), see above\n", why.to_errno());
            }
            core::ptr::null()
        }
    }
}
