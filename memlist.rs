// SPDX-License-Identifier: GPL-2.0

//! Which memory is TDX memory: the list of regions that TDMRs will cover.
//!
//! [`MemListBuilder`] takes what memblock reports, one `(start_pfn, end_pfn, nid)` at a time,
//! leaves out the first megabyte (which firmware never offers as convertible memory) and checks
//! order. [`MemList`] is the finished list; it never changes, because the TDX module cannot be
//! told about memory later.
//!
//! Pure: `core` only, never panics; the storage is lent by the caller. Next door: `tdmr` plans
//! TDMRs over the regions, `plug` answers memory hotplug from them.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use core::fmt;

use crate::range::{
    Pfn,
    PfnRange,
    PhysAddr,
    PhysRange, //
};
use crate::store::Store;

/// Memory below this frame (1 MB) is never TDX memory.
pub const FIRST_TDX_PFN: Pfn = match PhysAddr::new(1 << 20) {
    Some(addr) => addr.frame(),
    None => Pfn::LIMIT,
};

/// A NUMA node number as the kernel counts them; -1 means no node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId(i32);

impl NodeId {
    /// Takes the kernel's node number.
    pub const fn new(raw: i32) -> Self {
        NodeId(raw)
    }

    /// The kernel's node number.
    pub const fn get(self) -> i32 {
        self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One run of TDX memory on one NUMA node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    frames: PfnRange,
    node: NodeId,
}

impl Region {
    /// The frames `frames` on node `node`.
    pub const fn new(frames: PfnRange, node: NodeId) -> Self {
        Region { frames, node }
    }

    /// The page frames of the region.
    pub const fn frames(&self) -> PfnRange {
        self.frames
    }

    /// The region as addresses.
    pub const fn bytes(&self) -> PhysRange {
        self.frames.bytes()
    }

    /// The node the memory belongs to.
    pub const fn node(&self) -> NodeId {
        self.node
    }
}

/// Why the list of TDX memory could not be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemListError {
    /// A region ends beyond the 2^52 bytes that the TDX module can address. Frame numbers.
    BeyondLimit {
        /// First frame of the region.
        start_pfn: u64,
        /// First frame after the region.
        end_pfn: u64,
    },
    /// A region starts before the previous one ends. Frame numbers.
    OutOfOrder {
        /// First frame of the region.
        start_pfn: u64,
        /// First frame after the previous region.
        previous_end_pfn: u64,
    },
    /// The caller's storage is full.
    OutOfMemory,
    /// There is no memory above the first megabyte.
    Empty,
}

impl fmt::Display for MemListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MemListError::BeyondLimit { start_pfn, end_pfn } => write!(
                f,
                "memory region of page frames [{start_pfn:#x}, {end_pfn:#x}) ends beyond {}, \
                 where TDX cannot address memory",
                PhysAddr::LIMIT
            ),
            MemListError::OutOfOrder {
                start_pfn,
                previous_end_pfn,
            } => write!(
                f,
                "memory region at page frame {start_pfn:#x} starts before the previous one \
                 ends at {previous_end_pfn:#x}"
            ),
            MemListError::OutOfMemory => f.write_str("out of memory for the list of TDX memory"),
            MemListError::Empty => f.write_str("no memory above 1 MB"),
        }
    }
}

/// Collects regions in ascending order; [`MemListBuilder::finish`] makes the list.
pub struct MemListBuilder<S> {
    store: S,
}

impl<S: Store<Region>> MemListBuilder<S> {
    /// Starts an empty list in `store`; what `store` holds is dropped.
    pub fn new(mut store: S) -> Self {
        store.clear();
        MemListBuilder { store }
    }

    /// Adds the frames `[start_pfn, end_pfn)` of node `nid`, less what lies in the first megabyte.
    ///
    /// Nothing left (or an empty range) is no error: nothing is added.
    ///
    /// # Errors
    ///
    /// [`MemListError`], but never [`MemListError::Empty`].
    pub fn add(&mut self, start_pfn: u64, end_pfn: u64, nid: i32) -> Result<(), MemListError> {
        let start_pfn = start_pfn.max(FIRST_TDX_PFN.get());
        if start_pfn >= end_pfn {
            return Ok(());
        }
        let frames = PfnRange::from_raw(start_pfn, end_pfn)
            .ok_or(MemListError::BeyondLimit { start_pfn, end_pfn })?;
        if let Some(previous) = self.store.as_slice().last() {
            let previous_end = previous.frames.end();
            if frames.start() < previous_end {
                return Err(MemListError::OutOfOrder {
                    start_pfn,
                    previous_end_pfn: previous_end.get(),
                });
            }
        }
        self.store
            .push(Region::new(frames, NodeId::new(nid)))
            .map_err(|_| MemListError::OutOfMemory)
    }

    /// Closes the list.
    ///
    /// # Errors
    ///
    /// [`MemListError::Empty`] if no region was added.
    pub fn finish(self) -> Result<MemList<S>, MemListError> {
        if self.store.as_slice().is_empty() {
            return Err(MemListError::Empty);
        }
        Ok(MemList { store: self.store })
    }
}

/// The finished, unchangeable list of TDX memory.
///
/// # Invariants
///
/// Not empty; regions ascend and are disjoint; none reaches below [`FIRST_TDX_PFN`].
pub struct MemList<S> {
    store: S,
}

impl<S: Store<Region>> MemList<S> {
    /// The regions, ascending and disjoint. Neighbours may touch (another node begins there).
    pub fn regions(&self) -> &[Region] {
        self.store.as_slice()
    }

    /// Total number of frames in the list.
    pub fn pages(&self) -> u64 {
        self.regions().iter().fold(0u64, |sum, region| {
            sum.saturating_add(region.frames.pages())
        })
    }
}

/// The lowest stretch of `frames` that lies in none of `regions` (ascending, disjoint); `None` if
/// they hold all of it.
///
/// Regions that touch count as one stretch of memory here.
pub fn first_outside(regions: &[Region], frames: PfnRange) -> Option<PfnRange> {
    let mut next = frames.start();
    for region in regions {
        let have = region.frames;
        if have.start() > next {
            return PfnRange::new(next, have.start().min(frames.end()));
        }
        next = next.max(have.end());
    }
    PfnRange::new(next, frames.end())
}

#[cfg(any(test, CONFIG_INTEL_TDX_HOST_KUNIT_TEST))]
#[cfg_attr(
    CONFIG_INTEL_TDX_HOST_KUNIT_TEST,
    kernel::macros::kunit_tests(tdx_host_memlist)
)]
mod tests {
    use super::*;
    use crate::store::SliceStore;

    fn space() -> Result<[Region; 4], MemListError> {
        let frames = PfnRange::from_raw(0, 1).ok_or(MemListError::Empty)?;
        Ok([Region::new(frames, NodeId::new(-1)); 4])
    }

    #[test]
    fn first_megabyte_is_left_out() -> Result<(), MemListError> {
        let mut space = space()?;
        let mut builder = MemListBuilder::new(SliceStore::new(&mut space));
        builder.add(1, 0x9f, 0)?;
        builder.add(0x80, 0x100, 0)?;
        builder.add(0x80, 0x1000, 3)?;
        let list = builder.finish()?;
        let expected = PfnRange::from_raw(0x100, 0x1000).map(|f| Region::new(f, NodeId::new(3)));
        assert_eq!(list.regions().len(), 1);
        assert_eq!(list.regions().first().copied(), expected);
        assert_eq!(list.pages(), 0xf00);
        Ok(())
    }

    #[test]
    fn only_low_memory_is_an_error() -> Result<(), MemListError> {
        let mut space = space()?;
        let mut builder = MemListBuilder::new(SliceStore::new(&mut space));
        builder.add(0, 0x100, 0)?;
        builder.add(0x2000, 0x2000, 0)?;
        assert_eq!(builder.finish().err(), Some(MemListError::Empty));
        Ok(())
    }

    #[test]
    fn overlap_and_disorder_are_errors() -> Result<(), MemListError> {
        let mut space = space()?;
        let mut builder = MemListBuilder::new(SliceStore::new(&mut space));
        builder.add(0x1000, 0x2000, 0)?;
        let error = Err(MemListError::OutOfOrder {
            start_pfn: 0x1fff,
            previous_end_pfn: 0x2000,
        });
        assert_eq!(builder.add(0x1fff, 0x3000, 0), error);
        assert!(builder.add(0x200, 0x300, 0).is_err());
        // What touches is fine: another node begins there.
        assert_eq!(builder.add(0x2000, 0x3000, 1), Ok(()));
        Ok(())
    }

    #[test]
    fn impossible_frames_are_an_error() -> Result<(), MemListError> {
        let mut space = space()?;
        let mut builder = MemListBuilder::new(SliceStore::new(&mut space));
        let beyond = (1 << 40) + 1;
        let error = Err(MemListError::BeyondLimit {
            start_pfn: 0x100,
            end_pfn: beyond,
        });
        assert_eq!(builder.add(0, beyond, 0), error);
        assert!(builder.add(u64::MAX - 1, u64::MAX, 0).is_err());
        Ok(())
    }

    #[test]
    fn full_storage_is_an_error() -> Result<(), MemListError> {
        let mut space = space()?;
        let mut builder = MemListBuilder::new(SliceStore::new(&mut space));
        for start in [0x100, 0x300, 0x500, 0x700] {
            builder.add(start, start + 0x100, 0)?;
        }
        assert_eq!(builder.add(0x900, 0xa00, 0), Err(MemListError::OutOfMemory));
        Ok(())
    }
}
