// SPDX-License-Identifier: GPL-2.0

//! Setting the arithmetic flags, which SEAMCALL and the VMX instructions report with.
//!
//! TCG keeps CF, PF, AF, ZF, SF and OF outside the RFLAGS that a plugin can write. An IRET loads
//! them. So [`resume`] pushes an interrupt return frame on the stack of the interrupted kernel and
//! sends the vCPU to an IRETQ that the guest's own kernel contains ([`IretSites`]).
//! The frame lies below RSP, where the x86-64 kernel keeps nothing.
//!
//! Interrupts stay off until the IRETQ is done: Linux takes an interrupt that arrives *at* its IRETQ
//! for a failed return to user space, and changes the GS base.

use crate::cpu::{Cpu, Reg};
use crate::fault::bytes;
use std::sync::atomic::{AtomicU64, Ordering};

/// Carry flag: VMfailInvalid.
pub const CF: u64 = 1;
/// Zero flag: VMfailValid.
pub const ZF: u64 = 1 << 6;
/// CF, PF, AF, ZF, SF and OF.
const ARITHMETIC: u64 = 0x8d5;

/// Interrupt enable flag.
const IF: u64 = 1 << 9;

/// Bytes of IRETQ.
const IRETQ: [u8; 2] = [0x48, 0xcf];

/// Where the guest's kernel has an IRETQ; the one translated last.
///
/// A new kernel (reboot, kexec) may lie elsewhere, so the bytes are checked before each use.
#[derive(Debug, Default)]
pub struct IretSites(AtomicU64);

impl IretSites {
    /// Notes an IRETQ at `va`; addresses in the lower half are ignored, those are not a kernel's.
    pub fn note(&self, va: u64) {
        if va >> 63 == 1 {
            self.0.store(va, Ordering::Relaxed);
        }
    }

    fn find(&self, cpu: &dyn Cpu) -> Option<u64> {
        let va = self.0.load(Ordering::Relaxed);
        let mut found = [0; 2];
        (va != 0 && cpu.read_virt(va, &mut found) && found == IRETQ).then_some(va)
    }
}

/// Prepares the vCPU to continue at `rip` with `flags` (of [`CF`] and [`ZF`]) set and the other
/// arithmetic flags clear. CPL 0 and 64-bit mode only.
///
/// Returns where the vCPU has to go, or `None` if no IRETQ is known or the stack is not mapped; the
/// registers are unchanged then.
pub fn resume(cpu: &mut dyn Cpu, sites: &IretSites, rip: u64, flags: u64) -> Option<u64> {
    let site = sites.find(cpu)?;
    let rsp = cpu.reg(Reg::Rsp);
    let before = cpu.reg(Reg::Eflags);
    let rflags = before & !ARITHMETIC | flags | 2;
    let frame = (rsp & !15).checked_sub(48)?;
    let words = [rip, cpu.reg(Reg::Cs), rflags, rsp, cpu.reg(Reg::Ss)];
    if !cpu.write_virt(frame, &bytes(&words)) {
        return None;
    }
    cpu.set_reg(Reg::Eflags, before & !IF);
    cpu.set_reg(Reg::Rsp, frame);
    Some(site)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{fake::FakeCpu, read_u64};

    const KERNEL: u64 = 0xffff_ffff_8000_0000;

    fn kernel() -> FakeCpu {
        let mut cpu = FakeCpu {
            offset: KERNEL,
            ..FakeCpu::default()
        };
        cpu.map(0, 0x2000);
        cpu.write_virt(KERNEL + 0x10, &IRETQ);
        cpu.set_reg(Reg::Rsp, KERNEL + 0x1ff8);
        cpu.set_reg(Reg::Eflags, 0x2c7);
        cpu
    }

    #[test]
    fn frame_carries_the_wanted_flags() {
        let (mut cpu, sites) = (kernel(), IretSites::default());
        sites.note(KERNEL + 0x10);
        assert_eq!(resume(&mut cpu, &sites, 0x1234, CF), Some(KERNEL + 0x10));
        let rsp = cpu.reg(Reg::Rsp);
        assert_eq!(rsp % 16, 0);
        assert_eq!(read_u64(&cpu, rsp), Some(0x1234));
        assert_eq!(read_u64(&cpu, rsp + 16), Some(0x203));
        assert_eq!(read_u64(&cpu, rsp + 24), Some(KERNEL + 0x1ff8));
    }

    #[test]
    fn no_interrupt_is_taken_before_the_iretq_is_done() {
        let (mut cpu, sites) = (kernel(), IretSites::default());
        sites.note(KERNEL + 0x10);
        resume(&mut cpu, &sites, 1, 0);
        assert_eq!(cpu.reg(Reg::Eflags) & IF, 0);
        assert_eq!(
            read_u64(&cpu, cpu.reg(Reg::Rsp) + 16).map(|f| f & IF),
            Some(IF)
        );
    }

    #[test]
    fn stale_or_foreign_site_is_refused() {
        let (mut cpu, sites) = (kernel(), IretSites::default());
        assert_eq!(resume(&mut cpu, &sites, 1, 0), None);
        sites.note(0x10);
        assert_eq!(resume(&mut cpu, &sites, 1, 0), None, "user address");
        sites.note(KERNEL + 0x20);
        assert_eq!(
            resume(&mut cpu, &sites, 1, 0),
            None,
            "no IRETQ there any more"
        );
        assert_eq!(cpu.reg(Reg::Rsp), KERNEL + 0x1ff8);
    }
}
