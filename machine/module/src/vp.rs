// SPDX-License-Identifier: GPL-2.0

//! Making and flushing a vCPU: TDH.VP.CREATE, TDH.VP.ADDCX, TDH.VP.INIT and TDH.VP.FLUSH.

use crate::call::{Answer, Call};
use crate::locks::Mode;
use crate::pamt::PageType;
use crate::td::{OpState, Td};
use crate::td_call::OpLock;
use crate::vcpu::{MAX_VCPU_PAGES, Vcpu, VcpuState};
use crate::{Operand, Regs, Status};

/// TDH.VP.CREATE: makes a page the root of a new vCPU.
pub(crate) fn create(call: &mut Call<'_>) -> Answer {
    let (tdvpr, tdr) = (call.regs.rcx, call.regs.rdx);
    let _tdr = call.page(tdr, Mode::Shared, PageType::Tdr, Operand::Rdx)?;
    let _state = call.td_state(tdr, OpLock::Shared, &[OpState::Initialized])?;
    let _page = call.page(tdvpr, Mode::Exclusive, PageType::Nda, Operand::Rcx)?;
    call.write_page(tdvpr, tdr);
    call.take_page(tdvpr, PageType::Tdvpr, tdr);
    call.vcpu(tdvpr, |vcpu| *vcpu = Vcpu::default());
    Ok(())
}

/// TDH.VP.ADDCX: gives a vCPU a further page for its control structures.
pub(crate) fn addcx(call: &mut Call<'_>) -> Answer {
    let (page, tdvpr) = (call.regs.rcx, call.regs.rdx);
    let held = call.vcpu_page(tdvpr, Mode::Exclusive, Operand::Rdx)?;
    let _state = call.td_state(held.tdr, OpLock::Shared, &[OpState::Initialized])?;
    let (state, pages) = call.vcpu(tdvpr, |vcpu| (vcpu.state, vcpu.pages()));
    if state != VcpuState::Uninitialized {
        return Err(call.wrong_state(Status::VCPU_STATE_INCORRECT, state as u32));
    }
    if pages >= MAX_VCPU_PAGES {
        return Err(Status::TDCX_NUM_INCORRECT);
    }
    let _page = call.page(page, Mode::Exclusive, PageType::Nda, Operand::Rcx)?;
    call.write_page(page, held.tdr);
    call.take_page(page, PageType::Tdcx, held.tdr);
    call.vcpu(tdvpr, |vcpu| vcpu.tdcx.push(page));
    Ok(())
}

/// TDH.VP.INIT: gives a vCPU its index and its initial registers.
pub(crate) fn init(call: &mut Call<'_>) -> Answer {
    let early = call.module.facts().checks_tsc_adjust_first();
    let version = call.version();
    let tdvpr = call.regs.rcx;
    if early {
        call.tsc_adjust_unchanged()?;
    }
    if version > 1 {
        return Err(Status::OPERAND_INVALID.operand(Operand::Rax));
    }
    let page = call.page(tdvpr, Mode::Exclusive, PageType::Tdvpr, Operand::Rcx)?;
    let tdr = page.walk.entry.owner;
    let mode = if version == 0 {
        Mode::Shared
    } else {
        Mode::Exclusive
    };
    let busy = Status::OPERAND_BUSY.operand(Operand::Tdr);
    let _tdr = call.lock_page(tdr, 0, mode, busy)?;
    let _state = call.td_state(tdr, OpLock::Shared, &[OpState::Initialized])?;
    check_complete(call, tdvpr, tdr)?;
    let state = call.vcpu(tdvpr, |vcpu| vcpu.state);
    if state != VcpuState::Uninitialized {
        return Err(call.wrong_state(Status::VCPU_STATE_INCORRECT, state as u32));
    }
    let x2apic_id = (version == 1).then_some(call.regs.r8);
    let index = call.td(tdr, |td| take_index(td, x2apic_id))?;
    if !early {
        call.tsc_adjust_unchanged()?;
    }
    start(call, tdvpr, tdr, index);
    Ok(())
}

/// The next free index; it is used up even if VP.INIT fails later.
fn take_index(td: &mut Td, x2apic_id: Option<u64>) -> Result<u32, Status> {
    let index = td.vcpus;
    if index >= td.params.max_vcpus {
        return Err(Status::MAX_VCPUS_EXCEEDED);
    }
    if let Some(id) = x2apic_id {
        let id = u32::try_from(id).map_err(|_| Status::OPERAND_INVALID.operand(Operand::R8))?;
        if td.x2apic_ids.contains(&id) {
            return Err(Status::X2APIC_ID_NOT_UNIQUE.with(id));
        }
        td.x2apic_ids.push(id);
    }
    td.vcpus += 1;
    Ok(index)
}

fn start(call: &Call<'_>, tdvpr: u64, tdr: u64, index: u32) {
    let signature = call.state().snapshot.cpuid(1, 0).eax;
    let signature = call.td(tdr, |td| {
        let configured = td.params.cpuid.first().map_or(0, |row| row[0]);
        if configured == 0 {
            signature
        } else {
            configured
        }
    });
    let wide = call.td(tdr, |td| td.params.wide_addresses());
    let regs = Regs {
        rbx: if wide { 52 } else { 48 },
        rcx: call.regs.rdx,
        rdx: signature.into(),
        rsi: index.into(),
        r8: call.regs.rdx,
        ..Regs::default()
    };
    call.vcpu(tdvpr, |vcpu| {
        vcpu.regs = regs;
        vcpu.index = index;
        vcpu.state = VcpuState::Ready;
    });
    call.tables(|tables| {
        tables.vcpu(tdvpr).lp = Some(call.lp);
        tables.td(tdr).associated_vcpus += 1;
    });
}

/// Whether a vCPU has all the pages that it needs.
pub(crate) fn check_complete(call: &Call<'_>, tdvpr: u64, tdr: u64) -> Answer {
    let needed = call.td(tdr, |td| td.vcpu_pages());
    if call.vcpu(tdvpr, |vcpu| vcpu.pages()) < needed {
        return Err(Status::TDCX_NUM_INCORRECT);
    }
    Ok(())
}

/// Associates a vCPU with the calling processor, unless another one holds it.
pub(crate) fn associate(call: &Call<'_>, tdvpr: u64, tdr: u64) -> Answer {
    call.tables(|tables| match tables.vcpu(tdvpr).lp {
        Some(lp) if lp == call.lp => Ok(()),
        Some(_) => Err(Status::VCPU_ASSOCIATED),
        None => {
            tables.vcpu(tdvpr).lp = Some(call.lp);
            tables.td(tdr).associated_vcpus += 1;
            Ok(())
        }
    })
}

/// TDH.VP.FLUSH: removes a vCPU's state from the calling processor.
pub(crate) fn flush(call: &mut Call<'_>) -> Answer {
    let tdvpr = call.regs.rcx;
    let held = call.vcpu_page(tdvpr, Mode::Exclusive, Operand::Rcx)?;
    call.keys_configured(held.tdr)?;
    check_complete(call, tdvpr, held.tdr)?;
    if call.vcpu(tdvpr, |vcpu| vcpu.lp) != Some(call.lp) {
        return Err(Status::VCPU_NOT_ASSOCIATED);
    }
    let mut state = call.state();
    state.tables.vcpu(tdvpr).lp = None;
    let td = state.tables.td(held.tdr);
    td.associated_vcpus = td.associated_vcpus.saturating_sub(1);
    Ok(())
}
