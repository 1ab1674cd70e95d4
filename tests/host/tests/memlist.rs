// SPDX-License-Identifier: GPL-2.0

//! The memory hotplug decision, against a bitmap of pages.

use proptest::prelude::*;
use tdx_host_tests::host::mem_list;
use tdx_host_tests::memlist::MemListError;
use tdx_host_tests::plug::{judge, Refusal};
use tdx_host_tests::range::PhysRange;

const PAGES: u64 = 600;

/// The page frames `[start, end)`, as addresses.
fn pages(start: u64, end: u64) -> PhysRange {
    PhysRange::from_raw(start << 12, end << 12).unwrap()
}

/// Ascending, disjoint regions within the first [`PAGES`] pages: lengths of gap and region in turn.
fn regions() -> impl Strategy<Value = Vec<(u64, u64, i32)>> {
    let step = (0u64..40, 1u64..60, 0..3i32);
    proptest::collection::vec(step, 1..12).prop_map(|steps| {
        let mut next = 200;
        let mut list = Vec::new();
        for (gap, size, nid) in steps {
            let start = next + gap;
            next = start + size;
            if next <= PAGES {
                list.push((start, next, nid));
            }
        }
        list
    })
}

proptest! {
    #[test]
    fn judge_agrees_with_a_bitmap(regions in regions(), from in 0..PAGES, len in 1..PAGES) {
        let mut bitmap = vec![false; 2 * PAGES as usize];
        for &(start, end, _) in &regions {
            bitmap[start as usize..end as usize].fill(true);
        }
        // The first megabyte is never TDX memory.
        bitmap[..256].fill(false);
        let to = from + len;
        let first = (from..to).find(|&page| !bitmap[page as usize]);
        let expected = first.map_or(Ok(()), |first| {
            let end = (first..to).find(|&page| bitmap[page as usize]).unwrap_or(to);
            Err(Refusal::NotTdxMemory { asked: pages(from, to), outside: pages(first, end) })
        });
        match mem_list(&regions) {
            Ok(list) => {
                prop_assert_eq!(judge(Some(list.regions()), from, len), expected);
                let pages = bitmap.iter().filter(|&&set| set).count() as u64;
                prop_assert_eq!(list.pages(), pages);
            }
            Err(error) => {
                prop_assert_eq!(error, MemListError::Empty);
                prop_assert!(!bitmap.contains(&true));
            }
        }
    }

    #[test]
    fn ranges_that_are_covered_are_found(regions in regions(), pick in any::<prop::sample::Index>(), cut in 0u64..30) {
        let regions: Vec<_> = regions.into_iter().filter(|r| r.0 >= 256).collect();
        if regions.is_empty() {
            return Ok(());
        }
        let (start, end, _) = regions[pick.index(regions.len())];
        let list = mem_list(&regions).unwrap();
        let start = (start + cut).min(end - 1);
        prop_assert_eq!(judge(Some(list.regions()), start, end - start), Ok(()));
    }

    #[test]
    fn what_overlaps_is_refused(regions in regions(), pick in any::<prop::sample::Index>()) {
        let mut regions: Vec<_> = regions.into_iter().filter(|r| r.1 > 256).collect();
        if regions.is_empty() {
            return Ok(());
        }
        let at = pick.index(regions.len());
        regions.insert(at, regions[at]);
        let refused = matches!(mem_list(&regions), Err(MemListError::OutOfOrder { .. }));
        prop_assert!(refused);
    }
}

#[test]
fn a_refusal_says_which_memory_why_and_what_to_do() {
    let list = mem_list(&[(0x100, 0x8_0000, 0), (0x10_0000, 0x18_0000, 1)]).unwrap();
    let says = |start, pages| {
        let refusal = judge(Some(list.regions()), start, pages).unwrap_err();
        refusal.to_string()
    };
    let all = says(0x18_0000, 0x8000);
    let start = "memory [0x180000000, 0x188000000) stays offline: TDX came up without it, and";
    assert!(all.starts_with(start), "{all}");
    let part = says(0x17_8000, 0x1_0000);
    let start = "memory [0x178000000, 0x188000000) stays offline: \
                 TDX came up without [0x180000000, 0x188000000) of it, and";
    assert!(part.starts_with(start), "{part}");
    let beyond = says((1 << 40) - 1, 2);
    let start = "memory of 0x2 page frames from 0xffffffffff on stays offline: it ends beyond";
    assert!(beyond.starts_with(start), "{beyond}");
    for refusal in [all, part] {
        assert!(refusal.contains("reboot with it in place"), "{refusal}");
        assert!(
            refusal.ends_with("or turn TDX off in the BIOS"),
            "{refusal}"
        );
    }
    assert!(beyond.ends_with("turn TDX off in the BIOS"), "{beyond}");
}
