// SPDX-License-Identifier: GPL-2.0

//! Faults on command: what a SEAMCALL gets instead of the module's answer.
//!
//! A [`Rule`] reads `LEAF[@TD][:FIRST]=WHAT[*COUNT]`. LEAF is a name or number, FIRST counts the calls
//! of that leaf on all processors from 1, WHAT is a status by name or number, `vmfail`, `gp` or `ud`.
//! Without FIRST and COUNT every call is hit, with FIRST alone that call, with COUNT alone the first
//! COUNT calls. With TD only calls from the TDth call of TDH.MNG.CREATE up to the next one count.
//! [`Injector`] applies the rules; the first that matches wins.

use crate::seamldr;
use crate::trace::SEAMLDR;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use tdx_module::{Status, leaf_name, number, status_name};

/// What the caller sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// RAX holds this status; the module was not called.
    Status(u64),
    /// The module is called with a host interrupt pending, so that it stops as early as it can.
    Interrupt,
    /// VMfailInvalid: CF set, registers unchanged.
    VmfailInvalid,
    /// General protection fault.
    GeneralProtection,
    /// Invalid opcode fault.
    InvalidOpcode,
}

/// One fault to inject. Converts from and to the text given on the command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rule {
    leaf: u64,
    /// Only calls after this call of TDH.MNG.CREATE (from 1) and before the next are counted and hit.
    td: Option<u64>,
    first: u64,
    /// Calls hit, `None` for all from `first` on.
    count: Option<u64>,
    what: What,
    text: String,
}

impl Rule {
    /// Leaf that the rule is about, with bit 63 for the P-SEAMLDR.
    pub fn leaf(&self) -> u64 {
        self.leaf
    }

    /// Does the rule hit a call that is number `call` in the run and number `in_td` since the TD
    /// number `td` was begun?
    fn hits(&self, leaf: u64, call: u64, td: u64, in_td: u64) -> bool {
        let call = if self.td.is_some() { in_td } else { call };
        leaf == self.leaf
            && self.td.is_none_or(|wanted| wanted == td)
            && call >= self.first
            && self.count.is_none_or(|count| call - self.first < count)
    }
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Rule, String> {
        let bad = |why: String| format!("'{text}': {why}");
        let (target, effect) = text
            .split_once('=')
            .ok_or_else(|| bad("expected LEAF[@TD][:FIRST]=STATUS[*COUNT]".into()))?;
        let (target, first) = split_number(target, ':').map_err(bad)?;
        let (leaf, td) = split_number(target, '@').map_err(bad)?;
        let (what, count) = match effect.split_once('*') {
            Some((what, "always")) => (what, Some(None)),
            Some((what, count)) => (what, Some(Some(positive(count).map_err(bad)?))),
            None => (effect, None),
        };
        let leaf = leaf_by_name(leaf).map_err(bad)?;
        Ok(Rule {
            leaf,
            td,
            first: first.unwrap_or(1),
            count: count.unwrap_or(first.map(|_| 1)),
            what: parse_what(leaf, what).map_err(bad)?,
            text: text.to_owned(),
        })
    }
}

impl TryFrom<String> for Rule {
    type Error = String;

    fn try_from(text: String) -> Result<Rule, String> {
        text.parse()
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> String {
        rule.text
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What is before `mark`, and the number after it if there is one.
fn split_number(text: &str, mark: char) -> Result<(&str, Option<u64>), String> {
    match text.split_once(mark) {
        Some((before, number)) => Ok((before, Some(positive(number)?))),
        None => Ok((text, None)),
    }
}

fn positive(text: &str) -> Result<u64, String> {
    match parse_number(text) {
        Some(n) if n > 0 => Ok(n),
        _ => Err(format!("'{text}' is not a positive number")),
    }
}

/// A decimal number, or a hexadecimal one with the prefix 0x.
pub fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The leaf called `text`, with or without `TDH.` in front, or with that number; bit 63 is set if it
/// is one of the P-SEAMLDR.
///
/// # Errors
///
/// A sentence that quotes `text`.
pub fn leaf_by_name(text: &str) -> Result<u64, String> {
    if let Some(n) = parse_number(text) {
        return match u16::try_from(n & !SEAMLDR) {
            Ok(_) => Ok(n),
            Err(_) => Err(format!("leaf {n} does not fit into 16 bits")),
        };
    }
    let wanted = text.to_ascii_uppercase();
    let is = |name: &str| name == wanted || name.strip_prefix("TDH.") == Some(&wanted);
    let in_module = (0..=255).find(|leaf| leaf_name(*leaf).is_some_and(is));
    let in_loader = || (0..=255).find(|leaf| seamldr::leaf_name(*leaf).is_some_and(is));
    in_module
        .map(u64::from)
        .or_else(|| in_loader().map(|leaf| SEAMLDR | u64::from(leaf)))
        .ok_or_else(|| format!("no leaf is called '{text}' (see 'tdx-machine leaves')"))
}

fn parse_what(leaf: u64, text: &str) -> Result<What, String> {
    match text.to_ascii_lowercase().as_str() {
        "vmfail" => return Ok(What::VmfailInvalid),
        "gp" => return Ok(What::GeneralProtection),
        "ud" => return Ok(What::InvalidOpcode),
        _ => {}
    }
    let status = status_by_name(text)
        .or_else(|| parse_number(text))
        .ok_or_else(|| {
            format!("no status is called '{text}'; a number or vmfail, gp, ud will do too")
        })?;
    let resumes = [number::PHYMEM_CACHE_WB, number::SYS_DISABLE].map(u64::from);
    if resumes.contains(&leaf) && status == Status::INTERRUPTED_RESUMABLE.raw() {
        return Ok(What::Interrupt);
    }
    Ok(What::Status(status))
}

/// The status word with details zero whose name is `name`, with or without `TDX_` in front.
pub fn status_by_name(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let wanted = upper.strip_prefix("TDX_").unwrap_or(&upper);
    // The upper half is flags (bits 31:28), class (15:8) and name (7:0).
    let flags = [0u64, 0x4, 0x6, 0x8, 0x9, 0xc, 0xe];
    (0..0x1200)
        .flat_map(|code| flags.map(|f| f << 60 | code << 32))
        .find(|status| status_name(*status) == Some(wanted))
}

/// Applies rules to the calls of one machine.
#[derive(Debug, Default)]
pub struct Injector {
    /// Rules, and whether each has met a call.
    rules: Vec<(Rule, bool)>,
    calls: BTreeMap<u64, u64>,
    /// Calls of TDH.MNG.CREATE, and those of each leaf since the last of them.
    tds: u64,
    calls_in_td: BTreeMap<u64, u64>,
}

impl Injector {
    /// An injector with these rules and no call counted yet.
    pub fn new(rules: Vec<Rule>) -> Injector {
        Injector {
            rules: rules.into_iter().map(|rule| (rule, false)).collect(),
            ..Injector::default()
        }
    }

    /// Counts one call of `leaf` and says what it gets, if not the module's own answer.
    pub fn next(&mut self, leaf: u64) -> Option<What> {
        if self.rules.is_empty() {
            return None;
        }
        if leaf == u64::from(number::MNG_CREATE) {
            self.tds += 1;
            self.calls_in_td.clear();
        }
        let count = |calls: &mut BTreeMap<u64, u64>| {
            let call = calls.entry(leaf).or_insert(0);
            *call += 1;
            *call
        };
        let (call, in_td) = (count(&mut self.calls), count(&mut self.calls_in_td));
        let mut what = None;
        for (rule, met) in &mut self.rules {
            if rule.hits(leaf, call, self.tds, in_td) {
                *met = true;
                what = what.or(Some(rule.what));
            }
        }
        what
    }

    /// Some call got something else than the module's answer.
    pub fn has_fired(&self) -> bool {
        self.rules.iter().any(|(_, met)| *met)
    }

    /// Rules that never matched a call: a scenario that did not test what it meant to.
    pub fn unused(&self) -> Vec<String> {
        self.rules
            .iter()
            .filter(|(_, met)| !met)
            .map(|(rule, _)| rule.to_string())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(spec: &str, leaf: u64, calls: u64) -> Vec<u64> {
        let mut injector = Injector::new(vec![spec.parse().unwrap()]);
        (1..=calls)
            .filter(|_| injector.next(leaf).is_some())
            .collect()
    }

    #[test]
    fn first_and_count_select_calls() {
        assert_eq!(
            hits("TDH.SYS.KEY.CONFIG:2=KEY_GENERATION_FAILED", 31, 4),
            [2]
        );
        assert_eq!(hits("TDH.SYS.INIT=RND_NO_ENTROPY*3", 33, 5), [1, 2, 3]);
        assert_eq!(hits("SYS.INIT=SYS_BUSY", 33, 3), [1, 2, 3]);
        assert_eq!(hits("33:2=SYS_BUSY*2", 33, 5), [2, 3]);
        assert_eq!(hits("33:3=SYS_BUSY*always", 33, 5), [3, 4, 5]);
        assert!(hits("33=SYS_BUSY", 35, 3).is_empty());
        assert_eq!(hits("SEAMLDR.INSTALL:2=5", SEAMLDR | 1, 3), [2]);
        assert!(hits("SEAMLDR.INSTALL:2=5", 1, 3).is_empty());
        assert_eq!(hits("0x8000000000000000=gp", SEAMLDR, 1), [1]);
    }

    #[test]
    fn a_rule_can_be_about_one_td() {
        let mut injector = Injector::new(vec![
            "MEM.TRACK@2:2=OPERAND_BUSY".parse().unwrap(),
            "MNG.CREATE@3=SYS_BUSY".parse().unwrap(),
        ]);
        let (create, track) = (u64::from(number::MNG_CREATE), u64::from(number::MEM_TRACK));
        let calls = [create, track, track, create, track, create, track, track];
        let hit = |injector: &mut Injector| calls.map(|leaf| injector.next(leaf).is_some());
        let third = [false, false, false, false, false, true, false, false];
        assert_eq!(hit(&mut injector), third, "TD 2 has one TRACK only");
        assert_eq!(injector.unused(), ["MEM.TRACK@2:2=OPERAND_BUSY"]);
        assert_eq!(hits("MEM.TRACK@1=OPERAND_BUSY", track, 3), [] as [u64; 0]);
    }

    #[test]
    fn effects_are_parsed() {
        let what = |text: &str| text.parse::<Rule>().map(|r| r.what);
        assert_eq!(
            what("33=0x8000020000000001"),
            Ok(What::Status(0x8000_0200_0000_0001))
        );
        assert_eq!(what("33=TDX_SYS_BUSY"), Ok(What::Status(0x8000_0202 << 32)));
        assert_eq!(what("33=vmfail"), Ok(What::VmfailInvalid));
        assert_eq!(what("33=GP"), Ok(What::GeneralProtection));
        assert_eq!(what("33=ud"), Ok(What::InvalidOpcode));
        assert_eq!(
            what("TDH.SYS.DISABLE=INTERRUPTED_RESUMABLE*2"),
            Ok(What::Interrupt)
        );
        assert_eq!(
            what("36=INTERRUPTED_RESUMABLE"),
            Ok(What::Status(0x8000_0003 << 32))
        );
    }

    #[test]
    fn nonsense_is_explained() {
        for text in [
            "",
            "33",
            "NO.SUCH=SYS_BUSY",
            "33:0=SYS_BUSY",
            "33@0=SYS_BUSY",
            "33@=SYS_BUSY",
            "33=NO_SUCH",
            "33=SYS_BUSY*x",
            "70000=ud",
        ] {
            let error = text.parse::<Rule>().unwrap_err();
            assert!(error.contains(&format!("'{text}'")), "{error}");
        }
    }

    #[test]
    fn every_status_the_module_knows_has_a_number() {
        assert_eq!(status_by_name("SUCCESS"), Some(0));
        assert_eq!(status_by_name("key_configured"), Some(0x815 << 32));
        assert_eq!(
            status_by_name("NON_RECOVERABLE_TD_WRONG_APIC_MODE"),
            Some(0xe000_0007 << 32)
        );
        assert_eq!(
            status_by_name("METADATA_FIELD_VALUE_NOT_VALID"),
            Some(0xc000_0c03 << 32)
        );
    }

    #[test]
    fn rule_that_never_fired_is_known() {
        let mut injector = Injector::new(vec!["33:2=SYS_BUSY".parse().unwrap()]);
        injector.next(33);
        assert_eq!(injector.unused(), ["33:2=SYS_BUSY"]);
        injector.next(33);
        assert!(injector.unused().is_empty());
    }

    #[test]
    fn rules_survive_json() {
        let rule: Rule = "TDH.SYS.INIT=RND_NO_ENTROPY*3".parse().unwrap();
        let json = serde_json::to_string(&rule).unwrap();
        assert_eq!(serde_json::from_str::<Rule>(&json).unwrap(), rule);
    }
}
