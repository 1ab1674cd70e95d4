// SPDX-License-Identifier: GPL-2.0

//! The table of a vCPU's metadata fields: [`Field`], [`find`], and keys of those with rules of their
//! own. The leaves that use it are in `vp_fields.rs`.
//!
//! The table has the fields that a host uses, and those it may ask for without being allowed to.
//! The values of fields that only a debugger can read are those of a vCPU that never ran.

use crate::fields::{self, NO_FIELD};

/// Keys of fields with rules of their own.
pub(crate) mod key {
    pub(crate) const VECTOR: u64 = 2;
    pub(crate) const DESCRIPTOR: u64 = 0x2016;
    pub(crate) const EPTP: u64 = 0x201a;
    pub(crate) const SHARED_EPTP: u64 = 0x203c;
    pub(crate) const PIN_BASED: u64 = 0x4000;
    pub(crate) const GUEST_XFAM: u64 = 0x20 << 56 | 0xc;
    pub(crate) const STATE: u64 = 0x20 << 56;
    pub(crate) const INDEX: u64 = 0x20 << 56 | 2;
    pub(crate) const PAGES: u64 = 0x20 << 56 | 3;
    pub(crate) const ASSOCIATED_LP: u64 = 0x20 << 56 | 4;
    pub(crate) const EPOCH: u64 = 0x20 << 56 | 6;
    pub(crate) const EXIT_REASON: u64 = 0x4402;
    pub(crate) const RIP: u64 = 0x681e;
    pub(crate) const PAGE_ADDRESS: u64 = 0x20 << 56 | 0x10;
    pub(crate) const GPR: u64 = 0x10 << 56;
}

/// Posted interrupts in the pin-based controls.
pub(crate) const POSTED_INTERRUPTS: u64 = 1 << 7;
/// Controls that the module sets: interrupts and NMIs exit, virtual NMIs, and those always set.
const PIN_BASED_CONTROLS: u64 = 0x3f;
const SECONDARY_CONTROLS: u64 = 0x133c_b3fa;
/// Where a vCPU starts.
pub(crate) const RESET_RIP: u64 = 0xffff_fff0;
/// Values of fields that were never written.
pub(crate) const NO_VECTOR: u64 = 0xffff;
pub(crate) const NO_DESCRIPTOR: u64 = u64::MAX;

/// One field.
pub(crate) struct Field {
    /// Full id of its first element.
    id: u64,
    elements: u64,
    /// Bits that a host can read if the TD is no debug TD.
    read: u64,
    /// Bits that a host can write.
    write: u64,
    /// Bits that a host can write if the TD is a debug TD.
    write_debug: u64,
    /// Value before it is first written.
    pub(crate) initial: u64,
}

const ALL: u64 = u64::MAX;
const DWORD: u64 = 0xffff_ffff;
const PAGE: u64 = 0x000f_ffff_ffff_f000;

/// A field of which everybody can read `read` and write `write`.
const fn field(id: u64, read: u64, write: u64, initial: u64) -> Field {
    Field {
        id,
        elements: 1,
        read,
        write,
        write_debug: write,
        initial,
    }
}

/// A field that only a debugger can read, and write as far as `write_debug` says.
const fn hidden(id: u64, write_debug: u64, initial: u64) -> Field {
    Field {
        write_debug,
        ..field(id, 0, 0, initial)
    }
}

const fn array(elements: u64, field: Field) -> Field {
    Field { elements, ..field }
}

/// All fields in the order in which VP.RD enumerates them.
const FIELDS: [Field; 45] = [
    hidden(0x24_0001_0000_0000, 0, 0),
    field(0x24_0001_0000_0002, 0xffff, 0xffff, NO_VECTOR),
    hidden(0x24_0001_0000_0004, 0, 0),
    hidden(0x24_0003_0000_2000, 0, ALL),
    hidden(0x20_0000_0000_2002, 0, ALL),
    field(0x24_0003_0000_2004, ALL, 0, 0),
    field(0x24_0003_0000_2016, ALL, !0x3f, NO_DESCRIPTOR),
    field(0x24_0003_0000_2018, ALL, 0, 0),
    field(0x24_0003_0000_201a, ALL, 0, 0),
    hidden(0x24_0003_0000_201c, 0, 0),
    field(0x24_0003_0000_2024, ALL, 0, 0),
    field(0x24_0003_0000_203c, ALL, PAGE, 0),
    hidden(0x24_0003_0000_2400, 0, 0),
    field(
        0x24_0002_0000_4000,
        POSTED_INTERRUPTS,
        POSTED_INTERRUPTS,
        PIN_BASED_CONTROLS,
    ),
    hidden(0x24_0002_0000_4002, 0x0aa1_9284, 0xb522_6dfa),
    field(0x24_0002_0000_401e, 3 << 30, 3 << 30, SECONDARY_CONTROLS),
    field(0x24_0002_0000_4020, DWORD, 0, 0),
    field(0x24_0002_0000_4024, DWORD, DWORD, 0),
    field(0x24_0002_0000_4026, DWORD, 0, 0),
    hidden(0x24_0002_0000_4402, 0, 0),
    hidden(0x24_0002_0000_4826, 0, 0),
    hidden(0x24_0003_0000_6802, ALL, 0),
    hidden(0x24_0003_0000_681c, ALL, 0),
    hidden(0x24_0003_0000_681e, ALL, RESET_RIP),
    hidden(0x24_0003_0000_6820, 0, 2),
    field(0x9120_0003_0000_0100, ALL, 0, 0),
    hidden(0x1220_0003_0000_0000, 0, 0),
    hidden(0xa020_0000_0000_0000, 0, 0),
    field(0xa020_0002_0000_0002, ALL, 0, 0),
    field(0xa020_0000_0000_0003, ALL, 0, 0),
    field(0xa020_0002_0000_0004, ALL, 0, 0),
    field(0xa020_0003_0000_0006, ALL, 0, 0),
    field(0x2020_0000_0000_000b, 0xff, 0xff, 0),
    field(0x2020_0003_0000_000c, ALL, 0, 0),
    hidden(0xa020_0000_0000_000f, 0, 0),
    array(15, field(0xa020_0003_0000_0010, ALL, 0, 0)),
    hidden(0xa020_0000_0000_0040, 0, 0),
    hidden(0xa020_0001_0000_0041, 0, 0),
    array(4, hidden(0x1020_0003_0000_0000, ALL, 0)),
    array(11, hidden(0x1020_0003_0000_0005, ALL, 0)),
    hidden(0x1120_0003_0000_0020, 0, 1),
    hidden(0x1120_0003_0000_0021, 0, 0),
    hidden(0x1120_0003_0000_0028, 0, 0),
    hidden(0x1120_0003_0000_0029, 0, 0),
    hidden(0x1120_0003_0000_002a, 0, 0),
];

impl Field {
    fn contains(&self, key: u64) -> bool {
        let first = fields::key(self.id);
        (first..first + self.elements).contains(&key)
    }

    /// Whether a host can read any of it.
    pub(crate) fn is_readable(&self, debug: bool) -> bool {
        debug || self.read != 0
    }

    /// The bits that a host can read.
    pub(crate) fn read_mask(&self, debug: bool) -> u64 {
        if debug { ALL } else { self.read }
    }

    /// The bits that a host can write.
    pub(crate) fn write_mask(&self, debug: bool) -> u64 {
        if debug { self.write_debug } else { self.write }
    }
}

/// The field that a key names and its position in the table.
pub(crate) fn find(key: u64) -> Option<(usize, &'static Field)> {
    FIELDS
        .iter()
        .enumerate()
        .find(|(_, field)| field.contains(key))
}

/// Id of the field after the element `key` of the field at `position`.
pub(crate) fn next(position: usize, key: u64, debug: bool) -> u64 {
    let field = &FIELDS[position];
    let element = key - fields::key(field.id) + 1;
    if element < field.elements {
        return field.id + element;
    }
    first_readable(position + 1, debug)
}

/// Id of the first field from `position` on that a host can read.
pub(crate) fn first_readable(position: usize, debug: bool) -> u64 {
    let mut rest = FIELDS.iter().skip(position);
    let field = rest.find(|field| field.is_readable(debug));
    field.map_or(NO_FIELD, |field| field.id)
}
