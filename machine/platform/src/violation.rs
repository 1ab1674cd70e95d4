// SPDX-License-Identifier: GPL-2.0

//! What a host must never do, and what the machine says when it does.
//!
//! A [`Violation`] is a bug of the host under test, never an effect of an injected fault or of a
//! feature switched off on the command line.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Kind of a violation. The names (kebab-case) are used in the trace and by `--allow`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A private line was converted while some processor's cache might still hold it dirty.
    ConvertedDirty,
    /// SEAMCALL in CPL 0 raised a fault although the machine has a usable TDX module.
    SeamcallFault,
    /// TDH.SYS.CONFIG refused the plan.
    PlanRejected,
    /// The host converted memory that the module used, and went on working with TDs.
    ConvertedInUse,
    /// A leaf for TDs was refused in a way that only a wrong order of calls explains.
    TdMisuse,
    /// Two processors called the P-SEAMLDR at once, which fails for one of them.
    SeamldrRace,
    /// The next kernel was started while memory was private on a machine with the erratum.
    PrivateLeft,
    /// The next kernel was started while a processor's cache might hold private lines dirty.
    DirtyLeft,
    /// Private memory was written by something else than MOVDIR64B (only seen with memory watching).
    PrivateWrite,
    /// Private memory was read with KeyID 0 (only seen with memory watching).
    PrivateRead,
}

impl Kind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [Kind; 10] = [
        Kind::ConvertedDirty,
        Kind::SeamcallFault,
        Kind::PlanRejected,
        Kind::ConvertedInUse,
        Kind::TdMisuse,
        Kind::SeamldrRace,
        Kind::PrivateLeft,
        Kind::DirtyLeft,
        Kind::PrivateWrite,
        Kind::PrivateRead,
    ];

    /// Name as written in the trace and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::ConvertedDirty => "converted-dirty",
            Kind::SeamcallFault => "seamcall-fault",
            Kind::PlanRejected => "plan-rejected",
            Kind::ConvertedInUse => "converted-in-use",
            Kind::TdMisuse => "td-misuse",
            Kind::SeamldrRace => "seamldr-race",
            Kind::PrivateLeft => "private-left",
            Kind::DirtyLeft => "dirty-left",
            Kind::PrivateWrite => "private-write",
            Kind::PrivateRead => "private-read",
        }
    }

    /// The kind called `name`.
    pub fn by_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|k| k.name() == name)
    }
}

/// One violation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// What rule was broken.
    pub kind: Kind,
    /// Logical processor that did it.
    pub cpu: u32,
    /// Address of the instruction.
    pub rip: u64,
    /// Return addresses found on the stack, innermost first.
    pub backtrace: Vec<u64>,
    /// Physical address concerned, if any.
    pub address: Option<u64>,
    /// What happened, in a sentence.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        if let Some(address) = self.address {
            write!(f, " at {address:#x}")?;
        }
        write!(f, ": {} (CPU {}, RIP {:#x}", self.text, self.cpu, self.rip)?;
        for (index, caller) in self.backtrace.iter().enumerate() {
            let before = if index == 0 { ", called from" } else { "," };
            write!(f, "{before} {caller:#x}")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MachineConfig;
    use crate::tests::Sink;
    use crate::trace::VIOLATIONS;
    use crate::{Access, At, Machine, Stack};
    use serde_json::json;
    use std::cell::Cell;

    /// A stack that counts how often it is looked at.
    #[derive(Default)]
    struct Looks(Cell<u64>);

    impl Stack for Looks {
        fn backtrace(&self) -> Vec<u64> {
            self.0.set(self.0.get() + 1);
            vec![0x2005, 0x3005]
        }
    }

    #[test]
    fn backtrace_stands_in_trace_summary_and_log() {
        let (trace, log, stack) = (Sink::default(), Sink::default(), Looks::default());
        let sinks = (Box::new(trace.clone()), Box::new(log.clone()));
        let machine = Machine::new(MachineConfig::default(), sinks.0, sinks.1).unwrap();
        let at = At {
            rip: 0x1000,
            stack: Some(&stack),
            ..At::default()
        };
        machine.violation(at, Kind::PrivateRead, Some(64), "read".into());
        let none = At { stack: None, ..at };
        machine.violation(none, Kind::PrivateRead, None, "read".into());
        let lines = trace.lines();
        assert_eq!(lines[0]["backtrace"], json!(["0x2005", "0x3005"]));
        assert_eq!(lines[1]["backtrace"], json!([]));
        let summary = machine.finish();
        let found: Vec<_> = summary.first_violations.iter().collect();
        assert_eq!(found[0].backtrace, [0x2005, 0x3005]);
        assert!(found[1].backtrace.is_empty());
        assert_eq!(
            log.text(),
            "tdx-machine: VIOLATION private-read at 0x40: read \
             (CPU 0, RIP 0x1000, called from 0x2005, 0x3005)\n\
             tdx-machine: VIOLATION private-read: read (CPU 0, RIP 0x1000)\n"
        );
    }

    #[test]
    fn stack_is_looked_at_for_violations_that_are_written_only() {
        let stack = Looks::default();
        let sink = || Box::new(Sink::default());
        let machine = Machine::new(MachineConfig::default(), sink(), sink()).unwrap();
        let at = At {
            stack: Some(&stack),
            ..At::default()
        };
        machine.movdir64b(at, 0);
        machine.access(at, 0, 8, Access::Store);
        machine.lidt(at);
        machine.vmxon(at);
        assert_eq!(stack.0.get(), 0);
        for _ in 0..2 * VIOLATIONS {
            machine.violation(at, Kind::ConvertedDirty, None, String::new());
        }
        assert_eq!(stack.0.get(), VIOLATIONS);
    }

    #[test]
    fn names_agree_with_the_trace() {
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
            assert_eq!(Kind::by_name(kind.name()), Some(kind));
        }
        assert_eq!(Kind::by_name("nonsense"), None);
    }
}
