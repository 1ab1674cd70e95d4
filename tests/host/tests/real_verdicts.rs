// SPDX-License-Identifier: GPL-2.0

//! The independent checker of TDMR lists, against answers of the real TDX module.
//!
//! What the checker approves of is what the other tests call a good plan, so it is tested itself.

use serde_json::Value;
use tdx_host_tests::interval::{interval, Interval};
use tdx_host_tests::sys_config;

const VERDICTS: &str = include_str!("data/sys-config-verdicts.jsonl");

fn numbers(list: &Value) -> Vec<u64> {
    let list = list.as_array().expect("a list");
    list.iter().filter_map(Value::as_u64).collect()
}

fn lists(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().expect("a list").iter()
}

/// The words of a TDMR_INFO with room for 16 reserved areas.
fn words(tdmr: &Value) -> Vec<u64> {
    let mut words = numbers(tdmr);
    assert_eq!(words.len(), 8);
    words.extend(lists(&tdmr[8]).flat_map(numbers));
    words.resize(40, 0);
    words
}

fn cmr(cmr: &Value) -> Interval {
    let cmr = numbers(cmr);
    interval(cmr[0], cmr[0] + cmr[1])
}

#[test]
fn checker_agrees_with_the_real_module() {
    let (mut good, mut bad) = (0, 0);
    for line in VERDICTS.lines() {
        let case: Value = serde_json::from_str(line).expect("JSON");
        let status = case["status"].as_str().expect("a status");
        let accepted = u64::from_str_radix(status.trim_start_matches("0x"), 16) == Ok(0);
        let infos: Vec<Vec<u64>> = lists(&case["tdmrs"]).map(words).collect();
        let cmrs: Vec<Interval> = lists(&case["cmrs"]).map(cmr).collect();
        let faults = sys_config::faults(&infos, 16, &cmrs);
        assert_eq!(faults.is_empty(), accepted, "{status} {faults:?} {line}");
        *(if accepted { &mut good } else { &mut bad }) += 1;
    }
    assert!(good >= 40 && bad >= 80, "{good} good, {bad} bad cases");
}
