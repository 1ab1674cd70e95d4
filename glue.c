// SPDX-License-Identifier: GPL-2.0
/*
 * The C side of the Rust TDX host support: accessors for macros, static inlines
 * and per-CPU variables, the initcall, and the exported symbols. No logic.
 */
#include <linux/cpu.h>
#include <linux/export.h>
#include <linux/init.h>
#include <linux/percpu.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/sched/clock.h>
#include <linux/topology.h>

#include <asm/cpufeature.h>
#include <asm/msr.h>
#include <asm/processor.h>
#include <asm/special_insns.h>
#include <asm/virt.h>

#include "glue.h"

/* Set once TDH.SYS.LP.INIT has succeeded on the CPU. */
static DEFINE_PER_CPU(bool, tdx_lp_initialized);

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

void tdx_glue_set_bug_seamret_invd_vmcs(void)
{
	setup_force_cpu_bug(X86_BUG_SEAMRET_INVD_VMCS);
}

u32 tdx_glue_boot_cpu_vfm(void)
{
	return boot_cpu_data.x86_vfm;
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

void tdx_glue_cache_set_incoherent(bool incoherent)
{
	this_cpu_write(cache_state_incoherent, incoherent);
}

bool tdx_glue_cache_incoherent(void)
{
	return this_cpu_read(cache_state_incoherent);
}

void tdx_glue_wbinvd(void)
{
	wbinvd();
}

bool tdx_glue_lp_initialized(void)
{
	return this_cpu_read(tdx_lp_initialized);
}

void tdx_glue_set_lp_initialized(bool done)
{
	this_cpu_write(tdx_lp_initialized, done);
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

bool tdx_glue_cpu_online(unsigned int cpu)
{
	return cpu_online(cpu);
}

unsigned int tdx_glue_cpu_package(unsigned int cpu)
{
	return topology_physical_package_id(cpu);
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

subsys_initcall(tdx_enable);

/* In the order of asm/tdx.h, so that the list compares with its declarations. */
EXPORT_SYMBOL_FOR_MODULES(tdx_get_sysinfo, "kvm-intel,tdx-host");
EXPORT_SYMBOL_FOR_KVM(tdx_guest_keyid_alloc);
EXPORT_SYMBOL_FOR_KVM(tdx_get_nr_guest_keyids);
EXPORT_SYMBOL_FOR_KVM(tdx_guest_keyid_free);
EXPORT_SYMBOL_FOR_KVM(tdx_quirk_reset_paddr);
