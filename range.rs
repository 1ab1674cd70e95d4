// SPDX-License-Identifier: GPL-2.0

//! Physical addresses, page frame numbers and half-open ranges of both, as types that do not mix.
//!
//! [`PhysAddr`] counts bytes, [`Pfn`] counts 4 KB frames; the way from one to the other is a named
//! method. [`PhysRange`] and [`PfnRange`] are half-open and never empty. All four stay at or below
//! [`PhysAddr::LIMIT`], the 2^52 bytes beyond which the TDX module accepts no address: the limit is
//! checked once, where a raw number comes in, and arithmetic after that cannot wrap.
//!
//! Pure: `core` only, never panics. Everything else builds on this file; it knows no one.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use core::fmt;

/// The page sizes TDX knows; also the levels of the Physical Address Metadata Table (PAMT).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PageSize {
    /// 4 KB.
    Size4K,
    /// 2 MB.
    Size2M,
    /// 1 GB, which is also the granule of a TDMR.
    Size1G,
}

impl PageSize {
    /// All page sizes, smallest first.
    pub const ALL: [PageSize; 3] = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];

    /// Size of one page in bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            PageSize::Size4K => 1 << 12,
            PageSize::Size2M => 1 << 21,
            PageSize::Size1G => 1 << 30,
        }
    }

    /// The bits of an address below a page of this size.
    pub const fn mask(self) -> u64 {
        match self {
            PageSize::Size4K => (1 << 12) - 1,
            PageSize::Size2M => (1 << 21) - 1,
            PageSize::Size1G => (1 << 30) - 1,
        }
    }

    /// Number of whole pages of this size in `bytes` bytes.
    pub const fn pages_in(self, bytes: u64) -> u64 {
        match self {
            PageSize::Size4K => bytes >> 12,
            PageSize::Size2M => bytes >> 21,
            PageSize::Size1G => bytes >> 30,
        }
    }

    /// `bytes` rounded up to a multiple of this size; `None` if that does not fit in 64 bits.
    pub const fn round_up(self, bytes: u64) -> Option<u64> {
        match bytes.checked_add(self.mask()) {
            Some(sum) => Some(sum & !self.mask()),
            None => None,
        }
    }
}

/// As users read it: `2 MB`.
impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PageSize::Size4K => "4 KB",
            PageSize::Size2M => "2 MB",
            PageSize::Size1G => "1 GB",
        })
    }
}

/// A physical address in bytes, without KeyID bits.
///
/// # Invariants
///
/// At most [`PhysAddr::LIMIT`]; that value itself only makes sense as the end of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysAddr(u64);

impl PhysAddr {
    /// First address the TDX module refuses: 2^52, whatever the processor's own width.
    pub const LIMIT: PhysAddr = PhysAddr(1 << 52);

    /// Address zero.
    pub const ZERO: PhysAddr = PhysAddr(0);

    /// Takes a raw address; `None` above [`PhysAddr::LIMIT`].
    pub const fn new(raw: u64) -> Option<Self> {
        if raw <= Self::LIMIT.0 {
            Some(PhysAddr(raw))
        } else {
            None
        }
    }

    /// The raw address.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// This address plus `bytes`; `None` if that passes [`PhysAddr::LIMIT`].
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(raw) => PhysAddr::new(raw),
            None => None,
        }
    }

    /// Whether the address is a multiple of `size`.
    pub const fn is_aligned(self, size: PageSize) -> bool {
        self.0 & size.mask() == 0
    }

    /// The address rounded down to a multiple of `size`.
    pub const fn align_down(self, size: PageSize) -> Self {
        PhysAddr(self.0 & !size.mask())
    }

    /// The address rounded up to a multiple of `size`; `None` if that passes
    /// [`PhysAddr::LIMIT`].
    pub const fn align_up(self, size: PageSize) -> Option<Self> {
        match size.round_up(self.0) {
            Some(raw) => PhysAddr::new(raw),
            None => None,
        }
    }

    /// The page frame this address lies in.
    pub const fn frame(self) -> Pfn {
        Pfn(PageSize::Size4K.pages_in(self.0))
    }
}

impl fmt::Display for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A page frame number: a physical address in units of 4 KB.
///
/// # Invariants
///
/// At most [`Pfn::LIMIT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pfn(u64);

impl Pfn {
    /// The frame number of [`PhysAddr::LIMIT`].
    pub const LIMIT: Pfn = PhysAddr::LIMIT.frame();

    /// Takes a raw frame number; `None` above [`Pfn::LIMIT`].
    pub const fn new(raw: u64) -> Option<Self> {
        if raw <= Self::LIMIT.0 {
            Some(Pfn(raw))
        } else {
            None
        }
    }

    /// The raw frame number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The address of the first byte of the frame.
    pub const fn start(self) -> PhysAddr {
        // INVARIANT: a frame number is at most 2^40, so the address is at most 2^52.
        PhysAddr(self.0 << 12)
    }
}

/// A half-open, non-empty range of physical addresses.
///
/// # Invariants
///
/// `start < end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PhysRange {
    start: PhysAddr,
    end: PhysAddr,
}

impl PhysRange {
    /// The range `[start, end)`; `None` unless `start < end`.
    pub const fn new(start: PhysAddr, end: PhysAddr) -> Option<Self> {
        if start.0 < end.0 {
            Some(PhysRange { start, end })
        } else {
            None
        }
    }

    /// The range of `size` bytes from `start`; `None` if it is empty or passes
    /// [`PhysAddr::LIMIT`].
    pub const fn from_size(start: PhysAddr, size: u64) -> Option<Self> {
        match start.checked_add(size) {
            Some(end) => PhysRange::new(start, end),
            None => None,
        }
    }

    /// The range from two raw addresses; `None` if empty or beyond [`PhysAddr::LIMIT`].
    pub const fn from_raw(start: u64, end: u64) -> Option<Self> {
        match (PhysAddr::new(start), PhysAddr::new(end)) {
            (Some(start), Some(end)) => PhysRange::new(start, end),
            _ => None,
        }
    }

    /// First address of the range.
    pub const fn start(self) -> PhysAddr {
        self.start
    }

    /// First address after the range.
    pub const fn end(self) -> PhysAddr {
        self.end
    }

    /// Length in bytes; never 0.
    pub const fn size(self) -> u64 {
        // By the invariant this is a plain subtraction.
        self.end.0.wrapping_sub(self.start.0)
    }

    /// Whether `addr` lies in the range.
    pub const fn contains_addr(self, addr: PhysAddr) -> bool {
        self.start.0 <= addr.0 && addr.0 < self.end.0
    }

    /// Whether all of `other` lies in the range.
    pub const fn contains(self, other: PhysRange) -> bool {
        self.start.0 <= other.start.0 && other.end.0 <= self.end.0
    }

    /// Whether the two ranges share a byte.
    pub const fn overlaps(self, other: PhysRange) -> bool {
        self.start.0 < other.end.0 && other.start.0 < self.end.0
    }

    /// What the two ranges share, if anything.
    pub fn intersection(self, other: PhysRange) -> Option<PhysRange> {
        PhysRange::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// Whether both ends are multiples of `size`.
    pub const fn is_aligned(self, size: PageSize) -> bool {
        self.start.is_aligned(size) && self.end.is_aligned(size)
    }

    /// The smallest range of whole pages of `size` around this one; `None` if it would pass
    /// [`PhysAddr::LIMIT`].
    pub const fn round_out(self, size: PageSize) -> Option<Self> {
        match self.end.align_up(size) {
            Some(end) => PhysRange::new(self.start.align_down(size), end),
            None => None,
        }
    }
}

/// As users know it from the kernel log: `[0x100000, 0x80000000)`.
impl fmt::Display for PhysRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start, self.end)
    }
}

/// A half-open, non-empty run of page frames.
///
/// # Invariants
///
/// `start < end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PfnRange {
    start: Pfn,
    end: Pfn,
}

impl PfnRange {
    /// The frames `[start, end)`; `None` unless `start < end`.
    pub const fn new(start: Pfn, end: Pfn) -> Option<Self> {
        if start.0 < end.0 {
            Some(PfnRange { start, end })
        } else {
            None
        }
    }

    /// The frames from two raw numbers; `None` if empty or beyond [`Pfn::LIMIT`].
    pub const fn from_raw(start: u64, end: u64) -> Option<Self> {
        match (Pfn::new(start), Pfn::new(end)) {
            (Some(start), Some(end)) => PfnRange::new(start, end),
            _ => None,
        }
    }

    /// First frame of the run.
    pub const fn start(self) -> Pfn {
        self.start
    }

    /// First frame after the run.
    pub const fn end(self) -> Pfn {
        self.end
    }

    /// Number of frames; never 0.
    pub const fn pages(self) -> u64 {
        // By the invariant this is a plain subtraction.
        self.end.0.wrapping_sub(self.start.0)
    }

    /// The same memory as addresses.
    pub const fn bytes(self) -> PhysRange {
        PhysRange {
            start: self.start.start(),
            end: self.end.start(),
        }
    }
}

#[cfg(any(test, CONFIG_INTEL_TDX_HOST_KUNIT_TEST))]
#[cfg_attr(
    CONFIG_INTEL_TDX_HOST_KUNIT_TEST,
    kernel::macros::kunit_tests(tdx_host_range)
)]
mod tests {
    use super::*;

    #[test]
    fn addresses_end_at_the_module_limit() {
        assert_eq!(PhysAddr::new(1 << 52), Some(PhysAddr::LIMIT));
        assert_eq!(PhysAddr::new((1 << 52) + 1), None);
        assert_eq!(PhysAddr::new(u64::MAX), None);
        assert_eq!(Pfn::new(1 << 40), Some(Pfn::LIMIT));
        assert_eq!(Pfn::new((1 << 40) + 1), None);
        assert_eq!(Pfn::LIMIT.start(), PhysAddr::LIMIT);
        assert_eq!(PhysAddr::LIMIT.checked_add(1), None);
        assert_eq!(PhysAddr::ZERO.checked_add(u64::MAX), None);
    }

    #[test]
    fn alignment_rounds_both_ways() -> Result<(), ()> {
        let addr = PhysAddr::new(0x4000_0001).ok_or(())?;
        assert_eq!(addr.align_down(PageSize::Size1G).get(), 0x4000_0000);
        assert_eq!(
            addr.align_up(PageSize::Size1G).map(PhysAddr::get),
            Some(0x8000_0000)
        );
        assert!(!addr.is_aligned(PageSize::Size4K));
        let near_limit = PhysAddr::new((1 << 52) - 1).ok_or(())?;
        assert_eq!(near_limit.align_up(PageSize::Size1G), Some(PhysAddr::LIMIT));
        Ok(())
    }

    #[test]
    fn ranges_are_never_empty() {
        assert_eq!(PhysRange::from_raw(4096, 4096), None);
        assert_eq!(PhysRange::from_raw(8192, 4096), None);
        assert_eq!(PfnRange::from_raw(1, 1), None);
        assert_eq!(PfnRange::from_raw(0, u64::MAX), None);
        assert_eq!(PhysRange::from_size(PhysAddr::ZERO, 0), None);
        assert_eq!(PfnRange::from_raw(1, 3).map(PfnRange::pages), Some(2));
    }

    #[test]
    fn touching_ranges_do_not_overlap() -> Result<(), ()> {
        let low = PhysRange::from_raw(0, 0x1000).ok_or(())?;
        let high = PhysRange::from_raw(0x1000, 0x3000).ok_or(())?;
        let both = PhysRange::from_raw(0, 0x3000).ok_or(())?;
        assert!(!low.overlaps(high));
        assert_eq!(low.intersection(high), None);
        assert_eq!(both.intersection(high), Some(high));
        assert!(both.contains(low) && both.contains(high) && !low.contains(both));
        assert!(!low.contains_addr(high.start()));
        Ok(())
    }

    #[test]
    fn rounding_out_covers_the_range() -> Result<(), ()> {
        let range = PfnRange::from_raw(0x100, 0x80001).ok_or(())?.bytes();
        let rounded = range.round_out(PageSize::Size1G).ok_or(())?;
        assert_eq!(rounded.start(), PhysAddr::ZERO);
        assert_eq!(rounded.end().get(), 3 << 30);
        assert_eq!(rounded.size(), 3 << 30);
        assert!(rounded.is_aligned(PageSize::Size1G));
        Ok(())
    }
}
