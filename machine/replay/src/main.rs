// SPDX-License-Identifier: GPL-2.0

//! `tdx-replay`: does the model answer as the real TDX module did?

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tdx_replay::input::{Error, for_each_record};
use tdx_replay::platform::Processor;
use tdx_replay::report::Report;
use tdx_replay::{sequences, vectors};

/// Replays recorded answers of the real TDX module against the model.
///
/// Files hold JSON lines, plain (.jsonl) or compressed (.jsonl.gz). The exit status is 0 if every
/// call that was made agrees, 1 if one differs or none was made, 2 if something cannot be read.
#[derive(Parser)]
#[command(version)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Replay verdicts of TDH.SYS.CONFIG.
    Vectors {
        #[command(flatten)]
        common: Common,
    },
    /// Replay sequences of SEAMCALLs.
    Sequences {
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Args)]
struct Common {
    /// Files to replay.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// CPUID and MSRs of the recorded machines, instead of the built-in ones.
    #[arg(long, value_name = "JSON")]
    platform: Option<PathBuf>,
    /// Disagreements to print in full.
    #[arg(long, value_name = "N", default_value_t = 5)]
    show: usize,
}

impl Common {
    fn processor(&self) -> Result<Processor, Error> {
        self.platform
            .as_deref()
            .map_or_else(Processor::built_in, Processor::from_file)
    }
}

fn main() -> ExitCode {
    match run(&Options::parse().command) {
        Ok(report) => {
            print!("{report}");
            let total = report.total();
            ExitCode::from(u8::from(total.disagreed > 0 || total.agreed == 0))
        }
        Err(error) => {
            eprintln!("tdx-replay: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(command: &Command) -> Result<Report, Error> {
    match command {
        Command::Vectors { common } => run_vectors(common),
        Command::Sequences { common } => run_sequences(common),
    }
}

fn run_vectors(common: &Common) -> Result<Report, Error> {
    let processor = common.processor()?;
    let mut report = Report::new(common.show);
    for file in &common.files {
        let mut number = 0;
        for_each_record(file, |vector| {
            number += 1;
            vectors::replay(&vector, number, &processor, &mut report)
        })?;
    }
    Ok(report)
}

fn run_sequences(common: &Common) -> Result<Report, Error> {
    let processor = common.processor()?;
    let mut report = Report::new(common.show);
    for file in &common.files {
        for_each_record(file, |sequence| {
            sequences::replay(&sequence, &processor, &mut report)
        })?;
    }
    Ok(report)
}
