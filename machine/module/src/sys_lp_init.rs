// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.LP.INIT: is this processor like the one that ran TDH.SYS.INIT?

use crate::Status;
use crate::call::{Answer, Call};
use crate::locks::Mode;
use crate::snapshot::{COMPARED_CPUID, MSRS_AFTER_CPUID, MSRS_BEFORE_CPUID, Snapshot};
use crate::state::SysState;
use crate::sys_init::{check_cpuid_limit, registers};

/// Packages that the module can tell apart.
const MAX_PACKAGES: usize = 8;

/// TDH.SYS.LP.INIT. May run on many processors at once.
pub(crate) fn lp_init(call: &mut Call<'_>) -> Answer {
    call.regs.rcx = 0;
    call.regs.rdx = 0;
    call.regs.r8 = 0;
    let _global = call.lock_global(Mode::Shared)?;
    let snapshot = {
        let mut state = call.state();
        if state.sys != SysState::InitDone {
            return Err(Status::SYS_LP_INIT_NOT_PENDING);
        }
        if state.lp(call.lp).initialized {
            return Err(Status::SYS_LP_INIT_DONE);
        }
        state.snapshot.clone()
    };
    call.platform
        .random(call.lp)
        .ok_or(Status::RND_NO_ENTROPY)?;
    compare_msrs(call, &snapshot, &MSRS_BEFORE_CPUID)?;
    check_cpuid_limit(call)?;
    compare_cpuid(call, &snapshot)?;
    let package = call.package();
    if package >= MAX_PACKAGES {
        return Err(Status::INVALID_PKG_ID.with(package as u32));
    }
    compare_msrs(call, &snapshot, &MSRS_AFTER_CPUID)?;

    let mut state = call.state();
    let lp = state.lp(call.lp);
    lp.initialized = true;
    lp.package = package;
    Ok(())
}

fn compare_msrs(call: &Call<'_>, snapshot: &Snapshot, msrs: &[u32]) -> Answer {
    for &index in msrs {
        if call.platform.msr(call.lp, index) != snapshot.msr(index) {
            return Err(Status::INCONSISTENT_MSR.with(index));
        }
    }
    Ok(())
}

fn compare_cpuid(call: &mut Call<'_>, snapshot: &Snapshot) -> Answer {
    for compared in &COMPARED_CPUID {
        let here = registers(
            call.platform
                .cpuid(call.lp, compared.leaf, compared.subleaf),
        );
        let there = registers(snapshot.cpuid(compared.leaf, compared.subleaf));
        let mask = compared.mask;
        if (0..4).any(|n| (here[n] ^ there[n]) & mask[n] != 0) {
            call.regs.rcx = u64::from(compared.leaf) | u64::from(compared.subleaf) << 32;
            call.regs.rdx = u64::from(mask[0]) | u64::from(mask[1]) << 32;
            call.regs.r8 = u64::from(mask[2]) | u64::from(mask[3]) << 32;
            return Err(Status::INCONSISTENT_CPUID_FIELD);
        }
    }
    Ok(())
}
