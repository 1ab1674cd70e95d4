// SPDX-License-Identifier: GPL-2.0

//! What is decided before any leaf has a say.

use super::{Bench, PATTERN, regs, two_tdmrs};
use crate::leaf::number;
use crate::{ModuleConfig, Regs, leaf_name, status_name};

const BAD_RAX: u64 = 0xc000_0100_0000_0000;

/// Asserts that a call is refused without a trace but RAX.
fn assert_refused(bench: &Bench, rax: u64) {
    let input = Regs {
        rax,
        ..regs(0, PATTERN, PATTERN, PATTERN)
    };
    assert_eq!(
        bench.call(0, input),
        Regs {
            rax: BAD_RAX,
            ..input
        },
        "rax {rax:x}"
    );
}

#[test]
fn reserved_bits_of_rax_are_refused_in_every_state() {
    for bit in 24..64 {
        assert_refused(&Bench::baseline(), 33 | 1 << bit);
        assert_refused(&Bench::baseline().ready(&two_tdmrs()), 24 | 1 << bit);
    }
}

#[test]
fn versions_are_refused_where_a_leaf_has_none() {
    let bench = Bench::v1_5_01().ready(&two_tdmrs());
    for leaf in [22, 24, 31, 33, 34, 35, 36, 40, 44, 45, 52, 53] {
        assert_refused(&bench, leaf | 1 << 16);
        assert_refused(&bench, leaf | 0xff << 16);
    }
}

#[test]
fn a_version_does_not_make_an_unknown_leaf_known() {
    let before_ready = Bench::baseline();
    assert_eq!(
        before_ready.rax(number::MNG_RD, 0, 0, 0),
        0xc000_0505_0000_0000
    );
    let version_1 = Regs {
        rax: 11 | 1 << 16,
        ..regs(0, 0, 0, 0)
    };
    assert_eq!(before_ready.call(0, version_1).rax, 0xc000_0505_0000_0000);
}

#[test]
fn an_unknown_leaf_is_not_ready_first_and_unknown_then() {
    let bench = Bench::baseline();
    assert_eq!(bench.rax(255, 0, 0, 0), 0xc000_0505_0000_0000);
    let bench = bench.ready(&two_tdmrs());
    for leaf in [42, 54, 70, 255, 0xffff] {
        assert_refused(&bench, leaf);
    }
}

#[test]
fn leaves_of_the_running_module_wait_for_ready() {
    let bench = Bench::baseline().configured(&two_tdmrs());
    for leaf in [
        number::SYS_TDMR_INIT,
        number::SYS_SHUTDOWN,
        number::PHYMEM_PAGE_RDMD,
        40,
    ] {
        assert_eq!(
            bench.rax(leaf, 0, 0, 0),
            0xc000_0505_0000_0000,
            "leaf {leaf}"
        );
    }
}

#[test]
fn a_module_without_sys_disable_does_not_know_the_leaf() {
    let config = ModuleConfig {
        sys_disable: false,
        ..ModuleConfig::default()
    };
    let bench = Bench::new(config);
    assert_eq!(
        bench.rax(number::SYS_DISABLE, 0, 0, 0),
        0xc000_0505_0000_0000
    );
    let bench = bench.ready(&two_tdmrs());
    assert_refused(&bench, number::SYS_DISABLE.into());
}

#[test]
fn names_are_those_of_the_abi() {
    assert_eq!(leaf_name(0), Some("TDH.VP.ENTER"));
    assert_eq!(leaf_name(number::SYS_TDMR_INIT), Some("TDH.SYS.TDMR.INIT"));
    assert_eq!(leaf_name(255), None);
    assert_eq!(status_name(0), Some("SUCCESS"));
    assert_eq!(status_name(0x8000_0200_0000_00ba), Some("OPERAND_BUSY"));
    assert_eq!(status_name(0xc000_0a12_0001_0203), Some("PAMT_OVERLAP"));
    assert_eq!(status_name(0xffff_ffff_0000_0000), None);
}

#[test]
fn configurations_out_of_range_are_refused_with_the_field_named() {
    let config = ModuleConfig {
        max_tdmrs: 65,
        ..ModuleConfig::default()
    };
    let error = crate::Module::new(config)
        .err()
        .expect("65 TDMRs are too many");
    assert_eq!(error.to_string(), "max_tdmrs is 65, but must be 1 to 64");
    let config = ModuleConfig {
        pamt_entry_size: [16, 0, 16],
        ..ModuleConfig::default()
    };
    assert!(crate::Module::new(config).is_err());
}
