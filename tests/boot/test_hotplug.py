# SPDX-License-Identifier: GPL-2.0
"""CPUs and memory come and go on a running system."""

from __future__ import annotations

from pathlib import Path

import pytest
from qemu.qmp.legacy import QEMUMonitorProtocol

from machine import wait_for

OFF_AND_ON = """
cpu=/sys/devices/system/cpu/cpu1/online
echo 0 >$cpu; echo "off=$?"
echo "now=$(cat $cpu)"
echo 1 >$cpu; echo "on=$?"
echo "then=$(cat $cpu)"
echo "online=$(nproc)"
"""


@pytest.mark.parametrize("sockets", ["1", "2"])
def test_cpu_goes_offline_and_comes_back(machine, sockets):
    boot = machine.run("--cpus", "2", "--sockets", sockets, script=OFF_AND_ON)
    boot.check_up()
    assert [boot.value(name) for name in ("off", "now", "on", "then", "online")] == list("00012")
    # The module knows the CPU already: it must not be initialised twice.
    assert boot.results("TDH.SYS.LP.INIT") == {"SUCCESS": 2}


def test_cpu_offline_leaves_vmx_and_flushes(machine):
    """The CPU that goes may hold dirty private lines, and nobody flushes for it later."""
    boot = machine.run("--cpus", "2", script="echo 0 >/sys/devices/system/cpu/cpu1/online\n")
    boot.check_up()
    cpu = boot.summary["cpus"][1]
    assert not cpu["vmxon"], cpu
    assert not cpu["cache_dirty"] and cpu["wbinvds"] > 0, cpu


def test_every_cpu_but_one_goes_offline(machine):
    script = "for c in 1 2 3; do echo 0 >/sys/devices/system/cpu/cpu$c/online || exit 1; done; nproc\n"
    boot = machine.run("--cpus", "4", "--sockets", "2", script=script)
    boot.check_up()


def test_cpu_comes_online_after_bring_up(machine):
    """Firmware enabled one CPU, Linux starts a second one late: the machine has it all along."""
    script = "echo 1 >/sys/devices/system/cpu/cpu1/online; echo on=$?\n"
    boot = machine.run("--cpus", "2", "--append", "maxcpus=1", script=script)
    boot.check_off()
    assert boot.value("on") == "0"


# Waits for the blocks of a DIMM that is plugged in, and tries to use one. The
# line "ready" on the console tells the test to plug it in.
PLUG = """
cd /sys/devices/system/memory
before=$(ls -d memory[0-9]* | wc -l)
echo; echo ready
for i in $(seq 100); do
	[ $(ls -d memory[0-9]* | wc -l) -gt $before ] && break
	sleep 0.2
done
block=$(ls -d memory[0-9]* | sort -V | tail -n 1)
echo "blocks=$(($(ls -d memory[0-9]* | wc -l) - before))"
echo "was=$(cat $block/state)"
echo online >$block/state; echo "online=$?"
echo "is=$(cat $block/state)"
"""


def plug_in(directory: Path) -> None:
    """Plug 256 MB in as soon as the guest waits for it."""
    wait_for(directory, "ready")
    qmp = QEMUMonitorProtocol(str(directory / "qmp"))
    qmp.connect(negotiate=True)
    try:
        qmp.cmd("object-add", **{"qom-type": "memory-backend-ram", "id": "dimm0", "size": 256 << 20})
        qmp.cmd("device_add", driver="pc-dimm", id="plugged", memdev="dimm0")
    finally:
        qmp.close()


SLOT = ["--memory", "2G", "--dimm-slots", "1", "--max-memory", "4G"]


def plug(machine, *args: str):
    boot = machine.run("--cpus", "2", *SLOT, *args, script=PLUG, meanwhile=plug_in)
    assert int(boot.value("blocks")) > 0, boot.output
    assert boot.value("was") == "offline"
    return boot


def test_memory_outside_tdx_memory_is_refused(machine):
    """Memory that the TDX module does not know must not reach the page allocator."""
    boot = plug(machine)
    boot.check_up()
    assert boot.value("online") != "0"
    assert boot.value("is") == "offline"


def test_refusal_is_explained(rust):
    boot = plug(rust)
    assert any("TDX" in line and "memory" in line for line in boot.tdx_log[-3:]), boot.tdx_log


@pytest.mark.parametrize("args", [["--keyids", "0"], ["--no-module"]], ids=["no-tdx", "no-module"])
def test_memory_is_taken_while_tdx_is_off(machine, args):
    boot = plug(machine, *args)
    boot.check_off()
    assert boot.value("online") == "0"
    assert boot.value("is") == "online"
