# SPDX-License-Identifier: GPL-2.0
"""The machine tells kernels apart that start one another, and what one leaves to the next."""

from __future__ import annotations

import pytest

LOAD = "/kexec-tool load --kernel /bzImage --initrd /tmp/initramfs || exit 3\n"
EXEC = LOAD + "/kexec-tool exec; exit 4\n"
# A crash needs no TDX in the kernel after it, and one CPU is enough there.
LOAD_CRASH = LOAD.replace("load", "load --crash --append maxcpus=1", 1)
COPY = "/kexec-tool copy-vmcore\n"

# How the kernel under test says that it panics, as it is made to.
PANIC = r"Kernel panic - not syncing: (sysrq triggered crash|NMI: Not continuing)"

# The memory map of 2 GB leaves out little; what the crash kernel got itself is not in the file.
VMCORE_MIN = (2 << 30) - (300 << 20)


@pytest.fixture
def chain(kexec_tool):
    """A function: boot with what it takes to start another kernel."""

    def boot(machine, *args: str, **more):
        files = ["--file", f"{machine.image}:bzImage", "--file", str(kexec_tool)]
        return machine.run(*files, *args, **more)

    return boot


def ends(boot) -> list[str]:
    """How the kernels of a run ended, in order."""
    return [kernel["end"] for kernel in boot.summary["kernels"]]


def starts(boot) -> list[int]:
    """CPUs on which the kernels started."""
    return [x["cpu"] for x in boot.trace if x.get("event") == "kernel"]


def test_plain_boot_is_one_kernel(machine):
    boot = machine.run("--cpus", "4")
    assert ends(boot) == ["end-of-run"]
    assert starts(boot) == [0]


def test_kexec_twice_is_three_kernels(machine, chain):
    """Each of them brings TDX up and leaves nothing."""
    again = f"[ $TDX_MACHINE_KERNEL = 3 ] && exit 0\n{EXEC}"
    boot = chain(machine, "--cpus", "2", script=EXEC, next_script=again)
    assert ends(boot) == ["next-kernel", "next-kernel", "end-of-run"]
    assert starts(boot) == [0, 0, 0]
    kernels = boot.summary["kernels"]
    assert [k["private_bytes"] for k in kernels] == [{}] * 3
    assert [k["dirty_cpus"] for k in kernels] == [[]] * 3
    assert [k["seamcalls"] > 500 for k in kernels] == [True] * 3, boot.report


def test_kdump_on_any_cpu_is_a_next_kernel(machine, chain):
    """The crashed kernel's memory can be read whole. What it leaves is not the question here."""
    boot = chain(
        machine, "--cpus", "4", "--append", "crashkernel=256M",
        "--allow", "private-left", "--allow", "dirty-left",
        script=LOAD_CRASH + "taskset 4 sh -c 'echo c >/proc/sysrq-trigger'\n",
        next_script=COPY, allow=PANIC,
    )  # fmt: skip
    assert ends(boot) == ["next-kernel", "end-of-run"]
    assert starts(boot) == [0, 2]
    assert int(boot.value("vmcore")) > VMCORE_MIN


def test_nmi_crashes_the_kernel_where_it_is_wanted(machine, chain):
    boot = chain(
        machine, "--cpus", "2", "--append", "crashkernel=256M unknown_nmi_panic",
        "--at", "version_proc_show:2=nmi", "--allow", "private-left", "--allow", "dirty-left",
        script=LOAD_CRASH + "cat /proc/version; taskset 2 cat /proc/version; sleep 60\n",
        next_script=COPY, allow=PANIC,
    )  # fmt: skip
    assert [(x["cpu"], x["call"]) for x in boot.trace if x.get("event") == "nmi"] == [(1, 2)]
    assert ends(boot) == ["next-kernel", "end-of-run"]
    assert starts(boot) == [0, 1]
    assert "version_proc_show" in boot.console


@pytest.mark.parametrize("erratum", ["on", "off"])
def test_pamt_of_the_c_is_left_without_sys_disable(machine_with, chain, erratum):
    """The C converts nothing before kexec. That is wrong on a machine with the erratum only."""
    boot = chain(
        machine_with("c"), "--cpus", "2", "--no-feature", "sys-disable", "--erratum", erratum,
        "--allow", "private-left", script=EXEC, next_script="true\n",
    )  # fmt: skip
    left = boot.summary["kernels"][0]["private_bytes"]
    assert list(left) == ["pamt"] and left["pamt"] > 8 << 20, left
    found = boot.summary["allowed_violations"]
    assert found == ({"private-left": 1} if erratum == "on" else {})


def test_script_that_starts_no_kernel_fails(machine, chain):
    boot = chain(machine, script="true\n", next_script="true\n", status=1)
    assert "not started another kernel" in boot.console
    assert ends(boot) == ["end-of-run"]
