// SPDX-License-Identifier: GPL-2.0
//! What KVM's interface for TDs has beyond `kvm-bindings`: commands of
//! `KVM_MEMORY_ENCRYPT_OP`, their data, and numbers of exits.
//!
//! The facts are those of Linux's `Documentation/virt/kvm/x86/intel-tdx.rst`.
//! Users are [`crate::td`] (commands) and [`crate::exits`] (exits).

use kvm_bindings::kvm_cpuid_entry2;
use std::mem::{offset_of, size_of};

/// Size of a page, in bytes; KVM maps private memory of a TD in these.
pub const PAGE: u64 = 4096;

/// Report what of a TD can be configured (VM).
pub const KVM_TDX_CAPABILITIES: u32 = 0;
/// Create and initialise the TD (VM).
pub const KVM_TDX_INIT_VM: u32 = 1;
/// Create and initialise a vCPU of the TD (vCPU).
pub const KVM_TDX_INIT_VCPU: u32 = 2;
/// Add initial memory (vCPU).
pub const KVM_TDX_INIT_MEM_REGION: u32 = 3;
/// Complete the measurement: the TD can run from now on (VM).
pub const KVM_TDX_FINALIZE_VM: u32 = 4;
/// Read the CPUID values that the TD sees (vCPU).
pub const KVM_TDX_GET_CPUID: u32 = 5;

/// Flag of [`KVM_TDX_INIT_MEM_REGION`]: the content is measured too.
pub const KVM_TDX_MEASURE_MEMORY_REGION: u32 = 1;

/// Hypercall by which a guest makes memory shared or private.
pub const KVM_HC_MAP_GPA_RANGE: u64 = 12;
/// In its third argument: private is asked for, not shared.
pub const KVM_MAP_GPA_RANGE_ENCRYPTED: u64 = 1 << 4;

/// Exit for a TDVMCALL that the VMM answers.
pub const KVM_EXIT_TDX: u32 = 40;
/// System event: the TD reports that it cannot go on.
pub const KVM_SYSTEM_EVENT_TDX_FATAL: u32 = 7;

/// TDVMCALL that asks which TDVMCALLs there are.
pub const TDVMCALL_INFO: u64 = 0x10000;
/// TDVMCALL that asks for a quote.
pub const TDVMCALL_GET_QUOTE: u64 = 0x10002;
/// TDVMCALL that names the vector of event notifications.
pub const TDVMCALL_SETUP_EVENT_NOTIFY: u64 = 0x10004;
/// Status of a TDVMCALL: an operand is not valid.
pub const TDVMCALL_INVALID_OPERAND: u64 = 0x8000_0000_0000_0000;
/// Status of a TDVMCALL: there is no such function.
pub const TDVMCALL_UNSUPPORTED: u64 = 0x8000_0000_0000_0003;

/// CPUID leaf with the width of addresses: it must be configured.
pub const CPUID_ADDRESS_SIZES: u32 = 0x8000_0008;

/// Most CPUID entries KVM takes or gives.
pub const MAX_CPUID_ENTRIES: usize = 256;

/// Argument of `KVM_MEMORY_ENCRYPT_OP`.
#[repr(C)]
#[derive(Debug, Default)]
pub struct TdxCmd {
    /// Command, `KVM_TDX_*`.
    pub id: u32,
    /// Flags of the command.
    pub flags: u32,
    /// Number, or address of the command's data.
    pub data: u64,
    /// Status of the SEAMCALL that failed, 0 if none did; 0 on input.
    pub hw_error: u64,
}

/// A `kvm_cpuid2` with room for as many entries as there can be.
#[repr(C)]
pub struct CpuidTable {
    /// Entries used; on input of a query the entries there is room for.
    pub nent: u32,
    /// 0.
    pub padding: u32,
    /// The entries.
    pub entries: [kvm_cpuid_entry2; MAX_CPUID_ENTRIES],
}

impl CpuidTable {
    /// A table without entries.
    pub fn empty() -> Self {
        Self {
            nent: 0,
            padding: 0,
            entries: [kvm_cpuid_entry2::default(); MAX_CPUID_ENTRIES],
        }
    }

    /// A table that KVM may fill completely.
    pub fn room() -> Self {
        Self {
            nent: MAX_CPUID_ENTRIES as u32,
            ..Self::empty()
        }
    }

    /// The entries in use.
    pub fn used(&self) -> &[kvm_cpuid_entry2] {
        &self.entries[..self.entries.len().min(self.nent as usize)]
    }
}

/// Answer of [`KVM_TDX_CAPABILITIES`].
#[repr(C)]
pub struct Capabilities {
    /// ATTRIBUTES bits that may be set.
    pub supported_attrs: u64,
    /// XFAM bits that may be set.
    pub supported_xfam: u64,
    /// TDVMCALLs (first word) that KVM answers itself.
    pub kernel_tdvmcall_r11: u64,
    /// TDVMCALLs (first word) that the VMM may answer.
    pub user_tdvmcall_r11: u64,
    /// TDVMCALLs (second word) that KVM answers itself.
    pub kernel_tdvmcall_r12: u64,
    /// TDVMCALLs (second word) that the VMM may answer.
    pub user_tdvmcall_r12: u64,
    /// Not used yet.
    pub reserved: [u64; 250],
    /// CPUID leaves that can be configured; ones are the bits to choose.
    pub cpuid: CpuidTable,
}

impl Capabilities {
    /// A buffer for KVM to fill.
    pub fn room() -> Box<Self> {
        Box::new(Self {
            supported_attrs: 0,
            supported_xfam: 0,
            kernel_tdvmcall_r11: 0,
            user_tdvmcall_r11: 0,
            kernel_tdvmcall_r12: 0,
            user_tdvmcall_r12: 0,
            reserved: [0; 250],
            cpuid: CpuidTable::room(),
        })
    }
}

/// Data of [`KVM_TDX_INIT_VM`].
#[repr(C)]
pub struct InitVm {
    /// ATTRIBUTES of the TD.
    pub attributes: u64,
    /// XFAM of the TD.
    pub xfam: u64,
    /// MRCONFIGID.
    pub mrconfigid: [u64; 6],
    /// MROWNER.
    pub mrowner: [u64; 6],
    /// MROWNERCONFIG.
    pub mrownerconfig: [u64; 6],
    /// 0.
    pub reserved: [u64; 12],
    /// Chosen CPUID values.
    pub cpuid: CpuidTable,
}

/// Data of [`KVM_TDX_INIT_MEM_REGION`]; KVM counts it on as pages are added.
#[repr(C)]
#[derive(Debug, Default)]
pub struct MemRegion {
    /// Address of the content in this process.
    pub source_addr: u64,
    /// First guest physical address.
    pub gpa: u64,
    /// Pages still to be added.
    pub nr_pages: u64,
}

const _: () = assert!(size_of::<TdxCmd>() == 24);
const _: () = assert!(offset_of!(CpuidTable, entries) == 8);
const _: () = assert!(offset_of!(Capabilities, cpuid) == 256 * 8);
const _: () = assert!(offset_of!(InitVm, cpuid) == 256);
const _: () = assert!(size_of::<MemRegion>() == 24);
