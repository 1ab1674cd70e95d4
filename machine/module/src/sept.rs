// SPDX-License-Identifier: GPL-2.0

//! The secure EPT of a TD as a tree of entries: [`Sept`], [`SeptEntry`], [`EntryState`].
//!
//! An entry is named by its level (0 maps 4 KB, 1 maps 2 MB or points to level 0, and so on) and the
//! guest address it starts at. Entries that are free are not stored.

use std::collections::BTreeMap;

/// State of an entry that is not free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryState {
    /// Points to an S-EPT page.
    Table,
    /// Points to an S-EPT page, but nobody may walk on.
    TableBlocked,
    /// Maps a page of the guest.
    Mapped,
    /// Maps a page that nobody may use now.
    Blocked,
    /// Maps a page that the guest has not accepted.
    Pending,
    /// Maps a page that the guest has not accepted and that nobody may use now.
    PendingBlocked,
}

impl EntryState {
    /// Whether it points to an S-EPT page.
    pub(crate) fn is_table(self) -> bool {
        matches!(self, Self::Table | Self::TableBlocked)
    }

    /// Whether TDH.MEM.RANGE.BLOCK was here.
    pub(crate) fn is_blocked(self) -> bool {
        matches!(
            self,
            Self::TableBlocked | Self::Blocked | Self::PendingBlocked
        )
    }

    /// Whether the guest's walk passes or ends well here.
    pub(crate) fn is_present(self) -> bool {
        matches!(self, Self::Table | Self::Mapped)
    }

    /// The state after TDH.MEM.RANGE.BLOCK, if it may be blocked.
    pub(crate) fn blocked(self) -> Option<Self> {
        match self {
            Self::Table => Some(Self::TableBlocked),
            Self::Mapped => Some(Self::Blocked),
            Self::Pending => Some(Self::PendingBlocked),
            Self::TableBlocked | Self::Blocked | Self::PendingBlocked => None,
        }
    }

    /// The state after TDH.MEM.RANGE.UNBLOCK, if it is blocked.
    pub(crate) fn unblocked(self) -> Option<Self> {
        match self {
            Self::TableBlocked => Some(Self::Table),
            Self::Blocked => Some(Self::Mapped),
            Self::PendingBlocked => Some(Self::Pending),
            Self::Table | Self::Mapped | Self::Pending => None,
        }
    }

    /// The number that leaves report for it.
    fn public(self) -> u64 {
        match self {
            Self::Blocked => 1,
            Self::Pending => 2,
            Self::PendingBlocked => 3,
            Self::Mapped => 4,
            Self::TableBlocked => 129,
            Self::Table => 132,
        }
    }
}

/// An entry that is not free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SeptEntry {
    pub(crate) state: EntryState,
    /// The page it points to (host physical address without KeyID).
    pub(crate) hpa: u64,
}

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SeptIndex {
    pub(crate) level: u8,
    /// First guest physical address that it covers.
    pub(crate) gpa: u64,
}

/// Bits of an entry as leaves report them.
mod bits {
    pub(super) const RWX: u64 = 7;
    pub(super) const WRITE_BACK: u64 = 6 << 3;
    pub(super) const IGNORE_PAT: u64 = 1 << 6;
    pub(super) const LEAF: u64 = 1 << 7;
    pub(super) const SUPPRESS_VE: u64 = 1 << 63;
}

impl SeptIndex {
    /// The entry of `level` that covers `gpa`.
    pub(crate) fn new(level: u8, gpa: u64) -> Self {
        Self {
            level,
            gpa: gpa & !(level_size(level) - 1),
        }
    }

    /// Level and state for RDX, as leaves report them with an error.
    pub(crate) fn report(self, entry: Option<SeptEntry>) -> u64 {
        u64::from(self.level) | entry.map_or(0, |entry| entry.state.public()) << 8
    }
}

/// Bytes that an entry of a level covers.
pub(crate) fn level_size(level: u8) -> u64 {
    1 << (12 + 9 * u32::from(level))
}

/// The content of an entry for RCX, as leaves report it with an error; `None` is a free one.
pub(crate) fn report_content(entry: Option<SeptEntry>) -> u64 {
    let Some(entry) = entry else {
        return bits::SUPPRESS_VE;
    };
    let rwx = if entry.state.is_present() {
        bits::RWX
    } else {
        0
    };
    if entry.state.is_table() {
        return rwx;
    }
    rwx | bits::WRITE_BACK | bits::IGNORE_PAT | bits::LEAF | entry.hpa | bits::SUPPRESS_VE
}

/// Where a walk ended: the entry wanted, or the one that stopped the walk on the way to it.
pub(crate) type Walk = Result<SeptIndex, SeptIndex>;

/// The tree of one TD.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sept {
    entries: BTreeMap<SeptIndex, SeptEntry>,
}

impl Sept {
    /// An entry; `None` if it is free.
    pub(crate) fn get(&self, index: SeptIndex) -> Option<SeptEntry> {
        self.entries.get(&index).copied()
    }

    /// Replaces an entry; `None` frees it.
    pub(crate) fn set(&mut self, index: SeptIndex, entry: Option<SeptEntry>) {
        match entry {
            Some(entry) => self.entries.insert(index, entry),
            None => self.entries.remove(&index),
        };
    }

    /// Walks from the root (whose entries have level `top`) to the entry of `level` for `gpa`.
    pub(crate) fn walk(&self, top: u8, level: u8, gpa: u64) -> Walk {
        for above in (level + 1..=top).rev() {
            let index = SeptIndex::new(above, gpa);
            let state = self.get(index).map(|entry| entry.state);
            if state != Some(EntryState::Table) {
                return Err(index);
            }
        }
        Ok(SeptIndex::new(level, gpa))
    }

    /// The entry where the guest's own walk for `gpa` ends.
    pub(crate) fn translate(&self, top: u8, gpa: u64) -> SeptIndex {
        self.walk(top, 0, gpa).unwrap_or_else(|stopped| stopped)
    }

    /// Whether all entries of the S-EPT page that `index` points to are free.
    pub(crate) fn is_empty_below(&self, index: SeptIndex) -> bool {
        let Some(level) = index.level.checked_sub(1) else {
            return true;
        };
        let first = SeptIndex::new(level, index.gpa);
        let end = SeptIndex::new(level, index.gpa + level_size(index.level));
        self.entries.range(first..end).next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(state: EntryState) -> Option<SeptEntry> {
        Some(SeptEntry { state, hpa: 0x5000 })
    }

    #[test]
    fn a_walk_stops_at_the_first_entry_that_is_no_table() {
        let mut sept = Sept::default();
        assert_eq!(sept.walk(3, 1, 0x4000_0000), Err(SeptIndex::new(3, 0)));
        sept.set(SeptIndex::new(3, 0), entry(EntryState::Table));
        let second = SeptIndex::new(2, 0x4000_0000);
        assert_eq!(sept.walk(3, 1, 0x4000_0000), Err(second));
        sept.set(second, entry(EntryState::TableBlocked));
        assert_eq!(sept.walk(3, 1, 0x4000_0000), Err(second));
        sept.set(second, entry(EntryState::Table));
        assert_eq!(
            sept.walk(3, 1, 0x4020_1000),
            Ok(SeptIndex::new(1, 0x4020_0000))
        );
    }

    #[test]
    fn a_table_is_empty_until_an_entry_below_it_is_used() {
        let mut sept = Sept::default();
        let table = SeptIndex::new(2, 0x4000_0000);
        sept.set(table, entry(EntryState::Table));
        sept.set(SeptIndex::new(1, 0x8000_0000), entry(EntryState::Mapped));
        assert!(sept.is_empty_below(table));
        let last = SeptIndex::new(1, 0x7fe0_0000);
        sept.set(last, entry(EntryState::Mapped));
        assert!(!sept.is_empty_below(table));
        sept.set(last, None);
        assert!(sept.is_empty_below(table));
    }

    #[test]
    fn reports_show_a_leaf_whole_and_of_a_table_only_the_rights() {
        let leaf = entry(EntryState::Mapped);
        assert_eq!(report_content(leaf), 1 << 63 | 0x50f7);
        assert_eq!(report_content(entry(EntryState::Table)), 7);
        assert_eq!(report_content(None), 1 << 63);
        let index = SeptIndex::new(1, 0);
        assert_eq!(index.report(leaf), 0x401);
        assert_eq!(index.report(None), 1);
    }
}
