// SPDX-License-Identifier: GPL-2.0

//! Physical Address Metadata Tables (PAMT): how big, in which order, and where they end up.
//!
//! Every TDMR needs three tables, one for each page size. Each is contiguous; lying side by side
//! they use up at most one reserved area in each TDMR they lie in. [`PamtLayout`] alone knows
//! sizes and order, [`Pamt`] says where the tables of a TDMR are, [`PamtMemory`] is the memory that
//! holds tables of one or more TDMRs, and [`PamtAllocator`] is where it comes from.
//!
//! Pure: `core` only, never panics. Next door: `place` decides what is asked for and where it may
//! lie.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use core::fmt;

use crate::memlist::NodeId;
use crate::range::{
    PageSize,
    PhysAddr,
    PhysRange, //
};

/// Bytes of metadata the TDX module keeps per page, for each page size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PamtEntrySizes {
    /// Bytes for each 4 KB page.
    pub size_4k: u16,
    /// Bytes for each 2 MB page.
    pub size_2m: u16,
    /// Bytes for each 1 GB page.
    pub size_1g: u16,
}

impl PamtEntrySizes {
    /// Bytes for each page of `size`.
    pub const fn get(&self, size: PageSize) -> u16 {
        match size {
            PageSize::Size4K => self.size_4k,
            PageSize::Size2M => self.size_2m,
            PageSize::Size1G => self.size_1g,
        }
    }
}

/// Why the PAMTs could not be laid out or allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PamtError {
    /// The module reports that an entry of this level has no bytes: its metadata is unusable.
    ZeroEntrySize {
        /// The level in question.
        level: PageSize,
    },
    /// The allocator has no contiguous memory of the size needed.
    NoMemory {
        /// The TDMR whose tables were to be allocated.
        tdmr: PhysRange,
        /// Bytes asked for.
        bytes: u64,
        /// The node asked first.
        node: NodeId,
    },
    /// Wherever there is memory for the tables, some TDMR would need too many reserved areas.
    NoPlace {
        /// The TDMR whose tables were to be allocated.
        tdmr: PhysRange,
        /// Bytes asked for.
        bytes: u64,
        /// Reserved areas the TDX module offers for each TDMR.
        max: u16,
    },
    /// The allocator returned memory that is misaligned or of another size than asked for.
    BadMemory {
        /// The memory it returned.
        got: PhysRange,
        /// Bytes asked for.
        bytes: u64,
    },
    /// The caller's list of PAMTs is full.
    OutOfMemory,
}

impl fmt::Display for PamtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PamtError::ZeroEntrySize { level } => {
                write!(f, "the TDX module reports PAMT entries of 0 bytes for {level} pages")
            }
            PamtError::NoMemory { tdmr, bytes, node } => write!(
                f,
                "no {} KB of contiguous memory, on node {node} or any other, for the PAMT of TDMR {tdmr}",
                bytes >> 10
            ),
            PamtError::NoPlace { tdmr, bytes, max } => write!(
                f,
                "no {} KB of contiguous memory for a PAMT of TDMR {tdmr} that leave every TDMR \
                 with at most {max} reserved areas",
                bytes >> 10
            ),
            PamtError::BadMemory { got, bytes } => {
                write!(f, "asked for {bytes} bytes for PAMTs, got {got}")
            }
            PamtError::OutOfMemory => f.write_str("out of memory for the list of PAMTs"),
        }
    }
}

/// Sizes of the three tables of one TDMR and their order in one chunk: 4K, then 2M, then 1G.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PamtLayout {
    size_4k: u64,
    size_2m: u64,
    size_1g: u64,
}

impl PamtLayout {
    /// The layout for a TDMR of `tdmr` bytes: one entry per page, each table rounded up to 4 KB.
    ///
    /// # Errors
    ///
    /// [`PamtError::ZeroEntrySize`] if an entry size is 0.
    pub fn new(tdmr: PhysRange, entries: &PamtEntrySizes) -> Result<Self, PamtError> {
        let table = |level: PageSize| match entries.get(level) {
            0 => Err(PamtError::ZeroEntrySize { level }),
            entry => Ok(table_size(tdmr.size(), level, entry)),
        };
        Ok(PamtLayout {
            size_4k: table(PageSize::Size4K)?,
            size_2m: table(PageSize::Size2M)?,
            size_1g: table(PageSize::Size1G)?,
        })
    }

    /// Bytes of the table for `level`, a multiple of 4 KB.
    pub const fn size(&self, level: PageSize) -> u64 {
        match level {
            PageSize::Size4K => self.size_4k,
            PageSize::Size2M => self.size_2m,
            PageSize::Size1G => self.size_1g,
        }
    }

    /// Bytes of the whole chunk, a multiple of 4 KB.
    pub const fn total(&self) -> u64 {
        // At most 2^40 entries of less than 2^16 bytes in the biggest table: far from 2^64.
        self.size_4k
            .saturating_add(self.size_2m)
            .saturating_add(self.size_1g)
    }

    /// Bytes from the start of the chunk to the table for `level`.
    pub const fn offset(&self, level: PageSize) -> u64 {
        match level {
            PageSize::Size4K => 0,
            PageSize::Size2M => self.size_4k,
            PageSize::Size1G => self.size_4k.saturating_add(self.size_2m),
        }
    }
}

/// Bytes of one table: an entry for each page of `level` in `tdmr_bytes`, rounded up to 4 KB.
fn table_size(tdmr_bytes: u64, level: PageSize, entry: u16) -> u64 {
    let bytes = level.pages_in(tdmr_bytes).saturating_mul(u64::from(entry));
    // A TDMR has at most 2^40 pages, an entry less than 2^16 bytes: this always rounds.
    PageSize::Size4K.round_up(bytes).unwrap_or(u64::MAX)
}

/// A chunk of memory that holds PAMTs; if it comes from an allocator, dropping it gives it back.
pub trait PamtMemory {
    /// Where the memory lies.
    fn range(&self) -> PhysRange;
}

/// A place that nobody owns, for planning.
impl PamtMemory for PhysRange {
    fn range(&self) -> PhysRange {
        *self
    }
}

/// Where PAMT memory comes from.
pub trait PamtAllocator {
    /// What the allocator hands out.
    type Memory: PamtMemory;

    /// Allocates `bytes` (a multiple of 4 KB) of contiguous, 4 KB aligned memory, on `node` if
    /// possible, else on any node. `None` if there is none.
    fn allocate(&mut self, bytes: u64, node: NodeId) -> Option<Self::Memory>;

    /// Allocates the same somewhere inside `within`, which is 4 KB aligned and memory of the
    /// kernel. `None` if there is none.
    fn allocate_in(&mut self, bytes: u64, within: PhysRange) -> Option<Self::Memory>;
}

/// Where the three tables of one TDMR lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pamt {
    layout: PamtLayout,
    /// Addresses of the tables, smallest pages first.
    bases: [PhysAddr; 3],
}

impl Pamt {
    /// The tables in their order from `start` on.
    pub fn at(layout: PamtLayout, start: PhysAddr) -> Self {
        // A table beyond what can be addressed has no memory either: the chunk is checked.
        let base = |level| start.checked_add(layout.offset(level)).unwrap_or(start);
        Pamt {
            layout,
            bases: PageSize::ALL.map(base),
        }
    }

    /// The same tables in their order from `start` on.
    pub fn moved_to(&self, start: PhysAddr) -> Self {
        Pamt::at(self.layout, start)
    }

    /// Moves the table for `level` to `base`.
    pub fn move_table(&mut self, level: PageSize, base: PhysAddr) {
        for (slot, _) in self
            .bases
            .iter_mut()
            .zip(PageSize::ALL)
            .filter(|(_, size)| *size == level)
        {
            *slot = base;
        }
    }

    /// Base and size in bytes of the table for `level`, as TDMR_INFO wants them.
    pub fn table(&self, level: PageSize) -> PamtTable {
        let mut tables = self.bases.iter().zip(PageSize::ALL);
        let found = tables.find(|(_, size)| *size == level);
        PamtTable {
            base: found.map_or(PhysAddr::ZERO, |(base, _)| *base),
            size: self.layout.size(level),
        }
    }

    /// Bytes of the three tables.
    pub const fn total(&self) -> u64 {
        self.layout.total()
    }
}

/// As users know it from the kernel log: one range, or three if the tables do not touch.
impl fmt::Display for Pamt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, ..] = self.bases;
        let whole = PhysRange::from_size(first, self.total());
        if let Some(whole) = whole.filter(|_| *self == Pamt::at(self.layout, first)) {
            return whole.fmt(f);
        }
        for (level, separator) in PageSize::ALL.into_iter().zip(["", " ", " "]) {
            let PamtTable { base, size } = self.table(level);
            f.write_str(separator)?;
            match PhysRange::from_size(base, size) {
                Some(range) => range.fmt(f)?,
                None => base.fmt(f)?,
            }
        }
        Ok(())
    }
}

/// Base and size of one of the three tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PamtTable {
    /// Address of the table, a multiple of 4 KB.
    pub base: PhysAddr,
    /// Bytes, a multiple of 4 KB.
    pub size: u64,
}

/// Checks that `memory` is aligned and of `bytes` bytes.
///
/// # Errors
///
/// [`PamtError::BadMemory`]; the memory is dropped then.
pub fn checked<M: PamtMemory>(memory: M, bytes: u64) -> Result<M, PamtError> {
    let got = memory.range();
    if got.size() == bytes && got.is_aligned(PageSize::Size4K) {
        Ok(memory)
    } else {
        Err(PamtError::BadMemory { got, bytes })
    }
}

/// Total size of `pamts` in KB, the figure the kernel log has always shown.
pub fn total_kb(pamts: &[Pamt]) -> u64 {
    let bytes = pamts
        .iter()
        .fold(0u64, |sum, pamt| sum.saturating_add(pamt.total()));
    bytes >> 10
}

#[cfg(any(test, CONFIG_INTEL_TDX_HOST_KUNIT_TEST))]
#[cfg_attr(
    CONFIG_INTEL_TDX_HOST_KUNIT_TEST,
    kernel::macros::kunit_tests(tdx_host_pamt)
)]
mod tests {
    use super::*;

    const ENTRIES: PamtEntrySizes = PamtEntrySizes {
        size_4k: 16,
        size_2m: 16,
        size_1g: 16,
    };

    const GB: u64 = 1 << 30;

    fn layout_of(gbs: u64) -> Result<PamtLayout, PamtError> {
        let range = PhysRange::from_raw(0, gbs * GB).ok_or(PamtError::OutOfMemory)?;
        PamtLayout::new(range, &ENTRIES)
    }

    #[test]
    fn one_gigabyte_takes_4_mb_and_two_rounded_tables() -> Result<(), PamtError> {
        let layout = layout_of(1)?;
        assert_eq!(layout.size(PageSize::Size4K), 4 << 20);
        assert_eq!(layout.size(PageSize::Size2M), 8 << 10);
        assert_eq!(layout.size(PageSize::Size1G), 4 << 10);
        assert_eq!(layout.total(), (4 << 20) + (12 << 10));
        Ok(())
    }

    #[test]
    fn table_of_1g_pages_grows_after_256_gb() -> Result<(), PamtError> {
        assert_eq!(layout_of(256)?.size(PageSize::Size1G), 4 << 10);
        assert_eq!(layout_of(257)?.size(PageSize::Size1G), 8 << 10);
        Ok(())
    }

    #[test]
    fn tables_follow_each_other_in_the_chunk() -> Result<(), PamtError> {
        let layout = layout_of(3)?;
        let base = PhysAddr::new(7 << 12).ok_or(PamtError::OutOfMemory)?;
        let mut pamt = Pamt::at(layout, base);
        let mut next = base.get();
        for table in PageSize::ALL.map(|level| pamt.table(level)) {
            assert_eq!(table.base.get(), next);
            next += table.size;
        }
        assert_eq!(next, base.get() + pamt.total());
        let middle = pamt.table(PageSize::Size2M);
        pamt.move_table(PageSize::Size2M, PhysAddr::ZERO);
        let moved = PageSize::ALL.map(|level| pamt.table(level).base.get());
        assert_eq!(moved, [base.get(), 0, middle.base.get() + middle.size]);
        Ok(())
    }

    #[test]
    fn biggest_entries_and_biggest_tdmr_do_not_overflow() -> Result<(), PamtError> {
        let entries = PamtEntrySizes {
            size_4k: u16::MAX,
            size_2m: u16::MAX,
            size_1g: u16::MAX,
        };
        let all = PhysRange::new(PhysAddr::ZERO, PhysAddr::LIMIT).ok_or(PamtError::OutOfMemory)?;
        let layout = PamtLayout::new(all, &entries)?;
        assert_eq!(layout.size(PageSize::Size4K), 65_535 << 40);
        assert_eq!(
            layout.total(),
            (65_535 << 40) + (65_535 << 31) + (65_535 << 22)
        );
        Ok(())
    }

    #[test]
    fn entries_without_bytes_are_an_error() -> Result<(), PamtError> {
        let entries = PamtEntrySizes {
            size_2m: 0,
            ..ENTRIES
        };
        let level = PageSize::Size2M;
        let range = PhysRange::from_raw(0, GB).ok_or(PamtError::OutOfMemory)?;
        assert_eq!(
            PamtLayout::new(range, &entries),
            Err(PamtError::ZeroEntrySize { level })
        );
        Ok(())
    }

    #[test]
    fn memory_of_the_wrong_kind_is_refused() -> Result<(), PamtError> {
        let bytes = layout_of(1)?.total();
        let chunk = |start, end| PhysRange::from_raw(start, end).ok_or(PamtError::OutOfMemory);
        assert!(checked(chunk(4096, 4096 + bytes)?, bytes).is_ok());
        assert!(checked(chunk(4096, bytes)?, bytes).is_err());
        assert!(checked(chunk(4096, 8192 + bytes)?, bytes).is_err());
        assert!(checked(chunk(64, 64 + bytes)?, bytes).is_err());
        Ok(())
    }

    #[test]
    fn total_is_in_kb() -> Result<(), PamtError> {
        let pamts = [2, 126].map(layout_of);
        let [small, large] = pamts;
        let at = |layout| Pamt::at(layout, PhysAddr::ZERO);
        // 128 GB at 4104 KB each, and two tables of a page for the 1 GB pages.
        assert_eq!(total_kb(&[at(small?), at(large?)]), 128 * 4104 + 8);
        Ok(())
    }
}
