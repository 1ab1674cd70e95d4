// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.CONFIG: operands, and a case for every rule about TDMR_INFO.

use super::{Bench, GB, HKID, Info, LIST, two_tdmrs};
use crate::leaf::number;
use crate::state::KeyOwner;
use crate::{MemRange, ModuleConfig};

const BAD_RCX: u64 = 0xc000_0100_0000_0001;
const BAD_RDX: u64 = 0xc000_0100_0000_0002;
const BAD_R8: u64 = 0xc000_0100_0000_0008;
const NOT_PENDING: u64 = 0xc000_050c_0000_0000;

const INVALID_TDMR: u64 = 0xc000_0a00_0000_0000;
const NON_ORDERED_TDMR: u64 = 0xc000_0a01_0000_0000;
const TDMR_OUTSIDE_CMRS: u64 = 0xc000_0a02_0000_0000;
const INVALID_PAMT: u64 = 0xc000_0a10_0000_0000;
const PAMT_OUTSIDE_CMRS: u64 = 0xc000_0a11_0000_0000;
const PAMT_OVERLAP: u64 = 0xc000_0a12_0000_0000;
const INVALID_RESERVED: u64 = 0xc000_0a20_0000_0000;
const NON_ORDERED_RESERVED: u64 = 0xc000_0a21_0000_0000;

fn bench() -> Bench {
    Bench::baseline().initialized()
}

/// The verdict on a list; the state stays as it was when it is refused.
fn verdict(infos: &[Info]) -> u64 {
    let bench = bench();
    let status = bench.config(infos);
    let next = if status == 0 { NOT_PENDING } else { status };
    assert_eq!(bench.config(infos), next, "the same call once more");
    status
}

/// The two good TDMRs after a change.
fn changed(change: impl FnOnce(&mut Vec<Info>)) -> u64 {
    let mut infos = two_tdmrs();
    change(&mut infos);
    verdict(&infos)
}

#[test]
fn a_good_list_is_accepted_once() {
    assert_eq!(verdict(&two_tdmrs()), 0);
}

#[test]
fn every_processor_must_be_initialised() {
    let bench = Bench::baseline();
    assert_eq!(bench.config(&two_tdmrs()), NOT_PENDING);
    bench.sys_init();
    for lp in 0..3 {
        assert_eq!(bench.rax_on(lp, number::SYS_LP_INIT, 0, 0, 0), 0);
    }
    assert_eq!(bench.config(&two_tdmrs()), NOT_PENDING);
    assert_eq!(bench.rax_on(3, number::SYS_LP_INIT, 0, 0, 0), 0);
    assert_eq!(bench.config(&two_tdmrs()), 0);
}

#[test]
fn a_leaf_that_needs_the_global_lock_is_busy_meanwhile() {
    let bench = bench();
    let _ran = bench.meanwhile(|bench| {
        for leaf in [
            number::SYS_INIT,
            number::SYS_LP_INIT,
            number::SYS_CONFIG,
            31,
            53,
        ] {
            assert_eq!(
                bench.rax_on(1, leaf, 0, 0, 0),
                0x8000_0202_0000_0000,
                "leaf {leaf}"
            );
        }
        assert_eq!(
            bench.rax_on(1, number::SYS_RD, 0, 0, 0),
            0,
            "no lock needed"
        );
    });
    assert_eq!(bench.config(&two_tdmrs()), 0);
}

#[test]
fn the_list_must_be_ordinary_memory() {
    let bench = bench();
    bench.write_list(&two_tdmrs());
    let config = |rcx| bench.rax(number::SYS_CONFIG, rcx, 2, HKID);
    assert_eq!(config(LIST + 256), BAD_RCX, "alignment");
    assert_eq!(config(LIST | 1 << 52), BAD_RCX, "too high");
    assert_eq!(config(0x7e00_0000), BAD_RCX, "memory of the module");
    assert_eq!(config(LIST | 16 << 46), BAD_RCX, "private KeyID");
    assert_eq!(config(LIST | 15 << 46), 0, "shared KeyID");
}

#[test]
fn each_entry_must_be_ordinary_memory() {
    for pointer in [LIST + 0x1100, 0x7e00_0000, LIST | 16 << 46, 1 << 52] {
        let bench = bench();
        bench.write_list(&two_tdmrs());
        bench.machine.put(LIST + 8, &u64::to_le_bytes(pointer));
        assert_eq!(
            bench.rax(number::SYS_CONFIG, LIST, 2, HKID),
            BAD_RCX,
            "{pointer:x}"
        );
    }
}

#[test]
fn the_number_of_entries_is_limited() {
    let bench = bench();
    bench.write_list(&two_tdmrs());
    for count in [0, 65, u64::MAX] {
        assert_eq!(bench.rax(number::SYS_CONFIG, LIST, count, HKID), BAD_RDX);
    }
    let few = ModuleConfig {
        max_tdmrs: 1,
        ..ModuleConfig::default()
    };
    let bench = Bench::new(few).initialized();
    assert_eq!(bench.config(&two_tdmrs()), BAD_RDX);
    assert_eq!(bench.config(&two_tdmrs()[..1]), 0);
}

#[test]
fn the_global_keyid_must_be_private() {
    let bench = bench();
    bench.write_list(&two_tdmrs());
    for r8 in [0, 15, 64, 0x1_0010, 0x1_0000_0010] {
        assert_eq!(bench.rax(number::SYS_CONFIG, LIST, 2, r8), BAD_R8, "{r8:x}");
    }
    assert_eq!(bench.rax(number::SYS_CONFIG, LIST, 2, 63), 0);
}

#[test]
fn a_failed_call_reserves_the_keyid_in_1_5_01_only() {
    let bad = [Info::new(4 * GB, 0, 0x1000_0000)];
    for (bench, expected) in [
        (Bench::baseline(), None),
        (Bench::v1_5_01(), Some(&KeyOwner::Reserved)),
    ] {
        let bench = bench.initialized();
        assert_eq!(bench.config(&bad), INVALID_TDMR);
        assert_eq!(bench.module.state().tables.kot.get(&16), expected);
    }
}

#[test]
fn tdmrs_are_whole_gigabytes_below_the_keyid_bits() {
    assert_eq!(changed(|i| i[0].base += 4096), INVALID_TDMR);
    assert_eq!(changed(|i| i[1].size += 4096), INVALID_TDMR | 1);
    assert_eq!(changed(|i| i[0].size = 0), INVALID_TDMR);
    assert_eq!(
        changed(|i| i[1].size = 0_u64.wrapping_sub(GB)),
        INVALID_TDMR | 1,
        "wraps"
    );
    assert_eq!(
        changed(|i| i[1].base = 1 << 46),
        INVALID_TDMR | 1,
        "KeyID bits"
    );
}

#[test]
fn tdmrs_ascend_and_do_not_overlap() {
    assert_eq!(changed(|i| i.swap(0, 1)), NON_ORDERED_TDMR | 1);
    assert_eq!(changed(|i| i[1].base = 4 * GB), NON_ORDERED_TDMR | 1);
    assert_eq!(
        changed(|i| i[1].base = 4 * GB + 4096),
        NON_ORDERED_TDMR | 1,
        "before alignment"
    );
    assert_eq!(changed(|i| i[1].base = 5 * GB), 0, "touching");
}

#[test]
fn reserved_areas_ascend_and_null_ones_come_last() {
    let areas = |areas: &'static [(u64, u64)]| changed(|i| i[1].reserved = areas.to_vec());
    assert_eq!(areas(&[(0x1000, 0x1000), (0x2000, 0x1000)]), 0, "touching");
    assert_eq!(
        areas(&[(0, 0), (0x1000, 0x1000)]),
        NON_ORDERED_RESERVED | 1,
        "null in between"
    );
    assert_eq!(
        areas(&[(0x1000, 0x1000), (0x1000, 0x1000)]),
        NON_ORDERED_RESERVED | 0x101
    );
    assert_eq!(
        areas(&[(0x1000, 0x2000), (0x2000, 0x1000)]),
        NON_ORDERED_RESERVED | 0x101
    );
    assert_eq!(
        areas(&[(0x3000, 0x1000), (0x1000, 0x1000)]),
        NON_ORDERED_RESERVED | 0x101
    );
}

#[test]
fn reserved_areas_are_whole_pages_inside_the_tdmr() {
    let area = |offset, size| changed(|i| i[1].reserved = vec![(offset, size)]);
    assert_eq!(area(0x800, 0x1000), INVALID_RESERVED | 1);
    assert_eq!(area(0, 0x800), INVALID_RESERVED | 1);
    assert_eq!(area(2 * GB, 0x1000), INVALID_RESERVED | 1);
    assert_eq!(area(2 * GB - 0x1000, 0x2000), INVALID_RESERVED | 1);
    assert_eq!(area(!0xfff, 0x2000), INVALID_RESERVED | 1, "wraps");
    assert_eq!(area(2 * GB - 0x1000, 0x1000), 0);
}

#[test]
fn a_pamt_area_is_large_enough_and_aligned() {
    for (slot, level) in [(0, 2), (1, 1), (2, 0)] {
        let status = INVALID_PAMT | 1 | level << 8;
        assert_eq!(
            changed(|i| i[1].pamt[slot].1 -= 0x1000),
            status,
            "too small"
        );
        assert_eq!(
            changed(|i| i[1].pamt[slot].0 += 0x800),
            status,
            "unaligned base"
        );
        assert_eq!(
            changed(|i| i[1].pamt[slot].1 += 0x800),
            status,
            "unaligned size"
        );
        assert_eq!(
            changed(|i| i[1].pamt[slot].0 |= 1 << 46),
            status,
            "KeyID bits"
        );
        assert_eq!(changed(|i| i[1].pamt[slot].0 = !0xfff), status, "wraps");
    }
}

#[test]
fn pamt_entry_sizes_decide_how_large_an_area_must_be() {
    let config = ModuleConfig {
        pamt_entry_size: [32, 16, 16],
        ..ModuleConfig::default()
    };
    let bench = Bench::new(config).initialized();
    assert_eq!(bench.config(&two_tdmrs()[..1]), INVALID_PAMT);
}

#[test]
fn pamt_areas_do_not_overlap() {
    let other =
        |slot: usize, theirs: usize| changed(move |i| i[1].pamt[slot].0 = i[0].pamt[theirs].0);
    assert_eq!(other(2, 2), PAMT_OVERLAP | 1);
    assert_eq!(other(1, 0), PAMT_OVERLAP | 0x101);
    assert_eq!(other(0, 2), PAMT_OVERLAP | 0x201);
    let own =
        |slot: usize, theirs: usize| changed(move |i| i[1].pamt[slot].0 = i[1].pamt[theirs].0);
    assert_eq!(own(1, 2), PAMT_OVERLAP | 0x1_0001, "2M in 4K");
    assert_eq!(own(0, 1), PAMT_OVERLAP | 0x1_0101, "1G in 2M");
}

#[test]
fn a_pamt_lies_in_a_tdmr_only_where_that_is_reserved() {
    assert_eq!(
        changed(|i| i[0].pamt[0].0 = 4 * GB),
        PAMT_OVERLAP | 0x200,
        "its own"
    );
    assert_eq!(
        changed(|i| i[1].pamt[1].0 = 4 * GB),
        PAMT_OVERLAP | 0x101,
        "an earlier one"
    );
    assert_eq!(
        changed(|i| i[0].pamt[2].0 = 7 * GB),
        PAMT_OVERLAP | 0x1_0000,
        "a later one"
    );
    assert_eq!(
        changed(|i| i[1].pamt[1].0 = 6 * GB + 0x10_0000),
        0,
        "reserved"
    );
}

#[test]
fn pamts_lie_in_convertible_memory() {
    for (slot, level) in [(0, 2), (1, 1), (2, 0)] {
        let status = changed(|i| i[1].pamt[slot].0 = 0x8000_0000);
        assert_eq!(status, PAMT_OUTSIDE_CMRS | 1 | level << 8);
    }
    assert_eq!(
        changed(|i| i[0].pamt[2].0 = 0x7cf0_0000),
        PAMT_OUTSIDE_CMRS,
        "in part"
    );
}

#[test]
fn what_is_not_reserved_of_a_tdmr_is_convertible() {
    let low = Info::new(0, GB, 0x6000_0000);
    assert_eq!(verdict(std::slice::from_ref(&low)), TDMR_OUTSIDE_CMRS);
    assert_eq!(verdict(&[low.reserve(0, 0x10_0000)]), 0);
}

#[test]
fn adjacent_cmrs_count_as_one() {
    let cmrs = |gap: u64| {
        let second = 4 * GB + 0x1000_0000 + gap;
        let bench = Bench::baseline().with_machine(|machine| {
            machine.cmrs = vec![
                MemRange {
                    base: 0x10_0000,
                    size: 0x7000_0000,
                },
                MemRange {
                    base: 4 * GB,
                    size: 0x1000_0000,
                },
                MemRange {
                    base: second,
                    size: 8 * GB,
                },
            ];
        });
        bench.initialized().config(&two_tdmrs())
    };
    assert_eq!(cmrs(0), 0);
    assert_eq!(cmrs(0x1000), TDMR_OUTSIDE_CMRS);
}

#[test]
fn a_module_with_few_reserved_areas_reads_no_more() {
    let config = ModuleConfig {
        max_reserved_per_tdmr: 1,
        ..ModuleConfig::default()
    };
    let bench = Bench::new(config).initialized();
    let info = Info::new(4 * GB, GB, 0x1000_0000)
        .reserve(0, 0x1000)
        .reserve(0x2000, 0x1001);
    assert_eq!(bench.config(&[info]), 0);
}
