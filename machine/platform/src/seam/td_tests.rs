// SPDX-License-Identifier: GPL-2.0

//! A TD's life on a whole machine: memory, guests that follow a script, and a host that makes mistakes.

use super::tests::{AT, call_on, leaf, ready, status};
use super::*;
use crate::Access;
use crate::config::MachineConfig;
use crate::tests::Ram;

const PARAMS: u64 = 0x2000;
const TDR: u64 = 0x20_0000;
const TDVPR: u64 = 0x20_7000;
const TABLES: u64 = 0x21_0000;
const PAGE: u64 = 0x22_0000;
const HKID: u64 = 17;
/// Shared bit of a GPA of 48 bits.
const SHARED: u64 = 1 << 47;

struct Td {
    machine: Machine,
    ram: Ram,
}

impl Td {
    /// A TD with one vCPU and Secure EPT pages for its first 2 MB, ready to run `script`.
    fn new(script: &str, config: MachineConfig) -> Td {
        let config = MachineConfig {
            td_script: script.parse().unwrap(),
            ..config
        };
        let (machine, ram) = ready(config);
        let td = Td { machine, ram };
        let ok = |leaf, rcx, rdx, r8| assert_eq!(td.rax(leaf, rcx, rdx, r8), 0, "leaf {leaf}");
        ok(number::MNG_CREATE, TDR, HKID, 0);
        ok(number::MNG_KEY_CONFIG, TDR, 0, 0);
        for n in 1..=6 {
            ok(number::MNG_ADDCX, TDR + n * 0x1000, TDR, 0);
        }
        // SEPT_VE_DISABLE, x87 and SSE, 1 vCPU, 4 levels write-back, NO_RBP_MOD, 1 GHz.
        td.ram.put(PARAMS, &[0; 128]);
        td.ram.put(PARAMS, &[1 << 28, 3, 1, 6 | 3 << 3, 4, 40]);
        ok(number::MNG_INIT, TDR, PARAMS, 0);
        ok(number::VP_CREATE, TDVPR, TDR, 0);
        for n in 1..=5 {
            ok(number::VP_ADDCX, TDVPR + n * 0x1000, TDVPR, 0);
        }
        ok(number::VP_INIT, TDVPR, 0, 0);
        for level in [3, 2, 1] {
            ok(number::MEM_SEPT_ADD, level, TDR, TABLES + level * 0x1000);
        }
        ok(number::MR_FINALIZE, TDR, 0, 0);
        td
    }

    fn call(&self, regs: Regs) -> Regs {
        match call_on(&self.machine, 0, regs, &self.ram) {
            Reply::Returned(regs) => regs,
            other => panic!("{other:?}"),
        }
    }

    fn rax(&self, number: u16, rcx: u64, rdx: u64, r8: u64) -> u64 {
        let operands = Regs {
            rcx,
            rdx,
            r8,
            ..leaf(number)
        };
        self.call(operands).rax
    }

    /// Enters the guest; R10 and R11 answer its last call.
    fn enter(&self, r10: u64, r11: u64) -> Regs {
        self.call(Regs {
            rcx: TDVPR,
            r10,
            r11,
            ..leaf(number::VP_ENTER)
        })
    }

    fn aug(&self, gpa: u64, page: u64) {
        assert_eq!(self.rax(number::MEM_PAGE_AUG, gpa, TDR, page), 0);
    }

    fn remove(&self, gpa: u64) {
        for leaf in [number::MEM_RANGE_BLOCK, number::MEM_TRACK] {
            let rcx = if leaf == number::MEM_TRACK { TDR } else { gpa };
            assert_eq!(self.rax(leaf, rcx, TDR, 0), 0);
        }
        assert_eq!(self.rax(number::MEM_PAGE_REMOVE, gpa, TDR, 0), 0);
    }

    fn violations(&self, kind: Kind) -> u64 {
        self.machine.finish().violations_of(kind)
    }
}

fn td(script: &str) -> Td {
    Td::new(script, MachineConfig::default())
}

#[test]
fn a_guest_accepts_uses_and_computes_until_it_halts() {
    let td = td("accept 0x5000\nstore 0x5008 0x1234\nload 0x5008\nexpect r11=0x1234\nexpect r11=9");
    let fault = td.enter(0, 0);
    assert_eq!((fault.rax, fault.r8, fault.rdx & 0xf), (48, 0x5000, 1));
    assert_eq!(td.enter(0, 0).rax, 48, "the step is tried again");
    td.aug(0x5000, PAGE);
    let halt = td.enter(0, 0);
    assert_eq!((halt.rax, halt.r10, halt.r11), (77, 0, 12));
    assert_eq!(td.enter(0, 0).r11, 12, "for ever");
    let mut stored = [0; 8];
    assert!(td.ram.read(PAGE + 8, &mut stored));
    assert_eq!(u64::from_le_bytes(stored), 0x1234);
    let guest = &td.machine.finish().guests[0];
    assert_eq!((guest.entries, guest.steps, guest.failures), (4, 5, 1));
    assert_eq!(
        (guest.exits["exit 48"], guest.exits["TDVMCALL 0xc"]),
        (2, 2)
    );
}

#[test]
fn touching_a_page_that_is_not_accepted_is_told_to_the_host() {
    let td = td("touch 0x5000");
    assert_eq!(td.enter(0, 0).rax, 48);
    td.aug(0x5000, PAGE);
    let exit = td.enter(0, 0);
    assert_eq!((exit.rax, exit.r8, exit.rdx & 0xf), (48, 0x5000, 6));
}

#[test]
fn map_gpa_goes_on_where_the_host_stopped() {
    let td = td("map-gpa shared 0x4000 0x3000\ninfo");
    let call = td.enter(0, 0);
    assert_eq!(
        [call.r11, call.r12, call.r13],
        [0x1_0001, SHARED | 0x4000, 0x3000]
    );
    let again = td.enter(1, SHARED | 0x5000);
    assert_eq!(
        [again.r11, again.r12, again.r13],
        [0x1_0001, SHARED | 0x5000, 0x2000]
    );
    assert_eq!(td.enter(0, 0).r11, 0x1_0000, "the next step");
}

#[test]
fn shared_memory_is_found_through_the_hosts_tables() {
    let td = td("store shared 0x4008 7\nload shared 0x5000\nexpect r11=5");
    let write = |field, value| {
        let regs = Regs {
            rcx: TDVPR,
            rdx: field,
            r8: value,
            r9: u64::MAX,
            ..leaf(number::VP_WR)
        };
        assert_eq!(td.call(regs).rax, 0);
    };
    let root = 0x30_0000;
    write(0x203c, root);
    let suppress = 1 << 63;
    td.ram.put(root + 0x100 * 8, &[(root + 0x1000) | 7]);
    td.ram.put(root + 0x1000, &[(root + 0x2000) | 7]);
    td.ram.put(root + 0x2000, &[(root + 0x3000) | 7]);
    td.ram.put(root + 0x3000 + 4 * 8, &[suppress, 0]);
    let fault = td.enter(0, 0);
    assert_eq!(
        (fault.rax, fault.rcx & 7, fault.r8),
        (48, 2, SHARED | 0x4000)
    );
    td.ram.put(root + 0x3000 + 4 * 8, &[(root + 0x4000) | 7]);
    let mmio = td.enter(0, 0);
    assert_eq!(
        [mmio.r11, mmio.r12, mmio.r13, mmio.r14],
        [48, 8, 0, SHARED | 0x5000]
    );
    let mut stored = [0; 8];
    assert!(td.ram.read(root + 0x4008, &mut stored));
    assert_eq!(stored[0], 7);
    assert_eq!(td.enter(0, 5).r11, 12);
    assert_eq!(td.machine.finish().guests[0].failures, 0);
}

#[test]
fn posted_interrupts_are_taken_at_the_next_entry() {
    let td = td("");
    let descriptor = 0x31_0000;
    td.ram.put(descriptor, &[1 << 33, 1, 0, 0, 0xf2_0001]);
    let vcpu = Regs {
        rcx: TDVPR,
        rdx: 0x2016,
        r8: descriptor,
        r9: !0x3f,
        ..leaf(number::VP_WR)
    };
    assert_eq!(td.call(vcpu).rax, 0);
    td.enter(0, 0);
    let mut left = [0xff; 40];
    assert!(td.ram.read(descriptor, &mut left));
    assert!(left[..33].iter().all(|&byte| byte == 0) && left[34] == 0xf2);
    td.ram.put(descriptor, &[4]);
    td.enter(0, 0);
    let interrupts = td.machine.finish().guests[0].interrupts;
    assert_eq!(interrupts, 2, "nothing is taken while bit ON is clear");
}

#[test]
fn at_the_end_a_guest_starts_over_or_shuts_down() {
    let endless = td("info\nat-end loop");
    let leaves = [0; 3].map(|_| endless.enter(0, 0).r11);
    assert_eq!(leaves, [0x1_0000; 3]);
    let idle = td("stay 1\nat-end loop");
    assert_eq!(idle.enter(0, 0).r11, 12, "a guest without exits halts");
    let short = td("at-end shutdown");
    let exit = short.enter(0, 0).rax;
    assert_eq!(exit, Status::NON_RECOVERABLE_VCPU.raw() | 2);
    assert_eq!(
        short.enter(0, 0).rax >> 32,
        Status::VCPU_STATE_INCORRECT.raw() >> 32
    );
}

#[test]
fn a_removed_page_is_converted_after_its_write_back() {
    let script = "accept 0x5000\nhlt\ntouch 0x5000 write";
    for (key, blamed) in [(HKID, 0), (HKID + 1, 1)] {
        let td = td(script);
        td.aug(0x5000, PAGE);
        td.enter(0, 0);
        td.enter(0, 0);
        td.remove(0x5000);
        assert_eq!(td.machine.finish().unconverted_bytes, 4096);
        let keyed = PAGE | key << 46;
        assert_eq!(td.rax(number::PHYMEM_PAGE_WBINVD, keyed, 0, 0), 0);
        td.machine.movdir64b(AT, PAGE);
        assert_eq!(td.violations(Kind::ConvertedDirty), blamed, "KeyID {key}");
        assert_eq!(td.machine.finish().unconverted_bytes, 4096 - 64);
    }
}

#[test]
fn what_a_guest_stores_is_dirty_in_its_processors_cache() {
    for (script, blamed) in [("touch 0x5000 write", 1), ("touch 0x5000", 0)] {
        let td = td(&format!("accept 0x5000\nhlt\n{script}"));
        td.aug(0x5000, PAGE);
        td.enter(0, 0);
        td.machine.wbinvd(0);
        td.enter(0, 0);
        td.remove(0x5000);
        td.machine.movdir64b(AT, PAGE);
        assert_eq!(td.violations(Kind::ConvertedDirty), blamed, "{script}");
    }
}

#[test]
fn control_pages_are_converted_after_the_caches_of_their_key() {
    for (flush, blamed) in [(true, 0), (false, 1)] {
        let td = td("");
        assert_eq!(td.rax(number::VP_FLUSH, TDVPR, 0, 0), 0);
        assert_eq!(td.rax(number::MNG_VPFLUSHDONE, TDR, 0, 0), 0);
        if flush {
            assert_eq!(td.rax(number::PHYMEM_CACHE_WB, 0, 0, 0), 0);
            assert_eq!(td.rax(number::MNG_KEY_FREEID, TDR, 0, 0), 0);
            assert_eq!(td.rax(number::PHYMEM_PAGE_RECLAIM, TDVPR, 0, 0), 0);
        }
        td.machine.movdir64b(AT, TDVPR);
        assert_eq!(td.violations(Kind::ConvertedDirty), blamed);
    }
}

#[test]
fn memory_in_use_may_be_converted_only_if_tds_end_there() {
    let td = td("");
    td.machine.movdir64b(AT, TDVPR);
    assert_eq!(td.rax(number::PHYMEM_PAGE_RDMD, TDVPR, 0, 0), 0);
    assert_eq!(td.violations(Kind::ConvertedInUse), 0, "as before kexec");
    td.enter(0, 0);
    td.enter(0, 0);
    assert_eq!(td.violations(Kind::ConvertedInUse), 1);
}

#[test]
fn wrong_order_is_misuse_unless_a_fault_was_injected() {
    let misuse = |inject: &[&str]| {
        let inject = inject.iter().map(|rule| rule.parse().unwrap()).collect();
        let config = MachineConfig {
            inject,
            ..MachineConfig::default()
        };
        let td = Td::new("", config);
        td.aug(0x5000, PAGE);
        assert_eq!(td.rax(number::MEM_RANGE_BLOCK, 0x5000, TDR, 0), 0);
        td.rax(number::MEM_TRACK, TDR, 0, 0);
        td.rax(number::MEM_TRACK, TDR, 0, 0);
        assert_eq!(td.violations(Kind::TdMisuse), 0);
        td.aug(0x6000, PAGE + 0x1000);
        assert_eq!(td.rax(number::MEM_RANGE_BLOCK, 0x6000, TDR, 0), 0);
        assert_ne!(td.rax(number::MEM_PAGE_REMOVE, 0x6000, TDR, 0), 0);
        td.violations(Kind::TdMisuse)
    };
    assert_eq!(misuse(&[]), 1);
    assert_eq!(misuse(&["MEM.TRACK:1=OPERAND_BUSY"]), 0);
}

#[test]
fn a_td_that_is_gone_leaves_nothing() {
    let td = td("");
    td.enter(0, 0);
    let ok = |leaf, rcx| assert_eq!(td.rax(leaf, rcx, 0, 0), 0, "leaf {leaf}, {rcx:#x}");
    ok(number::VP_FLUSH, TDVPR);
    ok(number::MNG_VPFLUSHDONE, TDR);
    ok(number::PHYMEM_CACHE_WB, 0);
    ok(number::MNG_KEY_FREEID, TDR);
    let control = (1..=6).map(|n| TDR + n * 0x1000);
    let vcpu = (0..=5).map(|n| TDVPR + n * 0x1000);
    let tables = (1..=3).map(|n| TABLES + n * 0x1000);
    let pages: Vec<_> = vcpu.chain(tables).chain(control).chain([TDR]).collect();
    for page in &pages {
        ok(number::PHYMEM_PAGE_RECLAIM, *page);
    }
    assert_eq!(td.machine.finish().unconverted_bytes, 16 * 4096);
    ok(number::PHYMEM_PAGE_WBINVD, TDR | 16 << 46);
    for line in pages
        .iter()
        .flat_map(|page| (*page..page + 4096).step_by(64))
    {
        td.machine.movdir64b(AT, line);
    }
    let summary = td.machine.finish();
    assert_eq!((summary.tds_created, summary.tds_alive), (1, 0));
    assert_eq!(
        (summary.unconverted_bytes, summary.private_bytes.len()),
        (0, 1)
    );
    assert!(summary.violations.is_empty(), "{:?}", summary.violations);
}

#[test]
fn the_census_tells_used_memory_from_forgotten_memory() {
    let td = td("accept 0x5000");
    let census = td.machine.census();
    let private = &census["private"];
    assert_eq!(
        (&census["tds"], &census["unconverted"]),
        (&1.into(), &0.into())
    );
    assert_eq!(private["secure-ept"], 3 * 0x1000);
    assert_eq!(private["tdvps"], 6 * 0x1000);
    td.aug(0x5000, PAGE);
    td.enter(0, 0);
    td.remove(0x5000);
    assert_eq!(td.machine.census()["unconverted"], 0x1000);
}

#[test]
fn vcpus_of_a_td_follow_their_own_program() {
    let td = td("td 1\nfatal 1\nvcpu 0\nfatal 2");
    let exit = td.enter(0, 0);
    assert_eq!((exit.r11, exit.r12), (0x1_0003, 2));
    let status = status(call_on(&td.machine, 0, leaf(number::VP_ENTER), &td.ram));
    assert_ne!(status, 0, "no TDVPR");
}

#[test]
fn without_the_erratum_the_host_just_reuses_memory() {
    for (erratum, writes, left) in [(true, 1, 4096), (false, 0, 0)] {
        let config = MachineConfig {
            erratum,
            ..MachineConfig::default()
        };
        let td = Td::new("accept 0x5000", config);
        td.aug(0x5000, PAGE);
        td.enter(0, 0);
        td.remove(0x5000);
        td.machine.access(AT, PAGE, 8, Access::Store);
        td.machine.access(AT, TDVPR, 8, Access::Load);
        assert_eq!(td.violations(Kind::PrivateWrite), writes);
        assert_eq!(td.violations(Kind::PrivateRead), 1, "in use");
        assert_eq!(td.machine.finish().unconverted_bytes, left);
    }
}
