// SPDX-License-Identifier: GPL-2.0
//! Tries a virtual machine that is no TD: [`run`].
//!
//! The simulated machine has none, so this shows that such a VM fails where its
//! VMM can tell, and that TDs are not concerned.

use crate::abi::PAGE;
use crate::failure::Context;
use crate::failure::Failure;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::Kvm;
use kvm_ioctls::VcpuExit;
use memmap2::MmapMut;

/// HLT, the whole program of the VM.
const HLT: u8 = 0xf4;

/// Create a VM of one page and one vCPU, and run it until it halts.
///
/// # Errors
///
/// The step that failed.
pub fn run(kvm: &Kvm) -> Result<(), Failure> {
    let mut memory = MmapMut::map_anon(PAGE as usize).step("map guest memory")?;
    memory.fill(HLT);
    let vm = kvm.create_vm().step("KVM_CREATE_VM")?;
    let region = kvm_userspace_memory_region {
        memory_size: PAGE,
        userspace_addr: memory.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: The mapping outlives the VM, and nobody has a reference to it while the VM runs.
    unsafe { vm.set_user_memory_region(region) }.step("KVM_SET_USER_MEMORY_REGION")?;
    let mut vcpu = vm.create_vcpu(0).step("KVM_CREATE_VCPU")?;
    let mut sregs = vcpu.get_sregs().step("KVM_GET_SREGS")?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs).step("KVM_SET_SREGS")?;
    let mut regs = vcpu.get_regs().step("KVM_GET_REGS")?;
    (regs.rip, regs.rflags) = (0, 2);
    vcpu.set_regs(&regs).step("KVM_SET_REGS")?;
    match vcpu.run().step("KVM_RUN")? {
        VcpuExit::Hlt => Ok(()),
        VcpuExit::FailEntry(reason, cpu) => Err(Failure::new(format!(
            "KVM_RUN: entry failed on CPU {cpu}, reason {reason:#x}"
        ))),
        exit => Err(Failure::new(format!("KVM_RUN: unexpected exit {exit:?}"))),
    }
}
