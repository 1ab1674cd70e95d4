// SPDX-License-Identifier: GPL-2.0

//! Options about the TDX module, of `tdx-machine run` and `tdx-machine image`.

use crate::units;
use clap::{Args, ValueEnum};

/// TDX module release to model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProfileName {
    /// A 1.5 module with all that Linux 7.3 needs.
    Baseline,
    /// Release 1.5.01, which Linux 7.3 refuses.
    #[value(name = "1.5.01")]
    V1_5_01,
}

/// Which TDX module it is.
#[derive(Debug, Args)]
#[command(next_help_heading = "TDX module")]
pub struct ModuleOptions {
    /// Release of the TDX module.
    #[arg(long, default_value = "baseline", value_name = "RELEASE")]
    pub profile: ProfileName,
    /// Feature the module has (name or bit of TDX_FEATURES0).
    #[arg(long, value_name = "NAME")]
    pub feature: Vec<String>,
    /// Feature the module lacks.
    #[arg(long, value_name = "NAME")]
    pub no_feature: Vec<String>,
    /// Most TDMRs.
    #[arg(long, value_name = "N")]
    pub max_tdmrs: Option<u16>,
    /// Most reserved areas per TDMR.
    #[arg(long, value_name = "N")]
    pub max_reserved: Option<u16>,
    /// Bytes of PAMT per 4 KB, 2 MB and 1 GB page (one number for all, or three).
    #[arg(long, value_name = "BYTES[,BYTES,BYTES]", value_parser = entry_sizes)]
    pub pamt_entry_size: Option<EntrySizes>,
    /// Metadata field that reports VALUE instead of the truth, or does not exist (VALUE = absent).
    #[arg(long, value_name = "ID=VALUE", value_parser = metadata)]
    pub metadata: Vec<(u64, Option<u64>)>,
    /// Any setting of the module's configuration by name, such as update=6 or
    /// open.disable_gb_per_poll=1; VALUE is JSON.
    #[arg(long, value_name = "NAME=VALUE")]
    pub module: Vec<String>,
}

/// Bytes of PAMT per page of 4 KB, 2 MB, 1 GB.
pub type EntrySizes = [u16; 3];

fn entry_sizes(text: &str) -> Result<EntrySizes, String> {
    let sizes: Result<Vec<u16>, _> = text.split(',').map(str::parse).collect();
    match sizes.as_deref() {
        Ok(&[all]) => Ok([all; 3]),
        Ok(&[small, medium, large]) => Ok([small, medium, large]),
        _ => Err(format!("'{text}': expected one number of bytes or three")),
    }
}

fn metadata(text: &str) -> Result<(u64, Option<u64>), String> {
    let (id, value) = text
        .split_once('=')
        .ok_or_else(|| format!("'{text}': expected ID=VALUE"))?;
    // Field ids are always written in hexadecimal.
    let id = u64::from_str_radix(id.trim_start_matches("0x"), 16)
        .map_err(|_| format!("'{id}' is not a hexadecimal field id"))?;
    let value = if value == "absent" {
        None
    } else {
        Some(units::number(value)?)
    };
    Ok((id, value))
}
