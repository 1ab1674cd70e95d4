// SPDX-License-Identifier: GPL-2.0

//! `tdx-machine explain` and `tdx-machine leaves`.

use crate::units;
use tdx_module::{leaf_name, status_name};
use tdx_platform::inject::status_by_name;
use tdx_platform::seamldr;

const CLASSES: [&str; 18] = [
    "general",
    "operand",
    "resource busy",
    "page metadata",
    "dependent resources",
    "system state",
    "TD state",
    "TD vCPU",
    "key management",
    "platform",
    "physical memory",
    "guest memory and secure EPT",
    "metadata",
    "service TD",
    "migration",
    "class 15",
    "attestation",
    "partitioning",
];

const OPERANDS: [(u64, &str); 34] = [
    (0, "RAX"),
    (1, "RCX"),
    (2, "RDX"),
    (3, "RBX"),
    (5, "RBP"),
    (6, "RSI"),
    (7, "RDI"),
    (8, "R8"),
    (9, "R9"),
    (10, "R10"),
    (11, "R11"),
    (12, "R12"),
    (13, "R13"),
    (14, "R14"),
    (15, "R15"),
    (64, "ATTRIBUTES"),
    (65, "XFAM"),
    (66, "EXEC_CONTROLS"),
    (67, "EPTP_CONTROLS"),
    (68, "MAX_VCPUS"),
    (69, "CPUID_CONFIG"),
    (70, "TSC_FREQUENCY"),
    (95, "PAGE"),
    (96, "TDMR_INFO_PA"),
    (128, "TDR"),
    (129, "TDCX"),
    (130, "TDVPR"),
    (146, "SEPT_TREE"),
    (147, "SEPT_ENTRY"),
    (169, "TD_EPOCH"),
    (172, "OP_STATE"),
    (186, "KOT (key ownership table)"),
    (187, "KET (key encryption table)"),
    (188, "WBCACHE (write-back state of the package)"),
];

/// Classes of errors whose low bits name an operand: operand and resource busy.
const OPERAND_CLASSES: [u64; 3] = [1, 2, 3];

/// What `text`, a number or a name, means as completion status.
///
/// # Errors
///
/// A sentence, when it is neither.
pub fn explain(text: &str) -> Result<String, String> {
    let status = status_by_name(text)
        .or_else(|| units::number(text).ok())
        .or_else(|| u64::from_str_radix(text, 16).ok())
        .ok_or_else(|| format!("'{text}' is neither the name of a status nor a 64-bit number"))?;
    let class = status >> 40 & 0xff;
    let mut lines = vec![format!(
        "{status:#018x}  {}",
        status_name(status).unwrap_or("(no such status)")
    )];
    lines.push(format!(
        "  class        {}",
        CLASSES
            .get(class as usize)
            .unwrap_or(&"software (not the module's)")
    ));
    let flags = [
        (63, "error"),
        (62, "not recoverable"),
        (61, "fatal"),
        (60, "the host may recover"),
    ];
    let set: Vec<_> = flags
        .iter()
        .filter(|(bit, _)| status >> bit & 1 == 1)
        .map(|(_, name)| *name)
        .collect();
    lines.push(format!(
        "  flags        {}",
        if set.is_empty() {
            "none: success".into()
        } else {
            set.join(", ")
        }
    ));
    let details = status & 0xffff_ffff;
    if details != 0 || OPERAND_CLASSES.contains(&class) {
        let operand = OPERANDS
            .iter()
            .find(|(id, _)| *id == details)
            .map(|(_, name)| *name);
        let named = operand
            .filter(|_| OPERAND_CLASSES.contains(&class))
            .unwrap_or("");
        lines.push(
            format!("  details      {details:#x} {named}")
                .trim_end()
                .to_owned(),
        );
    }
    Ok(lines.join("\n"))
}

/// All leaves, a line each.
pub fn leaves() -> String {
    let of_module =
        (0..=255).filter_map(|leaf| leaf_name(leaf).map(|name| format!("{leaf:4}  {name}")));
    let of_loader = (0..=255).filter_map(|leaf| {
        seamldr::leaf_name(leaf).map(|name| format!("{leaf:4}  {name} (bit 63 of RAX set)"))
    });
    let lines: Vec<_> = of_module.chain(of_loader).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_explained() {
        let text = explain("0xC000010000000001").unwrap();
        assert!(
            text.contains("OPERAND_INVALID") && text.contains("0x1 RCX"),
            "{text}"
        );
        assert_eq!(explain("C000010000000001"), Ok(text));
        assert!(
            explain("TDX_SYS_BUSY")
                .unwrap()
                .starts_with("0x8000020200000000")
        );
        assert!(explain("KEY_CONFIGURED").unwrap().contains("none: success"));
        assert!(explain("nonsense").is_err());
    }

    #[test]
    fn leaves_are_listed_in_order() {
        let text = leaves();
        assert!(text.starts_with("   0  TDH.VP.ENTER") && text.contains("  33  TDH.SYS.INIT"));
        assert!(text.ends_with("   1  SEAMLDR.INSTALL (bit 63 of RAX set)"));
    }
}
