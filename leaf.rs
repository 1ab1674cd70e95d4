// SPDX-License-Identifier: GPL-2.0

//! SEAMCALL leaf numbers of the TDX module and the P-SEAMLDR, by name.
//!
//! [`Leaf`] is an open set: a newer module has more. The glossary of TDX terms is in `abi`.
//!
//! Pure: `core` only, never panics. Neighbour: `status` holds the numbers that come back.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use core::fmt;

/// RAX of a SEAMCALL: leaf number in bits 15:0, version in 23:16, P-SEAMLDR in bit 63.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Leaf(u64);

impl Leaf {
    /// A leaf from its raw RAX value.
    pub const fn from_raw(raw: u64) -> Self {
        Leaf(raw)
    }

    /// RAX as the instruction wants it.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The leaf number.
    pub const fn number(self) -> u16 {
        // CAST: the low 16 bits.
        (self.0 & 0xffff) as u16
    }

    /// The version of the leaf's interface.
    pub const fn version(self) -> u8 {
        // CAST: the masked 8 bits.
        ((self.0 >> 16) & 0xff) as u8
    }

    /// The same leaf with another version.
    pub const fn with_version(self, version: u8) -> Self {
        Leaf((self.0 & !(0xff << 16)) | ((version as u64) << 16))
    }

    /// Whether the call goes to the P-SEAMLDR instead of the TDX module.
    pub const fn is_seamldr(self) -> bool {
        self.0 >> 63 != 0
    }
}

/// Defines the constants of [`Leaf`] and the table of their names.
macro_rules! leaves {
    ($($(#[$doc:meta])* $konst:ident = $raw:literal, $name:literal;)*) => {
        impl Leaf {
            $($(#[$doc])* pub const $konst: Leaf = Leaf($raw);)*

            /// Every leaf known here.
            pub const ALL: &'static [Leaf] = &[$(Leaf::$konst),*];

            /// The leaf's name in the specification, whatever its version; `None` if unknown.
            pub const fn name(self) -> Option<&'static str> {
                match self.with_version(0).0 {
                    $($raw => Some($name),)*
                    _ => None,
                }
            }
        }
    };
}

leaves! {
    /// Run a vCPU of a TD.
    TDH_VP_ENTER = 0, "TDH.VP.ENTER";
    /// Add a control structure page to a TD.
    TDH_MNG_ADDCX = 1, "TDH.MNG.ADDCX";
    /// Add a page with initial content to a TD being built.
    TDH_MEM_PAGE_ADD = 2, "TDH.MEM.PAGE.ADD";
    /// Add a Secure EPT page.
    TDH_MEM_SEPT_ADD = 3, "TDH.MEM.SEPT.ADD";
    /// Add a control structure page to a vCPU.
    TDH_VP_ADDCX = 4, "TDH.VP.ADDCX";
    /// Add an empty page to a TD.
    TDH_MEM_PAGE_AUG = 6, "TDH.MEM.PAGE.AUG";
    /// Block a GPA range before removing it.
    TDH_MEM_RANGE_BLOCK = 7, "TDH.MEM.RANGE.BLOCK";
    /// Configure a TD's key on one package.
    TDH_MNG_KEY_CONFIG = 8, "TDH.MNG.KEY.CONFIG";
    /// Create a TD.
    TDH_MNG_CREATE = 9, "TDH.MNG.CREATE";
    /// Create a vCPU.
    TDH_VP_CREATE = 10, "TDH.VP.CREATE";
    /// Read a metadata field of a TD.
    TDH_MNG_RD = 11, "TDH.MNG.RD";
    /// Measure a part of an initial page.
    TDH_MR_EXTEND = 16, "TDH.MR.EXTEND";
    /// Finish a TD's initial measurement.
    TDH_MR_FINALIZE = 17, "TDH.MR.FINALIZE";
    /// Flush a vCPU's state from this LP.
    TDH_VP_FLUSH = 18, "TDH.VP.FLUSH";
    /// Check that no vCPU of a TD is held by an LP.
    TDH_MNG_VPFLUSHDONE = 19, "TDH.MNG.VPFLUSHDONE";
    /// Free a TD's HKID.
    TDH_MNG_KEY_FREEID = 20, "TDH.MNG.KEY.FREEID";
    /// Initialise a TD.
    TDH_MNG_INIT = 21, "TDH.MNG.INIT";
    /// Initialise a vCPU.
    TDH_VP_INIT = 22, "TDH.VP.INIT";
    /// Read the PAMT entry of a page.
    TDH_PHYMEM_PAGE_RDMD = 24, "TDH.PHYMEM.PAGE.RDMD";
    /// Read a metadata field of a vCPU.
    TDH_VP_RD = 26, "TDH.VP.RD";
    /// Take a page back from a TD being torn down.
    TDH_PHYMEM_PAGE_RECLAIM = 28, "TDH.PHYMEM.PAGE.RECLAIM";
    /// Remove a page from a TD.
    TDH_MEM_PAGE_REMOVE = 29, "TDH.MEM.PAGE.REMOVE";
    /// Configure the global key on one package.
    TDH_SYS_KEY_CONFIG = 31, "TDH.SYS.KEY.CONFIG";
    /// Initialise the module.
    TDH_SYS_INIT = 33, "TDH.SYS.INIT";
    /// Read a global metadata field.
    TDH_SYS_RD = 34, "TDH.SYS.RD";
    /// Initialise the module on one LP.
    TDH_SYS_LP_INIT = 35, "TDH.SYS.LP.INIT";
    /// Initialise a part of a TDMR.
    TDH_SYS_TDMR_INIT = 36, "TDH.SYS.TDMR.INIT";
    /// Start a new TLB-tracking epoch of a TD.
    TDH_MEM_TRACK = 38, "TDH.MEM.TRACK";
    /// Write back the caches of HKIDs being freed.
    TDH_PHYMEM_CACHE_WB = 40, "TDH.PHYMEM.CACHE.WB";
    /// Write back and invalidate a page's cache lines.
    TDH_PHYMEM_PAGE_WBINVD = 41, "TDH.PHYMEM.PAGE.WBINVD";
    /// Write a metadata field of a vCPU.
    TDH_VP_WR = 43, "TDH.VP.WR";
    /// Configure the module: TDMRs and the global HKID.
    TDH_SYS_CONFIG = 45, "TDH.SYS.CONFIG";
    /// Shut the module down before an update.
    TDH_SYS_SHUTDOWN = 52, "TDH.SYS.SHUTDOWN";
    /// Let an updated module take over.
    TDH_SYS_UPDATE = 53, "TDH.SYS.UPDATE";
    /// Disable TDX and release its memory.
    TDH_SYS_DISABLE = 69, "TDH.SYS.DISABLE";
    /// Ask the P-SEAMLDR about itself.
    SEAMLDR_INFO = 0x8000_0000_0000_0000, "SEAMLDR.INFO";
    /// Let the P-SEAMLDR install a TDX module.
    SEAMLDR_INSTALL = 0x8000_0000_0000_0001, "SEAMLDR.INSTALL";
}

/// The name, or the number of a leaf that has none here.
impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "SEAMCALL leaf {:#x}", self.0),
        }
    }
}

#[cfg(any(test, CONFIG_INTEL_TDX_HOST_KUNIT_TEST))]
#[cfg_attr(
    CONFIG_INTEL_TDX_HOST_KUNIT_TEST,
    kernel::macros::kunit_tests(tdx_host_leaf)
)]
mod tests {
    use super::*;

    #[test]
    fn version_and_seamldr_bits_are_told_apart() {
        let leaf = Leaf::TDH_VP_INIT.with_version(1);
        assert_eq!(leaf.raw(), 0x1_0016);
        assert_eq!((leaf.number(), leaf.version()), (22, 1));
        assert_eq!(leaf.with_version(0), Leaf::TDH_VP_INIT);
        assert!(Leaf::SEAMLDR_INSTALL.is_seamldr());
        assert!(!leaf.is_seamldr());
    }

    #[test]
    fn every_leaf_has_its_own_number_and_name() {
        for (index, leaf) in Leaf::ALL.iter().enumerate() {
            assert!(leaf.name().is_some());
            for other in Leaf::ALL.iter().skip(index + 1) {
                assert!(leaf != other && leaf.name() != other.name());
            }
        }
        assert_eq!(
            Leaf::TDH_VP_INIT.with_version(1).name(),
            Some("TDH.VP.INIT")
        );
        assert_eq!(Leaf::from_raw(5).name(), None);
        assert_eq!(Leaf::from_raw(1 << 24).name(), None);
    }
}
