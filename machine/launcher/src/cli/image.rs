// SPDX-License-Identifier: GPL-2.0

//! Options of `tdx-machine image`.

use super::ModuleOptions;
use crate::units;
use clap::Args;
use std::path::PathBuf;

pub(super) const HELP: &str = "\
The image is a header of 4096 bytes, then the pages of the signature, then those of the module. By
default the P-SEAMLDR of the machine installs it. What makes it wrong:
  --format 0x100                another version of the format
  --sigstruct-pages 2           a signature of other than 1 page
  --module-pages 497            a module of other than 1 to 496 pages
  --length 4000                 cut off, or with --length larger than it is, too long
  --patch 4=58                  not TDX-BLOB (bytes in hexadecimal, at an offset in the file)
  --patch 4095=01               a reserved byte of the header that is not 0
  --patch 8192=00               the module is not the one that was signed";

/// Options of `tdx-machine image`.
#[derive(Debug, Args)]
pub struct Image {
    /// File to write.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// The module in it.
    #[command(flatten)]
    pub module: ModuleOptions,
    /// Version of the format.
    #[arg(long, default_value = "0x200", value_name = "VERSION", value_parser = units::number, help_heading = "Image")]
    pub format: u64,
    /// Pages of the signature.
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Image")]
    pub sigstruct_pages: u32,
    /// Pages of the module.
    #[arg(long, default_value_t = 4, value_name = "N", help_heading = "Image")]
    pub module_pages: u32,
    /// Cut the file to this length, or fill it up with zeroes.
    #[arg(long, value_name = "BYTES", value_parser = units::size, help_heading = "Image")]
    pub length: Option<u64>,
    /// Bytes to overwrite, in hexadecimal, before the length is changed.
    #[arg(long, value_name = "OFFSET=HEX", value_parser = patch, help_heading = "Image")]
    pub patch: Vec<Patch>,
}

/// Bytes to put somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Where.
    pub offset: usize,
    /// What.
    pub bytes: Vec<u8>,
}

fn patch(text: &str) -> Result<Patch, String> {
    let bad = || format!("'{text}': expected OFFSET=HEX, such as 20=01ff");
    let (offset, hex) = text.split_once('=').ok_or_else(bad)?;
    let offset = usize::try_from(units::number(offset)?).map_err(|e| e.to_string())?;
    let byte = |n| {
        hex.get(n..n + 2)
            .and_then(|byte| u8::from_str_radix(byte, 16).ok())
    };
    let bytes: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(byte).collect();
    let bytes = bytes.filter(|bytes| !bytes.is_empty()).ok_or_else(bad)?;
    Ok(Patch { offset, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    #[test]
    fn image_options_are_parsed() {
        let words = "tdx-machine image --out x --patch 0x14=01fF --module update=26 --length 8K";
        let cli = Cli::try_parse_from(words.split_whitespace()).unwrap();
        let Command::Image(image) = cli.command else {
            panic!("{cli:?}")
        };
        let (offset, bytes) = (20, vec![1, 0xff]);
        assert_eq!(image.patch, [Patch { offset, bytes }]);
        assert_eq!((image.length, image.format), (Some(8192), 0x200));
        for wrong in ["5", "5=", "5=0", "5=0x", "x=00"] {
            assert!(patch(wrong).is_err(), "{wrong}");
        }
    }
}
