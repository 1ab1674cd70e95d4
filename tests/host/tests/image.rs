// SPDX-License-Identifier: GPL-2.0

//! Images for runtime update: every file gets a verdict, and the right one.

use proptest::collection::vec;
use proptest::prelude::*;
use tdx_host_tests::image::{
    Image, ImageError, SeamldrParams, IMAGE_PAGE, MAX_MODULE_PAGES, MAX_SIGSTRUCT_PAGES,
};
use tdx_host_tests::range::PhysAddr;

/// A file as its maker writes it, with `payload` bytes after the header.
fn file(version: u16, sigstruct: u32, module: u32, payload: usize) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(version.to_le_bytes());
    file.extend([0x12, 0x34]);
    file.extend(b"TDX-BLOB");
    file.extend(sigstruct.to_le_bytes());
    file.extend(module.to_le_bytes());
    file.resize(4096, 0);
    // Each page of payload is filled with its number.
    file.extend((0..payload).map(|at| (at / 4096) as u8));
    file
}

#[test]
fn parameters_name_every_page_of_the_largest_image() {
    let pages = MAX_SIGSTRUCT_PAGES + MAX_MODULE_PAGES;
    let file = file(0x200, 1, 496, pages * IMAGE_PAGE);
    let image = Image::parse(&file).expect("a good image");
    let mut params = Box::new(SeamldrParams::EMPTY);
    // Page n lies at n MB.
    let mut next = 0;
    let address = |page: &[u8]| {
        assert_eq!(page.len(), IMAGE_PAGE);
        next += 1 << 20;
        PhysAddr::new(next).ok_or(())
    };
    assert_eq!(params.fill(&image, address), Ok(()));
    assert_eq!((params.version, params.scenario), (0, 1));
    assert_eq!(params.sigstruct_page, 1 << 20);
    assert_eq!(params.module_pages, 496);
    for (index, &page) in params.module_page.iter().enumerate() {
        assert_eq!(page, (index as u64 + 2) << 20);
    }
}

#[test]
fn address_that_cannot_be_found_stops_it() {
    let file = file(0x200, 1, 3, 4 * IMAGE_PAGE);
    let image = Image::parse(&file).expect("a good image");
    let mut left = 2;
    let mut params = Box::new(SeamldrParams::EMPTY);
    let result = params.fill(&image, |_| {
        left -= 1;
        if left == 0 {
            Err("no page")
        } else {
            Ok(PhysAddr::ZERO)
        }
    });
    assert_eq!(result, Err("no page"));
}

proptest! {
    #[test]
    fn any_file_gets_a_verdict(mut bytes in vec(any::<u8>(), 0..9000)) {
        prop_assert!(Image::parse(&bytes).is_err());
        // With the mark and the version, the rest of the checks are reached.
        for (at, good) in [0, 2].into_iter().chain([0, 0]).chain(*b"TDX-BLOB").enumerate() {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = good;
            }
        }
        prop_assert!(Image::parse(&bytes).is_err());
    }

    #[test]
    fn verdict_follows_from_version_counts_and_length(
        version in prop_oneof![4 => Just(0x200), 1 => any::<u16>()],
        sigstruct in prop_oneof![4 => Just(1), 1 => any::<u32>(), 1 => 0..4u32],
        module in prop_oneof![4 => 1..8u32, 1 => any::<u32>(), 1 => 490..500u32],
        payload in prop_oneof![4 => (0..9usize).prop_map(|n| n * 4096), 1 => 0..40_000usize],
    ) {
        let file = file(version, sigstruct, module, payload);
        let fits = 4096 * (u64::from(sigstruct) + u64::from(module)) == payload as u64;
        let good = version == 0x200 && sigstruct == 1 && (1..=496).contains(&module) && fits;
        match Image::parse(&file) {
            Ok(image) => {
                prop_assert!(good);
                prop_assert!(image.sigstruct_pages().all(|page| page == [0; 4096]));
                prop_assert_eq!(image.module_pages().count(), module as usize);
                for (index, page) in image.module_pages().enumerate() {
                    prop_assert!(page.iter().all(|&byte| byte == index as u8 + 1));
                }
            }
            Err(error) => {
                prop_assert!(!good);
                let about_version = matches!(error, ImageError::FormatVersion { .. });
                prop_assert_eq!(about_version, version != 0x200);
            }
        }
    }

    #[test]
    fn every_header_byte_past_the_counts_must_be_zero(at in 20..4096usize, byte in 1..=255u8) {
        let mut file = file(0x200, 1, 2, 3 * 4096);
        file[at] = byte;
        prop_assert_eq!(Image::parse(&file), Err(ImageError::Reserved { offset: at }));
    }
}
