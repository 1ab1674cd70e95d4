// SPDX-License-Identifier: GPL-2.0

//! Memory maps of real servers, and the figures their kernel logs show.
//!
//! The table of `Documentation/planning.rst` is made here: a run with `--nocapture` prints it.

mod common;

use common::TERMS;
use tdx_host_tests::c_rules;
use tdx_host_tests::holes::Memory;
use tdx_host_tests::host::{cmr_list, configure, mem_list, Config, ConfigError, Placer};
use tdx_host_tests::interval::{interval, Interval};
use tdx_host_tests::memory_map::MemoryMap;
use tdx_host_tests::range::PhysRange;
use tdx_host_tests::sys_config;

/// Page frames of regions, each on a node of its own.
fn triples(regions: &[Interval]) -> Vec<(u64, u64, i32)> {
    let frames = regions.iter().zip(0..);
    frames
        .map(|(region, nid)| (region.start / 4096, region.end / 4096, nid))
        .collect()
}

/// Configures a machine whose memory is `regions`, each on a node of its own, with the PAMTs at
/// the top of the last region, as low memory is scarce.
fn configured(regions: &[Interval], cmrs: &[Interval]) -> Result<Config, ConfigError> {
    let triples = triples(regions);
    let top = &regions[regions.len() - 1..];
    configure(&triples, cmrs, &TERMS, &mut Placer::new(top, &[7 << 60]))
}

fn emerald_rapids() -> MemoryMap {
    MemoryMap::parse(include_str!("data/emerald-rapids.txt")).unwrap()
}

/// Low memory in detail; above 4 GB what is convertible.
fn emerald_rapids_memory() -> Vec<Interval> {
    let map = emerald_rapids();
    let above = map.cmrs.iter().filter(|cmr| cmr.start >= 1 << 32);
    map.usable.iter().chain(above).copied().collect()
}

/// canonical/tdx issue 285.
const SAPPHIRE_RAPIDS_8480: [Interval; 3] = [
    interval(0x10_0000, 0x7780_0000),
    interval(0x1_0000_0000, 0x20_6e00_0000),
    interval(0x20_8000_0000, 0x40_7000_0000),
];

/// canonical/tdx issue 385.
const TWO_TERABYTES: [Interval; 3] = [
    interval(0x10_0000, 0x7780_0000),
    interval(0x1_0000_0000, 0x100_3e00_0000),
    interval(0x100_8000_0000, 0x200_4000_0000),
];

/// Of its CMRs the log shows the first two. Four nodes of 256 GB explain the figure.
const ONE_TERABYTE: [Interval; 5] = [
    interval(0x10_0000, 0x7780_0000),
    interval(0x1_0000_0000, 0x40_7a00_0000),
    interval(0x40_8000_0000, 0x80_7c00_0000),
    interval(0x80_8000_0000, 0xc0_7c00_0000),
    interval(0xc0_8000_0000, 0x100_7c00_0000),
];

/// The log shows "1050636 KB allocated for PAMT".
#[test]
fn sapphire_rapids_8480_pamt_is_exact_to_the_kilobyte() {
    let memory = SAPPHIRE_RAPIDS_8480;
    let config = configured(&memory, &memory).unwrap();
    let gigabytes = config.tdmrs.iter().map(|tdmr| tdmr.range().size() >> 30);
    assert!(gigabytes.eq([2, 126, 128]));
    assert_eq!(config.pamt_kb, 1_050_636);
    assert_eq!(sys_config::faults(&config.infos, 16, &memory), [""; 0]);
}

/// The log shows "8396820 KB allocated for PAMT".
#[test]
fn two_terabytes_pamt_is_exact_to_the_kilobyte() {
    let memory = TWO_TERABYTES;
    let config = configured(&memory, &memory).unwrap();
    let gigabytes = config.tdmrs.iter().map(|tdmr| tdmr.range().size() >> 30);
    assert!(gigabytes.eq([2, 1021, 1023]));
    assert_eq!(config.pamt_kb, 8_396_820);
    assert_eq!(sys_config::faults(&config.infos, 16, &memory), [""; 0]);
}

/// The log shows "4202516 KB allocated for PAMT".
#[test]
fn one_terabyte_pamt_is_exact_to_the_kilobyte() {
    let memory = ONE_TERABYTE;
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
    let memory = emerald_rapids_memory();
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

/// A server of the table: what it is called there, in two lines.
struct Server {
    name: [&'static str; 2],
    memory: Vec<Interval>,
    cmrs: Vec<Interval>,
    /// KB of PAMT in its log, of the C and of Rust's line.
    log: [&'static str; 2],
}

fn servers() -> [Server; 4] {
    let plain = |name, memory: &[Interval], kb| Server {
        name,
        memory: memory.to_vec(),
        cmrs: memory.to_vec(),
        log: [kb, ""],
    };
    [
        Server {
            name: [
                "Emerald Rapids, 256 GB, 4 nodes",
                "(canonical/tdx issue 135)",
            ],
            memory: emerald_rapids_memory(),
            cmrs: emerald_rapids().cmrs,
            log: ["no TDX", "1,050,644 [1]_"],
        },
        plain(
            ["Sapphire Rapids 8480, 256 GB", "(canonical/tdx issue 285)"],
            &SAPPHIRE_RAPIDS_8480,
            "1,050,636",
        ),
        plain(
            ["2 TB (canonical/tdx issue 385)", "\\"],
            &TWO_TERABYTES,
            "8,396,820",
        ),
        plain(
            [
                "1 TB, nodes of 256 GB (hoster's",
                "guide; three CMRs are assumed)",
            ],
            &ONE_TERABYTE,
            "4,202,516",
        ),
    ]
}

/// What a planner makes of a server: TDMRs, areas that the holes take in the worst of them, and KB
/// of PAMT.
struct Outcome {
    tdmrs: usize,
    worst: usize,
    pamt_kb: u64,
}

impl Server {
    fn by_the_c(&self) -> Outcome {
        let memory: Vec<_> = self.memory.iter().map(|region| (*region, 0)).collect();
        let above: Vec<_> = memory
            .iter()
            .map(|(region, nid)| (interval(region.start.max(1 << 20), region.end), *nid))
            .filter(|(region, _)| region.start < region.end)
            .collect();
        let tdmrs = c_rules::tdmrs(&above, 64).unwrap();
        let holes = |tdmr| {
            c_rules::reserved(&above, tdmr, &[], usize::MAX)
                .unwrap()
                .len()
        };
        let bytes = tdmrs
            .iter()
            .flat_map(|(tdmr, _)| c_rules::pamt_sizes(*tdmr, [16; 3]));
        Outcome {
            tdmrs: tdmrs.len(),
            worst: tdmrs.iter().map(|(tdmr, _)| holes(*tdmr)).max().unwrap(),
            pamt_kb: bytes.sum::<u64>() >> 10,
        }
    }

    fn by_rust(&self) -> Outcome {
        let config = configured(&self.memory, &self.cmrs).unwrap();
        assert_eq!(sys_config::faults(&config.infos, 16, &self.cmrs), [""; 0]);
        let list = mem_list(&triples(&self.memory)).unwrap();
        let cmrs = cmr_list(&self.cmrs);
        let memory = Memory::new(list.regions(), &cmrs).unwrap();
        let none: &[PhysRange] = &[];
        let holes = config
            .tdmrs
            .iter()
            .map(|tdmr| memory.forced(tdmr.range(), none, None));
        Outcome {
            tdmrs: config.tdmrs.len(),
            worst: holes.max().unwrap(),
            pamt_kb: config.pamt_kb,
        }
    }

    /// The server's lines of the table.
    fn rows(&self) -> [String; 2] {
        let [c, rust] = [self.by_the_c(), self.by_rust()];
        let c_is_up = c.worst <= 16;
        let (up, kb) = match c_is_up {
            true => ("yes", thousands(c.pamt_kb)),
            false => ("no, -28", "\\-".into()),
        };
        [
            row(self.name[0], "C", up, &c, &kb, self.log[0]),
            row(
                self.name[1],
                "Rust",
                "yes",
                &rust,
                &thousands(rust.pamt_kb),
                self.log[1],
            ),
        ]
    }
}

fn row(name: &str, by: &str, up: &str, outcome: &Outcome, kb: &str, log: &str) -> String {
    let Outcome { tdmrs, worst, .. } = outcome;
    let row = format!("{name:<37}  {by:<5}  {up:<7}  {tdmrs:<5}  {worst:<5}  {kb:<12}  {log}");
    row.trim_end().into()
}

/// A number with commas.
fn thousands(number: u64) -> String {
    match number {
        0..1000 => number.to_string(),
        _ => format!("{},{:03}", thousands(number / 1000), number % 1000),
    }
}

#[test]
fn the_document_has_the_table() {
    let document = include_str!("../../../Documentation/planning.rst");
    let rows: Vec<String> = servers().iter().flat_map(Server::rows).collect();
    let table = rows.join("\n");
    println!("{table}");
    assert!(
        document.contains(&table),
        "Documentation/planning.rst lacks\n{table}"
    );
}
