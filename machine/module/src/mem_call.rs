// SPDX-License-Identifier: GPL-2.0

//! What the leaves about a TD's memory share: the operand that names a guest address and a level,
//! the walk to its S-EPT entry, and the report of where the walk ended.

use crate::call::{Answer, Call, Held};
use crate::locks::{LockId, Mode};
use crate::sept::{SeptEntry, SeptIndex, level_size, report_content};
use crate::{Operand, Status};

const BAD_ADDRESS: Status = Status::OPERAND_INVALID.operand(Operand::Rcx);
/// Bits of the operand that hold the guest address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A guest address and the level of its entry, as RCX gives them.
pub(crate) fn parse_gpa(
    rcx: u64,
    levels: std::ops::RangeInclusive<u8>,
) -> Result<SeptIndex, Status> {
    let level = (rcx & 7) as u8;
    let gpa = rcx & ADDRESS;
    let good = rcx & !(ADDRESS | 7) == 0
        && levels.contains(&level)
        && gpa.is_multiple_of(level_size(level));
    if good {
        Ok(SeptIndex { level, gpa })
    } else {
        Err(BAD_ADDRESS)
    }
}

/// An S-EPT entry that a leaf holds, with the locks of the tree and the entry.
pub(crate) struct HeldEntry<'a> {
    pub(crate) index: SeptIndex,
    /// `None` if it is free.
    pub(crate) entry: Option<SeptEntry>,
    #[expect(dead_code, reason = "held until dropped")]
    locks: Vec<Held<'a>>,
}

impl<'a> Call<'a> {
    /// Whether an address can be private memory of a TD.
    pub(crate) fn check_private(&self, tdr: u64, gpa: u64) -> Answer {
        match self.td(tdr, |td| td.params.is_private(gpa)) {
            true => Ok(()),
            false => Err(BAD_ADDRESS),
        }
    }

    /// Takes the lock of a TD's S-EPT.
    pub(crate) fn lock_tree(&self, tdr: u64, mode: Mode) -> Result<Held<'a>, Status> {
        let busy = Status::OPERAND_BUSY.operand(Operand::SeptTree);
        self.lock(LockId::SeptTree(tdr), mode, busy)
    }

    /// Walks to an entry and locks it; `tree` is `None` where the TDR is held exclusively.
    pub(crate) fn sept_entry(
        &mut self,
        tdr: u64,
        index: SeptIndex,
        tree: Option<Mode>,
    ) -> Result<HeldEntry<'a>, Status> {
        self.check_private(tdr, index.gpa)?;
        let mut locks = vec![];
        if let Some(mode) = tree {
            locks.push(self.lock_tree(tdr, mode)?);
        }
        let walk = self.td(tdr, |td| {
            td.sept.walk(td.params.top_level(), index.level, index.gpa)
        });
        let index = walk.map_err(|stopped| self.fail_at(tdr, stopped, Status::EPT_WALK_FAILED))?;
        let id = LockId::SeptEntry(tdr, index.level, index.gpa);
        let busy = Status::OPERAND_BUSY;
        match self.lock(id, Mode::Exclusive, busy) {
            Ok(held) => locks.push(held),
            Err(busy) => return Err(self.fail_at(tdr, index, busy)),
        }
        let entry = self.td(tdr, |td| td.sept.get(index));
        Ok(HeldEntry {
            index,
            entry,
            locks,
        })
    }

    /// Reports an entry in RCX and RDX, and the status that goes with it.
    pub(crate) fn fail_at(&mut self, tdr: u64, index: SeptIndex, status: Status) -> Status {
        let entry = self.td(tdr, |td| td.sept.get(index));
        self.regs.rcx = report_content(entry);
        self.regs.rdx = index.report(entry);
        status.operand(Operand::Rcx)
    }

    /// Clears the registers in which the leaves about memory report an entry; returns the operands.
    pub(crate) fn take_gpa_operands(&mut self) -> (u64, u64) {
        let operands = (self.regs.rcx, self.regs.rdx);
        self.regs.rcx = 0;
        self.regs.rdx = 0;
        operands
    }

    /// Whether no TLB can hold translations through a blocked entry any more.
    pub(crate) fn check_tracked(&self, tdr: u64, level: u8, hpa: u64, operand: Operand) -> Answer {
        let tracked = self.tables(|tables| {
            let page = tables.pages.entry(level, hpa);
            tables.td(tdr).epochs.is_tracked(page.blocked_at)
        });
        match tracked {
            true => Ok(()),
            false => Err(Status::TLB_TRACKING_NOT_DONE.operand(operand)),
        }
    }
}

/// The level in PAMT of the page that an entry points to.
pub(crate) fn page_level(index: SeptIndex, entry: SeptEntry) -> u8 {
    if entry.state.is_table() {
        0
    } else {
        index.level
    }
}
