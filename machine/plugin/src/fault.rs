// SPDX-License-Identifier: GPL-2.0

//! Faults that QEMU would not raise by itself: #GP(0) where the machine, but not QEMU, refuses.
//!
//! The plugin interface has no "raise an exception", so [`deliver`] does what the processor does:
//! reads the gate from the IDT, picks the stack, pushes the frame and enters the handler. It needs
//! the descriptor tables, which no register shows; [`Tables`] remembers them from the LIDT, LGDT and
//! LTR that the vCPU executed. 64-bit mode only. The pushed RFLAGS is what [`Cpu`] shows: complete for
//! an instruction that QEMU does not know, without the arithmetic flags for one that it does.

use crate::cpu::{Cpu, Reg, read_u64};

/// Descriptor tables of one vCPU, as far as seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Base of the IDT.
    pub idt: Option<u64>,
    /// Base of the GDT.
    pub gdt: Option<u64>,
    /// Selector in TR.
    pub tr: Option<u16>,
}

/// Non-maskable interrupt.
const NMI: u8 = 2;
/// Invalid opcode.
pub const UD: u8 = 6;
/// General protection.
pub const GP: u8 = 13;

const RF: u64 = 1 << 16;
const IF: u64 = 1 << 9;
/// TF, NT, RF and VM are cleared on entry to a handler.
const CLEARED: u64 = 1 << 8 | 1 << 14 | RF | 1 << 17;

/// Enters the handler of exception `vector` with error code 0, for the instruction at `rip`.
///
/// Returns the address of the handler, where the vCPU has to go on, or `None` if the tables are
/// unknown or the gate unusable; registers are unchanged then.
pub fn deliver(cpu: &mut dyn Cpu, tables: &Tables, vector: u8, rip: u64) -> Option<u64> {
    enter(cpu, tables, vector, rip, true)
}

/// Enters the handler of NMIs, in front of the instruction at `rip`.
///
/// NMIs are not blocked meanwhile, as they would be on hardware. Returns what [`deliver`] does.
pub fn deliver_nmi(cpu: &mut dyn Cpu, tables: &Tables, rip: u64) -> Option<u64> {
    enter(cpu, tables, NMI, rip, false)
}

/// Enters the handler of `vector`; `fault` says that it gets an error code, 0, and RF in RFLAGS.
fn enter(cpu: &mut dyn Cpu, tables: &Tables, vector: u8, rip: u64, fault: bool) -> Option<u64> {
    let (low, handler) = gate(cpu, tables, vector)?;
    let (cs, ss) = (cpu.reg(Reg::Cs), cpu.reg(Reg::Ss));
    let (rsp, flags) = (cpu.reg(Reg::Rsp), cpu.reg(Reg::Eflags));
    let top = match (low >> 32 & 7, cs & 3) {
        (0, 0) => rsp,
        (0, _) => read_u64(cpu, tss(cpu, tables)? + 4)?,
        (ist, _) => read_u64(cpu, tss(cpu, tables)? + 28 + 8 * ist)?,
    };
    let resume = if fault { RF } else { 0 };
    let words = bytes(&[0, rip, cs, flags | resume | 2, rsp, ss]);
    let words = if fault { &words[..] } else { &words[8..] };
    let frame = (top & !15).checked_sub(words.len() as u64)?;
    if !cpu.write_virt(frame, words) {
        return None;
    }
    cpu.set_reg(Reg::Rsp, frame);
    if cs & 3 != 0 {
        cpu.set_reg(Reg::Ss, 0);
    }
    cpu.set_reg(Reg::Cs, low >> 16 & 0xfffc);
    let masked = if low >> 40 & 1 == 0 {
        CLEARED | IF
    } else {
        CLEARED
    };
    cpu.set_reg(Reg::Eflags, flags & !masked);
    Some(handler)
}

/// Address of the handler of exception `vector`, or `None` if the tables are unknown or the gate
/// unusable.
pub fn handler(cpu: &dyn Cpu, tables: &Tables, vector: u8) -> Option<u64> {
    gate(cpu, tables, vector).map(|(_, handler)| handler)
}

/// Low half of an interrupt gate or trap gate, and the address in it.
fn gate(cpu: &dyn Cpu, tables: &Tables, vector: u8) -> Option<(u64, u64)> {
    let va = tables.idt?.checked_add(u64::from(vector) * 16)?;
    let (low, high) = (read_u64(cpu, va)?, read_u64(cpu, va.checked_add(8)?)?);
    let usable = low >> 47 & 1 == 1 && matches!(low >> 40 & 0xf, 0xe | 0xf);
    let address = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
    usable.then_some((low, address))
}

/// Base address of the task state segment.
fn tss(cpu: &dyn Cpu, tables: &Tables) -> Option<u64> {
    let descriptor = tables.gdt?.checked_add(u64::from(tables.tr? & !7))?;
    let (low, high) = (read_u64(cpu, descriptor)?, read_u64(cpu, descriptor + 8)?);
    Some(low >> 16 & 0xff_ffff | low >> 32 & 0xff00_0000 | high << 32)
}

/// Little-endian bytes of `words`, lowest address first.
pub(crate) fn bytes<const N: usize>(words: &[u64; N]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::fake::FakeCpu;

    const HANDLER: u64 = 0xffff_ffff_8100_1234;
    const TABLES: Tables = Tables {
        idt: Some(0x1000),
        gdt: Some(0x2000),
        tr: Some(0x40),
    };

    /// A vCPU with a #GP gate, a TSS with RSP0 = 7000h and IST1 = 8000h, and mapped stacks.
    fn machine(ist: u64, cpl: u64) -> FakeCpu {
        let mut cpu = FakeCpu::default();
        for page in [0x1000, 0x2000, 0x3000, 0x5000, 0x6000, 0x7000] {
            cpu.map(page, 0x1000);
        }
        let gate =
            HANDLER & 0xffff | 0x10 << 16 | ist << 32 | 0x8e << 40 | (HANDLER >> 16 & 0xffff) << 48;
        cpu.write_virt(0x1000 + 13 * 16, &bytes(&[gate, HANDLER >> 32]));
        cpu.write_virt(0x2040, &bytes(&[0x0000_8900_3000_0067, 0]));
        cpu.write_virt(0x3004, &bytes(&[0x7000]));
        cpu.write_virt(0x3024, &bytes(&[0x8000]));
        cpu.set_reg(Reg::Cs, 0x10 | cpl);
        cpu.set_reg(Reg::Ss, 0x18 | cpl);
        cpu.set_reg(Reg::Rsp, 0x5fe8);
        cpu.set_reg(Reg::Eflags, 0x246);
        cpu
    }

    #[test]
    fn kernel_fault_uses_the_current_stack() {
        let mut cpu = machine(0, 0);
        assert_eq!(deliver(&mut cpu, &TABLES, GP, 0xabcd), Some(HANDLER));
        let rsp = cpu.reg(Reg::Rsp);
        assert_eq!(rsp, 0x5fe0 - 48);
        let frame: Vec<_> = (0..6)
            .map(|i| read_u64(&cpu, rsp + 8 * i).unwrap())
            .collect();
        assert_eq!(frame, [0, 0xabcd, 0x10, 0x10246, 0x5fe8, 0x18]);
        assert_eq!(cpu.reg(Reg::Eflags) & IF, 0);
    }

    #[test]
    fn user_fault_switches_to_the_kernel_stack_and_privilege() {
        let mut cpu = machine(0, 3);
        assert_eq!(deliver(&mut cpu, &TABLES, GP, 0x40_0000), Some(HANDLER));
        assert_eq!(cpu.reg(Reg::Rsp), 0x7000 - 48);
        assert_eq!((cpu.reg(Reg::Cs), cpu.reg(Reg::Ss)), (0x10, 0));
        assert_eq!(read_u64(&cpu, 0x7000 - 48 + 40), Some(0x1b));
    }

    #[test]
    fn interrupt_stack_table_is_honoured() {
        let mut cpu = machine(1, 0);
        assert_eq!(deliver(&mut cpu, &TABLES, GP, 1), Some(HANDLER));
        assert_eq!(cpu.reg(Reg::Rsp), 0x8000 - 48);
    }

    #[test]
    fn nmi_has_no_error_code_and_may_have_a_stack() {
        let mut cpu = machine(1, 0);
        let mut gate = [0; 16];
        cpu.read_virt(0x1000 + 13 * 16, &mut gate);
        cpu.write_virt(0x1000 + 2 * 16, &gate);
        assert_eq!(deliver_nmi(&mut cpu, &TABLES, 0xabcd), Some(HANDLER));
        let rsp = cpu.reg(Reg::Rsp);
        assert_eq!(rsp, 0x8000 - 40);
        let frame: Vec<_> = (0..5)
            .map(|i| read_u64(&cpu, rsp + 8 * i).unwrap())
            .collect();
        assert_eq!(frame, [0xabcd, 0x10, 0x246, 0x5fe8, 0x18]);
    }

    #[test]
    fn unknown_tables_or_stack_change_nothing() {
        let mut cpu = machine(0, 0);
        assert_eq!(deliver(&mut cpu, &Tables::default(), GP, 1), None);
        cpu.set_reg(Reg::Rsp, 0x9000_0000);
        let before = cpu.regs;
        assert_eq!(deliver(&mut cpu, &TABLES, GP, 1), None);
        assert_eq!(cpu.regs, before);
    }
}
