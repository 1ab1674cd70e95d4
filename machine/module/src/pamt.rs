// SPDX-License-Identifier: GPL-2.0

//! TDMRs and the physical address metadata table (PAMT) as the module keeps them.
//!
//! A configured [`Tdmr`] knows how much of its PAMT is initialised. [`PageMap`] holds the entries
//! ([`PageEntry`]) of pages that were used at some time; all others follow from the TDMR's reserved
//! areas, so that terabytes cost nothing.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::addr::{PAGE_1G, PAGE_4K, ranges_overlap};

/// Sizes of the pages that the three PAMT levels describe, 4 KB first.
pub(crate) const LEVEL_SIZE: [u64; 3] = [PAGE_4K, 1 << 21, PAGE_1G];

/// What a page is used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PageType {
    /// Not used by the module.
    #[default]
    Nda = 0,
    /// Inside a reserved area.
    Rsvd = 1,
    /// Private memory of a TD.
    Reg = 3,
    /// Root of a TD's control structures.
    Tdr = 4,
    /// Further page of a TD's or a vCPU's control structures.
    Tdcx = 5,
    /// First page of a vCPU's control structures.
    Tdvpr = 6,
    /// Secure EPT page.
    Ept = 8,
}

/// One entry of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PageEntry {
    pub(crate) page_type: PageType,
    /// Address of the owner's TDR; stays when the page is freed.
    pub(crate) owner: u64,
    /// TLB epoch of the TD when the page was blocked.
    pub(crate) blocked_at: u64,
}

impl PageEntry {
    /// The entry of a page that was just given to the TD `owner`.
    pub(crate) fn new(page_type: PageType, owner: u64) -> Self {
        Self {
            page_type,
            owner,
            blocked_at: 0,
        }
    }

    /// Whether the entry has an epoch: it describes a page that an S-EPT entry points to.
    pub(crate) fn has_epoch(&self) -> bool {
        matches!(self.page_type, PageType::Reg | PageType::Ept)
    }
}

/// Entries of all pages that were ever used, by level and page number in units of that size.
#[derive(Clone, Debug, Default)]
pub(crate) struct PageMap {
    entries: BTreeMap<(u8, u64), PageEntry>,
}

impl PageMap {
    /// The entry at one level; `None` if the page was never used at that level.
    fn stored(&self, level: u8, pa: u64) -> Option<PageEntry> {
        let number = pa / LEVEL_SIZE[usize::from(level)];
        self.entries.get(&(level, number)).copied()
    }

    /// The entry at one level, whatever is at the others.
    pub(crate) fn entry(&self, level: u8, pa: u64) -> PageEntry {
        self.stored(level, pa).unwrap_or_default()
    }

    /// Replaces the entry of the page of `level` that contains `pa`.
    pub(crate) fn set(&mut self, level: u8, pa: u64, entry: PageEntry) {
        let number = pa / LEVEL_SIZE[usize::from(level)];
        self.entries.insert((level, number), entry);
    }

    /// Makes a page free. Its entry keeps the owner.
    pub(crate) fn free(&mut self, level: u8, pa: u64) {
        let mut entry = self.entry(level, pa);
        entry.page_type = PageType::Nda;
        self.set(level, pa, entry);
    }

    /// Notes the epoch at which a page was blocked.
    pub(crate) fn block(&mut self, level: u8, pa: u64, epoch: u64) {
        let mut entry = self.entry(level, pa);
        entry.blocked_at = epoch;
        self.set(level, pa, entry);
    }

    /// Whether no page of 4 KB in the page of `level` at `pa` is in use.
    pub(crate) fn is_free_below(&self, level: u8, pa: u64) -> bool {
        let used = |below: u8| {
            let size = LEVEL_SIZE[usize::from(below)];
            let end = pa + LEVEL_SIZE[usize::from(level)];
            let mut entries = self.entries.range((below, pa / size)..(below, end / size));
            entries.any(|(_, entry)| entry.page_type != PageType::Nda)
        };
        !(0..level).any(used)
    }

    /// The 4 KB, 2 MB and 1 GB pages in use, as addresses.
    pub(crate) fn in_use(&self) -> impl Iterator<Item = Range<u64>> {
        let used = self.entries.iter();
        let used = used.filter(|(_, entry)| entry.page_type != PageType::Nda);
        used.map(|(&(level, number), _)| {
            let size = LEVEL_SIZE[usize::from(level)];
            number * size..(number + 1) * size
        })
    }
}

/// One configured TD memory region.
#[derive(Clone, Debug)]
pub(crate) struct Tdmr {
    pub(crate) base: u64,
    pub(crate) size: u64,
    /// Start of the PAMT areas, 4 KB level first.
    pub(crate) pamt: [u64; 3],
    /// Reserved areas as addresses, ascending.
    pub(crate) reserved: Vec<Range<u64>>,
    /// First address whose PAMT entries are not initialised.
    pub(crate) initialized: u64,
}

impl Tdmr {
    pub(crate) fn end(&self) -> u64 {
        self.base + self.size
    }

    /// End of the part whose pages may be used: whole gigabytes only.
    pub(crate) fn usable_end(&self) -> u64 {
        self.initialized & !(PAGE_1G - 1)
    }

    fn is_reserved(&self, range: &Range<u64>) -> bool {
        let mut areas = self.reserved.iter();
        areas.any(|area| ranges_overlap(area, range))
    }

    /// The PAMT lines of one level that describe `pages`, in whole lines of 64 bytes.
    ///
    /// `entry_size` is that of the level in bytes.
    pub(crate) fn pamt_lines(
        &self,
        level: usize,
        pages: Range<u64>,
        entry_size: u64,
    ) -> Range<u64> {
        let first = (pages.start - self.base) / LEVEL_SIZE[level];
        let end = (pages.end - self.base).div_ceil(LEVEL_SIZE[level]);
        let start = self.pamt[level] + first * entry_size;
        let end = self.pamt[level] + end * entry_size;
        start & !63..end.next_multiple_of(64)
    }
}

/// Where the walk through the levels of the table ended for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageWalk {
    /// 0 for a page of 4 KB, 1 for 2 MB, 2 for 1 GB.
    pub(crate) level: u8,
    pub(crate) entry: PageEntry,
}

/// Finds the entry of the page at `pa`; `None` if it is in no usable part of a TDMR.
pub(crate) fn walk(tdmrs: &[Tdmr], pages: &PageMap, pa: u64) -> Option<PageWalk> {
    let tdmr = usable_tdmr(tdmrs, pa)?;
    for level in [2, 1] {
        let entry = pages.entry(level, pa);
        if entry.page_type != PageType::Nda {
            return Some(PageWalk { level, entry });
        }
    }
    let mut entry = pages.entry(0, pa);
    if tdmr.is_reserved(&(pa..pa + 1)) {
        entry.page_type = PageType::Rsvd;
    }
    Some(PageWalk { level: 0, entry })
}

/// Whether a whole page of `level` at `pa` is free: no TD uses any of it and none of it is reserved.
pub(crate) fn is_free(tdmrs: &[Tdmr], pages: &PageMap, level: u8, pa: u64) -> bool {
    let Some(tdmr) = usable_tdmr(tdmrs, pa) else {
        return false;
    };
    let range = pa..pa + LEVEL_SIZE[usize::from(level)];
    let above = (level..3).any(|level| {
        let entry = pages.entry(level, pa);
        entry.page_type != PageType::Nda
    });
    !above && pages.is_free_below(level, pa) && !tdmr.is_reserved(&range)
}

fn usable_tdmr(tdmrs: &[Tdmr], pa: u64) -> Option<&Tdmr> {
    let usable = |tdmr: &&Tdmr| (tdmr.base..tdmr.usable_end()).contains(&pa);
    tdmrs.iter().find(usable)
}
