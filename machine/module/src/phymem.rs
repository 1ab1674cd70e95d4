// SPDX-License-Identifier: GPL-2.0

//! Leaves about physical pages and caches: TDH.PHYMEM.PAGE.RDMD and TDH.PHYMEM.CACHE.WB.

use crate::addr::PAGE_4K;
use crate::call::{Answer, Call, Held};
use crate::locks::{LockId, Mode};
use crate::pamt;
use crate::state::{KeyOwner, State};
use crate::{Operand, Status};

/// Number of cache sub-blocks.
const WBINVDP: u32 = 0x98;

/// TDH.PHYMEM.PAGE.RDMD: what is this page used for?
pub(crate) fn page_rdmd(call: &mut Call<'_>) -> Answer {
    let pa = std::mem::take(&mut call.regs.rcx);
    call.regs.rdx = 0;
    call.regs.r8 = 0;
    call.regs.r9 = 0;
    call.regs.r10 = 0;
    call.regs.r11 = 0;
    if !pa.is_multiple_of(PAGE_4K) || !call.keys().is_plain(pa) {
        return Err(Status::OPERAND_INVALID.operand(Operand::Rcx));
    }
    let page_type = pamt::page_type(&call.state().tables.tdmrs, pa)
        .ok_or(Status::OPERAND_ADDR_RANGE_ERROR.operand(Operand::Rcx))?;
    let _entries = lock_page(call, pa, Mode::Shared, Operand::Rcx)?;
    call.regs.rcx = page_type as u64;
    Ok(())
}

/// Takes the PAMT entries above a 4 KB page and that of the page itself.
fn lock_page<'a>(
    call: &Call<'a>,
    pa: u64,
    mode: Mode,
    operand: Operand,
) -> Result<[Held<'a>; 3], Status> {
    let busy = Status::OPERAND_BUSY.operand(operand);
    let entry = |level: usize| LockId::Pamt(level as u8, pa / pamt::LEVEL_SIZE[level]);
    Ok([
        call.lock(entry(2), Mode::Shared, busy)?,
        call.lock(entry(1), Mode::Shared, busy)?,
        call.lock(entry(0), mode, busy)?,
    ])
}

/// TDH.PHYMEM.CACHE.WB: writes back the caches of this package for all KeyIDs that were flushed.
pub(crate) fn cache_wb(call: &mut Call<'_>) -> Answer {
    let resume = match call.regs.rcx {
        0 => false,
        1 => true,
        _ => return Err(Status::OPERAND_INVALID.operand(Operand::Rcx)),
    };
    let package = call.package();
    let busy = |operand| Status::OPERAND_BUSY.operand(operand);
    let _write_back = call.lock(
        LockId::WriteBack(package),
        Mode::Exclusive,
        busy(Operand::WbCache),
    )?;
    let _kot = call.lock(LockId::Kot, Mode::Shared, busy(Operand::Kot))?;
    let start = begin_write_back(&mut call.state(), package, resume)?;

    let sub_blocks = call.platform.msr(call.lp, WBINVDP);
    for block in start..sub_blocks {
        let last = block + 1 == sub_blocks;
        if !last && call.platform.interrupt_pending(call.lp) {
            let mut state = call.state();
            state
                .tables
                .write_back
                .entry(package)
                .or_default()
                .resume_at = Some(block + 1);
            return Err(Status::INTERRUPTED_RESUMABLE);
        }
    }
    let hkids = finish_write_back(&mut call.state(), package);
    call.platform.caches_written_back(call.lp, &hkids);
    Ok(())
}

/// Finds the sub-block to start with; a new start notes the KeyIDs that are flushed now.
fn begin_write_back(state: &mut State, package: usize, resume: bool) -> Result<u64, Status> {
    let saved = state.tables.write_back.entry(package).or_default();
    if resume {
        return saved.resume_at.take().ok_or(Status::WBCACHE_RESUME_ERROR);
    }
    saved.resume_at = None;
    let flushed = |owner: &KeyOwner| matches!(owner, KeyOwner::Flushed(_));
    saved.snapshot = state
        .tables
        .kot
        .iter()
        .filter(|(_, owner)| flushed(owner))
        .map(|(&hkid, _)| hkid)
        .collect();
    if saved.snapshot.is_empty() {
        Err(Status::NO_HKID_READY_TO_WBCACHE)
    } else {
        Ok(0)
    }
}

/// Marks this package as done for the KeyIDs noted at the start; returns them.
fn finish_write_back(state: &mut State, package: usize) -> Vec<u16> {
    let saved = state.tables.write_back.entry(package).or_default();
    let hkids = std::mem::take(&mut saved.snapshot);
    for hkid in &hkids {
        if let Some(KeyOwner::Flushed(packages)) = state.tables.kot.get_mut(hkid) {
            *packages &= !(1 << package);
        }
    }
    hkids
}
