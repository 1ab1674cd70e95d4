// SPDX-License-Identifier: GPL-2.0

//! Modules as the machine's P-SEAMLDR takes them: [`sign`] makes one, [`open`] reads it.
//!
//! A real module is code. Here the first bytes of its pages say which module of the model it is,
//! and the page with the signature has a digest of all of them:
//!
//! | Part | Content |
//! |---|---|
//! | signature | [`SIGNATURE_MARK`], SHA-256 of the module's pages, zeroes |
//! | module | [`MODULE_MARK`], length of the text (4 bytes), [`ModuleConfig`] as JSON, filler |
//!
//! The file that carries both to the host is made by the launcher.

use sha2::{Digest, Sha256};
use tdx_module::ModuleConfig;

/// First bytes of a signature.
pub const SIGNATURE_MARK: &[u8; 16] = b"TDX-MACHINE-SIGN";
/// First bytes of a module.
pub const MODULE_MARK: &[u8; 16] = b"TDX-MACHINE-MODL";

const PAGE: usize = 4096;
const TEXT_AT: usize = MODULE_MARK.len() + 4;

/// Signature and module, of 1 page and of at least `pages` pages.
///
/// The filler differs from byte to byte and from page to page, so that a page in the wrong place
/// breaks the signature.
///
/// # Errors
///
/// A sentence, if the configuration cannot be written as JSON.
pub fn sign(module: &ModuleConfig, pages: usize) -> Result<(Vec<u8>, Vec<u8>), String> {
    let text = serde_json::to_vec(module).map_err(|e| e.to_string())?;
    let mut code = MODULE_MARK.to_vec();
    code.extend((text.len() as u32).to_le_bytes());
    code.extend(text);
    let len = code.len().next_multiple_of(PAGE).max(pages * PAGE);
    code.extend((code.len()..len).map(|at| (at ^ at >> 8 ^ at >> 12) as u8));
    Ok((signature(&code), code))
}

/// The page with the signature of `code`.
fn signature(code: &[u8]) -> Vec<u8> {
    let mut page = SIGNATURE_MARK.to_vec();
    page.extend(Sha256::digest(code));
    page.resize(PAGE, 0);
    page
}

/// The module in `code`; with `verify`, only if `sigstruct` is its signature.
///
/// # Errors
///
/// A sentence that says what is wrong with it.
pub fn open(sigstruct: &[u8], code: &[u8], verify: bool) -> Result<ModuleConfig, String> {
    if verify && !sigstruct.starts_with(SIGNATURE_MARK) {
        return Err("there is no signature of this machine".into());
    }
    if verify && sigstruct != signature(code) {
        return Err("the signature is that of another module".into());
    }
    let text = || {
        let head = code.strip_prefix(MODULE_MARK)?;
        let len = u32::from_le_bytes(*head.first_chunk()?);
        code.get(TEXT_AT..)?.get(..len as usize)
    };
    let text = text().ok_or("there is no module of this machine in it")?;
    serde_json::from_slice(text).map_err(|e| format!("its module cannot be understood: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signed_module_is_what_was_signed() {
        let module = ModuleConfig {
            update: Some(26),
            ..ModuleConfig::default()
        };
        let (signature, code) = sign(&module, 3).unwrap();
        assert_eq!((signature.len(), code.len()), (PAGE, 3 * PAGE));
        assert_eq!(open(&signature, &code, true), Ok(module));
    }

    #[test]
    fn any_change_breaks_the_signature() {
        let (signature, code) = sign(&ModuleConfig::default(), 3).unwrap();
        let refused = |signature: &[u8], code: &[u8]| open(signature, code, true).unwrap_err();
        let mut swapped = code.clone();
        swapped[PAGE..].rotate_left(PAGE);
        assert!(refused(&signature, &swapped).contains("another module"));
        let mut touched = code.clone();
        touched[3 * PAGE - 1] ^= 1;
        assert!(refused(&signature, &touched).contains("another module"));
        assert!(refused(&[0; PAGE], &code).contains("no signature"));
        assert!(open(&[0; PAGE], &code, false).is_ok());
    }

    #[test]
    fn what_is_no_module_is_refused_even_when_it_is_signed() {
        for code in [
            &b""[..],
            b"TDX-MACHINE-MODL",
            b"TDX-MACHINE-MODL\xff\xff\xff\xff{}",
        ] {
            let error = open(&signature(code), code, true).unwrap_err();
            assert!(error.contains("no module"), "{error}");
        }
        let code = b"TDX-MACHINE-MODL\x03\0\0\0{3}";
        let error = open(&signature(code), code, true).unwrap_err();
        assert!(error.contains("understood"), "{error}");
    }
}
