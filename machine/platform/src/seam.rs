// SPDX-License-Identifier: GPL-2.0

//! SEAMCALL: what the processor checks, what is injected, and the way into the module and back.

mod guest;
mod inside;
#[cfg(test)]
mod kernel_tests;
mod loader;
#[cfg(test)]
mod loader_tests;
#[cfg(test)]
mod td_tests;
#[cfg(test)]
mod tests;

use crate::machine::{At, Machine, lock};
use crate::operands::{Tdmr, tdmr_table};
use crate::summary::Moment;
use crate::tds::freed;
use crate::trace::{Call, Ending, LEAF, SEAMLDR, leaf_label};
use crate::violation::Kind;
use crate::{GuestMemory, inject::What};
use inside::Inside;
use serde_json::{Map, Value, json};
use tdx_module::{Outcome, Regs, Status, number};

/// What SEAMCALL does to the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The module returned: load these registers, clear the arithmetic flags.
    Returned(Regs),
    /// VMfailInvalid: set CF, change nothing else.
    VmfailInvalid,
    /// #GP(0).
    GeneralProtection,
    /// #UD.
    InvalidOpcode,
}

/// What a call that reached the module got.
struct Answer {
    ending: Ending,
    regs: Regs,
    /// Injection had a part in it.
    injected: bool,
    /// The module itself answered, so its state has followed.
    genuine: bool,
}

/// The TDVPR's address in the operand of TDH.VP.ENTER.
const TDVPR: u64 = 0x000f_ffff_ffff_f000;

impl Machine {
    /// Executes SEAMCALL with `regs` on the processor `at` names. `long_mode` says that it runs in
    /// 64-bit mode.
    pub fn seamcall(&self, at: At, long_mode: bool, regs: Regs, mem: &dyn GuestMemory) -> Reply {
        let leaf = regs.rax & LEAF;
        let began = self.moment(at);
        if let Some(ending) = self.processor_check(at, long_mode, regs.rax) {
            self.not_reached(at, regs, ending);
            return reply(ending, regs);
        }
        if [number::MNG_CREATE, number::SYS_DISABLE]
            .map(u64::from)
            .contains(&leaf)
        {
            self.event("census", at.lp, self.census());
        }
        let latency = self.config.latency.of(leaf);
        if !latency.is_zero() {
            std::thread::sleep(latency);
        }
        let answer = self.answer(at, leaf, regs, mem);
        let tdmrs = if leaf == u64::from(number::SYS_CONFIG) {
            let reserved = self.config.module.max_reserved_per_tdmr;
            tdmr_table(mem, regs.rcx, regs.rdx, reserved)
        } else {
            None
        };
        if answer.genuine {
            self.follow(at, leaf as u16, regs, answer.regs, tdmrs.as_deref());
        }
        let call = Call {
            cpu: at.lp,
            before: regs,
            after: answer.regs,
            ending: answer.ending,
            injected: answer.injected,
            tdmrs,
        };
        self.record(call, (began, self.moment(at)));
        reply(answer.ending, answer.regs)
    }

    /// What is left of the TDs, before a new one and before the module takes all: private bytes by use,
    /// those of them that the host forgot to convert, and TDs that still exist.
    fn census(&self) -> Value {
        let state = lock(&self.state);
        let private = state.private.totals().into_iter();
        let private: Map<_, _> = private
            .map(|(owner, bytes)| (owner.name().to_owned(), bytes.into()))
            .collect();
        let (unconverted, tds) = (state.private.unconverted(), state.tds.count().1);
        json!({ "private": private, "unconverted": unconverted, "tds": tds })
    }

    /// The answer to a call that reaches module or loader, from the injector or from one of them.
    fn answer(&self, at: At, leaf: u64, regs: Regs, mem: &dyn GuestMemory) -> Answer {
        let fault = |ending| Answer {
            ending,
            regs,
            injected: true,
            genuine: false,
        };
        // The rule is looked up before the match, so that the module is called without the lock.
        let what = lock(&self.injector).next(leaf);
        match what {
            Some(What::VmfailInvalid) => fault(Ending::VmfailInvalid),
            Some(What::GeneralProtection) => fault(Ending::GeneralProtection),
            Some(What::InvalidOpcode) => fault(Ending::InvalidOpcode),
            Some(What::Status(rax)) => {
                self.enter(at);
                Answer {
                    regs: Regs { rax, ..regs },
                    ..fault(Ending::Status(rax))
                }
            }
            None if leaf & SEAMLDR != 0 => self.call_loader(at, regs, mem),
            _ => {
                let interrupt = what == Some(What::Interrupt);
                self.call_module(at, leaf as u16, regs, mem, interrupt)
            }
        }
    }

    /// Checks of the processor, in the order hardware makes them; what it does if one fails.
    fn processor_check(&self, at: At, long_mode: bool, rax: u64) -> Option<Ending> {
        if !long_mode || !self.config.has_tdx() || !self.in_vmx(at.lp) {
            Some(Ending::InvalidOpcode)
        } else if at.cpl > 0 || !self.config.seamrr {
            Some(Ending::GeneralProtection)
        } else {
            let there = match rax & SEAMLDR {
                0 => self.module().is_some(),
                _ => self.config.seamldr.loaded,
            };
            (!there).then_some(Ending::VmfailInvalid)
        }
    }

    /// The module was not reached. A host bug if this machine has a module to reach, except where a
    /// user program tried it, or the kernel made sure TDX is off before it goes down.
    fn not_reached(&self, at: At, regs: Regs, ending: Ending) {
        let leaf = regs.rax & LEAF;
        let call = Call {
            cpu: at.lp,
            before: regs,
            after: regs,
            ending,
            injected: false,
            tdmrs: None,
        };
        let now = self.moment(at);
        self.record(call, (now, now));
        let fault = ending != Ending::VmfailInvalid;
        let on_the_way_down = leaf == u64::from(number::SYS_DISABLE);
        if fault && at.cpl == 0 && self.config.is_healthy() && !on_the_way_down {
            let text = format!(
                "SEAMCALL {} raised {}: no VMXON before it",
                leaf_label(leaf),
                ending.name()
            );
            self.violation(at, Kind::SeamcallFault, None, text);
        } else if at.cpl > 0 {
            let details = json!({ "fault": ending.name(), "rip": format!("{:#x}", at.rip) });
            self.event("user-seamcall", at.lp, details);
        }
    }

    fn enter(&self, at: At) {
        let now = self.now();
        self.with_lp(at.lp, |lp| lp.enter_seam(now));
        lock(&self.state).kernels.seamcall();
    }

    fn call_module(
        &self,
        at: At,
        leaf: u16,
        mut regs: Regs,
        mem: &dyn GuestMemory,
        interrupt: bool,
    ) -> Answer {
        let Some(module) = self.module() else {
            // Another processor took it away since the check.
            return Answer {
                ending: Ending::VmfailInvalid,
                regs,
                injected: false,
                genuine: false,
            };
        };
        self.enter(at);
        self.blame_taken_memory(at, leaf);
        let inside = Inside::new(self, mem, leaf, interrupt);
        let tdvpr = regs.rcx & TDVPR;
        if module.seamcall(at.lp as usize, &mut regs, &inside) == Outcome::Entered {
            regs = self.run_guest(at, tdvpr, regs, mem, &inside, &module);
        }
        if regs.rax == 0 {
            // For leaves that did nothing during which they could.
            inside.linger();
        }
        Answer {
            ending: Ending::Status(regs.rax),
            regs,
            injected: interrupt,
            genuine: true,
        }
    }

    /// Draws conclusions from the module's answer: progress of bring-up, a rejected plan.
    fn follow(&self, at: At, leaf: u16, before: Regs, after: Regs, tdmrs: Option<&[Tdmr]>) {
        let mut state = lock(&self.state);
        match (leaf, after.rax) {
            (number::SYS_CONFIG, 0) => state.progress.configured(tdmrs.unwrap_or_default()),
            (number::SYS_TDMR_INIT, 0) => state.progress.initialised(before.rcx, after.rdx),
            (number::SYS_DISABLE, 0) => state.progress.forget(),
            (number::SYS_SHUTDOWN, 0) => state.progress.shut_down(),
            (number::SYS_UPDATE, 0) => state.progress.taken_over(),
            _ => {}
        }
        if after.rax == 0 {
            state.tds.follow(leaf, &before, &after);
            if let Some(range) = freed(leaf, &before, &after) {
                state.private.freed(range);
            }
        }
        drop(state);
        if (leaf, after.rax) == (number::SYS_UPDATE, 0) {
            lock(&self.report).summary.updates += 1;
        }
        self.blame_order(at, leaf, after.rax);
        if leaf == number::SYS_CONFIG && plan_rejected(after.rax) {
            let status = Ending::Status(after.rax).name();
            let text = format!("TDH.SYS.CONFIG answered {status}, RAX {:#x}", after.rax);
            self.violation(at, Kind::PlanRejected, None, text);
        }
    }

    /// A leaf for TDs is called after the host took memory away that the module used.
    fn blame_taken_memory(&self, at: At, leaf: u16) {
        if !is_td_leaf(leaf) {
            return;
        }
        let taken = lock(&self.state).taken.take();
        if taken.is_some() {
            let text = format!(
                "memory that the TDX module used was converted before {}",
                leaf_label(leaf.into())
            );
            self.violation(at, Kind::ConvertedInUse, taken, text);
        }
    }

    /// The module refused a call that a host in its right mind does not make. After an injected fault
    /// the host may have lost track, so nothing is said any more.
    fn blame_order(&self, at: At, leaf: u16, rax: u64) {
        if is_td_leaf(leaf) && only_a_bug(rax) && !lock(&self.injector).has_fired() {
            let status = Ending::Status(rax).name();
            let text = format!(
                "{} answered {status}, RAX {rax:#x}",
                leaf_label(leaf.into())
            );
            self.violation(at, Kind::TdMisuse, None, text);
        }
    }

    fn record(&self, call: Call, span: (Moment, Moment)) {
        let mut report = lock(&self.report);
        let label = leaf_label(call.leaf());
        let summary = &mut report.summary;
        summary.count_call(label, call.ending, call.injected, span);
        report.trace.call(call);
    }
}

/// Statuses with which TDH.SYS.CONFIG faults the host's plan rather than its timing.
fn plan_rejected(status: u64) -> bool {
    let class = status >> 40 & 0xff;
    let operand = Status::OPERAND_INVALID.raw() >> 32 == status >> 32;
    status >> 63 == 1 && (operand || class == 0xa)
}

/// Leaves that work on TDs: they expect memory the module uses to be as the module left it.
fn is_td_leaf(leaf: u16) -> bool {
    leaf < number::SYS_KEY_CONFIG && leaf != number::PHYMEM_PAGE_RDMD
        || matches!(
            leaf,
            number::MEM_TRACK
                | number::MEM_RANGE_UNBLOCK
                | number::PHYMEM_PAGE_WBINVD
                | number::VP_WR
        )
}

/// Statuses that tell of a wrong order of calls, not of bad luck or of what a user asked for.
fn only_a_bug(rax: u64) -> bool {
    [
        Status::TLB_TRACKING_NOT_DONE,
        Status::GPA_RANGE_NOT_BLOCKED,
        Status::PAGE_METADATA_INCORRECT,
        Status::LIFECYCLE_STATE_INCORRECT,
        Status::TD_ASSOCIATED_PAGES_EXIST,
        Status::WBCACHE_NOT_COMPLETE,
        Status::FLUSHVP_NOT_DONE,
        Status::VCPU_ASSOCIATED,
    ]
    .into_iter()
    .any(|status| status.raw() >> 32 == rax >> 32)
}

fn reply(ending: Ending, regs: Regs) -> Reply {
    match ending {
        Ending::Status(_) | Ending::Refused(..) => Reply::Returned(regs),
        Ending::VmfailInvalid => Reply::VmfailInvalid,
        Ending::GeneralProtection => Reply::GeneralProtection,
        Ending::InvalidOpcode => Reply::InvalidOpcode,
    }
}
