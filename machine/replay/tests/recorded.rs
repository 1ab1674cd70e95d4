// SPDX-License-Identifier: GPL-2.0

//! The model answers like the real module: replays of the records in `tests/data`.

use std::path::{Path, PathBuf};

use tdx_replay::input::for_each_record;
use tdx_replay::platform::Processor;
use tdx_replay::report::Report;
use tdx_replay::sequences::{self, Options};
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

fn replay_sequences() -> Report {
    let processor = Processor::built_in().expect("the embedded platform");
    let mut report = Report::new(3);
    for_each_record(
        &data("seamcall-sequences.jsonl.gz"),
        |sequence: Sequence| {
            sequences::replay(&sequence, &processor, Options::default(), &mut report)
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

#[test]
fn every_call_of_a_modelled_leaf_agrees() {
    let report = replay_sequences();
    let total = report.total();
    let skipped: u64 = total.skipped.values().sum();
    assert_eq!(total.disagreed, 0, "\n{report}");
    assert_eq!(total.agreed + skipped, total.calls);
    for leaf in [
        "INIT",
        "LP.INIT",
        "RD",
        "CONFIG",
        "KEY.CONFIG",
        "TDMR.INIT",
        "UPDATE",
    ] {
        let tally = report.of(&format!("TDH.SYS.{leaf}")).expect("it is called");
        assert_eq!(tally.agreed, tally.calls, "{leaf} is never skipped");
        assert!(tally.calls >= 5, "{leaf} is called {} times", tally.calls);
    }
}
