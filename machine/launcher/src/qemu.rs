// SPDX-License-Identifier: GPL-2.0

//! QEMU's command line for a [`Setup`].

use crate::cli::{Erratum, Run};
use crate::setup::Setup;
use std::path::{Path, PathBuf};

/// Files of one run that QEMU reads and writes.
#[derive(Clone, Debug)]
pub struct Files {
    /// The machine's plugin.
    pub plugin: PathBuf,
    /// Initial file system.
    pub initramfs: PathBuf,
    /// Configuration for the plugin.
    pub config: PathBuf,
    /// SEAMCALL trace.
    pub trace: PathBuf,
    /// Summary at exit.
    pub summary: PathBuf,
    /// Socket of the monitor, if machine checks can be raised.
    pub monitor: PathBuf,
    /// Console log, which QEMU writes only when a user has the console.
    pub console: PathBuf,
}

/// Physical address bits of QEMU's processor: what is left of 52 above the 6 KeyID bits.
const PHYS_BITS: u8 = 46;
/// "Fast" string instructions off: TCG takes them byte by byte, so that with them a boot is a fifth
/// slower (a byte stored where code was looks for translations to drop), and a copy of a crashed
/// kernel's memory half.
const SLOW_STRINGS: &str = "erms=off,fsrm=off,fzrm=off,fsrs=off,fsrc=off";
/// The kernel's own limit for its command line, in bytes.
const COMMAND_LINE_MAX: usize = 2047;

/// Arguments for QEMU.
///
/// # Errors
///
/// A sentence, when the kernel command line gets too long.
pub fn arguments(run: &Run, setup: &Setup, files: &Files) -> Result<Vec<String>, String> {
    let mut args: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| args.extend(words.iter().map(|w| (*w).to_owned()));
    // Erratum or not is a matter of family and model, see the fact that Linux looks at nothing else.
    let model = match run.erratum {
        Erratum::On => "SapphireRapids",
        Erratum::Strict => "SapphireRapids,lmce=on",
        Erratum::Off => "GraniteRapids",
    };
    add(&[
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        &format!("{model},phys-bits={PHYS_BITS},{SLOW_STRINGS}"),
    ]);
    add(&["-nodefaults", "-no-user-config", "-display", "none"]);
    add(&["-run-with", "exit-with-parent=on"]);
    add(&[
        "-smp",
        &format!(
            "{},sockets={},cores={},threads=1",
            run.cpus,
            run.sockets,
            run.cpus / run.sockets
        ),
    ]);
    add(&[
        "-kernel",
        &text(&run.kernel),
        "-initrd",
        &text(&files.initramfs),
    ]);
    add(&["-append", &kernel_arguments(run, setup)?]);
    match run.erratum {
        Erratum::Strict => {
            // The plugin has machine checks raised there.
            let socket = escape(&files.monitor);
            add(&["-plugin", &format!("{},monitor={socket}", plugin(files))]);
            let chardev = format!("socket,id=monitor,path={socket},server=on,wait=off");
            add(&["-chardev", &chardev, "-mon", "chardev=monitor"]);
        }
        Erratum::On | Erratum::Off => add(&["-plugin", &plugin(files)]),
    }
    if !run.allow_reset {
        add(&["-no-reboot"]);
    }
    if let Some(socket) = &run.qmp {
        add(&[
            "-qmp",
            &format!("unix:{},server=on,wait=off", escape(socket)),
        ]);
    }
    args.extend(memory(run, setup));
    args.extend(virtio_mem(run));
    args.extend(console(run, files));
    Ok(args)
}

/// A path as QEMU wants it inside an option: commas doubled.
fn escape(path: &Path) -> String {
    text(path).replace(',', ",,")
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn plugin(files: &Files) -> String {
    let [plugin, config, trace, summary] =
        [&files.plugin, &files.config, &files.trace, &files.summary].map(|p| escape(p));
    format!("{plugin},config={config},trace={trace},summary={summary}")
}

fn kernel_arguments(run: &Run, setup: &Setup) -> Result<String, String> {
    // The kernel's check of the timer interrupt fails when the host is too busy to deliver it. Its
    // watchdog of the time stamp counter, on by itself with two packages, measures one processor
    // against another with a time limit, and hangs when the clock that measures the limit stands
    // still; and there is nothing to find out, all processors have the host's counter.
    let mut words = vec![
        "console=ttyS0",
        "panic=-1",
        "no_timer_check",
        "tsc=reliable",
    ];
    if !run.hibernation {
        words.push("nohibernate");
    }
    if run.needs_symbols() {
        // The addresses of the functions are those of the build.
        words.push("nokaslr");
    }
    words.extend(setup.map_arguments.as_deref());
    words.extend(Some(run.append.as_str()).filter(|a| !a.is_empty()));
    let line = words.join(" ");
    if line.len() > COMMAND_LINE_MAX {
        return Err(format!(
            "the kernel command line has {} bytes, but a kernel takes {COMMAND_LINE_MAX}: \
             the memory map or --append is too long",
            line.len()
        ));
    }
    Ok(line)
}

/// Memory that costs the host only what the guest touches, in one node or several.
fn memory(run: &Run, setup: &Setup) -> Vec<String> {
    let total = setup.layout.total;
    let mut args = vec!["-m".to_owned(), hot_plug(run, total)];
    let backend =
        |node: u32, size: u64| format!("memory-backend-ram,id=ram{node},size={size},reserve=off");
    if run.numa == 1 {
        args.extend(["-object".into(), backend(0, total)]);
        args.extend(["-machine".into(), "q35,memory-backend=ram0".into()]);
        return args;
    }
    args.extend(["-machine".into(), "q35".into()]);
    let part = (total / u64::from(run.numa)) & !((2 << 20) - 1);
    for node in 0..run.numa {
        let rest = total - part * u64::from(run.numa - 1);
        let size = if node + 1 == run.numa { rest } else { part };
        args.extend(["-object".into(), backend(node, size)]);
        args.extend([
            "-numa".into(),
            format!("node,nodeid={node},memdev=ram{node}"),
        ]);
    }
    let cores = run.cpus / run.sockets;
    for cpu in 0..run.cpus {
        let node = u64::from(cpu) * u64::from(run.numa) / u64::from(run.cpus);
        let place = format!(
            "socket-id={},core-id={},thread-id=0",
            cpu / cores,
            cpu % cores
        );
        args.extend(["-numa".into(), format!("cpu,node-id={node},{place}")]);
    }
    args
}

fn hot_plug(run: &Run, total: u64) -> String {
    let size = format!("size={}k", total >> 10);
    match run.max_memory {
        Some(max) if run.dimm_slots > 0 || run.virtio_mem.is_some() => {
            format!("{size},slots={},maxmem={}k", run.dimm_slots, max >> 10)
        }
        _ => size,
    }
}

/// The device `virtio-mem`, on node 0; `requested-size` is its property.
fn virtio_mem(run: &Run) -> Vec<String> {
    let Some(size) = run.virtio_mem else {
        return Vec::new();
    };
    vec![
        "-object".into(),
        format!("memory-backend-ram,id=virtio-ram,size={size},reserve=off"),
        "-device".into(),
        "virtio-mem-pci,id=virtio-mem,memdev=virtio-ram,requested-size=0".into(),
    ]
}

fn console(run: &Run, files: &Files) -> Vec<String> {
    let device = if run.shell {
        format!(
            "stdio,id=console,mux=on,signal=off,logfile={}",
            escape(&files.console)
        )
    } else {
        "stdio,id=console,signal=off".to_owned()
    };
    let mut args = vec![
        "-chardev".into(),
        device,
        "-serial".into(),
        "chardev:console".into(),
    ];
    if run.shell {
        args.extend(["-mon".into(), "chardev=console".into()]);
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use crate::setup::setup;
    use clap::Parser;

    fn qemu(args: &str, map: Option<&str>) -> Result<String, String> {
        let words = ["tdx-machine", "run", "--kernel", "k"]
            .into_iter()
            .chain(args.split_whitespace());
        let Command::Run(run) = Cli::parse_from(words).command else {
            panic!()
        };
        let path = |name: &str| PathBuf::from(format!("/out,put/{name}"));
        let files = Files {
            plugin: path("p.so"),
            initramfs: path("i"),
            config: path("c"),
            trace: path("t"),
            summary: path("s"),
            monitor: path("m"),
            console: path("l"),
        };
        arguments(&run, &setup(&run, map)?, &files).map(|args| args.join(" "))
    }

    #[test]
    fn memory_is_sparse_and_paths_are_escaped() {
        let line = qemu("--memory 64G", None).unwrap();
        assert!(line.contains("-m size=67108864k"), "{line}");
        assert!(line.contains("memory-backend-ram,id=ram0,size=68719476736,reserve=off"));
        assert!(line.contains("/out,,put/p.so,config=/out,,put/c,"));
        assert!(line.contains("-no-reboot") && line.contains("nohibernate"));
    }

    #[test]
    fn nodes_share_memory_and_processors() {
        let line = qemu("--cpus 4 --sockets 2 --numa 2 --memory 3G", None).unwrap();
        assert!(line.contains("node,nodeid=1,memdev=ram1"), "{line}");
        assert!(line.contains("cpu,node-id=0,socket-id=0,core-id=1,thread-id=0"));
        assert!(line.contains("cpu,node-id=1,socket-id=1,core-id=0,thread-id=0"));
        assert_eq!(line.matches("size=1610612736").count(), 2);
    }

    #[test]
    fn model_follows_the_erratum() {
        assert!(qemu("", None).unwrap().contains("SapphireRapids"));
        assert!(
            qemu("--erratum off", None)
                .unwrap()
                .contains("GraniteRapids")
        );
    }

    #[test]
    fn strict_erratum_takes_a_monitor() {
        let line = qemu("--erratum strict", None).unwrap();
        for part in [
            "SapphireRapids,lmce=on,",
            ",monitor=/out,,put/m ",
            "socket,id=monitor,path=/out,,put/m,server=on,wait=off -mon chardev=monitor",
        ] {
            assert!(line.contains(part), "{line}");
        }
        assert!(!qemu("", None).unwrap().contains("monitor"));
    }

    #[test]
    fn functions_that_are_looked_up_stay_where_they_were_linked() {
        assert!(!qemu("", None).unwrap().contains("nokaslr"));
        for option in ["--count-symbols f", "--at f=nmi"] {
            let line = qemu(option, None).unwrap();
            assert!(line.contains("nokaslr"), "{line}");
        }
    }

    #[test]
    fn hot_plug_reserves_slots() {
        let line = qemu("--dimm-slots 2 --max-memory 4G", None).unwrap();
        assert!(
            line.contains("size=2097152k,slots=2,maxmem=4194304k"),
            "{line}"
        );
    }

    #[test]
    fn virtio_mem_is_empty_at_first() {
        let line = qemu("--virtio-mem 1G --max-memory 4G", None).unwrap();
        for part in [
            "size=2097152k,slots=0,maxmem=4194304k",
            "id=virtio-ram,size=1073741824,",
            "memdev=virtio-ram,requested-size=0",
        ] {
            assert!(line.contains(part), "{line}");
        }
        assert!(!qemu("", None).unwrap().contains("virtio"));
    }

    #[test]
    fn command_line_that_a_kernel_would_cut_is_refused() {
        let long =
            (0..200).map(|i| format!("e820 {:#x} {:#x} usable\n", i << 20, (i << 20) + 4095));
        let error = qemu("", Some(&long.collect::<String>())).unwrap_err();
        assert!(error.contains("2047"), "{error}");
    }
}
