// SPDX-License-Identifier: GPL-2.0

//! What the fuzzers do with their input; `tests/corpus.rs` does the same with the corpus.

use std::boxed::Box;
use std::format;
use std::string::ToString;
use std::vec::Vec;

use crate::fields::FieldId;
use crate::host::{
    configure,
    Placer,
    Terms,
    VecStore, //
};
use crate::image::{
    Image,
    SeamldrParams,
    IMAGE_PAGE, //
};
use crate::interval::{
    interval,
    Interval, //
};
use crate::metadata::{
    read_cmrs,
    FieldReader,
    SysInfo, //
};
use crate::pamt::PamtEntrySizes;
use crate::range::PhysAddr;
use crate::store::Store;
use crate::sys_config;
use crate::tdmr::{
    Goal,
    Limits, //
};

/// Any bytes as an image for runtime update: a verdict, and pages only of what is there.
pub fn image(data: &[u8]) {
    match Image::parse(data) {
        Ok(image) => {
            let pages = image.sigstruct_pages().count() + image.module_pages().count();
            assert_eq!((pages + 1) * IMAGE_PAGE, data.len());
            let mut params = Box::new(SeamldrParams::EMPTY);
            let mut filled = 0;
            let result = params.fill(&image, |page| {
                assert_eq!(page.len(), IMAGE_PAGE);
                filled += 1;
                PhysAddr::new(filled << 12).ok_or(())
            });
            assert_eq!(result, Ok(()));
            assert_eq!(filled as usize, pages);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Answers with one word of the input after the other. The first byte of nine says which reads fail
/// and which get a small number, as most fields are.
struct Words<'a>(&'a [u8]);

impl FieldReader for Words<'_> {
    type Error = u8;

    fn read(&mut self, _: FieldId) -> Result<u64, u8> {
        let (word, rest) = self.0.split_first_chunk::<9>().ok_or(0)?;
        self.0 = rest;
        let [kind, bytes @ ..] = *word;
        match kind {
            0xff => Err(kind),
            0x80.. => Ok(u64::from_le_bytes(bytes)),
            _ => Ok(bytes[0].into()),
        }
    }
}

/// Any answers of the TDX module to reads of its metadata: what is decoded keeps its bounds.
pub fn metadata(data: &[u8]) {
    let mut words = Words(data);
    let mut cmrs = VecStore::with_room(64);
    if let Err(error) = read_cmrs(&mut words, &mut cmrs) {
        assert!(!format!("{error:?}").is_empty());
    }
    assert!(cmrs.as_slice().iter().all(|cmr| cmr.size() > 0));
    let mut info = Box::new(SysInfo::EMPTY);
    match info.read(&mut words) {
        Ok(()) => assert!(info.td_conf.num_cpuid_config <= 128),
        Err(error) => assert!(!format!("{error:?}").is_empty()),
    }
}

/// Numbers out of bytes, zeroes when they run out.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    /// A number of pages in one or two bytes, or anything in nine.
    fn pages(&mut self) -> u64 {
        let kind = self.byte();
        let more = u64::from(self.byte());
        match kind {
            0..=0x3f => more + 1,
            0x40..=0x7f => more << 8,
            0x80..=0xbf => more << 18,
            0xc0..=0xdf => (more << 18) + u64::from(kind & 0x1f),
            0xe0..=0xef => (more << 8) + u64::from(kind & 0xf),
            _ => (0..6).fold(more, |number, _| number << 8 | u64::from(self.byte())),
        }
    }
}

/// Any memory map, CMRs, limits and luck of the allocator: a plan that keeps the rules of
/// TDH.SYS.CONFIG, or an error in words.
pub fn plan(data: &[u8]) {
    let mut input = Input(data);
    let max_tdmrs = limit(input.byte());
    let max_reserved = limit(input.byte());
    let hostile = input.byte();
    let sizes: [u16; 3] = match hostile & 1 {
        0 => [16; 3],
        _ => [0; 3].map(|_: u16| u16::from(input.byte()) * 257),
    };
    let goal = Goal {
        min_tdmrs: input.byte().into(),
        max_gb: u64::from(input.byte()) * 4 + 1,
    };
    let largest = match input.byte() {
        0 => u64::MAX,
        number => u64::from(number) << 20,
    };
    let picks = [0; 3].map(|_: u64| u64::from(input.byte()) << 56 | u64::from(input.byte()));

    let (mut memory, mut cmrs) = (Vec::new(), Vec::<Interval>::new());
    let mut next = 0u64;
    while !input.0.is_empty() && memory.len() < 48 {
        let flags = input.byte();
        // Regions ascend unless the input is hostile.
        let start = match flags & 0x40 {
            0 => next.wrapping_add(input.pages()),
            _ if hostile & 2 != 0 => input.pages(),
            _ => next,
        };
        let end = start.wrapping_add(input.pages());
        let end = if flags & 8 == 0 { end } else { end & !0x3ffff };
        memory.push((start, end, i32::from(flags & 3)));
        next = end;
        let bytes = |pages: u64| pages.saturating_mul(4096).min(1 << 52);
        let cmr = interval(bytes(start.max(256)), bytes(end));
        match cmrs.last_mut() {
            Some(last) if flags & 4 != 0 && last.end <= cmr.end => last.end = cmr.end,
            _ if cmr.start < cmr.end || hostile & 4 != 0 => cmrs.push(cmr),
            _ => {}
        }
    }
    let free: Vec<Interval> = cmrs
        .iter()
        .copied()
        .filter(|cmr| cmr.start < cmr.end)
        .collect();
    let sorted = free.windows(2).all(|w| w[0].end <= w[1].start);
    if !sorted {
        return;
    }
    let regions: Vec<Interval> = memory
        .iter()
        .map(|&(start, end, _)| (start.max(256), end))
        .filter(|(start, end)| start < end && *end <= 1 << 40)
        .map(|(start, end)| interval(start * 4096, end * 4096))
        .collect();
    let ascend = regions.windows(2).all(|w| w[0].end <= w[1].start);
    let free = if ascend { &regions[..] } else { &[] };

    let terms = Terms {
        limits: Limits {
            max_tdmrs,
            max_reserved,
        },
        entries: PamtEntrySizes {
            size_4k: sizes[0],
            size_2m: sizes[1],
            size_1g: sizes[2],
        },
        goal,
    };
    let mut placer = Placer::with_largest(free, &picks, largest);
    match configure(&memory, &cmrs, &terms, &mut placer) {
        Ok(config) => {
            assert!(config.tdmrs.len() <= max_tdmrs.into());
            // The checker knows the entry sizes and limits of real modules only.
            let convertible = free.iter().all(|region| region.inside(&cmrs));
            if hostile & 1 == 0 && config.tdmrs.len() <= 64 && convertible {
                let faults = sys_config::faults(&config.infos, max_reserved.into(), &cmrs);
                assert!(faults.is_empty(), "{faults:?}");
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Mostly small, sometimes the largest there is.
fn limit(byte: u8) -> u16 {
    match byte {
        0xff => u16::MAX,
        0x80.. => (byte & 0x7f).into(),
        _ => (byte & 0x1f).into(),
    }
}
