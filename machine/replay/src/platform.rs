// SPDX-License-Identifier: GPL-2.0

//! A platform made of tables: [`RecordedPlatform`].
//!
//! [`Processor`] holds what all recorded machines have in common (CPUID, MSRs), [`Shape`] what
//! differs from one to the next (processors, packages, KeyIDs, memory). Faults are injected for
//! one call with [`Injection`].

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use tdx_module::{CpuidRegs, MemRange, Pconfig, Platform};

use crate::input::{Error, Hex};

/// CPUID and MSRs that all recorded machines share.
#[derive(Clone, Debug, Deserialize)]
pub struct Processor {
    cpuid: Vec<CpuidRow>,
    #[serde(rename = "msr")]
    msrs: BTreeMap<HexKey, Hex>,
}

/// A hex number as a key of a JSON object.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(try_from = "String")]
struct HexKey(u32);

impl TryFrom<String> for HexKey {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        u32::from_str_radix(&text, 16)
            .map(Self)
            .map_err(|_| format!("\"{text}\" is not an MSR"))
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct CpuidRow {
    leaf: Hex,
    /// `None` if the leaf has no subleaves.
    subleaf: Option<Hex>,
    eax: Hex,
    ebx: Hex,
    ecx: Hex,
    edx: Hex,
}

impl Processor {
    /// The processor on which the records in `tests/data` were made.
    ///
    /// # Errors
    ///
    /// None, unless the embedded file is broken.
    pub fn built_in() -> Result<Self, Error> {
        let text = include_str!("../tests/data/platform.json");
        serde_json::from_str(text).map_err(|error| format!("built-in platform: {error}"))
    }

    /// Reads a processor from a JSON file.
    ///
    /// # Errors
    ///
    /// The file cannot be read or is not a processor description; the message names it.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let at = |error: String| format!("{}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| at(error.to_string()))?;
        serde_json::from_str(&text).map_err(|error| at(error.to_string()))
    }
}

/// What differs between recorded machines.
#[derive(Clone, Debug, Deserialize)]
pub struct Shape {
    /// The module release; only `1.5.01` was recorded.
    pub module: String,
    /// Number of logical processors.
    pub lps: usize,
    /// Package of each logical processor.
    pub lp_package: Vec<usize>,
    /// Width of the KeyID field.
    pub keyid_bits: u64,
    /// KeyIDs that anyone may use.
    pub num_mktme_keyids: u64,
    /// Private KeyIDs, which follow.
    pub num_tdx_keyids: u64,
    /// Sub-blocks that TDH.PHYMEM.CACHE.WB works in.
    pub cache_sub_blocks: u64,
    /// Base and size of the memory reserved for the module.
    pub seamrr: (Hex, Hex),
    /// Base and size of each convertible memory range.
    pub cmrs: Vec<(Hex, Hex)>,
}

/// Faults for the duration of one call.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Injection {
    /// The random number generator gives nothing.
    pub no_entropy: bool,
    /// PCONFIG fails in this way.
    pub pconfig: Option<PconfigFault>,
    /// Number of times that the module may look for an interrupt before it sees one.
    pub interrupt_after: Option<u64>,
}

/// Ways in which PCONFIG fails.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PconfigFault {
    /// The key table is in use.
    Busy,
    /// There is no entropy for a key.
    NoEntropy,
}

#[derive(Debug, Default)]
struct Changing {
    msrs: BTreeMap<u32, u64>,
    lp_msrs: BTreeMap<(usize, u32), u64>,
    memory: HashMap<u64, Box<[u8; PAGE]>>,
    injection: Injection,
    random: u64,
}

const PAGE: usize = 4096;

/// A machine of which everything is known beforehand.
#[derive(Debug)]
pub struct RecordedPlatform {
    shape: Shape,
    cpuid: Vec<CpuidRow>,
    changing: Mutex<Changing>,
}

impl RecordedPlatform {
    /// A machine of the given shape whose memory is zero.
    ///
    /// # Errors
    ///
    /// The shape contradicts itself.
    pub fn new(processor: &Processor, shape: Shape) -> Result<Self, Error> {
        if shape.lp_package.len() != shape.lps {
            return Err(format!(
                "{} LPs, but {} packages",
                shape.lps,
                shape.lp_package.len()
            ));
        }
        let mut msrs: BTreeMap<u32, u64> = processor
            .msrs
            .iter()
            .map(|(&HexKey(index), &Hex(value))| (index, value))
            .collect();
        msrs.insert(0x87, shape.num_mktme_keyids | shape.num_tdx_keyids << 32);
        msrs.insert(0x98, shape.cache_sub_blocks);
        msrs.insert(0x99, shape.cache_sub_blocks);
        msrs.insert(0x982, 0xf_0000_0000_0003 | shape.keyid_bits << 32);
        let changing = Mutex::new(Changing {
            msrs,
            ..Changing::default()
        });
        Ok(Self {
            shape,
            cpuid: processor.cpuid.clone(),
            changing,
        })
    }

    fn changing(&self) -> MutexGuard<'_, Changing> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of logical processors.
    pub fn lps(&self) -> usize {
        self.shape.lps
    }

    /// Sets an MSR on all processors.
    pub fn set_msr(&self, index: u32, value: u64) {
        self.changing().msrs.insert(index, value);
    }

    /// Makes an MSR differ on one processor, or (`None`) no longer.
    pub fn set_lp_msr(&self, lp: usize, index: u32, value: Option<u64>) {
        let lp_msrs = &mut self.changing().lp_msrs;
        match value {
            Some(value) => lp_msrs.insert((lp, index), value),
            None => lp_msrs.remove(&(lp, index)),
        };
    }

    /// Sets the faults that the following calls meet.
    pub fn inject(&self, injection: Injection) {
        self.changing().injection = injection;
    }

    /// The x2APIC id of a processor: package and index within the package.
    fn x2apic_id(&self, lp: usize) -> u32 {
        let package = self.package_of(lp);
        let before = self
            .shape
            .lp_package
            .iter()
            .take(lp)
            .filter(|&&p| p == package)
            .count();
        (package * 128 + before) as u32
    }
}

impl Platform for RecordedPlatform {
    fn lp_count(&self) -> usize {
        self.shape.lps
    }

    fn package_of(&self, lp: usize) -> usize {
        self.shape.lp_package.get(lp).copied().unwrap_or(0)
    }

    fn cmrs(&self) -> Vec<MemRange> {
        let range = |&(Hex(base), Hex(size)): &(Hex, Hex)| MemRange { base, size };
        self.shape.cmrs.iter().map(range).collect()
    }

    fn seamrr(&self) -> MemRange {
        let (Hex(base), Hex(size)) = self.shape.seamrr;
        MemRange { base, size }
    }

    fn msr(&self, lp: usize, index: u32) -> u64 {
        let changing = self.changing();
        let of_lp = changing.lp_msrs.get(&(lp, index));
        of_lp.or(changing.msrs.get(&index)).copied().unwrap_or(0)
    }

    fn cpuid(&self, lp: usize, leaf: u32, subleaf: u32) -> CpuidRegs {
        let matches = |row: &&CpuidRow| {
            row.leaf == Hex(leaf.into()) && row.subleaf.is_none_or(|s| s == Hex(subleaf.into()))
        };
        let Some(row) = self.cpuid.iter().find(matches) else {
            return CpuidRegs::default();
        };
        let [eax, mut ebx, ecx, mut edx] = [row.eax, row.ebx, row.ecx, row.edx].map(|r| r.0 as u32);
        match leaf {
            1 => ebx = ebx & 0x00ff_ffff | self.x2apic_id(lp) << 24,
            0x1f => edx = self.x2apic_id(lp),
            _ => {}
        }
        CpuidRegs { eax, ebx, ecx, edx }
    }

    fn random(&self, _lp: usize) -> Option<u64> {
        let mut changing = self.changing();
        changing.random = changing
            .random
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(1);
        (!changing.injection.no_entropy).then_some(changing.random)
    }

    fn pconfig(&self, _lp: usize, _hkid: u16) -> Pconfig {
        match self.changing().injection.pconfig {
            None => Pconfig::Programmed,
            Some(PconfigFault::Busy) => Pconfig::Busy,
            Some(PconfigFault::NoEntropy) => Pconfig::NoEntropy,
        }
    }

    fn interrupt_pending(&self, _lp: usize) -> bool {
        match &mut self.changing().injection.interrupt_after {
            None => false,
            Some(0) => true,
            Some(polls) => {
                *polls -= 1;
                false
            }
        }
    }

    fn read(&self, pa: u64, buf: &mut [u8]) {
        let changing = self.changing();
        for (pa, byte) in (pa..).zip(buf) {
            let page = changing.memory.get(&(pa / PAGE as u64));
            *byte = page.map_or(0, |page| page[pa as usize % PAGE]);
        }
    }

    fn write(&self, pa: u64, data: &[u8]) {
        let mut changing = self.changing();
        for (pa, &byte) in (pa..).zip(data) {
            let page = changing.memory.entry(pa / PAGE as u64);
            page.or_insert_with(|| Box::new([0; PAGE]))[pa as usize % PAGE] = byte;
        }
    }

    fn made_private(&self, _pa: u64, _len: u64, _hkid: u16) {}

    fn released(&self, _pa: u64, _len: u64) {}
}
