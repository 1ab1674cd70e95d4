// SPDX-License-Identifier: GPL-2.0

//! Memory maps: the file that describes a real machine's memory, and how a guest gets to see it.
//!
//! A map file has lines `e820 START END TYPE` (END inclusive, TYPE one of usable, reserved, acpi,
//! nvs) and `cmr START END` (END exclusive); `#` starts a comment. QEMU cannot be given an e820 map,
//! so the kernel is told by `memmap=` arguments ([`Map::kernel_arguments`]); QEMU's memory only has
//! to lie where the map has some ([`Layout`]).

use crate::units::number;
use std::ops::Range;

/// Where QEMU's memory above 4 GB starts.
pub const HIGH: u64 = 4 << 30;
/// Memory below 4 GB on a machine with memory above.
pub const LOW_WITH_HIGH: u64 = 2 << 30;
/// From this size on QEMU's q35 puts memory above 4 GB.
pub const SPLIT: u64 = 0xb000_0000;
/// Firmware keeps its tables at the end of low memory; a map must not call that usable.
const FIRMWARE: u64 = 1 << 20;
const ALIGN: u64 = 2 << 20;

/// Kind of an e820 entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// RAM.
    Usable,
    /// Not to be touched.
    Reserved,
    /// ACPI tables.
    Acpi,
    /// ACPI non-volatile storage.
    Nvs,
}

/// A memory map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map {
    /// e820 entries in the order of the file.
    pub e820: Vec<(Range<u64>, Kind)>,
    /// Convertible memory ranges in the order of the file.
    pub cmrs: Vec<Range<u64>>,
}

impl Map {
    /// Parses the text of a map file.
    ///
    /// # Errors
    ///
    /// A sentence that names the line.
    pub fn parse(text: &str) -> Result<Map, String> {
        let mut map = Map::default();
        for (line_number, line) in (1..).zip(text.lines()) {
            let words: Vec<_> = line
                .split('#')
                .next()
                .unwrap_or("")
                .split_whitespace()
                .collect();
            map.line(&words)
                .map_err(|e| format!("line {line_number}: {e}"))?;
        }
        if !map.e820.iter().any(|(_, kind)| *kind == Kind::Usable) {
            return Err("the map has no usable memory".into());
        }
        Ok(map)
    }

    fn line(&mut self, words: &[&str]) -> Result<(), String> {
        match *words {
            [] => Ok(()),
            ["e820", start, end, kind] => {
                let end = number(end)?
                    .checked_add(1)
                    .ok_or("the range is too large")?;
                let kind = match kind {
                    "usable" => Kind::Usable,
                    "reserved" => Kind::Reserved,
                    "acpi" => Kind::Acpi,
                    "nvs" => Kind::Nvs,
                    other => {
                        return Err(format!("'{other}' is none of usable, reserved, acpi, nvs"));
                    }
                };
                self.e820.push((ordered(number(start)?..end)?, kind));
                Ok(())
            }
            ["cmr", start, end] => {
                self.cmrs.push(ordered(number(start)?..number(end)?)?);
                Ok(())
            }
            _ => Err("expected 'e820 START END TYPE' or 'cmr START END'".into()),
        }
    }

    /// The map says itself what lies above 4 GB.
    pub fn has_high_memory(&self) -> bool {
        self.e820
            .iter()
            .any(|(range, kind)| *kind == Kind::Usable && range.end > HIGH)
    }

    /// Kernel arguments that replace the firmware's map by this one, plus RAM `extra` if not empty.
    pub fn kernel_arguments(&self, extra: Range<u64>) -> String {
        let mut entries = self.e820.clone();
        if !extra.is_empty() {
            entries.push((extra, Kind::Usable));
        }
        let list: Vec<_> = entries
            .iter()
            .map(|(range, kind)| {
                let sign = match kind {
                    Kind::Usable => '@',
                    Kind::Acpi => '#',
                    // There is no sign for NVS; to TDX it is reserved like any other.
                    Kind::Reserved | Kind::Nvs => '$',
                };
                format!("{:#x}{sign}{:#x}", range.end - range.start, range.start)
            })
            .collect();
        format!("memmap=exactmap,{}", list.join(","))
    }

    /// Memory QEMU needs for this map, with `wanted` bytes in all if that is more.
    ///
    /// # Errors
    ///
    /// Usable memory where QEMU has none.
    pub fn layout(&self, wanted: u64) -> Result<Layout, String> {
        let usable = || {
            self.e820
                .iter()
                .filter(|(_, kind)| *kind == Kind::Usable)
                .map(|(r, _)| r)
        };
        let low_end = usable()
            .map(|r| r.end)
            .filter(|end| *end <= HIGH)
            .max()
            .unwrap_or(0);
        let high_end = usable()
            .map(|r| r.end)
            .filter(|end| *end > HIGH)
            .max()
            .unwrap_or(HIGH);
        if usable().any(|r| r.start < HIGH && r.end > HIGH) {
            return Err("usable memory must not cross 4 GB".into());
        }
        let low = (low_end + FIRMWARE).next_multiple_of(ALIGN);
        let high = (high_end - HIGH).max(wanted.saturating_sub(low.max(LOW_WITH_HIGH)));
        if high == 0 && low < SPLIT {
            return Ok(Layout {
                total: low,
                low,
                high: 0,
            });
        }
        if low > LOW_WITH_HIGH {
            return Err(format!(
                "usable memory below 4 GB ends at {low_end:#x}, but QEMU has only {LOW_WITH_HIGH:#x} bytes there"
            ));
        }
        let high = high.next_multiple_of(ALIGN).max(SPLIT - LOW_WITH_HIGH);
        Ok(Layout {
            total: LOW_WITH_HIGH + high,
            low: LOW_WITH_HIGH,
            high,
        })
    }
}

fn ordered(range: Range<u64>) -> Result<Range<u64>, String> {
    if range.start < range.end {
        Ok(range)
    } else {
        Err("the end lies below the start".into())
    }
}

/// Where QEMU puts a machine's memory: `low` bytes from 0, `high` bytes from 4 GB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes in all.
    pub total: u64,
    /// Bytes below 4 GB.
    pub low: u64,
    /// Bytes above 4 GB.
    pub high: u64,
}

impl Layout {
    /// Layout of a machine with `total` bytes and no map.
    pub fn plain(total: u64) -> Layout {
        let low = if total >= SPLIT { LOW_WITH_HIGH } else { total };
        Layout {
            total,
            low,
            high: total - low,
        }
    }

    /// What firmware would report as convertible: all memory from 1 MB on.
    pub fn cmrs(&self) -> Vec<Range<u64>> {
        let high = HIGH..HIGH + self.high;
        [1 << 20..self.low, high]
            .into_iter()
            .filter(|r| !r.is_empty())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "# a machine\n\
        e820 0x0 0x9ffff usable # low\n\
        e820 0x100000 0x5fffffff usable\n\
        e820 0x60000000 0x600fffff acpi\n\
        e820 0x60100000 0x601fffff nvs\n\
        e820 0x60200000 0x8fffffff reserved\n\
        cmr 0x100000 0x60000000\n\
        cmr 0x100000000 0x107a000000\n";

    #[test]
    fn file_becomes_kernel_arguments() {
        let map = Map::parse(SAMPLE).unwrap();
        assert_eq!(
            map.cmrs,
            [0x10_0000..0x6000_0000, 0x1_0000_0000..0x10_7a00_0000]
        );
        assert_eq!(
            map.kernel_arguments(HIGH..HIGH + 0x1000),
            "memmap=exactmap,0xa0000@0x0,0x5ff00000@0x100000,0x100000#0x60000000,\
             0x100000$0x60100000,0x2fe00000$0x60200000,0x1000@0x100000000"
        );
    }

    #[test]
    fn memory_covers_the_map() {
        let map = Map::parse(SAMPLE).unwrap();
        let small = map.layout(0).unwrap();
        assert_eq!((small.low, small.high), (0x6020_0000, 0));
        let large = map.layout(16 << 30).unwrap();
        assert_eq!(
            (large.low, large.high, large.total),
            (2 << 30, 14 << 30, 16 << 30)
        );
        let high = Map::parse("e820 0x100000000 0x13fffffff usable")
            .unwrap()
            .layout(0)
            .unwrap();
        assert_eq!((high.low, high.high), (2 << 30, 1 << 30));
    }

    #[test]
    fn unusable_maps_are_explained() {
        for (text, part) in [
            ("e820 0 1", "line 1"),
            ("\ncmr 5 5", "line 2"),
            ("e820 0x0 0xfff odd", "'odd'"),
            ("e820 0x0 zz usable", "'zz'"),
            ("cmr 0 0x1000", "no usable"),
            ("e820 0x0 0xffffffffffffffff usable", "too large"),
        ] {
            let error = Map::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        let wide = Map::parse("e820 0x0 0xbfffffff usable").unwrap();
        assert!(wide.layout(0).is_err());
        assert!(
            Map::parse("e820 0x0 0x1ffffffff usable")
                .unwrap()
                .layout(0)
                .is_err()
        );
    }

    #[test]
    fn plain_machines_follow_qemu() {
        assert_eq!(Layout::plain(2 << 30).high, 0);
        let big = Layout::plain(64 << 30);
        assert_eq!((big.low, big.high), (2 << 30, 62 << 30));
        assert_eq!(big.cmrs(), [1 << 20..2 << 30, 4 << 30..66 << 30]);
    }
}
