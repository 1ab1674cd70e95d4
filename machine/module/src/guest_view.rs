// SPDX-License-Identifier: GPL-2.0

//! What a simulated processor must know of the guest that it runs: [`GuestView`], and what its walk
//! through the S-EPT finds, [`Translation`].

use crate::Module;
use crate::fields;
use crate::sept::{EntryState, level_size};

/// The guest that runs on a logical processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestView {
    /// Address of the TD's TDR.
    pub tdr: u64,
    /// Address of the vCPU's TDVPR.
    pub tdvpr: u64,
    /// Index of the vCPU in its TD, from 0.
    pub index: u32,
    /// The TD's KeyID.
    pub hkid: u16,
}

/// What the processor finds when a guest uses a guest physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    /// The address is shared: the host's own EPT decides.
    Shared {
        /// The address without the bit that makes it shared.
        gpa: u64,
    },
    /// A private page that the guest may use.
    Mapped {
        /// The host physical address, without KeyID.
        hpa: u64,
    },
    /// A private page that the guest has not accepted: an EPT violation.
    Pending,
    /// Nothing, or something blocked: an EPT violation.
    NotPresent,
}

impl Module {
    /// The guest that runs on processor `lp`, if one does.
    pub fn guest(&self, lp: usize) -> Option<GuestView> {
        let mut state = self.state();
        let run = state.lp(lp).guest.clone()?;
        let tables = &mut state.tables;
        Some(GuestView {
            tdr: run.tdr,
            tdvpr: run.tdvpr,
            index: tables.vcpu(run.tdvpr).index,
            hkid: tables.td(run.tdr).hkid,
        })
    }

    /// Translates an address of the guest on processor `lp`; `None` if no guest runs there.
    pub fn translate(&self, lp: usize, gpa: u64) -> Option<Translation> {
        let mut state = self.state();
        let tdr = state.lp(lp).guest.as_ref()?.tdr;
        let td = state.tables.td(tdr);
        let shared = td.params.shared_bit();
        if gpa & shared != 0 {
            return Some(Translation::Shared { gpa: gpa & !shared });
        }
        let index = td.sept.translate(td.params.top_level(), gpa);
        let offset = gpa & (level_size(index.level) - 1);
        Some(match td.sept.get(index) {
            Some(entry) if entry.state == EntryState::Mapped => Translation::Mapped {
                hpa: entry.hpa + offset,
            },
            Some(entry) if entry.state == EntryState::Pending => Translation::Pending,
            _ => Translation::NotPresent,
        })
    }

    /// What TDH.VP.WR last wrote to a field of the vCPU on processor `lp`, such as the
    /// posted-interrupt vector (2) or the shared EPT pointer (203Ch).
    ///
    /// `None` if no guest runs there or the field was never written.
    pub fn guest_field(&self, lp: usize, id: u64) -> Option<u64> {
        let mut state = self.state();
        let tdvpr = state.lp(lp).guest.as_ref()?.tdvpr;
        let vcpu = state.tables.vcpu(tdvpr);
        vcpu.fields.get(&fields::key(id)).copied()
    }
}
