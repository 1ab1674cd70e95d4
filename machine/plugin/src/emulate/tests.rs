// SPDX-License-Identifier: GPL-2.0

//! Instructions on a vCPU without QEMU.

use super::*;
use crate::cpu::fake::FakeCpu;
use crate::decode::decode;
use crate::fault::bytes;
use crate::flags::{CF, ZF};
use std::sync::Mutex;
use tdx_platform::config::MachineConfig;
use tdx_platform::msr::VMX_REVISION;
use tdx_platform::tdx_module::MemRange;

const KERNEL: u64 = 0xffff_ffff_8000_0000;
const RIP: u64 = KERNEL + 0x100;
const HANDLER: u64 = KERNEL + 0x800;
const IRET: u64 = KERNEL + 0x10;
const REGION: u64 = 0x4000;

/// Physical memory as the module sees it; the tests only need the VMXON region.
struct Region(Mutex<u32>);

impl GuestMemory for Region {
    fn read(&self, pa: u64, buf: &mut [u8]) -> bool {
        let revision = self.0.lock().unwrap().to_le_bytes();
        pa == REGION && buf.len() == 4 && {
            buf.copy_from_slice(&revision);
            true
        }
    }
    fn write(&self, _pa: u64, _data: &[u8]) -> bool {
        false
    }
}

struct Bench {
    machine: Machine,
    irets: IretSites,
    memory: Region,
    cpu: FakeCpu,
    vcpu: Vcpu,
}

impl Bench {
    fn new(config: MachineConfig) -> Bench {
        let sink = || Box::new(std::io::sink());
        let mut cpu = FakeCpu {
            offset: KERNEL,
            ..FakeCpu::default()
        };
        cpu.map(0, 0x8000);
        cpu.write_virt(IRET, &[0x48, 0xcf]);
        let gate = HANDLER & 0xffff | 0x10 << 16 | 0x8e << 40 | (HANDLER >> 16 & 0xffff) << 48;
        cpu.write_virt(KERNEL + 0x1000 + 13 * 16, &bytes(&[gate, HANDLER >> 32]));
        cpu.set_reg(Reg::Efer, LMA);
        cpu.set_reg(Reg::Cs, 0x10);
        cpu.set_reg(Reg::Rsp, KERNEL + 0x7000);
        let vcpu = Vcpu {
            tables: Tables {
                idt: Some(KERNEL + 0x1000),
                gdt: None,
                tr: None,
            },
            pending: None,
        };
        let irets = IretSites::default();
        irets.note(IRET);
        let machine = Machine::new(config, sink(), sink()).unwrap();
        Bench {
            machine,
            irets,
            memory: Region(Mutex::new(VMX_REVISION)),
            cpu,
            vcpu,
        }
    }

    fn run(&mut self, code: &[u8]) -> Next {
        self.run_at(code, RIP)
    }

    fn run_at(&mut self, code: &[u8], rip: u64) -> Next {
        let (op, len) = decode(code, rip).unwrap();
        let mut step = Step {
            machine: &self.machine,
            irets: &self.irets,
            memory: &self.memory,
            cpu: &mut self.cpu,
            vcpu: &mut self.vcpu,
            index: 0,
        };
        execute(
            &mut step,
            Insn {
                op,
                rip,
                len: len as u64,
            },
        )
    }

    /// The callback on the instruction at `rip`, if it comes after a question.
    fn patch(&mut self, rip: u64) {
        patch_answer(&self.machine, &mut self.cpu, &mut self.vcpu, rip);
    }

    /// RFLAGS in the frame that an IRETQ is about to pop, if one was prepared.
    fn flags(&self) -> Option<u64> {
        crate::cpu::read_u64(&self.cpu, self.cpu.reg(Reg::Rsp) + 16)
    }

    fn enter_vmx(&mut self) {
        self.cpu.set_reg(Reg::Rax, VMXE);
        assert_eq!(self.run(&WRITE_CR4_RAX), Next::Iretq(IRET));
        self.cpu.write_virt(KERNEL + 0x3000, &REGION.to_le_bytes());
        self.cpu.set_reg(Reg::Rax, KERNEL + 0x3000);
        assert_eq!(self.run(&VMXON_RAX), Next::Iretq(IRET));
        assert!(self.machine.in_vmx(0));
        self.cpu.set_reg(Reg::Rsp, KERNEL + 0x7000);
    }
}

const SEAMCALL: [u8; 4] = [0x66, 0x0f, 0x01, 0xcf];
const VMXON_RAX: [u8; 4] = [0xf3, 0x0f, 0xc7, 0x30];
const VMXOFF: [u8; 3] = [0x0f, 0x01, 0xc4];
const WRITE_CR4_RAX: [u8; 3] = [0x0f, 0x22, 0xe0];
const READ_CR4_RAX: [u8; 3] = [0x0f, 0x20, 0xe0];
const LIDT_RAX: [u8; 3] = [0x0f, 0x01, 0x18];
const RDMSR: [u8; 2] = [0x0f, 0x32];
const WRMSR: [u8; 2] = [0x0f, 0x30];
const MOVDIR64B_RAX_RCX: [u8; 5] = [0x66, 0x0f, 0x38, 0xf8, 0x01];

fn config() -> MachineConfig {
    MachineConfig {
        cmrs: vec![MemRange {
            base: 1 << 20,
            size: 1 << 30,
        }],
        ..MachineConfig::default()
    }
}

#[test]
fn seamcall_without_vmxon_is_left_to_qemu_to_refuse() {
    let mut bench = Bench::new(config());
    assert_eq!(bench.run(&SEAMCALL), Next::Native);
}

#[test]
fn seamcall_returns_status_and_clear_flags() {
    let mut bench = Bench::new(config());
    bench.enter_vmx();
    for (reg, value) in [
        (Reg::Rax, 33),
        (Reg::Rcx, 0),
        (Reg::R9, 77),
        (Reg::R12, 88),
        (Reg::Eflags, 0x202),
    ] {
        bench.cpu.set_reg(reg, value);
    }
    assert_eq!(bench.run(&SEAMCALL), Next::Iretq(IRET));
    assert_eq!(bench.flags(), Some(0x202));
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
    assert_eq!(bench.run(&SEAMCALL), Next::Iretq(IRET));
    assert_eq!((bench.flags(), bench.cpu.reg(Reg::Rax)), (Some(3), 33));
}

#[test]
fn seamcall_without_seamrr_is_a_general_protection_fault() {
    let mut bench = Bench::new(MachineConfig {
        seamrr: false,
        ..config()
    });
    bench.enter_vmx();
    assert_eq!(bench.run(&SEAMCALL), Next::Handler(HANDLER));
    bench.vcpu.tables = Tables::default();
    assert_eq!(bench.run(&SEAMCALL), Next::Native, "no way to deliver it");
}

#[test]
fn vmxon_needs_vmxe_and_a_proper_region() {
    let mut bench = Bench::new(config());
    bench.cpu.set_reg(Reg::Rax, KERNEL + 0x3000);
    assert_eq!(bench.run(&VMXON_RAX), Next::Native);
    bench.machine.set_vmxe(0, true);
    assert_eq!(bench.run(&VMXON_RAX), Next::Iretq(IRET));
    assert_eq!(
        bench.flags().map(|f| f & CF),
        Some(CF),
        "region 0 is no region"
    );
    bench.cpu.write_virt(KERNEL + 0x3000, &REGION.to_le_bytes());
    *bench.memory.0.lock().unwrap() = VMX_REVISION + 1;
    bench.run(&VMXON_RAX);
    assert!(!bench.machine.in_vmx(0), "wrong revision");
    *bench.memory.0.lock().unwrap() = VMX_REVISION;
    bench.run(&VMXON_RAX);
    assert!(bench.machine.in_vmx(0));
    bench.run(&VMXON_RAX);
    assert_eq!(bench.flags().map(|f| f & ZF), Some(ZF), "already on");
    assert_eq!(bench.run(&VMXOFF), Next::Iretq(IRET));
    assert_eq!(bench.run(&VMXOFF), Next::Native);
}

#[test]
fn cr4_shows_vmxe_that_qemu_never_sees() {
    let mut bench = Bench::new(config());
    bench.cpu.set_reg(Reg::Rax, VMXE | 0x20);
    assert_eq!(bench.run(&WRITE_CR4_RAX), Next::Iretq(IRET));
    assert_eq!(bench.cpu.reg(Reg::Cr4), 0x20);
    assert_eq!(bench.run(&READ_CR4_RAX), Next::Iretq(IRET));
    assert_eq!(bench.cpu.reg(Reg::Rax), VMXE | 0x20);
    bench.cpu.set_reg(Reg::Rax, 0x20);
    assert_eq!(bench.run(&WRITE_CR4_RAX), Next::Native);
    assert_eq!(bench.run(&READ_CR4_RAX), Next::Native);
    assert!(!bench.machine.vmxe(0));
}

#[test]
fn vmxe_cannot_be_cleared_in_vmx_operation() {
    let mut bench = Bench::new(config());
    bench.enter_vmx();
    bench.cpu.set_reg(Reg::Rax, 0);
    assert_eq!(bench.run(&WRITE_CR4_RAX), Next::Handler(HANDLER));
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
    assert_eq!(bench.run(&WRMSR), Next::Handler(HANDLER));
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
    assert_eq!(bench.run(&MOVDIR64B_RAX_RCX), Next::Iretq(IRET));
    let mut line = [0; 64];
    assert!(bench.cpu.read_virt(KERNEL + 0x5000, &mut line) && line == [0xab; 64]);
    bench.cpu.set_reg(Reg::Rax, KERNEL + 0x5008);
    assert_eq!(bench.run(&MOVDIR64B_RAX_RCX), Next::Handler(HANDLER));
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
    assert_eq!(bench.run(&VMLAUNCH), Next::Iretq(IRET));
    assert_eq!(bench.flags().map(|flags| flags & (CF | ZF)), Some(CF));
}

#[test]
fn seam_instruction_of_the_module_is_refused() {
    let mut bench = Bench::new(config());
    assert_eq!(bench.run(&[0x66, 0x0f, 0x01, 0xcd]), Next::Native);
}

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
