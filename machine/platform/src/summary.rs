// SPDX-License-Identifier: GPL-2.0

//! What is left to say when the machine is switched off.

use crate::counts::CallCounts;
use crate::kernels::KernelSummary;
use crate::lp::Lp;
use crate::operands::Tdmr;
use crate::private::Owner;
use crate::tds::GuestSummary;
use crate::trace::Ending;
use crate::violation::{Kind, Violation};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Calls of one leaf.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafCalls {
    /// All calls.
    pub calls: u64,
    /// Those whose answer was injected.
    pub injected: u64,
    /// Calls by the name of their result.
    pub results: BTreeMap<String, u64>,
    /// When the first call began.
    pub first: Moment,
    /// When the last call so far ended.
    pub last: Moment,
}

/// A moment in the life of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Microseconds since it was switched on, by the host's clock.
    pub micros: u64,
    /// Kernel instructions that all processors together had executed, if functions are counted.
    pub executed: u64,
}

/// How far TDX bring-up got, from what the module was asked and answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BringUp {
    /// TDMRs that TDH.SYS.CONFIG accepted.
    pub tdmrs: usize,
    /// Bytes in those TDMRs.
    pub tdmr_bytes: u64,
    /// TDMRs completely initialised.
    pub initialised: usize,
    /// Every TDMR is initialised, so TDs could be built; at the end of the run.
    pub ready: bool,
    /// `ready` was true at some time.
    pub was_ready: bool,
}

/// The summary, written as JSON at exit.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Bring-up.
    pub bring_up: BringUp,
    /// SEAMCALLs, faulting ones included.
    pub seamcalls: u64,
    /// SEAMCALLs by leaf name.
    pub leaves: BTreeMap<String, LeafCalls>,
    /// Bytes still private at the end, by use.
    pub private_bytes: BTreeMap<String, u64>,
    /// Pages of 4 KB that these bytes fill (rounded up per use).
    pub private_pages: u64,
    /// Those of the private bytes that the module does not use any more: the host forgot them.
    pub unconverted_bytes: u64,
    /// Bytes the host converted back with MOVDIR64B.
    pub converted_bytes: u64,
    /// Bytes the module itself gave back.
    pub released_bytes: u64,
    /// Private lines that the host wrote in part, if that poisons them.
    #[serde(default)]
    pub poisoned_lines: u64,
    /// Machine checks that processors got for reading such lines.
    #[serde(default)]
    pub machine_checks: u64,
    /// TDX modules that the P-SEAMLDR installed and that took over what their predecessors left.
    pub updates: u64,
    /// Resets of the machine after power-on.
    pub resets: u64,
    /// TDs that were created.
    pub tds_created: u32,
    /// TDs that still exist at the end.
    pub tds_alive: usize,
    /// What the guests did, for the first 256 of them.
    pub guests: Vec<GuestSummary>,
    /// Instructions that calls of the counted functions took, by name.
    pub instructions: BTreeMap<String, CallCounts>,
    /// What each kernel that ran did and left behind, in order.
    #[serde(default)]
    pub kernels: Vec<KernelSummary>,
    /// State of each logical processor at the end.
    pub cpus: Vec<CpuSummary>,
    /// Violations that fail the run, by kind.
    pub violations: BTreeMap<String, u64>,
    /// Violations that the command line allows, by kind.
    pub allowed_violations: BTreeMap<String, u64>,
    /// The first violations in full.
    pub first_violations: Vec<Violation>,
    /// Injection rules that no call ever met.
    pub unused_injections: Vec<String>,
}

/// One logical processor at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuSummary {
    /// Package.
    pub package: u32,
    /// In VMX operation.
    pub vmxon: bool,
    /// SEAMCALLs that reached the module.
    pub seamcalls: u64,
    /// WBINVDs.
    pub wbinvds: u64,
    /// A SEAMCALL was made after the last WBINVD.
    pub cache_dirty: bool,
}

impl CpuSummary {
    pub(crate) fn new(package: u32, lp: &Lp) -> CpuSummary {
        CpuSummary {
            package,
            vmxon: lp.vmxon,
            seamcalls: lp.seamcalls,
            wbinvds: lp.wbinvds,
            cache_dirty: lp.is_dirty(),
        }
    }
}

const FULL_VIOLATIONS: usize = 20;

impl Summary {
    /// Counts a call that began at `first` and ended at `last`.
    pub(crate) fn count_call(
        &mut self,
        leaf: String,
        ending: Ending,
        injected: bool,
        (first, last): (Moment, Moment),
    ) {
        self.seamcalls += 1;
        let calls = self.leaves.entry(leaf).or_insert_with(|| LeafCalls {
            first,
            ..LeafCalls::default()
        });
        calls.last = last;
        calls.calls += 1;
        calls.injected += u64::from(injected);
        *calls.results.entry(ending.name()).or_default() += 1;
    }

    pub(crate) fn count_violation(&mut self, violation: Violation, allowed: bool) {
        let kinds = if allowed {
            &mut self.allowed_violations
        } else {
            &mut self.violations
        };
        *kinds.entry(violation.kind.name().to_owned()).or_default() += 1;
        if self.first_violations.len() < FULL_VIOLATIONS {
            self.first_violations.push(violation);
        }
    }

    pub(crate) fn set_private(&mut self, totals: BTreeMap<Owner, u64>) {
        self.private_pages = totals.values().map(|bytes| bytes.div_ceil(4096)).sum();
        self.private_bytes = by_name(totals);
    }

    /// Number of violations of `kind` that fail the run.
    pub fn violations_of(&self, kind: Kind) -> u64 {
        self.violations.get(kind.name()).copied().unwrap_or(0)
    }
}

/// Bytes by the name of what they are used for.
pub(crate) fn by_name(totals: BTreeMap<Owner, u64>) -> BTreeMap<String, u64> {
    let named = totals
        .into_iter()
        .map(|(owner, n)| (owner.name().into(), n));
    named.collect()
}

/// Follows TDH.SYS.CONFIG and TDH.SYS.TDMR.INIT.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    tdmrs: Vec<(u64, u64, bool)>,
    /// The TDMRs of a module that was shut down, for its successor.
    handed_over: Vec<(u64, u64, bool)>,
    was_ready: bool,
}

impl Progress {
    pub(crate) fn configured(&mut self, tdmrs: &[Tdmr]) {
        self.tdmrs = tdmrs.iter().map(|t| (t.base, t.size, false)).collect();
    }

    /// TDH.SYS.TDMR.INIT of the TDMR at `base` succeeded and reported `next`.
    pub(crate) fn initialised(&mut self, base: u64, next: u64) {
        for tdmr in self.tdmrs.iter_mut().filter(|t| t.0 == base) {
            tdmr.2 |= next >= base.saturating_add(tdmr.1);
        }
        self.was_ready |= self.ready();
    }

    /// The module forgot everything.
    pub(crate) fn forget(&mut self) {
        self.tdmrs.clear();
        self.handed_over.clear();
    }

    /// TDH.SYS.SHUTDOWN: the tables are there, but no module uses them.
    pub(crate) fn shut_down(&mut self) {
        self.handed_over = std::mem::take(&mut self.tdmrs);
    }

    /// TDH.SYS.UPDATE: another module has taken the tables over.
    pub(crate) fn taken_over(&mut self) {
        self.tdmrs = std::mem::take(&mut self.handed_over);
    }

    fn ready(&self) -> bool {
        !self.tdmrs.is_empty() && self.tdmrs.iter().all(|t| t.2)
    }

    pub(crate) fn report(&self) -> BringUp {
        BringUp {
            tdmrs: self.tdmrs.len(),
            tdmr_bytes: self.tdmrs.iter().map(|t| t.1).sum(),
            initialised: self.tdmrs.iter().filter(|t| t.2).count(),
            ready: self.ready(),
            was_ready: self.was_ready,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tdmr(base: u64, size: u64) -> Tdmr {
        Tdmr {
            base,
            size,
            pamt: [(0, 0); 3],
            reserved: Vec::new(),
        }
    }

    #[test]
    fn ready_when_the_last_tdmr_is_done() {
        let mut progress = Progress::default();
        assert!(!progress.report().ready);
        progress.configured(&[tdmr(0, 2 << 30), tdmr(4 << 30, 1 << 30)]);
        progress.initialised(0, 1 << 30);
        progress.initialised(0, 2 << 30);
        assert!(!progress.report().ready);
        progress.initialised(4 << 30, 5 << 30);
        assert!(progress.report().ready);
        progress.shut_down();
        assert!(!progress.report().ready);
        progress.taken_over();
        assert!(progress.report().ready);
        progress.forget();
        let end = progress.report();
        assert!(end.was_ready && !end.ready);
    }

    #[test]
    fn allowed_violations_are_counted_apart() {
        let mut summary = Summary::default();
        let violation = |kind| Violation {
            kind,
            cpu: 0,
            rip: 0,
            backtrace: Vec::new(),
            address: None,
            text: String::new(),
        };
        summary.count_violation(violation(Kind::PlanRejected), true);
        summary.count_violation(violation(Kind::ConvertedDirty), false);
        assert_eq!(summary.violations_of(Kind::PlanRejected), 0);
        assert_eq!(summary.violations_of(Kind::ConvertedDirty), 1);
        assert_eq!(summary.allowed_violations["plan-rejected"], 1);
    }
}
