// SPDX-License-Identifier: GPL-2.0

//! Which lines of memory are private, who made them so, and when.
//!
//! [`PrivateMap`] is an ordered set of [`Area`]s with the granularity of a cache line. The TDX module
//! adds to it whatever it writes with a private key; only a write of a whole line with KeyID 0
//! (MOVDIR64B) takes a line out again. Which processor may still hold such lines in its cache is the
//! business of `lp`; the map keeps the time of the last private write that question needs.

use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use tdx_module::number;

/// Bytes of a cache line.
pub const LINE: u64 = 64;

/// What a private line is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// Physical address metadata table, written by TDH.SYS.TDMR.INIT.
    Pamt,
    /// Root of a TD, written with the module's own key.
    Tdr,
    /// Control structure of a TD.
    Tdcs,
    /// Control structure of a vCPU.
    Tdvps,
    /// Secure EPT page.
    SecureEpt,
    /// Memory of a TD.
    TdMemory,
}

impl Owner {
    /// Name as written in the summary.
    pub fn name(self) -> &'static str {
        match self {
            Owner::Pamt => "pamt",
            Owner::Tdr => "tdr",
            Owner::Tdcs => "tdcs",
            Owner::Tdvps => "tdvps",
            Owner::SecureEpt => "secure-ept",
            Owner::TdMemory => "td-memory",
        }
    }

    /// What a page is used for that `leaf` made private.
    pub fn of_leaf(leaf: u16) -> Owner {
        match leaf {
            number::SYS_TDMR_INIT => Owner::Pamt,
            number::MEM_SEPT_ADD => Owner::SecureEpt,
            number::MEM_PAGE_ADD | number::MEM_PAGE_AUG | number::VP_ENTER => Owner::TdMemory,
            number::MNG_CREATE => Owner::Tdr,
            number::VP_CREATE | number::VP_ADDCX => Owner::Tdvps,
            _ => Owner::Tdcs,
        }
    }
}

/// Why a run of lines is private.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Area {
    /// Use of the lines.
    pub owner: Owner,
    /// Key they were written with.
    pub hkid: u16,
    /// Machine time of the last private write to any of them; 0 if no cache holds them any more.
    pub written: u64,
    /// The module still uses them; if not, the host has to convert them.
    pub used: bool,
}

impl Area {
    /// Whether adjacent lines can be one run. When PAMT was written does not matter, but a TD can have
    /// the KeyID of an earlier one, whose lines were written back.
    fn joins(&self, other: &Area) -> bool {
        (self.owner, self.hkid, self.used) == (other.owner, other.hkid, other.used)
            && (self.owner == Owner::Pamt || self.written == other.written)
    }
}

/// Set of private lines. Addresses are physical, in bytes, without key bits.
#[derive(Debug, Default)]
pub struct PrivateMap {
    /// start -> (end, area): disjoint, line aligned, non-empty.
    areas: BTreeMap<u64, (u64, Area)>,
    /// Lines of them that were written in part.
    poisoned: BTreeSet<u64>,
}

fn lines(range: Range<u64>) -> Range<u64> {
    range.start & !(LINE - 1)..range.end.saturating_add(LINE - 1) & !(LINE - 1)
}

impl PrivateMap {
    /// Makes every line that `range` touches private; a line that was private before changes hands.
    pub fn mark(&mut self, range: Range<u64>, area: Area) {
        let Range { mut start, mut end } = lines(range);
        if start >= end {
            return;
        }
        self.release(start..end);
        let mut area = area;
        if let Some((&before, &(before_end, other))) = self.areas.range(..start).next_back()
            && before_end == start
            && other.joins(&area)
        {
            self.areas.remove(&before);
            start = before;
            area.written = area.written.max(other.written);
        }
        if let Some(&(after_end, other)) = self.areas.get(&end)
            && other.joins(&area)
        {
            self.areas.remove(&end);
            end = after_end;
            area.written = area.written.max(other.written);
        }
        self.areas.insert(start, (end, area));
    }

    /// Takes every line that `range` touches out of the map; answers how many bytes were private.
    pub fn release(&mut self, range: Range<u64>) -> u64 {
        let range = lines(range);
        while let Some(line) = self.poisoned(range.clone()) {
            self.poisoned.remove(&line);
        }
        self.cut(range)
    }

    /// [`release`](Self::release) of whole lines, some of which may stay poisoned.
    fn cut(&mut self, range: Range<u64>) -> u64 {
        let mut removed = 0;
        while let Some((start, end, area)) = self.last_overlap(&range) {
            self.areas.remove(&start);
            if start < range.start {
                self.areas.insert(start, (range.start, area));
            }
            if end > range.end {
                self.areas.insert(range.end, (end, area));
            }
            removed += end.min(range.end) - start.max(range.start);
        }
        removed
    }

    /// No cache holds the lines of `range` that were written with `hkid`.
    pub fn written_back(&mut self, range: Range<u64>, hkid: u16) {
        self.change(range, |area| {
            if area.hkid == hkid {
                area.written = 0;
            }
        });
    }

    /// The module does not use the lines that `range` touches any more.
    pub fn freed(&mut self, range: Range<u64>) {
        self.change(range, |area| area.used = false);
    }

    fn change(&mut self, range: Range<u64>, change: impl Fn(&mut Area)) {
        let range = lines(range);
        let touched: Vec<_> = self
            .areas
            .range(..range.end)
            .rev()
            .take_while(|(_, (end, _))| *end > range.start)
            .map(|(s, a)| (*s, *a))
            .collect();
        for (start, (end, area)) in touched {
            let (from, to) = (start.max(range.start), end.min(range.end));
            self.cut(from..to);
            let mut area = area;
            change(&mut area);
            self.areas.insert(from, (to, area));
        }
    }

    /// The area that `range` touches, if it touches one; the highest if there are several.
    pub fn find(&self, range: Range<u64>) -> Option<Area> {
        self.last_overlap(&lines(range)).map(|(_, _, area)| area)
    }

    /// Poisons every private line that `range` touches, until it is written as a whole; answers how many
    /// were not poisoned before.
    pub fn poison(&mut self, range: Range<u64>) -> u64 {
        let lines = lines(range).step_by(LINE as usize);
        let poisoned = lines.filter(|&line| {
            self.last_overlap(&(line..line + LINE)).is_some() && self.poisoned.insert(line)
        });
        poisoned.count() as u64
    }

    /// The first poisoned line that `range` touches.
    pub fn poisoned(&self, range: Range<u64>) -> Option<u64> {
        let Range { start, end } = lines(range);
        let first = self.poisoned.range(start..).next().copied();
        first.filter(|&line| line < end)
    }

    fn last_overlap(&self, range: &Range<u64>) -> Option<(u64, u64, Area)> {
        let (&start, &(end, area)) = self.areas.range(..range.end).next_back()?;
        (end > range.start && start < range.end).then_some((start, end, area))
    }

    /// The lowest private address, and why it is private.
    pub fn first(&self) -> Option<(u64, Area)> {
        let (&start, &(_, area)) = self.areas.first_key_value()?;
        Some((start, area))
    }

    /// Private bytes per owner.
    pub fn totals(&self) -> BTreeMap<Owner, u64> {
        let mut totals = BTreeMap::new();
        for (start, (end, area)) in &self.areas {
            *totals.entry(area.owner).or_default() += end - start;
        }
        totals
    }

    /// Takes the lines that the module does not use any more out of the map.
    pub fn forget_unused(&mut self) {
        self.areas.retain(|_, (_, area)| area.used);
    }

    /// Private bytes that the module does not use any more, and the host has not converted.
    pub fn unconverted(&self) -> u64 {
        let free = self.areas.iter().filter(|(_, (_, area))| !area.used);
        free.map(|(start, (end, _))| end - start).sum()
    }

    /// No line is private.
    pub fn is_empty(&self) -> bool {
        self.areas.is_empty()
    }

    /// Number of separate runs of lines.
    pub fn runs(&self) -> usize {
        self.areas.len()
    }
}

/// Bytes that one bit of a [`CoarseMap`] stands for, as a power of two.
const REGION_SHIFT: u32 = 21;
/// Memory that a [`CoarseMap`] covers; everything above counts as possibly private.
const COARSE_LIMIT: u64 = 8 << 40;

/// Which 2 MB regions may contain private lines; read without a lock on every guest access.
#[derive(Debug)]
pub struct CoarseMap(Vec<AtomicU64>);

impl CoarseMap {
    /// An empty map for a physical address space of `bits` bits.
    pub fn new(bits: u8) -> CoarseMap {
        let bytes = 1u64
            .checked_shl(bits.into())
            .unwrap_or(u64::MAX)
            .min(COARSE_LIMIT);
        CoarseMap(
            (0..(bytes >> REGION_SHIFT).div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
        )
    }

    /// Notes that there are private lines in `range`.
    pub fn add(&self, range: Range<u64>) {
        if range.start < range.end {
            for region in range.start >> REGION_SHIFT..=(range.end - 1) >> REGION_SHIFT {
                if let Some(word) = self.0.get((region / 64) as usize) {
                    word.fetch_or(1 << (region % 64), Ordering::Relaxed);
                }
            }
        }
    }

    /// Could `pa` be private?
    pub fn contains(&self, pa: u64) -> bool {
        let region = pa >> REGION_SHIFT;
        let word = self.0.get((region / 64) as usize);
        word.is_none_or(|word| word.load(Ordering::Relaxed) >> (region % 64) & 1 == 1)
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.0
            .iter()
            .for_each(|word| word.store(0, Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAMT: Area = Area {
        owner: Owner::Pamt,
        hkid: 16,
        written: 1,
        used: true,
    };
    const PAGE: Area = Area {
        owner: Owner::TdMemory,
        hkid: 17,
        written: 2,
        used: true,
    };

    #[test]
    fn touching_lines_count_whole() {
        let mut map = PrivateMap::default();
        map.mark(0x1001..0x1041, PAMT);
        assert_eq!(map.totals()[&Owner::Pamt], 128);
        assert!(map.find(0x1000..0x1001).is_some() && map.find(0x107f..0x1080).is_some());
        assert!(map.find(0xfff..0x1000).is_none() && map.find(0x1080..0x1081).is_none());
    }

    #[test]
    fn neighbours_of_one_kind_become_one_run() {
        let mut map = PrivateMap::default();
        for chunk in (0..64).rev().chain(64..128) {
            map.mark(
                chunk * 0x4000..(chunk + 1) * 0x4000,
                Area {
                    written: chunk,
                    ..PAMT
                },
            );
        }
        assert_eq!(map.runs(), 1);
        assert_eq!(map.find(0..64).map(|a| a.written), Some(127));
    }

    #[test]
    fn line_keeps_its_time_beside_a_later_one_of_the_same_kind() {
        let mut map = PrivateMap::default();
        let later = Area { written: 9, ..PAGE };
        map.mark(0x1000..0x2000, PAGE);
        map.mark(0..0x1000, later);
        map.mark(0x2000..0x3000, later);
        let written = |pa| map.find(pa..pa + 1).map(|a: Area| a.written);
        assert_eq!(
            [0, 0x1000, 0x2000].map(written),
            [Some(9), Some(2), Some(9)]
        );
    }

    #[test]
    fn different_kinds_stay_apart_and_the_later_wins() {
        let mut map = PrivateMap::default();
        map.mark(0..0x3000, PAMT);
        map.mark(0x1000..0x2000, PAGE);
        assert_eq!(map.runs(), 3);
        assert_eq!(map.find(0x1000..0x1040), Some(PAGE));
        assert_eq!(map.first(), Some((0, PAMT)));
        assert_eq!(
            map.totals(),
            BTreeMap::from([(Owner::Pamt, 0x2000), (Owner::TdMemory, 0x1000)])
        );
    }

    #[test]
    fn release_splits_and_counts() {
        let mut map = PrivateMap::default();
        map.mark(0..0x1000, PAMT);
        assert_eq!(map.release(0x40..0x80), 64);
        assert_eq!(map.release(0x40..0x80), 0);
        assert_eq!(map.runs(), 2);
        assert_eq!(map.release(0..u64::MAX), 0x1000 - 64);
        assert!(map.is_empty());
    }

    #[test]
    fn coarse_map_never_denies_what_was_added() {
        let map = CoarseMap::new(46);
        map.add(0x1f_ffc0..0x20_0040);
        map.add(COARSE_LIMIT + 1..COARSE_LIMIT + 2);
        assert!(map.contains(0) && map.contains(0x3f_ffff) && !map.contains(0x40_0000));
        assert!(map.contains(COARSE_LIMIT + 1));
        map.clear();
        assert!(!map.contains(0));
    }

    #[test]
    fn write_back_cleans_every_area_of_its_key() {
        let mut map = PrivateMap::default();
        map.mark(0..0x1000, PAMT);
        map.mark(0x1000..0x2000, PAGE);
        map.written_back(0x800..0x1800, 16);
        map.written_back(0x1400..0x1800, 17);
        let written = |pa| map.find(pa..pa + 1).map(|a: Area| a.written);
        assert_eq!(
            [0, 0x800, 0x1000, 0x1400, 0x1800].map(written),
            [Some(1), Some(0), Some(2), Some(0), Some(2)]
        );
        assert_eq!(map.totals().values().sum::<u64>(), 0x2000);
    }

    #[test]
    fn freed_lines_wait_for_their_conversion() {
        let mut map = PrivateMap::default();
        map.mark(0..0x2000, PAGE);
        map.freed(0x1000..0x2000);
        assert_eq!((map.unconverted(), map.runs()), (0x1000, 2));
        assert_eq!(map.release(0x1000..0x2000), 0x1000);
        assert_eq!(map.unconverted(), 0);
    }

    #[test]
    fn line_stays_poisoned_until_it_is_written_as_a_whole() {
        let mut map = PrivateMap::default();
        map.mark(0x1000..0x2000, PAGE);
        // Two lines, and one that is not private.
        assert_eq!(map.poison(0x1078..0x1088), 2);
        assert_eq!(map.poison(0xff8..0x1008), 1);
        assert_eq!(map.poison(0x1040..0x1048), 0);
        let poisoned = |map: &PrivateMap| {
            (0xfc0..0x1100)
                .step_by(64)
                .filter(|&pa| map.poisoned(pa + 8..pa + 9).is_some())
                .collect::<Vec<_>>()
        };
        assert_eq!(poisoned(&map), [0x1000, 0x1040, 0x1080]);
        assert_eq!(map.poisoned(0x1030..0x1048), Some(0x1000));
        map.written_back(0x1000..0x2000, 17);
        map.freed(0x1000..0x1040);
        assert_eq!(poisoned(&map), [0x1000, 0x1040, 0x1080]);
        map.release(0x1000..0x1040);
        map.mark(0x1040..0x1080, PAMT);
        assert_eq!(poisoned(&map), [0x1080]);
        assert_eq!(map.poison(0x1000..0x1008), 0);
    }

    #[test]
    fn range_at_the_end_of_the_address_space_or_the_wrong_way_round_has_no_poison() {
        let mut map = PrivateMap::default();
        assert_eq!(map.poison(u64::MAX - 8..u64::MAX), 0);
        assert_eq!(map.poisoned(u64::MAX - 8..u64::MAX), None);
        let (start, end) = (0x1000, 0);
        assert_eq!(map.release(start..end), 0);
    }

    #[test]
    fn each_leaf_takes_pages_for_its_own_use() {
        let owners = [
            (number::MNG_CREATE, "tdr"),
            (number::MNG_ADDCX, "tdcs"),
            (number::VP_CREATE, "tdvps"),
            (number::VP_ADDCX, "tdvps"),
            (number::MEM_SEPT_ADD, "secure-ept"),
            (number::VP_ENTER, "td-memory"),
        ];
        for (leaf, name) in owners {
            assert_eq!(Owner::of_leaf(leaf).name(), name);
        }
    }

    #[test]
    fn empty_range_marks_nothing() {
        let mut map = PrivateMap::default();
        map.mark(0x1000..0x1000, PAMT);
        assert!(map.is_empty());
    }
}
