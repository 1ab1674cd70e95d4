// SPDX-License-Identifier: GPL-2.0

//! Counting agreement: [`Report`].

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use tdx_module::{Regs, status_name};

/// How the calls of one leaf came out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All calls in the records.
    pub calls: u64,
    /// Calls that the model answered as recorded.
    pub agreed: u64,
    /// Calls that the model answered otherwise.
    pub disagreed: u64,
}

/// The result of a replay.
#[derive(Clone, Debug, Default)]
pub struct Report {
    tallies: BTreeMap<String, Tally>,
    disagreements: Vec<String>,
    /// Number of disagreements to keep in full.
    keep: usize,
}

impl Report {
    /// An empty report that keeps the first `keep` disagreements in full.
    pub fn new(keep: usize) -> Self {
        Self {
            keep,
            ..Self::default()
        }
    }

    fn tally(&mut self, leaf: &str, calls: u64) -> &mut Tally {
        let tally = self.tallies.entry(leaf.to_owned()).or_default();
        tally.calls += calls;
        tally
    }

    /// Notes calls that were answered as recorded.
    pub fn agree(&mut self, leaf: &str, calls: u64) {
        self.tally(leaf, calls).agreed += calls;
    }

    /// Notes calls that were answered otherwise; `context` describes the first of them.
    pub fn disagree(&mut self, leaf: &str, calls: u64, context: impl FnOnce() -> String) {
        self.tally(leaf, calls).disagreed += calls;
        if self.disagreements.len() < self.keep {
            self.disagreements.push(context());
        }
    }

    /// Sums over all leaves.
    pub fn total(&self) -> Tally {
        let mut total = Tally::default();
        for tally in self.tallies.values() {
            total.calls += tally.calls;
            total.agreed += tally.agreed;
            total.disagreed += tally.disagreed;
        }
        total
    }

    /// The tally of one leaf, if it was called.
    pub fn of(&self, leaf: &str) -> Option<&Tally> {
        self.tallies.get(leaf)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for disagreement in &self.disagreements {
            writeln!(f, "{disagreement}")?;
        }
        let head = ["leaf", "calls", "agreed", "differ"];
        writeln!(
            f,
            "{:30} {:>8} {:>8} {:>8}",
            head[0], head[1], head[2], head[3]
        )?;
        for (leaf, tally) in &self.tallies {
            row(f, leaf, tally)?;
        }
        row(f, "total", &self.total())
    }
}

fn row(f: &mut fmt::Formatter<'_>, leaf: &str, tally: &Tally) -> fmt::Result {
    let (calls, agreed, disagreed) = (tally.calls, tally.agreed, tally.disagreed);
    writeln!(f, "{leaf:30} {calls:>8} {agreed:>8} {disagreed:>8}")
}

/// Shows how two register files differ and what was passed in, a line for each register.
pub fn compare(input: &Regs, expected: &Regs, got: &Regs) -> String {
    let mut text = String::new();
    let values = input
        .values()
        .into_iter()
        .zip(expected.values())
        .zip(got.values());
    for (name, ((input, expected), got)) in Regs::NAMES.iter().zip(values) {
        let note = if expected == got { "" } else { "  <-- differs" };
        let _ = writeln!(
            text,
            "    {name:3}  in {input:016x}  recorded {expected:016x}  model {got:016x}{note}"
        );
    }
    let name = |status| status_name(status).unwrap_or("?");
    let _ = write!(
        text,
        "    recorded {}, model {}",
        name(expected.rax),
        name(got.rax)
    );
    text
}
