// SPDX-License-Identifier: GPL-2.0

//! Plans for machines from 2 GB to 6 TB: legal, shared among CPUs, and of known cost.
//!
//! The table that a run with `--nocapture` prints is part of the benchmark (`tools/bench.py`).

mod common;

use common::TERMS;
use std::time::Instant;
use tdx_host_tests::c_rules;
use tdx_host_tests::host::{configure, Config, Placer, Terms};
use tdx_host_tests::interval::{interval, Interval};
use tdx_host_tests::sys_config;
use tdx_host_tests::tdmr::Goal;

const GB: u64 = 1 << 30;
const PAGE: u64 = 4096;

/// Memory of a server of `size` with a hole of 2 GB below 4 GB and a node for each 2 TB.
fn memory(size: u64) -> Vec<Interval> {
    let low = interval(1 << 20, size.min(2 * GB));
    let end = size + 2 * GB;
    let nodes = (4 * GB..end).step_by(2048 * GB as usize);
    let high = nodes.map(|start| interval(start, end.min(start + 2048 * GB)));
    [low]
        .into_iter()
        .chain(high.filter(|_| size > 2 * GB))
        .collect()
}

/// Plans for `cpus`; the best time of some in microseconds.
fn plan(memory: &[Interval], cpus: usize) -> (Config, u128) {
    let frames = memory.iter().zip(0..);
    let triples: Vec<(u64, u64, i32)> = frames
        .map(|(region, nid)| (region.start / PAGE, region.end / PAGE, nid))
        .collect();
    let terms = Terms {
        goal: Goal::for_cpus(cpus),
        ..TERMS
    };
    let attempt = |_| {
        let mut placer = Placer::new(memory, &[7 << 60]);
        let start = Instant::now();
        let config = configure(&triples, memory, &terms, &mut placer).unwrap();
        (config, start.elapsed().as_micros())
    };
    (0..5)
        .map(attempt)
        .min_by_key(|(_, micros)| *micros)
        .unwrap()
}

/// KB of PAMT and number of TDMRs in the plan of the C.
fn plan_of_c(memory: &[Interval]) -> (u64, usize) {
    let memory: Vec<_> = memory.iter().copied().zip(0..).collect();
    let tdmrs = c_rules::tdmrs(&memory, 64).unwrap();
    let sizes = tdmrs
        .iter()
        .map(|(tdmr, _)| c_rules::pamt_sizes(*tdmr, [16; 3]));
    (sizes.flatten().sum::<u64>() >> 10, tdmrs.len())
}

#[test]
fn plans_for_any_size_are_shared_and_cost_at_most_a_page_for_each_cut() {
    println!("SCALING GB, TDMRs and PAMT KB of the C, CPUs, TDMRs, PAMT KB, microseconds");
    for size in [2, 8, 64, 512, 2048, 6144] {
        let memory = memory(size * GB);
        let (kb_of_c, tdmrs_of_c) = plan_of_c(&memory);
        for cpus in [1, 8, 128] {
            let (config, micros) = plan(&memory, cpus);
            let (kb, tdmrs) = (config.pamt_kb, config.tdmrs.len());
            println!("SCALING {size} {tdmrs_of_c} {kb_of_c} {cpus} {tdmrs} {kb} {micros}");
            assert_eq!(sys_config::faults(&config.infos, 16, &memory), [""; 0]);
            assert!(kb <= kb_of_c + (tdmrs - tdmrs_of_c) as u64 * PAGE / 1024);
            if cpus == 1 {
                assert_eq!(tdmrs, tdmrs_of_c);
                continue;
            }
            // With N CPUs, none works longer than its Nth of the memory and one TDMR more.
            let sizes = config.tdmrs.iter().map(|tdmr| tdmr.range().size() / GB);
            let largest = sizes.max().unwrap();
            let share = size / cpus as u64;
            assert!(
                largest <= (share / 3).max(size / 48).max(1),
                "{size} GB: {largest}"
            );
        }
    }
}
