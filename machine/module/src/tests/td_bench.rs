// SPDX-License-Identifier: GPL-2.0

//! A TD for tests: [`TdBench`] builds one step by step on a [`Bench`].

use super::{Bench, GB, PATTERN, regs, two_tdmrs};
use crate::leaf::number;
use crate::{GuestExit, Outcome, Regs};

/// First page of usable memory.
pub(super) const POOL: u64 = 4 * GB;
/// Where tests put TD_PARAMS.
pub(super) const PARAMS: u64 = 0x30_0000;
/// A page of the host, as source of private pages.
pub(super) const SOURCE: u64 = 0x31_0000;
/// KeyID of the TD.
pub(super) const TD_HKID: u64 = 17;

/// A bench with one TD.
pub(super) struct TdBench {
    pub(super) bench: Bench,
    pub(super) tdr: u64,
    next_page: std::cell::Cell<u64>,
}

/// TD_PARAMS that every profile accepts: 4 vCPUs, 4 levels, 1 GHz.
pub(super) fn params() -> [u8; 1024] {
    let mut bytes = [0; 1024];
    bytes[8] = 3;
    bytes[16] = 4;
    bytes[24] = 6 | 3 << 3;
    bytes[40] = 40;
    bytes
}

impl TdBench {
    /// A TD that has a KeyID and no more.
    pub(super) fn created(bench: Bench) -> Self {
        let bench = bench.ready(&two_tdmrs());
        bench.init_gigabytes(POOL, 1);
        let td = Self {
            bench,
            tdr: POOL,
            next_page: std::cell::Cell::new(POOL + 0x1000),
        };
        assert_eq!(td.rax(number::MNG_CREATE, td.tdr, TD_HKID, 0), 0);
        td
    }

    /// A TD with all keys and pages for TDCS.
    pub(super) fn with_tdcs(bench: Bench) -> Self {
        let td = Self::created(bench);
        for lp in [0, 2] {
            assert_eq!(td.bench.rax_on(lp, number::MNG_KEY_CONFIG, td.tdr, 0, 0), 0);
        }
        for _ in 0..6 {
            assert_eq!(td.rax(number::MNG_ADDCX, td.page(), td.tdr, 0), 0);
        }
        td
    }

    /// A TD whose memory can be filled.
    pub(super) fn initialized(bench: Bench) -> Self {
        let td = Self::with_tdcs(bench);
        assert_eq!(td.init(&params()), 0, "TDH.MNG.INIT");
        td
    }

    /// A TD with one vCPU, whose TDVPR is returned, that can run.
    pub(super) fn runnable(bench: Bench) -> (Self, u64) {
        let td = Self::initialized(bench);
        let tdvpr = td.vcpu();
        assert_eq!(td.rax(number::VP_INIT, tdvpr, 0, 0), 0, "TDH.VP.INIT");
        assert_eq!(td.rax(number::MR_FINALIZE, td.tdr, 0, 0), 0);
        (td, tdvpr)
    }

    /// TDH.MNG.INIT with these parameters; returns the status.
    pub(super) fn init(&self, params: &[u8]) -> u64 {
        self.bench.machine.put(PARAMS, params);
        self.rax(number::MNG_INIT, self.tdr, PARAMS, 0)
    }

    /// A vCPU with all its pages, not initialised; returns its TDVPR.
    pub(super) fn vcpu(&self) -> u64 {
        let tdvpr = self.page();
        assert_eq!(self.rax(number::VP_CREATE, tdvpr, self.tdr, 0), 0);
        for _ in 0..5 {
            assert_eq!(self.rax(number::VP_ADDCX, self.page(), tdvpr, 0), 0);
        }
        tdvpr
    }

    /// A page that was not used before.
    pub(super) fn page(&self) -> u64 {
        self.next_page.replace(self.next_page.get() + 0x1000)
    }

    /// Makes a call on LP 0; returns the status.
    pub(super) fn rax(&self, leaf: u16, rcx: u64, rdx: u64, r8: u64) -> u64 {
        self.bench.rax(leaf, rcx, rdx, r8)
    }

    /// Adds the S-EPT pages for the first 2 MB of the guest.
    pub(super) fn map_tables(&self) {
        for level in [3, 2, 1] {
            let status = self.rax(number::MEM_SEPT_ADD, level, self.tdr, self.page());
            assert_eq!(status, 0, "TDH.MEM.SEPT.ADD at level {level}");
        }
    }

    /// Maps a 4 KB page that the guest must accept; returns it.
    pub(super) fn aug(&self, gpa: u64) -> u64 {
        let page = self.page();
        assert_eq!(self.rax(number::MEM_PAGE_AUG, gpa, self.tdr, page), 0);
        page
    }

    /// TDH.VP.ENTER on a processor, which must enter the guest; returns the guest's registers.
    pub(super) fn enter(&self, lp: usize, tdvpr: u64) -> Regs {
        let mut input = regs(number::VP_ENTER, tdvpr, PATTERN, PATTERN);
        let machine = &*self.bench.machine;
        let outcome = self.bench.module.seamcall(lp, &mut input, machine);
        assert_eq!(outcome, Outcome::Entered, "{input:x?}");
        input
    }

    /// Stops the guest on a processor.
    pub(super) fn exit(&self, lp: usize, exit: &GuestExit) -> (Outcome, Regs) {
        let mut regs = Regs::default();
        let machine = &*self.bench.machine;
        let outcome = self.bench.module.guest_exit(lp, exit, &mut regs, machine);
        (outcome.expect("a guest runs there"), regs)
    }

    /// An interrupt of the host stops the guest on a processor.
    pub(super) fn interrupt(&self, lp: usize) {
        let exit = GuestExit {
            reason: 1,
            interruption: 0x8000_00f2,
            ..GuestExit::default()
        };
        let (outcome, regs) = self.exit(lp, &exit);
        assert_eq!((outcome, regs.rax), (Outcome::Returned, 1));
    }

    /// The type of a page, as TDH.PHYMEM.PAGE.RDMD says.
    pub(super) fn page_type(&self, pa: u64) -> u64 {
        let input = regs(number::PHYMEM_PAGE_RDMD, pa, 0, 0);
        self.bench.call(0, input).rcx
    }
}
