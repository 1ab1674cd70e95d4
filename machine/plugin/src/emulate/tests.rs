// SPDX-License-Identifier: GPL-2.0

//! Instructions on a vCPU without QEMU.

use super::*;
use crate::bench::*;
use crate::trap::{CF, ZF};
use tdx_platform::config::MachineConfig;
use tdx_platform::msr::VMX_REVISION;

#[test]
fn seamcall_without_vmxon_is_left_to_qemu_to_refuse() {
    let mut bench = Bench::new(config());
    assert_eq!(bench.run(&SEAMCALL), Next::Native);
}

#[test]
fn seamcall_returns_status_and_clear_flags() {
    let mut bench = Bench::new(config());
    bench.enter_vmx();
    for (reg, value) in [(Reg::Rax, 33), (Reg::Rcx, 0), (Reg::R9, 77), (Reg::R12, 88)] {
        bench.cpu.set_reg(reg, value);
    }
    assert_eq!(bench.run(&SEAMCALL), Next::Done(Some(0)));
    assert_eq!(
        [Reg::Rax, Reg::R9, Reg::R12].map(|r| bench.cpu.reg(r)),
        [0, 0, 88]
    );
}

#[test]
fn vmfail_sets_carry_and_changes_nothing_else() {
    let mut bench = Bench::new(MachineConfig {
        module_loaded: false,
        ..config()
    });
    bench.enter_vmx();
    bench.cpu.set_reg(Reg::Rax, 33);
    assert_eq!(bench.run(&SEAMCALL), Next::Done(Some(CF)));
    assert_eq!(bench.cpu.reg(Reg::Rax), 33);
}

#[test]
fn seamcall_without_seamrr_is_a_general_protection_fault() {
    let mut bench = Bench::new(MachineConfig {
        seamrr: false,
        ..config()
    });
    bench.enter_vmx();
    assert_eq!(bench.run(&SEAMCALL), Next::Handler(GP_HANDLER));
    bench.vcpu.tables = Tables::default();
    assert_eq!(bench.run(&SEAMCALL), Next::Native, "no way to deliver it");
}

#[test]
fn vmxon_needs_vmxe_and_a_proper_region() {
    let mut bench = Bench::new(config());
    bench.cpu.set_reg(Reg::Rax, KERNEL + 0x3000);
    assert_eq!(bench.run(&VMXON_RAX), Next::Native);
    bench.machine.set_vmxe(0, true);
    let failed = Next::Done(Some(CF));
    assert_eq!(bench.run(&VMXON_RAX), failed, "region 0 is no region");
    bench.cpu.write_virt(KERNEL + 0x3000, &REGION.to_le_bytes());
    *bench.memory.0.lock().unwrap() = VMX_REVISION + 1;
    assert_eq!(bench.run(&VMXON_RAX), failed, "wrong revision");
    assert!(!bench.machine.in_vmx(0));
    *bench.memory.0.lock().unwrap() = VMX_REVISION;
    assert_eq!(bench.run(&VMXON_RAX), Next::Done(Some(0)));
    assert!(bench.machine.in_vmx(0));
    assert_eq!(bench.run(&VMXON_RAX), Next::Done(Some(ZF)), "already on");
    assert_eq!(bench.run(&VMXOFF), Next::Done(Some(0)));
    assert_eq!(bench.run(&VMXOFF), Next::Native);
}

#[test]
fn cr4_shows_vmxe_that_qemu_never_sees() {
    let mut bench = Bench::new(config());
    bench.cpu.set_reg(Reg::Rax, VMXE | 0x20);
    assert_eq!(bench.run(&WRITE_CR4_RAX), Next::Native);
    assert_eq!(bench.cpu.reg(Reg::Rax), 0x20, "what QEMU writes");
    bench.patch(RIP + 3);
    assert_eq!(bench.cpu.reg(Reg::Rax), VMXE | 0x20, "what the program had");
    assert_eq!(bench.run(&READ_CR4_RAX), Next::Native);
    bench.cpu.set_reg(Reg::Rax, 0x20);
    bench.patch(RIP + 3);
    assert_eq!(bench.cpu.reg(Reg::Rax), VMXE | 0x20);
    bench.cpu.set_reg(Reg::Rax, 0x20);
    assert_eq!(bench.run(&WRITE_CR4_RAX), Next::Native);
    assert_eq!(bench.run(&READ_CR4_RAX), Next::Native);
    assert_eq!(bench.vcpu.pending, None);
    assert!(!bench.machine.vmxe(0));
}

#[test]
fn vmxe_cannot_be_cleared_in_vmx_operation() {
    let mut bench = Bench::new(config());
    bench.enter_vmx();
    bench.cpu.set_reg(Reg::Rax, 0);
    assert_eq!(bench.run(&WRITE_CR4_RAX), Next::Handler(GP_HANDLER));
    assert!(bench.machine.vmxe(0));
}

#[test]
fn msrs_of_the_machine_are_answered_and_read_only() {
    let mut bench = Bench::new(config());
    bench.cpu.set_reg(Reg::Rcx, 0x87);
    // QEMU reads an MSR that it lacks as 0; the answer comes after it.
    assert_eq!(bench.run(&RDMSR), Next::Native);
    bench.patch(RIP);
    assert_eq!((bench.cpu.reg(Reg::Rax), bench.cpu.reg(Reg::Rdx)), (0, 0));
    bench.patch(RIP + 2);
    assert_eq!((bench.cpu.reg(Reg::Rax), bench.cpu.reg(Reg::Rdx)), (15, 48));
    assert_eq!(bench.run(&WRMSR), Next::Handler(GP_HANDLER));
    bench.cpu.set_reg(Reg::Rcx, 0x10);
    assert_eq!(
        (bench.run(&RDMSR), bench.run(&WRMSR)),
        (Next::Native, Next::Native)
    );
    assert_eq!(bench.vcpu.pending, None, "an MSR of QEMU's own");
    bench.cpu.set_reg(Reg::Cs, 0x33);
    bench.cpu.set_reg(Reg::Rcx, 0x87);
    assert_eq!(bench.run(&RDMSR), Next::Native);
    assert_eq!(bench.vcpu.pending, None, "QEMU faults it outside CPL 0");
}

#[test]
fn answer_that_an_interrupt_delayed_is_not_given_to_another_question() {
    let mut bench = Bench::new(config());
    bench.cpu.set_reg(Reg::Rcx, 0x87);
    bench.run(&RDMSR);
    // The same instruction asks for something else before the answer was changed.
    bench.cpu.set_reg(Reg::Rcx, 0x10);
    bench.run(&RDMSR);
    bench.patch(RIP + 2);
    assert_eq!(bench.cpu.reg(Reg::Rdx), 0);
}

#[test]
fn movdir64b_copies_a_line_or_faults() {
    let mut bench = Bench::new(config());
    bench.cpu.write_virt(KERNEL + 0x2000, &[0xab; 64]);
    bench.cpu.set_reg(Reg::Rax, KERNEL + 0x5000);
    bench.cpu.set_reg(Reg::Rcx, KERNEL + 0x2000);
    assert_eq!(bench.run(&MOVDIR64B_RAX_RCX), Next::Done(None));
    let mut line = [0; 64];
    assert!(bench.cpu.read_virt(KERNEL + 0x5000, &mut line) && line == [0xab; 64]);
    bench.cpu.set_reg(Reg::Rax, KERNEL + 0x5008);
    assert_eq!(bench.run(&MOVDIR64B_RAX_RCX), Next::Handler(GP_HANDLER));
    bench.cpu.set_reg(Reg::Rax, 0);
    assert_eq!(bench.run(&MOVDIR64B_RAX_RCX), Next::Native, "not mapped");
}

#[test]
fn wbinvd_counts_in_the_kernel_only() {
    let mut bench = Bench::new(config());
    assert_eq!(bench.run(&[0x0f, 0x09]), Next::Native);
    assert_eq!(bench.run(&[0xf3, 0x0f, 0x09]), Next::Native);
    bench.cpu.set_reg(Reg::Cs, 0x33);
    bench.run(&[0x0f, 0x09]);
    assert_eq!(bench.machine.finish().cpus[0].wbinvds, 2);
}

#[test]
fn cpuid_answer_is_changed_once() {
    let mut bench = Bench::new(config());
    bench.cpu.set_reg(Reg::Rax, 1);
    assert_eq!(bench.run(&[0x0f, 0xa2]), Next::Native);
    bench.cpu.set_reg(Reg::Rcx, 0);
    bench.patch(RIP + 2);
    assert_eq!(bench.cpu.reg(Reg::Rcx) & 1 << 5, 1 << 5);
    bench.cpu.set_reg(Reg::Rcx, 0);
    bench.patch(RIP + 2);
    assert_eq!(bench.cpu.reg(Reg::Rcx), 0);
}

#[test]
fn outside_long_mode_everything_is_qemus() {
    let mut bench = Bench::new(config());
    bench.cpu.set_reg(Reg::Efer, 0);
    bench.cpu.set_reg(Reg::Rcx, 0x87);
    for code in [&SEAMCALL[..], &RDMSR, &WRMSR, &VMXON_RAX, &WRITE_CR4_RAX] {
        assert_eq!(bench.run(code), Next::Native);
    }
}

#[test]
fn descriptor_tables_are_remembered() {
    let mut bench = Bench::new(config());
    bench
        .cpu
        .write_virt(KERNEL + 0x2002, &0x1234_5678u64.to_le_bytes());
    bench.cpu.set_reg(Reg::Rax, KERNEL + 0x2000);
    bench.run(&[0x0f, 0x01, 0x18]);
    bench.run(&[0x0f, 0x01, 0x10]);
    bench.cpu.set_reg(Reg::Rax, 0x40);
    bench.run(&[0x0f, 0x00, 0xd8]);
    let expected = Tables {
        idt: Some(0x1234_5678),
        gdt: Some(0x1234_5678),
        tr: Some(0x40),
    };
    assert_eq!(bench.vcpu.tables, expected);
}

#[test]
fn there_is_no_current_vmcs() {
    const VMLAUNCH: [u8; 3] = [0x0f, 0x01, 0xc2];
    let mut bench = Bench::new(config());
    assert_eq!(bench.run(&VMLAUNCH), Next::Native, "#UD without VMXON");
    bench.enter_vmx();
    assert_eq!(bench.run(&VMLAUNCH), Next::Done(Some(CF)));
}

#[test]
fn seam_instruction_of_the_module_is_refused() {
    let mut bench = Bench::new(config());
    assert_eq!(bench.run(&[0x66, 0x0f, 0x01, 0xcd]), Next::Native);
}

const LIDT_RAX: [u8; 3] = [0x0f, 0x01, 0x18];

#[test]
fn kernel_is_recognised_by_where_it_loads_its_idt() {
    let mut bench = Bench::new(config());
    bench.cpu.set_reg(Reg::Rax, KERNEL + 0x3000);
    let mut lidt = |rip| bench.run_at(&LIDT_RAX, rip);
    assert_eq!([0x100_0000, RIP].map(&mut lidt), [Next::Native; 2]);
    assert_eq!(bench.machine.finish().kernels.len(), 1);
    bench.cpu.set_reg(Reg::Cs, 0x13);
    for rip in [0x100_0000, RIP] {
        bench.run_at(&LIDT_RAX, rip);
    }
    assert_eq!(bench.machine.finish().kernels.len(), 1, "user program");
}
