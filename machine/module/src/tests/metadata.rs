// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.RD.

use std::collections::{BTreeMap, BTreeSet};

use super::{Bench, PATTERN, regs};
use crate::leaf::number;
use crate::{ModuleConfig, Regs};

const NO_FIELD: u64 = u64::MAX;
const FEATURES0: u64 = 0x0a00_0003_0000_0008;
const UNKNOWN: u64 = 0xc000_0c00_0000_0000;

fn read(bench: &Bench, id: u64) -> Regs {
    bench.call(0, regs(number::SYS_RD, PATTERN, id, PATTERN))
}

fn value(bench: &Bench, id: u64) -> u64 {
    let got = read(bench, id);
    assert_eq!(got.rax, 0, "field {id:x}");
    got.r8
}

/// All ids in order of enumeration.
fn walk(bench: &Bench) -> Vec<u64> {
    let mut ids = vec![read(bench, NO_FIELD).rdx];
    loop {
        let got = read(bench, ids[ids.len() - 1]);
        assert_eq!(got.rax, 0);
        if got.rdx == NO_FIELD {
            return ids;
        }
        ids.push(got.rdx);
    }
}

#[test]
fn the_processor_must_be_initialised() {
    let bench = Bench::baseline();
    bench.sys_init();
    let input = regs(number::SYS_RD, PATTERN, FEATURES0, PATTERN);
    let expected = Regs {
        rax: 0xc000_0502_0000_0000,
        rdx: NO_FIELD,
        r8: 0,
        ..input
    };
    assert_eq!(bench.call(0, input), expected);
    bench.lp_init_all();
    assert_eq!(bench.call(0, input).rax, 0);
}

#[test]
fn all_ones_ask_for_the_first_field_whatever_the_context_says() {
    let bench = Bench::baseline().initialized();
    for id in [NO_FIELD, NO_FIELD ^ 7 << 52] {
        let got = read(&bench, id);
        assert_eq!(
            (got.rax, got.rdx, got.r8),
            (0x0000_0c0b_0000_0000, 0x0000_0002_0000_0000, 0)
        );
    }
}

#[test]
fn enumeration_visits_every_field_once_and_ends() {
    let ids = walk(&Bench::baseline().initialized());
    let distinct: BTreeSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len());
    for id in [
        FEATURES0,
        0x9900_0001_0000_0008,
        0x9000_0003_0000_009f,
        0x9900_0003_0000_053f,
    ] {
        assert!(ids.contains(&id), "{id:x}");
    }
    let old = walk(&Bench::v1_5_01().initialized());
    assert_eq!(
        ids.len(),
        old.len() + 1,
        "1.5.01 lacks MAX_VCPUS_PER_TD only"
    );
}

#[test]
fn only_class_and_field_code_select_a_field() {
    let bench = Bench::baseline().initialized();
    let expected = value(&bench, FEATURES0);
    for ignored in [1 << 32, 2 << 32, 1 << 50, 1 << 51, 5 << 52, 1 << 63] {
        assert_eq!(
            value(&bench, FEATURES0 ^ ignored),
            expected,
            "bits {ignored:x}"
        );
    }
    for reserved in [
        1 << 24,
        1 << 31,
        1 << 34,
        1 << 46,
        1 << 47,
        1 << 49,
        1 << 55,
        1 << 62,
    ] {
        let got = read(&bench, FEATURES0 ^ reserved);
        assert_eq!(
            (got.rax, got.rdx, got.r8),
            (UNKNOWN, NO_FIELD, 0),
            "bits {reserved:x}"
        );
    }
}

#[test]
fn arrays_end_at_their_last_slot() {
    let bench = Bench::baseline().initialized();
    for (first, slots) in [(0x9900_0003_0000_0400, 32), (0x9900_0003_0000_0500, 64)] {
        assert_eq!(read(&bench, first + slots - 1).rax, 0);
        assert_eq!(read(&bench, first + slots).rax, UNKNOWN);
    }
    assert_eq!(
        value(&bench, 0x9900_0003_0000_0400 + 28),
        NO_FIELD,
        "leaf of an unused slot"
    );
    assert_eq!(
        value(&bench, 0x9900_0003_0000_0500 + 56),
        0,
        "value of an unused slot"
    );
}

#[test]
fn the_baseline_reports_what_linux_reads() {
    let bench = Bench::baseline().initialized();
    let expected = [
        (0x0800_0001_0000_0003, 5),
        (0x0800_0001_0000_0004, 1),
        (0x0800_0001_0000_0005, 25),
        (FEATURES0, 0x0020_0000_001f_0fbf),
        (0x9100_0001_0000_0008, 64),
        (0x9100_0001_0000_0009, 16),
        (0x9100_0001_0000_0010, 16),
        (0x9100_0001_0000_0011, 16),
        (0x9100_0001_0000_0012, 16),
        (0x9800_0001_0000_0000, 4096),
        (0x9800_0001_0000_0100, 24576),
        (0x9800_0001_0000_0200, 24576),
        (0x1900_0003_0000_0000, 0x8000_0000_7001_0001),
        (0x1900_0003_0000_0001, 0),
        (0x1900_0003_0000_0002, 0x6_dbe7),
        (0x1900_0003_0000_0003, 3),
        (0x9900_0001_0000_0004, 28),
        (0x9900_0001_0000_0008, 576),
        (0x8900_0001_0000_0000, 1),
        (0x9000_0001_0000_0000, 32),
        (0x9000_0003_0000_0080, 0x10_0000),
        (0x9000_0003_0000_0101, 4 << 40),
        (0x9000_0003_0000_0082, 0),
        (0x0000_0002_0000_0000, 2),
        (0x0000_0002_0000_0002, 0x8_06f8),
        (0x0000_0002_0000_0003, 0),
    ];
    for (id, expected) in expected {
        assert_eq!(value(&bench, id), expected, "field {id:x}");
    }
}

#[test]
fn configurable_cpuid_bits_follow_the_native_ones_where_only_allowed() {
    let bench = Bench::baseline().initialized();
    assert_eq!(value(&bench, 0x9900_0003_0000_0400), 0xffff_ffff_0000_0001);
    assert_eq!(value(&bench, 0x9900_0003_0000_0500), 0x00ff_0000_0fff_3fff);
    let allowed = u64::from(0xb844_5080_u32 & 0xbfeb_fbff) << 32 | (0x3104_4d88 & 0x7ffe_fbff);
    assert_eq!(value(&bench, 0x9900_0003_0000_0501), allowed);
    assert_eq!(value(&bench, 0x9900_0003_0000_0409), 0xffff_ffff_8000_0008);
    assert_eq!(value(&bench, 0x9900_0003_0000_0512), 0x200 << 32 | 0xff);
}

#[test]
fn release_1_5_01_does_not_know_what_came_later() {
    let bench = Bench::v1_5_01().initialized();
    assert_eq!(read(&bench, 0x9900_0001_0000_0008).rax, UNKNOWN);
    assert_eq!(value(&bench, FEATURES0), 0xf_0fbf);
    assert_eq!(value(&bench, 0x9900_0001_0000_0004), 12);
}

#[test]
fn hostile_metadata_replaces_values_and_removes_fields() {
    let config = ModuleConfig {
        fields: BTreeMap::from([(0x9100_0001_0000_0008, 0), (0x9900_0003_0000_0402, 7)]),
        absent_fields: BTreeSet::from([FEATURES0, 0x9000_0003_0000_0085]),
        ..ModuleConfig::default()
    };
    let bench = Bench::new(config).initialized();
    assert_eq!(value(&bench, 0x9100_0003_0000_0008), 0);
    assert_eq!(value(&bench, 0x9900_0003_0000_0402), 7);
    assert_eq!(value(&bench, 0x9900_0003_0000_0403), 2 << 32 | 4);
    assert_eq!(read(&bench, FEATURES0).rax, UNKNOWN);
    assert_eq!(
        read(&bench, 0x9000_0003_0000_0080).rax,
        UNKNOWN,
        "the whole array is gone"
    );
    assert!(!walk(&bench).contains(&FEATURES0));
}
