// SPDX-License-Identifier: GPL-2.0

//! Memory maps of real machines, from files in `tests/data`.
//!
//! A line is `e820 START END TYPE` (END inclusive) or `cmr START END` (END exclusive), numbers in
//! hexadecimal; `#` starts a comment.

use std::format;
use std::string::String;
use std::vec::Vec;

use crate::interval::{
    interval,
    Interval, //
};

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryMap {
    /// e820 entries of type usable, whole pages, in file order.
    pub usable: Vec<Interval>,
    /// Convertible memory regions, in file order.
    pub cmrs: Vec<Interval>,
}

impl MemoryMap {
    /// Reads a file's text.
    ///
    /// # Errors
    ///
    /// A sentence about the first line that cannot be understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut map = MemoryMap::default();
        for line in text.lines() {
            let content = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = content.split_whitespace().collect();
            match words[..] {
                [] => {}
                ["e820", start, last, "usable"] => {
                    let end = number(last)?.checked_add(1).ok_or("end wraps")?;
                    map.usable.push(interval(
                        number(start)?.next_multiple_of(4096),
                        end / 4096 * 4096,
                    ));
                }
                ["e820", _, _, _] => {}
                ["cmr", start, end] => map.cmrs.push(interval(number(start)?, number(end)?)),
                _ => return Err(format!("cannot understand: {line}")),
            }
        }
        Ok(map)
    }
}

fn number(word: &str) -> Result<u64, String> {
    word.strip_prefix("0x")
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or_else(|| format!("not a hexadecimal number: {word}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart_and_nonsense_is_refused() {
        let text = "# head\ne820 0x1000 0x2fff usable # low\n\ne820 0x3000 0x3fff acpi\ncmr 0x1000 0x3000\n";
        let map = MemoryMap::parse(text).unwrap();
        assert_eq!(map.usable, [interval(0x1000, 0x3000)]);
        assert_eq!(map.cmrs, [interval(0x1000, 0x3000)]);
        assert!(MemoryMap::parse("cmr 0x1000").is_err());
        assert!(MemoryMap::parse("cmr 1000 2000").is_err());
    }
}
