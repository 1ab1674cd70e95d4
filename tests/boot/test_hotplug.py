# SPDX-License-Identifier: GPL-2.0
"""CPUs come and go on a running system."""

from __future__ import annotations

import pytest

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
