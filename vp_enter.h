/* SPDX-License-Identifier: GPL-2.0 */
/* What vp_enter.S has to know about C structures; glue.c checks it. */
#ifndef _X86_VIRT_TDX_VP_ENTER_H
#define _X86_VIRT_TDX_VP_ENTER_H

/* Offset of tdvpr_pa in struct tdx_vp. */
#define TDX_VP_tdvpr_pa		8

#endif /* _X86_VIRT_TDX_VP_ENTER_H */
