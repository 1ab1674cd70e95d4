// SPDX-License-Identifier: GPL-2.0

//! Whenever trying everything finds a legal plan, so does the planner.

mod common;

use common::ENTRIES;
use proptest::prelude::*;
use tdx_host_tests::exhaustive::{search, Answer, Instance};
use tdx_host_tests::host::{configure, Config, ConfigError, Placer, Terms};
use tdx_host_tests::interval::{interval, Interval};
use tdx_host_tests::sys_config;
use tdx_host_tests::tdmr::{Goal, Limits};

/// Lengths of holes and of memory: anything that no table and no sum of tables is as long as.
fn odd_length() -> impl Strategy<Value = u64> + Clone {
    prop_oneof![
        1 => Just(64u64 << 10),
        4 => (0u64..1024).prop_map(|mb| (mb << 20) + (64 << 10)),
        2 => (1u64..3).prop_map(|gb| (gb << 30) + (64 << 10)),
    ]
}

/// Lengths that make trouble: those of tables and their sums, too.
fn length() -> impl Strategy<Value = u64> + Clone {
    prop_oneof![
        2 => Just(4096u64),
        2 => Just(8192),
        1 => Just(12288),
        2 => Just(4 << 20),
        2 => Just((4 << 20) + 12288),
        7 => odd_length(),
    ]
}

/// Machines of at most 5 GB with a few regions; some holes are convertible.
fn instance<S: Strategy<Value = u64> + Clone>(length: S) -> impl Strategy<Value = Instance> {
    let step = (
        length.clone(),
        any::<bool>(),
        length,
        any::<bool>(),
        any::<bool>(),
    );
    let list = proptest::collection::vec(step, 1..7);
    (list, 1usize..5, 1usize..4).prop_map(|(list, max_tdmrs, max_reserved)| {
        let top = 5 << 30;
        let mut next = 1 << 20;
        let (mut memory, mut cmrs): (Vec<Interval>, Vec<Interval>) = Default::default();
        for (hole, bridge, size, to_gigabyte, touch) in list {
            let start = next + if touch { 0 } else { hole };
            let mut end = start + size;
            if to_gigabyte {
                end = end.next_multiple_of(1 << 30);
            }
            if end > top {
                break;
            }
            memory.push(interval(start, end));
            match cmrs.last_mut() {
                Some(last) if bridge || last.end == start => last.end = end,
                _ => cmrs.push(interval(start, end)),
            }
            next = end;
        }
        if memory.is_empty() {
            memory.push(interval(1 << 20, 1 << 30));
            cmrs.clone_from(&memory);
        }
        Instance {
            memory,
            cmrs,
            max_tdmrs,
            max_reserved,
        }
    })
}

fn planned(instance: &Instance, picks: &[u64]) -> Result<Config, ConfigError> {
    let triples = instance.memory.iter().zip(0..);
    let triples: Vec<_> = triples
        .map(|(region, nid)| (region.start / 4096, region.end / 4096, nid % 2))
        .collect();
    let terms = Terms {
        limits: Limits {
            max_tdmrs: instance.max_tdmrs as u16,
            max_reserved: instance.max_reserved as u16,
        },
        entries: ENTRIES,
        goal: Goal::PLAIN,
    };
    let mut placer = Placer::new(&instance.memory, picks);
    configure(&triples, &instance.cmrs, &terms, &mut placer)
}

proptest! {
    #[test]
    fn planner_finds_what_exists(instance in instance(odd_length()), picks in common::picks()) {
        let found = search(&instance);
        match planned(&instance, &picks) {
            Ok(config) => {
                prop_assert_ne!(found, Answer::Impossible);
                let max = instance.max_reserved;
                prop_assert_eq!(sys_config::faults(&config.infos, max, &instance.cmrs), [""; 0]);
            }
            Err(error) => {
                let legal = matches!(found, Answer::Legal(_));
                prop_assert!(!legal, "{} {:x?}", error, instance);
            }
        }
    }
}

/// Found by looking at 100000 machines: a table of 8 MB ends where memory does, and reaches into
/// the GB below. With the latest cut that belongs to a TDMR without an area left.
#[test]
fn cuts_are_made_early_where_that_helps() {
    const GB: u64 = 1 << 30;
    let end = 2 * GB + (192 << 10);
    let instance = Instance {
        memory: vec![
            interval(1 << 20, (1 << 20) + (64 << 10)),
            interval(2 << 20, GB),
            interval(GB, 2 * GB),
            interval(2 * GB, end),
        ],
        cmrs: vec![interval(1 << 20, end)],
        max_tdmrs: 2,
        max_reserved: 1,
    };
    assert!(matches!(search(&instance), Answer::Legal(_)));
    let config = planned(&instance, &[1]).unwrap();
    let gigabytes = config.tdmrs.iter().map(|tdmr| tdmr.range().size() >> 30);
    assert!(gigabytes.eq([1, 2]));
    assert_eq!(
        sys_config::faults(&config.infos, 1, &instance.cmrs),
        [""; 0]
    );
}

/// What came of some small machines.
#[derive(Debug, Default)]
struct Tally {
    planned: u32,
    impossible: u32,
    /// The search was given up, and the planner found nothing.
    unknown: u32,
    /// The search found a plan, and the planner none.
    missed: u32,
}

fn tally(instances: impl Strategy<Value = Instance>, count: u32) -> Tally {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut tally = Tally::default();
    for _ in 0..count {
        let instance = instances.new_tree(&mut runner).unwrap().current();
        if planned(&instance, &[1]).is_ok() {
            tally.planned += 1;
            continue;
        }
        match search(&instance) {
            Answer::Legal(_) => tally.missed += 1,
            Answer::Impossible => tally.impossible += 1,
            Answer::Unknown => tally.unknown += 1,
        }
    }
    tally
}

/// The machines must be good for something: some have a plan, others none, few are undecided.
#[test]
fn small_machines_meet_every_outcome() {
    let tally = tally(instance(odd_length()), 400);
    assert!(tally.planned > 100, "{tally:?}");
    assert!(tally.impossible > 50, "{tally:?}");
    assert!(tally.unknown < 10, "{tally:?}");
    assert_eq!(tally.missed, 0, "{tally:?}");
}

/// Where tables must fill memory between holes exactly, the planner is not complete, but close.
#[test]
fn few_exact_fits_are_missed() {
    let tally = tally(instance(length()), 400);
    assert!(tally.missed <= 4, "{tally:?}");
}
