// SPDX-License-Identifier: GPL-2.0

//! Kernel locks and contexts as values: while one of these lives, the promise in its name holds.
//!
//! Functions that need such a promise take a reference to it, and nobody can call them without.
//! Lock order, outermost first: the CPU hotplug lock ([`CpuHotplugRead`]; also held by the callers
//! of [`crate::cpu`]), the memory hotplug lock ([`MemHotplugRead`]), the KeyID pool, then the
//! spinning locks [`SysInitLock`] and [`SeamldrLock`], which are never held together, and
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

/// Evidence that no CPU comes or goes.
///
/// # Invariants
///
/// The CPU hotplug lock is held for reading while a value exists.
#[must_use]
pub(crate) struct CpuHotplugRead(NotThreadSafe);

impl CpuHotplugRead {
    /// Takes the CPU hotplug lock for reading. May sleep.
    pub(crate) fn new() -> Self {
        // SAFETY: Called from sleepable context; `drop` undoes it.
        unsafe { bindings::tdx_glue_cpus_read_lock() };
        // INVARIANT: The lock was just taken.
        Self(NotThreadSafe)
    }
}

impl Drop for CpuHotplugRead {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the lock is held by this task.
        unsafe { bindings::tdx_glue_cpus_read_unlock() };
    }
}

/// Evidence that no other CPU makes TDH.SYS.INIT.
///
/// The lock spins and may be taken with interrupts off, but not in an interrupt.
///
/// # Invariants
///
/// This CPU holds the lock while a value exists.
#[must_use]
pub(crate) struct SysInitLock(NotThreadSafe);

impl SysInitLock {
    /// Takes the lock.
    pub(crate) fn new() -> Self {
        // SAFETY: Has no requirements; `drop` undoes it.
        unsafe { bindings::tdx_glue_lock_sys_init() };
        // INVARIANT: The lock was just taken.
        Self(NotThreadSafe)
    }
}

impl Drop for SysInitLock {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this CPU holds the lock.
        unsafe { bindings::tdx_glue_unlock_sys_init() };
    }
}

/// Evidence that no other CPU calls the P-SEAMLDR, which would refuse one of the two.
///
/// The lock spins and may be taken with interrupts off, but not in an interrupt.
///
/// # Invariants
///
/// This CPU holds the lock while a value exists.
#[must_use]
pub(crate) struct SeamldrLock(NotThreadSafe);

impl SeamldrLock {
    /// Takes the lock.
    pub(crate) fn new() -> Self {
        // SAFETY: Has no requirements; `drop` undoes it.
        unsafe { bindings::tdx_glue_lock_seamldr() };
        // INVARIANT: The lock was just taken.
        Self(NotThreadSafe)
    }
}

impl Drop for SeamldrLock {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this CPU holds the lock.
        unsafe { bindings::tdx_glue_unlock_seamldr() };
    }
}
