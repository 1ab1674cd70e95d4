// SPDX-License-Identifier: GPL-2.0

//! Rules for the CPUID values that a TD's owner configures at TDH.MNG.INIT.

use crate::profile::{CpuidConfig, NO_SUBLEAF};
use crate::td_params::{Rules, TdParams, attributes};
use crate::{Operand, Status};

const INVALID: Status = Status::OPERAND_INVALID.operand(Operand::CpuidConfig);
/// Family, model and stepping in CPUID(1).EAX.
const FMS: u32 = 0x0fff_3fff;
const ARCH_CAPABILITIES: u32 = 0x10a;
const HLE: u32 = 1 << 4;
const RTM: u32 = 1 << 11;

/// Checks the CPUID values of `params`; tells `bad` the leaf and subleaf of one that is not allowed.
pub(crate) fn check(
    params: &TdParams,
    rules: &Rules<'_>,
    bad: impl FnOnce(u32, u32),
) -> Result<(), Status> {
    for (config, value) in rules.facts.cpuid_config.iter().zip(&params.cpuid) {
        if let Err(status) = check_row(config, value, params, rules) {
            bad(config.leaf, config.subleaf);
            return Err(status);
        }
    }
    if rules.facts.checks_virtual_topology() {
        check_topology(params, rules)?;
    }
    Ok(())
}

fn check_row(
    config: &CpuidConfig,
    value: &[u32; 4],
    params: &TdParams,
    rules: &Rules<'_>,
) -> Result<(), Status> {
    let native = rules.snapshot.cpuid_row(config.leaf, config.subleaf);
    for n in 0..4 {
        if value[n] & !(config.direct[n] | config.allow[n] & native[n]) != 0 {
            return Err(INVALID);
        }
    }
    match (config.leaf, config.subleaf) {
        (1, NO_SUBLEAF) => check_fms(value[0], native[0], params),
        (7, 0) => check_tsx(value[1], rules),
        _ => Ok(()),
    }
}

/// Zero asks for the native family, model and stepping.
fn check_fms(value: u32, native: u32, params: &TdParams) -> Result<(), Status> {
    let migratable = params.attributes & attributes::MIGRATABLE != 0;
    let known = |fms: u32| KNOWN_MODELS.contains(&(fms & !0xf)) || fms == native & FMS;
    if value == 0 || value == native & FMS || migratable && known(value) {
        Ok(())
    } else {
        Err(INVALID)
    }
}

/// Family and model (stepping 0) of the processors that TDs can migrate to: Sapphire Rapids,
/// Emerald Rapids.
const KNOWN_MODELS: [u32; 2] = [0x8_06f0, 0xc_06f0];

fn check_tsx(ebx: u32, rules: &Rules<'_>) -> Result<(), Status> {
    let (hle, rtm) = (ebx & HLE != 0, ebx & RTM != 0);
    if hle != rtm {
        return Err(INVALID);
    }
    // Bit 7 says that TSX_CTRL exists.
    if hle && rules.snapshot.msr(ARCH_CAPABILITIES) >> 7 & 1 == 0 {
        return Err(Status::INCORRECT_MSR_VALUE.with(ARCH_CAPABILITIES));
    }
    Ok(())
}

/// CPUID(1Fh), configured or native, must describe levels that rise and contain cores.
fn check_topology(params: &TdParams, rules: &Rules<'_>) -> Result<(), Status> {
    let rows = rules.facts.cpuid_config.iter().zip(&params.cpuid);
    let configured: Vec<[u32; 4]> = rows
        .filter(|(config, _)| config.leaf == 0x1f)
        .map(|(_, &value)| value)
        .collect();
    let native = !params.configures_topology(rules.facts);
    let well_formed = crate::sys_init::topology_is_well_formed(|subleaf| match native {
        true => rules.snapshot.cpuid_row(0x1f, subleaf)[2],
        false => configured.get(subleaf as usize).map_or(0, |row| row[2]),
    });
    if well_formed {
        Ok(())
    } else {
        Err(Status::CPUID_LEAF_1F_FORMAT_UNRECOGNIZED)
    }
}
