// SPDX-License-Identifier: GPL-2.0

//! The general-purpose registers that a SEAMCALL passes in and out.
//!
//! [`Regs`] holds all of them but RSP, which no leaf reads or writes. The numbers of the operand
//! ids in a status word follow the same order as the encoding of the registers.

/// General-purpose registers of one logical processor, without RSP.
///
/// On entry to [`Module::seamcall`](crate::Module::seamcall) they are the caller's; on return every
/// register that the leaf does not list as output still holds its input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
#[expect(missing_docs, reason = "a register's name is its description")]
pub struct Regs {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}

impl Regs {
    /// Names in the order of [`Regs::values`], in lower case.
    pub const NAMES: [&'static str; 15] = [
        "rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
        "r14", "r15",
    ];

    /// All values, in the order of [`Regs::NAMES`].
    pub fn values(&self) -> [u64; 15] {
        [
            self.rax, self.rcx, self.rdx, self.rbx, self.rbp, self.rsi, self.rdi, self.r8, self.r9,
            self.r10, self.r11, self.r12, self.r13, self.r14, self.r15,
        ]
    }

    /// The register called `name` (lower case, such as `"rcx"`), or `None` if there is none.
    pub fn by_name(&mut self, name: &str) -> Option<&mut u64> {
        Some(match name {
            "rax" => &mut self.rax,
            "rcx" => &mut self.rcx,
            "rdx" => &mut self.rdx,
            "rbx" => &mut self.rbx,
            "rbp" => &mut self.rbp,
            "rsi" => &mut self.rsi,
            "rdi" => &mut self.rdi,
            "r8" => &mut self.r8,
            "r9" => &mut self.r9,
            "r10" => &mut self.r10,
            "r11" => &mut self.r11,
            "r12" => &mut self.r12,
            "r13" => &mut self.r13,
            "r14" => &mut self.r14,
            "r15" => &mut self.r15,
            _ => return None,
        })
    }

    /// The registers in the order of their encoding; `None` is RSP.
    pub(crate) fn by_number(&self) -> [Option<u64>; 16] {
        let mut copy = *self;
        copy.by_number_mut().map(|register| register.copied())
    }

    /// The registers in the order of their encoding; `None` is RSP.
    pub(crate) fn by_number_mut(&mut self) -> [Option<&mut u64>; 16] {
        [
            Some(&mut self.rax),
            Some(&mut self.rcx),
            Some(&mut self.rdx),
            Some(&mut self.rbx),
            None,
            Some(&mut self.rbp),
            Some(&mut self.rsi),
            Some(&mut self.rdi),
            Some(&mut self.r8),
            Some(&mut self.r9),
            Some(&mut self.r10),
            Some(&mut self.r11),
            Some(&mut self.r12),
            Some(&mut self.r13),
            Some(&mut self.r14),
            Some(&mut self.r15),
        ]
    }
}
