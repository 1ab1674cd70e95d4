// SPDX-License-Identifier: GPL-2.0

//! Random memory maps and what belongs to them, for the property tests.
#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod server;

use proptest::prelude::*;

use tdx_host_tests::host::Terms;
use tdx_host_tests::interval::{interval, Interval};
use tdx_host_tests::pamt::PamtEntrySizes;
use tdx_host_tests::partition::{KeyIdPartition, TdxKeyIds};
use tdx_host_tests::tdmr::{Goal, Limits};

/// What every TDX module so far reports.
pub(crate) const ENTRIES: PamtEntrySizes = PamtEntrySizes {
    size_4k: 16,
    size_2m: 16,
    size_1g: 16,
};

/// What every TDX module so far allows.
pub(crate) const LIMITS: Limits = Limits {
    max_tdmrs: 64,
    max_reserved: 16,
};

/// What a real TDX module offers, and nothing special wanted.
pub(crate) const TERMS: Terms = Terms {
    limits: LIMITS,
    entries: ENTRIES,
    goal: Goal::PLAIN,
};

/// Wishes: mostly none.
pub(crate) fn goal() -> impl Strategy<Value = Goal> {
    prop_oneof![
        2 => Just(Goal::PLAIN),
        1 => (any::<u16>(), 0u64..20).prop_map(|(min_tdmrs, max_gb)| Goal {
            min_tdmrs: min_tdmrs % 80,
            max_gb,
        }),
    ]
}

/// A machine's memory as memblock has it, `(start_pfn, end_pfn, nid)`, and its CMRs.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) memory: Vec<(u64, u64, i32)>,
    pub(crate) cmrs: Vec<Interval>,
}

impl Machine {
    /// The memory that TDX can use, in bytes: all but the first megabyte.
    pub(crate) fn regions(&self) -> Vec<(Interval, i32)> {
        self.memory
            .iter()
            .map(|&(start, end, nid)| (interval(start.max(256) * 4096, end * 4096), nid))
            .filter(|(region, _)| region.start < region.end)
            .collect()
    }

    /// The same without nodes.
    pub(crate) fn intervals(&self) -> Vec<Interval> {
        self.regions().iter().map(|(region, _)| *region).collect()
    }
}

/// A number of pages: of the order of pages, megabytes or gigabytes.
fn pages() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => 1u64..64,
        3 => (1u64..64).prop_map(|mb| mb << 8),
        2 => (0u64..16, 0u64..512).prop_map(|(gb, rest)| (gb << 18) + rest + 1),
        2 => (1u64..8).prop_map(|gb| gb << 18),
    ]
}

/// A gap before a region: often none, sometimes so that the region starts at a whole gigabyte.
#[derive(Clone, Copy, Debug)]
enum Gap {
    None,
    Pages(u64),
    ToGigabyte(u64),
}

fn gap() -> impl Strategy<Value = Gap> {
    prop_oneof![
        2 => Just(Gap::None),
        4 => pages().prop_map(Gap::Pages),
        2 => (0u64..3).prop_map(Gap::ToGigabyte),
    ]
}

/// Machines of up to `regions` regions on up to four nodes, whose CMRs cover the memory above
/// 1 MB: exactly, or with the holes between two regions, at random. Half of the machines are
/// crowded: regions and gaps of a few MB at most, and then there are more of them in a TDMR.
pub(crate) fn machine(regions: usize) -> impl Strategy<Value = Machine> {
    let region = (gap(), pages(), 0..4i32, any::<bool>());
    let list = proptest::collection::vec(region, 1..=regions);
    (list, 0..regions, 1u64..40, any::<bool>()).prop_map(|(list, big, gbs, crowded)| {
        let scale = |pages: u64| match crowded {
            true => pages % (16 << 8) + 1,
            false => pages,
        };
        let mut next = 0u64;
        let mut memory = Vec::new();
        let mut cmrs: Vec<Interval> = Vec::new();
        let big = big % list.len();
        for (index, (gap, size, nid, bridge)) in list.into_iter().enumerate() {
            let start = match gap {
                Gap::None => next,
                Gap::Pages(pages) => next + scale(pages),
                Gap::ToGigabyte(_) if crowded => next,
                Gap::ToGigabyte(more) => next.next_multiple_of(1 << 18) + (more << 18),
            };
            // One region is big enough for some PAMTs.
            let size = if index == big { gbs << 18 } else { scale(size) };
            next = start + size;
            memory.push((start, next, nid));
            let convertible = interval(start.max(256) * 4096, next * 4096);
            if convertible.start >= convertible.end {
                continue;
            }
            // The module knows 32 CMRs at most.
            let full = cmrs.len() == 32;
            match cmrs.last_mut() {
                Some(last) if bridge || full || last.end == convertible.start => {
                    last.end = convertible.end;
                }
                _ => cmrs.push(convertible),
            }
        }
        Machine { memory, cmrs }
    })
}

/// Where the PAMTs go.
pub(crate) fn picks() -> impl Strategy<Value = Vec<u64>> {
    proptest::collection::vec(any::<u64>(), 1..8)
}

/// The KeyID that the server's firmware leaves for the TDX module.
pub(crate) fn global_keyid() -> u16 {
    let partition = KeyIdPartition::from_msr(server::KEYID_PARTITIONING);
    TdxKeyIds::new(partition).unwrap().global().get()
}
