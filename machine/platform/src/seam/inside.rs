// SPDX-License-Identifier: GPL-2.0

//! The machine as the TDX module sees it during one call.

use crate::GuestMemory;
use crate::machine::{Machine, lock};
use crate::private::{Area, Owner};
use crate::trace::leaf_label;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tdx_module::{CpuidRegs, MemRange, Pconfig, Platform};

const SEAMRR_SIZE: u64 = 32 << 20;

/// The machine as the module sees it during one call.
pub(super) struct Inside<'a> {
    machine: &'a Machine,
    mem: &'a dyn GuestMemory,
    leaf: u16,
    interrupt: bool,
    slept: AtomicBool,
}

impl<'a> Inside<'a> {
    /// View for one call of `leaf`; `interrupt` says that a host interrupt is pending.
    pub(super) fn new(
        machine: &'a Machine,
        mem: &'a dyn GuestMemory,
        leaf: u16,
        interrupt: bool,
    ) -> Self {
        Inside {
            machine,
            mem,
            leaf,
            interrupt,
            slept: AtomicBool::new(false),
        }
    }

    /// The guest wrote `len` bytes at `pa` with its key.
    pub(super) fn guest_wrote(&self, pa: u64, len: u64, hkid: u16) {
        self.made_private(pa, len, hkid);
    }

    /// Stretches the call if the command line asks for it; the module's own locks are held meanwhile.
    pub(super) fn linger(&self) {
        let time = self
            .machine
            .config
            .slow
            .get(&self.leaf.into())
            .copied()
            .unwrap_or(0);
        if time > 0 && !self.slept.swap(true, Ordering::Relaxed) {
            std::thread::sleep(Duration::from_micros(time.into()));
        }
    }
}

impl Platform for Inside<'_> {
    fn lp_count(&self) -> usize {
        self.machine.config.enabled_cpus as usize
    }

    fn package_of(&self, lp: usize) -> usize {
        u32::try_from(lp).map_or(0, |lp| self.machine.config.package_of(lp) as usize)
    }

    fn cmrs(&self) -> Vec<MemRange> {
        self.machine.config.cmrs.clone()
    }

    fn seamrr(&self) -> MemRange {
        MemRange {
            base: self.machine.config.seamrr_base,
            size: SEAMRR_SIZE,
        }
    }

    fn msr(&self, _lp: usize, index: u32) -> u64 {
        self.machine.msrs.read_for_module(index)
    }

    fn cpuid(&self, lp: usize, leaf: u32, subleaf: u32) -> CpuidRegs {
        crate::cpuid::native(&self.machine.config, lp as u32, leaf, subleaf)
    }

    fn random(&self, _lp: usize) -> Option<u64> {
        self.linger();
        // Keys and ids of the model need to differ, not to be secret.
        Some(
            self.machine
                .now()
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(31),
        )
    }

    fn pconfig(&self, _lp: usize, _hkid: u16) -> Pconfig {
        self.linger();
        Pconfig::Programmed
    }

    fn interrupt_pending(&self, _lp: usize) -> bool {
        self.interrupt
    }

    fn read(&self, pa: u64, buf: &mut [u8]) {
        self.linger();
        if !self.mem.read(pa, buf) {
            buf.fill(0xff);
        }
    }

    fn write(&self, pa: u64, data: &[u8]) {
        if !self.mem.write(pa, data) {
            self.machine.log(&format!(
                "{}: no memory at {pa:#x} to write to",
                leaf_label(self.leaf.into())
            ));
        }
    }

    fn made_private(&self, pa: u64, len: u64, hkid: u16) {
        self.linger();
        let area = Area {
            owner: Owner::of_leaf(self.leaf),
            hkid,
            written: self.machine.now(),
            used: true,
        };
        self.machine.coarse.add(pa..pa.saturating_add(len));
        lock(&self.machine.state)
            .private
            .mark(pa..pa.saturating_add(len), area);
    }

    fn released(&self, pa: u64, len: u64) {
        self.linger();
        let mut state = lock(&self.machine.state);
        let bytes = state.private.release(pa..pa.saturating_add(len));
        state.kernels.released(bytes);
        drop(state);
        lock(&self.machine.report).summary.released_bytes += bytes;
    }

    fn caches_written_back(&self, lp: usize, hkids: &[u16]) {
        let (now, package) = (self.machine.now(), self.package_of(lp));
        let mut state = lock(&self.machine.state);
        for &hkid in hkids {
            state.write_backs.insert((package, hkid), now);
        }
    }

    fn page_written_back(&self, pa: u64, hkid: u16) {
        lock(&self.machine.state)
            .private
            .written_back(pa..pa.saturating_add(4096), hkid);
    }
}
