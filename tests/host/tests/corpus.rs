// SPDX-License-Identifier: GPL-2.0

//! The fuzzers' corpus, without a fuzzer.

use std::fs;
use std::path::Path;

use tdx_host_tests::fuzzing;

/// Runs `target` with each file of its corpus; there must be some.
fn replay(name: &str, target: fn(&[u8])) {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = top.join("../fuzz/corpus").join(name);
    let mut files = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        target(&fs::read(path).unwrap());
        files += 1;
    }
    assert!(files > 10, "{files} files in the corpus of {name}");
}

#[test]
fn corpus_of_the_planner() {
    replay("plan", fuzzing::plan);
}

#[test]
fn corpus_of_metadata() {
    replay("metadata", fuzzing::metadata);
}

#[test]
fn corpus_of_images() {
    replay("image", fuzzing::image);
}
