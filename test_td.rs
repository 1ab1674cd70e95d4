// SPDX-License-Identifier: GPL-2.0

//! The smallest user of TDs in the kernel, for KUnit: builds a TD and takes it down.
//!
//! [`TestTd`] has one measured page at GPA 0, page tables for the 2 MB from there on, and one vCPU
//! for each CPU it is told. A page that the TDX module has is a [`Private`]; only after the module
//! gave it back and it was made normal can the kernel have it again.
//!
//! Neighbours: [`crate::td`] makes the calls, [`crate::test_guest`] lets the TD run.

use core::mem::ManuallyDrop;
use kernel::alloc::flags::{
    __GFP_ZERO, //
    GFP_KERNEL,
};
use kernel::bindings;
use kernel::error::to_result;
use kernel::ffi::{
    c_int,
    c_void, //
};
use kernel::page::{
    Page,
    PAGE_SIZE, //
};
use kernel::prelude::*;

use crate::cpu;
use crate::guards::CpuHotplugRead;
use crate::keyid;
use crate::operand::{
    GpaAndLevel,
    SeptLevel, //
};
use crate::range::Pfn;
use crate::reset;
use crate::seamcall::SeamcallError;
use crate::status::SeamcallStatus;
use crate::td::{
    self,
    Flushed,
    Outcome,
    Tdr,
    Tdvpr, //
};

/// The frame of `page`.
fn frame(page: &Page) -> Pfn {
    // SAFETY: The page is allocated.
    let pfn = unsafe { bindings::tdx_glue_page_to_pfn(page.as_ptr()) };
    Pfn::new(pfn as u64).unwrap_or(Pfn::LIMIT)
}

/// A page that the TDX module has. Dropped, it is lost: nobody may touch it.
pub(crate) struct Private(ManuallyDrop<Page>);

impl Private {
    /// Hands `page` over with `call`. A page that is refused is freed.
    pub(crate) fn give(
        page: Page,
        call: impl FnOnce(&Flushed) -> Outcome,
    ) -> Result<Self, SeamcallError> {
        // SAFETY: The page is this function's own, and 64-bit kernels map all memory directly.
        let flushed = unsafe { Flushed::page(frame(&page)) };
        call(&flushed).map(|_| Private(ManuallyDrop::new(page)))
    }

    /// The same for a new page and a call that is not expected to fail.
    fn new(call: impl FnOnce(&Flushed) -> Outcome) -> Result<Self> {
        Self::give(Page::alloc_page(GFP_KERNEL)?, call).map_err(|e| e.report("building a TD"))
    }

    pub(crate) fn frame(&self) -> Pfn {
        frame(&self.0)
    }

    /// Makes the page normal and frees it.
    ///
    /// # Safety
    ///
    /// The module does not have the page any more, and no cache has a line of it.
    pub(crate) unsafe fn free(self) {
        let start = self.frame().start().get();
        // SAFETY: Nobody else has the page, and the caller flushed the caches.
        unsafe { reset::tdx_quirk_reset_paddr(start as usize, PAGE_SIZE) };
        drop(ManuallyDrop::into_inner(self.0));
    }
}

/// A vCPU and the CPU it runs on.
pub(crate) struct TestVcpu {
    pub(crate) cpu: u32,
    /// The root page of the vCPU.
    pub(crate) tdvpr: Tdvpr,
}

/// A TD that exists. Dropped without [`TestTd::destroy`], all it has is lost.
pub(crate) struct TestTd {
    pub(crate) keyid: u16,
    root: Private,
    /// Pages other than the root that are reclaimed at the end.
    pages: KVec<Private>,
    pub(crate) vcpus: KVec<TestVcpu>,
}

/// Makes `call` on `cpu`, which stays online meanwhile. Task context, sleeps.
fn on_cpu(cpu: u32, _plugged: &CpuHotplugRead, mut call: impl FnMut() -> Result) -> Result {
    extern "C" fn run<F: FnMut() -> Result>(call: *mut c_void) -> c_int {
        // SAFETY: `on_cpu` passes the address of its closure and waits for this function.
        let call = unsafe { &mut *call.cast::<F>() };
        call().map_or_else(Error::to_errno, |()| 0)
    }
    /// The function for a closure, whose type has no name.
    fn runner<F: FnMut() -> Result>(_: &F) -> extern "C" fn(*mut c_void) -> c_int {
        run::<F>
    }
    let run = runner(&call);
    // SAFETY: `call` lives until the function has run.
    to_result(unsafe { bindings::smp_call_on_cpu(cpu, Some(run), (&raw mut call).cast(), false) })
}

impl TestTd {
    /// GPAs below this have page tables.
    pub(crate) const END: u64 = SeptLevel::Size2M.bytes();

    /// Builds a TD that can run, with a vCPU on each of `cpus`. Task context, sleeps.
    pub(crate) fn new(cpus: &[u32], plugged: &CpuHotplugRead) -> Result<Self> {
        // SAFETY: Called in task context.
        let keyid = unsafe { keyid::tdx_guest_keyid_alloc() };
        to_result(keyid.min(0))?;
        let keyid = u16::try_from(keyid)?;
        let root = Private::new(|page| td::mng_create(page, keyid)).inspect_err(|_| {
            // SAFETY: No TD has the key.
            unsafe { keyid::tdx_guest_keyid_free(keyid.into()) }
        })?;
        let mut td = TestTd {
            keyid,
            root,
            pages: KVec::new(),
            vcpus: KVec::new(),
        };
        match td.build(cpus, plugged) {
            Ok(()) => Ok(td),
            Err(e) => {
                let _ = td.destroy(plugged);
                Err(e)
            }
        }
    }

    /// The root page.
    pub(crate) fn tdr(&self) -> Tdr {
        Tdr(self.root.frame())
    }

    /// Leaves `page` to [`Self::destroy`].
    pub(crate) fn keep(&mut self, page: Private) -> Result {
        Ok(self.pages.push(page, GFP_KERNEL)?)
    }

    fn build(&mut self, cpus: &[u32], plugged: &CpuHotplugRead) -> Result {
        let failed = |e: SeamcallError| e.report("building a TD");
        let info = crate::ready().ok_or(ENODEV)?.sysinfo.as_ptr();
        // SAFETY: The metadata lives for ever; only its version ever changes.
        let (ctrl, conf) = unsafe { (&(*info).td_ctrl, &(*info).td_conf) };
        let tdr = self.tdr();

        for (cpu, _) in cpu::one_cpu_per_package() {
            on_cpu(cpu, plugged, || {
                td::mng_key_config(tdr).map(|_| ()).map_err(failed)
            })?;
        }
        for _ in 0..usize::from(ctrl.tdcs_base_size) / PAGE_SIZE {
            self.keep(Private::new(|page| td::mng_addcx(tdr, page))?)?;
        }
        let params = td_params(conf, cpus.len())?;
        td::mng_init(tdr, frame(&params).start().get()).map_err(failed)?;

        for level in [SeptLevel::Size512G, SeptLevel::Size1G, SeptLevel::Size2M] {
            let at = GpaAndLevel::new(0, level).ok_or(EINVAL)?;
            self.keep(Private::new(|page| td::mem_sept_add(tdr, at, page))?)?;
        }
        let image = Page::alloc_page(GFP_KERNEL | __GFP_ZERO)?;
        self.keep(Private::new(|page| {
            td::mem_page_add(tdr, 0, page, frame(&image))
        })?)?;
        for gpa in (0..PAGE_SIZE as u64).step_by(256) {
            td::mr_extend(tdr, gpa).map_err(failed)?;
        }

        for (index, &cpu) in (0u32..).zip(cpus) {
            let root = Private::new(|page| td::vp_create(tdr, page))?;
            let tdvpr = Tdvpr(root.frame().start());
            self.keep(root)?;
            for _ in 1..usize::from(ctrl.tdvps_base_size) / PAGE_SIZE {
                self.keep(Private::new(|page| td::vp_addcx(tdvpr, page))?)?;
            }
            on_cpu(cpu, plugged, || {
                td::vp_init(tdvpr, 0, index).map(|_| ()).map_err(failed)
            })?;
            self.vcpus.push(TestVcpu { cpu, tdvpr }, GFP_KERNEL)?;
        }
        td::mr_finalize(tdr).map(|_| ()).map_err(failed)
    }

    /// Takes the TD down and frees all it has. No vCPU runs. Task context, sleeps.
    pub(crate) fn destroy(mut self, plugged: &CpuHotplugRead) -> Result {
        let failed = |e: SeamcallError| e.report("taking a TD down");
        let tdr = self.tdr();
        for vcpu in &self.vcpus {
            on_cpu(vcpu.cpu, plugged, || match td::vp_flush(vcpu.tdvpr) {
                Err(e) if !e.status().is(SeamcallStatus::VCPU_NOT_ASSOCIATED) => Err(failed(e)),
                _ => Ok(()),
            })?;
        }
        td::mng_vpflushdone(tdr).map_err(failed)?;
        for (cpu, _) in cpu::one_cpu_per_package() {
            on_cpu(cpu, plugged, || write_back().map_err(failed))?;
        }
        td::mng_key_freeid(tdr).map_err(failed)?;
        while let Some(page) = self.pages.pop() {
            td::phymem_page_reclaim(page.frame()).map_err(failed)?;
            // SAFETY: The module gave the page back, and the caches were written back.
            unsafe { page.free() };
        }
        td::phymem_page_reclaim(tdr.0).map_err(failed)?;
        td::phymem_page_wbinvd_global(tdr.0).map_err(failed)?;
        // SAFETY: As above; the root page was under the module's key, and so was flushed by itself.
        unsafe { self.root.free() };
        // SAFETY: The key was freed in the module.
        unsafe { keyid::tdx_guest_keyid_free(self.keyid.into()) };
        Ok(())
    }
}

/// Writes back what this package's caches hold of keys that are being freed.
fn write_back() -> Result<(), SeamcallError> {
    let mut resume = false;
    loop {
        match td::phymem_cache_wb(resume) {
            Err(e) if e.status().is(SeamcallStatus::INTERRUPTED_RESUMABLE) => resume = true,
            result => return result.map(|_| ()),
        }
    }
}

/// TD_PARAMS for a TD with nothing special, at the start of a page.
fn td_params(conf: &bindings::tdx_sys_info_td_conf, vcpus: usize) -> Result<Page> {
    /// ATTRIBUTES: a page that the guest did not accept gives an exit, not #VE.
    const SEPT_VE_DISABLE: u64 = 1 << 28;
    /// EPTP_CONTROLS: write-back, four levels.
    const EPTP: u64 = 3 << 3 | 6;
    /// CONFIG_FLAGS: RBP is left alone.
    const NO_RBP_MOD: u64 = 1 << 2;
    // SAFETY: Has no requirements.
    let tsc_25mhz = unsafe { bindings::tdx_test_tsc_khz() } / 25_000;
    let page = Page::alloc_page(GFP_KERNEL | __GFP_ZERO)?;
    let words = [
        (0, SEPT_VE_DISABLE | conf.attributes_fixed1),
        (8, conf.xfam_fixed1),
        (16, vcpus as u64),
        (24, EPTP),
        (32, NO_RBP_MOD),
        (40, tsc_25mhz.into()),
    ];
    for (offset, word) in words {
        let bytes = word.to_le_bytes();
        // SAFETY: `bytes` has as many bytes as its length says, and nobody else knows the page.
        unsafe { page.write_raw(bytes.as_ptr(), offset, bytes.len())? };
    }
    Ok(page)
}
