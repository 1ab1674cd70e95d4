// SPDX-License-Identifier: GPL-2.0

//! TDMRs and the physical address metadata table (PAMT) as the module keeps them.
//!
//! A configured [`Tdmr`] knows how much of its PAMT is initialised. Entries of pages that no TD
//! uses are not stored: they follow from the TDMR's reserved areas, so that terabytes cost nothing.

use std::ops::Range;

use crate::addr::{PAGE_1G, PAGE_4K};

/// Sizes of the pages that the three PAMT levels describe, 4 KB first.
pub(crate) const LEVEL_SIZE: [u64; 3] = [PAGE_4K, 1 << 21, PAGE_1G];

/// What a page is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageType {
    /// Not used by the module.
    Nda = 0,
    /// Inside a reserved area.
    Rsvd = 1,
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

    fn is_reserved(&self, pa: u64) -> bool {
        self.reserved.iter().any(|area| area.contains(&pa))
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

/// The type of the page at `pa`, or `None` if it is in no usable part of a TDMR.
pub(crate) fn page_type(tdmrs: &[Tdmr], pa: u64) -> Option<PageType> {
    let tdmr = tdmrs
        .iter()
        .find(|tdmr| (tdmr.base..tdmr.usable_end()).contains(&pa))?;
    Some(if tdmr.is_reserved(pa) {
        PageType::Rsvd
    } else {
        PageType::Nda
    })
}
