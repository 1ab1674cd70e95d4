// SPDX-License-Identifier: GPL-2.0

//! What the P-SEAMLDR of the machine is like: [`SeamldrConfig`], plain data.

use serde::{Deserialize, Serialize};

/// The P-SEAMLDR that firmware left in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SeamldrConfig {
    /// There is one. Without it every call ends with VMfailInvalid.
    pub loaded: bool,
    /// Major version that SEAMLDR.INFO reports.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
    /// Update version.
    pub update: u16,
    /// Build number.
    pub build_num: u16,
    /// Build date as decimal digits, such as 20240101.
    pub build_date: u32,
    /// Modules that can be installed until the machine is reset.
    pub updates: u32,
    /// Behaviour that no public source settles.
    pub open: OpenPoints,
}

impl Default for SeamldrConfig {
    fn default() -> Self {
        SeamldrConfig {
            loaded: true,
            major: 1,
            minor: 5,
            update: 3,
            build_num: 0,
            build_date: 20_250_101,
            updates: 8,
            open: OpenPoints::default(),
        }
    }
}

/// Points of the P-SEAMLDR's behaviour that nobody could settle, as switches.
///
/// The numbers of the statuses are this machine's own: what is public is only that success is 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OpenPoints {
    /// The new module answers after the first processor installed it, not after the last.
    pub active_at_first: bool,
    /// Until the new module answers, its calls still reach the old one, which was shut down; if not,
    /// they end with VMfailInvalid.
    pub old_module_answers: bool,
    /// The image is looked at when the last processor installs it, not by the first.
    pub image_checked_last: bool,
    /// The signature has to fit the module.
    pub signature_checked: bool,
    /// A processor that installs twice starts the update again; if not, it is refused.
    pub second_call_restarts: bool,
    /// An update that not all processors finish uses up one of those that are left, too.
    pub unfinished_counts: bool,
    /// What a call gets whose operands are wrong (a status word).
    pub bad_operand: u64,
    /// What it gets for an image that is not a genuine module.
    pub bad_image: u64,
    /// What it gets when no update is left.
    pub no_updates: u64,
    /// What a processor gets that installs twice.
    pub out_of_order: u64,
}

impl Default for OpenPoints {
    fn default() -> Self {
        OpenPoints {
            active_at_first: false,
            old_module_answers: false,
            image_checked_last: false,
            signature_checked: true,
            second_call_restarts: false,
            unfinished_counts: false,
            bad_operand: 0x8000_0000_0001_0000,
            bad_image: 0x8000_0000_0001_0001,
            no_updates: 0x8000_0000_0001_0002,
            out_of_order: 0x8000_0000_0001_0003,
        }
    }
}
