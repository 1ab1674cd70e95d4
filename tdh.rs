// SPDX-License-Identifier: GPL-2.0

//! The calls of [`crate::td`] for KVM: raw numbers and pointers in, raw status and outputs out.
//!
//! Every function makes one call, returns the raw status word (0 or bit 63 clear is success) and
//! writes all its outputs, whatever happens: with what the module returned if it ran, with 0
//! otherwise (no module, a fault, TDX shut down, an operand that cannot be right). The C this
//! replaces left its own operands there when the instruction failed.
//!
//! All of them may be called in any context, preemption on or off; on which CPU matters where the
//! module says so. Signatures are those of `asm/tdx.h`.
//!
//! C it replaces: `tdh_*()` in `arch/x86/virt/vmx/tdx/tdx.c`.

use kernel::bindings;
use kernel::prelude::*;

use crate::leaf::Leaf;
use crate::operand::{
    GpaAndLevel,
    SeptLevel, //
};
use crate::range::{
    Pfn,
    PhysAddr, //
};
use crate::seamcall::{
    Args,
    Cause,
    SeamcallError, //
};
use crate::td::{
    self,
    invalid,
    Flushed,
    Operand,
    Outcome,
    Tdr,
    Tdvpr, //
};

const _: () = assert!(bindings::pg_level_PG_LEVEL_NONE == 0);
const _: () = assert!(bindings::pg_level_PG_LEVEL_4K == 1);
const _: () = assert!(bindings::pg_level_PG_LEVEL_256T == 5);

/// The raw status word of `outcome`.
fn status(outcome: &Outcome) -> u64 {
    match outcome {
        Ok(reply) => reply.status.raw(),
        Err(e) => e.status().raw(),
    }
}

/// The registers that the module wrote, zeroes if it did not run.
fn outputs(outcome: &Outcome) -> Args {
    match outcome {
        Ok(reply) => reply.out,
        Err(SeamcallError {
            cause: Cause::Refused(_, out),
            ..
        }) => *out,
        Err(_) => Args::default(),
    }
}

/// Gives C the status, and RCX and RDX through `first` and `second`.
///
/// # Safety
///
/// The pointers can be written.
unsafe fn with_details(outcome: &Outcome, first: *mut u64, second: *mut u64) -> u64 {
    let out = outputs(outcome);
    // SAFETY: Promised by the caller.
    unsafe {
        first.write(out.rcx);
        second.write(out.rdx);
    }
    status(outcome)
}

/// The frame of `page`.
///
/// # Safety
///
/// `page` is valid.
unsafe fn frame(page: *mut bindings::page) -> Pfn {
    // SAFETY: Promised by the caller.
    let pfn = unsafe { bindings::tdx_glue_page_to_pfn(page) };
    // No page lies beyond the limit.
    Pfn::new(pfn as u64 & (Pfn::LIMIT.get() - 1)).unwrap_or(Pfn::LIMIT)
}

/// Flushes `page` before the module takes it.
///
/// # Safety
///
/// `page` is valid, in the direct map and belongs to the caller.
unsafe fn flushed(page: *mut bindings::page) -> Flushed {
    // SAFETY: Promised by the caller.
    unsafe { Flushed::page(frame(page)) }
}

/// The TD that C means.
///
/// # Safety
///
/// `td` is valid, and so is its root page.
unsafe fn tdr(td: *const bindings::tdx_td) -> Tdr {
    // SAFETY: Promised by the caller.
    unsafe { Tdr(frame((*td).tdr_page)) }
}

/// The vCPU that C means.
///
/// # Safety
///
/// `vp` is valid, and `tdvpr_pa` is the address of its root page.
unsafe fn tdvpr(vp: *const bindings::tdx_vp) -> Tdvpr {
    // SAFETY: Promised by the caller.
    let addr = unsafe { (*vp).tdvpr_pa };
    Tdvpr(PhysAddr::new(addr).unwrap_or(PhysAddr::LIMIT))
}

/// The position in the Secure EPT that C means, for `leaf`.
fn position(leaf: Leaf, gpa: u64, level: bindings::pg_level) -> Result<GpaAndLevel, SeamcallError> {
    SeptLevel::try_from(level)
        .ok()
        .and_then(|level| GpaAndLevel::new(gpa, level))
        .ok_or(invalid(leaf, Operand::Rcx))
}

/// The frame with the number `pfn`, for the operand `operand` of `leaf`.
fn numbered(leaf: Leaf, operand: Operand, pfn: u64) -> Result<Pfn, SeamcallError> {
    Pfn::new(pfn)
        .filter(|&frame| frame < Pfn::LIMIT)
        .ok_or(invalid(leaf, operand))
}

/// Makes the root page of `td` a TD with the KeyID `hkid`.
///
/// # Safety
///
/// `td` and its root page are valid, and the page belongs to the caller.
#[export]
pub unsafe extern "C" fn tdh_mng_create(td: *mut bindings::tdx_td, hkid: u16) -> u64 {
    // SAFETY: Promised by the caller.
    let root = unsafe { flushed((*td).tdr_page) };
    status(&td::mng_create(&root, hkid))
}

/// Makes the TD's key on the package of this CPU.
///
/// # Safety
///
/// `td` and its root page are valid.
#[export]
pub unsafe extern "C" fn tdh_mng_key_config(td: *mut bindings::tdx_td) -> u64 {
    // SAFETY: Promised by the caller.
    status(&td::mng_key_config(unsafe { tdr(td) }))
}

/// Gives the TD `tdcs_page` for its control structure.
///
/// # Safety
///
/// `td` and its root page are valid; `tdcs_page` is valid and belongs to the caller.
#[export]
pub unsafe extern "C" fn tdh_mng_addcx(
    td: *mut bindings::tdx_td,
    tdcs_page: *mut bindings::page,
) -> u64 {
    // SAFETY: Promised by the caller.
    let (td, page) = unsafe { (tdr(td), flushed(tdcs_page)) };
    status(&td::mng_addcx(td, &page))
}

/// Configures the TD; `extended_err` gets the CPUID leaf that was refused.
///
/// # Safety
///
/// `td` and its root page are valid; `td_params` is the physical address of TD_PARAMS;
/// `extended_err` can be written.
#[export]
pub unsafe extern "C" fn tdh_mng_init(
    td: *mut bindings::tdx_td,
    td_params: u64,
    extended_err: *mut u64,
) -> u64 {
    // SAFETY: Promised by the caller.
    let outcome = td::mng_init(unsafe { tdr(td) }, td_params);
    // SAFETY: Promised by the caller.
    unsafe { extended_err.write(outputs(&outcome).rcx) };
    status(&outcome)
}

/// Reads a metadata field of the TD into `data`, 0 on failure.
///
/// # Safety
///
/// `td` and its root page are valid; `data` can be written.
#[export]
pub unsafe extern "C" fn tdh_mng_rd(td: *mut bindings::tdx_td, field: u64, data: *mut u64) -> u64 {
    // SAFETY: Promised by the caller.
    let outcome = td::mng_rd(unsafe { tdr(td) }, field);
    // SAFETY: Promised by the caller.
    unsafe { data.write(outputs(&outcome).r8) };
    status(&outcome)
}

/// Checks that no CPU holds a vCPU of the TD, and blocks its key.
///
/// # Safety
///
/// `td` and its root page are valid.
#[export]
pub unsafe extern "C" fn tdh_mng_vpflushdone(td: *mut bindings::tdx_td) -> u64 {
    // SAFETY: Promised by the caller.
    status(&td::mng_vpflushdone(unsafe { tdr(td) }))
}

/// Frees the TD's KeyID in the module.
///
/// # Safety
///
/// `td` and its root page are valid.
#[export]
pub unsafe extern "C" fn tdh_mng_key_freeid(td: *mut bindings::tdx_td) -> u64 {
    // SAFETY: Promised by the caller.
    status(&td::mng_key_freeid(unsafe { tdr(td) }))
}

/// Makes the root page of `vp` a vCPU of the TD.
///
/// # Safety
///
/// `td`, `vp` and their root pages are valid; that of `vp` belongs to the caller.
#[export]
pub unsafe extern "C" fn tdh_vp_create(
    td: *mut bindings::tdx_td,
    vp: *mut bindings::tdx_vp,
) -> u64 {
    // SAFETY: Promised by the caller.
    let (td, root) = unsafe { (tdr(td), flushed((*vp).tdvpr_page)) };
    status(&td::vp_create(td, &root))
}

/// Gives the vCPU `tdcx_page` for its control structure.
///
/// # Safety
///
/// `vp` and its root page are valid; `tdcx_page` is valid and belongs to the caller.
#[export]
pub unsafe extern "C" fn tdh_vp_addcx(
    vp: *mut bindings::tdx_vp,
    tdcx_page: *mut bindings::page,
) -> u64 {
    // SAFETY: Promised by the caller.
    let (vp, page) = unsafe { (tdvpr(vp), flushed(tdcx_page)) };
    status(&td::vp_addcx(vp, &page))
}

/// Readies the vCPU, and binds it to this CPU.
///
/// # Safety
///
/// `vp` and its root page are valid.
#[export]
pub unsafe extern "C" fn tdh_vp_init(
    vp: *mut bindings::tdx_vp,
    initial_rcx: u64,
    x2apicid: u32,
) -> u64 {
    // SAFETY: Promised by the caller.
    status(&td::vp_init(unsafe { tdvpr(vp) }, initial_rcx, x2apicid))
}

/// Makes this CPU let go of the vCPU.
///
/// # Safety
///
/// `vp` and its root page are valid.
#[export]
pub unsafe extern "C" fn tdh_vp_flush(vp: *mut bindings::tdx_vp) -> u64 {
    // SAFETY: Promised by the caller.
    status(&td::vp_flush(unsafe { tdvpr(vp) }))
}

/// Reads a metadata field of the vCPU into `data`, 0 on failure.
///
/// # Safety
///
/// `vp` and its root page are valid; `data` can be written.
#[export]
pub unsafe extern "C" fn tdh_vp_rd(vp: *mut bindings::tdx_vp, field: u64, data: *mut u64) -> u64 {
    // SAFETY: Promised by the caller.
    let outcome = td::vp_rd(unsafe { tdvpr(vp) }, field);
    // SAFETY: Promised by the caller.
    unsafe { data.write(outputs(&outcome).r8) };
    status(&outcome)
}

/// Writes the bits of `data` that are set in `mask` to a metadata field of the vCPU.
///
/// # Safety
///
/// `vp` and its root page are valid.
#[export]
pub unsafe extern "C" fn tdh_vp_wr(
    vp: *mut bindings::tdx_vp,
    field: u64,
    data: u64,
    mask: u64,
) -> u64 {
    // SAFETY: Promised by the caller.
    status(&td::vp_wr(unsafe { tdvpr(vp) }, field, data, mask))
}

/// Gives the TD `page` as a Secure EPT page.
///
/// # Safety
///
/// `td` and its root page are valid; `page` is valid and belongs to the caller; the error pointers
/// can be written.
#[export]
pub unsafe extern "C" fn tdh_mem_sept_add(
    td: *mut bindings::tdx_td,
    gpa: u64,
    level: bindings::pg_level,
    page: *mut bindings::page,
    ext_err1: *mut u64,
    ext_err2: *mut u64,
) -> u64 {
    let outcome = position(Leaf::TDH_MEM_SEPT_ADD, gpa, level).and_then(|at| {
        // SAFETY: Promised by the caller.
        let (td, page) = unsafe { (tdr(td), flushed(page)) };
        td::mem_sept_add(td, at, &page)
    });
    // SAFETY: Promised by the caller.
    unsafe { with_details(&outcome, ext_err1, ext_err2) }
}

/// Makes the page `pfn` the TD's page at `gpa`, a copy of `source`.
///
/// # Safety
///
/// `td`, its root page and `source` are valid; the page `pfn` is in the direct map and belongs to
/// the caller; the error pointers can be written.
#[export]
pub unsafe extern "C" fn tdh_mem_page_add(
    td: *mut bindings::tdx_td,
    gpa: u64,
    pfn: bindings::kvm_pfn_t,
    source: *mut bindings::page,
    ext_err1: *mut u64,
    ext_err2: *mut u64,
) -> u64 {
    let outcome = numbered(Leaf::TDH_MEM_PAGE_ADD, Operand::R8, pfn).and_then(|page| {
        // SAFETY: Promised by the caller.
        let (td, page, source) = unsafe { (tdr(td), Flushed::page(page), frame(source)) };
        td::mem_page_add(td, gpa, &page, source)
    });
    // SAFETY: Promised by the caller.
    unsafe { with_details(&outcome, ext_err1, ext_err2) }
}

/// Makes the page `pfn` the TD's page at `gpa`, once the guest accepts it.
///
/// # Safety
///
/// `td` and its root page are valid; the page `pfn`, of the size that `level` says, is in the
/// direct map and belongs to the caller; the error pointers can be written.
#[export]
pub unsafe extern "C" fn tdh_mem_page_aug(
    td: *mut bindings::tdx_td,
    gpa: u64,
    level: bindings::pg_level,
    pfn: bindings::kvm_pfn_t,
    ext_err1: *mut u64,
    ext_err2: *mut u64,
) -> u64 {
    let leaf = Leaf::TDH_MEM_PAGE_AUG;
    let outcome = position(leaf, gpa, level).and_then(|at| {
        let page = numbered(leaf, Operand::R8, pfn)?;
        // SAFETY: Promised by the caller.
        let (td, page) = unsafe { (tdr(td), Flushed::block(page, at.level())) };
        td::mem_page_aug(td, at, &page)
    });
    // SAFETY: Promised by the caller.
    unsafe { with_details(&outcome, ext_err1, ext_err2) }
}

/// Stops new translations of what is mapped at `gpa`.
///
/// # Safety
///
/// `td` and its root page are valid; the error pointers can be written.
#[export]
pub unsafe extern "C" fn tdh_mem_range_block(
    td: *mut bindings::tdx_td,
    gpa: u64,
    level: bindings::pg_level,
    ext_err1: *mut u64,
    ext_err2: *mut u64,
) -> u64 {
    let outcome = position(Leaf::TDH_MEM_RANGE_BLOCK, gpa, level)
        // SAFETY: Promised by the caller.
        .and_then(|at| td::mem_range_block(unsafe { tdr(td) }, at));
    // SAFETY: Promised by the caller.
    unsafe { with_details(&outcome, ext_err1, ext_err2) }
}

/// Starts a new TLB-tracking epoch of the TD.
///
/// # Safety
///
/// `tdr_of` and its root page are valid.
#[export]
pub unsafe extern "C" fn tdh_mem_track(tdr_of: *mut bindings::tdx_td) -> u64 {
    // SAFETY: Promised by the caller.
    status(&td::mem_track(unsafe { tdr(tdr_of) }))
}

/// Takes the page at `gpa` from the TD.
///
/// # Safety
///
/// `td` and its root page are valid; the error pointers can be written.
#[export]
pub unsafe extern "C" fn tdh_mem_page_remove(
    td: *mut bindings::tdx_td,
    gpa: u64,
    level: bindings::pg_level,
    ext_err1: *mut u64,
    ext_err2: *mut u64,
) -> u64 {
    let outcome = position(Leaf::TDH_MEM_PAGE_REMOVE, gpa, level)
        // SAFETY: Promised by the caller.
        .and_then(|at| td::mem_page_remove(unsafe { tdr(td) }, at));
    // SAFETY: Promised by the caller.
    unsafe { with_details(&outcome, ext_err1, ext_err2) }
}

/// Measures 256 bytes of the TD's memory.
///
/// # Safety
///
/// `td` and its root page are valid; the error pointers can be written.
#[export]
pub unsafe extern "C" fn tdh_mr_extend(
    td: *mut bindings::tdx_td,
    gpa: u64,
    ext_err1: *mut u64,
    ext_err2: *mut u64,
) -> u64 {
    // SAFETY: Promised by the caller.
    let outcome = td::mr_extend(unsafe { tdr(td) }, gpa);
    // SAFETY: Promised by the caller.
    unsafe { with_details(&outcome, ext_err1, ext_err2) }
}

/// Ends the measurement of the TD.
///
/// # Safety
///
/// `td` and its root page are valid.
#[export]
pub unsafe extern "C" fn tdh_mr_finalize(td: *mut bindings::tdx_td) -> u64 {
    // SAFETY: Promised by the caller.
    status(&td::mr_finalize(unsafe { tdr(td) }))
}

/// Takes `page` from a TD that has no key any more; the outputs are in the module's own terms.
///
/// # Safety
///
/// `page` is valid; the output pointers can be written.
#[export]
pub unsafe extern "C" fn tdh_phymem_page_reclaim(
    page: *mut bindings::page,
    tdx_pt: *mut u64,
    tdx_owner: *mut u64,
    tdx_size: *mut u64,
) -> u64 {
    // SAFETY: Promised by the caller.
    let outcome = td::phymem_page_reclaim(unsafe { frame(page) });
    // SAFETY: Promised by the caller.
    unsafe {
        tdx_size.write(outputs(&outcome).r8);
        with_details(&outcome, tdx_pt, tdx_owner)
    }
}

/// Writes back what the caches of this package hold of blocked keys; `resume` after an interrupt.
///
/// # Safety
///
/// None beyond being called by C.
#[export]
pub unsafe extern "C" fn tdh_phymem_cache_wb(resume: bool) -> u64 {
    status(&td::phymem_cache_wb(resume))
}

/// Writes back and invalidates the lines of the TD's root page, which the TD no longer has.
///
/// # Safety
///
/// `td` and its root page are valid.
#[export]
pub unsafe extern "C" fn tdh_phymem_page_wbinvd_tdr(td: *mut bindings::tdx_td) -> u64 {
    // SAFETY: Promised by the caller.
    let root = unsafe { frame((*td).tdr_page) };
    status(&td::phymem_page_wbinvd_global(root))
}

/// Writes back and invalidates the lines of the free page `pfn` under the KeyID `hkid`.
///
/// # Safety
///
/// None beyond being called by C.
#[export]
pub unsafe extern "C" fn tdh_phymem_page_wbinvd_hkid(hkid: u64, pfn: bindings::kvm_pfn_t) -> u64 {
    let leaf = Leaf::TDH_PHYMEM_PAGE_WBINVD;
    let outcome = numbered(leaf, Operand::Rcx, pfn).and_then(|frame| {
        let keyid = u16::try_from(hkid).map_err(|_| invalid(leaf, Operand::Rcx))?;
        td::phymem_page_wbinvd(frame, keyid)
    });
    status(&outcome)
}
