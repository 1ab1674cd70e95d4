// SPDX-License-Identifier: GPL-2.0

//! TDH.MNG.RD, TDH.VP.RD and TDH.VP.WR: enumeration, and what a host sees of CPUID.

use super::td_bench::{TdBench, params};
use super::{Bench, regs};
use crate::Regs;
use crate::leaf::number;

const ALL_ONES: u64 = u64::MAX;
const FIRST: u64 = 0x0000_0c0b_0000_0000;

/// Version 1 of a leaf that reads a field; returns RAX, the value and the next field.
fn read(bench: &Bench, leaf: u16, page: u64, id: u64) -> (u64, u64, u64) {
    let input = regs(leaf, page, id, 0);
    let rax = input.rax | 1 << 16;
    let out = bench.call(0, Regs { rax, ..input });
    (out.rax, out.r8, out.rdx)
}

/// Follows the enumeration to its end; returns all ids.
fn enumerate(bench: &Bench, leaf: u16, page: u64) -> Vec<u64> {
    let (status, _, mut id) = read(bench, leaf, page, ALL_ONES);
    assert_eq!(status, FIRST);
    let mut ids = vec![];
    while id != ALL_ONES {
        let (status, _, next) = read(bench, leaf, page, id);
        assert_eq!(status, 0, "{id:016x} was enumerated");
        assert!(!ids.contains(&id), "{id:016x} comes twice");
        ids.push(id);
        id = next;
    }
    ids
}

/// A debug TD of a profile; returns it and a vCPU.
fn debug_td(bench: Bench) -> (TdBench, u64) {
    let td = TdBench::with_tdcs(bench);
    let mut bytes = params();
    bytes[0] = 1;
    assert_eq!(td.init(&bytes), 0);
    let tdvpr = td.vcpu();
    assert_eq!(td.rax(number::VP_INIT, tdvpr, 0, 0), 0);
    (td, tdvpr)
}

#[test]
fn every_field_that_is_enumerated_can_be_read() {
    for bench in [Bench::baseline(), Bench::v1_5_01()] {
        let (td, tdvpr) = TdBench::runnable(bench.clone());
        let vcpu = enumerate(&td.bench, number::VP_RD, tdvpr);
        let fields = enumerate(&td.bench, number::MNG_RD, td.tdr);
        assert!(vcpu.contains(&0x0024_0001_0000_0002), "{vcpu:x?}");
        assert!(fields.contains(&0x1110_0003_0000_0000), "{fields:x?}");
    }
    let (td, tdvpr) = debug_td(Bench::v1_5_01());
    let vcpu = enumerate(&td.bench, number::VP_RD, tdvpr);
    assert!(vcpu.contains(&0x1020_0003_0000_0001), "RCX of the guest");
    let fields = enumerate(&td.bench, number::MNG_RD, td.tdr);
    assert!(fields.contains(&0x1110_0003_0000_0017), "TD_CTLS");
}

/// The id of a CPUID value as KVM builds it.
fn cpuid(leaf: u32, subleaf: Option<u32>, half: u64) -> u64 {
    let subleaf = subleaf.map_or(0xff, |subleaf| u64::from(subleaf & 0x7f));
    let leaf = u64::from(leaf >> 31) << 16 | u64::from(leaf & 0x7f) << 9;
    0x9410_0003_0000_0000 | leaf | subleaf << 1 | half
}

#[test]
fn all_cpuid_leaves_are_enumerated() {
    let (td, _) = TdBench::runnable(Bench::baseline());
    let mut id = cpuid(1, None, 0);
    let mut count = 0;
    while id != ALL_ONES {
        let (status, _, next) = read(&td.bench, number::MNG_RD, td.tdr, id);
        assert_eq!(status, 0, "{id:016x}");
        id = next;
        count += 1;
        assert!(count < 1000, "no end");
    }
    assert!(count > 100, "{count} values");
}

#[test]
fn a_leaf_with_subleaves_does_not_answer_without_one() {
    for (bench, unknown) in [
        (Bench::baseline(), 0xc000_0c02 << 32),
        (Bench::v1_5_01(), 0xc000_0c00 << 32),
    ] {
        let (td, _) = TdBench::runnable(bench);
        let rax = |id| td.rax(number::MNG_RD, td.tdr, id, 0);
        assert_eq!(rax(cpuid(4, None, 0)), unknown);
        assert_eq!(rax(cpuid(0x40, None, 0)), unknown);
        assert_eq!(rax(cpuid(4, Some(0), 0)), 0);
        assert_eq!(rax(cpuid(0x8000_0000, Some(9), 0)), 0, "it has none");
        assert_eq!(rax(cpuid(1, None, 0) | 1 << 17), 0xc000_0c00 << 32);
    }
}

#[test]
fn always_zero_leaves_answer_in_later_releases_only() {
    let (td, _) = TdBench::runnable(Bench::baseline());
    let id = cpuid(0x16, None, 0);
    assert_eq!(td.rax(number::MNG_RD, td.tdr, id, 0), 0);
    let (td, _) = TdBench::runnable(Bench::v1_5_01());
    assert_eq!(td.rax(number::MNG_RD, td.tdr, id, 0), 0xc000_0c00 << 32);
}

#[test]
fn configured_cpuid_bits_are_what_the_guest_sees() {
    let td = TdBench::with_tdcs(Bench::baseline());
    let mut bytes = params();
    // SDBG in ECX of CPUID(1), the first row.
    bytes[256 + 9] = 8;
    assert_eq!(td.init(&bytes), 0);
    let (status, value, _) = read(&td.bench, number::MNG_RD, td.tdr, cpuid(1, None, 1));
    assert_eq!((status, value >> 11 & 1), (0, 1));
}

#[test]
fn a_vector_must_be_set_before_interrupts_are_posted() {
    let (td, tdvpr) = TdBench::runnable(Bench::baseline());
    let write = |id, value, mask| {
        let input = regs(number::VP_WR, tdvpr, id, value);
        let out = td.bench.call(0, Regs { r9: mask, ..input });
        (out.rax, out.r8)
    };
    assert_eq!(write(0x4000, 0x80, 0x80), (0xc000_0730_0000_0002, 0));
    assert_eq!(write(2, 0x1ff, ALL_ONES), (0xc000_0c03 << 32, 0));
    assert_eq!(write(2, 0xf2, ALL_ONES), (0, 0xffff));
    assert_eq!(write(0x4000, 0x80, 0x80), (0xc000_0730_0000_2016, 0));
    assert_eq!(write(0x2016, 0x50_0000, ALL_ONES), (0, ALL_ONES));
    assert_eq!(write(0x4000, 0x80, 0x80), (0, 0));
    assert_eq!(write(0x4000, 0, 0x80), (0, 0x80));
    assert_eq!(write(0x201a, 0, ALL_ONES), (0xc000_0c01 << 32, 0));
}
