// SPDX-License-Identifier: GPL-2.0

//! A failed SEAMCALL in words: what its status means, what it is about, what can be done.
//!
//! [`explain`] has the meaning and the remedy for the statuses that a host administrator can meet;
//! the same status can mean different things on different leaves. [`Details`] spells out the low
//! half of a status: the operand, MSR, TDMR... it is about.
//!
//! Pure: `core` only, never panics. Neighbours: `status` and `leaf` have the numbers.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use core::fmt;

use crate::leaf::Leaf;
use crate::status::SeamcallStatus as S;
use crate::status::{
    SeamcallStatus,
    StatusClass, //
};

/// What a status means and what an administrator can do about it, each half a sentence or more
/// for the kernel log, without a full stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What happened.
    pub meaning: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

const UPDATE_BIOS: &str = "update the BIOS (it brings microcode and TDX module)";
const UPDATE_MODULE: &str = "update the TDX module (often part of the BIOS)";
const REPORT_BUG: &str = "this is a kernel bug: report it with the whole kernel log";
const REPORT_MAP: &str = "this is a kernel bug: report it with the memory map in the kernel log";
const TRY_AGAIN: &str = "reboot and try again";
const POWER_CYCLE: &str = "reboot through firmware, not by kexec";
const ALL_CPUS: &str = "boot with all CPUs that firmware enabled: without maxcpus=, nr_cpus=, \
                        possible_cpus=, nosmt, or with the unused CPUs disabled in the BIOS";
const NOT_AS_RAM: &str = "do not use CXL memory, persistent memory or memory added by memmap= as \
                          RAM; populate memory as the BIOS demands for TDX";
const ENABLE_TDX: &str = "enable TDX in the BIOS: Total Memory Encryption (TME), multi-key TME, \
                          Trust Domain Extensions (TDX), SEAM loader";

/// Shorthand for the tables below.
const fn say(meaning: &'static str, remedy: &'static str) -> Explanation {
    Explanation { meaning, remedy }
}

/// Explains how `leaf` ended; `None` if there is nothing to say beyond the status' name.
pub fn explain(leaf: Leaf, status: SeamcallStatus) -> Option<Explanation> {
    if leaf.is_seamldr() {
        return seamldr(leaf, status);
    }
    if status.class() == StatusClass::Software {
        return find(NOT_REACHED, |known| *known == status);
    }
    let on_this_leaf = ON_LEAF
        .iter()
        .find(|(on, known, _)| *on == leaf.with_version(0) && known.is(status))
        .map(|&(_, _, explanation)| explanation);
    on_this_leaf
        .or_else(|| msr(status))
        .or_else(|| find(PLATFORM, |known| known.is(status)))
        .or_else(|| find(STATE, |known| known.is(status)))
        .or_else(|| find(MEMORY, |known| known.is(status)))
        .or_else(|| find(PASSING, |known| known.is(status)))
}

/// Statuses that have the same explanation.
type Entry = (&'static [SeamcallStatus], Explanation);

/// The explanation in `table` for the status that `same` recognises.
fn find(table: &[Entry], same: impl Fn(&SeamcallStatus) -> bool) -> Option<Explanation> {
    table
        .iter()
        .find(|(statuses, _)| statuses.iter().any(&same))
        .map(|&(_, explanation)| explanation)
}

/// The P-SEAMLDR has statuses of its own, which nobody has published.
fn seamldr(leaf: Leaf, status: SeamcallStatus) -> Option<Explanation> {
    if status == S::SEAMCALL_VMFAILINVALID {
        return Some(say(
            "the P-SEAMLDR is not loaded, and the TDX module cannot be updated without it",
            "check that the BIOS enables the SEAM loader; update the BIOS",
        ));
    }
    if status.class() == StatusClass::Software {
        return find(NOT_REACHED, |known| *known == status);
    }
    (leaf == Leaf::SEAMLDR_INSTALL && !status.is_success()).then_some(say(
        "the P-SEAMLDR refuses this TDX module",
        "use a module that Intel signed for this processor and as an update of the running one",
    ))
}

/// The instruction did not reach the module.
const NOT_REACHED: &[Entry] = &[
    (
        &[S::SEAMCALL_VMFAILINVALID],
        say(
            "the TDX module is not loaded, or has shut itself down after a fatal error",
            "check that the BIOS loads the SEAM loader and a TDX module; update the BIOS",
        ),
    ),
    (
        &[S::SEAMCALL_GP],
        say(
            "firmware has set KeyIDs aside for TDX but has not enabled SEAM mode",
            ENABLE_TDX,
        ),
    ),
    (
        &[S::SEAMCALL_UD],
        say(
            "the CPU is not in VMX operation",
            "enable virtualization (VT-x) in the BIOS",
        ),
    ),
];

/// What a status means on one leaf only.
const ON_LEAF: &[(Leaf, SeamcallStatus, Explanation)] = &[
    (
        Leaf::TDH_SYS_RD,
        S::SYS_NOT_READY,
        say(
            "the TDX module cannot read metadata this early: it is a 1.0 module",
            UPDATE_MODULE,
        ),
    ),
    (
        Leaf::TDH_SYS_CONFIG,
        S::SYS_CONFIG_NOT_PENDING,
        say(
            "not every CPU that firmware enabled has been initialised for TDX",
            ALL_CPUS,
        ),
    ),
    (
        Leaf::TDH_SYS_DISABLE,
        S::OPERAND_INVALID,
        say(
            "this TDX module cannot be disabled",
            "update the TDX module if kexec must leave no TDX memory behind",
        ),
    ),
];

/// The module does not like the platform it finds.
const PLATFORM: &[Entry] = &[
    (
        &[S::INCORRECT_CPUID_VALUE],
        say(
            "the CPU reports features (CPUID) that this TDX module does not accept",
            UPDATE_BIOS,
        ),
    ),
    (
        &[S::LIMIT_CPUID_MAXVAL_SET],
        say(
            "the BIOS limits the CPUID leaves",
            "disable \"Limit CPUID Maximum\" in the BIOS",
        ),
    ),
    (
        &[
            S::CPUID_LEAF_NOT_SUPPORTED,
            S::CPUID_LEAF_1F_FORMAT_UNRECOGNIZED,
            S::INVALID_WBINVD_SCOPE,
        ],
        say(
            "the CPU's topology or CPUID is unknown to this TDX module",
            UPDATE_BIOS,
        ),
    ),
    (
        &[S::INVALID_PKG_ID],
        say(
            "a package number is higher than this TDX module supports",
            UPDATE_MODULE,
        ),
    ),
    (
        &[S::INCONSISTENT_CPUID_FIELD, S::INCONSISTENT_MSR],
        say(
            "this CPU differs from the one that initialised the TDX module",
            "check that all CPUs are of one model with one microcode; update the BIOS",
        ),
    ),
    (
        &[S::NUM_ACTIVATED_HKIDS_NOT_SUPPORTED],
        say(
            "firmware activates more KeyIDs than this TDX module supports",
            "reduce the number of TME-MT keys in the BIOS, or update the TDX module",
        ),
    ),
    (
        &[
            S::SMRR_NOT_LOCKED,
            S::INVALID_SMRR_CONFIGURATION,
            S::SMRR_OVERLAPS_CMR,
            S::SMRR_LOCK_NOT_SUPPORTED,
            S::SMRR_NOT_SUPPORTED,
        ],
        say(
            "firmware has not protected its system management memory as TDX demands",
            UPDATE_BIOS,
        ),
    ),
    (
        &[S::CMR_LIST_INVALID],
        say(
            "firmware reports a broken list of memory that TDX can use (CMRs)",
            UPDATE_BIOS,
        ),
    ),
    (
        &[
            S::INCOMPATIBLE_SEAM_CAPABILITIES,
            S::SYS_INCOMPATIBLE_SIGSTRUCT,
        ],
        say("this TDX module does not fit this CPU", UPDATE_MODULE),
    ),
];

/// The module found an MSR, named in the details, with a value it refuses.
fn msr(status: SeamcallStatus) -> Option<Explanation> {
    if !status.is(S::INCORRECT_MSR_VALUE) {
        return None;
    }
    Some(match status.details() {
        0x981 | 0x982 => say(
            "memory encryption (TME) is not enabled or not locked as TDX needs it",
            ENABLE_TDX,
        ),
        0xbd => say(
            "the legacy xAPIC mode can still be entered",
            "enable x2APIC mode in the BIOS; update the BIOS",
        ),
        0x122 => say(
            "the state of TSX is not what this TDX module expects",
            "update the BIOS and the TDX module; try another setting of the kernel parameter tsx=",
        ),
        _ => say(
            "firmware has set up this MSR in a way that TDX does not accept",
            UPDATE_BIOS,
        ),
    })
}

/// The call does not fit the state of the module.
const STATE: &[Entry] = &[
    (
        &[S::SYS_INIT_NOT_PENDING],
        say(
            "the TDX module is initialised already, by an earlier kernel",
            POWER_CYCLE,
        ),
    ),
    (
        &[S::SYS_LP_INIT_NOT_PENDING],
        say(
            "this CPU came too late: TDX is configured already and takes no more CPUs",
            ALL_CPUS,
        ),
    ),
    (
        &[S::SYS_LP_INIT_DONE],
        say(
            "this CPU has been initialised for TDX before, by an earlier kernel",
            POWER_CYCLE,
        ),
    ),
    (
        &[S::SYS_LP_INIT_NOT_DONE],
        say("this CPU has not been initialised for TDX", REPORT_BUG),
    ),
    (
        &[
            S::SYS_CONFIG_NOT_PENDING,
            S::SYS_KEY_CONFIG_NOT_PENDING,
            S::KEY_CONFIGURED,
            S::TDMR_ALREADY_INITIALIZED,
        ],
        say(
            "this step of the initialisation is done already",
            POWER_CYCLE,
        ),
    ),
    (
        &[S::SYS_NOT_READY],
        say(
            "the TDX module is not initialised far enough for this call",
            "see the first TDX error in the kernel log",
        ),
    ),
    (
        &[S::SYS_SHUTDOWN],
        say(
            "the TDX module has been shut down, for an update or by an earlier kernel",
            POWER_CYCLE,
        ),
    ),
    (
        &[
            S::METADATA_FIELD_ID_INCORRECT,
            S::METADATA_FIELD_NOT_READABLE,
        ],
        say(
            "this TDX module does not have the metadata field: it is too old \
             (1.5.06 is the oldest with all that is needed)",
            UPDATE_MODULE,
        ),
    ),
    (
        &[S::KEY_GENERATION_FAILED],
        say(
            "the CPU could not make an encryption key, mostly for lack of entropy",
            TRY_AGAIN,
        ),
    ),
];

/// TDH.SYS.CONFIG refuses a TDMR, or a call refuses an operand.
const MEMORY: &[Entry] = &[
    (
        &[S::TDMR_OUTSIDE_CMRS],
        say(
            "the kernel uses memory that firmware did not make available to TDX (no CMR has it)",
            NOT_AS_RAM,
        ),
    ),
    (
        &[S::PAMT_OUTSIDE_CMRS],
        say(
            "TDX metadata was allocated in memory that firmware did not make available to TDX",
            NOT_AS_RAM,
        ),
    ),
    (
        &[
            S::INVALID_TDMR,
            S::NON_ORDERED_TDMR,
            S::INVALID_PAMT,
            S::PAMT_OVERLAP,
            S::INVALID_RESERVED_IN_TDMR,
            S::NON_ORDERED_RESERVED_IN_TDMR,
        ],
        say("the TDX module refuses the plan of TDX memory", REPORT_MAP),
    ),
    (
        &[S::OPERAND_INVALID],
        say(
            "the TDX module does not know this call, or the kernel passed a wrong operand",
            "update the TDX module; if that does not help, report it with the whole kernel log",
        ),
    ),
];

/// Something that can pass.
const PASSING: &[Entry] = &[
    (
        &[S::RND_NO_ENTROPY],
        say(
            "the CPU's random number generator had nothing to give, several times in a row",
            TRY_AGAIN,
        ),
    ),
    (
        &[S::SYS_BUSY, S::OPERAND_BUSY, S::OPERAND_BUSY_HOST_PRIORITY],
        say("another CPU is using the same resource", REPORT_BUG),
    ),
    (
        &[S::INTERRUPTED_RESUMABLE],
        say("the call was interrupted and can be resumed", TRY_AGAIN),
    ),
];

/// The low half of a status in words, to be put behind its name: `, operand RCX` or
/// `, TDMR 2, reserved area 5`; nothing at all if it says nothing.
#[derive(Clone, Copy, Debug)]
pub struct Details(pub SeamcallStatus);

impl fmt::Display for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let details = self.0.details();
        let [tdmr, second, third, _] = details.to_le_bytes();
        let level = Level(second);
        match DETAILS
            .iter()
            .find(|(statuses, _)| statuses.iter().any(|known| known.is(self.0)))
            .map(|(_, kind)| kind)
        {
            Some(Kind::Operand) => match operand_name(details) {
                Some(name) => write!(f, ", operand {name}"),
                None => write!(f, ", operand {details}"),
            },
            Some(Kind::Msr) => write!(f, ", MSR {details:#x}"),
            Some(Kind::CpuidLeaf) => write!(f, ", CPUID leaf {details:#x}"),
            Some(Kind::Package) => write!(f, ", package {details}"),
            Some(Kind::MaxKeyIds) => write!(f, ", at most {details}"),
            Some(Kind::Smrr) => write!(f, ", SMRR {tdmr}"),
            Some(Kind::SmrrCmr) => write!(f, ", SMRR {tdmr}, CMR {second}"),
            Some(Kind::Tdmr) => write!(f, ", TDMR {tdmr}"),
            Some(Kind::TdmrArea) => write!(f, ", TDMR {tdmr}, reserved area {second}"),
            Some(Kind::TdmrPamt) => write!(f, ", TDMR {tdmr}, PAMT {level}"),
            Some(Kind::TdmrPamtTdmr) => write!(f, ", TDMR {tdmr}, PAMT {level}, TDMR {third}"),
            None if details != 0 => write!(f, ", details {details:#x}"),
            None => Ok(()),
        }
    }
}

/// What the low half of a status is.
enum Kind {
    Operand,
    Msr,
    CpuidLeaf,
    Package,
    MaxKeyIds,
    Smrr,
    SmrrCmr,
    Tdmr,
    TdmrArea,
    TdmrPamt,
    TdmrPamtTdmr,
}

/// Which status has what in its low half.
const DETAILS: &[(&[SeamcallStatus], Kind)] = &[
    (
        &[
            S::OPERAND_INVALID,
            S::OPERAND_ADDR_RANGE_ERROR,
            S::OPERAND_BUSY,
            S::OPERAND_BUSY_HOST_PRIORITY,
            S::PAGE_METADATA_INCORRECT,
        ],
        Kind::Operand,
    ),
    (&[S::INCORRECT_MSR_VALUE, S::INCONSISTENT_MSR], Kind::Msr),
    (&[S::CPUID_LEAF_NOT_SUPPORTED], Kind::CpuidLeaf),
    (&[S::INVALID_PKG_ID], Kind::Package),
    (&[S::NUM_ACTIVATED_HKIDS_NOT_SUPPORTED], Kind::MaxKeyIds),
    (
        &[S::SMRR_NOT_LOCKED, S::INVALID_SMRR_CONFIGURATION],
        Kind::Smrr,
    ),
    (&[S::SMRR_OVERLAPS_CMR], Kind::SmrrCmr),
    (
        &[S::INVALID_TDMR, S::NON_ORDERED_TDMR, S::TDMR_OUTSIDE_CMRS],
        Kind::Tdmr,
    ),
    (
        &[S::INVALID_RESERVED_IN_TDMR, S::NON_ORDERED_RESERVED_IN_TDMR],
        Kind::TdmrArea,
    ),
    (&[S::INVALID_PAMT, S::PAMT_OUTSIDE_CMRS], Kind::TdmrPamt),
    (&[S::PAMT_OVERLAP], Kind::TdmrPamtTdmr),
];

/// A PAMT level as the module numbers them.
struct Level(u8);

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("4K"),
            1 => f.write_str("2M"),
            2 => f.write_str("1G"),
            other => write!(f, "level {other}"),
        }
    }
}

/// The name of an operand id.
const fn operand_name(id: u32) -> Option<&'static str> {
    Some(match id {
        0 => "RAX",
        1 => "RCX",
        2 => "RDX",
        3 => "RBX",
        5 => "RBP",
        6 => "RSI",
        7 => "RDI",
        8 => "R8",
        9 => "R9",
        10 => "R10",
        11 => "R11",
        12 => "R12",
        13 => "R13",
        14 => "R14",
        15 => "R15",
        64 => "ATTRIBUTES",
        65 => "XFAM",
        66 => "EXEC_CONTROLS",
        67 => "EPTP_CONTROLS",
        68 => "MAX_VCPUS",
        69 => "CPUID_CONFIG",
        70 => "TSC_FREQUENCY",
        71 => "NUM_L2_VMS",
        72 => "ARCH_CAPABILITIES_CONFIG",
        95 => "PAGE",
        96 => "TDMR_INFO_PA",
        128 => "TDR",
        129 => "TDCX",
        130 => "TDVPR",
        132 => "REG_PAGE",
        144 => "TDCS",
        145 => "TDVPS",
        146 => "SEPT_TREE",
        147 => "SEPT_ENTRY",
        168 => "RTMR",
        169 => "TD_EPOCH",
        172 => "OP_STATE",
        176 => "METADATA_FIELD",
        184 => "SYS",
        185 => "TDMR",
        186 => "KOT",
        187 => "KET",
        188 => "WBCACHE",
        _ => return None,
    })
}

#[cfg(any(test, CONFIG_INTEL_TDX_HOST_KUNIT_TEST))]
#[cfg_attr(
    CONFIG_INTEL_TDX_HOST_KUNIT_TEST,
    kernel::macros::kunit_tests(tdx_host_explain)
)]
mod tests {
    use super::*;
    use core::fmt::Write;

    /// Text in a fixed buffer.
    struct Text {
        bytes: [u8; 128],
        used: usize,
    }

    impl Write for Text {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            for byte in text.bytes() {
                *self.bytes.get_mut(self.used).ok_or(fmt::Error)? = byte;
                self.used += 1;
            }
            Ok(())
        }
    }

    fn reads(what: impl fmt::Display, expected: &str) -> bool {
        let mut text = Text {
            bytes: [0; 128],
            used: 0,
        };
        write!(text, "{what}").is_ok() && text.bytes.get(..text.used) == Some(expected.as_bytes())
    }

    fn details(raw: u64, expected: &str) -> bool {
        reads(Details(SeamcallStatus::from_raw(raw)), expected)
    }

    #[test]
    fn details_name_what_a_status_is_about() {
        assert!(details(0, ""));
        assert!(details(0xc000_0506_0000_0000, ""));
        assert!(details(0xc000_0100_0000_0000, ", operand RAX"));
        assert!(details(0x8000_0200_0000_00ba, ", operand KOT"));
        assert!(details(0xc000_0100_0000_0fff, ", operand 4095"));
        assert!(details(0xc000_0921_0000_0122, ", MSR 0x122"));
        assert!(details(0xc000_0a02_0000_0003, ", TDMR 3"));
        assert!(details(0xc000_0a20_0000_0502, ", TDMR 2, reserved area 5"));
        assert!(details(0xc000_0a10_0000_0200, ", TDMR 0, PAMT 1G"));
        assert!(details(0xc000_0a12_0004_0105, ", TDMR 5, PAMT 2M, TDMR 4"));
        assert!(details(0xc000_0e00_0000_0001, ", details 0x1"));
    }

    #[test]
    fn status_and_leaf_print_by_name() {
        assert!(reads(S::SYS_BUSY, "TDX_SYS_BUSY (0x8000020200000000)"));
        assert!(reads(
            S::from_raw(0xc000_0e00_0000_0001),
            "unknown status 0xc0000e0000000001"
        ));
        assert!(reads(Leaf::TDH_SYS_CONFIG, "TDH.SYS.CONFIG"));
        assert!(reads(Leaf::from_raw(99), "SEAMCALL leaf 0x63"));
    }

    #[test]
    fn same_status_means_different_things_on_different_leaves() {
        let config = explain(Leaf::TDH_SYS_CONFIG, S::SYS_CONFIG_NOT_PENDING);
        assert!(config.is_some_and(|words| words.remedy == ALL_CPUS));
        let other = explain(Leaf::TDH_SYS_KEY_CONFIG, S::SYS_CONFIG_NOT_PENDING);
        assert!(other.is_some() && other != config);
        let rd = explain(Leaf::TDH_SYS_RD, S::SYS_NOT_READY);
        assert!(rd != explain(Leaf::TDH_SYS_TDMR_INIT, S::SYS_NOT_READY));
    }

    #[test]
    fn unreached_module_and_msrs_have_their_own_words() {
        let leaf = Leaf::TDH_SYS_INIT;
        let failures = [S::SEAMCALL_VMFAILINVALID, S::SEAMCALL_GP, S::SEAMCALL_UD];
        for (index, status) in failures.into_iter().enumerate() {
            assert!(explain(leaf, status).is_some());
            for other in failures.into_iter().skip(index + 1) {
                assert!(explain(leaf, status) != explain(leaf, other));
            }
        }
        let tme = explain(leaf, S::from_raw(S::INCORRECT_MSR_VALUE.raw() | 0x982));
        assert!(tme.is_some_and(|words| words.remedy == ENABLE_TDX));
        assert!(tme != explain(leaf, S::from_raw(S::INCORRECT_MSR_VALUE.raw() | 0x480)));
    }

    #[test]
    fn loader_is_not_mistaken_for_the_module() {
        let words = |leaf, status| explain(leaf, status).map(|words| words.meaning);
        let missing = S::SEAMCALL_VMFAILINVALID;
        let loader = words(Leaf::SEAMLDR_INFO, missing);
        assert!(loader.is_some() && loader != words(Leaf::TDH_SYS_RD, missing));
        let disabled = words(Leaf::SEAMLDR_INFO, S::SEAMCALL_GP);
        assert_eq!(disabled, words(Leaf::TDH_SYS_RD, S::SEAMCALL_GP));
        assert!(words(Leaf::SEAMLDR_INSTALL, S::OPERAND_INVALID).is_some());
        assert_eq!(words(Leaf::SEAMLDR_INFO, S::OPERAND_INVALID), None);
        assert_eq!(words(Leaf::SEAMLDR_INSTALL, S::SUCCESS), None);
    }

    #[test]
    fn success_and_unknown_statuses_need_no_words() {
        assert_eq!(explain(Leaf::TDH_SYS_INIT, S::SUCCESS), None);
        assert_eq!(
            explain(Leaf::TDH_SYS_INIT, S::from_raw(0xc000_0e00_0000_0000)),
            None
        );
    }
}
