// SPDX-License-Identifier: GPL-2.0

//! The end of a module and the start of its successor: TDH.SYS.SHUTDOWN, TDH.SYS.UPDATE and
//! TDH.SYS.LP.SHUTDOWN.

use crate::call::{Answer, Call};
use crate::locks::Mode;
use crate::state::{Handoff, SysState};
use crate::{Operand, Status};

/// TDH.SYS.LP.SHUTDOWN, which does nothing any more.
pub(crate) fn lp_shutdown(_call: &mut Call<'_>) -> Answer {
    Ok(())
}

/// TDH.SYS.SHUTDOWN: packs the tables for the next module.
pub(crate) fn shutdown(call: &mut Call<'_>) -> Answer {
    let facts = call.module.facts();
    let wanted = call.regs.rcx;
    let least = if facts.no_downgrade {
        facts.module_hv
    } else {
        facts.min_update_hv
    };
    let version = u16::try_from(wanted)
        .ok()
        .filter(|version| (least..=facts.module_hv).contains(version))
        .ok_or(Status::OPERAND_INVALID.operand(Operand::Rcx))?;
    let _global = call.lock_global(Mode::Exclusive)?;
    let mut state = call.state();
    if state.others_in_seam(call.lp) {
        return Err(Status::SYS_BUSY);
    }
    let tables = std::mem::take(&mut state.tables);
    state.handoff = Some(Handoff { version, tables });
    state.sys = SysState::Shutdown;
    Ok(())
}

/// TDH.SYS.UPDATE: takes over what the previous module left.
pub(crate) fn update(call: &mut Call<'_>) -> Answer {
    let facts = call.module.facts();
    let _global = call.lock_global(Mode::Exclusive)?;
    let mut state = call.state();
    let everyone = state.initialized_lps() == call.platform_lps();
    if state.sys != SysState::InitDone || !everyone {
        return Err(Status::SYS_STATE_INCORRECT);
    }
    let known = facts.min_update_hv..=facts.module_hv;
    let handoff = state.handoff.take_if(|data| known.contains(&data.version));
    state.tables = handoff.ok_or(Status::SYS_INVALID_HANDOFF)?.tables;
    state.sys = SysState::Ready;
    Ok(())
}
