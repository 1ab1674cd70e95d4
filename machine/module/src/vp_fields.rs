// SPDX-License-Identifier: GPL-2.0

//! Metadata of a vCPU: TDH.VP.RD and TDH.VP.WR. The field table is in `vp_table.rs`.

use crate::call::{Answer, Call};
use crate::fields::{self, NO_FIELD};
use crate::locks::Mode;
use crate::state::Tables;
use crate::td_call::{BUILT, HeldVcpu, OpLock};
use crate::vcpu::VcpuState;
use crate::vp::{associate, check_complete};
use crate::vp_table::{
    Field, NO_DESCRIPTOR, NO_VECTOR, POSTED_INTERRUPTS, RESET_RIP, find, first_readable, key, next,
};
use crate::{Operand, Status};

/// Page of TDCS whose address the shared EPT pointer holds at first.
const SHARED_EPTP_PAGE: usize = 4;
/// Bytes that the module moves a vCPU on after a TDCALL.
const TDCALL_LENGTH: u64 = 4;

/// TDH.VP.RD: reads a field of a vCPU.
pub(crate) fn read(call: &mut Call<'_>) -> Answer {
    let version = call.version();
    let id = call.regs.rdx;
    call.regs.r8 = 0;
    if version > 0 {
        call.regs.rdx = NO_FIELD;
    }
    if version > 1 {
        return Err(Status::OPERAND_INVALID.operand(Operand::Rax));
    }
    let (held, _state) = ready_vcpu(call, &[VcpuState::Ready, VcpuState::Disabled])?;
    let debug = call.td(held.tdr, |td| td.is_debug());
    if version > 0 && fields::asks_for_first(id) {
        call.regs.rdx = first_readable(0, debug);
        return Err(Status::METADATA_FIRST_FIELD_ID_IN_CONTEXT);
    }
    let key = fields::parse(id)?;
    let (position, field) = find(key).ok_or(Status::METADATA_FIELD_ID_INCORRECT)?;
    if !field.is_readable(debug) {
        return Err(Status::METADATA_FIELD_NOT_READABLE);
    }
    call.regs.r8 = value(call, &held, field, key) & field.read_mask(debug);
    if version > 0 {
        call.regs.rdx = next(position, key, debug);
    }
    Ok(())
}

/// TDH.VP.WR: writes a field of a vCPU.
pub(crate) fn write(call: &mut Call<'_>) -> Answer {
    let (id, wanted, mask) = (call.regs.rdx, call.regs.r8, call.regs.r9);
    call.regs.r8 = 0;
    let (held, _state) = ready_vcpu(call, &[VcpuState::Ready])?;
    let debug = call.td(held.tdr, |td| td.is_debug());
    let key = fields::parse(id)?;
    let (_, field) = find(key).ok_or(Status::METADATA_FIELD_ID_INCORRECT)?;
    let writable = field.write_mask(debug) & mask;
    if writable == 0 {
        return Err(Status::METADATA_FIELD_NOT_WRITABLE);
    }
    let current = value(call, &held, field, key);
    let kept = if current == NO_DESCRIPTOR { 0 } else { current };
    let elsewhere = mask & !field.write_mask(debug);
    if (wanted ^ kept) & elsewhere != 0 {
        return Err(Status::METADATA_FIELD_VALUE_NOT_VALID);
    }
    let new = kept & !writable | wanted & writable;
    check_value(call, &held, key, new)?;
    call.vcpu(held.tdvpr, |vcpu| match register(vcpu, key) {
        Some(register) => *register = new,
        None => drop(vcpu.fields.insert(key, new)),
    });
    call.regs.r8 = current & field.read_mask(debug);
    Ok(())
}

/// The register of the guest that a key names.
fn register(vcpu: &mut crate::vcpu::Vcpu, key: u64) -> Option<&mut u64> {
    let number = usize::try_from(key.checked_sub(key::GPR)?).ok()?;
    let register = vcpu.regs.by_number_mut().into_iter().nth(number);
    register.flatten()
}

type State<'a> = Option<crate::call::Held<'a>>;

/// A vCPU in one of the states that a leaf allows, associated with this processor.
fn ready_vcpu<'a>(
    call: &Call<'a>,
    allowed: &[VcpuState],
) -> Result<(HeldVcpu<'a>, State<'a>), Status> {
    let held = call.vcpu_page(call.regs.rcx, Mode::Shared, Operand::Rcx)?;
    let op_state = call.td_state(held.tdr, OpLock::Shared, &BUILT)?;
    check_complete(call, held.tdvpr, held.tdr)?;
    let state = call.vcpu(held.tdvpr, |vcpu| vcpu.state);
    if !allowed.contains(&state) {
        return Err(call.wrong_state(Status::VCPU_STATE_INCORRECT, state as u32));
    }
    associate(call, held.tdvpr, held.tdr)?;
    Ok((held, op_state))
}

fn check_value(call: &Call<'_>, held: &HeldVcpu<'_>, key: u64, new: u64) -> Answer {
    let invalid = Err(Status::METADATA_FIELD_VALUE_NOT_VALID);
    let shared = |align| call.shared_memory(new, align, align, Operand::R8).is_ok();
    match key {
        key::VECTOR if new > 0xff => invalid,
        key::DESCRIPTOR if !shared(64) => invalid,
        key::SHARED_EPTP if !shared(4096) => invalid,
        key::PIN_BASED if new & POSTED_INTERRUPTS != 0 => {
            let missing = |key: u64, unset: u64| {
                call.vcpu(held.tdvpr, |vcpu| {
                    vcpu.fields.get(&key).is_none_or(|&value| value == unset)
                })
            };
            for (key, unset) in [(key::VECTOR, NO_VECTOR), (key::DESCRIPTOR, NO_DESCRIPTOR)] {
                if missing(key, unset) {
                    return Err(Status::TD_VMCS_FIELD_NOT_INITIALIZED.with(key as u32));
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn value(call: &Call<'_>, held: &HeldVcpu<'_>, field: &Field, key: u64) -> u64 {
    let keys = call.keys();
    call.tables(|tables| value_in(tables, keys.start_bit, held, key))
        .unwrap_or(field.initial)
}

/// The value of a field that does not have its initial one.
fn value_in(tables: &mut Tables, key_bit: u32, held: &HeldVcpu<'_>, key: u64) -> Option<u64> {
    let td = tables.td(held.tdr);
    let tagged = |hpa: u64| hpa | u64::from(td.hkid) << key_bit;
    let (eptp, xfam, tag) = (td.eptp(), td.params.xfam, tagged(0));
    let shared_eptp = td.tdcx.get(SHARED_EPTP_PAGE).map(|&hpa| tagged(hpa));
    let vcpu = tables.vcpu(held.tdvpr);
    if let Some(&value) = vcpu.fields.get(&key) {
        return Some(value);
    }
    let page = |n: u64| {
        let tdcx = n.checked_sub(1).and_then(|n| vcpu.tdcx.get(n as usize));
        let page = if n == 0 { Some(&held.tdvpr) } else { tdcx };
        page.map(|hpa| hpa | tag)
    };
    Some(match key {
        key::SHARED_EPTP => shared_eptp?,
        key::EPTP => eptp,
        key::GUEST_XFAM => xfam,
        key::STATE => vcpu.state as u64,
        key::INDEX => vcpu.index.into(),
        key::PAGES => vcpu.pages() as u64,
        key::ASSOCIATED_LP => vcpu.lp? as u64,
        key::EPOCH => vcpu.epoch,
        key::EXIT_REASON => vcpu.exit_reason.into(),
        key::RIP => RESET_RIP.wrapping_add(vcpu.instructions_skipped * TDCALL_LENGTH),
        _ if (key::PAGE_ADDRESS..key::PAGE_ADDRESS + 15).contains(&key) => {
            page(key - key::PAGE_ADDRESS).unwrap_or(0)
        }
        _ => return register(vcpu, key).copied(),
    })
}
