// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.TDMR.INIT.

use std::collections::BTreeSet;

use super::machine::Note;
use super::{Bench, GB, HKID, Info, PATTERN, regs, two_tdmrs};
use crate::Regs;
use crate::leaf::number;

const BAD_RCX: u64 = 0xc000_0100_0000_0001;

fn tdmr_init(bench: &Bench, base: u64) -> (u64, u64) {
    let got = bench.call(0, regs(number::SYS_TDMR_INIT, base, PATTERN, PATTERN));
    (got.rax, got.rdx)
}

#[test]
fn rdx_advances_by_whole_gigabytes() {
    let bench = Bench::baseline().ready(&two_tdmrs());
    let base = 6 * GB;
    for call in 1..=512 {
        let expected = base + call / 256 * GB;
        assert_eq!(tdmr_init(&bench, base), (0, expected), "call {call}");
    }
    assert_eq!(tdmr_init(&bench, base), (0x0000_0a03_0000_0000, 0));
}

#[test]
fn nothing_but_rax_and_rdx_changes() {
    let bench = Bench::baseline().ready(&two_tdmrs());
    let input = regs(number::SYS_TDMR_INIT, 4 * GB, PATTERN, PATTERN);
    assert_eq!(
        bench.call(1, input),
        Regs {
            rax: 0,
            rdx: 4 * GB,
            ..input
        }
    );
}

#[test]
fn rcx_must_be_the_base_of_a_tdmr() {
    let bench = Bench::baseline().ready(&two_tdmrs());
    for rcx in [
        0,
        5 * GB,
        7 * GB,
        4 * GB + 1,
        4 * GB + (1 << 46),
        1 << 52,
        u64::MAX,
    ] {
        assert_eq!(tdmr_init(&bench, rcx), (BAD_RCX, 0), "{rcx:x}");
    }
}

#[test]
fn the_same_tdmr_is_busy_meanwhile_and_another_is_not() {
    let bench = Bench::baseline().ready(&two_tdmrs());
    let _ran = bench.meanwhile(|bench| {
        assert_eq!(tdmr_init(bench, 4 * GB), (0x8000_0200_0000_0001, 0));
        assert_eq!(tdmr_init(bench, 6 * GB), (0, 6 * GB));
    });
    assert_eq!(tdmr_init(&bench, 4 * GB), (0, 4 * GB));
}

#[test]
fn every_pamt_line_becomes_private_with_the_global_key() {
    let infos = two_tdmrs();
    let bench = Bench::baseline().ready(&infos);
    bench.init_gigabytes(6 * GB, 2);
    let mut lines = BTreeSet::new();
    for note in bench.machine.notes() {
        let Note::Private { pa, len, hkid } = note else {
            panic!("{note:?}")
        };
        assert_eq!((pa % 64, len % 64, u64::from(hkid)), (0, 0, HKID));
        lines.extend((pa..pa + len).step_by(64));
    }
    let [_, (pamt_2m, size_2m), (pamt_4k, size_4k)] = infos[1].pamt;
    let pamt_1g = infos[1].pamt[0].0;
    let mut expected: BTreeSet<u64> = (pamt_4k..pamt_4k + size_4k).step_by(64).collect();
    expected.extend((pamt_2m..pamt_2m + size_2m).step_by(64));
    expected.insert(pamt_1g);
    assert_eq!(lines, expected);
}

#[test]
fn one_call_writes_the_entries_of_four_megabytes() {
    let infos = two_tdmrs();
    let bench = Bench::baseline().ready(&infos);
    tdmr_init(&bench, 4 * GB);
    tdmr_init(&bench, 4 * GB);
    let [(pamt_1g, _), (pamt_2m, _), (pamt_4k, _)] = infos[0].pamt;
    let hkid = 16;
    let expected = [
        Note::Private {
            pa: pamt_4k,
            len: 0x4000,
            hkid,
        },
        Note::Private {
            pa: pamt_2m,
            len: 64,
            hkid,
        },
        Note::Private {
            pa: pamt_1g,
            len: 64,
            hkid,
        },
        Note::Private {
            pa: pamt_4k + 0x4000,
            len: 0x4000,
            hkid,
        },
        Note::Private {
            pa: pamt_2m,
            len: 64,
            hkid,
        },
        Note::Private {
            pa: pamt_1g,
            len: 64,
            hkid,
        },
    ];
    assert_eq!(bench.machine.notes(), expected);
}

#[test]
fn terabytes_take_little_memory_and_time() {
    let size = 1024 * GB;
    let info = Info::new(4 * GB, size, 1028 * GB);
    let bench = Bench::baseline().ready(&[info]);
    let mut calls = 0;
    loop {
        let (rax, rdx) = tdmr_init(&bench, 4 * GB);
        assert_eq!(rax, 0);
        calls += 1;
        if calls % 4096 == 0 {
            bench.machine.notes();
        }
        if rdx >= 4 * GB + size {
            break;
        }
    }
    assert_eq!(calls, 1024 * 256);
}
