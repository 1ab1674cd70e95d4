// SPDX-License-Identifier: GPL-2.0

//! Guest KeyIDs: which exist, which are taken.
//!
//! The first TDX private KeyID protects the TDX module's own metadata (the global KeyID); the
//! others go to TDs, one each.
//!
//! C it replaces: `tdx_guest_keyid_alloc()` and neighbours in `arch/x86/virt/vmx/tdx/tdx.c`.

use kernel::alloc::flags::GFP_KERNEL;
use kernel::error::from_result;
use kernel::ffi::{
    c_int,
    c_uint, //
};
use kernel::id_pool::IdPool;
use kernel::prelude::*;
use kernel::sync::global_lock;
use kernel::sync::SetOnce;

use crate::partition::GuestKeyIds;

/// The KeyIDs that exist for TDs; empty until the platform was found to support TDX.
static RANGE: SetOnce<GuestKeyIds> = SetOnce::new();

/// The KeyIDs in use.
struct Pool {
    /// How many bits are set in `ids`.
    used: u32,
    /// One bit for each KeyID, counted from the first guest KeyID. [`None`] until [`init()`].
    ids: Option<IdPool>,
}

impl Pool {
    /// Takes the lowest free number below `count`.
    fn take(&mut self, count: u32) -> Result<u32> {
        let id = self
            .ids
            .as_mut()
            .and_then(|ids| ids.find_unused_id(0))
            .ok_or(ENOSPC)?;
        // The bitmap may have more bits than there are KeyIDs.
        if id.as_u32() >= count {
            return Err(ENOSPC);
        }
        let offset = id.as_u32();
        id.acquire();
        self.used = self.used.saturating_add(1);
        Ok(offset)
    }

    /// Gives `offset` back.
    fn give_back(&mut self, offset: usize) -> Result {
        let ids = self.ids.as_mut().ok_or(EINVAL)?;
        // The search starts at `offset`: it finds `offset` itself only if that is free.
        if ids.find_unused_id(offset).map(|id| id.as_usize()) == Some(offset) {
            return Err(EINVAL);
        }
        ids.release_id(offset);
        self.used = self.used.saturating_sub(1);
        Ok(())
    }
}

global_lock! {
    // SAFETY: `init_lock` runs before any other function of this file can be reached.
    unsafe(uninit) static POOL: Mutex<Pool> = Pool { used: 0, ids: None };
}

/// Prepares the lock of this file.
///
/// # Safety
///
/// Must be called exactly once, before anything else in this file.
pub(crate) unsafe fn init_lock() {
    // SAFETY: Promised by the caller.
    unsafe { POOL.init() };
}

/// Makes `keyids` available to TDs. Task context, may sleep.
///
/// # Errors
///
/// `ENOMEM`; `EBUSY` if called twice.
pub(crate) fn init(keyids: GuestKeyIds) -> Result {
    let ids = IdPool::with_capacity(keyids.count() as usize, GFP_KERNEL)?;
    POOL.lock().ids = Some(ids);
    if RANGE.populate(keyids) {
        Ok(())
    } else {
        Err(EBUSY)
    }
}

/// Whether some TD holds a KeyID. Task context, may sleep.
pub(crate) fn any_in_use() -> bool {
    POOL.lock().used != 0
}

fn alloc() -> Result<u32> {
    let range = RANGE.as_ref().ok_or(ENODEV)?;
    let offset = POOL.lock().take(range.count())?;
    range.first().checked_add(offset).ok_or(ERANGE)
}

fn free(keyid: u32) -> Result {
    let range = RANGE.as_ref().ok_or(EINVAL)?;
    let offset = keyid.checked_sub(range.first()).ok_or(EINVAL)?;
    if offset >= range.count() {
        return Err(EINVAL);
    }
    POOL.lock().give_back(offset as usize)
}

/// How many KeyIDs TDs may use in total; 0 without TDX. Any context.
///
/// # Safety
///
/// None beyond being called by C.
#[export]
pub unsafe extern "C" fn tdx_get_nr_guest_keyids() -> u32 {
    RANGE.as_ref().map_or(0, GuestKeyIds::count)
}

/// Takes a free guest KeyID and returns it. Task context, may sleep.
///
/// Returns `-ENOSPC` when all are in use and `-ENODEV` without TDX.
///
/// # Safety
///
/// None beyond being called by C.
#[export]
pub unsafe extern "C" fn tdx_guest_keyid_alloc() -> c_int {
    from_result(|| Ok(c_int::try_from(alloc()?)?))
}

/// Gives back a KeyID that [`tdx_guest_keyid_alloc`] returned. Task context, may sleep.
///
/// Any other number is refused with a line in the log.
///
/// # Safety
///
/// None beyond being called by C; the caller has flushed and freed the key in the TDX module.
#[export]
pub unsafe extern "C" fn tdx_guest_keyid_free(keyid: c_uint) {
    if free(keyid).is_err() {
        pr_err!("KeyID {keyid} is not in use, not freed: a bug of the caller\n");
    }
}

#[cfg(CONFIG_INTEL_TDX_HOST_KUNIT_TEST)]
#[kernel::macros::kunit_tests(tdx_host_keyid)]
mod tests {
    use super::*;

    fn pool() -> Result<Pool> {
        Ok(Pool {
            used: 0,
            ids: Some(IdPool::with_capacity(3, GFP_KERNEL)?),
        })
    }

    #[test]
    fn keyids_run_out_and_come_back() -> Result {
        let mut pool = pool()?;
        for offset in 0..3 {
            assert_eq!(pool.take(3)?, offset);
        }
        assert_eq!(pool.take(3), Err(ENOSPC));
        assert_eq!(pool.used, 3);
        pool.give_back(1)?;
        assert_eq!(pool.take(3)?, 1);
        Ok(())
    }

    #[test]
    fn free_keyid_is_not_freed_again() -> Result {
        let mut pool = pool()?;
        assert_eq!(pool.give_back(0), Err(EINVAL));
        let offset = pool.take(3)?;
        pool.give_back(offset as usize)?;
        assert_eq!(pool.give_back(offset as usize), Err(EINVAL));
        assert_eq!(pool.used, 0);
        Ok(())
    }

    #[test]
    fn empty_pool_has_no_keyids() {
        let mut pool = Pool { used: 0, ids: None };
        assert_eq!(pool.take(3), Err(ENOSPC));
        assert_eq!(pool.give_back(0), Err(EINVAL));
    }
}
