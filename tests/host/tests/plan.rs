// SPDX-License-Identifier: GPL-2.0

//! Property tests of planning: from a random memory map to the operands of TDH.SYS.CONFIG.

mod common;

use common::{machine, picks, Machine, ENTRIES, LIMITS};
use proptest::prelude::*;
use tdx_host_tests::c_rules;
use tdx_host_tests::host::{configure, plain, Config, ConfigError, Placer};
use tdx_host_tests::interval::Interval;
use tdx_host_tests::pamt::PamtError;
use tdx_host_tests::sys_config;
use tdx_host_tests::tdmr::{Limits, PlanError};

/// Limits that no memory map of these tests exceeds, to look at plans the real module refuses.
const WIDE: Limits = Limits {
    max_tdmrs: 1000,
    max_reserved: 1000,
};

fn configured(machine: &Machine, limits: &Limits, picks: &[u64]) -> Result<Config, ConfigError> {
    let mut placer = Placer::new(&machine.intervals(), picks);
    configure(&machine.memory, limits, &ENTRIES, &mut placer)
}

/// Whether the failure is one that a machine can have without anyone's fault.
fn is_honest(error: ConfigError) -> bool {
    matches!(
        error,
        ConfigError::MemList(_)
            | ConfigError::Pamt(PamtError::NoMemory { .. })
            | ConfigError::Plan(PlanError::TooManyTdmrs { .. })
            | ConfigError::Plan(PlanError::ReservedAreasExhausted { .. })
    )
}

proptest! {
    #[test]
    fn every_plan_satisfies_the_rules_of_sys_config(machine in machine(40), picks in picks()) {
        match configured(&machine, &LIMITS, &picks) {
            Ok(config) => {
                let faults = sys_config::faults(&config.infos, 16, &machine.cmrs);
                prop_assert_eq!(faults, Vec::<String>::new());
            }
            Err(error) => prop_assert!(is_honest(error), "{:?}", error),
        }
    }

    #[test]
    fn tdmrs_equal_those_of_the_c(machine in machine(40), max_tdmrs in 0u16..30) {
        let limits = Limits { max_tdmrs, ..WIDE };
        let expected = c_rules::tdmrs(&machine.regions(), max_tdmrs.into());
        let wide_expected = c_rules::tdmrs(&machine.regions(), 1000);
        match configured(&machine, &limits, &[0]) {
            Ok(config) => {
                let ours = config.tdmrs.iter().map(|t| (plain(&t.range()), t.node().get()));
                prop_assert_eq!(Some(ours.collect()), expected);
            }
            Err(ConfigError::Plan(PlanError::TooManyTdmrs { used, max })) => {
                prop_assert_eq!(expected, None);
                prop_assert_eq!(Some(used), wide_expected.map(|list| list.len()));
                prop_assert_eq!(max, max_tdmrs);
            }
            Err(error) => prop_assert!(is_honest(error), "{:?}", error),
        }
    }

    #[test]
    fn pamts_and_reserved_areas_equal_those_of_the_c(
        machine in machine(40),
        picks in picks(),
        max_reserved in 0u16..40,
    ) {
        let limits = Limits { max_reserved, ..WIDE };
        // With wide limits there is a plan wherever the PAMTs fit.
        let wide = match configured(&machine, &WIDE, &picks) {
            Ok(config) => config,
            Err(error) => {
                prop_assert!(is_honest(error), "{:?}", error);
                return Ok(());
            }
        };
        let tdmrs: Vec<Interval> = wide.tdmrs.iter().map(|t| plain(&t.range())).collect();
        let mut bytes = 0;
        for (tdmr, pamt) in tdmrs.iter().zip(&wide.pamts) {
            let size = c_rules::pamt_sizes(*tdmr, [16; 3]).iter().sum::<u64>();
            prop_assert_eq!(pamt.size(), size);
            bytes += size;
        }
        prop_assert_eq!(wide.pamt_kb, bytes / 1024);

        let regions = machine.regions();
        let expected: Option<Vec<Vec<Interval>>> = tdmrs
            .iter()
            .map(|t| c_rules::reserved(&regions, *t, &wide.pamts, max_reserved.into()))
            .collect();
        match configured(&machine, &limits, &picks) {
            Ok(config) => prop_assert_eq!(Some(config.reserved), expected),
            Err(ConfigError::Plan(PlanError::ReservedAreasExhausted { tdmr, holes, pamts, max })) => {
                prop_assert_eq!(expected, None);
                prop_assert_eq!(max, max_reserved);
                let all = c_rules::reserved(&regions, plain(&tdmr), &wide.pamts, 1000);
                prop_assert_eq!(Some(holes + pamts), all.map(|areas| areas.len()));
            }
            Err(error) => prop_assert!(false, "{:?}", error),
        }
    }

    #[test]
    fn plans_are_deterministic(machine in machine(20), picks in picks()) {
        let infos = || configured(&machine, &WIDE, &picks).map(|config| config.infos);
        prop_assert_eq!(infos(), infos());
    }

    #[test]
    fn pamts_are_asked_for_on_the_node_of_the_tdmr(machine in machine(20), picks in picks()) {
        let mut placer = Placer::new(&machine.intervals(), &picks);
        if let Ok(config) = configure(&machine.memory, &WIDE, &ENTRIES, &mut placer) {
            let nodes = config.tdmrs.iter().map(|tdmr| tdmr.node());
            prop_assert!(nodes.eq(placer.nodes.iter().copied()));
        }
    }
}

/// The random maps must be good for something: most of them have a plan, some exceed a limit.
#[test]
fn random_maps_meet_every_outcome() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut planned, mut exhausted, mut inner_pamts) = (0, 0, 0);
    for _ in 0..400 {
        let machine = machine(40).new_tree(&mut runner).unwrap().current();
        let picks = picks().new_tree(&mut runner).unwrap().current();
        match configured(&machine, &LIMITS, &picks) {
            Ok(config) => {
                planned += 1;
                let most = config.reserved.iter().map(Vec::len).max();
                inner_pamts += usize::from(most > Some(2));
            }
            Err(ConfigError::Plan(PlanError::ReservedAreasExhausted { .. })) => exhausted += 1,
            Err(_) => {}
        }
    }
    assert!(planned > 100, "{planned} of 400 have a plan");
    assert!(exhausted > 20, "{exhausted} of 400 exceed a limit");
    assert!(inner_pamts > 50, "{inner_pamts} of 400 are interesting");
}
