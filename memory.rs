// SPDX-License-Identifier: GPL-2.0

//! System memory: the walk over memblock, and the say in memory hotplug.
//!
//! [`build_list`] turns memblock's regions into the immutable [`MemList`] that TDX will use. Pages
//! can reach the page allocator later only through memory hotplug, and the notifier here asks
//! [`crate::plug`] whether they may.
//!
//! C it replaces: `build_tdx_memlist()`, `tdx_memory_notifier()` in
//! `arch/x86/virt/vmx/tdx/tdx.c`.

use kernel::bindings;
use kernel::ffi::{
    c_int,
    c_ulong,
    c_void, //
};
use kernel::prelude::*;

use crate::guards::MemHotplugRead;
use crate::memlist::{
    MemList,
    MemListBuilder,
    MemListError,
    Region, //
};

/// The list of TDX memory, in kernel memory.
pub(crate) type TdxMemory = MemList<KVec<Region>>;

/// Lists all memory that memblock knows, but for the first megabyte. Task context.
///
/// memblock is ascending and disjoint, and does not change while `_plugged` lives.
///
/// # Errors
///
/// [`MemListError`].
pub(crate) fn build_list(_plugged: &MemHotplugRead) -> Result<TdxMemory, MemListError> {
    let mut list = MemListBuilder::new(KVec::new());
    let (mut cursor, mut start, mut end, mut nid): (c_int, c_ulong, c_ulong, c_int) = (-1, 0, 0, 0);
    loop {
        // SAFETY: All pointers are to locals. The cursor starts at -1 and is negative again after
        // the last region, as the C iterator has it.
        unsafe {
            bindings::__next_mem_pfn_range(
                &mut cursor,
                bindings::MAX_NUMNODES as c_int,
                &mut start,
                &mut end,
                &mut nid,
            )
        };
        if cursor < 0 {
            break;
        }
        list.add(start as u64, end as u64, nid)?;
    }
    list.finish()
}

#[cfg(CONFIG_MEMORY_HOTPLUG)]
mod hotplug {
    //! The memory hotplug notifier.

    use super::*;
    use kernel::error::to_result;
    use kernel::types::Opaque;

    use crate::plug;

    /// Called by memory hotplug, in task context with the memory hotplug lock held for writing.
    ///
    /// Bring-up holds that lock for reading from before it lists memory until TDX is up or has
    /// failed, so no memory comes online in between.
    ///
    /// # Safety
    ///
    /// `arg` points to a valid `struct memory_notify` if `action` is `MEM_GOING_ONLINE`.
    unsafe extern "C" fn notify(
        _nb: *mut bindings::notifier_block,
        action: c_ulong,
        arg: *mut c_void,
    ) -> c_int {
        if action != bindings::memory_block_state_MEM_GOING_ONLINE as c_ulong {
            return bindings::NOTIFY_OK as c_int;
        }
        // SAFETY: Promised by the caller, for this action.
        let block = unsafe { &*arg.cast::<bindings::memory_notify>() };
        let regions = crate::tdx_memory().map(TdxMemory::regions);
        match plug::judge(regions, block.start_pfn as u64, block.nr_pages as u64) {
            Ok(()) => bindings::NOTIFY_OK as c_int,
            Err(refusal) => {
                pr_err!("{refusal}\n");
                bindings::NOTIFY_BAD as c_int
            }
        }
    }

    /// The notifier block, in the shape C wants.
    struct Notifier(Opaque<bindings::notifier_block>);

    // SAFETY: Only the C code it is registered with touches it, and serialises itself.
    unsafe impl Sync for Notifier {}

    static NOTIFIER: Notifier = Notifier(Opaque::new(bindings::notifier_block {
        notifier_call: Some(notify),
        next: core::ptr::null_mut(),
        priority: 0,
    }));

    /// Registers the notifier; it stays for ever. Call once.
    pub(crate) fn watch() -> Result {
        // SAFETY: The block is static and registered once.
        to_result(unsafe { bindings::register_memory_notifier(NOTIFIER.0.get()) })
    }
}

#[cfg(CONFIG_MEMORY_HOTPLUG)]
pub(crate) use hotplug::watch;

/// Memory cannot be plugged in this kernel: nothing to watch.
#[cfg(not(CONFIG_MEMORY_HOTPLUG))]
pub(crate) fn watch() -> Result {
    Ok(())
}

#[cfg(CONFIG_INTEL_TDX_HOST_KUNIT_TEST)]
#[kernel::macros::kunit_tests(tdx_host_memory)]
mod tests {
    use super::*;
    use crate::memlist::FIRST_TDX_PFN;

    #[test]
    fn list_of_this_machine_covers_the_kernel_but_not_the_first_megabyte() -> Result {
        let list = build_list(&MemHotplugRead::new()).map_err(|_| EINVAL)?;
        let regions = list.regions();
        assert!(regions.iter().all(|r| r.frames().start() >= FIRST_TDX_PFN));
        let ours = KBox::new(0u64, kernel::alloc::flags::GFP_KERNEL)?;
        // SAFETY: Computes the physical address of memory in the direct map.
        let addr = unsafe { bindings::tdx_glue_virt_to_phys((&raw const *ours).cast()) };
        let addr = crate::range::PhysAddr::new(addr).ok_or(ERANGE)?;
        assert!(regions.iter().any(|r| r.bytes().contains_addr(addr)));
        Ok(())
    }
}
