// SPDX-License-Identifier: GPL-2.0

//! The way out: what the next kernel finds in memory, after kexec and in a crash.
//!
//! First TDX is shut down ([`disable`]): no call starts any more, and TDH.SYS.DISABLE, where the
//! module has it, makes the module give up its memory. Where it does not, and the processor has the
//! partial-write erratum, the memory reset makes all private memory normal:
//!
//! 1. Every CPU flushes its caches. From here on none of them writes private memory.
//! 2. The users of TDs are called ([`crate::chain`]), and convert the pages of their TDs.
//! 3. If a TD was left over, the module is asked, page by page, about the memory where its pages
//!    can be ([`crate::books`]), and what is private is converted.
//! 4. Every CPU flushes again what those questions left in its caches: the module's PAMT entries.
//! 5. The PAMTs are converted.
//!
//! Of a module that has TDH.SYS.DISABLE only those pages are left that it had given back before, and
//! that their owner has not converted yet: a flush and their conversion are the whole memory reset,
//! with a call of the users if a page was just being given back, which only they can name.
//!
//! With kexec all CPUs take part, in lockstep, while everything else stands still: see [`STEPS`].
//! In a crash one CPU makes the same steps alone; the others flushed when they were stopped, and
//! then wait ([`tdx_help_memory_reset`]) to call users in its place, so that it is never in code
//! that may hang.
//! So nobody needs a lock, nobody can change what is being converted, and no user of TDs meets a
//! call that is refused while it is about to free a page.
//!
//! Neighbours: [`crate::cpu`] calls this on the way down, the crash path calls [`tdx_sys_disable`],
//! [`tdx_flush_stopped_cpu`], [`tdx_help_memory_reset`] and [`tdx_reset_memory`];
//! [`crate::reset`] converts.
//!
//! C it replaces: `tdx_sys_disable()` in `arch/x86/virt/vmx/tdx/tdx.c`.

use core::marker::PhantomData;
use kernel::bindings;
use kernel::error::from_result;
use kernel::ffi::c_int;
use kernel::prelude::*;
use kernel::sync::atomic::{
    Acquire,
    Atomic,
    Full,
    Relaxed, //
};
use kernel::types::NotThreadSafe;

use crate::abi::PageType;
use crate::books;
use crate::bringup::Stopwatch;
use crate::chain::{
    self,
    Users, //
};
use crate::cpu;
use crate::fields::TdxFeatures0;
use crate::guards::{
    CpuHotplugRead,
    PreemptDisabled, //
};
use crate::leaf::Leaf;
use crate::lockstep::{
    self,
    AllStopped,
    Step,
    Who, //
};
use crate::pamt_alloc;
use crate::range::{
    PageSize,
    PhysAddr,
    PhysRange, //
};
use crate::reset::{
    self,
    CachesFlushed, //
};
use crate::seamcall::{
    self,
    Args,
    Cause,
    SeamcallError, //
};
use crate::status::SeamcallStatus;

/// How often TDH.SYS.DISABLE is made without an end before giving up.
///
/// Each interrupted call makes some progress and each busy one locks out new competitors, so a
/// working module needs far fewer. A broken one must not hang a reboot.
const DISABLE_ATTEMPTS: u32 = 10_000_000;

/// How often the module is asked about one page while it is too busy to answer.
const QUESTION_ATTEMPTS: u32 = 1000;

/// How many regions a CPU takes at once when it looks for private pages.
const REGIONS_AT_ONCE: usize = 64;

/// How much of the PAMTs a CPU takes at once.
const PAMT_SLICE: PageSize = PageSize::Size2M;

/// Nanoseconds between two lines of progress in the log.
const PROGRESS_INTERVAL: u64 = 1_000_000_000;

/// Evidence that nothing runs in the kernel but a memory reset.
///
/// Interrupts are off on this CPU; the other CPUs convert memory as well, wait, or are stopped.
///
/// # Invariants
///
/// It is so while a value exists.
pub struct NothingElseRuns<'a>(PhantomData<&'a ()>, NotThreadSafe);

impl NothingElseRuns<'_> {
    /// Takes the caller's word for it.
    ///
    /// # Safety
    ///
    /// It is as the type says.
    pub(crate) unsafe fn promised() -> Self {
        // INVARIANT: Promised by the caller.
        Self(PhantomData, NotThreadSafe)
    }

    /// In a step of a memory reset, every CPU is in one.
    fn among<'a>(_stopped: &'a AllStopped<'_>) -> NothingElseRuns<'a> {
        // INVARIANT: Every CPU is in the lockstep of the memory reset, interrupts off.
        NothingElseRuns(PhantomData, NotThreadSafe)
    }
}

/// Set once it was tried to shut the module down.
static TRIED: Atomic<i32> = Atomic::new(0);

/// Set once TDH.SYS.DISABLE has succeeded: the module has made all its memory normal.
static DISABLED: Atomic<i32> = Atomic::new(0);

/// Set once a memory reset has begun.
static RESET_BEGUN: Atomic<i32> = Atomic::new(0);

/// How many CPUs that a crash stopped have flushed their caches.
static STOPPED_FLUSHED: Atomic<u32> = Atomic::new(0);

/// Whether the module has made normal all memory that it had.
///
/// Pages that it had given back before, and that nobody had converted yet, are private still.
fn is_disabled() -> bool {
    DISABLED.load(Relaxed) != 0
}

/// Whether `status` asks for the same TDH.SYS.DISABLE again.
fn wants_again(status: SeamcallStatus) -> bool {
    status.is(SeamcallStatus::INTERRUPTED_RESUMABLE) || status.is(SeamcallStatus::SYS_BUSY)
}

/// Shuts TDX down for good: no SEAMCALL starts from here on, and the module gives up its memory.
///
/// A module without TDH.SYS.DISABLE keeps its memory, which the log says. Does nothing without TDX.
/// Any context, a crash included: no lock, no allocation, no endless loop.
pub(crate) fn disable() {
    let shut_down = seamcall::shut_down();
    if TRIED.xchg(1, Full) != 0 || !crate::platform_has_tdx() {
        return;
    }
    let known_to_lack = |features: TdxFeatures0| !features.contains(TdxFeatures0::SYS_DISABLE);
    if crate::module_features().is_some_and(known_to_lack) {
        pr_info!(
            "this TDX module has no TDH.SYS.DISABLE: TDX stays unavailable to the next kernel until the machine is reset\n"
        );
        return;
    }
    let once = || seamcall::call_after_shutdown(Leaf::TDH_SYS_DISABLE, Args::default(), &shut_down);
    let mut result = once();
    for _ in 1..DISABLE_ATTEMPTS {
        match &result {
            Err(e) if wants_again(e.status()) => result = once(),
            _ => break,
        }
    }
    match result {
        Ok(_) => DISABLED.store(1, Relaxed),
        // Without a module, or outside VMX after a failed bring-up, there is nothing to disable.
        Err(e) if matches!(e.cause, Cause::NotReached(_)) => {}
        Err(e) => {
            e.report("shutting TDX down");
        }
    }
}

/// Shuts TDX down: for the crash path, once the other CPUs are stopped.
///
/// # Safety
///
/// None beyond being called by C.
#[export]
pub unsafe extern "C" fn tdx_sys_disable() {
    disable();
}

/// Flushes the caches of this CPU, which a crash stops; see `asm/tdx.h`. NMI.
///
/// # Safety
///
/// None beyond being called by C, on a CPU that makes no SEAMCALL afterwards.
#[export]
pub unsafe extern "C" fn tdx_flush_stopped_cpu() {
    seamcall::flush_this_cpu(&PreemptDisabled::new());
    STOPPED_FLUSHED.fetch_add(1u32, Full);
}

/// Calls users of the memory reset on this CPU, which a crash has stopped, until the reset is over;
/// see `asm/tdx.h`. NMI.
///
/// # Safety
///
/// None beyond being called by C, on a CPU that has nothing else to do.
#[export]
pub unsafe extern "C" fn tdx_help_memory_reset() {
    // CPUs are stopped for other reasons as well, after which there is no memory reset.
    if STOPPED_FLUSHED.load(Relaxed) != 0 {
        chain::help();
    }
}

/// What the CPUs that reset memory share.
struct Reset {
    /// Whether there is anything to convert.
    needed: Atomic<u32>,
    /// Whether the users left something to look for.
    search: Atomic<u32>,
    /// The region to look at next.
    next_region: Atomic<usize>,
    /// The slice of PAMT to convert next.
    next_slice: Atomic<usize>,
    /// Bytes of memory converted that no user converted, and of PAMT.
    found: Atomic<u64>,
    pamt: Atomic<u64>,
    /// How many pages the module was asked about.
    questions: Atomic<u64>,
    /// How many pages may be private that nobody could tell.
    unknown: Atomic<u64>,
    /// When to say next how far it is, in the time of [`Stopwatch`].
    next_progress: Atomic<u64>,
}

/// The way to the next kernel, with all CPUs.
const STEPS: &[Step<Reset>] = &[
    Step {
        who: Who::BootCpu,
        work: |reset, stopped| {
            disable();
            reset.begin(&NothingElseRuns::among(stopped))
        },
    },
    Step {
        who: Who::All,
        work: |reset, _| reset.flush(),
    },
    Step {
        who: Who::BootCpu,
        work: |reset, stopped| {
            let alone = NothingElseRuns::among(stopped);
            reset.call_users(|| chain::call(&alone))
        },
    },
    Step {
        who: Who::All,
        work: |reset, _| reset.search(),
    },
    Step {
        who: Who::All,
        work: |reset, _| reset.flush(),
    },
    Step {
        who: Who::All,
        work: |reset, stopped| reset.convert_pamts(&NothingElseRuns::among(stopped)),
    },
];

impl Reset {
    fn new() -> Self {
        Self {
            needed: Atomic::new(0),
            search: Atomic::new(0),
            next_region: Atomic::new(0),
            next_slice: Atomic::new(0),
            found: Atomic::new(0),
            pamt: Atomic::new(0),
            questions: Atomic::new(0),
            unknown: Atomic::new(0),
            next_progress: Atomic::new(Stopwatch::now() + PROGRESS_INTERVAL),
        }
    }

    /// Evidence for the conversions, which all come after a flush.
    fn flushed(&self) -> CachesFlushed {
        // SAFETY: Every CPU has flushed in the step before the conversions, or when a crash stopped
        // it, and calls since then ask about pages, which writes PAMT entries only. Those are flushed
        // before the PAMTs are converted. A CPU that a crash could not stop may not have flushed: not
        // to convert would be worse, and `reset_alone` reports it as an error.
        unsafe { CachesFlushed::promised() }
    }

    /// Finds out whether there is anything to convert. One CPU, after [`disable`].
    fn begin(&self, alone: &NothingElseRuns<'_>) -> Result {
        if !reset::has_erratum() {
            return Ok(());
        }
        let given_back =
            books::strays().next().is_some() || books::lost_strays() || books::pages_leaving() != 0;
        let owned =
            !is_disabled() && (books::tds() != 0 || pamt_alloc::handed(alone).next().is_some());
        if !given_back && !owned {
            return Ok(());
        }
        if RESET_BEGUN.xchg(1, Full) != 0 {
            pr_err!("a memory reset has begun before, and did not end\n");
            return Err(EBUSY);
        }
        self.needed.store(1, Relaxed);
        Ok(())
    }

    fn is_needed(&self) -> bool {
        self.needed.load(Relaxed) != 0
    }

    /// Flushes the caches of this CPU, if SEAMCALLs have left dirty lines there.
    fn flush(&self) -> Result {
        seamcall::flush_this_cpu(&PreemptDisabled::new());
        Ok(())
    }

    /// Lets the users convert their TDs by `call`, and converts what these gave back last. One CPU.
    fn call_users(&self, call: impl FnOnce() -> Users) -> Result {
        if !self.is_needed() {
            return Ok(());
        }
        for page in books::strays() {
            self.convert_found(page);
        }
        if books::lost_strays() {
            pr_warn!("more pages that TDs gave back were not converted than can be remembered\n");
            self.unknown.fetch_add(1u64, Relaxed);
        }
        // Of all else a module that is disabled has made normal what it had.
        let leaving = books::pages_leaving();
        if leaving != 0 {
            pr_info!("{leaving} pages were just leaving TDs: their users can name them\n");
        } else if is_disabled() {
            return Ok(());
        }
        let tds = books::tds();
        let users = call();
        if users.failed != 0 {
            pr_warn!(
                "{} of {} users of TDs could not make their memory normal\n",
                users.failed,
                users.called
            );
        }
        if users.tds != tds {
            pr_info!(
                "{} TDs exist, and {} users converted the memory of {}\n",
                tds,
                users.called,
                users.tds
            );
        }
        if users.failed == 0 && users.tds == tds {
            return Ok(());
        }
        self.unknown.fetch_add(u64::from(leaving), Relaxed);
        if !is_disabled() {
            pr_info!("asking the TDX module which pages are private\n");
            self.search.store(1, Relaxed);
        }
        Ok(())
    }

    /// Converts what the CPUs handed to the module last. A crash can stop a user of TDs after such
    /// a call and before it has noted the page; kexec cannot, with preemption off around both.
    fn convert_handed_last(&self) {
        if is_disabled() {
            return;
        }
        for addr in cpu::possible_cpus().filter_map(books::handed_last) {
            let size = self.ask(addr);
            let page =
                size.and_then(|size| PhysRange::from_size(addr.align_down(size), size.bytes()));
            if let Some(page) = page {
                self.convert_found(page);
            }
        }
    }

    fn convert_found(&self, memory: PhysRange) {
        reset::reset(memory, &self.flushed());
        self.found.fetch_add(memory.size(), Relaxed);
    }

    /// Looks for private pages where they can be, and converts them.
    fn search(&self) -> Result {
        let regions = books::regions();
        while self.search.load(Relaxed) != 0 {
            let first = self.next_region.fetch_add(REGIONS_AT_ONCE, Relaxed);
            if first >= regions {
                break;
            }
            for region in (first..first + REGIONS_AT_ONCE).filter_map(books::noted) {
                self.search_region(region);
            }
            self.progress(
                "looked for private pages in",
                first,
                regions,
                "regions of 2 MB",
            );
        }
        Ok(())
    }

    /// Asks about each page of `region`, which is 2 MB, and converts those that are private.
    fn search_region(&self, region: PhysRange) {
        let mut at = region.start();
        while at < region.end() {
            let private = self.ask(at);
            let bytes = private.unwrap_or(PageSize::Size4K).bytes();
            let page = PhysRange::from_size(at, bytes);
            let Some(page) = page.and_then(|page| page.intersection(region)) else {
                return;
            };
            if private.is_some() {
                self.convert_found(page);
            }
            at = page.end();
        }
    }

    /// Asks the module whether a TD has the page at `addr`, and of what size it is.
    ///
    /// PAMTs do not count: they are known.
    fn ask(&self, addr: PhysAddr) -> Option<PageSize> {
        let args = Args {
            rcx: addr.get(),
            ..Args::default()
        };
        let leaf = Leaf::TDH_PHYMEM_PAGE_RDMD;
        let shut_down = seamcall::shut_down();
        let once = || seamcall::call_after_shutdown(leaf, args, &shut_down);
        let mut answer = once();
        for _ in 1..QUESTION_ATTEMPTS {
            match &answer {
                Err(e) if e.status().is(SeamcallStatus::OPERAND_BUSY) => answer = once(),
                _ => break,
            }
        }
        self.questions.fetch_add(1u64, Relaxed);
        match answer {
            Ok(reply) => match PageType(reply.out.rcx) {
                PageType::NDA | PageType::RSVD => None,
                _ => Some(match reply.out.r8 {
                    0 => PageSize::Size4K,
                    1 => PageSize::Size2M,
                    _ => PageSize::Size1G,
                }),
            },
            // Memory outside every TDMR: no TD can have it.
            Err(e) if e.status().is(SeamcallStatus::OPERAND_ADDR_RANGE_ERROR) => None,
            Err(e) => {
                self.did_not_answer(&e, addr);
                None
            }
        }
    }

    /// Notes that the module did not say what the page at `addr` is. The log says the first time.
    fn did_not_answer(&self, error: &SeamcallError, addr: PhysAddr) {
        if self.unknown.fetch_add(1u64, Relaxed) == 0 {
            error.report(fmt!("asking about the page at {:#x}", addr.get()));
        }
        if matches!(error.cause, Cause::NotReached(_)) {
            // It will not be there for the next page either.
            self.search.store(0, Relaxed);
        }
    }

    /// Converts the PAMTs, slice by slice.
    fn convert_pamts(&self, alone: &NothingElseRuns<'_>) -> Result {
        if !self.is_needed() || is_disabled() {
            return Ok(());
        }
        let pamts = pamt_alloc::handed(alone);
        let slices_of = |chunk: &PhysRange| chunk.size().div_ceil(PAMT_SLICE.bytes()) as usize;
        let total: usize = pamts.clone().map(|chunk| slices_of(&chunk)).sum();
        loop {
            let taken = self.next_slice.fetch_add(1usize, Relaxed);
            let mut index = taken;
            let mut chunks = pamts.clone();
            let chunk = chunks.find(|chunk| {
                let here = index < slices_of(chunk);
                if !here {
                    index -= slices_of(chunk);
                }
                here
            });
            let Some(chunk) = chunk else {
                return Ok(());
            };
            let start = chunk.start().checked_add(index as u64 * PAMT_SLICE.bytes());
            let slice = start.and_then(|start| PhysRange::from_size(start, PAMT_SLICE.bytes()));
            if let Some(slice) = slice.and_then(|slice| slice.intersection(chunk)) {
                reset::reset(slice, &self.flushed());
                self.pamt.fetch_add(slice.size(), Relaxed);
            }
            self.progress("converted", taken + 1, total, "slices of 2 MB of PAMT");
        }
    }

    /// Says now and then how far it is, and that this CPU is alive.
    fn progress(&self, what: &str, done: usize, of: usize, unit: &str) {
        // SAFETY: Has no requirements.
        unsafe { bindings::tdx_glue_relax_stopped() };
        let now = Stopwatch::now();
        let next = self.next_progress.load(Relaxed);
        let due = now > next;
        if due
            && self
                .next_progress
                .cmpxchg(next, now + PROGRESS_INTERVAL, Full)
                .is_ok()
        {
            pr_info!("memory reset: {what} {done} of {of} {unit}\n");
        }
    }

    /// Says in the log what was done by `cpus` CPUs, and whether all of it was.
    fn report(&self, cpus: u32, watch: &mut Stopwatch) -> Result {
        if !self.is_needed() {
            return Ok(());
        }
        let (found, pamt) = (self.found.load(Relaxed), self.pamt.load(Relaxed));
        pr_info!(
            "memory reset in {} on {cpus} CPUs: {} KB of PAMT, {} KB found beside what {} TDs were known to have, {} questions to the TDX module\n",
            watch.lap(),
            pamt >> 10,
            found >> 10,
            books::tds(),
            self.questions.load(Relaxed)
        );
        if self.unknown.load(Relaxed) != 0 {
            pr_err!(
                "pages may be left private ({} that nobody could name or answer for): the next kernel may die of a machine check ({})\n",
                self.unknown.load(Relaxed),
                EIO.to_errno()
            );
            return Err(EIO);
        }
        Ok(())
    }
}

/// Shuts TDX down and resets memory with all CPUs. Task context, sleeps.
fn reset_with_all_cpus() -> Result {
    let mut watch = Stopwatch::start();
    let reset = Reset::new();
    lockstep::run(&reset, STEPS, &CpuHotplugRead::new()).map_err(|failed| failed.error)?;
    reset.report(cpu::online_cpus().count() as u32, &mut watch)
}

/// The memory reset in a crash: the same steps, on this CPU.
fn reset_alone(alone: &NothingElseRuns<'_>) -> Result {
    let mut watch = Stopwatch::start();
    let reset = Reset::new();
    reset.begin(alone)?;
    // This one flushes anyway before it starts the next kernel.
    if !reset.is_needed() {
        return Ok(());
    }
    // SAFETY: Has no requirements.
    let others = unsafe { bindings::tdx_glue_nr_online_cpus() }.saturating_sub(1);
    let stopped = STOPPED_FLUSHED.load(Acquire);
    let silent = others.saturating_sub(stopped);
    reset.flush()?;
    reset.call_users(|| chain::call_in_crash(alone, stopped))?;
    reset.convert_handed_last();
    reset.search()?;
    reset.flush()?;
    reset.convert_pamts(alone)?;
    reset.report(1, &mut watch)?;
    if silent != 0 {
        pr_err!(
            "{silent} CPUs did not stop and flush their caches: what they write back later may make memory private again ({})\n",
            ETIMEDOUT.to_errno()
        );
        return Err(ETIMEDOUT);
    }
    Ok(())
}

/// Makes all private memory normal before the next kernel starts; see `asm/tdx.h`.
///
/// # Safety
///
/// If `crash`: no other CPU runs, and interrupts are off on this one. Otherwise task context, with
/// all CPUs alive.
#[export]
pub unsafe extern "C" fn tdx_reset_memory(crash: bool) -> c_int {
    from_result(|| {
        if crash {
            // SAFETY: Promised by the caller.
            let result = reset_alone(&unsafe { NothingElseRuns::promised() });
            chain::dismiss();
            result?;
        } else {
            reset_with_all_cpus()?;
        }
        Ok(0)
    })
}

/// The way out of a kernel that goes down in order: reboot, power-off or kexec. Task context,
/// sleeps; all CPUs are alive and none comes or goes.
pub(crate) fn leave() {
    // SAFETY: Has no requirements.
    if unsafe { bindings::tdx_glue_kexec_in_progress() } {
        // SAFETY: Task context, all CPUs alive. What went wrong, if anything, is in the log; it is
        // too late to stay.
        unsafe { tdx_reset_memory(false) };
    }
    // A RESET makes memory normal by itself.
    disable();
}
