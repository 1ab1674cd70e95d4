// SPDX-License-Identifier: GPL-2.0

//! The model answers like the real module: replays of the records in `tests/data`.

use std::path::{Path, PathBuf};

use tdx_replay::input::for_each_record;
use tdx_replay::platform::Processor;
use tdx_replay::report::Report;
use tdx_replay::sequences::{self, GUEST_EXIT};
use tdx_replay::step::Sequence;
use tdx_replay::vectors::{self, Vector};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

fn replay_vectors(change: impl Fn(&mut Vector)) -> Report {
    let processor = Processor::built_in().expect("the embedded platform");
    let mut report = Report::new(3);
    let mut number = 0;
    for_each_record(
        &data("sys-config-vectors.jsonl.gz"),
        |mut vector: Vector| {
            number += 1;
            change(&mut vector);
            vectors::replay(&vector, number, &processor, &mut report)
        },
    )
    .expect("well-formed vectors");
    report
}

fn replay_sequences(change: impl Fn(&mut Sequence)) -> Report {
    let processor = Processor::built_in().expect("the embedded platform");
    let mut report = Report::new(3);
    for_each_record(
        &data("seamcall-sequences.jsonl.gz"),
        |mut sequence: Sequence| {
            change(&mut sequence);
            sequences::replay(&sequence, &processor, &mut report)
        },
    )
    .expect("well-formed sequences");
    report
}

#[test]
fn every_verdict_of_sys_config_agrees() {
    let report = replay_vectors(|_| {});
    let total = report.total();
    assert_eq!((total.calls, total.agreed), (250, 250), "\n{report}");
}

#[test]
fn a_verdict_that_is_wrong_in_one_bit_disagrees() {
    let report = replay_vectors(|vector| vector.status.0 ^= 1);
    assert_eq!(report.total().disagreed, 250);
    assert!(report.to_string().contains("<-- differs"));
}

/// Every leaf that is recorded, and how many calls of it there are at least.
const RECORDED: [(&str, u64); 38] = [
    ("TDH.MEM.PAGE.ADD", 70),
    ("TDH.MEM.PAGE.AUG", 160),
    ("TDH.MEM.PAGE.REMOVE", 220),
    ("TDH.MEM.RANGE.BLOCK", 220),
    ("TDH.MEM.RANGE.UNBLOCK", 70),
    ("TDH.MEM.SEPT.ADD", 430),
    ("TDH.MEM.SEPT.REMOVE", 130),
    ("TDH.MEM.TRACK", 280),
    ("TDH.MNG.ADDCX", 330),
    ("TDH.MNG.CREATE", 120),
    ("TDH.MNG.INIT", 110),
    ("TDH.MNG.KEY.CONFIG", 100),
    ("TDH.MNG.KEY.FREEID", 50),
    ("TDH.MNG.RD", 260),
    ("TDH.MNG.VPFLUSHDONE", 50),
    ("TDH.MR.EXTEND", 190),
    ("TDH.MR.FINALIZE", 50),
    ("TDH.PHYMEM.CACHE.WB", 80),
    ("TDH.PHYMEM.PAGE.RDMD", 140),
    ("TDH.PHYMEM.PAGE.RECLAIM", 750),
    ("TDH.PHYMEM.PAGE.WBINVD", 130),
    ("TDH.SYS.CONFIG", 70),
    ("TDH.SYS.INIT", 50),
    ("TDH.SYS.KEY.CONFIG", 60),
    ("TDH.SYS.LP.INIT", 180),
    ("TDH.SYS.LP.SHUTDOWN", 20),
    ("TDH.SYS.RD", 2230),
    ("TDH.SYS.SHUTDOWN", 10),
    ("TDH.SYS.TDMR.INIT", 11540),
    ("TDH.SYS.UPDATE", 10),
    ("TDH.VP.ADDCX", 470),
    ("TDH.VP.CREATE", 130),
    ("TDH.VP.ENTER", 250),
    ("TDH.VP.FLUSH", 110),
    ("TDH.VP.INIT", 90),
    ("TDH.VP.RD", 100),
    ("TDH.VP.WR", 270),
    (GUEST_EXIT, 160),
];

#[test]
fn every_call_and_every_guest_exit_agrees() {
    let report = replay_sequences(|_| {});
    let total = report.total();
    assert_eq!(total.agreed, total.calls, "\n{report}");
    for (name, least) in RECORDED {
        let calls = report.of(name).map_or(0, |tally| tally.calls);
        assert!(calls >= least, "{name} is called {calls} times");
    }
}

#[test]
fn a_machine_with_other_key_ids_disagrees() {
    let report = replay_sequences(|sequence| sequence.platform.num_mktme_keyids += 1);
    assert!(report.total().disagreed > 0, "\n{report}");
}
