// SPDX-License-Identifier: GPL-2.0

//! The callbacks that execute instructions.
//!
//! A callback that moves the program counter never returns from `qemu_plugin_set_pc` (QEMU jumps out of
//! it), so each does all its work, and drops all it owns, in a function called before.

use super::{Qemu, QemuMemory, Shared, lock, with_shared};
use crate::emulate::{self, Insn, Next, Step};
use crate::trap::{self, Exit};
use std::ffi::{c_uint, c_void};

// As in the parent module.
unsafe extern "C" {
    fn qemu_plugin_set_pc(vaddr: u64) -> !;
}

/// Runs `f` on the vCPU, which is inside a callback that may access registers.
fn with_step<T>(vcpu: c_uint, f: impl FnOnce(&'static Shared, &mut Step) -> T) -> Option<T> {
    with_shared(|shared| {
        let handles = shared.handles.get()?;
        let mut state = lock(shared.vcpus.get(vcpu as usize)?);
        let mut step = Step {
            machine: &shared.machine,
            memory: &QemuMemory,
            cpu: &mut Qemu { handles },
            vcpu: &mut state,
            index: vcpu,
        };
        Some(f(shared, &mut step))
    })
}

pub(super) unsafe extern "C" fn on_insn(vcpu: c_uint, data: *mut c_void) {
    // SAFETY: translate() registered this callback with a leaked `Insn`.
    let insn = unsafe { *data.cast::<Insn>() };
    if let Some(pc) = run(vcpu, insn) {
        // SAFETY: The callback was registered with CB_RW_REGS_PC. QEMU leaves this frame without
        // unwinding it; it owns nothing.
        unsafe { qemu_plugin_set_pc(pc) }
    }
}

/// Executes `insn` and says where the vCPU goes on, if not with QEMU's own idea of it.
fn run(vcpu: c_uint, insn: Insn) -> Option<u64> {
    act(vcpu, |step| emulate::execute(step, insn))
}

/// Lets `f` act on the vCPU and says where it goes on, if not with QEMU's own idea of it.
fn act(vcpu: c_uint, f: impl FnOnce(&mut Step) -> Next) -> Option<u64> {
    with_step(vcpu, |shared, step| match f(step) {
        Next::Handler(pc) => {
            if let Some(scoreboard) = &shared.scoreboard {
                scoreboard.interrupt(shared, vcpu);
            }
            Some(pc)
        }
        Next::Native | Next::Done(_) => None,
    })?
}

pub(super) unsafe extern "C" fn on_nmi_place(vcpu: c_uint, data: *mut c_void) {
    if let Some(pc) = act(vcpu, |step| emulate::nmi(step, data as u64)) {
        // SAFETY: As in on_insn().
        unsafe { qemu_plugin_set_pc(pc) }
    }
}

pub(super) unsafe extern "C" fn on_undefined(vcpu: c_uint, data: *mut c_void) {
    // SAFETY: translate() registered this callback with a leaked `Insn`.
    let insn = unsafe { *data.cast::<Insn>() };
    with_step(vcpu, |shared, step| shared.handlers.expect(step, insn));
}

pub(super) unsafe extern "C" fn on_handler(vcpu: c_uint, _data: *mut c_void) {
    if let Some(pc) = leave_handler(vcpu) {
        // SAFETY: As in on_insn().
        unsafe { qemu_plugin_set_pc(pc) }
    }
}

/// Where the vCPU goes on that is about to execute the first instruction of its #UD handler, if not
/// there.
fn leave_handler(vcpu: c_uint) -> Option<u64> {
    with_step(vcpu, |shared, step| {
        let exit = trap::enter(step, &shared.irets);
        if let Some(scoreboard) = &shared.scoreboard {
            match exit {
                // The first instruction of the handler, and the IRETQ.
                Exit::Iretq(_) => scoreboard.skip(vcpu, 2),
                Exit::Guest | Exit::Handler(_) => scoreboard.interrupt(shared, vcpu),
            }
        }
        match exit {
            Exit::Guest => None,
            Exit::Iretq(pc) | Exit::Handler(pc) => Some(pc),
        }
    })?
}

pub(super) unsafe extern "C" fn on_after_answer(vcpu: c_uint, data: *mut c_void) {
    with_shared(|shared| {
        if let (Some(handles), Some(vcpu)) = (shared.handles.get(), shared.vcpus.get(vcpu as usize))
        {
            let (cpu, rip) = (&mut Qemu { handles }, data as u64);
            emulate::patch_answer(&shared.machine, cpu, &mut lock(vcpu), rip);
        }
    });
}
