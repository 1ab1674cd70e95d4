// SPDX-License-Identifier: GPL-2.0

//! Nonsense from firmware, memblock or the TDX module: an error in words, never a panic.
//!
//! Overflow checks are on in these tests, so arithmetic that wraps would panic too.

mod common;

use common::{goal, machine, picks, LIMITS, TERMS};
use proptest::prelude::*;
use tdx_host_tests::abi::TdmrInfo;
use tdx_host_tests::explain::{explain, Details};
use tdx_host_tests::fields::FieldId;
use tdx_host_tests::holes::{Memory, OutOfOrder};
use tdx_host_tests::host::{cmr_list, configure, mem_list, ConfigError, Placer, Terms, VecStore};
use tdx_host_tests::interval::{interval, Interval};
use tdx_host_tests::leaf::Leaf;
use tdx_host_tests::memlist::{NodeId, Region};
use tdx_host_tests::metadata::{read_cmrs, FieldReader, SysInfo};
use tdx_host_tests::pamt::PamtEntrySizes;
use tdx_host_tests::partition::{KeyIdPartition, TdxKeyIds};
use tdx_host_tests::range::{PfnRange, PhysRange};
use tdx_host_tests::status::SeamcallStatus;
use tdx_host_tests::store::Store;
use tdx_host_tests::tdmr::{self, Goal, Limits, PlanError, Scratch, Tdmr};

/// Numbers near the edges of what can be, and any others.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0u32..64, -2i64..3).prop_map(|(bit, off)| (1u64 << bit).wrapping_add_signed(off)),
    ]
}

fn range() -> impl Strategy<Value = Option<PhysRange>> {
    (number(), number()).prop_map(|(a, b)| PhysRange::from_raw(a, b))
}

/// Plans TDMRs in storage that never fails.
fn plan(memory: &Memory<'_>, limits: &Limits, goal: &Goal) -> Result<Vec<Tdmr>, PlanError> {
    plan_in(memory, limits, goal, VecStore::new())
}

fn plan_in(
    memory: &Memory<'_>,
    limits: &Limits,
    goal: &Goal,
    mut out: VecStore<Tdmr>,
) -> Result<Vec<Tdmr>, PlanError> {
    let mut scratch: Scratch<VecStore<_>, VecStore<_>> = Scratch::default();
    let budget = limits.max_reserved.into();
    tdmr::plan(memory, limits, budget, goal, &mut scratch, &mut out)?;
    Ok(out.as_slice().to_vec())
}

/// Intervals that may overlap, be empty, unaligned or end at the top of what there is.
fn intervals() -> impl Strategy<Value = Vec<Interval>> {
    let ends = (number(), number()).prop_map(|(a, b)| interval(a.min(b), a.max(b)));
    proptest::collection::vec(ends, 0..6)
}

/// Limits and entry sizes that no TDX module should report.
fn limit() -> impl Strategy<Value = u16> {
    prop_oneof![Just(0), Just(1), Just(2), Just(u16::MAX), any::<u16>()]
}

proptest! {
    /// Memory and CMRs at random, and all the way to the operands of TDH.SYS.CONFIG.
    #[test]
    fn hostile_memory_is_no_panic(
        triples in proptest::collection::vec((number(), number(), any::<i32>()), 0..6),
        cmrs in intervals(),
        max_tdmrs in limit(),
        max_reserved in limit(),
        sizes in any::<[u16; 3]>(),
        goal in goal(),
        picks in picks(),
    ) {
        let limits = Limits { max_tdmrs, max_reserved };
        let entries = PamtEntrySizes { size_4k: sizes[0], size_2m: sizes[1], size_1g: sizes[2] };
        let free: Vec<Interval> = triples
            .iter()
            .filter(|triple| triple.0 < triple.1 && triple.1 <= 1 << 40)
            .map(|triple| interval(triple.0 * 4096, triple.1 * 4096))
            .collect();
        let terms = Terms { limits, entries, goal };
        let mut placer = Placer::new(&free, &picks);
        if let Err(error) = configure(&triples, &cmrs, &terms, &mut placer) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    /// Even regions out of order, which [`MemListBuilder`] would never pass on.
    #[test]
    fn hostile_regions_are_an_error(
        frames in proptest::collection::vec((number(), number()), 0..6),
        cmrs in intervals(),
        pamts in proptest::collection::vec(range(), 0..4),
        tdmr in range(),
        max in limit(),
        goal in goal(),
    ) {
        let regions: Vec<Region> = frames
            .iter()
            .filter_map(|&(a, b)| PfnRange::from_raw(a >> 8, b >> 8))
            .map(|frames| Region::new(frames, NodeId::new(0)))
            .collect();
        let ascend = regions.windows(2).all(|w| w[0].frames().end() <= w[1].frames().start());
        let cmrs = cmr_list(&cmrs);
        let limits = Limits { max_tdmrs: max, max_reserved: max };
        let memory = match Memory::new(&regions, &cmrs) {
            Ok(memory) => memory,
            Err(OutOfOrder { .. }) => {
                prop_assert!(!ascend);
                return Ok(());
            }
        };
        prop_assert!(ascend);
        let tdmrs = plan(&memory, &limits, &goal).unwrap_or_default();
        let extra = tdmr.and_then(|range| Tdmr::new(range, NodeId::new(0)));
        let pamts: Vec<PhysRange> = pamts.into_iter().flatten().collect();
        let mut areas = VecStore::new();
        for tdmr in tdmrs.iter().chain(&extra) {
            if tdmr::reserve(&memory, tdmr, &pamts, &limits, &mut areas).is_ok() {
                prop_assert!(areas.as_slice().len() <= max.into());
            }
        }
        for (part, _) in memory.outside_cmrs() {
            prop_assert!(cmrs.iter().all(|cmr| !cmr.bytes().overlaps(part)));
        }
    }

    #[test]
    fn hostile_limits_give_a_plan_or_an_error(
        machine in machine(12),
        max_tdmrs in limit(),
        max_reserved in limit(),
        sizes in any::<[u16; 3]>(),
    ) {
        let limits = Limits { max_tdmrs, max_reserved };
        let entries = PamtEntrySizes { size_4k: sizes[0], size_2m: sizes[1], size_1g: sizes[2] };
        let terms = Terms { limits, entries, ..TERMS };
        let mut placer = Placer::new(&machine.intervals(), &[3]);
        match configure(&machine.memory, &machine.cmrs, &terms, &mut placer) {
            Ok(config) => {
                prop_assert!(config.tdmrs.len() <= max_tdmrs.into());
                prop_assert!(config.reserved.iter().all(|areas| areas.len() <= max_reserved.into()));
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn full_storage_is_an_error(machine in machine(12), room in 0usize..8, goal in goal()) {
        let Ok(list) = mem_list(&machine.memory) else {
            return Ok(());
        };
        let memory = Memory::new(list.regions(), &[]).unwrap();
        let wide = Limits { max_reserved: 1000, ..LIMITS };
        let result = plan_in(&memory, &wide, &goal, VecStore::with_room(room));
        let Ok(all) = plan(&memory, &wide, &goal) else {
            return Ok(());
        };
        prop_assert_eq!(result == Err(PlanError::OutOfMemory), all.len() > room);
    }

    #[test]
    fn hostile_structures_are_not_written(
        words in any::<[u64; 8]>(),
        areas in proptest::collection::vec(range(), 0..5),
        len in 0usize..40,
    ) {
        let info = TdmrInfo {
            base: words[0],
            size: words[1],
            pamt_1g_base: words[2],
            pamt_1g_size: words[3],
            pamt_2m_base: words[4],
            pamt_2m_size: words[5],
            pamt_4k_base: words[6],
            pamt_4k_size: words[7],
        };
        let areas: Vec<PhysRange> = areas.into_iter().flatten().collect();
        let mut slot = vec![!0; len];
        if info.write(&areas, &mut slot).is_ok() {
            prop_assert!(len >= 8 + 2 * areas.len());
            prop_assert!(slot[8 + 2 * areas.len()..].iter().all(|&word| word == 0));
        }
    }

    #[test]
    fn hostile_keyids_are_an_error(raw in number()) {
        if let Ok(keyids) = TdxKeyIds::new(KeyIdPartition::from_msr(raw)) {
            let guests = keyids.guests();
            prop_assert!(keyids.global().get() >= 1 && guests.count() >= 1);
            prop_assert_eq!(guests.first(), u32::from(keyids.global().get()) + 1);
            prop_assert_eq!(guests.first() + guests.count(), keyids.end());
            prop_assert!(keyids.end() <= 1 << 16);
        }
    }

    #[test]
    fn hostile_metadata_is_an_error(values in proptest::collection::vec(number(), 1..20)) {
        struct Cycle<'a>(std::iter::Cycle<std::slice::Iter<'a, u64>>);
        impl FieldReader for Cycle<'_> {
            type Error = ();
            fn read(&mut self, _: FieldId) -> Result<u64, ()> {
                self.0.next().copied().ok_or(())
            }
        }
        let mut reader = Cycle(values.iter().cycle());
        let mut info = Box::new(SysInfo::EMPTY);
        if info.read(&mut reader).is_ok() {
            prop_assert!(info.td_conf.num_cpuid_config <= 128);
        }
        let _ = read_cmrs(&mut reader, &mut VecStore::with_room(64));
    }

    #[test]
    fn every_status_of_every_leaf_has_words(leaf in number(), status in number()) {
        let (leaf, status) = (Leaf::from_raw(leaf), SeamcallStatus::from_raw(status));
        let words = format!("{leaf}: {status}{}", Details(status));
        let number = format!("{:#x}", status.raw());
        prop_assert!(words.contains(&number));
        prop_assert!(explain(leaf, status).is_none() || status.name().is_some() || leaf.is_seamldr());
    }
}

#[test]
fn limits_of_zero_are_an_error_and_big_ones_are_not() {
    let memory = [(0x100, 0x100_0000, 0)];
    let bytes = [interval(1 << 20, 64 << 30)];
    let run = |max_tdmrs, max_reserved| {
        let limits = Limits {
            max_tdmrs,
            max_reserved,
        };
        let terms = Terms { limits, ..TERMS };
        let mut placer = Placer::new(&bytes, &[0]);
        configure(&memory, &bytes, &terms, &mut placer).map(|_| ())
    };
    let words = |result: Result<(), ConfigError>| result.unwrap_err().to_string();
    assert_eq!(
        words(run(0, 16)),
        "TDMRs exhausted: the memory map needs 1, the TDX module offers 0"
    );
    assert_eq!(
        words(run(64, 0)),
        "TDMR [0x0, 0x40000000): reserved areas exhausted: it needs 1 (1 for holes, 0 for PAMTs), \
         the TDX module offers 0"
    );
    assert_eq!(run(u16::MAX, u16::MAX), Ok(()));
    // The PAMT lies beside the only hole.
    assert_eq!(run(1, 1), Ok(()));
}
