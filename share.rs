// SPDX-License-Identifier: GPL-2.0

//! Sharing the work: more and smaller TDMRs than the memory map takes.
//!
//! One CPU at a time can initialise a TDMR, so it takes several to keep several CPUs busy; and a
//! smaller TDMR has a smaller PAMT, for which it is easier to find contiguous memory. `split`
//! cuts TDMRs at GB boundaries into pieces of equal size, as far as the limit allows.
//!
//! Pure: `core` only, never panics. Called by `tdmr::plan`.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use crate::range::{
    PageSize,
    PhysRange, //
};
use crate::store::Store;
use crate::tdmr::{
    self,
    Goal,
    PlanError,
    Tdmr, //
};

/// No TDX module so far takes more than 64 TDMRs. One that claims to take thousands must not make
/// lists of thousands where a few do.
const MOST: usize = 256;

/// Cuts `tdmrs` until there are as many and they are as small as `goal` says, but at most `max`.
///
/// # Errors
///
/// [`PlanError::OutOfMemory`] if there is no room.
pub(crate) fn split<S: Store<Tdmr>>(
    goal: &Goal,
    max: usize,
    tdmrs: &mut S,
) -> Result<(), PlanError> {
    let max = max.min(MOST);
    let piece = piece_size(goal, max, tdmrs.as_slice());
    let old = tdmrs.as_slice().len();
    let total = pieces_of_all(tdmrs.as_slice(), piece);
    if total <= old {
        return Ok(());
    }
    // From the back, so that nothing is overwritten before it was cut.
    let Some(&last) = tdmrs.as_slice().last() else {
        return Ok(());
    };
    for _ in old..total {
        tdmr::push(tdmrs, last.range())?;
    }
    let list = tdmrs.as_mut_slice();
    let mut to = total;
    for from in (0..old).rev() {
        let Some(whole) = list.get(from).copied() else {
            continue;
        };
        let parts = pieces(whole, piece);
        for part in (0..parts).rev() {
            to = to.saturating_sub(1);
            let cut = nth_part(whole.range(), part, parts);
            let tdmr = cut.and_then(|range| Tdmr::new(range, whole.node()));
            if let (Some(tdmr), Some(slot)) = (tdmr, list.get_mut(to)) {
                *slot = tdmr;
            }
        }
    }
    Ok(())
}

/// The size in GB of the pieces to cut.
fn piece_size(goal: &Goal, max: usize, tdmrs: &[Tdmr]) -> u64 {
    let largest = tdmrs.iter().map(gigabytes).max().unwrap_or(1);
    let wanted = usize::from(goal.min_tdmrs).min(max);
    // Smaller pieces are more pieces: the largest that are enough, if they are not too many.
    let enough = lowest(largest, |piece| {
        pieces_of_all(tdmrs, piece.saturating_add(1)) < wanted
    });
    let allowed = lowest(largest, |piece| pieces_of_all(tdmrs, piece) <= max);
    enough.min(goal.max_gb).max(allowed)
}

/// The lowest number from 1 to `top` for which `holds`, which holds for all above it; else `top`.
fn lowest(top: u64, holds: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (1, top);
    while low < high {
        let middle = low.saturating_add(high.saturating_sub(low) / 2);
        if holds(middle) {
            high = middle;
        } else {
            low = middle.saturating_add(1);
        }
    }
    high
}

fn gigabytes(tdmr: &Tdmr) -> u64 {
    PageSize::Size1G.pages_in(tdmr.range().size())
}

/// How many pieces of at most `piece` GB a TDMR makes.
fn pieces(tdmr: Tdmr, piece: u64) -> u64 {
    gigabytes(&tdmr).div_ceil(piece.max(1))
}

fn pieces_of_all(tdmrs: &[Tdmr], piece: u64) -> usize {
    tdmrs.iter().fold(0usize, |sum, tdmr| {
        let pieces = usize::try_from(pieces(*tdmr, piece)).unwrap_or(usize::MAX);
        sum.saturating_add(pieces)
    })
}

/// Part number `part` of `parts` of `range`, all equal but for a GB.
fn nth_part(range: PhysRange, part: u64, parts: u64) -> Option<PhysRange> {
    let size = PageSize::Size1G.pages_in(range.size());
    // A range has at most 2^22 GB: the product does not saturate.
    let at = |part: u64| {
        let gigabytes = size.saturating_mul(part).checked_div(parts)?;
        let bytes = gigabytes.checked_mul(PageSize::Size1G.bytes())?;
        range.start().checked_add(bytes)
    };
    PhysRange::new(at(part)?, at(part.saturating_add(1))?)
}
