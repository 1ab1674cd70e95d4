// SPDX-License-Identifier: GPL-2.0

//! SEAMCALL and the VMX instructions.

use super::{Insn, Next, Step};
use crate::cpu::Reg;
use crate::decode::MemOperand;
use crate::trap::{CF, ZF};
use tdx_platform::msr::VMX_REVISION;
use tdx_platform::{Reply, tdx_module::Regs};

impl Step<'_> {
    pub(super) fn seamcall(&mut self, insn: Insn) -> Next {
        let before = self.regs();
        match self
            .machine
            .seamcall(self.at(insn.rip), true, before, self.memory)
        {
            Reply::InvalidOpcode => Next::Native,
            Reply::GeneralProtection => self.fault(insn),
            Reply::VmfailInvalid => Next::Done(Some(CF)),
            Reply::Returned(after) => {
                self.set_regs(before, after);
                Next::Done(Some(0))
            }
        }
    }

    fn regs(&self) -> Regs {
        let r = |reg| self.cpu.reg(reg);
        Regs {
            rax: r(Reg::Rax),
            rcx: r(Reg::Rcx),
            rdx: r(Reg::Rdx),
            rbx: r(Reg::Rbx),
            rbp: r(Reg::Rbp),
            rsi: r(Reg::Rsi),
            rdi: r(Reg::Rdi),
            r8: r(Reg::R8),
            r9: r(Reg::R9),
            r10: r(Reg::R10),
            r11: r(Reg::R11),
            r12: r(Reg::R12),
            r13: r(Reg::R13),
            r14: r(Reg::R14),
            r15: r(Reg::R15),
        }
    }

    /// Writes the registers in which `after` differs from `before`.
    fn set_regs(&mut self, before: Regs, after: Regs) {
        // `Regs::NAMES` and its values leave out RSP.
        let names = Regs::NAMES
            .iter()
            .zip(before.values().into_iter().zip(after.values()));
        for (name, (old, new)) in names {
            let reg = Reg::GPR
                .into_iter()
                .find(|reg| Reg::NAMES[*reg as usize] == *name);
            if let Some(reg) = reg.filter(|_| old != new) {
                self.cpu.set_reg(reg, new);
            }
        }
    }

    pub(super) fn vmxon(&mut self, insn: Insn, mem: MemOperand) -> Next {
        if !self.machine.vmxe(self.index) {
            return Next::Native;
        }
        if self.cpl() > 0 {
            return self.fault(insn);
        }
        if self.machine.in_vmx(self.index) {
            return Next::Done(Some(ZF));
        }
        let Some(region) = crate::cpu::read_u64(self.cpu, self.address(mem)) else {
            self.unsupported(insn, "VMXON operand is not mapped, so #UD");
            return Next::Native;
        };
        let mut revision = [0; 4];
        let usable = region & 0xfff == 0
            && self.memory.read(region, &mut revision)
            && u32::from_le_bytes(revision) == VMX_REVISION;
        if !usable {
            return Next::Done(Some(CF));
        }
        self.machine.vmxon(self.at(insn.rip));
        Next::Done(Some(0))
    }

    pub(super) fn vmxoff(&mut self, insn: Insn) -> Next {
        if !self.machine.in_vmx(self.index) {
            return Next::Native;
        }
        if self.cpl() > 0 {
            return self.fault(insn);
        }
        self.machine.vmxoff(self.at(insn.rip));
        Next::Done(Some(0))
    }

    /// INVEPT and INVVPID: there are no guest translations to drop.
    pub(super) fn invalidate(&mut self, insn: Insn) -> Next {
        match (self.machine.in_vmx(self.index), self.cpl()) {
            (false, _) => Next::Native,
            (true, 0) => Next::Done(Some(0)),
            (true, _) => self.fault(insn),
        }
    }

    /// VMREAD and the like: there are no virtual machines but TDs, so no VMCS is ever current. They
    /// fail instead of faulting, because a host that uses them on purpose reports a failure and goes
    /// on, while a fault is the end of it.
    pub(super) fn vmcs(&mut self, insn: Insn, name: &str) -> Next {
        match (self.machine.in_vmx(self.index), self.cpl()) {
            (false, _) => Next::Native,
            (true, 0) => {
                let text = format!("{name} is for virtual machines that are no TDs: VMfailInvalid");
                self.unsupported(insn, &text);
                Next::Done(Some(CF))
            }
            (true, _) => self.fault(insn),
        }
    }
}
