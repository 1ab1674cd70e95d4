// SPDX-License-Identifier: GPL-2.0

//! What happens when a guest stops: [`GuestExit`] says why; the module returns to the host or goes
//! back to the guest.
//!
//! TDG.MEM.PAGE.ACCEPT, which the module does itself, is in `accept.rs`.

use crate::accept;
use crate::call::Call;
use crate::sept::EntryState;
use crate::td_params::attributes;
use crate::vcpu::{GuestRun, LastExit, Vcpu, VcpuState};
use crate::vp_enter::EPT_VIOLATION;
use crate::{Outcome, Regs, Status};

/// VM exit reasons.
mod reason {
    pub(super) const NMI: u32 = 0;
    pub(super) const EXTERNAL_INTERRUPT: u32 = 1;
    pub(super) const TRIPLE_FAULT: u32 = 2;
    pub(super) const INIT: u32 = 3;
    pub(super) const SMI: u32 = 6;
    pub(super) const TASK_SWITCH: u32 = 9;
    pub(super) const CPUID: u32 = 10;
    pub(super) const HLT: u32 = 12;
    pub(super) const IO: u32 = 30;
    pub(super) const RDMSR: u32 = 31;
    pub(super) const WRMSR: u32 = 32;
    pub(super) const EPT_MISCONFIGURATION: u32 = 49;
    pub(super) const BUS_LOCK: u32 = 74;
    pub(super) const NOTIFY: u32 = 75;
    pub(super) const TDCALL: u32 = 77;
}

/// TDCALL leaves.
mod tdcall {
    pub(super) const VP_VMCALL: u64 = 0;
    pub(super) const MEM_PAGE_ACCEPT: u64 = 6;
}

/// Why a guest stopped, as the processor reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestExit {
    /// VM exit reason, such as 1 for an external interrupt.
    pub reason: u32,
    /// Exit qualification.
    pub qualification: u64,
    /// Guest physical address, where the reason has one.
    pub gpa: u64,
    /// VM exit interruption information; 0 where the reason has none.
    pub interruption: u32,
    /// The guest's registers.
    pub regs: Regs,
    /// The guest has executed at least one instruction since the processor entered it, TDCALL not
    /// counted.
    pub progress: bool,
}

/// Extended exit qualification: a page that the guest has not accepted.
const PENDING_VIOLATION: u64 = 6;
/// Bits of the qualification of an EPT violation that the host does not see.
const HIDDEN_QUALIFICATION: u64 = 0x3f << 7;
/// Bits of it that say what the entries allow.
const RIGHTS: u64 = 0xf << 3;
/// Bits of the register mask of TDG.VP.VMCALL that must be zero: RAX, RCX, RSP, all above XMM.
const FORBIDDEN_IN_MASK: u64 = !0xffff_ffff | 1 | 1 << 1 | 1 << 4;
/// Bit of RBP in that mask.
const RBP_IN_MASK: u64 = 1 << 5;

/// What becomes of the exit.
pub(crate) enum Fate {
    /// The host sees these registers; the guest repeats what it did.
    Host(Regs),
    /// The guest goes on after the instruction with these registers.
    Guest(Regs),
    /// The guest gets an exception and has these registers.
    Injected(Regs),
}

/// Handles a VM exit.
pub(crate) fn exit(call: &mut Call<'_>, run: &GuestRun, exit: &GuestExit) -> Outcome {
    call.vcpu(run.tdvpr, |vcpu| {
        vcpu.regs = exit.regs;
        vcpu.exit_reason = exit.reason;
        if exit.progress {
            vcpu.faults = Default::default();
        }
    });
    if call.td(run.tdr, |td| td.fatal) {
        // Another vCPU made the TD unusable meanwhile.
        let status = Status::NON_RECOVERABLE_TD_NON_ACCESSIBLE.with(exit.reason);
        *call.regs = Regs {
            rax: status.raw(),
            ..Regs::default()
        };
        leave(call, run);
        return Outcome::Returned;
    }
    match decide(call, run, exit) {
        Fate::Injected(guest) => {
            *call.regs = guest;
            Outcome::Entered
        }
        Fate::Guest(guest) => {
            call.vcpu(run.tdvpr, |vcpu| {
                vcpu.regs = guest;
                move_on(vcpu);
            });
            *call.regs = guest;
            Outcome::Entered
        }
        Fate::Host(mut host) => {
            let keeps_rbp = call.td(run.tdr, |td| call.module.facts().keeps_rbp(&td.params));
            if keeps_rbp {
                host.rbp = run.host.rbp;
            }
            *call.regs = host;
            call.tables(|tables| {
                let epoch = tables.vcpu(run.tdvpr).epoch;
                tables.td(run.tdr).epochs.leave(epoch);
            });
            leave(call, run);
            Outcome::Returned
        }
    }
}

/// The module moves the guest past its TDCALL.
fn move_on(vcpu: &mut Vcpu) {
    vcpu.faults = Default::default();
    vcpu.instructions_skipped += 1;
}

/// The processor leaves the guest.
fn leave(call: &Call<'_>, run: &GuestRun) {
    let mut state = call.state();
    let vcpu = state.tables.vcpu(run.tdvpr);
    if vcpu.state == VcpuState::Active {
        vcpu.state = VcpuState::Ready;
    }
    for &lock in &run.locks {
        state.locks.release(lock);
    }
    let lp = state.lp(call.lp);
    lp.guest = None;
    lp.in_seam = false;
}

fn decide(call: &Call<'_>, run: &GuestRun, exit: &GuestExit) -> Fate {
    let plain = Regs {
        rax: exit.reason.into(),
        rcx: exit.qualification & 0xffff_ffff,
        ..Regs::default()
    };
    match exit.reason {
        reason::NMI | reason::EXTERNAL_INTERRUPT => Fate::Host(Regs {
            r9: exit.interruption.into(),
            ..plain
        }),
        reason::INIT | reason::SMI | reason::TASK_SWITCH | reason::BUS_LOCK | reason::NOTIFY => {
            Fate::Host(plain)
        }
        reason::TRIPLE_FAULT => {
            call.vcpu(run.tdvpr, |vcpu| vcpu.state = VcpuState::Disabled);
            fail(Status::NON_RECOVERABLE_VCPU, plain)
        }
        EPT_VIOLATION => ept_violation(call, run, exit),
        reason::EPT_MISCONFIGURATION => Fate::Host(Regs {
            r8: page_of(exit.gpa),
            ..plain
        }),
        reason::TDCALL => tdcall(call, run, exit),
        // The guest gets a #VE.
        reason::CPUID | reason::HLT | reason::IO | reason::RDMSR | reason::WRMSR => {
            Fate::Injected(exit.regs)
        }
        _ => {
            call.td(run.tdr, |td| td.fatal = true);
            fail(Status::NON_RECOVERABLE_TD, plain)
        }
    }
}

fn fail(status: Status, regs: Regs) -> Fate {
    Fate::Host(Regs {
        rax: status.with(regs.rax as u32).raw(),
        ..regs
    })
}

fn page_of(gpa: u64) -> u64 {
    gpa & !0xfff
}

fn ept_violation(call: &Call<'_>, run: &GuestRun, exit: &GuestExit) -> Fate {
    let gpa = page_of(exit.gpa);
    let addresses_end = call.td(run.tdr, |td| td.params.shared_bit()) << 1;
    if gpa >= addresses_end {
        // The guest gets a page fault: no address is so high.
        return Fate::Injected(exit.regs);
    }
    let (private, pending, ve_disabled) = call.td(run.tdr, |td| {
        let entry = td.sept.get(td.sept.translate(td.params.top_level(), gpa));
        let pending = entry.is_some_and(|entry| entry.state == EntryState::Pending);
        let disabled = td.params.attributes & attributes::SEPT_VE_DISABLE != 0;
        (td.params.is_private(gpa), pending, disabled)
    });
    let mut qualification = exit.qualification & 0xffff_ffff & !HIDDEN_QUALIFICATION;
    let mut extended = 0;
    if private && pending {
        if !ve_disabled {
            return Fate::Injected(exit.regs);
        }
        extended = PENDING_VIOLATION;
        qualification &= !RIGHTS;
    }
    if private {
        call.vcpu(run.tdvpr, |vcpu| vcpu.faults.note(gpa));
    }
    Fate::Host(Regs {
        rax: EPT_VIOLATION.into(),
        rcx: qualification,
        rdx: extended,
        r8: gpa,
        ..Regs::default()
    })
}

fn tdcall(call: &Call<'_>, run: &GuestRun, exit: &GuestExit) -> Fate {
    match exit.regs.rax & 0xffff {
        tdcall::VP_VMCALL => vmcall(call, run, exit),
        tdcall::MEM_PAGE_ACCEPT => accept::accept(call, run, exit),
        _ => Fate::Guest(Regs {
            rax: Status::OPERAND_INVALID.operand(crate::Operand::Rax).raw(),
            ..exit.regs
        }),
    }
}

/// TDG.VP.VMCALL: the host sees the registers that the guest selected.
fn vmcall(call: &Call<'_>, run: &GuestRun, exit: &GuestExit) -> Fate {
    let mask = exit.regs.rcx;
    let no_rbp = call.td(run.tdr, |td| {
        td.params.config_flags & crate::td_params::config_flags::NO_RBP_MOD != 0
    });
    let forbidden = FORBIDDEN_IN_MASK | if no_rbp { RBP_IN_MASK } else { 0 };
    if mask & forbidden != 0 {
        return Fate::Guest(Regs {
            rax: Status::OPERAND_INVALID.operand(crate::Operand::Rcx).raw(),
            ..exit.regs
        });
    }
    let guest = exit.regs.by_number();
    let mut host = Regs::default();
    for (number, register) in host.by_number_mut().into_iter().enumerate() {
        if let (Some(register), Some(value)) = (register, guest[number])
            && mask >> number & 1 != 0
        {
            *register = value;
        }
    }
    host.rax = reason::TDCALL.into();
    host.rcx = mask;
    if no_rbp {
        host.rbp = run.host.rbp;
    }
    call.vcpu(run.tdvpr, |vcpu| {
        vcpu.last_exit = LastExit::VmCall(mask as u32);
        move_on(vcpu);
    });
    Fate::Host(host)
}
