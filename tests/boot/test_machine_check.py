# SPDX-License-Identifier: GPL-2.0
"""Machine checks: the panic says whether the memory is in use by the TDX module.

They are those of a load that got poisoned data: uncorrected, signalled, action required, of the line at
a physical address. QEMU's monitor raises them, or the machine with `--erratum strict`. The kernels here
cannot do without a page of memory (CONFIG_MEMORY_FAILURE), so they panic.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from handover import BUSY, COPY, NO_DISABLE, check_nothing_left, crash, running
from hotplug import monitor
from machine import wait_for

# IA32_MCi_STATUS: VAL, UC, EN, MISCV, ADDRV, S, AR, data load. MISC: physical address of a line.
STATUS, MISC = 0xBD80_0000_0000_0134, 0x86
# IA32_MCG_STATUS: MCIP, EIPV, RIPV.
MCG_STATUS = 7
EXPLANATION = "Machine check: TDX private memory error. Possible kernel bug."


def used(directory: Path, memory: str) -> int:
    """An address in a page of that kind, from the trace of the run, which is still being written."""
    whole, _, _ = (directory / "trace.jsonl").read_text().rpartition("\n")
    calls = {x["leaf"]: x for x in map(json.loads, whole.splitlines()) if x["type"] == "seamcall"}
    if memory == "pamt":
        base, size = (int(x, 16) for x in calls["TDH.SYS.CONFIG"]["tdmrs"][0]["pamt_4k"])
        return base + size - 64
    if memory == "tdr":
        return int(calls["TDH.MNG.CREATE"]["in"]["rcx"], 16) + 0x840
    return 16 << 20


@pytest.mark.parametrize("memory", ["pamt", "tdr", "ordinary"])
def test_panic_says_whose_memory_it_is(machine, td_client, tmp_path, memory):
    def meanwhile(directory: Path) -> None:
        wait_for(directory, "ready")
        with monitor(directory) as qmp:
            line = f"mce 0 1 {STATUS} {MCG_STATUS} {used(directory, memory)} {MISC}"
            qmp.protocol.cmd("human-monitor-command", **{"command-line": line})

    (tmp_path / "guests").write_text(BUSY)
    boot = machine.run(
        "--append", "kvm_intel.tdx=1", "--file", str(td_client), "--td-script", str(tmp_path / "guests"),
        "--expect", "panic", script=f"{running(1, 1)}echo ready\nsleep 600\n", allow="Kernel panic",
        meanwhile=meanwhile,
    )  # fmt: skip
    assert "not syncing: Fatal machine check" in boot.console
    assert (EXPLANATION in boot.console) == (memory != "ordinary"), boot.console
    asked = boot.calls("TDH.PHYMEM.PAGE.RDMD")
    assert len(asked) == 1, asked


# Partial writes of private memory poison it.
STRICT = ["--erratum", "strict", *NO_DISABLE]


# Private memory is touched, on purpose.
TOUCHED = ["--allow", "private-write", "--allow", "private-read"]


def check_caught(boot) -> None:
    """The first load of a poisoned line, by the kernel, ended it with the explanation."""
    events = {x["event"]: x for x in boot.trace if x["type"] == "event" and "address" in x}
    line = int(events["machine-check"]["address"], 16)
    assert f"Machine Check Exception: f Bank 1: {STATUS:x}" in boot.console, boot.console
    assert "RIP 10:" in boot.console and f" ADDR {line:x} MISC {MISC:x}" in boot.console
    assert "not syncing: Fatal local machine check" in boot.console
    assert EXPLANATION in boot.console
    assert boot.summary["poisoned_lines"] > 0 and boot.summary["machine_checks"] == 1, boot.report


# Our log says where the tables of the module are.
STRAY = r"""
pamt=$(dmesg | sed -n 's/.*PAMT \[\(0x[0-9a-f]*\),.*/\1/p')
insmod /reset-test.ko stray=$pamt
"""


def test_stray_write_of_a_kernel_to_private_memory(rust, reset_test):
    """The bug that the explanation is for."""
    boot = rust.run(
        *STRICT, *TOUCHED, "--file", f"{reset_test}:reset-test.ko", "--expect", "panic", script=STRAY,
        allow="Kernel panic",
    )  # fmt: skip
    check_caught(boot)


@pytest.mark.two_kernels
def test_dump_after_a_stray_write(rust, chain, reset_test):
    """All memory is read, and what was poisoned has been made normal before.

    A machine check of the crash kernel would reset the machine, as the first one is still in progress.
    """
    boot = chain(
        rust, *STRICT, *TOUCHED, "--memory", "512M", "--file", f"{reset_test}:reset-test.ko",
        script=crash(STRAY, ""), next_script=COPY, allow="Kernel panic", timeout=240,
        append="crashkernel=256M",
    )  # fmt: skip
    check_nothing_left(boot)
    check_caught(boot)
    assert int(boot.value("vmcore")) > 200 << 20
