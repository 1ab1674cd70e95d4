// SPDX-License-Identifier: GPL-2.0

//! Checks that the leaves of TDs share: pages named by an operand, the TD they belong to, and
//! whether it is in a state for the leaf.

use crate::addr::PAGE_4K;
use crate::call::{Answer, Call, Held};
use crate::locks::{LockId, Mode};
use crate::pamt::{self, PageEntry, PageType, PageWalk};
use crate::state::Tables;
use crate::td::{Lifecycle, OpState, Td};
use crate::vcpu::Vcpu;
use crate::{Operand, Status};

/// The MSR that must not change after TDH.SYS.INIT.
pub(crate) const TSC_ADJUST: u32 = 0x3b;

/// States in which TDs can be built and run.
pub(crate) const BUILT: [OpState; 2] = [OpState::Initialized, OpState::Runnable];

/// Whether a leaf holds the lock of the operation state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpLock {
    /// It does not: the exclusive lock of the TDR keeps everybody else out.
    Implied,
    Shared,
}

/// A page that a leaf holds, with the locks of its PAMT entries.
pub(crate) struct HeldPage<'a> {
    pub(crate) walk: PageWalk,
    pub(crate) locks: Vec<Held<'a>>,
}

/// A vCPU that a leaf holds, with the locks of its TDVPR and its TDR.
pub(crate) struct HeldVcpu<'a> {
    pub(crate) tdvpr: u64,
    pub(crate) tdr: u64,
    pub(crate) locks: Vec<Held<'a>>,
}

impl<'a> Call<'a> {
    /// Does something with the tables.
    pub(crate) fn tables<R>(&self, action: impl FnOnce(&mut Tables) -> R) -> R {
        action(&mut self.state().tables)
    }

    /// Does something with a TD.
    pub(crate) fn td<R>(&self, tdr: u64, action: impl FnOnce(&mut Td) -> R) -> R {
        action(self.state().tables.td(tdr))
    }

    /// Does something with a vCPU.
    pub(crate) fn vcpu<R>(&self, tdvpr: u64, action: impl FnOnce(&mut Vcpu) -> R) -> R {
        action(self.state().tables.vcpu(tdvpr))
    }

    /// Takes the PAMT entries above a page of `level` and that of the page itself.
    pub(crate) fn lock_page(
        &self,
        pa: u64,
        level: u8,
        mode: Mode,
        busy: Status,
    ) -> Result<Vec<Held<'a>>, Status> {
        let levels = (level..3).rev();
        let locks = levels.map(|at| {
            let id = LockId::Pamt(at, pa / pamt::LEVEL_SIZE[usize::from(at)]);
            let mode = if at == level { mode } else { Mode::Shared };
            self.lock(id, mode, busy)
        });
        locks.collect()
    }

    /// Locks the page that an operand names, whatever it is used for.
    pub(crate) fn any_page(
        &self,
        pa: u64,
        mode: Mode,
        operand: Operand,
    ) -> Result<HeldPage<'a>, Status> {
        if !pa.is_multiple_of(PAGE_4K) || !self.keys().is_plain(pa) {
            return Err(Status::OPERAND_INVALID.operand(operand));
        }
        let outside = Status::OPERAND_ADDR_RANGE_ERROR.operand(operand);
        let level = self.tables(|tables| tables.page(pa)).ok_or(outside)?.level;
        let busy = Status::OPERAND_BUSY.operand(operand);
        let locks = self.lock_page(pa, level, mode, busy)?;
        let walk = self.tables(|tables| tables.page(pa)).ok_or(outside)?;
        Ok(HeldPage { walk, locks })
    }

    /// Locks the page of 4 KB that an operand names; it must be of the type wanted.
    pub(crate) fn page(
        &self,
        pa: u64,
        mode: Mode,
        page_type: PageType,
        operand: Operand,
    ) -> Result<HeldPage<'a>, Status> {
        let page = self.any_page(pa, mode, operand)?;
        if page.walk.level != 0 || page.walk.entry.page_type != page_type {
            return Err(Status::PAGE_METADATA_INCORRECT.operand(operand));
        }
        Ok(page)
    }

    /// Locks the TDR of the TD that owns a page.
    pub(crate) fn owner(&self, tdr: u64) -> Result<Vec<Held<'a>>, Status> {
        let busy = Status::OPERAND_BUSY.operand(Operand::Tdr);
        self.lock_page(tdr, 0, Mode::Shared, busy)
    }

    /// Locks a vCPU by its TDVPR, and its TD.
    pub(crate) fn vcpu_page(
        &self,
        tdvpr: u64,
        mode: Mode,
        operand: Operand,
    ) -> Result<HeldVcpu<'a>, Status> {
        let page = self.page(tdvpr, mode, PageType::Tdvpr, operand)?;
        let tdr = page.walk.entry.owner;
        let mut locks = page.locks;
        locks.extend(self.owner(tdr)?);
        Ok(HeldVcpu { tdvpr, tdr, locks })
    }

    /// Whether the TD has a key on every package.
    pub(crate) fn keys_configured(&self, tdr: u64) -> Answer {
        match self.td(tdr, |td| td.lifecycle) {
            Lifecycle::KeysConfigured => Ok(()),
            _ => Err(Status::TD_KEYS_NOT_CONFIGURED),
        }
    }

    /// Whether the TD is usable and in one of the states that the leaf allows.
    pub(crate) fn td_state(
        &self,
        tdr: u64,
        lock: OpLock,
        allowed: &[OpState],
    ) -> Result<Option<Held<'a>>, Status> {
        if self.td(tdr, |td| td.fatal) {
            return Err(Status::TD_FATAL);
        }
        self.keys_configured(tdr)?;
        if !self.td(tdr, |td| td.has_tdcs()) {
            return Err(Status::TDCS_NOT_ALLOCATED);
        }
        let held = match lock {
            OpLock::Implied => None,
            OpLock::Shared => {
                let busy = Status::OPERAND_BUSY.operand(Operand::OpState);
                Some(self.lock(LockId::OpState(tdr), Mode::Shared, busy)?)
            }
        };
        let state = self.td(tdr, |td| td.op_state);
        if allowed.contains(&state) {
            Ok(held)
        } else {
            Err(self.wrong_state(Status::OP_STATE_INCORRECT, state as u32))
        }
    }

    /// A status about a wrong state; later releases say which state it is.
    pub(crate) fn wrong_state(&self, status: Status, state: u32) -> Status {
        match self.module.facts().reports_states() {
            true => status.with(state),
            false => status,
        }
    }

    /// Whether IA32_TSC_ADJUST of this processor has the value it had at TDH.SYS.INIT.
    pub(crate) fn tsc_adjust_unchanged(&self) -> Answer {
        let then = self.state().snapshot.msr(TSC_ADJUST);
        if self.platform.msr(self.lp, TSC_ADJUST) == then {
            Ok(())
        } else {
            Err(Status::INCONSISTENT_MSR.with(TSC_ADJUST))
        }
    }

    /// Gives a free page of 4 KB to a TD.
    pub(crate) fn take_page(&self, pa: u64, page_type: PageType, tdr: u64) {
        self.tables(|tables| {
            tables.pages.set(0, pa, PageEntry::new(page_type, tdr));
            tables.td(tdr).children += 1;
        });
    }

    /// Writes a page with the key of a TD, as every page that a leaf takes is.
    pub(crate) fn write_page(&self, pa: u64, tdr: u64) {
        let hkid = self.td(tdr, |td| td.hkid);
        self.platform.made_private(pa, PAGE_4K, hkid);
    }
}
