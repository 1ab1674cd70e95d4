// SPDX-License-Identifier: GPL-2.0

//! Blocking and TLB tracking: TDH.MEM.RANGE.BLOCK, TDH.MEM.RANGE.UNBLOCK and TDH.MEM.TRACK.

use crate::call::{Answer, Call};
use crate::locks::{LockId, Mode};
use crate::mem_call::{HeldEntry, page_level, parse_gpa};
use crate::pamt::PageType;
use crate::sept::{EntryState, SeptEntry};
use crate::td_call::{BUILT, OpLock};
use crate::{Operand, Status};

/// TDH.MEM.RANGE.BLOCK: from now on no new translation through an entry is made.
pub(crate) fn block(call: &mut Call<'_>) -> Answer {
    with_entry(call, |call, tdr, held| {
        let Some(entry) = held.entry else {
            return Err(call.fail_at(tdr, held.index, Status::EPT_ENTRY_STATE_INCORRECT));
        };
        let Some(state) = entry.state.blocked() else {
            return Err(call.fail_at(tdr, held.index, Status::GPA_RANGE_ALREADY_BLOCKED));
        };
        let level = page_level(held.index, entry);
        call.tables(|tables| {
            let epoch = tables.td(tdr).epochs.current;
            tables.pages.block(level, entry.hpa, epoch);
        });
        set_state(call, tdr, held, entry, state);
        Ok(())
    })
}

/// TDH.MEM.RANGE.UNBLOCK: takes RANGE.BLOCK back.
pub(crate) fn unblock(call: &mut Call<'_>) -> Answer {
    with_entry(call, |call, tdr, held| {
        let unblocked = held
            .entry
            .and_then(|entry| entry.state.unblocked().map(|state| (entry, state)));
        let Some((entry, state)) = unblocked else {
            return Err(call.fail_at(tdr, held.index, Status::EPT_ENTRY_STATE_INCORRECT));
        };
        if call.td(tdr, |td| td.needs_tracking()) {
            let operand = call.module.facts().unblock_tracking_operand();
            let level = page_level(held.index, entry);
            call.check_tracked(tdr, level, entry.hpa, operand)?;
        }
        set_state(call, tdr, held, entry, state);
        Ok(())
    })
}

/// The checks that both leaves share; then `action` with the TDR and the entry.
fn with_entry<'a>(
    call: &mut Call<'a>,
    action: impl FnOnce(&mut Call<'a>, u64, &HeldEntry<'a>) -> Answer,
) -> Answer {
    let (gpa, tdr) = call.take_gpa_operands();
    let _tdr = call.page(tdr, Mode::Shared, PageType::Tdr, Operand::Rdx)?;
    let _state = call.td_state(tdr, OpLock::Shared, &BUILT)?;
    let top = call.td(tdr, |td| td.params.top_level());
    let index = parse_gpa(gpa, 0..=top)?;
    let held = call.sept_entry(tdr, index, Some(Mode::Exclusive))?;
    action(call, tdr, &held)
}

fn set_state(call: &Call<'_>, tdr: u64, held: &HeldEntry<'_>, entry: SeptEntry, state: EntryState) {
    let entry = SeptEntry { state, ..entry };
    call.td(tdr, |td| td.sept.set(held.index, Some(entry)));
}

/// TDH.MEM.TRACK: starts a new TLB epoch.
pub(crate) fn track(call: &mut Call<'_>) -> Answer {
    let tdr = call.regs.rcx;
    let _tdr = call.page(tdr, Mode::Shared, PageType::Tdr, Operand::Rcx)?;
    let _state = call.td_state(tdr, OpLock::Shared, &BUILT)?;
    let busy = Status::OPERAND_BUSY.operand(Operand::TdEpoch);
    let _epoch = call.lock(LockId::TdEpoch(tdr), Mode::Exclusive, busy)?;
    call.td(tdr, |td| td.epochs.advance())
        .map_err(|_| Status::PREVIOUS_TLB_EPOCH_BUSY)
}
