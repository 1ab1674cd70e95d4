// SPDX-License-Identifier: GPL-2.0

//! Sizes, numbers and ranges as people type them.

/// Parses a number of bytes: decimal or 0x hexadecimal, with an optional K, M, G or T (powers of
/// 1024).
///
/// # Errors
///
/// A sentence that quotes `text`.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| "kKmMgGtT".contains(c) && !text.starts_with("0x"));
    let shift = match &text[digits.len()..] {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        _ => return Err(format!("'{text}' is not a size such as 2G or 512M")),
    };
    let value = number(digits).map_err(|_| format!("'{text}' is not a size such as 2G or 512M"))?;
    value
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("'{text}' is too large"))
}

/// Parses a decimal or 0x hexadecimal number.
///
/// # Errors
///
/// A sentence that quotes `text`.
pub fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("'{text}' is not a number"))
}

/// Parses `START-END`, half-open, each a [`size`].
///
/// # Errors
///
/// A sentence that quotes `text`.
pub fn range(text: &str) -> Result<(u64, u64), String> {
    let (start, end) = text
        .split_once('-')
        .ok_or_else(|| format!("'{text}' is not a range START-END"))?;
    let (start, end) = (size(start)?, size(end)?);
    if start >= end {
        return Err(format!("'{text}': the end must lie above the start"));
    }
    Ok((start, end))
}

/// `bytes` for people: the largest unit that divides it, or the largest that is not zero.
pub fn show(bytes: u64) -> String {
    let units = [(40, "TB"), (30, "GB"), (20, "MB"), (10, "KB")];
    for (shift, unit) in units {
        if bytes >= 1 << shift {
            let whole = bytes >> shift;
            let tenths = ((bytes & ((1 << shift) - 1)) * 10) >> shift;
            return if tenths == 0 {
                format!("{whole} {unit}")
            } else {
                format!("{whole}.{tenths} {unit}")
            };
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_suffixes_and_hex() {
        assert_eq!(size("2G"), Ok(2 << 30));
        assert_eq!(size("512m"), Ok(512 << 20));
        assert_eq!(size("0x1000"), Ok(4096));
        assert_eq!(size("0"), Ok(0));
        for bad in ["", "G", "2GG", "2X", "-1", "99999999999999999T", "0xG"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_are_half_open_and_not_empty() {
        assert_eq!(range("0x100000-2G"), Ok((1 << 20, 2 << 30)));
        assert!(range("2G").is_err() && range("2G-2G").is_err() && range("3G-2G").is_err());
    }

    #[test]
    fn sizes_are_shown_in_readable_units() {
        assert_eq!(show(2 << 30), "2 GB");
        assert_eq!(show((1 << 30) + (1 << 29)), "1.5 GB");
        assert_eq!(show(12), "12 bytes");
    }
}
