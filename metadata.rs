// SPDX-License-Identifier: GPL-2.0

//! The TDX module's global metadata, read field by field into plain records.
//!
//! [`SysInfo`] is all that bring-up and KVM need; its parts and their fields have the names they
//! have in `struct tdx_sys_info`. How a field is read comes in as a [`FieldReader`] (TDH.SYS.RD in
//! the kernel, a table in tests). Nothing the module says is trusted: a value that does not fit
//! its type and a count that exceeds its array are errors.
//!
//! Every field of [`SysInfo`] is mandatory. [`BuildInfo`] and the CMRs are not: a module may not
//! know the fields, and only the log would miss them.
//!
//! Pure: `core` only, never panics. Neighbours: `fields` has the ids; `tdmr` and `pamt` take their
//! limits from here.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use core::fmt;

use crate::fields;
use crate::fields::{
    FieldId,
    MetadataField,
    TdxFeatures0, //
};
use crate::pamt::PamtEntrySizes;
use crate::range::{
    PhysAddr,
    PhysRange, //
};
use crate::store::Store;
use crate::tdmr::Limits;

/// Room for configurable CPUID leaves, as in `struct tdx_sys_info_td_conf`.
pub const MAX_CPUID_CONFIG: usize = 128;

/// Reads one metadata field.
pub trait FieldReader {
    /// What reading fails with.
    type Error;

    /// Reads the field `id`.
    ///
    /// # Errors
    ///
    /// Whatever kept the module from answering.
    fn read(&mut self, id: FieldId) -> Result<u64, Self::Error>;
}

/// Why the metadata could not be read. `E` is the reader's own error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataError<E> {
    /// The module did not give the field.
    Read {
        /// The field.
        field: FieldId,
        /// What the reader said.
        error: E,
    },
    /// The value does not fit the type that the field's id promises.
    TooWide {
        /// The field.
        field: FieldId,
        /// The value.
        value: u64,
    },
    /// The module reports more configurable CPUID leaves than there is room for.
    TooManyCpuidConfigs {
        /// Leaves the module reports.
        count: u16,
    },
    /// An entry of the CMR list wraps or lies beyond what TDX can address.
    BadCmr {
        /// Base address.
        base: u64,
        /// Bytes.
        size: u64,
    },
    /// The caller's storage is full.
    OutOfMemory,
}

impl<E: fmt::Display> fmt::Display for MetadataError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetadataError::Read { field, error } => {
                write!(f, "cannot read metadata field {field}: {error}")
            }
            MetadataError::TooWide { field, value } => {
                write!(
                    f,
                    "metadata field {field} has an impossible value {value:#x}"
                )
            }
            MetadataError::TooManyCpuidConfigs { count } => write!(
                f,
                "the TDX module reports {count} configurable CPUID leaves, \
                 the kernel has room for {MAX_CPUID_CONFIG}"
            ),
            MetadataError::BadCmr { base, size } => {
                write!(f, "CMR at {base:#x} of {size:#x} bytes is impossible")
            }
            MetadataError::OutOfMemory => f.write_str("out of memory for the list of CMRs"),
        }
    }
}

/// Reads a field and checks that the value fits its type.
fn get<R, T>(reader: &mut R, field: MetadataField<T>) -> Result<T, MetadataError<R::Error>>
where
    R: FieldReader,
    T: Copy + TryFrom<u64>,
{
    let field = field.id();
    let value = reader
        .read(field)
        .map_err(|error| MetadataError::Read { field, error })?;
    T::try_from(value).map_err(|_| MetadataError::TooWide { field, value })
}

/// Version of the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// Minor version.
    pub minor_version: u16,
    /// Major version.
    pub major_version: u16,
    /// Update version.
    pub update_version: u16,
}

impl Version {
    /// Reads the three fields.
    ///
    /// # Errors
    ///
    /// [`MetadataError`].
    pub fn read<R: FieldReader>(reader: &mut R) -> Result<Self, MetadataError<R::Error>> {
        Ok(Version {
            minor_version: get(reader, fields::MINOR_VERSION)?,
            major_version: get(reader, fields::MAJOR_VERSION)?,
            update_version: get(reader, fields::UPDATE_VERSION)?,
        })
    }
}

/// As users know it: `1.5.06`.
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{}.{:02}",
            self.major_version, self.minor_version, self.update_version
        )
    }
}

/// Which build of the module it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BuildInfo {
    /// Build number.
    pub build_num: u16,
    /// Build date as decimal digits yyyymmdd.
    pub build_date: u32,
}

impl BuildInfo {
    /// Reads the two fields. They are good for the log only: a caller can ignore an error.
    ///
    /// # Errors
    ///
    /// [`MetadataError`].
    pub fn read<R: FieldReader>(reader: &mut R) -> Result<Self, MetadataError<R::Error>> {
        Ok(BuildInfo {
            build_num: get(reader, fields::BUILD_NUM)?,
            build_date: get(reader, fields::BUILD_DATE)?,
        })
    }
}

/// The kernel cannot work with this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureError {
    /// The module changes RBP on TD exits, which breaks the kernel's frame pointers.
    RbpClobbered,
}

impl fmt::Display for FeatureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FeatureError::RbpClobbered => {
                f.write_str("frame pointer (RBP) clobber bug present, upgrade TDX module")
            }
        }
    }
}

/// What the module can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// The bits.
    pub tdx_features0: TdxFeatures0,
}

impl Features {
    /// Reads the field.
    ///
    /// # Errors
    ///
    /// [`MetadataError`].
    pub fn read<R: FieldReader>(reader: &mut R) -> Result<Self, MetadataError<R::Error>> {
        Ok(Features {
            tdx_features0: TdxFeatures0::from_raw(get(reader, fields::TDX_FEATURES0)?),
        })
    }

    /// Whether the kernel can work with a module of these features.
    ///
    /// # Errors
    ///
    /// [`FeatureError`] says what is missing.
    pub const fn check(&self) -> Result<(), FeatureError> {
        if !self.tdx_features0.contains(TdxFeatures0::NO_RBP_MOD) {
            return Err(FeatureError::RbpClobbered);
        }
        Ok(())
    }
}

/// Limits on TDMRs and sizes of their metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TdmrCaps {
    /// Most TDMRs that TDH.SYS.CONFIG takes.
    pub max_tdmrs: u16,
    /// Most reserved areas in one TDMR.
    pub max_reserved_per_tdmr: u16,
    /// Bytes of PAMT per 4 KB page.
    pub pamt_4k_entry_size: u16,
    /// Bytes of PAMT per 2 MB page.
    pub pamt_2m_entry_size: u16,
    /// Bytes of PAMT per 1 GB page.
    pub pamt_1g_entry_size: u16,
}

impl TdmrCaps {
    /// Reads the five fields.
    ///
    /// # Errors
    ///
    /// [`MetadataError`].
    pub fn read<R: FieldReader>(reader: &mut R) -> Result<Self, MetadataError<R::Error>> {
        Ok(TdmrCaps {
            max_tdmrs: get(reader, fields::MAX_TDMRS)?,
            max_reserved_per_tdmr: get(reader, fields::MAX_RESERVED_PER_TDMR)?,
            pamt_4k_entry_size: get(reader, fields::PAMT_4K_ENTRY_SIZE)?,
            pamt_2m_entry_size: get(reader, fields::PAMT_2M_ENTRY_SIZE)?,
            pamt_1g_entry_size: get(reader, fields::PAMT_1G_ENTRY_SIZE)?,
        })
    }

    /// The limits on the plan of TDMRs.
    pub const fn limits(&self) -> Limits {
        Limits {
            max_tdmrs: self.max_tdmrs,
            max_reserved: self.max_reserved_per_tdmr,
        }
    }

    /// The sizes of PAMT entries.
    pub const fn pamt_entries(&self) -> PamtEntrySizes {
        PamtEntrySizes {
            size_4k: self.pamt_4k_entry_size,
            size_2m: self.pamt_2m_entry_size,
            size_1g: self.pamt_1g_entry_size,
        }
    }
}

/// Sizes in bytes of the control structures of TDs and vCPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TdCtrl {
    /// A TD's root control structure.
    pub tdr_base_size: u16,
    /// A TD's control structure.
    pub tdcs_base_size: u16,
    /// A vCPU's control structure.
    pub tdvps_base_size: u16,
}

impl TdCtrl {
    /// Reads the three fields.
    ///
    /// # Errors
    ///
    /// [`MetadataError`].
    pub fn read<R: FieldReader>(reader: &mut R) -> Result<Self, MetadataError<R::Error>> {
        Ok(TdCtrl {
            tdr_base_size: get(reader, fields::TDR_BASE_SIZE)?,
            tdcs_base_size: get(reader, fields::TDCS_BASE_SIZE)?,
            tdvps_base_size: get(reader, fields::TDVPS_BASE_SIZE)?,
        })
    }
}

/// What a TD's creator may configure. About 3 KB: do not put it on the kernel's stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TdConf {
    /// TD attribute bits that may be 1.
    pub attributes_fixed0: u64,
    /// TD attribute bits that must be 1.
    pub attributes_fixed1: u64,
    /// Extended state bits that may be 1.
    pub xfam_fixed0: u64,
    /// Extended state bits that must be 1.
    pub xfam_fixed1: u64,
    /// Used entries of the two arrays; at most [`MAX_CPUID_CONFIG`].
    pub num_cpuid_config: u16,
    /// Most vCPUs in one TD.
    pub max_vcpus_per_td: u16,
    /// Configurable CPUID leaves: leaf in bits 31:0, subleaf in 63:32.
    pub cpuid_config_leaves: [u64; MAX_CPUID_CONFIG],
    /// Their configurable bits: EBX:EAX, then EDX:ECX.
    pub cpuid_config_values: [[u64; 2]; MAX_CPUID_CONFIG],
}

impl TdConf {
    /// All zero: nothing read yet.
    pub const EMPTY: TdConf = TdConf {
        attributes_fixed0: 0,
        attributes_fixed1: 0,
        xfam_fixed0: 0,
        xfam_fixed1: 0,
        num_cpuid_config: 0,
        max_vcpus_per_td: 0,
        cpuid_config_leaves: [0; MAX_CPUID_CONFIG],
        cpuid_config_values: [[0; 2]; MAX_CPUID_CONFIG],
    };

    /// Reads all fields in place.
    ///
    /// # Errors
    ///
    /// [`MetadataError`]; what was read before stays.
    pub fn read<R: FieldReader>(&mut self, reader: &mut R) -> Result<(), MetadataError<R::Error>> {
        self.attributes_fixed0 = get(reader, fields::ATTRIBUTES_FIXED0)?;
        self.attributes_fixed1 = get(reader, fields::ATTRIBUTES_FIXED1)?;
        self.xfam_fixed0 = get(reader, fields::XFAM_FIXED0)?;
        self.xfam_fixed1 = get(reader, fields::XFAM_FIXED1)?;
        let count: u16 = get(reader, fields::NUM_CPUID_CONFIG)?;
        self.max_vcpus_per_td = get(reader, fields::MAX_VCPUS_PER_TD)?;
        if usize::from(count) > MAX_CPUID_CONFIG {
            return Err(MetadataError::TooManyCpuidConfigs { count });
        }
        for (index, leaf) in (0..count).zip(self.cpuid_config_leaves.iter_mut()) {
            *leaf = get(reader, fields::CPUID_CONFIG_LEAVES.element(index))?;
        }
        let halves = self.cpuid_config_values.iter_mut().flatten();
        for (index, half) in (0..count.saturating_mul(2)).zip(halves) {
            *half = get(reader, fields::CPUID_CONFIG_VALUES.element(index))?;
        }
        self.num_cpuid_config = count;
        Ok(())
    }
}

/// All of the module's metadata that the kernel uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SysInfo {
    /// Version of the module.
    pub version: Version,
    /// What the module can do.
    pub features: Features,
    /// Limits on TDMRs and sizes of their metadata.
    pub tdmr: TdmrCaps,
    /// Sizes of control structures.
    pub td_ctrl: TdCtrl,
    /// What a TD's creator may configure.
    pub td_conf: TdConf,
}

impl SysInfo {
    /// All zero: nothing read yet.
    pub const EMPTY: SysInfo = SysInfo {
        version: Version {
            minor_version: 0,
            major_version: 0,
            update_version: 0,
        },
        features: Features {
            tdx_features0: TdxFeatures0::from_raw(0),
        },
        tdmr: TdmrCaps {
            max_tdmrs: 0,
            max_reserved_per_tdmr: 0,
            pamt_4k_entry_size: 0,
            pamt_2m_entry_size: 0,
            pamt_1g_entry_size: 0,
        },
        td_ctrl: TdCtrl {
            tdr_base_size: 0,
            tdcs_base_size: 0,
            tdvps_base_size: 0,
        },
        td_conf: TdConf::EMPTY,
    };

    /// Reads everything in place, in the order the C implementation does. To print the version
    /// before the rest is known to be readable, read the parts one by one instead.
    ///
    /// # Errors
    ///
    /// [`MetadataError`]; what was read before stays.
    pub fn read<R: FieldReader>(&mut self, reader: &mut R) -> Result<(), MetadataError<R::Error>> {
        self.version = Version::read(reader)?;
        self.features = Features::read(reader)?;
        self.tdmr = TdmrCaps::read(reader)?;
        self.td_ctrl = TdCtrl::read(reader)?;
        self.td_conf.read(reader)
    }
}

/// Reads the list of Convertible Memory Regions into the emptied `out`; unused entries are left
/// out. Good for the log and for explaining a refusal: a caller can ignore an error.
///
/// # Errors
///
/// [`MetadataError`].
pub fn read_cmrs<R, S>(reader: &mut R, out: &mut S) -> Result<(), MetadataError<R::Error>>
where
    R: FieldReader,
    S: Store<PhysRange>,
{
    out.clear();
    let count: u16 = get(reader, fields::NUM_CMRS)?;
    for index in 0..count {
        let base = get(reader, fields::CMR_BASE.element(index))?;
        let size = get(reader, fields::CMR_SIZE.element(index))?;
        if size == 0 {
            continue;
        }
        let cmr = PhysAddr::new(base)
            .and_then(|start| PhysRange::from_size(start, size))
            .ok_or(MetadataError::BadCmr { base, size })?;
        out.push(cmr).map_err(|_| MetadataError::OutOfMemory)?;
    }
    Ok(())
}

#[cfg(any(test, CONFIG_INTEL_TDX_HOST_KUNIT_TEST))]
#[cfg_attr(
    CONFIG_INTEL_TDX_HOST_KUNIT_TEST,
    kernel::macros::kunit_tests(tdx_host_metadata)
)]
mod tests {
    use super::*;
    use crate::range::PhysAddr;
    use crate::store::SliceStore;

    /// A module whose fields have the values of a table; others are 0.
    struct Table<'a>(&'a [(FieldId, u64)]);

    impl FieldReader for Table<'_> {
        type Error = ();

        fn read(&mut self, id: FieldId) -> Result<u64, ()> {
            let found = self.0.iter().find(|(known, _)| *known == id);
            Ok(found.map_or(0, |&(_, value)| value))
        }
    }

    /// A module that answers each field with the low bits of its id, and fails on one.
    struct Echo {
        fails: Option<FieldId>,
        reads: usize,
    }

    impl FieldReader for Echo {
        type Error = u8;

        fn read(&mut self, id: FieldId) -> Result<u64, u8> {
            self.reads += 1;
            if self.fails == Some(id) {
                return Err(7);
            }
            Ok(id.raw() & 0xfff)
        }
    }

    #[test]
    fn every_field_lands_where_it_belongs() -> Result<(), MetadataError<u8>> {
        let mut info = SysInfo::EMPTY;
        let mut echo = Echo {
            fails: None,
            reads: 0,
        };
        info.read(&mut echo)?;
        let version = info.version;
        assert_eq!((version.major_version, version.minor_version), (4, 3));
        assert_eq!(version.update_version, 5);
        assert_eq!(info.features.tdx_features0.raw(), 8);
        assert_eq!(
            (info.tdmr.max_tdmrs, info.tdmr.max_reserved_per_tdmr),
            (8, 9)
        );
        assert_eq!(info.tdmr.pamt_4k_entry_size, 0x10);
        assert_eq!(info.tdmr.pamt_2m_entry_size, 0x11);
        assert_eq!(info.tdmr.pamt_1g_entry_size, 0x12);
        assert_eq!(info.td_ctrl.tdr_base_size, 0);
        assert_eq!(info.td_ctrl.tdcs_base_size, 0x100);
        assert_eq!(info.td_ctrl.tdvps_base_size, 0x200);
        assert_eq!(
            (
                info.td_conf.attributes_fixed0,
                info.td_conf.attributes_fixed1
            ),
            (0, 1)
        );
        assert_eq!((info.td_conf.xfam_fixed0, info.td_conf.xfam_fixed1), (2, 3));
        assert_eq!(
            (info.td_conf.num_cpuid_config, info.td_conf.max_vcpus_per_td),
            (4, 8)
        );
        let used = info.td_conf.cpuid_config_leaves.iter().take(5);
        assert!(used.eq([0x400, 0x401, 0x402, 0x403, 0].iter()));
        let used = info.td_conf.cpuid_config_values.iter().take(5);
        let expected = [
            [0x500, 0x501],
            [0x502, 0x503],
            [0x504, 0x505],
            [0x506, 0x507],
            [0, 0],
        ];
        assert!(used.eq(expected.iter()));
        assert_eq!(echo.reads, 3 + 1 + 5 + 3 + 6 + 4 + 8);
        Ok(())
    }

    #[test]
    fn failing_field_is_named() {
        let field = fields::MAX_TDMRS.id();
        let mut echo = Echo {
            fails: Some(field),
            reads: 0,
        };
        let mut info = SysInfo::EMPTY;
        assert_eq!(
            info.read(&mut echo),
            Err(MetadataError::Read { field, error: 7 })
        );
        assert_eq!(echo.reads, 5);
    }

    #[test]
    fn values_wider_than_their_type_are_an_error() {
        let field = fields::MINOR_VERSION.id();
        for value in [0x1_0000, u64::MAX] {
            assert_eq!(
                Version::read(&mut Table(&[(field, value)])),
                Err(MetadataError::TooWide { field, value })
            );
        }
        let version = Version::read(&mut Table(&[(field, 0xffff)]));
        assert_eq!(version.map(|version| version.minor_version), Ok(0xffff));
    }

    #[test]
    fn cpuid_list_longer_than_its_array_is_an_error() {
        let mut conf = TdConf::EMPTY;
        for count in [129, u16::MAX] {
            let table = [(fields::NUM_CPUID_CONFIG.id(), u64::from(count))];
            assert_eq!(
                conf.read(&mut Table(&table)),
                Err(MetadataError::TooManyCpuidConfigs { count })
            );
        }
        let table = [
            (fields::NUM_CPUID_CONFIG.id(), 128),
            (fields::CPUID_CONFIG_VALUES.element(255).id(), 9),
        ];
        assert_eq!(conf.read(&mut Table(&table)), Ok(()));
        assert_eq!(conf.cpuid_config_values.last(), Some(&[0, 9]));
    }

    #[test]
    fn module_that_clobbers_rbp_is_refused() {
        let check = |raw| {
            let features = Features {
                tdx_features0: TdxFeatures0::from_raw(raw),
            };
            features.check()
        };
        assert_eq!(check(0x001f_0fbf), Ok(()));
        assert_eq!(check(1 << 18), Ok(()));
        assert_eq!(check(!(1 << 18)), Err(FeatureError::RbpClobbered));
    }

    #[test]
    fn unused_cmrs_are_left_out_and_broken_ones_refused() -> Result<(), MetadataError<()>> {
        let nothing = PhysRange::new(PhysAddr::ZERO, PhysAddr::LIMIT);
        let nothing = nothing.ok_or(MetadataError::OutOfMemory)?;
        let mut space = [nothing; 2];
        let mut cmrs = SliceStore::new(&mut space);
        let base = |index| fields::CMR_BASE.element(index).id();
        let size = |index| fields::CMR_SIZE.element(index).id();
        let table = [
            (fields::NUM_CMRS.id(), 32),
            (base(0), 0x10_0000),
            (size(0), 0x7000_0000),
            (base(1), 0x1_0000_0000),
            (size(2), 0),
        ];
        read_cmrs(&mut Table(&table), &mut cmrs)?;
        assert_eq!(cmrs.as_slice().len(), 1);
        assert_eq!(
            cmrs.as_slice().first().copied(),
            PhysRange::from_raw(0x10_0000, 0x7010_0000)
        );
        let table = [
            (fields::NUM_CMRS.id(), 1),
            (base(0), u64::MAX),
            (size(0), 2),
        ];
        let error = MetadataError::BadCmr {
            base: u64::MAX,
            size: 2,
        };
        assert_eq!(read_cmrs(&mut Table(&table), &mut cmrs), Err(error));
        Ok(())
    }
}
