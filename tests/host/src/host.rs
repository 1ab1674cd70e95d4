// SPDX-License-Identifier: GPL-2.0

//! What the kernel does around the pure files, done in user space: storage, PAMT memory, and the
//! way from a memory map to the operands of TDH.SYS.CONFIG.

use core::cell::RefCell;
use core::fmt;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

use crate::abi::TdmrInfo;
use crate::holes::Memory;
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
    PamtMemory, //
};
use crate::place::{
    self,
    PlaceError,
    Plan,
    Task, //
};
use crate::range::{
    PageSize,
    PfnRange,
    PhysRange, //
};
use crate::store::{
    Store,
    StoreFull, //
};
use crate::tdmr::{
    self,
    Goal,
    Limits,
    PlanError,
    Scratch,
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

/// Memory for PAMTs that exists only as a number; dropping it gives it back.
#[derive(Debug)]
pub struct Chunk {
    range: PhysRange,
    /// Where it goes back to.
    free: Rc<RefCell<Vec<Interval>>>,
}

impl PamtMemory for Chunk {
    fn range(&self) -> PhysRange {
        self.range
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let mut free = self.free.borrow_mut();
        free.push(plain(&self.range));
        free.sort();
        let all = joined(&free);
        *free = all;
    }
}

/// An allocator that places each chunk somewhere in free memory, as a list of numbers says.
///
/// Neighbouring regions count as one stretch; the node is only noted.
#[derive(Debug)]
pub struct Placer<'a> {
    /// Memory that is still free.
    free: Rc<RefCell<Vec<Interval>>>,
    /// Where to put the next chunks: a number picks one of the possible places.
    picks: core::iter::Cycle<core::slice::Iter<'a, u64>>,
    /// No chunk is larger.
    largest: u64,
    /// The nodes asked for, in order.
    pub nodes: Vec<NodeId>,
}

impl<'a> Placer<'a> {
    /// All of `memory` is free; `picks` must not be empty.
    pub fn new(memory: &[Interval], picks: &'a [u64]) -> Self {
        Self::with_largest(memory, picks, u64::MAX)
    }

    /// The same, but chunks of more than `largest` bytes are not to be had.
    pub fn with_largest(memory: &[Interval], picks: &'a [u64], largest: u64) -> Self {
        Placer {
            free: Rc::new(RefCell::new(joined(memory))),
            picks: picks.iter().cycle(),
            largest,
            nodes: Vec::new(),
        }
    }

    /// Places chunks of these sizes one after the other, if there is room for all.
    pub fn intervals(&mut self, sizes: impl Iterator<Item = u64>) -> Option<Vec<Interval>> {
        let node = NodeId::new(-1);
        let chunks: Option<Vec<Chunk>> = sizes.map(|size| self.allocate(size, node)).collect();
        Some(chunks?.iter().map(|chunk| plain(&chunk.range)).collect())
    }

    /// Takes `bytes` somewhere in what is free of `within`.
    fn take(&mut self, bytes: u64, within: Interval) -> Option<Chunk> {
        let pick = *self.picks.next()?;
        let cut =
            |free: &Interval| interval(free.start.max(within.start), free.end.min(within.end));
        let mut free = self.free.borrow_mut();
        let rooms = free.iter().map(cut).enumerate();
        let fits: Vec<(usize, Interval)> = rooms
            .filter(|(_, room)| room.start < room.end && room.size() >= bytes)
            .collect();
        let &(chosen, room) = fits.get(pick as usize % fits.len().max(1))?;
        // The ends of a stretch are where mistakes live: pick them more often than chance would.
        let slack = (room.size() - bytes) / 4096;
        let page = match pick >> 60 {
            0..=3 => 0,
            4..=7 => slack,
            _ => (pick >> 8) % (slack + 1),
        };
        let start = room.start + page * 4096;
        let taken = PhysRange::from_raw(start, start + bytes)?;
        let rest = free[chosen].without(&[plain(&taken)]);
        free.splice(chosen..=chosen, rest);
        Some(Chunk {
            range: taken,
            free: Rc::clone(&self.free),
        })
    }
}

/// `memory` (ascending, disjoint) with what touches made one.
pub fn joined(memory: &[Interval]) -> Vec<Interval> {
    let mut list: Vec<Interval> = Vec::new();
    for &region in memory {
        match list.last_mut() {
            Some(last) if last.end == region.start => last.end = region.end,
            _ => list.push(region),
        }
    }
    list
}

impl PamtAllocator for Placer<'_> {
    type Memory = Chunk;

    fn allocate(&mut self, bytes: u64, node: NodeId) -> Option<Chunk> {
        self.nodes.push(node);
        if bytes > self.largest {
            return None;
        }
        self.take(bytes, interval(0, u64::MAX))
    }

    fn allocate_in(&mut self, bytes: u64, within: PhysRange) -> Option<Chunk> {
        if bytes > self.largest {
            return None;
        }
        self.take(bytes, plain(&within))
    }
}

/// Why there is no configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The list of memory could not be built.
    MemList(MemListError),
    /// No plan.
    Place(PlaceError),
}

impl From<PlaceError> for ConfigError {
    fn from(error: PlaceError) -> Self {
        ConfigError::Place(error)
    }
}

impl From<PlanError> for ConfigError {
    fn from(error: PlanError) -> Self {
        ConfigError::Place(PlaceError::Plan(error))
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::MemList(error) => error.fmt(f),
            ConfigError::Place(error) => error.fmt(f),
        }
    }
}

/// All that TDH.SYS.CONFIG is told, and what it was made from.
#[derive(Debug)]
pub struct Config {
    /// The plan.
    pub tdmrs: Vec<Tdmr>,
    /// The memory that holds the PAMTs.
    pub chunks: Vec<Interval>,
    /// The tables of each TDMR, for 4K, 2M and 1G pages.
    pub pamts: Vec<[Interval; 3]>,
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

/// CMRs as the kernel keeps them. What cannot be one is left out, as the kernel does.
pub fn cmr_list(cmrs: &[Interval]) -> Vec<Region> {
    let frames = cmrs
        .iter()
        .filter_map(|cmr| PfnRange::from_raw(cmr.start / 4096, cmr.end / 4096));
    frames
        .map(|frames| Region::new(frames, NodeId::new(-1)))
        .collect()
}

/// What the TDX module offers, and what is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// TDMRs and reserved areas.
    pub limits: Limits,
    /// Bytes for each page.
    pub entries: PamtEntrySizes,
    /// What is wanted.
    pub goal: Goal,
}

/// From memory to the operands of TDH.SYS.CONFIG, as the kernel does it.
///
/// # Errors
///
/// [`ConfigError`].
pub fn configure(
    triples: &[(u64, u64, i32)],
    cmrs: &[Interval],
    terms: &Terms,
    allocator: &mut Placer<'_>,
) -> Result<Config, ConfigError> {
    let list = mem_list(triples).map_err(ConfigError::MemList)?;
    let cmrs = cmr_list(cmrs);
    let memory = Memory::new(list.regions(), &cmrs).map_err(PlanError::from)?;
    let mut task = Task {
        memory,
        limits: terms.limits,
        entries: terms.entries,
        goal: terms.goal,
        allocator,
        effort: place::EFFORT,
    };
    let mut plan: Plan<VecStore<Tdmr>, VecStore<Pamt>, VecStore<Chunk>> = Plan::default();
    let mut scratch: Scratch<VecStore<_>, VecStore<_>> = Scratch::default();
    place::place(&mut task, &mut scratch, &mut plan)?;

    let mut reserved = Vec::new();
    let mut infos = Vec::new();
    let mut areas = VecStore::new();
    for (tdmr, pamt) in plan.tdmrs.as_slice().iter().zip(plan.pamts.as_slice()) {
        let chunks = plan.chunks.as_slice();
        tdmr::reserve(&memory, tdmr, chunks, &terms.limits, &mut areas)?;
        let mut slot = vec![!0; TdmrInfo::slot_bytes(terms.limits.max_reserved) / 8];
        TdmrInfo::new(tdmr, pamt)
            .write(areas.as_slice(), &mut slot)
            .expect("what was planned fits the structure");
        infos.push(slot);
        reserved.push(areas.as_slice().iter().map(plain).collect());
    }
    let tables = |pamt: &Pamt| {
        PageSize::ALL.map(|level| {
            let table = pamt.table(level);
            interval(table.base.get(), table.base.get() + table.size)
        })
    };
    Ok(Config {
        chunks: plan
            .chunks
            .as_slice()
            .iter()
            .map(|c| plain(&c.range))
            .collect(),
        pamts: plan.pamts.as_slice().iter().map(tables).collect(),
        pamt_kb: pamt::total_kb(plan.pamts.as_slice()),
        tdmrs: plan.tdmrs.list,
        reserved,
        infos,
    })
}

/// A range as plain numbers.
pub fn plain(range: &PhysRange) -> Interval {
    interval(range.start().get(), range.end().get())
}
