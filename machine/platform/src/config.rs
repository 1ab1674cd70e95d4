// SPDX-License-Identifier: GPL-2.0

//! What the simulated machine is: everything the launcher decides and the plugin obeys.
//!
//! [`MachineConfig`] travels as JSON. Its default is a healthy TDX server with one processor; the
//! launcher fills in the rest.

use crate::counts::Function;
use crate::inject::Rule;
use crate::nmi::NmiPlace;
use crate::script::Script;
use crate::seamldr::config::SeamldrConfig;
use crate::violation::Kind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;
use tdx_module::{MemRange, ModuleConfig};

/// Microseconds that SEAMCALLs take. The calling processor waits before it enters the module, holding
/// nothing, so that calls on different processors overlap as on hardware.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Latency {
    /// Of every leaf that is not in `leaves`.
    pub all: u32,
    /// By leaf number (with bit 63 for the P-SEAMLDR).
    pub leaves: BTreeMap<u64, u32>,
}

impl Latency {
    /// The time that a call of `leaf` takes.
    pub fn of(&self, leaf: u64) -> Duration {
        let micros = self.leaves.get(&leaf).unwrap_or(&self.all);
        Duration::from_micros((*micros).into())
    }
}

/// Description of one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MachineConfig {
    /// Logical processors that exist, 1 or more.
    pub cpus: u32,
    /// Logical processors that firmware enabled, at least `cpus`; the module waits for all of them.
    pub enabled_cpus: u32,
    /// Packages; processors are spread over them in blocks of equal size.
    pub packages: u32,
    /// VMX exists.
    pub vmx: bool,
    /// SEAMRR is valid, i.e. firmware enabled TDX.
    pub seamrr: bool,
    /// A TDX module is loaded.
    pub module_loaded: bool,
    /// CPUID reports self-snoop.
    pub selfsnoop: bool,
    /// CPUID reports MOVDIR64B and the instruction works.
    pub movdir64b: bool,
    /// Hide from the guest that it runs under an emulator (CPUID hypervisor bit).
    pub bare_metal: bool,
    /// Returning from the P-SEAMLDR keeps the current VMCS (IA32_VMX_BASIC bit 60).
    pub seamret_keeps_vmcs: bool,
    /// KeyIDs for TDX.
    pub tdx_keyids: u32,
    /// KeyIDs for MKTME, below those of TDX.
    pub mktme_keyids: u32,
    /// KeyID bits of TME, 1 to 15.
    pub keyid_bits: u8,
    /// Physical address width that CPUID reports, KeyID bits included.
    pub max_phys_addr: u8,
    /// Frequency of the time stamp counter in kHz, for CPUID to tell.
    pub tsc_khz: Option<u32>,
    /// Convertible memory ranges.
    pub cmrs: Vec<MemRange>,
    /// Address of the memory that holds the TDX module, outside every CMR.
    pub seamrr_base: u64,
    /// Parts into which TDH.PHYMEM.CACHE.WB cuts its work (MSR 98h and 99h).
    pub cache_sub_blocks: u32,
    /// The TDX module that firmware loads.
    pub module: ModuleConfig,
    /// The P-SEAMLDR.
    pub seamldr: SeamldrConfig,
    /// Faults to inject.
    pub inject: Vec<Rule>,
    /// Violations that are only reported, without failing the run.
    pub allow: Vec<Kind>,
    /// Watch every load and store for private memory.
    pub watch_memory: bool,
    /// Microseconds that a call of a leaf stays inside the module, by leaf number (with bit 63 for the
    /// P-SEAMLDR), so that calls on other processors meet its locks.
    pub slow: BTreeMap<u64, u32>,
    /// How long calls take, for measurements.
    pub latency: Latency,
    /// Partial-write erratum: only a write of a whole line makes private memory ordinary again.
    pub erratum: bool,
    /// The erratum has consequences: a partial write poisons a private line, and reading that gives a
    /// machine check. Only seen with memory watching.
    pub strict: bool,
    /// What runs inside the TDs.
    pub td_script: Script,
    /// Kernel functions whose calls are counted.
    pub counted: Vec<Function>,
    /// Where processors get an NMI.
    pub nmis: Vec<NmiPlace>,
}

impl Default for MachineConfig {
    fn default() -> Self {
        MachineConfig {
            cpus: 1,
            enabled_cpus: 1,
            packages: 1,
            vmx: true,
            seamrr: true,
            module_loaded: true,
            selfsnoop: true,
            movdir64b: true,
            bare_metal: false,
            seamret_keeps_vmcs: true,
            tdx_keyids: 48,
            mktme_keyids: 15,
            keyid_bits: 6,
            max_phys_addr: 52,
            tsc_khz: None,
            cmrs: Vec::new(),
            seamrr_base: 0xc000_0000,
            cache_sub_blocks: 16,
            module: ModuleConfig::default(),
            seamldr: SeamldrConfig::default(),
            inject: Vec::new(),
            allow: Vec::new(),
            watch_memory: false,
            slow: BTreeMap::new(),
            latency: Latency::default(),
            erratum: true,
            strict: false,
            td_script: Script::default(),
            counted: Vec::new(),
            nmis: Vec::new(),
        }
    }
}

impl MachineConfig {
    /// The processor has KeyIDs for TDX.
    pub fn has_tdx(&self) -> bool {
        self.tdx_keyids > 0
    }

    /// A correct SEAMCALL reaches a TDX module on this machine.
    pub fn is_healthy(&self) -> bool {
        self.vmx && self.seamrr && self.module_loaded && self.has_tdx()
    }

    /// KeyIDs that only TDX may use: half-open.
    pub fn private_keyids(&self) -> Range<u32> {
        let first = self.mktme_keyids + 1;
        first..first + self.tdx_keyids
    }

    /// KeyID bits that firmware set aside for TDX in IA32_TME_ACTIVATE.
    pub fn tdx_keyid_bits(&self) -> u8 {
        let mktme_bits = u64::from(self.mktme_keyids + 1)
            .next_power_of_two()
            .trailing_zeros() as u8;
        self.keyid_bits.saturating_sub(mktme_bits)
    }

    /// Package of logical processor `lp`.
    pub fn package_of(&self, lp: u32) -> u32 {
        let per_package = self
            .enabled_cpus
            .max(self.cpus)
            .div_ceil(self.packages.max(1))
            .max(1);
        (lp / per_package).min(self.packages.saturating_sub(1))
    }

    /// Says what is wrong with the machine, if something is.
    ///
    /// # Errors
    ///
    /// A sentence that names the option at fault.
    pub fn check(&self) -> Result<(), String> {
        if self.cpus == 0 || self.packages == 0 {
            return Err("a machine needs at least one CPU and one socket".into());
        }
        if !self.cpus.is_multiple_of(self.packages) {
            return Err(format!(
                "{} CPUs cannot be spread evenly over {} sockets",
                self.cpus, self.packages
            ));
        }
        if self.packages > 8 {
            return Err(format!(
                "{} sockets: the TDX module knows at most 8 packages",
                self.packages
            ));
        }
        if self.enabled_cpus < self.cpus {
            return Err(format!(
                "firmware enabled {} CPUs, but the machine has {}",
                self.enabled_cpus, self.cpus
            ));
        }
        let ids = u64::from(self.tdx_keyids) + u64::from(self.mktme_keyids) + 1;
        if self.has_tdx() && ids > 1 << self.keyid_bits {
            return Err(format!(
                "{} TDX and {} MKTME KeyIDs do not fit into {} KeyID bits",
                self.tdx_keyids, self.mktme_keyids, self.keyid_bits
            ));
        }
        self.module.check().map_err(|e| format!("TDX module: {e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_machine_is_healthy_and_survives_json() {
        let config = MachineConfig::default();
        assert!(config.is_healthy());
        assert_eq!(config.check(), Ok(()));
        assert_eq!(config.private_keyids(), 16..64);
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(
            serde_json::from_str::<MachineConfig>(&json).unwrap(),
            config
        );
    }

    #[test]
    fn latency_of_a_leaf_goes_before_that_of_all() {
        let latency = Latency {
            all: 5,
            leaves: [(36, 0), (33, 7)].into(),
        };
        assert_eq!(
            [33, 34, 36].map(|leaf| latency.of(leaf).as_micros()),
            [7, 5, 0]
        );
        assert!(Latency::default().of(33).is_zero());
    }

    #[test]
    fn processors_fill_packages_in_blocks() {
        let config = MachineConfig {
            cpus: 4,
            enabled_cpus: 4,
            packages: 2,
            ..MachineConfig::default()
        };
        assert_eq!(
            (0..4).map(|lp| config.package_of(lp)).collect::<Vec<_>>(),
            [0, 0, 1, 1]
        );
    }

    #[test]
    fn impossible_machines_are_refused() {
        let default = MachineConfig::default;
        let bad = [
            MachineConfig {
                cpus: 0,
                ..default()
            },
            MachineConfig {
                cpus: 3,
                enabled_cpus: 3,
                packages: 2,
                ..default()
            },
            MachineConfig {
                cpus: 4,
                enabled_cpus: 2,
                ..default()
            },
            MachineConfig {
                tdx_keyids: 60,
                ..default()
            },
            MachineConfig {
                cpus: 9,
                enabled_cpus: 9,
                packages: 9,
                ..default()
            },
        ];
        for config in bad {
            assert!(config.check().is_err(), "{config:?}");
        }
    }
}
