// SPDX-License-Identifier: GPL-2.0

//! TDMR_INFO and the rules that TDH.SYS.CONFIG checks it against.
//!
//! Pure: [`TdmrInfo::parse`] takes bytes, [`Checker`] takes entries one after the other. The order
//! of the checks is part of the rules, since the first violation decides the status.

use std::ops::Range;

use crate::addr::{self, KeyLayout, PAGE_1G, PAGE_4K};
use crate::pamt::{LEVEL_SIZE, Tdmr};
use crate::{MemRange, Status};

/// Order in which the PAMT areas stand in TDMR_INFO and in which some of the checks take them.
const LEVELS_1G_FIRST: [usize; 3] = [2, 1, 0];
/// Size of TDMR_INFO without reserved areas.
const HEADER: usize = 64;
/// Size of one reserved area in TDMR_INFO.
const AREA: usize = 16;

/// A run as it stands in TDMR_INFO, not checked yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    /// Address, or offset for a reserved area.
    pub(crate) base: u64,
    pub(crate) size: u64,
}

impl Run {
    fn range(self) -> Option<Range<u64>> {
        addr::span(self.base, self.size)
    }
}

/// One entry of the list that TDH.SYS.CONFIG reads.
#[derive(Clone, Debug, Default)]
pub(crate) struct TdmrInfo {
    pub(crate) tdmr: Run,
    /// PAMT areas, 4 KB level first.
    pub(crate) pamt: [Run; 3],
    pub(crate) reserved: Vec<Run>,
}

impl TdmrInfo {
    /// Bytes of a TDMR_INFO with room for so many reserved areas.
    pub(crate) fn len(max_reserved: u16) -> usize {
        HEADER + AREA * usize::from(max_reserved)
    }

    /// Decodes the bytes of a TDMR_INFO.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let mut runs = bytes.chunks_exact(AREA).map(|chunk| Run {
            base: le64(&chunk[..8]),
            size: le64(&chunk[8..]),
        });
        let mut next = || runs.next().unwrap_or_default();
        let (tdmr, pamt_1g, pamt_2m, pamt_4k) = (next(), next(), next(), next());
        Self {
            tdmr,
            pamt: [pamt_4k, pamt_2m, pamt_1g],
            reserved: runs.collect(),
        }
    }
}

fn le64(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// A checked entry: nothing wraps, all is in order.
#[derive(Debug)]
struct Checked {
    range: Range<u64>,
    /// 4 KB level first.
    pamt: [Range<u64>; 3],
    /// As addresses, null areas dropped.
    reserved: Vec<Range<u64>>,
}

impl Checked {
    /// The parts of the TDMR outside its reserved areas.
    fn usable(&self) -> impl Iterator<Item = Range<u64>> {
        let starts = std::iter::once(self.range.start).chain(self.reserved.iter().map(|r| r.end));
        let ends = self
            .reserved
            .iter()
            .map(|r| r.start)
            .chain(std::iter::once(self.range.end));
        starts
            .zip(ends)
            .filter(|(start, end)| start < end)
            .map(|(start, end)| start..end)
    }
}

/// Checks TDMR_INFO entries in order.
#[derive(Debug)]
pub(crate) struct Checker {
    keys: KeyLayout,
    entry_size: [u16; 3],
    /// Joined where they touch.
    cmrs: Vec<Range<u64>>,
    checked: Vec<Checked>,
}

/// A status with up to three detail bytes: TDMR index, area index or PAMT level, other TDMR.
fn detail(status: Status, b0: usize, b1: usize, b2: usize) -> Status {
    status.with((b0 & 0xff | (b1 & 0xff) << 8 | (b2 & 0xff) << 16) as u32)
}

impl Checker {
    pub(crate) fn new(keys: KeyLayout, entry_size: [u16; 3], cmrs: &[MemRange]) -> Self {
        Self {
            keys,
            entry_size,
            cmrs: join(cmrs),
            checked: Vec::new(),
        }
    }

    /// Checks the next entry.
    pub(crate) fn push(&mut self, info: &TdmrInfo) -> Result<(), Status> {
        let index = self.checked.len();
        let range = self.check_range(index, info.tdmr)?;
        let reserved = check_reserved(index, &range, &info.reserved)?;
        let mut pamt: [Range<u64>; 3] = Default::default();
        for level in LEVELS_1G_FIRST {
            pamt[level] = self.check_pamt(index, level, &range, info.pamt[level])?;
        }
        let entry = Checked {
            range,
            pamt,
            reserved,
        };
        self.check_pamts_apart(index, &entry)?;
        self.check_pamts_outside_tdmrs(index, &entry)?;
        self.check_convertible(index, &entry)?;
        self.checked.push(entry);
        Ok(())
    }

    /// The TDMRs that were checked, with no PAMT initialised.
    pub(crate) fn into_tdmrs(self) -> Vec<Tdmr> {
        let tdmr = |entry: Checked| Tdmr {
            base: entry.range.start,
            size: entry.range.end - entry.range.start,
            pamt: entry.pamt.map(|area| area.start),
            reserved: entry.reserved,
            initialized: entry.range.start,
        };
        self.checked.into_iter().map(tdmr).collect()
    }

    fn check_range(&self, index: usize, run: Run) -> Result<Range<u64>, Status> {
        let invalid = detail(Status::INVALID_TDMR, index, 0, 0);
        let range = run.range().ok_or(invalid)?;
        if let Some(previous) = self.checked.last()
            && (range.start < previous.range.start || range.start < previous.range.end)
        {
            return Err(detail(Status::NON_ORDERED_TDMR, index, 0, 0));
        }
        let aligned = (run.base | run.size).is_multiple_of(PAGE_1G);
        if !aligned || run.size == 0 || !self.in_plain_memory(&range) {
            return Err(invalid);
        }
        Ok(range)
    }

    /// Whether a range that is not empty lies below the limit and has KeyID 0.
    fn in_plain_memory(&self, range: &Range<u64>) -> bool {
        self.keys.is_plain(range.start) && self.keys.is_plain(range.end - 1)
    }

    fn check_pamt(
        &self,
        index: usize,
        level: usize,
        tdmr: &Range<u64>,
        run: Run,
    ) -> Result<Range<u64>, Status> {
        let invalid = detail(Status::INVALID_PAMT, index, level, 0);
        let range = run.range().ok_or(invalid)?;
        let entries = (tdmr.end - tdmr.start) / LEVEL_SIZE[level];
        let needed = entries * u64::from(self.entry_size[level]);
        let aligned = (run.base | run.size).is_multiple_of(PAGE_4K);
        if !aligned || run.size < needed || !self.in_plain_memory(&range) {
            return Err(invalid);
        }
        Ok(range)
    }

    fn check_pamts_apart(&self, index: usize, entry: &Checked) -> Result<(), Status> {
        for (other_index, other) in self.checked.iter().enumerate() {
            for (level, area) in entry.pamt.iter().enumerate() {
                if other
                    .pamt
                    .iter()
                    .any(|theirs| addr::ranges_overlap(area, theirs))
                {
                    return Err(detail(Status::PAMT_OVERLAP, index, level, other_index));
                }
            }
        }
        for (level, area) in entry.pamt.iter().enumerate() {
            if entry.pamt[level + 1..]
                .iter()
                .any(|larger| addr::ranges_overlap(area, larger))
            {
                return Err(detail(Status::PAMT_OVERLAP, index, level, index));
            }
        }
        Ok(())
    }

    fn check_pamts_outside_tdmrs(&self, index: usize, entry: &Checked) -> Result<(), Status> {
        for (other_index, other) in self.checked.iter().enumerate() {
            check_pamts_outside(index, entry, other_index, other)?;
            check_pamts_outside(other_index, other, index, entry)?;
        }
        check_pamts_outside(index, entry, index, entry)
    }

    fn check_convertible(&self, index: usize, entry: &Checked) -> Result<(), Status> {
        for level in LEVELS_1G_FIRST {
            if !self.in_cmrs(&entry.pamt[level]) {
                return Err(detail(Status::PAMT_OUTSIDE_CMRS, index, level, 0));
            }
        }
        if !entry.usable().all(|part| self.in_cmrs(&part)) {
            return Err(detail(Status::TDMR_OUTSIDE_CMRS, index, 0, 0));
        }
        Ok(())
    }

    fn in_cmrs(&self, range: &Range<u64>) -> bool {
        self.cmrs
            .iter()
            .any(|cmr| cmr.start <= range.start && range.end <= cmr.end)
    }
}

/// The PAMT of one TDMR must not lie in memory of another, or its own, that TDs can use.
fn check_pamts_outside(
    owner: usize,
    entry: &Checked,
    other_index: usize,
    other: &Checked,
) -> Result<(), Status> {
    for (level, area) in entry.pamt.iter().enumerate() {
        if other.usable().any(|part| addr::ranges_overlap(area, &part)) {
            return Err(detail(Status::PAMT_OVERLAP, owner, level, other_index));
        }
    }
    Ok(())
}

/// Checks the reserved areas of a TDMR; returns them as addresses.
fn check_reserved(
    index: usize,
    tdmr: &Range<u64>,
    areas: &[Run],
) -> Result<Vec<Range<u64>>, Status> {
    let invalid = |j| detail(Status::INVALID_RESERVED_IN_TDMR, index, j, 0);
    let unordered = |j| detail(Status::NON_ORDERED_RESERVED_IN_TDMR, index, j, 0);
    let mut reserved = Vec::new();
    let mut previous: Option<Range<u64>> = None;
    for (j, area) in areas.iter().enumerate() {
        if area.size == 0 {
            if areas.get(j + 1).is_some_and(|next| next.size != 0) {
                return Err(unordered(j));
            }
            continue;
        }
        let offsets = area.range().ok_or(invalid(j))?;
        if let Some(previous) = &previous
            && (offsets.start < previous.start || offsets.start < previous.end)
        {
            return Err(unordered(j));
        }
        if !(area.base | area.size).is_multiple_of(PAGE_4K) {
            return Err(invalid(j));
        }
        let inside = offsets.end <= tdmr.end - tdmr.start;
        let Some(base) = tdmr.start.checked_add(area.base).filter(|_| inside) else {
            return Err(invalid(j));
        };
        reserved.push(base..base + area.size);
        previous = Some(offsets);
    }
    Ok(reserved)
}

/// The CMRs as ranges, null entries dropped, adjacent ones joined.
fn join(cmrs: &[MemRange]) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for cmr in cmrs.iter().filter(|cmr| cmr.size != 0) {
        let end = cmr.base.saturating_add(cmr.size);
        match joined.last_mut() {
            Some(last) if last.end == cmr.base => last.end = end,
            _ => joined.push(cmr.base..end),
        }
    }
    joined
}
