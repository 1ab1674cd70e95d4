// SPDX-License-Identifier: GPL-2.0

//! Memory maps of real servers, and the figures their kernel logs show.

mod common;

use common::{ENTRIES, LIMITS};
use tdx_host_tests::host::{configure, Config, ConfigError, Placer};
use tdx_host_tests::interval::{interval, Interval};
use tdx_host_tests::memory_map::MemoryMap;
use tdx_host_tests::sys_config;
use tdx_host_tests::tdmr::PlanError;

/// Configures a machine whose memory is `regions`, each on a node of its own, with the PAMTs at
/// the top of the last region, as low memory is scarce.
fn configured(regions: &[Interval]) -> Result<Config, ConfigError> {
    let frames = regions.iter().zip(0..);
    let triples: Vec<(u64, u64, i32)> = frames
        .map(|(region, nid)| (region.start / 4096, region.end / 4096, nid))
        .collect();
    let top = &regions[regions.len() - 1..];
    configure(
        &triples,
        &LIMITS,
        &ENTRIES,
        &mut Placer::new(top, &[7 << 60]),
    )
}

fn emerald_rapids() -> MemoryMap {
    MemoryMap::parse(include_str!("data/emerald-rapids.txt")).unwrap()
}

/// The log shows "1050636 KB allocated for PAMT".
#[test]
fn sapphire_rapids_8480_pamt_is_exact_to_the_kilobyte() {
    let memory = [
        interval(0x10_0000, 0x7780_0000),
        interval(0x1_0000_0000, 0x20_6e00_0000),
        interval(0x20_8000_0000, 0x40_7000_0000),
    ];
    let config = configured(&memory).unwrap();
    let gigabytes = config.tdmrs.iter().map(|tdmr| tdmr.range().size() >> 30);
    assert!(gigabytes.eq([2, 126, 128]));
    assert_eq!(config.pamt_kb, 1_050_636);
    assert_eq!(sys_config::faults(&config.infos, 16, &memory), [""; 0]);
}

/// The log shows "1050644 KB allocated for PAMT", once the low memory needs one region only.
#[test]
fn emerald_rapids_pamt_is_exact_to_the_kilobyte() {
    let map = emerald_rapids();
    let config = configured(&map.cmrs).unwrap();
    let gigabytes = config.tdmrs.iter().map(|tdmr| tdmr.range().size() >> 30);
    assert!(gigabytes.eq([2, 62, 64, 64, 64]));
    assert_eq!(config.pamt_kb, 1_050_644);
    assert_eq!(sys_config::faults(&config.infos, 16, &map.cmrs), [""; 0]);
}

/// The log shows "TDMR [0x0, 0x80000000): reserved areas exhausted."
#[test]
fn emerald_rapids_runs_out_of_reserved_areas() {
    let map = emerald_rapids();
    let above = map.cmrs.iter().filter(|cmr| cmr.start >= 1 << 32);
    let memory: Vec<Interval> = map.usable.iter().chain(above).copied().collect();
    let error = configured(&memory).unwrap_err();
    let ConfigError::Plan(PlanError::ReservedAreasExhausted {
        tdmr,
        holes,
        pamts,
        max,
    }) = error
    else {
        panic!("unexpected: {error:?}");
    };
    assert_eq!((holes, pamts, max), (17, 0, 16));
    assert_eq!(tdmr.to_string(), "[0x0, 0x80000000)");
}
