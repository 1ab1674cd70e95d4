// SPDX-License-Identifier: GPL-2.0

//! See `tdx_host_tests::fuzzing::plan`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tdx_host_tests::fuzzing::plan(data));
