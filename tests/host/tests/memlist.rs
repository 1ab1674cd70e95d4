// SPDX-License-Identifier: GPL-2.0

//! The memory hotplug decision, against a bitmap of pages.

use proptest::prelude::*;
use tdx_host_tests::host::mem_list;
use tdx_host_tests::memlist::MemListError;
use tdx_host_tests::range::PfnRange;

const PAGES: u64 = 600;

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
    fn covers_agrees_with_a_bitmap(regions in regions(), from in 0..PAGES, len in 1..PAGES) {
        let mut bitmap = vec![false; 2 * PAGES as usize];
        for &(start, end, _) in &regions {
            bitmap[start as usize..end as usize].fill(true);
        }
        // The first megabyte is never TDX memory.
        bitmap[..256].fill(false);
        let asked = PfnRange::from_raw(from, from + len).unwrap();
        let expected = bitmap[from as usize..(from + len) as usize].iter().all(|&set| set);
        match mem_list(&regions) {
            Ok(list) => {
                prop_assert_eq!(list.covers(asked), expected);
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
        prop_assert!(list.covers(PfnRange::from_raw(start, end).unwrap()));
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
