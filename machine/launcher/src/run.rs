// SPDX-License-Identifier: GPL-2.0

//! `tdx-machine run`: prepares the files, lets QEMU run, watches it and says how it ended.

use crate::cli::Run;
use crate::files::{self, Directory};
use crate::guest::{self, Watched};
use crate::outcome::{End, report};
use crate::qemu::{self, Files};
use crate::setup::{Setup, setup};
use crate::symbols;
use glob::Pattern;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::{Duration, Instant};
use tdx_platform::nmi::NmiPlace;
use tdx_platform::script::Script;
use tdx_platform::summary::Summary;

/// Why a run did not start.
#[derive(Debug)]
pub enum Error {
    /// The command line asks for something impossible: exit status 2.
    Usage(String),
    /// Something the machine needs is missing: exit status 4.
    Machine(String),
}

/// Runs the scenario; answers the exit status of the launcher.
///
/// # Errors
///
/// What kept the run from starting.
pub fn run(run: &Run) -> Result<u8, Error> {
    let map = run
        .memory_map
        .as_deref()
        .map(files::read_text)
        .transpose()?;
    let mut setup = setup(run, map.as_deref()).map_err(Error::Usage)?;
    if let Some(path) = &run.td_script {
        setup.config.td_script = td_script(path)?;
    }
    if run.needs_symbols() {
        add_symbols(run, &mut setup)?;
    }
    let image = files::initramfs(run)?;
    if !run.kernel.is_file() {
        return Err(Error::Machine(format!(
            "there is no kernel image at {}",
            run.kernel.display()
        )));
    }
    let directory = Directory::new(run.out.as_deref())?;
    let files = files::prepare(run, &setup, &directory.path, &image)?;
    let arguments = qemu::arguments(run, &setup, &files).map_err(Error::Usage)?;
    files::write(
        &directory.path.join("command"),
        command_line(run, &arguments).as_bytes(),
    )?;
    let started = Instant::now();
    let watched = guest::supervise(run, &arguments, &directory.path)?;
    let status = conclude(run, &setup, &files, &watched, started.elapsed())?;
    directory.done(status == 0);
    Ok(status)
}

/// Looks up the kernel functions to count, and those at which an NMI comes.
fn add_symbols(run: &Run, setup: &mut Setup) -> Result<(), Error> {
    let path = run
        .system_map
        .clone()
        .or_else(|| symbols::system_map_of(&run.kernel));
    let path = path.ok_or_else(|| {
        let kernel = run.kernel.display();
        Error::Usage(format!(
            "there is no System.map with {kernel}: give --system-map"
        ))
    })?;
    let map = files::read_text(&path)?;
    let find = |patterns: &[Pattern]| {
        symbols::find(patterns, &map).map_err(|e| Error::Usage(format!("{}: {e}", path.display())))
    };
    setup.config.counted = find(&run.count_symbols)?;
    for at in &run.at {
        let name = Pattern::new(&Pattern::escape(&at.function));
        let name = name.map_err(|e| Error::Usage(e.to_string()))?;
        for mut function in find(&[name])? {
            if at.offset != 0 {
                function.name += &format!("+{:#x}", at.offset);
                function.address = function.address.saturating_add(at.offset);
            }
            let call = at.call;
            setup.config.nmis.push(NmiPlace { function, call });
        }
    }
    Ok(())
}

/// The program of the TDs.
fn td_script(path: &Path) -> Result<Script, Error> {
    let script = files::read_text(path)?.parse::<Script>();
    script.map_err(|e| Error::Usage(format!("{}: {e}", path.display())))
}

/// The QEMU command, as a shell would take it.
fn command_line(run: &Run, arguments: &[String]) -> String {
    let quote = |word: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,./:+@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.to_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    let words: Vec<_> = arguments.iter().map(|w| quote(w)).collect();
    format!(
        "{} {}\n",
        quote(&run.qemu.to_string_lossy()),
        words.join(" ")
    )
}

/// Completes summary.json, prints the summary and decides the exit status.
fn conclude(
    run: &Run,
    setup: &Setup,
    files: &Files,
    watched: &Watched,
    time: Duration,
) -> Result<u8, Error> {
    let end = guest::verdict(watched, run.shell);
    let text = fs::read_to_string(&files.summary).ok();
    let summary: Option<Summary> = text.as_deref().and_then(|t| serde_json::from_str(t).ok());
    let violations = match &summary {
        Some(summary) => summary.violations.values().sum(),
        None => traced_violations(&files.trace),
    };
    let status = end.exit_status(run.expect, violations);
    let complaints = watched.complaints();
    let mut value = text
        .and_then(|t| serde_json::from_str(&t).ok())
        .unwrap_or_else(|| Value::Object(Default::default()));
    value["result"] = end.json(time, status, &complaints);
    files::write(&files.summary, format!("{value:#}\n").as_bytes())?;
    if let End::Qemu(_) = end {
        eprint!("{}", last_words(&files.trace.with_file_name("qemu.log")));
    }
    println!("\ntdx-machine:");
    print!(
        "{}",
        report(
            &end,
            summary.as_ref(),
            time,
            setup.config.is_healthy(),
            &complaints
        )
    );
    Ok(status)
}

/// The last lines that QEMU wrote, without its remarks on processor features that TCG lacks.
fn last_words(log: &Path) -> String {
    const LINES: usize = 5;
    let text = fs::read_to_string(log).unwrap_or_default();
    let told: Vec<_> = text
        .lines()
        .filter(|line| !line.contains("TCG doesn't support requested feature"))
        .collect();
    let last = &told[told.len().saturating_sub(LINES)..];
    last.iter().map(|line| format!("{line}\n")).collect()
}

/// Violations in a trace whose run left no summary.
fn traced_violations(trace: &Path) -> u64 {
    let lines = File::open(trace)
        .map(BufReader::new)
        .into_iter()
        .flat_map(BufRead::lines);
    lines
        .map_while(Result::ok)
        .filter(|line| line.contains(r#""type":"violation""#))
        .count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistake_in_the_td_script_names_the_file_and_the_line() {
        let path = std::env::temp_dir().join(format!("td-script-{}", std::process::id()));
        fs::write(&path, "hlt\ndance\n").unwrap();
        let error = td_script(&path).unwrap_err();
        fs::remove_file(&path).unwrap();
        let Error::Usage(text) = error else {
            panic!("{error:?}")
        };
        assert!(
            text.contains("td-script") && text.contains("line 2"),
            "{text}"
        );
        assert!(matches!(td_script(&path), Err(Error::Usage(_))));
    }
}
