// SPDX-License-Identifier: GPL-2.0

//! TLB tracking for KVM: the steps of [`crate::tlb_steps`] as C functions.
//!
//! KVM makes one `struct tdx_tlb` for each TD and takes memory from the TD only through it. C
//! cannot keep the order by its types, so every call is checked: a step out of turn, or a second
//! call while one goes on, is refused with a line in the log, before anything reaches the module.
//! `asm/tdx.h` says what each function does, in which context, and what it returns.
//!
//! Locks: none are taken and nothing sleeps, except in create and destroy. The caller serialises
//! all steps about one TD; KVM holds `mmu_lock` for writing.
//!
//! Neighbours: [`crate::tlb`] has the rules of tracking, [`crate::td`] makes the calls.

use core::cell::UnsafeCell;
use kernel::alloc::flags::GFP_KERNEL_ACCOUNT;
use kernel::bindings;
use kernel::error::from_result;
use kernel::ffi::{
    c_int,
    c_uint,
    c_void, //
};
use kernel::prelude::*;
use kernel::sync::atomic::{
    Acquire,
    AtomicFlag,
    Release, //
};

use crate::operand::{
    GpaAndLevel,
    SeptLevel, //
};
use crate::range::Pfn;
use crate::seamcall::SeamcallError;
use crate::store::{
    Store,
    StoreFull, //
};
use crate::td::{
    RunningTd,
    Tdr,
    Vcpus, //
};
use crate::tlb_steps::{
    StepError,
    Steps, //
};

type Callback = unsafe extern "C" fn(*mut c_void);

/// vCPUs that C has power over.
struct CVcpus {
    kick: Callback,
    hold: Callback,
    release: Callback,
    data: *mut c_void,
}

// SAFETY: The callbacks may be called from any thread that makes a step.
unsafe impl Send for CVcpus {}

impl Vcpus for CVcpus {
    fn kick(&mut self) {
        // SAFETY: Whoever made the tracker promised that its callbacks can be called in any step.
        unsafe { (self.kick)(self.data) }
    }

    fn hold(&mut self) {
        // SAFETY: As above.
        unsafe { (self.hold)(self.data) }
    }

    fn release(&mut self) {
        // SAFETY: As above.
        unsafe { (self.release)(self.data) }
    }
}

/// A list that never allocates: the steps are made under spinning locks.
struct Preallocated(KVec<GpaAndLevel>);

impl Store<GpaAndLevel> for Preallocated {
    fn push(&mut self, at: GpaAndLevel) -> Result<(), StoreFull> {
        self.0.push_within_capacity(at).map_err(|_| StoreFull)
    }

    fn as_slice(&self) -> &[GpaAndLevel] {
        &self.0
    }

    fn as_mut_slice(&mut self) -> &mut [GpaAndLevel] {
        &mut self.0
    }

    fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

type CSteps = Steps<RunningTd<CVcpus>, Preallocated>;

/// What C knows as `struct tdx_tlb`.
///
/// # Invariants
///
/// Whoever turned `in_use` from false to true, and nobody else, uses `steps`, until it turns it
/// back.
struct CTracker {
    in_use: AtomicFlag,
    steps: UnsafeCell<CSteps>,
}

impl CTracker {
    fn new(td: Tdr, vcpus: CVcpus, ranges: usize) -> Result<KBox<Self>> {
        let list = KVec::with_capacity(ranges, GFP_KERNEL_ACCOUNT)?;
        let td = RunningTd { tdr: td, vcpus };
        let tracker = CTracker {
            in_use: AtomicFlag::new(false),
            steps: UnsafeCell::new(Steps::new(td, Preallocated(list))),
        };
        Ok(KBox::new(tracker, GFP_KERNEL_ACCOUNT)?)
    }

    /// Makes one step, unless another one goes on: on another CPU, or around this one, when a
    /// callback calls back.
    fn step<R>(
        &self,
        name: &'static str,
        step: impl FnOnce(&mut CSteps) -> Result<R, StepError<SeamcallError>>,
    ) -> Result<R> {
        if self.in_use.xchg(true, Acquire) {
            pr_err!("{name}() while another step about this TD goes on: a bug of the caller\n");
            return Err(EBUSY);
        }
        // SAFETY: By the type invariant `steps` is this caller's, who has just set the flag.
        let result = step(unsafe { &mut *self.steps.get() });
        // INVARIANT: The reference to `steps` is gone.
        self.in_use.store(false, Release);
        result.map_err(|e| match e {
            StepError::Order(step) => {
                pr_err!("{name}() out of order ({step}): a bug of the caller\n");
                EPROTO
            }
            StepError::Full => ENOSPC,
            StepError::Call(e) => e.report(fmt!("taking memory from a TD")),
        })
    }
}

/// The tracker behind the pointer that C has.
///
/// # Safety
///
/// `tlb` comes from [`tdx_tlb_create`] and is not destroyed while the reference lives.
unsafe fn tracker<'a>(tlb: *mut bindings::tdx_tlb) -> &'a CTracker {
    // SAFETY: Promised by the caller.
    unsafe { &*tlb.cast::<CTracker>() }
}

/// Makes a tracker for `td`; see `asm/tdx.h`.
///
/// # Safety
///
/// `td`, its root page and `ops` are valid. The callbacks can be called with `data`, in every step,
/// until the tracker is destroyed.
#[export]
pub unsafe extern "C" fn tdx_tlb_create(
    td: *mut bindings::tdx_td,
    ops: *const bindings::tdx_tlb_ops,
    data: *mut c_void,
    nr_ranges: c_uint,
) -> *mut bindings::tdx_tlb {
    // SAFETY: Promised by the caller.
    let (ops, pfn) = unsafe { (&*ops, bindings::tdx_glue_page_to_pfn((*td).tdr_page)) };
    let (Some(kick), Some(hold), Some(release)) =
        (ops.kick_vcpus, ops.hold_vcpus, ops.release_vcpus)
    else {
        return EINVAL.to_ptr();
    };
    let vcpus = CVcpus {
        kick,
        hold,
        release,
        data,
    };
    // No page lies beyond the limit.
    let tdr = Tdr(Pfn::new(pfn as u64).unwrap_or(Pfn::LIMIT));
    match nr_ranges {
        0 => EINVAL.to_ptr(),
        _ => CTracker::new(tdr, vcpus, nr_ranges as usize)
            .map_or_else(Error::to_ptr, |tracker| KBox::into_raw(tracker).cast()),
    }
}

/// Frees a tracker; see `asm/tdx.h`.
///
/// # Safety
///
/// `tlb` is null, an error, or comes from [`tdx_tlb_create`] and is not used any more.
#[export]
pub unsafe extern "C" fn tdx_tlb_destroy(tlb: *mut bindings::tdx_tlb) {
    // SAFETY: Has no requirements.
    if tlb.is_null() || unsafe { bindings::IS_ERR(tlb.cast()) } {
        return;
    }
    // SAFETY: `tlb` was made by `KBox::into_raw`, and nobody uses it any more.
    drop(unsafe { KBox::from_raw(tlb.cast::<CTracker>()) });
}

/// Blocks one more range; see `asm/tdx.h`.
///
/// # Safety
///
/// `tlb` comes from [`tdx_tlb_create`].
#[export]
pub unsafe extern "C" fn tdx_tlb_block(
    tlb: *mut bindings::tdx_tlb,
    gpa: u64,
    level: bindings::pg_level,
) -> c_int {
    from_result(|| {
        let level = SeptLevel::try_from(level).map_err(|_| EINVAL)?;
        let at = GpaAndLevel::new(gpa, level).ok_or(EINVAL)?;
        // SAFETY: Promised by the caller.
        unsafe { tracker(tlb) }.step("tdx_tlb_block", |steps| steps.block(at))?;
        Ok(0)
    })
}

/// Starts the new epoch; see `asm/tdx.h`.
///
/// # Safety
///
/// `tlb` comes from [`tdx_tlb_create`].
#[export]
pub unsafe extern "C" fn tdx_tlb_track(tlb: *mut bindings::tdx_tlb) -> c_int {
    from_result(|| {
        // SAFETY: Promised by the caller.
        unsafe { tracker(tlb) }.step("tdx_tlb_track", Steps::track)?;
        Ok(0)
    })
}

/// Makes the vCPUs leave the guest; see `asm/tdx.h`.
///
/// # Safety
///
/// `tlb` comes from [`tdx_tlb_create`].
#[export]
pub unsafe extern "C" fn tdx_tlb_kick(tlb: *mut bindings::tdx_tlb) -> c_int {
    from_result(|| {
        // SAFETY: Promised by the caller.
        unsafe { tracker(tlb) }.step("tdx_tlb_kick", Steps::kick)?;
        Ok(0)
    })
}

/// Takes the next range from the TD; see `asm/tdx.h`.
///
/// # Safety
///
/// `tlb` comes from [`tdx_tlb_create`]; `removed` can be written.
#[export]
pub unsafe extern "C" fn tdx_tlb_remove_next(
    tlb: *mut bindings::tdx_tlb,
    removed: *mut bindings::tdx_tlb_range,
) -> c_int {
    from_result(|| {
        // SAFETY: Promised by the caller.
        let next = unsafe { tracker(tlb) }.step("tdx_tlb_remove_next", Steps::remove_next)?;
        let Some((at, addr)) = next else {
            return Ok(0);
        };
        let range = bindings::tdx_tlb_range {
            gpa: at.gpa(),
            pfn: addr.frame().get(),
            level: at.level().pg_level(),
        };
        // SAFETY: Promised by the caller.
        unsafe { removed.write(range) };
        Ok(1)
    })
}

/// Ends the removal; see `asm/tdx.h`.
///
/// # Safety
///
/// `tlb` comes from [`tdx_tlb_create`].
#[export]
pub unsafe extern "C" fn tdx_tlb_cancel(tlb: *mut bindings::tdx_tlb) {
    let cancel = |steps: &mut CSteps| {
        steps.cancel();
        Ok(())
    };
    // A misuse is in the log.
    // SAFETY: Promised by the caller.
    let _ = unsafe { tracker(tlb) }.step("tdx_tlb_cancel", cancel);
}
