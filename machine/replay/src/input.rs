// SPDX-License-Identifier: GPL-2.0

//! Reading records: JSON lines, plain or compressed, and numbers written as hex strings.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, de};

/// Something that went wrong, in words for the user.
pub type Error = String;

/// Calls `each` with every record of a `.jsonl` or `.jsonl.gz` file, in order.
///
/// # Errors
///
/// The file cannot be read, a line is not the record expected, or `each` failed. The message names
/// the file and the line.
pub fn for_each_record<T: DeserializeOwned>(
    path: &Path,
    mut each: impl FnMut(T) -> Result<(), Error>,
) -> Result<(), Error> {
    let name = path.display();
    let file = File::open(path).map_err(|error| format!("{name}: {error}"))?;
    let compressed = path.extension().is_some_and(|extension| extension == "gz");
    let reader: Box<dyn Read> = if compressed {
        Box::new(MultiGzDecoder::new(file))
    } else {
        Box::new(file)
    };
    for (index, line) in BufReader::new(reader).lines().enumerate() {
        let at = |error: String| format!("{name}:{}: {error}", index + 1);
        let line = line.map_err(|error| at(error.to_string()))?;
        if line.trim().is_empty() {
            continue;
        }
        let record = serde_json::from_str(&line).map_err(|error| at(error.to_string()))?;
        each(record).map_err(at)?;
    }
    Ok(())
}

/// A 64-bit number written as a hex string without prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hex(
    /// The number.
    pub u64,
);

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_hex(&text).map(Hex).map_err(de::Error::custom)
    }
}

/// Parses a hex number without prefix.
///
/// # Errors
///
/// The text is not such a number or does not fit into 64 bits.
pub fn parse_hex(text: &str) -> Result<u64, Error> {
    u64::from_str_radix(text, 16).map_err(|_| format!("\"{text}\" is not a hex number"))
}

/// Parses pairs of hex digits as bytes.
///
/// # Errors
///
/// A pair is not hex, or a digit is left over.
pub fn parse_bytes(text: &str) -> Result<Vec<u8>, Error> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match std::str::from_utf8(pair) {
            Ok(pair) if pair.len() == 2 => {
                u8::from_str_radix(pair, 16).map_err(|_| format!("\"{pair}\" is not a hex byte"))
            }
            _ => Err("bytes need two hex digits each".to_owned()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_pairs_of_digits() {
        assert_eq!(parse_bytes("00ff10"), Ok(vec![0, 255, 16]));
        assert!(parse_bytes("0").is_err());
        assert!(parse_bytes("0g").is_err());
    }

    #[test]
    fn hex_has_no_prefix_and_64_bits() {
        assert_eq!(parse_hex("ffffffffffffffff"), Ok(u64::MAX));
        assert!(parse_hex("0x1").is_err());
        assert!(parse_hex("10000000000000000").is_err());
    }

    #[test]
    fn a_file_that_does_not_exist_is_named() {
        let error = for_each_record(Path::new("no/such.jsonl"), |_: Hex| Ok(())).unwrap_err();
        assert!(error.starts_with("no/such.jsonl:"), "{error}");
    }
}
