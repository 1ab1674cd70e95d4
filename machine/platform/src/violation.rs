// SPDX-License-Identifier: GPL-2.0

//! What a host must never do, and what the machine says when it does.
//!
//! A [`Violation`] is a bug of the host under test, never an effect of an injected fault or of a
//! feature switched off on the command line.

use serde::{Deserialize, Serialize};

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
    /// Physical address concerned, if any.
    pub address: Option<u64>,
    /// What happened, in a sentence.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_agree_with_the_trace() {
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
            assert_eq!(Kind::by_name(kind.name()), Some(kind));
        }
        assert_eq!(Kind::by_name("nonsense"), None);
    }
}
