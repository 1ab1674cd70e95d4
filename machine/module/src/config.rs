// SPDX-License-Identifier: GPL-2.0

//! Which module to model: [`ModuleConfig`], plain data that a launcher can pass as JSON.
//!
//! A configuration names a [`Profile`] and what differs from it. [`OpenPoints`] collects the
//! behaviour that no public source settles. The values that follow from a profile are in
//! `profile.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The module release that a model follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Profile {
    /// A later release of the 1.5 line, with everything that Linux 7.3 needs.
    #[default]
    #[cfg_attr(feature = "serde", serde(rename = "baseline"))]
    Baseline,
    /// Release 1.5.01, whose recorded answers this model is compared with. Linux 7.3 refuses it.
    #[cfg_attr(feature = "serde", serde(rename = "1.5.01"))]
    V1_5_01,
}

/// Configuration of one module; `ModuleConfig::default()` is the baseline.
///
/// Whatever is `None` takes the value of the profile.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct ModuleConfig {
    /// The release to follow.
    pub profile: Profile,
    /// TDH.SYS.DISABLE exists and bit 53 of TDX_FEATURES0 says so.
    ///
    /// [`ModuleConfig::new`] sets it for the baseline and clears it for 1.5.01. Where it is left out
    /// of serialised data it is set, whatever the profile.
    pub sys_disable: bool,
    /// TDX_FEATURES0 as reported, without bit 53.
    pub features0: Option<u64>,
    /// Major version of the module.
    pub major: Option<u16>,
    /// Minor version of the module.
    pub minor: Option<u16>,
    /// Update version of the module.
    pub update: Option<u16>,
    /// Build number of the module.
    pub build_num: Option<u16>,
    /// Build date of the module as decimal digits, such as 20240101.
    pub build_date: Option<u32>,
    /// Handoff version that this module writes at TDH.SYS.SHUTDOWN, the newest that it can read.
    pub module_hv: Option<u16>,
    /// Oldest handoff version that this module can read at TDH.SYS.UPDATE.
    pub min_update_hv: Option<u16>,
    /// Most TDMRs that TDH.SYS.CONFIG accepts, 1 to 64.
    pub max_tdmrs: u16,
    /// Reserved areas in a TDMR_INFO, 1 to 64; the structure is 64 bytes plus 16 for each.
    pub max_reserved_per_tdmr: u16,
    /// Bytes of PAMT per 4 KB, 2 MB and 1 GB page, each 1 to 4096.
    pub pamt_entry_size: [u16; 3],
    /// CPUID leaves that a TD's owner can configure: only the first so many of the profile's list.
    pub num_cpuid_config: Option<u16>,
    /// Values that TDH.SYS.RD reports instead of the true ones, by field id.
    ///
    /// Ids are compared by class and field code only, as the module does. The module itself goes
    /// on working with the true value: this is hostile metadata, not configuration.
    pub fields: BTreeMap<u64, u64>,
    /// Fields that TDH.SYS.RD does not know, by field id, compared as in `fields`.
    pub absent_fields: BTreeSet<u64>,
    /// Behaviour that no public source settles.
    pub open: OpenPoints,
}

/// Points of the module's behaviour that nobody could settle, as switches.
///
/// The defaults are the proposals that the machine's documentation gives for them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct OpenPoints {
    /// TDH.SYS.DISABLE may start before TDH.SYS.CONFIG (state SYSINIT_DONE).
    pub disable_before_config: bool,
    /// TDH.SYS.DISABLE may start before the global key is configured (state SYSCONFIG_DONE).
    pub disable_before_ready: bool,
    /// TDH.SYS.DISABLE needs the calling LP to have run TDH.SYS.LP.INIT.
    pub disable_needs_lp_init: bool,
    /// LPs must run TDH.SYS.LP.INIT again after TDH.SYS.DISABLE; if not, they stay initialised.
    pub disable_forgets_lp_init: bool,
    /// What a TDH.SYS leaf answers while TDH.SYS.DISABLE has begun and not ended (a status word).
    pub disabling_status_sys: u64,
    /// What any other leaf answers meanwhile (a status word).
    pub disabling_status_other: u64,
    /// Gigabytes of TDMR that TDH.SYS.DISABLE releases before it looks for an interrupt, 1 to 2^20.
    pub disable_gb_per_poll: u32,
}

/// Why a [`ModuleConfig`] cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// A number lies outside the range its documentation gives.
    OutOfRange {
        /// The field of [`ModuleConfig`].
        field: &'static str,
        /// The value found.
        value: u64,
        /// The smallest value allowed.
        min: u64,
        /// The largest value allowed.
        max: u64,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange {
                field,
                value,
                min,
                max,
            } => {
                write!(f, "{field} is {value}, but must be {min} to {max}")
            }
        }
    }
}

impl std::error::Error for ConfigError {}

impl ModuleConfig {
    /// The unchanged configuration of a profile.
    pub fn new(profile: Profile) -> Self {
        Self {
            profile,
            sys_disable: profile == Profile::Baseline,
            features0: None,
            major: None,
            minor: None,
            update: None,
            build_num: None,
            build_date: None,
            module_hv: None,
            min_update_hv: None,
            max_tdmrs: 64,
            max_reserved_per_tdmr: 16,
            pamt_entry_size: [16; 3],
            num_cpuid_config: None,
            fields: BTreeMap::new(),
            absent_fields: BTreeSet::new(),
            open: OpenPoints::default(),
        }
    }

    /// Checks the ranges that the documentation of the fields gives.
    ///
    /// # Errors
    ///
    /// The first field that is out of range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let [pamt_4k, pamt_2m, pamt_1g] = self.pamt_entry_size;
        let num_cpuid_config = self.num_cpuid_config.unwrap_or(0);
        in_range("max_tdmrs", self.max_tdmrs, 1, 64)?;
        in_range("max_reserved_per_tdmr", self.max_reserved_per_tdmr, 1, 64)?;
        in_range("pamt_entry_size[0]", pamt_4k, 1, 4096)?;
        in_range("pamt_entry_size[1]", pamt_2m, 1, 4096)?;
        in_range("pamt_entry_size[2]", pamt_1g, 1, 4096)?;
        in_range("num_cpuid_config", num_cpuid_config, 0, 32)?;
        in_range(
            "open.disable_gb_per_poll",
            self.open.disable_gb_per_poll,
            1,
            1 << 20,
        )
    }
}

fn in_range(
    field: &'static str,
    value: impl Into<u64>,
    min: u64,
    max: u64,
) -> Result<(), ConfigError> {
    let value = value.into();
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(ConfigError::OutOfRange {
            field,
            value,
            min,
            max,
        })
    }
}

impl Default for ModuleConfig {
    fn default() -> Self {
        Self::new(Profile::default())
    }
}

impl Default for OpenPoints {
    fn default() -> Self {
        Self {
            disable_before_config: true,
            disable_before_ready: true,
            disable_needs_lp_init: false,
            disable_forgets_lp_init: true,
            disabling_status_sys: crate::Status::SYS_BUSY.raw(),
            disabling_status_other: crate::Status::SYS_SHUTDOWN.raw(),
            disable_gb_per_poll: 4,
        }
    }
}

#[cfg(all(test, feature = "serde"))]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<ModuleConfig, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn a_configuration_survives_json() {
        let mut config = ModuleConfig::new(Profile::V1_5_01);
        config.fields.insert(0x9100_0001_0000_0008, 3);
        config.absent_fields.insert(u64::MAX);
        config.open.disable_gb_per_poll = 7;
        let json = serde_json::to_string(&config).expect("plain data");
        assert_eq!(parse(&json), Ok(config));
    }

    #[test]
    fn what_is_left_out_is_the_baseline() {
        assert_eq!(parse("{}"), Ok(ModuleConfig::default()));
        let old = parse(r#"{"profile": "1.5.01"}"#).expect("a profile by name");
        assert_eq!(old.profile, Profile::V1_5_01);
    }

    #[test]
    fn a_misspelt_field_is_an_error() {
        let error = parse(r#"{"max_tmdrs": 3}"#).expect_err("no such field");
        assert!(error.contains("max_tmdrs"), "{error}");
    }
}
