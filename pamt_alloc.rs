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

use crate::memlist::NodeId;
use crate::pamt::{
    Pamt,
    PamtAllocator,
    PamtMemory, //
};
use crate::range::{
    PhysAddr,
    PhysRange, //
};
use crate::reset;
use crate::store::{
    Store,
    StoreFull, //
};

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
/// `range` is memory that `alloc_contig_pages()` returned and that is not freed yet.
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

/// The page allocator, as [`crate::pamt::allocate_all`] wants it.
pub(crate) struct PageAllocator;

impl PamtAllocator for PageAllocator {
    type Memory = ContigPages;

    fn allocate(&mut self, bytes: u64, node: NodeId) -> Option<ContigPages> {
        ContigPages::new(bytes, node)
    }
}

/// PAMTs that the TDX module knows: their memory is, or may be, TDX private.
pub(crate) struct HandedPamts(KVec<Pamt<ContigPages>>);

impl HandedPamts {
    /// Notes that `pamts` now belong to the TDX module.
    pub(crate) fn new(pamts: KVec<Pamt<ContigPages>>) -> Self {
        Self(pamts)
    }

    /// The tables, one entry for each TDMR in the order of the plan.
    pub(crate) fn as_slice(&self) -> &[Pamt<ContigPages>] {
        &self.0
    }

    /// Whether `addr` lies in a PAMT. Any context, lock-free.
    pub(crate) fn contain(&self, addr: PhysAddr) -> bool {
        self.0.iter().any(|pamt| pamt.range().contains_addr(addr))
    }
}

impl Drop for HandedPamts {
    /// Flushes the caches of all CPUs and makes the memory normal before it is freed. Sleeps.
    fn drop(&mut self) {
        let flushed = reset::flush_all_cpus();
        for pamt in &self.0 {
            reset::reset(pamt.range(), &flushed);
        }
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
        assert!(chunk.range().is_aligned(crate::range::PageSize::Size4K));
        Ok(())
    }

    #[test]
    fn more_than_there_is_gives_nothing() {
        assert!(ContigPages::new(1 << 50, NodeId::new(0)).is_none());
    }
}
