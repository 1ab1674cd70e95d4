// SPDX-License-Identifier: GPL-2.0

//! One logical processor: VMX state and what its cache may hold.
//!
//! The cache rule of the machine: a SEAMCALL that reaches the TDX module may leave private lines
//! dirty in the caches of that processor, and only WBINVD there gets them out (precise write-backs
//! of a page or a key are the module's own leaves). [`Lp::may_hold`] is that rule.

use serde::Serialize;

/// State of one logical processor.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Lp {
    /// CR4.VMXE as the guest set it. QEMU's own CR4 never has the bit.
    pub vmxe: bool,
    /// In VMX root operation.
    pub vmxon: bool,
    /// It has read poisoned data, and its handler of machine checks has not begun.
    #[serde(skip)]
    pub machine_check_due: bool,
    /// SEAMCALLs that reached the TDX module.
    pub seamcalls: u64,
    /// WBINVDs at CPL 0.
    pub wbinvds: u64,
    /// Time of the first SEAMCALL since the last WBINVD.
    #[serde(skip)]
    dirty_since: Option<u64>,
}

impl Lp {
    /// A SEAMCALL goes into the module at time `now`.
    pub fn enter_seam(&mut self, now: u64) {
        self.seamcalls += 1;
        self.dirty_since.get_or_insert(now);
    }

    /// WBINVD was executed.
    pub fn flush(&mut self) {
        self.wbinvds += 1;
        self.dirty_since = None;
    }

    /// A SEAMCALL was made since the last WBINVD, so some private line may be dirty in the cache.
    pub fn is_dirty(&self) -> bool {
        self.dirty_since.is_some()
    }

    /// A line last written with a private key at time `written` may still be dirty in this
    /// processor's cache: it was in the module at or before that time and has not flushed since.
    pub fn may_hold(&self, written: u64) -> bool {
        self.dirty_since.is_some_and(|since| since <= written)
    }

    /// RESET: everything but the counters starts over.
    pub fn reset(&mut self) {
        *self = Lp {
            seamcalls: self.seamcalls,
            wbinvds: self.wbinvds,
            ..Lp::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wbinvd_after_the_last_seamcall_cleans() {
        let mut lp = Lp::default();
        assert!(!lp.may_hold(10));
        lp.enter_seam(5);
        lp.enter_seam(9);
        assert!(lp.may_hold(9) && lp.is_dirty());
        lp.flush();
        assert!(!lp.may_hold(9) && !lp.is_dirty());
    }

    #[test]
    fn seamcall_after_the_write_cannot_have_made_it() {
        let mut lp = Lp::default();
        lp.enter_seam(5);
        lp.flush();
        lp.enter_seam(20);
        assert!(!lp.may_hold(10));
        assert!(lp.may_hold(20));
    }

    #[test]
    fn reset_keeps_counters_only() {
        let mut lp = Lp {
            vmxe: true,
            vmxon: true,
            ..Lp::default()
        };
        lp.enter_seam(1);
        lp.reset();
        assert_eq!(
            (lp.vmxe, lp.vmxon, lp.is_dirty(), lp.seamcalls),
            (false, false, false, 1)
        );
    }
}
