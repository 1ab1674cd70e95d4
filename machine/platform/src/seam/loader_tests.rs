// SPDX-License-Identifier: GPL-2.0

//! The TDX module is replaced on a whole machine of two processors.

use super::tests::{AT, call_on, leaf, ready, status};
use super::*;
use crate::config::MachineConfig;
use crate::seamldr::config::{OpenPoints, SeamldrConfig};
use crate::seamldr::image;
use crate::tests::Ram;
use tdx_module::ModuleConfig;

const PARAMS: u64 = 0x20_0000;
const INFO: u64 = 0x21_0000;
const UPDATE_VERSION: u64 = 0x0800_0001_0000_0005;
const SYS_SHUTDOWN: u64 = 0xc000_0506_0000_0000;

fn machine(config: MachineConfig) -> (Machine, Ram) {
    let (machine, ram) = ready(MachineConfig {
        cpus: 2,
        enabled_cpus: 2,
        ..config
    });
    let next = ModuleConfig {
        update: Some(26),
        ..ModuleConfig::default()
    };
    let (signature, code) = image::sign(&next, 1).unwrap();
    assert!(ram.write(PARAMS + 0x1000, &signature) && ram.write(PARAMS + 0x2000, &code));
    ram.put(PARAMS, &[1 << 32, PARAMS + 0x1000]);
    ram.put(PARAMS + 120, &[1, PARAMS + 0x2000]);
    (machine, ram)
}

fn install() -> Regs {
    Regs {
        rax: SEAMLDR | 1,
        rcx: PARAMS,
        ..Regs::default()
    }
}

fn shut_down(machine: &Machine, ram: &Ram) {
    let regs = Regs {
        rcx: 1,
        ..leaf(number::SYS_SHUTDOWN)
    };
    assert_eq!(status(call_on(machine, 0, regs, ram)), 0);
}

/// The update version, if the module tells it.
fn version(machine: &Machine, ram: &Ram) -> Reply {
    let regs = Regs {
        rdx: UPDATE_VERSION,
        ..leaf(number::SYS_RD)
    };
    call_on(machine, 0, regs, ram)
}

fn number_of(reply: Reply) -> u64 {
    match reply {
        Reply::Returned(regs) if regs.rax == 0 => regs.r8,
        other => panic!("{other:?}"),
    }
}

#[test]
fn new_module_takes_over() {
    let (machine, ram) = machine(MachineConfig::default());
    assert_eq!(number_of(version(&machine, &ram)), 25);
    shut_down(&machine, &ram);
    assert!(!machine.finish().bring_up.ready);
    assert_eq!(status(version(&machine, &ram)), SYS_SHUTDOWN);
    assert_eq!(status(call_on(&machine, 0, install(), &ram)), 0);
    assert_eq!(version(&machine, &ram), Reply::VmfailInvalid);
    assert_eq!(status(call_on(&machine, 1, install(), &ram)), 0);
    let call = |lp, number| status(call_on(&machine, lp, leaf(number), &ram));
    assert_eq!(call(1, number::SYS_INIT), 0);
    assert_eq!(
        (call(0, number::SYS_LP_INIT), call(1, number::SYS_LP_INIT)),
        (0, 0)
    );
    assert_eq!(number_of(version(&machine, &ram)), 26);
    assert_eq!(call(0, number::SYS_UPDATE), 0);
    let summary = machine.finish();
    assert!(summary.bring_up.ready && summary.updates == 1);
    assert_eq!(summary.leaves["SEAMLDR.INSTALL"].results["SUCCESS"], 2);
    // The PAMT is known: a page in the TDMR can be asked about, with no TDH.SYS.CONFIG since.
    let page = Regs {
        rcx: 1 << 21,
        ..leaf(number::PHYMEM_PAGE_RDMD)
    };
    assert_eq!(status(call_on(&machine, 0, page, &ram)), 0);
}

#[test]
fn scenario_of_a_fresh_load_hands_nothing_over() {
    let (machine, ram) = machine(MachineConfig::default());
    ram.put(PARAMS, &[0]);
    shut_down(&machine, &ram);
    for lp in [0, 1] {
        assert_eq!(status(call_on(&machine, lp, install(), &ram)), 0);
    }
    let call = |lp, number| status(call_on(&machine, lp, leaf(number), &ram));
    assert_eq!(call(0, number::SYS_INIT), 0);
    assert_eq!(
        (call(0, number::SYS_LP_INIT), call(1, number::SYS_LP_INIT)),
        (0, 0)
    );
    assert_eq!(call(0, number::SYS_UPDATE), 0xc000_0509_0000_0000);
}

#[test]
fn refusal_has_the_status_that_was_asked_for_and_leaves_the_old_module() {
    let (machine, ram) = machine(MachineConfig {
        seamldr: SeamldrConfig {
            updates: 0,
            open: OpenPoints {
                no_updates: 0x8000_1234_0000_0000,
                ..OpenPoints::default()
            },
            ..SeamldrConfig::default()
        },
        ..MachineConfig::default()
    });
    let reply = call_on(&machine, 0, install(), &ram);
    assert_eq!(status(reply), 0x8000_1234_0000_0000);
    assert_eq!(number_of(version(&machine, &ram)), 25);
    let calls = &machine.finish().leaves["SEAMLDR.INSTALL"];
    assert_eq!(calls.results["SEAMLDR_NO_UPDATES"], 1);
}

#[test]
fn info_says_whether_there_is_a_module() {
    let (machine, ram) = machine(MachineConfig::default());
    let ask = || {
        let regs = Regs {
            rax: SEAMLDR,
            rcx: INFO,
            ..Regs::default()
        };
        assert_eq!(status(call_on(&machine, 1, regs, &ram)), 0);
        let mut ready = [0];
        assert!(ram.read(INFO + 160, &mut ready));
        ready[0]
    };
    assert_eq!(ask(), 1);
    assert_eq!(status(call_on(&machine, 0, install(), &ram)), 0);
    assert_eq!(ask(), 0);
}

#[test]
fn unknown_leaf_is_refused() {
    let (machine, ram) = machine(MachineConfig::default());
    let regs = Regs {
        rax: SEAMLDR | 2,
        ..Regs::default()
    };
    let expected = OpenPoints::default().bad_operand;
    assert_eq!(status(call_on(&machine, 0, regs, &ram)), expected);
}

#[test]
fn injected_failure_keeps_the_processor_from_being_counted() {
    let (machine, ram) = machine(MachineConfig {
        inject: vec!["SEAMLDR.INSTALL:2=0x8000000000000005".parse().unwrap()],
        ..MachineConfig::default()
    });
    shut_down(&machine, &ram);
    assert_eq!(status(call_on(&machine, 0, install(), &ram)), 0);
    assert_eq!(
        status(call_on(&machine, 1, install(), &ram)),
        0x8000_0000_0000_0005
    );
    assert_eq!(version(&machine, &ram), Reply::VmfailInvalid);
}

#[test]
fn two_processors_inside_at_once_are_a_bug_of_the_host() {
    let slow = [(SEAMLDR, 300_000)].into();
    let (machine, ram) = machine(MachineConfig {
        slow,
        ..MachineConfig::default()
    });
    let info = |lp| {
        let regs = Regs {
            rax: SEAMLDR,
            rcx: INFO,
            ..Regs::default()
        };
        call_on(&machine, lp, regs, &ram)
    };
    let replies = std::thread::scope(|scope| {
        let other = scope.spawn(|| info(1));
        (info(0), other.join().unwrap())
    });
    let failed = [replies.0, replies.1]
        .into_iter()
        .filter(|reply| *reply == Reply::VmfailInvalid);
    assert_eq!(failed.count(), 1);
    assert_eq!(machine.finish().violations_of(Kind::SeamldrRace), 1);
}

#[test]
fn reset_brings_the_first_module_and_all_updates_back() {
    let (machine, ram) = machine(MachineConfig::default());
    for lp in [0, 1] {
        assert_eq!(status(call_on(&machine, lp, install(), &ram)), 0);
    }
    machine.reset();
    machine.vmxon(AT);
    let regs = Regs {
        rax: SEAMLDR,
        rcx: INFO,
        ..Regs::default()
    };
    assert_eq!(status(call_on(&machine, 0, regs, &ram)), 0);
    let mut left = [0; 4];
    assert!(ram.read(INFO + 28, &mut left));
    assert_eq!(u32::from_le_bytes(left), SeamldrConfig::default().updates);
    assert_eq!(
        status(call_on(&machine, 0, leaf(number::SYS_INIT), &ram)),
        0
    );
}
