// SPDX-License-Identifier: GPL-2.0

//! Private pages of a TD: TDH.MEM.PAGE.ADD, TDH.MEM.PAGE.AUG and TDH.MEM.PAGE.REMOVE.

use crate::addr::PAGE_4K;
use crate::call::{Answer, Call};
use crate::locks::Mode;
use crate::mem_call::parse_gpa;
use crate::pamt::{LEVEL_SIZE, PageEntry, PageType, is_free};
use crate::sept::{EntryState, SeptEntry};
use crate::td::OpState;
use crate::td_call::{BUILT, OpLock};
use crate::{Operand, Status};

/// TDH.MEM.PAGE.ADD: copies a page of the host into a TD that is being built.
pub(crate) fn add(call: &mut Call<'_>) -> Answer {
    let (page, source) = (call.regs.r8, call.regs.r9);
    let (gpa, tdr) = call.take_gpa_operands();
    let _tdr = call.page(tdr, Mode::Exclusive, PageType::Tdr, Operand::Rdx)?;
    call.td_state(tdr, OpLock::Implied, &[OpState::Initialized])?;
    let index = parse_gpa(gpa, 0..=0)?;
    let held = call.sept_entry(tdr, index, None)?;
    if held.entry.is_some() {
        return Err(call.fail_at(tdr, held.index, Status::EPT_ENTRY_STATE_INCORRECT));
    }
    let source = call.shared_memory(source, PAGE_4K, PAGE_4K, Operand::R9)?;
    let _page = call.page(page, Mode::Exclusive, PageType::Nda, Operand::R8)?;
    let mut content = [0; PAGE_4K as usize];
    call.platform.read(source, &mut content);
    call.platform.write(page, &content);
    call.write_page(page, tdr);
    call.take_page(page, PageType::Reg, tdr);
    let entry = SeptEntry {
        state: EntryState::Mapped,
        hpa: page,
    };
    call.td(tdr, |td| {
        td.sept.set(held.index, Some(entry));
        td.measurement.operation(b"MEM.PAGE.ADD", index.gpa);
    });
    Ok(())
}

/// TDH.MEM.PAGE.AUG: maps a page that the guest must accept.
pub(crate) fn aug(call: &mut Call<'_>) -> Answer {
    let page = call.regs.r8;
    let (gpa, tdr) = call.take_gpa_operands();
    let _tdr = call.page(tdr, Mode::Shared, PageType::Tdr, Operand::Rdx)?;
    let _state = call.td_state(tdr, OpLock::Shared, &BUILT)?;
    let index = parse_gpa(gpa, 0..=1)?;
    let held = call.sept_entry(tdr, index, Some(Mode::Shared))?;
    if held.entry.is_some() {
        return Err(call.fail_at(tdr, held.index, Status::EPT_ENTRY_STATE_INCORRECT));
    }
    let level = index.level;
    let size = LEVEL_SIZE[usize::from(level)];
    if !page.is_multiple_of(size) || !call.keys().is_plain(page) {
        return Err(Status::OPERAND_INVALID.operand(Operand::R8));
    }
    if call.tables(|tables| tables.page(page)).is_none() {
        return Err(Status::OPERAND_ADDR_RANGE_ERROR.operand(Operand::R8));
    }
    let busy = Status::OPERAND_BUSY.operand(Operand::R8);
    let _page = call.lock_page(page, level, Mode::Exclusive, busy)?;
    if !call.tables(|tables| is_free(&tables.tdmrs, &tables.pages, level, page)) {
        return Err(Status::PAGE_METADATA_INCORRECT.operand(Operand::R8));
    }
    let entry = SeptEntry {
        state: EntryState::Pending,
        hpa: page,
    };
    call.tables(|tables| {
        let used = PageEntry::new(PageType::Reg, tdr);
        tables.pages.set(level, page, used);
        let td = tables.td(tdr);
        td.children += size / PAGE_4K;
        td.sept.set(held.index, Some(entry));
    });
    Ok(())
}

/// TDH.MEM.PAGE.REMOVE: takes a private page back from a TD.
pub(crate) fn remove(call: &mut Call<'_>) -> Answer {
    let (gpa, tdr) = call.take_gpa_operands();
    let _tdr = call.page(tdr, Mode::Shared, PageType::Tdr, Operand::Rdx)?;
    let _state = call.td_state(tdr, OpLock::Shared, &BUILT)?;
    let index = parse_gpa(gpa, 0..=2)?;
    let held = call.sept_entry(tdr, index, Some(Mode::Shared))?;
    let leaf = held.entry.filter(|entry| !entry.state.is_table());
    let Some(entry) = leaf else {
        return Err(call.fail_at(tdr, held.index, Status::EPT_ENTRY_STATE_INCORRECT));
    };
    let busy = Status::OPERAND_BUSY.operand(Operand::Rcx);
    let _page = call.lock_page(entry.hpa, index.level, Mode::Exclusive, busy)?;
    if call.td(tdr, |td| td.needs_tracking()) {
        if !entry.state.is_blocked() {
            return Err(call.fail_at(tdr, held.index, Status::GPA_RANGE_NOT_BLOCKED));
        }
        call.check_tracked(tdr, index.level, entry.hpa, Operand::Rcx)?;
    }
    let pages = LEVEL_SIZE[usize::from(index.level)] / PAGE_4K;
    call.tables(|tables| {
        tables.pages.free(index.level, entry.hpa);
        let td = tables.td(tdr);
        td.sept.set(held.index, None);
        td.children = td.children.saturating_sub(pages);
    });
    call.regs.rcx = entry.hpa;
    Ok(())
}
