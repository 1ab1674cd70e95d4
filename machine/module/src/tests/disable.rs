// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.DISABLE and the switches for what nobody knows about it.

use std::collections::BTreeSet;

use super::machine::Note;
use super::{Bench, GB, PATTERN, regs, two_tdmrs};
use crate::leaf::number;
use crate::{ModuleConfig, OpenPoints, Regs};

const SYS_BUSY: u64 = 0x8000_0202_0000_0000;
const NOT_READY: u64 = 0xc000_0505_0000_0000;
const INTERRUPTED: u64 = 0x8000_0003_0000_0000;

fn disable(bench: &Bench) -> u64 {
    bench.rax(number::SYS_DISABLE, 0, 0, 0)
}

fn with_open(open: OpenPoints) -> Bench {
    Bench::new(ModuleConfig {
        open,
        ..ModuleConfig::default()
    })
}

#[test]
fn a_new_kernel_can_start_over_after_it() {
    let bench = Bench::baseline().ready(&two_tdmrs());
    bench.init_gigabytes(4 * GB, 1);
    let input = regs(number::SYS_DISABLE, PATTERN, PATTERN, PATTERN);
    assert_eq!(bench.call(2, input), Regs { rax: 0, ..input });
    assert_eq!(
        bench.rax(number::SYS_RD, 0, 0, 0),
        0xc000_0502_0000_0000,
        "LPs start over"
    );
    assert_eq!(disable(&bench), NOT_READY, "nothing to disable");
    let bench = bench.ready(&two_tdmrs());
    bench.init_gigabytes(4 * GB, 1);
}

#[test]
fn it_releases_every_line_that_was_made_private() {
    let bench = Bench::baseline().ready(&two_tdmrs());
    bench.init_gigabytes(4 * GB, 1);
    bench.init_gigabytes(6 * GB, 1);
    for _ in 0..3 {
        assert_eq!(bench.rax(number::SYS_TDMR_INIT, 6 * GB, 0, 0), 0);
    }
    let (mut private, mut released) = (BTreeSet::new(), BTreeSet::new());
    assert_eq!(disable(&bench), 0);
    for note in bench.machine.notes() {
        let (lines, pa, len) = match note {
            Note::Private { pa, len, .. } => (&mut private, pa, len),
            Note::Released { pa, len } => (&mut released, pa, len),
        };
        lines.extend((pa..pa + len).step_by(64));
    }
    assert!(!private.is_empty());
    assert_eq!(private, released);
}

#[test]
fn an_interrupt_ends_a_call_after_some_progress() {
    let open = OpenPoints {
        disable_gb_per_poll: 1,
        ..OpenPoints::default()
    };
    let bench = with_open(open).ready(&two_tdmrs());
    bench.init_gigabytes(4 * GB, 1);
    bench.init_gigabytes(6 * GB, 2);
    bench.machine.set_interrupts(&[true, false, true]);
    assert_eq!(disable(&bench), INTERRUPTED);
    for leaf in [31, 33, 34, 35, 36, 44, 45, 52, 53] {
        assert_eq!(bench.rax_on(1, leaf, 0, 0, 0), SYS_BUSY, "leaf {leaf}");
    }
    assert_eq!(
        bench.rax(number::PHYMEM_PAGE_RDMD, 4 * GB, 0, 0),
        0xc000_0506_0000_0000
    );
    assert_eq!(disable(&bench), INTERRUPTED);
    assert_eq!(disable(&bench), 0);
    bench.sys_init();
}

#[test]
fn a_second_processor_finds_it_busy_and_so_does_it_find_others() {
    let bench = Bench::baseline().ready(&two_tdmrs());
    bench.init_gigabytes(4 * GB, 1);
    let _ran = bench.meanwhile(|bench| {
        assert_eq!(
            bench.rax_on(1, number::SYS_DISABLE, 0, 0, 0),
            SYS_BUSY,
            "TDMR.INIT runs"
        );
    });
    assert_eq!(bench.rax(number::SYS_TDMR_INIT, 6 * GB, 0, 0), 0);
    let _ran = bench.meanwhile(|bench| {
        assert_eq!(
            bench.rax_on(1, number::SYS_DISABLE, 0, 0, 0),
            SYS_BUSY,
            "DISABLE runs"
        );
        assert_eq!(bench.rax_on(1, number::SYS_INIT, 0, 0, 0), SYS_BUSY);
    });
    assert_eq!(disable(&bench), 0);
}

#[test]
fn it_may_start_once_there_is_something_to_disable() {
    assert_eq!(disable(&Bench::baseline()), NOT_READY);
    assert_eq!(disable(&Bench::baseline().initialized()), 0);
    assert_eq!(disable(&Bench::baseline().configured(&two_tdmrs())), 0);
}

#[test]
fn the_states_it_starts_from_are_switches() {
    let open = OpenPoints {
        disable_before_config: false,
        disable_before_ready: false,
        ..OpenPoints::default()
    };
    assert_eq!(disable(&with_open(open.clone()).initialized()), NOT_READY);
    assert_eq!(
        disable(&with_open(open.clone()).configured(&two_tdmrs())),
        NOT_READY
    );
    assert_eq!(disable(&with_open(open).ready(&two_tdmrs())), 0);
}

#[test]
fn whether_processors_matter_is_a_switch() {
    let open = OpenPoints {
        disable_needs_lp_init: true,
        ..OpenPoints::default()
    };
    let bench = with_open(open);
    bench.sys_init();
    assert_eq!(disable(&bench), 0xc000_0502_0000_0000);
    bench.lp_init_all();
    assert_eq!(disable(&bench), 0);

    let open = OpenPoints {
        disable_forgets_lp_init: false,
        ..OpenPoints::default()
    };
    let bench = with_open(open).ready(&two_tdmrs());
    assert_eq!(disable(&bench), 0);
    bench.sys_init();
    assert_eq!(
        bench.rax(number::SYS_LP_INIT, 0, 0, 0),
        0xc000_0503_0000_0000
    );
    assert_eq!(bench.config(&two_tdmrs()), 0);
}

#[test]
fn what_others_see_meanwhile_is_a_switch() {
    let open = OpenPoints {
        disabling_status_sys: 0x1111_0000_0000,
        disabling_status_other: 0x2222_0000_0000,
        disable_gb_per_poll: 1,
        ..OpenPoints::default()
    };
    let bench = with_open(open).ready(&two_tdmrs());
    bench.init_gigabytes(4 * GB, 1);
    bench.machine.set_interrupts(&[true]);
    assert_eq!(disable(&bench), INTERRUPTED);
    assert_eq!(bench.rax(number::SYS_RD, 0, 0, 0), 0x1111_0000_0000);
    assert_eq!(bench.rax(number::VP_ENTER, 0, 0, 0), 0x2222_0000_0000);
}
