// SPDX-License-Identifier: GPL-2.0

//! How a private KeyID passes from nobody to a TD, through the caches, and back.

use crate::state::{KeyOwner, Tables};

impl Tables {
    /// Who owns a KeyID.
    pub(crate) fn key_owner(&self, hkid: u16) -> KeyOwner {
        self.kot.get(&hkid).copied().unwrap_or_default()
    }

    /// Gives a free KeyID to a TD.
    pub(crate) fn assign_key(&mut self, hkid: u16) {
        self.kot.insert(hkid, KeyOwner::Assigned);
    }

    /// Starts to flush the KeyID of a TD that will not run any more: every package holds dirty
    /// lines until TDH.PHYMEM.CACHE.WB has run there.
    pub(crate) fn flush_key(&mut self, hkid: u16) {
        let packages = self.packages_configured;
        self.kot.insert(hkid, KeyOwner::Flushed(packages));
    }

    /// Frees a KeyID, unless some package may still hold dirty lines of it.
    pub(crate) fn free_key(&mut self, hkid: u16) -> bool {
        let clean = self.key_owner(hkid) == KeyOwner::Flushed(0);
        if clean {
            self.kot.remove(&hkid);
        }
        clean
    }
}
