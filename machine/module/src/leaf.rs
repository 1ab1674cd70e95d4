// SPDX-License-Identifier: GPL-2.0

//! Numbers and names of the host-side leaves.
//!
//! `module.rs` says which of them this model answers; [`leaf_name`] also knows the names of others,
//! for traces.

macro_rules! leaves {
    ($($number:literal $konst:ident $name:literal,)*) => {
        /// Leaf numbers (RAX bits 15:0), named without the `TDH.` prefix.
        #[expect(missing_docs, reason = "the names are those of the TDX module's ABI")]
        pub mod number {
            $(pub const $konst: u16 = $number;)*
        }

        /// Name of a host-side leaf such as `TDH.SYS.INIT`, or `None` if the number has none.
        pub fn leaf_name(leaf: u16) -> Option<&'static str> {
            match leaf {
                $($number => Some($name),)*
                _ => None,
            }
        }
    };
}

leaves! {
    0 VP_ENTER "TDH.VP.ENTER",
    1 MNG_ADDCX "TDH.MNG.ADDCX",
    2 MEM_PAGE_ADD "TDH.MEM.PAGE.ADD",
    3 MEM_SEPT_ADD "TDH.MEM.SEPT.ADD",
    4 VP_ADDCX "TDH.VP.ADDCX",
    5 MEM_PAGE_RELOCATE "TDH.MEM.PAGE.RELOCATE",
    6 MEM_PAGE_AUG "TDH.MEM.PAGE.AUG",
    7 MEM_RANGE_BLOCK "TDH.MEM.RANGE.BLOCK",
    8 MNG_KEY_CONFIG "TDH.MNG.KEY.CONFIG",
    9 MNG_CREATE "TDH.MNG.CREATE",
    10 VP_CREATE "TDH.VP.CREATE",
    11 MNG_RD "TDH.MNG.RD",
    12 MEM_RD "TDH.MEM.RD",
    13 MNG_WR "TDH.MNG.WR",
    14 MEM_WR "TDH.MEM.WR",
    15 MEM_PAGE_DEMOTE "TDH.MEM.PAGE.DEMOTE",
    16 MR_EXTEND "TDH.MR.EXTEND",
    17 MR_FINALIZE "TDH.MR.FINALIZE",
    18 VP_FLUSH "TDH.VP.FLUSH",
    19 MNG_VPFLUSHDONE "TDH.MNG.VPFLUSHDONE",
    20 MNG_KEY_FREEID "TDH.MNG.KEY.FREEID",
    21 MNG_INIT "TDH.MNG.INIT",
    22 VP_INIT "TDH.VP.INIT",
    23 MEM_PAGE_PROMOTE "TDH.MEM.PAGE.PROMOTE",
    24 PHYMEM_PAGE_RDMD "TDH.PHYMEM.PAGE.RDMD",
    25 MEM_SEPT_RD "TDH.MEM.SEPT.RD",
    26 VP_RD "TDH.VP.RD",
    27 MNG_KEY_RECLAIMID "TDH.MNG.KEY.RECLAIMID",
    28 PHYMEM_PAGE_RECLAIM "TDH.PHYMEM.PAGE.RECLAIM",
    29 MEM_PAGE_REMOVE "TDH.MEM.PAGE.REMOVE",
    30 MEM_SEPT_REMOVE "TDH.MEM.SEPT.REMOVE",
    31 SYS_KEY_CONFIG "TDH.SYS.KEY.CONFIG",
    32 SYS_INFO "TDH.SYS.INFO",
    33 SYS_INIT "TDH.SYS.INIT",
    34 SYS_RD "TDH.SYS.RD",
    35 SYS_LP_INIT "TDH.SYS.LP.INIT",
    36 SYS_TDMR_INIT "TDH.SYS.TDMR.INIT",
    37 SYS_RDALL "TDH.SYS.RDALL",
    38 MEM_TRACK "TDH.MEM.TRACK",
    39 MEM_RANGE_UNBLOCK "TDH.MEM.RANGE.UNBLOCK",
    40 PHYMEM_CACHE_WB "TDH.PHYMEM.CACHE.WB",
    41 PHYMEM_PAGE_WBINVD "TDH.PHYMEM.PAGE.WBINVD",
    43 VP_WR "TDH.VP.WR",
    44 SYS_LP_SHUTDOWN "TDH.SYS.LP.SHUTDOWN",
    45 SYS_CONFIG "TDH.SYS.CONFIG",
    52 SYS_SHUTDOWN "TDH.SYS.SHUTDOWN",
    53 SYS_UPDATE "TDH.SYS.UPDATE",
    58 PHYMEM_PAMT_ADD "TDH.PHYMEM.PAMT.ADD",
    59 PHYMEM_PAMT_REMOVE "TDH.PHYMEM.PAMT.REMOVE",
    69 SYS_DISABLE "TDH.SYS.DISABLE",
}
