// SPDX-License-Identifier: GPL-2.0

//! KUnit: memory is taken from TDs that run.
//!
//! While all vCPUs of a TD enter it and use its memory, the test takes all of that memory away, many
//! times: in Rust with [`crate::tlb`], and in C through `struct tdx_tlb`, as KVM would. At the end
//! nothing of the TD is left. Without TDX these tests are skipped.

use kernel::alloc::flags::GFP_KERNEL;
use kernel::bindings;
use kernel::error::{
    from_err_ptr,
    to_result, //
};
use kernel::ffi::{
    c_int,
    c_void, //
};
use kernel::prelude::*;
use kernel::sync::atomic::Relaxed;
use kernel::sync::Arc;

use crate::cpu;
use crate::guards::CpuHotplugRead;
use crate::range::Pfn;
use crate::seamcall::SeamcallError;
use crate::store::SliceStore;
use crate::td::RunningTd;
use crate::test_guest::{
    position,
    Guest,
    Memory,
    Power,
    Thread,
    PAGES,
    WINDOW, //
};
use crate::test_td::TestTd;
use crate::tlb::{
    BlockError,
    Tracker, //
};

/// How often all memory of the window is taken away.
const ROUNDS: usize = 25;
/// vCPUs at most.
const VCPUS: usize = 4;

/// Somebody who takes all memory of the window from the TD, and says how many pages that was.
trait User: Sized {
    fn new(guest: &Arc<Guest>) -> Result<Self>;
    fn zap(&mut self, memory: &mut Memory) -> Result<usize>;
}

/// A user in Rust.
struct RustUser(Tracker<RunningTd<Power>>);

impl User for RustUser {
    fn new(guest: &Arc<Guest>) -> Result<Self> {
        Ok(RustUser(Tracker::new(RunningTd {
            tdr: guest.tdr,
            vcpus: Power(guest.clone()),
        })))
    }

    fn zap(&mut self, memory: &mut Memory) -> Result<usize> {
        let failed = |e: SeamcallError| e.report("taking memory from a TD");
        let guest = self.0.td().vcpus.0.clone();
        let mut space = [position(0)?; PAGES];
        let mut blocking = self.0.start(SliceStore::new(&mut space));
        for (index, _) in memory.iter().enumerate().filter(|(_, page)| page.is_some()) {
            blocking.block(position(index)?).map_err(|e| match e {
                BlockError::Call(e) => failed(e),
                BlockError::Full => ENOSPC,
            })?;
        }
        let mut removing = blocking.track().map_err(|(e, _)| failed(e))?.kick();
        let mut count = 0;
        while let Some(removed) = removing.remove_next() {
            let (at, addr) = removed.map_err(failed)?;
            guest.take_back(memory, at.gpa(), addr.frame())?;
            count += 1;
        }
        Ok(count)
    }
}

/// A user in C.
struct CUser {
    guest: Arc<Guest>,
    tlb: *mut bindings::tdx_tlb,
}

impl CUser {
    const OPS: bindings::tdx_tlb_ops = bindings::tdx_tlb_ops {
        kick_vcpus: Some(Self::kick),
        hold_vcpus: Some(Self::hold),
        release_vcpus: Some(Self::release),
    };

    extern "C" fn kick(guest: *mut c_void) {
        // SAFETY: The tracker was made with this address, and goes before the guest.
        unsafe { &*guest.cast::<Guest>() }.kick();
    }

    extern "C" fn hold(guest: *mut c_void) {
        // SAFETY: As above.
        unsafe { &*guest.cast::<Guest>() }.hold();
    }

    extern "C" fn release(guest: *mut c_void) {
        // SAFETY: As above.
        unsafe { &*guest.cast::<Guest>() }.release();
    }

    extern "C" fn removed(data: *mut c_void, range: *const bindings::tdx_tlb_range) -> c_int {
        // SAFETY: `zap` passes its guest and its memory, C a range of its own.
        let ((guest, memory), range) =
            unsafe { (&mut *data.cast::<(&Guest, &mut Memory)>(), &*range) };
        let frame = Pfn::new(range.pfn).ok_or(EINVAL);
        frame
            .and_then(|frame| guest.take_back(memory, range.gpa, frame))
            .map_or_else(Error::to_errno, |()| 0)
    }
}

impl User for CUser {
    fn new(guest: &Arc<Guest>) -> Result<Self> {
        let mut td = bindings::tdx_td {
            // SAFETY: The frame is that of a page.
            tdr_page: unsafe { bindings::tdx_test_pfn_to_page(guest.tdr.0.get()) },
            ..Zeroable::zeroed()
        };
        let data = Arc::as_ptr(guest).cast_mut().cast();
        // SAFETY: The guest lives longer than the tracker; the callbacks can be called any time.
        let tlb = from_err_ptr(unsafe {
            bindings::tdx_tlb_create(&mut td, &Self::OPS, data, PAGES as u32)
        })?;
        Ok(CUser {
            guest: guest.clone(),
            tlb,
        })
    }

    fn zap(&mut self, memory: &mut Memory) -> Result<usize> {
        let mut gpas = [0; PAGES];
        let mut count = 0;
        let populated = memory.iter().enumerate().filter(|(_, page)| page.is_some());
        for ((index, _), gpa) in populated.zip(&mut gpas) {
            *gpa = position(index)?.gpa();
            count += 1;
        }
        let mut data = (&*self.guest, memory);
        // SAFETY: There are `count` addresses, and `removed` gets what it expects.
        let removed = unsafe {
            bindings::tdx_test_zap(
                self.tlb,
                gpas.as_ptr(),
                count,
                Some(Self::removed),
                (&raw mut data).cast(),
            )
        };
        to_result(removed.min(0))?;
        Ok(removed as usize)
    }
}

impl Drop for CUser {
    fn drop(&mut self) {
        // SAFETY: Made by `new`, and not used any more.
        unsafe { bindings::tdx_tlb_destroy(self.tlb) };
    }
}

/// Takes all memory from the running TD again and again; the number of pages.
fn zap_while_running<U: User>(td: &TestTd, guest: &Arc<Guest>) -> Result<usize> {
    let mut user = U::new(guest)?;
    let mut threads = KVec::new();
    for vcpu in &td.vcpus {
        let thread = Thread::start(guest.clone(), vcpu.tdvpr, vcpu.cpu)?;
        threads.push(thread, GFP_KERNEL)?;
    }
    let mut removed = 0;
    for _ in 0..ROUNDS {
        guest.populate_all()?;
        let before = guest.entries.load(Relaxed);
        let more = 2 * td.vcpus.len() as i64;
        guest.wait_until(|| Ok(guest.entries.load(Relaxed) >= before + more))?;
        removed += user.zap(&mut guest.memory.lock())?;
    }
    Ok(removed)
}

/// Builds a TD, lets `test` use it, takes it down. [`None`] if there is no TDX.
fn with_td<R>(test: impl FnOnce(&TestTd, &Arc<Guest>) -> Result<R>) -> Result<Option<R>> {
    if crate::ready().is_none() {
        // SAFETY: Called by a test.
        unsafe { bindings::tdx_test_skip(c"TDX is not up".as_char_ptr()) };
        return Ok(None);
    }
    let plugged = CpuHotplugRead::new();
    let mut cpus = KVec::new();
    for cpu in cpu::online_cpus().take(VCPUS) {
        cpus.push(cpu, GFP_KERNEL)?;
    }
    let mut td = TestTd::new(&cpus, &plugged)?;
    let guest = Guest::new(&td);
    let result = guest.and_then(|guest| {
        let result = test(&td, &guest);
        for page in guest.memory.lock().iter_mut().filter_map(Option::take) {
            td.keep(page)?;
        }
        pr_info!(
            "{} vCPUs: {} entries, {} faults, {} kicks, {} holds, {} busy\n",
            td.vcpus.len(),
            guest.entries.load(Relaxed),
            guest.faults.load(Relaxed),
            guest.kicks.load(Relaxed),
            guest.holds.load(Relaxed),
            guest.busy.load(Relaxed)
        );
        result
    });
    td.destroy(&plugged)?;
    result.map(Some)
}

#[kernel::macros::kunit_tests(tdx_host_td)]
mod tests {
    use super::*;

    const ALL: usize = ROUNDS * PAGES;

    #[test]
    fn memory_leaves_a_running_td() -> Result {
        let removed = with_td(zap_while_running::<RustUser>)?;
        assert!(removed.is_none_or(|pages| pages == ALL));
        Ok(())
    }

    #[test]
    fn memory_leaves_a_running_td_with_steps_in_c() -> Result {
        let removed = with_td(zap_while_running::<CUser>)?;
        assert!(removed.is_none_or(|pages| pages == ALL));
        Ok(())
    }

    /// Makes one step in C; 0, or what it says.
    fn step(tlb: *mut bindings::tdx_tlb, step: u8) -> c_int {
        let mut range = Zeroable::zeroed();
        // SAFETY: The tracker exists.
        unsafe {
            match step {
                b'B' => bindings::tdx_tlb_block(tlb, WINDOW, bindings::pg_level_PG_LEVEL_4K),
                b'T' => bindings::tdx_tlb_track(tlb),
                b'K' => bindings::tdx_tlb_kick(tlb),
                _ => bindings::tdx_tlb_remove_next(tlb, &mut range),
            }
        }
    }

    /// The steps in `next` of which C says that they are out of order.
    fn refused(tlb: *mut bindings::tdx_tlb, next: &str) -> usize {
        let out_of_order = |&name: &u8| step(tlb, name) == EPROTO.to_errno();
        next.as_bytes()
            .iter()
            .filter(|name| out_of_order(name))
            .count()
    }

    #[test]
    fn steps_in_c_out_of_order_are_refused() -> Result {
        let results = with_td(|_, guest| {
            let user = CUser::new(guest)?;
            guest.populate_all()?;
            // SAFETY: The tracker exists.
            let bad_level = unsafe { bindings::tdx_tlb_block(user.tlb, WINDOW, 0) };
            let mut results = [0; 4];
            results[0] = refused(user.tlb, "TKR");
            for (result, (done, next)) in
                results[1..]
                    .iter_mut()
                    .zip([(b'B', "KR"), (b'T', "TBR"), (b'K', "KTB")])
            {
                to_result(step(user.tlb, done))?;
                *result = refused(user.tlb, next);
            }
            // The page is still the TD's: leave it to be reclaimed.
            // SAFETY: The tracker exists.
            unsafe { bindings::tdx_tlb_cancel(user.tlb) };
            Ok((bad_level, results, refused(user.tlb, "TKR")))
        })?;
        let expected = (EINVAL.to_errno(), [3, 2, 3, 3], 3);
        assert!(results.is_none_or(|results| results == expected));
        Ok(())
    }
}
