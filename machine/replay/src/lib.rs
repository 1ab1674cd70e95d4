// SPDX-License-Identifier: GPL-2.0

//! Replays recorded answers of the real TDX module against the model in `tdx-module`.
//!
//! Two kinds of records exist: verdicts of TDH.SYS.CONFIG ([`vectors`]) and whole sequences of
//! SEAMCALLs ([`sequences`]). Both run on a [`platform::RecordedPlatform`], made of tables, and
//! count into a [`report::Report`]. The formats are described in `tests/data/README.md`.

#![forbid(unsafe_code)]

pub mod input;
pub mod platform;
pub mod report;
pub mod sequences;
pub mod step;
pub mod vectors;
