/* SPDX-License-Identifier: GPL-2.0 */
/*
 * TDH.VP.ENTER: the one SEAMCALL that uses all registers, and that KVM makes
 * from code that must not be instrumented. All other leaves are called from
 * seamcall.rs.
 */
#include <linux/linkage.h>

#include <asm/asm.h>
#include <asm/asm-offsets.h>
#include <asm/frame.h>
#include <asm/percpu.h>
#include <asm/tdx.h>

#include "vp_enter.h"

.section .noinstr.text, "ax"

/*
 * u64 tdh_vp_enter(struct tdx_vp *vp, struct tdx_module_args *args)
 *
 * Runs the vCPU until something ends it. RDX, R8 to R15, RBX, RDI and RSI go in
 * from args, and come back there with RCX when the module ran; RCX goes in as
 * the address of the vCPU. Returns the module's status, or one of the kernel's
 * own if it was not reached: then args is as before.
 *
 * Preemption is off. Not instrumented.
 */
SYM_FUNC_START(tdh_vp_enter)
	FRAME_BEGIN

	/* Set before TDX is shut down: no call may begin after that. */
	cmpl	$0, tdx_host_shut_down(%rip)
	jne	.Lnot_reached

	/*
	 * From here on the cache may hold dirty lines of private memory. An NMI
	 * that ends this kernel can come at any time, so say it before the call.
	 */
	movb	$1, PER_CPU_VAR(cache_state_incoherent)

	pushq	%rbx
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	pushq	%rsi

	movq	TDX_VP_tdvpr_pa(%rdi), %rcx
	movq	TDX_MODULE_rdx(%rsi), %rdx
	movq	TDX_MODULE_r8(%rsi), %r8
	movq	TDX_MODULE_r9(%rsi), %r9
	movq	TDX_MODULE_r10(%rsi), %r10
	movq	TDX_MODULE_r11(%rsi), %r11
	movq	TDX_MODULE_r12(%rsi), %r12
	movq	TDX_MODULE_r13(%rsi), %r13
	movq	TDX_MODULE_r14(%rsi), %r14
	movq	TDX_MODULE_r15(%rsi), %r15
	movq	TDX_MODULE_rbx(%rsi), %rbx
	movq	TDX_MODULE_rdi(%rsi), %rdi
	movq	TDX_MODULE_rsi(%rsi), %rsi

	/* TDH.VP.ENTER is leaf 0. */
	xorl	%eax, %eax
.Lseamcall:
	.byte	0x66, 0x0f, 0x01, 0xcf
	jc	.Lno_module

	/* Every register may be the guest's: the stack alone knows args. */
	pushq	%rsi
	movq	8(%rsp), %rsi
	popq	TDX_MODULE_rsi(%rsi)
	movq	%rcx, TDX_MODULE_rcx(%rsi)
	movq	%rdx, TDX_MODULE_rdx(%rsi)
	movq	%r8, TDX_MODULE_r8(%rsi)
	movq	%r9, TDX_MODULE_r9(%rsi)
	movq	%r10, TDX_MODULE_r10(%rsi)
	movq	%r11, TDX_MODULE_r11(%rsi)
	movq	%r12, TDX_MODULE_r12(%rsi)
	movq	%r13, TDX_MODULE_r13(%rsi)
	movq	%r14, TDX_MODULE_r14(%rsi)
	movq	%r15, TDX_MODULE_r15(%rsi)
	movq	%rbx, TDX_MODULE_rbx(%rsi)
	movq	%rdi, TDX_MODULE_rdi(%rsi)

.Lclear:
	/*
	 * Leave nothing of the guest's in registers, where the host could use it
	 * by speculation. That includes those restored below: the load may be
	 * slow, and the old value be used meanwhile.
	 */
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	xorl	%edi, %edi
	xorl	%r8d, %r8d
	xorl	%r9d, %r9d
	xorl	%r10d, %r10d
	xorl	%r11d, %r11d
	xorl	%ebx, %ebx
	xorl	%r12d, %r12d
	xorl	%r13d, %r13d
	xorl	%r14d, %r14d
	xorl	%r15d, %r15d

	popq	%rsi
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbx
.Lout:
	FRAME_END
	RET

.Lfault:
	/* The exception's number is in RAX. */
	movq	$TDX_SW_ERROR, %rcx
	orq	%rcx, %rax
	jmp	.Lclear

.Lno_module:
	movq	$TDX_SEAMCALL_VMFAILINVALID, %rax
	jmp	.Lclear

.Lnot_reached:
	movq	$TDX_SEAMCALL_VMFAILINVALID, %rax
	jmp	.Lout

	_ASM_EXTABLE_FAULT(.Lseamcall, .Lfault)
SYM_FUNC_END(tdh_vp_enter)
