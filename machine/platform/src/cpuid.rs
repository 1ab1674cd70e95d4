// SPDX-License-Identifier: GPL-2.0

//! CPUID of a TDX host: what TCG does not report, and what the TDX module sees.
//!
//! [`patch`] changes QEMU's answers to the guest. The module has no guest to ask, so [`native`] gives
//! it the answers of a Sapphire Rapids processor, as far as a module looks at them.

use crate::config::MachineConfig;
pub use tdx_module::CpuidRegs;

const VMX: u32 = 1 << 5;
const SELFSNOOP: u32 = 1 << 27;
const TME: u32 = 1 << 13;
const MOVDIR64B: u32 = 1 << 28;
const ARCH_CAPABILITIES: u32 = 1 << 29;
const HYPERVISOR: u32 = 1 << 31;
const INVARIANT_TSC: u32 = 1 << 8;

/// Frequency in Hz of QEMU's APIC timer, which is the crystal of the machine.
const CRYSTAL: u32 = 1_000_000_000;
/// Frequency in MHz of a front side bus, as processors without one have it.
const BUS: u32 = 100;

/// Does the machine change what this leaf says?
pub fn is_patched(leaf: u32) -> bool {
    matches!(leaf, 1 | 7 | 0x15 | 0x16 | 0x8000_0007 | 0x8000_0008)
}

/// The answer to CPUID(`leaf`, `subleaf`), made from QEMU's own answer.
pub fn patch(config: &MachineConfig, leaf: u32, subleaf: u32, native: CpuidRegs) -> CpuidRegs {
    let mut regs = native;
    match (leaf, subleaf) {
        (1, _) => {
            regs.ecx = set(regs.ecx, VMX, config.vmx);
            regs.ecx = set(
                regs.ecx,
                HYPERVISOR,
                !config.bare_metal && regs.ecx & HYPERVISOR != 0,
            );
            regs.edx = set(regs.edx, SELFSNOOP, config.selfsnoop);
        }
        (7, 0) => {
            regs.ecx = set(regs.ecx, TME, config.has_tdx());
            regs.ecx = set(regs.ecx, MOVDIR64B, config.movdir64b);
            regs.edx |= ARCH_CAPABILITIES;
        }
        (0x15 | 0x16 | 0x8000_0007, _) => {
            if let Some(khz) = config.tsc_khz {
                regs = clock(leaf, khz, native);
            }
        }
        (0x8000_0008, _) => regs.eax = regs.eax & !0xff | u32::from(config.max_phys_addr),
        _ => {}
    }
    regs
}

/// What the leaves about clocks say of a counter that runs at `khz`, whole MHz.
fn clock(leaf: u32, khz: u32, native: CpuidRegs) -> CpuidRegs {
    // Linux multiplies the crystal's kHz with EBX in 32 bits.
    let mhz = (khz + 500) / 1000;
    let (eax, ebx, ecx, edx) = match leaf {
        0x15 => (CRYSTAL / 1_000_000, mhz, CRYSTAL, 0),
        0x16 => (mhz, mhz, BUS, 0),
        _ => (
            native.eax,
            native.ebx,
            native.ecx,
            native.edx | INVARIANT_TSC,
        ),
    };
    CpuidRegs { eax, ebx, ecx, edx }
}

/// CPUID as the TDX module executes it on `lp`.
pub fn native(config: &MachineConfig, lp: u32, leaf: u32, subleaf: u32) -> CpuidRegs {
    let (eax, ebx, ecx, edx) = match (leaf, subleaf) {
        (0, _) => (0x20, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),
        (1, _) => (
            0x0008_06f8,
            lp << 24 | 0x0010_0800,
            0x7ffe_fbff,
            0xbfeb_fbff,
        ),
        (4, 0) => (0xfc00_4121, 0x02c0_003f, 0x3f, 0),
        (4, 1) => (0xfc00_4122, 0x01c0_003f, 0x3f, 0),
        (4, 2) => (0xfc01_c143, 0x03c0_003f, 0x7ff, 0),
        (4, 3) => (0xfc1f_c163, 0x0380_003f, 0x1_dfff, 4),
        (7, 0) => (2, 0xf3bf_bfeb, 0xfbc1_6ffe, 0xffdd_4432),
        (7, 1) => (0x1c30, 0, 0, 0),
        (7, 2) => (0, 0, 0, 0x1f),
        (0xa, _) => (0x0730_0805, 0, 7, 0x8603),
        (0xd, 0) => (0x602e7, 0x2b00, 0x2b00, 0),
        (0xd, 1) => (0x1f, 0x2440, 0x1_f800, 0),
        (0x15, _) => (2, 160, 25_000_000, 0),
        (0x1c, _) => (0x4000_000b, 7, 7, 0),
        (0x1f, 0) => (0, 1, 0x100, lp),
        (0x1f, 1) => (per_package_bits(config), per_package(config), 0x201, lp),
        (0x1f, n) => (0, 0, n, lp),
        (0x8000_0000, _) => (0x8000_0008, 0, 0, 0),
        (0x8000_0001, _) => (0, 0, 0x121, 0x2c10_0800),
        (0x8000_0007, _) => (0, 0, 0, 0x100),
        (0x8000_0008, _) => (0x3900 | u32::from(config.max_phys_addr), 0x200, 0, 0),
        _ => (0, 0, 0, 0),
    };
    patch(config, leaf, subleaf, CpuidRegs { eax, ebx, ecx, edx })
}

fn per_package(config: &MachineConfig) -> u32 {
    config.enabled_cpus.div_ceil(config.packages.max(1))
}

fn per_package_bits(config: &MachineConfig) -> u32 {
    per_package(config).next_power_of_two().trailing_zeros()
}

fn set(word: u32, bit: u32, on: bool) -> u32 {
    if on { word | bit } else { word & !bit }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NATIVE: CpuidRegs = CpuidRegs {
        eax: 0x3028,
        ebx: 1,
        ecx: HYPERVISOR,
        edx: 0,
    };

    #[test]
    fn a_tdx_host_shows_what_linux_asks_for() {
        let config = MachineConfig::default();
        let one = patch(&config, 1, 0, NATIVE);
        assert_eq!((one.ecx & VMX, one.edx & SELFSNOOP), (VMX, SELFSNOOP));
        let seven = patch(&config, 7, 0, NATIVE);
        assert_eq!(seven.ecx & (TME | MOVDIR64B), TME | MOVDIR64B);
        assert_eq!(patch(&config, 0x8000_0008, 0, NATIVE).eax, 0x3034);
    }

    #[test]
    fn missing_features_are_cleared() {
        let config = MachineConfig {
            vmx: false,
            movdir64b: false,
            ..MachineConfig::default()
        };
        let all = CpuidRegs {
            ecx: u32::MAX,
            ..NATIVE
        };
        assert_eq!(patch(&config, 1, 0, all).ecx & VMX, 0);
        assert_eq!(patch(&config, 7, 0, all).ecx & MOVDIR64B, 0);
    }

    #[test]
    fn module_and_guest_see_one_address_width() {
        let config = MachineConfig {
            max_phys_addr: 46,
            ..MachineConfig::default()
        };
        assert_eq!(native(&config, 0, 0x8000_0008, 0).eax & 0xff, 46);
        assert_eq!(patch(&config, 0x8000_0008, 0, NATIVE).eax & 0xff, 46);
    }

    #[test]
    fn the_counter_is_told_if_it_is_known() {
        let unknown = MachineConfig::default();
        let known = MachineConfig {
            tsc_khz: Some(2_596_125),
            ..MachineConfig::default()
        };
        let at = |config: &MachineConfig, leaf| {
            let CpuidRegs { eax, ebx, ecx, edx } = patch(config, leaf, 0, CpuidRegs::default());
            [eax, ebx, ecx, edx]
        };
        let [denominator, numerator, crystal, _] = at(&known, 0x15).map(u64::from);
        assert_eq!(crystal * numerator / denominator, 2_596_000_000);
        assert!(crystal / 1000 * numerator < 1 << 32);
        assert_eq!(at(&known, 0x16), [2596, 2596, 100, 0]);
        assert_eq!(at(&known, 0x8000_0007), [0, 0, 0, INVARIANT_TSC]);
        for leaf in [0x15, 0x16, 0x8000_0007] {
            assert!(is_patched(leaf));
            assert_eq!(at(&unknown, leaf), [0; 4]);
        }
    }

    #[test]
    fn other_leaves_and_subleaves_are_qemus() {
        let config = MachineConfig::default();
        for (leaf, subleaf) in [(0, 0), (7, 1), (0x1f, 0), (0x8000_0001, 0)] {
            assert_eq!(patch(&config, leaf, subleaf, NATIVE), NATIVE);
        }
        assert!(is_patched(1) && !is_patched(0));
    }
}
