// SPDX-License-Identifier: GPL-2.0

//! Model specific registers of a TDX-capable processor that QEMU does not have.
//!
//! All are constant after firmware and equal on every processor, so [`Msrs`] is made once from the
//! machine's configuration. Reads of any other MSR are QEMU's business.

use crate::config::MachineConfig;

/// IA32_MCG_STATUS.
pub const MCG_STATUS: u32 = 0x17a;
/// Lock, VMX outside SMX.
const FEAT_CTL: u64 = 0x5;
/// A machine check can be for one processor alone, if the kernel wants that.
const FEAT_CTL_LMCE: u64 = 1 << 20;
/// Revision of the VMX region; the low dword of IA32_VMX_BASIC.
pub const VMX_REVISION: u32 = 1;
/// IA32_VMX_BASIC bit 60: returning from the P-SEAMLDR keeps the current VMCS.
const NO_SEAMRET_INVD_VMCS: u64 = 1 << 60;

/// First and last of the IA32_VMX_* registers.
const VMX_FIRST: u32 = 0x480;
const VMX_LAST: u32 = 0x493;

const ARCH_CAPABILITIES: u32 = 0x10a;
/// Not vulnerable to Meltdown, L1TF, MDS, TAA and their like, as the processors with TDX.
const ARCH_CAPABILITIES_GUEST: u64 = 0x0d10_e169;
/// What the module sees besides: enhanced IBRS and the lock of legacy xAPIC mode. The guest does not,
/// because QEMU does not implement the registers that go with them.
const ARCH_CAPABILITIES_MODULE: u64 = 0x00a9_1c02;

/// Sample values that satisfy TDX and KVM's checks for ordinary VMs, 480h to 493h.
const VMX: [u64; 20] = [
    0x00d8_0400_0000_0000 | VMX_REVISION as u64,
    0x0000_00ff_0000_0016,
    0xfff9_fffe_0401_e172,
    0x007f_ffff_0003_6dff,
    0x0000_ffff_0000_11ff,
    0x0000_0000_0000_01e5,
    0x8000_0021,
    0xffff_ffff,
    0x2000,
    0x01ff_ffff,
    0x2e,
    0x0210_13ba_0000_0000,
    0x0000_0f01_0633_4141,
    0x0000_00ff_0000_0016,
    0xfff9_fffe_0400_6172,
    0x007f_ffff_0003_6dfb,
    0x0000_ffff_0000_11fb,
    0x1,
    0,
    0,
];

/// Registers that only the module looks at; the guest sees QEMU's or none. Among them the SMRR, which
/// hides 16 MB below the PCI hole from everyone.
const MODULE_ONLY: [(u32, u64); 6] = [
    (0xcf, 0x20),
    (0x1a0, 0x0085_0089),
    (0x1f2, 0xd000_0006),
    (0x1f3, 0xff00_0c00),
    (0x345, 0x5_7c0f),
    (0x3b, 0),
];

/// The MSR table.
#[derive(Clone, Debug)]
pub struct Msrs {
    vmx: bool,
    table: Vec<(u32, u64)>,
}

/// Answer to a WRMSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Not one of ours: QEMU decides.
    NotOurs,
    /// The register cannot be written: #GP(0).
    Fault,
}

impl Msrs {
    /// Table of the machine described by `config`.
    pub fn new(config: &MachineConfig) -> Msrs {
        let bits = u64::from(config.keyid_bits);
        let tdx_bits = u64::from(config.tdx_keyid_bits());
        let mut table = vec![
            (
                0x3a,
                FEAT_CTL | if config.strict { FEAT_CTL_LMCE } else { 0 },
            ),
            (ARCH_CAPABILITIES, ARCH_CAPABILITIES_GUEST),
            (0xbc, 1),
            (0xbd, 1),
            (0xfe, 0xd80a),
            (0x98, u64::from(config.cache_sub_blocks)),
            (0x99, u64::from(config.cache_sub_blocks)),
        ];
        if config.has_tdx() {
            table.extend([
                (
                    0x87,
                    u64::from(config.tdx_keyids) << 32 | u64::from(config.mktme_keyids),
                ),
                (0x981, 0x5 | bits << 32 | ((1u64 << bits) - 1) << 36),
                (0x982, 0x3 | bits << 32 | tdx_bits << 36 | 1 << 48),
            ]);
            let valid = if config.seamrr { 1 << 11 } else { 0 };
            table.extend([
                (0x1400, config.seamrr_base | 8),
                (0x1401, 0x000f_ffff_fc00_0400 | valid),
            ]);
        }
        if config.vmx {
            table.extend((VMX_FIRST..).zip(VMX));
            if let Some(basic) = table.iter_mut().find(|(msr, _)| *msr == VMX_FIRST) {
                basic.1 |= if config.seamret_keeps_vmcs {
                    NO_SEAMRET_INVD_VMCS
                } else {
                    0
                };
            }
        }
        Msrs {
            vmx: config.vmx,
            table,
        }
    }

    /// Value of `msr`, if it is one of ours.
    pub fn read(&self, msr: u32) -> Option<u64> {
        if msr == 0x3a && !self.vmx {
            return None;
        }
        self.table
            .iter()
            .find(|(m, _)| *m == msr)
            .map(|(_, value)| *value)
    }

    /// Value of `msr` as the TDX module reads it; 0 if there is no such register.
    pub fn read_for_module(&self, msr: u32) -> u64 {
        let fixed = || {
            MODULE_ONLY
                .iter()
                .find(|(m, _)| *m == msr)
                .map(|(_, value)| *value)
        };
        let more = if msr == ARCH_CAPABILITIES {
            ARCH_CAPABILITIES_MODULE
        } else {
            0
        };
        self.read(msr).or_else(fixed).unwrap_or(0) | more
    }

    /// What a write does. Ours are read-only or locked by firmware.
    pub fn write(&self, msr: u32) -> Write {
        match self.read(msr) {
            Some(_) => Write::Fault,
            None => Write::NotOurs,
        }
    }

    /// RDMSR of `msr` faults on a processor without VMX, though QEMU would answer zero.
    pub fn read_faults(&self, msr: u32) -> bool {
        !self.vmx && (VMX_FIRST..=VMX_LAST).contains(&msr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyid_partition_and_tme_agree() {
        let msrs = Msrs::new(&MachineConfig::default());
        assert_eq!(msrs.read(0x87), Some(48 << 32 | 15));
        assert_eq!(msrs.read(0x982), Some(0x0001_0026_0000_0003));
        assert_eq!(msrs.write(0x982), Write::Fault);
    }

    #[test]
    fn vmx_registers_need_vmx() {
        let with = Msrs::new(&MachineConfig::default());
        let without = Msrs::new(&MachineConfig {
            vmx: false,
            ..MachineConfig::default()
        });
        assert_eq!(with.read(0x480).map(|v| v as u32), Some(VMX_REVISION));
        assert_eq!(with.read(0x480).map(|v| v >> 60 & 1), Some(1));
        assert_eq!((without.read(0x480), without.read(0x3a)), (None, None));
        assert!(without.read_faults(0x480) && !with.read_faults(0x480));
    }

    #[test]
    fn machine_checks_of_the_strict_erratum_are_local() {
        let feat_ctl = |strict| {
            let config = MachineConfig {
                strict,
                ..MachineConfig::default()
            };
            Msrs::new(&config).read(0x3a)
        };
        assert_eq!([false, true].map(feat_ctl), [Some(0x5), Some(0x10_0005)]);
    }

    #[test]
    fn no_tdx_keyids_means_no_partitioning_register() {
        let config = MachineConfig {
            tdx_keyids: 0,
            mktme_keyids: 0,
            ..MachineConfig::default()
        };
        assert_eq!(Msrs::new(&config).read(0x87), None);
    }

    #[test]
    fn ordinary_registers_are_qemus() {
        let msrs = Msrs::new(&MachineConfig::default());
        assert_eq!(msrs.read(0x10), None);
        assert_eq!(msrs.write(0x10), Write::NotOurs);
    }
}
