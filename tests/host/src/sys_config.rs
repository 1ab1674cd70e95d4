// SPDX-License-Identifier: GPL-2.0

//! What TDH.SYS.CONFIG demands of TDMRs, as a checker independent of the simulated TDX module.
//!
//! It reads the structures as the module does, word by word, and knows nothing of the code that
//! wrote them. Unlike the module it does not stop at the first fault and has no status codes.

use std::format;
use std::string::String;
use std::vec::Vec;

use crate::interval::{
    interval,
    Interval, //
};

const GB: u64 = 1 << 30;
const PAGE: u64 = 4096;
const LIMIT: u64 = 1 << 52;
const MAX_TDMRS: usize = 64;

/// One TDMR_INFO, decoded.
struct Entry {
    tdmr: Interval,
    /// With the size of the pages they are for.
    pamts: [(Interval, u64); 3],
    reserved: Vec<Interval>,
}

/// What is wrong with the TDMR_INFO structures `infos`, as words, given the CMRs; empty if
/// nothing. `max_reserved` is how many reserved areas each structure has.
pub fn faults(infos: &[Vec<u64>], max_reserved: usize, cmrs: &[Interval]) -> Vec<String> {
    let mut faults = Vec::new();
    if infos.is_empty() || infos.len() > MAX_TDMRS {
        faults.push(format!("{} TDMRs", infos.len()));
    }
    let mut entries = Vec::new();
    for (index, info) in infos.iter().enumerate() {
        match decode(info, max_reserved) {
            Ok(entry) => entries.push(entry),
            Err(fault) => faults.push(format!("TDMR {index}: {fault}")),
        }
    }
    if !faults.is_empty() {
        return faults;
    }
    for (index, entry) in entries.iter().enumerate() {
        let own = check_alone(entry, cmrs);
        faults.extend(
            own.into_iter()
                .map(|fault| format!("TDMR {index}: {fault}")),
        );
    }
    faults.extend(check_together(&entries));
    faults
}

/// The interval of `size` bytes from `base`, which must not wrap or pass the limit.
fn stretch(base: u64, size: u64) -> Result<Interval, String> {
    match base.checked_add(size) {
        Some(end) if end <= LIMIT => Ok(interval(base, end)),
        _ => Err(format!("{base:#x} + {size:#x} is beyond the limit")),
    }
}

fn decode(info: &[u64], max_reserved: usize) -> Result<Entry, String> {
    let word = |index: usize| info.get(index).copied().ok_or("structure too short");
    let tdmr = stretch(word(0)?, word(1)?)?;
    let pamts = [
        (stretch(word(2)?, word(3)?)?, GB),
        (stretch(word(4)?, word(5)?)?, 2 << 20),
        (stretch(word(6)?, word(7)?)?, PAGE),
    ];
    let mut reserved = Vec::new();
    let mut ended = false;
    for area in 0..max_reserved {
        let (offset, size) = (word(8 + 2 * area)?, word(9 + 2 * area)?);
        if size == 0 {
            ended = true;
            continue;
        }
        if ended {
            return Err(format!("reserved area {area} follows an empty one"));
        }
        let start = tdmr.start.checked_add(offset).ok_or("offset wraps")?;
        reserved.push(stretch(start, size)?);
    }
    Ok(Entry {
        tdmr,
        pamts,
        reserved,
    })
}

/// Whether both ends are multiples of `unit` and the interval is not empty.
fn in_units(what: Interval, unit: u64) -> bool {
    what.start < what.end && what.start % unit == 0 && what.end % unit == 0
}

/// Faults that need one TDMR only.
fn check_alone(entry: &Entry, cmrs: &[Interval]) -> Vec<String> {
    let mut faults = Vec::new();
    if !in_units(entry.tdmr, GB) {
        faults.push(format!("{:x?} is not in units of 1 GB", entry.tdmr));
    }
    for area in &entry.reserved {
        if !in_units(*area, PAGE) || !area.inside(&[entry.tdmr]) {
            faults.push(format!("reserved {area:x?} misaligned or outside"));
        }
    }
    if entry.reserved.windows(2).any(|w| w[0].end > w[1].start) {
        faults.push(format!(
            "reserved areas out of order: {:x?}",
            entry.reserved
        ));
    }
    for (pamt, page) in entry.pamts {
        if !in_units(pamt, PAGE) || pamt.size() < entry.tdmr.size() / page * 16 {
            faults.push(format!("PAMT {pamt:x?} misaligned or too small"));
        }
        if !pamt.inside(cmrs) {
            faults.push(format!("PAMT {pamt:x?} outside CMRs"));
        }
    }
    for used in entry.tdmr.without(&entry.reserved) {
        if !used.inside(cmrs) {
            faults.push(format!("usable {used:x?} outside CMRs"));
        }
    }
    faults
}

/// Faults that lie between TDMRs and PAMTs.
fn check_together(entries: &[Entry]) -> Vec<String> {
    let mut faults = Vec::new();
    if entries.windows(2).any(|w| w[0].tdmr.end > w[1].tdmr.start) {
        faults.push("TDMRs out of order".into());
    }
    let pamts: Vec<Interval> = entries
        .iter()
        .flat_map(|entry| entry.pamts.map(|(pamt, _)| pamt))
        .collect();
    for (index, pamt) in pamts.iter().enumerate() {
        if pamts.iter().skip(index + 1).any(|other| pamt.meets(*other)) {
            faults.push(format!("PAMT {pamt:x?} overlaps another"));
        }
        for entry in entries {
            if entry
                .tdmr
                .without(&entry.reserved)
                .iter()
                .any(|used| used.meets(*pamt))
            {
                faults.push(format!(
                    "PAMT {pamt:x?} in usable memory of {:x?}",
                    entry.tdmr
                ));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A good TDMR of 1 GB at 1 GB, all of it convertible, with its PAMT at its start.
    fn good() -> Vec<u64> {
        let mut info = std::vec![0; 40];
        let size_4k = 4 << 20;
        info[..10].copy_from_slice(&[
            GB,
            GB,
            GB + size_4k + 8192,
            4096,
            GB + size_4k,
            8192,
            GB,
            size_4k,
            0,
            size_4k + 12288,
        ]);
        info
    }

    fn cmrs() -> [Interval; 1] {
        [interval(1 << 20, 2 * GB)]
    }

    fn broken(change: impl Fn(&mut Vec<u64>)) -> bool {
        let mut info = good();
        change(&mut info);
        !faults(&[info], 16, &cmrs()).is_empty()
    }

    #[test]
    fn good_structure_passes_and_each_fault_is_seen() {
        assert_eq!(faults(&[good()], 16, &cmrs()), [""; 0]);
        assert!(broken(|info| info[0] += 4096));
        assert!(broken(|info| info[1] = 0));
        assert!(broken(|info| info[1] = u64::MAX));
        assert!(broken(|info| info[3] = 0));
        assert!(broken(|info| info[4] += 1));
        assert!(broken(|info| info[5] = 4096));
        assert!(broken(|info| info[6] = 2 * GB));
        assert!(broken(|info| info[6] = 0));
        assert!(broken(|info| info[8] = 4096));
        assert!(broken(|info| info[9] -= 4096));
        assert!(broken(|info| info[9] -= 1));
        assert!(broken(|info| (info[10], info[11]) = (0, 4096)));
        assert!(broken(|info| (info[10], info[11]) = (GB, 4096)));
        assert!(broken(|info| (info[12], info[13]) = (GB - 4096, 4096)));
        assert!(broken(|info| info.truncate(30)));
        assert!(!faults(&[], 16, &cmrs()).is_empty());
        assert!(!faults(&[good(), good()], 16, &cmrs()).is_empty());
        assert!(!faults(&[good()], 16, &[interval(1 << 20, 2 * GB - 4096)]).is_empty());
        assert!(!faults(&[good()], 16, &[interval(GB + 8192, 2 * GB)]).is_empty());
    }
}
