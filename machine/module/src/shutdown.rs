// SPDX-License-Identifier: GPL-2.0

//! The end of a module and the start of its successor: TDH.SYS.SHUTDOWN, TDH.SYS.UPDATE and
//! TDH.SYS.LP.SHUTDOWN.

use crate::call::{Answer, Call};
use crate::locks::Mode;
use crate::state::SysState;
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
    if !(u64::from(least)..=u64::from(facts.module_hv)).contains(&wanted) {
        return Err(Status::OPERAND_INVALID.operand(Operand::Rcx));
    }
    let _global = call.lock_global(Mode::Exclusive)?;
    let mut state = call.state();
    if state.others_in_seam(call.lp) {
        return Err(Status::SYS_BUSY);
    }
    state.handoff = Some(std::mem::take(&mut state.tables));
    state.sys = SysState::Shutdown;
    Ok(())
}

/// TDH.SYS.UPDATE: takes over what the previous module left.
///
/// The previous module was of the same build, so the version of its data is always a known one.
pub(crate) fn update(call: &mut Call<'_>) -> Answer {
    let _global = call.lock_global(Mode::Exclusive)?;
    let mut state = call.state();
    let everyone = state.initialized_lps() == call.platform_lps();
    if state.sys != SysState::InitDone || !everyone {
        return Err(Status::SYS_STATE_INCORRECT);
    }
    state.tables = state.handoff.take().ok_or(Status::SYS_INVALID_HANDOFF)?;
    state.sys = SysState::Ready;
    Ok(())
}
