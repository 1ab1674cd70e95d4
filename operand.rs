// SPDX-License-Identifier: GPL-2.0

//! Operands of the leaves that run TDs: Secure EPT positions and addresses that carry a KeyID.
//!
//! [`GpaAndLevel`] says where in a TD's Secure EPT a call works, [`SeptLevel`] on which level of
//! it; [`KeyedAddr`] is the one place that puts a KeyID into an address. A value that the module
//! could only refuse does not come into being.
//!
//! Pure: `core` only, never panics. Neighbours: `td` makes the calls, `tlb` orders them.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use core::fmt;

use crate::range::{
    PageSize,
    Pfn, //
};

/// A level of the Secure EPT, named after what one entry on it maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SeptLevel {
    /// An entry maps 4 KB.
    Size4K,
    /// An entry maps 2 MB, or points to a table of the level below.
    Size2M,
    /// An entry maps 1 GB, or points to a table of the level below.
    Size1G,
    /// An entry points to a table for 512 GB.
    Size512G,
    /// An entry points to a table for 256 TB.
    Size256T,
}

/// A number that is no page table level of the processor: 0, or too high.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchLevel;

impl SeptLevel {
    /// The level as SEAMCALL operands carry it, 0 to 4.
    pub const fn get(self) -> u64 {
        match self {
            SeptLevel::Size4K => 0,
            SeptLevel::Size2M => 1,
            SeptLevel::Size1G => 2,
            SeptLevel::Size512G => 3,
            SeptLevel::Size256T => 4,
        }
    }

    /// The level as the kernel's `enum pg_level` has it.
    pub const fn pg_level(self) -> u32 {
        self.get() as u32 + 1
    }

    /// Bytes of guest memory below one entry.
    pub const fn bytes(self) -> u64 {
        PageSize::Size4K.bytes() << (9 * self.get())
    }
}

/// From the kernel's `enum pg_level`, where 1 is a 4 KB page and 0 is no level at all.
impl TryFrom<u32> for SeptLevel {
    type Error = NoSuchLevel;

    fn try_from(pg_level: u32) -> Result<Self, NoSuchLevel> {
        match pg_level {
            1 => Ok(SeptLevel::Size4K),
            2 => Ok(SeptLevel::Size2M),
            3 => Ok(SeptLevel::Size1G),
            4 => Ok(SeptLevel::Size512G),
            5 => Ok(SeptLevel::Size256T),
            _ => Err(NoSuchLevel),
        }
    }
}

/// A position in a TD's Secure EPT: a guest physical address and a level.
///
/// # Invariants
///
/// The address is a multiple of 4 KB, so that address and level share a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpaAndLevel {
    gpa: u64,
    level: SeptLevel,
}

impl GpaAndLevel {
    /// The position; [`None`] if `gpa` is not a multiple of 4 KB.
    pub const fn new(gpa: u64, level: SeptLevel) -> Option<Self> {
        if gpa & PageSize::Size4K.mask() == 0 {
            Some(GpaAndLevel { gpa, level })
        } else {
            None
        }
    }

    /// The operand, as the calls have it in RCX.
    pub const fn raw(self) -> u64 {
        self.gpa | self.level.get()
    }

    /// The guest physical address.
    pub const fn gpa(self) -> u64 {
        self.gpa
    }

    /// The level.
    pub const fn level(self) -> SeptLevel {
        self.level
    }
}

impl fmt::Display for GpaAndLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPA {:#x}, level {}", self.gpa, self.level.get())
    }
}

/// A physical address with a KeyID in the bits above the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyedAddr(u64);

impl KeyedAddr {
    /// The first byte of `frame`, seen through `keyid`, on a processor whose addresses have
    /// `phys_bits` bits without the KeyID.
    ///
    /// [`None`] if the frame is beyond these bits or the KeyID does not fit above them.
    pub fn new(frame: Pfn, keyid: u16, phys_bits: u32) -> Option<Self> {
        let addr = frame.start().get();
        let key = u64::from(keyid).checked_shl(phys_bits)?;
        let fits = key >> phys_bits == u64::from(keyid);
        (fits && addr >> phys_bits == 0).then_some(KeyedAddr(addr | key))
    }

    /// The operand.
    pub const fn raw(self) -> u64 {
        self.0
    }
}

#[cfg(any(test, CONFIG_INTEL_TDX_HOST_KUNIT_TEST))]
#[cfg_attr(
    CONFIG_INTEL_TDX_HOST_KUNIT_TEST,
    kernel::macros::kunit_tests(tdx_host_operand)
)]
mod tests {
    use super::*;

    #[test]
    fn levels_come_from_page_table_levels() {
        let operands = [0, 1, 2, 3, 4, 5, 6, u32::MAX].map(SeptLevel::try_from);
        assert_eq!(operands[0], Err(NoSuchLevel));
        for (level, operand) in operands[1..6].iter().enumerate() {
            assert_eq!(operand.map(SeptLevel::get), Ok(level as u64));
            assert_eq!(operand.map(SeptLevel::pg_level), Ok(level as u32 + 1));
        }
        assert_eq!(operands[6], Err(NoSuchLevel));
        assert_eq!(operands[7], Err(NoSuchLevel));
        assert_eq!(SeptLevel::Size4K.bytes(), 4096);
        assert_eq!(SeptLevel::Size2M.bytes(), 2 << 20);
        assert_eq!(SeptLevel::Size256T.bytes(), 256 << 40);
    }

    #[test]
    fn level_never_disturbs_the_address() -> Result<(), ()> {
        let at = GpaAndLevel::new(0x8000_0000, SeptLevel::Size1G).ok_or(())?;
        assert_eq!(at.raw(), 0x8000_0002);
        assert_eq!(at.gpa(), 0x8000_0000);
        assert_eq!(at.level(), SeptLevel::Size1G);
        assert_eq!(GpaAndLevel::new(0x8000_0800, SeptLevel::Size4K), None);
        assert_eq!(GpaAndLevel::new(1, SeptLevel::Size4K), None);
        Ok(())
    }

    #[test]
    fn key_goes_right_above_the_address() -> Result<(), ()> {
        let frame = Pfn::new(0x12345).ok_or(())?;
        let keyed = |key, bits| KeyedAddr::new(frame, key, bits).map(KeyedAddr::raw);
        assert_eq!(keyed(0x21, 46), Some((0x21 << 46) | 0x1234_5000));
        assert_eq!(keyed(0, 46), Some(0x1234_5000));
        // The frame needs 29 bits, the key 6.
        assert_eq!(keyed(0x21, 28), None);
        assert_eq!(keyed(0x21, 58), Some((0x21 << 58) | 0x1234_5000));
        assert_eq!(keyed(0x21, 59), None);
        assert_eq!(keyed(1, 64), None);
        Ok(())
    }
}
