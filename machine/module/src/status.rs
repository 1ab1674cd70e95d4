// SPDX-License-Identifier: GPL-2.0

//! Completion status of a leaf: [`Status`], its numbers and their names.
//!
//! Bits 63:32 say what happened, bits 31:0 give details such as the operand ([`Operand`]) that is
//! at fault.

use std::fmt;

/// Completion status that the module returns in RAX.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[must_use]
pub struct Status(u64);

/// Operand id in bits 31:0 of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "the names are those of the registers and locks"
)]
pub enum Operand {
    Rax = 0,
    Rcx = 1,
    Rdx = 2,
    R8 = 8,
    R9 = 9,
    R10 = 10,
    Attributes = 64,
    Xfam = 65,
    ExecControls = 66,
    EptpControls = 67,
    MaxVcpus = 68,
    CpuidConfig = 69,
    TscFrequency = 70,
    NumL2Vms = 71,
    ArchCapabilitiesConfig = 72,
    Tdr = 128,
    SeptTree = 146,
    TdEpoch = 169,
    OpState = 172,
    Kot = 186,
    Ket = 187,
    WbCache = 188,
}

impl Status {
    /// The status with this 64-bit word.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The whole 64-bit word.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// This status with details in bits 31:0.
    pub const fn with(self, details: u32) -> Self {
        Self(self.0 & !0xffff_ffff | details as u64)
    }

    /// This status, with an operand at fault.
    pub const fn operand(self, operand: Operand) -> Self {
        self.with(operand as u32)
    }

    /// Whether bit 63 (error) is set. Success and mere information have it clear.
    pub const fn is_error(self) -> bool {
        self.0 >> 63 != 0
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = status_name(self.0).unwrap_or("unknown status");
        write!(f, "{:016x} ({name})", self.0)
    }
}

macro_rules! statuses {
    ($($code:literal $name:ident,)*) => {
        #[expect(missing_docs, reason = "the names are those of the TDX module's ABI")]
        impl Status {
            $(pub const $name: Self = Self($code << 32);)*
        }

        /// Name of a status word such as `OPERAND_BUSY`, or `None` if its upper half is unknown.
        ///
        /// Bits 31:0 are ignored.
        pub fn status_name(status: u64) -> Option<&'static str> {
            match status >> 32 {
                $($code => Some(stringify!($name)),)*
                _ => None,
            }
        }
    };
}

statuses! {
    0x00000000 SUCCESS,
    0x40000001 NON_RECOVERABLE_VCPU,
    0x60000002 NON_RECOVERABLE_TD,
    0x80000003 INTERRUPTED_RESUMABLE,
    0x80000004 INTERRUPTED_RESTARTABLE,
    0x60000005 NON_RECOVERABLE_TD_NON_ACCESSIBLE,
    0xC0000006 INVALID_RESUMPTION,
    0xE0000007 NON_RECOVERABLE_TD_WRONG_APIC_MODE,
    0x80000008 CROSS_TD_FAULT,
    0x6000000A NON_RECOVERABLE_TD_CORRUPTED_MD,
    0xC0000100 OPERAND_INVALID,
    0xC0000101 OPERAND_ADDR_RANGE_ERROR,
    0xC0000102 EVENT_FILTER_INVALID,
    0xC0000103 EVENT_FILTER_ORDER_INVALID,
    0x80000200 OPERAND_BUSY,
    0x80000201 PREVIOUS_TLB_EPOCH_BUSY,
    0x80000202 SYS_BUSY,
    0x80000203 RND_NO_ENTROPY,
    0x80000204 OPERAND_BUSY_HOST_PRIORITY,
    0x90000205 HOST_PRIORITY_BUSY_TIMEOUT,
    0xC0000300 PAGE_METADATA_INCORRECT,
    0x00000301 PAGE_ALREADY_FREE,
    0xC0000302 PAGE_NOT_OWNED_BY_TD,
    0xC0000303 PAGE_NOT_FREE,
    0xC0000304 HPA_RANGE_NOT_FREE,
    0xC0000305 NO_PAMT_PAGE_PAIR,
    0xC0000306 PAMT_PAGE_NOT_EMPTY,
    0x80000308 MISSING_PAMT_PAGE_PAIR,
    0xC0000400 TD_ASSOCIATED_PAGES_EXIST,
    0xC0000500 SYS_INIT_NOT_PENDING,
    0xC0000502 SYS_LP_INIT_NOT_DONE,
    0xC0000503 SYS_LP_INIT_DONE,
    0xC0000505 SYS_NOT_READY,
    0xC0000506 SYS_SHUTDOWN,
    0xC0000507 SYS_KEY_CONFIG_NOT_PENDING,
    0xC0000508 SYS_STATE_INCORRECT,
    0xC0000509 SYS_INVALID_HANDOFF,
    0xC000050A SYS_INCOMPATIBLE_SIGSTRUCT,
    0xC000050B SYS_LP_INIT_NOT_PENDING,
    0xC000050C SYS_CONFIG_NOT_PENDING,
    0xC000050D INCOMPATIBLE_SEAM_CAPABILITIES,
    0x80000512 UPDATE_COMPATIBILITY_SENSITIVE,
    0xE0000604 TD_FATAL,
    0xC0000605 TD_NON_DEBUG,
    0xC0000606 TDCS_NOT_ALLOCATED,
    0xC0000607 LIFECYCLE_STATE_INCORRECT,
    0xC0000608 OP_STATE_INCORRECT,
    0xC0000609 NO_VCPUS,
    0xC0000610 TDCX_NUM_INCORRECT,
    0xC0000621 X2APIC_ID_NOT_UNIQUE,
    0xC0000622 INCOMPATIBLE_MRTD_CONTEXT,
    0xC0000700 VCPU_STATE_INCORRECT,
    0x80000701 VCPU_ASSOCIATED,
    0x80000702 VCPU_NOT_ASSOCIATED,
    0xC0000704 NO_VALID_VE_INFO,
    0xC0000705 MAX_VCPUS_EXCEEDED,
    0xC0000706 TSC_ROLLBACK,
    0xC0000730 TD_VMCS_FIELD_NOT_INITIALIZED,
    0x80000800 KEY_GENERATION_FAILED,
    0x80000810 TD_KEYS_NOT_CONFIGURED,
    0xC0000811 KEY_STATE_INCORRECT,
    0x00000815 KEY_CONFIGURED,
    0x80000817 WBCACHE_NOT_COMPLETE,
    0xC0000820 HKID_NOT_FREE,
    0x00000821 NO_HKID_READY_TO_WBCACHE,
    0xC0000823 WBCACHE_RESUME_ERROR,
    0x80000824 FLUSHVP_NOT_DONE,
    0xC0000825 NUM_ACTIVATED_HKIDS_NOT_SUPPORTED,
    0xC0000900 INCORRECT_CPUID_VALUE,
    0xC0000901 LIMIT_CPUID_MAXVAL_SET,
    0xC0000902 INCONSISTENT_CPUID_FIELD,
    0xC0000904 CPUID_LEAF_1F_FORMAT_UNRECOGNIZED,
    0xC0000905 INVALID_WBINVD_SCOPE,
    0xC0000906 INVALID_PKG_ID,
    0xC0000908 CPUID_LEAF_NOT_SUPPORTED,
    0xC0000910 SMRR_NOT_LOCKED,
    0xC0000911 INVALID_SMRR_CONFIGURATION,
    0xC0000912 SMRR_OVERLAPS_CMR,
    0xC0000913 SMRR_LOCK_NOT_SUPPORTED,
    0xC0000914 SMRR_NOT_SUPPORTED,
    0xC0000920 INCONSISTENT_MSR,
    0xC0000921 INCORRECT_MSR_VALUE,
    0xC0000A00 INVALID_TDMR,
    0xC0000A01 NON_ORDERED_TDMR,
    0xC0000A02 TDMR_OUTSIDE_CMRS,
    0x00000A03 TDMR_ALREADY_INITIALIZED,
    0xC0000A10 INVALID_PAMT,
    0xC0000A11 PAMT_OUTSIDE_CMRS,
    0xC0000A12 PAMT_OVERLAP,
    0xC0000A20 INVALID_RESERVED_IN_TDMR,
    0xC0000A21 NON_ORDERED_RESERVED_IN_TDMR,
    0xC0000A22 CMR_LIST_INVALID,
    0xC0000B00 EPT_WALK_FAILED,
    0xC0000B03 EPT_ENTRY_NOT_PRESENT,
    0xC0000B06 GPA_RANGE_NOT_BLOCKED,
    0x00000B07 GPA_RANGE_ALREADY_BLOCKED,
    0xC0000B08 TLB_TRACKING_NOT_DONE,
    0x00000B0A PAGE_ALREADY_ACCEPTED,
    0xC0000B0B PAGE_SIZE_MISMATCH,
    0xC0000B0D EPT_ENTRY_STATE_INCORRECT,
    0xC0000B0E EPT_PAGE_NOT_FREE,
    0xC0000C00 METADATA_FIELD_ID_INCORRECT,
    0xC0000C01 METADATA_FIELD_NOT_WRITABLE,
    0xC0000C02 METADATA_FIELD_NOT_READABLE,
    0xC0000C03 METADATA_FIELD_VALUE_NOT_VALID,
    0x00000C0B METADATA_FIRST_FIELD_ID_IN_CONTEXT,
}
