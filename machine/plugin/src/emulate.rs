// SPDX-License-Identifier: GPL-2.0

//! What each instruction of interest does to the vCPU and to the machine.
//!
//! [`execute`] is called before QEMU executes the instruction and says where the vCPU goes on
//! ([`Next`]). Where the machine has no opinion, or hardware would raise the fault that QEMU raises
//! for an instruction it does not know, the answer is [`Next::Native`]. SEAMCALL and VMX are in `vmx`.

#[cfg(test)]
mod tests;
mod vmx;

use crate::cpu::{Cpu, Reg};
use crate::decode::{MemOperand, Op, RegOrMem, Segment};
use crate::fault::{self, Tables};
use crate::flags::{self, IretSites};
use tdx_platform::cpuid::CpuidRegs;
use tdx_platform::msr::Write as MsrWrite;
use tdx_platform::{At, GuestMemory, Machine};

/// What the vCPU does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Executes the instruction as QEMU knows it (or raises #UD).
    Native,
    /// Goes on at this address.
    Goto(u64),
    /// Goes on at this IRETQ, which takes it to the instruction after.
    Iretq(u64),
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

/// An answer that is QEMU's until the instruction after the question.
///
/// Leaving QEMU's translation in the middle, as [`Next::Goto`] does, loses the flags that it keeps
/// elsewhere; letting QEMU answer first does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Address of the instruction after the question.
    after: u64,
    answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// CPUID, with this leaf and subleaf.
    Cpuid(u32, u32),
    /// RDMSR, with this value.
    Msr(u64),
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
    /// Where IRETQs are.
    pub irets: &'a IretSites,
    /// Guest memory for the TDX module.
    pub memory: &'a dyn GuestMemory,
    /// Registers and memory of the vCPU.
    pub cpu: &'a mut dyn Cpu,
    /// What is kept for the vCPU.
    pub vcpu: &'a mut Vcpu,
    /// Number of the vCPU, which is also that of the logical processor.
    pub index: u32,
}

const LMA: u64 = 1 << 10;
const VMXE: u64 = 1 << 13;
/// CR4 bits that QEMU's processor may have; a write with others is left to QEMU to refuse.
const CR4_KNOWN: u64 = 0x01f7_1fff & !VMXE;

/// Carries out `insn`.
pub fn execute(step: &mut Step, insn: Insn) -> Next {
    match insn.op {
        Op::Iretq => {}
        Op::Cpuid => step.note_cpuid(insn),
        _ if !step.long_mode() => {}
        Op::Lidt(mem) => step.vcpu.tables.idt = step.table_base(mem).or(step.vcpu.tables.idt),
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
        Op::ReadCr4(reg) => return step.read_cr4(insn, reg),
    }
    Next::Native
}

/// Changes what CPUID or RDMSR answered, on the instruction after it, which is at `rip`.
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

impl Step<'_> {
    fn cpl(&self) -> u8 {
        (self.cpu.reg(Reg::Cs) & 3) as u8
    }

    fn long_mode(&self) -> bool {
        self.cpu.reg(Reg::Efer) & LMA != 0
    }

    fn at(&self, insn: Insn) -> At {
        At {
            lp: self.index,
            rip: insn.rip,
            cpl: self.cpl(),
            executed: self.cpu.executed(),
        }
    }

    fn unsupported(&self, insn: Insn, what: &str) {
        self.machine.unsupported(self.at(insn), what);
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

    /// Goes on after `insn` with these arithmetic flags.
    fn done(&mut self, insn: Insn, flags: u64) -> Next {
        let after = insn.rip.wrapping_add(insn.len);
        match flags::resume(self.cpu, self.irets, after, flags) {
            Some(site) => Next::Iretq(site),
            None => {
                self.unsupported(
                    insn,
                    "no IRETQ seen yet, so the arithmetic flags are not set",
                );
                Next::Goto(after)
            }
        }
    }

    /// Skips `insn` and leaves the arithmetic flags clear.
    ///
    /// Merely moving on would leave QEMU's lazily kept flags as they were before the block: an
    /// interrupt right after it would save nonsense, TF and NT included. MOV to and from CR4 leave
    /// the flags undefined, and C takes every piece of inline assembly to change them, so nothing
    /// relies on them across MOVDIR64B.
    fn skip(&mut self, insn: Insn) -> Next {
        let after = insn.rip.wrapping_add(insn.len);
        let resumed = (self.cpl() == 0 && self.long_mode())
            .then(|| flags::resume(self.cpu, self.irets, after, 0))
            .flatten();
        resumed.map_or(Next::Goto(after), Next::Iretq)
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
        self.machine.movdir64b(self.at(insn), pa);
        self.skip(insn)
    }

    fn rdmsr(&mut self, insn: Insn) -> Next {
        let msr = self.cpu.reg(Reg::Rcx) as u32;
        if self.machine.rdmsr_faults(msr) && self.cpl() == 0 {
            return self.fault(insn);
        }
        let value = self.machine.rdmsr(msr).filter(|_| self.cpl() == 0);
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
                        "an answer of CPUID or RDMSR was not changed: the instruction after it was missed",
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
        if value & VMXE == 0 {
            return Next::Native;
        }
        if self.cpu.reg(Reg::Cr4) != value & !VMXE {
            self.cpu.set_reg(Reg::Cr4, value & !VMXE);
        }
        self.skip(insn)
    }

    fn read_cr4(&mut self, insn: Insn, reg: u8) -> Next {
        if self.cpl() > 0 || !self.machine.vmxe(self.index) {
            return Next::Native;
        }
        let value = self.cpu.reg(Reg::Cr4) | VMXE;
        self.set_gpr(reg, value);
        self.skip(insn)
    }
}
