// SPDX-License-Identifier: GPL-2.0

//! What each instruction of interest does to the vCPU and to the machine.
//!
//! [`execute`] is called before QEMU executes an instruction that it knows, and by `trap` for one that
//! it does not know, and says how the vCPU goes on ([`Next`]). Where the machine has no opinion, or
//! hardware would raise #UD as well, the answer is [`Next::Native`]. SEAMCALL and VMX are in `vmx`.

#[cfg(test)]
mod tests;
mod vmx;

use crate::backtrace::backtrace;
use crate::cpu::{Cpu, Reg};
use crate::decode::{MemOperand, Op, RegOrMem, Segment};
use crate::fault::{self, Tables};
use tdx_platform::cpuid::CpuidRegs;
use tdx_platform::msr::Write as MsrWrite;
use tdx_platform::{At, GuestMemory, Machine, Stack};

/// What the vCPU does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Executes the instruction as QEMU knows it (or raises #UD).
    Native,
    /// Goes on after the instruction, with these of the arithmetic flags set and the others clear,
    /// or with the flags unchanged. Only for instructions that QEMU does not know.
    Done(Option<u64>),
    /// Enters this handler of an exception.
    Handler(u64),
}

/// What is kept for each vCPU between instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vcpu {
    /// Descriptor tables seen.
    pub tables: Tables,
    /// What is to be changed at the next instruction.
    pub pending: Option<Pending>,
}

/// What QEMU executes its own way, to be corrected at the instruction after.
///
/// Leaving QEMU's translation in the middle would lose the flags that it keeps elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Address of the instruction after.
    after: u64,
    answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// CPUID, with this leaf and subleaf.
    Cpuid(u32, u32),
    /// RDMSR, with this value.
    Msr(u64),
    /// MOV to or from CR4: VMXE, which QEMU's CR4 never has, is set in this register.
    Vmxe(u8),
}

/// An instruction about to be executed.
#[derive(Clone, Copy, Debug)]
pub struct Insn {
    /// What it is.
    pub op: Op,
    /// Its address.
    pub rip: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// One vCPU in front of one instruction, with all the emulation needs.
pub struct Step<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// Guest memory for the TDX module.
    pub memory: &'a dyn GuestMemory,
    /// Registers and memory of the vCPU.
    pub cpu: &'a mut dyn Cpu,
    /// What is kept for the vCPU.
    pub vcpu: &'a mut Vcpu,
    /// Number of the vCPU, which is also that of the logical processor.
    pub index: u32,
}

pub(crate) const LMA: u64 = 1 << 10;
pub(crate) const VMXE: u64 = 1 << 13;
/// CR4 bits that QEMU's processor may have; a write with others is left to QEMU to refuse.
const CR4_KNOWN: u64 = 0x01f7_1fff & !VMXE;

/// Carries out `insn`.
pub fn execute(step: &mut Step, insn: Insn) -> Next {
    match insn.op {
        Op::Iretq => {}
        Op::Cpuid => step.note_cpuid(insn),
        _ if !step.long_mode() => {}
        Op::Lidt(mem) => step.lidt(insn, mem),
        Op::Lgdt(mem) => step.vcpu.tables.gdt = step.table_base(mem).or(step.vcpu.tables.gdt),
        Op::Ltr(operand) => step.vcpu.tables.tr = step.selector(operand).or(step.vcpu.tables.tr),
        Op::Seamcall => return step.seamcall(insn),
        Op::Rdmsr => return step.rdmsr(insn),
        Op::Wrmsr => return step.wrmsr(insn),
        Op::Vmxon(mem) => return step.vmxon(insn, mem),
        Op::Vmxoff => return step.vmxoff(insn),
        Op::Invept(_) | Op::Invvpid(_) => return step.invalidate(insn),
        Op::Vmcs(name) => return step.vmcs(insn, name),
        Op::UnsupportedSeam(name) => {
            step.unsupported(insn, &format!("{name} is not modelled, so #UD"))
        }
        Op::Movdir64b {
            dest,
            addr32,
            source,
        } => return step.movdir64b(insn, dest, addr32, source),
        Op::Wbinvd(_) => {
            if step.cpl() == 0 {
                step.machine.wbinvd(step.index);
            }
        }
        Op::WriteCr4(reg) => return step.write_cr4(insn, reg),
        Op::ReadCr4(reg) => step.read_cr4(insn, reg),
    }
    Next::Native
}

/// The vCPU is at an instruction at which an NMI may come, at `rip`.
pub fn nmi(step: &mut Step, rip: u64) -> Next {
    if step.cpl() > 0 || !step.machine.nmi_comes(step.at(rip)) {
        return Next::Native;
    }
    match fault::deliver_nmi(step.cpu, &step.vcpu.tables, rip) {
        Some(handler) => Next::Handler(handler),
        None => {
            let why = "an NMI cannot be delivered (no LIDT, LGDT or LTR seen)";
            step.machine.unsupported(step.at(rip), why);
            Next::Native
        }
    }
}

/// Corrects what QEMU did at the instruction before the one at `rip`.
pub fn patch_answer(machine: &Machine, cpu: &mut dyn Cpu, vcpu: &mut Vcpu, rip: u64) {
    let Some(pending) = vcpu.pending.take_if(|pending| pending.after == rip) else {
        return;
    };
    match pending.answer {
        Answer::Cpuid(leaf, subleaf) => patch_cpuid(machine, cpu, leaf, subleaf),
        Answer::Msr(value) => {
            cpu.set_reg(Reg::Rax, value & 0xffff_ffff);
            cpu.set_reg(Reg::Rdx, value >> 32);
        }
        Answer::Vmxe(number) => {
            if let Some(reg) = Reg::GPR.get(usize::from(number)) {
                cpu.set_reg(*reg, cpu.reg(*reg) | VMXE);
            }
        }
    }
}

fn patch_cpuid(machine: &Machine, cpu: &mut dyn Cpu, leaf: u32, subleaf: u32) {
    let low = |reg| cpu.reg(reg) as u32;
    let native = CpuidRegs {
        eax: low(Reg::Rax),
        ebx: low(Reg::Rbx),
        ecx: low(Reg::Rcx),
        edx: low(Reg::Rdx),
    };
    let regs = machine.cpuid(leaf, subleaf, native);
    for (reg, value) in [
        (Reg::Rax, regs.eax),
        (Reg::Rbx, regs.ebx),
        (Reg::Rcx, regs.ecx),
        (Reg::Rdx, regs.edx),
    ] {
        cpu.set_reg(reg, value.into());
    }
}

impl Stack for Step<'_> {
    fn backtrace(&self) -> Vec<u64> {
        backtrace(self.cpu)
    }
}

impl Step<'_> {
    fn cpl(&self) -> u8 {
        (self.cpu.reg(Reg::Cs) & 3) as u8
    }

    fn long_mode(&self) -> bool {
        self.cpu.reg(Reg::Efer) & LMA != 0
    }

    fn at(&self, rip: u64) -> At<'_> {
        At {
            lp: self.index,
            rip,
            cpl: self.cpl(),
            executed: self.cpu.executed(),
            stack: Some(self),
        }
    }

    /// Notes that `insn` is not done as hardware would.
    pub(crate) fn unsupported(&self, insn: Insn, what: &str) {
        self.machine.unsupported(self.at(insn.rip), what);
    }

    fn gpr(&self, number: u8) -> u64 {
        Reg::GPR
            .get(usize::from(number))
            .map_or(0, |reg| self.cpu.reg(*reg))
    }

    fn set_gpr(&mut self, number: u8, value: u64) {
        if let Some(reg) = Reg::GPR.get(usize::from(number)) {
            self.cpu.set_reg(*reg, value);
        }
    }

    /// Linear address of a memory operand.
    fn address(&self, mem: MemOperand) -> u64 {
        let base = mem.base.map_or(0, |n| self.gpr(n));
        let index = mem
            .index
            .map_or(0, |(n, scale)| self.gpr(n).wrapping_mul(scale.into()));
        let offset = base.wrapping_add(index).wrapping_add(mem.displacement);
        let offset = if mem.addr32 {
            offset & 0xffff_ffff
        } else {
            offset
        };
        match mem.segment {
            Segment::Flat => offset,
            Segment::Fs => offset.wrapping_add(self.cpu.reg(Reg::FsBase)),
            Segment::Gs => offset.wrapping_add(self.cpu.reg(Reg::GsBase)),
        }
    }

    fn table_base(&self, mem: MemOperand) -> Option<u64> {
        crate::cpu::read_u64(self.cpu, self.address(mem).wrapping_add(2))
    }

    fn lidt(&mut self, insn: Insn, mem: MemOperand) {
        self.vcpu.tables.idt = self.table_base(mem).or(self.vcpu.tables.idt);
        if self.cpl() == 0 {
            self.machine.lidt(self.at(insn.rip));
        }
    }

    fn selector(&self, operand: RegOrMem) -> Option<u16> {
        match operand {
            RegOrMem::Reg(n) => Some(self.gpr(n) as u16),
            RegOrMem::Mem(mem) => {
                let mut buf = [0; 2];
                self.cpu
                    .read_virt(self.address(mem), &mut buf)
                    .then(|| u16::from_le_bytes(buf))
            }
        }
    }

    fn fault(&mut self, insn: Insn) -> Next {
        match fault::deliver(self.cpu, &self.vcpu.tables, fault::GP, insn.rip) {
            Some(handler) => Next::Handler(handler),
            None => {
                self.unsupported(
                    insn,
                    "#GP(0) cannot be delivered (no LIDT, LGDT or LTR seen), so #UD",
                );
                Next::Native
            }
        }
    }

    fn movdir64b(&mut self, insn: Insn, dest: u8, addr32: bool, source: MemOperand) -> Next {
        if !self.machine.config().movdir64b {
            return Next::Native;
        }
        if self.cpl() > 0 {
            self.unsupported(insn, "MOVDIR64B outside CPL 0 is not modelled, so #UD");
            return Next::Native;
        }
        let to = if addr32 {
            self.gpr(dest) & 0xffff_ffff
        } else {
            self.gpr(dest)
        };
        if to % 64 != 0 {
            return self.fault(insn);
        }
        let mut line = [0; 64];
        let copied = self.cpu.read_virt(self.address(source), &mut line);
        let Some(pa) = self
            .cpu
            .translate(to)
            .filter(|_| copied && self.cpu.write_virt(to, &line))
        else {
            self.unsupported(insn, "MOVDIR64B operand is not mapped, so #UD");
            return Next::Native;
        };
        self.machine.movdir64b(self.at(insn.rip), pa);
        Next::Done(None)
    }

    fn rdmsr(&mut self, insn: Insn) -> Next {
        let msr = self.cpu.reg(Reg::Rcx) as u32;
        if self.machine.rdmsr_faults(msr) && self.cpl() == 0 {
            return self.fault(insn);
        }
        let allowed = self.cpl() == 0;
        let value = allowed
            .then(|| self.machine.rdmsr(self.index, msr))
            .flatten();
        self.expect(insn, value.map(Answer::Msr));
        Next::Native
    }

    fn wrmsr(&mut self, insn: Insn) -> Next {
        let msr = self.cpu.reg(Reg::Rcx) as u32;
        match self.machine.wrmsr(msr) {
            MsrWrite::Fault if self.cpl() == 0 => self.fault(insn),
            _ => Next::Native,
        }
    }

    fn note_cpuid(&mut self, insn: Insn) {
        let (leaf, subleaf) = (self.cpu.reg(Reg::Rax) as u32, self.cpu.reg(Reg::Rcx) as u32);
        let patched = tdx_platform::cpuid::is_patched(leaf);
        self.expect(insn, patched.then_some(Answer::Cpuid(leaf, subleaf)));
    }

    /// Notes what `insn` is to answer, if not what QEMU does.
    fn expect(&mut self, insn: Insn, answer: Option<Answer>) {
        let after = insn.rip.wrapping_add(insn.len);
        match answer {
            Some(answer) => {
                if self
                    .vcpu
                    .pending
                    .replace(Pending { after, answer })
                    .is_some()
                {
                    self.machine.log(
                        "an answer of CPUID, RDMSR or CR4 was not changed: the instruction after it was missed",
                    );
                }
            }
            None => self.vcpu.pending = self.vcpu.pending.filter(|pending| pending.after != after),
        }
    }

    /// VMXE lives in the machine; QEMU gets the rest of the value.
    fn write_cr4(&mut self, insn: Insn, reg: u8) -> Next {
        let value = self.gpr(reg);
        if self.cpl() > 0 || value & !(CR4_KNOWN | VMXE) != 0 {
            return Next::Native;
        }
        if !self.machine.set_vmxe(self.index, value & VMXE != 0) {
            return self.fault(insn);
        }
        self.set_gpr(reg, value & !VMXE);
        self.expect(insn, (value & VMXE != 0).then_some(Answer::Vmxe(reg)));
        Next::Native
    }

    fn read_cr4(&mut self, insn: Insn, reg: u8) {
        let set = self.cpl() == 0 && self.machine.vmxe(self.index);
        self.expect(insn, set.then_some(Answer::Vmxe(reg)));
    }
}
