// SPDX-License-Identifier: GPL-2.0

//! QEMU TCG plugin that puts the instructions of a TDX host into an emulated x86-64 machine.
//!
//! Thin: it finds the instructions of interest when QEMU translates them (`decode`), carries them
//! out on the vCPU (`emulate`; those that QEMU does not know when the guest traps, `trap`; with
//! `fault` for faults that QEMU does not raise, and `machine_check` for those that its monitor does), and leaves every decision to
//! [`Machine`](tdx_platform::Machine), which may want a `backtrace`. All `unsafe` is in `ffi`, which
//! implements [`Cpu`](cpu::Cpu) with the plugin interface, version 7; the rest is tested without QEMU.
//!
//! Load it with `-plugin libtdx_plugin.so,config=FILE,trace=FILE,summary=FILE`, and
//! `,monitor=SOCKET` if the configuration has `strict`.

pub mod backtrace;
#[cfg(test)]
mod bench;
pub mod cpu;
pub mod decode;
pub mod emulate;
pub mod fault;
pub mod machine_check;
// The functions of QEMU that it declares exist only inside QEMU.
#[cfg(not(test))]
mod ffi;
pub mod trap;
