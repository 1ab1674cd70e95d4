// SPDX-License-Identifier: GPL-2.0
//! Prints what KVM offers for TDs.

use crate::failure::Failure;
use crate::td::create;
use kvm_bindings::KVM_CAP_MAX_VCPUS;
use kvm_bindings::KVM_CAP_VM_TYPES;
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::Kvm;

/// Print it; `name=value` lines, then the configurable CPUID bits.
///
/// # Errors
///
/// KVM does not answer.
pub fn print(kvm: &Kvm) -> Result<(), Failure> {
    let (vm, capabilities) = create(kvm)?;
    println!(
        "vm_types={:#x}",
        kvm.check_extension_raw(KVM_CAP_VM_TYPES.into())
    );
    println!(
        "max_vcpus={}",
        vm.check_extension_raw(KVM_CAP_MAX_VCPUS.into())
    );
    println!("attributes={:#x}", capabilities.supported_attrs);
    println!("xfam={:#x}", capabilities.supported_xfam);
    println!(
        "tdvmcalls_kvm={:#x},{:#x}",
        capabilities.kernel_tdvmcall_r11, capabilities.kernel_tdvmcall_r12
    );
    println!(
        "tdvmcalls_vmm={:#x},{:#x}",
        capabilities.user_tdvmcall_r11, capabilities.user_tdvmcall_r12
    );
    println!("cpuid_entries={}", capabilities.cpuid.used().len());
    print_cpuid(capabilities.cpuid.used());
    Ok(())
}

/// Print CPUID entries as a table.
pub fn print_cpuid(entries: &[kvm_cpuid_entry2]) {
    println!("leaf     index  eax      ebx      ecx      edx");
    for e in entries {
        println!(
            "{:08x} {:5}  {:08x} {:08x} {:08x} {:08x}",
            e.function, e.index, e.eax, e.ebx, e.ecx, e.edx
        );
    }
}
