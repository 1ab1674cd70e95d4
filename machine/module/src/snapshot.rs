// SPDX-License-Identifier: GPL-2.0

//! What a processor shows of itself: [`Snapshot`], taken at TDH.SYS.INIT and compared with every
//! other processor at TDH.SYS.LP.INIT.

use std::collections::BTreeMap;

use crate::profile::NO_SUBLEAF;
use crate::{CpuidRegs, MemRange, Platform};

/// MSRs that must be equal everywhere and are compared before CPUID, in order.
pub(crate) const MSRS_BEFORE_CPUID: [u32; 4] = [0xcf, 0x10a, 0xbc, 0xbd];

/// MSRs that must be equal everywhere and are compared after CPUID, in order: TSC_ADJUST, MTRRCAP,
/// SMRR, the VMX capabilities, PERF_CAPABILITIES, TME, the KeyID partition, cache sub-blocks.
pub(crate) const MSRS_AFTER_CPUID: [u32; 23] = [
    0x3b, 0xfe, 0x1f2, 0x1f3, 0x480, 0x48d, 0x48e, 0x48b, 0x492, 0x48f, 0x490, 0x485, 0x48c, 0x486,
    0x487, 0x488, 0x489, 0x345, 0x981, 0x982, 0x87, 0x98, 0x99,
];

/// A CPUID leaf that must be equal everywhere, but for the bits that belong to one processor.
pub(crate) struct ComparedCpuid {
    pub(crate) leaf: u32,
    pub(crate) subleaf: u32,
    /// Bits of EAX, EBX, ECX and EDX that are compared.
    pub(crate) mask: [u32; 4],
}

const fn compared(leaf: u32, subleaf: u32, mask: [u32; 4]) -> ComparedCpuid {
    ComparedCpuid {
        leaf,
        subleaf,
        mask,
    }
}

const ALL: [u32; 4] = [u32::MAX; 4];

/// The CPUID leaves that are compared, in order. APIC ids, bits that mirror control registers and
/// sizes that follow XCR0 are left out.
pub(crate) const COMPARED_CPUID: [ComparedCpuid; 12] = [
    compared(0, 0, ALL),
    compared(
        1,
        0,
        [u32::MAX, 0x00ff_ffff, !(1 << 27 | 1 << 3), !(1 << 9)],
    ),
    compared(7, 0, [u32::MAX, u32::MAX, !(1 << 4), u32::MAX]),
    compared(7, 1, ALL),
    compared(7, 2, ALL),
    compared(0xd, 0, [u32::MAX, 0, u32::MAX, u32::MAX]),
    compared(0xd, 1, [u32::MAX, 0, u32::MAX, u32::MAX]),
    compared(0x15, 0, ALL),
    compared(0x1d, 1, ALL),
    compared(0x8000_0000, 0, ALL),
    compared(0x8000_0001, 0, [u32::MAX, u32::MAX, u32::MAX, !(1 << 11)]),
    compared(0x8000_0008, 0, ALL),
];

/// State of one processor and of the memory map.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    msrs: BTreeMap<u32, u64>,
    cpuid: BTreeMap<(u32, u32), CpuidRegs>,
    /// Convertible memory as firmware reported it, null entries included.
    pub(crate) cmrs: Vec<MemRange>,
}

impl Snapshot {
    /// Looks at processor `lp`. `cpuid` lists further leaves to remember.
    pub(crate) fn take(
        platform: &dyn Platform,
        lp: usize,
        cpuid: impl Iterator<Item = (u32, u32)>,
    ) -> Self {
        let msrs = MSRS_BEFORE_CPUID.into_iter().chain(MSRS_AFTER_CPUID);
        let leaves = COMPARED_CPUID
            .iter()
            .map(|c| (c.leaf, c.subleaf))
            .chain(cpuid);
        Self {
            msrs: msrs.map(|index| (index, platform.msr(lp, index))).collect(),
            cpuid: leaves
                .map(|(l, s)| ((l, s), platform.cpuid(lp, l, s)))
                .collect(),
            cmrs: platform.cmrs(),
        }
    }

    /// An MSR; zero if it was not looked at.
    pub(crate) fn msr(&self, index: u32) -> u64 {
        self.msrs.get(&index).copied().unwrap_or(0)
    }

    /// A CPUID leaf; zeroes if it was not looked at.
    pub(crate) fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidRegs {
        self.cpuid
            .get(&(leaf, subleaf))
            .copied()
            .unwrap_or_default()
    }

    /// EAX, EBX, ECX and EDX of a CPUID leaf; all ones as subleaf is a leaf without subleaves.
    pub(crate) fn cpuid_row(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let subleaf = if subleaf == NO_SUBLEAF { 0 } else { subleaf };
        let regs = self.cpuid(leaf, subleaf);
        [regs.eax, regs.ebx, regs.ecx, regs.edx]
    }

    /// Frequency of the TSC in Hz; zero if CPUID does not say.
    pub(crate) fn tsc_frequency(&self) -> u64 {
        let ratio = self.cpuid(0x15, 0);
        let product = u64::from(ratio.ecx) * u64::from(ratio.ebx);
        product.checked_div(ratio.eax.into()).unwrap_or(0)
    }

    /// The XFAM bits that the processor supports.
    pub(crate) fn supported_xfam(&self) -> u64 {
        let xcr0 = self.cpuid(0xd, 0);
        let xss = self.cpuid(0xd, 1);
        u64::from(xcr0.eax | xss.ecx) | u64::from(xcr0.edx | xss.edx) << 32
    }
}
