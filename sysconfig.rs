// SPDX-License-Identifier: GPL-2.0

//! Handing TDMRs, PAMTs and the global KeyID to the TDX module: TDH.SYS.CONFIG.
//!
//! [`TdmrInfos`] is the call's operand in memory, filled from the plan; [`configure`] makes the
//! call.
//!
//! C it replaces: `config_tdx_module()` and the reserved areas in `arch/x86/virt/vmx/tdx/tdx.c`.

use kernel::alloc::flags::GFP_KERNEL;
use kernel::bindings;
use kernel::prelude::*;

use crate::abi::{
    TdmrInfo,
    TDMR_INFO_ALIGNMENT, //
};
use crate::holes::Memory;
use crate::leaf::Leaf;
use crate::log::fail;
use crate::metadata::TdmrCaps;
use crate::pamt_alloc::TdxPlan;
use crate::partition::KeyId;
use crate::seamcall::{
    self,
    Args, //
};
use crate::status::SeamcallStatus;
use crate::tdmr::{
    self,
    PlanError, //
};

/// `ENOSPC` for a limit of the module that is too small, else what fits best.
pub(crate) fn errno_of_plan(error: &PlanError) -> Error {
    match error {
        PlanError::TooManyTdmrs { .. } | PlanError::ReservedAreasExhausted { .. } => ENOSPC,
        PlanError::OutOfMemory => ENOMEM,
        _ => EINVAL,
    }
}

/// 512 bytes of memory that the module reads, aligned as it demands.
#[repr(C, align(512))]
#[derive(Clone, Copy)]
struct Block([u64; BLOCK_WORDS]);

const BLOCK_WORDS: usize = TDMR_INFO_ALIGNMENT / size_of::<u64>();
const _: () = assert!(size_of::<Block>() == TDMR_INFO_ALIGNMENT);
const _: () = assert!(align_of::<Block>() == TDMR_INFO_ALIGNMENT);

/// The operands of TDH.SYS.CONFIG in memory: TDMR_INFO structures and the array that lists them.
pub(crate) struct TdmrInfos {
    /// All structures, one after the other. Kept for the array's sake.
    _infos: KVec<Block>,
    /// Physical addresses of the structures.
    array: KVec<Block>,
    /// How many there are.
    count: usize,
}

impl TdmrInfos {
    pub(crate) fn new(memory: &Memory<'_>, plan: &TdxPlan, caps: &TdmrCaps) -> Result<Self> {
        let slot = TdmrInfo::slot_bytes(caps.max_reserved_per_tdmr) / TDMR_INFO_ALIGNMENT;
        let tdmrs = &plan.tdmrs;
        let mut infos = zeroed_blocks(slot.saturating_mul(tdmrs.len()))?;
        let mut array = zeroed_blocks(tdmrs.len().div_ceil(BLOCK_WORDS))?;
        let mut areas = KVec::new();

        let slots = infos.chunks_exact_mut(slot);
        let entries = array.iter_mut().flat_map(|block| &mut block.0);
        for (((tdmr, pamt), slot), entry) in tdmrs.iter().zip(&plan.pamts).zip(slots).zip(entries) {
            tdmr::reserve(memory, tdmr, &plan.chunks, &caps.limits(), &mut areas)
                .map_err(|e| fail(e, errno_of_plan(&e)))?;
            TdmrInfo::new(tdmr, pamt)
                .write(&areas, slot.as_flattened_words())
                .map_err(|e| fail(e, EINVAL))?;
            // SAFETY: Computes the physical address of memory in the direct map.
            *entry = unsafe { bindings::tdx_glue_virt_to_phys(slot.as_ptr().cast()) };
        }
        Ok(Self {
            _infos: infos,
            array,
            count: tdmrs.len(),
        })
    }

    /// Physical address of the array.
    fn address(&self) -> u64 {
        // SAFETY: Computes the physical address of memory in the direct map: `KVec` is kmalloc()ed.
        unsafe { bindings::tdx_glue_virt_to_phys(self.array.as_ptr().cast()) }
    }
}

/// Blocks seen as the words they are made of.
trait AsWords {
    fn as_flattened_words(&mut self) -> &mut [u64];
}

impl AsWords for [Block] {
    fn as_flattened_words(&mut self) -> &mut [u64] {
        let words = self.len().saturating_mul(BLOCK_WORDS);
        // SAFETY: A `Block` is exactly `BLOCK_WORDS` words without padding (asserted above), and
        // slices have no gaps. The borrow of `self` lasts as long as the result.
        unsafe { core::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), words) }
    }
}

/// `count` blocks of zeroes in physically contiguous memory.
fn zeroed_blocks(count: usize) -> Result<KVec<Block>> {
    KVec::from_elem(Block([0; BLOCK_WORDS]), count, GFP_KERNEL)
        .map_err(|_| fail("out of memory for TDMR_INFO structures", ENOMEM))
}

/// Hands TDMRs, PAMTs and the global KeyID to the module.
pub(crate) fn configure(infos: &TdmrInfos, global_keyid: KeyId) -> Result {
    let args = Args {
        rcx: infos.address(),
        rdx: infos.count as u64,
        r8: u64::from(global_keyid.get()),
        ..Args::default()
    };
    match seamcall::call_patiently(Leaf::TDH_SYS_CONFIG, args) {
        Ok(_) => Ok(()),
        Err(e) => {
            let errno = e.report("configuring TDX memory");
            if e.status().is(SeamcallStatus::SYS_CONFIG_NOT_PENDING) {
                // SAFETY: Have no requirements.
                let (online, present) = unsafe {
                    (
                        bindings::tdx_glue_nr_online_cpus(),
                        bindings::tdx_glue_nr_present_cpus(),
                    )
                };
                pr_err!("{online} of {present} present CPUs are online\n");
            }
            Err(errno)
        }
    }
}

#[cfg(CONFIG_INTEL_TDX_HOST_KUNIT_TEST)]
#[kernel::macros::kunit_tests(tdx_host_sysconfig)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_where_the_module_can_read_them() -> Result {
        for count in [1, 3, 64] {
            let blocks = zeroed_blocks(count)?;
            // SAFETY: Computes the physical address of memory in the direct map.
            let start = unsafe { bindings::tdx_glue_virt_to_phys(blocks.as_ptr().cast()) };
            assert_eq!(start % TDMR_INFO_ALIGNMENT as u64, 0);
        }
        Ok(())
    }

    #[test]
    fn words_of_blocks_are_the_blocks() -> Result {
        let mut blocks = zeroed_blocks(2)?;
        let words = blocks.as_flattened_words();
        assert_eq!(words.len(), 2 * BLOCK_WORDS);
        words[BLOCK_WORDS] = 1;
        assert_eq!(blocks[0].0[0], 0);
        assert_eq!(blocks[1].0[0], 1);
        Ok(())
    }
}
