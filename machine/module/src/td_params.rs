// SPDX-License-Identifier: GPL-2.0

//! TD_PARAMS, what a TD's owner chooses at TDH.MNG.INIT: its layout and the rules for each field.
//!
//! [`RawParams`] is the structure as it lies in memory; [`RawParams::check`] turns it into
//! [`TdParams`] or names the first field at fault. The CPUID part has its rules in
//! `cpuid_config.rs`.

use crate::profile::Facts;
use crate::snapshot::Snapshot;
use crate::{Operand, Status};

/// Bytes of TD_PARAMS, and its alignment.
pub(crate) const SIZE: usize = 1024;

/// Bits of ATTRIBUTES.
pub(crate) mod attributes {
    pub(crate) const DEBUG: u64 = 1 << 0;
    pub(crate) const ICSSD: u64 = 1 << 16;
    pub(crate) const SEPT_VE_DISABLE: u64 = 1 << 28;
    pub(crate) const MIGRATABLE: u64 = 1 << 29;
    pub(crate) const PERFMON: u64 = 1 << 63;
}

/// Bits of CONFIG_FLAGS.
pub(crate) mod config_flags {
    pub(crate) const GPAW: u64 = 1 << 0;
    pub(crate) const NO_RBP_MOD: u64 = 1 << 2;
    pub(crate) const MAXPA_VIRT: u64 = 1 << 3;
    pub(crate) const MAXGPA_VIRT: u64 = 1 << 4;
}

/// XFAM bits that must be equal among themselves: CET, AMX, AVX-512.
const XFAM_GROUPS: [u64; 3] = [3 << 11, 3 << 17, 7 << 5];
const XFAM_AVX: u64 = 1 << 2;
const XFAM_AVX512: u64 = 7 << 5;

const WRITE_BACK: u64 = 6;
const EPT_VPID_CAP: u32 = 0x48c;
const ARCH_CAPABILITIES_CONFIGURABLE: u64 = 1 << 4 | 1 << 19 | 1 << 20 | 1 << 24;
const MAX_L2_VMS: u8 = 3;
const MAX_VCPUS: u16 = 576;

/// Offsets in TD_PARAMS.
mod offset {
    pub(super) const ATTRIBUTES: usize = 0;
    pub(super) const XFAM: usize = 8;
    pub(super) const MAX_VCPUS: usize = 16;
    pub(super) const NUM_L2_VMS: usize = 18;
    pub(super) const MSR_CONFIG_CTLS: usize = 19;
    pub(super) const RESERVED_1: usize = 20;
    pub(super) const EPTP_CONTROLS: usize = 24;
    pub(super) const CONFIG_FLAGS: usize = 32;
    pub(super) const TSC_FREQUENCY: usize = 40;
    pub(super) const RESERVED_2: usize = 42;
    pub(super) const MRCONFIGID: usize = 80;
    pub(super) const ARCH_CAPABILITIES: usize = 224;
    pub(super) const RESERVED_3: usize = 232;
    pub(super) const CPUID: usize = 256;
}

/// Words of MRCONFIGID, MROWNER and MROWNERCONFIG together.
const MEASUREMENT_WORDS: usize = 18;

/// Choices of a TD's owner after all checks.
#[derive(Clone, Debug, Default)]
pub(crate) struct TdParams {
    pub(crate) attributes: u64,
    pub(crate) xfam: u64,
    pub(crate) max_vcpus: u32,
    pub(crate) num_l2_vms: u8,
    /// Bit 0: ARCH_CAPABILITIES is configured.
    pub(crate) msr_config_ctls: u8,
    pub(crate) eptp_controls: u64,
    pub(crate) config_flags: u64,
    /// In units of 25 MHz.
    pub(crate) tsc_frequency: u16,
    pub(crate) arch_capabilities: u64,
    /// MRCONFIGID, MROWNER and MROWNERCONFIG, six words each.
    pub(crate) owner_measurements: [u64; MEASUREMENT_WORDS],
    /// Configured CPUID values in the order of the configuration list: EAX, EBX, ECX, EDX.
    pub(crate) cpuid: Vec<[u32; 4]>,
}

impl TdParams {
    /// Level of the entries in the root page of the S-EPT: 3 or 4.
    pub(crate) fn top_level(&self) -> u8 {
        (self.eptp_controls >> 3 & 7) as u8
    }

    /// Whether guest addresses have 52 bits, not 48.
    pub(crate) fn wide_addresses(&self) -> bool {
        self.config_flags & config_flags::GPAW != 0
    }

    /// The bit of a guest address that makes it shared.
    pub(crate) fn shared_bit(&self) -> u64 {
        if self.wide_addresses() {
            1 << 51
        } else {
            1 << 47
        }
    }

    /// Whether the owner chose a topology (CPUID leaf 1Fh) of its own.
    pub(crate) fn configures_topology(&self, facts: &Facts) -> bool {
        let rows = facts.cpuid_config.iter().zip(&self.cpuid);
        let mut topology = rows.filter(|(row, _)| row.leaf == 0x1f);
        topology.any(|(_, value)| *value != [0; 4])
    }

    /// Whether a private guest address can be `gpa`.
    pub(crate) fn is_private(&self, gpa: u64) -> bool {
        gpa < self.shared_bit()
    }
}

/// What the rules need to know of the module and the processor.
pub(crate) struct Rules<'a> {
    pub(crate) facts: &'a Facts,
    pub(crate) snapshot: &'a Snapshot,
    /// Pages that the TD has for TDCS.
    pub(crate) tdcs_pages: usize,
    /// IA32_TSC_ADJUST has the value it had at TDH.SYS.INIT.
    pub(crate) tsc_adjust_unchanged: bool,
}

/// TD_PARAMS as it lies in memory.
pub(crate) struct RawParams<'a>(pub(crate) &'a [u8; SIZE]);

fn invalid(operand: Operand) -> Status {
    Status::OPERAND_INVALID.operand(operand)
}

fn require(good: bool, status: Status) -> Result<(), Status> {
    if good { Ok(()) } else { Err(status) }
}

impl RawParams<'_> {
    fn u64(&self, offset: usize) -> u64 {
        let bytes = self.0.iter().skip(offset).take(8);
        bytes
            .rev()
            .fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    fn u16(&self, offset: usize) -> u16 {
        self.u64(offset) as u16
    }

    fn is_zero(&self, offset: usize, size: usize) -> bool {
        self.0.iter().skip(offset).take(size).all(|&byte| byte == 0)
    }

    /// Row `index` of the CPUID table: EAX, EBX, ECX, EDX.
    fn cpuid(&self, index: usize) -> [u32; 4] {
        [0, 1, 2, 3].map(|n| self.u64(offset::CPUID + 16 * index + 4 * n) as u32)
    }

    /// Checks all fields in the order of the module.
    ///
    /// `bad_cpuid` is told the leaf and subleaf when a CPUID value is at fault.
    pub(crate) fn check(
        &self,
        rules: &Rules<'_>,
        bad_cpuid: impl FnOnce(u32, u32),
    ) -> Result<TdParams, Status> {
        let params = self.parse(rules.facts);
        check_attributes(&params, rules)?;
        check_xfam(&params, rules.snapshot)?;
        let at_most = match rules.facts.has_vcpu_limit() {
            true => MAX_VCPUS.into(),
            false => u32::MAX,
        };
        let vcpus = params.max_vcpus;
        require(vcpus > 0 && vcpus <= at_most, invalid(Operand::MaxVcpus))?;
        let l2_vms = params.num_l2_vms;
        require(l2_vms <= MAX_L2_VMS, invalid(Operand::NumL2Vms))?;
        let pages = crate::td::TDCS_PAGES + usize::from(l2_vms);
        require(rules.tdcs_pages >= pages, Status::TDCS_NOT_ALLOCATED)?;
        require(self.is_zero(offset::RESERVED_1, 4), invalid(Operand::Rdx))?;
        check_config_flags(&params, rules.facts)?;
        check_eptp(&params, rules.snapshot)?;
        let frequency = (4..=400).contains(&params.tsc_frequency);
        require(frequency, invalid(Operand::TscFrequency))?;
        let adjusted = Status::INCONSISTENT_MSR.with(crate::td_call::TSC_ADJUST);
        require(rules.tsc_adjust_unchanged, adjusted)?;
        require(self.is_zero(offset::RESERVED_2, 38), invalid(Operand::Rdx))?;
        require(params.msr_config_ctls <= 1, invalid(Operand::Rdx))?;
        require(self.is_zero(offset::RESERVED_3, 24), invalid(Operand::Rdx))?;
        crate::cpuid_config::check(&params, rules, bad_cpuid)?;
        let tail = offset::CPUID + 16 * rules.facts.cpuid_config.len();
        require(self.is_zero(tail, SIZE), invalid(Operand::Rdx))?;
        check_arch_capabilities(&params)?;
        let migratable = params.attributes & attributes::MIGRATABLE != 0;
        let refused = rules.facts.refuses_migratable_l2() && migratable && l2_vms > 0;
        require(!refused, invalid(Operand::Rdx))?;
        Ok(params)
    }

    fn parse(&self, facts: &Facts) -> TdParams {
        let mut owner_measurements = [0; MEASUREMENT_WORDS];
        for (index, word) in owner_measurements.iter_mut().enumerate() {
            *word = self.u64(offset::MRCONFIGID + 8 * index);
        }
        TdParams {
            attributes: self.u64(offset::ATTRIBUTES),
            xfam: self.u64(offset::XFAM),
            max_vcpus: self.u16(offset::MAX_VCPUS).into(),
            num_l2_vms: self.u64(offset::NUM_L2_VMS) as u8,
            msr_config_ctls: self.u64(offset::MSR_CONFIG_CTLS) as u8,
            eptp_controls: self.u64(offset::EPTP_CONTROLS),
            config_flags: self.u64(offset::CONFIG_FLAGS),
            tsc_frequency: self.u16(offset::TSC_FREQUENCY),
            arch_capabilities: self.u64(offset::ARCH_CAPABILITIES),
            owner_measurements,
            cpuid: (0..facts.cpuid_config.len())
                .map(|n| self.cpuid(n))
                .collect(),
        }
    }
}

fn check_attributes(params: &TdParams, rules: &Rules<'_>) -> Result<(), Status> {
    use attributes::{DEBUG, ICSSD, MIGRATABLE, PERFMON};
    let value = params.attributes;
    let has = |bit| value & bit != 0;
    let good = value & !rules.facts.attributes_fixed0 == 0
        && !(has(MIGRATABLE) && has(DEBUG | PERFMON))
        && !(has(PERFMON) && has(ICSSD));
    require(good, invalid(Operand::Attributes))
}

fn check_xfam(params: &TdParams, snapshot: &Snapshot) -> Result<(), Status> {
    let value = params.xfam;
    let groups = XFAM_GROUPS
        .iter()
        .all(|&group| value & group == 0 || value & group == group);
    let good = value & !(0x6_dbe7 & snapshot.supported_xfam()) == 0
        && value & 3 == 3
        && groups
        && (value & XFAM_AVX512 == 0 || value & XFAM_AVX != 0);
    require(good, invalid(Operand::Xfam))
}

fn check_config_flags(params: &TdParams, facts: &Facts) -> Result<(), Status> {
    let value = params.config_flags;
    let both = config_flags::MAXPA_VIRT | config_flags::MAXGPA_VIRT;
    let good = value & !facts.config_flags_fixed0 == 0 && value & both != both;
    require(good, invalid(Operand::ExecControls))
}

fn check_eptp(params: &TdParams, snapshot: &Snapshot) -> Result<(), Status> {
    let (value, levels) = (params.eptp_controls, params.top_level());
    let five_levels = snapshot.msr(EPT_VPID_CAP) >> 7 & 1 != 0;
    let good = value & 7 == WRITE_BACK
        && value >> 6 == 0
        && (levels == 3 && !params.wide_addresses() || levels == 4 && five_levels);
    require(good, invalid(Operand::EptpControls))
}

fn check_arch_capabilities(params: &TdParams) -> Result<(), Status> {
    let configurable = match params.msr_config_ctls & 1 {
        0 => 0,
        _ => ARCH_CAPABILITIES_CONFIGURABLE,
    };
    let good = params.arch_capabilities & !configurable == 0;
    require(good, invalid(Operand::ArchCapabilitiesConfig))
}
