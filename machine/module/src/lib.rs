// SPDX-License-Identifier: GPL-2.0

//! A pure model of the host side of the Intel TDX module: no processor, no QEMU, no `unsafe`.
//!
//! [`Module`] answers SEAMCALLs; [`ModuleConfig`] says which release of the module it follows and
//! what is different; [`Platform`] is what the processor and the memory give it. [`Regs`] are the
//! registers of a call, [`Status`] its result; [`leaf_name`] and [`status_name`] are for traces.
//!
//! The numbers here are the model's own. It shares neither code nor tables with the kernel module
//! that runs on the simulated machine, because it is that module's judge.

#![forbid(unsafe_code)]

mod addr;
mod call;
mod config;
mod disable;
mod leaf;
mod locks;
mod metadata;
mod module;
mod pamt;
mod phymem;
mod platform;
mod profile;
mod regs;
mod shutdown;
mod snapshot;
mod state;
mod status;
mod sys_config;
mod sys_init;
mod sys_key;
mod sys_lp_init;
mod tdmr_info;
mod tdmr_init;

pub use config::{ConfigError, ModuleConfig, OpenPoints, Profile};
pub use leaf::{leaf_name, number};
pub use module::{Module, Outcome};
pub use platform::{CpuidRegs, MemRange, Pconfig, Platform};
pub use regs::Regs;
pub use status::{Operand, Status, status_name};

#[cfg(test)]
mod tests;
