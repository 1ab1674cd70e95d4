// SPDX-License-Identifier: GPL-2.0

//! A TD that runs, for KUnit: its vCPUs and the memory that comes and goes.
//!
//! Each vCPU has a [`Thread`] on its own CPU that enters the guest again and again and gives it the
//! memory it asks for. Who takes memory away meanwhile has a [`Power`] over the vCPUs.
//!
//! What the guest does is not up to the host: any guest will do, one that accepts the memory at
//! [`WINDOW`] and stays inside for a while shows most.
//!
//! Lock order: CPU hotplug, then [`Guest::memory`].

use kernel::alloc::flags::GFP_KERNEL;
use kernel::bindings;
use kernel::error::from_err_ptr;
use kernel::ffi::{
    c_int,
    c_void, //
};
use kernel::page::{
    Page,
    PAGE_SIZE, //
};
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Full,
    Relaxed, //
};
use kernel::sync::{
    new_mutex,
    Arc,
    Mutex, //
};
use kernel::time::delay::fsleep;
use kernel::time::Delta;

use crate::operand::{
    GpaAndLevel,
    SeptLevel, //
};
use crate::range::Pfn;
use crate::status::SeamcallStatus;
use crate::td::{
    self,
    Tdr,
    Tdvpr,
    Vcpus, //
};
use crate::test_td::{
    Private,
    TestTd, //
};

/// Where memory comes and goes.
pub(crate) const WINDOW: u64 = 0x10_0000;
/// How many pages that is.
pub(crate) const PAGES: usize = 8;
const _: () = assert!(WINDOW + (PAGES * PAGE_SIZE) as u64 <= TestTd::END);

/// Memory of the window that the TD has.
pub(crate) type Memory = [Option<Private>; PAGES];

/// What the vCPUs and the test share.
#[pin_data]
pub(crate) struct Guest {
    pub(crate) tdr: Tdr,
    keyid: u16,
    /// vCPUs must not enter the guest.
    held: Atomic<bool>,
    pub(crate) entries: Atomic<i64>,
    pub(crate) faults: Atomic<i64>,
    pub(crate) busy: Atomic<i64>,
    pub(crate) kicks: Atomic<i64>,
    pub(crate) holds: Atomic<i64>,
    /// A vCPU came back in a way that the test cannot deal with.
    broken: Atomic<bool>,
    #[pin]
    pub(crate) memory: Mutex<Memory>,
}

/// The position of page `index` of the window.
pub(crate) fn position(index: usize) -> Result<GpaAndLevel> {
    let gpa = WINDOW + (index * PAGE_SIZE) as u64;
    GpaAndLevel::new(gpa, SeptLevel::Size4K).ok_or(EINVAL)
}

/// The page of the window that `gpa` lies in.
fn slot(memory: &mut Memory, gpa: u64) -> Option<(usize, &mut Option<Private>)> {
    let index = usize::try_from(gpa.checked_sub(WINDOW)?).ok()? / PAGE_SIZE;
    Some((index, memory.get_mut(index)?))
}

impl Guest {
    pub(crate) fn new(td: &TestTd) -> Result<Arc<Self>> {
        let (tdr, keyid) = (td.tdr(), td.keyid);
        Arc::pin_init(
            pin_init!(Guest {
                tdr,
                keyid,
                held: Atomic::new(false),
                entries: Atomic::new(0),
                faults: Atomic::new(0),
                busy: Atomic::new(0),
                kicks: Atomic::new(0),
                holds: Atomic::new(0),
                broken: Atomic::new(false),
                memory <- new_mutex!([const { None }; PAGES]),
            }),
            GFP_KERNEL,
        )
    }

    /// Gives the TD a page at `gpa`, unless it has one there. True if it has one now.
    fn populate(&self, memory: &mut Memory, gpa: u64) -> Result<bool> {
        let Some((index, slot)) = slot(memory, gpa) else {
            return Ok(false);
        };
        if slot.is_none() {
            let (page, at) = (Page::alloc_page(GFP_KERNEL)?, position(index)?);
            match Private::give(page, |page| td::mem_page_aug(self.tdr, at, page)) {
                Ok(page) => *slot = Some(page),
                // A vCPU is in the way: it will come again.
                Err(e) if e.status().is(SeamcallStatus::OPERAND_BUSY) => {
                    self.busy.fetch_add(1, Relaxed);
                }
                Err(e) => return Err(e.report("adding memory to a TD")),
            }
        }
        Ok(slot.is_some())
    }

    /// Gives the TD all pages of the window.
    pub(crate) fn populate_all(&self) -> Result {
        for index in 0..PAGES {
            let gpa = position(index)?.gpa();
            let populated = || self.populate(&mut self.memory.lock(), gpa);
            self.wait_until(populated)?;
        }
        Ok(())
    }

    /// Frees the page that was removed from `gpa` and lay at `frame`.
    pub(crate) fn take_back(&self, memory: &mut Memory, gpa: u64, frame: Pfn) -> Result {
        let (_, slot) = slot(memory, gpa).ok_or(EINVAL)?;
        let page = slot.take().ok_or(EINVAL)?;
        if page.frame() != frame {
            pr_err!("another page was removed from GPA {gpa:#x} than added\n");
            return Err(EIO);
        }
        td::phymem_page_wbinvd(frame, self.keyid).map_err(|e| e.report("flushing a page"))?;
        // SAFETY: The TD does not have the page any more, and its lines were flushed.
        unsafe { page.free() };
        Ok(())
    }

    /// Waits for `done`; not for ever.
    pub(crate) fn wait_until(&self, mut done: impl FnMut() -> Result<bool>) -> Result {
        for _ in 0..20_000 {
            if self.broken.load(Relaxed) {
                return Err(EIO);
            }
            if done()? {
                return Ok(());
            }
            fsleep(Delta::from_micros(500));
        }
        Err(ETIMEDOUT)
    }

    /// Makes each vCPU leave the guest: a thread answers the remote call only outside of it.
    pub(crate) fn kick(&self) {
        extern "C" fn nothing(_: *mut c_void) {}
        // SAFETY: Called in task context, with interrupts on.
        unsafe { bindings::tdx_glue_on_each_cpu(Some(nothing)) };
        self.kicks.fetch_add(1, Relaxed);
    }

    pub(crate) fn hold(&self) {
        self.held.xchg(true, Full);
        self.holds.fetch_add(1, Relaxed);
        self.kick();
    }

    pub(crate) fn release(&self) {
        self.held.xchg(false, Full);
    }
}

/// Power over the vCPUs of a [`Guest`].
pub(crate) struct Power(pub(crate) Arc<Guest>);

impl Vcpus for Power {
    fn kick(&mut self) {
        self.0.kick();
    }

    fn hold(&mut self) {
        self.0.hold();
    }

    fn release(&mut self) {
        self.0.release();
    }
}

/// What the thread of a vCPU works with.
struct Vcpu {
    guest: Arc<Guest>,
    vp: bindings::tdx_vp,
    args: bindings::tdx_module_args,
}

impl Vcpu {
    /// Enters the guest once and does what it came back for.
    fn run_once(&mut self) -> Result {
        /// Exits for events of the host, which C has handled: NMI and external interrupt.
        const EVENT: [u64; 2] = [0, 1];
        const EPT_VIOLATION: u64 = 48;
        const TDCALL: u64 = 77;
        /// Type in the extended qualification: the page is there, but not accepted.
        const PENDING: u64 = 6;

        let guest = &self.guest;
        let mut exit = 0;
        // SAFETY: This thread is on the CPU that the vCPU belongs to; the vCPU exists for as long
        // as the thread.
        let entered = unsafe {
            bindings::tdx_test_vp_enter(
                &mut self.vp,
                &mut self.args,
                guest.held.as_ptr(),
                &mut exit,
            )
        };
        if !entered {
            return Ok(());
        }
        guest.entries.fetch_add(1, Relaxed);
        match exit {
            EPT_VIOLATION if self.args.rdx & 0xf != PENDING => {
                guest.faults.fetch_add(1, Relaxed);
                guest.populate(&mut guest.memory.lock(), self.args.r8)?;
            }
            // Whatever the guest asked for was done.
            TDCALL => self.args.r10 = 0,
            exit if EVENT.contains(&exit) => {}
            exit if SeamcallStatus::from_raw(exit).is(SeamcallStatus::OPERAND_BUSY) => {
                guest.busy.fetch_add(1, Relaxed);
            }
            exit => {
                pr_err!(
                    "a vCPU came back with {exit:#x}, RDX {:#x}\n",
                    self.args.rdx
                );
                return Err(EIO);
            }
        }
        Ok(())
    }

    extern "C" fn thread(vcpu: *mut c_void) -> c_int {
        // SAFETY: [`Thread`] has the vCPU until this function has returned, and does not touch it.
        let vcpu = unsafe { &mut *vcpu.cast::<Vcpu>() };
        // SAFETY: Runs as a kernel thread.
        while !unsafe { bindings::kthread_should_stop() } {
            if vcpu.run_once().is_err() {
                vcpu.guest.broken.store(true, Relaxed);
                fsleep(Delta::from_millis(1));
            }
            // SAFETY: Called in task context, with preemption enabled.
            unsafe { bindings::tdx_glue_cond_resched() };
        }
        0
    }
}

/// A vCPU that runs, until it is dropped.
pub(crate) struct Thread {
    task: *mut bindings::task_struct,
    /// Used by the thread.
    _vcpu: KBox<Vcpu>,
}

impl Thread {
    pub(crate) fn start(guest: Arc<Guest>, tdvpr: Tdvpr, cpu: u32) -> Result<Self> {
        let vp = bindings::tdx_vp {
            tdvpr_pa: tdvpr.0.get(),
            ..Zeroable::zeroed()
        };
        let args = Zeroable::zeroed();
        let mut vcpu = KBox::new(Vcpu { guest, vp, args }, GFP_KERNEL)?;
        let data = (&raw mut *vcpu).cast();
        // SAFETY: `vcpu` lives until the thread was stopped.
        let task =
            from_err_ptr(unsafe { bindings::tdx_test_start(Some(Vcpu::thread), data, cpu) })?;
        Ok(Thread { task, _vcpu: vcpu })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // SAFETY: The thread ends only here.
        unsafe { bindings::kthread_stop(self.task) };
    }
}
