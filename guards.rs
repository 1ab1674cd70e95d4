// SPDX-License-Identifier: GPL-2.0

//! Kernel locks and contexts as values: while one of these lives, the promise in its name holds.
//!
//! Functions that need such a promise take a reference to it, and nobody can call them without.
//! Lock order, outermost first: the CPU hotplug lock (taken by the callers of [`crate::cpu`]), the
//! memory hotplug lock ([`MemHotplugRead`]), the KeyID pool, the SYS.INIT lock, then
//! [`PreemptDisabled`].

use kernel::bindings;
use kernel::types::NotThreadSafe;

/// Evidence that the current task cannot leave its CPU.
///
/// # Invariants
///
/// Preemption is disabled while a value exists.
#[must_use]
pub(crate) struct PreemptDisabled(NotThreadSafe);

impl PreemptDisabled {
    /// Disables preemption until the value is dropped. Any context.
    #[inline]
    pub(crate) fn new() -> Self {
        // SAFETY: Has no requirements; `drop` undoes it.
        unsafe { bindings::tdx_glue_preempt_disable() };
        // INVARIANT: Preemption was just disabled.
        Self(NotThreadSafe)
    }
}

impl Drop for PreemptDisabled {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant preemption was disabled by `new`.
        unsafe { bindings::tdx_glue_preempt_enable() };
    }
}

/// Evidence that memory is neither plugged nor unplugged.
///
/// # Invariants
///
/// The memory hotplug lock is held for reading while a value exists.
#[must_use]
pub(crate) struct MemHotplugRead(NotThreadSafe);

impl MemHotplugRead {
    /// Takes the memory hotplug lock for reading. May sleep.
    pub(crate) fn new() -> Self {
        // SAFETY: Called from sleepable context; `drop` undoes it.
        unsafe { bindings::tdx_glue_get_online_mems() };
        // INVARIANT: The lock was just taken.
        Self(NotThreadSafe)
    }
}

impl Drop for MemHotplugRead {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the lock is held by this task.
        unsafe { bindings::tdx_glue_put_online_mems() };
    }
}
