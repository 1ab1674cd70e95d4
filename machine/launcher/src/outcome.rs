// SPDX-License-Identifier: GPL-2.0

//! How a run ended, what that means for the exit status, and the summary for people.

use crate::cli::Expect;
use crate::units::show;
use serde_json::{Value, json};
use std::time::Duration;
use tdx_platform::counts::CallCounts;
use tdx_platform::kernels::KernelSummary;
use tdx_platform::summary::Summary;
use tdx_platform::tds::GuestSummary;

/// The end of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The script (or shell) ended with this status and the machine was switched off.
    Script(i32),
    /// The script ended with this status, but the guest did not switch off in order after it.
    Unclean(i32),
    /// The kernel panicked.
    Panic(String),
    /// The time was up.
    Timeout,
    /// The guest reset the machine.
    Reset,
    /// The guest switched the machine off without a result.
    Poweroff,
    /// QEMU failed with this status.
    Qemu(String),
}

impl End {
    /// Short name, as in summary.json.
    pub fn name(&self) -> &'static str {
        match self {
            End::Script(0) => "success",
            End::Script(_) => "script-failed",
            End::Unclean(_) => "unclean",
            End::Panic(_) => "panic",
            End::Timeout => "timeout",
            End::Reset => "reset",
            End::Poweroff => "poweroff",
            End::Qemu(_) => "qemu-failed",
        }
    }

    /// A sentence for people.
    pub fn sentence(&self) -> String {
        match self {
            End::Script(0) => "the script succeeded".into(),
            End::Script(status) => format!("the script failed with status {status}"),
            End::Unclean(status) => {
                format!(
                    "the script ended with status {status}, but the guest did not switch off after it"
                )
            }
            End::Panic(text) => format!("the kernel panicked: {text}"),
            End::Timeout => "the time was up".into(),
            End::Reset => "the guest reset the machine".into(),
            End::Poweroff => "the guest switched the machine off without a result".into(),
            End::Qemu(text) => format!("QEMU failed: {text} (see qemu.log)"),
        }
    }

    fn meets(&self, expect: Expect) -> bool {
        match expect {
            Expect::Success => *self == End::Script(0),
            Expect::Reset => *self == End::Reset,
            Expect::Poweroff => *self == End::Poweroff,
            Expect::Panic => matches!(self, End::Panic(_)),
        }
    }

    /// Exit status of the launcher: 0, 1, 3 or 4 as `--help` says.
    pub fn exit_status(&self, expect: Expect, violations: u64) -> u8 {
        match self {
            End::Qemu(_) => 4,
            _ if violations > 0 => 3,
            _ if self.meets(expect) => 0,
            _ => 1,
        }
    }

    /// The `result` object of summary.json.
    pub fn json(&self, time: Duration, exit_status: u8, complaints: &[String]) -> Value {
        let status = match self {
            End::Script(status) | End::Unclean(status) => Some(*status),
            _ => None,
        };
        json!({
            "end": self.name(),
            "text": self.sentence(),
            "script_status": status,
            "kernel_complaints": complaints,
            "seconds": (time.as_secs_f64() * 1000.0).round() / 1000.0,
            "exit_status": exit_status,
        })
    }
}

const SHOWN_COMPLAINTS: usize = 5;

/// The summary as printed at the end of a run.
pub fn report(
    end: &End,
    summary: Option<&Summary>,
    time: Duration,
    healthy: bool,
    complaints: &[String],
) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<12} {value}\n"));
    line(
        "result",
        format!("{} after {:.1} s", end.sentence(), time.as_secs_f64()),
    );
    for complaint in complaints.iter().take(SHOWN_COMPLAINTS) {
        line("kernel", complaint.clone());
    }
    let Some(summary) = summary else {
        line(
            "machine",
            "no summary: QEMU did not end in an orderly way".into(),
        );
        return text;
    };
    line("TDX", bring_up(summary, healthy));
    line("SEAMCALLs", summary.seamcalls.to_string());
    for (leaf, calls) in &summary.leaves {
        let results: Vec<_> = calls
            .results
            .iter()
            .map(|(name, n)| format!("{n} {name}"))
            .collect();
        let injected = if calls.injected > 0 {
            format!(" ({} injected)", calls.injected)
        } else {
            String::new()
        };
        line("", format!("{leaf:<22} {}{injected}", results.join(", ")));
    }
    let flushes: u64 = summary.cpus.iter().map(|cpu| cpu.wbinvds).sum();
    let private: u64 = summary.private_bytes.values().sum();
    line(
        "private",
        format!(
            "{} left in {} pages, {} converted by the host, {} released by the module",
            show(private),
            summary.private_pages,
            show(summary.converted_bytes),
            show(summary.released_bytes)
        ),
    );
    if summary.poisoned_lines > 0 {
        let (lines, checks) = (summary.poisoned_lines, summary.machine_checks);
        line("poison", format!("{lines} lines, {checks} machine checks"));
    }
    if summary.kernels.len() > 1 {
        for (number, kernel) in (1..).zip(&summary.kernels) {
            line(&format!("kernel {number}"), kernel_account(kernel));
        }
    }
    if summary.tds_created > 0 {
        line("TDs", tds(summary));
    }
    if summary.updates > 0 {
        line("updates", format!("{} of the TDX module", summary.updates));
    }
    let on = summary.cpus.iter().filter(|cpu| cpu.vmxon).count();
    let dirty = summary.cpus.iter().filter(|cpu| cpu.cache_dirty).count();
    line(
        "CPUs",
        format!(
            "{}: {on} in VMX operation, {dirty} not flushed, {flushes} WBINVDs",
            summary.cpus.len()
        ),
    );
    for (name, counts) in &summary.instructions {
        line("instructions", instructions(name, counts));
    }
    for rule in &summary.unused_injections {
        line("warning", format!("nothing met the injection {rule}"));
    }
    line("violations", violations(summary));
    text
}

fn kernel_account(kernel: &KernelSummary) -> String {
    format!(
        "{} SEAMCALLs, {} converted, {} released; left {} private, {} CPUs not flushed",
        kernel.seamcalls,
        show(kernel.converted_bytes.iter().sum()),
        show(kernel.released_bytes),
        show(kernel.private_bytes.values().sum()),
        kernel.dirty_cpus.len()
    )
}

fn instructions(name: &str, counts: &CallCounts) -> String {
    let counted = counts.calls.saturating_sub(counts.interrupted);
    let lengths = match (counts.min, counts.median, counts.max) {
        (Some(min), Some(median), Some(max)) => format!("{min} / {median} / {max}"),
        _ => "-".to_owned(),
    };
    format!(
        "{name:<28} {lengths} in {counted} calls, {} more interrupted",
        counts.interrupted
    )
}

fn tds(summary: &Summary) -> String {
    let total = |count: fn(&GuestSummary) -> u64| summary.guests.iter().map(count).sum::<u64>();
    let mut text = format!(
        "{} created, {} left, {} entries, {} steps done",
        summary.tds_created,
        summary.tds_alive,
        total(|guest| guest.entries),
        total(|guest| guest.steps)
    );
    let failures = total(|guest| guest.failures);
    if failures > 0 {
        text.push_str(&format!(", {failures} expectations not met"));
    }
    if summary.unconverted_bytes > 0 {
        let forgotten = show(summary.unconverted_bytes);
        text.push_str(&format!(", {forgotten} not converted after use"));
    }
    text
}

fn bring_up(summary: &Summary, healthy: bool) -> String {
    let up = &summary.bring_up;
    if up.ready {
        format!("up: {} TDMRs, {}", up.tdmrs, show(up.tdmr_bytes))
    } else if up.was_ready {
        "was up and has been shut down".into()
    } else if !healthy {
        "not available on this machine".into()
    } else if up.tdmrs > 0 {
        format!(
            "not up: {} of {} TDMRs initialised",
            up.initialised, up.tdmrs
        )
    } else {
        "not up: TDH.SYS.CONFIG did not succeed".into()
    }
}

fn violations(summary: &Summary) -> String {
    let list = |kinds: &std::collections::BTreeMap<String, u64>| {
        kinds
            .iter()
            .map(|(kind, n)| format!("{n} {kind}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut text = match summary.violations.is_empty() {
        true => "none".to_owned(),
        false => list(&summary.violations),
    };
    if !summary.allowed_violations.is_empty() {
        text += &format!("; allowed: {}", list(&summary.allowed_violations));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_status_follows_the_documentation() {
        let ok = End::Script(0);
        assert_eq!(ok.exit_status(Expect::Success, 0), 0);
        assert_eq!(ok.exit_status(Expect::Success, 1), 3);
        assert_eq!(ok.exit_status(Expect::Reset, 0), 1);
        assert_eq!(End::Script(5).exit_status(Expect::Success, 0), 1);
        assert_eq!(End::Script(5).exit_status(Expect::Success, 2), 3);
        assert_eq!(End::Unclean(0).exit_status(Expect::Success, 0), 1);
        assert_eq!(End::Timeout.exit_status(Expect::Success, 0), 1);
        assert_eq!(End::Reset.exit_status(Expect::Reset, 0), 0);
        assert_eq!(End::Panic("x".into()).exit_status(Expect::Panic, 0), 0);
        assert_eq!(End::Qemu("x".into()).exit_status(Expect::Success, 0), 4);
    }

    #[test]
    fn report_names_what_matters() {
        let mut summary = Summary::default();
        summary.violations.insert("converted-dirty".into(), 2);
        summary.unused_injections.push("33=SYS_BUSY".into());
        let counts = CallCounts {
            calls: 9,
            interrupted: 2,
            min: Some(5),
            median: Some(6),
            max: Some(70),
        };
        summary.instructions.insert("tdh_x".into(), counts);
        (summary.tds_created, summary.unconverted_bytes) = (3, 4096);
        (summary.poisoned_lines, summary.machine_checks) = (12, 1);
        summary.guests = vec![GuestSummary {
            entries: 8,
            failures: 2,
            ..GuestSummary::default()
        }];
        let kernel = KernelSummary {
            seamcalls: 77,
            dirty_cpus: vec![1],
            ..KernelSummary::default()
        };
        summary.kernels = vec![kernel, KernelSummary::default()];
        let text = report(
            &End::Timeout,
            Some(&summary),
            Duration::from_secs(3),
            true,
            &["WARNING: x".into()],
        );
        for part in [
            "the time was up after 3.0 s",
            "not up",
            "2 converted-dirty",
            "33=SYS_BUSY",
            "3 created, 0 left, 8 entries",
            "2 expectations not met",
            "4 KB not converted",
            "12 lines, 1 machine checks",
            "kernel 1     77 SEAMCALLs",
            "1 CPUs not flushed",
            "WARNING: x",
            "5 / 6 / 70 in 7 calls, 2 more interrupted",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(report(&End::Timeout, None, Duration::ZERO, true, &[]).contains("no summary"));
    }
}
