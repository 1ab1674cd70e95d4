// SPDX-License-Identifier: GPL-2.0

//! `tdx-machine image`: a TDX module in the file format in which a host takes updates.
//!
//! The file is made as the options say, also where that makes it wrong: to test what the host and
//! the P-SEAMLDR refuse.

use crate::cli::Image;
use crate::files;
use crate::run::Error;
use crate::setup;
use tdx_platform::seamldr::image::sign;

const PAGE: usize = 4096;
const MARK: &[u8; 8] = b"TDX-BLOB";

/// Writes the file that `options` describe.
///
/// # Errors
///
/// An option that makes no sense, or what keeps the file from being written.
pub fn write(options: &Image) -> Result<(), Error> {
    files::write(&options.out, &build(options).map_err(Error::Usage)?)
}

/// The content of the file. A module that needs more pages than it is given is cut off.
fn build(options: &Image) -> Result<Vec<u8>, String> {
    let module = setup::module(&options.module)?;
    module.check().map_err(|e| e.to_string())?;
    let (signature, code) = sign(&module, options.module_pages as usize)?;
    let version = u16::try_from(options.format).map_err(|_| "--format has 16 bits".to_owned())?;
    let mut file = header(version, options.sigstruct_pages, options.module_pages);
    let sigstruct = options.sigstruct_pages as usize * PAGE;
    file.extend(
        signature
            .iter()
            .chain(std::iter::repeat(&0))
            .take(sigstruct),
    );
    file.extend(code.iter().take(options.module_pages as usize * PAGE));
    for patch in &options.patch {
        let end = patch.offset.saturating_add(patch.bytes.len());
        let len = file.len();
        file.get_mut(patch.offset..end)
            .ok_or_else(|| format!("--patch {}: the file has {len} bytes", patch.offset))?
            .copy_from_slice(&patch.bytes);
    }
    if let Some(length) = options.length {
        file.resize(usize::try_from(length).map_err(|e| e.to_string())?, 0);
    }
    Ok(file)
}

fn header(version: u16, sigstruct_pages: u32, module_pages: u32) -> Vec<u8> {
    let mut header = version.to_le_bytes().to_vec();
    // A checksum that nobody defines.
    header.extend(0u16.to_le_bytes());
    header.extend(MARK);
    header.extend(sigstruct_pages.to_le_bytes());
    header.extend(module_pages.to_le_bytes());
    header.resize(PAGE, 0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;
    use tdx_platform::seamldr::image::open;

    fn image(args: &str) -> Result<Vec<u8>, String> {
        let words = ["tdx-machine", "image", "--out", "x"]
            .into_iter()
            .chain(args.split_whitespace());
        match Cli::parse_from(words).command {
            Command::Image(options) => build(&options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn image_is_header_signature_and_module() {
        let file = image("--module update=26 --max-tdmrs 7").unwrap();
        assert_eq!(file.len(), 6 * PAGE);
        assert_eq!(file[..20], *b"\0\x02\0\0TDX-BLOB\x01\0\0\0\x04\0\0\0");
        assert!(file[20..PAGE].iter().all(|&byte| byte == 0));
        let module = open(&file[PAGE..2 * PAGE], &file[2 * PAGE..], true).unwrap();
        assert_eq!((module.update, module.max_tdmrs), (Some(26), 7));
    }

    #[test]
    fn image_can_be_wrong_in_every_way() {
        let good = image("").unwrap();
        let differs = |args: &str| {
            let file = image(args).unwrap();
            let at = file.iter().zip(&good).position(|(a, b)| a != b);
            (file.len() as i64 - good.len() as i64, at)
        };
        assert_eq!(differs(""), (0, None));
        assert_eq!(differs("--format 0x100"), (0, Some(1)));
        assert_eq!(differs("--sigstruct-pages 2"), (4096, Some(12)));
        assert_eq!(differs("--sigstruct-pages 0"), (-4096, Some(12)));
        assert_eq!(differs("--module-pages 497"), (493 * 4096, Some(16)));
        assert_eq!(differs("--module-pages 0"), (-4 * 4096, Some(16)));
        assert_eq!(differs("--length 100"), (100 - 6 * 4096, None));
        assert_eq!(differs("--length 28K"), (4096, None));
        assert_eq!(differs("--patch 4=58"), (0, Some(4)));
        assert_eq!(differs("--patch 8192=0000"), (0, Some(8192)));
    }

    #[test]
    fn impossible_options_are_refused() {
        for args in [
            "--patch 24576=00",
            "--format 0x10000",
            "--max-tdmrs 0",
            "--module x=1",
        ] {
            assert!(image(args).is_err(), "{args}");
        }
    }
}
