// SPDX-License-Identifier: GPL-2.0

//! SEAMCALLs on a whole machine, from VMXON to the summary.

use super::*;
use crate::Access;
use crate::config::{Latency, MachineConfig};
use crate::msr::MCG_STATUS;
use crate::seamldr::config::SeamldrConfig;
use crate::tests::Ram;
use std::time::{Duration, Instant};
use tdx_module::MemRange;

pub(super) const AT: At = At {
    lp: 0,
    rip: 0x1000,
    cpl: 0,
    executed: 0,
    stack: None,
};

fn machine(config: MachineConfig) -> Machine {
    let cmrs = vec![MemRange {
        base: 1 << 20,
        size: (2 << 30) - (1 << 20),
    }];
    let config = MachineConfig { cmrs, ..config };
    Machine::new(config, Box::new(std::io::sink()), Box::new(std::io::sink())).unwrap()
}

pub(super) fn call_on(machine: &Machine, lp: u32, regs: Regs, ram: &Ram) -> Reply {
    machine.seamcall(At { lp, ..AT }, true, regs, ram)
}

pub(super) fn leaf(number: u16) -> Regs {
    Regs {
        rax: number.into(),
        ..Regs::default()
    }
}

pub(super) fn status(reply: Reply) -> u64 {
    match reply {
        Reply::Returned(regs) => regs.rax,
        other => panic!("{other:?}"),
    }
}

/// One TDMR of 1 GB from 0 with its PAMT at 512 MB, described at the start of memory.
fn plan(ram: &Ram) -> Regs {
    let pamt = 512 << 20;
    let (size_4k, size_2m, size_1g) = (4u64 << 20, 8 << 10, 4 << 10);
    let reserved = [0, 1 << 20, pamt, size_4k + size_2m + size_1g];
    ram.put(0, &[0x1000]);
    ram.put(0x1000, &[0, 1 << 30]);
    ram.put(
        0x1010,
        &[
            pamt + size_4k + size_2m,
            size_1g,
            pamt + size_4k,
            size_2m,
            pamt,
            size_4k,
        ],
    );
    ram.put(0x1040, &reserved);
    ram.put(0x1060, &[0; 28]);
    Regs {
        rcx: 0,
        rdx: 1,
        r8: 16,
        ..leaf(number::SYS_CONFIG)
    }
}

/// A machine on which TDX is up.
pub(super) fn ready(config: MachineConfig) -> (Machine, Ram) {
    let (machine, ram) = (machine(config), Ram::new(4 << 20));
    let on = |lp, regs| assert_eq!(status(call_on(&machine, lp, regs, &ram)), 0);
    let call = |regs| on(0, regs);
    machine.vmxon(AT);
    call(leaf(number::SYS_INIT));
    call(leaf(number::SYS_LP_INIT));
    for lp in 1..machine.config.cpus {
        machine.vmxon(At { lp, ..AT });
        on(lp, leaf(number::SYS_LP_INIT));
    }
    call(plan(&ram));
    call(leaf(number::SYS_KEY_CONFIG));
    for _ in 0..256 {
        call(leaf(number::SYS_TDMR_INIT));
    }
    (machine, ram)
}

#[test]
fn processor_faults_in_the_order_of_hardware() {
    let default = MachineConfig::default;
    let ram = Ram::new(0);
    let on = |config, vmxon, cpl, rax| {
        let machine = machine(config);
        if vmxon {
            machine.vmxon(AT);
        }
        machine.seamcall(
            At { cpl, ..AT },
            true,
            Regs {
                rax,
                ..Regs::default()
            },
            &ram,
        )
    };
    assert_eq!(on(default(), false, 3, 33), Reply::InvalidOpcode);
    assert_eq!(on(default(), true, 3, 33), Reply::GeneralProtection);
    let no_seamrr = MachineConfig {
        seamrr: false,
        module_loaded: false,
        ..default()
    };
    assert_eq!(on(no_seamrr, true, 0, 33), Reply::GeneralProtection);
    let no_module = MachineConfig {
        module_loaded: false,
        ..default()
    };
    assert_eq!(on(no_module, true, 0, 33), Reply::VmfailInvalid);
    let no_loader = MachineConfig {
        seamldr: SeamldrConfig {
            loaded: false,
            ..SeamldrConfig::default()
        },
        ..default()
    };
    assert_eq!(on(no_loader, true, 0, SEAMLDR), Reply::VmfailInvalid);
    let no_tdx = MachineConfig {
        tdx_keyids: 0,
        ..default()
    };
    assert_eq!(on(no_tdx, true, 0, 33), Reply::InvalidOpcode);
}

#[test]
fn only_a_kernel_on_a_healthy_machine_is_blamed_for_a_fault() {
    let blamed = |config: MachineConfig, cpl, number| {
        let machine = machine(config);
        machine.seamcall(At { cpl, ..AT }, true, leaf(number), &Ram::new(0));
        machine.finish().violations_of(Kind::SeamcallFault) == 1
    };
    let default = MachineConfig::default;
    assert!(blamed(default(), 0, number::SYS_INIT));
    assert!(!blamed(default(), 3, number::SYS_INIT));
    assert!(!blamed(default(), 0, number::SYS_DISABLE));
    assert!(!blamed(
        MachineConfig {
            seamrr: false,
            ..default()
        },
        0,
        number::SYS_INIT
    ));
}

#[test]
fn bring_up_makes_the_pamt_private() {
    let (machine, _) = ready(MachineConfig::default());
    let summary = machine.finish();
    assert!(summary.bring_up.ready);
    assert_eq!(summary.private_bytes["pamt"], (4 << 20) + (8 << 10) + 64);
    assert!(summary.violations.is_empty() && summary.cpus[0].cache_dirty);
}

#[test]
fn conversion_needs_a_flush_of_every_cache_first() {
    let (machine, _) = ready(MachineConfig::default());
    let pamt = 512 << 20;
    machine.movdir64b(AT, 0x100);
    assert_eq!(
        machine.finish().violations_of(Kind::ConvertedDirty),
        0,
        "never private"
    );
    machine.movdir64b(AT, pamt);
    assert_eq!(machine.finish().violations_of(Kind::ConvertedDirty), 1);
    machine.wbinvd(0);
    machine.movdir64b(AT, pamt + 64);
    let summary = machine.finish();
    assert_eq!(summary.violations_of(Kind::ConvertedDirty), 1);
    assert_eq!(summary.converted_bytes, 128);
}

#[test]
fn flush_on_another_processor_does_not_help() {
    let config = MachineConfig {
        cpus: 2,
        enabled_cpus: 2,
        ..MachineConfig::default()
    };
    let (machine, ram) = (machine(config), Ram::new(0x3000));
    for lp in 0..2 {
        machine.vmxon(At { lp, ..AT });
    }
    let call = |lp, regs| assert_eq!(status(call_on(&machine, lp, regs, &ram)), 0);
    call(0, leaf(number::SYS_INIT));
    call(0, leaf(number::SYS_LP_INIT));
    call(1, leaf(number::SYS_LP_INIT));
    call(0, plan(&ram));
    call(0, leaf(number::SYS_KEY_CONFIG));
    call(1, leaf(number::SYS_TDMR_INIT));
    machine.wbinvd(0);
    machine.movdir64b(AT, 512 << 20);
    assert_eq!(machine.finish().violations_of(Kind::ConvertedDirty), 1);
}

#[test]
fn rejected_plan_is_a_violation_unless_injected() {
    let rejected = |inject: &[&str], size| {
        let inject = inject.iter().map(|rule| rule.parse().unwrap()).collect();
        let (machine, ram) = (
            machine(MachineConfig {
                inject,
                ..MachineConfig::default()
            }),
            Ram::new(0x3000),
        );
        machine.vmxon(AT);
        call_on(&machine, 0, leaf(number::SYS_INIT), &ram);
        call_on(&machine, 0, leaf(number::SYS_LP_INIT), &ram);
        let regs = plan(&ram);
        ram.put(0x1008, &[size]);
        assert_ne!(status(call_on(&machine, 0, regs, &ram)), 0);
        machine.finish().violations_of(Kind::PlanRejected) == 1
    };
    assert!(rejected(&[], 1));
    assert!(!rejected(&["SYS.CONFIG=TDMR_OUTSIDE_CMRS"], 1 << 30));
    assert!(!rejected(&["SYS.CONFIG=SYS_BUSY"], 1));
}

#[test]
fn injected_faults_reach_the_caller_and_nothing_else() {
    let inject = ["33:1=gp", "33:2=vmfail", "33:3=ud", "33:4=RND_NO_ENTROPY"];
    let inject = inject.iter().map(|rule| rule.parse().unwrap()).collect();
    let machine = machine(MachineConfig {
        inject,
        ..MachineConfig::default()
    });
    machine.vmxon(AT);
    let ram = Ram::new(0);
    let call = || machine.seamcall(AT, true, leaf(number::SYS_INIT), &ram);
    assert_eq!(
        [call(), call(), call()],
        [
            Reply::GeneralProtection,
            Reply::VmfailInvalid,
            Reply::InvalidOpcode
        ]
    );
    assert_eq!(status(call()), Status::RND_NO_ENTROPY.raw());
    assert_eq!(status(call()), 0, "the module never saw the first four");
    let summary = machine.finish();
    assert_eq!(summary.leaves["TDH.SYS.INIT"].injected, 4);
    assert!(summary.violations.is_empty() && summary.unused_injections.is_empty());
}

#[test]
fn interrupted_disable_makes_progress() {
    let mut config = MachineConfig {
        inject: vec!["69=INTERRUPTED_RESUMABLE*always".parse().unwrap()],
        ..MachineConfig::default()
    };
    config.module.open.disable_gb_per_poll = 1;
    let (machine, ram) = ready(config);
    let calls =
        (1..10).find(|_| status(call_on(&machine, 0, leaf(number::SYS_DISABLE), &ram)) == 0);
    assert!(calls.is_some());
    let summary = machine.finish();
    assert!(!summary.bring_up.ready && summary.bring_up.was_ready);
    assert!(summary.private_bytes.is_empty() && summary.released_bytes > 4 << 20);
}

#[test]
fn reset_starts_over() {
    let (machine, ram) = ready(MachineConfig::default());
    machine.reset();
    assert!(!machine.in_vmx(0));
    machine.vmxon(AT);
    assert_eq!(
        status(call_on(&machine, 0, leaf(number::SYS_INIT), &ram)),
        0
    );
    let summary = machine.finish();
    assert_eq!(summary.resets, 1);
    assert!(summary.private_bytes.is_empty() && !summary.bring_up.ready);
}

#[test]
fn watched_access_to_private_memory_is_reported() {
    let (machine, _) = ready(MachineConfig::default());
    let pamt = 512 << 20;
    assert!(machine.may_be_private(pamt) && !machine.may_be_private(1 << 30));
    machine.access(AT, pamt - 8, 8, Access::Store);
    assert_eq!(machine.finish().violations.len(), 0);
    machine.access(AT, pamt - 4, 8, Access::Store);
    machine.access(AT, pamt, 8, Access::Load);
    let summary = machine.finish();
    assert_eq!(summary.violations_of(Kind::PrivateWrite), 1);
    assert_eq!(summary.violations_of(Kind::PrivateRead), 1);
}

#[test]
fn partial_write_poisons_a_private_line_until_it_is_written_whole() {
    let config = |strict| MachineConfig {
        strict,
        ..MachineConfig::default()
    };
    let pamt = 512 << 20;
    let (machine, _) = ready(config(true));
    let load = |pa| machine.access(AT, pa, 8, Access::Load);
    machine.access(AT, pamt, 8, Access::Store);
    assert_eq!(load(pamt), None);
    machine.access(AT, pamt + 8, 8, Access::NonTemporal);
    machine.access(AT, pamt + 16, 8, Access::NonTemporal);
    machine.access(AT, pamt - 64, 8, Access::NonTemporal);
    assert_eq!((load(pamt - 64), load(pamt + 64)), (None, None));
    assert_eq!(load(pamt + 56), Some(pamt));
    assert_eq!(load(pamt + 56), None, "its handler has not begun");
    assert_eq!(machine.rdmsr(0, MCG_STATUS), None);
    assert_eq!(load(pamt), Some(pamt));
    assert_eq!(machine.rdmsr(0, MCG_STATUS), None);
    machine.movdir64b(AT, pamt);
    assert_eq!(load(pamt), None);
    let summary = machine.finish();
    assert_eq!((summary.poisoned_lines, summary.machine_checks), (1, 2));
    let (machine, _) = ready(config(false));
    machine.access(AT, pamt, 8, Access::NonTemporal);
    assert_eq!(machine.access(AT, pamt, 8, Access::Load), None);
    let summary = machine.finish();
    assert_eq!((summary.poisoned_lines, summary.machine_checks), (0, 0));
}

#[test]
fn allowed_violation_does_not_count() {
    let config = MachineConfig {
        allow: vec![Kind::SeamcallFault],
        ..MachineConfig::default()
    };
    let machine = machine(config);
    machine.seamcall(AT, true, leaf(number::SYS_INIT), &Ram::new(0));
    let summary = machine.finish();
    assert!(summary.violations.is_empty());
    assert_eq!(summary.allowed_violations["seamcall-fault"], 1);
}

/// Bring-up on two processors takes as long as the calls of one, not as those of both.
#[test]
fn calls_with_latency_overlap() {
    const EACH: u32 = 20_000;
    const CALLS: u32 = 5;
    let (machine, ram) = ready(MachineConfig {
        cpus: 2,
        enabled_cpus: 2,
        latency: Latency {
            leaves: [(number::SYS_RD.into(), EACH)].into(),
            ..Latency::default()
        },
        ..MachineConfig::default()
    });
    let calls = |lp| {
        for _ in 0..CALLS {
            call_on(&machine, lp, leaf(number::SYS_RD), &ram);
        }
    };
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| calls(1));
        calls(0);
    });
    let one = Duration::from_micros((EACH * CALLS).into());
    let taken = start.elapsed();
    assert!(taken >= one && taken < one * 2, "{taken:?}");
}

/// Of TDH.SYS.RD there is nothing to stretch but the call itself.
#[test]
fn slow_calls_take_their_time_if_they_succeed() {
    const TIME: u32 = 50_000;
    const MAX_TDMRS: u64 = 0x9100_0001_0000_0008;
    let (machine, ram) = ready(MachineConfig {
        slow: [(number::SYS_RD.into(), TIME)].into(),
        ..MachineConfig::default()
    });
    let read = |rdx| {
        let regs = Regs {
            rdx,
            ..leaf(number::SYS_RD)
        };
        let start = Instant::now();
        let status = status(call_on(&machine, 0, regs, &ram));
        (
            status == 0,
            start.elapsed() >= Duration::from_micros(TIME.into()),
        )
    };
    assert_eq!(read(MAX_TDMRS), (true, true));
    assert_eq!(read(0x1234), (false, false));
}

#[test]
fn first_and_last_call_of_a_leaf_have_their_moments() {
    let (machine, ram) = ready(MachineConfig::default());
    for executed in [100, 250] {
        let at = At { executed, ..AT };
        machine.seamcall(at, true, leaf(number::SYS_RD), &ram);
        std::thread::sleep(Duration::from_millis(2));
    }
    let summary = machine.finish();
    let read = &summary.leaves["TDH.SYS.RD"];
    assert_eq!((read.first.executed, read.last.executed), (100, 250));
    assert!(read.first.micros + 2000 <= read.last.micros);
    assert!(summary.leaves["TDH.SYS.INIT"].last.micros <= read.first.micros);
}
