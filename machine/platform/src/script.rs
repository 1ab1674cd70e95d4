// SPDX-License-Identifier: GPL-2.0

//! What runs inside the TDs: [`Script`], a list of [`Step`]s per vCPU.
//!
//! The text has one step per line; `#` starts a comment. A line `td N`, `vcpu N` or `td N vcpu M`
//! opens a section for that TD (numbered from 0 in the order in which they were created) and that
//! vCPU; steps before the first such line are for every vCPU of every TD. The first section that
//! fits a vCPU is its program. `guest` carries the steps out; `Documentation/machine.rst` lists them.

use crate::inject::parse_number;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// What a guest wants to do with memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Load.
    #[default]
    Read,
    /// Store.
    Write,
    /// Instruction fetch.
    Execute,
}

/// One of the registers R10 to R15, with which TDG.VP.VMCALL passes values.
pub const CALL_REGISTERS: [&str; 6] = ["r10", "r11", "r12", "r13", "r14", "r15"];

/// One thing that a guest does. A GPA comes without the shared bit; `shared` says that it is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are operands")]
pub enum Step {
    /// Accesses memory.
    Touch {
        gpa: u64,
        shared: bool,
        access: Access,
    },
    /// Loads a quadword into R11.
    Load { gpa: u64, shared: bool },
    /// Stores a quadword.
    Store { gpa: u64, shared: bool, value: u64 },
    /// TDG.MEM.PAGE.ACCEPT; level 0 is 4 KB, level 1 is 2 MB.
    Accept { gpa: u64, level: u8 },
    /// TDG.VP.VMCALL with these values in R10 to R15.
    Call([u64; 6]),
    /// `TDG.VP.VMCALL<MMIO>`, a read if there is no value; size in bytes.
    Mmio {
        gpa: u64,
        size: u64,
        value: Option<u64>,
    },
    /// `TDG.VP.VMCALL<MapGPA>`, repeated as long as the host asks for it.
    MapGpa { gpa: u64, size: u64, shared: bool },
    /// Register (index into [`CALL_REGISTERS`]) must have this value.
    Expect { register: usize, value: u64 },
    /// Computes for this many microseconds.
    Stay(u64),
    /// VM exit with this reason, qualification, GPA and interruption information.
    Exit([u64; 4]),
}

/// What a guest does after its last step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtEnd {
    /// Halts, again after every interrupt.
    #[default]
    Halt,
    /// Ends with a triple fault.
    Shutdown,
    /// Starts over; it halts if it had no reason to exit in between.
    Loop,
}

/// TDG.VP.VMCALL leaves.
pub(crate) mod vmcall {
    pub const CPUID: u64 = 10;
    pub const HLT: u64 = 12;
    pub const IO: u64 = 30;
    pub const RDMSR: u64 = 31;
    pub const WRMSR: u64 = 32;
    pub const MMIO: u64 = 48;
    pub const INFO: u64 = 0x1_0000;
    pub const MAP_GPA: u64 = 0x1_0001;
    pub const GET_QUOTE: u64 = 0x1_0002;
    pub const FATAL_ERROR: u64 = 0x1_0003;
    pub const EVENT_NOTIFY: u64 = 0x1_0004;
}

/// VM exit reason of a triple fault.
pub(crate) const TRIPLE_FAULT: u64 = 2;

/// The program of one vCPU, or of several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Section {
    td: Option<u32>,
    vcpu: Option<u32>,
    /// Steps with the number of their line, from 1.
    pub steps: Vec<(usize, Step)>,
    /// What comes after the last step.
    pub at_end: AtEnd,
}

/// The programs of all guests. Converts from and to its text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Script {
    sections: Vec<Section>,
    text: String,
}

impl Script {
    /// The program of vCPU number `vcpu` of TD number `td`; without one, it halts.
    pub fn section(&self, td: u32, vcpu: u32) -> Option<&Section> {
        let fits = |wanted: Option<u32>, number| wanted.is_none_or(|wanted| wanted == number);
        self.sections
            .iter()
            .find(|section| fits(section.td, td) && fits(section.vcpu, vcpu))
    }
}

impl TryFrom<String> for Script {
    type Error = String;

    fn try_from(text: String) -> Result<Script, String> {
        text.parse()
    }
}

impl From<Script> for String {
    fn from(script: Script) -> String {
        script.text
    }
}

impl FromStr for Script {
    type Err = String;

    fn from_str(text: &str) -> Result<Script, String> {
        let mut sections: Vec<Section> = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let words: Vec<_> = line
                .split('#')
                .next()
                .unwrap_or_default()
                .split_whitespace()
                .collect();
            let Some(first) = words.first() else { continue };
            let bad = |why: String| format!("line {number}, '{}': {why}", line.trim());
            if matches!(*first, "td" | "vcpu") {
                sections.push(header(&words).map_err(bad)?);
                continue;
            }
            if sections.is_empty() {
                sections.push(Section::default());
            }
            let Some(section) = sections.last_mut() else {
                continue;
            };
            match *first {
                "at-end" => section.at_end = at_end(&words).map_err(bad)?,
                _ => section.steps.push((number, step(&words).map_err(bad)?)),
            }
        }
        Ok(Script {
            sections,
            text: text.to_owned(),
        })
    }
}

fn header(words: &[&str]) -> Result<Section, String> {
    let mut section = Section::default();
    for pair in words.chunks(2) {
        let number = match pair {
            [_, number] => number.trim_end_matches(':').parse().ok(),
            _ => None,
        };
        let number = Some(number.ok_or("expected td N, vcpu N or td N vcpu M")?);
        match pair[0] {
            "td" => section.td = number,
            "vcpu" => section.vcpu = number,
            other => return Err(format!("'{other}' is neither td nor vcpu")),
        }
    }
    Ok(section)
}

fn at_end(words: &[&str]) -> Result<AtEnd, String> {
    match words {
        [_, "hlt"] => Ok(AtEnd::Halt),
        [_, "shutdown"] => Ok(AtEnd::Shutdown),
        [_, "loop"] => Ok(AtEnd::Loop),
        _ => Err("expected hlt, shutdown or loop".into()),
    }
}

/// The operands of a step, taken one by one.
struct Operands<'a> {
    words: std::slice::Iter<'a, &'a str>,
}

impl<'a> Operands<'a> {
    fn word(&mut self) -> Option<&'a str> {
        self.words.next().copied()
    }

    fn number(&mut self, what: &str) -> Result<u64, String> {
        let word = self.word().ok_or_else(|| format!("{what} is missing"))?;
        parse_number(word).ok_or_else(|| format!("'{word}' is not a number"))
    }

    fn number_or(&mut self, default: u64) -> Result<u64, String> {
        match self.word() {
            Some(word) => parse_number(word).ok_or_else(|| format!("'{word}' is not a number")),
            None => Ok(default),
        }
    }

    /// A GPA, with the word `shared` or `private` in front if it is not private.
    fn gpa(&mut self) -> Result<(u64, bool), String> {
        let mut ahead = self.words.clone();
        let shared = match ahead.next() {
            Some(&"shared") => true,
            Some(&"private") => false,
            _ => return Ok((self.number("GPA")?, false)),
        };
        self.words = ahead;
        Ok((self.number("GPA")?, shared))
    }
}

fn step(words: &[&str]) -> Result<Step, String> {
    let mut operands = Operands {
        words: words[1..].iter(),
    };
    let step = parse_step(words[0], &mut operands)?;
    match operands.word() {
        Some(word) => Err(format!("'{word}' is one operand too many")),
        None => Ok(step),
    }
}

fn parse_step(name: &str, op: &mut Operands) -> Result<Step, String> {
    let call = |leaf, [r12, r13, r14, r15]: [u64; 4]| Step::Call([0, leaf, r12, r13, r14, r15]);
    Ok(match name {
        "touch" => {
            let (gpa, shared) = op.gpa()?;
            let access = match op.word() {
                None | Some("read") => Access::Read,
                Some("write") => Access::Write,
                Some("execute") => Access::Execute,
                Some(other) => return Err(format!("'{other}' is not read, write or execute")),
            };
            Step::Touch {
                gpa,
                shared,
                access,
            }
        }
        "load" => {
            let (gpa, shared) = op.gpa()?;
            Step::Load { gpa, shared }
        }
        "store" => {
            let (gpa, shared) = op.gpa()?;
            let value = op.number("value")?;
            Step::Store { gpa, shared, value }
        }
        "accept" => {
            let (gpa, _) = op.gpa()?;
            let level = match op.word() {
                None | Some("4K") => 0,
                Some("2M") => 1,
                Some(other) => return Err(format!("'{other}' is not 4K or 2M")),
            };
            Step::Accept { gpa, level }
        }
        "map-gpa" => {
            let (gpa, shared) = op.gpa()?;
            let size = op.number("size")?;
            Step::MapGpa { gpa, size, shared }
        }
        "mmio-read" => Step::Mmio {
            gpa: op.gpa()?.0,
            size: op.number("size")?,
            value: None,
        },
        "mmio-write" => Step::Mmio {
            gpa: op.gpa()?.0,
            size: op.number("size")?,
            value: Some(op.number("value")?),
        },
        "hlt" => call(vmcall::HLT, [op.number_or(0)?, 0, 0, 0]),
        "cpuid" => call(vmcall::CPUID, [op.number("leaf")?, op.number_or(0)?, 0, 0]),
        "rdmsr" => call(vmcall::RDMSR, [op.number("MSR")?, 0, 0, 0]),
        "wrmsr" => call(
            vmcall::WRMSR,
            [op.number("MSR")?, op.number("value")?, 0, 0],
        ),
        "io-read" => {
            let (port, size) = (op.number("port")?, op.number("size")?);
            call(vmcall::IO, [size, 0, port, 0])
        }
        "io-write" => {
            let (port, size) = (op.number("port")?, op.number("size")?);
            call(vmcall::IO, [size, 1, port, op.number("value")?])
        }
        "info" => call(vmcall::INFO, [op.number_or(0)?, 0, 0, 0]),
        "get-quote" => call(
            vmcall::GET_QUOTE,
            [op.number("GPA")?, op.number("size")?, 0, 0],
        ),
        "event-notify" => call(vmcall::EVENT_NOTIFY, [op.number("vector")?, 0, 0, 0]),
        "fatal" => call(
            vmcall::FATAL_ERROR,
            [op.number("error")?, op.number_or(0)?, 0, 0],
        ),
        "vmcall" => vmcall(op)?,
        "expect" => {
            let (register, value) = assignment(op.word().ok_or("expected REGISTER=VALUE")?)?;
            Step::Expect { register, value }
        }
        "stay" => Step::Stay(op.number("time")?.min(MAX_STAY)),
        "triple-fault" => Step::Exit([TRIPLE_FAULT, 0, 0, 0]),
        "exit" => Step::Exit([
            op.number("reason")?,
            op.number_or(0)?,
            op.number_or(0)?,
            op.number_or(0)?,
        ]),
        other => return Err(format!("'{other}' is no step")),
    })
}

/// Longest `stay`, in microseconds: the vCPU's thread sleeps, and QEMU cannot stop it.
const MAX_STAY: u64 = 10_000_000;

fn vmcall(op: &mut Operands) -> Result<Step, String> {
    let mut registers = [0; CALL_REGISTERS.len()];
    while let Some(word) = op.word() {
        let (register, value) = assignment(word)?;
        registers[register] = value;
    }
    Ok(Step::Call(registers))
}

/// `REGISTER=VALUE`.
fn assignment(text: &str) -> Result<(usize, u64), String> {
    let parsed = text.split_once('=').and_then(|(name, value)| {
        let name = name.to_ascii_lowercase();
        let register = CALL_REGISTERS.iter().position(|known| *known == name)?;
        Some((register, parse_number(value)?))
    });
    parsed.ok_or_else(|| format!("'{text}': expected r10=VALUE to r15=VALUE"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(text: &str) -> Script {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_section_that_fits_is_the_program() {
        let script = script("td 1 vcpu 0\nhlt\nvcpu 0:\nstay 1\nat-end loop\ntd 0\nstay 2\n");
        let first = |td, vcpu| script.section(td, vcpu).map(|s| s.steps[0].1);
        assert_eq!(first(1, 0), Some(Step::Call([0, 12, 0, 0, 0, 0])));
        assert_eq!(first(0, 0), Some(Step::Stay(1)));
        assert_eq!(first(0, 1), Some(Step::Stay(2)));
        assert_eq!(first(2, 1), None);
        assert_eq!(script.section(5, 0).map(|s| s.at_end), Some(AtEnd::Loop));
    }

    #[test]
    fn steps_before_any_section_are_for_all() {
        let script = script("# comment\n\n touch 0x1000 write # more\n");
        let touch = Step::Touch {
            gpa: 0x1000,
            shared: false,
            access: Access::Write,
        };
        assert_eq!(
            script.section(7, 7).map(|s| s.steps.clone()),
            Some(vec![(3, touch)])
        );
    }

    #[test]
    fn calls_carry_their_operands() {
        let script = script(
            "map-gpa shared 0x2000 4096\nmmio-write 0x3000 4 7\nio-write 0x3f8 1 65\n\
             vmcall r11=0x10000 R15=9\nexpect r11=5\naccept 0x200000 2M",
        );
        let steps: Vec<_> = script
            .section(0, 0)
            .unwrap()
            .steps
            .iter()
            .map(|s| s.1)
            .collect();
        let map = Step::MapGpa {
            gpa: 0x2000,
            size: 4096,
            shared: true,
        };
        let mmio = Step::Mmio {
            gpa: 0x3000,
            size: 4,
            value: Some(7),
        };
        let accept = Step::Accept {
            gpa: 0x20_0000,
            level: 1,
        };
        let expected = [
            map,
            mmio,
            Step::Call([0, 30, 1, 1, 0x3f8, 65]),
            Step::Call([0, 0x10000, 0, 0, 0, 9]),
            Step::Expect {
                register: 1,
                value: 5,
            },
            accept,
        ];
        assert_eq!(steps, expected);
    }

    #[test]
    fn mistakes_are_quoted_with_their_line() {
        for (text, part) in [
            ("hlt\ndance", "line 2, 'dance': 'dance' is no step"),
            ("touch", "GPA is missing"),
            ("touch 1 upside", "read, write or execute"),
            ("td", "expected td N"),
            ("td 1 cpu 2", "neither td nor vcpu"),
            ("at-end", "hlt, shutdown or loop"),
            ("hlt 0 1", "one operand too many"),
            ("expect rax=1", "r10=VALUE"),
            ("wrmsr 1 x", "'x' is not a number"),
        ] {
            let error = text.parse::<Script>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn text_survives_the_trip_through_the_configuration() {
        let script = script("hlt # why not\n");
        let json = serde_json::to_string(&script).unwrap();
        assert_eq!(serde_json::from_str::<Script>(&json).unwrap(), script);
    }
}
