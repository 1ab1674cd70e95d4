// SPDX-License-Identifier: GPL-2.0

//! S-EPT pages: TDH.MEM.SEPT.ADD and TDH.MEM.SEPT.REMOVE.

use crate::call::{Answer, Call};
use crate::locks::Mode;
use crate::mem_call::parse_gpa;
use crate::pamt::PageType;
use crate::sept::{EntryState, SeptEntry};
use crate::td_call::{BUILT, OpLock};
use crate::{Operand, Status};

/// Bit of RDX: an S-EPT page that is there already is no error.
const ALLOW_EXISTING: u64 = 1;
/// No page: what R8 holds when SEPT.ADD is not given one.
const NO_PAGE: u64 = u64::MAX;
/// Bit of R8 that is ignored.
const IGNORED: u64 = 1 << 63;

/// TDH.MEM.SEPT.ADD: adds an S-EPT page below an entry.
pub(crate) fn add(call: &mut Call<'_>) -> Answer {
    let version = call.version();
    let page = call.regs.r8;
    let (gpa, rdx) = call.take_gpa_operands();
    if version > 1 {
        return Err(Status::OPERAND_INVALID.operand(Operand::Rax));
    }
    let (tdr, allow_existing) = (rdx & !ALLOW_EXISTING, rdx & ALLOW_EXISTING != 0);
    let _tdr = call.page(tdr, Mode::Shared, PageType::Tdr, Operand::Rdx)?;
    let _state = call.td_state(tdr, OpLock::Shared, &BUILT)?;
    let top = call.td(tdr, |td| td.params.top_level());
    let index = parse_gpa(gpa, 1..=top)?;
    let held = call.sept_entry(tdr, index, Some(Mode::Shared))?;
    match held.entry.map(|entry| entry.state) {
        None => {}
        Some(EntryState::Table) if allow_existing => return Ok(()),
        Some(_) => {
            return Err(call.fail_at(tdr, held.index, Status::EPT_ENTRY_STATE_INCORRECT));
        }
    }
    if version == 0 && page == NO_PAGE {
        return Err(Status::OPERAND_INVALID.operand(Operand::R8));
    }
    let page = page & !IGNORED;
    let _page = call.page(page, Mode::Exclusive, PageType::Nda, Operand::R8)?;
    call.write_page(page, tdr);
    call.take_page(page, PageType::Ept, tdr);
    let entry = SeptEntry {
        state: EntryState::Table,
        hpa: page,
    };
    call.td(tdr, |td| td.sept.set(held.index, Some(entry)));
    Ok(())
}

/// TDH.MEM.SEPT.REMOVE: removes an S-EPT page without used entries.
pub(crate) fn remove(call: &mut Call<'_>) -> Answer {
    let version = call.version();
    let (gpa, tdr) = call.take_gpa_operands();
    if version > 0 {
        [call.regs.r9, call.regs.r10, call.regs.r11] = [NO_PAGE; 3];
    }
    if version > 1 {
        return Err(Status::OPERAND_INVALID.operand(Operand::Rax));
    }
    let _tdr = call.page(tdr, Mode::Shared, PageType::Tdr, Operand::Rdx)?;
    let _state = call.td_state(tdr, OpLock::Shared, &BUILT)?;
    let top = call.td(tdr, |td| td.params.top_level());
    let index = parse_gpa(gpa, 1..=top)?;
    let held = call.sept_entry(tdr, index, Some(Mode::Exclusive))?;
    let table = held.entry.filter(|entry| entry.state.is_table());
    let Some(entry) = table else {
        return Err(call.fail_at(tdr, held.index, Status::EPT_ENTRY_STATE_INCORRECT));
    };
    let busy = Status::OPERAND_BUSY.operand(Operand::Rcx);
    let _page = call.lock_page(entry.hpa, 0, Mode::Exclusive, busy)?;
    if call.td(tdr, |td| td.needs_tracking()) {
        if !entry.state.is_blocked() {
            return Err(call.fail_at(tdr, held.index, Status::GPA_RANGE_NOT_BLOCKED));
        }
        call.check_tracked(tdr, 0, entry.hpa, Operand::Rcx)?;
    }
    if !call.td(tdr, |td| td.sept.is_empty_below(held.index)) {
        return Err(call.fail_at(tdr, held.index, Status::EPT_PAGE_NOT_FREE));
    }
    call.tables(|tables| {
        tables.pages.free(0, entry.hpa);
        let td = tables.td(tdr);
        td.sept.set(held.index, None);
        td.children = td.children.saturating_sub(1);
    });
    call.regs.rcx = entry.hpa;
    Ok(())
}
