// SPDX-License-Identifier: GPL-2.0

//! Is this machine check TDX private memory?
//!
//! On processors with the partial-write erratum a stray write to private memory shows up as a
//! memory error much later, at the next read. This file tells such an error from broken DRAM.
//!
//! It runs in the #MC handler: no lock, no print, no allocation, one SEAMCALL and no retry.
//!
//! C it replaces: `tdx_dump_mce_info()` in `arch/x86/virt/vmx/tdx/tdx.c`.

use kernel::bindings;
use kernel::ffi::c_char;
use kernel::prelude::*;

use crate::abi::PageType;
use crate::leaf::Leaf;
use crate::range::{
    PageSize,
    PhysAddr, //
};
use crate::seamcall::{
    self,
    Args, //
};

/// Whether the TDX module, or its PAMTs, use the page at `addr`.
///
/// A failing SEAMCALL counts as no: until the module is ready it owns no page. Then PAMTs are an
/// exception, for the moment between their initialisation and readiness.
fn is_private(addr: PhysAddr) -> bool {
    let page = addr.align_down(PageSize::Size4K);
    match seamcall::call_once(
        Leaf::TDH_PHYMEM_PAGE_RDMD,
        Args {
            rcx: page.get(),
            ..Args::default()
        },
    ) {
        Ok(reply) => match PageType(reply.out.rcx) {
            PageType::NDA => false,
            // PAMTs lie in reserved areas, and so does memory that TDX never uses.
            PageType::RSVD => crate::pamts().is_some_and(|pamts| pamts.contain(page)),
            _ => true,
        },
        Err(_) => false,
    }
}

/// A sentence for the panic message if the machine check `m` hit TDX private memory, else null.
///
/// #MC context.
///
/// # Safety
///
/// `m` is null or points to a valid `struct mce`.
#[export]
pub unsafe extern "C" fn tdx_dump_mce_info(m: *mut bindings::mce) -> *const c_char {
    // SAFETY: `m` is valid if not null, by this function's contract.
    let usable = !m.is_null()
        && unsafe { bindings::mce_is_memory_error(m) && bindings::mce_usable_address(m) };
    if usable && crate::platform_has_tdx() {
        // SAFETY: As above.
        if let Some(addr) = PhysAddr::new(unsafe { (*m).addr }) {
            if is_private(addr) {
                return c"TDX private memory error. Possible kernel bug.".as_char_ptr();
            }
        }
    }
    core::ptr::null()
}
