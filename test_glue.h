/* SPDX-License-Identifier: GPL-2.0 */
/* What the KUnit tests that run TDs take from C. */
#ifndef _X86_VIRT_TDX_TEST_GLUE_H
#define _X86_VIRT_TDX_TEST_GLUE_H

#include <linux/kthread.h>
#include <linux/types.h>

#include <asm/tdx.h>

void tdx_test_skip(const char *reason);
unsigned int tdx_test_tsc_khz(void);
struct page *tdx_test_pfn_to_page(u64 pfn);
struct task_struct *tdx_test_start(int (*func)(void *data), void *data,
				   unsigned int cpu);
bool tdx_test_vp_enter(struct tdx_vp *vp, struct tdx_module_args *args,
		       const bool *held, u64 *status);
int tdx_test_zap(struct tdx_tlb *tlb, const u64 *gpas, unsigned int nr,
		 int (*removed)(void *data, const struct tdx_tlb_range *range),
		 void *data);

#endif /* _X86_VIRT_TDX_TEST_GLUE_H */
