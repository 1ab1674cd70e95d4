// SPDX-License-Identifier: GPL-2.0

//! TDs as the machine's processors know them: which page lies at which guest address, and how far
//! each vCPU is in its program.
//!
//! `Tds` follows the calls that succeeded. It has what a processor finds in the Secure EPT and in
//! the TD VMCS; what is legal is the module's business. `seam::guest` runs the guests with it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;
use tdx_module::{Regs, number};

/// Bits of an operand that hold the address of a 4 KB page.
const PAGE: u64 = 0x000f_ffff_ffff_f000;
/// TDVPS field codes.
const POSTED_DESCRIPTOR: u64 = 0x2016;
const SHARED_EPT: u64 = 0x203c;
/// Bits of a field id that tell fields of TDVPS apart: class and code.
const FIELD: u64 = 0xff00_0000_00ff_ffff;
/// PAMT page types.
const PT_TDR: u64 = 4;
const PT_TDVPR: u64 = 6;
/// Guests that the summary tells about.
const GUESTS_MAX: usize = 256;

/// Bytes of a page or an entry at a Secure EPT level.
fn level_size(level: u64) -> u64 {
    4096 << (9 * (level & 7)).min(36)
}

/// GPA and size that an operand names.
fn gpa_and_size(operand: u64) -> (u64, u64) {
    (operand & PAGE, level_size(operand))
}

/// A private page as the Secure EPT maps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Page {
    size: u64,
    /// `None` until the host's call that added it is seen to return.
    hpa: Option<u64>,
    accepted: bool,
    blocked: bool,
}

/// One TD.
#[derive(Debug, Default)]
pub(crate) struct Td {
    number: u32,
    hkid: u16,
    vcpus: u32,
    /// By GPA.
    pages: BTreeMap<u64, Page>,
}

/// How far a guest is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// Index of the next step.
    pub(crate) position: usize,
    /// The step at `position` is a call that the host has not answered.
    pub(crate) calling: bool,
    /// Where `TDG.VP.VMCALL<MapGPA>` goes on.
    pub(crate) map_next: Option<u64>,
    /// The guest has left for the host since its program started over.
    pub(crate) exited: bool,
}

/// One vCPU.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vcpu {
    tdr: u64,
    index: u32,
    /// Root of the shared EPT, as the host wrote it.
    pub(crate) shared_ept: u64,
    /// Address of the posted-interrupt descriptor; 0 if there is none.
    pub(crate) posted: u64,
    pub(crate) cursor: Cursor,
}

/// What a guest did, for the summary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestSummary {
    /// TD in order of creation, from 0.
    pub td: u32,
    /// vCPU in order of TDH.VP.INIT, from 0.
    pub vcpu: u32,
    /// Times that the guest was entered.
    pub entries: u64,
    /// Exits to the host by reason; of calls, by leaf.
    pub exits: BTreeMap<String, u64>,
    /// Steps completed.
    pub steps: u64,
    /// Posted interrupts taken.
    pub interrupts: u64,
    /// Expectations that were not met.
    pub failures: u64,
}

/// All TDs.
#[derive(Debug, Default)]
pub(crate) struct Tds {
    created: u32,
    tds: BTreeMap<u64, Td>,
    vcpus: BTreeMap<u64, Vcpu>,
    guests: BTreeMap<(u32, u32), GuestSummary>,
}

/// Where a guest is.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) td: u32,
    pub(crate) vcpu: u32,
    pub(crate) tdr: u64,
    pub(crate) hkid: u16,
    pub(crate) state: Vcpu,
}

impl Tds {
    /// A leaf other than TDH.VP.ENTER succeeded.
    pub(crate) fn follow(&mut self, leaf: u16, before: &Regs, after: &Regs) {
        match leaf {
            number::MNG_CREATE => {
                let td = Td {
                    number: self.created,
                    hkid: before.rdx as u16,
                    ..Td::default()
                };
                self.created += 1;
                self.tds.insert(before.rcx, td);
            }
            number::VP_CREATE => {
                let vcpu = Vcpu {
                    tdr: before.rdx,
                    ..Vcpu::default()
                };
                self.vcpus.insert(before.rcx, vcpu);
            }
            number::VP_INIT => {
                let vcpu = self.vcpus.entry(before.rcx).or_default();
                let td = self.tds.entry(vcpu.tdr).or_default();
                vcpu.index = td.vcpus;
                td.vcpus += 1;
            }
            number::VP_WR => self.field_written(before),
            number::MEM_PAGE_ADD | number::MEM_PAGE_AUG => {
                self.page_added(before, leaf == number::MEM_PAGE_ADD);
            }
            number::MEM_RANGE_BLOCK => self.block(before, true),
            number::MEM_RANGE_UNBLOCK => self.block(before, false),
            number::MEM_PAGE_REMOVE => {
                let gpa = before.rcx & PAGE;
                if let Some(td) = self.tds.get_mut(&(before.rdx & PAGE)) {
                    td.pages.remove(&gpa);
                }
            }
            number::PHYMEM_PAGE_RECLAIM if after.rcx == PT_TDR => {
                self.tds.remove(&before.rcx);
            }
            number::PHYMEM_PAGE_RECLAIM if after.rcx == PT_TDVPR => {
                self.vcpus.remove(&before.rcx);
            }
            number::SYS_DISABLE => {
                self.tds.clear();
                self.vcpus.clear();
            }
            _ => {}
        }
    }

    fn field_written(&mut self, before: &Regs) {
        let vcpu = self.vcpus.entry(before.rcx).or_default();
        let field = match before.rdx & FIELD {
            POSTED_DESCRIPTOR => &mut vcpu.posted,
            SHARED_EPT => &mut vcpu.shared_ept,
            _ => return,
        };
        *field = *field & !before.r9 | before.r8 & before.r9;
    }

    fn page_added(&mut self, before: &Regs, accepted: bool) {
        let (gpa, size) = gpa_and_size(before.rcx);
        let td = self.tds.entry(before.rdx & PAGE).or_default();
        // The guest may have accepted the page before the host's call was seen to return.
        let page = td.pages.entry(gpa).or_insert(Page {
            size,
            hpa: None,
            accepted,
            blocked: false,
        });
        page.hpa = Some(before.r8 & PAGE);
    }

    fn block(&mut self, before: &Regs, blocked: bool) {
        let (gpa, size) = gpa_and_size(before.rcx);
        if let Some(td) = self.tds.get_mut(&(before.rdx & PAGE)) {
            for (_, page) in td.pages.range_mut(gpa..gpa.saturating_add(size)) {
                page.blocked = blocked;
            }
        }
    }

    /// The guest accepted the page at `gpa`.
    pub(crate) fn accepted(&mut self, tdr: u64, gpa: u64, level: u8) {
        let td = self.tds.entry(tdr).or_default();
        let page = td.pages.entry(gpa & PAGE).or_insert(Page {
            size: level_size(level.into()),
            hpa: None,
            accepted: true,
            blocked: false,
        });
        page.accepted = true;
    }

    /// Physical address behind a private GPA that the guest may access.
    pub(crate) fn translate(&self, tdr: u64, gpa: u64) -> Option<u64> {
        let (start, page) = self.tds.get(&tdr)?.pages.range(..=gpa).next_back()?;
        let usable = gpa - start < page.size && page.accepted && !page.blocked;
        page.hpa.filter(|_| usable).map(|hpa| hpa + (gpa - start))
    }

    /// The vCPU whose TDVPR is at `tdvpr`.
    pub(crate) fn place(&self, tdvpr: u64) -> Place {
        let state = self.vcpus.get(&tdvpr).cloned().unwrap_or_default();
        let td = self.tds.get(&state.tdr);
        Place {
            td: td.map_or(0, |td| td.number),
            vcpu: state.index,
            tdr: state.tdr,
            hkid: td.map_or(0, |td| td.hkid),
            state,
        }
    }

    /// The guest has stopped: notes how far it is, and what is added to its `summary`.
    pub(crate) fn stopped(&mut self, tdvpr: u64, cursor: Cursor, news: GuestSummary) {
        if let Some(vcpu) = self.vcpus.get_mut(&tdvpr) {
            vcpu.cursor = cursor;
        }
        let key = (news.td, news.vcpu);
        if self.guests.len() >= GUESTS_MAX && !self.guests.contains_key(&key) {
            return;
        }
        let guest = self.guests.entry(key).or_default();
        (guest.td, guest.vcpu) = key;
        guest.entries += news.entries;
        guest.steps += news.steps;
        guest.interrupts += news.interrupts;
        guest.failures += news.failures;
        for (name, count) in news.exits {
            *guest.exits.entry(name).or_default() += count;
        }
    }

    /// TDs created, and those that still exist.
    pub(crate) fn count(&self) -> (u32, usize) {
        (self.created, self.tds.len())
    }

    /// What the guests did.
    pub(crate) fn guests(&self) -> Vec<GuestSummary> {
        self.guests.values().cloned().collect()
    }

    /// RESET: all TDs are gone; what they did is remembered.
    pub(crate) fn reset(&mut self) {
        self.tds.clear();
        self.vcpus.clear();
    }
}

/// Memory that a leaf which succeeded took out of use.
pub(crate) fn freed(leaf: u16, before: &Regs, after: &Regs) -> Option<Range<u64>> {
    let (start, size) = match leaf {
        number::MEM_PAGE_REMOVE => (after.rcx & PAGE, level_size(before.rcx)),
        number::MEM_SEPT_REMOVE => (after.rcx & PAGE, level_size(0)),
        number::PHYMEM_PAGE_RECLAIM => (before.rcx & PAGE, level_size(after.r8)),
        _ => return None,
    };
    Some(start..start.saturating_add(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regs(rcx: u64, rdx: u64, r8: u64) -> Regs {
        Regs {
            rcx,
            rdx,
            r8,
            ..Regs::default()
        }
    }

    const TDR: u64 = 0x10_0000;
    const TDVPR: u64 = 0x20_0000;

    fn with_vcpu() -> Tds {
        let mut tds = Tds::default();
        let none = Regs::default();
        tds.follow(number::MNG_CREATE, &regs(0xf000, 17, 0), &none);
        tds.follow(number::MNG_CREATE, &regs(TDR, 18, 0), &none);
        tds.follow(number::VP_CREATE, &regs(TDVPR, TDR, 0), &none);
        tds.follow(number::VP_INIT, &regs(TDVPR, 0, 0), &none);
        tds
    }

    #[test]
    fn tds_and_vcpus_are_numbered_in_order() {
        let mut tds = with_vcpu();
        let none = Regs::default();
        tds.follow(number::VP_CREATE, &regs(0x3000, TDR, 0), &none);
        tds.follow(number::VP_INIT, &regs(0x3000, 0, 0), &none);
        let place = tds.place(0x3000);
        assert_eq!((place.td, place.vcpu, place.hkid), (1, 1, 18));
        assert_eq!(tds.place(TDVPR).vcpu, 0);
        let tdr = Regs {
            rcx: PT_TDR,
            ..none
        };
        tds.follow(number::PHYMEM_PAGE_RECLAIM, &regs(TDR, 0, 0), &tdr);
        assert_eq!(tds.count(), (2, 1));
    }

    #[test]
    fn a_page_is_usable_between_accept_and_block() {
        let mut tds = with_vcpu();
        let none = Regs::default();
        tds.follow(number::MEM_PAGE_AUG, &regs(0x5000, TDR, 0x9000), &none);
        assert_eq!(tds.translate(TDR, 0x5008), None);
        tds.accepted(TDR, 0x5000, 0);
        assert_eq!(tds.translate(TDR, 0x5008), Some(0x9008));
        assert_eq!(tds.translate(TDR, 0x6000), None);
        tds.follow(number::MEM_RANGE_BLOCK, &regs(1, TDR, 0), &none);
        assert_eq!(tds.translate(TDR, 0x5008), None, "2 MB from 0 are blocked");
        tds.follow(number::MEM_RANGE_UNBLOCK, &regs(1, TDR, 0), &none);
        assert_eq!(tds.translate(TDR, 0x5008), Some(0x9008));
        tds.follow(number::MEM_PAGE_REMOVE, &regs(0x5000, TDR, 0), &none);
        assert_eq!(tds.translate(TDR, 0x5008), None);
    }

    #[test]
    fn accepting_may_overtake_the_call_that_added_the_page() {
        let mut tds = with_vcpu();
        tds.accepted(TDR, 0x5000, 0);
        assert_eq!(tds.translate(TDR, 0x5000), None);
        let none = Regs::default();
        tds.follow(number::MEM_PAGE_AUG, &regs(0x5000, TDR, 0x9000), &none);
        assert_eq!(tds.translate(TDR, 0x5000), Some(0x9000));
    }

    #[test]
    fn written_fields_are_kept_under_their_mask() {
        let mut tds = with_vcpu();
        let write = |field, value, mask| Regs {
            r9: mask,
            ..regs(TDVPR, field, value)
        };
        let none = Regs::default();
        tds.follow(number::VP_WR, &write(0x203c, 0x7000, u64::MAX), &none);
        tds.follow(number::VP_WR, &write(0x2016, 0x8fff, !0x3f), &none);
        tds.follow(number::VP_WR, &write(0x4000, 0x80, 0x80), &none);
        let state = tds.place(TDVPR).state;
        assert_eq!((state.shared_ept, state.posted), (0x7000, 0x8fc0));
    }

    #[test]
    fn freed_memory_is_found_in_the_operands_of_each_leaf() {
        let none = Regs::default();
        let removed = freed(
            number::MEM_PAGE_REMOVE,
            &regs(0x20_0001, TDR, 0),
            &regs(0x40_0000, 0, 0),
        );
        assert_eq!(removed, Some(0x40_0000..0x60_0000));
        let reclaimed = freed(number::PHYMEM_PAGE_RECLAIM, &regs(0x7000, 0, 0), &none);
        assert_eq!(reclaimed, Some(0x7000..0x8000));
        assert_eq!(freed(number::MEM_TRACK, &regs(TDR, 0, 0), &none), None);
    }
}
