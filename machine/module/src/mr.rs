// SPDX-License-Identifier: GPL-2.0

//! Measuring a TD while it is built: TDH.MR.EXTEND and TDH.MR.FINALIZE.

use crate::call::{Answer, Call};
use crate::locks::Mode;
use crate::pamt::PageType;
use crate::sept::EntryState;
use crate::td::OpState;
use crate::td_call::OpLock;
use crate::{Operand, Status};

/// Bytes that one TDH.MR.EXTEND measures.
const CHUNK: u64 = 256;

/// TDH.MR.EXTEND: measures a piece of a private page.
pub(crate) fn extend(call: &mut Call<'_>) -> Answer {
    let (gpa, tdr) = call.take_gpa_operands();
    let _tdr = call.page(tdr, Mode::Exclusive, PageType::Tdr, Operand::Rdx)?;
    call.td_state(tdr, OpLock::Implied, &[OpState::Initialized])?;
    if !gpa.is_multiple_of(CHUNK) {
        return Err(Status::OPERAND_INVALID.operand(Operand::Rcx));
    }
    call.check_private(tdr, gpa)?;
    let (index, entry) = call.td(tdr, |td| {
        let index = td.sept.translate(td.params.top_level(), gpa);
        (index, td.sept.get(index))
    });
    let Some(entry) = entry.filter(|entry| entry.state == EntryState::Mapped) else {
        return Err(call.fail_at(tdr, index, Status::EPT_ENTRY_NOT_PRESENT));
    };
    let mut content = [0; CHUNK as usize];
    call.platform
        .read(entry.hpa + (gpa - index.gpa), &mut content);
    call.td(tdr, |td| {
        td.measurement.operation(b"MR.EXTEND", gpa);
        td.measurement.content(&content);
    });
    Ok(())
}

/// TDH.MR.FINALIZE: closes the measurement; the TD can run.
pub(crate) fn finalize(call: &mut Call<'_>) -> Answer {
    let tdr = call.regs.rcx;
    let _tdr = call.page(tdr, Mode::Exclusive, PageType::Tdr, Operand::Rcx)?;
    call.td_state(tdr, OpLock::Implied, &[OpState::Initialized])?;
    call.td(tdr, |td| {
        if td.vcpus == 0 {
            return Err(Status::NO_VCPUS);
        }
        td.measurement.finish();
        td.op_state = OpState::Runnable;
        Ok(())
    })
}
