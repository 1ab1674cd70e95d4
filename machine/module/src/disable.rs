// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.DISABLE: gives all memory back and returns the module to its first state.
//!
//! No public source shows how the real module does it; [`OpenPoints`] has a switch for each point
//! that could be otherwise. The work is split: after some gigabytes of TDMR a pending interrupt
//! ends the call, which is then repeated until it succeeds.

use std::ops::Range;

use crate::addr::PAGE_1G;
use crate::call::{Answer, Call};
use crate::locks::Mode;
use crate::pamt::Tdmr;
use crate::state::{State, SysState};
use crate::{OpenPoints, Status};

/// Whether the leaf is answered in a state before READY.
pub(crate) fn may_start(open: &OpenPoints, state: SysState) -> Answer {
    let allowed = match state {
        SysState::InitDone => open.disable_before_config,
        SysState::ConfigDone => open.disable_before_ready,
        _ => false,
    };
    if allowed {
        Ok(())
    } else {
        Err(Status::SYS_NOT_READY)
    }
}

/// TDH.SYS.DISABLE.
pub(crate) fn disable(call: &mut Call<'_>) -> Answer {
    let open = &call.module.config().open;
    let _global = call.lock_global(Mode::Exclusive)?;
    begin(call)?;
    loop {
        for _ in 0..open.disable_gb_per_poll {
            let Some(lines) = take_gigabyte(call) else {
                release_pages(call);
                finish(&mut call.state(), open);
                return Ok(());
            };
            for lines in lines {
                call.platform.released(lines.start, lines.end - lines.start);
            }
        }
        if call.platform.interrupt_pending(call.lp) {
            return Err(Status::INTERRUPTED_RESUMABLE);
        }
    }
}

fn begin(call: &Call<'_>) -> Answer {
    let mut state = call.state();
    if state.sys == SysState::Disabling {
        return Ok(());
    }
    if call.module.config().open.disable_needs_lp_init && !state.lp(call.lp).initialized {
        return Err(Status::SYS_LP_INIT_NOT_DONE);
    }
    if state.others_in_seam(call.lp) {
        return Err(Status::SYS_BUSY);
    }
    state.sys = SysState::Disabling;
    Ok(())
}

/// Drops the last gigabyte with initialised PAMT entries; returns the lines that held them.
fn take_gigabyte(call: &Call<'_>) -> Option<Vec<Range<u64>>> {
    let entry_size = call.module.config().pamt_entry_size;
    let mut state = call.state();
    let tdmr = state
        .tables
        .tdmrs
        .iter_mut()
        .rfind(|tdmr| tdmr.initialized > tdmr.base)?;
    let start = (tdmr.initialized - 1) & !(PAGE_1G - 1);
    let lines = lines(tdmr, start..tdmr.initialized, entry_size);
    tdmr.initialized = start;
    Some(lines)
}

/// Gives back the pages that TDs still have.
fn release_pages(call: &Call<'_>) {
    let pages: Vec<_> = call.tables(|tables| tables.pages.in_use().collect());
    for page in pages {
        call.platform.released(page.start, page.end - page.start);
    }
}

fn lines(tdmr: &Tdmr, pages: Range<u64>, entry_size: [u16; 3]) -> Vec<Range<u64>> {
    let of_level = |level: usize| tdmr.pamt_lines(level, pages.clone(), entry_size[level].into());
    [0, 1, 2].map(of_level).into()
}

/// Forgets everything but what the calls that are under way hold.
fn finish(state: &mut State, open: &OpenPoints) {
    let locks = std::mem::take(&mut state.locks);
    let mut lps = std::mem::take(&mut state.lps);
    for lp in &mut lps {
        lp.initialized &= !open.disable_forgets_lp_init;
    }
    *state = State {
        locks,
        lps,
        ..State::default()
    };
}
