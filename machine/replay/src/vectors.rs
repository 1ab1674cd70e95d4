// SPDX-License-Identifier: GPL-2.0

//! Replaying recorded verdicts of TDH.SYS.CONFIG.

use serde::Deserialize;
use tdx_module::{Module, ModuleConfig, Platform, Profile, Regs, number};

use crate::input::{Error, Hex};
use crate::platform::{Processor, RecordedPlatform, Shape};
use crate::report::{Report, compare};
use crate::step::pattern;

/// Where the list of addresses lies in memory, and after it the entries.
const LIST: u64 = 0x20_0000;
/// Distance between two entries.
const STRIDE: u64 = 512;

/// The recorded CMRs know nothing of system management memory: its range is locked and off.
const SMRR_MASK: u32 = 0x1f3;
const SMRR_LOCKED_OFF: u64 = 1 << 10;

/// One recorded verdict.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vector {
    /// Base and size of the convertible memory ranges in bytes.
    pub cmrs: Vec<(u64, u64)>,
    /// The number of entries that the caller claims.
    pub n: u64,
    /// The operand R8.
    pub r8: u64,
    /// The entries: base, size, base and size of the PAMT areas from 1 GB down, reserved areas.
    pub tdmrs: Vec<Tdmr>,
    /// The status.
    pub status: Hex,
}

/// A TDMR_INFO: base, size, PAMT 1G base, size, 2M base, size, 4K base, size, reserved areas.
type Tdmr = (u64, u64, u64, u64, u64, u64, u64, u64, Vec<(u64, u64)>);

/// Replays one verdict and counts into `report`. `number` names it in messages.
///
/// # Errors
///
/// The model cannot be brought to the point where TDH.SYS.CONFIG is due.
pub fn replay(
    vector: &Vector,
    number: usize,
    processor: &Processor,
    report: &mut Report,
) -> Result<(), Error> {
    let platform = RecordedPlatform::new(processor, shape(vector))?;
    platform.set_msr(SMRR_MASK, SMRR_LOCKED_OFF);
    let module = Module::new(ModuleConfig::new(Profile::V1_5_01)).map_err(|e| e.to_string())?;
    initialize(&module, &platform)?;
    write_list(&platform, &vector.tdmrs);

    let input = Regs {
        rax: number::SYS_CONFIG.into(),
        rcx: LIST,
        rdx: vector.n,
        r8: vector.r8,
        ..pattern()
    };
    let expected = Regs {
        rax: vector.status.0,
        ..input
    };
    let mut got = input;
    let _ = module.seamcall(0, &mut got, &platform);
    if got == expected {
        report.agree("TDH.SYS.CONFIG", 1);
    } else {
        report.disagree("TDH.SYS.CONFIG", 1, || {
            format!(
                "vector {number}\n{}\n{vector:x?}",
                compare(&input, &expected, &got)
            )
        });
    }
    Ok(())
}

/// The machine on which all verdicts were recorded, with the CMRs of this one.
fn shape(vector: &Vector) -> Shape {
    Shape {
        module: "1.5.01".to_owned(),
        lps: 1,
        lp_package: vec![0],
        keyid_bits: 6,
        num_mktme_keyids: 15,
        num_tdx_keyids: 48,
        cache_sub_blocks: 4,
        seamrr: (Hex(0), Hex(0)),
        cmrs: vector
            .cmrs
            .iter()
            .map(|&(base, size)| (Hex(base), Hex(size)))
            .collect(),
    }
}

fn initialize(module: &Module, platform: &RecordedPlatform) -> Result<(), Error> {
    for leaf in [number::SYS_INIT, number::SYS_LP_INIT] {
        let mut regs = Regs {
            rax: leaf.into(),
            ..Regs::default()
        };
        let _ = module.seamcall(0, &mut regs, platform);
        if regs.rax != 0 {
            return Err(format!("leaf {leaf} answered {:016x}", regs.rax));
        }
    }
    Ok(())
}

fn write_list(platform: &RecordedPlatform, tdmrs: &[Tdmr]) {
    for (index, tdmr) in (0..).zip(tdmrs) {
        let pa = LIST + STRIDE * (index + 1);
        platform.write(LIST + 8 * index, &pa.to_le_bytes());
        let (base, size, b1g, s1g, b2m, s2m, b4k, s4k, reserved) = tdmr;
        let header = [base, size, b1g, s1g, b2m, s2m, b4k, s4k].map(|word| *word);
        let areas = reserved.iter().flat_map(|&(offset, size)| [offset, size]);
        let bytes: Vec<u8> = header
            .into_iter()
            .chain(areas)
            .flat_map(u64::to_le_bytes)
            .collect();
        platform.write(pa, &bytes);
    }
}
