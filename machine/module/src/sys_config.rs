// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.CONFIG: the operands and the walk over the list. The rules for an entry are in
//! `tdmr_info.rs`.

use crate::call::{Answer, Call};
use crate::locks::Mode;
use crate::state::{KeyOwner, SysState, Tables};
use crate::tdmr_info::{Checker, TdmrInfo};
use crate::{Operand, Status};

/// Alignment of the list of addresses and of each TDMR_INFO.
const ALIGN: u64 = 512;

/// TDH.SYS.CONFIG.
pub(crate) fn config(call: &mut Call<'_>) -> Answer {
    let _global = call.lock_global(Mode::Exclusive)?;
    check_pending(call)?;
    let list = call.shared_memory(call.regs.rcx, ALIGN, ALIGN, Operand::Rcx)?;
    let count = call.regs.rdx;
    if count == 0 || count > call.module.config().max_tdmrs.into() {
        return Err(Status::OPERAND_INVALID.operand(Operand::Rdx));
    }
    let hkid = global_hkid(call)?;
    if call.module.facts().failed_config_reserves_key() {
        reserve(call, hkid);
    }
    let checker = check_entries(call, list, count)?;
    reserve(call, hkid);

    let mut state = call.state();
    state.tables.tdmrs = checker.into_tdmrs();
    state.sys = SysState::ConfigDone;
    Ok(())
}

fn check_pending(call: &Call<'_>) -> Answer {
    let lps = call.platform_lps();
    let state = call.state();
    if state.sys == SysState::InitDone && state.initialized_lps() == lps {
        Ok(())
    } else {
        Err(Status::SYS_CONFIG_NOT_PENDING)
    }
}

fn global_hkid(call: &Call<'_>) -> Result<u16, Status> {
    let hkid = u16::try_from(call.regs.r8).ok();
    hkid.filter(|&hkid| call.keys().is_assignable(hkid.into()))
        .ok_or(Status::OPERAND_INVALID.operand(Operand::R8))
}

/// Makes a KeyID the module's own. KeyIDs that were reserved before stay so.
fn reserve(call: &Call<'_>, hkid: u16) {
    let Tables {
        kot, global_hkid, ..
    } = &mut call.state().tables;
    kot.insert(hkid, KeyOwner::Reserved);
    *global_hkid = hkid;
}

/// Reads and checks the entries one by one, so that the first bad one decides.
fn check_entries(call: &Call<'_>, list: u64, count: u64) -> Result<Checker, Status> {
    let config = call.module.config();
    let cmrs = call.state().snapshot.cmrs.clone();
    let mut checker = Checker::new(call.keys(), config.pamt_entry_size, &cmrs);
    let mut bytes = vec![0; TdmrInfo::len(config.max_reserved_per_tdmr)];
    for index in 0..count {
        let mut pointer = [0; 8];
        call.platform.read(list + 8 * index, &mut pointer);
        let hpa = u64::from_le_bytes(pointer);
        let pa = call.shared_memory(hpa, ALIGN, bytes.len() as u64, Operand::Rcx)?;
        call.platform.read(pa, &mut bytes);
        checker.push(&TdmrInfo::parse(&bytes))?;
    }
    Ok(checker)
}
