// SPDX-License-Identifier: GPL-2.0

//! The simulated TDX module on a server of one processor that exists only as numbers.

use tdx_host_tests::fields::FieldId;
use tdx_host_tests::interval::Interval;
use tdx_host_tests::metadata::FieldReader;
use tdx_module::{number, status_name};
use tdx_module::{CpuidRegs, MemRange, Module, ModuleConfig, Pconfig, Platform, Regs};

/// Where the operands of TDH.SYS.CONFIG lie: above all memory, below the KeyID bits.
const OPERANDS: u64 = 1 << 45;

/// MSR 87h of the server: 15 KeyIDs for MKTME, 48 for TDX.
pub(crate) const KEYID_PARTITIONING: u64 = 0x0000_0030_0000_000f;

/// Processor and memory of the server.
struct Hardware {
    cmrs: Vec<MemRange>,
    /// What lies at [`OPERANDS`].
    operands: Vec<u8>,
}

impl Platform for Hardware {
    fn lp_count(&self) -> usize {
        1
    }

    fn package_of(&self, _lp: usize) -> usize {
        0
    }

    fn cmrs(&self) -> Vec<MemRange> {
        self.cmrs.clone()
    }

    fn seamrr(&self) -> MemRange {
        MemRange {
            base: 1 << 44,
            size: 32 << 20,
        }
    }

    fn msr(&self, _lp: usize, index: u32) -> u64 {
        match index {
            0x87 => KEYID_PARTITIONING,
            0x98 | 0x99 => 16,
            0xbc | 0xbd => 1,
            // SMRR and its lock; locked, but not in use.
            0xfe => 1 << 11 | 1 << 14 | 1 << 15,
            0x1f3 => 1 << 10,
            // Vulnerable to nothing.
            0x10a => !(1 << 2),
            0x345 => 1 << 13,
            0x480..=0x492 => 1 << 55 | 1 << 48 | 1 << 33 | 1 << 14 | 1 << 6,
            0x981 => 6 << 32 | 1,
            // Locked, enabled, 6 KeyID bits of which 2 for TDX, XTS-128.
            0x982 => 0x0001_0026_0000_0003,
            _ => 0,
        }
    }

    fn cpuid(&self, _lp: usize, leaf: u32, subleaf: u32) -> CpuidRegs {
        let all = CpuidRegs {
            eax: !0,
            ebx: !0,
            ecx: !0,
            edx: !0,
        };
        let level = |kind: u32| CpuidRegs {
            eax: 0,
            ebx: 1,
            ecx: kind << 8 | subleaf,
            edx: 0,
        };
        match (leaf, subleaf) {
            (0x1f, 0) => level(1),
            (0x1f, 1) => level(2),
            (0x1f, _) => level(0),
            (0x8000_0008, _) => CpuidRegs { eax: 52, ..all },
            _ => all,
        }
    }

    fn random(&self, _lp: usize) -> Option<u64> {
        Some(4)
    }

    fn pconfig(&self, _lp: usize, _hkid: u16) -> Pconfig {
        Pconfig::Programmed
    }

    fn interrupt_pending(&self, _lp: usize) -> bool {
        false
    }

    fn read(&self, pa: u64, buf: &mut [u8]) {
        buf.fill(0xff);
        let start = pa.checked_sub(OPERANDS).map(|offset| offset as usize);
        let here = start.and_then(|start| self.operands.get(start..start + buf.len()));
        if let Some(here) = here {
            buf.copy_from_slice(here);
        }
    }

    fn write(&self, _pa: u64, _data: &[u8]) {}

    fn made_private(&self, _pa: u64, _len: u64, _hkid: u16) {}

    fn released(&self, _pa: u64, _len: u64) {}
}

/// A server on which every processor has made TDH.SYS.LP.INIT.
pub(crate) struct Server {
    module: Module,
    hardware: Hardware,
}

impl Server {
    /// Starts the server with these CMRs.
    pub(crate) fn start(cmrs: &[Interval]) -> Self {
        let cmrs = cmrs.iter().map(|cmr| MemRange {
            base: cmr.start,
            size: cmr.size(),
        });
        let server = Server {
            module: Module::new(ModuleConfig::default()).expect("default configuration"),
            hardware: Hardware {
                cmrs: cmrs.collect(),
                operands: Vec::new(),
            },
        };
        server.must(number::SYS_INIT, Regs::default());
        server.must(number::SYS_LP_INIT, Regs::default());
        server
    }

    /// Makes a SEAMCALL and returns status and registers.
    pub(crate) fn call(&self, leaf: u16, mut regs: Regs) -> (u64, Regs) {
        regs.rax = leaf.into();
        self.module.seamcall(0, &mut regs, &self.hardware);
        (regs.rax, regs)
    }

    fn must(&self, leaf: u16, regs: Regs) {
        let (status, _) = self.call(leaf, regs);
        assert_eq!(status, 0, "leaf {leaf}: {:?}", status_name(status));
    }

    /// TDH.SYS.CONFIG with these TDMR_INFO structures; the status.
    pub(crate) fn config(&mut self, infos: &[Vec<u64>], hkid: u16) -> u64 {
        let array_bytes = (infos.len() * 8).next_multiple_of(512) as u64;
        let mut address = OPERANDS + array_bytes;
        let mut words: Vec<u64> = Vec::new();
        for info in infos {
            words.push(address);
            address += info.len() as u64 * 8;
        }
        words.resize(array_bytes as usize / 8, 0);
        words.extend(infos.iter().flatten());
        self.hardware.operands = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let regs = Regs {
            rcx: OPERANDS,
            rdx: infos.len() as u64,
            r8: hkid.into(),
            ..Regs::default()
        };
        self.call(number::SYS_CONFIG, regs).0
    }
}

/// TDH.SYS.RD.
impl FieldReader for &Server {
    type Error = u64;

    fn read(&mut self, id: FieldId) -> Result<u64, u64> {
        let regs = Regs {
            rdx: id.raw(),
            ..Regs::default()
        };
        match self.call(number::SYS_RD, regs) {
            (0, regs) => Ok(regs.r8),
            (status, _) => Err(status),
        }
    }
}
