// SPDX-License-Identifier: GPL-2.0

//! Plans before the judge: TDH.SYS.CONFIG of the simulated TDX module.

mod common;

use common::server::Server;
use common::{global_keyid, goal, machine, picks, TERMS};
use proptest::prelude::*;
use tdx_host_tests::host::{configure, Placer, Terms};
use tdx_host_tests::sys_config;
use tdx_module::status_name;

/// A small change to one word of one structure, as a slip of the planner would make it.
#[derive(Clone, Copy, Debug)]
enum Slip {
    Add(u64),
    Subtract(u64),
    Set(u64),
}

fn slip() -> impl Strategy<Value = Slip> {
    let amount = prop_oneof![
        Just(1u64),
        Just(4096),
        Just(8192),
        Just(1 << 21),
        Just(1 << 30)
    ];
    prop_oneof![
        amount.clone().prop_map(Slip::Add),
        amount.prop_map(Slip::Subtract),
        Just(Slip::Set(0)),
        Just(Slip::Set(u64::MAX)),
    ]
}

impl Slip {
    fn apply(self, word: u64) -> u64 {
        match self {
            Slip::Add(amount) => word.wrapping_add(amount),
            Slip::Subtract(amount) => word.wrapping_sub(amount),
            Slip::Set(value) => value,
        }
    }
}

proptest! {
    #[test]
    fn every_plan_is_accepted(machine in machine(40), goal in goal(), picks in picks()) {
        let terms = Terms { goal, ..TERMS };
        let mut placer = Placer::new(&machine.intervals(), &picks);
        if let Ok(config) = configure(&machine.memory, &machine.cmrs, &terms, &mut placer) {
            let mut server = Server::start(&machine.cmrs);
            let status = server.config(&config.infos, global_keyid());
            prop_assert_eq!(status, 0, "{:?}", status_name(status));
        }
    }

    /// The judge refuses what the independent checker finds fault with, and nothing else.
    #[test]
    fn judge_and_checker_agree_about_slips(
        machine in machine(12),
        picks in picks(),
        slips in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..20, slip()), 1..3),
    ) {
        let mut placer = Placer::new(&machine.intervals(), &picks);
        if let Ok(mut config) = configure(&machine.memory, &machine.cmrs, &TERMS, &mut placer) {
            for (index, word, slip) in slips {
                let info = index.index(config.infos.len());
                let word = &mut config.infos[info][word];
                *word = slip.apply(*word);
            }
            let mut server = Server::start(&machine.cmrs);
            let status = server.config(&config.infos, global_keyid());
            let faults = sys_config::faults(&config.infos, 16, &machine.cmrs);
            let verdict = status_name(status);
            prop_assert_eq!(status == 0, faults.is_empty(), "{:?} {:?}", verdict, faults);
        }
    }
}

#[test]
fn other_keyids_and_empty_plans_are_refused() {
    let cmr = tdx_host_tests::interval::interval(1 << 20, 4 << 30);
    let memory = [(0x100, 4 << 18, 0)];
    let mut placer = Placer::new(&[cmr], &[0]);
    let config = configure(&memory, &[cmr], &TERMS, &mut placer).unwrap();
    let mut server = Server::start(&[cmr]);
    assert_ne!(server.config(&[], global_keyid()), 0);
    assert_ne!(server.config(&config.infos, global_keyid() - 1), 0);
    assert_eq!(server.config(&config.infos, global_keyid()), 0);
}
