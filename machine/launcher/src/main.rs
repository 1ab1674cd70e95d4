// SPDX-License-Identifier: GPL-2.0

//! `tdx-machine`: boots a kernel on a simulated TDX server. See `--help`.

use clap::Parser;
use std::process::ExitCode;
use tdx_machine::cli::{Cli, Command};
use tdx_machine::{explain, image, run};

/// Exit status for a wrong command line, as clap uses it.
const USAGE: u8 = 2;
/// Exit status when the machine cannot run.
const MACHINE: u8 = 4;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(options) => match run::run(&options) {
            Ok(status) => status.into(),
            Err(run::Error::Usage(text)) => fail(&text, USAGE),
            Err(run::Error::Machine(text)) => fail(&text, MACHINE),
        },
        Command::Explain { status } => match explain::explain(&status) {
            Ok(text) => print(&text),
            Err(text) => fail(&text, USAGE),
        },
        Command::Leaves => print(&explain::leaves()),
        Command::Image(options) => match image::write(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(run::Error::Usage(text)) => fail(&text, USAGE),
            Err(run::Error::Machine(text)) => fail(&text, MACHINE),
        },
    }
}

fn print(text: &str) -> ExitCode {
    println!("{text}");
    ExitCode::SUCCESS
}

fn fail(text: &str, status: u8) -> ExitCode {
    eprintln!("tdx-machine: {text}");
    status.into()
}
