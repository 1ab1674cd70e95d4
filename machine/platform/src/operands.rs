// SPDX-License-Identifier: GPL-2.0

//! What a SEAMCALL's registers mean, as far as the trace shows it.
//!
//! A host need not clear the registers a leaf does not read, so the trace shows only those it does
//! read ([`inputs`]). The operands of TDH.SYS.CONFIG lie in memory: [`tdmr_table`] fetches them.

use crate::GuestMemory;
use crate::trace::SEAMLDR;
use serde::Serialize;
use tdx_module::number;

/// Registers that `leaf` (with bit 63 for the P-SEAMLDR) reads, by name.
pub fn inputs(leaf: u64) -> &'static [&'static str] {
    if leaf & SEAMLDR != 0 {
        return &["rcx"];
    }
    match leaf as u16 {
        number::SYS_LP_INIT
        | number::SYS_KEY_CONFIG
        | number::SYS_UPDATE
        | number::SYS_DISABLE
        | number::SYS_LP_SHUTDOWN => &[],
        number::SYS_INIT
        | number::SYS_TDMR_INIT
        | number::SYS_SHUTDOWN
        | number::PHYMEM_PAGE_RDMD
        | number::PHYMEM_PAGE_RECLAIM
        | number::PHYMEM_PAGE_WBINVD
        | number::PHYMEM_CACHE_WB
        | number::MEM_TRACK
        | number::MNG_KEY_CONFIG
        | number::MNG_KEY_FREEID
        | number::MNG_VPFLUSHDONE
        | number::MR_FINALIZE
        | number::VP_FLUSH
        | number::VP_ENTER => &["rcx"],
        number::SYS_RD => &["rdx"],
        number::SYS_CONFIG => &["rcx", "rdx", "r8"],
        number::MNG_CREATE
        | number::MNG_ADDCX
        | number::MNG_INIT
        | number::MNG_RD
        | number::MR_EXTEND
        | number::VP_CREATE
        | number::VP_ADDCX
        | number::VP_RD
        | number::MEM_RANGE_BLOCK
        | number::MEM_RANGE_UNBLOCK
        | number::MEM_PAGE_REMOVE
        | number::MEM_SEPT_REMOVE => &["rcx", "rdx"],
        number::MEM_SEPT_ADD | number::MEM_PAGE_AUG | number::VP_INIT => &["rcx", "rdx", "r8"],
        _ => &["rcx", "rdx", "r8", "r9"],
    }
}

/// One TDMR_INFO as the host wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tdmr {
    /// First byte.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
    /// Base and size of the PAMT for 1 GB, 2 MB and 4 KB pages.
    pub pamt: [(u64, u64); 3],
    /// Offset and size of each reserved area up to the first empty one.
    pub reserved: Vec<(u64, u64)>,
}

const MAX_TDMRS: u64 = 64;
const HEADER: usize = 64;

/// The TDMRs that TDH.SYS.CONFIG is called with: `count` pointers at `table`, `reserved` areas each.
/// `None` when some of it cannot be read or the count is out of range.
pub fn tdmr_table(
    mem: &dyn GuestMemory,
    table: u64,
    count: u64,
    reserved: u16,
) -> Option<Vec<Tdmr>> {
    if count > MAX_TDMRS {
        return None;
    }
    (0..count)
        .map(|i| {
            let mut pointer = [0; 8];
            mem.read(table.checked_add(8 * i)?, &mut pointer)
                .then_some(())?;
            let mut info = vec![0; HEADER + 16 * usize::from(reserved)];
            mem.read(u64::from_le_bytes(pointer), &mut info)
                .then_some(())?;
            Some(parse(&info))
        })
        .collect()
}

fn parse(info: &[u8]) -> Tdmr {
    let mut words = info
        .chunks_exact(8)
        .map(|c| u64::from_le_bytes(c.try_into().unwrap_or_default()));
    let mut word = || words.next().unwrap_or(0);
    let (base, size) = (word(), word());
    let pamt = [(word(), word()), (word(), word()), (word(), word())];
    let areas = (0..(info.len().saturating_sub(HEADER)) / 16).map(|_| (word(), word()));
    Tdmr {
        base,
        size,
        pamt,
        reserved: areas.take_while(|(_, size)| *size != 0).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Ram;

    #[test]
    fn table_is_read_until_the_first_empty_area() {
        let ram = Ram::new(0x2000);
        ram.put(0, &[0x1000]);
        ram.put(
            0x1000,
            &[
                0,
                1 << 30,
                0x10,
                0x20,
                0x30,
                0x40,
                0x50,
                0x60,
                0,
                0x1000,
                0,
                0,
                7,
                7,
            ],
        );
        let tdmrs = tdmr_table(&ram, 0, 1, 16).unwrap();
        assert_eq!(tdmrs[0].size, 1 << 30);
        assert_eq!(tdmrs[0].pamt, [(0x10, 0x20), (0x30, 0x40), (0x50, 0x60)]);
        assert_eq!(tdmrs[0].reserved, [(0, 0x1000)]);
    }

    #[test]
    fn hostile_operands_are_refused() {
        let ram = Ram::new(0x1000);
        assert_eq!(tdmr_table(&ram, 0, 65, 16), None);
        assert_eq!(tdmr_table(&ram, u64::MAX - 3, 2, 16), None);
        ram.put(0, &[0x10_0000]);
        assert_eq!(tdmr_table(&ram, 0, 1, 16), None);
    }
}
