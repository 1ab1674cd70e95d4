// SPDX-License-Identifier: GPL-2.0

//! One SEAMCALL on its way through the module: [`Call`], and the guard [`Held`] of a module lock.
//!
//! Every leaf is a function `fn(&mut Call) -> Answer`. It takes module locks through [`Call`],
//! looks at the state for short moments only, and calls the platform with the state released.

use std::sync::MutexGuard;

use crate::addr::KeyLayout;
use crate::locks::{LockId, Mode};
use crate::state::State;
use crate::{Module, Operand, Platform, Regs, Status};

/// What a leaf answers: `Err` is any status but SUCCESS, informational ones included.
pub(crate) type Answer = Result<(), Status>;

/// The call of one leaf on one logical processor.
pub(crate) struct Call<'a> {
    pub(crate) module: &'a Module,
    pub(crate) lp: usize,
    pub(crate) regs: &'a mut Regs,
    pub(crate) platform: &'a dyn Platform,
}

/// A lock of the module, held until dropped.
#[must_use]
pub(crate) struct Held<'a> {
    module: &'a Module,
    id: LockId,
}

impl Held<'_> {
    /// Leaves the lock held; whoever keeps its id releases it.
    pub(crate) fn keep(self) -> LockId {
        let id = self.id;
        std::mem::forget(self);
        id
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.module.state().locks.release(self.id);
    }
}

impl<'a> Call<'a> {
    /// The state of the module. Release it before the platform is called.
    pub(crate) fn state(&self) -> MutexGuard<'a, State> {
        self.module.state()
    }

    /// Takes a module lock or answers `busy`.
    pub(crate) fn lock(&self, id: LockId, mode: Mode, busy: Status) -> Result<Held<'a>, Status> {
        if self.state().locks.try_acquire(id, mode) {
            Ok(Held {
                module: self.module,
                id,
            })
        } else {
            Err(busy)
        }
    }

    /// Takes the global system lock or answers SYS_BUSY.
    pub(crate) fn lock_global(&self, mode: Mode) -> Result<Held<'a>, Status> {
        self.lock(LockId::Global, mode, Status::SYS_BUSY)
    }

    /// Where the KeyID is in an address and which KeyIDs are private, as found at TDH.SYS.INIT.
    pub(crate) fn keys(&self) -> KeyLayout {
        self.state().keys
    }

    /// Checks an operand that names memory of the host (`size` bytes, aligned to `align`).
    ///
    /// Returns the address without KeyID.
    pub(crate) fn shared_memory(
        &self,
        hpa: u64,
        align: u64,
        size: u64,
        operand: Operand,
    ) -> Result<u64, Status> {
        let keys = self.keys();
        let pa = keys.without_key(hpa);
        let good = hpa.is_multiple_of(align)
            && hpa < crate::addr::LIMIT
            && !keys.is_private(keys.key_of(hpa))
            && !crate::addr::overlap((pa, size), range(self.platform.seamrr()));
        if good {
            Ok(pa)
        } else {
            Err(Status::OPERAND_INVALID.operand(operand))
        }
    }

    /// The version of the leaf that was called (RAX bits 23:16).
    pub(crate) fn version(&self) -> u8 {
        (self.regs.rax >> 16) as u8
    }

    /// Number of processors that firmware enabled.
    pub(crate) fn platform_lps(&self) -> usize {
        self.platform.lp_count()
    }

    /// The package of the calling processor.
    pub(crate) fn package(&self) -> usize {
        self.platform.package_of(self.lp)
    }
}

fn range(range: crate::MemRange) -> (u64, u64) {
    (range.base, range.size)
}
