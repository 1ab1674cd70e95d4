// SPDX-License-Identifier: GPL-2.0

//! Tests of the leaves through [`Module::seamcall`], one file for each family of leaves.
//!
//! [`machine`] is the platform they run on; [`Bench`] puts a module on it and has shorthands for
//! calls.

mod concurrency;
mod config_rules;
mod disable;
mod dispatcher;
mod init;
mod keys;
mod lp_init;
mod machine;
mod metadata;
mod phymem;
mod shutdown;
mod td_bench;
mod td_life;
mod td_memory;
mod td_metadata;
mod td_run;
mod tdmr;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Module, ModuleConfig, Profile, Regs, leaf::number};
use machine::Machine;

/// Bytes in a gigabyte.
const GB: u64 = 1 << 30;
/// Where tests put the list for TDH.SYS.CONFIG.
const LIST: u64 = 0x20_0000;
/// The global KeyID that tests use: the first private one.
const HKID: u64 = 16;

/// A value that no leaf produces, in every register that a call does not name.
const PATTERN: u64 = 0x5a5a_5a5a_5a5a_5a5a;

/// Registers of a call of `leaf` with the operands of interest, all others filled.
fn regs(leaf: u16, rcx: u64, rdx: u64, r8: u64) -> Regs {
    let mut regs = Regs::default();
    for name in Regs::NAMES {
        *regs.by_name(name).expect("a name of the list") = PATTERN;
    }
    Regs {
        rax: leaf.into(),
        rcx,
        rdx,
        r8,
        ..regs
    }
}

/// A TDMR_INFO with PAMT areas of the exact size.
#[derive(Clone, Debug)]
struct Info {
    base: u64,
    size: u64,
    /// Base and size of the PAMT areas, 1 GB level first.
    pamt: [(u64, u64); 3],
    reserved: Vec<(u64, u64)>,
}

impl Info {
    /// A TDMR whose PAMT lies at `pamt`, 4 KB level first and without gaps.
    fn new(base: u64, size: u64, pamt: u64) -> Self {
        let gb = size / GB;
        let (size_4k, size_2m) = (gb << 22, gb << 13);
        let size_1g = (gb * 16).next_multiple_of(4096);
        let at_2m = pamt + size_4k;
        let at_1g = at_2m + size_2m;
        Self {
            base,
            size,
            pamt: [(at_1g, size_1g), (at_2m, size_2m), (pamt, size_4k)],
            reserved: vec![],
        }
    }

    fn reserve(mut self, offset: u64, size: u64) -> Self {
        self.reserved.push((offset, size));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let head = [(self.base, self.size)].into_iter().chain(self.pamt);
        let runs = head.chain(self.reserved.iter().copied());
        runs.flat_map(|(base, size)| [base, size])
            .flat_map(u64::to_le_bytes)
            .collect()
    }
}

/// Insists when dropped that an action did run.
#[must_use]
struct Meanwhile(Arc<AtomicBool>);

impl Drop for Meanwhile {
    fn drop(&mut self) {
        assert!(
            std::thread::panicking() || self.0.load(Ordering::Relaxed),
            "the action never ran"
        );
    }
}

/// A module on a machine.
#[derive(Clone)]
struct Bench {
    module: Arc<Module>,
    machine: Arc<Machine>,
}

impl Bench {
    fn new(config: ModuleConfig) -> Self {
        let module = Arc::new(Module::new(config).expect("a valid configuration"));
        Self {
            module,
            machine: Arc::new(Machine::default()),
        }
    }

    fn baseline() -> Self {
        Self::new(ModuleConfig::default())
    }

    fn v1_5_01() -> Self {
        Self::new(ModuleConfig::new(Profile::V1_5_01))
    }

    fn with_machine(mut self, change: impl FnOnce(&mut Machine)) -> Self {
        change(Arc::get_mut(&mut self.machine).expect("not shared yet"));
        self
    }

    /// Makes a call; returns all registers.
    fn call(&self, lp: usize, input: Regs) -> Regs {
        let mut regs = input;
        let _ = self.module.seamcall(lp, &mut regs, &*self.machine);
        regs
    }

    /// Makes a call on LP 0; returns the status.
    fn rax(&self, leaf: u16, rcx: u64, rdx: u64, r8: u64) -> u64 {
        self.rax_on(0, leaf, rcx, rdx, r8)
    }

    fn rax_on(&self, lp: usize, leaf: u16, rcx: u64, rdx: u64, r8: u64) -> u64 {
        self.call(lp, regs(leaf, rcx, rdx, r8)).rax
    }

    /// Runs `action` inside the next call the module makes to the platform.
    fn meanwhile(&self, action: impl FnOnce(&Self) + Send + 'static) -> Meanwhile {
        let bench = self.clone();
        let ran = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&ran);
        self.machine.hook(move || {
            action(&bench);
            done.store(true, Ordering::Relaxed);
        });
        Meanwhile(ran)
    }

    fn sys_init(&self) {
        assert_eq!(self.rax(number::SYS_INIT, 0, 0, 0), 0, "TDH.SYS.INIT");
    }

    fn lp_init_all(&self) {
        for lp in 0..self.machine.packages.len() {
            assert_eq!(
                self.rax_on(lp, number::SYS_LP_INIT, 0, 0, 0),
                0,
                "TDH.SYS.LP.INIT"
            );
        }
    }

    /// Up to the point where TDH.SYS.CONFIG is due.
    fn initialized(self) -> Self {
        self.sys_init();
        self.lp_init_all();
        self
    }

    fn write_list(&self, infos: &[Info]) {
        for (index, info) in (0..).zip(infos) {
            let pa = LIST + 0x1000 * (index + 1);
            self.machine.put(LIST + 8 * index, &pa.to_le_bytes());
            self.machine.put(pa, &info.bytes());
        }
    }

    /// TDH.SYS.CONFIG with this list; returns the status.
    fn config(&self, infos: &[Info]) -> u64 {
        self.write_list(infos);
        self.rax(number::SYS_CONFIG, LIST, infos.len() as u64, HKID)
    }

    fn configured(self, infos: &[Info]) -> Self {
        let bench = self.initialized();
        assert_eq!(bench.config(infos), 0, "TDH.SYS.CONFIG");
        bench
    }

    /// TDH.SYS.KEY.CONFIG on one processor of each package.
    fn key_config_all(&self) {
        let mut done = vec![];
        for (lp, &package) in self.machine.packages.iter().enumerate() {
            if !done.contains(&package) {
                assert_eq!(
                    self.rax_on(lp, number::SYS_KEY_CONFIG, 0, 0, 0),
                    0,
                    "TDH.SYS.KEY.CONFIG"
                );
                done.push(package);
            }
        }
    }

    fn ready(self, infos: &[Info]) -> Self {
        let bench = self.configured(infos);
        bench.key_config_all();
        bench
    }

    /// Initialises so many gigabytes of a TDMR.
    fn init_gigabytes(&self, base: u64, gigabytes: u64) {
        for _ in 0..256 * gigabytes {
            assert_eq!(
                self.rax(number::SYS_TDMR_INIT, base, 0, 0),
                0,
                "TDH.SYS.TDMR.INIT"
            );
        }
    }
}

/// Two TDMRs of 1 and 2 GB with their PAMTs outside both, and a reserved area in the second.
fn two_tdmrs() -> Vec<Info> {
    vec![
        Info::new(4 * GB, GB, 0x1000_0000),
        Info::new(6 * GB, 2 * GB, 0x1100_0000).reserve(0x10_0000, 0x20_0000),
    ]
}
