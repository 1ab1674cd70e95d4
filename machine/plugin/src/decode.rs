// SPDX-License-Identifier: GPL-2.0

//! Which instructions the machine must see, and what they mean.
//!
//! [`decode`] runs once per translated instruction, so [`interesting`] rejects nearly all of them by
//! their opcode bytes before the real decoder (`iced-x86`) is asked. Neighbours: `ffi` registers a
//! callback for each [`Op`] found, `emulate` carries it out.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

/// Where a memory operand lies: `base + index * scale + displacement`, all optional.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemOperand {
    /// Base register number.
    pub base: Option<u8>,
    /// Index register number and its scale (1, 2, 4 or 8).
    pub index: Option<(u8, u8)>,
    /// Displacement; for a RIP-relative operand already the full address.
    pub displacement: u64,
    /// Segment whose base is added.
    pub segment: Segment,
    /// Address computed modulo 2^32 (67h prefix).
    pub addr32: bool,
}

/// Segment bases that count in 64-bit mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Segment {
    /// Base is zero: CS, DS, ES, SS.
    Flat,
    /// FS base is added.
    Fs,
    /// GS base is added.
    Gs,
}

/// Operand of LTR: a register number or memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RegOrMem {
    /// General purpose register number.
    Reg(u8),
    /// Memory operand.
    Mem(MemOperand),
}

/// An instruction the machine emulates or watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// SEAMCALL.
    Seamcall,
    /// VMXON with the address of its region's physical address.
    Vmxon(MemOperand),
    /// VMXOFF.
    Vmxoff,
    /// INVEPT: type in the register, descriptor in memory.
    Invept(u8),
    /// INVVPID: type in the register, descriptor in memory.
    Invvpid(u8),
    /// An instruction on a VMCS, which the machine has no model of.
    Vmcs(&'static str),
    /// A SEAM instruction that is not for the host.
    UnsupportedSeam(&'static str),
    /// MOVDIR64B: destination address in the register, source in memory.
    Movdir64b {
        /// Register number that holds the destination address.
        dest: u8,
        /// Destination address is 32 bits wide (67h prefix).
        addr32: bool,
        /// 64 bytes to copy.
        source: MemOperand,
    },
    /// WBINVD or WBNOINVD; the flag says that lines are also invalidated.
    Wbinvd(bool),
    /// RDMSR.
    Rdmsr,
    /// WRMSR.
    Wrmsr,
    /// CPUID.
    Cpuid,
    /// MOV CR4, register.
    WriteCr4(u8),
    /// MOV register, CR4.
    ReadCr4(u8),
    /// LIDT: remembered, to deliver faults.
    Lidt(MemOperand),
    /// LGDT: remembered, to deliver faults.
    Lgdt(MemOperand),
    /// LTR: remembered, to deliver faults.
    Ltr(RegOrMem),
    /// IRETQ: a way out of a handler.
    Iretq,
}

impl Op {
    /// Does QEMU not know the instruction, and raise #UD?
    pub fn is_undefined(self) -> bool {
        match self {
            Op::Seamcall
            | Op::Vmxon(_)
            | Op::Vmxoff
            | Op::Invept(_)
            | Op::Invvpid(_)
            | Op::Vmcs(_)
            | Op::UnsupportedSeam(_)
            | Op::Movdir64b { .. } => true,
            Op::Wbinvd(_)
            | Op::Rdmsr
            | Op::Wrmsr
            | Op::Cpuid
            | Op::WriteCr4(_)
            | Op::ReadCr4(_)
            | Op::Lidt(_)
            | Op::Lgdt(_)
            | Op::Ltr(_)
            | Op::Iretq => false,
        }
    }
}

/// Could `bytes` (one instruction, possibly cut short) be an [`Op`]? Cheap, and never wrong when it
/// says no.
pub fn interesting(bytes: &[u8]) -> bool {
    let prefix = |b: &u8| matches!(b, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 | 0x40..=0x4f);
    let start = bytes.iter().position(|b| !prefix(b)).unwrap_or(bytes.len());
    match bytes[start..] {
        [0xcf, ..] => start > 0,
        [0x0f, 0x38, third, ..] => matches!(third, 0x80 | 0x81 | 0xf8),
        [0x0f, second, ..] => {
            matches!(
                second,
                0x00 | 0x01 | 0x09 | 0x20 | 0x22 | 0x30 | 0x32 | 0x78 | 0x79 | 0xa2 | 0xc7
            )
        }
        _ => false,
    }
}

/// Decodes one 64-bit mode instruction at virtual address `rip`.
///
/// Returns the operation and the length of the instruction in bytes, or `None` when it is not one
/// of those the machine cares about (or is cut short).
pub fn decode(bytes: &[u8], rip: u64) -> Option<(Op, usize)> {
    if !interesting(bytes) {
        return None;
    }
    let insn = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE).decode();
    let op = match insn.code() {
        Code::Seamcall => Op::Seamcall,
        Code::Vmxon_m64 => Op::Vmxon(memory(&insn)),
        Code::Vmxoff => Op::Vmxoff,
        Code::Invept_r64_m128 => Op::Invept(number(insn.op0_register())?),
        Code::Invvpid_r64_m128 => Op::Invvpid(number(insn.op0_register())?),
        Code::Movdir64b_r64_m512 | Code::Movdir64b_r32_m512 => Op::Movdir64b {
            dest: number(insn.op0_register())?,
            addr32: insn.code() == Code::Movdir64b_r32_m512,
            source: memory(&insn),
        },
        Code::Wbinvd => Op::Wbinvd(true),
        Code::Wbnoinvd => Op::Wbinvd(false),
        Code::Rdmsr => Op::Rdmsr,
        Code::Wrmsr => Op::Wrmsr,
        Code::Cpuid => Op::Cpuid,
        Code::Mov_cr_r64 if insn.op0_register() == Register::CR4 => {
            Op::WriteCr4(number(insn.op1_register())?)
        }
        Code::Mov_r64_cr if insn.op1_register() == Register::CR4 => {
            Op::ReadCr4(number(insn.op0_register())?)
        }
        Code::Lidt_m1664 => Op::Lidt(memory(&insn)),
        Code::Lgdt_m1664 => Op::Lgdt(memory(&insn)),
        Code::Ltr_rm16 | Code::Ltr_r32m16 | Code::Ltr_r64m16 => Op::Ltr(reg_or_mem(&insn)?),
        Code::Iretq => Op::Iretq,
        other => not_modelled(other)?,
    };
    Some((op, insn.len()))
}

/// Is `bytes` a store that goes around the caches, and writes less than a line?
pub fn is_non_temporal(bytes: &[u8]) -> bool {
    let insn = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    matches!(
        insn.mnemonic(),
        Mnemonic::Movnti
            | Mnemonic::Movntq
            | Mnemonic::Movntdq
            | Mnemonic::Movntps
            | Mnemonic::Movntpd
            | Mnemonic::Maskmovq
            | Mnemonic::Maskmovdqu
            | Mnemonic::Vmovntdq
            | Mnemonic::Vmovntps
            | Mnemonic::Vmovntpd
            | Mnemonic::Vmaskmovdqu
    ) && insn.memory_size().size() < 64
}

fn not_modelled(code: Code) -> Option<Op> {
    Some(match code {
        Code::Vmclear_m64 => Op::Vmcs("VMCLEAR"),
        Code::Vmptrld_m64 => Op::Vmcs("VMPTRLD"),
        Code::Vmptrst_m64 => Op::Vmcs("VMPTRST"),
        Code::Vmread_rm64_r64 => Op::Vmcs("VMREAD"),
        Code::Vmwrite_r64_rm64 => Op::Vmcs("VMWRITE"),
        Code::Vmlaunch => Op::Vmcs("VMLAUNCH"),
        Code::Vmresume => Op::Vmcs("VMRESUME"),
        Code::Tdcall => Op::UnsupportedSeam("TDCALL"),
        Code::Seamret => Op::UnsupportedSeam("SEAMRET"),
        Code::Seamops => Op::UnsupportedSeam("SEAMOPS"),
        _ => return None,
    })
}

fn number(reg: Register) -> Option<u8> {
    reg.is_gpr().then(|| reg.number() as u8)
}

fn reg_or_mem(insn: &Instruction) -> Option<RegOrMem> {
    if insn.op0_kind() == OpKind::Register {
        return number(insn.op0_register()).map(RegOrMem::Reg);
    }
    Some(RegOrMem::Mem(memory(insn)))
}

fn memory(insn: &Instruction) -> MemOperand {
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let segment = match insn.memory_segment() {
        Register::FS => Segment::Fs,
        Register::GS => Segment::Gs,
        _ => Segment::Flat,
    };
    MemOperand {
        base: if base.is_ip() { None } else { number(base) },
        index: number(index).map(|n| (n, insn.memory_index_scale() as u8)),
        displacement: insn.memory_displacement64(),
        segment,
        addr32: base.size() == 4 || index.size() == 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(bytes: &[u8]) -> Option<Op> {
        decode(bytes, 0x1000).map(|(op, len)| {
            assert_eq!(len, bytes.len());
            op
        })
    }

    const AT_RAX: MemOperand = MemOperand {
        base: Some(0),
        index: None,
        displacement: 0,
        segment: Segment::Flat,
        addr32: false,
    };

    #[test]
    fn plain_instructions_are_left_alone() {
        for bytes in [
            &[0x90][..],
            &[0x48, 0x89, 0xc8],
            &[0x0f, 0x05],
            &[0xcf],
            &[],
            &[0x66],
            &[0x0f],
        ] {
            assert_eq!(decode(bytes, 0), None, "{bytes:02x?}");
        }
    }

    #[test]
    fn seam_and_vmx_instructions_are_found() {
        assert_eq!(op(&[0x66, 0x0f, 0x01, 0xcf]), Some(Op::Seamcall));
        assert_eq!(
            op(&[0x66, 0x0f, 0x01, 0xcd]),
            Some(Op::UnsupportedSeam("SEAMRET"))
        );
        assert_eq!(op(&[0xf3, 0x0f, 0xc7, 0x30]), Some(Op::Vmxon(AT_RAX)));
        assert_eq!(op(&[0x0f, 0x01, 0xc4]), Some(Op::Vmxoff));
        assert_eq!(op(&[0x66, 0x0f, 0x38, 0x80, 0x08]), Some(Op::Invept(1)));
        assert_eq!(op(&[0x0f, 0xc7, 0x30]), Some(Op::Vmcs("VMPTRLD")));
    }

    #[test]
    fn movdir64b_operands_are_decoded() {
        let insn = [0x66, 0x41, 0x0f, 0x38, 0xf8, 0x4c, 0xd0, 0x10];
        let source = MemOperand {
            base: Some(8),
            index: Some((2, 8)),
            displacement: 0x10,
            segment: Segment::Flat,
            addr32: false,
        };
        assert_eq!(
            op(&insn),
            Some(Op::Movdir64b {
                dest: 1,
                addr32: false,
                source
            })
        );
    }

    #[test]
    fn rip_relative_operand_is_an_absolute_address() {
        let found = op(&[0x66, 0x0f, 0x38, 0xf8, 0x05, 0x00, 0x01, 0x00, 0x00]);
        let Some(Op::Movdir64b {
            dest: 0, source, ..
        }) = found
        else {
            panic!("{found:?}")
        };
        assert_eq!(
            (source.base, source.displacement),
            (None, 0x1000 + 9 + 0x100)
        );
    }

    #[test]
    fn control_registers_other_than_cr4_are_left_alone() {
        assert_eq!(op(&[0x0f, 0x22, 0xe3]), Some(Op::WriteCr4(3)));
        assert_eq!(op(&[0x0f, 0x20, 0xe0]), Some(Op::ReadCr4(0)));
        assert_eq!(op(&[0x0f, 0x22, 0xd8]), None);
    }

    #[test]
    fn gs_relative_vmxon_keeps_its_segment() {
        let found = op(&[0xf3, 0x65, 0x0f, 0xc7, 0x34, 0x25, 0x40, 0, 0, 0]);
        let Some(Op::Vmxon(mem)) = found else {
            panic!("{found:?}")
        };
        assert_eq!(
            (mem.segment, mem.displacement, mem.base),
            (Segment::Gs, 0x40, None)
        );
    }

    #[test]
    fn stores_around_the_caches_are_told_from_others() {
        let stores: [&[u8]; 8] = [
            &[0x48, 0x0f, 0xc3, 0x07],             // MOVNTI [rdi], rax
            &[0x0f, 0xe7, 0x07],                   // MOVNTQ [rdi], mm0
            &[0x66, 0x0f, 0xe7, 0x07],             // MOVNTDQ [rdi], xmm0
            &[0x0f, 0x2b, 0x07],                   // MOVNTPS [rdi], xmm0
            &[0x66, 0x0f, 0x2b, 0x07],             // MOVNTPD [rdi], xmm0
            &[0xc5, 0xfd, 0xe7, 0x07],             // VMOVNTDQ [rdi], ymm0
            &[0x66, 0x0f, 0xf7, 0xc1],             // MASKMOVDQU xmm0, xmm1
            &[0x62, 0xf1, 0x7d, 0x28, 0xe7, 0x07], // VMOVNTDQ [rdi], ymm0 (EVEX)
        ];
        for bytes in stores {
            assert!(is_non_temporal(bytes), "{bytes:02x?}");
        }
        let others: [&[u8]; 5] = [
            &[0x48, 0x89, 0x07],                   // MOV [rdi], rax
            &[0x66, 0x0f, 0x38, 0x2a, 0x07],       // MOVNTDQA xmm0, [rdi]
            &[0x62, 0xf1, 0x7d, 0x48, 0xe7, 0x07], // VMOVNTDQ [rdi], zmm0
            &[0x66, 0x0f, 0x38, 0xf8, 0x01],       // MOVDIR64B rax, [rcx]
            &[0x0f, 0xc3],
        ];
        for bytes in others {
            assert!(!is_non_temporal(bytes), "{bytes:02x?}");
        }
    }

    #[test]
    fn cut_short_instruction_is_no_operation() {
        assert_eq!(decode(&[0x66, 0x0f, 0x38, 0xf8], 0), None);
    }
}
