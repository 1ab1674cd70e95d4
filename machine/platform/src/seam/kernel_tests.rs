// SPDX-License-Identifier: GPL-2.0

//! What a kernel leaves to the one it starts.

use super::tests::{AT, call_on, leaf, ready, status};
use super::*;
use crate::config::MachineConfig;
use crate::kernels::KernelEnd;
use crate::summary::Summary;

const LOW: u64 = 0x100_0000;
const HIGH: u64 = 0xffff_ffff_8100_0000;
const PAMT: u64 = (4 << 20) + (8 << 10) + 64;

/// The next kernel is entered on processor `lp`.
fn next_kernel(machine: &Machine, lp: u32) {
    for rip in [LOW, HIGH] {
        machine.lidt(At {
            lp,
            rip,
            ..At::default()
        });
    }
}

fn violations(summary: &Summary) -> [u64; 2] {
    [Kind::PrivateLeft, Kind::DirtyLeft].map(|kind| summary.violations_of(kind))
}

#[test]
fn first_kernel_inherits_nothing() {
    let (machine, _) = ready(MachineConfig::default());
    next_kernel(&machine, 0);
    let summary = machine.finish();
    assert_eq!((summary.kernels.len(), violations(&summary)), (1, [0, 0]));
    assert_eq!(summary.kernels[0].private_bytes["pamt"], PAMT);
    assert_eq!(summary.kernels[0].end, KernelEnd::EndOfRun);
}

#[test]
fn private_memory_and_dirty_caches_left_are_violations() {
    let config = MachineConfig {
        cpus: 2,
        enabled_cpus: 2,
        ..MachineConfig::default()
    };
    let (machine, _) = ready(config);
    next_kernel(&machine, 0);
    machine.wbinvd(1);
    next_kernel(&machine, 1);
    let summary = machine.finish();
    assert_eq!(violations(&summary), [1, 1]);
    let first = &summary.kernels[0];
    assert_eq!(
        (first.end, &first.dirty_cpus),
        (KernelEnd::NextKernel, &vec![0])
    );
    assert_eq!(first.wbinvds, [0, 1]);
    let violation = &summary.first_violations[0];
    assert_eq!((violation.cpu, violation.address), (1, Some(512 << 20)));
    assert!(
        violation.text.contains(&format!("{PAMT} pamt")),
        "{violation:?}"
    );
    assert_eq!(summary.private_bytes["pamt"], PAMT, "the state stays");
}

#[test]
fn without_the_erratum_private_memory_is_only_reported() {
    let config = MachineConfig {
        erratum: false,
        ..MachineConfig::default()
    };
    let (machine, _) = ready(config);
    next_kernel(&machine, 0);
    next_kernel(&machine, 0);
    let summary = machine.finish();
    assert_eq!(violations(&summary), [0, 1]);
    assert_eq!(summary.kernels[0].private_bytes["pamt"], PAMT);
}

#[test]
fn disabled_module_and_flushed_caches_leave_nothing() {
    let (machine, ram) = ready(MachineConfig::default());
    next_kernel(&machine, 0);
    let done = call_on(&machine, 0, leaf(number::SYS_DISABLE), &ram);
    assert_eq!(status(done), 0);
    machine.wbinvd(0);
    next_kernel(&machine, 0);
    next_kernel(&machine, 0);
    let summary = machine.finish();
    assert_eq!((summary.kernels.len(), violations(&summary)), (3, [0, 0]));
    assert_eq!(summary.kernels[0].released_bytes, PAMT);
    assert_eq!(summary.kernels[1].released_bytes, 0);
}

#[test]
fn calls_after_the_conversion_of_pamt_are_counted() {
    let (machine, ram) = ready(MachineConfig::default());
    next_kernel(&machine, 0);
    machine.wbinvd(0);
    machine.movdir64b(AT, 512 << 20);
    call_on(&machine, 0, leaf(number::SYS_RD), &ram);
    next_kernel(&machine, 0);
    let first = &machine.finish().kernels[0];
    assert_eq!(first.seamcalls_after_conversion, 1);
    assert!(first.seamcalls > 256);
    assert_eq!(first.converted_bytes, [64]);
}

#[test]
fn reset_is_no_next_kernel() {
    let (machine, _) = ready(MachineConfig::default());
    next_kernel(&machine, 0);
    machine.reset();
    next_kernel(&machine, 0);
    let summary = machine.finish();
    assert_eq!(violations(&summary), [0, 0]);
    assert_eq!(summary.kernels[0].end, KernelEnd::Reset);
    assert_eq!(summary.kernels[0].private_bytes["pamt"], PAMT);
    assert_eq!(
        (
            summary.kernels.len(),
            summary.kernels[1].private_bytes.len()
        ),
        (2, 0)
    );
}
