// SPDX-License-Identifier: GPL-2.0

//! The numbers of the ABI, against those of the simulated TDX module, which has its own.

mod common;

use common::server::{Server, KEYID_PARTITIONING};
use tdx_host_tests::explain::Details;
use tdx_host_tests::fields::{TdxFeatures0, FIELDS};
use tdx_host_tests::host::{plain, VecStore};
use tdx_host_tests::interval::interval;
use tdx_host_tests::leaf::Leaf;
use tdx_host_tests::metadata::{read_cmrs, FieldReader, SysInfo};
use tdx_host_tests::partition::KeyIdPartition;
use tdx_host_tests::status::{SeamcallStatus, StatusClass};
use tdx_host_tests::store::Store;
use tdx_module::{leaf_name, status_name, Operand, Status};

#[test]
fn leaves_have_the_names_the_module_gives_them() {
    let mut compared = 0;
    for leaf in Leaf::ALL.iter().filter(|leaf| !leaf.is_seamldr()) {
        assert_eq!(leaf.name(), leaf_name(leaf.number()), "{leaf}");
        compared += 1;
    }
    assert_eq!(compared, 35);
}

#[test]
fn statuses_have_the_names_the_module_gives_them() {
    let mut compared = 0;
    for (status, name) in SeamcallStatus::ALL {
        if status.class() == StatusClass::Software {
            continue;
        }
        let short = name.strip_prefix("TDX_").unwrap();
        assert_eq!(Some(short), status_name(status.raw()), "{status}");
        compared += 1;
    }
    assert!(compared > 90, "{compared} compared");
}

#[test]
fn statuses_the_module_names_are_known_here() {
    for high in [0x0u32, 0x4, 0x6, 0x8, 0x9, 0xc, 0xe] {
        for low in 0..0x2000 {
            let raw = u64::from(high << 28 | low) << 32;
            let ours = SeamcallStatus::from_raw(raw).name();
            let theirs = status_name(raw).map(|name| format!("TDX_{name}"));
            assert_eq!(ours.map(str::to_string), theirs, "{raw:#x}");
        }
    }
}

#[test]
fn operands_have_the_names_the_module_gives_them() {
    use Operand::*;
    for operand in [Rax, Rcx, Rdx, R8, R9, R10, Kot, Ket, WbCache] {
        let raw = Status::OPERAND_BUSY.operand(operand).raw();
        let name = format!("{operand:?}").to_uppercase();
        let details = Details(SeamcallStatus::from_raw(raw)).to_string();
        assert_eq!(details, format!(", operand {name}"));
    }
}

#[test]
fn all_metadata_is_read_from_the_module() {
    let server = Server::start(&[interval(1 << 20, 2 << 30), interval(4 << 30, 64 << 30)]);
    let mut info = SysInfo::EMPTY;
    info.read(&mut &server).unwrap();
    assert_eq!(info.version.major_version, 1);
    assert_eq!(info.version.minor_version, 5);
    assert_eq!(info.features.check(), Ok(()));
    assert!(info
        .features
        .tdx_features0
        .contains(TdxFeatures0::TOPOLOGY_ENUM));
    assert_eq!(
        (info.tdmr.max_tdmrs, info.tdmr.max_reserved_per_tdmr),
        (64, 16)
    );
    assert_eq!(info.tdmr.pamt_entries(), common::ENTRIES);
    assert_eq!(info.td_ctrl.tdr_base_size, 4096);
    assert_eq!(info.td_ctrl.tdcs_base_size, 24576);
    assert_eq!(info.td_ctrl.tdvps_base_size, 24576);
    assert_eq!(info.td_conf.xfam_fixed1, 3);
    assert_eq!(info.td_conf.max_vcpus_per_td, 576);
    assert_eq!(info.td_conf.num_cpuid_config, 28);
    assert_eq!(info.td_conf.cpuid_config_leaves[0], 0xffff_ffff_0000_0001);
    assert_eq!(info.td_conf.cpuid_config_leaves[2], 0x0000_0001_0000_0004);
    assert_eq!(
        info.td_conf.cpuid_config_values[1],
        [0xffff_f000_ffff_c3ff, 0x7_ffff_ffff]
    );

    let mut cmrs = VecStore::new();
    read_cmrs(&mut &server, &mut cmrs).unwrap();
    let cmrs: Vec<_> = cmrs.as_slice().iter().map(plain).collect();
    assert_eq!(
        cmrs,
        [interval(1 << 20, 2 << 30), interval(4 << 30, 64 << 30)]
    );
}

#[test]
fn every_field_is_known_to_the_module() {
    let server = Server::start(&[interval(1 << 20, 2 << 30)]);
    for (id, name) in FIELDS {
        assert!((&server).read(*id).is_ok(), "{name}");
    }
}

#[test]
fn firmware_gives_keyids_as_the_module_counts_them() {
    let partition = KeyIdPartition::from_msr(KEYID_PARTITIONING);
    assert_eq!((partition.mktme, partition.tdx), (15, 48));
}
