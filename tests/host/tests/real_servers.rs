// SPDX-License-Identifier: GPL-2.0

//! Memory maps of real servers, and the figures their kernel logs show.

mod common;

use common::TERMS;
use tdx_host_tests::c_rules;
use tdx_host_tests::host::{configure, Config, ConfigError, Placer};
use tdx_host_tests::interval::{interval, Interval};
use tdx_host_tests::memory_map::MemoryMap;
use tdx_host_tests::sys_config;

/// Configures a machine whose memory is `regions`, each on a node of its own, with the PAMTs at
/// the top of the last region, as low memory is scarce.
fn configured(regions: &[Interval], cmrs: &[Interval]) -> Result<Config, ConfigError> {
    let frames = regions.iter().zip(0..);
    let triples: Vec<(u64, u64, i32)> = frames
        .map(|(region, nid)| (region.start / 4096, region.end / 4096, nid))
        .collect();
    let top = &regions[regions.len() - 1..];
    configure(&triples, cmrs, &TERMS, &mut Placer::new(top, &[7 << 60]))
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
    let config = configured(&memory, &memory).unwrap();
    let gigabytes = config.tdmrs.iter().map(|tdmr| tdmr.range().size() >> 30);
    assert!(gigabytes.eq([2, 126, 128]));
    assert_eq!(config.pamt_kb, 1_050_636);
    assert_eq!(sys_config::faults(&config.infos, 16, &memory), [""; 0]);
}

/// The log shows "8396820 KB allocated for PAMT" (canonical/tdx issue 385, 2 TB).
#[test]
fn two_terabytes_pamt_is_exact_to_the_kilobyte() {
    let memory = [
        interval(0x10_0000, 0x7780_0000),
        interval(0x1_0000_0000, 0x100_3e00_0000),
        interval(0x100_8000_0000, 0x200_4000_0000),
    ];
    let config = configured(&memory, &memory).unwrap();
    let gigabytes = config.tdmrs.iter().map(|tdmr| tdmr.range().size() >> 30);
    assert!(gigabytes.eq([2, 1021, 1023]));
    assert_eq!(config.pamt_kb, 8_396_820);
    assert_eq!(sys_config::faults(&config.infos, 16, &memory), [""; 0]);
}

/// The log shows "4202516 KB allocated for PAMT" (1 TB; of its CMRs it shows the first two). Four
/// nodes of 256 GB explain the figure.
#[test]
fn one_terabyte_pamt_is_exact_to_the_kilobyte() {
    let memory = [
        interval(0x10_0000, 0x7780_0000),
        interval(0x1_0000_0000, 0x40_7a00_0000),
        interval(0x40_8000_0000, 0x80_7c00_0000),
        interval(0x80_8000_0000, 0xc0_7c00_0000),
        interval(0xc0_8000_0000, 0x100_7c00_0000),
    ];
    let config = configured(&memory, &memory).unwrap();
    assert_eq!(config.pamt_kb, 4_202_516);
}

/// The log shows "1050644 KB allocated for PAMT", once the low memory needs one region only.
#[test]
fn emerald_rapids_pamt_is_exact_to_the_kilobyte() {
    let map = emerald_rapids();
    let config = configured(&map.cmrs, &map.cmrs).unwrap();
    let gigabytes = config.tdmrs.iter().map(|tdmr| tdmr.range().size() >> 30);
    assert!(gigabytes.eq([2, 62, 64, 64, 64]));
    assert_eq!(config.pamt_kb, 1_050_644);
    assert_eq!(sys_config::faults(&config.infos, 16, &map.cmrs), [""; 0]);
}

/// The log of the C shows "TDMR [0x0, 0x80000000): reserved areas exhausted."
#[test]
fn emerald_rapids_has_a_plan_where_the_c_has_none() {
    let map = emerald_rapids();
    let above = map.cmrs.iter().filter(|cmr| cmr.start >= 1 << 32);
    let memory: Vec<Interval> = map.usable.iter().chain(above).copied().collect();
    let low = interval(0, 2 << 30);
    let regions: Vec<_> = memory.iter().map(|region| (*region, 0)).collect();
    let needed = c_rules::reserved(&regions[1..], low, &[], 100).map(|areas| areas.len());
    assert_eq!(needed, Some(17));

    // All but two of the holes are convertible, and the TDMRs are those of the C.
    let config = configured(&memory, &map.cmrs).unwrap();
    assert_eq!(
        config.reserved[0],
        [interval(0, 1 << 20), interval(0x6f80_0000, 2 << 30)]
    );
    let gigabytes = config.tdmrs.iter().map(|tdmr| tdmr.range().size() >> 30);
    assert!(gigabytes.eq([2, 62, 64, 64, 64]));
    assert_eq!(config.pamt_kb, 1_050_644);
    assert_eq!(sys_config::faults(&config.infos, 16, &map.cmrs), [""; 0]);

    // Without a list of CMRs all holes count. Cut in two, the low memory has a plan: 16 of them lie
    // in its second GB. It takes a page more.
    let config = configured(&memory, &[]).unwrap();
    let gigabytes = config.tdmrs.iter().map(|tdmr| tdmr.range().size() >> 30);
    assert!(gigabytes.eq([1, 1, 62, 64, 64, 64]));
    assert_eq!(config.reserved[1].len(), 16);
    assert_eq!(config.pamt_kb, 1_050_648);
    assert_eq!(sys_config::faults(&config.infos, 16, &map.cmrs), [""; 0]);
}
