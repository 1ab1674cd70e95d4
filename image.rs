// SPDX-License-Identifier: GPL-2.0

//! The file a runtime update comes in, and what the P-SEAMLDR wants to know about it.
//!
//! [`Image::parse`] checks a file before anything is touched and says what is wrong with it:
//!
//! | Bytes | Content |
//! |---|---|
//! | 0 | version of the format, 200h |
//! | 2 | checksum, which nobody defines |
//! | 4 | `TDX-BLOB` |
//! | 12 | number of SIGSTRUCT pages |
//! | 16 | number of module pages |
//! | 20 to 4095 | zeroes |
//! | 4096 | the SIGSTRUCT pages, then the module pages |
//!
//! [`SeamldrParams`] and [`SeamldrInfo`] are the operands of SEAMLDR.INSTALL and SEAMLDR.INFO in
//! memory.
//!
//! Pure: `core` only, never panics. Neighbour: `update` makes the calls.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use core::fmt;
use core::mem::{
    align_of,
    offset_of,
    size_of, //
};

use crate::range::PhysAddr;

/// Bytes of a page of the file: its header, and the unit of all that follows.
pub const IMAGE_PAGE: usize = 4096;

/// Pages that the signature may have.
pub const MAX_SIGSTRUCT_PAGES: usize = 1;

/// Pages that the module may have.
pub const MAX_MODULE_PAGES: usize = 496;

/// The version of the format that is understood here.
const FORMAT_VERSION: u16 = 0x200;

const MAGIC: &[u8; 8] = b"TDX-BLOB";
const MAGIC_AT: usize = 4;
const SIGSTRUCT_PAGES_AT: usize = 12;
const MODULE_PAGES_AT: usize = 16;
const RESERVED_AT: usize = 20;

/// Why a file is not an image that can be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// The file has no complete header.
    NoHeader {
        /// Bytes in the file.
        have: usize,
    },
    /// The file does not start as an image does.
    NotAnImage,
    /// The format is not one that is understood here.
    FormatVersion {
        /// Version of the file's format.
        found: u16,
    },
    /// There must be 1 to [`MAX_SIGSTRUCT_PAGES`] pages of signature.
    SigstructPages {
        /// Pages the header announces.
        found: u32,
    },
    /// There must be 1 to [`MAX_MODULE_PAGES`] pages of module.
    ModulePages {
        /// Pages the header announces.
        found: u32,
    },
    /// A byte of the header that must be 0 is not: the file is of a newer kind.
    Reserved {
        /// Where.
        offset: usize,
    },
    /// The file is not as long as its header says.
    Length {
        /// Bytes there should be.
        expected: usize,
        /// Bytes there are.
        have: usize,
    },
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageError::NoHeader { have } => {
                write!(
                    f,
                    "{have} bytes are too few for its {IMAGE_PAGE} byte header"
                )
            }
            ImageError::NotAnImage => {
                f.write_str("it does not have the mark of a TDX module image (TDX-BLOB)")
            }
            ImageError::FormatVersion { found } => write!(
                f,
                "its format is version {found:#x}, only {FORMAT_VERSION:#x} is supported"
            ),
            ImageError::SigstructPages { found } => write!(
                f,
                "its signature has {found} pages, it must have 1 to {MAX_SIGSTRUCT_PAGES}"
            ),
            ImageError::ModulePages { found } => write!(
                f,
                "its module has {found} pages, it must have 1 to {MAX_MODULE_PAGES}"
            ),
            ImageError::Reserved { offset } => {
                write!(f, "byte {offset} of its header must be 0")
            }
            ImageError::Length { expected, have } => write!(
                f,
                "it has {have} bytes, and {expected} by its header: is it complete?"
            ),
        }
    }
}

/// A well-formed image; whether it is genuine is for the P-SEAMLDR to find out.
///
/// # Invariants
///
/// Both parts are whole pages, at least one and no more than the limits above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    sigstruct: &'a [u8],
    module: &'a [u8],
}

/// `N` bytes at `offset`.
fn bytes_at<const N: usize>(data: &[u8], offset: usize) -> Option<[u8; N]> {
    data.get(offset..)?.first_chunk().copied()
}

/// `pages` as a number of bytes, if it is from 1 to `max`.
fn part(pages: u32, max: usize) -> Option<usize> {
    let pages = usize::try_from(pages).ok()?;
    (1..=max).contains(&pages).then_some(pages * IMAGE_PAGE)
}

impl<'a> Image<'a> {
    /// Checks `data`, a whole file.
    ///
    /// # Errors
    ///
    /// [`ImageError`]: the first thing that is wrong.
    pub fn parse(data: &'a [u8]) -> Result<Self, ImageError> {
        let have = data.len();
        let no_header = ImageError::NoHeader { have };
        let (header, payload) = data.split_at_checked(IMAGE_PAGE).ok_or(no_header)?;
        let number = |at| {
            bytes_at(header, at)
                .map(u32::from_le_bytes)
                .ok_or(no_header)
        };

        if bytes_at(header, MAGIC_AT) != Some(*MAGIC) {
            return Err(ImageError::NotAnImage);
        }
        let version = bytes_at(header, 0).map(u16::from_le_bytes);
        let found = version.ok_or(no_header)?;
        if found != FORMAT_VERSION {
            return Err(ImageError::FormatVersion { found });
        }
        let found = number(SIGSTRUCT_PAGES_AT)?;
        let sigstruct =
            part(found, MAX_SIGSTRUCT_PAGES).ok_or(ImageError::SigstructPages { found })?;
        let found = number(MODULE_PAGES_AT)?;
        let module = part(found, MAX_MODULE_PAGES).ok_or(ImageError::ModulePages { found })?;
        let reserved = header.iter().enumerate().skip(RESERVED_AT);
        if let Some((offset, _)) = reserved.into_iter().find(|(_, &byte)| byte != 0) {
            return Err(ImageError::Reserved { offset });
        }

        let length = ImageError::Length {
            expected: IMAGE_PAGE + sigstruct + module,
            have,
        };
        let (sigstruct, rest) = payload.split_at_checked(sigstruct).ok_or(length)?;
        if rest.len() != module {
            return Err(length);
        }
        // INVARIANT: `part` has checked both lengths.
        Ok(Image {
            sigstruct,
            module: rest,
        })
    }

    /// The signature, in pages.
    pub fn sigstruct_pages(&self) -> impl Iterator<Item = &'a [u8]> {
        self.sigstruct.chunks(IMAGE_PAGE)
    }

    /// The module, in pages.
    pub fn module_pages(&self) -> impl Iterator<Item = &'a [u8]> {
        self.module.chunks(IMAGE_PAGE)
    }
}

/// What the P-SEAMLDR reads in SEAMLDR.INSTALL.
#[repr(C, align(4096))]
pub struct SeamldrParams {
    /// Version of this structure: 0.
    pub version: u32,
    /// What to do: 1 replaces the running module by one that takes over its TDs.
    pub scenario: u32,
    /// HPA of the signature's page.
    pub sigstruct_page: u64,
    reserved: [u8; 104],
    /// How many pages the module has.
    pub module_pages: u64,
    /// HPAs of the module's pages; 0 beyond the last.
    pub module_page: [u64; MAX_MODULE_PAGES],
}

const _: () = assert!(size_of::<SeamldrParams>() == 4096);
const _: () = assert!(align_of::<SeamldrParams>() == 4096);
const _: () = assert!(offset_of!(SeamldrParams, scenario) == 4);
const _: () = assert!(offset_of!(SeamldrParams, sigstruct_page) == 8);
const _: () = assert!(offset_of!(SeamldrParams, module_pages) == 120);
const _: () = assert!(offset_of!(SeamldrParams, module_page) == 128);

impl SeamldrParams {
    /// The scenario of an update.
    const UPDATE: u32 = 1;

    /// Parameters that name nothing yet.
    pub const EMPTY: Self = SeamldrParams {
        version: 0,
        scenario: Self::UPDATE,
        sigstruct_page: 0,
        reserved: [0; 104],
        module_pages: 0,
        module_page: [0; MAX_MODULE_PAGES],
    };

    /// Asks for an update to `image`; `address` says where each of its pages lies in memory.
    ///
    /// # Errors
    ///
    /// That of `address`. The parameters must not be used then.
    pub fn fill<E>(
        &mut self,
        image: &Image<'_>,
        mut address: impl FnMut(&[u8]) -> Result<PhysAddr, E>,
    ) -> Result<(), E> {
        self.scenario = Self::UPDATE;
        for page in image.sigstruct_pages() {
            self.sigstruct_page = address(page)?.get();
        }
        self.module_pages = 0;
        for (slot, page) in self.module_page.iter_mut().zip(image.module_pages()) {
            *slot = address(page)?.get();
            self.module_pages += 1;
        }
        Ok(())
    }
}

/// What the P-SEAMLDR says about itself in SEAMLDR.INFO.
#[repr(C, align(256))]
pub struct SeamldrInfo {
    /// Version of this structure.
    pub version: u32,
    /// Attributes of the P-SEAMLDR.
    pub attributes: u32,
    /// 8086h.
    pub vendor_id: u32,
    /// Build date, digits yyyymmdd.
    pub build_date: u32,
    /// Build number.
    pub build_num: u16,
    /// Minor version.
    pub minor_version: u16,
    /// Major version.
    pub major_version: u16,
    /// Update version.
    pub update_version: u16,
    /// Which CPU loaded it.
    pub acm_x2apicid: u32,
    /// How many more updates it takes until the machine is reset.
    pub num_remaining_updates: u32,
    /// About the TDX module; its own format.
    pub seam_info: [u8; 128],
    /// Whether a TDX module is loaded.
    pub seam_ready: u8,
    /// Whether it is a debug module.
    pub seam_debug: u8,
    /// Whether the P-SEAMLDR is ready.
    pub p_seamldr_ready: u8,
    reserved: [u8; 93],
}

const _: () = assert!(size_of::<SeamldrInfo>() == 256);
const _: () = assert!(offset_of!(SeamldrInfo, build_num) == 16);
const _: () = assert!(offset_of!(SeamldrInfo, acm_x2apicid) == 24);
const _: () = assert!(offset_of!(SeamldrInfo, num_remaining_updates) == 28);
const _: () = assert!(offset_of!(SeamldrInfo, seam_ready) == 160);

#[cfg(any(test, CONFIG_INTEL_TDX_HOST_KUNIT_TEST))]
#[cfg_attr(
    CONFIG_INTEL_TDX_HOST_KUNIT_TEST,
    kernel::macros::kunit_tests(tdx_host_image)
)]
mod tests {
    use super::*;

    const PAGES: usize = 4;

    /// A whole file: one page of signature, two of module.
    static GOOD: [u8; PAGES * IMAGE_PAGE] = file();

    /// A header for as many pages, and one byte after the last.
    static TOO_LONG: [u8; PAGES * IMAGE_PAGE + 1] = file();

    const fn file<const LEN: usize>() -> [u8; LEN] {
        let mut file = [0; LEN];
        file[1] = 2;
        let mut at = 0;
        while at < MAGIC.len() {
            file[MAGIC_AT + at] = MAGIC[at];
            at += 1;
        }
        file[SIGSTRUCT_PAGES_AT] = 1;
        file[MODULE_PAGES_AT] = 2;
        // The first byte of each page of payload is its number.
        while at < LEN {
            if at % IMAGE_PAGE == 0 {
                file[at] = (at / IMAGE_PAGE) as u8;
            }
            at += 1;
        }
        file
    }

    /// What is wrong with a file that ends after its header and has `patch` at `offset`.
    fn found(offset: usize, patch: &[u8]) -> Option<ImageError> {
        let mut header = [0; IMAGE_PAGE];
        header.copy_from_slice(&GOOD[..IMAGE_PAGE]);
        header[offset..offset + patch.len()].copy_from_slice(patch);
        Image::parse(&header).err()
    }

    #[test]
    fn good_image_is_cut_into_pages() {
        let image = Image::parse(&GOOD);
        assert!(image.is_ok());
        if let Ok(image) = image {
            assert_eq!(image.sigstruct_pages().count(), 1);
            assert!(image.sigstruct_pages().all(|page| page[0] == 1));
            let mut numbers = image.module_pages().map(|page| page[0]);
            assert_eq!(numbers.next(), Some(2));
            assert_eq!(numbers.next(), Some(3));
            assert_eq!(numbers.next(), None);
        }
    }

    #[test]
    fn each_check_says_what_it_found() {
        assert_eq!(found(MAGIC_AT, b"tdx"), Some(ImageError::NotAnImage));
        for version in [0x100u16, 0x201] {
            let error = ImageError::FormatVersion { found: version };
            assert_eq!(found(0, &version.to_le_bytes()), Some(error));
        }
        assert_eq!(
            found(SIGSTRUCT_PAGES_AT, &[2]),
            Some(ImageError::SigstructPages { found: 2 })
        );
        assert_eq!(
            found(SIGSTRUCT_PAGES_AT, &[0]),
            Some(ImageError::SigstructPages { found: 0 })
        );
        assert_eq!(
            found(MODULE_PAGES_AT, &[0xff; 4]),
            Some(ImageError::ModulePages { found: u32::MAX })
        );
        assert_eq!(
            found(MODULE_PAGES_AT, &[0xf1, 1]),
            Some(ImageError::ModulePages { found: 497 })
        );
        for offset in [RESERVED_AT, 2048, IMAGE_PAGE - 1] {
            assert_eq!(found(offset, &[1]), Some(ImageError::Reserved { offset }));
        }
        // Nobody defines the checksum.
        let length = ImageError::Length {
            expected: PAGES * IMAGE_PAGE,
            have: IMAGE_PAGE,
        };
        assert_eq!(found(2, &[0xab, 0xcd]), Some(length));
    }

    #[test]
    fn file_of_another_length_is_no_image() {
        for have in [0, 1, 20, IMAGE_PAGE - 1] {
            let error = Image::parse(&GOOD[..have]).err();
            assert_eq!(error, Some(ImageError::NoHeader { have }));
        }
        let expected = GOOD.len();
        for have in [IMAGE_PAGE, 2 * IMAGE_PAGE, 3 * IMAGE_PAGE, expected - 1] {
            let error = Image::parse(&GOOD[..have]).err();
            assert_eq!(error, Some(ImageError::Length { expected, have }));
        }
        let have = expected + 1;
        let error = Image::parse(&TOO_LONG).err();
        assert_eq!(error, Some(ImageError::Length { expected, have }));
    }

    #[test]
    fn largest_part_is_allowed_and_nothing_more() {
        assert_eq!(part(496, MAX_MODULE_PAGES), Some(496 * 4096));
        assert_eq!(part(497, MAX_MODULE_PAGES), None);
        assert_eq!(part(0, MAX_MODULE_PAGES), None);
        assert_eq!(part(u32::MAX, MAX_SIGSTRUCT_PAGES), None);
    }
}
