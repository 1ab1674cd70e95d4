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

use crate::books;
use crate::bridge::Stop;
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
use crate::range::PhysAddr;
use crate::reset;
use crate::seamcall::{
    self,
    Args,
    SeamcallError, //
};
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
    Scratch,
    Tdmr, //
};
use crate::tdmr_init;

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
    /// The time in nanoseconds since about boot. Any context.
    pub(crate) fn now() -> u64 {
        // SAFETY: Has no requirements.
        unsafe { bindings::tdx_glue_clock_ns() }
    }

    /// Starts it. Any context.
    pub(crate) fn start() -> Self {
        Self(Self::now())
    }

    /// Time since the start, or since the last call.
    pub(crate) fn lap(&mut self) -> Millis {
        let now = Self::now();
        let spent = now.saturating_sub(self.0);
        self.0 = now;
        Millis(spent)
    }
}

/// Nanoseconds, shown as milliseconds with three decimals.
#[derive(Clone, Copy)]
pub(crate) struct Millis(u64);

impl Millis {
    /// The time in nanoseconds.
    pub(crate) fn nanos(self) -> u64 {
        self.0
    }
}

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

    let plan = make_plan(
        ground,
        &info.tdmr,
        Goal::for_cpus(cpu::online_cpus().count()),
    )?;
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

    if reset::has_erratum() {
        let end = memory.regions().last().map(|region| region.bytes().end());
        books::open(end.unwrap_or(PhysAddr::ZERO))
            .map_err(|e| fail("no memory for books of private memory", e))?;
    }
    configure(&infos, global_keyid)?;
    let handed = HandedPamts::new(chunks);
    configure_global_key()?;
    pr_info!(
        "TDMRs and global KeyID {global_keyid} configured in {}\n",
        watch.lap()
    );

    tdmr_init::init_all(&tdmrs)?;
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
    warn_if_few_left(&task, &mut scratch, &mut plan.tdmrs);
    place::place(&mut task, &mut scratch, &mut plan).map_err(|e| fail(e, errno_of_place(&e)))?;
    describe_plan(&memory, &plan, caps.max_reserved_per_tdmr);
    Ok(plan)
}

/// Warns when memory needs nearly all TDMRs. How many are used says nothing: more than needed are,
/// to share the work.
fn warn_if_few_left(
    task: &Task<'_, PageAllocator>,
    scratch: &mut Scratch<KVec<Stop>, KVec<u64>>,
    room: &mut KVec<Tdmr>,
) {
    let limits = &task.limits;
    let areas = limits.max_reserved.into();
    // If this fails, there may be other ways, and it is not the place to complain.
    let found = tdmr::plan(&task.memory, limits, areas, &Goal::PLAIN, scratch, room);
    let (needed, max) = (room.len(), limits.max_tdmrs);
    if found.is_ok() && usize::from(max).saturating_sub(needed) < tdmr::FEW_TDMRS_LEFT {
        pr_warn!(
            "{needed} of {max} TDMRs are needed: a little more memory and TDX will not start\n"
        );
    }
}

/// Logs where TDMRs and their PAMTs are; what was cut to share the work is told as one.
fn describe_plan(memory: &Memory<'_>, plan: &TdxPlan, max_areas: u16) {
    let areas = |tdmr: &Tdmr| memory.forced(tdmr.range(), &plan.chunks, None);
    let cut = |one: &Tdmr, next: &Tdmr| {
        one.range().end() == next.range().start() && one.node() == next.node()
    };
    let mut pamts = plan.pamts.as_slice();
    for tdmrs in plan.tdmrs.chunk_by(cut) {
        let Some((theirs, rest)) = pamts.split_at_checked(tdmrs.len()) else {
            return;
        };
        pamts = rest;
        let kb = pamt::total_kb(theirs);
        let most = tdmrs.iter().map(areas).max().unwrap_or(0);
        match (tdmrs, theirs) {
            ([tdmr], [pamt]) => pr_info!(
                "TDMR {}, node {}: PAMT {pamt}, {kb} KB, {most} of {max_areas} reserved areas needed\n",
                tdmr.range(),
                tdmr.node()
            ),
            ([first, .., last], _) => pr_info!(
                "{} TDMRs, {} to {}, node {}: PAMTs {kb} KB, {most} of {max_areas} reserved areas needed\n",
                tdmrs.len(),
                first.range(),
                last.range(),
                first.node()
            ),
            _ => {}
        }
    }
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
