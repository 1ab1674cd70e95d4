// SPDX-License-Identifier: GPL-2.0

//! The operands of the P-SEAMLDR in memory: [`Params`] of SEAMLDR.INSTALL, and [`info`], what
//! SEAMLDR.INFO writes.

use super::config::SeamldrConfig;
use super::{Refusal, Refused};
use crate::GuestMemory;

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;
/// Bytes that SEAMLDR.INFO writes, and their alignment.
pub(crate) const INFO_LEN: usize = 256;
/// Pages that a module may have.
const MODULE_PAGES_MAX: u64 = 496;

const SCENARIO_AT: usize = 4;
const SIGSTRUCT_AT: usize = 8;
const RESERVED: std::ops::Range<usize> = 16..120;
const COUNT_AT: usize = 120;
const LIST_AT: usize = 128;

/// What SEAMLDR.INSTALL is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Params {
    /// The running module is replaced and hands its tables over; if not, a module is loaded afresh.
    pub(crate) update: bool,
    /// Physical address of the signature.
    sigstruct: u64,
    /// Physical addresses of the module's pages.
    module: Vec<u64>,
}

fn bad(why: String) -> Refused {
    Refused {
        refusal: Refusal::BadOperand,
        why,
    }
}

fn word<const N: usize>(page: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    if let Some(found) = page.get(at..at + N) {
        bytes.copy_from_slice(found);
    }
    bytes
}

impl Params {
    /// Reads and checks the structure at `pa`.
    pub(crate) fn read(mem: &dyn GuestMemory, pa: u64) -> Result<Params, Refused> {
        if !pa.is_multiple_of(PAGE) {
            return Err(bad(format!("SEAMLDR_PARAMS at {pa:#x} are not aligned")));
        }
        let mut page = vec![0; PAGE as usize];
        if !mem.read(pa, &mut page) {
            return Err(bad(format!("SEAMLDR_PARAMS at {pa:#x} are not in memory")));
        }
        let version = u32::from_le_bytes(word(&page, 0));
        if version != 0 {
            return Err(bad(format!("SEAMLDR_PARAMS of version {version}, not 0")));
        }
        let update = match u32::from_le_bytes(word(&page, SCENARIO_AT)) {
            0 => false,
            1 => true,
            other => return Err(bad(format!("there is no scenario {other}"))),
        };
        if page[RESERVED].iter().any(|&byte| byte != 0) {
            return Err(bad("reserved bytes of SEAMLDR_PARAMS are not 0".into()));
        }
        let count = u64::from_le_bytes(word(&page, COUNT_AT));
        if !(1..=MODULE_PAGES_MAX).contains(&count) {
            return Err(bad(format!("a module cannot have {count} pages")));
        }
        let address = |n: u64| u64::from_le_bytes(word(&page, LIST_AT + 8 * n as usize));
        let sigstruct = u64::from_le_bytes(word(&page, SIGSTRUCT_AT));
        let module: Vec<u64> = (0..count).map(address).collect();
        if let Some(pa) = [sigstruct]
            .iter()
            .chain(&module)
            .find(|pa| !pa.is_multiple_of(PAGE))
        {
            return Err(bad(format!("the page at {pa:#x} is not aligned")));
        }
        Ok(Params {
            update,
            sigstruct,
            module,
        })
    }

    /// The signature and the module.
    pub(crate) fn image(&self, mem: &dyn GuestMemory) -> Result<(Vec<u8>, Vec<u8>), Refused> {
        let fetch = |pages: &[u64]| {
            let mut bytes = vec![0; pages.len() * PAGE as usize];
            for (&pa, page) in pages.iter().zip(bytes.chunks_exact_mut(PAGE as usize)) {
                if !mem.read(pa, page) {
                    return Err(bad(format!("the page at {pa:#x} is not in memory")));
                }
            }
            Ok(bytes)
        };
        Ok((fetch(&[self.sigstruct])?, fetch(&self.module)?))
    }
}

/// SEAMLDR_INFO, with `updates` left; `module` says that a TDX module is there.
pub(crate) fn info(config: &SeamldrConfig, updates: u32, module: bool) -> [u8; INFO_LEN] {
    const VENDOR_INTEL: u32 = 0x8086;
    let mut bytes = [0; INFO_LEN];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(8, &VENDOR_INTEL.to_le_bytes());
    put(12, &config.build_date.to_le_bytes());
    put(16, &config.build_num.to_le_bytes());
    put(18, &config.minor.to_le_bytes());
    put(20, &config.major.to_le_bytes());
    put(22, &config.update.to_le_bytes());
    put(28, &updates.to_le_bytes());
    put(160, &[module.into(), 0, 1]);
    bytes
}
