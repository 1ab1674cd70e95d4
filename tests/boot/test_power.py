# SPDX-License-Identifier: GPL-2.0
"""Reboot, power-off and suspend leave nothing of TDX behind."""

from __future__ import annotations

import pytest


def check_left_clean(boot) -> None:
    """Nothing is private, and no CPU could still write private lines back."""
    assert boot.summary["bring_up"]["was_ready"], boot.report
    assert boot.summary["private_pages"] == 0, boot.report
    assert boot.results("TDH.SYS.DISABLE") == {"SUCCESS": 1}
    for number, cpu in enumerate(boot.summary["cpus"]):
        assert not cpu["cache_dirty"], f"CPU {number} holds dirty private lines: {boot.report}"


@pytest.mark.parametrize("cpus", ["1", "4"])
def test_power_off(machine, cpus):
    check_left_clean(machine.run("--cpus", cpus))


@pytest.mark.parametrize("cpus", ["1", "4"])
def test_reboot(machine, cpus):
    boot = machine.run("--cpus", cpus, "--expect", "reset", script="reboot -f\n")
    check_left_clean(boot)


def test_power_off_without_sys_disable(machine):
    """A module that cannot be disabled keeps its PAMTs. Ours does not ask it, the C does."""
    boot = machine.run("--cpus", "2", "--no-feature", "sys-disable")
    boot.check_up()
    assert boot.count("TDH.SYS.DISABLE") == (1 if machine.kernel == "c" else 0)


def test_reboot_after_failed_bring_up(machine):
    boot = machine.run("--inject", "TDH.SYS.CONFIG=OPERAND_INVALID", "--expect", "reset", script="reboot -f\n")
    assert boot.summary["private_pages"] == 0
    assert boot.count("TDH.SYS.CONFIG") == 1


def test_suspend_to_ram_is_refused_and_tdx_goes_on(machine):
    """S3 would lose TDX. The attempt gets as far as stopping the other CPUs, and comes back."""
    script = "echo deep >/sys/power/mem_sleep\necho mem >/sys/power/state; echo slept=$?\necho cpus=$(nproc)\n"
    boot = machine.run("--cpus", "2", script=script)
    boot.check_up()
    assert boot.value("slept") != "0"
    assert boot.value("cpus") == "2"
    assert boot.results("TDH.SYS.LP.INIT") == {"SUCCESS": 2}
    check_left_clean(boot)
