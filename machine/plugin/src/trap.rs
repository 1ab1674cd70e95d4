// SPDX-License-Identifier: GPL-2.0

//! Instructions that QEMU does not know, carried out when the guest's #UD handler is entered.
//!
//! QEMU raises #UD for them, which is precise and saves RFLAGS complete: TCG keeps CF, PF, AF, ZF, SF
//! and OF outside the RFLAGS that a plugin can access, and leaving its code in the middle of a block
//! loses them. Before the first instruction of the handler, [`enter`] looks at the instruction that
//! the exception frame points to. If it is one of ours, it is carried out on the registers of the
//! interrupted program (`Faulted`), and the vCPU leaves the handler again: through an IRETQ
//! ([`IretSites`]), which loads the flags from the frame, or to the handler of #GP. Otherwise the
//! handler runs as if there were no plugin.
//!
//! Nothing is kept from the instruction to the handler, so an NMI between the two does no harm, nor
//! a SEAMCALL in its handler. Where the handler is must be known when QEMU translates it:
//! [`Handlers::expect`], called before the instruction, sees to that.

#[cfg(test)]
mod tests;

use crate::cpu::{Cpu, Reg, read_u64};
use crate::decode::decode;
use crate::emulate::{Insn, Next, Step, execute};
use crate::fault::{self, bytes};
use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Carry flag: VMfailInvalid.
pub const CF: u64 = 1;
/// Zero flag: VMfailValid.
pub const ZF: u64 = 1 << 6;
/// CF, PF, AF, ZF, SF and OF.
const ARITHMETIC: u64 = 0x8d5;
/// Direction flag.
const DF: u64 = 1 << 10;
/// Resume flag: set in the RFLAGS that a fault saves.
const RF: u64 = 1 << 16;

/// Bytes of IRETQ.
const IRETQ: [u8; 2] = [0x48, 0xcf];

/// Where a vCPU goes on that has entered the handler of #UD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// In the handler: the exception is the guest's.
    Guest,
    /// At this IRETQ, which takes it to the instruction after the one that was carried out.
    Iretq(u64),
    /// At this handler of another exception.
    Handler(u64),
}

/// Where the guest's kernel has an IRETQ; the one translated last.
///
/// A new kernel (reboot, kexec) may lie elsewhere, so the bytes are checked before each use.
#[derive(Debug, Default)]
pub struct IretSites(AtomicU64);

impl IretSites {
    /// Notes an IRETQ at `va`; addresses in the lower half are ignored, those are not a kernel's.
    pub fn note(&self, va: u64) {
        if va >> 63 == 1 {
            self.0.store(va, Ordering::Relaxed);
        }
    }

    fn find(&self, cpu: &dyn Cpu) -> Option<u64> {
        let va = self.0.load(Ordering::Relaxed);
        let mut found = [0; 2];
        (va != 0 && cpu.read_virt(va, &mut found) && found == IRETQ).then_some(va)
    }
}

/// First instructions of the handlers of #UD.
#[derive(Debug, Default)]
pub struct Handlers(Mutex<HashSet<u64>>);

impl Handlers {
    /// Does the handler of #UD begin at `va`?
    pub fn contains(&self, va: u64) -> bool {
        let handlers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        handlers.contains(&va)
    }

    /// Prepares for the #UD that `insn`, about to be executed, raises.
    pub fn expect(&self, step: &mut Step, insn: Insn) {
        let Some(handler) = fault::handler(step.cpu, &step.vcpu.tables, fault::UD) else {
            step.unsupported(insn, "the handler of #UD is not known, so #UD");
            return;
        };
        let mut handlers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if handlers.insert(handler) {
            drop(handlers);
            // QEMU may have translated it before. It does so again after a write.
            let mut byte = [0];
            let _ = step.cpu.read_virt(handler, &mut byte) && step.cpu.write_virt(handler, &byte);
        }
    }
}

/// Carries out the instruction that raised #UD, if QEMU did not know it. `step` is at the first
/// instruction of the handler. For [`Exit::Guest`] the vCPU is unchanged.
pub fn enter(step: &mut Step, irets: &IretSites) -> Exit {
    let Some(mut faulted) = Faulted::new(step.cpu) else {
        return Exit::Guest;
    };
    let Some(insn) = faulted.insn() else {
        return Exit::Guest;
    };
    let site = irets.find(&faulted);
    let mut inner = Step {
        machine: step.machine,
        memory: step.memory,
        cpu: &mut faulted,
        vcpu: step.vcpu,
        index: step.index,
    };
    let Some(site) = site else {
        inner.unsupported(insn, "no IRETQ to return with was seen yet, so #UD");
        return Exit::Guest;
    };
    match execute(&mut inner, insn) {
        Next::Native => Exit::Guest,
        Next::Done(flags) => {
            faulted.finish(insn, flags);
            Exit::Iretq(site)
        }
        Next::Handler(handler) => {
            faulted.unwind();
            Exit::Handler(handler)
        }
    }
}

/// A vCPU at the first instruction of an exception handler, seen as it was at the instruction that
/// raised the exception: RSP, CS, SS and RFLAGS are those in the exception frame.
struct Faulted<'a> {
    cpu: &'a mut dyn Cpu,
    /// Where the frame is.
    va: u64,
    /// RIP, CS, RFLAGS, RSP, SS.
    frame: [u64; 5],
}

impl<'a> Faulted<'a> {
    /// `None` if there is no exception frame without an error code.
    fn new(cpu: &'a mut dyn Cpu) -> Option<Self> {
        let va = cpu.reg(Reg::Rsp);
        let mut frame = [0; 5];
        for (va, word) in (va..).step_by(8).zip(&mut frame) {
            *word = read_u64(cpu, va)?;
        }
        let [_, cs, rflags, _, ss] = frame;
        let plausible = cs <= 0xffff && ss <= 0xffff && rflags >> 32 == 0 && rflags & 2 != 0;
        (plausible && cpu.reg(Reg::Cs) & 3 == 0).then_some(Faulted { cpu, va, frame })
    }

    /// The instruction that raised the exception, if QEMU does not know it.
    fn insn(&self) -> Option<Insn> {
        let rip = self.frame[0];
        let mut code = [0; 15];
        // It may be the last one before a page that is not mapped.
        let in_page = (4096 - rip as usize % 4096).min(code.len());
        if !self.read_virt(rip, &mut code) && !self.read_virt(rip, &mut code[..in_page]) {
            return None;
        }
        let (op, len) = decode(&code, rip)?;
        op.is_undefined().then_some(Insn {
            op,
            rip,
            len: len as u64,
        })
    }

    /// Place of `reg` in the frame.
    fn saved(reg: Reg) -> Option<usize> {
        match reg {
            Reg::Cs => Some(1),
            Reg::Eflags => Some(2),
            Reg::Rsp => Some(3),
            Reg::Ss => Some(4),
            _ => None,
        }
    }

    /// Makes the frame one that returns behind `insn`, perhaps with other arithmetic flags.
    fn finish(self, insn: Insn, flags: Option<u64>) {
        let [_, cs, rflags, rsp, ss] = self.frame;
        let rflags = flags.map_or(rflags, |flags| rflags & !ARITHMETIC | flags) & !RF;
        let frame = [insn.rip.wrapping_add(insn.len), cs, rflags, rsp, ss];
        self.cpu.write_virt(self.va, &bytes(&frame));
    }

    /// Leaves the handler: the registers of the frame become those of the vCPU.
    fn unwind(self) {
        for reg in [Reg::Rsp, Reg::Cs, Reg::Ss, Reg::Eflags] {
            let mut value = self.reg(reg);
            if reg == Reg::Eflags {
                value &= !(ARITHMETIC | DF);
            }
            // Loading a selector needs its descriptor, so not without need.
            if self.cpu.reg(reg) != value {
                self.cpu.set_reg(reg, value);
            }
        }
    }
}

impl Cpu for Faulted<'_> {
    fn reg(&self, reg: Reg) -> u64 {
        match Self::saved(reg) {
            Some(index) => self.frame[index],
            None => self.cpu.reg(reg),
        }
    }

    fn set_reg(&mut self, reg: Reg, value: u64) {
        match Self::saved(reg) {
            Some(index) => self.frame[index] = value,
            None => self.cpu.set_reg(reg, value),
        }
    }

    fn executed(&self) -> u64 {
        self.cpu.executed()
    }

    fn read_virt(&self, va: u64, buf: &mut [u8]) -> bool {
        self.cpu.read_virt(va, buf)
    }

    fn write_virt(&mut self, va: u64, data: &[u8]) -> bool {
        self.cpu.write_virt(va, data)
    }

    fn translate(&self, va: u64) -> Option<u64> {
        self.cpu.translate(va)
    }

    fn read_phys(&self, pa: u64, buf: &mut [u8]) -> bool {
        self.cpu.read_phys(pa, buf)
    }

    fn write_phys(&mut self, pa: u64, data: &[u8]) -> bool {
        self.cpu.write_phys(pa, data)
    }
}
