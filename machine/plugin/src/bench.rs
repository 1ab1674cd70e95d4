// SPDX-License-Identifier: GPL-2.0

//! A vCPU without QEMU, for tests.

use crate::cpu::{Cpu, Reg, fake::FakeCpu};
use crate::decode::decode;
use crate::emulate::{Insn, LMA, Next, Step, VMXE, Vcpu, execute, patch_answer};
use crate::fault::{self, Tables, bytes};
use std::sync::Mutex;
use tdx_platform::config::MachineConfig;
use tdx_platform::msr::VMX_REVISION;
use tdx_platform::tdx_module::MemRange;
use tdx_platform::{GuestMemory, Machine};

pub(crate) const SEAMCALL: [u8; 4] = [0x66, 0x0f, 0x01, 0xcf];
pub(crate) const VMXON_RAX: [u8; 4] = [0xf3, 0x0f, 0xc7, 0x30];
pub(crate) const VMXOFF: [u8; 3] = [0x0f, 0x01, 0xc4];
pub(crate) const WRITE_CR4_RAX: [u8; 3] = [0x0f, 0x22, 0xe0];
pub(crate) const READ_CR4_RAX: [u8; 3] = [0x0f, 0x20, 0xe0];
pub(crate) const RDMSR: [u8; 2] = [0x0f, 0x32];
pub(crate) const WRMSR: [u8; 2] = [0x0f, 0x30];
pub(crate) const MOVDIR64B_RAX_RCX: [u8; 5] = [0x66, 0x0f, 0x38, 0xf8, 0x01];

/// Configuration of a machine with some memory.
pub(crate) fn config() -> MachineConfig {
    MachineConfig {
        cmrs: vec![MemRange {
            base: 1 << 20,
            size: 1 << 30,
        }],
        ..MachineConfig::default()
    }
}

/// Virtual address of physical page 0.
pub(crate) const KERNEL: u64 = 0xffff_ffff_8000_0000;
/// Address of the instruction that is tested.
pub(crate) const RIP: u64 = KERNEL + 0x100;
/// Handler of #UD.
pub(crate) const UD_HANDLER: u64 = KERNEL + 0x600;
/// Handler of #GP.
pub(crate) const GP_HANDLER: u64 = KERNEL + 0x800;
const IDT: u64 = KERNEL + 0x1000;
/// Physical address of a page for VMXON.
pub(crate) const REGION: u64 = 0x4000;

/// Physical memory as the module sees it; the tests only need the VMXON region.
pub(crate) struct Region(pub(crate) Mutex<u32>);

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

/// One vCPU of a machine, in 64-bit mode at CPL 0.
pub(crate) struct Bench {
    pub(crate) machine: Machine,
    pub(crate) memory: Region,
    pub(crate) cpu: FakeCpu,
    pub(crate) vcpu: Vcpu,
}

impl Bench {
    /// A vCPU that has done nothing yet.
    pub(crate) fn new(config: MachineConfig) -> Bench {
        let sink = || Box::new(std::io::sink());
        let mut cpu = FakeCpu {
            offset: KERNEL,
            ..FakeCpu::default()
        };
        cpu.map(0, 0x8000);
        for (vector, handler) in [(fault::UD, UD_HANDLER), (fault::GP, GP_HANDLER)] {
            let low = handler & 0xffff | 0x10 << 16 | 0x8e << 40 | (handler >> 16 & 0xffff) << 48;
            let gate = IDT + u64::from(vector) * 16;
            cpu.write_virt(gate, &bytes(&[low, handler >> 32]));
        }
        cpu.set_reg(Reg::Efer, LMA);
        cpu.set_reg(Reg::Cs, 0x10);
        cpu.set_reg(Reg::Rsp, KERNEL + 0x7000);
        let vcpu = Vcpu {
            tables: Tables {
                idt: Some(IDT),
                gdt: None,
                tr: None,
            },
            pending: None,
        };
        let machine = Machine::new(config, sink(), sink()).unwrap();
        Bench {
            machine,
            memory: Region(Mutex::new(VMX_REVISION)),
            cpu,
            vcpu,
        }
    }

    /// In front of an instruction.
    pub(crate) fn step(&mut self) -> Step<'_> {
        Step {
            machine: &self.machine,
            memory: &self.memory,
            cpu: &mut self.cpu,
            vcpu: &mut self.vcpu,
            index: 0,
        }
    }

    /// Executes `code`.
    pub(crate) fn run(&mut self, code: &[u8]) -> Next {
        self.run_at(code, RIP)
    }

    /// Executes `code`, which lies at `rip`.
    pub(crate) fn run_at(&mut self, code: &[u8], rip: u64) -> Next {
        let (op, len) = decode(code, rip).unwrap();
        let len = len as u64;
        execute(&mut self.step(), Insn { op, rip, len })
    }

    /// The callback on the instruction at `rip`, if it comes after a question.
    pub(crate) fn patch(&mut self, rip: u64) {
        patch_answer(&self.machine, &mut self.cpu, &mut self.vcpu, rip);
    }

    /// Executes VMXON.
    pub(crate) fn enter_vmx(&mut self) {
        self.cpu.set_reg(Reg::Rax, VMXE);
        assert_eq!(self.run(&WRITE_CR4_RAX), Next::Native);
        self.cpu.write_virt(KERNEL + 0x3000, &REGION.to_le_bytes());
        self.cpu.set_reg(Reg::Rax, KERNEL + 0x3000);
        assert_eq!(self.run(&VMXON_RAX), Next::Done(Some(0)));
        assert!(self.machine.in_vmx(0));
    }
}
