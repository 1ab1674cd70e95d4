// SPDX-License-Identifier: GPL-2.0

//! CPUID as a TD sees it: the fields CPUID_VALUES of TDH.MNG.RD.
//!
//! A virtual value is what the processor has, cut down to what is the same for all TDs, plus what
//! XFAM and ATTRIBUTES switch on, plus what the owner configured.

use std::ops::Range;

use crate::Status;
use crate::fields::NO_FIELD;
use crate::profile::{Facts, NO_SUBLEAF};
use crate::snapshot::Snapshot;
use crate::state::State;
use crate::td_params::{TdParams, attributes, config_flags};

/// Class of the fields.
const CLASS: u64 = 0x14 << 56;
/// A full id, without the number of the leaf.
const FULL_ID: u64 = 0x9410_0003_0000_0000;
/// Bits of the field code that are used.
const CODE: u64 = 0x1_ffff;
/// Subleaf bits of the code for a leaf that has none.
const NO_SUBLEAF_CODE: u64 = 0xff;

/// Leaves that a TD's owner cannot configure, in the order in which MNG.RD enumerates them after
/// the configurable ones: the leaf and its subleaves.
const OTHER_LEAVES: [(u32, Range<u32>); 26] = [
    (0, NONE),
    (3, NONE),
    (4, 4..5),
    (6, NONE),
    (7, 2..3),
    (8, NONE),
    (0xd, 0..0x13),
    (0xe, NONE),
    (0x11, NONE),
    (0x12, NONE),
    (0x13, NONE),
    (0x14, 0..2),
    (0x15, NONE),
    (0x19, NONE),
    (0x1d, 0..2),
    (0x1e, NONE),
    (0x1f, 0..6),
    (0x20, NONE),
    (0x21, 0..1),
    (0x8000_0000, NONE),
    (0x8000_0001, NONE),
    (0x8000_0006, NONE),
    (0x8000_0007, NONE),
    (0x8000_0008, NONE),
    (0x22, NONE),
    (0x23, 0..4),
];

/// The subleaves of a leaf that has none.
const NONE: Range<u32> = NO_SUBLEAF - 1..NO_SUBLEAF;

/// [`OTHER_LEAVES`] one by one.
fn other_leaves() -> impl Iterator<Item = (u32, u32)> {
    let leaves = OTHER_LEAVES.into_iter();
    leaves.flat_map(|(leaf, subleaves)| {
        let none = subleaves == NONE;
        subleaves.map(move |n| (leaf, if none { NO_SUBLEAF } else { n }))
    })
}

/// Leaves and subleaves whose native values must be known.
pub(crate) fn native_leaves() -> impl Iterator<Item = (u32, u32)> {
    other_leaves().map(|(leaf, subleaf)| (leaf, if subleaf == NO_SUBLEAF { 0 } else { subleaf }))
}

/// XFAM bits that features depend on.
mod xfam {
    pub(super) const AVX: u64 = 1 << 2;
    pub(super) const AVX512: u64 = 7 << 5;
    pub(super) const PT: u64 = 1 << 8;
    pub(super) const PKRU: u64 = 1 << 9;
    pub(super) const CET: u64 = 3 << 11;
    pub(super) const UINTR: u64 = 1 << 14;
    pub(super) const LBR: u64 = 1 << 15;
    pub(super) const AMX: u64 = 3 << 17;
}

/// Leaves that later releases answer with zero although they are not in the table.
const ALWAYS_ZERO: [u32; 10] = [
    0x9,
    0xc,
    0xf,
    0x10,
    0x16,
    0x17,
    0x1b,
    0x8000_0003,
    0x8000_0004,
    0x8000_0005,
];

/// ATTRIBUTES bit of supervisor protection keys.
const PKS: u64 = 1 << 30;

/// Whether a field key names a CPUID value.
pub(crate) fn is_cpuid(key: u64) -> bool {
    key & 0x3f << 56 == CLASS
}

/// The code of a leaf's first half.
fn code(leaf: u32, subleaf: u32) -> u64 {
    let subleaf = match subleaf {
        NO_SUBLEAF => NO_SUBLEAF_CODE,
        subleaf => u64::from(subleaf & 0x7f),
    };
    u64::from(leaf >> 31) << 16 | u64::from(leaf & 0x7f) << 9 | subleaf << 1
}

/// Reads half a CPUID value; returns it and the id of the next one.
pub(crate) fn read(
    facts: &Facts,
    state: &mut State,
    tdr: u64,
    key: u64,
) -> Result<(u64, u64), Status> {
    let wanted = key & 0xff_ffff;
    if wanted & !CODE != 0 {
        return Err(Status::METADATA_FIELD_ID_INCORRECT);
    }
    let leaves = enumerated(facts);
    let matches = |&(leaf, subleaf): &(u32, u32)| {
        let same_leaf = code(leaf, 0) & !0x1ff == wanted & !0x1ff;
        same_leaf && (subleaf == NO_SUBLEAF || code(leaf, subleaf) == wanted & !1)
    };
    let Some(position) = leaves.iter().position(matches) else {
        return unknown(facts, wanted);
    };
    let (leaf, subleaf) = leaves[position];
    if !is_readable(facts, leaf) {
        return Err(Status::METADATA_FIELD_NOT_READABLE);
    }
    let params = &state.tables.td(tdr).params;
    let value = virtual_value(facts, &state.snapshot, params, leaf, subleaf);
    let half = (wanted & 1) as usize * 2;
    let low_high = u64::from(value[half]) | u64::from(value[half + 1]) << 32;
    let next = match half {
        0 => FULL_ID | wanted | 1,
        _ => {
            let mut rest = leaves.iter().skip(position + 1);
            let next = rest.find(|&&(leaf, _)| is_readable(facts, leaf));
            next.map_or(NO_FIELD, |&(leaf, subleaf)| FULL_ID | code(leaf, subleaf))
        }
    };
    Ok((low_high, next))
}

/// All leaves and subleaves in the order in which MNG.RD enumerates them.
fn enumerated(facts: &Facts) -> Vec<(u32, u32)> {
    let configurable = facts.cpuid_config.iter().map(|row| (row.leaf, row.subleaf));
    let mut leaves: Vec<(u32, u32)> = configurable.collect();
    if facts.cpuid_follows_leaf_order() {
        leaves.retain(|row| !OUT_OF_ORDER.contains(row));
    }
    for leaf in other_leaves() {
        if !leaves.contains(&leaf) {
            leaves.push(leaf);
        }
    }
    leaves
}

/// Configurable leaves that old releases enumerate among the others.
const OUT_OF_ORDER: [(u32, u32); 2] = [(7, 2), (0x23, 0)];

fn is_readable(facts: &Facts, leaf: u32) -> bool {
    leaf != 0x1f || !facts.unknown_cpuid_is_incorrect()
}

/// A leaf that is not in the table.
fn unknown(facts: &Facts, wanted: u64) -> Result<(u64, u64), Status> {
    if facts.unknown_cpuid_is_incorrect() {
        return Err(Status::METADATA_FIELD_ID_INCORRECT);
    }
    let mut zero = ALWAYS_ZERO.iter();
    if zero.any(|&leaf| code(leaf, 0) & !0x1ff == wanted & !0x1ff) {
        Ok((0, NO_FIELD))
    } else {
        Err(Status::METADATA_FIELD_NOT_READABLE)
    }
}

/// EAX, EBX, ECX and EDX as the TD sees them.
fn virtual_value(
    facts: &Facts,
    snapshot: &Snapshot,
    params: &TdParams,
    leaf: u32,
    subleaf: u32,
) -> [u32; 4] {
    let native = snapshot.cpuid_row(leaf, subleaf);
    let fixed = fixed_value(snapshot, params, leaf, subleaf, native);
    let rows = facts.cpuid_config.iter().zip(&params.cpuid);
    let mut rows = rows.filter(|(row, _)| (row.leaf, row.subleaf) == (leaf, subleaf));
    let Some((row, &configured)) = rows.next() else {
        return fixed;
    };
    let mut value = [0, 1, 2, 3].map(|n| fixed[n] & !row.allow[n] | configured[n]);
    match leaf {
        1 if configured[0] != 0 => value[0] = configured[0],
        0x1f if params.configures_topology(facts) => value = configured,
        0x8000_0008 if params.config_flags & config_flags::MAXPA_VIRT == 0 => value[0] = fixed[0],
        0x8000_0008 => value[0] = fixed[0] & !0xff | configured[0],
        _ => {}
    }
    value
}

/// The part of a virtual value that the owner does not configure.
fn fixed_value(
    snapshot: &Snapshot,
    params: &TdParams,
    leaf: u32,
    subleaf: u32,
    native: [u32; 4],
) -> [u32; 4] {
    let [eax, ebx, ecx, edx] = native;
    let has = |bits: u64| params.xfam & bits == bits;
    let when = |on: bool, bits: u32| if on { bits } else { 0 };
    match (leaf, subleaf) {
        (0, _) => [0x23, ebx, ecx, edx],
        (1, _) => {
            let allowed = 0x46fa_a217 | when(has(xfam::AVX), 1 << 12);
            [eax, 0x800, 1 << 31 | ecx & allowed, edx & 0x07a9_fbff]
        }
        (4, 0..=3) => [0, 0x3f, 0, 0],
        (7, 0) => extended_features(params, native),
        (7, 2) => [0, 0, 0, edx & 0x17],
        (0xa | 0x23, _) if params.attributes & attributes::PERFMON != 0 => native,
        (0xd, 0) => {
            let xcr0 = params.xfam & (u64::from(eax) | u64::from(edx) << 32);
            [xcr0 as u32, 0, ecx, (xcr0 >> 32) as u32]
        }
        (0xd, 1) => {
            let xss = params.xfam & (u64::from(ecx) | u64::from(edx) << 32);
            let features = 0xf | when(has(xfam::AMX), 1 << 4);
            [eax & features, 0, xss as u32, (xss >> 32) as u32]
        }
        (0xd, n) if n < 64 && params.xfam >> n & 1 != 0 => native,
        (0x14, _) if has(xfam::PT) => native,
        (0x15, _) => [1, params.tsc_frequency.into(), 25_000_000, 0],
        (0x1c, _) if has(xfam::LBR) => native,
        (0x1d | 0x1e, _) if has(xfam::AMX) => native,
        (0x1f, _) => native,
        (0x21, _) => [0, 0x6574_6e49, 0x2020_2020, 0x5844_546c],
        (0x8000_0000, _) => [0x8000_0008, 0, 0, 0],
        (0x8000_0001, _) => [0, 0, ecx & 0x121, edx & 0x2c10_0000],
        (0x8000_0006, _) => [0, 0, ecx, 0],
        (0x8000_0007, _) => [0, 0, 0, edx & 1 << 8],
        (0x8000_0008, _) => {
            let width = snapshot.cpuid(0x8000_0008, 0).eax & 0xff;
            [48 << 8 | width, 0, 0, 0]
        }
        _ => [0; 4],
    }
}

/// CPUID(7, 0).
fn extended_features(params: &TdParams, native: [u32; 4]) -> [u32; 4] {
    let [eax, ebx, ecx, edx] = native;
    let has = |bits: u64| params.xfam & bits == bits;
    let when = |on: bool, bits: u32| if on { bits } else { 0 };
    let ebx_allowed = 0x2194_24c1 | when(has(xfam::AVX), 1 << 5);
    let ecx_allowed = 0x1900_0000
        | when(has(xfam::AVX512), 1 << 1)
        | when(has(xfam::PKRU), 1 << 3)
        | when(has(xfam::CET), 1 << 7)
        | when(params.attributes & PKS != 0, 1 << 31);
    let edx_allowed = 0xfc00_0400
        | when(has(xfam::UINTR), 1 << 5)
        | when(has(xfam::CET), 1 << 20)
        | when(has(xfam::AVX512), 1 << 23)
        | when(has(xfam::AMX), 1 << 22 | 1 << 24 | 1 << 25);
    [eax, ebx & ebx_allowed, ecx & ecx_allowed, edx & edx_allowed]
}
