// SPDX-License-Identifier: GPL-2.0

//! The module's own locks, as data.
//!
//! Nothing ever waits inside the TDX module: a leaf that finds a lock taken returns a BUSY status.
//! [`LockTable`] remembers who holds what ([`LockId`], [`Mode`]); it is part of the state that one
//! short-held mutex protects. `call.rs` wraps it into guards.

use std::collections::HashMap;

/// A lock of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LockId {
    /// The global system lock that the TDH.SYS leaves take.
    Global,
    /// The key ownership table.
    Kot,
    /// The write-back state of one package.
    WriteBack(usize),
    /// One TDMR, by index.
    Tdmr(usize),
    /// One PAMT entry: level (0 = 4 KB, 1 = 2 MB, 2 = 1 GB) and page number in units of that size.
    Pamt(u8, u64),
    /// The operation state of the TD with this TDR.
    OpState(u64),
    /// The S-EPT of the TD with this TDR.
    SeptTree(u64),
    /// One S-EPT entry: TDR, level and first guest address.
    SeptEntry(u64, u8, u64),
    /// The TLB epoch of the TD with this TDR.
    TdEpoch(u64),
}

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Shared,
    Exclusive,
}

#[derive(Debug)]
enum Hold {
    Shared(usize),
    Exclusive,
}

/// All locks that are held now.
#[derive(Debug, Default)]
pub(crate) struct LockTable {
    held: HashMap<LockId, Hold>,
}

impl LockTable {
    /// Takes a lock if nobody holds it in a way that forbids so.
    pub(crate) fn try_acquire(&mut self, id: LockId, mode: Mode) -> bool {
        match (self.held.get_mut(&id), mode) {
            (None, Mode::Exclusive) => {
                self.held.insert(id, Hold::Exclusive);
            }
            (None, Mode::Shared) => {
                self.held.insert(id, Hold::Shared(1));
            }
            (Some(Hold::Shared(count)), Mode::Shared) => *count += 1,
            (Some(_), _) => return false,
        }
        true
    }

    /// Gives back one hold of a lock.
    pub(crate) fn release(&mut self, id: LockId) {
        if let Some(Hold::Shared(count)) = self.held.get_mut(&id)
            && *count > 1
        {
            *count -= 1;
        } else {
            self.held.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_holders_keep_an_exclusive_one_out_until_the_last_leaves() {
        let mut locks = LockTable::default();
        assert!(locks.try_acquire(LockId::Kot, Mode::Shared));
        assert!(locks.try_acquire(LockId::Kot, Mode::Shared));
        locks.release(LockId::Kot);
        assert!(!locks.try_acquire(LockId::Kot, Mode::Exclusive));
        locks.release(LockId::Kot);
        assert!(locks.try_acquire(LockId::Kot, Mode::Exclusive));
    }

    #[test]
    fn an_exclusive_holder_keeps_everybody_out_of_that_lock_only() {
        let mut locks = LockTable::default();
        assert!(locks.try_acquire(LockId::Tdmr(0), Mode::Exclusive));
        assert!(!locks.try_acquire(LockId::Tdmr(0), Mode::Exclusive));
        assert!(!locks.try_acquire(LockId::Tdmr(0), Mode::Shared));
        assert!(locks.try_acquire(LockId::Tdmr(1), Mode::Exclusive));
    }
}
