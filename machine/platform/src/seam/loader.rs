// SPDX-License-Identifier: GPL-2.0

//! SEAMCALL with RAX bit 63 set: the way into the P-SEAMLDR, and what it does to the TDX module.

use super::Answer;
use crate::GuestMemory;
use crate::machine::{At, Machine, lock};
use crate::seamldr::{Installed, Next, Refusal, Refused, Seamldr, leaf};
use crate::trace::{Ending, LEAF};
use crate::violation::Kind;
use serde_json::json;
use std::sync::{Arc, TryLockError};
use std::time::Duration;
use tdx_module::{ConfigError, Module, Regs};

impl Machine {
    /// A call that reaches the P-SEAMLDR unless another processor is inside.
    pub(super) fn call_loader(&self, at: At, mut regs: Regs, mem: &dyn GuestMemory) -> Answer {
        let answer = |ending, regs| Answer {
            ending,
            regs,
            injected: false,
            genuine: false,
        };
        let mut loader = match self.seamldr.try_lock() {
            Ok(loader) => loader,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let text = "the P-SEAMLDR was called while another CPU was inside".into();
                self.violation(at, Kind::SeamldrRace, None, text);
                return answer(Ending::VmfailInvalid, regs);
            }
        };
        self.enter(at);
        if let Some(&time) = self.config.slow.get(&(regs.rax & LEAF)) {
            std::thread::sleep(Duration::from_micros(time.into()));
        }
        let ending = match self.serve(&mut loader, at, regs, mem) {
            Ok(()) => Ending::Status(0),
            Err(Refused { refusal, why }) => {
                self.log(&format!("P-SEAMLDR on CPU {}: {why}", at.lp));
                let details = json!({ "refusal": refusal.name(), "text": why });
                self.event("seamldr-refused", at.lp, details);
                Ending::Refused(refusal, refusal.status(&self.config.seamldr))
            }
        };
        regs.rax = ending.status().unwrap_or_default();
        answer(ending, regs)
    }

    fn serve(
        &self,
        loader: &mut Seamldr,
        at: At,
        regs: Regs,
        mem: &dyn GuestMemory,
    ) -> Result<(), Refused> {
        match (regs.rax & LEAF) as u16 {
            leaf::INFO => loader.info(mem, regs.rcx, self.module().is_some()),
            leaf::INSTALL => {
                let installed = loader.install(mem, regs.rcx, at.lp, self.config.enabled_cpus)?;
                self.carry_out(at, installed)
            }
            other => Err(Refused::new(
                Refusal::BadOperand,
                format!("there is no leaf {other}"),
            )),
        }
    }

    /// Takes the old module away and puts the new one in its place.
    fn carry_out(&self, at: At, installed: Installed) -> Result<(), Refused> {
        if installed.old_gone
            && let Some(old) = self.replace_module(None)
        {
            *lock(&self.last_module) = Some(old);
        }
        if let Some(next) = installed.next {
            let last = lock(&self.last_module).take();
            let module = successor(last.as_deref(), next)
                .map_err(|e| Refused::new(Refusal::BadImage, e.to_string()))?;
            self.replace_module(Some(Arc::new(module)));
        }
        if installed.complete {
            self.event("module-installed", at.lp, json!({}));
        }
        Ok(())
    }
}

/// The module that follows `last`.
fn successor(last: Option<&Module>, next: Next) -> Result<Module, ConfigError> {
    match last {
        Some(last) if next.update => last.successor(next.config),
        _ => Module::new(next.config),
    }
}
