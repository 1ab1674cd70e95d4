// SPDX-License-Identifier: GPL-2.0

#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate std;

#[path = "../../../abi.rs"]
pub mod abi;
#[path = "../../../bridge.rs"]
pub mod bridge;
#[path = "../../../early.rs"]
pub mod early;
#[path = "../../../explain.rs"]
pub mod explain;
#[path = "../../../fields.rs"]
pub mod fields;
#[path = "../../../holes.rs"]
pub mod holes;
#[path = "../../../image.rs"]
pub mod image;
#[path = "../../../leaf.rs"]
pub mod leaf;
#[path = "../../../memlist.rs"]
pub mod memlist;
#[path = "../../../metadata.rs"]
pub mod metadata;
#[path = "../../../operand.rs"]
pub mod operand;
#[path = "../../../pamt.rs"]
pub mod pamt;
#[path = "../../../partition.rs"]
pub mod partition;
#[path = "../../../place.rs"]
pub mod place;
#[path = "../../../plug.rs"]
pub mod plug;
#[path = "../../../range.rs"]
pub mod range;
#[path = "../../../share.rs"]
pub mod share;
#[path = "../../../spot.rs"]
pub mod spot;
#[path = "../../../status.rs"]
pub mod status;
#[path = "../../../store.rs"]
pub mod store;
#[path = "../../../tdmr.rs"]
pub mod tdmr;
#[path = "../../../tlb.rs"]
pub mod tlb;
#[path = "../../../tlb_steps.rs"]
pub mod tlb_steps;
#[path = "../../../turns.rs"]
pub mod turns;

pub mod c_rules;
pub mod exhaustive;
pub mod fuzzing;
pub mod host;
pub mod interval;
pub mod memory_map;
pub mod sys_config;
pub mod wrong_order;
