// SPDX-License-Identifier: GPL-2.0

//! Where private memory can be: what the memory reset has to look at when nobody tells it.
//!
//! Every page that the TDX module takes passes through [`note`] first, which remembers its region
//! of 2 MB, and as the page that this CPU handed over last. Regions are never forgotten: they say
//! where pages *can* be, and the module is asked about each. A page that a TD gave back keeps its
//! private lines until its owner has converted it, while the module calls it free: such a page is
//! a stray ([`add_stray`]) until then.
//!
//! Only machines with the partial-write erratum keep books: elsewhere they stay closed, and nothing
//! is noted but the page handed over last. No lock and no allocation but in [`open`]; any context, NMI included.
//!
//! Neighbours: [`crate::td`] and [`crate::tdh`] write here, [`crate::kexec`] reads.

use core::ptr;
use kernel::alloc::flags::GFP_KERNEL;
use kernel::bindings;
use kernel::bitmap::BitmapVec;
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Full,
    Relaxed,
    Release, //
};
use kernel::sync::SetOnce;

use crate::guards::PreemptDisabled;
use crate::range::{
    PageSize,
    Pfn,
    PhysAddr,
    PhysRange, //
};

/// Size of a region.
const REGION: PageSize = PageSize::Size2M;

/// How many strays can be remembered.
///
/// A page is a stray for some hundred instructions, so there are about as many as CPUs that take
/// down TDs at the same time, and those that their owner could not flush and gave up. A power of
/// two.
const STRAYS_MAX: usize = 512;

/// Regions of memory, each noted or not.
struct Regions {
    /// The words of `bitmap`, and how many bits it has: both are found faster here.
    words: *const usize,
    len: usize,
    bitmap: BitmapVec,
}

// SAFETY: `words` points into `bitmap`, which is `Sync`, and is read as that may be.
unsafe impl Sync for Regions {}
// SAFETY: As above.
unsafe impl Send for Regions {}

impl Regions {
    /// All regions up to `end`, none of them noted. Sleeps.
    fn new(end: PhysAddr) -> Result<Self> {
        // At least as many as do not fit into the `BitmapVec` itself, which may move.
        let len = (end.get().div_ceil(REGION.bytes()) as usize).max(2 * usize::BITS as usize);
        let bitmap = BitmapVec::new(len, GFP_KERNEL)?;
        let words = bitmap.as_ptr();
        Ok(Self { words, len, bitmap })
    }

    /// Notes the region of `addr`, unless there is none.
    #[inline(always)]
    fn note(&self, addr: PhysAddr) {
        let index = REGION.pages_in(addr.get()) as usize;
        if index < self.len && !self.is_noted(index) {
            self.set(index);
        }
    }

    #[cold]
    fn set(&self, index: usize) {
        self.bitmap.set_bit_atomic(index);
    }

    /// Whether region `index`, which must be below the length, was noted.
    #[inline(always)]
    fn is_noted(&self, index: usize) -> bool {
        const BITS: usize = usize::BITS as usize;
        // SAFETY: The bitmap has as many words as its length needs. Other CPUs set bits meanwhile,
        // atomically: this load is one instruction and sees the bit as it was or is.
        let word = unsafe { self.words.add(index / BITS).read_volatile() };
        word >> (index % BITS) & 1 != 0
    }

    /// The memory of region `index`, if there is such a region and it was noted.
    fn noted(&self, index: usize) -> Option<PhysRange> {
        if index >= self.len || !self.is_noted(index) {
            return None;
        }
        let start = PhysAddr::new((index as u64).checked_mul(REGION.bytes())?)?;
        PhysRange::from_size(start, REGION.bytes())
    }
}

/// Pages of 4 KB, 2 MB or 1 GB, as many as fit. No lock.
///
/// Each page has a slot of its own, where nearly every one is: then adding and removing it takes a
/// look at that. One whose slot is taken by another page is displaced: it lies in some other slot.
struct Strays {
    /// Address of a page, and the index of its size in the bits below; 0 is a free slot.
    slots: [Atomic<u64>; STRAYS_MAX],
    /// How many pages may be displaced.
    displaced: Atomic<u32>,
    /// Whether one did not fit.
    lost: Atomic<u32>,
}

impl Strays {
    const fn new() -> Self {
        Self {
            slots: [const { Atomic::new(0) }; STRAYS_MAX],
            displaced: Atomic::new(0),
            lost: Atomic::new(0),
        }
    }

    /// What a slot holds for the page of `size` at `start`.
    #[inline(always)]
    fn pack(start: PhysAddr, size: PageSize) -> u64 {
        start.get() | size as u64
    }

    fn unpack(word: u64) -> Option<PhysRange> {
        let size = PageSize::ALL.get((word & PageSize::Size4K.mask()) as usize)?;
        let start = PhysAddr::new(word & !PageSize::Size4K.mask())?;
        PhysRange::from_size(start, size.bytes()).filter(|_| word != 0)
    }

    /// The slot of a page at `start`.
    #[inline(always)]
    fn home(&self, start: PhysAddr) -> &Atomic<u64> {
        &self.slots[start.frame().get() as usize % STRAYS_MAX]
    }

    #[inline(always)]
    fn add(&self, start: PhysAddr, size: PageSize) {
        let word = Self::pack(start, size);
        if self.home(start).cmpxchg(0, word, Relaxed).is_err() {
            self.add_displaced(word);
        }
    }

    #[cold]
    fn add_displaced(&self, word: u64) {
        // Counted first, so that there is never one that is not counted.
        self.displaced.fetch_add(1u32, Full);
        let take = |slot: &Atomic<u64>| slot.cmpxchg(0, word, Full).is_ok();
        if !self.slots.iter().any(take) {
            self.displaced.fetch_sub(1u32, Relaxed);
            self.lost.store(1, Relaxed);
        }
    }

    /// Forgets the pages that lie in `memory`.
    fn remove(&self, memory: PhysRange) {
        let home = self.home(memory.start());
        let word = home.load(Relaxed);
        if Self::unpack(word) == Some(memory) {
            // If the exchange fails, somebody else has removed it.
            let _ = home.cmpxchg(word, 0, Relaxed);
        } else if memory.size() > PageSize::Size4K.bytes() || self.displaced.load(Relaxed) != 0 {
            self.remove_all(memory);
        }
    }

    #[cold]
    fn remove_all(&self, memory: PhysRange) {
        for slot in &self.slots {
            let word = slot.load(Relaxed);
            let Some(page) = Self::unpack(word).filter(|&page| memory.contains(page)) else {
                continue;
            };
            let removed = slot.cmpxchg(word, 0, Full).is_ok();
            if removed && !ptr::eq(slot, self.home(page.start())) {
                self.displaced.fetch_sub(1u32, Relaxed);
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = PhysRange> + '_ {
        let page = |slot: &Atomic<u64>| Self::unpack(slot.load(Relaxed));
        self.slots.iter().filter_map(page)
    }
}

/// The regions up to the end of TDX memory. Set once, by [`open`].
static REGIONS: SetOnce<Regions> = SetOnce::new();

/// Address of what [`REGIONS`] holds, 0 until then: for [`note`].
static OPEN: Atomic<usize> = Atomic::new(0);

static STRAYS: Strays = Strays::new();

/// How many TDs have a root page: made by TDH.MNG.CREATE and not reclaimed yet.
static TDS: Atomic<u32> = Atomic::new(0);

/// Begins to keep books of memory up to `end`. Task context, sleeps; once, before the first TD.
///
/// # Errors
///
/// `ENOMEM`.
pub(crate) fn open(end: PhysAddr) -> Result {
    REGIONS.populate(Regions::new(end)?);
    let regions = REGIONS
        .as_ref()
        .map_or(0, |regions| ptr::from_ref(regions) as usize);
    OPEN.store(regions, Release);
    Ok(())
}

/// Notes that the module is about to get `frame`, or a block of frames in the same region.
///
/// That this CPU handed the page over is noted by who flushes it: see `tdx_glue_hand_over()`.
#[inline(always)]
pub(crate) fn note(frame: Pfn) {
    // KVM does this for every page of a TD, and nearly always the region is known.
    if let Some(regions) = open_regions() {
        regions.note(frame.start());
    }
}

/// What [`REGIONS`] holds. This is on the way of every page.
#[inline(always)]
fn open_regions() -> Option<&'static Regions> {
    // SAFETY: The variable is valid, and only accessed atomically. What `load(Relaxed)` does, but
    // that is a function in C. It points to nothing or to regions that live for ever.
    unsafe { (OPEN.as_ptr().read_volatile() as *const Regions).as_ref() }
}

/// How many regions there are, noted or not; 0 while the books are closed.
pub(crate) fn regions() -> usize {
    REGIONS.as_ref().map_or(0, |regions| regions.len)
}

/// The memory of region `index`, if it was noted.
pub(crate) fn noted(index: usize) -> Option<PhysRange> {
    REGIONS.as_ref()?.noted(index)
}

/// The page that `cpu` (a possible one) handed to the module last, if any.
pub(crate) fn handed_last(cpu: u32) -> Option<PhysAddr> {
    // SAFETY: The CPU is possible.
    let frame = unsafe { bindings::tdx_glue_handed_last(cpu) };
    Some(Pfn::new(frame).filter(|_| frame != 0)?.start())
}

/// Whether books are kept.
#[inline(always)]
fn are_open() -> bool {
    open_regions().is_some()
}

/// Notes that the module has given up the page of `size` at `start`, whose lines are private still.
#[inline(always)]
pub(crate) fn add_stray(start: PhysAddr, size: PageSize) {
    if are_open() {
        STRAYS.add(start, size);
    }
}

/// Notes that `memory` was converted: no page in it is a stray any more.
pub(crate) fn remove_strays(memory: PhysRange) {
    if are_open() {
        STRAYS.remove(memory);
    }
}

/// All strays.
pub(crate) fn strays() -> impl Iterator<Item = PhysRange> {
    STRAYS.iter()
}

/// Whether there were more strays than [`strays`] knows.
pub(crate) fn lost_strays() -> bool {
    STRAYS.lost.load(Relaxed) != 0
}

/// How many CPUs are about to learn from the module which page it gave back.
static LEAVING: Atomic<u32> = Atomic::new(0);

/// A page is leaving a TD, and nobody here knows which: the module says so when it has left.
///
/// Exists from before the call that takes the page until the page is a stray. A crash meanwhile
/// finds the page neither with the module nor among the strays: only the user of the TD can name it.
/// Kexec does not come between, as preemption is off.
pub(crate) struct PageLeaving(PreemptDisabled);

impl PageLeaving {
    #[inline(always)]
    pub(crate) fn begin() -> Self {
        let preempt = PreemptDisabled::new();
        LEAVING.fetch_add(1u32, Relaxed);
        Self(preempt)
    }
}

impl Drop for PageLeaving {
    #[inline(always)]
    fn drop(&mut self) {
        LEAVING.fetch_sub(1u32, Relaxed);
    }
}

/// How many pages were leaving TDs when everything else was stopped.
pub(crate) fn pages_leaving() -> u32 {
    LEAVING.load(Relaxed)
}

/// Counts a TD that TDH.MNG.CREATE made.
pub(crate) fn td_created() {
    TDS.fetch_add(1u32, Relaxed);
}

/// Counts a TD whose root page was reclaimed.
pub(crate) fn td_reclaimed() {
    TDS.fetch_sub(1u32, Relaxed);
}

/// How many TDs there are.
pub(crate) fn tds() -> u32 {
    TDS.load(Relaxed)
}

#[cfg(CONFIG_INTEL_TDX_HOST_KUNIT_TEST)]
#[kernel::macros::kunit_tests(tdx_host_books)]
mod tests {
    use super::*;

    fn page(number: u64, size: PageSize) -> Result<PhysRange> {
        let start = PhysAddr::new(number * size.bytes()).ok_or(EINVAL)?;
        PhysRange::from_size(start, size.bytes()).ok_or(EINVAL)
    }

    #[test]
    fn stray_is_one_until_converted() -> Result {
        let strays = KBox::new(Strays::new(), GFP_KERNEL)?;
        let is_stray = |page| strays.iter().any(|stray| stray == page);
        // Two that want the same slot, and a larger one.
        let small = page(1, PageSize::Size4K)?;
        let other = page(1 + STRAYS_MAX as u64, PageSize::Size4K)?;
        let large = page(3, PageSize::Size2M)?;
        for (stray, size) in [
            (small, PageSize::Size4K),
            (other, PageSize::Size4K),
            (large, PageSize::Size2M),
        ] {
            assert!(!is_stray(stray));
            strays.add(stray.start(), size);
            assert!(is_stray(stray));
        }
        // The other one took the first free slot, which is that of the large one.
        assert_eq!(strays.displaced.load(Relaxed), 2);
        strays.remove(small);
        assert!(!is_stray(small) && is_stray(other) && is_stray(large));
        // A part is not enough, the whole and more is.
        let half = PhysRange::from_size(large.start(), large.size() / 2).ok_or(EINVAL)?;
        strays.remove(half);
        assert!(is_stray(large));
        let more = PhysRange::from_size(large.start(), 2 * large.size()).ok_or(EINVAL)?;
        strays.remove(more);
        assert!(!is_stray(large) && is_stray(other));
        strays.remove(other);
        assert!(!is_stray(other));
        assert_eq!(strays.displaced.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn stray_that_does_not_fit_is_told() -> Result {
        let strays = KBox::new(Strays::new(), GFP_KERNEL)?;
        for number in 1..=STRAYS_MAX as u64 {
            strays.add(page(number, PageSize::Size4K)?.start(), PageSize::Size4K);
        }
        assert_eq!(strays.iter().count(), STRAYS_MAX);
        assert_eq!(strays.lost.load(Relaxed), 0);
        strays.add(page(0x1000, PageSize::Size4K)?.start(), PageSize::Size4K);
        assert_eq!(strays.lost.load(Relaxed), 1);
        assert_eq!(strays.displaced.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn region_is_noted_and_stays() -> Result {
        let end = PhysAddr::new(200 * REGION.bytes() + 1).ok_or(EINVAL)?;
        let regions = Regions::new(end)?;
        let region = |index| page(index, REGION);
        assert!((0..300).all(|index| regions.noted(index).is_none()));
        for index in [0, 63, 64, 200] {
            let last = region(index)?.end().get() - 1;
            regions.note(PhysAddr::new(last).ok_or(EINVAL)?);
            assert_eq!(regions.noted(index as usize), Some(region(index)?));
        }
        // Beyond the end nothing is noted, nor written.
        regions.note(region(201)?.start());
        assert_eq!((0..300).filter_map(|i| regions.noted(i)).count(), 4);
        Ok(())
    }
}
