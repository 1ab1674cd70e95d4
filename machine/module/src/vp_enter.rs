// SPDX-License-Identifier: GPL-2.0

//! TDH.VP.ENTER up to the moment when the guest runs. What follows is in `guest_exit.rs`.

use crate::addr::LIMIT;
use crate::call::{Answer, Call, Held};
use crate::locks::{LockId, Mode};
use crate::sept::EntryState;
use crate::sys_init::check_cpuid_limit;
use crate::td::OpState;
use crate::td_call::{HeldVcpu, OpLock};
use crate::vcpu::{GuestRun, LastExit, VcpuState};
use crate::vp::{associate, check_complete};
use crate::{Operand, Regs, Status};

/// Bits of RCX beside the address: a hint after some exits, and where to resume.
const HINT: u64 = 1 << 52;
const RESUME_L1: u64 = 1 << 53;
/// CPUID(1).ECX bit of MONITOR and MWAIT, and where the host enables them.
const CPUID_MONITOR: u32 = 1 << 3;
const MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_MONITOR: u64 = 1 << 18;
/// VM exit reason of an EPT violation.
pub(crate) const EPT_VIOLATION: u32 = 48;
/// What the zero-step filter reports as the cause: a write.
const WRITE: u64 = 2;

/// How TDH.VP.ENTER ended without an error.
pub(crate) enum Entry {
    /// The guest runs and has these registers.
    Guest(Regs),
    /// The guest was not entered: it would only fault again.
    StillFaulting,
}

/// TDH.VP.ENTER.
pub(crate) fn enter(call: &mut Call<'_>) -> Result<Entry, Status> {
    check_cpuid_limit(call)?;
    let rcx = call.regs.rcx;
    let flags = HINT | RESUME_L1;
    if rcx & !(flags | (LIMIT - 1)) != 0 {
        return Err(Status::OPERAND_INVALID.operand(Operand::Rcx));
    }
    let tdvpr = rcx & !flags;
    let held = call.vcpu_page(tdvpr, Mode::Shared, Operand::Rcx)?;
    let tdr = held.tdr;
    let _state = call.td_state(tdr, OpLock::Shared, &[OpState::Runnable])?;
    check_complete(call, tdvpr, tdr)?;
    let state = call.vcpu(tdvpr, |vcpu| vcpu.state);
    if state != VcpuState::Ready {
        return Err(call.wrong_state(Status::VCPU_STATE_INCORRECT, state as u32));
    }
    associate(call, tdvpr, tdr)?;
    if rcx & flags != 0 {
        return Err(Status::OPERAND_INVALID.operand(Operand::Rcx));
    }
    call.tsc_adjust_unchanged()?;
    check_monitor(call, tdr)?;
    let busy = Status::OPERAND_BUSY.operand(Operand::TdEpoch);
    let _epoch = call.lock(LockId::TdEpoch(tdr), Mode::Shared, busy)?;
    if let Some(gpa) = still_faulting(call, tdvpr, tdr)? {
        let keep_rbp = call.td(tdr, |td| {
            call.module.facts().zero_step_keeps_rbp(&td.params)
        });
        report_fault(call, gpa, keep_rbp);
        return Ok(Entry::StillFaulting);
    }
    Ok(Entry::Guest(run(call, held)))
}

/// A TD that was given MONITOR and MWAIT needs a processor that has them enabled.
fn check_monitor(call: &Call<'_>, tdr: u64) -> Answer {
    let configured = call.td(tdr, |td| td.params.cpuid.first().map_or(0, |row| row[2]));
    let enabled = call.platform.msr(call.lp, MISC_ENABLE) & MISC_ENABLE_MONITOR != 0;
    if configured & CPUID_MONITOR != 0 && !enabled {
        return Err(Status::INCORRECT_MSR_VALUE.with(MISC_ENABLE));
    }
    Ok(())
}

/// A logged address that would fault again, if there is one; forgets the log if not.
fn still_faulting(call: &Call<'_>, tdvpr: u64, tdr: u64) -> Result<Option<u64>, Status> {
    let pages = call.vcpu(tdvpr, |vcpu| vcpu.faults.pages.clone());
    if pages.is_empty() {
        return Ok(None);
    }
    let mode = call.module.facts().zero_step_tree_lock();
    let _tree = call.lock_tree(tdr, mode)?;
    let faulting = call.td(tdr, |td| {
        let top = td.params.top_level();
        let faults = |gpa: &u64| {
            let entry = td.sept.get(td.sept.translate(top, *gpa));
            !matches!(
                entry.map(|entry| entry.state),
                Some(EntryState::Mapped | EntryState::Pending)
            )
        };
        pages.into_iter().find(faults)
    });
    if faulting.is_none() {
        call.vcpu(tdvpr, |vcpu| vcpu.faults = Default::default());
    }
    Ok(faulting)
}

/// The registers of an exit for an EPT violation that did not happen now.
fn report_fault(call: &mut Call<'_>, gpa: u64, keep_rbp: bool) {
    let rbp = if keep_rbp { call.regs.rbp } else { 0 };
    *call.regs = Regs {
        rax: EPT_VIOLATION.into(),
        rcx: WRITE,
        r8: gpa,
        rbp,
        ..Regs::default()
    };
}

/// Starts the guest; returns its registers.
fn run(call: &Call<'_>, held: HeldVcpu<'_>) -> Regs {
    let HeldVcpu { tdvpr, tdr, locks } = held;
    let host = *call.regs;
    let epoch = call.td(tdr, |td| td.epochs.enter());
    let guest = call.vcpu(tdvpr, |vcpu| {
        vcpu.epoch = epoch;
        vcpu.state = VcpuState::Active;
        if let LastExit::VmCall(mask) = std::mem::take(&mut vcpu.last_exit) {
            pass_back(&mut vcpu.regs, &host, mask);
        }
        vcpu.regs
    });
    call.state().lp(call.lp).guest = Some(GuestRun {
        tdvpr,
        tdr,
        host,
        locks: locks.into_iter().map(Held::keep).collect(),
    });
    guest
}

/// Loads the registers that TDG.VP.VMCALL exposed with what the host put there.
fn pass_back(guest: &mut Regs, host: &Regs, mask: u32) {
    let host = host.by_number();
    for (number, register) in guest.by_number_mut().into_iter().enumerate() {
        if let (Some(register), Some(value)) = (register, host[number])
            && mask >> number & 1 != 0
        {
            *register = value;
        }
    }
    guest.rax = 0;
    guest.rcx = mask.into();
}
