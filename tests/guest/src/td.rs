// SPDX-License-Identifier: GPL-2.0
//! A TD until it can run, in the order that KVM asks for: [`Td::build`].
//!
//! The neighbours are [`crate::memory`], which the TD gets, and [`mod@crate::run`],
//! which runs it.

use crate::abi::*;
use crate::device::Devices;
use crate::failure::Context;
use crate::failure::Failure;
use crate::info::print_cpuid;
use crate::memory::Memory;
use crate::memory::pages;
use kvm_bindings::KVM_CAP_EXIT_HYPERCALL;
use kvm_bindings::KVM_CAP_MAX_VCPUS;
use kvm_bindings::KVM_CAP_SPLIT_IRQCHIP;
use kvm_bindings::KVM_CAP_VM_TYPES;
use kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_bindings::KVM_X86_TDX_VM;
use kvm_bindings::kvm_cpuid_entry2;
use kvm_bindings::kvm_enable_cap;
use kvm_ioctls::Kvm;
use kvm_ioctls::VcpuFd;
use kvm_ioctls::VmFd;
use std::os::fd::AsRawFd;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

ioctl_iowr_nr!(KVM_MEMORY_ENCRYPT_OP, 0xAE, 0xba, std::os::raw::c_ulong);

/// Interrupt pins of the I/O APIC, which is the VMM's with a split irqchip.
const IOAPIC_PINS: u64 = 24;
/// Width of a TD's guest physical addresses.
const GPA_WIDTH: u32 = 48;
/// XFAM bits of AMX, for which a process has to ask the kernel first.
const XFAM_AMX: u64 = 0b11 << 17;
/// CPUID(1).ECX: x2APIC.
const X2APIC: u32 = 1 << 21;

/// What a TD is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// vCPUs.
    pub vcpus: u64,
    /// Bytes of memory, from GPA 0.
    pub memory: u64,
    /// Pages from GPA 0 that are there from the start and are measured.
    pub measured: u64,
    /// Pages after those that are there from the start and are not measured.
    pub unmeasured: u64,
    /// Ask KVM for the CPUID values that the TD sees, and print them.
    pub read_cpuid: bool,
}

/// A TD. Fields are dropped in order: KVM's VM goes before the memory.
pub struct Td {
    /// KVM's VM.
    pub vm: VmFd,
    /// Its memory.
    pub memory: Memory,
    /// Its devices.
    pub devices: Devices,
    /// Number by which messages name it.
    pub number: usize,
}

/// Open /dev/kvm and see that it has TDs.
///
/// # Errors
///
/// There is no KVM, or it has none.
pub fn open() -> Result<Kvm, Failure> {
    let kvm = Kvm::new().step("open /dev/kvm")?;
    let types = kvm.check_extension_raw(KVM_CAP_VM_TYPES.into());
    if types & (1 << KVM_X86_TDX_VM) == 0 {
        return Err(Failure::new(format!(
            "KVM offers no TDs (VM types {types:#x}): is kvm_intel.tdx=1 set, and did the TDX module come up?"
        )));
    }
    Ok(kvm)
}

/// Create a VM of the TDX type and ask what can be configured.
///
/// # Errors
///
/// KVM refuses.
pub fn create(kvm: &Kvm) -> Result<(VmFd, Box<Capabilities>), Failure> {
    let vm = kvm
        .create_vm_with_type(KVM_X86_TDX_VM.into())
        .step("KVM_CREATE_VM")?;
    let mut capabilities = Capabilities::room();
    let data = &raw mut *capabilities as u64;
    command(
        &vm,
        "KVM_TDX_CAPABILITIES",
        TdxCmd {
            id: KVM_TDX_CAPABILITIES,
            data,
            ..Default::default()
        },
    )?;
    Ok((vm, capabilities))
}

impl Td {
    /// Build a TD from nothing to the point where its vCPUs can run.
    ///
    /// # Errors
    ///
    /// The step that failed; what was built is destroyed.
    pub fn build(kvm: &Kvm, number: usize, plan: &Plan) -> Result<(Self, Vec<VcpuFd>), Failure> {
        let (vm, capabilities) = create(kvm)?;
        let most = vm.check_extension_raw(KVM_CAP_MAX_VCPUS.into());
        if i64::try_from(plan.vcpus).is_ok_and(|wanted| wanted > i64::from(most)) {
            return Err(Failure::new(format!(
                "{} vCPUs: a TD has {most} at most on this machine",
                plan.vcpus
            )));
        }
        enable(
            &vm,
            KVM_CAP_SPLIT_IRQCHIP,
            IOAPIC_PINS,
            "KVM_CAP_SPLIT_IRQCHIP",
        )?;
        enable(
            &vm,
            KVM_CAP_EXIT_HYPERCALL,
            1 << KVM_HC_MAP_GPA_RANGE,
            "KVM_CAP_EXIT_HYPERCALL",
        )?;
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .step("KVM_GET_SUPPORTED_CPUID")?;
        init_vm(&vm, &capabilities, supported.as_slice())?;
        let vcpus = (0..plan.vcpus)
            .map(|id| vcpu(&vm, id, supported.as_slice()))
            .collect::<Result<Vec<_>, _>>()?;
        let memory = Memory::new(&vm, plan.memory)?;
        let td = Self {
            vm,
            memory,
            devices: Devices::default(),
            number,
        };
        if let Some(first) = vcpus.first() {
            if plan.read_cpuid {
                let table = read_cpuid(first)?;
                println!("td {number}: {} CPUID entries", table.used().len());
                print_cpuid(table.used());
            }
            td.add_pages(first, 0, plan.measured, KVM_TDX_MEASURE_MEMORY_REGION)?;
            td.add_pages(first, plan.measured, plan.unmeasured, 0)?;
        }
        command(
            &td.vm,
            "KVM_TDX_FINALIZE_VM",
            TdxCmd {
                id: KVM_TDX_FINALIZE_VM,
                ..Default::default()
            },
        )?;
        Ok((td, vcpus))
    }

    /// Add pages with a content of their own, from page number `first` on.
    fn add_pages(&self, vcpu: &VcpuFd, first: u64, count: u64, flags: u32) -> Result<(), Failure> {
        if count == 0 {
            return Ok(());
        }
        let gpa = pages(first);
        let source = self.memory.address(gpa, pages(count))?;
        for page in first..first + count {
            self.memory.write(
                pages(page),
                format!("td {} page {page}", self.number).as_bytes(),
            )?;
        }
        let mut region = MemRegion {
            source_addr: source as u64,
            gpa,
            nr_pages: count,
        };
        loop {
            let data = &raw mut region as u64;
            let mut cmd = TdxCmd {
                id: KVM_TDX_INIT_MEM_REGION,
                flags,
                data,
                hw_error: 0,
            };
            match encrypt_op(vcpu, &mut cmd) {
                Ok(()) => return Ok(()),
                // KVM has counted the region on; go on with the rest.
                Err(e)
                    if [
                        rustix::io::Errno::AGAIN,
                        rustix::io::Errno::INTR,
                        rustix::io::Errno::BUSY,
                    ]
                    .iter()
                    .any(|again| again.raw_os_error() == e.errno()) => {}
                Err(e) => {
                    let step = format!("KVM_TDX_INIT_MEM_REGION at GPA {:#x}", region.gpa);
                    return Err(Failure::command(step, e, cmd.hw_error));
                }
            }
        }
    }
}

/// Create and initialise the TD itself.
fn init_vm(
    vm: &VmFd,
    capabilities: &Capabilities,
    supported: &[kvm_cpuid_entry2],
) -> Result<(), Failure> {
    let mut data = Box::new(InitVm {
        // As QEMU by default: everything KVM supports, which is SEPT_VE_DISABLE.
        attributes: capabilities.supported_attrs,
        xfam: capabilities.supported_xfam & !XFAM_AMX,
        mrconfigid: [0; 6],
        mrowner: [0; 6],
        mrownerconfig: [0; 6],
        reserved: [0; 12],
        cpuid: CpuidTable::empty(),
    });
    for (to, bits) in data.cpuid.entries.iter_mut().zip(capabilities.cpuid.used()) {
        *to = configured(bits, supported);
    }
    data.cpuid.nent = capabilities.cpuid.used().len() as u32;
    let data = &raw mut *data as u64;
    command(
        vm,
        "KVM_TDX_INIT_VM",
        TdxCmd {
            id: KVM_TDX_INIT_VM,
            data,
            ..Default::default()
        },
    )
}

/// A configurable CPUID entry with the values that KVM supports.
fn configured(bits: &kvm_cpuid_entry2, supported: &[kvm_cpuid_entry2]) -> kvm_cpuid_entry2 {
    let found = supported
        .iter()
        .find(|e| e.function == bits.function && e.index == bits.index);
    let value = found.copied().unwrap_or_default();
    let mut entry = kvm_cpuid_entry2 {
        eax: bits.eax & value.eax,
        ebx: bits.ebx & value.ebx,
        ecx: bits.ecx & value.ecx,
        edx: bits.edx & value.edx,
        // Without it KVM would take subleaf 0 for every other one.
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        ..*bits
    };
    match entry.function {
        // Zero: the processor's own family, model and stepping.
        1 => entry.eax = 0,
        CPUID_ADDRESS_SIZES => entry.eax = with_gpa_width(entry.eax),
        _ => {}
    }
    entry
}

/// EAX of CPUID(80000008h) with the width of guest physical addresses.
fn with_gpa_width(eax: u32) -> u32 {
    (eax & !(0xff << 16)) | (GPA_WIDTH << 16)
}

/// Create and initialise one vCPU.
fn vcpu(vm: &VmFd, id: u64, supported: &[kvm_cpuid_entry2]) -> Result<VcpuFd, Failure> {
    let part = format!("vCPU {id}");
    let vcpu = vm
        .create_vcpu(id)
        .step("KVM_CREATE_VCPU")
        .map_err(|e| e.of(&part))?;
    let mut entries = supported.to_vec();
    for entry in &mut entries {
        match entry.function {
            1 => {
                entry.ecx |= X2APIC;
                entry.ebx = (entry.ebx & 0x00ff_ffff) | ((id as u32) << 24);
            }
            0xb | 0x1f => entry.edx = id as u32,
            CPUID_ADDRESS_SIZES => entry.eax = with_gpa_width(entry.eax),
            _ => {}
        }
    }
    let cpuid = kvm_bindings::CpuId::from_entries(&entries)
        .map_err(|_| Failure::new("KVM_SET_CPUID2: too many CPUID entries"))?;
    vcpu.set_cpuid2(&cpuid)
        .step("KVM_SET_CPUID2")
        .map_err(|e| e.of(&part))?;
    let cmd = TdxCmd {
        id: KVM_TDX_INIT_VCPU,
        ..Default::default()
    };
    command(&vcpu, "KVM_TDX_INIT_VCPU", cmd).map_err(|e| e.of(&part))?;
    Ok(vcpu)
}

/// CPUID entries that the TD sees.
fn read_cpuid(vcpu: &VcpuFd) -> Result<Box<CpuidTable>, Failure> {
    let mut table = Box::new(CpuidTable::room());
    let data = &raw mut *table as u64;
    command(
        vcpu,
        "KVM_TDX_GET_CPUID",
        TdxCmd {
            id: KVM_TDX_GET_CPUID,
            data,
            ..Default::default()
        },
    )?;
    Ok(table)
}

/// Set a capability of the VM that takes one argument.
fn enable(vm: &VmFd, cap: u32, argument: u64, step: &str) -> Result<(), Failure> {
    vm.enable_cap(&kvm_enable_cap {
        cap,
        args: [argument, 0, 0, 0],
        ..Default::default()
    })
    .step(step)
}

/// Run a command on a VM or a vCPU.
fn command(on: &impl AsRawFd, step: &str, mut cmd: TdxCmd) -> Result<(), Failure> {
    encrypt_op(on, &mut cmd).map_err(|e| Failure::command(step, e, cmd.hw_error))
}

fn encrypt_op(on: &impl AsRawFd, cmd: &mut TdxCmd) -> Result<(), errno::Error> {
    // SAFETY: the callers in this file give the data that the command asks for,
    // and it outlives the call; KVM writes nothing but that and `cmd`.
    match unsafe { ioctl_with_mut_ref(on, KVM_MEMORY_ENCRYPT_OP(), cmd) } {
        0.. => Ok(()),
        _ => Err(errno::Error::last()),
    }
}
