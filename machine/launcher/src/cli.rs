// SPDX-License-Identifier: GPL-2.0

//! The command line of `tdx-machine`.

mod image;
mod module;

pub use image::{Image, Patch};
pub use module::{ModuleOptions, ProfileName};

use crate::units;
use clap::{Args, Parser, Subcommand, ValueEnum};
use glob::Pattern;
use std::path::PathBuf;
use tdx_platform::inject::Rule;
use tdx_platform::violation::Kind;

const EXIT_STATUS: &str = "\
Exit status:
  0  the scenario did what was expected and no violation happened
  1  the scenario failed: the script's exit status was not zero, the kernel panicked, the time was
     up, or the machine was reset or switched off without a result (the last lines say which)
  2  the command line is wrong
  3  a violation happened (whatever else did)
  4  the machine itself could not run: QEMU, the plugin, busybox or the kernel image is missing";

/// Boots a kernel on a simulated TDX server and judges what it does.
#[derive(Debug, Parser)]
#[command(name = "tdx-machine", version, after_help = EXIT_STATUS)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boots a kernel.
    #[command(after_help = EXIT_STATUS)]
    Run(Box<Run>),
    /// Says what a completion status means.
    Explain {
        /// Status as 64-bit number or by name.
        status: String,
    },
    /// Lists the leaves and their numbers.
    Leaves,
    /// Makes the image of a TDX module, to be installed while a machine runs.
    #[command(after_help = image::HELP)]
    Image(Image),
}

/// The partial-write erratum of the processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Erratum {
    /// They have it: the machine judges what is left private.
    On,
    /// They do not have it.
    Off,
    /// They have it, and it has consequences: poison and machine checks.
    Strict,
}

/// How the run is expected to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Expect {
    /// The script ends with status 0.
    Success,
    /// The guest resets the machine (reboot).
    Reset,
    /// The guest switches the machine off without a result.
    Poweroff,
    /// The kernel panics.
    Panic,
}

/// An instruction of the kernel, and which time a processor comes to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Function it is in.
    pub function: String,
    /// Bytes from the function's first instruction.
    pub offset: u64,
    /// Which time, from 1.
    pub call: u64,
}

/// Options of `tdx-machine run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Kernel image to boot (bzImage).
    #[arg(long, value_name = "BZIMAGE")]
    pub kernel: PathBuf,

    /// Processors.
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Machine")]
    pub cpus: u32,
    /// Sockets (packages); the processors are spread evenly.
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Machine")]
    pub sockets: u32,
    /// NUMA nodes; memory and processors are spread evenly.
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Machine")]
    pub numa: u32,
    /// Memory, such as 2G or 64G; only what the guest touches is taken from the host.
    #[arg(long, value_name = "SIZE", value_parser = units::size, help_heading = "Machine")]
    pub memory: Option<u64>,
    /// Memory map from a file (e820 and cmr lines).
    #[arg(long, value_name = "FILE", help_heading = "Machine")]
    pub memory_map: Option<PathBuf>,
    /// Convertible memory range, half-open; replaces those of the machine or the map.
    #[arg(long, value_name = "START-END", value_parser = units::range, help_heading = "Machine")]
    pub cmr: Vec<(u64, u64)>,
    /// Slots for memory to be plugged in by QMP.
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Machine")]
    pub dimm_slots: u32,
    /// A virtio-mem device of so much memory, which gives none until QMP asks it to.
    #[arg(long, value_name = "SIZE", value_parser = units::size, help_heading = "Machine")]
    pub virtio_mem: Option<u64>,
    /// Limit of memory with what is plugged in.
    #[arg(long, value_name = "SIZE", value_parser = units::size, help_heading = "Machine")]
    pub max_memory: Option<u64>,
    /// Partial-write erratum: chooses the processor's family and model. Strict: partial writes of
    /// private memory lead to machine checks; about half as fast.
    #[arg(
        long,
        default_value = "on",
        value_name = "on|off|strict",
        help_heading = "Machine"
    )]
    pub erratum: Erratum,
    /// Processors that firmware enabled, if more than there are.
    #[arg(long, value_name = "N", help_heading = "Machine")]
    pub enabled_cpus: Option<u32>,
    /// KeyIDs for TDX and for MKTME.
    #[arg(long, default_value = "48,15", value_name = "TDX[,MKTME]", value_parser = keyids, help_heading = "Machine")]
    pub keyids: (u32, u32),
    /// Processors without VMX.
    #[arg(long, help_heading = "Machine")]
    pub no_vmx: bool,
    /// No TDX module loaded: SEAMCALL gives VMfailInvalid.
    #[arg(long, help_heading = "Machine")]
    pub no_module: bool,
    /// Firmware did not enable TDX: SEAMCALL gives #GP.
    #[arg(long, help_heading = "Machine")]
    pub no_seamrr: bool,
    /// Processors without MOVDIR64B.
    #[arg(long, help_heading = "Machine")]
    pub no_movdir64b: bool,
    /// Processors without self-snoop.
    #[arg(long, help_heading = "Machine")]
    pub no_selfsnoop: bool,
    /// Returning from the P-SEAMLDR invalidates the current VMCS (IA32_VMX_BASIC bit 60 clear).
    #[arg(long, help_heading = "Machine")]
    pub seamret_invalidates_vmcs: bool,

    /// The module that firmware loads.
    #[command(flatten)]
    pub module: ModuleOptions,

    /// No P-SEAMLDR: a call of it gives VMfailInvalid.
    #[arg(long, help_heading = "P-SEAMLDR")]
    pub no_seamldr: bool,
    /// Modules that can be installed until the machine is reset.
    #[arg(long, value_name = "N", help_heading = "P-SEAMLDR")]
    pub updates: Option<u32>,
    /// Any setting of the P-SEAMLDR by name, such as update=6 or open.active_at_first=true; VALUE is
    /// JSON.
    #[arg(long, value_name = "NAME=VALUE", help_heading = "P-SEAMLDR")]
    pub seamldr: Vec<String>,

    /// Fault to inject: a leaf, optionally "@" and the number of a TD, optionally ":" and the first
    /// call hit, "=", a status, optionally "*" and the number of calls hit (or "always"). STATUS is a
    /// name, a number, vmfail, gp or ud. Without first call and number every call is hit; with a first
    /// call alone, that one. With a TD, only calls since that call of TDH.MNG.CREATE count.
    /// Example: SYS.INIT:2=RND_NO_ENTROPY*3
    #[arg(
        long,
        value_name = "LEAF[@TD][:FIRST]=STATUS[*COUNT]",
        help_heading = "Faults"
    )]
    pub inject: Vec<Rule>,
    /// Keep each call of a leaf inside the module so long that others meet its locks.
    #[arg(long, value_name = "LEAF=MICROSECONDS", value_parser = slow, help_heading = "Faults")]
    pub slow: Vec<(u64, u32)>,
    /// How long each call of a leaf takes, or of every other leaf if LEAF is "all". Calls on different
    /// CPUs overlap.
    #[arg(long, value_name = "LEAF=MICROSECONDS", value_parser = latency, help_heading = "Faults")]
    pub latency: Vec<(Option<u64>, u32)>,
    /// Kind of violation that is reported without failing the run.
    #[arg(long, value_name = "KIND", value_parser = kind, help_heading = "Faults")]
    pub allow: Vec<Kind>,
    /// Report every load and store of private memory; about half as fast.
    #[arg(long, help_heading = "Faults")]
    pub watch_memory: bool,

    /// Give the processor an NMI that makes the Nth call of a kernel function, the first if N is left
    /// out, or that comes for the Nth time to the instruction so many bytes after the function's first.
    /// With the kernel parameter unknown_nmi_panic the kernel panics there.
    #[arg(
        long,
        value_name = "FUNCTION[+OFFSET][:N]=nmi",
        value_parser = nmi,
        help_heading = "Faults"
    )]
    pub at: Vec<Place>,

    /// Count the instructions of each call of the kernel function with this name; * stands for any
    /// characters. About half as fast.
    #[arg(long, value_name = "PATTERN", value_parser = pattern, help_heading = "Counting")]
    pub count_symbols: Vec<Pattern>,
    /// Where the kernel's functions lie, for --count-symbols and --at [default: System.map beside the
    /// image or in its build directory].
    #[arg(long, value_name = "FILE", help_heading = "Counting")]
    pub system_map: Option<PathBuf>,

    /// More kernel parameters.
    #[arg(
        long,
        default_value = "",
        value_name = "CMDLINE",
        help_heading = "Guest"
    )]
    pub append: String,
    /// Leave out "nohibernate", with which a kernel that can hibernate accepts TDX.
    #[arg(long, help_heading = "Guest")]
    pub hibernation: bool,
    /// Shell script to run in the guest as root ("-" is standard input); its status is the result.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "shell",
        help_heading = "Guest"
    )]
    pub script: Option<PathBuf>,
    /// Shell script that runs instead of the first one in a kernel that the first one started (kexec,
    /// kdump); its status is the result. The script has to start one.
    #[arg(long, value_name = "FILE", requires = "script", help_heading = "Guest")]
    pub next_script: Option<PathBuf>,
    /// Interactive shell on this terminal; Ctrl-A X ends QEMU.
    #[arg(long, help_heading = "Guest")]
    pub shell: bool,
    /// File to put into the guest, by default under its own name in /.
    #[arg(long, value_name = "HOST[:GUEST]", help_heading = "Guest")]
    pub file: Vec<String>,
    /// What runs inside the TDs: steps such as "touch 0x1000" or "hlt", one per line; without it
    /// every vCPU of a TD halts.
    #[arg(long, value_name = "FILE", help_heading = "Guest")]
    pub td_script: Option<PathBuf>,
    /// How the run has to end.
    #[arg(
        long,
        default_value = "success",
        value_name = "END",
        help_heading = "Guest"
    )]
    pub expect: Expect,
    /// Let the guest reset the machine and boot again, instead of ending the run there.
    #[arg(long, help_heading = "Guest")]
    pub allow_reset: bool,

    /// Seconds until the run is given up.
    #[arg(
        long,
        default_value_t = 300,
        value_name = "SECONDS",
        help_heading = "Run"
    )]
    pub timeout: u64,
    /// Directory for console.log, trace.jsonl, summary.json, qemu.log and command.
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    pub out: Option<PathBuf>,
    /// Socket for QEMU's machine protocol.
    #[arg(long, value_name = "SOCKET", help_heading = "Run")]
    pub qmp: Option<PathBuf>,
    /// Do not show the guest's console.
    #[arg(long, short, conflicts_with = "shell", help_heading = "Run")]
    pub quiet: bool,
    /// QEMU to use.
    #[arg(
        long,
        default_value = "qemu-system-x86_64",
        value_name = "PATH",
        help_heading = "Run"
    )]
    pub qemu: PathBuf,
    /// Statically linked busybox for the guest [default: /bin/busybox or the first in PATH].
    #[arg(long, value_name = "PATH", help_heading = "Run")]
    pub busybox: Option<PathBuf>,
    /// The machine's QEMU plugin [default: libtdx_plugin.so beside this program].
    #[arg(long, value_name = "PATH", help_heading = "Run")]
    pub plugin: Option<PathBuf>,
}

impl Run {
    /// The kernel's functions have to be found in memory.
    pub fn needs_symbols(&self) -> bool {
        !self.count_symbols.is_empty() || !self.at.is_empty()
    }
}

fn keyids(text: &str) -> Result<(u32, u32), String> {
    let (tdx, mktme) = text.split_once(',').unwrap_or((text, "0"));
    let number = |text: &str| {
        text.parse()
            .map_err(|_| format!("'{text}' is not a number of KeyIDs"))
    };
    Ok((number(tdx)?, number(mktme)?))
}

/// A leaf's name and a time, as text and number.
fn timed(text: &str) -> Result<(&str, u32), String> {
    let (leaf, time) = text
        .split_once('=')
        .ok_or_else(|| format!("'{text}': expected LEAF=MICROSECONDS"))?;
    let time = time
        .parse()
        .map_err(|_| format!("'{time}' is not a number of microseconds"))?;
    Ok((leaf, time))
}

fn slow(text: &str) -> Result<(u64, u32), String> {
    let (leaf, time) = timed(text)?;
    Ok((tdx_platform::inject::leaf_by_name(leaf)?, time))
}

fn nmi(text: &str) -> Result<Place, String> {
    let place = text.strip_suffix("=nmi").ok_or_else(|| {
        format!("'{text}': expected FUNCTION=nmi, FUNCTION:N=nmi or FUNCTION+OFFSET:N=nmi")
    })?;
    let (place, call) = place.split_once(':').unwrap_or((place, "1"));
    let call = call.parse().ok().filter(|&call| call > 0);
    let call = call.ok_or_else(|| format!("'{text}' does not end with the number of a call"))?;
    let (function, offset) = place.split_once('+').unwrap_or((place, "0"));
    Ok(Place {
        function: function.to_owned(),
        offset: units::number(offset)?,
        call,
    })
}

/// No leaf stands for all.
fn latency(text: &str) -> Result<(Option<u64>, u32), String> {
    match timed(text)? {
        ("all", time) => Ok((None, time)),
        (leaf, time) => Ok((Some(tdx_platform::inject::leaf_by_name(leaf)?), time)),
    }
}

fn pattern(text: &str) -> Result<Pattern, String> {
    Pattern::new(text).map_err(|e| e.to_string())
}

fn kind(text: &str) -> Result<Kind, String> {
    Kind::by_name(text).ok_or_else(|| {
        let known: Vec<_> = Kind::ALL.iter().map(|k| k.name()).collect();
        format!("'{text}' is none of {}", known.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn run(args: &str) -> Result<Box<Run>, String> {
        let words = ["tdx-machine", "run", "--kernel", "k"]
            .into_iter()
            .chain(args.split_whitespace());
        match Cli::try_parse_from(words) {
            Ok(Cli {
                command: Command::Run(run),
            }) => Ok(run),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn values_are_parsed() {
        let parsed = run("--memory 64G --cmr 1M-2G --cmr 0x100000000-8G --keyids 31 --metadata \
                          9100000100000008=1 --metadata 0x9900000100000008=absent --slow SYS.INIT=50 \
                          --latency all=20 --latency SYS.INIT=0")
        .unwrap();
        assert_eq!(parsed.memory, Some(64 << 30));
        assert_eq!(parsed.cmr, [(1 << 20, 2 << 30), (4 << 30, 8 << 30)]);
        assert_eq!(parsed.keyids, (31, 0));
        assert_eq!(
            parsed.module.metadata,
            [
                (0x9100_0001_0000_0008, Some(1)),
                (0x9900_0001_0000_0008, None)
            ]
        );
        assert_eq!(parsed.slow, [(33, 50)]);
        let at = run("--at f=nmi --at g:7=nmi --at h+0x1a:2=nmi").unwrap().at;
        let place = |function: &str, offset, call| Place {
            function: function.into(),
            offset,
            call,
        };
        assert_eq!(at, [place("f", 0, 1), place("g", 0, 7), place("h", 26, 2)]);
        assert_eq!(parsed.latency, [(None, 20), (Some(33), 0)]);
    }

    #[test]
    fn wrong_arguments_say_what_is_wrong() {
        for (args, part) in [
            ("--memory 5X", "5X"),
            ("--cmr 2G-1G", "above the start"),
            ("--inject TDH.NO=SYS_BUSY", "no leaf is called"),
            ("--latency TDH.NO=1", "no leaf is called"),
            ("--latency all=x", "microseconds"),
            ("--inject SYS.INIT=WRONG", "no status is called"),
            ("--allow nonsense", "converted-dirty"),
            ("--profile 9", "1.5.01"),
            ("--keyids a", "'a'"),
            ("--metadata 5", "ID=VALUE"),
            ("--pamt-entry-size 1,2", "one number"),
            ("--shell --quiet", "cannot be used with"),
            ("--count-symbols a[", "invalid"),
            ("--at f=irq", "=nmi"),
            ("--at f:0=nmi", "number of a call"),
            ("--at f+x:1=nmi", "'x' is not a number"),
            ("--next-script f", "--script"),
        ] {
            let error = run(args).unwrap_err();
            assert!(error.contains(part), "{args}: {error}");
        }
    }
}
