// SPDX-License-Identifier: GPL-2.0

//! TDX_FEATURES0 by name.

use tdx_module::Profile;

/// Names of the bits, as used by `--feature` and `--no-feature`.
const NAMES: [(&str, u32); 41] = [
    ("migration", 0),
    ("td-preserving", 1),
    ("service-td", 2),
    ("vp-rdwr", 3),
    ("relaxed-memory", 4),
    ("cpuid-guest-control", 5),
    ("connect", 6),
    ("partitioning", 7),
    ("local-attestation", 8),
    ("entry-enhancements", 9),
    ("host-priority-locks", 10),
    ("arch-cap-config", 11),
    ("pending-ept-v2", 16),
    ("fms-config", 17),
    ("no-rbp-mod", 18),
    ("l2-tlb-opt", 19),
    ("topology-enum", 20),
    ("partitioned-migration", 21),
    ("event-filtering", 24),
    ("icssd", 25),
    ("fixed-counters", 26),
    ("maxpa-virt", 27),
    ("apx", 28),
    ("cpuid2-virt", 29),
    ("ve-reduction", 30),
    ("enhanced-event-filtering", 31),
    ("connect-partitioning", 32),
    ("maxgpa-virt", 33),
    ("dynamic-pamt", 36),
    ("fatal-diagnostics", 37),
    ("page-release", 38),
    ("nrx", 39),
    ("enhanced-interrupt-state", 40),
    ("non-blocking-export", 41),
    ("import-page-status", 44),
    ("ve-info-interruptibility", 46),
    ("update-compatibility", 47),
    ("servtd-rebind", 48),
    ("enhanced-demote", 51),
    ("debug-ro-migration", 52),
    ("sys-disable", SYS_DISABLE),
];

const SYS_DISABLE: u32 = 53;

/// What `--feature` and `--no-feature` ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// TDX_FEATURES0 without bit 53, if it differs from the profile's.
    pub features0: Option<u64>,
    /// Bit 53, if it was named.
    pub sys_disable: Option<bool>,
}

/// Resolves feature names against a profile.
///
/// # Errors
///
/// A sentence that lists the names, when one is unknown or asked for both ways.
pub fn resolve(profile: Profile, with: &[String], without: &[String]) -> Result<Features, String> {
    let base: u64 = match profile {
        Profile::Baseline => 0x1f_0fbf,
        Profile::V1_5_01 => 0x0f_0fbf,
    };
    let bits = |names: &[String]| {
        names.iter().try_fold(0u64, |bits, name| {
            Ok::<_, String>(bits | 1u64 << bit(name)?)
        })
    };
    let (set, clear) = (bits(with)?, bits(without)?);
    if set & clear != 0 {
        return Err(format!(
            "feature bit {} is asked for both ways",
            (set & clear).trailing_zeros()
        ));
    }
    let named = (set | clear) >> SYS_DISABLE & 1 == 1;
    let features0 = (base | set) & !clear & !(1 << SYS_DISABLE);
    Ok(Features {
        features0: (features0 != base).then_some(features0),
        sys_disable: named.then_some(set >> SYS_DISABLE & 1 == 1),
    })
}

fn bit(name: &str) -> Result<u32, String> {
    let by_number = || name.parse().ok().filter(|bit| *bit < 64);
    NAMES
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, bit)| *bit)
        .or_else(by_number)
        .ok_or_else(|| {
            let known: Vec<_> = NAMES.iter().map(|(n, _)| *n).collect();
            format!(
                "'{name}' is no feature; known are bits 0 to 63 and {}",
                known.join(", ")
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn bits_are_added_and_taken_away() {
        let got = resolve(
            Profile::Baseline,
            &names(&["36"]),
            &names(&["no-rbp-mod", "sys-disable"]),
        );
        let expected = Features {
            features0: Some(0x10_001b_0fbf),
            sys_disable: Some(false),
        };
        assert_eq!(got, Ok(expected));
    }

    #[test]
    fn nothing_asked_means_the_profile_decides() {
        let got = resolve(Profile::Baseline, &[], &[]);
        assert_eq!(
            got,
            Ok(Features {
                features0: None,
                sys_disable: None
            })
        );
    }

    #[test]
    fn unknown_and_contradicting_names_are_refused() {
        assert!(
            resolve(Profile::Baseline, &names(&["no-such"]), &[])
                .unwrap_err()
                .contains("no-rbp-mod")
        );
        assert!(resolve(Profile::Baseline, &names(&["apx"]), &names(&["28"])).is_err());
        assert!(resolve(Profile::Baseline, &names(&["64"]), &[]).is_err());
    }
}
