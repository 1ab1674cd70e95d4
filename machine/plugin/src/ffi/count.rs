// SPDX-License-Identifier: GPL-2.0

//! Counting the instructions of kernel functions: what QEMU has to do for it.
//!
//! Every kernel instruction gets an addition that QEMU compiles into its code, the first instruction
//! of a counted function and every RET a callback. What the numbers mean is for
//! [`Counts`](tdx_platform::counts::Counts) to say. Nothing of it is there unless functions are counted.

use super::{PluginId, Qemu, Shared, VcpuCallback, with_shared};
use crate::cpu::{Cpu, Reg};
use std::ffi::{c_int, c_uint, c_void};

/// A number in each vCPU's part of a scoreboard.
#[repr(C)]
#[derive(Clone, Copy)]
struct Number {
    scoreboard: *mut c_void,
    offset: usize,
}

type DiscontinuityCallback = unsafe extern "C" fn(c_uint, c_int, u64, u64, *mut c_void);

/// Callback reads registers.
const CB_R_REGS: c_int = 1;
/// Adds a constant.
const ADD: c_int = 0;
/// Callback if the number is not equal to a constant.
const NOT_EQUAL: c_int = 3;
/// Interrupts and exceptions.
const TRAPS: c_int = 3;

// As in the parent module.
unsafe extern "C" {
    fn qemu_plugin_scoreboard_new(size: usize) -> *mut c_void;
    fn qemu_plugin_u64_get(number: Number, vcpu: c_uint) -> u64;
    fn qemu_plugin_u64_sum(number: Number) -> u64;
    fn qemu_plugin_u64_set(number: Number, vcpu: c_uint, value: u64);
    fn qemu_plugin_u64_add(number: Number, vcpu: c_uint, value: u64);
    fn qemu_plugin_register_vcpu_insn_exec_cb(
        insn: *mut c_void,
        cb: VcpuCallback,
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(
        insn: *mut c_void,
        operation: c_int,
        number: Number,
        operand: u64,
    );
    fn qemu_plugin_register_vcpu_insn_exec_cond_cb(
        insn: *mut c_void,
        cb: VcpuCallback,
        flags: c_int,
        condition: c_int,
        number: Number,
        operand: u64,
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_discon_cb(
        id: PluginId,
        kinds: c_int,
        cb: DiscontinuityCallback,
        data: *mut c_void,
    );
}

/// Two numbers of each vCPU: kernel instructions executed, and calls of counted functions open.
pub(super) struct Scoreboard(usize);

impl Scoreboard {
    /// Makes one. Inside `qemu_plugin_install` or later.
    pub(super) fn new() -> Scoreboard {
        // SAFETY: Has no requirements; the scoreboard lives until QEMU ends.
        Scoreboard(unsafe { qemu_plugin_scoreboard_new(2 * size_of::<u64>()) } as usize)
    }

    fn number(&self, index: usize) -> Number {
        Number {
            scoreboard: self.0 as *mut c_void,
            offset: index * size_of::<u64>(),
        }
    }

    fn executed(&self) -> Number {
        self.number(0)
    }

    fn open(&self) -> Number {
        self.number(1)
    }

    /// Kernel instructions that all vCPUs together have executed.
    pub(super) fn total(&self) -> u64 {
        // SAFETY: The number is in the scoreboard.
        unsafe { qemu_plugin_u64_sum(self.executed()) }
    }

    /// What vCPU `vcpu` executes next is the plugin's own doing and not counted.
    pub(super) fn skip_one(&self, vcpu: c_uint) {
        // SAFETY: The number is in the scoreboard, and the vCPU exists: this is one of its callbacks.
        unsafe { qemu_plugin_u64_add(self.executed(), vcpu, u64::MAX) };
    }

    /// Vcpu `vcpu` has left its path: the open calls are not counted.
    pub(super) fn interrupt(&self, shared: &Shared, vcpu: c_uint) {
        // SAFETY: As in skip_one().
        unsafe { qemu_plugin_u64_set(self.open(), vcpu, 0) };
        shared.machine.counts().interrupt(vcpu);
    }

    /// Notes how many calls are open.
    fn set_open(&self, vcpu: c_uint, calls: usize) {
        // SAFETY: As in skip_one().
        unsafe { qemu_plugin_u64_set(self.open(), vcpu, calls as u64) };
    }
}

/// Asks QEMU to tell of interrupts and exceptions.
pub(super) fn watch_traps(id: PluginId) {
    // SAFETY: `id` is ours, and the callback has the type that version 7 asks for.
    unsafe { qemu_plugin_register_vcpu_discon_cb(id, TRAPS, on_trap, std::ptr::null_mut()) };
}

/// Registers what one instruction of the kernel needs, before anything else is registered for it.
pub(super) fn translate(shared: &Shared, insn: *mut c_void, va: u64, bytes: &[u8]) {
    let Some(scoreboard) = shared.scoreboard.as_ref().filter(|_| va >> 63 == 1) else {
        return;
    };
    // SAFETY: `insn` is valid during translation, and the numbers are in the scoreboard. The data of
    // the first callback is only ever used as a number.
    unsafe {
        qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(insn, ADD, scoreboard.executed(), 1);
        if let Some(function) = shared.machine.counts().find(va) {
            let data = function as *mut c_void;
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_enter, CB_R_REGS, data);
        }
        if is_return(bytes) {
            let (open, none) = (scoreboard.open(), std::ptr::null_mut());
            qemu_plugin_register_vcpu_insn_exec_cond_cb(
                insn, on_return, CB_R_REGS, NOT_EQUAL, open, 0, none,
            );
        }
    }
}

/// Near RET, perhaps with a prefix that means nothing.
fn is_return(bytes: &[u8]) -> bool {
    matches!(bytes, [0xc3 | 0xc2, ..] | [0xf2 | 0xf3, 0xc3, ..])
}

/// Runs `f` with the scoreboard, and for this vCPU its stack pointer and what it has executed, the
/// current instruction included. Answers how many calls are open afterwards.
fn with_counts(vcpu: c_uint, f: impl FnOnce(&Shared, u64, u64) -> usize) {
    with_shared(|shared| {
        if let (Some(scoreboard), Some(handles)) = (&shared.scoreboard, shared.handles.get()) {
            let rsp = Qemu { handles }.reg(Reg::Rsp);
            // SAFETY: As in Scoreboard::skip_one().
            let executed = unsafe { qemu_plugin_u64_get(scoreboard.executed(), vcpu) };
            scoreboard.set_open(vcpu, f(shared, rsp, executed));
        }
    });
}

unsafe extern "C" fn on_enter(vcpu: c_uint, data: *mut c_void) {
    with_counts(vcpu, |shared, rsp, executed| {
        let before = executed.wrapping_sub(1);
        let mut counts = shared.machine.counts();
        counts.enter(vcpu, data as usize, rsp, before)
    });
}

unsafe extern "C" fn on_return(vcpu: c_uint, _data: *mut c_void) {
    with_counts(vcpu, |shared, rsp, executed| {
        shared.machine.counts().leave(vcpu, rsp, executed)
    });
}

unsafe extern "C" fn on_trap(vcpu: c_uint, _kind: c_int, _from: u64, _to: u64, _data: *mut c_void) {
    with_shared(|shared| {
        if let Some(scoreboard) = &shared.scoreboard {
            scoreboard.interrupt(shared, vcpu);
        }
    });
}
