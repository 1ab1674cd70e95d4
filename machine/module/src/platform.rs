// SPDX-License-Identifier: GPL-2.0

//! What the processor and the memory give the TDX module, and what they learn from it.
//!
//! [`Platform`] is the only door of this crate to the outside. The simulated machine implements it
//! with real guest memory, the tests and the replay tool with tables.

/// A run of physical memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MemRange {
    /// First byte (host physical address without KeyID).
    pub base: u64,
    /// Length in bytes; zero is an empty range.
    pub size: u64,
}

/// The four registers that CPUID returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "a register's name is its description")]
pub struct CpuidRegs {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// How PCONFIG ended when the module asked for a fresh key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pconfig {
    /// The key is programmed on the package.
    Programmed,
    /// Another processor is programming the key table of this package.
    Busy,
    /// The key generator had no entropy.
    NoEntropy,
}

/// Processors and memory as the module sees them.
///
/// Logical processors (LPs) are numbered from 0 to [`lp_count`](Platform::lp_count) - 1, packages
/// from 0; these are indices, not APIC ids. The module holds none of its internal mutexes while it
/// calls any of these methods, so an implementation may take its own locks, block, or even make
/// another SEAMCALL on another LP: that call then meets exactly the module locks that the first one
/// holds. Addresses are host physical addresses without KeyID bits.
pub trait Platform: Send + Sync {
    /// Number of LPs that firmware enabled, including those the operating system never starts.
    fn lp_count(&self) -> usize;

    /// Package of an LP.
    fn package_of(&self, lp: usize) -> usize;

    /// Convertible memory ranges in the order in which firmware reported them, at most 32.
    fn cmrs(&self) -> Vec<MemRange>;

    /// The memory range reserved for the module itself.
    fn seamrr(&self) -> MemRange;

    /// Reads a model-specific register. An MSR that does not exist reads as zero.
    ///
    /// The module reads these: 3Bh, 87h, 98h, 99h, BCh, BDh, CFh, FEh, 10Ah, 1A0h, 1F2h, 1F3h,
    /// 345h, 480h to 492h, 981h and 982h.
    fn msr(&self, lp: usize, index: u32) -> u64;

    /// Executes the native CPUID instruction on an LP.
    fn cpuid(&self, lp: usize, leaf: u32, subleaf: u32) -> CpuidRegs;

    /// A 64-bit random number, or `None` when the processor has no entropy at the moment.
    fn random(&self, lp: usize) -> Option<u64>;

    /// Programs a fresh random key for `hkid` on the package of `lp`.
    fn pconfig(&self, lp: usize, hkid: u16) -> Pconfig;

    /// Whether an interrupt for the host is pending on `lp`; polled by long-running leaves.
    fn interrupt_pending(&self, lp: usize) -> bool;

    /// Reads physical memory with KeyID 0, or the content of a private page the module owns.
    ///
    /// What cannot be read is filled with ones.
    fn read(&self, pa: u64, buf: &mut [u8]);

    /// Writes physical memory: a page that the module fills for a TD.
    ///
    /// [`made_private`](Platform::made_private) follows for the same page.
    fn write(&self, pa: u64, data: &[u8]);

    /// The module has written these lines with a private key.
    ///
    /// Called for PAMT lines at TDH.SYS.TDMR.INIT, for each page that a leaf takes into use (before
    /// an error that comes late, too) and for a page that a guest accepts. TDH.MEM.PAGE.AUG alone
    /// leaves the content of its page untouched.
    /// `pa` and `len` are multiples of 64.
    fn made_private(&self, pa: u64, len: u64, hkid: u16);

    /// The module has given these lines back as ordinary memory that can be read without harm.
    ///
    /// Only TDH.SYS.DISABLE does so; after every other leaf it is the host that must write the
    /// lines with KeyID 0. `pa` and `len` are multiples of 64.
    fn released(&self, pa: u64, len: u64);

    /// The caches of the package of `lp` hold no dirty lines of these KeyIDs any more.
    ///
    /// Called at the end of TDH.PHYMEM.CACHE.WB.
    fn caches_written_back(&self, _lp: usize, _hkids: &[u16]) {}

    /// No cache holds lines of one 4 KB page with KeyID `hkid` (TDH.PHYMEM.PAGE.WBINVD).
    fn page_written_back(&self, _pa: u64, _hkid: u16) {}
}
