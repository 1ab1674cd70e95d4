// SPDX-License-Identifier: GPL-2.0

//! Physical Address Metadata Tables (PAMT): how big, in which order, and where they end up.
//!
//! Every TDMR needs three tables, one for each page size. They are allocated as one contiguous
//! chunk, so that they use up at most one reserved area in each TDMR they lie in.
//! [`PamtLayout`] alone knows sizes and order inside the chunk; [`Pamt`] joins a layout with the
//! memory that holds it; [`allocate_all`] does it for a whole plan through [`PamtAllocator`].
//!
//! Pure: `core` only, never panics. Next door: `tdmr` plans the TDMRs, then reserves where the
//! PAMTs landed.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use core::fmt;

use crate::memlist::NodeId;
use crate::range::{
    PageSize,
    PhysAddr,
    PhysRange, //
};
use crate::store::Store;
use crate::tdmr::Tdmr;

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

/// A chunk of memory that the allocator handed out; dropping it gives it back.
pub trait PamtMemory {
    /// Where the memory lies.
    fn range(&self) -> PhysRange;
}

/// Where PAMT memory comes from.
pub trait PamtAllocator {
    /// What the allocator hands out.
    type Memory: PamtMemory;

    /// Allocates `bytes` (a multiple of 4 KB) of contiguous, 4 KB aligned memory, on `node` if
    /// possible, else on any node. `None` if there is none.
    fn allocate(&mut self, bytes: u64, node: NodeId) -> Option<Self::Memory>;
}

/// The tables of one TDMR and the memory that holds them.
///
/// # Invariants
///
/// The memory is 4 KB aligned and exactly as long as the layout asks.
#[derive(Debug)]
pub struct Pamt<M> {
    layout: PamtLayout,
    memory: M,
}

impl<M: PamtMemory> Pamt<M> {
    /// Joins `layout` and `memory`.
    ///
    /// # Errors
    ///
    /// [`PamtError::BadMemory`] if the memory is misaligned or not exactly as long as needed; it
    /// is dropped then.
    pub fn new(layout: PamtLayout, memory: M) -> Result<Self, PamtError> {
        let got = memory.range();
        let bytes = layout.total();
        if got.size() != bytes || !got.is_aligned(PageSize::Size4K) {
            return Err(PamtError::BadMemory { got, bytes });
        }
        Ok(Pamt { layout, memory })
    }

    /// Where the whole chunk lies.
    pub fn range(&self) -> PhysRange {
        self.memory.range()
    }

    /// Base and size in bytes of the table for `level`, as TDMR_INFO wants them.
    pub fn table(&self, level: PageSize) -> PamtTable {
        // By the invariant the offset stays inside the chunk, so the sum cannot fail.
        let base = self.range().start();
        PamtTable {
            base: base.checked_add(self.layout.offset(level)).unwrap_or(base),
            size: self.layout.size(level),
        }
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

/// Allocates the PAMT of each of `tdmrs` and appends it to `out`, in the same order.
///
/// # Errors
///
/// [`PamtError`]; `out` then holds what has been allocated so far, and dropping it frees that.
pub fn allocate_all<A, S>(
    tdmrs: &[Tdmr],
    entries: &PamtEntrySizes,
    allocator: &mut A,
    out: &mut S,
) -> Result<(), PamtError>
where
    A: PamtAllocator,
    S: Store<Pamt<A::Memory>>,
{
    for tdmr in tdmrs {
        let layout = PamtLayout::new(tdmr.range(), entries)?;
        let bytes = layout.total();
        let memory = allocator
            .allocate(bytes, tdmr.node())
            .ok_or(PamtError::NoMemory {
                tdmr: tdmr.range(),
                bytes,
                node: tdmr.node(),
            })?;
        out.push(Pamt::new(layout, memory)?)
            .map_err(|_| PamtError::OutOfMemory)?;
    }
    Ok(())
}

/// Total size of `pamts` in KB, the figure the kernel log has always shown.
pub fn total_kb<M: PamtMemory>(pamts: &[Pamt<M>]) -> u64 {
    let bytes = pamts
        .iter()
        .fold(0u64, |sum, pamt| sum.saturating_add(pamt.layout.total()));
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

    /// Memory that remembers where it is.
    #[derive(Clone, Copy)]
    struct Chunk(PhysRange);

    impl PamtMemory for Chunk {
        fn range(&self) -> PhysRange {
            self.0
        }
    }

    /// Hands out memory upwards from `next`, at most `left` times.
    struct Upwards {
        next: u64,
        left: usize,
    }

    impl PamtAllocator for Upwards {
        type Memory = Chunk;

        fn allocate(&mut self, bytes: u64, _node: NodeId) -> Option<Chunk> {
            self.left = self.left.checked_sub(1)?;
            let end = self.next.checked_add(bytes)?;
            let chunk = PhysRange::from_raw(self.next, end).map(Chunk);
            self.next = end;
            chunk
        }
    }

    fn layout_of(gbs: u64) -> Result<PamtLayout, PamtError> {
        let range = PhysRange::from_raw(0, gbs * GB).ok_or(PamtError::OutOfMemory)?;
        PamtLayout::new(range, &ENTRIES)
    }

    fn tdmr(first_gb: u64, end_gb: u64) -> Result<Tdmr, PamtError> {
        PhysRange::from_raw(first_gb * GB, end_gb * GB)
            .and_then(|range| Tdmr::new(range, NodeId::new(0)))
            .ok_or(PamtError::OutOfMemory)
    }

    fn chunk(start: u64, end: u64) -> Result<Chunk, PamtError> {
        PhysRange::from_raw(start, end)
            .map(Chunk)
            .ok_or(PamtError::OutOfMemory)
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
        let base = 7 << 12;
        let pamt = Pamt::new(layout, chunk(base, base + layout.total())?)?;
        let tables = PageSize::ALL.map(|level| pamt.table(level));
        let mut next = base;
        for table in tables {
            assert_eq!(table.base.get(), next);
            next += table.size;
        }
        assert_eq!(next, pamt.range().end().get());
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
        assert_eq!(
            PamtLayout::new(tdmr(0, 1)?.range(), &entries),
            Err(PamtError::ZeroEntrySize { level })
        );
        Ok(())
    }

    #[test]
    fn memory_of_the_wrong_kind_is_refused() -> Result<(), PamtError> {
        let layout = layout_of(1)?;
        assert!(Pamt::new(layout, chunk(4096, 4096 + layout.total())?).is_ok());
        assert!(Pamt::new(layout, chunk(4096, 4096 + layout.total() - 4096)?).is_err());
        assert!(Pamt::new(layout, chunk(4096, 4096 + layout.total() + 4096)?).is_err());
        assert!(Pamt::new(layout, chunk(64, 64 + layout.total())?).is_err());
        Ok(())
    }

    #[test]
    fn every_tdmr_gets_its_pamt_and_the_total_is_in_kb() -> Result<(), PamtError> {
        let tdmrs = [tdmr(0, 2)?, tdmr(4, 130)?];
        let placeholder = || Pamt::new(layout_of(1)?, chunk(0, layout_of(1)?.total())?);
        let mut space: [Pamt<Chunk>; 2] = [placeholder()?, placeholder()?];
        let mut pamts = crate::store::SliceStore::new(&mut space);
        let mut allocator = Upwards { next: GB, left: 2 };
        allocate_all(&tdmrs, &ENTRIES, &mut allocator, &mut pamts)?;
        let pamts = pamts.as_slice();
        assert_eq!(pamts.len(), 2);
        // 128 GB at 4104 KB each, and two tables of a page for the 1 GB pages.
        assert_eq!(total_kb(pamts), 128 * 4104 + 8);
        Ok(())
    }

    #[test]
    fn no_memory_names_tdmr_and_size() -> Result<(), PamtError> {
        let tdmrs = [tdmr(0, 2)?, tdmr(4, 5)?];
        let mut space: [Pamt<Chunk>; 1] =
            [Pamt::new(layout_of(1)?, chunk(0, layout_of(1)?.total())?)?];
        let mut pamts = crate::store::SliceStore::new(&mut space);
        let mut allocator = Upwards { next: GB, left: 1 };
        let second = tdmrs[1];
        assert_eq!(
            allocate_all(&tdmrs, &ENTRIES, &mut allocator, &mut pamts),
            Err(PamtError::NoMemory {
                tdmr: second.range(),
                bytes: (4 << 20) + (12 << 10),
                node: second.node(),
            })
        );
        assert_eq!(pamts.as_slice().len(), 1);
        Ok(())
    }
}
