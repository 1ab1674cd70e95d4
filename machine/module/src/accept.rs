// SPDX-License-Identifier: GPL-2.0

//! TDG.MEM.PAGE.ACCEPT: the guest takes a page that the host added.

use crate::call::Call;
use crate::guest_exit::{Fate, GuestExit};
use crate::locks::{LockId, Mode};
use crate::mem_call::parse_gpa;
use crate::sept::{EntryState, SeptEntry, SeptIndex, level_size};
use crate::vcpu::GuestRun;
use crate::vp_enter::EPT_VIOLATION;
use crate::{Operand, Regs, Status};

/// Extended exit qualification: TDG.MEM.PAGE.ACCEPT failed.
const ACCEPT: u64 = 1;
/// What an exit reports as the cause: a write.
const WRITE: u64 = 2;

/// Does TDG.MEM.PAGE.ACCEPT.
pub(crate) fn accept(call: &Call<'_>, run: &GuestRun, exit: &GuestExit) -> Fate {
    let answer = |status: Status| {
        Fate::Guest(Regs {
            rax: status.raw(),
            ..exit.regs
        })
    };
    let wanted = match parse_gpa(exit.regs.rcx, 0..=1) {
        Ok(wanted) => wanted,
        Err(status) => return answer(status),
    };
    if let Err(status) = call.check_private(run.tdr, wanted.gpa) {
        return answer(status);
    }
    let index = call.td(run.tdr, |td| {
        let walk = td
            .sept
            .walk(td.params.top_level(), wanted.level, wanted.gpa);
        walk.unwrap_or_else(|stopped| stopped)
    });
    let id = LockId::SeptEntry(run.tdr, index.level, index.gpa);
    let busy = Status::OPERAND_BUSY.operand(Operand::Rcx);
    // The host must not block the page, nor another vCPU write it, between the look and the change.
    let _entry_lock = match call.lock(id, Mode::Exclusive, busy) {
        Ok(held) => held,
        Err(busy) => return answer(busy),
    };
    let entry = call.td(run.tdr, |td| td.sept.get(index));
    let state = entry.map(|entry| entry.state);
    match (state, entry) {
        (Some(EntryState::Mapped), _) => {
            answer(Status::PAGE_ALREADY_ACCEPTED.with(index.level.into()))
        }
        (Some(EntryState::Table), _) => {
            answer(Status::PAGE_SIZE_MISMATCH.with(wanted.level.into()))
        }
        (Some(EntryState::Pending), Some(entry)) if index == wanted => {
            take(call, run, index, entry);
            answer(Status::SUCCESS)
        }
        _ => fault(wanted, index, entry),
    }
}

/// Zeroes the page and maps it.
fn take(call: &Call<'_>, run: &GuestRun, index: SeptIndex, entry: SeptEntry) {
    let size = level_size(index.level);
    let zeroes = [0; 4096];
    for page in (entry.hpa..entry.hpa + size).step_by(zeroes.len()) {
        call.platform.write(page, &zeroes);
    }
    let hkid = call.td(run.tdr, |td| td.hkid);
    call.platform.made_private(entry.hpa, size, hkid);
    let state = EntryState::Mapped;
    let entry = SeptEntry { state, ..entry };
    call.td(run.tdr, |td| td.sept.set(index, Some(entry)));
}

/// The host must do something before the guest can accept the page.
fn fault(wanted: SeptIndex, index: SeptIndex, entry: Option<SeptEntry>) -> Fate {
    let leaf = entry.is_some_and(|entry| !entry.state.is_table());
    let state = index.report(entry) >> 8;
    let info =
        u64::from(wanted.level) | u64::from(index.level) << 3 | state << 6 | u64::from(leaf) << 14;
    Fate::Host(Regs {
        rax: EPT_VIOLATION.into(),
        rcx: WRITE,
        rdx: ACCEPT | info << 32,
        r8: wanted.gpa,
        ..Regs::default()
    })
}
