// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.SHUTDOWN, TDH.SYS.UPDATE and TDH.SYS.LP.SHUTDOWN.

use std::sync::Arc;

use super::td_bench::TdBench;
use super::{Bench, GB, PATTERN, regs, two_tdmrs};
use crate::leaf::number;
use crate::{ModuleConfig, Outcome, Regs};

const SYS_BUSY: u64 = 0x8000_0202_0000_0000;
const SHUT_DOWN: u64 = 0xc000_0506_0000_0000;

fn shutdown(bench: &Bench, rcx: u64) -> u64 {
    bench.rax(number::SYS_SHUTDOWN, rcx, 0, 0)
}

fn update(bench: &Bench) -> u64 {
    bench.rax(number::SYS_UPDATE, 0, 0, 0)
}

#[test]
fn after_shutdown_every_leaf_but_one_says_so() {
    let bench = Bench::baseline().ready(&two_tdmrs());
    let input = regs(number::SYS_SHUTDOWN, 1, PATTERN, PATTERN);
    assert_eq!(bench.call(0, input), Regs { rax: 0, ..input });
    for leaf in [0, 24, 31, 33, 34, 35, 36, 45, 52, 53, 69, 255] {
        let input = regs(leaf, PATTERN, PATTERN, PATTERN);
        assert_eq!(
            bench.call(1, input),
            Regs {
                rax: SHUT_DOWN,
                ..input
            },
            "leaf {leaf}"
        );
    }
    assert_eq!(bench.rax(number::SYS_LP_SHUTDOWN, 0, 0, 0), 0);
}

#[test]
fn the_handoff_version_must_be_one_the_module_can_write() {
    let bench = Bench::baseline().ready(&two_tdmrs());
    for version in [0, 2, 0x1_0001, u64::MAX] {
        assert_eq!(
            shutdown(&bench, version),
            0xc000_0100_0000_0001,
            "version {version:x}"
        );
    }
    assert_eq!(shutdown(&bench, 1), 0);
    let old = Bench::v1_5_01().ready(&two_tdmrs());
    assert_eq!(shutdown(&old, 1), 0xc000_0100_0000_0001);
    assert_eq!(shutdown(&old, 0), 0);
}

#[test]
fn another_processor_inside_the_module_makes_it_busy() {
    let bench = Bench::baseline().ready(&two_tdmrs());
    let _ran = bench
        .meanwhile(|bench| assert_eq!(bench.rax_on(1, number::SYS_SHUTDOWN, 1, 0, 0), SYS_BUSY));
    assert_eq!(bench.rax(number::SYS_TDMR_INIT, 4 * GB, 0, 0), 0);
    assert_eq!(bench.rax_on(1, number::SYS_SHUTDOWN, 1, 0, 0), 0);
}

#[test]
fn an_update_brings_the_tables_back_at_once() {
    let bench = Bench::baseline().ready(&two_tdmrs());
    bench.init_gigabytes(4 * GB, 1);
    assert_eq!(shutdown(&bench, 1), 0);
    bench.module.replaced();
    bench.sys_init();
    bench.lp_init_all();
    assert_eq!(update(&bench), 0);
    assert_eq!(bench.rax(number::PHYMEM_PAGE_RDMD, 4 * GB, 0, 0), 0);
    assert_eq!(
        bench.rax(number::SYS_TDMR_INIT, 4 * GB, 0, 0),
        0x0000_0a03_0000_0000
    );
    assert_eq!(bench.rax(number::SYS_TDMR_INIT, 6 * GB, 0, 0), 0);
    assert_eq!(
        bench.rax(number::SYS_KEY_CONFIG, 0, 0, 0),
        0xc000_0507_0000_0000
    );
}

#[test]
fn an_update_needs_every_processor_and_a_handoff() {
    const INCORRECT: u64 = 0xc000_0508_0000_0000;
    const NO_HANDOFF: u64 = 0xc000_0509_0000_0000;
    let bench = Bench::baseline().ready(&two_tdmrs());
    assert_eq!(update(&bench), INCORRECT, "in READY");
    assert_eq!(shutdown(&bench, 1), 0);
    bench.module.replaced();
    assert_eq!(update(&bench), INCORRECT, "before TDH.SYS.INIT");
    bench.sys_init();
    assert_eq!(update(&bench), INCORRECT, "before TDH.SYS.LP.INIT");
    bench.lp_init_all();
    assert_eq!(update(&bench), 0);
    let fresh = Bench::baseline().initialized();
    assert_eq!(update(&fresh), NO_HANDOFF);
    assert_eq!(
        fresh.config(&two_tdmrs()),
        0,
        "a fresh start is still possible"
    );
}

#[test]
fn a_handoff_is_used_once() {
    let bench = Bench::baseline().ready(&two_tdmrs());
    assert_eq!(shutdown(&bench, 1), 0);
    bench.module.replaced();
    bench.sys_init();
    bench.lp_init_all();
    assert_eq!(update(&bench), 0);
    bench.module.replaced();
    bench.sys_init();
    bench.lp_init_all();
    assert_eq!(update(&bench), 0xc000_0509_0000_0000);
}

/// The bench with a module in the place of the old one that follows `config`.
fn succeeded(bench: &Bench, config: ModuleConfig) -> Bench {
    let module = bench.module.successor(config).expect("a valid one");
    let bench = Bench {
        module: Arc::new(module),
        machine: Arc::clone(&bench.machine),
    };
    bench.initialized()
}

#[test]
fn another_release_takes_over_what_it_can_read() {
    const NO_HANDOFF: u64 = 0xc000_0509_0000_0000;
    let reads = |min_update_hv, module_hv| ModuleConfig {
        min_update_hv: Some(min_update_hv),
        module_hv: Some(module_hv),
        ..ModuleConfig::default()
    };
    for (config, expected) in [
        (reads(0, 1), 0),
        (reads(1, 7), 0),
        (reads(2, 7), NO_HANDOFF),
        (reads(0, 0), NO_HANDOFF),
    ] {
        let bench = Bench::baseline().ready(&two_tdmrs());
        assert_eq!(shutdown(&bench, 1), 0);
        let next = succeeded(&bench, config.clone());
        assert_eq!(update(&next), expected, "{config:?}");
        if expected == 0 {
            assert_eq!(next.rax(number::SYS_TDMR_INIT, 4 * GB, 0, 0), 0);
        }
    }
}

#[test]
fn td_lives_on_under_the_next_module() {
    let (td, tdvpr) = TdBench::runnable(Bench::baseline());
    let _ = td.enter(0, tdvpr);
    td.interrupt(0);
    assert_eq!(shutdown(&td.bench, 1), 0);
    let config = ModuleConfig {
        update: Some(26),
        ..ModuleConfig::default()
    };
    let bench = succeeded(&td.bench, config);
    assert_eq!(update(&bench), 0);
    let input = regs(number::VP_ENTER, tdvpr, PATTERN, PATTERN);
    let outcome = bench
        .module
        .seamcall(0, &mut input.clone(), &*bench.machine);
    assert_eq!(outcome, Outcome::Entered);
}

#[test]
fn the_handoff_version_can_be_configured() {
    let config = ModuleConfig {
        module_hv: Some(3),
        ..ModuleConfig::default()
    };
    let bench = Bench::new(config).ready(&two_tdmrs());
    assert_eq!(shutdown(&bench, 1), 0xc000_0100_0000_0001);
    assert_eq!(shutdown(&bench, 3), 0);
}

#[test]
fn lp_shutdown_does_nothing_in_any_state() {
    let bench = Bench::baseline();
    let input = regs(number::SYS_LP_SHUTDOWN, PATTERN, PATTERN, PATTERN);
    assert_eq!(bench.call(0, input), Regs { rax: 0, ..input });
    let bench = bench.ready(&two_tdmrs());
    assert_eq!(bench.call(0, input), Regs { rax: 0, ..input });
}
