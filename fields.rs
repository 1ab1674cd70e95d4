// SPDX-License-Identifier: GPL-2.0

//! Ids of the TDX module's global metadata fields, typed, and the bits of TDX_FEATURES0.
//!
//! A [`MetadataField`] knows the type of its value; an id whose element size does not match that
//! type does not compile. [`TdxFeatures0`] says what the module can do.
//!
//! Pure: `core` only, never panics. Neighbour: `metadata` reads these fields.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use core::fmt;
use core::marker::PhantomData;
use core::mem::size_of;

/// The id of a metadata field, without its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FieldId(u64);

impl FieldId {
    /// The number for RDX of TDH.SYS.RD.
    pub const fn raw(self) -> u64 {
        self.0
    }
}

/// The id of a metadata field whose value is a `T`.
///
/// # Invariants
///
/// The element size in bits 33:32 of the id is the size of `T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetadataField<T> {
    id: FieldId,
    value: PhantomData<T>,
}

impl<T> MetadataField<T> {
    /// The id alone.
    pub const fn id(self) -> FieldId
    where
        T: Copy,
    {
        self.id
    }

    /// The field that lies `index` elements further in an array of fields.
    pub const fn element(self, index: u16) -> Self
    where
        T: Copy,
    {
        // The field code has 24 bits and the arrays start low, so this stays in the field code.
        MetadataField {
            id: FieldId(self.id.0.wrapping_add(index as u64)),
            value: PhantomData,
        }
    }

    /// For constants only: a mismatch of id and type does not compile.
    const fn new(id: u64) -> Self {
        let bytes = 1usize << ((id >> 32) & 3);
        assert!(
            bytes == size_of::<T>(),
            "element size does not match the type"
        );
        MetadataField {
            id: FieldId(id),
            value: PhantomData,
        }
    }
}

/// Defines the fields' constants and the table of their names.
macro_rules! fields {
    ($($(#[$doc:meta])* $konst:ident: $ty:ty = $id:literal;)*) => {
        $($(#[$doc])* pub const $konst: MetadataField<$ty> = MetadataField::new($id);)*

        /// Every field known here, with its name; arrays by their first element.
        pub const FIELDS: &[(FieldId, &str)] = &[$((FieldId($id), stringify!($konst))),*];
    };
}

fields! {
    /// Minor version of the module.
    MINOR_VERSION: u16 = 0x0800_0001_0000_0003;
    /// Major version of the module.
    MAJOR_VERSION: u16 = 0x0800_0001_0000_0004;
    /// Update version of the module.
    UPDATE_VERSION: u16 = 0x0800_0001_0000_0005;
    /// Build number of the module.
    BUILD_NUM: u16 = 0x8800_0001_0000_0002;
    /// Build date of the module, decimal digits yyyymmdd.
    BUILD_DATE: u32 = 0x8800_0002_0000_0001;
    /// What the module can do, see [`TdxFeatures0`].
    TDX_FEATURES0: u64 = 0x0A00_0003_0000_0008;
    /// Most TDMRs that TDH.SYS.CONFIG takes.
    MAX_TDMRS: u16 = 0x9100_0001_0000_0008;
    /// Most reserved areas in one TDMR.
    MAX_RESERVED_PER_TDMR: u16 = 0x9100_0001_0000_0009;
    /// Bytes of PAMT per 4 KB page.
    PAMT_4K_ENTRY_SIZE: u16 = 0x9100_0001_0000_0010;
    /// Bytes of PAMT per 2 MB page.
    PAMT_2M_ENTRY_SIZE: u16 = 0x9100_0001_0000_0011;
    /// Bytes of PAMT per 1 GB page.
    PAMT_1G_ENTRY_SIZE: u16 = 0x9100_0001_0000_0012;
    /// Bytes of a TD's root control structure.
    TDR_BASE_SIZE: u16 = 0x9800_0001_0000_0000;
    /// Bytes of a TD's control structure.
    TDCS_BASE_SIZE: u16 = 0x9800_0001_0000_0100;
    /// Bytes of a vCPU's control structure.
    TDVPS_BASE_SIZE: u16 = 0x9800_0001_0000_0200;
    /// TD attribute bits that may be 1.
    ATTRIBUTES_FIXED0: u64 = 0x1900_0003_0000_0000;
    /// TD attribute bits that must be 1.
    ATTRIBUTES_FIXED1: u64 = 0x1900_0003_0000_0001;
    /// Extended state bits that may be 1.
    XFAM_FIXED0: u64 = 0x1900_0003_0000_0002;
    /// Extended state bits that must be 1.
    XFAM_FIXED1: u64 = 0x1900_0003_0000_0003;
    /// Number of CPUID leaves that a TD's creator may configure.
    NUM_CPUID_CONFIG: u16 = 0x9900_0001_0000_0004;
    /// Most vCPUs in one TD.
    MAX_VCPUS_PER_TD: u16 = 0x9900_0001_0000_0008;
    /// Configurable CPUID leaves: leaf in bits 31:0, subleaf in 63:32.
    CPUID_CONFIG_LEAVES: u64 = 0x9900_0003_0000_0400;
    /// Their configurable bits, two elements each: EBX:EAX, then EDX:ECX.
    CPUID_CONFIG_VALUES: u64 = 0x9900_0003_0000_0500;
    /// Version of the data handed over to an updated module.
    MODULE_HV: u16 = 0x8900_0001_0000_0000;
    /// Number of entries in the list of CMRs.
    NUM_CMRS: u16 = 0x9000_0001_0000_0000;
    /// Bases of the CMRs.
    CMR_BASE: u64 = 0x9000_0003_0000_0080;
    /// Sizes of the CMRs in bytes; 0 marks an unused entry.
    CMR_SIZE: u64 = 0x9000_0003_0000_0100;
}

impl FieldId {
    /// The field's name in the specification; `None` if unknown.
    pub fn name(self) -> Option<&'static str> {
        FIELDS
            .iter()
            .find(|(id, _)| *id == self)
            .map(|&(_, name)| name)
    }
}

/// The name and the number.
impl fmt::Display for FieldId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:#018x})", self.name().unwrap_or("field"), self.0)
    }
}

/// The value of the field TDX_FEATURES0: one bit per thing the module can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TdxFeatures0(u64);

impl TdxFeatures0 {
    /// Takes the value of the field.
    pub const fn from_raw(raw: u64) -> Self {
        TdxFeatures0(raw)
    }

    /// The value of the field.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Whether all bits of `wanted` are set.
    pub const fn contains(self, wanted: TdxFeatures0) -> bool {
        self.0 & wanted.0 == wanted.0
    }
}

/// Defines the bits of [`TdxFeatures0`] and the table of their names.
macro_rules! features {
    ($($(#[$doc:meta])* $konst:ident = $bit:literal;)*) => {
        impl TdxFeatures0 {
            $($(#[$doc])* pub const $konst: TdxFeatures0 = TdxFeatures0(1 << $bit);)*

            /// Every bit known here, with its name, in ascending order.
            pub const BITS: &'static [(TdxFeatures0, &'static str)] =
                &[$((TdxFeatures0::$konst, stringify!($konst))),*];
        }
    };
}

features! {
    /// Migration of TDs.
    TD_MIGRATION = 0;
    /// Module updates that keep TDs alive.
    TD_PRESERVING = 1;
    /// Service TDs.
    SERVICE_TD = 2;
    /// TDG.VP.RD and TDG.VP.WR.
    TDG_VP_RDWR = 3;
    /// Relaxed rules for concurrent memory management.
    RELAXED_MEM_MNG_CONCURRENCY = 4;
    /// Guest control of CPUID virtualisation.
    CPUID_VIRT_GUEST_CTRL = 5;
    /// TDX Connect: devices inside the trust boundary.
    TDX_CONNECT = 6;
    /// TD partitioning: nested guests inside a TD.
    TD_PARTITIONING = 7;
    /// Local attestation.
    LOCAL_ATTESTATION = 8;
    /// Enhancements of TD entry.
    TD_ENTRY_ENHANCEMENTS = 9;
    /// Locks that let the host go first.
    HOST_PRIORITY_LOCKS = 10;
    /// Configurable IA32_ARCH_CAPABILITIES.
    CONFIG_IA32_ARCH_CAPABILITIES = 11;
    /// Pending EPT violations, second version.
    PENDING_EPT_VIOLATION_V2 = 16;
    /// Configurable family, model and stepping.
    FMS_CONFIG = 17;
    /// The module leaves RBP alone on TD exits.
    NO_RBP_MOD = 18;
    /// Fewer TLB flushes for nested guests.
    L2_TLB_INVD_OPT = 19;
    /// CPU topology enumeration for guests.
    TOPOLOGY_ENUM = 20;
    /// Migration of partitioned TDs.
    PARTITIONED_TD_MIGRATION = 21;
    /// Event filtering.
    EVENT_FILTERING = 24;
    /// ICSSD.
    ICSSD = 25;
    /// Fixed counters 1 and 2.
    FIXED_CTR1_2 = 26;
    /// Virtual MAXPHYADDR.
    MAXPA_VIRT = 27;
    /// Advanced Performance Extensions.
    APX = 28;
    /// Virtualisation of CPUID leaf 2.
    CPUID2_VIRT = 29;
    /// Fewer virtualisation exceptions.
    VE_REDUCTION = 30;
    /// Enhanced event filtering.
    ENHANCED_EVENT_FILTERING = 31;
    /// TDX Connect together with TD partitioning.
    TDX_CONNECT_PARTITIONING = 32;
    /// Virtual guest address width.
    MAXGPA_VIRT = 33;
    /// PAMT whose 4 KB level is allocated on demand.
    DYNAMIC_PAMT = 36;
    /// Diagnostics after a fatal error.
    FATAL_DIAGNOSTICS = 37;
    /// Release of pages by the guest.
    PAGE_RELEASE = 38;
    /// NRX.
    NRX = 39;
    /// Enhanced interrupt state.
    ENHANCED_INTERRUPT_STATE = 40;
    /// Export that does not block the TD.
    NON_BLOCKING_EXPORT = 41;
    /// Status of each imported page.
    IMPORT_PAGE_STATUS = 44;
    /// Interruptibility in the virtualisation exception information.
    VE_INFO_INTERRUPTIBILITY = 46;
    /// Updates that watch for compatibility.
    UPDATE_COMPATIBILITY = 47;
    /// Rebinding of service TDs.
    SERVTD_REBIND = 48;
    /// Enhanced page demotion.
    ENHANCED_DEMOTE = 51;
    /// Read-only debugging of migratable TDs.
    DEBUG_RO_MIGRATION = 52;
    /// TDH.SYS.DISABLE.
    SYS_DISABLE = 53;
}

/// The names of the known bits, separated by blanks, then the rest as a number.
impl fmt::Display for TdxFeatures0 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut unknown = self.0;
        let mut separator = "";
        for &(bit, name) in Self::BITS {
            if self.contains(bit) {
                write!(f, "{separator}{name}")?;
                separator = " ";
                unknown &= !bit.0;
            }
        }
        if unknown != 0 || self.0 == 0 {
            write!(f, "{separator}{unknown:#x}")?;
        }
        Ok(())
    }
}

#[cfg(any(test, CONFIG_INTEL_TDX_HOST_KUNIT_TEST))]
#[cfg_attr(
    CONFIG_INTEL_TDX_HOST_KUNIT_TEST,
    kernel::macros::kunit_tests(tdx_host_fields)
)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_an_array_follow_each_other() {
        assert_eq!(
            CPUID_CONFIG_LEAVES.element(31).id().raw(),
            0x9900_0003_0000_041f
        );
        assert_eq!(
            CPUID_CONFIG_VALUES.element(255).id().raw(),
            0x9900_0003_0000_05ff
        );
        assert_eq!(CMR_BASE.element(0), CMR_BASE);
    }

    #[test]
    fn every_field_has_its_own_number() {
        for (index, (id, name)) in FIELDS.iter().enumerate() {
            assert_eq!(id.name(), Some(*name));
            for (other, _) in FIELDS.iter().skip(index + 1) {
                assert!(id != other);
            }
        }
        assert_eq!(CMR_BASE.element(1).id().name(), None);
    }

    #[test]
    fn features_are_looked_up_by_bit() {
        let features = TdxFeatures0::from_raw(0x001f_0fbf);
        assert!(features.contains(TdxFeatures0::NO_RBP_MOD));
        assert!(features.contains(TdxFeatures0::TOPOLOGY_ENUM));
        assert!(!features.contains(TdxFeatures0::SYS_DISABLE));
        assert!(!features.contains(TdxFeatures0::from_raw(0x40_0000)));
        assert_eq!(TdxFeatures0::SYS_DISABLE.raw(), 1 << 53);
    }

    #[test]
    fn feature_bits_ascend() {
        let bits = TdxFeatures0::BITS;
        for ((bit, _), (next, _)) in bits.iter().zip(bits.iter().skip(1)) {
            assert!(bit.raw() < next.raw());
        }
    }
}
