// SPDX-License-Identifier: GPL-2.0

//! Completion status of a SEAMCALL: what RAX says when it comes back.
//!
//! [`SeamcallStatus`] is the raw word; [`SeamcallStatus::code`] is what comparisons use,
//! [`SeamcallStatus::details`] says which operand, MSR or TDMR is meant, and
//! [`SeamcallStatus::class`] how bad it is. The numbers are those the TDX module uses. (Linux's C
//! header spells NON_RECOVERABLE_TD and NON_RECOVERABLE_TD_WRONG_APIC_MODE with other high bits.)
//!
//! Pure: `core` only, never panics. Neighbours: `leaf` has the numbers that go in, `explain` says
//! in words what a status means and what to do.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use core::fmt;

/// How a SEAMCALL ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusClass {
    /// Done.
    Success,
    /// Done, with something to tell. The high bits are not 0, yet it is no error.
    SuccessWithInfo,
    /// Not done; the same call can succeed later.
    Recoverable,
    /// Not done; the same call will fail again.
    NonRecoverable,
    /// The module was not reached: the instruction itself failed. The kernel makes these codes.
    Software,
}

/// RAX after a SEAMCALL.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeamcallStatus(u64);

impl SeamcallStatus {
    /// Takes the raw word.
    pub const fn from_raw(raw: u64) -> Self {
        SeamcallStatus(raw)
    }

    /// The raw word.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The status proper, bits 63:32. Compare these, not whole words.
    pub const fn code(self) -> u32 {
        // CAST: the upper half.
        (self.0 >> 32) as u32
    }

    /// What the status is about, bits 31:0: an operand, an MSR, the index of a TDMR...
    pub const fn details(self) -> u32 {
        // CAST: the lower half.
        (self.0 & 0xffff_ffff) as u32
    }

    /// Whether the two have the same code, whatever the details.
    pub const fn is(self, other: SeamcallStatus) -> bool {
        self.code() == other.code()
    }

    /// How the call ended.
    pub const fn class(self) -> StatusClass {
        const ERROR: u32 = 1 << 31;
        const NON_RECOVERABLE: u32 = 1 << 30;
        const CLASS_MASK: u32 = 0xff << 8;
        const CLASS_SOFTWARE: u32 = 0xff << 8;

        let code = self.code();
        if code == 0 {
            StatusClass::Success
        } else if code & CLASS_MASK == CLASS_SOFTWARE {
            StatusClass::Software
        } else if code & NON_RECOVERABLE != 0 {
            StatusClass::NonRecoverable
        } else if code & ERROR != 0 {
            StatusClass::Recoverable
        } else {
            StatusClass::SuccessWithInfo
        }
    }

    /// Whether the module did what it was asked, with or without information.
    pub const fn is_success(self) -> bool {
        matches!(
            self.class(),
            StatusClass::Success | StatusClass::SuccessWithInfo
        )
    }

    /// The name users know, `TDX_SYS_BUSY`; `None` if unknown.
    pub fn name(self) -> Option<&'static str> {
        let same = |known: &SeamcallStatus| match known.class() {
            // The kernel's own codes differ in the details only.
            StatusClass::Software => *known == self,
            _ => known.is(self),
        };
        Self::ALL
            .iter()
            .find(|(known, _)| same(known))
            .map(|&(_, name)| name)
    }
}

/// The name and the raw word; the word alone if it has no name.
impl fmt::Display for SeamcallStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({:#x})", self.0),
            None => write!(f, "unknown status {:#x}", self.0),
        }
    }
}

/// Defines the constants of [`SeamcallStatus`] and the table of their names.
macro_rules! statuses {
    ($($konst:ident = $raw:literal;)*) => {
        #[expect(missing_docs, reason = "the specification's names; `explain` has the words")]
        impl SeamcallStatus {
            $(pub const $konst: SeamcallStatus = SeamcallStatus($raw);)*
        }

        impl SeamcallStatus {
            /// Every status known here, with its name.
            pub const ALL: &'static [(SeamcallStatus, &'static str)] =
                &[$((SeamcallStatus::$konst, concat!("TDX_", stringify!($konst)))),*];
        }
    };
}

statuses! {
    SUCCESS = 0x0000_0000_0000_0000;
    NON_RECOVERABLE_VCPU = 0x4000_0001_0000_0000;
    NON_RECOVERABLE_TD = 0x6000_0002_0000_0000;
    INTERRUPTED_RESUMABLE = 0x8000_0003_0000_0000;
    INTERRUPTED_RESTARTABLE = 0x8000_0004_0000_0000;
    NON_RECOVERABLE_TD_NON_ACCESSIBLE = 0x6000_0005_0000_0000;
    INVALID_RESUMPTION = 0xc000_0006_0000_0000;
    NON_RECOVERABLE_TD_WRONG_APIC_MODE = 0xe000_0007_0000_0000;
    CROSS_TD_FAULT = 0x8000_0008_0000_0000;
    NON_RECOVERABLE_TD_CORRUPTED_MD = 0x6000_000a_0000_0000;
    OPERAND_INVALID = 0xc000_0100_0000_0000;
    OPERAND_ADDR_RANGE_ERROR = 0xc000_0101_0000_0000;
    EVENT_FILTER_INVALID = 0xc000_0102_0000_0000;
    EVENT_FILTER_ORDER_INVALID = 0xc000_0103_0000_0000;
    OPERAND_BUSY = 0x8000_0200_0000_0000;
    PREVIOUS_TLB_EPOCH_BUSY = 0x8000_0201_0000_0000;
    SYS_BUSY = 0x8000_0202_0000_0000;
    RND_NO_ENTROPY = 0x8000_0203_0000_0000;
    OPERAND_BUSY_HOST_PRIORITY = 0x8000_0204_0000_0000;
    HOST_PRIORITY_BUSY_TIMEOUT = 0x9000_0205_0000_0000;
    PAGE_METADATA_INCORRECT = 0xc000_0300_0000_0000;
    PAGE_ALREADY_FREE = 0x0000_0301_0000_0000;
    PAGE_NOT_OWNED_BY_TD = 0xc000_0302_0000_0000;
    PAGE_NOT_FREE = 0xc000_0303_0000_0000;
    HPA_RANGE_NOT_FREE = 0xc000_0304_0000_0000;
    NO_PAMT_PAGE_PAIR = 0xc000_0305_0000_0000;
    PAMT_PAGE_NOT_EMPTY = 0xc000_0306_0000_0000;
    MISSING_PAMT_PAGE_PAIR = 0x8000_0308_0000_0000;
    TD_ASSOCIATED_PAGES_EXIST = 0xc000_0400_0000_0000;
    SYS_INIT_NOT_PENDING = 0xc000_0500_0000_0000;
    SYS_LP_INIT_NOT_DONE = 0xc000_0502_0000_0000;
    SYS_LP_INIT_DONE = 0xc000_0503_0000_0000;
    SYS_NOT_READY = 0xc000_0505_0000_0000;
    SYS_SHUTDOWN = 0xc000_0506_0000_0000;
    SYS_KEY_CONFIG_NOT_PENDING = 0xc000_0507_0000_0000;
    SYS_STATE_INCORRECT = 0xc000_0508_0000_0000;
    SYS_INVALID_HANDOFF = 0xc000_0509_0000_0000;
    SYS_INCOMPATIBLE_SIGSTRUCT = 0xc000_050a_0000_0000;
    SYS_LP_INIT_NOT_PENDING = 0xc000_050b_0000_0000;
    SYS_CONFIG_NOT_PENDING = 0xc000_050c_0000_0000;
    INCOMPATIBLE_SEAM_CAPABILITIES = 0xc000_050d_0000_0000;
    UPDATE_COMPATIBILITY_SENSITIVE = 0x8000_0512_0000_0000;
    TD_FATAL = 0xe000_0604_0000_0000;
    TD_NON_DEBUG = 0xc000_0605_0000_0000;
    TDCS_NOT_ALLOCATED = 0xc000_0606_0000_0000;
    LIFECYCLE_STATE_INCORRECT = 0xc000_0607_0000_0000;
    OP_STATE_INCORRECT = 0xc000_0608_0000_0000;
    NO_VCPUS = 0xc000_0609_0000_0000;
    TDCX_NUM_INCORRECT = 0xc000_0610_0000_0000;
    X2APIC_ID_NOT_UNIQUE = 0xc000_0621_0000_0000;
    INCOMPATIBLE_MRTD_CONTEXT = 0xc000_0622_0000_0000;
    VCPU_STATE_INCORRECT = 0xc000_0700_0000_0000;
    VCPU_ASSOCIATED = 0x8000_0701_0000_0000;
    VCPU_NOT_ASSOCIATED = 0x8000_0702_0000_0000;
    NO_VALID_VE_INFO = 0xc000_0704_0000_0000;
    MAX_VCPUS_EXCEEDED = 0xc000_0705_0000_0000;
    TSC_ROLLBACK = 0xc000_0706_0000_0000;
    TD_VMCS_FIELD_NOT_INITIALIZED = 0xc000_0730_0000_0000;
    KEY_GENERATION_FAILED = 0x8000_0800_0000_0000;
    TD_KEYS_NOT_CONFIGURED = 0x8000_0810_0000_0000;
    KEY_STATE_INCORRECT = 0xc000_0811_0000_0000;
    KEY_CONFIGURED = 0x0000_0815_0000_0000;
    WBCACHE_NOT_COMPLETE = 0x8000_0817_0000_0000;
    HKID_NOT_FREE = 0xc000_0820_0000_0000;
    NO_HKID_READY_TO_WBCACHE = 0x0000_0821_0000_0000;
    WBCACHE_RESUME_ERROR = 0xc000_0823_0000_0000;
    FLUSHVP_NOT_DONE = 0x8000_0824_0000_0000;
    NUM_ACTIVATED_HKIDS_NOT_SUPPORTED = 0xc000_0825_0000_0000;
    INCORRECT_CPUID_VALUE = 0xc000_0900_0000_0000;
    LIMIT_CPUID_MAXVAL_SET = 0xc000_0901_0000_0000;
    INCONSISTENT_CPUID_FIELD = 0xc000_0902_0000_0000;
    CPUID_LEAF_1F_FORMAT_UNRECOGNIZED = 0xc000_0904_0000_0000;
    INVALID_WBINVD_SCOPE = 0xc000_0905_0000_0000;
    INVALID_PKG_ID = 0xc000_0906_0000_0000;
    CPUID_LEAF_NOT_SUPPORTED = 0xc000_0908_0000_0000;
    SMRR_NOT_LOCKED = 0xc000_0910_0000_0000;
    INVALID_SMRR_CONFIGURATION = 0xc000_0911_0000_0000;
    SMRR_OVERLAPS_CMR = 0xc000_0912_0000_0000;
    SMRR_LOCK_NOT_SUPPORTED = 0xc000_0913_0000_0000;
    SMRR_NOT_SUPPORTED = 0xc000_0914_0000_0000;
    INCONSISTENT_MSR = 0xc000_0920_0000_0000;
    INCORRECT_MSR_VALUE = 0xc000_0921_0000_0000;
    INVALID_TDMR = 0xc000_0a00_0000_0000;
    NON_ORDERED_TDMR = 0xc000_0a01_0000_0000;
    TDMR_OUTSIDE_CMRS = 0xc000_0a02_0000_0000;
    TDMR_ALREADY_INITIALIZED = 0x0000_0a03_0000_0000;
    INVALID_PAMT = 0xc000_0a10_0000_0000;
    PAMT_OUTSIDE_CMRS = 0xc000_0a11_0000_0000;
    PAMT_OVERLAP = 0xc000_0a12_0000_0000;
    INVALID_RESERVED_IN_TDMR = 0xc000_0a20_0000_0000;
    NON_ORDERED_RESERVED_IN_TDMR = 0xc000_0a21_0000_0000;
    CMR_LIST_INVALID = 0xc000_0a22_0000_0000;
    EPT_WALK_FAILED = 0xc000_0b00_0000_0000;
    EPT_ENTRY_NOT_PRESENT = 0xc000_0b03_0000_0000;
    GPA_RANGE_NOT_BLOCKED = 0xc000_0b06_0000_0000;
    GPA_RANGE_ALREADY_BLOCKED = 0x0000_0b07_0000_0000;
    TLB_TRACKING_NOT_DONE = 0xc000_0b08_0000_0000;
    PAGE_ALREADY_ACCEPTED = 0x0000_0b0a_0000_0000;
    PAGE_SIZE_MISMATCH = 0xc000_0b0b_0000_0000;
    EPT_ENTRY_STATE_INCORRECT = 0xc000_0b0d_0000_0000;
    EPT_PAGE_NOT_FREE = 0xc000_0b0e_0000_0000;
    METADATA_FIELD_ID_INCORRECT = 0xc000_0c00_0000_0000;
    METADATA_FIELD_NOT_WRITABLE = 0xc000_0c01_0000_0000;
    METADATA_FIELD_NOT_READABLE = 0xc000_0c02_0000_0000;
    METADATA_FIELD_VALUE_NOT_VALID = 0xc000_0c03_0000_0000;
    METADATA_FIRST_FIELD_ID_IN_CONTEXT = 0x0000_0c0b_0000_0000;
    SEAMCALL_VMFAILINVALID = 0x8000_ff00_ffff_0000;
    SEAMCALL_GP = 0x8000_ff00_0000_000d;
    SEAMCALL_UD = 0x8000_ff00_0000_0006;
}

#[cfg(any(test, CONFIG_INTEL_TDX_HOST_KUNIT_TEST))]
#[cfg_attr(
    CONFIG_INTEL_TDX_HOST_KUNIT_TEST,
    kernel::macros::kunit_tests(tdx_host_status)
)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_code_and_details() {
        let status = SeamcallStatus::from_raw(0xc000_0100_0000_0008);
        assert_eq!(status.code(), 0xc000_0100);
        assert_eq!(status.details(), 8);
        assert!(status.is(SeamcallStatus::OPERAND_INVALID));
        assert!(status != SeamcallStatus::OPERAND_INVALID);
        assert_eq!(status.name(), Some("TDX_OPERAND_INVALID"));
    }

    #[test]
    fn classes_follow_the_high_bits() {
        use SeamcallStatus as S;
        assert_eq!(S::SUCCESS.class(), StatusClass::Success);
        // TDH.VP.ENTER: a VM exit reason in the details is a success.
        assert_eq!(S::from_raw(0x30).class(), StatusClass::Success);
        assert_eq!(S::KEY_CONFIGURED.class(), StatusClass::SuccessWithInfo);
        assert_eq!(S::SYS_BUSY.class(), StatusClass::Recoverable);
        assert_eq!(S::SYS_NOT_READY.class(), StatusClass::NonRecoverable);
        assert_eq!(S::NON_RECOVERABLE_VCPU.class(), StatusClass::NonRecoverable);
        assert_eq!(S::SEAMCALL_GP.class(), StatusClass::Software);
        assert!(S::KEY_CONFIGURED.is_success() && !S::SYS_BUSY.is_success());
    }

    #[test]
    fn software_codes_differ_in_the_details() {
        use SeamcallStatus as S;
        assert_eq!(S::SEAMCALL_GP.name(), Some("TDX_SEAMCALL_GP"));
        assert_eq!(S::SEAMCALL_UD.name(), Some("TDX_SEAMCALL_UD"));
        assert_eq!(
            S::SEAMCALL_VMFAILINVALID.name(),
            Some("TDX_SEAMCALL_VMFAILINVALID")
        );
        assert_eq!(S::from_raw(0x8000_ff00_0000_0001).name(), None);
    }

    #[test]
    fn every_status_has_its_own_number() {
        for (index, (status, name)) in SeamcallStatus::ALL.iter().enumerate() {
            assert_eq!(status.name(), Some(*name));
            for (other, _) in SeamcallStatus::ALL.iter().skip(index + 1) {
                assert!(status != other);
            }
        }
        assert_eq!(SeamcallStatus::from_raw(0xc000_0e00_0000_0000).name(), None);
    }
}
