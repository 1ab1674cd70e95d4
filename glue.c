// SPDX-License-Identifier: GPL-2.0
/*
 * The C side of the Rust TDX host support: accessors for macros, static inlines
 * and per-CPU variables, the initcall, and the exported symbols. No logic.
 */
#define pr_fmt(fmt) "virt/tdx: " fmt

#include <linux/cpu.h>
#include <linux/export.h>
#include <linux/init.h>
#include <linux/kexec.h>
#include <linux/nmi.h>
#include <linux/notifier.h>
#include <linux/percpu.h>
#include <linux/preempt.h>
#include <linux/printk.h>
#include <linux/sched.h>
#include <linux/sched/clock.h>
#include <linux/spinlock.h>
#include <linux/stop_machine.h>
#include <linux/topology.h>

#include <asm/cacheflush.h>
#include <asm/cpufeature.h>
#include <asm/msr.h>
#include <asm/processor.h>
#include <asm/special_insns.h>
#include <asm/virt.h>

#include "glue.h"
#include "vp_enter.h"

static_assert(offsetof(struct tdx_vp, tdvpr_pa) == TDX_VP_tdvpr_pa);

/* Orders TDH.SYS.INIT, which one CPU makes for all. */
static DEFINE_RAW_SPINLOCK(tdx_sys_init_lock);

/* The P-SEAMLDR serves one CPU at a time and refuses the others. */
static DEFINE_RAW_SPINLOCK(tdx_seamldr_lock);

/* Set once TDH.SYS.LP.INIT has succeeded on the CPU. */
static DEFINE_PER_CPU(bool, tdx_lp_initialized);

/* Page frame that the TDX module got last from this CPU, or is about to get. */
static DEFINE_PER_CPU(u64, tdx_handed_last);

/* Users of TDs that want to know of a memory reset. */
BLOCKING_NOTIFIER_HEAD(tdx_glue_reset_chain);

bool tdx_glue_has_platform(void)
{
	return boot_cpu_has(X86_FEATURE_TDX_HOST_PLATFORM);
}

void tdx_glue_set_platform(void)
{
	setup_force_cpu_cap(X86_FEATURE_TDX_HOST_PLATFORM);
}

bool tdx_glue_has_xsave(void)
{
	return boot_cpu_has(X86_FEATURE_XSAVE);
}

bool tdx_glue_has_movdir64b(void)
{
	return boot_cpu_has(X86_FEATURE_MOVDIR64B);
}

bool tdx_glue_has_selfsnoop(void)
{
	return boot_cpu_has(X86_FEATURE_SELFSNOOP);
}

bool tdx_glue_has_bug_pw_mce(void)
{
	return boot_cpu_has_bug(X86_BUG_TDX_PW_MCE);
}

void tdx_glue_set_bug_pw_mce(void)
{
	setup_force_cpu_bug(X86_BUG_TDX_PW_MCE);
}

bool tdx_glue_has_bug_seamret_invd_vmcs(void)
{
	return boot_cpu_has_bug(X86_BUG_SEAMRET_INVD_VMCS);
}

void tdx_glue_set_bug_seamret_invd_vmcs(void)
{
	setup_force_cpu_bug(X86_BUG_SEAMRET_INVD_VMCS);
}

u32 tdx_glue_boot_cpu_vfm(void)
{
	return boot_cpu_data.x86_vfm;
}

u32 tdx_glue_phys_bits(void)
{
	return boot_cpu_data.x86_phys_bits;
}

int tdx_glue_rdmsr_safe(u32 msr, u64 *val)
{
	return rdmsrq_safe(msr, val);
}

int tdx_glue_vmx_get(void)
{
	return x86_virt_get_ref(X86_FEATURE_VMX);
}

void tdx_glue_vmx_put(void)
{
	x86_virt_put_ref(X86_FEATURE_VMX);
}

void tdx_glue_cache_set_coherent(void)
{
	this_cpu_write(cache_state_incoherent, false);
}

bool tdx_glue_cache_incoherent(void)
{
	return this_cpu_read(cache_state_incoherent);
}

void tdx_glue_wbinvd(void)
{
	wbinvd();
}

u64 tdx_glue_handed_last(unsigned int cpu)
{
	return per_cpu(tdx_handed_last, cpu);
}

bool tdx_glue_lp_initialized(unsigned int cpu)
{
	return per_cpu(tdx_lp_initialized, cpu);
}

void tdx_glue_set_lp_initialized(unsigned int cpu, bool done)
{
	per_cpu(tdx_lp_initialized, cpu) = done;
}

void tdx_glue_preempt_disable(void)
{
	preempt_disable();
}

void tdx_glue_preempt_enable(void)
{
	preempt_enable();
}

void tdx_glue_cond_resched(void)
{
	cond_resched();
}

u64 tdx_glue_clock_ns(void)
{
	return local_clock();
}

void tdx_glue_lock_sys_init(void)
{
	raw_spin_lock(&tdx_sys_init_lock);
}

void tdx_glue_unlock_sys_init(void)
{
	raw_spin_unlock(&tdx_sys_init_lock);
}

void tdx_glue_lock_seamldr(void)
{
	raw_spin_lock(&tdx_seamldr_lock);
}

void tdx_glue_unlock_seamldr(void)
{
	raw_spin_unlock(&tdx_seamldr_lock);
}

void tdx_glue_cpus_read_lock(void)
{
	cpus_read_lock();
}

void tdx_glue_cpus_read_unlock(void)
{
	cpus_read_unlock();
}

int tdx_glue_stop_machine(int (*func)(void *data), void *data)
{
	return stop_machine_cpuslocked(func, data, cpu_online_mask);
}

void tdx_glue_relax_stopped(void)
{
	cpu_relax();
	touch_nmi_watchdog();
}

bool tdx_glue_cpu_possible(unsigned int cpu)
{
	return cpu_possible(cpu);
}

bool tdx_glue_cpu_online(unsigned int cpu)
{
	return cpu_online(cpu);
}

unsigned int tdx_glue_cpu_package(unsigned int cpu)
{
	return topology_physical_package_id(cpu);
}

int tdx_glue_cpu_node(unsigned int cpu)
{
	return cpu_to_node(cpu);
}

unsigned int tdx_glue_nr_online_cpus(void)
{
	return num_online_cpus();
}

unsigned int tdx_glue_nr_present_cpus(void)
{
	return num_present_cpus();
}

void tdx_glue_on_each_cpu(void (*func)(void *info))
{
	on_each_cpu(func, NULL, 1);
}

bool tdx_glue_kexec_in_progress(void)
{
	return kexec_in_progress;
}

void tdx_glue_get_online_mems(void)
{
	get_online_mems();
}

void tdx_glue_put_online_mems(void)
{
	put_online_mems();
}

struct page *tdx_glue_alloc_contig(unsigned long nr_pages, int nid)
{
	return alloc_contig_pages(nr_pages, GFP_KERNEL, nid, &node_online_map);
}

bool tdx_glue_same_zone(unsigned long one_pfn, unsigned long other_pfn)
{
	return page_zone(pfn_to_page(one_pfn)) == page_zone(pfn_to_page(other_pfn));
}

int tdx_glue_alloc_contig_range(unsigned long start_pfn, unsigned long end_pfn)
{
	return alloc_contig_range(start_pfn, end_pfn, ACR_FLAGS_NONE, GFP_KERNEL);
}

unsigned long tdx_glue_page_to_pfn(struct page *page)
{
	return page_to_pfn(page);
}

u64 tdx_glue_virt_to_phys(const void *addr)
{
	return __pa(addr);
}

void *tdx_glue_phys_to_virt(u64 addr)
{
	return __va(addr);
}

void tdx_glue_hand_over(u64 pfn, unsigned int size)
{
	this_cpu_write(tdx_handed_last, pfn);
	clflush_cache_range(pfn_to_kaddr(pfn), size);
}

void tdx_glue_say_user(const struct notifier_block *nb, const char *what)
{
	pr_warn("user %ps of TDs %s\n", nb->notifier_call, what);
}

subsys_initcall(tdx_enable);

/* In the order of asm/tdx.h and asm/seamldr.h: the list compares with those. */
EXPORT_SYMBOL_FOR_MODULES(tdx_get_sysinfo, "kvm-intel,tdx-host");
EXPORT_SYMBOL_FOR_KVM(tdx_guest_keyid_alloc);
EXPORT_SYMBOL_FOR_KVM(tdx_get_nr_guest_keyids);
EXPORT_SYMBOL_FOR_KVM(tdx_guest_keyid_free);
EXPORT_SYMBOL_FOR_KVM(tdx_quirk_reset_paddr);
EXPORT_SYMBOL_FOR_KVM(tdh_vp_enter);
EXPORT_SYMBOL_FOR_KVM(tdh_mng_addcx);
EXPORT_SYMBOL_FOR_KVM(tdh_mem_page_add);
EXPORT_SYMBOL_FOR_KVM(tdh_mem_sept_add);
EXPORT_SYMBOL_FOR_KVM(tdh_vp_addcx);
EXPORT_SYMBOL_FOR_KVM(tdh_mem_page_aug);
EXPORT_SYMBOL_FOR_KVM(tdh_mem_range_block);
EXPORT_SYMBOL_FOR_KVM(tdh_mng_key_config);
EXPORT_SYMBOL_FOR_KVM(tdh_mng_create);
EXPORT_SYMBOL_FOR_KVM(tdh_vp_create);
EXPORT_SYMBOL_FOR_KVM(tdh_mng_rd);
EXPORT_SYMBOL_FOR_KVM(tdh_mr_extend);
EXPORT_SYMBOL_FOR_KVM(tdh_mr_finalize);
EXPORT_SYMBOL_FOR_KVM(tdh_vp_flush);
EXPORT_SYMBOL_FOR_KVM(tdh_mng_vpflushdone);
EXPORT_SYMBOL_FOR_KVM(tdh_mng_key_freeid);
EXPORT_SYMBOL_FOR_KVM(tdh_mng_init);
EXPORT_SYMBOL_FOR_KVM(tdh_vp_init);
EXPORT_SYMBOL_FOR_KVM(tdh_vp_rd);
EXPORT_SYMBOL_FOR_KVM(tdh_vp_wr);
EXPORT_SYMBOL_FOR_KVM(tdh_phymem_page_reclaim);
EXPORT_SYMBOL_FOR_KVM(tdh_mem_track);
EXPORT_SYMBOL_FOR_KVM(tdh_mem_page_remove);
EXPORT_SYMBOL_FOR_KVM(tdh_phymem_cache_wb);
EXPORT_SYMBOL_FOR_KVM(tdh_phymem_page_wbinvd_tdr);
EXPORT_SYMBOL_FOR_KVM(tdh_phymem_page_wbinvd_hkid);
EXPORT_SYMBOL_FOR_KVM(tdx_tlb_create);
EXPORT_SYMBOL_FOR_KVM(tdx_tlb_destroy);
EXPORT_SYMBOL_FOR_KVM(tdx_tlb_block);
EXPORT_SYMBOL_FOR_KVM(tdx_tlb_track);
EXPORT_SYMBOL_FOR_KVM(tdx_tlb_kick);
EXPORT_SYMBOL_FOR_KVM(tdx_tlb_remove_next);
EXPORT_SYMBOL_FOR_KVM(tdx_tlb_cancel);
EXPORT_SYMBOL_GPL(tdx_register_memory_reset_notifier);
EXPORT_SYMBOL_GPL(tdx_unregister_memory_reset_notifier);
EXPORT_SYMBOL_FOR_MODULES(seamldr_get_info, "tdx-host");
EXPORT_SYMBOL_FOR_MODULES(seamldr_install_module, "tdx-host");
EXPORT_SYMBOL_FOR_MODULES(seamldr_lock_module_update, "tdx-host");
EXPORT_SYMBOL_FOR_MODULES(seamldr_unlock_module_update, "tdx-host");
