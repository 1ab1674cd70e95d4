// SPDX-License-Identifier: GPL-2.0

//! What the kernel does around the pure files, done in user space: storage, PAMT memory, and the
//! way from a memory map to the operands of TDH.SYS.CONFIG.

use core::fmt;
use std::vec;
use std::vec::Vec;

use crate::abi::TdmrInfo;
use crate::interval::{
    interval,
    Interval, //
};
use crate::memlist::{
    MemList,
    MemListBuilder,
    MemListError,
    NodeId,
    Region, //
};
use crate::pamt::{
    self,
    Pamt,
    PamtAllocator,
    PamtEntrySizes,
    PamtError,
    PamtMemory, //
};
use crate::range::PhysRange;
use crate::store::{
    Store,
    StoreFull, //
};
use crate::tdmr::{
    self,
    Limits,
    PlanError,
    Tdmr, //
};

/// A [`Store`] that grows, and fails beyond `room` elements as the kernel's does without memory.
#[derive(Debug)]
pub struct VecStore<T> {
    list: Vec<T>,
    room: usize,
}

impl<T> VecStore<T> {
    /// A store that never fails.
    pub fn new() -> Self {
        Self::with_room(usize::MAX)
    }

    /// A store for at most `room` elements.
    pub fn with_room(room: usize) -> Self {
        VecStore {
            list: Vec::new(),
            room,
        }
    }
}

impl<T> Default for VecStore<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Store<T> for VecStore<T> {
    fn push(&mut self, value: T) -> Result<(), StoreFull> {
        if self.list.len() == self.room {
            return Err(StoreFull);
        }
        self.list.push(value);
        Ok(())
    }

    fn as_slice(&self) -> &[T] {
        &self.list
    }

    fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.list
    }

    fn truncate(&mut self, len: usize) {
        self.list.truncate(len);
    }

    fn clear(&mut self) {
        self.list.clear();
    }
}

/// Memory for PAMTs that exists only as a number.
#[derive(Clone, Copy, Debug)]
pub struct Chunk(PhysRange);

impl PamtMemory for Chunk {
    fn range(&self) -> PhysRange {
        self.0
    }
}

/// An allocator that places each chunk somewhere in free memory, as a list of numbers says.
///
/// Neighbouring regions count as one stretch; the node is only noted.
#[derive(Debug)]
pub struct Placer<'a> {
    /// Memory that is still free.
    free: Vec<Interval>,
    /// Where to put the next chunks: a number picks one of the possible places.
    picks: core::iter::Cycle<core::slice::Iter<'a, u64>>,
    /// The nodes asked for, in order.
    pub nodes: Vec<NodeId>,
}

impl<'a> Placer<'a> {
    /// All of `memory` is free; `picks` must not be empty.
    pub fn new(memory: &[Interval], picks: &'a [u64]) -> Self {
        let mut free: Vec<Interval> = Vec::new();
        for &region in memory {
            match free.last_mut() {
                Some(last) if last.end == region.start => last.end = region.end,
                _ => free.push(region),
            }
        }
        Placer {
            free,
            picks: picks.iter().cycle(),
            nodes: Vec::new(),
        }
    }
}

impl PamtAllocator for Placer<'_> {
    type Memory = Chunk;

    fn allocate(&mut self, bytes: u64, node: NodeId) -> Option<Chunk> {
        self.nodes.push(node);
        let pick = *self.picks.next()?;
        let fits: Vec<usize> = (0..self.free.len())
            .filter(|&index| self.free[index].size() >= bytes)
            .collect();
        let chosen = *fits.get(pick as usize % fits.len().max(1))?;
        let room = self.free[chosen];
        // The ends of a stretch are where mistakes live: pick them more often than chance would.
        let slack = (room.size() - bytes) / 4096;
        let page = match pick >> 60 {
            0..=3 => 0,
            4..=7 => slack,
            _ => (pick >> 8) % (slack + 1),
        };
        let start = room.start + page * 4096;
        let taken = interval(start, start + bytes);
        let rest = room.without(&[taken]);
        self.free.splice(chosen..=chosen, rest);
        PhysRange::from_raw(taken.start, taken.end).map(Chunk)
    }
}

/// Why there is no configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The list of memory could not be built.
    MemList(MemListError),
    /// No plan of TDMRs or reserved areas.
    Plan(PlanError),
    /// No PAMTs.
    Pamt(PamtError),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::MemList(error) => error.fmt(f),
            ConfigError::Plan(error) => error.fmt(f),
            ConfigError::Pamt(error) => error.fmt(f),
        }
    }
}

/// All that TDH.SYS.CONFIG is told, and what it was made from.
#[derive(Debug)]
pub struct Config {
    /// The plan.
    pub tdmrs: Vec<Tdmr>,
    /// Where the PAMTs lie.
    pub pamts: Vec<Interval>,
    /// Total size of the PAMTs in KB.
    pub pamt_kb: u64,
    /// Reserved areas of each TDMR.
    pub reserved: Vec<Vec<Interval>>,
    /// The TDMR_INFO structures, as words.
    pub infos: Vec<Vec<u64>>,
}

/// The list of TDX memory from `(start_pfn, end_pfn, nid)` triples.
///
/// # Errors
///
/// [`MemListError`].
pub fn mem_list(triples: &[(u64, u64, i32)]) -> Result<MemList<VecStore<Region>>, MemListError> {
    let mut builder = MemListBuilder::new(VecStore::new());
    for &(start, end, nid) in triples {
        builder.add(start, end, nid)?;
    }
    builder.finish()
}

/// From memory to the operands of TDH.SYS.CONFIG, as the kernel does it.
///
/// # Errors
///
/// [`ConfigError`].
pub fn configure(
    triples: &[(u64, u64, i32)],
    limits: &Limits,
    entries: &PamtEntrySizes,
    allocator: &mut Placer<'_>,
) -> Result<Config, ConfigError> {
    let list = mem_list(triples).map_err(ConfigError::MemList)?;
    let mut tdmrs = VecStore::new();
    tdmr::plan(list.regions(), limits, &mut tdmrs).map_err(ConfigError::Plan)?;
    let mut pamts = VecStore::new();
    pamt::allocate_all(tdmrs.as_slice(), entries, allocator, &mut pamts)
        .map_err(ConfigError::Pamt)?;
    let chunks = pamts.as_slice().iter().map(Pamt::range);

    let mut reserved = Vec::new();
    let mut infos = Vec::new();
    let mut areas = VecStore::new();
    for (tdmr, pamt) in tdmrs.as_slice().iter().zip(pamts.as_slice()) {
        tdmr::reserve(list.regions(), tdmr, chunks.clone(), limits, &mut areas)
            .map_err(ConfigError::Plan)?;
        let mut slot = vec![!0; TdmrInfo::slot_bytes(limits.max_reserved) / 8];
        TdmrInfo::new(tdmr, pamt)
            .write(areas.as_slice(), &mut slot)
            .expect("what was planned fits the structure");
        infos.push(slot);
        reserved.push(areas.as_slice().iter().map(plain).collect());
    }
    Ok(Config {
        pamts: chunks.map(|chunk| plain(&chunk)).collect(),
        pamt_kb: pamt::total_kb(pamts.as_slice()),
        tdmrs: tdmrs.list,
        reserved,
        infos,
    })
}

/// A range as plain numbers.
pub fn plain(range: &PhysRange) -> Interval {
    interval(range.start().get(), range.end().get())
}
