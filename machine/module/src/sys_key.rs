// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.KEY.CONFIG: the global private key, package by package.

use crate::call::{Answer, Call};
use crate::locks::Mode;
use crate::state::SysState;
use crate::{Operand, Pconfig, Status};

/// TDH.SYS.KEY.CONFIG.
pub(crate) fn key_config(call: &mut Call<'_>) -> Answer {
    let _global = call.lock_global(Mode::Exclusive)?;
    let package = 1 << call.package();
    let hkid = {
        let state = call.state();
        if state.sys != SysState::ConfigDone {
            return Err(Status::SYS_KEY_CONFIG_NOT_PENDING);
        }
        if state.tables.packages_configured & package != 0 {
            return Err(Status::KEY_CONFIGURED);
        }
        state.tables.global_hkid
    };
    program_key(call, hkid)?;

    let mut state = call.state();
    state.tables.packages_configured |= package;
    if state.tables.packages_configured == state.initialized_packages() {
        state.sys = SysState::Ready;
    }
    Ok(())
}

/// Programs a fresh key for `hkid` on the calling processor's package.
pub(crate) fn program_key(call: &Call<'_>, hkid: u16) -> Answer {
    match call.platform.pconfig(call.lp, hkid) {
        Pconfig::Programmed => Ok(()),
        Pconfig::Busy => Err(Status::OPERAND_BUSY.operand(Operand::Ket)),
        Pconfig::NoEntropy => Err(Status::KEY_GENERATION_FAILED),
    }
}
