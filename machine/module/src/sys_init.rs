// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.INIT: is this a platform on which the module can work?
//!
//! The checks come in the order of the real module. Where its exact list of required MSR and CPUID
//! bits is not public knowledge, a short list of what every TDX platform has stands in for it.

use crate::addr::{self, KeyLayout};
use crate::call::{Answer, Call};
use crate::locks::Mode;
use crate::profile::NO_SUBLEAF;
use crate::snapshot::Snapshot;
use crate::state::SysState;
use crate::{CpuidRegs, MemRange, Operand, Status};

/// Most KeyIDs the key ownership table has room for.
const MAX_KEYS: u32 = 2048;
/// Most convertible memory ranges that firmware may report.
const MAX_CMRS: usize = 32;

const ARCH_CAPABILITIES: u32 = 0x10a;
const MISC_ENABLE: u32 = 0x1a0;
const MTRRCAP: u32 = 0xfe;
const KEYID_PARTITIONING: u32 = 0x87;
const TME_CAPABILITY: u32 = 0x981;
const TME_ACTIVATE: u32 = 0x982;
const WBINVDP: u32 = 0x98;
const WBNOINVDP: u32 = 0x99;

/// (MSR, bits that must be 1, bits that must be 0), in order.
const REQUIRED_MSRS: [(u32, u64, u64); 4] = [
    // Not vulnerable to Meltdown, MDS, TAA and the like; has BCh and BDh.
    (
        ARCH_CAPABILITIES,
        1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8 | 3 << 10 | 1 << 21,
        1 << 2,
    ),
    // Legacy xAPIC is disabled.
    (0xbd, 1, 0),
    // Energy filtering is on.
    (0xbc, 1, 0),
    // Full-width counter writes.
    (0x345, 1 << 13, 0),
];

/// (leaf, subleaf, bits of EAX, EBX, ECX, EDX that must be 1), in order.
const REQUIRED_CPUID: [(u32, u32, [u32; 4]); 4] = [
    // VMX, x2APIC, AES, XSAVE, RDRAND; self-snoop.
    (
        1,
        0,
        [
            0,
            0,
            1 << 5 | 1 << 21 | 1 << 25 | 1 << 26 | 1 << 30,
            1 << 27,
        ],
    ),
    // FSGSBASE, SMEP, RDSEED, SMAP, CLFLUSHOPT; TME, MOVDIR64B; ARCH_CAPABILITIES.
    (
        7,
        0,
        [
            0,
            1 | 1 << 7 | 1 << 18 | 1 << 20 | 1 << 23,
            1 << 13 | 1 << 28,
            1 << 29,
        ],
    ),
    // XSAVEOPT, XSAVEC, XSAVES.
    (0xd, 1, [0b1011, 0, 0, 0]),
    // SYSCALL, NX, 1 GB pages, long mode.
    (
        0x8000_0001,
        0,
        [0, 0, 0, 1 << 11 | 1 << 20 | 1 << 26 | 1 << 29],
    ),
];

/// (VMX capability MSR, bits that must be 1), in order.
const REQUIRED_VMX: [(u32, u64); 3] = [
    // The TRUE capability MSRs exist.
    (0x480, 1 << 55),
    // EPT is allowed.
    (0x48b, 1 << 33),
    // EPT with 4 levels in write-back memory.
    (0x48c, 1 << 6 | 1 << 14),
];

/// Lowest numbers that CPUID must give as its highest base and extended leaf.
const CPUID_LIMITS: [(u32, u32); 2] = [(0, 0x1f), (0x8000_0000, 0x8000_0008)];

/// TDH.SYS.INIT.
pub(crate) fn init(call: &mut Call<'_>) -> Answer {
    let attributes = std::mem::take(&mut call.regs.rcx);
    clear_outputs(call);
    let _global = call.lock_global(Mode::Exclusive)?;
    if attributes != 0 {
        return Err(Status::OPERAND_INVALID.operand(Operand::Rcx));
    }
    if call.state().sys != SysState::InitPending {
        return Err(Status::SYS_INIT_NOT_PENDING);
    }
    check_msrs(call)?;
    check_cpuid_limit(call)?;
    check_cpuid(call)?;
    check_vmx(call)?;
    check_tme(call)?;
    let keys = key_layout(call)?;
    let cmrs = call.platform.cmrs();
    check_cmrs(&cmrs, keys)?;
    check_smrrs(call, &cmrs)?;
    call.platform
        .random(call.lp)
        .ok_or(Status::RND_NO_ENTROPY)?;

    let snapshot = Snapshot::take(call.platform, call.lp, native_cpuid_leaves(call));
    let mut state = call.state();
    state.keys = keys;
    state.snapshot = snapshot;
    state.sys = SysState::InitDone;
    Ok(())
}

fn clear_outputs(call: &mut Call<'_>) {
    call.regs.rdx = 0;
    call.regs.r8 = 0;
    call.regs.r9 = 0;
    call.regs.r10 = 0;
}

/// CPUID leaves whose native values the metadata needs.
fn native_cpuid_leaves(call: &Call<'_>) -> impl Iterator<Item = (u32, u32)> {
    let rows = call.module.facts().cpuid_config.iter();
    let configurable = rows.map(|row| match row.subleaf {
        NO_SUBLEAF => (row.leaf, 0),
        subleaf => (row.leaf, subleaf),
    });
    configurable.chain(crate::cpuid_values::native_leaves())
}

fn msr(call: &Call<'_>, index: u32) -> u64 {
    call.platform.msr(call.lp, index)
}

fn check_msrs(call: &Call<'_>) -> Answer {
    for (index, ones, zeroes) in REQUIRED_MSRS {
        let value = msr(call, index);
        if value & ones != ones || value & zeroes != 0 {
            return Err(Status::INCORRECT_MSR_VALUE.with(index));
        }
    }
    Ok(())
}

/// Refuses a processor whose CPUID is limited to the leaves that an old system expects.
pub(crate) fn check_cpuid_limit(call: &Call<'_>) -> Answer {
    if msr(call, MISC_ENABLE) >> 22 & 1 != 0 {
        return Err(Status::LIMIT_CPUID_MAXVAL_SET);
    }
    Ok(())
}

fn check_cpuid(call: &mut Call<'_>) -> Answer {
    for (leaf, least) in CPUID_LIMITS {
        if call.platform.cpuid(call.lp, leaf, 0).eax < least {
            return Err(Status::CPUID_LEAF_NOT_SUPPORTED.with(least));
        }
    }
    for (leaf, subleaf, ones) in REQUIRED_CPUID {
        let value = registers(call.platform.cpuid(call.lp, leaf, subleaf));
        if (0..4).any(|n| value[n] & ones[n] != ones[n]) {
            report_cpuid(call, leaf, subleaf, ones, value);
            return Err(Status::INCORRECT_CPUID_VALUE);
        }
    }
    let topology = |subleaf| call.platform.cpuid(call.lp, 0x1f, subleaf).ecx;
    if !topology_is_well_formed(topology) {
        return Err(Status::CPUID_LEAF_1F_FORMAT_UNRECOGNIZED);
    }
    Ok(())
}

/// EAX, EBX, ECX, EDX.
pub(crate) fn registers(regs: CpuidRegs) -> [u32; 4] {
    [regs.eax, regs.ebx, regs.ecx, regs.edx]
}

fn report_cpuid(call: &mut Call<'_>, leaf: u32, subleaf: u32, mask: [u32; 4], value: [u32; 4]) {
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    call.regs.rcx = pair(leaf, subleaf);
    call.regs.rdx = pair(mask[0], mask[1]);
    call.regs.r8 = pair(mask[2], mask[3]);
    call.regs.r9 = pair(value[0], value[1]);
    call.regs.r10 = pair(value[2], value[3]);
}

/// Whether CPUID leaf 1Fh describes the levels of the topology as the module expects them: threads
/// first, then cores, then what is above, and nothing after the last. `level` gives ECX of a subleaf.
pub(crate) fn topology_is_well_formed(level: impl Fn(u32) -> u32) -> bool {
    let mut last_type = 0;
    let mut ended = false;
    let mut has_cores = false;
    for subleaf in 0..6 {
        let ecx = level(subleaf);
        let level_type = ecx >> 8 & 0xff;
        if ended && level_type != 0 {
            return false;
        }
        if level_type == 0 {
            ended = true;
            continue;
        }
        let in_order =
            level_type > last_type && level_type <= 5 && (level_type > 1 || subleaf == 0);
        if !in_order || ecx & 0xff != subleaf {
            return false;
        }
        has_cores |= level_type == 2;
        last_type = level_type;
    }
    has_cores
}

fn check_vmx(call: &Call<'_>) -> Answer {
    for (index, ones) in REQUIRED_VMX {
        if msr(call, index) & ones != ones {
            return Err(Status::INCORRECT_MSR_VALUE.with(index));
        }
    }
    Ok(())
}

fn check_tme(call: &Call<'_>) -> Answer {
    let activate = msr(call, TME_ACTIVATE);
    let supported = msr(call, TME_CAPABILITY) & 0xf;
    if activate & 1 == 0 {
        return Err(Status::INCORRECT_MSR_VALUE.with(TME_ACTIVATE));
    }
    if supported == 0 {
        return Err(Status::INCORRECT_MSR_VALUE.with(TME_CAPABILITY));
    }
    if activate >> 48 & supported == 0 {
        return Err(Status::INCORRECT_MSR_VALUE.with(TME_ACTIVATE));
    }
    Ok(())
}

fn key_layout(call: &Call<'_>) -> Result<KeyLayout, Status> {
    let partitioning = msr(call, KEYID_PARTITIONING);
    let (shared, private) = (partitioning as u32, (partitioning >> 32) as u32);
    let private_max = shared.saturating_add(private);
    if private_max >= MAX_KEYS {
        return Err(Status::NUM_ACTIVATED_HKIDS_NOT_SUPPORTED.with(MAX_KEYS));
    }
    if msr(call, WBINVDP) != msr(call, WBNOINVDP) {
        return Err(Status::INCORRECT_MSR_VALUE.with(WBNOINVDP));
    }
    let bits = (msr(call, TME_ACTIVATE) >> 32 & 0xf) as u32;
    let width = match call.module.facts().key_field_follows_maxphyaddr() {
        true => call.platform.cpuid(call.lp, 0x8000_0008, 0).eax & 0xff,
        false => 52,
    };
    let start_bit = width.clamp(bits, 52) - bits;
    Ok(KeyLayout {
        start_bit,
        bits,
        private_min: shared + 1,
        private_max,
    })
}

fn check_cmrs(cmrs: &[MemRange], keys: KeyLayout) -> Answer {
    let mut last_end = 0;
    let mut sane = cmrs.len() <= MAX_CMRS;
    for cmr in cmrs.iter().filter(|cmr| cmr.size != 0) {
        let aligned = (cmr.base | cmr.size).is_multiple_of(addr::PAGE_4K);
        let Some(range) = addr::span(cmr.base, cmr.size) else {
            return Err(Status::CMR_LIST_INVALID);
        };
        sane &= aligned && range.start >= last_end && keys.is_plain(range.end - 1);
        last_end = range.end;
    }
    if sane {
        Ok(())
    } else {
        Err(Status::CMR_LIST_INVALID)
    }
}

/// System management memory must be locked and must not be convertible.
fn check_smrrs(call: &Call<'_>, cmrs: &[MemRange]) -> Answer {
    let capabilities = msr(call, MTRRCAP);
    if capabilities >> 11 & 1 == 0 {
        return Err(Status::SMRR_NOT_SUPPORTED);
    }
    if capabilities >> 14 & 1 == 0 {
        return Err(Status::SMRR_LOCK_NOT_SUPPORTED);
    }
    check_smrr(0, msr(call, 0x1f2), msr(call, 0x1f3), cmrs)?;
    if capabilities >> 13 & 1 != 0 {
        check_smrr(1, msr(call, 0x1f6), msr(call, 0x1f7), cmrs)?;
    }
    Ok(())
}

fn check_smrr(index: u32, base: u64, mask: u64, cmrs: &[MemRange]) -> Answer {
    if mask >> 10 & 1 == 0 {
        return Err(Status::SMRR_NOT_LOCKED.with(index));
    }
    if mask >> 11 & 1 == 0 {
        return Ok(());
    }
    let address_bits = mask & 0xffff_f000;
    let size = (1 << 32) - address_bits;
    if address_bits == 0 || !size.is_power_of_two() {
        return Err(Status::INVALID_SMRR_CONFIGURATION.with(index));
    }
    let smrr = (base & address_bits, size);
    for (cmr_index, cmr) in cmrs.iter().enumerate() {
        if addr::overlap(smrr, (cmr.base, cmr.size)) {
            return Err(Status::SMRR_OVERLAPS_CMR.with(index | (cmr_index as u32) << 8));
        }
    }
    Ok(())
}
