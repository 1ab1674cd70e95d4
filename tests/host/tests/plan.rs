// SPDX-License-Identifier: GPL-2.0

//! Property tests of planning: from a random memory map to the operands of TDH.SYS.CONFIG.

mod common;

use common::{goal, machine, picks, Machine, ENTRIES, LIMITS};
use proptest::prelude::*;
use tdx_host_tests::c_rules;
use tdx_host_tests::exhaustive::bytes;
use tdx_host_tests::host::{configure, plain, Config, ConfigError, Placer, Terms};
use tdx_host_tests::interval::Interval;
use tdx_host_tests::pamt::{PamtEntrySizes, PamtError};
use tdx_host_tests::place::PlaceError;
use tdx_host_tests::sys_config;
use tdx_host_tests::tdmr::{Goal, Limits, PlanError};

fn terms(limits: Limits, goal: Goal) -> Terms {
    Terms {
        limits,
        entries: ENTRIES,
        goal,
    }
}

fn configured(machine: &Machine, terms: &Terms, picks: &[u64]) -> Result<Config, ConfigError> {
    let mut placer = Placer::new(&machine.intervals(), picks);
    configure(&machine.memory, &machine.cmrs, terms, &mut placer)
}

/// Limits from those of real modules down to none.
fn limits() -> impl Strategy<Value = Limits> {
    prop_oneof![
        2 => Just(LIMITS),
        3 => (0u16..12, 0u16..6).prop_map(|(max_tdmrs, max_reserved)| Limits {
            max_tdmrs,
            max_reserved,
        }),
    ]
}

fn tdmrs_of(config: &Config) -> Vec<Interval> {
    config.tdmrs.iter().map(|t| plain(&t.range())).collect()
}

/// The tables have the sizes they must have, and lie in the chunks, which hold nothing else.
fn check_tables(config: &Config, entries: &PamtEntrySizes) {
    let sizes = [entries.size_4k, entries.size_2m, entries.size_1g].map(u64::from);
    for (tdmr, tables) in config.tdmrs.iter().zip(&config.pamts) {
        let expected = c_rules::pamt_sizes(plain(&tdmr.range()), sizes);
        assert_eq!(tables.map(Interval::size), expected);
    }
    let mut tables: Vec<Interval> = config.pamts.iter().flatten().copied().collect();
    tables.sort();
    assert!(tables.windows(2).all(|w| w[0].end <= w[1].start));
    assert!(config.chunks.iter().all(|chunk| chunk.inside(&tables)));
    assert!(tables.iter().all(|table| table.inside(&config.chunks)));
    let total: u64 = tables.iter().map(|table| table.size()).sum();
    assert_eq!(config.pamt_kb, total / 1024);
}

/// A limit that is short by what the error says.
fn check_error(error: ConfigError, limits: &Limits) {
    match error {
        ConfigError::MemList(_) => {}
        ConfigError::Place(PlaceError::Plan(PlanError::TooManyTdmrs { used, max })) => {
            assert_eq!(max, limits.max_tdmrs);
            assert!(used > max.into());
        }
        ConfigError::Place(PlaceError::Plan(PlanError::ReservedAreasExhausted {
            holes,
            pamts,
            max,
            ..
        })) => {
            assert_eq!(max, limits.max_reserved);
            assert!(holes + pamts > max.into(), "{error}");
        }
        ConfigError::Place(PlaceError::Pamt(
            PamtError::NoMemory { .. } | PamtError::NoPlace { .. },
        )) => {}
        other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn every_plan_satisfies_the_rules_of_sys_config(
        machine in machine(40),
        limits in limits(),
        goal in goal(),
        picks in picks(),
    ) {
        match configured(&machine, &terms(limits, goal), &picks) {
            Ok(config) => {
                let max = limits.max_reserved.into();
                let faults = sys_config::faults(&config.infos, max, &machine.cmrs);
                prop_assert_eq!(faults, Vec::<String>::new());
                prop_assert!(config.tdmrs.len() <= limits.max_tdmrs.into());
                check_tables(&config, &ENTRIES);
                // All memory is usable, but for what PAMTs take.
                let mut reserved: Vec<Interval> = config.reserved.iter().flatten().copied().collect();
                reserved.retain(|area| !area.inside(&config.chunks));
                for region in machine.intervals() {
                    prop_assert!(region.inside(&tdmrs_of(&config)));
                    for piece in region.without(&config.chunks) {
                        prop_assert_eq!(piece.without(&reserved), [piece]);
                    }
                }
            }
            Err(error) => check_error(error, &limits),
        }
    }

    /// Where the C has a plan, there is one, with the C's TDMRs and bytes.
    #[test]
    fn plan_of_the_c_is_kept(machine in machine(40), limits in limits(), picks in picks()) {
        let regions = machine.regions();
        let Some(theirs) = c_rules::tdmrs(&regions, limits.max_tdmrs.into()) else {
            return Ok(());
        };
        // The C gives each TDMR a chunk of its own. Let them lie where ours would.
        let sizes = |tdmr: &Interval| c_rules::pamt_sizes(*tdmr, [16; 3]).iter().sum::<u64>();
        let ranges: Vec<Interval> = theirs.iter().map(|(tdmr, _)| *tdmr).collect();
        let mut placer = Placer::new(&machine.intervals(), &picks);
        let Some(chunks) = placer.intervals(ranges.iter().map(sizes)) else {
            return Ok(());
        };
        let fits = |tdmr: &Interval| {
            c_rules::reserved(&regions, *tdmr, &chunks, limits.max_reserved.into()).is_some()
        };
        if !ranges.iter().all(fits) {
            return Ok(());
        }
        let config = configured(&machine, &terms(limits, Goal::PLAIN), &picks);
        match config {
            Ok(config) => {
                let ours = config.tdmrs.iter().map(|t| (plain(&t.range()), t.node().get()));
                prop_assert_eq!(ours.collect::<Vec<_>>(), theirs);
                prop_assert_eq!(config.pamt_kb * 1024, bytes(&ranges));
            }
            Err(error) => prop_assert!(false, "{}", error),
        }
    }

    /// Beyond the C's bytes: two pages for each TDMR more, and what bridges GBs without memory.
    #[test]
    fn bytes_are_bounded_by_those_of_the_c(
        machine in machine(40),
        limits in limits(),
        goal in goal(),
        sizes in [1u16..100, 1u16..100, 1u16..100],
        picks in picks(),
    ) {
        let entries = PamtEntrySizes { size_4k: sizes[0], size_2m: sizes[1], size_1g: sizes[2] };
        let terms = Terms { limits, entries, goal };
        let Ok(config) = configured(&machine, &terms, &picks) else {
            return Ok(());
        };
        check_tables(&config, &entries);
        let theirs = c_rules::tdmrs(&machine.regions(), usize::MAX).unwrap();
        let theirs: Vec<Interval> = theirs.into_iter().map(|(tdmr, _)| tdmr).collect();
        let total = |tdmrs: &[Interval]| -> u64 {
            let sizes = sizes.map(u64::from);
            tdmrs.iter().flat_map(|t| c_rules::pamt_sizes(*t, sizes)).sum()
        };
        let bridged: Vec<Interval> =
            tdmrs_of(&config).iter().flat_map(|tdmr| tdmr.without(&theirs)).collect();
        let more = config.tdmrs.len().saturating_sub(theirs.len()) as u64;
        // Joining GBs rounds less often, cutting elsewhere can round up once more per table.
        let rounding = if bridged.is_empty() && more == 0 && config.tdmrs.len() == theirs.len() {
            if tdmrs_of(&config) == theirs { 0 } else { theirs.len() as u64 }
        } else {
            config.tdmrs.len() as u64
        };
        let bound = total(&theirs) + total(&bridged) + 8192 * rounding.max(more);
        prop_assert!(config.pamt_kb * 1024 <= bound);
        // GBs without memory are only covered where TDMRs are short.
        if theirs.len() <= limits.max_tdmrs.into() && limits == LIMITS {
            prop_assert_eq!(bridged, []);
        }
    }

    #[test]
    fn plans_are_deterministic(machine in machine(20), limits in limits(), goal in goal(), picks in picks()) {
        let terms = terms(limits, goal);
        let infos = || configured(&machine, &terms, &picks).map(|config| config.infos);
        prop_assert_eq!(infos(), infos());
    }

    #[test]
    fn wanted_number_of_tdmrs_is_had_if_it_can(machine in machine(20), min_tdmrs in 0u16..80, picks in picks()) {
        let goal = Goal { min_tdmrs, max_gb: u64::MAX };
        let (Ok(plain), Ok(many)) = (
            configured(&machine, &terms(LIMITS, Goal::PLAIN), &picks),
            configured(&machine, &terms(LIMITS, goal), &picks),
        ) else {
            return Ok(());
        };
        let gbs: u64 = plain.tdmrs.iter().map(|tdmr| tdmr.range().size() >> 30).sum();
        let gbs_of_many: u64 = many.tdmrs.iter().map(|tdmr| tdmr.range().size() >> 30).sum();
        prop_assert_eq!(gbs, gbs_of_many);
        // Pieces are of equal size: the next smaller size can be more than there are.
        let wanted = usize::from(min_tdmrs).min(gbs as usize).min(LIMITS.max_tdmrs.into());
        if many.tdmrs.len() < wanted {
            let largest = many.tdmrs.iter().map(|tdmr| tdmr.range().size() >> 30).max().unwrap();
            let smaller = plain.tdmrs.iter().map(|t| (t.range().size() >> 30).div_ceil(largest - 1));
            prop_assert!(smaller.sum::<u64>() > LIMITS.max_tdmrs.into());
        }
    }

    /// Chunks that cannot be had are asked for in pieces, down to those of 1 GB.
    #[test]
    fn small_pieces_of_memory_suffice(machine in machine(6), picks in picks()) {
        let all = Placer::new(&machine.intervals(), &picks);
        let small = Placer::with_largest(&machine.intervals(), &picks, 4 << 20);
        let run = |mut placer: Placer<'_>, max_tdmrs| {
            let limits = Limits { max_tdmrs, max_reserved: 1000 };
            configure(&machine.memory, &machine.cmrs, &terms(limits, Goal::PLAIN), &mut placer)
        };
        let gbs = match run(all, 1000) {
            Ok(config) => config.tdmrs.iter().map(|t| t.range().size() >> 30).sum::<u64>(),
            Err(_) => return Ok(()),
        };
        match run(small, gbs as u16) {
            Ok(config) => {
                prop_assert!(config.chunks.iter().all(|chunk| chunk.size() <= 4 << 20));
                check_tables(&config, &ENTRIES);
            }
            // Tables of 4 MB do not fill small regions as well as chunks chosen to fit.
            Err(ConfigError::Place(PlaceError::Pamt(_))) => {
                let free: u64 = machine.intervals().iter().map(|region| region.size()).sum();
                prop_assert!(free < 64 * gbs * (4 << 20));
            }
            Err(error) => prop_assert!(false, "{}", error),
        }
    }

    #[test]
    fn pamts_are_asked_for_on_the_nodes_of_their_tdmrs(machine in machine(20), picks in picks()) {
        let mut placer = Placer::new(&machine.intervals(), &picks);
        let terms = terms(Limits { max_tdmrs: 1000, max_reserved: 1000 }, Goal::PLAIN);
        if let Ok(config) = configure(&machine.memory, &machine.cmrs, &terms, &mut placer) {
            let mut nodes: Vec<_> = config.tdmrs.iter().map(|tdmr| tdmr.node()).collect();
            nodes.dedup();
            // Neighbours of one node share a chunk; if that was not to be had, it takes more.
            let mut asked = placer.nodes.clone();
            asked.dedup();
            prop_assert_eq!(nodes, asked);
        }
    }
}

/// The random maps must be good for something: most of them have a plan, some exceed a limit.
#[test]
fn random_maps_meet_every_outcome() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut planned, mut exhausted, mut unlike, mut saved) = (0, 0, 0, 0);
    for _ in 0..400 {
        let machine = machine(40).new_tree(&mut runner).unwrap().current();
        let picks = picks().new_tree(&mut runner).unwrap().current();
        let limits = limits().new_tree(&mut runner).unwrap().current();
        match configured(&machine, &terms(limits, Goal::PLAIN), &picks) {
            Ok(config) => {
                planned += 1;
                let regions = machine.regions();
                let theirs = c_rules::tdmrs(&regions, usize::MAX).unwrap();
                unlike += usize::from(theirs.len() != config.tdmrs.len());
                let max = limits.max_reserved.into();
                let short = |t: &Interval| c_rules::reserved(&regions, *t, &[], max).is_none();
                saved += usize::from(theirs.iter().any(|(tdmr, _)| short(tdmr)));
            }
            Err(ConfigError::Place(PlaceError::Plan(_))) => exhausted += 1,
            Err(_) => {}
        }
    }
    assert!(planned > 100, "{planned} of 400 have a plan");
    assert!(exhausted > 20, "{exhausted} of 400 exceed a limit");
    assert!(unlike > 20, "{unlike} of 400 have other TDMRs than the C");
    assert!(saved > 20, "{saved} of 400 have no plan with the C");
}
