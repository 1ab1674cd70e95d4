// SPDX-License-Identifier: GPL-2.0

//! Arithmetic on host physical addresses: limits, KeyID bits ([`KeyLayout`]), runs of bytes.

use std::ops::Range;

/// All addresses lie below this limit, whatever the processor's own width is.
pub(crate) const LIMIT: u64 = 1 << 52;

/// Bytes in a 4 KB page.
pub(crate) const PAGE_4K: u64 = 1 << 12;

/// Bytes in a 1 GB page, the granule of a TDMR.
pub(crate) const PAGE_1G: u64 = 1 << 30;

/// Where the KeyID lies in an address and which KeyIDs are private.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyLayout {
    /// Lowest bit of the KeyID.
    pub(crate) start_bit: u32,
    /// Width of the KeyID in bits.
    pub(crate) bits: u32,
    /// First private KeyID.
    pub(crate) private_min: u32,
    /// Last private KeyID; below `private_min` if there is none.
    pub(crate) private_max: u32,
}

impl KeyLayout {
    /// The bits of an address that hold the KeyID.
    pub(crate) fn mask(self) -> u64 {
        ((1 << self.bits) - 1) << self.start_bit
    }

    /// The KeyID in an address.
    pub(crate) fn key_of(self, hpa: u64) -> u32 {
        ((hpa & self.mask()) >> self.start_bit) as u32
    }

    /// The address without its KeyID.
    pub(crate) fn without_key(self, hpa: u64) -> u64 {
        hpa & !self.mask()
    }

    /// Whether the host may not use this KeyID. Numbers above the last private one count too.
    pub(crate) fn is_private(self, key: u32) -> bool {
        key >= self.private_min
    }

    /// Whether TDs and the module may be given this KeyID.
    pub(crate) fn is_assignable(self, key: u32) -> bool {
        (self.private_min..=self.private_max).contains(&key)
    }

    /// Whether `hpa` is below the limit and has KeyID 0.
    pub(crate) fn is_plain(self, hpa: u64) -> bool {
        hpa < LIMIT && hpa & self.mask() == 0
    }
}

/// The bytes of (base, size) as a range, or `None` if it wraps.
pub(crate) fn span(base: u64, size: u64) -> Option<Range<u64>> {
    Some(base..base.checked_add(size)?)
}

/// Whether two (base, size) runs that do not wrap share a byte.
pub(crate) fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.1 > 0 && b.1 > 0 && a.0 < b.0.saturating_add(b.1) && b.0 < a.0.saturating_add(a.1)
}

/// Whether two ranges share a byte.
pub(crate) fn ranges_overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start.max(b.start) < a.end.min(b.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_bits_are_cut_out_of_an_address() {
        let keys = KeyLayout {
            start_bit: 46,
            bits: 6,
            private_min: 16,
            private_max: 63,
        };
        assert_eq!(keys.mask(), 0x000f_c000_0000_0000);
        assert_eq!(keys.key_of(0x0008_0000_1234_5000), 32);
        assert_eq!(keys.without_key(0x0008_0000_1234_5000), 0x1234_5000);
        assert!(keys.is_private(16) && !keys.is_private(15));
        assert!(keys.is_plain(0x1000) && !keys.is_plain(1 << 46) && !keys.is_plain(1 << 52));
    }

    #[test]
    fn touching_runs_do_not_overlap() {
        assert!(!overlap((0, 4), (4, 4)));
        assert!(overlap((0, 5), (4, 4)));
        assert!(!overlap((0, 5), (4, 0)));
        assert!(ranges_overlap(&(0..5), &(4..8)) && !ranges_overlap(&(0..4), &(4..8)));
    }
}
