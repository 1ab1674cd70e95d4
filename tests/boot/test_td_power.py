# SPDX-License-Identifier: GPL-2.0
"""CPUs go and the machine is to sleep while TDs run."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from qemu.qmp.legacy import QEMUMonitorProtocol

from machine import wait_for
from td import check_gone, check_status

# A guest that leaves for its VMM again and again until the VMM has had enough.
BUSY = "mmio-write 0xfe000000 4 1\nstay 10000\nat-end loop\n"
# Starts a TD of two vCPUs in the background and waits until both run.
START = """
/td-client run --vcpus 2 --max-exits 400 >/log 2>&1 &
for i in $(seq 100); do grep -q built /log && break; sleep 0.1; done
sleep 0.3
"""
END = """
wait $!; echo status=$?
cat /log
"""


def test_cpu_goes_offline_while_a_td_runs(machine, run):
    """Its vCPU goes on elsewhere. The last CPU of a package must stay as long as there are TDs."""
    script = f"""{START}
    echo 0 >/sys/devices/system/cpu/cpu1/online; echo off=$?
    echo 1 >/sys/devices/system/cpu/cpu1/online; echo on=$?
    echo 0 >/sys/devices/system/cpu/cpu3/online; echo first=$?
    echo 0 >/sys/devices/system/cpu/cpu2/online; echo last=$?
    {END}
    echo 0 >/sys/devices/system/cpu/cpu2/online; echo later=$?
    """
    boot = run(machine, "--cpus", "4", "--sockets", "2", script=script, guests=BUSY)
    check_status(boot)
    assert [boot.value(name) for name in ("off", "on", "first", "later")] == ["0"] * 4
    assert boot.value("last") != "0", "the package has no CPU left to flush its caches"
    check_gone(boot, 1)


def suspend(state: str) -> str:
    return f"""{START}
    echo {state} >/sys/power/mem_sleep
    echo mem >/sys/power/state; echo slept=$?
    echo cpus=$(nproc)
    {END}
    """


@pytest.mark.parametrize("sockets", ["1", "2"])
def test_suspend_to_ram_is_refused_and_the_td_goes_on(machine, run, sockets):
    """S3 would lose TDX. The attempt comes back, before or after it has stopped the other CPUs."""
    boot = run(machine, "--cpus", "2", "--sockets", sockets, script=suspend("deep"), guests=BUSY)
    assert boot.value("slept") != "0"
    assert boot.value("cpus") == "2"
    check_status(boot)
    check_gone(boot, 1)
    assert boot.results("TDH.SYS.LP.INIT") == {"SUCCESS": 2}


# A wakeup that comes on the way to sleep ends the attempt: it is made again.
IDLE = f"""{START}
echo s2idle >/sys/power/mem_sleep
echo enabled >/sys/class/tty/ttyS0/power/wakeup
stty -F /dev/ttyS0 -echo ignbrk
echo; echo sleeping
for i in 1 2 3 4 5 6 7 8; do echo mem >/sys/power/state && break; done; echo slept=$?
echo; echo awake
echo cpus=$(nproc)
{END}
"""


def wake(directory: Path) -> None:
    """Breaks on the serial line, which may wake the machine, until it is awake."""
    wait_for(directory, "sleeping", timeout=240)
    qmp = QEMUMonitorProtocol(str(directory / "qmp"))
    qmp.connect(negotiate=True)
    try:
        for _ in range(60):
            time.sleep(0.5)
            if re.search(r"^awake\r?$", (directory / "console.log").read_text(), re.MULTILINE):
                return
            qmp.cmd("chardev-send-break", id="console")
    finally:
        qmp.close()
    raise AssertionError(f"the machine did not wake up, see {directory}")


def test_suspend_to_idle_keeps_the_td(machine, run):
    """The processors keep their state: the TD goes on where it was, and TDX needs nothing again."""
    boot = run(machine, "--cpus", "2", script=IDLE, guests=BUSY, meanwhile=wake, timeout=300)
    assert boot.value("slept") == "0", boot.log
    assert boot.value("cpus") == "2"
    assert "PM: suspend exit" in boot.log
    check_status(boot)
    check_gone(boot, 1)
    assert boot.results("TDH.SYS.INIT") == {"SUCCESS": 1}
    assert boot.results("TDH.SYS.LP.INIT") == {"SUCCESS": 2}
