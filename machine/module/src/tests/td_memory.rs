// SPDX-License-Identifier: GPL-2.0

//! A TD's memory: S-EPT, pages, blocking, tracking and measuring. Statuses that no record shows.

use super::machine::Note;
use super::td_bench::{SOURCE, TD_HKID, TdBench};
use super::{Bench, PATTERN, regs};
use crate::leaf::number;
use crate::{GuestExit, Outcome, Regs, Translation};

const BUSY: u64 = 0x8000_0200_0000_0000;

fn runnable() -> (TdBench, u64) {
    let (td, tdvpr) = TdBench::runnable(Bench::baseline());
    td.map_tables();
    (td, tdvpr)
}

#[test]
fn blocking_twice_is_information_only() {
    let (td, _) = runnable();
    let page = td.aug(0);
    let block = || {
        td.bench
            .call(0, regs(number::MEM_RANGE_BLOCK, 0, td.tdr, 0))
    };
    assert_eq!(block().rax, 0);
    let again = block();
    assert_eq!(again.rax, 0x0000_0b07_0000_0001);
    // PENDING_BLOCKED is 3; the leaf is shown without rights.
    assert_eq!((again.rcx, again.rdx), (page | 0xf0 | 1 << 63, 0x300));
}

#[test]
fn a_page_is_removed_only_after_blocking_and_tracking() {
    let (td, _) = runnable();
    let page = td.aug(0);
    let call = |leaf| td.bench.call(0, regs(leaf, 0, td.tdr, 0));
    assert_eq!(call(number::MEM_PAGE_REMOVE).rax, 0xc000_0b06_0000_0001);
    assert_eq!(call(number::MEM_RANGE_BLOCK).rax, 0);
    let untracked = call(number::MEM_PAGE_REMOVE);
    assert_eq!(untracked.rax, 0xc000_0b08_0000_0001);
    assert_eq!((untracked.rcx, untracked.rdx), (0, 0));
    assert_eq!(call(number::MEM_RANGE_UNBLOCK).rax, 0xc000_0b08_0000_0001);
    assert_eq!(td.rax(number::MEM_TRACK, td.tdr, 0, 0), 0);
    let removed = call(number::MEM_PAGE_REMOVE);
    assert_eq!((removed.rax, removed.rcx), (0, page));
    assert_eq!(td.page_type(page), 0);
}

#[test]
fn tracking_waits_for_guests_of_the_epoch_before() {
    let (td, tdvpr) = runnable();
    td.aug(0);
    td.enter(0, tdvpr);
    let on = |leaf, rcx, rdx| td.bench.rax_on(1, leaf, rcx, rdx, 0);
    assert_eq!(on(number::MEM_RANGE_BLOCK, 0, td.tdr), 0);
    assert_eq!(on(number::MEM_TRACK, td.tdr, 0), 0);
    assert_eq!(on(number::MEM_TRACK, td.tdr, 0), 0x8000_0201 << 32);
    assert_eq!(
        on(number::MEM_PAGE_REMOVE, 0, td.tdr),
        0xc000_0b08_0000_0001
    );
    td.interrupt(0);
    assert_eq!(on(number::MEM_PAGE_REMOVE, 0, td.tdr), 0);
    assert_eq!(on(number::MEM_TRACK, td.tdr, 0), 0);
}

#[test]
fn a_whole_two_megabytes_must_be_free() {
    let (td, _) = runnable();
    let aug = |page| td.rax(number::MEM_PAGE_AUG, 0x20_0001, td.tdr, page);
    // The TDR is in the first 2 MB.
    assert_eq!(aug(td.tdr), BUSY | 8);
    let pages = 4 << 30 | 0x20_0000;
    assert_eq!(
        td.rax(number::MNG_CREATE, pages + 0x5000, TD_HKID + 1, 0),
        0
    );
    assert_eq!(aug(pages), 0xc000_0300_0000_0008);
    assert_eq!(aug(pages + 0x20_0000), 0);
    let inside = regs(number::PHYMEM_PAGE_RDMD, pages + 0x20_3000, 0, 0);
    let inside = td.bench.call(0, inside);
    assert_eq!((inside.rcx, inside.rdx, inside.r8), (3, td.tdr, 1));
    let within = td.rax(number::MNG_CREATE, pages + 0x20_3000, TD_HKID + 2, 0);
    assert_eq!(within, 0xc000_0300_0000_0001);
}

#[test]
fn an_added_page_is_copied_and_measured() {
    let td = TdBench::initialized(Bench::baseline());
    td.map_tables();
    td.bench.machine.put(SOURCE, b"content");
    let page = td.page();
    let _ = td.bench.machine.notes();
    let input = Regs {
        r9: SOURCE,
        ..regs(number::MEM_PAGE_ADD, 0, td.tdr, page)
    };
    assert_eq!(td.bench.call(0, input).rax, 0);
    let written = Note::Private {
        pa: page,
        len: 4096,
        hkid: TD_HKID as u16,
    };
    assert_eq!(td.bench.machine.notes(), [written]);
    assert_eq!(&td.bench.machine.get(page, 7), b"content");
    let extend = |gpa| td.rax(number::MR_EXTEND, gpa, td.tdr, 0);
    assert_eq!(extend(0xf00), 0);
    assert_eq!(extend(0xf80), 0xc000_0100_0000_0001);
    assert_eq!(extend(0x1000), 0xc000_0b03_0000_0001);
}

#[test]
fn the_tree_is_held_while_a_page_is_added() {
    let (td, _) = runnable();
    let (tdr, page) = (td.tdr, td.page());
    // 2 MB further on: another entry of the same tree.
    let _ran = td.bench.meanwhile(move |bench| {
        let call = |leaf, gpa| bench.rax_on(1, leaf, gpa, tdr, PATTERN);
        assert_eq!(call(number::MEM_RANGE_BLOCK, 0), BUSY | 0x92);
        assert_eq!(
            call(number::MEM_SEPT_ADD, 0x20_0001),
            BUSY | 1,
            "same entry"
        );
        assert_eq!(call(number::MEM_SEPT_REMOVE, 1), BUSY | 0x92);
        let finalize = bench.rax_on(1, number::MR_FINALIZE, tdr, 0, 0);
        assert_eq!(finalize, BUSY | 1, "it needs the TDR for itself");
    });
    assert_eq!(td.rax(number::MEM_SEPT_ADD, 0x20_0001, td.tdr, page), 0);
}

/// TDG.MEM.PAGE.ACCEPT of 4 KB.
fn accept(gpa: u64) -> GuestExit {
    GuestExit {
        reason: 77,
        regs: Regs {
            rax: 6,
            rcx: gpa,
            ..Regs::default()
        },
        ..GuestExit::default()
    }
}

#[test]
fn the_host_cannot_block_a_page_that_is_being_accepted() {
    let (td, tdvpr) = runnable();
    let tdr = td.tdr;
    td.aug(0x1000);
    td.enter(0, tdvpr);
    let block = move |bench: &Bench| bench.rax_on(1, number::MEM_RANGE_BLOCK, 0x1000, tdr, PATTERN);
    let _ran = td
        .bench
        .meanwhile(move |bench| assert_eq!(block(bench), BUSY | 1));
    let (outcome, guest) = td.exit(0, &accept(0x1000));
    assert_eq!((outcome, guest.rax), (Outcome::Entered, 0));
    assert_eq!(block(&td.bench), 0);
    let (outcome, host) = td.exit(0, &accept(0x1000));
    assert_eq!(
        (outcome, host.rax),
        (Outcome::Returned, 48),
        "it is blocked"
    );
}

#[test]
fn a_guest_that_meets_the_host_at_an_entry_is_told() {
    let (td, tdvpr) = runnable();
    let (tdr, page) = (td.tdr, td.page());
    td.enter(0, tdvpr);
    let _ran = td.bench.meanwhile(move |bench| {
        let mut guest = Regs::default();
        let exit = accept(0x20_0000);
        let outcome = bench
            .module
            .guest_exit(0, &exit, &mut guest, &*bench.machine);
        assert_eq!((outcome, guest.rax), (Ok(Outcome::Entered), BUSY | 1));
    });
    let added = td
        .bench
        .rax_on(1, number::MEM_SEPT_ADD, 0x20_0001, tdr, page);
    assert_eq!(added, 0);
}

#[test]
fn accepting_a_page_zeroes_and_maps_it() {
    let (td, tdvpr) = runnable();
    let page = td.aug(0x1000);
    td.bench.machine.put(page, b"old");
    td.enter(0, tdvpr);
    let accept = accept(0x1000);
    let (outcome, guest) = td.exit(0, &accept);
    assert_eq!((outcome, guest.rax), (Outcome::Entered, 0));
    assert_eq!(td.bench.machine.get(page, 3), [0; 3]);
    let (outcome, guest) = td.exit(0, &accept);
    assert_eq!((outcome, guest.rax), (Outcome::Entered, 0xb0a_0000_0000));
}

#[test]
fn a_processor_can_translate_addresses_of_its_guest() {
    let (td, tdvpr) = runnable();
    let module = &td.bench.module;
    assert_eq!((module.guest(0), module.translate(0, 0)), (None, None));
    td.aug(0x2000);
    td.enter(0, tdvpr);
    let guest = module.guest(0).expect("a guest runs");
    assert_eq!((guest.tdr, guest.tdvpr, guest.index), (td.tdr, tdvpr, 0));
    assert_eq!(u64::from(guest.hkid), TD_HKID);
    let at = |gpa| module.translate(0, gpa).expect("a guest runs");
    assert_eq!(at(0x2000), Translation::Pending);
    assert_eq!(at(0x3000), Translation::NotPresent);
    assert_eq!(at(1 << 47 | 0x2000), Translation::Shared { gpa: 0x2000 });
    assert_eq!(module.guest_field(0, 2), None);
}

#[test]
fn an_added_page_translates_to_where_it_lies() {
    let td = TdBench::initialized(Bench::baseline());
    td.map_tables();
    let page = td.page();
    let input = Regs {
        r9: SOURCE,
        ..regs(number::MEM_PAGE_ADD, 0x1000, td.tdr, page)
    };
    assert_eq!(td.bench.call(0, input).rax, 0);
    let tdvpr = td.vcpu();
    assert_eq!(td.rax(number::VP_INIT, tdvpr, 0, 0), 0);
    let vector = Regs {
        r9: 0xffff,
        ..regs(number::VP_WR, tdvpr, 2, 0xf2)
    };
    assert_eq!(td.bench.call(0, vector).rax, 0);
    assert_eq!(td.rax(number::MR_FINALIZE, td.tdr, 0, 0), 0);
    td.enter(0, tdvpr);
    let hpa = page + 0x123;
    let got = td.bench.module.translate(0, 0x1123);
    assert_eq!(got, Some(Translation::Mapped { hpa }));
    assert_eq!(td.bench.module.guest_field(0, 2), Some(0xf2));
}
