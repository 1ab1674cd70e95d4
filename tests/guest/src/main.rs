// SPDX-License-Identifier: GPL-2.0
//! td-client: a small VMM that takes TDs through their life with `/dev/kvm`.
//!
//! `info` says what KVM offers, `run` builds TDs, runs and destroys them,
//! `exhaust` uses up all KeyIDs, and `normal` tries a VM that is no TD. What runs inside a TD is not the client's: on
//! the simulated machine it is the machine's script. Exit status 0: all went
//! well; 1: a step failed, and a line on standard error says which.

mod abi;
mod device;
mod exits;
mod failure;
mod info;
mod memory;
mod normal;
mod run;
mod td;

use clap::Args;
use clap::Parser;
use clap::Subcommand;
use failure::Context;
use failure::Failure;
use kvm_ioctls::Kvm;
use memory::pages;
use run::Counts;
use run::Limits;
use run::Running;
use run::list;
use std::process::ExitCode;
use std::time::Duration;
use td::Plan;
use td::Td;

/// Takes TDs through their life with /dev/kvm.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say what KVM offers for TDs
    Info,
    /// Build TDs, run them until they end, and destroy them
    Run {
        #[command(flatten)]
        shape: Shape,
        #[command(flatten)]
        stop: Stop,
        /// TDs that live at the same time
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=4096))]
        tds: u64,
        /// Times to do all of it
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
        repeat: u64,
    },
    /// Build TDs until KVM refuses one, destroy one, and build that one again
    Exhaust {
        #[command(flatten)]
        shape: Shape,
        /// Most TDs to build; it is a failure if KVM takes them all
        #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=4096))]
        tds: u64,
    },
    /// Try a VM that is no TD
    Normal,
}

/// What each TD is made of.
#[derive(Args)]
struct Shape {
    /// vCPUs of each TD
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    vcpus: u64,
    /// Measured pages, from GPA 0
    #[arg(long, value_name = "N", default_value_t = 4)]
    pages: u64,
    /// Pages after those that are there from the start too, but not measured
    #[arg(long, value_name = "N", default_value_t = 1)]
    unmeasured: u64,
    /// Megabytes of memory, from GPA 0
    #[arg(long, value_name = "MB", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=65536))]
    memory: u64,
    /// Read the CPUID values that the TD sees
    #[arg(long)]
    read_cpuid: bool,
}

impl Shape {
    fn plan(&self) -> Result<Plan, Failure> {
        let memory = self.memory << 20;
        if pages(self.pages.saturating_add(self.unmeasured)) > memory {
            return Err(Failure::new(format!(
                "--pages {} and --unmeasured {} do not fit into {} MB",
                self.pages, self.unmeasured, self.memory
            )));
        }
        Ok(Plan {
            vcpus: self.vcpus,
            memory,
            measured: self.pages,
            unmeasured: self.unmeasured,
            read_cpuid: self.read_cpuid,
        })
    }
}

/// When a TD is stopped.
#[derive(Args)]
struct Stop {
    /// Stop a TD after this many exits
    #[arg(long, value_name = "N")]
    max_exits: Option<u64>,
    /// Stop a TD when all its vCPUs are halted
    #[arg(long)]
    until_halt: bool,
    /// Seconds after which a TD must have ended
    #[arg(long, value_name = "S", default_value_t = 60)]
    timeout: u64,
    /// Move each vCPU to another CPU before each entry
    #[arg(long)]
    roam: bool,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Info => td::open().and_then(|kvm| info::print(&kvm)),
        Command::Run {
            shape,
            stop,
            tds,
            repeat,
        } => run(&shape, &stop, tds as usize, repeat),
        Command::Exhaust { shape, tds } => exhaust(&shape, tds as usize),
        Command::Normal => Kvm::new()
            .step("open /dev/kvm")
            .and_then(|kvm| normal::run(&kvm)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("td-client: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(shape: &Shape, stop: &Stop, tds: usize, repeat: u64) -> Result<(), Failure> {
    let plan = shape.plan()?;
    let limits = Limits {
        max_exits: stop.max_exits,
        until_halt: stop.until_halt,
        timeout: Duration::from_secs(stop.timeout),
        roam: stop.roam,
    };
    let kvm = td::open()?;
    for round in 1..=repeat {
        one_round(&kvm, &plan, limits, tds)?;
        if repeat > 1 {
            println!("round {round} of {repeat} done");
        }
    }
    println!("ended={}", tds as u64 * repeat);
    Ok(())
}

/// Build all TDs, run them at the same time, and destroy them.
fn one_round(kvm: &Kvm, plan: &Plan, limits: Limits, tds: usize) -> Result<(), Failure> {
    let named = |number| move |e: Failure| e.of(format!("td {number}"));
    let mut built = Vec::new();
    for number in 0..tds {
        built.push(Td::build(kvm, number, plan).map_err(named(number))?);
        println!(
            "td {number}: built: vCPUs {}, pages {}+{}",
            plan.vcpus, plan.measured, plan.unmeasured
        );
    }
    let mut running = Vec::new();
    for (number, (td, vcpus)) in built.into_iter().enumerate() {
        running.push(Running::start(td, vcpus, limits).map_err(named(number))?);
    }
    // Every TD is waited for, also after one has failed.
    let ends: Vec<_> = running.into_iter().map(Running::wait).collect();
    for (number, end) in ends.into_iter().enumerate() {
        let (end, counts): (_, Counts) = end.map_err(named(number))?;
        println!("td {number}: ended: {end}; exits: {}", list(&counts));
    }
    Ok(())
}

fn exhaust(shape: &Shape, most: usize) -> Result<(), Failure> {
    let plan = shape.plan()?;
    let kvm = td::open()?;
    let mut built = Vec::new();
    let refused = loop {
        if built.len() == most {
            return Err(Failure::new(format!("KVM refused none of {most} TDs")));
        }
        match Td::build(&kvm, built.len(), &plan) {
            Ok(td) => built.push(td),
            Err(e) => break e,
        }
    };
    println!("built={}", built.len());
    println!("refused={refused}");
    if built.pop().is_none() {
        return Err(refused);
    }
    let again =
        Td::build(&kvm, built.len(), &plan).map_err(|e| e.of("after one TD was destroyed"))?;
    built.push(again);
    println!("again={}", built.len());
    Ok(())
}
