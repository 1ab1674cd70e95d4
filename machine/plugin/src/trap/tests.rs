// SPDX-License-Identifier: GPL-2.0

//! #UD and what becomes of it, on a vCPU without QEMU.

use super::*;
use crate::bench::*;
use crate::decode::Op;
use crate::fault::Tables;
use tdx_platform::config::MachineConfig;

const IRET: u64 = KERNEL + 0x10;
const STACK: u64 = KERNEL + 0x7000;
/// RFLAGS of the program: the arithmetic flags but PF, and IF.
const RFLAGS: u64 = 0xad3;
const IF: u64 = 1 << 9;

/// An IRETQ that is known.
fn irets(bench: &mut Bench) -> IretSites {
    bench.cpu.write_virt(IRET, &IRETQ);
    let sites = IretSites::default();
    sites.note(IRET);
    sites
}

/// What the processor does for the #UD of `code` at RIP, except for the registers it does not show.
fn raise(bench: &mut Bench, code: &[u8], cs: u64, rsp: u64) {
    bench.cpu.write_virt(RIP, code);
    let frame = (rsp & !15) - 40;
    let words = [RIP, cs, RFLAGS | RF, rsp, 0x18];
    assert!(bench.cpu.write_virt(frame, &bytes(&words)));
    bench.cpu.set_reg(Reg::Rsp, frame);
    bench.cpu.set_reg(Reg::Cs, 0x10);
    bench.cpu.set_reg(Reg::Ss, 0x18);
    bench.cpu.set_reg(Reg::Eflags, 2);
}

fn frame(bench: &Bench) -> [u64; 5] {
    let rsp = bench.cpu.reg(Reg::Rsp);
    std::array::from_fn(|i| read_u64(&bench.cpu, rsp + 8 * i as u64).unwrap())
}

fn seamcall(bench: &mut Bench, irets: &IretSites, leaf: u64) -> Exit {
    bench.cpu.set_reg(Reg::Rax, leaf);
    raise(bench, &SEAMCALL, 0x10, STACK - 8);
    enter(&mut bench.step(), irets)
}

#[test]
fn seamcall_returns_behind_itself_with_the_flags_of_success() {
    let mut bench = Bench::new(config());
    let irets = irets(&mut bench);
    bench.enter_vmx();
    bench.cpu.set_reg(Reg::Rcx, 0);
    assert_eq!(seamcall(&mut bench, &irets, 33), Exit::Iretq(IRET));
    assert_eq!(frame(&bench), [RIP + 4, 0x10, IF | 2, STACK - 8, 0x18]);
    assert_eq!(bench.cpu.reg(Reg::Rax), 0);
    assert_eq!(bench.cpu.reg(Reg::Rsp), STACK - 16 - 40);
}

#[test]
fn vmfail_is_told_in_the_flags() {
    let mut bench = Bench::new(MachineConfig {
        module_loaded: false,
        ..config()
    });
    let irets = irets(&mut bench);
    bench.enter_vmx();
    assert_eq!(seamcall(&mut bench, &irets, 33), Exit::Iretq(IRET));
    assert_eq!(frame(&bench)[2], IF | 2 | CF);
}

#[test]
fn real_undefined_opcode_is_the_guests() {
    let mut bench = Bench::new(config());
    let irets = irets(&mut bench);
    // Outside VMX operation.
    let exit = seamcall(&mut bench, &irets, 33);
    let before = (bench.cpu.regs, frame(&bench));
    assert_eq!(exit, Exit::Guest);
    assert_eq!(before.1, [RIP, 0x10, RFLAGS | RF, STACK - 8, 0x18]);
    bench.enter_vmx();
    // UD2, and a WRMSR that the machine refuses, but QEMU knows: somebody else's #UD.
    bench.cpu.set_reg(Reg::Rcx, 0x87);
    for code in [&[0x0f, 0x0b][..], &[0x0f, 0x30]] {
        raise(&mut bench, code, 0x10, STACK - 8);
        let before = (bench.cpu.regs, bench.cpu.mem.clone());
        assert_eq!(enter(&mut bench.step(), &irets), Exit::Guest);
        assert_eq!((bench.cpu.regs, &bench.cpu.mem), (before.0, &before.1));
    }
}

#[test]
fn backtrace_of_a_violation_is_that_of_the_interrupted_program() {
    let mut bench = Bench::new(config());
    let irets = irets(&mut bench);
    let call = [0xe8, 0, 1, 0, 0];
    let caller = KERNEL + 0x205;
    for place in [caller - 5, RIP - 5, UD_HANDLER - 5] {
        bench.cpu.write_virt(place, &call);
    }
    let stack = STACK - 0x100;
    for (place, word) in [(stack - 64, UD_HANDLER), (stack, 1), (stack + 8, caller)] {
        bench.cpu.write_virt(place, &bytes(&[word]));
    }
    // Outside VMX operation. The frame has an address behind a CALL, too: that of the SEAMCALL.
    bench.cpu.set_reg(Reg::Rax, 33);
    raise(&mut bench, &SEAMCALL, 0x10, stack);
    assert_eq!(enter(&mut bench.step(), &irets), Exit::Guest);
    let violation = &bench.machine.finish().first_violations[0];
    assert_eq!((violation.rip, &violation.backtrace), (RIP, &vec![caller]));
}

#[test]
fn general_protection_replaces_the_frame() {
    let mut bench = Bench::new(MachineConfig {
        seamrr: false,
        ..config()
    });
    let irets = irets(&mut bench);
    bench.enter_vmx();
    assert_eq!(seamcall(&mut bench, &irets, 33), Exit::Handler(GP_HANDLER));
    let rsp = bench.cpu.reg(Reg::Rsp);
    assert_eq!(rsp, STACK - 16 - 48, "one word more, the error code");
    assert_eq!(read_u64(&bench.cpu, rsp), Some(0));
    bench.cpu.set_reg(Reg::Rsp, rsp + 8);
    assert_eq!(frame(&bench), [RIP, 0x10, RFLAGS | RF, STACK - 8, 0x18]);
    assert_eq!(bench.cpu.reg(Reg::Eflags), 2, "interrupts stay off");
}

#[test]
fn user_program_gets_a_general_protection_fault() {
    let mut bench = Bench::new(config());
    let irets = irets(&mut bench);
    bench.enter_vmx();
    // A TSS at 2000h of the kernel, the stack of CPL 0 in it.
    let (gdt, tss) = (KERNEL + 0x2800, KERNEL + 0x2000);
    let low = 0x67 | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56;
    bench.cpu.write_virt(gdt + 0x40, &bytes(&[low, tss >> 32]));
    bench.cpu.write_virt(tss + 4, &bytes(&[STACK]));
    (bench.vcpu.tables.gdt, bench.vcpu.tables.tr) = (Some(gdt), Some(0x40));
    raise(&mut bench, &SEAMCALL, 0x33, STACK);
    let exit = enter(&mut bench.step(), &irets);
    assert_eq!(exit, Exit::Handler(GP_HANDLER));
    assert_eq!(bench.cpu.reg(Reg::Rsp), STACK - 48);
    assert_eq!(bench.cpu.reg(Reg::Cs), 0x10);
    assert_eq!(read_u64(&bench.cpu, STACK - 48 + 16), Some(0x33));
}

#[test]
fn stack_pointer_of_the_program_is_used_for_operands() {
    let mut bench = Bench::new(config());
    let irets = irets(&mut bench);
    bench.machine.set_vmxe(0, true);
    bench.cpu.write_virt(STACK, &REGION.to_le_bytes());
    // VMXON [rsp+8]
    raise(
        &mut bench,
        &[0xf3, 0x0f, 0xc7, 0x74, 0x24, 8],
        0x10,
        STACK - 8,
    );
    assert_eq!(enter(&mut bench.step(), &irets), Exit::Iretq(IRET));
    assert!(bench.machine.in_vmx(0));
}

#[test]
fn movdir64b_leaves_the_flags_as_they_were() {
    let mut bench = Bench::new(config());
    let irets = irets(&mut bench);
    bench.cpu.set_reg(Reg::Rax, KERNEL + 0x5000);
    bench.cpu.set_reg(Reg::Rcx, KERNEL + 0x2000);
    raise(&mut bench, &MOVDIR64B_RAX_RCX, 0x10, STACK);
    assert_eq!(enter(&mut bench.step(), &irets), Exit::Iretq(IRET));
    assert_eq!(frame(&bench), [RIP + 5, 0x10, RFLAGS, STACK, 0x18]);
}

#[test]
fn nothing_is_done_without_a_way_back() {
    let mut bench = Bench::new(config());
    bench.enter_vmx();
    let (none, foreign, stale) = (
        IretSites::default(),
        IretSites::default(),
        irets(&mut bench),
    );
    // In the lower half.
    bench.cpu.map(0x10u64.wrapping_sub(KERNEL), 2);
    bench.cpu.write_virt(0x10, &IRETQ);
    foreign.note(0x10);
    bench.cpu.write_virt(IRET, &[0x90]);
    for irets in [none, foreign, stale] {
        assert_eq!(seamcall(&mut bench, &irets, 33), Exit::Guest);
        assert_eq!(bench.cpu.reg(Reg::Rax), 33);
    }
}

#[test]
fn no_frame_is_no_trap() {
    let mut bench = Bench::new(config());
    let irets = irets(&mut bench);
    bench.enter_vmx();
    raise(&mut bench, &SEAMCALL, 0x10, STACK);
    let rsp = bench.cpu.reg(Reg::Rsp);
    // A selector and RFLAGS that are none.
    for (word, value) in [(1, KERNEL), (2, 0)] {
        raise(&mut bench, &SEAMCALL, 0x10, STACK);
        bench.cpu.write_virt(rsp + 8 * word, &bytes(&[value]));
        assert_eq!(enter(&mut bench.step(), &irets), Exit::Guest);
    }
    bench.cpu.set_reg(Reg::Rsp, KERNEL + 0x9000);
    assert_eq!(enter(&mut bench.step(), &irets), Exit::Guest);
}

#[test]
fn instruction_may_end_where_the_mapped_memory_ends() {
    let mut bench = Bench::new(config());
    let irets = irets(&mut bench);
    bench.enter_vmx();
    raise(&mut bench, &[], 0x10, STACK);
    let last = KERNEL + 0x8000 - 4;
    bench.cpu.write_virt(last, &SEAMCALL);
    let rsp = bench.cpu.reg(Reg::Rsp);
    bench.cpu.write_virt(rsp, &last.to_le_bytes());
    bench.cpu.set_reg(Reg::Rax, 33);
    assert_eq!(enter(&mut bench.step(), &irets), Exit::Iretq(IRET));
    assert_eq!(frame(&bench)[0], last + 4);
}

#[test]
fn handler_is_translated_again_once_it_is_known() {
    let mut bench = Bench::new(config());
    let handlers = Handlers::default();
    let insn = Insn {
        op: Op::Seamcall,
        rip: RIP,
        len: 4,
    };
    bench.cpu.writes.clear();
    let tables = std::mem::take(&mut bench.vcpu.tables);
    handlers.expect(&mut bench.step(), insn);
    assert!(bench.cpu.writes.is_empty() && !handlers.contains(UD_HANDLER));
    assert_ne!(tables, Tables::default());
    bench.vcpu.tables = tables;
    handlers.expect(&mut bench.step(), insn);
    handlers.expect(&mut bench.step(), insn);
    assert!(handlers.contains(UD_HANDLER) && !handlers.contains(GP_HANDLER));
    assert_eq!(bench.cpu.writes, [(UD_HANDLER, 1)]);
}
