// SPDX-License-Identifier: GPL-2.0

//! Ids of metadata fields, as far as all kinds of metadata have them in common.

use crate::Status;

/// Bits of a field id that must be zero.
const RESERVED: u64 = 0xff << 24 | 0xf << 34 | 0x1ff << 38 | 7 << 47 | 1 << 55 | 1 << 62;
/// Bits of a field id that do not matter when all others ask for the first field.
const CONTEXT: u64 = 7 << 52;
/// No field: what a leaf returns after the last one or on an error.
pub(crate) const NO_FIELD: u64 = u64::MAX;

/// Class and field code, all that identifies a field.
pub(crate) const fn key(id: u64) -> u64 {
    id & (0x3f << 56 | 0xff_ffff)
}

/// Whether an id asks for the first field.
pub(crate) fn asks_for_first(id: u64) -> bool {
    id | CONTEXT == NO_FIELD
}

/// Checks the bits of an id that must be zero; returns its key.
pub(crate) fn parse(id: u64) -> Result<u64, Status> {
    if id & RESERVED == 0 {
        Ok(key(id))
    } else {
        Err(Status::METADATA_FIELD_ID_INCORRECT)
    }
}
