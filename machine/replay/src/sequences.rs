// SPDX-License-Identifier: GPL-2.0

//! Replaying recorded sequences of SEAMCALLs.

use std::collections::BTreeSet;

use tdx_module::{Module, ModuleConfig, Profile, Regs, Status, leaf_name, number};

use crate::input::Error;
use crate::platform::{Processor, RecordedPlatform};
use crate::report::{Report, compare};
use crate::step::{Action, Call, Sequence};

/// What to replay and how.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Make every call, also those of leaves that the model does not have.
    pub all_leaves: bool,
}

/// Leaves whose answers depend on TDs, which the model does not have.
const DEPENDS_ON_TDS: [u16; 2] = [number::PHYMEM_PAGE_RDMD, number::PHYMEM_CACHE_WB];

/// Leaves of TDs and vCPUs.
fn is_td_leaf(leaf: u16) -> bool {
    let other = matches!(
        leaf,
        number::PHYMEM_PAGE_RDMD
            | number::PHYMEM_CACHE_WB
            | number::SYS_KEY_CONFIG
            | number::SYS_INIT
            | number::SYS_RD
            | number::SYS_LP_INIT
            | number::SYS_TDMR_INIT
            | number::SYS_LP_SHUTDOWN
            | number::SYS_CONFIG
            | number::SYS_SHUTDOWN
            | number::SYS_UPDATE
    );
    leaf_name(leaf).is_some() && !other
}

/// Replays one sequence and counts into `report`.
///
/// # Errors
///
/// The sequence is not well formed; the message names it.
pub fn replay(
    sequence: &Sequence,
    processor: &Processor,
    options: Options,
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
        options,
        report,
        tds_skipped: false,
        in_guest: BTreeSet::new(),
    };
    for (index, step) in sequence.steps.iter().enumerate() {
        let at = |error: String| format!("sequence {}, step {index}: {error}", sequence.id);
        player.step(index, step.action().map_err(at)?);
    }
    Ok(())
}

struct Player<'a> {
    sequence: u64,
    module: Module,
    platform: RecordedPlatform,
    options: Options,
    report: &'a mut Report,
    /// A call that made or changed a TD was left out.
    tds_skipped: bool,
    /// Processors that are in a guest.
    in_guest: BTreeSet<usize>,
}

impl Player<'_> {
    fn step(&mut self, index: usize, action: Action) {
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
            Action::GuestExit { lp, .. } => {
                self.report.skip("guest exit", 1, "TDs are not modelled");
                self.in_guest.remove(&lp);
            }
            Action::Call(call) => self.call(index, &call),
        }
    }

    fn call(&mut self, index: usize, call: &Call) {
        let leaf = call.input.rax as u16;
        let name = leaf_name(leaf).map_or_else(|| format!("leaf {leaf}"), str::to_owned);
        if let Some(reason) = self.reason_to_skip(call) {
            self.report.skip(&name, call.repeat, reason);
            return;
        }
        self.platform.inject(call.injection);
        for done in 0..call.repeat {
            let mut regs = call.input;
            let _ = self.module.seamcall(call.lp, &mut regs, &self.platform);
            if Some(regs) == call.expected {
                self.report.agree(&name, 1);
            } else {
                self.disagree(index, call, &name, call.repeat - done, &regs);
                break;
            }
        }
        self.platform.inject(Default::default());
    }

    fn disagree(&mut self, index: usize, call: &Call, name: &str, calls: u64, got: &Regs) {
        let (sequence, lp) = (self.sequence, call.lp);
        self.report.disagree(name, calls, || {
            let head = format!("sequence {sequence}, step {index}: {name} on LP {lp}");
            match &call.expected {
                Some(expected) => format!("{head}\n{}", compare(&call.input, expected, got)),
                None => format!("{head}: recorded an entry into the guest, model {got:x?}"),
            }
        });
    }

    /// Why a call cannot be compared, if it cannot.
    fn reason_to_skip(&mut self, call: &Call) -> Option<&'static str> {
        let leaf = call.input.rax as u16;
        if self.options.all_leaves || answered_by_dispatcher(call) {
            return None;
        }
        if is_td_leaf(leaf) {
            self.tds_skipped = true;
            if call.expected.is_none() {
                self.in_guest.insert(call.lp);
            }
            return Some("TDs are not modelled");
        }
        let depends = DEPENDS_ON_TDS.contains(&leaf) && self.tds_skipped
            || leaf == number::SYS_SHUTDOWN && !self.in_guest.is_empty();
        depends.then_some("depends on TDs that are not modelled")
    }
}

/// Whether the recorded status comes from before any leaf had a say.
fn answered_by_dispatcher(call: &Call) -> bool {
    let status = call.expected.map(|regs| regs.rax);
    [Status::SYS_NOT_READY, Status::SYS_SHUTDOWN]
        .map(|s| Some(s.raw()))
        .contains(&status)
}
