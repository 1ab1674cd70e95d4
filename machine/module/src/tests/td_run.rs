// SPDX-License-Identifier: GPL-2.0

//! A TD that runs: TDH.VP.ENTER, exits, vCPU fields. Statuses that no record shows.

use super::td_bench::{TdBench, params};
use super::{Bench, PATTERN, regs};
use crate::leaf::number;
use crate::{GuestExit, NoGuest, Outcome, Regs};

const BUSY: u64 = 0x8000_0200_0000_0000;

fn exit(reason: u32) -> GuestExit {
    GuestExit {
        reason,
        ..GuestExit::default()
    }
}

fn fault(gpa: u64) -> GuestExit {
    GuestExit {
        gpa,
        qualification: 0x182,
        ..exit(48)
    }
}

fn vmcall(mask: u64) -> GuestExit {
    let regs = Regs {
        rcx: mask,
        rbp: 0xb9,
        r10: 10,
        r11: 11,
        r12: 12,
        ..Regs::default()
    };
    GuestExit { regs, ..exit(77) }
}

#[test]
fn a_guest_starts_with_what_init_gave_it() {
    let td = TdBench::initialized(Bench::baseline());
    let tdvpr = td.vcpu();
    assert_eq!(td.rax(number::VP_INIT, tdvpr, 0x1234, 0), 0);
    assert_eq!(td.rax(number::VP_ENTER, tdvpr, 0, 0), 0xc000_0608_0000_0001);
    assert_eq!(td.rax(number::MR_FINALIZE, td.tdr, 0, 0), 0);
    let guest = td.enter(0, tdvpr);
    let expected = Regs {
        rbx: 48,
        rcx: 0x1234,
        rdx: 0x8_06f8,
        r8: 0x1234,
        ..Regs::default()
    };
    assert_eq!(guest, expected);
}

#[test]
fn a_running_vcpu_keeps_td_and_vcpu_from_changing() {
    let (td, tdvpr) = TdBench::runnable(Bench::baseline());
    td.enter(0, tdvpr);
    let on = |leaf, rcx| td.bench.rax_on(1, leaf, rcx, PATTERN, PATTERN);
    assert_eq!(on(number::MNG_VPFLUSHDONE, td.tdr), BUSY | 1);
    assert_eq!(on(number::VP_FLUSH, tdvpr), BUSY | 1);
    assert_eq!(on(number::SYS_SHUTDOWN, 1), 0x8000_0202 << 32);
    assert_eq!(on(number::VP_ENTER, tdvpr), 0xc000_0700_0000_0004, "active");
    td.interrupt(0);
    assert_eq!(on(number::VP_ENTER, tdvpr), 0x8000_0701 << 32);
    assert_eq!(td.rax(number::VP_FLUSH, tdvpr, 0, 0), 0);
    assert_eq!(on(number::SYS_SHUTDOWN, 1), 0);
}

#[test]
fn version_one_of_init_needs_the_tdr_for_itself() {
    let (td, tdvpr) = TdBench::runnable(Bench::baseline());
    td.enter(0, tdvpr);
    let input = regs(number::VP_INIT, tdvpr, 0, 0);
    let input = Regs {
        rax: input.rax | 1 << 16,
        ..input
    };
    assert_eq!(
        td.bench.call(1, input).rax,
        BUSY | 1,
        "the TDVPR comes first"
    );
}

#[test]
fn an_exit_without_a_guest_is_an_error() {
    let (td, _) = TdBench::runnable(Bench::baseline());
    let mut regs = Regs::default();
    let machine = &*td.bench.machine;
    let error = td.bench.module.guest_exit(0, &exit(1), &mut regs, machine);
    assert_eq!(error, Err(NoGuest));
}

#[test]
fn vmcall_passes_the_selected_registers_both_ways() {
    let (td, tdvpr) = TdBench::runnable(Bench::baseline());
    td.enter(0, tdvpr);
    let (outcome, host) = td.exit(0, &vmcall(1 << 10 | 1 << 12 | 1 << 5));
    let expected = Regs {
        rax: 77,
        rcx: 1 << 10 | 1 << 12 | 1 << 5,
        rbp: 0xb9,
        r10: 10,
        r12: 12,
        ..Regs::default()
    };
    assert_eq!((outcome, host), (Outcome::Returned, expected));
    let guest = td.enter(0, tdvpr);
    assert_eq!((guest.rax, guest.r10, guest.r11), (0, PATTERN, 11));
}

#[test]
fn a_mask_that_selects_rsp_goes_back_to_the_guest() {
    let (td, tdvpr) = TdBench::runnable(Bench::baseline());
    td.enter(0, tdvpr);
    for mask in [1, 2, 1 << 4, 1 << 32] {
        let (outcome, guest) = td.exit(0, &vmcall(mask));
        assert_eq!(
            (outcome, guest.rax),
            (Outcome::Entered, 0xc000_0100_0000_0001)
        );
    }
}

/// A runnable TD of the baseline with NO_RBP_MOD.
fn without_rbp() -> (TdBench, u64) {
    let td = TdBench::with_tdcs(Bench::baseline());
    let mut bytes = params();
    bytes[32] = 4;
    assert_eq!(td.init(&bytes), 0);
    let tdvpr = td.vcpu();
    assert_eq!(td.rax(number::VP_INIT, tdvpr, 0, 0), 0);
    assert_eq!(td.rax(number::MR_FINALIZE, td.tdr, 0, 0), 0);
    (td, tdvpr)
}

#[test]
fn rbp_is_kept_where_the_td_promised_not_to_use_it() {
    let (td, tdvpr) = without_rbp();
    td.enter(0, tdvpr);
    let (outcome, _) = td.exit(0, &vmcall(1 << 5));
    assert_eq!(outcome, Outcome::Entered, "refused");
    let (_, host) = td.exit(0, &exit(1));
    assert_eq!(host.rbp, PATTERN);
    let (td, tdvpr) = TdBench::runnable(Bench::baseline());
    td.enter(0, tdvpr);
    let (_, host) = td.exit(0, &exit(1));
    assert_eq!(host.rbp, 0);
}

#[test]
fn a_triple_fault_disables_the_vcpu_only() {
    let (td, tdvpr) = TdBench::runnable(Bench::baseline());
    td.enter(0, tdvpr);
    let (outcome, host) = td.exit(0, &exit(2));
    assert_eq!(
        (outcome, host.rax),
        (Outcome::Returned, 0x4000_0001_0000_0002)
    );
    assert_eq!(td.rax(number::VP_ENTER, tdvpr, 0, 0), 0xc000_0700_0000_0008);
    assert_eq!(
        td.rax(number::VP_RD, tdvpr, 2, 0),
        0,
        "its state can be read"
    );
    assert_eq!(td.rax(number::VP_WR, tdvpr, 2, 0), 0xc000_0700_0000_0008);
}

#[test]
fn an_unexpected_exit_is_fatal_for_the_td() {
    let (td, tdvpr) = TdBench::runnable(Bench::baseline());
    td.enter(0, tdvpr);
    let (_, host) = td.exit(0, &exit(0x8000_0021));
    assert_eq!(host.rax, 0x6000_0002_8000_0021);
    let fatal = 0xe000_0604 << 32;
    assert_eq!(td.rax(number::VP_ENTER, tdvpr, 0, 0), fatal);
    assert_eq!(td.rax(number::MEM_TRACK, td.tdr, 0, 0), fatal);
    assert_eq!(td.rax(number::MNG_KEY_CONFIG, td.tdr, 0, 0), fatal);
    assert_eq!(td.rax(number::MNG_ADDCX, td.page(), td.tdr, 0), fatal);
    assert_eq!(
        td.rax(number::VP_FLUSH, tdvpr, 0, 0),
        0,
        "it can be torn down"
    );
    assert_eq!(td.rax(number::MNG_VPFLUSHDONE, td.tdr, 0, 0), 0);
}

#[test]
fn a_fatal_error_of_one_vcpu_ends_the_others() {
    let td = TdBench::initialized(Bench::baseline());
    let vcpus = [td.vcpu(), td.vcpu()];
    for (lp, &tdvpr) in vcpus.iter().enumerate() {
        assert_eq!(td.bench.rax_on(lp, number::VP_INIT, tdvpr, 0, 0), 0);
    }
    assert_eq!(td.rax(number::MR_FINALIZE, td.tdr, 0, 0), 0);
    td.enter(0, vcpus[0]);
    td.enter(1, vcpus[1]);
    td.exit(0, &exit(0x8000_0021));
    let (outcome, host) = td.exit(1, &exit(1));
    assert_eq!(
        (outcome, host.rax),
        (Outcome::Returned, 0x6000_0005_0000_0001)
    );
    assert_eq!(td.bench.rax_on(1, number::VP_FLUSH, vcpus[1], 0, 0), 0);
}

#[test]
fn faults_without_progress_are_remembered_until_they_are_gone() {
    let (td, tdvpr) = TdBench::runnable(Bench::baseline());
    td.map_tables();
    for _ in 0..6 {
        td.enter(0, tdvpr);
        td.exit(0, &fault(0x3123));
    }
    td.enter(0, tdvpr);
    let (_, host) = td.exit(0, &fault(0x3123));
    assert_eq!((host.rcx, host.r8), (2, 0x3000));
    let turned_back = td.bench.call(0, regs(number::VP_ENTER, tdvpr, 1, 1));
    assert_eq!((turned_back.rax, turned_back.r8), (48, 0x3000));
    td.aug(0x3000);
    td.enter(0, tdvpr);
}

#[test]
fn progress_of_the_guest_clears_the_faults() {
    let (td, tdvpr) = TdBench::runnable(Bench::baseline());
    for _ in 0..20 {
        td.enter(0, tdvpr);
        let moved = GuestExit {
            progress: true,
            ..fault(0x3000)
        };
        td.exit(0, &moved);
    }
    td.enter(0, tdvpr);
}

#[test]
fn a_pending_page_stops_the_guest_if_it_wants_no_ve() {
    for (sept_ve_disable, outcome) in [(0x10, Outcome::Returned), (0, Outcome::Entered)] {
        let td = TdBench::with_tdcs(Bench::baseline());
        let mut bytes = params();
        bytes[3] = sept_ve_disable;
        assert_eq!(td.init(&bytes), 0);
        let tdvpr = td.vcpu();
        assert_eq!(td.rax(number::VP_INIT, tdvpr, 0, 0), 0);
        assert_eq!(td.rax(number::MR_FINALIZE, td.tdr, 0, 0), 0);
        td.map_tables();
        td.aug(0x3000);
        td.enter(0, tdvpr);
        let (got, regs) = td.exit(0, &fault(0x3000));
        assert_eq!(got, outcome);
        if outcome == Outcome::Returned {
            assert_eq!((regs.rax, regs.rdx), (48, 6));
        }
    }
}

#[test]
fn monitor_needs_a_processor_that_allows_it() {
    let td = TdBench::with_tdcs(Bench::baseline());
    let mut bytes = params();
    bytes[256 + 8] = 8;
    assert_eq!(td.init(&bytes), 0);
    let tdvpr = td.vcpu();
    assert_eq!(td.rax(number::VP_INIT, tdvpr, 0, 0), 0);
    assert_eq!(td.rax(number::MR_FINALIZE, td.tdr, 0, 0), 0);
    let msr = td.bench.machine.get_msr(0x1a0);
    td.bench.machine.set_msr(0x1a0, msr & !(1 << 18));
    assert_eq!(td.rax(number::VP_ENTER, tdvpr, 0, 0), 0xc000_0921_0000_01a0);
    td.bench.machine.set_msr(0x1a0, msr | 1 << 18);
    td.enter(0, tdvpr);
}

#[test]
fn a_hint_without_reason_and_reserved_bits_are_refused() {
    let (td, tdvpr) = TdBench::runnable(Bench::baseline());
    assert_eq!(
        td.rax(number::VP_ENTER, tdvpr | 1 << 52, 0, 0),
        0xc000_0100_0000_0001
    );
    assert_eq!(
        td.rax(number::VP_ENTER, tdvpr | 1 << 54, 0, 0),
        0xc000_0100_0000_0001
    );
}
