// SPDX-License-Identifier: GPL-2.0

//! The launcher of the simulated TDX machine.
//!
//! [`run::run`] does the work of `tdx-machine run`: `setup` turns the options (`cli`) into a machine,
//! `memmap` decides where its memory lies, `symbols` which kernel functions are counted, `initramfs` builds the guest's user space, `qemu` the
//! command line; `guest` then watches QEMU and the guest (`console`) until it ends, and `outcome` says what that
//! means. `image` makes TDX modules to be installed at run time. The machine itself is in `tdx-platform`, reached through a file and QEMU's plugin.

#![forbid(unsafe_code)]

pub mod cli;
pub mod console;
pub mod explain;
pub mod features;
mod files;
mod guest;
pub mod image;
pub mod initramfs;
pub mod memmap;
pub mod outcome;
pub mod qemu;
pub mod run;
pub mod setup;
pub mod symbols;
mod tsc;
pub mod units;
