// SPDX-License-Identifier: GPL-2.0

//! What a [`Profile`] means in numbers: [`Facts`], resolved once when the module is loaded.

use crate::leaf::number;
use crate::{ModuleConfig, Profile};

/// Bit of TDX_FEATURES0 that says that TDH.SYS.DISABLE exists.
const FEATURE_SYS_DISABLE: u64 = 1 << 53;

/// One CPUID leaf whose virtual value a TD's owner may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CpuidConfig {
    pub(crate) leaf: u32,
    /// All ones if the leaf has no subleaves.
    pub(crate) subleaf: u32,
    /// EAX, EBX, ECX, EDX: bits that may be set whatever the processor has.
    pub(crate) direct: [u32; 4],
    /// EAX, EBX, ECX, EDX: bits that may be set if the processor has them.
    pub(crate) allow: [u32; 4],
}

/// Properties of the modelled release after the configuration has had its say.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) profile: Profile,
    pub(crate) major: u16,
    pub(crate) minor: u16,
    pub(crate) update: u16,
    pub(crate) build_num: u16,
    pub(crate) build_date: u32,
    pub(crate) module_hv: u16,
    pub(crate) min_update_hv: u16,
    pub(crate) no_downgrade: bool,
    pub(crate) features0: u64,
    pub(crate) attributes_fixed0: u64,
    pub(crate) config_flags_fixed0: u64,
    pub(crate) cpuid_config: Vec<CpuidConfig>,
}

impl Facts {
    pub(crate) fn new(config: &ModuleConfig) -> Self {
        let base = match config.profile {
            Profile::Baseline => Self::baseline(),
            Profile::V1_5_01 => Self::v1_5_01(),
        };
        let disable = if config.sys_disable {
            FEATURE_SYS_DISABLE
        } else {
            0
        };
        let mut cpuid_config = base.cpuid_config;
        cpuid_config.truncate(config.num_cpuid_config.map_or(usize::MAX, usize::from));
        Self {
            major: config.major.unwrap_or(base.major),
            minor: config.minor.unwrap_or(base.minor),
            update: config.update.unwrap_or(base.update),
            build_num: config.build_num.unwrap_or(base.build_num),
            build_date: config.build_date.unwrap_or(base.build_date),
            module_hv: config.module_hv.unwrap_or(base.module_hv),
            features0: config.features0.unwrap_or(base.features0) & !FEATURE_SYS_DISABLE | disable,
            cpuid_config,
            ..base
        }
    }

    /// A 1.5 module that has what Linux 7.3 needs and claims nothing that is not modelled.
    fn baseline() -> Self {
        Self {
            profile: Profile::Baseline,
            major: 1,
            minor: 5,
            update: 25,
            build_num: 0,
            build_date: 20_250_101,
            module_hv: 1,
            min_update_hv: 0,
            no_downgrade: true,
            features0: 0x1f_0fbf,
            attributes_fixed0: 0x8000_0000_7001_0001,
            config_flags_fixed0: 0x1f,
            cpuid_config: baseline_cpuid_config(),
        }
    }

    /// The build whose answers were recorded.
    fn v1_5_01() -> Self {
        Self {
            profile: Profile::V1_5_01,
            major: 1,
            minor: 5,
            update: 1,
            build_num: 0,
            build_date: 20_240_101,
            module_hv: 0,
            min_update_hv: 0,
            no_downgrade: false,
            features0: 0xf_0fbf,
            attributes_fixed0: 0x8000_0000_7000_0001,
            config_flags_fixed0: 7,
            cpuid_config: v1_5_01_cpuid_config(),
        }
    }

    /// Whether the dispatcher lets a version above 0 of `leaf` through to the leaf itself.
    pub(crate) fn has_versions(&self, leaf: u16) -> bool {
        match leaf {
            number::MEM_SEPT_ADD
            | number::MNG_RD
            | number::MEM_PAGE_PROMOTE
            | number::VP_RD
            | number::MEM_SEPT_REMOVE => true,
            number::VP_INIT => self.profile == Profile::Baseline,
            _ => false,
        }
    }

    /// Whether the KeyID field counts down from the processor's own address width, not from 52.
    pub(crate) fn key_field_follows_maxphyaddr(&self) -> bool {
        self.profile == Profile::Baseline
    }

    /// Whether a failed TDH.SYS.CONFIG leaves the KeyID it was given reserved.
    pub(crate) fn failed_config_reserves_key(&self) -> bool {
        self.profile == Profile::V1_5_01
    }
}

const NO_SUBLEAF: u32 = u32::MAX;

fn row(leaf: u32, subleaf: u32, direct: [u32; 4], allow: [u32; 4]) -> CpuidConfig {
    CpuidConfig {
        leaf,
        subleaf,
        direct,
        allow,
    }
}

fn baseline_cpuid_config() -> Vec<CpuidConfig> {
    let none = [0; 4];
    let cache = [0xffff_c3ff, 0xffff_f000, 0xffff_ffff, 7];
    let topology = [0x1f, 0xffff, 0xffff, 0];
    let tlb = [0, 0, 0, 0x03ff_c000];
    let mut rows = vec![row(
        1,
        NO_SUBLEAF,
        [0x0fff_3fff, 0x00ff_0000, 0, 0],
        [0, 0, 0x3104_4d88, 0xb844_5080],
    )];
    rows.extend((0..4).map(|n| row(4, n, cache, none)));
    rows.extend([
        row(7, 0, none, [0, 0xdc2b_9b18, 0x0241_7f65, 0x4005_411c]),
        row(7, 1, none, [0x0488_1db0, 0, 0, 0x0002_4430]),
        row(0xa, NO_SUBLEAF, none, none),
        row(0x1c, NO_SUBLEAF, none, [0xff, 0, 0, 0]),
        row(0x8000_0008, NO_SUBLEAF, [0xff, 0, 0, 0], [0, 0x200, 0, 0]),
        row(7, 2, none, [0, 0, 0, 0x28]),
        row(0x23, 0, none, [0xf, 0, 0, 0]),
    ]);
    rows.extend((0..6).map(|n| row(0x1f, n, topology, none)));
    rows.push(row(0x19, NO_SUBLEAF, none, none));
    rows.extend((0..9).map(|n| row(0x18, n, tlb, none)));
    rows
}

fn v1_5_01_cpuid_config() -> Vec<CpuidConfig> {
    let none = [0; 4];
    let cache = |edx| [0xffff_c3ff, 0xffff_f000, 0xffff_ffff, edx];
    let direct_only = |leaf, subleaf, direct| row(leaf, subleaf, direct, none);
    let mut rows = vec![direct_only(1, NO_SUBLEAF, [0x0fff_3fff, 0x00ff_0000, 0, 0])];
    rows.extend((0..3).map(|n| direct_only(4, n, cache(0xffff_fffb))));
    rows.push(direct_only(4, 3, cache(7)));
    let rest = [
        (7, 0),
        (7, 1),
        (0xa, NO_SUBLEAF),
        (0x1c, NO_SUBLEAF),
        (0x8000_0008, NO_SUBLEAF),
    ];
    rows.extend(rest.map(|(leaf, subleaf)| direct_only(leaf, subleaf, none)));
    rows.extend([(7, 2), (0x23, 0)].map(|(leaf, subleaf)| direct_only(leaf, subleaf, none)));
    rows
}
