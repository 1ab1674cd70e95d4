// SPDX-License-Identifier: GPL-2.0

//! Leaves about physical pages and caches: TDH.PHYMEM.PAGE.RDMD, TDH.PHYMEM.PAGE.WBINVD and
//! TDH.PHYMEM.CACHE.WB. TDH.PHYMEM.PAGE.RECLAIM is in `teardown.rs`.

use crate::call::{Answer, Call};
use crate::locks::{LockId, Mode};
use crate::pamt::{PageType, PageWalk};
use crate::state::{KeyOwner, State};
use crate::{Operand, Regs, Status};

/// Number of cache sub-blocks.
const WBINVDP: u32 = 0x98;

/// TDH.PHYMEM.PAGE.RDMD: what is this page used for?
pub(crate) fn page_rdmd(call: &mut Call<'_>) -> Answer {
    let pa = std::mem::take(&mut call.regs.rcx);
    clear_page_outputs(call.regs);
    let PageWalk { level, entry } = call.any_page(pa, Mode::Shared, Operand::Rcx)?.walk;
    call.regs.rcx = entry.page_type as u64;
    call.regs.rdx = entry.owner;
    call.regs.r8 = level.into();
    call.regs.r9 = if entry.has_epoch() {
        entry.blocked_at
    } else {
        0
    };
    Ok(())
}

/// Clears the registers, besides RCX, in which leaves describe a page.
pub(crate) fn clear_page_outputs(regs: &mut Regs) {
    regs.rdx = 0;
    regs.r8 = 0;
    regs.r9 = 0;
    regs.r10 = 0;
    regs.r11 = 0;
}

/// TDH.PHYMEM.PAGE.WBINVD: removes a free page's lines of one KeyID from all caches.
pub(crate) fn page_wbinvd(call: &mut Call<'_>) -> Answer {
    let keys = call.keys();
    let (pa, hkid) = (keys.without_key(call.regs.rcx), keys.key_of(call.regs.rcx));
    let _page = call.page(pa, Mode::Shared, PageType::Nda, Operand::Rcx)?;
    call.platform.page_written_back(pa, hkid as u16);
    Ok(())
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
