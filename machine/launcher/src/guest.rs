// SPDX-License-Identifier: GPL-2.0

//! Watching QEMU and the guest's console until the run is over.

use crate::cli::Run;
use crate::console::{Sign, Watcher};
use crate::files::machine_error;
use crate::outcome::End;
use crate::run::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// After a panic or a result the guest has this long to end by itself.
const GRACE: Duration = Duration::from_secs(10);
/// Kernel complaints that are kept.
const COMPLAINTS_MAX: usize = 50;
/// QEMU has this long to react to SIGTERM.
const TERMINATION: Duration = Duration::from_secs(10);

/// Starts QEMU and stays with it until it is gone.
pub(crate) fn supervise(run: &Run, arguments: &[String], out: &Path) -> Result<Watched, Error> {
    let interactive = run.shell;
    let mut command = Command::new(&run.qemu);
    command.args(arguments).stderr(Stdio::piped());
    if interactive {
        command.stdin(Stdio::inherit()).stdout(Stdio::inherit());
    } else {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
    }
    let mut child = command
        .spawn()
        .map_err(|e| Error::Machine(format!("{} cannot be started: {e}", run.qemu.display())))?;
    let (sender, signs) = channel();
    let mut threads = vec![copy_log(&mut child, &out.join("qemu.log"))?];
    if !interactive {
        threads.push(copy_console(
            &mut child,
            &out.join("console.log"),
            run.quiet,
            sender,
        )?);
    }
    let timeout = if interactive {
        None
    } else {
        Some(Duration::from_secs(run.timeout))
    };
    let watched = watch(&mut child, &signs, timeout, run.next_script.is_some());
    for thread in threads {
        let _ = thread.join();
    }
    let mut watched = watched.map_err(|e| Error::Machine(format!("waiting for QEMU: {e}")))?;
    watched.signs.extend(signs.try_iter());
    Ok(watched)
}

/// Copies QEMU's complaints to its log, and the machine's own lines to the terminal.
fn copy_log(child: &mut Child, path: &Path) -> Result<JoinHandle<()>, Error> {
    let mut log = File::create(path).map_err(machine_error(path))?;
    let errors = child
        .stderr
        .take()
        .ok_or_else(|| Error::Machine("QEMU has no stderr".into()))?;
    Ok(std::thread::spawn(move || {
        for line in BufReader::new(errors).split(b'\n').map_while(Result::ok) {
            let _ = log.write_all(&line).and_then(|()| log.write_all(b"\n"));
            if line.starts_with(b"tdx-machine:") {
                eprintln!("{}", String::from_utf8_lossy(&line));
            }
        }
    }))
}

/// Copies the guest's console to its log and the terminal, and sends on what it says.
fn copy_console(
    child: &mut Child,
    path: &Path,
    quiet: bool,
    sender: Sender<Sign>,
) -> Result<JoinHandle<()>, Error> {
    let mut log = File::create(path).map_err(machine_error(path))?;
    let mut console = child
        .stdout
        .take()
        .ok_or_else(|| Error::Machine("QEMU has no stdout".into()))?;
    Ok(std::thread::spawn(move || {
        let (mut watcher, mut buffer) = (Watcher::default(), [0; 4096]);
        while let Ok(len @ 1..) = console.read(&mut buffer) {
            let _ = log.write_all(&buffer[..len]);
            if !quiet {
                let mut terminal = std::io::stdout();
                let _ = terminal
                    .write_all(&buffer[..len])
                    .and_then(|()| terminal.flush());
            }
            for sign in watcher.feed(&buffer[..len]) {
                let _ = sender.send(sign);
            }
        }
    }))
}

/// What was seen of QEMU until it was gone.
#[derive(Debug)]
pub(crate) struct Watched {
    signs: Vec<Sign>,
    exit: ExitStatus,
    timed_out: bool,
}

impl Watched {
    /// What the kernel complained about.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let text = |sign: &Sign| match sign {
            Sign::Complaint(text) => Some(text.clone()),
            _ => None,
        };
        self.signs
            .iter()
            .filter_map(text)
            .take(COMPLAINTS_MAX)
            .collect()
    }
}

/// Waits for QEMU to end, and makes it when the time is up or the guest has nothing more to do. `next`
/// says that the guest is to start another kernel.
fn watch(
    child: &mut Child,
    signs: &Receiver<Sign>,
    timeout: Option<Duration>,
    next: bool,
) -> std::io::Result<Watched> {
    const POLL: Duration = Duration::from_millis(50);
    let started = Instant::now();
    let (mut seen, mut grace, mut closed) = (Vec::new(), None, false);
    loop {
        if let Some(exit) = child.try_wait()? {
            return Ok(Watched {
                signs: seen,
                exit,
                timed_out: false,
            });
        }
        let timed_out = timeout.is_some_and(|t| started.elapsed() > t);
        if timed_out || grace.is_some_and(|since: Instant| since.elapsed() > GRACE) {
            let exit = terminate(child)?;
            return Ok(Watched {
                signs: seen,
                exit,
                timed_out,
            });
        }
        match signs.recv_timeout(POLL) {
            Ok(sign) => {
                grace = grace.or_else(|| sign.is_final(next).then(Instant::now));
                seen.push(sign);
            }
            Err(RecvTimeoutError::Disconnected) if !closed => closed = true,
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(POLL),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Ends QEMU so that it still writes the summary; by force if it does not react.
fn terminate(child: &mut Child) -> std::io::Result<ExitStatus> {
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    let started = Instant::now();
    while started.elapsed() < TERMINATION {
        if let Some(exit) = child.try_wait()? {
            return Ok(exit);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill()?;
    child.wait()
}

/// How the run ended: by what the guest's last kernel said, and without a word from it by how QEMU
/// ended.
pub(crate) fn verdict(watched: &Watched, interactive: bool) -> End {
    let all = &watched.signs;
    let last = all.iter().rposition(|sign| *sign == Sign::NextKernel);
    let signs = &all[last.unwrap_or(0)..];
    let panic = signs.iter().find_map(|sign| match sign {
        Sign::Panic(text) => Some(text.clone()),
        _ => None,
    });
    let result = signs.iter().find_map(|sign| match sign {
        Sign::Result(status) => Some(*status),
        _ => None,
    });
    let off = signs.contains(&Sign::PowerDown);
    match (panic, result) {
        (Some(text), _) => End::Panic(text),
        (None, Some(status)) if off => End::Script(status),
        (None, Some(status)) => End::Unclean(status),
        (None, None) if watched.timed_out => End::Timeout,
        (None, None) if !watched.exit.success() => End::Qemu(watched.exit.to_string()),
        (None, None) if interactive => End::Script(0),
        (None, None) if off => End::Poweroff,
        (None, None) => End::Reset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn watched(signs: &[Sign], exit: i32, timed_out: bool) -> Watched {
        Watched {
            signs: signs.to_vec(),
            exit: ExitStatus::from_raw(exit),
            timed_out,
        }
    }

    #[test]
    fn guest_has_the_first_word() {
        let panic = Sign::Panic("x".into());
        let off = Sign::PowerDown;
        let end = |signs: &[Sign], timed_out| verdict(&watched(signs, 0, timed_out), false);
        assert_eq!(end(&[Sign::Result(3), off.clone()], false), End::Script(3));
        assert_eq!(end(&[Sign::Result(0)], false), End::Unclean(0));
        assert_eq!(
            end(&[Sign::Result(0), panic.clone()], false),
            End::Panic("x".into())
        );
        let (first, next) = ([panic.clone()], [panic.clone(), Sign::NextKernel]);
        assert_eq!(end(&first, true), End::Panic("x".into()));
        assert_eq!(end(&next, true), End::Timeout);
        let next = [&next[..], &[Sign::Result(0), off.clone()]].concat();
        assert_eq!(end(&next, false), End::Script(0), "of the next kernel");
        assert_eq!(end(&[off], false), End::Poweroff);
    }

    #[test]
    fn without_a_sign_the_end_of_qemu_decides() {
        assert_eq!(verdict(&watched(&[], 0, true), false), End::Timeout);
        assert_eq!(verdict(&watched(&[], 0, false), false), End::Reset);
        assert!(matches!(
            verdict(&watched(&[], 256, false), false),
            End::Qemu(_)
        ));
        assert_eq!(verdict(&watched(&[], 0, false), true), End::Script(0));
    }

    #[test]
    fn process_is_ended_when_the_time_is_up() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let (_sender, signs) = channel();
        let seen = watch(&mut child, &signs, Some(Duration::from_millis(100)), false).unwrap();
        assert!(seen.timed_out && seen.exit.signal() == Some(15));
    }
}
