// SPDX-License-Identifier: GPL-2.0

//! The end of a TD: TDH.MNG.VPFLUSHDONE, TDH.MNG.KEY.FREEID, TDH.MNG.KEY.RECLAIMID and
//! TDH.PHYMEM.PAGE.RECLAIM.

use crate::call::{Answer, Call};
use crate::locks::Mode;
use crate::pamt::{LEVEL_SIZE, PageType, PageWalk};
use crate::td::{Lifecycle, OpState};
use crate::{Operand, Status};

/// TDH.MNG.VPFLUSHDONE: the TD will not run any more.
pub(crate) fn vpflushdone(call: &mut Call<'_>) -> Answer {
    let tdr = call.regs.rcx;
    let _tdr = call.page(tdr, Mode::Exclusive, PageType::Tdr, Operand::Rcx)?;
    let _kot = call.lock_kot(Mode::Exclusive)?;
    call.tables(|tables| {
        let td = tables.td(tdr);
        if matches!(td.lifecycle, Lifecycle::Blocked | Lifecycle::Teardown) {
            return Err(Status::LIFECYCLE_STATE_INCORRECT);
        }
        let built = td.has_tdcs() && td.op_state != OpState::Uninitialized;
        if built && td.associated_vcpus != 0 {
            return Err(Status::FLUSHVP_NOT_DONE);
        }
        td.lifecycle = Lifecycle::Blocked;
        let hkid = td.hkid;
        tables.flush_key(hkid);
        Ok(())
    })
}

/// TDH.MNG.KEY.FREEID: gives the TD's KeyID back once no cache holds lines of it.
pub(crate) fn key_freeid(call: &mut Call<'_>) -> Answer {
    let tdr = call.regs.rcx;
    let _tdr = call.page(tdr, Mode::Exclusive, PageType::Tdr, Operand::Rcx)?;
    if call.td(tdr, |td| td.lifecycle) != Lifecycle::Blocked {
        return Err(Status::LIFECYCLE_STATE_INCORRECT);
    }
    let _kot = call.lock_kot(Mode::Exclusive)?;
    call.tables(|tables| {
        let hkid = tables.td(tdr).hkid;
        if !tables.free_key(hkid) {
            return Err(Status::WBCACHE_NOT_COMPLETE);
        }
        tables.td(tdr).lifecycle = Lifecycle::Teardown;
        Ok(())
    })
}

/// TDH.MNG.KEY.RECLAIMID, which does nothing any more.
pub(crate) fn key_reclaimid(_call: &mut Call<'_>) -> Answer {
    Ok(())
}

/// TDH.PHYMEM.PAGE.RECLAIM: takes a page back from a TD that has no KeyID any more.
pub(crate) fn page_reclaim(call: &mut Call<'_>) -> Answer {
    let pa = std::mem::take(&mut call.regs.rcx);
    crate::phymem::clear_page_outputs(call.regs);
    let page = call.any_page(pa, Mode::Exclusive, Operand::Rcx)?;
    let PageWalk { level, entry } = page.walk;
    if matches!(entry.page_type, PageType::Nda | PageType::Rsvd) {
        return Err(Status::PAGE_METADATA_INCORRECT.operand(Operand::Rcx));
    }
    call.regs.rcx = entry.page_type as u64;
    call.regs.rdx = entry.owner;
    call.regs.r8 = level.into();
    let size = LEVEL_SIZE[usize::from(level)];
    if !pa.is_multiple_of(size) {
        return Err(Status::OPERAND_INVALID.operand(Operand::Rcx));
    }
    let is_tdr = entry.page_type == PageType::Tdr;
    let tdr = if is_tdr { pa } else { entry.owner };
    let _owner = if is_tdr { vec![] } else { call.owner(tdr)? };
    call.tables(|tables| {
        let td = tables.td(tdr);
        if td.lifecycle != Lifecycle::Teardown {
            return Err(Status::LIFECYCLE_STATE_INCORRECT);
        }
        if is_tdr && td.children != 0 {
            return Err(Status::TD_ASSOCIATED_PAGES_EXIST);
        }
        td.children = td.children.saturating_sub(size / LEVEL_SIZE[0]);
        tables.pages.free(level, pa);
        match entry.page_type {
            PageType::Tdr => drop(tables.tds.remove(&pa)),
            PageType::Tdvpr => drop(tables.vcpus.remove(&pa)),
            _ => {}
        }
        Ok(())
    })
}
