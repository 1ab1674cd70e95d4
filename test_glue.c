// SPDX-License-Identifier: GPL-2.0
/*
 * The C side of the KUnit tests that run TDs: what a VMM does around
 * TDH.VP.ENTER, and how a user in C takes memory from a TD.
 */
#include <kunit/test-bug.h>
#include <kunit/test.h>
#include <linux/err.h>
#include <linux/irqflags.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/sched.h>

#include <asm/debugreg.h>
#include <asm/entry-common.h>
#include <asm/fpu/api.h>
#include <asm/fpu/xcr.h>
#include <asm/msr.h>
#include <asm/trapnr.h>
#include <asm/tsc.h>
#include <asm/vmx.h>

#include "test_glue.h"

void tdx_test_skip(const char *reason)
{
	kunit_mark_skipped(kunit_get_current_test(), "%s", reason);
}

unsigned int tdx_test_tsc_khz(void)
{
	return tsc_khz;
}

struct page *tdx_test_pfn_to_page(u64 pfn)
{
	return pfn_to_page(pfn);
}

struct task_struct *tdx_test_start(int (*func)(void *data), void *data,
				   unsigned int cpu)
{
	return kthread_run_on_cpu(func, data, cpu, "tdx_test/%u");
}

/*
 * Registers that TDH.VP.ENTER leaves in a state of its own. XSS is among them on
 * processors that have it.
 */
static const u32 tdx_test_msrs[] = {
	MSR_STAR, MSR_LSTAR, MSR_SYSCALL_MASK, MSR_TSC_AUX, MSR_KERNEL_GS_BASE,
};

static void tdx_test_handle_event(u64 status, const struct tdx_module_args *args)
{
	/* Both were acknowledged by the exit: nobody else will handle them. */
	if (status == EXIT_REASON_EXTERNAL_INTERRUPT)
		x86_entry_from_kvm(EVENT_TYPE_EXTINT,
				   args->r9 & INTR_INFO_VECTOR_MASK);
	else if (status == EXIT_REASON_EXCEPTION_NMI &&
		 (args->r9 & INTR_INFO_INTR_TYPE_MASK) == INTR_TYPE_NMI_INTR)
		x86_entry_from_kvm(EVENT_TYPE_NMI, X86_TRAP_NMI);
}

/*
 * Run the vCPU until something ends it, unless @held says that it must stay out:
 * then return false. Interrupts are off from the look at @held to the exit, so
 * that a remote call which comes after @held was set is answered outside the
 * guest.
 */
bool tdx_test_vp_enter(struct tdx_vp *vp, struct tdx_module_args *args,
		       const bool *held, u64 *status)
{
	u64 msrs[ARRAY_SIZE(tdx_test_msrs)], xcr0, xss = 0;
	bool has_xss = boot_cpu_has(X86_FEATURE_XSAVES);
	bool enter;
	int i;

	kernel_fpu_begin();
	local_irq_disable();
	enter = !READ_ONCE(*held);
	if (enter) {
		for (i = 0; i < ARRAY_SIZE(msrs); i++)
			rdmsrq(tdx_test_msrs[i], msrs[i]);
		if (has_xss)
			rdmsrq(MSR_IA32_XSS, xss);
		xcr0 = xgetbv(XCR_XFEATURE_ENABLED_MASK);

		*status = tdh_vp_enter(vp, args);

		xsetbv(XCR_XFEATURE_ENABLED_MASK, xcr0);
		if (has_xss)
			wrmsrq(MSR_IA32_XSS, xss);
		for (i = 0; i < ARRAY_SIZE(msrs); i++)
			wrmsrq(tdx_test_msrs[i], msrs[i]);
		if (hw_breakpoint_active())
			hw_breakpoint_restore();
		tdx_test_handle_event(*status, args);
	}
	local_irq_enable();
	kernel_fpu_end();

	return enter;
}

/*
 * Take the pages at @gpas from the TD, and tell @removed about each. Return how
 * many left.
 */
int tdx_test_zap(struct tdx_tlb *tlb, const u64 *gpas, unsigned int nr,
		 int (*removed)(void *data, const struct tdx_tlb_range *range),
		 void *data)
{
	struct tdx_tlb_range range;
	unsigned int i;
	int ret, count = 0;

	for (i = 0; i < nr; i++) {
		ret = tdx_tlb_block(tlb, gpas[i], PG_LEVEL_4K);
		if (ret)
			goto cancel;
	}

	ret = tdx_tlb_track(tlb);
	if (ret)
		goto cancel;

	ret = tdx_tlb_kick(tlb);
	if (ret)
		goto cancel;

	while ((ret = tdx_tlb_remove_next(tlb, &range)) > 0) {
		ret = removed(data, &range);
		if (ret)
			goto cancel;
		count++;
	}
	if (!ret)
		return count;

cancel:
	tdx_tlb_cancel(tlb);
	return ret;
}
