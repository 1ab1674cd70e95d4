// SPDX-License-Identifier: GPL-2.0

//! TDH.PHYMEM.PAGE.RDMD and TDH.PHYMEM.CACHE.WB.

use super::{Bench, GB, PATTERN, regs, two_tdmrs};
use crate::leaf::number;
use crate::state::KeyOwner;
use crate::{Profile, Regs};

const BAD_RCX: u64 = 0xc000_0100_0000_0001;
const OUT_OF_RANGE: u64 = 0xc000_0101_0000_0001;
const INTERRUPTED: u64 = 0x8000_0003_0000_0000;
const NOTHING_TO_DO: u64 = 0x0000_0821_0000_0000;

fn rdmd(bench: &Bench, pa: u64) -> Regs {
    bench.call(0, regs(number::PHYMEM_PAGE_RDMD, pa, PATTERN, PATTERN))
}

fn cache_wb(bench: &Bench, lp: usize, rcx: u64) -> u64 {
    bench.rax_on(lp, number::PHYMEM_CACHE_WB, rcx, 0, 0)
}

/// A module with one KeyID that was flushed; both packages may hold dirty lines of it.
fn with_flushed_key() -> Bench {
    let bench = Bench::new(crate::ModuleConfig::new(Profile::V1_5_01)).ready(&two_tdmrs());
    bench
        .module
        .state()
        .tables
        .kot
        .insert(20, KeyOwner::Flushed(0b11));
    bench
}

fn dirty_packages(bench: &Bench) -> u32 {
    match bench.module.state().tables.kot.get(&20) {
        Some(&KeyOwner::Flushed(packages)) => packages,
        other => panic!("{other:?}"),
    }
}

#[test]
fn rdmd_tells_free_from_reserved_pages() {
    let bench = Bench::baseline().ready(&two_tdmrs());
    bench.init_gigabytes(6 * GB, 1);
    for (pa, page_type) in [
        (6 * GB, 0),
        (6 * GB + 0xf_f000, 0),
        (6 * GB + 0x10_0000, 1),
        (6 * GB + 0x2f_f000, 1),
        (6 * GB + 0x30_0000, 0),
    ] {
        let input = regs(number::PHYMEM_PAGE_RDMD, pa, PATTERN, PATTERN);
        let zeroes = Regs {
            rcx: page_type,
            rdx: 0,
            r8: 0,
            r9: 0,
            r10: 0,
            r11: 0,
            ..input
        };
        assert_eq!(bench.call(0, input), Regs { rax: 0, ..zeroes }, "{pa:x}");
    }
}

#[test]
fn rdmd_clears_its_outputs_before_it_fails() {
    let bench = Bench::baseline().ready(&two_tdmrs());
    let input = regs(number::PHYMEM_PAGE_RDMD, 1, PATTERN, PATTERN);
    let zeroes = Regs {
        rcx: 0,
        rdx: 0,
        r8: 0,
        r9: 0,
        r10: 0,
        r11: 0,
        ..input
    };
    assert_eq!(
        bench.call(0, input),
        Regs {
            rax: BAD_RCX,
            ..zeroes
        }
    );
}

#[test]
fn rdmd_wants_a_plain_page_in_an_initialised_gigabyte() {
    let bench = Bench::baseline().ready(&two_tdmrs());
    bench.init_gigabytes(6 * GB, 1);
    for _ in 0..255 {
        assert_eq!(bench.rax(number::SYS_TDMR_INIT, 6 * GB, 0, 0), 0);
    }
    for pa in [6 * GB + 8, 6 * GB + (1 << 46), 1 << 52, u64::MAX] {
        assert_eq!(rdmd(&bench, pa).rax, BAD_RCX, "{pa:x}");
    }
    for pa in [0, 4 * GB, 5 * GB, 7 * GB, 8 * GB] {
        assert_eq!(rdmd(&bench, pa).rax, OUT_OF_RANGE, "{pa:x}");
    }
    assert_eq!(bench.rax(number::SYS_TDMR_INIT, 6 * GB, 0, 0), 0);
    assert_eq!(
        rdmd(&bench, 7 * GB).rax,
        0,
        "after the 256th call of its gigabyte"
    );
}

#[test]
fn a_write_back_without_flushed_keys_has_nothing_to_do() {
    let bench = Bench::baseline().ready(&two_tdmrs());
    let input = regs(number::PHYMEM_CACHE_WB, 0, PATTERN, PATTERN);
    assert_eq!(
        bench.call(0, input),
        Regs {
            rax: NOTHING_TO_DO,
            ..input
        }
    );
    assert_eq!(cache_wb(&bench, 0, 1), 0xc000_0823_0000_0000);
    assert_eq!(cache_wb(&bench, 0, 2), BAD_RCX);
}

#[test]
fn a_write_back_covers_its_own_package() {
    let bench = with_flushed_key();
    assert_eq!(cache_wb(&bench, 3, 0), 0);
    assert_eq!(dirty_packages(&bench), 0b01);
    assert_eq!(bench.machine.written_back(), [[20]]);
    assert_eq!(cache_wb(&bench, 1, 0), 0);
    assert_eq!(dirty_packages(&bench), 0);
}

#[test]
fn an_interrupted_write_back_is_resumed_where_it_stopped() {
    let bench = with_flushed_key();
    bench.machine.set_interrupts(&[false, true, true]);
    assert_eq!(
        cache_wb(&bench, 0, 0),
        INTERRUPTED,
        "after the second sub-block"
    );
    assert_eq!(cache_wb(&bench, 1, 1), INTERRUPTED, "after the third");
    assert_eq!(dirty_packages(&bench), 0b11);
    bench.machine.set_interrupts(&[true]);
    assert_eq!(
        cache_wb(&bench, 0, 1),
        0,
        "no look for interrupts after the last"
    );
    assert_eq!(dirty_packages(&bench), 0b10);
    assert_eq!(cache_wb(&bench, 0, 1), 0xc000_0823_0000_0000);
}

#[test]
fn packages_resume_independently() {
    let bench = with_flushed_key();
    bench.machine.set_interrupts(&[true]);
    assert_eq!(cache_wb(&bench, 0, 0), INTERRUPTED);
    assert_eq!(cache_wb(&bench, 2, 1), 0xc000_0823_0000_0000);
    assert_eq!(cache_wb(&bench, 0, 1), 0);
}

#[test]
fn a_new_start_discards_the_point_saved_and_notes_the_keys_again() {
    let bench = with_flushed_key();
    bench.machine.set_interrupts(&[true]);
    assert_eq!(cache_wb(&bench, 0, 0), INTERRUPTED);
    bench.module.state().tables.kot.insert(20, KeyOwner::Free);
    bench
        .module
        .state()
        .tables
        .kot
        .insert(21, KeyOwner::Flushed(0b11));
    assert_eq!(
        cache_wb(&bench, 0, 1),
        0,
        "key 21 was not flushed at the start"
    );
    assert_eq!(
        bench.module.state().tables.kot[&21],
        KeyOwner::Flushed(0b11)
    );
    bench.machine.set_interrupts(&[true]);
    assert_eq!(cache_wb(&bench, 0, 0), INTERRUPTED);
    bench.module.state().tables.kot.clear();
    assert_eq!(cache_wb(&bench, 0, 0), NOTHING_TO_DO);
    assert_eq!(cache_wb(&bench, 0, 1), 0xc000_0823_0000_0000);
}

#[test]
fn a_second_processor_of_the_package_finds_the_write_back_busy() {
    let bench = with_flushed_key();
    let _ran = bench.meanwhile(|bench| {
        assert_eq!(cache_wb(bench, 1, 0), 0x8000_0200_0000_00bc);
        assert_eq!(
            cache_wb(bench, 2, 0),
            0,
            "another package shares the key table"
        );
    });
    assert_eq!(cache_wb(&bench, 0, 0), 0);
}
