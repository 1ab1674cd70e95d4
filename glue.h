/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the Rust TDX host support takes from C.
 *
 * bindgen reads this file (see rust/bindings/bindings_helper.h), so everything
 * declared or included here is visible to Rust as kernel::bindings::*. Only
 * what Rust cannot spell belongs here: macros, static inlines and per-CPU data.
 * Each function is one line deep and decides nothing.
 */
#ifndef _X86_VIRT_TDX_GLUE_H
#define _X86_VIRT_TDX_GLUE_H

#include <linux/acpi.h>
#include <linux/cpuhotplug.h>
#include <linux/gfp.h>
#include <linux/kthread.h>
#include <linux/memblock.h>
#include <linux/memory.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/notifier.h>
#include <linux/smp.h>
#include <linux/suspend.h>
#include <linux/syscore_ops.h>
#include <linux/types.h>
#include <linux/vmalloc.h>

#include <asm/cpu_device_id.h>
#include <asm/extable_fixup_types.h>
#include <asm/mce.h>
#include <asm/msr-index.h>
#include <asm/seamldr.h>
#include <asm/smp.h>
#include <asm/tdx.h>
#include <asm/vmx.h>

/* Macros whose values bindgen cannot evaluate by itself. */
enum tdx_glue_const {
	TDX_GLUE_EX_TYPE_FAULT = EX_TYPE_FAULT,
	TDX_GLUE_VFM_SAPPHIRERAPIDS = INTEL_SAPPHIRERAPIDS_X,
	TDX_GLUE_VFM_EMERALDRAPIDS = INTEL_EMERALDRAPIDS_X,
};

/* Processor features, errata and identity. */
bool tdx_glue_has_platform(void);
void tdx_glue_set_platform(void);
bool tdx_glue_has_xsave(void);
bool tdx_glue_has_movdir64b(void);
bool tdx_glue_has_selfsnoop(void);
bool tdx_glue_has_bug_pw_mce(void);
void tdx_glue_set_bug_pw_mce(void);
bool tdx_glue_has_bug_seamret_invd_vmcs(void);
void tdx_glue_set_bug_seamret_invd_vmcs(void);
u32 tdx_glue_boot_cpu_vfm(void);
u32 tdx_glue_phys_bits(void);
int tdx_glue_rdmsr_safe(u32 msr, u64 *val);

/* This CPU: VMX, caches, per-CPU state, preemption. */
int tdx_glue_vmx_get(void);
void tdx_glue_vmx_put(void);
void tdx_glue_cache_set_coherent(void);
bool tdx_glue_cache_incoherent(void);
void tdx_glue_wbinvd(void);
void tdx_glue_preempt_disable(void);
void tdx_glue_preempt_enable(void);
void tdx_glue_cond_resched(void);
u64 tdx_glue_clock_ns(void);

/* Spinning locks that may be taken with interrupts off. */
void tdx_glue_lock_sys_init(void);
void tdx_glue_unlock_sys_init(void);
void tdx_glue_lock_seamldr(void);
void tdx_glue_unlock_seamldr(void);

/* All CPUs. */
void tdx_glue_cpus_read_lock(void);
void tdx_glue_cpus_read_unlock(void);
int tdx_glue_stop_machine(int (*func)(void *data), void *data);
void tdx_glue_relax_stopped(void);
u64 tdx_glue_handed_last(unsigned int cpu);
bool tdx_glue_lp_initialized(unsigned int cpu);
void tdx_glue_set_lp_initialized(unsigned int cpu, bool done);
bool tdx_glue_cpu_possible(unsigned int cpu);
bool tdx_glue_cpu_online(unsigned int cpu);
unsigned int tdx_glue_cpu_package(unsigned int cpu);
int tdx_glue_cpu_node(unsigned int cpu);
unsigned int tdx_glue_nr_online_cpus(void);
unsigned int tdx_glue_nr_present_cpus(void);
bool tdx_glue_kexec_in_progress(void);
void tdx_glue_on_each_cpu(void (*func)(void *info));

/* Memory. */
void tdx_glue_get_online_mems(void);
void tdx_glue_put_online_mems(void);
struct page *tdx_glue_alloc_contig(unsigned long nr_pages, int nid);
bool tdx_glue_same_zone(unsigned long one_pfn, unsigned long other_pfn);
int tdx_glue_alloc_contig_range(unsigned long start_pfn, unsigned long end_pfn);
unsigned long tdx_glue_page_to_pfn(struct page *page);
u64 tdx_glue_virt_to_phys(const void *addr);
void *tdx_glue_phys_to_virt(u64 addr);
void tdx_glue_hand_over(u64 pfn, unsigned int size);

/* Messages that Rust cannot format. */
void tdx_glue_say_user(const struct notifier_block *nb, const char *what);

#ifdef CONFIG_INTEL_TDX_HOST_KUNIT_TEST
#include "test_glue.h"
#endif

/* Who wants to know of a memory reset. */
extern struct blocking_notifier_head tdx_glue_reset_chain;

/* tdx_host.rs, called by the initcall in glue.c. */
int tdx_enable(void);

#endif /* _X86_VIRT_TDX_GLUE_H */
