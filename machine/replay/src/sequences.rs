// SPDX-License-Identifier: GPL-2.0

//! Replaying recorded sequences of SEAMCALLs and of exits of the guests that they enter.

use std::collections::BTreeMap;

use tdx_module::{GuestExit, Module, ModuleConfig, Outcome, Profile, Regs, leaf_name};

use crate::input::{Error, Hex};
use crate::platform::{Processor, RecordedPlatform};
use crate::report::{Report, compare};
use crate::step::{self, Action, Call, Sequence};

/// How guest exits are called in a report.
pub const GUEST_EXIT: &str = "guest exit";

/// Replays one sequence and counts into `report`.
///
/// # Errors
///
/// The sequence is not well formed; the message names it.
pub fn replay(
    sequence: &Sequence,
    processor: &Processor,
    report: &mut Report,
) -> Result<(), Error> {
    let at = |error: String| format!("sequence {}: {error}", sequence.id);
    if sequence.platform.module != "1.5.01" {
        return Err(at(format!(
            "unknown module \"{}\"",
            sequence.platform.module
        )));
    }
    let platform = RecordedPlatform::new(processor, sequence.platform.clone()).map_err(at)?;
    let module = Module::new(ModuleConfig::new(Profile::V1_5_01)).map_err(|e| at(e.to_string()))?;
    let mut player = Player {
        sequence: sequence.id,
        module,
        platform,
        report,
        vp_enter: BTreeMap::new(),
    };
    for (index, step) in sequence.steps.iter().enumerate() {
        let at = |error| format!("sequence {}, step {index}: {error}", sequence.id);
        let action = step.action().map_err(at)?;
        player.step(index, action).map_err(at)?;
    }
    Ok(())
}

struct Player<'a> {
    sequence: u64,
    module: Module,
    platform: RecordedPlatform,
    report: &'a mut Report,
    /// Inputs of the TDH.VP.ENTER of each processor that is in a guest.
    vp_enter: BTreeMap<usize, Regs>,
}

/// Where the registers of a step came from and went to.
struct Compared {
    input: Regs,
    expected: (Outcome, Regs),
    got: (Outcome, Regs),
}

impl Player<'_> {
    fn step(&mut self, index: usize, action: Action) -> Result<(), Error> {
        use tdx_module::Platform;
        match action {
            Action::Write { pa, bytes } => self.platform.write(pa, &bytes),
            Action::Msr {
                lp: None,
                index,
                value,
            } => {
                self.platform.set_msr(index, value.unwrap_or_default());
            }
            Action::Msr {
                lp: Some(lp),
                index,
                value,
            } => {
                self.platform.set_lp_msr(lp, index, value);
            }
            Action::ModuleUpdate => self.module.replaced(),
            Action::GuestExit {
                lp,
                exit,
                out,
                guest,
            } => return self.guest_exit(index, lp, &exit, out, &guest),
            Action::Call(call) => return self.call(index, &call),
        }
        Ok(())
    }

    fn call(&mut self, index: usize, call: &Call) -> Result<(), Error> {
        let leaf = call.input.rax as u16;
        let name = leaf_name(leaf).map_or_else(|| format!("leaf {leaf}"), str::to_owned);
        let expected = match call.expected {
            Some(regs) => (Outcome::Returned, regs),
            None => (Outcome::Entered, guest_regs(&call.guest)?),
        };
        if expected.0 == Outcome::Entered {
            self.vp_enter.insert(call.lp, call.input);
        }
        self.platform.inject(call.injection);
        for done in 0..call.repeat {
            let mut regs = call.input;
            let outcome = self.module.seamcall(call.lp, &mut regs, &self.platform);
            let compared = Compared {
                input: call.input,
                expected,
                got: (outcome, regs),
            };
            let left = call.repeat - done;
            if !self.judge(index, call.lp, &name, left, &compared) {
                break;
            }
        }
        self.platform.inject(Default::default());
        Ok(())
    }

    fn guest_exit(
        &mut self,
        index: usize,
        lp: usize,
        exit: &step::GuestExit,
        out: Option<BTreeMap<String, Hex>>,
        guest: &BTreeMap<String, Hex>,
    ) -> Result<(), Error> {
        let input = self.vp_enter.get(&lp).copied().unwrap_or_default();
        let expected = match out {
            Some(changes) => {
                let mut regs = input;
                step::apply(&mut regs, &changes)?;
                (Outcome::Returned, regs)
            }
            None => (Outcome::Entered, guest_regs(guest)?),
        };
        let exit = GuestExit {
            reason: exit.reason,
            qualification: exit.qualification.0,
            gpa: exit.gpa.0,
            interruption: exit.intr_info.0 as u32,
            regs: guest_regs(&exit.regs)?,
            progress: false,
        };
        let mut regs = Regs::default();
        match self.module.guest_exit(lp, &exit, &mut regs, &self.platform) {
            Ok(outcome) => {
                let got = (outcome, regs);
                let compared = Compared {
                    input,
                    expected,
                    got,
                };
                self.judge(index, lp, GUEST_EXIT, 1, &compared);
            }
            Err(error) => {
                let sequence = self.sequence;
                self.report.disagree(GUEST_EXIT, 1, || {
                    format!("sequence {sequence}, step {index}: exit on LP {lp}: {error}")
                });
            }
        }
        Ok(())
    }

    /// Counts a step that stands for `calls` calls if it differs; returns whether it agrees.
    fn judge(
        &mut self,
        index: usize,
        lp: usize,
        name: &str,
        calls: u64,
        compared: &Compared,
    ) -> bool {
        let Compared {
            input,
            expected,
            got,
        } = compared;
        if expected == got {
            self.report.agree(name, 1);
            return true;
        }
        let sequence = self.sequence;
        self.report.disagree(name, calls, || {
            let head = format!("sequence {sequence}, step {index}: {name} on LP {lp}");
            let outcome = if expected.0 == got.0 {
                String::new()
            } else {
                format!(", recorded {:?}, model {:?}", expected.0, got.0)
            };
            format!("{head}{outcome}\n{}", compare(input, &expected.1, &got.1))
        });
        false
    }
}

/// The registers of a guest; those that are missing are zero.
fn guest_regs(named: &BTreeMap<String, Hex>) -> Result<Regs, Error> {
    let mut regs = Regs::default();
    step::apply(&mut regs, named)?;
    Ok(regs)
}
