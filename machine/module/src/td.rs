// SPDX-License-Identifier: GPL-2.0

//! A trust domain as the module keeps it in TDR and TDCS: [`Td`], its stages ([`Lifecycle`],
//! [`OpState`]) and its TLB epochs.
//!
//! What the owner chose for it is in `td_params.rs`, its address space in `sept.rs`, its vCPUs in
//! `vcpu.rs`.

use crate::sept::Sept;
use crate::td_params::TdParams;

/// Pages of TDCS without L2 virtual machines.
pub(crate) const TDCS_PAGES: usize = 6;
/// Most pages of TDCS.
pub(crate) const MAX_TDCS_PAGES: usize = 9;

/// The page of TDCS that is the root of the S-EPT.
const SEPT_ROOT: usize = 3;

/// How far a TD's key is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Lifecycle {
    /// It has a KeyID, but no key on some package.
    #[default]
    HkidAssigned = 0,
    /// It can be built and run.
    KeysConfigured = 1,
    /// It will not run any more; its KeyID is being flushed from the caches.
    Blocked = 2,
    /// It has no KeyID any more; its pages can be taken back.
    Teardown = 3,
}

/// How far a TD is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OpState {
    /// TDH.MNG.INIT has not succeeded.
    #[default]
    Uninitialized = 0,
    /// Its memory can be filled and measured.
    Initialized = 1,
    /// It can run.
    Runnable = 2,
}

/// One TD.
#[derive(Clone, Debug, Default)]
pub(crate) struct Td {
    /// An error made it unusable for ever.
    pub(crate) fatal: bool,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) hkid: u16,
    /// Packages on which its key is configured, one bit each.
    pub(crate) packages_configured: u32,
    /// Pages of TDCS in order of addition.
    pub(crate) tdcx: Vec<u64>,
    /// Pages of 4 KB that belong to it, besides the TDR.
    pub(crate) children: u64,
    pub(crate) op_state: OpState,
    /// vCPUs that VP.INIT gave an index.
    pub(crate) vcpus: u32,
    /// vCPUs that are associated with a logical processor.
    pub(crate) associated_vcpus: u32,
    /// x2APIC ids that VP.INIT version 1 gave out.
    pub(crate) x2apic_ids: Vec<u32>,
    pub(crate) params: TdParams,
    /// Ratio of the TD's TSC to the native one, 16.48 fixed point.
    pub(crate) tsc_multiplier: u64,
    pub(crate) epochs: Epochs,
    pub(crate) sept: Sept,
    pub(crate) measurement: crate::measure::Measurement,
}

/// TLB tracking of a TD.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Epochs {
    /// The present epoch.
    pub(crate) current: u64,
    /// vCPUs in the guest that entered in an even and in an odd epoch.
    pub(crate) running: [u32; 2],
}

impl Default for Epochs {
    fn default() -> Self {
        Self {
            current: 1,
            running: [0; 2],
        }
    }
}

/// vCPUs that entered before the last TDH.MEM.TRACK are still in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PreviousEpochBusy;

impl Epochs {
    fn running_at(&mut self, epoch: u64) -> &mut u32 {
        &mut self.running[(epoch & 1) as usize]
    }

    /// Starts a new epoch.
    pub(crate) fn advance(&mut self) -> Result<(), PreviousEpochBusy> {
        if *self.running_at(self.current.wrapping_sub(1)) != 0 {
            return Err(PreviousEpochBusy);
        }
        self.current += 1;
        Ok(())
    }

    /// Counts a vCPU that enters the guest; returns its epoch.
    pub(crate) fn enter(&mut self) -> u64 {
        *self.running_at(self.current) += 1;
        self.current
    }

    /// Counts a vCPU out that entered at `epoch`.
    pub(crate) fn leave(&mut self, epoch: u64) {
        let running = self.running_at(epoch);
        *running = running.saturating_sub(1);
    }

    /// Whether no TLB can hold a translation that was blocked at `epoch`.
    pub(crate) fn is_tracked(&self, epoch: u64) -> bool {
        let before = epoch + 1 < self.current;
        let previous = epoch + 1 == self.current;
        before || previous && self.running[(epoch & 1) as usize] == 0
    }
}

impl Td {
    /// Whether it has the pages that any TD needs for TDCS.
    pub(crate) fn has_tdcs(&self) -> bool {
        self.tdcx.len() >= TDCS_PAGES
    }

    /// Whether a debugger may look into it.
    pub(crate) fn is_debug(&self) -> bool {
        self.params.attributes & 1 != 0
    }

    /// The S-EPT pointer: address of the root and what the owner chose for it.
    pub(crate) fn eptp(&self) -> u64 {
        let root = self.tdcx.get(SEPT_ROOT).copied().unwrap_or(0);
        root | self.params.eptp_controls
    }

    /// Whether pages may only be removed after tracking.
    pub(crate) fn needs_tracking(&self) -> bool {
        self.op_state == OpState::Runnable
    }

    /// Pages that a vCPU of this TD needs, the TDVPR included.
    pub(crate) fn vcpu_pages(&self) -> usize {
        TDVPS_PAGES + usize::from(self.params.num_l2_vms) * TDVPS_PAGES_PER_L2
    }
}

/// Pages of a vCPU's control structures without L2 virtual machines.
const TDVPS_PAGES: usize = 6;
/// Further pages of them for each L2 virtual machine.
const TDVPS_PAGES_PER_L2: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_tracked_when_everyone_left_who_could_have_seen_it() {
        let mut epochs = Epochs::default();
        let seen = epochs.enter();
        let blocked = epochs.current;
        assert!(!epochs.is_tracked(blocked), "no new epoch yet");
        assert_eq!(epochs.advance(), Ok(()));
        assert!(!epochs.is_tracked(blocked), "still in the guest");
        assert_eq!(epochs.advance(), Err(PreviousEpochBusy));
        epochs.leave(seen);
        assert!(epochs.is_tracked(blocked));
        assert_eq!(epochs.advance(), Ok(()));
        assert!(epochs.is_tracked(blocked));
    }
}
