// SPDX-License-Identifier: GPL-2.0

//! Turning TDX private memory back into normal memory.
//!
//! On processors with the partial-write erratum (`X86_BUG_TDX_PW_MCE`) a private line poisons
//! itself when less than 64 bytes of it are written, and the next read is a machine check. Such a
//! line becomes normal again by one full-line write with KeyID 0, which MOVDIR64B is. Without the
//! erratum any write does it, and nothing needs to be done here.
//!
//! The golden rule of the caches: each CPU flushes (WBINVD) some time after it last wrote private
//! memory and before that memory is treated as shared. [`flush_all_cpus`] is that flush; before the
//! next kernel starts, [`crate::kexec`] makes it, and is the one who converts everything.
//!
//! C it replaces: `tdx_quirk_reset_paddr()` in `arch/x86/virt/vmx/tdx/tdx.c`.

use core::arch::asm;
use kernel::bindings;
use kernel::ffi::c_ulong;
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

use crate::books;
use crate::range::{
    PageSize,
    PhysAddr,
    PhysRange, //
};

/// Bytes that one MOVDIR64B writes: a cache line, the unit in which memory is private or not.
const LINE: usize = 64;

/// Whether conversions are counted: only when somebody watches, since all CPUs share the number.
static COUNTED: Atomic<u32> = Atomic::new(0);

/// How many conversions were made.
static CONVERSIONS: Atomic<u64> = Atomic::new(0);

/// Counts conversions from here on. Any context.
pub(crate) fn count_conversions() {
    COUNTED.store(1, Relaxed);
}

/// How many conversions were counted. Any context.
pub(crate) fn conversions() -> u64 {
    CONVERSIONS.load(Relaxed)
}

/// Whether this processor has the partial-write erratum. Any context.
pub(crate) fn has_erratum() -> bool {
    // SAFETY: Has no requirements.
    unsafe { bindings::tdx_glue_has_bug_pw_mce() }
}

/// Evidence that every CPU has flushed its caches, and that no SEAMCALL of the caller wrote
/// private memory since.
#[must_use]
pub(crate) struct CachesFlushed(());

/// Writes back and invalidates the caches of all CPUs. Task context, interrupts on; slow.
pub(crate) fn flush_all_cpus() -> CachesFlushed {
    // SAFETY: Has no requirements beyond the context this function documents.
    unsafe { bindings::wbinvd_on_all_cpus() };
    CachesFlushed(())
}

impl CachesFlushed {
    /// Takes the caller's word for it.
    ///
    /// # Safety
    ///
    /// It is as the type says.
    pub(crate) unsafe fn promised() -> Self {
        Self(())
    }
}

/// Makes `memory` normal again after the TDX module used it.
///
/// `memory` must belong to the caller and be in the direct map. Does nothing without the erratum.
/// Any context.
pub(crate) fn reset(memory: PhysRange, _flushed: &CachesFlushed) {
    if has_erratum() && memory.is_aligned(PageSize::Size4K) {
        zero_lines(memory.start().get(), memory.end().get());
        books::remove_strays(memory);
    }
}

/// Zeroes the 64-byte lines of `[start, end)` with MOVDIR64B; both are multiples of 64.
fn zero_lines(start: u64, end: u64) {
    /// The 64 bytes that MOVDIR64B copies; it has no alignment requirement on its source.
    static ZEROES: [u8; LINE] = [0; LINE];

    // SAFETY: Only computes the address of `start` in the direct map.
    let first = unsafe { bindings::tdx_glue_phys_to_virt(start) }.cast::<u8>();
    for offset in (0..end.saturating_sub(start) as usize).step_by(LINE) {
        let line = first.wrapping_add(offset);
        // SAFETY: `line` is 64-byte aligned and in the direct map of memory that the caller owns
        // (see `reset` and `tdx_quirk_reset_paddr`); the source is 64 readable bytes. The
        // processor has MOVDIR64B: without it TDX does not come up and the erratum flag is clear
        // on every model that lacks the instruction.
        unsafe {
            asm!(
                "movdir64b {dst}, [{src}]",
                dst = in(reg) line,
                src = in(reg) ZEROES.as_ptr(),
                options(nostack),
            );
        }
    }
    // SAFETY: MFENCE has no requirements. MOVDIR64B is weakly ordered (write-combining protocol);
    // the fence makes the zeroes visible before anything the next owner of the memory does.
    unsafe { asm!("mfence", options(nostack, preserves_flags)) };
    if COUNTED.load(Relaxed) != 0 {
        CONVERSIONS.fetch_add(1u64, Relaxed);
    }
}

/// Makes `size` bytes at physical address `base` normal again: for KVM, page by page.
///
/// Does nothing on processors without the erratum, and nothing for a range that is not made of
/// whole 64-byte lines or wraps. Any context; does not sleep.
///
/// # Safety
///
/// The caller owns the memory, it is in the direct map, and the caches of every CPU that wrote it
/// through the TDX module have been flushed (TDH.PHYMEM.PAGE.WBINVD or TDH.PHYMEM.CACHE.WB).
#[export]
pub unsafe extern "C" fn tdx_quirk_reset_paddr(base: c_ulong, size: c_ulong) {
    let (base, size) = (base as u64, size as u64);
    let Some(end) = base.checked_add(size) else {
        return;
    };
    if has_erratum() && (base | end) % LINE as u64 == 0 {
        zero_lines(base, end);
        let range = PhysAddr::new(base).zip(PhysAddr::new(end));
        if let Some(memory) = range.and_then(|(start, end)| PhysRange::new(start, end)) {
            books::remove_strays(memory);
        }
    }
}

#[cfg(CONFIG_INTEL_TDX_HOST_KUNIT_TEST)]
#[kernel::macros::kunit_tests(tdx_host_reset)]
mod tests {
    use super::*;
    use kernel::alloc::flags::GFP_KERNEL;
    use kernel::page::Page;

    #[test]
    fn conversions_are_counted_when_somebody_watches() -> Result {
        let page = Page::alloc_page(GFP_KERNEL)?;
        // SAFETY: The page is one.
        let pfn = unsafe { bindings::tdx_glue_page_to_pfn(page.as_ptr()) };
        // SAFETY: The page belongs to this function, and the TDX module never had it.
        let convert = || unsafe { tdx_quirk_reset_paddr(pfn << 12, 4096) };
        let before = conversions();
        convert();
        assert_eq!(conversions(), before);
        count_conversions();
        convert();
        COUNTED.store(0, Relaxed);
        assert_eq!(conversions() - before, u64::from(has_erratum()));
        Ok(())
    }
}
