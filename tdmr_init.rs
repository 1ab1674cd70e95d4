// SPDX-License-Identifier: GPL-2.0

//! Initialising the TDMRs: TDH.SYS.TDMR.INIT, which writes the PAMTs.
//!
//! A call does a few MB, so this is what bring-up spends its time on. The TDX module lets CPUs work
//! on different TDMRs at the same time, and on one only one after the other. So [`init_all`] gives
//! each TDMR to one CPU, of its node if there is one; the plan has cut memory into enough of them.
//!
//! C it replaces: `init_tdmrs()` in `arch/x86/virt/vmx/tdx/tdx.c`.

use core::fmt;
use kernel::alloc::flags::GFP_KERNEL;
use kernel::bindings;
use kernel::prelude::*;

use crate::bringup::{
    Millis,
    Stopwatch, //
};
use crate::leaf::Leaf;
use crate::log::fail;
use crate::parallel::{
    self,
    Stop, //
};
use crate::range::PhysRange;
use crate::seamcall::{
    self,
    Args,
    SeamcallError, //
};
use crate::status::SeamcallStatus;
use crate::tdmr::Tdmr;
use crate::turns::Part;

/// How many calls may pass without a visible step forward.
///
/// The module reports progress per GB and does a few MB in a call, so a few hundred are usual.
const STALLED_CALLS: u32 = 1 << 20;

/// Why a TDMR was not initialised.
struct Failure {
    tdmr: PhysRange,
    /// Up to where, in whole GB, it is done.
    at: u64,
    /// The call that failed; [`None`] if all succeeded but led nowhere.
    call: Option<SeamcallError>,
}

impl Failure {
    /// Says in the log what happened, and returns the errno.
    fn report(self) -> Error {
        let Failure { tdmr, at, call } = self;
        match call {
            Some(e) => e.report(fmt!("initializing TDMR {tdmr}, at {at:#x}")),
            None => {
                let why = fmt!("the TDX module does not get beyond {at:#x} of TDMR {tdmr}");
                fail(why, EIO)
            }
        }
    }
}

/// How much memory was initialised in what time, shown as amount and rate.
pub(crate) struct Throughput {
    bytes: u64,
    time: Millis,
}

impl fmt::Display for Throughput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A byte in a nanosecond is a GB in a second.
        let tenths = self.bytes.saturating_mul(10) / self.time.nanos().max(1);
        let gigabytes = self.bytes >> 30;
        write!(f, "{gigabytes} GB, {}.{} GB/s", tenths / 10, tenths % 10)
    }
}

/// Initialises all TDMRs, on as many CPUs as help. Every online CPU must be ready for SEAMCALLs.
/// Task context, sleeps; takes about a second of each CPU for each 512 GB.
///
/// # Errors
///
/// The errno of the first failure, after the log said what happened. The other CPUs have made at
/// most one more call then.
pub(crate) fn init_all(tdmrs: &[Tdmr]) -> Result {
    let mut watch = Stopwatch::start();
    let mut parts = KVec::with_capacity(tdmrs.len(), GFP_KERNEL)
        .map_err(|e| fail("out of memory for the list of TDMRs", e.into()))?;
    for tdmr in tdmrs {
        let part = Part::new(tdmr.node(), tdmr.range().size());
        parts.push(part, GFP_KERNEL)?;
    }
    let init = |index: usize, stop: &Stop| match tdmrs.get(index) {
        Some(tdmr) => init_one(tdmr.range(), stop),
        None => Ok(()),
    };
    let cpus = parallel::run(parts, init).map_err(Failure::report)?;
    let time = watch.lap();
    let bytes = tdmrs.iter().map(|tdmr| tdmr.range().size()).sum();
    pr_info!(
        "TDMRs initialized in {time}, CPUs: {cpus}, {}\n",
        Throughput { bytes, time }
    );
    Ok(())
}

/// Initialises one TDMR, a few MB of it in each call, unless it has to `stop`.
///
/// A module that is busy is asked again, a bounded number of times.
fn init_one(tdmr: PhysRange, stop: &Stop) -> Result<(), Failure> {
    let args = Args {
        rcx: tdmr.start().get(),
        ..Args::default()
    };
    let mut at = tdmr.start().get();
    let mut stalled = 0;
    while at < tdmr.end().get() && !stop.is_wanted() {
        let failure = |call| Failure { tdmr, at, call };
        let reply = seamcall::call_patiently_often(Leaf::TDH_SYS_TDMR_INIT, args)
            .map_err(|e| failure(Some(e)))?;
        if reply.status.is(SeamcallStatus::TDMR_ALREADY_INITIALIZED) {
            break;
        }
        // RDX says up to where, in whole GB, the TDMR is done.
        if reply.out.rdx > at {
            at = reply.out.rdx;
            stalled = 0;
        } else if stalled < STALLED_CALLS {
            stalled += 1;
        } else {
            return Err(failure(None));
        }
        // SAFETY: Called in task context, with preemption enabled.
        unsafe { bindings::tdx_glue_cond_resched() };
    }
    Ok(())
}
