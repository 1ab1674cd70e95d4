// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.INIT.

use super::{Bench, GB, PATTERN, regs};
use crate::leaf::number;
use crate::{MemRange, Regs};

fn init(bench: &Bench) -> u64 {
    bench.rax(number::SYS_INIT, 0, 0, 0)
}

/// TDH.SYS.INIT on a machine with one MSR changed.
fn init_with_msr(index: u32, value: u64) -> u64 {
    let bench = Bench::baseline();
    bench.machine.set_msr(index, value);
    init(&bench)
}

fn init_with_cmrs(cmrs: &[(u64, u64)]) -> u64 {
    let cmrs = cmrs
        .iter()
        .map(|&(base, size)| MemRange { base, size })
        .collect();
    init(&Bench::baseline().with_machine(|machine| machine.cmrs = cmrs))
}

#[test]
fn success_clears_the_output_registers_only() {
    let input = regs(number::SYS_INIT, 0, PATTERN, PATTERN);
    let expected = Regs {
        rax: 0,
        rcx: 0,
        rdx: 0,
        r8: 0,
        r9: 0,
        r10: 0,
        ..input
    };
    assert_eq!(Bench::baseline().call(2, input), expected);
}

#[test]
fn attributes_must_be_zero_and_outputs_are_cleared_before_the_check() {
    let bench = Bench::baseline();
    let input = regs(number::SYS_INIT, 1, PATTERN, PATTERN);
    let expected = Regs {
        rax: 0xc000_0100_0000_0001,
        rcx: 0,
        rdx: 0,
        r8: 0,
        r9: 0,
        r10: 0,
        ..input
    };
    assert_eq!(bench.call(0, input), expected);
    bench.sys_init();
}

#[test]
fn a_second_call_is_not_pending() {
    let bench = Bench::baseline();
    bench.sys_init();
    assert_eq!(init(&bench), 0xc000_0500_0000_0000);
}

#[test]
fn a_call_during_another_is_busy() {
    let bench = Bench::baseline();
    let _ran = bench.meanwhile(|bench| {
        assert_eq!(
            bench.rax_on(1, number::SYS_INIT, 0, 0, 0),
            0x8000_0202_0000_0000
        );
        assert_eq!(
            bench.rax_on(1, number::SYS_LP_INIT, 0, 0, 0),
            0x8000_0202_0000_0000
        );
        assert_eq!(
            bench.rax_on(1, number::SYS_CONFIG, 0, 0, 0),
            0x8000_0202_0000_0000
        );
    });
    bench.sys_init();
    assert_eq!(bench.rax_on(1, number::SYS_LP_INIT, 0, 0, 0), 0);
}

#[test]
fn msrs_must_have_the_bits_the_module_relies_on() {
    assert_eq!(init_with_msr(0x10a, 0), 0xc000_0921_0000_010a);
    assert_eq!(init_with_msr(0xbd, 0), 0xc000_0921_0000_00bd);
    assert_eq!(init_with_msr(0xbc, 0), 0xc000_0921_0000_00bc);
    assert_eq!(init_with_msr(0x345, 0), 0xc000_0921_0000_0345);
    assert_eq!(init_with_msr(0x480, 0), 0xc000_0921_0000_0480);
    assert_eq!(init_with_msr(0x48b, 0), 0xc000_0921_0000_048b);
    assert_eq!(init_with_msr(0x48c, 1 << 6), 0xc000_0921_0000_048c);
    assert_eq!(init_with_msr(0x99, 5), 0xc000_0921_0000_0099);
}

#[test]
fn memory_encryption_must_be_locked_supported_and_enabled() {
    assert_eq!(
        init_with_msr(0x982, 1 << 48 | 6 << 32 | 2),
        0xc000_0921_0000_0982
    );
    assert_eq!(init_with_msr(0x981, 0), 0xc000_0921_0000_0981);
    assert_eq!(init_with_msr(0x981, 2), 0xc000_0921_0000_0982);
}

#[test]
fn keyids_must_fit_into_the_ownership_table() {
    assert_eq!(init_with_msr(0x87, 2032 << 32 | 15), 0);
    assert_eq!(init_with_msr(0x87, 2033 << 32 | 15), 0xc000_0825_0000_0800);
    assert_eq!(init_with_msr(0x87, u64::MAX), 0xc000_0825_0000_0800);
}

#[test]
fn cpuid_must_not_be_limited() {
    assert_eq!(init_with_msr(0x1a0, 1 << 22), 0xc000_0901_0000_0000);
    let bench = Bench::baseline();
    bench.machine.set_cpuid(0, 0, [0x16, 0, 0, 0]);
    assert_eq!(init(&bench), 0xc000_0908_0000_001f);
}

#[test]
fn a_missing_cpuid_bit_is_shown_with_its_leaf() {
    let bench = Bench::baseline();
    bench
        .machine
        .set_cpuid(7, 0, [2, 0xf3bf_b7ef, 0, 0xffdd_4432]);
    let got = bench.call(0, regs(number::SYS_INIT, 0, 0, 0));
    assert_eq!(got.rax, 0xc000_0900_0000_0000);
    assert_eq!(got.rcx, 7);
    assert_ne!(got.r8 & 1 << 28, 0, "MOVDIR64B is in the mask");
    assert_eq!(got.r10, 0xffdd_4432_0000_0000);
}

#[test]
fn the_topology_must_be_well_formed() {
    // No core level; levels out of order; a level after the end; a wrong subleaf number.
    let broken = [
        [(0, 0x100), (1, 0), (2, 0)],
        [(0, 0x200), (1, 0x101), (2, 0)],
        [(0, 0x100), (1, 0), (2, 0x202)],
        [(0, 0x100), (1, 0x203), (2, 0)],
    ];
    for levels in broken {
        let bench = Bench::baseline();
        for (subleaf, ecx) in levels {
            bench.machine.set_cpuid(0x1f, subleaf, [0, 0, ecx, 0]);
        }
        assert_eq!(init(&bench), 0xc000_0904_0000_0000, "{levels:x?}");
    }
}

#[test]
fn cmr_lists_that_make_no_sense_are_refused() {
    const INVALID: u64 = 0xc000_0a22_0000_0000;
    assert_eq!(
        init_with_cmrs(&[(0x10_0000, 0x1000), (0, 0), (0x20_0000, 0x1000)]),
        0
    );
    assert_eq!(init_with_cmrs(&[(0x10_0800, 0x1000)]), INVALID, "unaligned");
    assert_eq!(
        init_with_cmrs(&[(0x20_0000, 0x1000), (0x10_0000, 0x1000)]),
        INVALID,
        "descending"
    );
    assert_eq!(
        init_with_cmrs(&[(0x10_0000, 0x2000), (0x10_1000, 0x1000)]),
        INVALID,
        "overlapping"
    );
    assert_eq!(init_with_cmrs(&[(1 << 46, 1 << 12)]), INVALID, "KeyID bits");
    assert_eq!(
        init_with_cmrs(&[(0_u64.wrapping_sub(0x1000), 0x2000)]),
        INVALID,
        "wrapping"
    );
    let many: Vec<_> = (1..34).map(|n| (n << 20, 0x1000)).collect();
    assert_eq!(init_with_cmrs(&many), INVALID, "33 entries");
    assert_eq!(init_with_cmrs(&many[..32]), 0);
}

#[test]
fn system_management_memory_must_be_locked_and_not_convertible() {
    const MTRRCAP: u64 = 1 << 11 | 1 << 14;
    assert_eq!(init_with_msr(0xfe, 1 << 14), 0xc000_0914_0000_0000);
    assert_eq!(init_with_msr(0xfe, 1 << 11), 0xc000_0913_0000_0000);
    assert_eq!(init_with_msr(0x1f3, 0xff00_0800), 0xc000_0910_0000_0000);
    assert_eq!(init_with_msr(0x1f3, 0xf0f0_0c00), 0xc000_0911_0000_0000);
    assert_eq!(init_with_msr(0x1f2, 0x4000_0006), 0xc000_0912_0000_0000);
    assert_eq!(
        init_with_msr(0xfe, MTRRCAP | 1 << 13),
        0xc000_0910_0000_0001,
        "second range"
    );
    let bench = Bench::baseline().with_machine(|machine| {
        machine.cmrs = vec![
            MemRange {
                base: 1 << 20,
                size: 1 << 20,
            },
            MemRange {
                base: 0x7f80_0000,
                size: GB,
            },
        ];
    });
    assert_eq!(init(&bench), 0xc000_0912_0000_0100, "second CMR");
}

#[test]
fn a_range_of_system_management_memory_that_is_off_overlaps_nothing() {
    let bench = Bench::baseline();
    bench.machine.set_msr(0x1f2, 0x4000_0006);
    bench.machine.set_msr(0x1f3, 0x400);
    assert_eq!(init(&bench), 0);
}

#[test]
fn after_a_lack_of_entropy_the_call_can_be_repeated() {
    let bench = Bench::baseline();
    bench.machine.set_no_entropy(true);
    assert_eq!(init(&bench), 0x8000_0203_0000_0000);
    bench.machine.set_no_entropy(false);
    assert_eq!(init(&bench), 0);
}

#[test]
fn the_key_field_follows_the_address_width_except_in_1_5_01() {
    for (bench, shift) in [(Bench::baseline(), 40), (Bench::v1_5_01(), 46)] {
        let bench = bench.with_machine(|machine| machine.cmrs.truncate(1));
        bench.machine.set_cpuid(0x8000_0008, 0, [0x302e, 0, 0, 0]);
        bench.sys_init();
        let keys = bench.module.state().keys;
        assert_eq!((keys.start_bit, keys.bits), (shift, 6));
        assert_eq!((keys.private_min, keys.private_max), (16, 63));
    }
}
