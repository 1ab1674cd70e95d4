// SPDX-License-Identifier: GPL-2.0

//! The vCPU as the instruction emulation sees it.
//!
//! [`Cpu`] is the seam between the emulation (`emulate`, `fault`, `trap`) and QEMU: `ffi` implements
//! it with the plugin interface, the tests with an array of registers and a map of memory.

/// A register of the vCPU that executes the current instruction.
///
/// The general purpose registers are numbered as the instruction encoding numbers them, so
/// `Reg::GPR[n]` is the register with number `n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reg {
    /// RAX, number 0.
    Rax,
    /// RCX, number 1.
    Rcx,
    /// RDX, number 2.
    Rdx,
    /// RBX, number 3.
    Rbx,
    /// RSP, number 4.
    Rsp,
    /// RBP, number 5.
    Rbp,
    /// RSI, number 6.
    Rsi,
    /// RDI, number 7.
    Rdi,
    /// R8.
    R8,
    /// R9.
    R9,
    /// R10.
    R10,
    /// R11.
    R11,
    /// R12.
    R12,
    /// R13.
    R13,
    /// R14.
    R14,
    /// R15.
    R15,
    /// RFLAGS without the arithmetic flags and DF, which QEMU keeps elsewhere while it runs.
    Eflags,
    /// CS selector.
    Cs,
    /// SS selector.
    Ss,
    /// FS base.
    FsBase,
    /// GS base.
    GsBase,
    /// CR4 as QEMU has it: VMXE is never set there.
    Cr4,
    /// EFER.
    Efer,
}

impl Reg {
    /// Number of registers named here.
    pub const COUNT: usize = 23;

    /// The general purpose registers in encoding order.
    pub const GPR: [Reg; 16] = [
        Reg::Rax,
        Reg::Rcx,
        Reg::Rdx,
        Reg::Rbx,
        Reg::Rsp,
        Reg::Rbp,
        Reg::Rsi,
        Reg::Rdi,
        Reg::R8,
        Reg::R9,
        Reg::R10,
        Reg::R11,
        Reg::R12,
        Reg::R13,
        Reg::R14,
        Reg::R15,
    ];

    /// Names by which QEMU lists the registers, in the order of this enum.
    pub const NAMES: [&'static str; Self::COUNT] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15", "eflags", "cs", "ss", "fs_base", "gs_base", "cr4", "efer",
    ];
}

/// Registers and memory of the vCPU that executes the current instruction.
///
/// Every address is a guest address; nothing here raises a guest fault. Memory functions answer
/// `false` when some byte of the range is not mapped (virtual) or not RAM (physical), and then have
/// read or written nothing that the caller may rely on.
pub trait Cpu {
    /// Value of `reg`, zero extended to 64 bits.
    fn reg(&self, reg: Reg) -> u64;
    /// Sets `reg`; of a selector only the low 16 bits count.
    fn set_reg(&mut self, reg: Reg, value: u64);
    /// Kernel instructions that all vCPUs together have executed, 0 if they are not counted.
    fn executed(&self) -> u64;
    /// Fills `buf` from virtual address `va`, ignoring access rights.
    fn read_virt(&self, va: u64, buf: &mut [u8]) -> bool;
    /// Writes `data` to virtual address `va`, ignoring access rights.
    fn write_virt(&mut self, va: u64, data: &[u8]) -> bool;
    /// Physical address of `va`, if mapped.
    fn translate(&self, va: u64) -> Option<u64>;
    /// Fills `buf` from physical address `pa`.
    fn read_phys(&self, pa: u64, buf: &mut [u8]) -> bool;
    /// Writes `data` to physical address `pa`.
    fn write_phys(&mut self, pa: u64, data: &[u8]) -> bool;
}

/// Reads one little-endian quadword from virtual address `va`.
pub fn read_u64(cpu: &dyn Cpu, va: u64) -> Option<u64> {
    let mut buf = [0; 8];
    cpu.read_virt(va, &mut buf).then(|| u64::from_le_bytes(buf))
}

#[cfg(test)]
pub(crate) mod fake {
    use super::{Cpu, Reg};
    use std::collections::BTreeMap;

    /// A vCPU without QEMU: flat registers, bytewise memory, virtual = physical + `offset`.
    #[derive(Default)]
    pub(crate) struct FakeCpu {
        pub(crate) regs: [u64; Reg::COUNT],
        pub(crate) mem: BTreeMap<u64, u8>,
        pub(crate) offset: u64,
        /// Writes to virtual addresses so far: address and length.
        pub(crate) writes: Vec<(u64, usize)>,
    }

    impl FakeCpu {
        /// Maps `len` zero bytes at physical `pa`.
        pub(crate) fn map(&mut self, pa: u64, len: u64) {
            self.mem.extend((pa..pa + len).map(|a| (a, 0)));
        }
    }

    impl Cpu for FakeCpu {
        fn reg(&self, reg: Reg) -> u64 {
            self.regs[reg as usize]
        }
        fn set_reg(&mut self, reg: Reg, value: u64) {
            self.regs[reg as usize] = value;
        }
        fn executed(&self) -> u64 {
            0
        }
        fn read_virt(&self, va: u64, buf: &mut [u8]) -> bool {
            self.read_phys(va.wrapping_sub(self.offset), buf)
        }
        fn write_virt(&mut self, va: u64, data: &[u8]) -> bool {
            self.writes.push((va, data.len()));
            self.write_phys(va.wrapping_sub(self.offset), data)
        }
        fn translate(&self, va: u64) -> Option<u64> {
            let pa = va.wrapping_sub(self.offset);
            self.mem.contains_key(&pa).then_some(pa)
        }
        fn read_phys(&self, pa: u64, buf: &mut [u8]) -> bool {
            (0..)
                .zip(buf)
                .all(|(i, b)| self.mem.get(&(pa + i)).map(|v| *b = *v).is_some())
        }
        fn write_phys(&mut self, pa: u64, data: &[u8]) -> bool {
            (0..)
                .zip(data)
                .all(|(i, b)| self.mem.get_mut(&(pa + i)).map(|v| *v = *b).is_some())
        }
    }
}
