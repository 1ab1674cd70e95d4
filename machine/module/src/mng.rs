// SPDX-License-Identifier: GPL-2.0

//! Making a TD: TDH.MNG.CREATE, TDH.MNG.KEY.CONFIG, TDH.MNG.ADDCX and TDH.MNG.INIT.

use crate::addr::PAGE_4K;
use crate::call::{Answer, Call};
use crate::locks::{LockId, Mode};
use crate::pamt::{PageEntry, PageType};
use crate::state::KeyOwner;
use crate::sys_init::check_cpuid_limit;
use crate::sys_key::program_key;
use crate::td::{Lifecycle, MAX_TDCS_PAGES, OpState, TDCS_PAGES, Td};
use crate::td_call::OpLock;
use crate::td_params::{RawParams, Rules, SIZE, TdParams};
use crate::{Operand, Status};

/// Random numbers of 64 bits that TDH.MNG.CREATE draws to tell TDs apart. Nobody can read them.
const UUID_WORDS: usize = 4;

/// TDH.MNG.CREATE: makes a page the root of a new TD and gives the TD a KeyID.
pub(crate) fn create(call: &mut Call<'_>) -> Answer {
    let (tdr, key) = (call.regs.rcx, call.regs.rdx);
    let hkid = u16::try_from(key).ok();
    let hkid = hkid
        .filter(|&hkid| call.keys().is_assignable(hkid.into()))
        .ok_or(Status::OPERAND_INVALID.operand(Operand::Rdx))?;
    let _page = call.page(tdr, Mode::Exclusive, PageType::Nda, Operand::Rcx)?;
    let _kot = call.lock_kot(Mode::Exclusive)?;
    if call.tables(|tables| tables.key_owner(hkid)) != KeyOwner::Free {
        return Err(Status::HKID_NOT_FREE);
    }
    let global = call.tables(|tables| tables.global_hkid);
    call.platform.made_private(tdr, PAGE_4K, global);
    for _ in 0..UUID_WORDS {
        let word = call.platform.random(call.lp);
        word.ok_or(Status::RND_NO_ENTROPY)?;
    }
    call.tables(|tables| {
        tables.assign_key(hkid);
        tables.pages.set(0, tdr, PageEntry::new(PageType::Tdr, 0));
        *tables.td(tdr) = Td {
            hkid,
            ..Td::default()
        };
    });
    Ok(())
}

/// TDH.MNG.KEY.CONFIG: programs the TD's key on the calling processor's package.
pub(crate) fn key_config(call: &mut Call<'_>) -> Answer {
    let tdr = call.regs.rcx;
    let _page = call.page(tdr, Mode::Exclusive, PageType::Tdr, Operand::Rcx)?;
    let package = 1 << call.package();
    let hkid = call.td(tdr, |td| {
        if td.fatal {
            return Err(Status::TD_FATAL);
        }
        if td.lifecycle != Lifecycle::HkidAssigned {
            return Err(Status::LIFECYCLE_STATE_INCORRECT);
        }
        if td.packages_configured & package != 0 {
            return Err(Status::KEY_CONFIGURED);
        }
        Ok(td.hkid)
    })?;
    program_key(call, hkid)?;
    call.tables(|tables| {
        let all = tables.packages_configured;
        let td = tables.td(tdr);
        td.packages_configured |= package;
        if td.packages_configured == all {
            td.lifecycle = Lifecycle::KeysConfigured;
        }
    });
    Ok(())
}

/// TDH.MNG.ADDCX: gives a TD a further page for its control structures.
pub(crate) fn addcx(call: &mut Call<'_>) -> Answer {
    let (page, tdr) = (call.regs.rcx, call.regs.rdx);
    let _tdr = call.page(tdr, Mode::Exclusive, PageType::Tdr, Operand::Rdx)?;
    if call.td(tdr, |td| td.fatal) {
        return Err(Status::TD_FATAL);
    }
    call.keys_configured(tdr)?;
    let (pages, op_state) = call.td(tdr, |td| (td.tdcx.len(), td.op_state));
    if pages >= MAX_TDCS_PAGES {
        return Err(Status::TDCX_NUM_INCORRECT);
    }
    let _page = call.page(page, Mode::Exclusive, PageType::Nda, Operand::Rcx)?;
    if pages >= TDCS_PAGES && op_state != OpState::Uninitialized {
        return Err(call.wrong_state(Status::OP_STATE_INCORRECT, op_state as u32));
    }
    call.write_page(page, tdr);
    if pages + 1 == TDCS_PAGES && call.platform.random(call.lp).is_none() {
        return Err(Status::RND_NO_ENTROPY);
    }
    call.take_page(page, PageType::Tdcx, tdr);
    call.td(tdr, |td| td.tdcx.push(page));
    Ok(())
}

/// TDH.MNG.INIT: takes over what the owner chose for the TD.
pub(crate) fn init(call: &mut Call<'_>) -> Answer {
    let tdr = std::mem::take(&mut call.regs.rcx);
    check_cpuid_limit(call)?;
    let _tdr = call.page(tdr, Mode::Exclusive, PageType::Tdr, Operand::Rcx)?;
    call.td_state(tdr, OpLock::Implied, &[OpState::Uninitialized])?;
    let params = call.shared_memory(call.regs.rdx, SIZE as u64, SIZE as u64, Operand::Rdx)?;
    let mut bytes = [0; SIZE];
    call.platform.read(params, &mut bytes);
    let params = check_params(call, tdr, &bytes)?;
    let native = call.state().snapshot.tsc_frequency();
    call.td(tdr, |td| {
        td.tsc_multiplier = tsc_multiplier(params.tsc_frequency, native);
        td.params = params;
        td.op_state = OpState::Initialized;
    });
    Ok(())
}

fn check_params(call: &mut Call<'_>, tdr: u64, bytes: &[u8; SIZE]) -> Result<TdParams, Status> {
    let snapshot = call.state().snapshot.clone();
    let rules = Rules {
        facts: call.module.facts(),
        snapshot: &snapshot,
        tdcs_pages: call.td(tdr, |td| td.tdcx.len()),
        tsc_adjust_unchanged: call.tsc_adjust_unchanged().is_ok(),
    };
    let rcx = &mut call.regs.rcx;
    RawParams(bytes).check(&rules, |leaf, subleaf| {
        *rcx = u64::from(leaf) | u64::from(subleaf) << 32;
    })
}

/// Ratio of a TSC with `frequency` times 25 MHz to one with `native` Hz, 16.48 fixed point.
fn tsc_multiplier(frequency: u16, native: u64) -> u64 {
    let wanted = u128::from(frequency) * 25_000_000;
    let ratio = (wanted << 48).checked_div(native.into());
    ratio.unwrap_or(1 << 48) as u64
}

impl<'a> Call<'a> {
    /// Takes the key ownership table.
    pub(crate) fn lock_kot(&self, mode: Mode) -> Result<crate::call::Held<'a>, Status> {
        let busy = Status::OPERAND_BUSY.operand(Operand::Kot);
        self.lock(LockId::Kot, mode, busy)
    }
}
