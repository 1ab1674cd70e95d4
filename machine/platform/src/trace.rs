// SPDX-License-Identifier: GPL-2.0

//! The trace: one JSON object per line, written as things happen, bounded however long the run is.
//!
//! [`Trace`] writes the first call of a kind at once. While the same processor repeats a call with
//! the same leaf, operands and status, the repeats are counted and written as one more line with
//! their number in `count`; so the counts of all lines add up to the calls made. Of each kind of
//! event only the first [`EVENTS`] are written, of violations the first [`VIOLATIONS`] per kind.

use crate::operands::{Tdmr, inputs};
use crate::seamldr::{self, Refusal};
use crate::violation::{Kind, Violation};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use tdx_module::{Regs, leaf_name, status_name};

/// Events of one kind that are written.
pub const EVENTS: u64 = 1000;
/// Violations of one kind that are written.
pub const VIOLATIONS: u64 = 100;

/// Bit of RAX that calls the P-SEAMLDR instead of the TDX module.
pub const SEAMLDR: u64 = 1 << 63;
/// Bits of RAX that say what is called.
pub const LEAF: u64 = SEAMLDR | 0xffff;

/// How a SEAMCALL ended, as the caller saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// A status in RAX.
    Status(u64),
    /// The P-SEAMLDR refused, with this status.
    Refused(Refusal, u64),
    /// VMfailInvalid.
    VmfailInvalid,
    /// #GP(0).
    GeneralProtection,
    /// #UD.
    InvalidOpcode,
}

impl Ending {
    /// Name as used in the trace: of a status, or `VMFAIL_INVALID`, `#GP`, `#UD`.
    pub fn name(self) -> String {
        match self {
            Ending::Status(status) => {
                status_name(status).map_or_else(|| format!("0x{:08x}", status >> 32), str::to_owned)
            }
            Ending::Refused(refusal, _) => refusal.name().into(),
            Ending::VmfailInvalid => "VMFAIL_INVALID".into(),
            Ending::GeneralProtection => "#GP".into(),
            Ending::InvalidOpcode => "#UD".into(),
        }
    }

    /// The word in RAX, if there was one.
    pub fn status(self) -> Option<u64> {
        match self {
            Ending::Status(status) | Ending::Refused(_, status) => Some(status),
            _ => None,
        }
    }
}

/// One SEAMCALL to be written.
#[derive(Clone, Debug)]
pub struct Call {
    /// Logical processor.
    pub cpu: u32,
    /// Registers before.
    pub before: Regs,
    /// Registers after.
    pub after: Regs,
    /// Result.
    pub ending: Ending,
    /// The answer was injected, not the module's.
    pub injected: bool,
    /// TDMRs, for TDH.SYS.CONFIG.
    pub tdmrs: Option<Vec<Tdmr>>,
}

impl Call {
    /// Leaf number, with bit 63 for the P-SEAMLDR.
    pub fn leaf(&self) -> u64 {
        self.before.rax & LEAF
    }

    fn repeats(&self, other: &Call) -> bool {
        let operands = |call: &Call| {
            let mut regs = call.before;
            inputs(call.leaf())
                .iter()
                .map(|name| regs.by_name(name).copied())
                .collect::<Vec<_>>()
        };
        self.before.rax == other.before.rax
            && self.ending == other.ending
            && self.injected == other.injected
            && self.tdmrs.is_none()
            && operands(self) == operands(other)
    }
}

/// Name of a leaf (with bit 63 for the P-SEAMLDR), or its number where it has none.
pub fn leaf_label(leaf: u64) -> String {
    let number = leaf as u16;
    if leaf & SEAMLDR == 0 {
        leaf_name(number).map_or_else(|| format!("leaf {number}"), str::to_owned)
    } else {
        let unknown = || format!("SEAMLDR leaf {number}");
        seamldr::leaf_name(number).map_or_else(unknown, str::to_owned)
    }
}

struct Last {
    call: Call,
    /// Sequence number of the first repeat not written yet, and how many there are.
    pending: Option<(u64, u64)>,
}

/// Writer of the trace.
pub struct Trace {
    out: Box<dyn Write + Send>,
    seq: u64,
    last: BTreeMap<u32, Last>,
    events: HashMap<String, u64>,
    violations: BTreeMap<Kind, u64>,
}

impl Trace {
    /// A trace written to `out`, a line at a time.
    pub fn new(out: Box<dyn Write + Send>) -> Trace {
        Trace {
            out,
            seq: 0,
            last: BTreeMap::new(),
            events: HashMap::new(),
            violations: BTreeMap::new(),
        }
    }

    /// Adds a SEAMCALL.
    pub fn call(&mut self, call: Call) {
        self.seq += 1;
        let seq = self.seq;
        if let Some(last) = self.last.get_mut(&call.cpu)
            && last.call.repeats(&call)
        {
            let (first, count) = last.pending.unwrap_or((seq, 0));
            *last = Last {
                call,
                pending: Some((first, count + 1)),
            };
            return;
        }
        self.flush(Some(call.cpu));
        self.line(&describe(&call, seq, 1));
        self.last.insert(
            call.cpu,
            Last {
                call,
                pending: None,
            },
        );
    }

    /// Adds something other than a SEAMCALL; `details` must be a JSON object.
    pub fn event(&mut self, name: &str, cpu: u32, details: Value) {
        let seen = self.events.entry(name.to_owned()).or_insert(0);
        *seen += 1;
        if *seen > EVENTS {
            return;
        }
        let mut line = Map::new();
        line.insert("type".into(), "event".into());
        line.insert("event".into(), name.into());
        line.insert("cpu".into(), cpu.into());
        if let Value::Object(details) = details {
            line.extend(details);
        }
        self.flush(Some(cpu));
        self.line(&Value::Object(line));
    }

    /// Would a violation of `kind` be written, or is it one too many?
    pub fn has_room(&self, kind: Kind) -> bool {
        self.violations.get(&kind).is_none_or(|&n| n < VIOLATIONS)
    }

    /// Adds a violation. Answers whether it was written.
    pub fn violation(&mut self, violation: &Violation) -> bool {
        if !self.has_room(violation.kind) {
            return false;
        }
        *self.violations.entry(violation.kind).or_insert(0) += 1;
        self.flush(None);
        let line = json!({
            "type": "violation",
            "kind": violation.kind.name(),
            "cpu": violation.cpu,
            "rip": hex(violation.rip),
            "backtrace": violation.backtrace.iter().copied().map(hex).collect::<Vec<_>>(),
            "address": violation.address.map(hex),
            "text": violation.text,
        });
        self.line(&line);
        true
    }

    /// Writes the repeats that were only counted so far, of one processor or of all.
    pub fn flush(&mut self, cpu: Option<u32>) {
        let mut lines = Vec::new();
        for (_, last) in self
            .last
            .iter_mut()
            .filter(|(c, _)| cpu.is_none_or(|cpu| cpu == **c))
        {
            if let Some((seq, count)) = last.pending.take() {
                lines.push(describe(&last.call, seq, count));
            }
        }
        for line in lines {
            self.line(&line);
        }
    }

    /// A full disk must not stop the guest, so write errors are dropped.
    fn line(&mut self, value: &Value) {
        let _ = writeln!(self.out, "{value}").and_then(|()| self.out.flush());
    }
}

fn hex(value: u64) -> Value {
    format!("{value:#x}").into()
}

fn describe(call: &Call, seq: u64, count: u64) -> Value {
    let (mut before, leaf) = (call.before, call.leaf());
    let operands: Map<_, _> = inputs(leaf)
        .iter()
        .filter_map(|name| before.by_name(name).map(|v| ((*name).to_owned(), hex(*v))))
        .collect();
    let changed: Map<_, _> = Regs::NAMES
        .iter()
        .zip(call.before.values().iter().zip(call.after.values()))
        .filter(|(name, (old, new))| **name != "rax" && **old != *new)
        .map(|(name, (_, new))| ((*name).to_owned(), hex(new)))
        .collect();
    let mut line = json!({
        "type": "seamcall",
        "seq": seq,
        "cpu": call.cpu,
        "leaf": leaf_label(leaf),
        "number": leaf as u16,
        "version": call.before.rax >> 16 & 0xff,
        "in": operands,
        "out": changed,
        "status": call.ending.name(),
        "injected": call.injected,
        "count": count,
    });
    if let Some(status) = call.ending.status() {
        line["rax"] = format!("{status:#018x}").into();
    }
    if let Some(tdmrs) = &call.tdmrs {
        line["tdmrs"] = tdmrs.iter().map(describe_tdmr).collect();
    }
    line
}

fn describe_tdmr(tdmr: &Tdmr) -> Value {
    let pair = |(a, b): &(u64, u64)| json!([hex(*a), hex(*b)]);
    json!({
        "base": hex(tdmr.base),
        "size": hex(tdmr.size),
        "pamt_1g": pair(&tdmr.pamt[0]),
        "pamt_2m": pair(&tdmr.pamt[1]),
        "pamt_4k": pair(&tdmr.pamt[2]),
        "reserved": tdmr.reserved.iter().map(pair).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Sink;

    fn trace() -> (Trace, Sink) {
        let sink = Sink::default();
        (Trace::new(Box::new(sink.clone())), sink)
    }

    fn tdmr_init(cpu: u32, base: u64, next: u64) -> Call {
        let before = Regs {
            rax: 36,
            rcx: base,
            rdx: 99,
            r15: base ^ next,
            ..Regs::default()
        };
        let after = Regs {
            rax: 0,
            rdx: next,
            ..before
        };
        Call {
            cpu,
            before,
            after,
            ending: Ending::Status(0),
            injected: false,
            tdmrs: None,
        }
    }

    #[test]
    fn repeats_become_one_line_and_nothing_is_lost() {
        let (mut trace, sink) = trace();
        for call in 0..256_000u64 {
            trace.call(tdmr_init((call % 2) as u32, (call % 2) << 40, call));
        }
        trace.flush(None);
        let lines = sink.lines();
        assert_eq!(lines.len(), 4);
        assert_eq!(
            lines
                .iter()
                .map(|l| l["count"].as_u64().unwrap())
                .sum::<u64>(),
            256_000
        );
        assert_eq!(lines[3]["out"]["rdx"], hex(255_999));
    }

    #[test]
    fn different_operand_status_or_injection_is_a_new_line() {
        let (mut trace, sink) = trace();
        trace.call(tdmr_init(0, 0, 0));
        trace.call(tdmr_init(0, 1 << 30, 0));
        trace.call(Call {
            ending: Ending::VmfailInvalid,
            ..tdmr_init(0, 1 << 30, 0)
        });
        trace.call(Call {
            ending: Ending::VmfailInvalid,
            injected: true,
            ..tdmr_init(0, 1 << 30, 0)
        });
        assert_eq!(sink.lines().len(), 4);
        assert_eq!(sink.lines()[2]["status"], "VMFAIL_INVALID");
    }

    #[test]
    fn line_shows_operands_and_changes_only() {
        let (mut trace, sink) = trace();
        trace.call(tdmr_init(3, 1 << 30, 2 << 30));
        let line = &sink.lines()[0];
        assert_eq!(line["leaf"], "TDH.SYS.TDMR.INIT");
        assert_eq!((&line["cpu"], &line["number"]), (&json!(3), &json!(36)));
        assert_eq!(line["in"], json!({ "rcx": "0x40000000" }));
        assert_eq!(line["out"], json!({ "rdx": "0x80000000" }));
        assert_eq!(
            (&line["status"], &line["rax"]),
            (&json!("SUCCESS"), &json!("0x0000000000000000"))
        );
    }

    #[test]
    fn violations_and_events_are_bounded() {
        let (mut trace, sink) = trace();
        let violation = Violation {
            kind: Kind::ConvertedDirty,
            cpu: 0,
            rip: 1,
            backtrace: Vec::new(),
            address: Some(64),
            text: "x".into(),
        };
        let written = (0..5000).filter(|_| trace.violation(&violation)).count() as u64;
        for _ in 0..5000 {
            trace.event("vmxon", 0, json!({}));
        }
        assert_eq!(
            (written, sink.lines().len() as u64),
            (VIOLATIONS, VIOLATIONS + EVENTS)
        );
    }

    #[test]
    fn violation_comes_after_the_calls_that_led_to_it() {
        let (mut trace, sink) = trace();
        trace.call(tdmr_init(0, 0, 0));
        trace.call(tdmr_init(0, 0, 1));
        trace.violation(&Violation {
            kind: Kind::PlanRejected,
            cpu: 0,
            rip: 0,
            backtrace: Vec::new(),
            address: None,
            text: String::new(),
        });
        let types: Vec<_> = sink.lines().iter().map(|l| l["type"].clone()).collect();
        assert_eq!(types, ["seamcall", "seamcall", "violation"]);
    }
}
