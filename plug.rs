// SPDX-License-Identifier: GPL-2.0

//! Whether memory may come online: the answer that memory hotplug asks for.
//!
//! Any page of the page allocator may become a TD's, and the TDX module works with the memory it
//! was told about when it came up. So while TDX is up, nothing else may come online. While it is
//! not, everything may: what is there when TDX comes up becomes TDX memory then, and where TDX is
//! off, did not come up or was lost, no page becomes a TD's before the next boot.
//!
//! Pure: `core` only, never panics. Next door: `memlist` knows what is TDX memory, `memory` is the
//! notifier that asks here.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use core::fmt;

use crate::memlist::{
    self,
    Region, //
};
use crate::range::{
    PfnRange,
    PhysAddr,
    PhysRange, //
};

/// Why memory stays offline. Shown, it says which, why, and what the administrator can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// TDX came up without this memory, or without some of it.
    NotTdxMemory {
        /// What was to come online.
        asked: PhysRange,
        /// The lowest stretch of it that is not TDX memory.
        outside: PhysRange,
    },
    /// It ends beyond the 2^52 bytes that the TDX module can address. Page frames.
    BeyondLimit {
        /// The first one.
        start_pfn: u64,
        /// How many.
        pages: u64,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Refusal::NotTdxMemory { asked, outside } => {
                write!(f, "memory {asked} stays offline: TDX came up without ")?;
                if outside == asked {
                    f.write_str("it")?;
                } else {
                    write!(f, "{outside} of it")?;
                }
                f.write_str(
                    ", and the TDX module takes no more memory. To use it, reboot with it in \
                     place (TDX does not come up with CXL or persistent memory), or turn TDX off \
                     in the BIOS",
                )
            }
            Refusal::BeyondLimit { start_pfn, pages } => write!(
                f,
                "memory of {pages:#x} page frames from {start_pfn:#x} on stays offline: it ends \
                 beyond {}, where TDX cannot address memory. To use it, turn TDX off in the BIOS",
                PhysAddr::LIMIT
            ),
        }
    }
}

/// Whether the `pages` page frames from `start_pfn` on may come online.
///
/// `tdx_memory` is what the TDX module works with, ascending and disjoint; `None` while TDX is not
/// up, whatever the reason.
///
/// # Errors
///
/// [`Refusal`].
pub fn judge(tdx_memory: Option<&[Region]>, start_pfn: u64, pages: u64) -> Result<(), Refusal> {
    let Some(regions) = tdx_memory else {
        return Ok(());
    };
    if pages == 0 {
        return Ok(());
    }
    let frames = PfnRange::from_raw(start_pfn, start_pfn.saturating_add(pages))
        .ok_or(Refusal::BeyondLimit { start_pfn, pages })?;
    match memlist::first_outside(regions, frames) {
        None => Ok(()),
        Some(outside) => Err(Refusal::NotTdxMemory {
            asked: frames.bytes(),
            outside: outside.bytes(),
        }),
    }
}

#[cfg(any(test, CONFIG_INTEL_TDX_HOST_KUNIT_TEST))]
#[cfg_attr(
    CONFIG_INTEL_TDX_HOST_KUNIT_TEST,
    kernel::macros::kunit_tests(tdx_host_plug)
)]
mod tests {
    use super::*;
    use crate::memlist::NodeId;

    /// Frames `[0x100, 0x8000)` and, on two nodes that touch, `[0x10_0000, 0x20_0000)`.
    fn regions() -> Option<[Region; 3]> {
        let region = |start, end, node| {
            PfnRange::from_raw(start, end).map(|frames| Region::new(frames, NodeId::new(node)))
        };
        Some([
            region(0x100, 0x8000, 0)?,
            region(0x10_0000, 0x18_0000, 0)?,
            region(0x18_0000, 0x20_0000, 1)?,
        ])
    }

    /// Asks for `[start, end)`; in an error the frames that are outside.
    fn ask(start: u64, end: u64) -> Result<(), Option<(u64, u64)>> {
        let regions = regions().ok_or(None)?;
        match judge(Some(&regions), start, end.wrapping_sub(start)) {
            Ok(()) => Ok(()),
            Err(Refusal::NotTdxMemory { asked, outside }) => {
                let frames = |range: PhysRange| (range.start().frame(), range.end().frame());
                assert_eq!(frames(asked).0.get(), start);
                assert_eq!(frames(asked).1.get(), end);
                Err(Some((frames(outside).0.get(), frames(outside).1.get())))
            }
            Err(Refusal::BeyondLimit { .. }) => Err(None),
        }
    }

    #[test]
    fn memory_inside_a_region_comes_online() {
        assert_eq!(ask(0x100, 0x8000), Ok(()));
        assert_eq!(ask(0x10_8000, 0x11_0000), Ok(()));
        assert_eq!(ask(0x1f_ffff, 0x20_0000), Ok(()));
    }

    #[test]
    fn memory_across_regions_that_touch_comes_online() {
        assert_eq!(ask(0x17_8000, 0x18_8000), Ok(()));
        assert_eq!(ask(0x10_0000, 0x20_0000), Ok(()));
    }

    #[test]
    fn memory_partly_outside_is_refused_for_the_part() {
        assert_eq!(ask(0xff, 0x200), Err(Some((0xff, 0x100))));
        assert_eq!(ask(0x7fff, 0x8001), Err(Some((0x8000, 0x8001))));
        assert_eq!(ask(0x7000, 0x11_0000), Err(Some((0x8000, 0x10_0000))));
        assert_eq!(ask(0x1f_8000, 0x20_8000), Err(Some((0x20_0000, 0x20_8000))));
    }

    #[test]
    fn memory_outside_is_refused() {
        assert_eq!(ask(0, 0x100), Err(Some((0, 0x100))));
        assert_eq!(ask(0x8000, 0x1_0000), Err(Some((0x8000, 0x1_0000))));
        assert_eq!(ask(0x20_0000, 0x20_8000), Err(Some((0x20_0000, 0x20_8000))));
        assert!(judge(Some(&[]), 1, 1).is_err());
    }

    #[test]
    fn impossible_memory_is_refused() {
        assert_eq!(ask(0x10_0000, (1 << 40) + 1), Err(None));
        assert_eq!(ask(u64::MAX - 1, u64::MAX), Err(None));
        assert!(judge(Some(&[]), u64::MAX, u64::MAX).is_err());
        assert_eq!(judge(Some(&[]), 1, 0), Ok(()));
    }

    #[test]
    fn everything_comes_online_while_tdx_is_not_up() {
        assert_eq!(judge(None, 0, 0x8000), Ok(()));
        assert_eq!(judge(None, 0x20_0000, 0x8000), Ok(()));
        assert_eq!(judge(None, u64::MAX, u64::MAX), Ok(()));
    }
}
