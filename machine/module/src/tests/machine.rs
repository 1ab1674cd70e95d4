// SPDX-License-Identifier: GPL-2.0

//! A platform for tests: [`Machine`], healthy unless told otherwise.
//!
//! A hook runs inside the next call that the module makes to the platform, so that a test can act
//! at the moment when a leaf holds its locks.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};

use crate::{CpuidRegs, MemRange, Pconfig, Platform};

use super::GB;

/// MSRs of a healthy machine: 15 shared and 48 private KeyIDs, 4 cache sub-blocks.
const MSRS: [(u32, u64); 24] = [
    (0x3b, 0),
    (0x87, 48 << 32 | 15),
    (0x98, 4),
    (0x99, 4),
    (0xbc, 1),
    (0xbd, 1),
    (0xcf, 0x20),
    (0xfe, 1 << 11 | 1 << 14),
    (0x10a, 1 << 21 | 3 << 10 | 1 << 8 | 3 << 5 | 1 << 3 | 3),
    (0x1a0, 0x85_0089),
    (0x1f2, 0x7f00_0006),
    (0x1f3, 0xff00_0c00),
    (0x345, 1 << 13),
    (0x480, 1 << 55),
    (0x48b, 1 << 33),
    (0x48c, 1 << 6 | 1 << 14),
    (0x485, 0),
    (0x486, 0x8000_0021),
    (0x487, 0xffff_ffff),
    (0x488, 0x2000),
    (0x489, 0xff_ffff),
    (0x981, 1),
    (0x982, 1 << 48 | 6 << 32 | 3),
    (0x48d, 0x16),
];

/// (leaf, subleaf, EAX, EBX, ECX, EDX) of a healthy machine with 52 physical address bits.
const CPUID: [(u32, u32, [u32; 4]); 11] = [
    (0, 0, [0x20, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
    (1, 0, [0x8_06f8, 0, 0x7ffe_fbff, 0xbfeb_fbff]),
    (4, 0, [0x4121, 0, 0, 0]),
    (7, 0, [2, 0xf3bf_b7ef, 0xfb41_7ffe, 0xffdd_4432]),
    (7, 1, [0x1c30, 0, 0, 0]),
    (0xd, 0, [0x6_02e7, 0, 0, 0]),
    (0xd, 1, [0x1f, 0, 0x1_d900, 0]),
    (0x1f, 0, [1, 2, 0x100, 0]),
    (0x1f, 1, [7, 128, 0x201, 0]),
    (0x1f, 2, [0, 0, 2, 0]),
    (0x8000_0000, 0, [0x8000_0008, 0, 0, 0]),
];

/// What the module told the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Note {
    Private { pa: u64, len: u64, hkid: u16 },
    Released { pa: u64, len: u64 },
}

type Hook = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Inner {
    msrs: BTreeMap<u32, u64>,
    lp_msrs: BTreeMap<(usize, u32), u64>,
    cpuid: BTreeMap<(u32, u32), [u32; 4]>,
    lp_cpuid: BTreeMap<(usize, u32, u32), [u32; 4]>,
    memory: HashMap<u64, u8>,
    no_entropy: bool,
    pconfig: Option<Pconfig>,
    interrupts: Vec<bool>,
    notes: Vec<Note>,
    written_back: Vec<Vec<u16>>,
    hook: Option<Hook>,
}

pub(super) struct Machine {
    /// Package of each processor.
    pub(super) packages: Vec<usize>,
    pub(super) cmrs: Vec<MemRange>,
    pub(super) seamrr: MemRange,
    inner: Mutex<Inner>,
}

impl Default for Machine {
    /// Two packages with two processors each, 1 MB to 2000 MB and 4 GB to 4 TB plus 4 GB of memory.
    fn default() -> Self {
        let mut cpuid: BTreeMap<_, _> = CPUID.into_iter().map(|(l, s, r)| ((l, s), r)).collect();
        cpuid.insert((0x8000_0001, 0), [0, 0, 0x121, 0x2c10_0800]);
        cpuid.insert((0x8000_0008, 0), [0x3934, 0x200, 0, 0]);
        let inner = Inner {
            msrs: MSRS.into_iter().collect(),
            cpuid,
            ..Inner::default()
        };
        Self {
            packages: vec![0, 0, 1, 1],
            cmrs: vec![
                MemRange {
                    base: 1 << 20,
                    size: 1999 << 20,
                },
                MemRange {
                    base: 4 * GB,
                    size: 4096 * GB,
                },
            ],
            seamrr: MemRange {
                base: 0x7d00_0000,
                size: 0x200_0000,
            },
            inner: Mutex::new(inner),
        }
    }
}

impl Machine {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no test panics here")
    }

    pub(super) fn set_msr(&self, index: u32, value: u64) {
        self.inner().msrs.insert(index, value);
    }

    pub(super) fn set_lp_msr(&self, lp: usize, index: u32, value: u64) {
        self.inner().lp_msrs.insert((lp, index), value);
    }

    pub(super) fn get_msr(&self, index: u32) -> u64 {
        self.inner().msrs.get(&index).copied().unwrap_or(0)
    }

    pub(super) fn set_cpuid(&self, leaf: u32, subleaf: u32, value: [u32; 4]) {
        self.inner().cpuid.insert((leaf, subleaf), value);
    }

    pub(super) fn set_lp_cpuid(&self, lp: usize, leaf: u32, subleaf: u32, value: [u32; 4]) {
        self.inner().lp_cpuid.insert((lp, leaf, subleaf), value);
    }

    pub(super) fn set_no_entropy(&self, no_entropy: bool) {
        self.inner().no_entropy = no_entropy;
    }

    pub(super) fn set_pconfig(&self, outcome: Option<Pconfig>) {
        self.inner().pconfig = outcome;
    }

    /// Answers to the next polls for an interrupt; after them there is none.
    pub(super) fn set_interrupts(&self, polls: &[bool]) {
        self.inner().interrupts = polls.iter().rev().copied().collect();
    }

    pub(super) fn put(&self, pa: u64, bytes: &[u8]) {
        self.inner()
            .memory
            .extend((pa..).zip(bytes.iter().copied()));
    }

    pub(super) fn get(&self, pa: u64, len: usize) -> Vec<u8> {
        let inner = self.inner();
        let byte = |pa| inner.memory.get(&pa).copied().unwrap_or(0);
        (pa..).take(len).map(byte).collect()
    }

    pub(super) fn notes(&self) -> Vec<Note> {
        std::mem::take(&mut self.inner().notes)
    }

    pub(super) fn written_back(&self) -> Vec<Vec<u16>> {
        std::mem::take(&mut self.inner().written_back)
    }

    pub(super) fn hook(&self, hook: impl FnOnce() + Send + 'static) {
        self.inner().hook = Some(Box::new(hook));
    }

    fn run_hook(&self) {
        let hook = self.inner().hook.take();
        if let Some(hook) = hook {
            hook();
        }
    }
}

impl Platform for Machine {
    fn lp_count(&self) -> usize {
        self.packages.len()
    }

    fn package_of(&self, lp: usize) -> usize {
        self.packages[lp]
    }

    fn cmrs(&self) -> Vec<MemRange> {
        self.cmrs.clone()
    }

    fn seamrr(&self) -> MemRange {
        self.seamrr
    }

    fn msr(&self, lp: usize, index: u32) -> u64 {
        let inner = self.inner();
        inner
            .lp_msrs
            .get(&(lp, index))
            .or(inner.msrs.get(&index))
            .copied()
            .unwrap_or(0)
    }

    fn cpuid(&self, lp: usize, leaf: u32, subleaf: u32) -> CpuidRegs {
        let inner = self.inner();
        let of_lp = inner.lp_cpuid.get(&(lp, leaf, subleaf));
        let [eax, ebx, ecx, edx] = of_lp
            .or(inner.cpuid.get(&(leaf, subleaf)))
            .copied()
            .unwrap_or_default();
        CpuidRegs { eax, ebx, ecx, edx }
    }

    fn random(&self, _lp: usize) -> Option<u64> {
        self.run_hook();
        (!self.inner().no_entropy).then_some(4)
    }

    fn pconfig(&self, _lp: usize, _hkid: u16) -> Pconfig {
        self.run_hook();
        self.inner().pconfig.unwrap_or(Pconfig::Programmed)
    }

    fn interrupt_pending(&self, _lp: usize) -> bool {
        self.run_hook();
        self.inner().interrupts.pop().unwrap_or(false)
    }

    fn read(&self, pa: u64, buf: &mut [u8]) {
        self.run_hook();
        let inner = self.inner();
        for (pa, byte) in (pa..).zip(buf) {
            *byte = inner.memory.get(&pa).copied().unwrap_or(0);
        }
    }

    fn write(&self, pa: u64, data: &[u8]) {
        self.put(pa, data);
    }

    fn made_private(&self, pa: u64, len: u64, hkid: u16) {
        self.run_hook();
        self.inner().notes.push(Note::Private { pa, len, hkid });
    }

    fn released(&self, pa: u64, len: u64) {
        self.run_hook();
        self.inner().notes.push(Note::Released { pa, len });
    }

    fn caches_written_back(&self, _lp: usize, hkids: &[u16]) {
        self.inner().written_back.push(hkids.to_vec());
    }
}
