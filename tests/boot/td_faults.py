# SPDX-License-Identifier: GPL-2.0
"""Faults in a TD's life, in the order of its calls, and how KVM answers them.

Of `Fault`: the call that fails, what td-client says (nothing if KVM copes or the
TD is on its way down), which functions of KVM warn.
"""

from __future__ import annotations

from reaction import Fault

# What td-client says.
INIT_VM = "KVM_TDX_INIT_VM: Input/output error"
INIT_VCPU = "KVM_TDX_INIT_VCPU: Input/output error"
ADD_MEMORY = "KVM_TDX_INIT_MEM_REGION at GPA 0x0: Input/output error"
ENTRY = "KVM_RUN: internal error 4"
RUN = "KVM_RUN: Input/output error"
# Who warns.
INIT = ("__tdx_td_init",)
KEY = ("tdx_do_tdh_mng_key_config",)
VCPU = ("tdx_vcpu_init",)
# After a failed entry KVM asks for the guest's RIP, which it cannot have.
NO_ENTRY = ("tdx_handle_exit", "vt_cache_reg")
RELEASE = ("tdx_mmu_release_hkid",)
WRITE_BACK = ("smp_func_do_phymem_cache_wb", *RELEASE)
# The TD's root page cannot go before its other pages.
RECLAIM = ("tdx_reclaim_page", "tdx_reclaim_td_control_pages")
ZAP = ("tdx_sept_set_private_spte",)
ZAP_AND_ROOT = (*ZAP, "tdx_reclaim_td_control_pages")

FAULTS = {
    "none": Fault(""),
    "mng.create": Fault("MNG.CREATE=OPERAND_INVALID", INIT_VM, INIT),
    "mng.create-busy": Fault("MNG.CREATE=OPERAND_BUSY", INIT_VM, INIT),
    "mng.key.config": Fault("MNG.KEY.CONFIG=OPERAND_INVALID", INIT_VM, KEY),
    "mng.key.config-busy": Fault("MNG.KEY.CONFIG=OPERAND_BUSY", INIT_VM, KEY),
    "mng.key.config-no-key": Fault("MNG.KEY.CONFIG=KEY_GENERATION_FAILED", INIT_VM, KEY),
    "mng.key.config-no-entropy": Fault("MNG.KEY.CONFIG=RND_NO_ENTROPY*9"),
    "mng.addcx": Fault("MNG.ADDCX=OPERAND_INVALID", INIT_VM, INIT),
    "mng.addcx-third": Fault("MNG.ADDCX:3=OPERAND_INVALID", INIT_VM, INIT),
    "mng.addcx-no-entropy": Fault(
        "MNG.ADDCX=RND_NO_ENTROPY*10", "KVM_TDX_INIT_VM: Resource temporarily unavailable"
    ),
    "mng.init-operand": Fault(
        "MNG.INIT=OPERAND_INVALID", "Invalid argument (os error 22), SEAMCALL status 0xc000010000000000"
    ),
    "mng.init-busy": Fault("MNG.INIT=OPERAND_BUSY", INIT_VM, INIT),
    "mng.rd": Fault("MNG.RD=METADATA_FIELD_ID_INCORRECT"),
    "mng.rd-cpuid": Fault(
        "MNG.RD:3=OPERAND_BUSY*always", "KVM_TDX_GET_CPUID: Input/output error", client="--read-cpuid"
    ),
    "mng.rd-half-a-cpuid": Fault("MNG.RD:4=OPERAND_BUSY", warns=("tdx_vcpu_ioctl",), client="--read-cpuid"),
    "vp.create": Fault("VP.CREATE=OPERAND_INVALID", INIT_VCPU, VCPU),
    "vp.create-busy": Fault("VP.CREATE=OPERAND_BUSY", INIT_VCPU, VCPU),
    "vp.addcx": Fault("VP.ADDCX=OPERAND_INVALID", INIT_VCPU, VCPU),
    "vp.addcx-third": Fault("VP.ADDCX:3=OPERAND_INVALID", INIT_VCPU, VCPU),
    "vp.init": Fault("VP.INIT=OPERAND_INVALID", INIT_VCPU, VCPU),
    "vp.init-busy": Fault("VP.INIT=OPERAND_BUSY", INIT_VCPU, VCPU),
    "vp.wr": Fault(
        "VP.WR=OPERAND_INVALID", "KVM_CREATE_GUEST_MEMFD: Input/output error", ("tdh_vp_wr_failed",)
    ),
    "vp.wr-shared-ept": Fault("VP.WR:4=OPERAND_BUSY", ADD_MEMORY, ("tdh_vp_wr_failed",)),
    "mem.sept.add": Fault("MEM.SEPT.ADD=OPERAND_INVALID", ADD_MEMORY, ZAP),
    "mem.sept.add-busy": Fault("MEM.SEPT.ADD=OPERAND_BUSY*3"),
    "mem.page.add": Fault("MEM.PAGE.ADD=OPERAND_INVALID", ADD_MEMORY, ("tdx_mem_page_add",)),
    "mem.page.add-no-module": Fault("MEM.PAGE.ADD=vmfail", ADD_MEMORY, ("tdx_mem_page_add",)),
    "mem.page.add-busy": Fault("MEM.PAGE.ADD=OPERAND_BUSY*3"),
    "mr.extend": Fault("MR.EXTEND=OPERAND_INVALID", ADD_MEMORY, ("tdx_gmem_post_populate",)),
    "mr.extend-busy": Fault("MR.EXTEND:2=OPERAND_BUSY", ADD_MEMORY, ("tdx_gmem_post_populate",)),
    "mr.finalize": Fault(
        "MR.FINALIZE=OPERAND_INVALID", "KVM_TDX_FINALIZE_VM: Input/output error", ("tdx_vm_ioctl",)
    ),
    "mr.finalize-busy": Fault(
        "MR.FINALIZE=OPERAND_BUSY",
        "Device or resource busy (os error 16), SEAMCALL status 0x8000020000000000"
    ),
    "vp.enter": Fault("VP.ENTER=OPERAND_INVALID", ENTRY, ("vt_cache_reg",)),
    "vp.enter-busy": Fault("VP.ENTER=OPERAND_BUSY*3"),
    "vp.enter-no-module": Fault("VP.ENTER:2=vmfail", ENTRY, NO_ENTRY),
    "vp.enter-gp": Fault("VP.ENTER:2=gp", ENTRY, NO_ENTRY),
    "vp.enter-ud": Fault("VP.ENTER:2=ud", ENTRY, NO_ENTRY),
    "mem.page.aug": Fault("MEM.PAGE.AUG=OPERAND_INVALID", RUN, ZAP),
    "mem.page.aug-busy": Fault("MEM.PAGE.AUG=OPERAND_BUSY*3"),
    "mem.range.block-busy": Fault("MEM.RANGE.BLOCK=OPERAND_BUSY"),
    "mem.track-busy": Fault("MEM.TRACK=OPERAND_BUSY"),
    "mem.page.remove-busy": Fault("MEM.PAGE.REMOVE=OPERAND_BUSY"),
    "vp.flush": Fault("VP.FLUSH=OPERAND_INVALID", warns=("tdx_flush_vp_on_cpu",)),
    "vp.flush-busy": Fault("VP.FLUSH=OPERAND_BUSY", warns=("tdx_flush_vp_on_cpu",)),
    "vp.flush-not-associated": Fault("VP.FLUSH=VCPU_NOT_ASSOCIATED", warns=("tdx_sept_free_private_spt",)),
    "mng.vpflushdone": Fault("MNG.VPFLUSHDONE=OPERAND_INVALID", warns=RELEASE),
    "mng.vpflushdone-busy": Fault("MNG.VPFLUSHDONE=OPERAND_BUSY", warns=RELEASE),
    "mng.vpflushdone-not-done": Fault(
        "MNG.VPFLUSHDONE=FLUSHVP_NOT_DONE", warns=("tdx_sept_free_private_spt",)
    ),
    "phymem.cache.wb": Fault("PHYMEM.CACHE.WB=OPERAND_INVALID", warns=WRITE_BACK),
    "phymem.cache.wb-busy": Fault("PHYMEM.CACHE.WB=SYS_BUSY", warns=WRITE_BACK),
    "phymem.cache.wb-interrupted": Fault("PHYMEM.CACHE.WB=INTERRUPTED_RESUMABLE*3"),
    "phymem.cache.wb-nothing-to-do": Fault("PHYMEM.CACHE.WB=NO_HKID_READY_TO_WBCACHE", warns=RELEASE),
    "mng.key.freeid": Fault("MNG.KEY.FREEID=OPERAND_INVALID", warns=RELEASE),
    "mng.key.freeid-busy": Fault("MNG.KEY.FREEID=OPERAND_BUSY", warns=RELEASE),
    "phymem.page.reclaim-tdcx": Fault("PHYMEM.PAGE.RECLAIM=OPERAND_BUSY", warns=RECLAIM),
    "phymem.page.reclaim-tdvpr": Fault("PHYMEM.PAGE.RECLAIM:6=OPERAND_INVALID", warns=RECLAIM),
    "phymem.page.reclaim-sept": Fault("PHYMEM.PAGE.RECLAIM:7=OPERAND_INVALID", warns=RECLAIM),
    "phymem.page.reclaim-tdcs": Fault("PHYMEM.PAGE.RECLAIM:10=OPERAND_INVALID", warns=RECLAIM),
    "phymem.page.reclaim-tdr": Fault(
        "PHYMEM.PAGE.RECLAIM:16=OPERAND_INVALID", warns=("tdx_reclaim_td_control_pages",)
    ),
    "phymem.page.wbinvd-tdr": Fault(
        "PHYMEM.PAGE.WBINVD:5=OPERAND_INVALID", warns=("tdx_reclaim_td_control_pages",)
    ),
    "mng.create-no-entropy": Fault("MNG.CREATE=RND_NO_ENTROPY", creates=2),
    # After all that a TD lives as if nothing had happened.
    "none-at-last": Fault(""),
}

# The memory of these TDs goes back to the page allocator while the TDX module still has it, and
# the next TD would get it: each needs a boot of its own.
ALONE = {
    "mem.range.block": Fault("MEM.RANGE.BLOCK=OPERAND_INVALID", RUN, ZAP_AND_ROOT),
    "mem.range.block-busy-twice": Fault("MEM.RANGE.BLOCK=OPERAND_BUSY*2", RUN, ZAP_AND_ROOT),
    "mem.range.block-at-the-end": Fault("MEM.RANGE.BLOCK:2=OPERAND_INVALID", warns=ZAP_AND_ROOT),
    "mem.track": Fault("MEM.TRACK=OPERAND_INVALID", RUN, ZAP_AND_ROOT),
    "mem.track-busy-twice": Fault("MEM.TRACK=OPERAND_BUSY*2", RUN, ZAP_AND_ROOT),
    "mem.track-last-epoch": Fault("MEM.TRACK=PREVIOUS_TLB_EPOCH_BUSY", RUN, ZAP_AND_ROOT),
    "mem.page.remove": Fault("MEM.PAGE.REMOVE=OPERAND_INVALID", RUN, ZAP_AND_ROOT),
    "mem.page.remove-busy-twice": Fault("MEM.PAGE.REMOVE=OPERAND_BUSY*2", RUN, ZAP_AND_ROOT),
    "mem.page.remove-at-the-end": Fault("MEM.PAGE.REMOVE:2=OPERAND_INVALID", warns=ZAP_AND_ROOT),
    "phymem.page.wbinvd": Fault("PHYMEM.PAGE.WBINVD=OPERAND_INVALID", RUN, ZAP),
    "phymem.page.wbinvd-at-the-end": Fault("PHYMEM.PAGE.WBINVD:2=OPERAND_BUSY", warns=ZAP),
}

# Only a vCPU that halts makes KVM read a field of it.
HALTING = {
    "vp.rd": Fault(
        "VP.RD=OPERAND_INVALID", "KVM_GET_MP_STATE: Input/output error", ("tdh_vp_rd_failed",), "--until-halt"
    )
}
