// SPDX-License-Identifier: GPL-2.0

//! The rules by which the C code of Linux 7.3 plans TDMRs, written down a second time.
//!
//! Facts only, in the plainest form: lists of numbers, no types of the code under test. A property
//! test demands that the kernel module's plan is the same for every well-formed memory map.

use std::vec::Vec;

use crate::interval::{
    interval,
    Interval, //
};

const GB: u64 = 1 << 30;

/// A memory region: bytes and node. Ascending and disjoint in lists, none below 1 MB.
pub type Memory = (Interval, i32);

/// The TDMRs for `memory`, each with its node, or `None` if there are more than `max`.
///
/// Rule: rounded out to 1 GB, each region gets what the TDMR before it does not have; nothing is
/// left for a region that lies inside it. The node is that of the first region that ends behind
/// the start of the TDMR.
pub fn tdmrs(memory: &[Memory], max: usize) -> Option<Vec<Memory>> {
    let mut list: Vec<Memory> = Vec::new();
    for (region, _) in memory {
        let end = region.end.div_ceil(GB) * GB;
        let already = list.last().map_or(0, |(tdmr, _)| tdmr.end);
        if end <= already {
            continue;
        }
        let start = (region.start / GB * GB).max(already);
        let node = memory.iter().find(|(other, _)| other.end > start)?.1;
        list.push((interval(start, end), node));
    }
    (list.len() <= max && !list.is_empty()).then_some(list)
}

/// Bytes of the PAMTs of a TDMR for 4K, 2M and 1G pages: entries times their size, in whole pages.
pub fn pamt_sizes(tdmr: Interval, entry: [u64; 3]) -> [u64; 3] {
    let pages = [4 << 10, 2 << 20, GB].map(|page| tdmr.size() / page);
    [0, 1, 2].map(|level| (pages[level] * entry[level]).div_ceil(4096) * 4096)
}

/// The reserved areas of `tdmr`, ascending, or `None` if there are more than `max`.
///
/// Rule: one for each stretch without memory and one for each PAMT chunk (or the part of it) in
/// the TDMR.
pub fn reserved(
    memory: &[Memory],
    tdmr: Interval,
    pamts: &[Interval],
    max: usize,
) -> Option<Vec<Interval>> {
    let regions: Vec<Interval> = memory.iter().map(|(region, _)| *region).collect();
    let mut areas = tdmr.without(&regions);
    areas.extend(
        pamts
            .iter()
            .filter(|pamt| pamt.meets(tdmr))
            .map(|pamt| interval(pamt.start.max(tdmr.start), pamt.end.min(tdmr.end))),
    );
    areas.sort();
    (areas.len() <= max).then_some(areas)
}
