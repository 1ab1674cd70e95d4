// SPDX-License-Identifier: GPL-2.0

//! A TD's life: KeyIDs, control pages, TDH.MNG.INIT, the end. Statuses that no record shows.

use super::machine::Note;
use super::td_bench::{POOL, TD_HKID, TdBench, params};
use super::{Bench, regs};
use crate::leaf::number;

const NO_ENTROPY: u64 = 0x8000_0203_0000_0000;
const BUSY: u64 = 0x8000_0200_0000_0000;

#[test]
fn a_key_id_belongs_to_one_td_at_a_time() {
    let td = TdBench::created(Bench::baseline());
    let second = td.page();
    assert_eq!(
        td.rax(number::MNG_CREATE, second, TD_HKID, 0),
        0xc000_0820 << 32
    );
    assert_eq!(
        td.rax(number::MNG_CREATE, second, 16, 0),
        0xc000_0820 << 32,
        "global"
    );
    assert_eq!(td.rax(number::MNG_CREATE, second, 18, 0), 0);
    assert_eq!(td.page_type(second), 4);
}

#[test]
fn a_page_is_written_before_the_random_number_fails() {
    let td = TdBench::created(Bench::baseline());
    let page = td.page();
    let _ = td.bench.machine.notes();
    td.bench.machine.set_no_entropy(true);
    assert_eq!(td.rax(number::MNG_CREATE, page, 18, 0), NO_ENTROPY);
    td.bench.machine.set_no_entropy(false);
    let written = Note::Private {
        pa: page,
        len: 4096,
        hkid: 16,
    };
    assert_eq!(td.bench.machine.notes(), [written]);
    assert_eq!(td.page_type(page), 0, "still free");
}

#[test]
fn the_key_table_is_held_while_a_td_is_made() {
    let td = TdBench::created(Bench::baseline());
    let (first, second) = (td.page(), td.page());
    let _ran = td.bench.meanwhile(move |bench| {
        assert_eq!(
            bench.rax_on(1, number::MNG_CREATE, second, 19, 0),
            BUSY | 0xba
        );
        assert_eq!(bench.rax_on(1, number::MNG_CREATE, first, 19, 0), BUSY | 1);
    });
    assert_eq!(td.rax(number::MNG_CREATE, first, 18, 0), 0);
}

#[test]
fn tdcs_takes_nine_pages_and_no_more() {
    let td = TdBench::with_tdcs(Bench::baseline());
    for _ in 0..3 {
        assert_eq!(td.rax(number::MNG_ADDCX, td.page(), td.tdr, 0), 0);
    }
    assert_eq!(
        td.rax(number::MNG_ADDCX, td.page(), td.tdr, 0),
        0xc000_0610 << 32
    );
}

#[test]
fn later_releases_say_which_operation_state_is_wrong() {
    let td = TdBench::initialized(Bench::baseline());
    let wrong = |td: &TdBench| td.rax(number::MNG_INIT, td.tdr, 0, 0);
    assert_eq!(wrong(&td), 0xc000_0608_0000_0001);
    let old = TdBench::initialized(Bench::v1_5_01());
    assert_eq!(wrong(&old), 0xc000_0608 << 32);
}

#[test]
fn a_vcpu_takes_fifteen_pages_and_no_more() {
    let td = TdBench::initialized(Bench::baseline());
    let tdvpr = td.vcpu();
    for _ in 0..9 {
        assert_eq!(td.rax(number::VP_ADDCX, td.page(), tdvpr, 0), 0);
    }
    assert_eq!(
        td.rax(number::VP_ADDCX, td.page(), tdvpr, 0),
        0xc000_0610 << 32
    );
}

#[test]
fn x2apic_ids_of_a_td_differ() {
    let td = TdBench::initialized(Bench::baseline());
    let init = |tdvpr, version: u64, id| {
        let input = regs(number::VP_INIT, tdvpr, 0, id);
        let rax = input.rax | version << 16;
        td.bench.call(0, crate::Regs { rax, ..input }).rax
    };
    let (first, second) = (td.vcpu(), td.vcpu());
    assert_eq!(init(first, 2, 0), 0xc000_0100 << 32);
    assert_eq!(init(first, 1, 1 << 32), 0xc000_0100_0000_0008);
    assert_eq!(init(first, 1, 5), 0);
    assert_eq!(init(second, 1, 5), 0xc000_0621_0000_0005);
    assert_eq!(init(second, 1, 6), 0);
}

#[test]
fn each_parameter_has_its_own_operand_id() {
    let td = TdBench::with_tdcs(Bench::baseline());
    // Offset, byte to put there, operand id.
    let bad = [
        (0, 2, 64),
        (8, 1, 65),
        (8, 0x27, 65),
        (17, 3, 68),
        (18, 4, 71),
        (19, 2, 2),
        (20, 1, 2),
        (24, 7, 67),
        (32, 0x18, 66),
        (40, 3, 70),
        (42, 1, 2),
        (224, 0x10, 72),
        (232, 1, 2),
        (1023, 1, 2),
        (256 + 12, 1, 69),
    ];
    for (offset, byte, operand) in bad {
        let mut bytes = params();
        bytes[offset] = byte;
        assert_eq!(
            td.init(&bytes),
            0xc000_0100 << 32 | operand,
            "offset {offset}"
        );
    }
    let mut l2 = params();
    l2[18] = 1;
    assert_eq!(td.init(&l2), 0xc000_0606 << 32, "no page for it");
    assert_eq!(td.init(&params()), 0);
}

#[test]
fn transactional_memory_needs_its_control_msr() {
    // A processor that has HLE and RTM.
    let native = [2, 0xf3bf_bfff, 0xfb41_7ffe, 0xffdd_4432];
    let bench = Bench::baseline().with_machine(|machine| machine.set_cpuid(7, 0, native));
    let td = TdBench::with_tdcs(bench);
    let mut bytes = params();
    // HLE and RTM in EBX of CPUID(7, 0), the sixth row.
    let ebx = 256 + 5 * 16 + 4;
    bytes[ebx] = 0x10;
    assert_eq!(td.init(&bytes), 0xc000_0100_0000_0045, "HLE alone");
    bytes[ebx + 1] = 8;
    assert_eq!(td.init(&bytes), 0xc000_0921_0000_010a);
}

#[test]
fn the_topology_of_a_td_must_be_well_formed() {
    let td = TdBench::with_tdcs(Bench::baseline());
    let mut bytes = params();
    // ECX of CPUID(1Fh, 0), the thirteenth row: a level of type 3 and none of type 2.
    bytes[256 + 12 * 16 + 9] = 3;
    assert_eq!(td.init(&bytes), 0xc000_0904 << 32);
}

#[test]
fn a_key_id_is_free_again_when_every_package_has_written_back() {
    let td = TdBench::with_tdcs(Bench::baseline());
    let freeid = || td.rax(number::MNG_KEY_FREEID, td.tdr, 0, 0);
    assert_eq!(freeid(), 0xc000_0607 << 32);
    assert_eq!(td.rax(number::MNG_VPFLUSHDONE, td.tdr, 0, 0), 0);
    assert_eq!(td.bench.rax_on(0, number::PHYMEM_CACHE_WB, 0, 0, 0), 0);
    assert_eq!(freeid(), 0x8000_0817 << 32);
    assert_eq!(td.bench.rax_on(2, number::PHYMEM_CACHE_WB, 0, 0, 0), 0);
    assert_eq!(td.bench.machine.written_back(), [[17], [17]]);
    assert_eq!(freeid(), 0);
    assert_eq!(td.rax(number::MNG_CREATE, td.page(), TD_HKID, 0), 0);
}

#[test]
fn cache_wb_keeps_the_key_table_from_changing() {
    let td = TdBench::with_tdcs(Bench::baseline());
    assert_eq!(td.rax(number::MNG_VPFLUSHDONE, td.tdr, 0, 0), 0);
    let (tdr, free) = (td.tdr, td.page());
    let _ran = td.bench.meanwhile(move |bench| {
        let call = |leaf, rcx| bench.rax_on(2, leaf, rcx, 18, 0);
        assert_eq!(call(number::MNG_CREATE, free), BUSY | 0xba);
        assert_eq!(call(number::MNG_VPFLUSHDONE, tdr), BUSY | 0xba);
        assert_eq!(call(number::MNG_KEY_FREEID, tdr), BUSY | 0xba);
    });
    assert_eq!(td.rax(number::PHYMEM_CACHE_WB, 0, 0, 0), 0);
}

#[test]
fn the_tdr_is_the_last_page_to_be_reclaimed() {
    let td = TdBench::with_tdcs(Bench::baseline());
    let reclaim = |pa| td.rax(number::PHYMEM_PAGE_RECLAIM, pa, 0, 0);
    assert_eq!(reclaim(POOL + 0x1000), 0xc000_0607 << 32, "still alive");
    assert_eq!(td.rax(number::MNG_VPFLUSHDONE, td.tdr, 0, 0), 0);
    for lp in [0, 2] {
        assert_eq!(td.bench.rax_on(lp, number::PHYMEM_CACHE_WB, 0, 0, 0), 0);
    }
    assert_eq!(td.rax(number::MNG_KEY_FREEID, td.tdr, 0, 0), 0);
    assert_eq!(reclaim(td.tdr), 0xc000_0400 << 32);
    for page in 1..=6 {
        assert_eq!(reclaim(POOL + 0x1000 * page), 0);
    }
    assert_eq!(reclaim(td.tdr), 0);
    assert_eq!(reclaim(td.tdr), 0xc000_0300_0000_0001);
    let tagged = td.tdr | 16 << 46;
    assert_eq!(td.rax(number::PHYMEM_PAGE_WBINVD, tagged, 0, 0), 0);
}

#[test]
fn reclaimid_does_nothing() {
    let td = TdBench::created(Bench::baseline());
    assert_eq!(td.rax(number::MNG_KEY_RECLAIMID, 1, 2, 3), 0);
}

#[test]
fn disable_gives_the_pages_of_tds_back() {
    let td = TdBench::initialized(Bench::baseline());
    let _ = td.bench.machine.notes();
    assert_eq!(td.rax(number::SYS_DISABLE, 0, 0, 0), 0);
    let released = Note::Released {
        pa: td.tdr,
        len: 4096,
    };
    assert!(td.bench.machine.notes().contains(&released));
}
