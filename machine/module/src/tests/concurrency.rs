// SPDX-License-Identifier: GPL-2.0

//! Several processors at once, on real threads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::{Bench, GB, two_tdmrs};
use crate::leaf::number;

const BUSY: u64 = 0x8000_0200_0000_0001;
const SYS_BUSY: u64 = 0x8000_0202_0000_0000;
const FINISHED: u64 = 0x0000_0a03_0000_0000;

fn tdmr_init(bench: &Bench, lp: usize, base: u64) -> u64 {
    bench.rax_on(lp, number::SYS_TDMR_INIT, base, 0, 0)
}

#[test]
fn different_tdmrs_are_never_busy() {
    let bench = Bench::baseline().ready(&two_tdmrs());
    thread::scope(|scope| {
        for (lp, base, calls) in [(0, 4 * GB, 256), (1, 6 * GB, 512)] {
            let bench = &bench;
            scope.spawn(move || {
                for call in 0..calls {
                    assert_eq!(tdmr_init(bench, lp, base), 0, "LP {lp}, call {call}");
                }
                assert_eq!(tdmr_init(bench, lp, base), FINISHED);
            });
        }
    });
}

#[test]
fn processors_that_share_a_tdmr_lose_no_step() {
    let bench = Bench::baseline().ready(&two_tdmrs());
    let done = AtomicU64::new(0);
    thread::scope(|scope| {
        for lp in 0..4 {
            let (bench, done) = (&bench, &done);
            scope.spawn(move || {
                loop {
                    match tdmr_init(bench, lp, 6 * GB) {
                        0 => done.fetch_add(1, Ordering::Relaxed),
                        BUSY => continue,
                        FINISHED => break,
                        other => panic!("{other:x}"),
                    };
                }
            });
        }
    });
    assert_eq!(done.into_inner(), 512);
}

#[test]
fn one_of_many_initialisations_wins() {
    for _ in 0..50 {
        let bench = Bench::baseline();
        let won = AtomicU64::new(0);
        thread::scope(|scope| {
            for lp in 0..4 {
                let (bench, won) = (&bench, &won);
                scope.spawn(move || match bench.rax_on(lp, number::SYS_INIT, 0, 0, 0) {
                    0 => drop(won.fetch_add(1, Ordering::Relaxed)),
                    SYS_BUSY | 0xc000_0500_0000_0000 => {}
                    other => panic!("{other:x}"),
                });
            }
        });
        assert_eq!(won.into_inner(), 1);
    }
}
