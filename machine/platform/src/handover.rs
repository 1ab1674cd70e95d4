// SPDX-License-Identifier: GPL-2.0

//! From one kernel to the next: what the machine does when one is entered, and what it finds wrong.
//! How it is recognised and what is counted is in `kernels`.

use crate::kernels::Left;
use crate::machine::{At, Machine, State, lock};
use crate::private::Area;
use crate::summary::by_name;
use crate::violation::Kind;
use serde_json::json;

impl State {
    /// What a kernel that ended now would leave. Without the erratum any store makes memory ordinary
    /// that the module does not use.
    pub(crate) fn left(&mut self, erratum: bool) -> Left {
        if !erratum {
            self.private.forget_unused();
        }
        let dirty = (0..).zip(&self.lps).filter(|(_, lp)| lp.is_dirty());
        Left {
            dirty_cpus: dirty.map(|(n, _)| n).collect(),
            private_bytes: by_name(self.private.totals()),
        }
    }
}

impl Machine {
    /// LIDT in CPL 0 and 64-bit mode: by it a kernel is recognised that has just been entered (see
    /// [`kernels`](crate::kernels)). Memory, keys and caches stay as the kernel before left them, and
    /// that is judged.
    pub fn lidt(&self, at: At) {
        let mut state = lock(&self.state);
        if !state.kernels.lidt(at.lp, at.rip) {
            return;
        }
        let left = state.left(self.config.erratum);
        let first = state.private.first();
        let before = state.kernels.begin(left.clone()).cloned();
        let number = state.kernels.count();
        drop(state);
        self.event(
            "kernel",
            at.lp,
            json!({ "number": number, "before": before }),
        );
        if before.is_some() {
            self.log(&format!("kernel {number} begins on CPU {}", at.lp));
            self.blame_left(at, &left, first);
        }
    }

    /// Judges what a kernel leaves to the next one.
    fn blame_left(&self, at: At, left: &Left, first: Option<(u64, Area)>) {
        if let Some((address, area)) = first.filter(|_| self.config.erratum) {
            let uses = left.private_bytes.iter();
            let uses: Vec<_> = uses
                .map(|(name, bytes)| format!("{bytes} {name}"))
                .collect();
            let text = format!(
                "{} private bytes left to the next kernel ({}), from {address:#x} on ({}, KeyID {})",
                left.private_bytes.values().sum::<u64>(),
                uses.join(", "),
                area.owner.name(),
                area.hkid
            );
            self.violation(at, Kind::PrivateLeft, Some(address), text);
        }
        if !left.dirty_cpus.is_empty() {
            let text = format!(
                "the caches of CPU {:?} may hold private lines dirty when the next kernel starts",
                left.dirty_cpus
            );
            self.violation(at, Kind::DirtyLeft, None, text);
        }
    }
}
