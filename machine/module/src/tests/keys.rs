// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.KEY.CONFIG.

use super::{Bench, PATTERN, regs, two_tdmrs};
use crate::leaf::number;
use crate::{Pconfig, Regs};

const NOT_PENDING: u64 = 0xc000_0507_0000_0000;

fn key_config(bench: &Bench, lp: usize) -> u64 {
    bench.rax_on(lp, number::SYS_KEY_CONFIG, 0, 0, 0)
}

#[test]
fn each_package_is_configured_once_and_the_last_makes_the_module_ready() {
    let bench = Bench::baseline().configured(&two_tdmrs());
    assert_eq!(key_config(&bench, 0), 0);
    assert_eq!(key_config(&bench, 1), 0x0000_0815_0000_0000, "same package");
    assert_eq!(
        bench.rax(number::SYS_TDMR_INIT, 4 << 30, 0, 0),
        0xc000_0505_0000_0000
    );
    let input = regs(number::SYS_KEY_CONFIG, PATTERN, PATTERN, PATTERN);
    assert_eq!(bench.call(3, input), Regs { rax: 0, ..input });
    assert_eq!(key_config(&bench, 1), NOT_PENDING);
    assert_eq!(bench.rax(number::SYS_TDMR_INIT, 4 << 30, 0, 0), 0);
}

#[test]
fn it_waits_for_config() {
    assert_eq!(key_config(&Bench::baseline(), 0), NOT_PENDING);
    assert_eq!(key_config(&Bench::baseline().initialized(), 0), NOT_PENDING);
}

#[test]
fn a_failed_key_can_be_configured_again() {
    let bench = Bench::baseline().configured(&two_tdmrs());
    bench.machine.set_pconfig(Some(Pconfig::Busy));
    assert_eq!(key_config(&bench, 0), 0x8000_0200_0000_00bb);
    bench.machine.set_pconfig(Some(Pconfig::NoEntropy));
    assert_eq!(key_config(&bench, 0), 0x8000_0800_0000_0000);
    bench.machine.set_pconfig(None);
    assert_eq!(key_config(&bench, 0), 0);
}

#[test]
fn two_packages_cannot_do_it_at_once() {
    let bench = Bench::baseline().configured(&two_tdmrs());
    let _ran = bench.meanwhile(|bench| assert_eq!(key_config(bench, 2), 0x8000_0202_0000_0000));
    assert_eq!(key_config(&bench, 0), 0);
    assert_eq!(key_config(&bench, 2), 0);
}
