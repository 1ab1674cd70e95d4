# SPDX-License-Identifier: GPL-2.0
"""What the scenarios of kexec and kdump share: how to get there, and what the first kernel leaves."""

from __future__ import annotations

import re

from machine import Boot, Machine

LOAD = "/kexec-tool load --kernel /bzImage --initrd /tmp/initramfs || exit 3\n"
# The log of the way out can be seen on the console only.
EXEC = "dmesg -n 8\n/kexec-tool exec; exit 4\n"
# A crash needs no TDX in the kernel after it, and one CPU is enough there.
LOAD_CRASH = LOAD.replace("load", "load --crash --append maxcpus=1", 1)
COPY = "/kexec-tool copy-vmcore\n"
# What every kernel here is told.
PARAMETERS = "kvm_intel.tdx=1"
CRASH = {"append": "crashkernel=256M unknown_nmi_panic"}
MEMORY = ["--memory", "1G"]
# The memory map of 1 GB leaves out little; what the crash kernel got itself is not in the file.
VMCORE_MIN = (1 << 30) - (300 << 20)

# Without TDH.SYS.DISABLE, and with the erratum (the machine's default), somebody has to convert.
NO_DISABLE = ["--no-feature", "sys-disable"]

# Guests that leave for their VMM again and again, having taken some memory.
BUSY = """
accept 0x100000
accept 0x300000
mmio-write 0xfe000000 4 1
stay 10000
at-end loop
"""

# How the kernel under test says that it panics, as it is made to.
PANIC = r"Kernel panic - not syncing: (sysrq triggered crash|NMI: Not continuing|tdx-reset-test: )"

# What the C does: it also leaves VMX operation while TDs run, whose next calls fault. Of ours nothing
# is allowed.
WAYS_OF_THE_C = ("private-left", "dirty-left", "converted-dirty", "seamcall-fault", "td-misuse")
# KVM warns, on both kernels, if a TD goes on while TDX has been shut down.
KVM_WARNS = r"WARNING: arch/x86/kvm/"


def allowed(machine: Machine) -> list[str]:
    """Violations that are the C's way, for the table of what each kernel leaves."""
    return [x for kind in WAYS_OF_THE_C for x in ("--allow", kind)] if machine.kernel == "c" else []


def running(tds: int, vcpus: int) -> str:
    """Script: TDs run in the background, and are left to themselves."""
    if tds == 0:
        return ""
    return f"""
/td-client run --tds {tds} --vcpus {vcpus} --timeout 3600 >/log 2>&1 &
for i in $(seq 1200); do [ "$(grep -c built /log)" = {tds} ] && break; kill -0 $! || break; sleep 0.1; done
[ "$(grep -c built /log)" = {tds} ] || {{ cat /log; exit 5; }}
sleep 0.5
"""


def churning(loops: int, vcpus: int = 2, cpus: int = 4) -> str:
    """Script: in so many loops in the background TDs are built, run a moment and taken down.

    Each loop keeps to its CPU: KVM can fail to build a vCPU of a task that changes CPUs meanwhile.
    """
    return f"""
for n in $(seq {loops}); do
    taskset $(printf %x $((1 << n % {cpus}))) /td-client run --vcpus {vcpus} --max-exits 3 --repeat 1000000 --timeout 3600 >/log$n 2>&1 &
done
for n in $(seq {loops}); do
    for i in $(seq 1200); do grep -q '^round 1 ' /log$n && break; sleep 0.1; done
    grep -q '^round 1 ' /log$n || {{ cat /log$n; exit 5; }}
done
"""


def kexec(before: str = "") -> str:
    """Script: after `before` the next kernel starts, which was loaded while there was nothing else to do."""
    return LOAD + before + EXEC


def crash(before: str, how: str) -> str:
    """Script: after `before` the kernel panics by `how`, or by itself, and the crash kernel starts."""
    return f"{LOAD_CRASH}{before}{how}\nsleep 500; exit 7\n"


def ends(boot: Boot) -> list[str]:
    """How the kernels of a run ended, in order."""
    return [kernel["end"] for kernel in boot.summary["kernels"]]


def starts(boot: Boot) -> list[int]:
    """CPUs on which the kernels started."""
    return [x["cpu"] for x in boot.trace if x.get("event") == "kernel"]


def check_next(boot: Boot) -> None:
    """One kernel followed the first, on a machine that was not reset."""
    assert ends(boot) == ["next-kernel", "end-of-run"], boot.report


def check_nothing_left(boot: Boot) -> None:
    """The first kernel left nothing private and no dirty cache, and its tables only when all was said."""
    check_next(boot)
    first = boot.summary["kernels"][0]
    assert first["private_bytes"] == {} and first["dirty_cpus"] == [], first
    assert first["seamcalls_after_conversion"] == 0, first


def said(boot: Boot, pattern: str) -> bool:
    """Whether TDX host support said so on the console, on the way out."""
    return bool(re.search(rf"virt/tdx: .*{pattern}", boot.console))


def account(boot: Boot, scenario: str) -> dict:
    """What the first kernel did about private memory, in numbers."""
    kernels = boot.summary["kernels"]
    first = kernels[0] if kernels else {}
    left = sum(first.get("private_bytes", {}).values())
    converted = sum(first.get("converted_bytes", []))
    violations = boot.summary["violations"] | boot.summary["allowed_violations"]
    return {
        "scenario": re.sub(r"\b(c|rust)-|-(c|rust)\b|\[(c|rust)\]", "", scenario),
        "kernel": boot.kernel,
        "violations": violations,
        "left": first.get("private_bytes", {}),
        "converted": converted,
        "needed": converted + left,
        "released": first.get("released_bytes", 0),
        "late_seamcalls": first.get("seamcalls_after_conversion", 0),
        "wbinvds": sum(first.get("wbinvds", [])),
        "dirty_cpus": len(first.get("dirty_cpus", [])),
    }
