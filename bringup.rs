// SPDX-License-Identifier: GPL-2.0

//! Bring-up of the TDX module, from "every CPU can make SEAMCALLs" to "TDs can be created".
//!
//! [`run`] is the whole order in one place: read what the module is and can do, list memory, plan
//! TDMRs, allocate PAMTs, hand all of it over (TDH.SYS.CONFIG), make the global key on every
//! package (TDH.SYS.KEY.CONFIG), initialise the TDMRs (TDH.SYS.TDMR.INIT). A step that fails says
//! why in the log and returns an errno; what was done before undoes itself by being dropped.
//!
//! Neighbours: the pure files plan and decode; [`crate::seamcall`] makes the calls.
//!
//! C it replaces: `init_tdx_module()` in `arch/x86/virt/vmx/tdx/tdx.c`.

use core::fmt;
use kernel::bindings;
use kernel::error::to_result;
use kernel::ffi::{
    c_int,
    c_void, //
};
use kernel::prelude::*;
use kernel::sync::atomic::Atomic;

use crate::cpu;
use crate::guards::{
    MemHotplugRead,
    PreemptDisabled, //
};
use crate::holes::Memory;
use crate::leaf::Leaf;
use crate::log::fail;
use crate::memlist::Region;
use crate::memory::{
    self,
    TdxMemory, //
};
use crate::metadata::TdmrCaps;
use crate::pamt::{
    self,
    PamtError, //
};
use crate::pamt_alloc::{
    HandedPamts,
    PageAllocator,
    TdxPlan, //
};
use crate::partition::KeyId;
use crate::place::{
    self,
    PlaceError,
    Plan,
    Task, //
};
use crate::range::PhysRange;
use crate::reset;
use crate::seamcall::{
    self,
    Args,
    SeamcallError, //
};
use crate::status::SeamcallStatus;
use crate::sysconfig::{
    configure,
    errno_of_plan,
    TdmrInfos, //
};
use crate::sysinfo::{
    self,
    SharedSysInfo, //
};
use crate::tdmr::{
    self,
    Goal,
    Scratch, //
};

/// How many calls of TDH.SYS.TDMR.INIT may pass without a visible step forward.
///
/// The module reports progress per GB and does a few MB in a call, so a few hundred are usual.
const STALLED_CALLS: u32 = 1 << 20;

/// All that bring-up leaves behind: what KVM asks for, and what the module works with.
pub(crate) struct Ready {
    /// The module's metadata, as C callers know it.
    pub(crate) sysinfo: SharedSysInfo,
    /// What the module can do: [`crate::fields::TdxFeatures0`], raw. An update may change it.
    pub(crate) features: Atomic<u64>,
    /// The memory that TDs can use.
    pub(crate) memory: TdxMemory,
    /// The module's own tables.
    pub(crate) pamts: HandedPamts,
}

/// A stopwatch for the phases of bring-up.
pub(crate) struct Stopwatch(u64);

impl Stopwatch {
    /// Starts it. Any context.
    pub(crate) fn start() -> Self {
        // SAFETY: Has no requirements.
        Self(unsafe { bindings::tdx_glue_clock_ns() })
    }

    /// Time since the start, or since the last call.
    pub(crate) fn lap(&mut self) -> Millis {
        let now = Self::start().0;
        let spent = now.saturating_sub(self.0);
        self.0 = now;
        Millis(spent)
    }
}

/// Nanoseconds, shown as milliseconds with three decimals.
pub(crate) struct Millis(u64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0 / 1000;
        write!(f, "{}.{:03} ms", micros / 1000, micros % 1000)
    }
}

/// Brings the TDX module up. Every online CPU must be ready for SEAMCALLs. Task context, sleeps;
/// takes about a second for each 512 GB of memory.
///
/// # Errors
///
/// The errno of the step that failed, after the log said what happened.
pub(crate) fn run(global_keyid: KeyId, plugged: &MemHotplugRead) -> Result<Ready> {
    let mut watch = Stopwatch::start();

    let info = sysinfo::read()?;
    let cmrs = sysinfo::read_cmrs();
    info.features.check().map_err(|e| fail(e, EINVAL))?;
    pr_info!("metadata read in {}\n", watch.lap());

    let memory = memory::build_list(plugged).map_err(|e| fail(e, ENOMEM))?;
    let ground =
        Memory::new(memory.regions(), &cmrs).map_err(|e| fail(tdmr::PlanError::from(e), EINVAL))?;
    describe_memory(&ground, &cmrs);

    let plan = make_plan(ground, &info.tdmr, Goal::PLAIN)?;
    warn_if_few_left(plan.tdmrs.len(), info.tdmr.max_tdmrs);
    let infos = TdmrInfos::new(&ground, &plan, &info.tdmr)?;
    let Plan {
        tdmrs,
        pamts,
        chunks,
    } = plan;
    pr_info!(
        "TDMRs planned: {}, PAMTs allocated, in {}\n",
        tdmrs.len(),
        watch.lap()
    );

    configure(&infos, global_keyid)?;
    let handed = HandedPamts::new(chunks);
    configure_global_key()?;
    pr_info!(
        "TDMRs and global KeyID {global_keyid} configured in {}\n",
        watch.lap()
    );

    for tdmr in &tdmrs {
        init_tdmr(tdmr.range())?;
    }
    pr_info!("TDMRs initialized in {}\n", watch.lap());
    pr_info!("{} KB allocated for PAMT\n", pamt::total_kb(&pamts));

    Ok(Ready {
        sysinfo: SharedSysInfo::new(sysinfo::to_c(&info)?),
        features: Atomic::new(info.features.tdx_features0.raw()),
        memory,
        pamts: handed,
    })
}

/// Logs CMRs and TDX memory, and names what lies outside every CMR.
fn describe_memory(memory: &Memory<'_>, cmrs: &[Region]) {
    for cmr in cmrs {
        pr_info!("CMR {}\n", cmr.bytes());
    }
    for region in memory.regions() {
        pr_info!("TDX memory {}, node {}\n", region.bytes(), region.node());
    }
    for (part, node) in memory.outside_cmrs() {
        pr_warn!(
            "memory {part}, node {node}, is not convertible (outside every CMR; CXL or persistent memory?): the TDX module will refuse the configuration; boot without it to use TDX\n"
        );
    }
}

fn warn_if_few_left(used: usize, max: u16) {
    if usize::from(max).saturating_sub(used) < tdmr::FEW_TDMRS_LEFT {
        pr_warn!("{used} of {max} TDMRs are used: a little more memory and TDX will not start\n");
    }
}

/// Plans TDMRs, allocates their PAMTs, and says where they are.
fn make_plan(memory: Memory<'_>, caps: &TdmrCaps, goal: Goal) -> Result<TdxPlan> {
    let mut task = Task {
        memory,
        limits: caps.limits(),
        entries: caps.pamt_entries(),
        goal,
        allocator: &mut PageAllocator,
        effort: place::EFFORT,
    };
    let mut scratch = Scratch {
        stops: KVec::new(),
        costs: KVec::new(),
    };
    let mut plan = Plan {
        tdmrs: KVec::new(),
        pamts: KVec::new(),
        chunks: KVec::new(),
    };
    place::place(&mut task, &mut scratch, &mut plan).map_err(|e| fail(e, errno_of_place(&e)))?;
    for (tdmr, pamt) in plan.tdmrs.iter().zip(&plan.pamts) {
        pr_info!(
            "TDMR {}, node {}: PAMT {pamt}, {} KB, {} of {} reserved areas needed\n",
            tdmr.range(),
            tdmr.node(),
            pamt.total() >> 10,
            memory.forced(tdmr.range(), &plan.chunks, None),
            caps.max_reserved_per_tdmr
        );
    }
    Ok(plan)
}

/// `ENOMEM` when PAMT memory is short.
fn errno_of_place(error: &PlaceError) -> Error {
    match error {
        PlaceError::Plan(error) => errno_of_plan(error),
        PlaceError::Pamt(PamtError::ZeroEntrySize { .. }) => EINVAL,
        PlaceError::Pamt(_) => ENOMEM,
    }
}

/// One package's share of making the global key; runs on a CPU of that package.
struct KeyConfig {
    package: u32,
    result: Result<(), Option<SeamcallError>>,
}

/// Makes the global key on the package of this CPU. Task context on a pinned worker.
///
/// # Safety
///
/// `arg` points to a [`KeyConfig`] that nobody else uses during the call.
unsafe extern "C" fn configure_key_here(arg: *mut c_void) -> c_int {
    // SAFETY: Promised by the caller.
    let job = unsafe { &mut *arg.cast::<KeyConfig>() };
    // The worker leaves its CPU only when that goes offline.
    let here = cpu::this_package(&PreemptDisabled::new());
    job.result = if here == job.package {
        // KEY_CONFIGURED, a success with information, is as good as configuring it now.
        seamcall::call_patiently(Leaf::TDH_SYS_KEY_CONFIG, Args::default())
            .map(|_| ())
            .map_err(Some)
    } else {
        Err(None)
    };
    0
}

/// Makes the global key on every package that has an online CPU, one after the other.
///
/// PAMT memory was last written by the kernel, with KeyID 0: the caches are flushed before the
/// module first writes it with its own key, since caches are not coherent across KeyIDs.
fn configure_global_key() -> Result {
    // The flush is for the module here; later conversions flush for themselves.
    let _ = reset::flush_all_cpus();
    for (cpu, package) in cpu::one_cpu_per_package() {
        let mut job = KeyConfig {
            package,
            result: Err(None),
        };
        // SAFETY: The function gets the only pointer to `job`, which lives until the call returns.
        to_result(unsafe {
            bindings::smp_call_on_cpu(cpu, Some(configure_key_here), (&raw mut job).cast(), true)
        })
        .map_err(|e| fail(fmt!("CPU {cpu} went offline during initialization"), e))?;
        job.result.map_err(|e| match e {
            Some(e) => e.report(fmt!(
                "making the global key on package {package}, CPU {cpu}"
            )),
            None => fail(fmt!("CPU {cpu} went offline during initialization"), EAGAIN),
        })?;
    }
    Ok(())
}

/// Initialises one TDMR, a few MB of it in each call.
fn init_tdmr(tdmr: PhysRange) -> Result {
    let args = Args {
        rcx: tdmr.start().get(),
        ..Args::default()
    };
    let mut next = tdmr.start().get();
    let mut stalled = 0;
    while next < tdmr.end().get() {
        let reply = seamcall::call_patiently(Leaf::TDH_SYS_TDMR_INIT, args)
            .map_err(|e| e.report(fmt!("initializing TDMR {tdmr}, at {next:#x}")))?;
        if reply.status.is(SeamcallStatus::TDMR_ALREADY_INITIALIZED) {
            break;
        }
        // RDX says up to where, in whole GB, the TDMR is done.
        if reply.out.rdx > next {
            next = reply.out.rdx;
            stalled = 0;
        } else if stalled < STALLED_CALLS {
            stalled += 1;
        } else {
            let why = fmt!("the TDX module does not get beyond {next:#x} of TDMR {tdmr}");
            return Err(fail(why, EIO));
        }
        // SAFETY: Called in task context, with preemption enabled.
        unsafe { bindings::tdx_glue_cond_resched() };
    }
    Ok(())
}
