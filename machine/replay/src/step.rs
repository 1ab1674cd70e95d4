// SPDX-License-Identifier: GPL-2.0

//! The steps of a recorded sequence: [`Sequence`], [`Step`].

use std::collections::BTreeMap;

use serde::Deserialize;
use tdx_module::Regs;

use crate::input::{Error, Hex};
use crate::platform::{Injection, Shape};

/// One recorded sequence, from a freshly booted machine on.
#[derive(Clone, Debug, Deserialize)]
pub struct Sequence {
    /// Number of the sequence in its file.
    pub id: u64,
    /// The machine.
    pub platform: Shape,
    /// What happened on it.
    pub steps: Vec<Step>,
}

/// One step as it stands in the file; [`Step::action`] makes sense of it.
#[derive(Clone, Debug, Deserialize)]
pub struct Step {
    write: Option<Hex>,
    hex: Option<String>,
    event: Option<String>,
    msr: Option<Hex>,
    value: Option<Hex>,
    #[serde(default)]
    restore: bool,
    lp: Option<usize>,
    repeat: Option<u64>,
    inject: Option<Injection>,
    out: Option<Out>,
    guest: Option<BTreeMap<String, Hex>>,
    guest_exit: Option<GuestExit>,
    #[serde(flatten)]
    registers: BTreeMap<String, Hex>,
}

/// What the host saw at the end of a call.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Out {
    /// The registers that changed.
    Registers(BTreeMap<String, Hex>),
    /// The word `guest`: nothing yet, the guest runs.
    Word(String),
}

/// A VM exit of a guest.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestExit {
    /// VM exit reason.
    pub reason: u32,
    /// Exit qualification.
    #[serde(default)]
    pub qualification: Hex,
    /// Guest physical address.
    #[serde(default)]
    pub gpa: Hex,
    /// VM exit interruption information.
    #[serde(default)]
    pub intr_info: Hex,
    /// The guest's registers at the exit.
    #[serde(default)]
    pub regs: BTreeMap<String, Hex>,
    /// The guest is in 64-bit mode.
    #[serde(default)]
    pub long_mode: bool,
}

/// What a step does.
#[derive(Clone, Debug)]
pub enum Action {
    /// The host writes memory.
    Write {
        /// Physical address.
        pa: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// An MSR changes on all processors (`lp` is `None`) or on one; `value` is `None` when it goes
    /// back to normal.
    Msr {
        /// The processor.
        lp: Option<usize>,
        /// The MSR.
        index: u32,
        /// Its new value.
        value: Option<u64>,
    },
    /// A new module is in place.
    ModuleUpdate,
    /// A SEAMCALL.
    Call(Call),
    /// A VM exit of the guest on a processor.
    GuestExit {
        /// The processor.
        lp: usize,
        /// The exit.
        exit: GuestExit,
        /// What the host sees, or `None` if the guest goes on.
        out: Option<BTreeMap<String, Hex>>,
        /// The guest's registers when it goes on; those that are missing are zero.
        guest: BTreeMap<String, Hex>,
    },
}

/// A recorded SEAMCALL.
#[derive(Clone, Debug)]
pub struct Call {
    /// The processor.
    pub lp: usize,
    /// Registers at the call.
    pub input: Regs,
    /// Faults during the call.
    pub injection: Injection,
    /// How often the same call was made with the same answer.
    pub repeat: u64,
    /// Registers at the return, or `None` if the guest was entered.
    pub expected: Option<Regs>,
    /// The guest's registers if it was entered; those that are missing are zero.
    pub guest: BTreeMap<String, Hex>,
}

/// Inputs of the registers that a step does not name: a pattern that shows what was overwritten.
pub fn pattern() -> Regs {
    let fill = |byte: u8| u64::from_ne_bytes([byte; 8]);
    Regs {
        rax: 0,
        rcx: fill(0xd1),
        rdx: fill(0xd2),
        rbx: fill(0xd3),
        rbp: fill(0xd5),
        rsi: fill(0xd6),
        rdi: fill(0xd7),
        r8: fill(0x68),
        r9: fill(0x69),
        r10: fill(0x6a),
        r11: fill(0x6b),
        r12: fill(0x6c),
        r13: fill(0x6d),
        r14: fill(0x6e),
        r15: fill(0x6f),
    }
}

/// Sets the registers that `changes` names. RSP is left out.
///
/// # Errors
///
/// A name that is no register.
pub fn apply(regs: &mut Regs, changes: &BTreeMap<String, Hex>) -> Result<(), Error> {
    for (name, &Hex(value)) in changes.iter().filter(|(name, _)| *name != "rsp") {
        *regs
            .by_name(name)
            .ok_or_else(|| format!("unknown key \"{name}\""))? = value;
    }
    Ok(())
}

impl Step {
    /// Makes sense of the step.
    ///
    /// # Errors
    ///
    /// It is none of the known kinds or lacks something.
    pub fn action(&self) -> Result<Action, Error> {
        if let Some(Hex(pa)) = self.write {
            let bytes = crate::input::parse_bytes(self.hex.as_deref().unwrap_or(""))?;
            return Ok(Action::Write { pa, bytes });
        }
        match self.event.as_deref() {
            Some("module_update") => return Ok(Action::ModuleUpdate),
            Some("msr") => return self.msr_action(),
            Some(other) => return Err(format!("unknown event \"{other}\"")),
            None => {}
        }
        let lp = self.lp.ok_or("step without \"lp\"")?;
        let out = match self.out.as_ref().ok_or("step without \"out\"")? {
            Out::Registers(registers) => Some(registers.clone()),
            Out::Word(word) if word == "guest" => None,
            Out::Word(word) => return Err(format!("unknown outcome \"{word}\"")),
        };
        let guest = self.guest.clone().unwrap_or_default();
        match &self.guest_exit {
            Some(exit) => Ok(Action::GuestExit {
                lp,
                exit: exit.clone(),
                out,
                guest,
            }),
            None => self.call_action(lp, out, guest),
        }
    }

    fn msr_action(&self) -> Result<Action, Error> {
        let index = self.msr.ok_or("MSR event without \"msr\"")?.0 as u32;
        let value = if self.restore {
            None
        } else {
            self.value.map(|value| value.0)
        };
        if value.is_none() && !(self.restore && self.lp.is_some()) {
            return Err("MSR event without \"value\"".to_owned());
        }
        Ok(Action::Msr {
            lp: self.lp,
            index,
            value,
        })
    }

    fn call_action(
        &self,
        lp: usize,
        out: Option<BTreeMap<String, Hex>>,
        guest: BTreeMap<String, Hex>,
    ) -> Result<Action, Error> {
        let mut input = pattern();
        apply(&mut input, &self.registers)?;
        let expected = match out {
            None => None,
            Some(changes) => {
                let mut regs = input;
                apply(&mut regs, &changes)?;
                Some(regs)
            }
        };
        let injection = self.inject.unwrap_or_default();
        let repeat = self.repeat.unwrap_or(1);
        Ok(Action::Call(Call {
            lp,
            input,
            injection,
            repeat,
            expected,
            guest,
        }))
    }
}
