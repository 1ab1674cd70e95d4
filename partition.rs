// SPDX-License-Identifier: GPL-2.0

//! How firmware divides the KeyIDs, and which of them TDX uses for what.
//!
//! [`KeyIdPartition`] decodes the MSR that firmware sets; [`TdxKeyIds`] is what follows from it:
//! the first TDX KeyID is the global one, which protects the TDX module's own metadata, and the
//! rest, [`GuestKeyIds`], are for guests.
//!
//! Pure: `core` only, never panics. Next door: `keyid` hands guest KeyIDs out.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use core::fmt;

/// TDX needs a global KeyID and at least one for a guest.
pub const MIN_TDX_KEYIDS: u32 = 2;

/// First number that does not fit where SEAMCALL operands carry a KeyID: they have 16 bits.
const KEYID_LIMIT: u32 = 1 << 16;

/// The value of MSR 87h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyIdPartition {
    /// Number of KeyIDs for MKTME, bits 31:0. They start at 1; KeyID 0 is the platform's own.
    pub mktme: u32,
    /// Number of KeyIDs for TDX, bits 63:32. They follow those for MKTME.
    pub tdx: u32,
}

impl KeyIdPartition {
    /// Decodes the raw value of MSR 87h.
    pub const fn from_msr(raw: u64) -> Self {
        KeyIdPartition {
            // CAST: the two halves of the register.
            mktme: (raw & 0xffff_ffff) as u32,
            tdx: (raw >> 32) as u32,
        }
    }
}

/// A host KeyID (HKID) that belongs to TDX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(u16);

impl KeyId {
    /// The number as SEAMCALL operands carry it.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Why TDX cannot be used with the KeyIDs that firmware left for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyIdError {
    /// Firmware gives TDX no KeyID: TDX is off in the BIOS.
    NoTdxKeyIds,
    /// Firmware gives TDX fewer than [`MIN_TDX_KEYIDS`].
    TooFew {
        /// KeyIDs there are.
        have: u32,
    },
    /// The KeyIDs do not fit in the 16 bits that SEAMCALL operands have for them.
    OutOfRange {
        /// What the MSR says.
        partition: KeyIdPartition,
    },
}

impl fmt::Display for KeyIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyIdError::NoTdxKeyIds => f.write_str("TDX is not enabled in the BIOS"),
            KeyIdError::TooFew { have } => write!(
                f,
                "too few private KeyIDs available: {have}, at least {MIN_TDX_KEYIDS} needed; \
                 give TDX more in the BIOS (TME-MT/TDX key split)"
            ),
            KeyIdError::OutOfRange { partition } => write!(
                f,
                "firmware reports {} MKTME and {} TDX KeyIDs, more than can be",
                partition.mktme, partition.tdx
            ),
        }
    }
}

/// The KeyIDs that belong to TDX.
///
/// # Invariants
///
/// `first >= 1`, `count >= 2`, and `first + count` is at most 65536.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TdxKeyIds {
    first: u16,
    count: u32,
}

impl TdxKeyIds {
    /// Divides what firmware left for TDX.
    ///
    /// # Errors
    ///
    /// [`KeyIdError`].
    pub fn new(partition: KeyIdPartition) -> Result<Self, KeyIdError> {
        if partition.tdx == 0 {
            return Err(KeyIdError::NoTdxKeyIds);
        }
        let out_of_range = KeyIdError::OutOfRange { partition };
        let first = partition.mktme.checked_add(1).ok_or(out_of_range)?;
        let end = first.checked_add(partition.tdx).ok_or(out_of_range)?;
        let first = u16::try_from(first).map_err(|_| out_of_range)?;
        if end > KEYID_LIMIT {
            return Err(out_of_range);
        }
        if partition.tdx < MIN_TDX_KEYIDS {
            return Err(KeyIdError::TooFew {
                have: partition.tdx,
            });
        }
        Ok(TdxKeyIds {
            first,
            count: partition.tdx,
        })
    }

    /// First KeyID of TDX.
    pub const fn start(&self) -> u32 {
        self.first as u32
    }

    /// First number after the KeyIDs of TDX.
    pub const fn end(&self) -> u32 {
        self.start().saturating_add(self.count)
    }

    /// The KeyID that protects the TDX module's metadata and the PAMTs.
    pub const fn global(&self) -> KeyId {
        KeyId(self.first)
    }

    /// The KeyIDs for guests.
    pub const fn guests(&self) -> GuestKeyIds {
        GuestKeyIds {
            first: self.start().saturating_add(1),
            count: self.count.saturating_sub(1),
        }
    }
}

/// As users know it from the kernel log: `[32, 64)`.
impl fmt::Display for TdxKeyIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start(), self.end())
    }
}

/// The KeyIDs that guests can have.
///
/// # Invariants
///
/// `first >= 2`, `count >= 1`, and `first + count` is at most 65536.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestKeyIds {
    first: u32,
    count: u32,
}

impl GuestKeyIds {
    /// The lowest KeyID for guests.
    pub const fn first(&self) -> u32 {
        self.first
    }

    /// How many there are; at least 1.
    pub const fn count(&self) -> u32 {
        self.count
    }
}

#[cfg(any(test, CONFIG_INTEL_TDX_HOST_KUNIT_TEST))]
#[cfg_attr(
    CONFIG_INTEL_TDX_HOST_KUNIT_TEST,
    kernel::macros::kunit_tests(tdx_host_partition)
)]
mod tests {
    use super::*;

    fn divide(mktme: u32, tdx: u32) -> Result<TdxKeyIds, KeyIdError> {
        TdxKeyIds::new(KeyIdPartition { mktme, tdx })
    }

    #[test]
    fn msr_halves_are_mktme_and_tdx() {
        let partition = KeyIdPartition::from_msr(0x0000_0030_0000_000f);
        assert_eq!(partition.mktme, 15);
        assert_eq!(partition.tdx, 48);
    }

    #[test]
    fn first_tdx_keyid_is_global_and_guests_get_the_rest() -> Result<(), KeyIdError> {
        let keyids = divide(31, 32)?;
        assert_eq!((keyids.start(), keyids.end()), (32, 64));
        assert_eq!(keyids.global().get(), 32);
        assert_eq!(keyids.guests().first(), 33);
        assert_eq!(keyids.guests().count(), 31);
        Ok(())
    }

    #[test]
    fn no_mktme_keyids_leave_keyid_0_alone() -> Result<(), KeyIdError> {
        let keyids = divide(0, 63)?;
        assert_eq!((keyids.start(), keyids.end()), (1, 64));
        assert_eq!(keyids.global().get(), 1);
        Ok(())
    }

    #[test]
    fn one_keyid_is_too_few() {
        assert_eq!(divide(31, 0), Err(KeyIdError::NoTdxKeyIds));
        assert_eq!(divide(31, 1), Err(KeyIdError::TooFew { have: 1 }));
        assert_eq!(divide(31, 2).map(|ids| ids.guests().count()), Ok(1));
    }

    #[test]
    fn impossible_partitions_are_refused() {
        let refused = |mktme, tdx| {
            let partition = KeyIdPartition { mktme, tdx };
            divide(mktme, tdx) == Err(KeyIdError::OutOfRange { partition })
        };
        assert!(refused(u32::MAX, 2));
        assert!(refused(u32::MAX - 1, 2));
        assert!(refused(65_535, 2));
        assert!(refused(0, 65_536));
        assert!(!refused(0, 65_535));
        assert!(!refused(65_533, 2));
    }
}
