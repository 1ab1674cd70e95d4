// SPDX-License-Identifier: GPL-2.0

//! What `tlb` must not let through the compiler. There is no code here, only documentation tests.
//!
//! The right order compiles:
//!
//! ```
//! use tdx_host_tests::{operand::GpaAndLevel, store::Store, tlb::{Td, Tracker}};
//!
//! fn zap<T: Td, S: Store<GpaAndLevel>>(
//!     tracker: &mut Tracker<T>,
//!     ranges: S,
//!     at: GpaAndLevel,
//! ) -> Option<()> {
//!     let mut blocking = tracker.start(ranges);
//!     blocking.block(at).ok()?;
//!     let mut removing = blocking.track().ok()?.kick();
//!     removing.remove_next()?.ok()?;
//!     Some(())
//! }
//! ```
//!
//! Removing what is only blocked does not:
//!
//! ```compile_fail,E0599
//! use tdx_host_tests::{operand::GpaAndLevel, store::Store, tlb::{Td, Tracker}};
//!
//! fn zap<T: Td, S: Store<GpaAndLevel>>(tracker: &mut Tracker<T>, ranges: S, at: GpaAndLevel) {
//!     let mut blocking = tracker.start(ranges);
//!     let _ = blocking.block(at);
//!     blocking.remove_next();
//! }
//! ```
//!
//! Nor does kicking before the new epoch:
//!
//! ```compile_fail,E0599
//! use tdx_host_tests::{operand::GpaAndLevel, store::Store, tlb::{Td, Tracker}};
//!
//! fn zap<T: Td, S: Store<GpaAndLevel>>(tracker: &mut Tracker<T>, ranges: S, at: GpaAndLevel) {
//!     let mut blocking = tracker.start(ranges);
//!     let _ = blocking.block(at);
//!     blocking.kick();
//! }
//! ```
//!
//! Nor leaving the kick out:
//!
//! ```compile_fail,E0599
//! use tdx_host_tests::{operand::GpaAndLevel, store::Store, tlb::{Td, Tracker}};
//!
//! fn zap<T: Td, S: Store<GpaAndLevel>>(tracker: &mut Tracker<T>, ranges: S, at: GpaAndLevel) {
//!     let mut blocking = tracker.start(ranges);
//!     let _ = blocking.block(at);
//!     let Ok(mut tracked) = blocking.track() else { return };
//!     tracked.remove_next();
//! }
//! ```
//!
//! Nor blocking one more page after the new epoch has begun:
//!
//! ```compile_fail,E0382
//! use tdx_host_tests::{operand::GpaAndLevel, store::Store, tlb::{Td, Tracker}};
//!
//! fn zap<T: Td, S: Store<GpaAndLevel>>(tracker: &mut Tracker<T>, ranges: S, at: GpaAndLevel) {
//!     let mut blocking = tracker.start(ranges);
//!     let tracked = blocking.track();
//!     let _ = blocking.block(at);
//! }
//! ```
//!
//! Nor two epochs at once:
//!
//! ```compile_fail,E0499
//! use tdx_host_tests::{operand::GpaAndLevel, store::Store, tlb::{Td, Tracker}};
//!
//! fn zap<T: Td, S: Store<GpaAndLevel>>(tracker: &mut Tracker<T>, first: S, second: S) {
//!     let one = tracker.start(first);
//!     let other = tracker.start(second);
//!     let _ = one.track();
//! }
//! ```
