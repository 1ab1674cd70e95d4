// SPDX-License-Identifier: GPL-2.0

//! What a [`Profile`] means in numbers: [`Facts`], resolved once when the module is loaded.

use crate::leaf::number;
use crate::locks::Mode;
use crate::td_params::{TdParams, config_flags};
use crate::{ModuleConfig, Operand, Profile};

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
            min_update_hv: config.min_update_hv.unwrap_or(base.min_update_hv),
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

    /// Whether TDH.VP.INIT looks at IA32_TSC_ADJUST before anything else, not after it gave the vCPU
    /// an index.
    pub(crate) fn checks_tsc_adjust_first(&self) -> bool {
        self.profile == Profile::Baseline
    }

    /// The operand that TDH.MEM.RANGE.UNBLOCK names when tracking is not done.
    pub(crate) fn unblock_tracking_operand(&self) -> Operand {
        match self.profile {
            Profile::Baseline => Operand::Rcx,
            Profile::V1_5_01 => Operand::SeptTree,
        }
    }

    /// Whether RBP survives an exit of the guest that is not a TDG.VP.VMCALL.
    pub(crate) fn keeps_rbp(&self, params: &TdParams) -> bool {
        let configured = params.config_flags & config_flags::NO_RBP_MOD != 0;
        self.profile == Profile::Baseline && configured
    }

    /// Whether RBP survives a TDH.VP.ENTER that the zero-step filter turns back.
    pub(crate) fn zero_step_keeps_rbp(&self, params: &TdParams) -> bool {
        self.profile == Profile::V1_5_01 || self.keeps_rbp(params)
    }

    /// How TDH.VP.ENTER takes the S-EPT to see whether logged faults are gone.
    pub(crate) fn zero_step_tree_lock(&self) -> Mode {
        match self.profile {
            Profile::Baseline => Mode::Shared,
            Profile::V1_5_01 => Mode::Exclusive,
        }
    }

    /// Whether TDH.MNG.RD of a CPUID leaf that it does not know says that there is no such field.
    pub(crate) fn unknown_cpuid_is_incorrect(&self) -> bool {
        self.profile == Profile::V1_5_01
    }

    /// Whether TDH.MNG.RD enumerates the last configurable CPUID leaves among all others.
    pub(crate) fn cpuid_follows_leaf_order(&self) -> bool {
        self.profile == Profile::V1_5_01
    }

    /// Whether the metadata show CPUID bits that can be configured only if the processor has them.
    pub(crate) fn reports_allowed_cpuid(&self) -> bool {
        self.profile == Profile::Baseline
    }

    /// Whether MAX_VCPUS of a TD has an upper limit.
    pub(crate) fn has_vcpu_limit(&self) -> bool {
        self.profile == Profile::Baseline
    }

    /// Whether a migratable TD must not have L2 virtual machines.
    pub(crate) fn refuses_migratable_l2(&self) -> bool {
        self.profile == Profile::V1_5_01
    }

    /// Whether TDH.MNG.INIT checks the topology that the TD will see.
    pub(crate) fn checks_virtual_topology(&self) -> bool {
        self.profile == Profile::Baseline
    }

    /// Whether a status about a wrong state says which state it is.
    pub(crate) fn reports_states(&self) -> bool {
        self.profile == Profile::Baseline
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

/// Subleaf of a CPUID leaf that has none.
pub(crate) const NO_SUBLEAF: u32 = u32::MAX;

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
    let mut rows = vec![row(
        1,
        NO_SUBLEAF,
        [0x0fff_3fff, 0x00ff_0000, 0, 0],
        [0, 0, 0x3104_4d88, 0xb844_0000],
    )];
    rows.extend((0..3).map(|n| row(4, n, cache(0xffff_fffb), none)));
    rows.extend([
        row(4, 3, cache(7), none),
        row(7, 0, none, [0, 0xdc2b_9b18, 0x0241_7f65, 0x0005_411c]),
        row(7, 1, none, [0x0488_1db0, 0, 0, 0x0002_4430]),
        row(0xa, NO_SUBLEAF, none, none),
        row(0x1c, NO_SUBLEAF, none, none),
        row(0x8000_0008, NO_SUBLEAF, none, [0, 0x200, 0, 0]),
        row(7, 2, none, [0, 0, 0, 0x28]),
        row(0x23, 0, none, none),
    ]);
    rows
}
