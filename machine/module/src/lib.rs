// SPDX-License-Identifier: GPL-2.0

//! A pure model of the host side of the Intel TDX module: no processor, no QEMU, no `unsafe`.
//!
//! [`Module`] answers SEAMCALLs; [`ModuleConfig`] says which release of the module it follows and
//! what is different; [`Platform`] is what the processor and the memory give it. [`Regs`] are the
//! registers of a call, [`Status`] its result; [`leaf_name`] and [`status_name`] are for traces.
//!
//! TDH.VP.ENTER can end with [`Outcome::Entered`]. What the guest does then is not known here, only
//! what it is ([`GuestView`], [`Translation`]) and why it stops: [`GuestExit`], given to
//! [`Module::guest_exit`].
//!
//! The numbers here are the model's own. It shares neither code nor tables with the kernel module
//! that runs on the simulated machine, because it is that module's judge.

#![forbid(unsafe_code)]

mod accept;
mod addr;
mod call;
mod config;
mod cpuid_config;
mod cpuid_values;
mod disable;
mod fields;
mod guest_exit;
mod guest_view;
mod keys;
mod leaf;
mod locks;
mod measure;
mod mem_call;
mod mem_page;
mod mem_range;
mod mem_sept;
mod metadata;
mod mng;
mod module;
mod mr;
mod pamt;
mod phymem;
mod platform;
mod profile;
mod regs;
mod sept;
mod shutdown;
mod snapshot;
mod state;
mod status;
mod sys_config;
mod sys_init;
mod sys_key;
mod sys_lp_init;
mod td;
mod td_call;
mod td_fields;
mod td_params;
mod tdmr_info;
mod tdmr_init;
mod teardown;
mod vcpu;
mod vp;
mod vp_enter;
mod vp_fields;
mod vp_table;

pub use config::{ConfigError, ModuleConfig, OpenPoints, Profile};
pub use guest_exit::GuestExit;
pub use guest_view::{GuestView, Translation};
pub use leaf::{leaf_name, number};
pub use module::{Module, NoGuest, Outcome};
pub use platform::{CpuidRegs, MemRange, Pconfig, Platform};
pub use regs::Regs;
pub use status::{Operand, Status, status_name};

#[cfg(test)]
mod tests;
