// SPDX-License-Identifier: GPL-2.0

//! What a user of `tdx-replay` sees: exit status and messages.

use std::path::Path;
use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tdx-replay"))
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data"))
        .output()
        .expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs with a file that holds `lines`.
fn run_on(command: &str, name: &str, lines: &str) -> Output {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, lines).expect("a file in the target directory");
    run(&[command, &path.to_string_lossy()])
}

const GOOD: &str =
    r#"{"cmrs":[[4294967296,4294967296]],"n":0,"r8":16,"tdmrs":[],"status":"c000010000000002"}"#;

#[test]
fn agreement_is_success() {
    let output = run(&["vectors", "sys-config-vectors.jsonl.gz"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    let last = text(&output.stdout)
        .lines()
        .last()
        .unwrap_or_default()
        .to_owned();
    assert_eq!(
        last.split_whitespace().collect::<Vec<_>>(),
        ["total", "250", "250", "0"]
    );
}

#[test]
fn plain_files_work_too_and_a_disagreement_shows_the_registers() {
    assert_eq!(run_on("vectors", "good.jsonl", GOOD).status.code(), Some(0));
    let bad = GOOD.replace("c000010000000002", "c000010000000001");
    let output = run_on("vectors", "bad.jsonl", &bad);
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stdout);
    assert!(shown.contains("vector 1"), "{shown}");
    assert!(
        shown.contains("recorded c000010000000001  model c000010000000002"),
        "{shown}"
    );
}

#[test]
fn a_call_that_is_recorded_otherwise_names_sequence_and_step() {
    let sequence = r#"{"id":7,"platform":{"module":"1.5.01","lps":1,"lp_package":[0],"keyid_bits":6,
        "num_mktme_keyids":15,"num_tdx_keyids":48,"cache_sub_blocks":4,"seamrr":["7c000000","2000000"],
        "cmrs":[["100000","7bf00000"]]},"steps":[{"lp":0,"rax":"2c","out":{"rax":"0"}},
        {"lp":0,"rax":"21","rcx":"0","out":{"rax":"1"}}]}"#;
    let output = run_on("sequences", "sequence.jsonl", &sequence.replace('\n', ""));
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stdout);
    assert!(
        shown.contains("sequence 7, step 1: TDH.SYS.INIT on LP 0"),
        "{shown}"
    );
    assert!(shown.contains("TDH.SYS.LP.SHUTDOWN"), "{shown}");
}

#[test]
fn nothing_replayed_is_no_success() {
    assert_eq!(run_on("vectors", "empty.jsonl", "").status.code(), Some(1));
}

#[test]
fn input_that_cannot_be_read_is_named_with_its_line() {
    let output = run_on("vectors", "broken.jsonl", &format!("{GOOD}\n{{"));
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("broken.jsonl:2:"),
        "{}",
        text(&output.stderr)
    );
    let output = run(&["sequences", "no-such-file.jsonl"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("no-such-file.jsonl"));
    let output = run(&[
        "vectors",
        "--platform",
        "README.md",
        "sys-config-vectors.jsonl.gz",
    ]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("README.md"));
}

#[test]
fn an_unknown_register_is_an_error_not_an_agreement() {
    let sequence = r#"{"id":0,"platform":{"module":"1.5.01","lps":1,"lp_package":[0],"keyid_bits":6,
        "num_mktme_keyids":15,"num_tdx_keyids":48,"cache_sub_blocks":4,"seamrr":["7c000000","2000000"],
        "cmrs":[]},"steps":[{"lp":0,"rax":"2c","rxx":"0","out":{"rax":"0"}}]}"#;
    let output = run_on("sequences", "register.jsonl", &sequence.replace('\n', ""));
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("unknown key \"rxx\""),
        "{}",
        text(&output.stderr)
    );
}
