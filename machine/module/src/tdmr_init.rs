// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.TDMR.INIT: initialises the PAMT of a TDMR, a small piece per call.

use std::ops::Range;

use crate::addr::PAGE_1G;
use crate::call::{Answer, Call};
use crate::locks::{LockId, Mode};
use crate::pamt::Tdmr;
use crate::state::State;
use crate::{Operand, Status};

/// Bytes of a TDMR whose PAMT entries one call initialises: 1024 entries of 4 KB pages.
const STEP: u64 = 4 << 20;

/// TDH.SYS.TDMR.INIT. Different TDMRs may be initialised at the same time.
pub(crate) fn tdmr_init(call: &mut Call<'_>) -> Answer {
    call.regs.rdx = 0;
    let base = call.regs.rcx;
    let index = find_tdmr(&call.state(), base)?;
    let busy = Status::OPERAND_BUSY.operand(Operand::Rcx);
    let _tdmr = call.lock(LockId::Tdmr(index), Mode::Exclusive, busy)?;
    let (lines, hkid) = {
        let mut state = call.state();
        let hkid = state.tables.global_hkid;
        let tdmr = tdmr(&mut state, index)?;
        if tdmr.initialized >= tdmr.end() {
            return Err(Status::TDMR_ALREADY_INITIALIZED);
        }
        (next_lines(tdmr, call.module.config().pamt_entry_size), hkid)
    };
    for lines in lines {
        call.platform
            .made_private(lines.start, lines.end - lines.start, hkid);
    }
    let mut state = call.state();
    let tdmr = tdmr(&mut state, index)?;
    tdmr.initialized += STEP;
    call.regs.rdx = tdmr.usable_end();
    Ok(())
}

const NO_SUCH_TDMR: Status = Status::OPERAND_INVALID.operand(Operand::Rcx);

fn find_tdmr(state: &State, base: u64) -> Result<usize, Status> {
    if !base.is_multiple_of(PAGE_1G) || !state.keys.is_plain(base) {
        return Err(NO_SUCH_TDMR);
    }
    let mut tdmrs = state.tables.tdmrs.iter();
    tdmrs.position(|tdmr| tdmr.base == base).ok_or(NO_SUCH_TDMR)
}

fn tdmr(state: &mut State, index: usize) -> Result<&mut Tdmr, Status> {
    state.tables.tdmrs.get_mut(index).ok_or(NO_SUCH_TDMR)
}

/// The PAMT lines that the next step writes, for each level.
fn next_lines(tdmr: &Tdmr, entry_size: [u16; 3]) -> [Range<u64>; 3] {
    let pages = tdmr.initialized..tdmr.initialized + STEP;
    [0, 1, 2].map(|level| tdmr.pamt_lines(level, pages.clone(), entry_size[level].into()))
}
