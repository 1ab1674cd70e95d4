// SPDX-License-Identifier: GPL-2.0

//! The TDX module's ABI: what operands and results of SEAMCALLs hold.
//!
//! [`TdmrInfo`] tells TDH.SYS.CONFIG about a TDMR. The structures are output only: they are made
//! from our own records and never read back. The raw numbers of the ABI live here, in `leaf`,
//! `status`, `fields` and `partition`, and nowhere else.
//!
//! Words used throughout:
//!
//! | Term | Meaning |
//! |---|---|
//! | SEAMCALL | the instruction that calls the TDX module; RAX names the *leaf* |
//! | LP | logical processor |
//! | TDMR | TD Memory Region: 1 GB aligned memory that TDX may use |
//! | PAMT | Physical Address Metadata Table: the module's record of each page of a TDMR |
//! | CMR | Convertible Memory Region: memory that firmware allows TDX to use |
//! | HKID | host KeyID: selects the key that encrypts a line of memory |
//! | HPA | host physical address |
//!
//! Pure: `core` only, never panics. Made from what `tdmr` plans and `pamt` allocates.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use core::fmt;
use core::mem::{
    offset_of,
    size_of, //
};

use crate::pamt::Pamt;
use crate::range::{
    PageSize,
    PhysRange, //
};
use crate::tdmr::Tdmr;

/// The fixed head of TDMR_INFO; the reserved areas follow it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TdmrInfo {
    /// HPA of the TDMR, a multiple of 1 GB.
    pub base: u64,
    /// Bytes, a multiple of 1 GB.
    pub size: u64,
    /// HPA of the PAMT for 1 GB pages.
    pub pamt_1g_base: u64,
    /// Bytes of the PAMT for 1 GB pages.
    pub pamt_1g_size: u64,
    /// HPA of the PAMT for 2 MB pages.
    pub pamt_2m_base: u64,
    /// Bytes of the PAMT for 2 MB pages.
    pub pamt_2m_size: u64,
    /// HPA of the PAMT for 4 KB pages.
    pub pamt_4k_base: u64,
    /// Bytes of the PAMT for 4 KB pages.
    pub pamt_4k_size: u64,
}

const _: () = assert!(size_of::<TdmrInfo>() == 64);
const _: () = assert!(offset_of!(TdmrInfo, base) == 0);
const _: () = assert!(offset_of!(TdmrInfo, size) == 8);
const _: () = assert!(offset_of!(TdmrInfo, pamt_1g_base) == 16);
const _: () = assert!(offset_of!(TdmrInfo, pamt_1g_size) == 24);
const _: () = assert!(offset_of!(TdmrInfo, pamt_2m_base) == 32);
const _: () = assert!(offset_of!(TdmrInfo, pamt_2m_size) == 40);
const _: () = assert!(offset_of!(TdmrInfo, pamt_4k_base) == 48);
const _: () = assert!(offset_of!(TdmrInfo, pamt_4k_size) == 56);

/// One reserved area of a TDMR, relative to its base.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedArea {
    /// Bytes from the base of the TDMR, a multiple of 4 KB.
    pub offset: u64,
    /// Bytes, a multiple of 4 KB; 0 marks an unused entry.
    pub size: u64,
}

const _: () = assert!(size_of::<ReservedArea>() == 16);
const _: () = assert!(offset_of!(ReservedArea, offset) == 0);
const _: () = assert!(offset_of!(ReservedArea, size) == 8);

/// Where each TDMR_INFO must be aligned, and so the granule of its size. Bytes.
pub const TDMR_INFO_ALIGNMENT: usize = 512;

/// Where the array of TDMR_INFO addresses, an operand of TDH.SYS.CONFIG, must be aligned. Bytes.
pub const TDMR_INFO_ARRAY_ALIGNMENT: usize = 512;

const _: () = assert!(TDMR_INFO_ALIGNMENT % size_of::<u64>() == 0);

/// Why a TDMR_INFO could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TdmrInfoError {
    /// The buffer has no room for all reserved areas.
    TooSmall,
    /// A reserved area does not lie inside the TDMR.
    AreaOutside {
        /// The area.
        area: PhysRange,
    },
}

impl fmt::Display for TdmrInfoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TdmrInfoError::TooSmall => f.write_str("no room for all reserved areas in TDMR_INFO"),
            TdmrInfoError::AreaOutside { area } => {
                write!(f, "reserved area {area} is outside its TDMR")
            }
        }
    }
}

impl TdmrInfo {
    /// Describes `tdmr` and its tables.
    pub fn new(tdmr: &Tdmr, pamt: &Pamt) -> Self {
        let (pamt_4k, pamt_2m, pamt_1g) = (
            pamt.table(PageSize::Size4K),
            pamt.table(PageSize::Size2M),
            pamt.table(PageSize::Size1G),
        );
        TdmrInfo {
            base: tdmr.range().start().get(),
            size: tdmr.range().size(),
            pamt_1g_base: pamt_1g.base.get(),
            pamt_1g_size: pamt_1g.size,
            pamt_2m_base: pamt_2m.base.get(),
            pamt_2m_size: pamt_2m.size,
            pamt_4k_base: pamt_4k.base.get(),
            pamt_4k_size: pamt_4k.size,
        }
    }

    /// Bytes that one TDMR_INFO takes when the module reads `max_reserved` reserved areas in each:
    /// head and areas, rounded up to [`TDMR_INFO_ALIGNMENT`]. At most 1 MB + 512.
    pub const fn slot_bytes(max_reserved: u16) -> usize {
        let areas = (max_reserved as usize).saturating_mul(size_of::<ReservedArea>());
        let bytes = areas.saturating_add(size_of::<TdmrInfo>());
        bytes.saturating_add(TDMR_INFO_ALIGNMENT - 1) & !(TDMR_INFO_ALIGNMENT - 1)
    }

    /// The head as eight words in memory order.
    pub const fn words(&self) -> [u64; 8] {
        [
            self.base,
            self.size,
            self.pamt_1g_base,
            self.pamt_1g_size,
            self.pamt_2m_base,
            self.pamt_2m_size,
            self.pamt_4k_base,
            self.pamt_4k_size,
        ]
    }

    /// Writes head and reserved areas (absolute, ascending, as `tdmr::reserve` lists them) into
    /// `slot`, and zeroes the rest of it. `slot` is [`TdmrInfo::slot_bytes`] long, in words.
    ///
    /// # Errors
    ///
    /// [`TdmrInfoError`]; `slot` is then of no use.
    pub fn write(&self, areas: &[PhysRange], slot: &mut [u64]) -> Result<(), TdmrInfoError> {
        slot.fill(0);
        let mut words = slot.iter_mut();
        let mut put = |word: u64| {
            let place = words.next().ok_or(TdmrInfoError::TooSmall)?;
            *place = word;
            Ok(())
        };
        for word in self.words() {
            put(word)?;
        }
        for &area in areas {
            let entry = self.relative(area)?;
            put(entry.offset)?;
            put(entry.size)?;
        }
        Ok(())
    }

    /// `area` as the module wants it, relative to the base.
    fn relative(&self, area: PhysRange) -> Result<ReservedArea, TdmrInfoError> {
        let outside = TdmrInfoError::AreaOutside { area };
        let end = self.base.checked_add(self.size).ok_or(outside)?;
        if area.end().get() > end {
            return Err(outside);
        }
        Ok(ReservedArea {
            offset: area.start().get().checked_sub(self.base).ok_or(outside)?,
            size: area.size(),
        })
    }
}

/// What the module uses a page for, as TDH.PHYMEM.PAGE.RDMD reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageType(pub u64);

impl PageType {
    /// Not used by TDX.
    pub const NDA: PageType = PageType(0);
    /// In a reserved area of a TDMR.
    pub const RSVD: PageType = PageType(1);
    /// Private memory of a TD.
    pub const REG: PageType = PageType(3);
    /// Root control structure of a TD.
    pub const TDR: PageType = PageType(4);
    /// Part of the control structure of a TD or a vCPU.
    pub const TDCX: PageType = PageType(5);
    /// Root control structure of a vCPU.
    pub const TDVPR: PageType = PageType(6);
    /// Secure EPT.
    pub const EPT: PageType = PageType(8);
}

#[cfg(any(test, CONFIG_INTEL_TDX_HOST_KUNIT_TEST))]
#[cfg_attr(
    CONFIG_INTEL_TDX_HOST_KUNIT_TEST,
    kernel::macros::kunit_tests(tdx_host_abi)
)]
mod tests {
    use super::*;
    use crate::memlist::NodeId;
    use crate::pamt::{
        PamtEntrySizes,
        PamtLayout, //
    };

    use crate::range::PhysAddr;

    const GB: u64 = 1 << 30;

    /// A TDMR over `[4 GB, 6 GB)` with PAMTs from 4 GB + 1 MB.
    fn info() -> Option<TdmrInfo> {
        let tdmr = Tdmr::new(PhysRange::from_raw(4 * GB, 6 * GB)?, NodeId::new(0))?;
        let entries = PamtEntrySizes {
            size_4k: 16,
            size_2m: 16,
            size_1g: 16,
        };
        let layout = PamtLayout::new(tdmr.range(), &entries).ok()?;
        let base = PhysAddr::new(4 * GB + (1 << 20))?;
        Some(TdmrInfo::new(&tdmr, &Pamt::at(layout, base)))
    }

    #[test]
    fn slots_are_multiples_of_512_bytes() {
        assert_eq!(TdmrInfo::slot_bytes(0), 512);
        assert_eq!(TdmrInfo::slot_bytes(16), 512);
        assert_eq!(TdmrInfo::slot_bytes(28), 512);
        assert_eq!(TdmrInfo::slot_bytes(29), 1024);
        assert_eq!(TdmrInfo::slot_bytes(u16::MAX), (1 << 20) + 512);
    }

    #[test]
    fn tdmr_info_is_written_in_module_order() -> Result<(), ()> {
        let info = info().ok_or(())?;
        let areas = [
            PhysRange::from_raw(4 * GB, 4 * GB + 4096).ok_or(())?,
            PhysRange::from_raw(6 * GB - 8192, 6 * GB).ok_or(())?,
        ];
        let mut slot = [!0u64; 64];
        assert_eq!(info.write(&areas, &mut slot), Ok(()));
        let base_4k = 4 * GB + (1 << 20);
        let base_2m = base_4k + (8 << 20);
        let base_1g = base_2m + (16 << 10);
        let head = [
            4 * GB,
            2 * GB,
            base_1g,
            4 << 10,
            base_2m,
            16 << 10,
            base_4k,
            8 << 20,
        ];
        let tail = [0, 4096, 2 * GB - 8192, 8192];
        let zeroes = core::iter::repeat_n(&0, 64 - 12);
        assert!(slot.iter().eq(head.iter().chain(&tail).chain(zeroes)));
        Ok(())
    }

    #[test]
    fn areas_must_fit_slot_and_tdmr() -> Result<(), ()> {
        let info = info().ok_or(())?;
        let inside = PhysRange::from_raw(4 * GB, 4 * GB + 4096).ok_or(())?;
        let mut slot = [0u64; 10];
        assert_eq!(info.write(&[inside], &mut slot), Ok(()));
        assert_eq!(
            info.write(&[inside, inside], &mut slot),
            Err(TdmrInfoError::TooSmall)
        );
        for (start, end) in [(4 * GB - 4096, 5 * GB), (5 * GB, 6 * GB + 4096)] {
            let area = PhysRange::from_raw(start, end).ok_or(())?;
            assert_eq!(
                info.write(&[area], &mut slot),
                Err(TdmrInfoError::AreaOutside { area })
            );
        }
        Ok(())
    }
}
