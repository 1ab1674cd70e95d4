// SPDX-License-Identifier: GPL-2.0
//! kexec-tool: starts another kernel, and reads what a crashed one left.
//!
//! `load` loads a kernel for `exec`, or with `--crash` for the next panic.
//! `copy-vmcore` reads the memory of the crashed kernel, all of it. Exit status 0:
//! done; 1: it failed, and a line on standard error says why.

mod arguments;
mod load;
mod vmcore;

use clap::Args;
use clap::Parser;
use clap::Subcommand;
use rustix::system::RebootCommand;
use std::path::PathBuf;
use std::process::ExitCode;

/// Starts another kernel, and reads what a crashed one left.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Load a kernel
    Load(Load),
    /// Start the kernel that was loaded without --crash
    Exec,
    /// Read the memory of the crashed kernel and say how much it is
    CopyVmcore {
        /// Where it is
        #[arg(default_value = "/proc/vmcore")]
        file: PathBuf,
    },
}

/// What is loaded.
#[derive(Args)]
struct Load {
    /// It starts when this kernel panics (needs memory: crashkernel=)
    #[arg(long)]
    crash: bool,
    /// Kernel image
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initramfs
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Parameters after those of this kernel
    #[arg(
        long,
        value_name = "PARAMETERS",
        default_value = "",
        allow_hyphen_values = true
    )]
    append: String,
    /// Parameters instead of those of this kernel
    #[arg(long, value_name = "PARAMETERS")]
    command_line: Option<String>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Load(load) => load.run(),
        Command::Exec => exec(),
        Command::CopyVmcore { file } => vmcore::copy(&file),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kexec-tool: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Load {
    fn run(&self) -> Result<(), String> {
        let own =
            std::fs::read_to_string("/proc/cmdline").map_err(|e| format!("/proc/cmdline: {e}"))?;
        let base = self.command_line.as_deref();
        let line = arguments::next(own.trim(), base, &self.append, self.crash);
        load::load(&self.kernel, self.initrd.as_deref(), &line, self.crash)?;
        println!("loaded={line}");
        Ok(())
    }
}

/// Start the kernel that is loaded; this one ends in order, its user space does not.
fn exec() -> Result<(), String> {
    rustix::fs::sync();
    rustix::system::reboot(RebootCommand::Kexec).map_err(|e| format!("start the kernel: {e}"))
}
