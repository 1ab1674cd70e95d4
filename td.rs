// SPDX-License-Identifier: GPL-2.0

//! The calls that build, run and take down TDs, one function each.
//!
//! A TD is named by its root page ([`Tdr`]), a vCPU by its own ([`Tdvpr`]). A page that the module
//! is to take as its own comes as [`Flushed`]: no cache holds a line of it that could be written
//! back later, over what the module wrote with another key. Every function returns what
//! [`crate::seamcall::call`] returns: the registers named in its description are valid in
//! [`Reply::out`], and some also in [`Cause::Refused`].
//!
//! TDH.VP.ENTER is not here: it uses every register and lives in `vp_enter.S`.
//!
//! Neighbours: [`crate::tdh`] offers the calls to C, [`crate::tlb`] puts some of them in order,
//! [`crate::operand`] has their operands.

use kernel::bindings;

use crate::abi::PageType;
use crate::books;
use crate::leaf::Leaf;
use crate::operand::{
    GpaAndLevel,
    KeyedAddr,
    SeptLevel, //
};
use crate::partition::KeyId;
use crate::range::{
    PageSize,
    Pfn,
    PhysAddr,
    PhysRange, //
};
use crate::seamcall::{
    call,
    Args,
    Cause,
    Reply,
    SeamcallError, //
};
use crate::status::SeamcallStatus;
use crate::tlb;

/// How a call ended.
pub(crate) type Outcome = Result<Reply, SeamcallError>;

/// Operand numbers, as the module names them in the details of TDX_OPERAND_INVALID.
#[derive(Clone, Copy)]
pub(crate) enum Operand {
    /// RCX.
    Rcx = 1,
    /// R8.
    R8 = 8,
}

/// What the module would say to an operand that cannot be right; the call is not made.
pub(crate) fn invalid(leaf: Leaf, operand: Operand) -> SeamcallError {
    let status = SeamcallStatus::OPERAND_INVALID.raw() | operand as u64;
    SeamcallError {
        leaf,
        cause: Cause::NotMade(SeamcallStatus::from_raw(status)),
    }
}

/// The root page of a TD (TDR).
#[derive(Clone, Copy)]
pub(crate) struct Tdr(pub(crate) Pfn);

/// The root page of a vCPU (TDVPR).
#[derive(Clone, Copy)]
pub(crate) struct Tdvpr(pub(crate) PhysAddr);

impl Tdr {
    fn raw(self) -> u64 {
        self.0.start().get()
    }
}

impl Tdvpr {
    fn raw(self) -> u64 {
        self.0.get()
    }
}

/// A page without a line in any cache.
pub(crate) struct Flushed(Pfn);

impl Flushed {
    /// Flushes the 4 KB page `frame`. Any context.
    ///
    /// # Safety
    ///
    /// The page is in the direct map and belongs to the caller.
    pub(crate) unsafe fn page(frame: Pfn) -> Self {
        // SAFETY: Promised by the caller.
        unsafe { Self::block(frame, SeptLevel::Size4K) }
    }

    /// Flushes as many pages from `frame` on as one entry of `level` maps. Any context.
    ///
    /// # Safety
    ///
    /// The pages are in the direct map and belong to the caller.
    #[inline(always)]
    pub(crate) unsafe fn block(frame: Pfn, level: SeptLevel) -> Self {
        let bytes = match level {
            // Nearly all pages are of this size.
            SeptLevel::Size4K => 4096,
            // Bigger pages than 1 GB do not exist: the module will say so.
            _ => u32::try_from(level.bytes()).unwrap_or(0),
        };
        books::note(frame);
        // SAFETY: The memory is in the direct map; which CPU this is does not matter.
        unsafe { bindings::tdx_glue_hand_over(frame.get(), bytes) };
        Self(frame)
    }

    fn raw(&self) -> u64 {
        self.0.start().get()
    }
}

/// TDH.MNG.CREATE: makes `tdr` the root of a new TD with `keyid`.
#[inline(always)]
pub(crate) fn mng_create(tdr: &Flushed, keyid: u16) -> Outcome {
    call(
        Leaf::TDH_MNG_CREATE,
        Args {
            rcx: tdr.raw(),
            rdx: u64::from(keyid),
            ..Args::default()
        },
    )
    .inspect(|_| books::td_created())
}

/// TDH.MNG.KEY.CONFIG: makes the TD's key on the package of this CPU.
#[inline(always)]
pub(crate) fn mng_key_config(td: Tdr) -> Outcome {
    on_td(Leaf::TDH_MNG_KEY_CONFIG, td)
}

/// TDH.MNG.ADDCX: gives the TD `page` for its control structure.
#[inline(always)]
pub(crate) fn mng_addcx(td: Tdr, page: &Flushed) -> Outcome {
    call(
        Leaf::TDH_MNG_ADDCX,
        Args {
            rcx: page.raw(),
            rdx: td.raw(),
            ..Args::default()
        },
    )
}

/// TDH.MNG.INIT: configures the TD from the TD_PARAMS at the address `params`.
///
/// RCX says which CPUID leaf was refused.
#[inline(always)]
pub(crate) fn mng_init(td: Tdr, params: u64) -> Outcome {
    call(
        Leaf::TDH_MNG_INIT,
        Args {
            rcx: td.raw(),
            rdx: params,
            ..Args::default()
        },
    )
}

/// TDH.MNG.RD: reads the metadata field `field` of the TD into R8.
#[inline(always)]
pub(crate) fn mng_rd(td: Tdr, field: u64) -> Outcome {
    call(
        Leaf::TDH_MNG_RD,
        Args {
            rcx: td.raw(),
            rdx: field,
            ..Args::default()
        },
    )
}

/// TDH.MNG.VPFLUSHDONE: checks that no CPU holds a vCPU of the TD, and blocks its key.
#[inline(always)]
pub(crate) fn mng_vpflushdone(td: Tdr) -> Outcome {
    on_td(Leaf::TDH_MNG_VPFLUSHDONE, td)
}

/// TDH.MNG.KEY.FREEID: frees the TD's KeyID, once all packages wrote their caches back.
#[inline(always)]
pub(crate) fn mng_key_freeid(td: Tdr) -> Outcome {
    on_td(Leaf::TDH_MNG_KEY_FREEID, td)
}

/// TDH.VP.CREATE: makes `tdvpr` the root of a new vCPU of the TD.
#[inline(always)]
pub(crate) fn vp_create(td: Tdr, tdvpr: &Flushed) -> Outcome {
    call(
        Leaf::TDH_VP_CREATE,
        Args {
            rcx: tdvpr.raw(),
            rdx: td.raw(),
            ..Args::default()
        },
    )
}

/// TDH.VP.ADDCX: gives the vCPU `page` for its control structure.
#[inline(always)]
pub(crate) fn vp_addcx(vp: Tdvpr, page: &Flushed) -> Outcome {
    call(
        Leaf::TDH_VP_ADDCX,
        Args {
            rcx: page.raw(),
            rdx: vp.raw(),
            ..Args::default()
        },
    )
}

/// TDH.VP.INIT: readies the vCPU, which starts with `guest_rcx` in RCX and R8.
///
/// Version 1 of the leaf: the one that takes an x2APIC id.
#[inline(always)]
pub(crate) fn vp_init(vp: Tdvpr, guest_rcx: u64, x2apic_id: u32) -> Outcome {
    call(
        Leaf::TDH_VP_INIT.with_version(1),
        Args {
            rcx: vp.raw(),
            rdx: guest_rcx,
            r8: u64::from(x2apic_id),
            ..Args::default()
        },
    )
}

/// TDH.VP.FLUSH: makes this CPU let go of the vCPU.
#[inline(always)]
pub(crate) fn vp_flush(vp: Tdvpr) -> Outcome {
    call(
        Leaf::TDH_VP_FLUSH,
        Args {
            rcx: vp.raw(),
            ..Args::default()
        },
    )
}

/// TDH.VP.RD: reads the metadata field `field` of the vCPU into R8.
#[inline(always)]
pub(crate) fn vp_rd(vp: Tdvpr, field: u64) -> Outcome {
    call(
        Leaf::TDH_VP_RD,
        Args {
            rcx: vp.raw(),
            rdx: field,
            ..Args::default()
        },
    )
}

/// TDH.VP.WR: writes those bits of `value` that are set in `mask` to a metadata field of the vCPU.
///
/// R8 is the value before.
#[inline(always)]
pub(crate) fn vp_wr(vp: Tdvpr, field: u64, value: u64, mask: u64) -> Outcome {
    call(
        Leaf::TDH_VP_WR,
        Args {
            rcx: vp.raw(),
            rdx: field,
            r8: value,
            r9: mask,
            ..Args::default()
        },
    )
}

/// TDH.MEM.SEPT.ADD: gives the TD `table` as the Secure EPT page below the entry `at`.
///
/// RCX and RDX are the entry in question and its state, if it was refused for it.
#[inline(always)]
pub(crate) fn mem_sept_add(td: Tdr, at: GpaAndLevel, table: &Flushed) -> Outcome {
    call(
        Leaf::TDH_MEM_SEPT_ADD,
        Args {
            rcx: at.raw(),
            rdx: td.raw(),
            r8: table.raw(),
            ..Args::default()
        },
    )
}

/// TDH.MEM.PAGE.ADD: makes `page` the TD's page at the guest address `gpa`, a copy of `source`.
///
/// RCX and RDX as in [`mem_sept_add`].
#[inline(always)]
pub(crate) fn mem_page_add(td: Tdr, gpa: u64, page: &Flushed, source: Pfn) -> Outcome {
    call(
        Leaf::TDH_MEM_PAGE_ADD,
        Args {
            rcx: gpa,
            rdx: td.raw(),
            r8: page.raw(),
            r9: source.start().get(),
            ..Args::default()
        },
    )
}

/// TDH.MEM.PAGE.AUG: makes `page` the TD's page at `at`, once the guest accepts it.
///
/// RCX and RDX as in [`mem_sept_add`].
#[inline(always)]
pub(crate) fn mem_page_aug(td: Tdr, at: GpaAndLevel, page: &Flushed) -> Outcome {
    call(
        Leaf::TDH_MEM_PAGE_AUG,
        Args {
            rcx: at.raw(),
            rdx: td.raw(),
            r8: page.raw(),
            ..Args::default()
        },
    )
}

/// TDH.MEM.RANGE.BLOCK: from here on no new translation of what is below `at` is made.
///
/// RCX and RDX as in [`mem_sept_add`].
#[inline(always)]
pub(crate) fn mem_range_block(td: Tdr, at: GpaAndLevel) -> Outcome {
    on_entry(Leaf::TDH_MEM_RANGE_BLOCK, td, at)
}

/// TDH.MEM.TRACK: starts a new TLB-tracking epoch of the TD.
#[inline(always)]
pub(crate) fn mem_track(td: Tdr) -> Outcome {
    on_td(Leaf::TDH_MEM_TRACK, td)
}

/// TDH.MEM.PAGE.REMOVE: takes the page at `at` from the TD. Convert it before it is used otherwise.
///
/// RCX is the physical address of the page; refused, RCX and RDX are as in [`mem_sept_add`].
#[inline(always)]
pub(crate) fn mem_page_remove(td: Tdr, at: GpaAndLevel) -> Outcome {
    // Until the page is noted, only its user knows which one the module gave back.
    let _leaving = books::PageLeaving::begin();
    on_entry(Leaf::TDH_MEM_PAGE_REMOVE, td, at).inspect(|reply| {
        let size = match at.level() {
            SeptLevel::Size4K => PageSize::Size4K,
            SeptLevel::Size2M => PageSize::Size2M,
            _ => PageSize::Size1G,
        };
        books::add_stray(removed_page(reply), size);
    })
}

/// The page that TDH.MEM.PAGE.REMOVE took.
fn removed_page(reply: &Reply) -> PhysAddr {
    // Bits above the address are hints.
    PhysAddr::new(reply.out.rcx & (PhysAddr::LIMIT.get() - 1)).unwrap_or(PhysAddr::ZERO)
}

/// TDH.MR.EXTEND: measures the 256 bytes of the TD's memory at the guest address `gpa`.
///
/// RCX and RDX as in [`mem_sept_add`].
#[inline(always)]
pub(crate) fn mr_extend(td: Tdr, gpa: u64) -> Outcome {
    call(
        Leaf::TDH_MR_EXTEND,
        Args {
            rcx: gpa,
            rdx: td.raw(),
            ..Args::default()
        },
    )
}

/// TDH.MR.FINALIZE: ends the measurement of the TD, which can run from here on.
#[inline(always)]
pub(crate) fn mr_finalize(td: Tdr) -> Outcome {
    on_td(Leaf::TDH_MR_FINALIZE, td)
}

/// TDH.PHYMEM.PAGE.RECLAIM: takes a 4 KB page from a TD that has no key any more. Convert it before
/// it is used otherwise.
///
/// RCX, RDX and R8 are the page's type, the root page of its owner and its size, in the module's
/// own terms.
pub(crate) fn phymem_page_reclaim(page: Pfn) -> Outcome {
    // Before the call: a crash right after it finds the page neither with the module nor with us.
    books::add_stray(page.start(), PageSize::Size4K);
    let outcome = call(
        Leaf::TDH_PHYMEM_PAGE_RECLAIM,
        Args {
            rcx: page.start().get(),
            ..Args::default()
        },
    );
    match &outcome {
        Ok(reply) if PageType(reply.out.rcx) == PageType::TDR => books::td_reclaimed(),
        Ok(_) => {}
        Err(_) => {
            if let Some(memory) = PhysRange::from_size(page.start(), PageSize::Size4K.bytes()) {
                books::remove_strays(memory);
            }
        }
    }
    outcome
}

/// TDH.PHYMEM.CACHE.WB: writes back what the package's caches hold of blocked keys.
///
/// `resume` says whether to go on where an interrupted call stopped.
#[inline(always)]
pub(crate) fn phymem_cache_wb(resume: bool) -> Outcome {
    call(
        Leaf::TDH_PHYMEM_CACHE_WB,
        Args {
            rcx: u64::from(resume),
            ..Args::default()
        },
    )
}

/// TDH.PHYMEM.PAGE.WBINVD: writes back and invalidates a free page's lines under one KeyID.
#[inline(always)]
pub(crate) fn phymem_page_wbinvd(frame: Pfn, keyid: u16) -> Outcome {
    let leaf = Leaf::TDH_PHYMEM_PAGE_WBINVD;
    // SAFETY: Has no requirements.
    let phys_bits = unsafe { bindings::tdx_glue_phys_bits() };
    let page = KeyedAddr::new(frame, keyid, phys_bits).ok_or(invalid(leaf, Operand::Rcx))?;
    call(
        leaf,
        Args {
            rcx: page.raw(),
            ..Args::default()
        },
    )
}

/// The same for a page that was under the module's own KeyID.
#[inline(always)]
pub(crate) fn phymem_page_wbinvd_global(frame: Pfn) -> Outcome {
    let keyid = crate::global_keyid().map(KeyId::get);
    let keyid = keyid.ok_or(invalid(Leaf::TDH_PHYMEM_PAGE_WBINVD, Operand::Rcx))?;
    phymem_page_wbinvd(frame, keyid)
}

/// A call whose only operand is a TD.
#[inline(always)]
fn on_td(leaf: Leaf, td: Tdr) -> Outcome {
    call(
        leaf,
        Args {
            rcx: td.raw(),
            ..Args::default()
        },
    )
}

/// A call about an entry of the TD's Secure EPT.
#[inline(always)]
fn on_entry(leaf: Leaf, td: Tdr, at: GpaAndLevel) -> Outcome {
    call(
        leaf,
        Args {
            rcx: at.raw(),
            rdx: td.raw(),
            ..Args::default()
        },
    )
}

/// What somebody who runs the vCPUs of a TD can do with all of them.
pub(crate) trait Vcpus {
    /// Makes each vCPU leave the guest once; returns when all did. They may enter again.
    fn kick(&mut self);
    /// Makes all vCPUs leave the guest, and keeps them out until [`Vcpus::release`].
    fn hold(&mut self);
    /// Ends [`Vcpus::hold`].
    fn release(&mut self);
}

/// A TD and its vCPUs, for [`tlb::Tracker`].
pub(crate) struct RunningTd<V> {
    /// The TD.
    pub(crate) tdr: Tdr,
    /// Its vCPUs, all of them.
    pub(crate) vcpus: V,
}

impl<V: Vcpus> tlb::Td for RunningTd<V> {
    type Error = SeamcallError;

    fn block(&mut self, at: GpaAndLevel) -> Result<(), SeamcallError> {
        mem_range_block(self.tdr, at).map(|_| ())
    }

    fn track(&mut self) -> Result<(), SeamcallError> {
        mem_track(self.tdr).map(|_| ())
    }

    fn remove(&mut self, at: GpaAndLevel) -> Result<PhysAddr, SeamcallError> {
        mem_page_remove(self.tdr, at).map(|reply| removed_page(&reply))
    }

    fn status(error: &SeamcallError) -> SeamcallStatus {
        error.status()
    }

    fn kick_vcpus(&mut self) {
        self.vcpus.kick();
    }

    fn hold_vcpus(&mut self) {
        self.vcpus.hold();
    }

    fn release_vcpus(&mut self) {
        self.vcpus.release();
    }
}
