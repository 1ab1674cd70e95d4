// SPDX-License-Identifier: GPL-2.0

//! Memory for PAMTs: contiguous pages from the page allocator, and who owns them when.
//!
//! [`ContigPages`] is one chunk, freed when dropped. Once TDH.SYS.CONFIG has accepted the chunks
//! they become [`HandedPamts`]: the TDX module may have written them with its own key, so dropping
//! those first flushes all caches and makes the memory normal again.
//!
//! C it replaces: the PAMT functions of `arch/x86/virt/vmx/tdx/tdx.c`.

use kernel::alloc::flags::GFP_KERNEL;
use kernel::bindings;
use kernel::page::PAGE_SHIFT;
use kernel::prelude::*;
use kernel::sync::atomic::{
    Acquire,
    Atomic,
    Relaxed,
    Release, //
};

use crate::kexec::NothingElseRuns;
use crate::memlist::NodeId;
use crate::pamt::{
    Pamt,
    PamtAllocator,
    PamtMemory, //
};
use crate::place::Plan;
use crate::range::{
    PageSize,
    PhysAddr,
    PhysRange, //
};
use crate::reset;
use crate::store::{
    Store,
    StoreFull, //
};
use crate::tdmr::Tdmr;

/// The kernel's growing vector as storage for the pure files. Allocates with `GFP_KERNEL`.
impl<T> Store<T> for KVec<T> {
    fn push(&mut self, value: T) -> Result<(), StoreFull> {
        KVec::push(self, value, GFP_KERNEL).map_err(|_| StoreFull)
    }

    fn as_slice(&self) -> &[T] {
        self
    }

    fn as_mut_slice(&mut self) -> &mut [T] {
        self
    }

    fn truncate(&mut self, len: usize) {
        KVec::truncate(self, len);
    }

    fn clear(&mut self) {
        KVec::clear(self);
    }
}

/// Physically contiguous pages.
///
/// # Invariants
///
/// `range` is memory that `alloc_contig_pages()` or `alloc_contig_range()` gave and that is not freed
/// yet.
pub(crate) struct ContigPages {
    range: PhysRange,
}

impl ContigPages {
    /// Allocates `bytes` (a multiple of 4 KB), on `node` if possible. Task context, sleeps.
    fn new(bytes: u64, node: NodeId) -> Option<Self> {
        let pages = usize::try_from(bytes >> PAGE_SHIFT).ok()?;
        // SAFETY: Has no requirements; `page` is null if there is no memory.
        let page = unsafe { bindings::tdx_glue_alloc_contig(pages, node.get()) };
        if page.is_null() {
            return None;
        }
        // SAFETY: `page` was just returned by the page allocator.
        let pfn = unsafe { bindings::tdx_glue_page_to_pfn(page) };
        let start = PhysAddr::new((pfn as u64) << PAGE_SHIFT);
        let Some(range) = start.and_then(|start| PhysRange::from_size(start, bytes)) else {
            // SAFETY: The pages were just allocated and nobody has seen them.
            unsafe { bindings::free_contig_range(pfn, pages) };
            return None;
        };
        // INVARIANT: `range` is what was allocated.
        Some(Self { range })
    }

    /// Allocates just `range`, which is memory of the kernel. Task context, sleeps.
    fn at(range: PhysRange) -> Option<Self> {
        let start = range.start().frame().get() as usize;
        let end = range.end().frame().get() as usize;
        // `alloc_contig_range()` wants pages of one zone.
        // SAFETY: Memory of the kernel has page structures; it cannot go offline during bring-up,
        // which holds the lock of memory hotplug.
        if !unsafe { bindings::tdx_glue_same_zone(start, end.saturating_sub(1)) } {
            return None;
        }
        // SAFETY: As above.
        let failed = unsafe { bindings::tdx_glue_alloc_contig_range(start, end) };
        // INVARIANT: `range` is what was allocated. (Not `then_some()`: it would make and drop the
        // value, which frees the pages, where nothing was allocated.)
        (failed == 0).then(|| Self { range })
    }
}

impl Drop for ContigPages {
    fn drop(&mut self) {
        let pfn = self.range.start().get() >> PAGE_SHIFT;
        let pages = self.range.size() >> PAGE_SHIFT;
        // SAFETY: By the type invariant the pages are ours and were allocated as one range.
        unsafe { bindings::free_contig_range(pfn as usize, pages as usize) };
    }
}

impl PamtMemory for ContigPages {
    fn range(&self) -> PhysRange {
        self.range
    }
}

/// Most places in a stretch of memory at which memory is asked for. Beyond that the machine is so
/// full that it does not help.
const MAX_PLACES: u64 = 4096;

/// The page allocator, as [`crate::place::place`] wants it. Its owner holds the lock of memory
/// hotplug.
pub(crate) struct PageAllocator;

impl PamtAllocator for PageAllocator {
    type Memory = ContigPages;

    fn allocate(&mut self, bytes: u64, node: NodeId) -> Option<ContigPages> {
        ContigPages::new(bytes, node)
    }

    fn allocate_in(&mut self, bytes: u64, within: PhysRange) -> Option<ContigPages> {
        let slack = within.size().checked_sub(bytes)?;
        let step = bytes.max(slack / MAX_PLACES).max(1);
        let step = PageSize::Size4K.round_up(step)?;
        let mut offset = 0;
        while offset <= slack {
            let start = within.start().checked_add(offset)?;
            if let Some(memory) = ContigPages::at(PhysRange::from_size(start, bytes)?) {
                return Some(memory);
            }
            offset = offset.checked_add(step)?;
        }
        None
    }
}

/// A plan in the kernel's own lists.
pub(crate) type TdxPlan = Plan<KVec<Tdmr>, KVec<Pamt>, KVec<ContigPages>>;

/// PAMTs that the TDX module knows: their memory is, or may be, TDX private.
///
/// # Invariants
///
/// While a value exists, [`HANDED`] and [`HANDED_LEN`] describe its list, which does not change.
pub(crate) struct HandedPamts(KVec<ContigPages>);

/// The list of the one [`HandedPamts`], for a crash at any time: bring-up included.
static HANDED: Atomic<usize> = Atomic::new(0);

/// Its length, 0 while there is none.
static HANDED_LEN: Atomic<usize> = Atomic::new(0);

/// All PAMT memory that the TDX module knows. Any context, lock-free.
///
/// Bring-up may fail and take the list away: for those who run while nothing else does.
pub(crate) fn handed(_alone: &NothingElseRuns<'_>) -> impl Iterator<Item = PhysRange> + Clone {
    let len = HANDED_LEN.load(Acquire);
    let first = HANDED.load(Relaxed) as *const ContigPages;
    let chunks = if len == 0 {
        &[]
    } else {
        // SAFETY: By the invariant of `HandedPamts` this is its list. It cannot be dropped
        // meanwhile, since nothing else runs.
        unsafe { core::slice::from_raw_parts(first, len) }
    };
    chunks.iter().map(|chunk| chunk.range)
}

impl HandedPamts {
    /// Notes that the PAMTs in `chunks` now belong to the TDX module. Once at a time.
    pub(crate) fn new(chunks: KVec<ContigPages>) -> Self {
        HANDED.store(chunks.as_ptr() as usize, Relaxed);
        HANDED_LEN.store(chunks.len(), Release);
        // INVARIANT: The two were just set, and nothing here changes the list.
        Self(chunks)
    }

    /// Whether `addr` lies in a PAMT. Any context, lock-free.
    pub(crate) fn contain(&self, addr: PhysAddr) -> bool {
        self.0.iter().any(|chunk| chunk.range().contains_addr(addr))
    }
}

impl Drop for HandedPamts {
    /// Flushes the caches of all CPUs and makes the memory normal before it is freed. Sleeps.
    fn drop(&mut self) {
        let flushed = reset::flush_all_cpus();
        for chunk in &self.0 {
            reset::reset(chunk.range(), &flushed);
        }
        HANDED_LEN.store(0, Release);
    }
}

#[cfg(CONFIG_INTEL_TDX_HOST_KUNIT_TEST)]
#[kernel::macros::kunit_tests(tdx_host_pamt_alloc)]
mod tests {
    use super::*;

    #[test]
    fn chunk_is_aligned_and_as_long_as_asked() -> Result {
        let bytes = 4 << 20;
        let chunk = ContigPages::new(bytes, NodeId::new(0)).ok_or(ENOMEM)?;
        assert_eq!(chunk.range().size(), bytes);
        assert!(chunk.range().is_aligned(PageSize::Size4K));
        Ok(())
    }

    #[test]
    fn chunk_can_be_had_where_it_was() -> Result {
        let bytes = 4 << 20;
        let range = ContigPages::new(bytes, NodeId::new(0))
            .ok_or(ENOMEM)?
            .range();
        let again = PageAllocator.allocate_in(bytes, range).ok_or(ENOMEM)?;
        assert_eq!(again.range(), range);
        // It is taken now, and asking for it does not free it.
        assert!(PageAllocator.allocate_in(bytes, range).is_none());
        assert!(PageAllocator.allocate_in(bytes, range).is_none());
        assert!(PageAllocator.allocate_in(2 * bytes, range).is_none());
        Ok(())
    }

    #[test]
    fn more_than_there_is_gives_nothing() {
        assert!(ContigPages::new(1 << 50, NodeId::new(0)).is_none());
    }
}
