// SPDX-License-Identifier: GPL-2.0

//! Everything the module remembers between calls: [`State`] and its parts.
//!
//! One mutex in [`Module`](crate::Module) protects it. It is held for moments only and never while
//! the platform is called; what keeps two leaves apart are the module's own locks in `locks.rs`.

use std::collections::BTreeMap;

use crate::addr::KeyLayout;
use crate::locks::LockTable;
use crate::pamt::{self, PageMap, PageWalk, Tdmr};
use crate::snapshot::Snapshot;
use crate::td::Td;
use crate::vcpu::{GuestRun, Vcpu};

/// Stage of the module's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SysState {
    #[default]
    InitPending,
    InitDone,
    ConfigDone,
    Ready,
    Shutdown,
    /// TDH.SYS.DISABLE has begun and is not finished.
    Disabling,
}

/// One logical processor.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lp {
    /// TDH.SYS.LP.INIT succeeded here.
    pub(crate) initialized: bool,
    /// The processor executes the module, or a guest that the module entered.
    pub(crate) in_seam: bool,
    /// Where it is; known since TDH.SYS.LP.INIT.
    pub(crate) package: usize,
    /// The guest that runs here now.
    pub(crate) guest: Option<GuestRun>,
}

/// Who owns a private KeyID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum KeyOwner {
    /// Nobody.
    #[default]
    Free,
    /// A TD.
    Assigned,
    /// The TD that used it is gone; bit n is set while package n may still hold dirty lines.
    Flushed(u32),
    /// The module itself.
    Reserved,
}

/// Progress of TDH.PHYMEM.CACHE.WB on one package.
#[derive(Clone, Debug, Default)]
pub(crate) struct WriteBack {
    /// Sub-block to go on with after an interruption.
    pub(crate) resume_at: Option<u64>,
    /// KeyIDs that were flushed when the operation started.
    pub(crate) snapshot: Vec<u16>,
}

/// Tables that survive an update of the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tables {
    /// Key ownership; KeyIDs that are missing are free.
    pub(crate) kot: BTreeMap<u16, KeyOwner>,
    /// Write-back progress per package.
    pub(crate) write_back: BTreeMap<usize, WriteBack>,
    /// The configured TDMRs and what is initialised of them.
    pub(crate) tdmrs: Vec<Tdmr>,
    /// What the pages in them are used for.
    pub(crate) pages: PageMap,
    /// TDs by the address of their TDR.
    pub(crate) tds: BTreeMap<u64, Td>,
    /// vCPUs by the address of their TDVPR.
    pub(crate) vcpus: BTreeMap<u64, Vcpu>,
    /// The KeyID of the module's own data.
    pub(crate) global_hkid: u16,
    /// Packages on which the global key is configured, one bit each.
    pub(crate) packages_configured: u32,
}

impl Tables {
    /// The TD with this TDR; one that was just created if there is none.
    pub(crate) fn td(&mut self, tdr: u64) -> &mut Td {
        self.tds.entry(tdr).or_default()
    }

    /// The vCPU with this TDVPR; one that was just created if there is none.
    pub(crate) fn vcpu(&mut self, tdvpr: u64) -> &mut Vcpu {
        self.vcpus.entry(tdvpr).or_default()
    }

    /// The PAMT entry for an address; `None` if it is in no usable part of a TDMR.
    pub(crate) fn page(&self, pa: u64) -> Option<PageWalk> {
        pamt::walk(&self.tdmrs, &self.pages, pa)
    }
}

/// What TDH.SYS.SHUTDOWN leaves in memory for the next module.
#[derive(Clone, Debug)]
pub(crate) struct Handoff {
    /// Version of the format.
    pub(crate) version: u16,
    pub(crate) tables: Tables,
}

/// The module's memory.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) sys: SysState,
    pub(crate) locks: LockTable,
    pub(crate) lps: Vec<Lp>,
    pub(crate) keys: KeyLayout,
    /// What the processors looked like at TDH.SYS.INIT.
    pub(crate) snapshot: Snapshot,
    pub(crate) tables: Tables,
    /// What TDH.SYS.SHUTDOWN leaves for the next module.
    pub(crate) handoff: Option<Handoff>,
}

impl State {
    /// The record of a processor, made at its first use.
    pub(crate) fn lp(&mut self, lp: usize) -> &mut Lp {
        if self.lps.len() <= lp {
            self.lps.resize(lp + 1, Lp::default());
        }
        &mut self.lps[lp]
    }

    /// Number of processors that have run TDH.SYS.LP.INIT.
    pub(crate) fn initialized_lps(&self) -> usize {
        self.lps.iter().filter(|lp| lp.initialized).count()
    }

    /// Bit n is set if some initialised processor belongs to package n.
    pub(crate) fn initialized_packages(&self) -> u32 {
        let initialized = self.lps.iter().filter(|lp| lp.initialized);
        initialized.fold(0, |bits, lp| bits | 1 << lp.package)
    }

    /// Whether any processor but `lp` is inside the module or a guest.
    pub(crate) fn others_in_seam(&self, lp: usize) -> bool {
        self.lps
            .iter()
            .enumerate()
            .any(|(other, record)| other != lp && record.in_seam)
    }
}
