// SPDX-License-Identifier: GPL-2.0

//! Lets the kernel's print macros show the types of the pure files.
//!
//! The macros want [`kernel::fmt::Display`]; the pure files, which know nothing of the kernel,
//! implement [`core::fmt::Display`]. One forwards to the other.

use kernel::prelude::*;

use crate::fields::TdxFeatures0;
use crate::metadata::MetadataError;
use crate::seamcall::SeamcallError;

/// Forwards [`kernel::fmt::Display`] to [`core::fmt::Display`].
macro_rules! printable {
    ($($ty:ty),* $(,)?) => {
        $(
            impl kernel::fmt::Display for $ty {
                fn fmt(&self, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
                    core::fmt::Display::fmt(self, f)
                }
            }
        )*
    };
}

printable!(
    crate::abi::TdmrInfoError,
    crate::bringup::Millis,
    crate::fields::FieldId,
    crate::image::ImageError,
    crate::leaf::Leaf,
    crate::memlist::MemListError,
    crate::memlist::NodeId,
    crate::metadata::FeatureError,
    crate::metadata::Version,
    crate::pamt::Pamt,
    crate::partition::KeyId,
    crate::partition::KeyIdError,
    crate::partition::TdxKeyIds,
    crate::place::PlaceError,
    crate::plug::Refusal,
    crate::range::PhysRange,
    crate::tdmr::PlanError,
    crate::tdmr_init::Throughput,
    crate::tlb_steps::Step,
    MetadataError<SeamcallError>,
    SeamcallError,
);

/// The names of the module's features, by bit number where they have none here.
impl kernel::fmt::Display for TdxFeatures0 {
    fn fmt(&self, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
        for bit in (0..u64::BITS).map(|n| TdxFeatures0::from_raw(1 << n)) {
            if !self.contains(bit) {
                continue;
            }
            match TdxFeatures0::BITS.iter().find(|(known, _)| *known == bit) {
                Some((_, name)) => write!(f, " {name}")?,
                None => write!(f, " bit-{}", bit.raw().trailing_zeros())?,
            }
        }
        Ok(())
    }
}

/// Logs why bring-up cannot go on, and returns the errno. Any context that may print.
pub(crate) fn fail(why: impl kernel::fmt::Display, errno: Error) -> Error {
    pr_err!("initialization failed: {why} ({})\n", errno.to_errno());
    errno
}
