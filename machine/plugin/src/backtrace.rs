// SPDX-License-Identifier: GPL-2.0

//! Who called the function that a vCPU executes: a guess from its stack.
//!
//! A kernel need not keep frame pointers, and the plugin has no tables to unwind with. So [`backtrace`]
//! takes every word on the stack for a return address that points into the kernel's code, right
//! behind a CALL. It finds all callers that are near enough, and between them, perhaps, what calls
//! that have ended left on the stack.

use crate::cpu::{Cpu, Reg, read_u64};
use iced_x86::{Decoder, DecoderOptions};

/// Words of the stack that are looked at: a page.
const WORDS: u64 = 512;
/// Return addresses that are enough.
const ENOUGH: usize = 16;
/// The kernel's code and its modules lie from here on, so that a displacement of 32 bits reaches all.
const CODE: u64 = 0xffff_ffff_8000_0000;

/// Return addresses on the stack of `cpu`, innermost first.
pub fn backtrace(cpu: &dyn Cpu) -> Vec<u64> {
    // Operands of other lengths may be on top, but return addresses are where a CALL aligned them.
    let top = cpu.reg(Reg::Rsp).checked_next_multiple_of(8);
    (0..WORDS)
        .map_while(|word| read_u64(cpu, top?.checked_add(8 * word)?))
        .filter(|&va| va >= CODE && follows_call(cpu, va))
        .take(ENOUGH)
        .collect()
}

/// Is there a CALL that ends in front of `va`? Its prefixes do not matter, so it has 2 bytes (with a
/// register) to 7 (with a SIB byte and a displacement of 32 bits).
fn follows_call(cpu: &dyn Cpu, va: u64) -> bool {
    (2..=7).any(|len| {
        let mut code = [0; 7];
        let code = &mut code[..len];
        cpu.read_virt(va - len as u64, code) && is_call(code)
    })
}

/// Is all of `code` one near CALL?
fn is_call(code: &[u8]) -> bool {
    let insn = Decoder::new(64, code, DecoderOptions::NONE).decode();
    (insn.is_call_near() || insn.is_call_near_indirect()) && insn.len() == code.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::fake::FakeCpu;

    /// Where the code of the tests is.
    const TEXT: u64 = CODE + 0x10_0000;
    /// Where their stack is, 8 KB.
    const STACK: u64 = TEXT + 0x10_0000;
    const CALL: [u8; 5] = [0xe8, 0, 1, 0, 0];

    /// A vCPU with these words on its stack, the last ones that are mapped, and a page of code, all NOPs.
    fn cpu(stack: &[u64]) -> FakeCpu {
        let mut cpu = FakeCpu {
            offset: CODE,
            ..FakeCpu::default()
        };
        cpu.map(TEXT - CODE, 0x1000);
        cpu.write_virt(TEXT, &[0x90; 0x1000]);
        let len = 8 * stack.len() as u64;
        cpu.map(STACK - len - CODE, len);
        for (place, word) in (STACK - len..).step_by(8).zip(stack) {
            cpu.write_virt(place, &word.to_le_bytes());
        }
        cpu.set_reg(Reg::Rsp, STACK - len);
        cpu
    }

    #[test]
    fn every_form_of_call_is_known() {
        let calls: [&[u8]; 14] = [
            &CALL,
            &[0x2e, 0xe8, 0, 1, 0, 0],                   // cs call f
            &[0xff, 0xd0],                               // call rax
            &[0x2e, 0xff, 0xd2],                         // cs call rdx
            &[0x41, 0xff, 0xd3],                         // call r11
            &[0xff, 0x13],                               // call [rbx]
            &[0x41, 0xff, 0x14, 0x24],                   // call [r12]
            &[0xff, 0x14, 0xc6],                         // call [rsi+rax*8]
            &[0xff, 0x50, 0x18],                         // call [rax+18h]
            &[0xff, 0x54, 0x24, 0x10],                   // call [rsp+10h]
            &[0xff, 0x90, 0, 1, 0, 0],                   // call [rax+100h]
            &[0xff, 0x15, 0, 1, 0, 0],                   // call [rip+100h]
            &[0xff, 0x14, 0xc5, 0, 0, 0, 0x81],          // call [rax*8+disp32]
            &[0x65, 0x43, 0xff, 0x94, 0xf4, 0, 1, 0, 0], // call gs:[r12+r14*8+100h]
        ];
        for call in calls {
            let behind = TEXT + 0x100 + call.len() as u64;
            let mut cpu = cpu(&[behind]);
            cpu.write_virt(TEXT + 0x100, call);
            assert_eq!(backtrace(&cpu), [behind], "{call:02x?}");
        }
    }

    #[test]
    fn what_only_looks_like_a_return_address_is_left_out() {
        let others: [&[u8]; 6] = [
            &[0xe9, 0, 1, 0, 0], // jmp f
            &[0xff, 0xe0],       // jmp rax
            &[0xff, 0x30],       // push [rax]
            &[0xff, 0x18],       // call far [rax]
            &[0xe8, 0, 1, 0],    // cut short
            &[0xff, 0x50],       // cut short
        ];
        for code in others {
            let mut cpu = cpu(&[TEXT + 0x100 + code.len() as u64]);
            cpu.write_virt(TEXT + 0x100, code);
            assert!(backtrace(&cpu).is_empty(), "{code:02x?}");
        }
        // Inside of the CALL, behind the instruction after it, data; and in the lower half.
        let mut cpu = cpu(&[TEXT + 4, TEXT + 6, 0, !0, STACK, 0x1005, TEXT + 5]);
        cpu.map(0x1000u64.wrapping_sub(CODE), 5);
        for place in [TEXT, 0x1000] {
            assert!(cpu.write_virt(place, &CALL));
        }
        assert_eq!(backtrace(&cpu), [TEXT + 5]);
    }

    #[test]
    fn callers_come_innermost_first_and_not_too_many() {
        let calls = (TEXT..).step_by(8).take(2 * ENOUGH);
        let stack: Vec<u64> = calls
            .clone()
            .flat_map(|call| [7, call + 5, STACK])
            .collect();
        let mut cpu = cpu(&stack);
        for call in calls.clone() {
            cpu.write_virt(call, &CALL);
        }
        let first: Vec<u64> = calls.map(|call| call + 5).take(ENOUGH).collect();
        assert_eq!(backtrace(&cpu), first);
    }

    #[test]
    fn search_ends_with_the_page_and_with_the_mapped_memory() {
        let mut stack = vec![0; 1024];
        stack[512] = TEXT + 5;
        let mut cpu = cpu(&stack);
        cpu.write_virt(TEXT, &CALL);
        assert!(backtrace(&cpu).is_empty(), "one word too far");
        cpu.set_reg(Reg::Rsp, cpu.reg(Reg::Rsp) + 8);
        assert_eq!(backtrace(&cpu), [TEXT + 5]);
        cpu.set_reg(Reg::Rsp, cpu.reg(Reg::Rsp) - 2);
        assert_eq!(backtrace(&cpu), [TEXT + 5], "part of a word is on top");
        let last = STACK - 8;
        cpu.write_virt(last, &(TEXT + 5).to_le_bytes());
        cpu.set_reg(Reg::Rsp, last - 8);
        assert_eq!(backtrace(&cpu), [TEXT + 5], "the last word that is mapped");
        for rsp in [STACK, STACK - 4, 0, !7, !0] {
            cpu.set_reg(Reg::Rsp, rsp);
            assert!(backtrace(&cpu).is_empty(), "{rsp:#x}");
        }
    }

    #[test]
    fn code_may_begin_where_memory_is_mapped() {
        let mut cpu = cpu(&[TEXT + 2, TEXT, TEXT + 1, CODE]);
        cpu.write_virt(TEXT, &[0xff, 0xd0]);
        assert_eq!(backtrace(&cpu), [TEXT + 2]);
    }
}
