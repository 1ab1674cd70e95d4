// SPDX-License-Identifier: GPL-2.0

//! A virtual processor of a TD as the module keeps it in TDVPR and TDCX pages: [`Vcpu`], and what is
//! remembered while it runs, [`GuestRun`].

use std::collections::BTreeMap;

use crate::Regs;
use crate::locks::LockId;

/// Most pages of a vCPU's control structures, the TDVPR included.
pub(crate) const MAX_VCPU_PAGES: usize = 15;

/// How far a vCPU is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum VcpuState {
    /// VP.INIT has not succeeded.
    #[default]
    Uninitialized = 0,
    /// It can be entered.
    Ready = 2,
    /// It runs on some logical processor.
    Active = 4,
    /// It had a fatal error.
    Disabled = 8,
}

/// What the last exit of a vCPU expects of the next entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LastExit {
    /// Nothing: the registers of the guest are as they were.
    #[default]
    Asynchronous,
    /// The host passes the registers back that this mask of TDG.VP.VMCALL selects.
    VmCall(u32),
}

/// Guest addresses whose faults look like single-stepping by the host.
#[derive(Clone, Debug, Default)]
pub(crate) struct FaultLog {
    /// EPT violations in a row without progress of the guest.
    count: u32,
    /// Addresses of pages that faulted after there were too many.
    pub(crate) pages: Vec<u64>,
}

/// EPT violations without progress of the guest that are not logged.
const UNSUSPICIOUS_FAULTS: u32 = 6;
/// Most addresses in the log.
const MAX_LOGGED: usize = 32;

impl FaultLog {
    /// Notes an EPT violation at a private page.
    pub(crate) fn note(&mut self, gpa: u64) {
        self.count += 1;
        let room = self.pages.len() < MAX_LOGGED && !self.pages.contains(&gpa);
        if self.count > UNSUSPICIOUS_FAULTS && room {
            self.pages.push(gpa);
        }
    }
}

/// One vCPU.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vcpu {
    pub(crate) state: VcpuState,
    /// Pages besides the TDVPR in order of addition.
    pub(crate) tdcx: Vec<u64>,
    pub(crate) index: u32,
    /// The logical processor that holds its state.
    pub(crate) lp: Option<usize>,
    /// TLB epoch of the TD at its last entry.
    pub(crate) epoch: u64,
    pub(crate) last_exit: LastExit,
    /// The guest's registers when it last stopped.
    pub(crate) regs: Regs,
    pub(crate) faults: FaultLog,
    /// VM exit reason of its last exit to the host.
    pub(crate) exit_reason: u32,
    /// TDCALLs after which the module moved the guest on.
    pub(crate) instructions_skipped: u64,
    /// Values of its fields that differ from the initial ones, by field key.
    pub(crate) fields: BTreeMap<u64, u64>,
}

impl Vcpu {
    /// Number of its pages, the TDVPR included.
    pub(crate) fn pages(&self) -> usize {
        1 + self.tdcx.len()
    }
}

/// A guest that runs on a logical processor.
#[derive(Clone, Debug)]
pub(crate) struct GuestRun {
    pub(crate) tdvpr: u64,
    pub(crate) tdr: u64,
    /// The host's registers at its TDH.VP.ENTER.
    pub(crate) host: Regs,
    /// Locks that stay held until the exit.
    pub(crate) locks: Vec<LockId>,
}
