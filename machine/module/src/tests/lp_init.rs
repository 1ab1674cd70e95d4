// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.LP.INIT.

use super::{Bench, PATTERN, regs, two_tdmrs};
use crate::Regs;
use crate::leaf::number;

fn lp_init(bench: &Bench, lp: usize) -> u64 {
    bench.rax_on(lp, number::SYS_LP_INIT, 0, 0, 0)
}

#[test]
fn success_clears_three_registers() {
    let bench = Bench::baseline();
    bench.sys_init();
    let input = regs(number::SYS_LP_INIT, PATTERN, PATTERN, PATTERN);
    assert_eq!(
        bench.call(3, input),
        Regs {
            rax: 0,
            rcx: 0,
            rdx: 0,
            r8: 0,
            ..input
        }
    );
}

#[test]
fn each_processor_is_initialised_once() {
    let bench = Bench::baseline();
    bench.sys_init();
    assert_eq!(lp_init(&bench, 0), 0);
    assert_eq!(lp_init(&bench, 0), 0xc000_0503_0000_0000);
    assert_eq!(lp_init(&bench, 1), 0);
}

#[test]
fn it_is_not_pending_before_init_nor_after_config() {
    assert_eq!(lp_init(&Bench::baseline(), 0), 0xc000_050b_0000_0000);
    let bench = Bench::baseline().configured(&two_tdmrs());
    assert_eq!(lp_init(&bench, 0), 0xc000_050b_0000_0000);
}

#[test]
fn two_processors_may_run_it_at_once_but_not_beside_an_exclusive_leaf() {
    let bench = Bench::baseline();
    bench.sys_init();
    let _ran = bench.meanwhile(|bench| {
        assert_eq!(lp_init(bench, 1), 0);
        assert_eq!(
            bench.rax_on(2, number::SYS_CONFIG, 0, 0, 0),
            0x8000_0202_0000_0000
        );
    });
    assert_eq!(lp_init(&bench, 0), 0);
}

#[test]
fn an_msr_that_differs_is_named() {
    for index in [
        0xcf, 0x10a, 0xbc, 0xbd, 0x3b, 0xfe, 0x1f2, 0x480, 0x48d, 0x489, 0x345, 0x981,
    ] {
        let bench = Bench::baseline();
        bench.sys_init();
        let value = bench.machine.get_msr(index);
        bench.machine.set_lp_msr(1, index, value ^ 1 << 40);
        assert_eq!(lp_init(&bench, 1), 0xc000_0920_0000_0000 | u64::from(index));
        bench.machine.set_lp_msr(1, index, value);
        assert_eq!(
            lp_init(&bench, 1),
            0,
            "repeated after MSR {index:x} is right"
        );
    }
}

#[test]
fn msrs_are_compared_in_the_order_of_the_real_module() {
    let bench = Bench::baseline();
    bench.sys_init();
    for index in [0x99, 0x87, 0x3b, 0x10a] {
        bench.machine.set_lp_msr(1, index, 0x1234);
        assert_eq!(lp_init(&bench, 1), 0xc000_0920_0000_0000 | u64::from(index));
    }
    bench
        .machine
        .set_lp_msr(1, 0x10a, bench.machine.get_msr(0x10a));
    bench.machine.set_lp_msr(1, 0x1a0, 1 << 22);
    assert_eq!(lp_init(&bench, 1), 0xc000_0901_0000_0000);
}

#[test]
fn a_cpuid_leaf_that_differs_is_named_but_apic_ids_may_differ() {
    let bench = Bench::baseline();
    bench.sys_init();
    bench
        .machine
        .set_lp_cpuid(1, 1, 0, [0x8_06f8, 0x0100_0000, 0x7ffe_fbff, 0xbfeb_fbff]);
    assert_eq!(lp_init(&bench, 1), 0);
    bench.machine.set_lp_cpuid(2, 7, 1, [0, 0, 0, 0]);
    let got = bench.call(2, regs(number::SYS_LP_INIT, 0, 0, 0));
    assert_eq!((got.rax, got.rcx), (0xc000_0902_0000_0000, 1 << 32 | 7));
    assert_eq!((got.rdx, got.r8), (u64::MAX, u64::MAX));
}

#[test]
fn package_numbers_end_at_seven() {
    let bench = Bench::baseline().with_machine(|machine| machine.packages = vec![7, 8]);
    bench.sys_init();
    assert_eq!(lp_init(&bench, 0), 0);
    assert_eq!(lp_init(&bench, 1), 0xc000_0906_0000_0008);
}

#[test]
fn after_a_lack_of_entropy_the_call_can_be_repeated() {
    let bench = Bench::baseline();
    bench.sys_init();
    bench.machine.set_no_entropy(true);
    assert_eq!(lp_init(&bench, 0), 0x8000_0203_0000_0000);
    bench.machine.set_no_entropy(false);
    assert_eq!(lp_init(&bench, 0), 0);
}
