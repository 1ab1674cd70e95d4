// SPDX-License-Identifier: GPL-2.0

//! Replacing the TDX module while TDs live, with the help of the P-SEAMLDR.
//!
//! The old module is shut down and leaves its state in memory (TDH.SYS.SHUTDOWN), every CPU has
//! the P-SEAMLDR install the new one (SEAMLDR.INSTALL) and initialises it (TDH.SYS.INIT,
//! TDH.SYS.LP.INIT), and the new module takes the state over (TDH.SYS.UPDATE). All CPUs do this in
//! lock-step, with everything else stopped.
//!
//! Once the old module is shut down there is no way back. So [`install`] checks beforehand all
//! that can be checked, and its error says which side of that line it is on: [`UpdateError`].
//!
//! Neighbours: [`crate::image`] takes the file apart, [`crate::lockstep`] keeps the CPUs in step.
//!
//! C it replaces: `seamldr.c` in `arch/x86/virt/vmx/tdx`.

use core::mem::size_of;
use kernel::alloc::flags::GFP_KERNEL;
use kernel::bindings;
use kernel::error::from_result;
use kernel::ffi::c_int;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::sync::atomic::Relaxed;

use crate::cpu;
use crate::fields::TdxFeatures0;
use crate::guards::{
    CpuHotplugRead,
    SeamldrLock, //
};
use crate::image::{
    Image,
    SeamldrInfo,
    SeamldrParams, //
};
use crate::leaf::Leaf;
use crate::lockstep::{
    self,
    AllStopped,
    Failed,
    Step,
    Who, //
};
use crate::range::{
    Pfn,
    PhysAddr, //
};
use crate::seamcall::{
    self,
    Args, //
};
use crate::sysinfo;

/// Why there was no update.
#[derive(Clone, Copy)]
enum UpdateError {
    /// Nothing has changed: the old module works on.
    NotStarted(Error),
    /// The old module is gone, and no other has taken its place: no TD can run until a reboot.
    ModuleLost(Error),
}

impl UpdateError {
    /// Says in the log what it means, and returns the errno.
    fn report(self) -> Error {
        match self {
            UpdateError::NotStarted(errno) => {
                pr_err!("the TDX module was not updated and is what it was before\n");
                errno
            }
            UpdateError::ModuleLost(errno) => {
                pr_err!(
                    "the TDX module was lost in an update that failed half-way: no TD can run ({}). Reboot through firmware to use TDX again\n",
                    errno.to_errno()
                );
                errno
            }
        }
    }
}

// SAFETY: Both are plain numbers, for which zero is a value.
unsafe impl pin_init::Zeroable for SeamldrParams {}
// SAFETY: As above.
unsafe impl pin_init::Zeroable for SeamldrInfo {}

/// Physical address of something that the P-SEAMLDR reads or writes.
fn address_of<T>(object: &KBox<T>) -> u64 {
    // SAFETY: Computes the physical address of memory in the direct map: `KBox` is kmalloc()ed.
    unsafe { bindings::tdx_glue_virt_to_phys((&raw const **object).cast()) }
}

/// Says in the log what keeps the module from being updated, and returns the errno.
fn refuse(why: impl kernel::fmt::Display, errno: Error) -> Error {
    pr_err!("TDX module update refused: {why} ({})\n", errno.to_errno());
    errno
}

/// Whether the P-SEAMLDR can be called: on some CPUs the way back from it breaks KVM.
fn check_cpu() -> Result {
    // SAFETY: Has no requirements.
    if unsafe { bindings::tdx_glue_has_bug_seamret_invd_vmcs() } {
        let why = "calling the P-SEAMLDR on this CPU loses the current VMCS (erratum)";
        return Err(refuse(why, EINVAL));
    }
    Ok(())
}

/// Asks the P-SEAMLDR about itself. Task context, sleeps.
fn read_info() -> Result<KBox<SeamldrInfo>> {
    check_cpu()?;
    // The P-SEAMLDR wants it in physically contiguous, aligned memory, which the caller of
    // `seamldr_get_info()` may not have.
    let info = KBox::init(pin_init::init_zeroed::<SeamldrInfo>(), GFP_KERNEL)?;
    let args = Args {
        rcx: address_of(&info),
        ..Args::default()
    };
    let lock = SeamldrLock::new();
    let result = seamcall::call(Leaf::SEAMLDR_INFO, args);
    drop(lock);
    result.map_err(|e| e.report("asking the P-SEAMLDR about itself"))?;
    Ok(info)
}

/// What the steps of an update work with.
struct Update {
    /// Physical address of the [`SeamldrParams`].
    params: u64,
}

/// The update, step by step. Only a failure of the first leaves a working module.
const STEPS: [Step<Update>; 4] = [
    Step {
        who: Who::BootCpu,
        work: Update::shut_down,
    },
    Step {
        who: Who::All,
        work: Update::install,
    },
    Step {
        who: Who::All,
        work: Update::initialize,
    },
    Step {
        who: Who::BootCpu,
        work: Update::take_over,
    },
];

impl Update {
    /// Shuts the old module down, which leaves its state in memory.
    fn shut_down(&self, stopped: &AllStopped<'_>) -> Result {
        // The newest format that the old module can write: the new one is newer still.
        let args = Args {
            rcx: sysinfo::read_handoff_version()?,
            ..Args::default()
        };
        seamcall::call_spinning(Leaf::TDH_SYS_SHUTDOWN, args)
            .map_err(|e| e.report("shutting the TDX module down for an update"))?;
        crate::set_lost(true, stopped);
        cpu::forget_initialization(stopped);
        Ok(())
    }

    /// Has the P-SEAMLDR install the new module on this CPU.
    fn install(&self, stopped: &AllStopped<'_>) -> Result {
        let args = Args {
            rcx: self.params,
            ..Args::default()
        };
        let _lock = SeamldrLock::new();
        if stopped.in_vain() {
            return Ok(());
        }
        seamcall::call(Leaf::SEAMLDR_INSTALL, args)
            .map(|_| ())
            .map_err(|e| {
                e.report(fmt!(
                    "installing the new TDX module on CPU {}",
                    cpu::this_cpu()
                ))
            })
    }

    /// Initialises the new module on this CPU.
    fn initialize(&self, stopped: &AllStopped<'_>) -> Result {
        if stopped.in_vain() {
            return Ok(());
        }
        cpu::init_this_cpu()
    }

    /// Lets the new module take over what the old one left.
    fn take_over(&self, stopped: &AllStopped<'_>) -> Result {
        seamcall::call_spinning(Leaf::TDH_SYS_UPDATE, Args::default())
            .map_err(|e| e.report("handing TDs over to the new TDX module"))?;
        crate::set_lost(false, stopped);
        // The module works; if it does not tell its version, the old one stays in the books.
        if let (Some(ready), Ok((version, features))) = (crate::ready(), sysinfo::read_again()) {
            ready.sysinfo.set_version(version, stopped);
            ready.features.store(features.tdx_features0.raw(), Relaxed);
            pr_info!("TDX module updated to version {version}\n");
        }
        Ok(())
    }
}

/// Checks all that can be checked before the old module is shut down.
fn check(plugged: &CpuHotplugRead) -> Result {
    let Some(features) = crate::module_features() else {
        return Err(refuse("TDX is not up", ENODEV));
    };
    if !features.contains(TdxFeatures0::TD_PRESERVING) {
        let why = "the running module cannot hand TDs over (TD_PRESERVING)";
        return Err(refuse(why, EOPNOTSUPP));
    }
    if let Some(cpu) = cpu::known_but_offline(plugged) {
        let why = fmt!("CPU {cpu} is offline; bring it online for the update");
        return Err(refuse(why, EBUSY));
    }
    if read_info()?.num_remaining_updates == 0 {
        let why = "the P-SEAMLDR takes no more updates until the machine is reset";
        return Err(refuse(why, ENOSPC));
    }
    Ok(())
}

/// Where the page that starts with `page` lies. It must be in vmalloc memory, at its start.
fn page_address(page: &[u8]) -> Result<PhysAddr> {
    let start = page.as_ptr();
    // SAFETY: `start` points to memory that can be read.
    let pfn = unsafe {
        if start.addr() % PAGE_SIZE != 0 || !bindings::is_vmalloc_addr(start.cast()) {
            return Err(EINVAL);
        }
        bindings::vmalloc_to_pfn(start.cast())
    };
    Ok(Pfn::new(pfn as u64).ok_or(EINVAL)?.start())
}

/// Replaces the TDX module by the one in `file`. Task context, sleeps; stops the machine for long.
fn install(file: &[u8]) -> Result<(), UpdateError> {
    if crate::is_lost() {
        return Err(UpdateError::ModuleLost(ENODEV));
    }
    prepare(file)
        .map_err(UpdateError::NotStarted)
        .and_then(|(params, plugged)| {
            let update = Update {
                params: address_of(&params),
            };
            lockstep::run(&update, &STEPS, &plugged).map_err(|failed| match failed {
                Failed { step: 0, error } => UpdateError::NotStarted(error),
                Failed { error, .. } => UpdateError::ModuleLost(error),
            })
        })
}

/// Checks the file and the machine, and makes the parameters of the update.
///
/// No CPU goes offline while the second value lives.
fn prepare(file: &[u8]) -> Result<(KBox<SeamldrParams>, CpuHotplugRead)> {
    let image = Image::parse(file).map_err(|e| refuse(fmt!("not a valid image: {e}"), EINVAL))?;
    let mut params = KBox::init(pin_init::init_zeroed::<SeamldrParams>(), GFP_KERNEL)?;
    params.fill(&image, page_address).map_err(|e| {
        refuse(
            "its pages are not in vmalloc memory: a bug of the caller",
            e,
        )
    })?;
    check_cpu()?;
    let plugged = CpuHotplugRead::new();
    check(&plugged)?;
    Ok((params, plugged))
}

/// What the P-SEAMLDR says about itself. Task context, sleeps.
///
/// Returns 0, `-EINVAL` on a CPU with the SEAMRET erratum, `-ENOMEM`, or the errno of the call.
///
/// # Safety
///
/// `info` can be written.
#[export]
pub unsafe extern "C" fn seamldr_get_info(info: *mut bindings::seamldr_info) -> c_int {
    const _: () = assert!(size_of::<bindings::seamldr_info>() == size_of::<SeamldrInfo>());
    from_result(|| {
        let own = read_info()?;
        // SAFETY: Both have the same size; `info` can be written and is not `own`.
        unsafe { core::ptr::copy_nonoverlapping((&raw const *own).cast(), info, 1) };
        Ok(0)
    })
}

/// Replaces the TDX module by the image of `data_len` bytes at `data`. Task context, sleeps.
///
/// Returns 0 or an errno; the log says what is wrong, and whether the old module works on.
///
/// # Safety
///
/// The image is in vmalloc memory, and nobody changes it during the call.
#[export]
pub unsafe extern "C" fn seamldr_install_module(data: *const u8, data_len: u32) -> c_int {
    from_result(|| {
        if data.is_null() {
            return Err(EINVAL);
        }
        // SAFETY: Promised by the caller.
        let file = unsafe { core::slice::from_raw_parts(data, data_len as usize) };
        install(file).map(|()| 0).map_err(UpdateError::report)
    })
}

/// Keeps updates away until [`seamldr_unlock_module_update`]; the caller must not sleep.
///
/// An update stops the machine, and a CPU with preemption disabled does not stop.
///
/// # Safety
///
/// Balanced by one call of [`seamldr_unlock_module_update`] on this CPU.
#[export]
pub unsafe extern "C" fn seamldr_lock_module_update() {
    // SAFETY: Balanced, by this function's contract.
    unsafe { bindings::tdx_glue_preempt_disable() };
}

/// Lets updates happen again.
///
/// # Safety
///
/// Balances one call of [`seamldr_lock_module_update`].
#[export]
pub unsafe extern "C" fn seamldr_unlock_module_update() {
    // SAFETY: Balanced, by this function's contract.
    unsafe { bindings::tdx_glue_preempt_enable() };
}

#[cfg(CONFIG_INTEL_TDX_HOST_KUNIT_TEST)]
#[kernel::macros::kunit_tests(tdx_host_update)]
mod tests {
    use super::*;

    #[test]
    fn operands_are_where_the_loader_can_read_them() -> Result {
        let params = KBox::init(pin_init::init_zeroed::<SeamldrParams>(), GFP_KERNEL)?;
        let info = KBox::init(pin_init::init_zeroed::<SeamldrInfo>(), GFP_KERNEL)?;
        assert_eq!(address_of(&params) % 4096, 0);
        assert_eq!(address_of(&info) % 256, 0);
        Ok(())
    }

    #[test]
    fn pages_of_an_image_are_found_one_by_one() -> Result {
        let file: VVec<u8> = VVec::from_elem(0, 2 * PAGE_SIZE, GFP_KERNEL)?;
        let (first, second) = file.split_at(PAGE_SIZE);
        assert!(page_address(first)? != page_address(second)?);
        assert_eq!(page_address(&first[1..]), Err(EINVAL));
        let linear = KVec::from_elem(0u8, PAGE_SIZE, GFP_KERNEL)?;
        assert_eq!(page_address(&linear), Err(EINVAL));
        Ok(())
    }

    #[test]
    fn broken_image_is_refused_before_anything_happens() {
        assert!(matches!(install(&[]), Err(UpdateError::NotStarted(EINVAL))));
        assert!(crate::module_features().is_some() == crate::ready().is_some());
    }
}
