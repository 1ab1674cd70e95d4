// SPDX-License-Identifier: GPL-2.0

//! Lets the kernel's print macros show the types of the pure files.
//!
//! The macros want [`kernel::fmt::Display`]; the pure files, which know nothing of the kernel,
//! implement [`core::fmt::Display`]. One forwards to the other.

use kernel::prelude::*;

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
    crate::leaf::Leaf,
    crate::memlist::MemListError,
    crate::memlist::NodeId,
    crate::metadata::FeatureError,
    crate::metadata::Version,
    crate::pamt::PamtError,
    crate::partition::KeyId,
    crate::partition::KeyIdError,
    crate::partition::TdxKeyIds,
    crate::range::PhysRange,
    crate::tdmr::PlanError,
    MetadataError<SeamcallError>,
    SeamcallError,
);

/// Logs why bring-up cannot go on, and returns the errno. Any context that may print.
pub(crate) fn fail(why: impl kernel::fmt::Display, errno: Error) -> Error {
    pr_err!("initialization failed: {why} ({})\n", errno.to_errno());
    errno
}
