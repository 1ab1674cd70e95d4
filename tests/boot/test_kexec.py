# SPDX-License-Identifier: GPL-2.0
"""Kexec: the machine tells kernels apart, and ours leaves nothing private to the next, whatever runs."""

from __future__ import annotations

import re

import pytest

import handover
from handover import (
    KVM_WARNS,
    MEMORY,
    NO_DISABLE,
    allowed,
    check_next,
    check_nothing_left,
    churning,
    ends,
    running,
    said,
    starts,
)


pytestmark = pytest.mark.two_kernels


def test_plain_boot_is_one_kernel(machine):
    boot = machine.run("--cpus", "4")
    assert ends(boot) == ["end-of-run"]
    assert starts(boot) == [0]


def test_kexec_twice_is_three_kernels(machine, chain):
    """Each of them brings TDX up and leaves nothing."""
    again = f"[ $TDX_MACHINE_KERNEL = 3 ] && exit 0\n{handover.kexec()}"
    boot = chain(machine, "--cpus", "2", script=handover.kexec(), next_script=again)
    assert ends(boot) == ["next-kernel", "next-kernel", "end-of-run"]
    assert starts(boot) == [0, 0, 0]
    kernels = boot.summary["kernels"]
    assert [k["private_bytes"] for k in kernels] == [{}] * 3
    assert [k["dirty_cpus"] for k in kernels] == [[]] * 3
    assert [k["seamcalls"] > 500 for k in kernels] == [True] * 3, boot.report


@pytest.mark.parametrize("erratum", ["on", "off"])
def test_pamt_of_the_c_is_left_without_sys_disable(machine_with, chain, erratum):
    """The C converts nothing before kexec. That is wrong on a machine with the erratum only."""
    boot = chain(
        machine_with("c"), "--cpus", "2", "--no-feature", "sys-disable", "--erratum", erratum,
        "--allow", "private-left", script=handover.kexec(), next_script="true\n",
    )  # fmt: skip
    left = boot.summary["kernels"][0]["private_bytes"]
    assert list(left) == ["pamt"] and left["pamt"] > 8 << 20, left
    found = boot.summary["allowed_violations"]
    assert found == ({"private-left": 1} if erratum == "on" else {})
    # It is found when the next kernel loads its first interrupt descriptor table.
    callers = [boot.callers(violation)[0] for violation in boot.summary["first_violations"]]
    assert callers == (["common_startup_64"] if erratum == "on" else [])


def test_script_that_starts_no_kernel_fails(machine, chain):
    boot = chain(machine, script="true\n", next_script="true\n", status=1)
    assert "not started another kernel" in boot.console
    assert ends(boot) == ["end-of-run"]


# What runs when the kernel is told to start the next one: TDs that were built, and ones that are just
# being built or taken down.
TDS = {
    "none": "",
    "one": running(1, 1),
    "two": running(2, 2),
    "eight": running(8, 4),
    "churn": churning(6),
}
NEXT_UP = "dmesg | grep -q 'virt/tdx: TDX-Module initialized'; echo up=$?\n"


def kexec(chain, machine, tds: str, *args: str, before: str = "", **more):
    """Start the next kernel, and say in it whether TDX came up again."""
    script = handover.kexec(TDS[tds] + before)
    args = ("--cpus", "4", *MEMORY, *args, *allowed(machine))
    return chain(
        machine, *args, script=script, next_script=NEXT_UP, allow=KVM_WARNS, timeout=240, **more
    )  # fmt: skip


def check_stays_off(boot) -> None:
    """The module keeps what it has until the machine is reset, which both kernels say."""
    assert boot.value("up") == "1", boot.output
    if boot.kernel == "rust":
        assert said(boot, "no TDH.SYS.DISABLE: TDX stays unavailable"), boot.console
        assert any("not by kexec" in line for line in boot.tdx_log), boot.tdx_log


@pytest.mark.parametrize("tds", ["none", "one", "eight", pytest.param("churn", marks=pytest.mark.checked)])
def test_kexec_converts_what_the_module_keeps(machine, chain, tds):
    """Without TDH.SYS.DISABLE. The C leaves its PAMTs, and the TDs."""
    boot = kexec(chain, machine, tds, *NO_DISABLE)
    check_next(boot)
    if machine.kernel == "rust":
        check_nothing_left(boot)
        # Of a TD that is just being taken down KVM does not know whether it is there still.
        asked = said(boot, "asking the TDX module")
        assert tds == "churn" or not asked, "KVM knows its TDs"
    else:
        assert "pamt" in boot.summary["kernels"][0]["private_bytes"]
        assert "private-left" in boot.summary["allowed_violations"]
        check_entries(boot, tds)
    check_stays_off(boot)


def check_entries(boot, tds: str) -> None:
    """vCPUs of the C that enter their TD when VMX operation was left do so for their VMM's KVM_RUN."""
    entries = [v for v in boot.summary["first_violations"] if "TDH.VP.ENTER raised" in v["text"]]
    assert entries or tds != "eight", boot.report
    for callers in map(boot.callers, entries):
        assert "kvm_arch_vcpu_ioctl_run" in callers, callers


def test_nothing_private_is_touched_on_the_way(rust, chain):
    """Every load and store of both kernels is watched: none but MOVDIR64B hits a private line."""
    boot = kexec(chain, rust, "two", *NO_DISABLE, "--watch-memory")
    check_nothing_left(boot)


def test_kexec_without_the_erratum_converts_nothing(machine, chain):
    """Whatever the next kernel writes makes the memory normal, so nobody has to."""
    boot = kexec(chain, machine, "two", *NO_DISABLE, "--erratum", "off")
    check_next(boot)
    first = boot.summary["kernels"][0]
    assert sum(first["converted_bytes"]) == 0 and first["private_bytes"], first
    if machine.kernel == "rust":
        assert first["dirty_cpus"] == [], first
    check_stays_off(boot)


@pytest.mark.checked
def test_kexec_with_sys_disable(machine, chain):
    """The module gives up all memory by itself, if late, and comes up again in the next kernel."""
    inject = "TDH.SYS.DISABLE=INTERRUPTED_RESUMABLE*1000"
    boot = kexec(chain, machine, "eight", "--inject", inject)
    check_next(boot)
    first = boot.summary["kernels"][0]
    assert first["released_bytes"] > 0, first
    assert boot.value("up") == "0", boot.output
    if machine.kernel == "rust":
        check_nothing_left(boot)


def test_kexec_when_sys_disable_fails(machine, chain):
    """Ours converts then; for the C there is nothing else."""
    boot = kexec(chain, machine, "two", "--inject", "TDH.SYS.DISABLE=OPERAND_INVALID*always")
    check_next(boot)
    if machine.kernel == "rust":
        check_nothing_left(boot)
        assert said(boot, "shutting TDX down"), boot.console
    else:
        assert "private-left" in boot.summary["allowed_violations"]


# Parameters of the module with awkward users; whether the TDX module has to be asked about pages,
# and what the log says.
USERS = {
    "fail": (True, "1 of 2 users of TDs could not make their memory normal"),
    "stop": (False, ""),
    "lie": (True, "2 TDs exist, and 2 users converted the memory of 3"),
    "racers": (False, ""),
    "alone": (True, "2 TDs exist, and 0 users converted the memory of 0"),
}


@pytest.mark.parametrize("user", USERS)
def test_users_of_the_memory_reset(rust, chain, reset_test, user):
    """Whatever a user says, the others are called, and nothing is left.

    `alone` takes KVM out of the chain: its TDs are those of a user that never registered.
    """
    value = "4" if user == "racers" else "1"
    boot = kexec(
        chain, rust, "two", *NO_DISABLE, "--file", f"{reset_test}:reset-test.ko",
        before=f"insmod /reset-test.ko {user}={value} || exit 6\ndmesg | grep registrations\n",
    )  # fmt: skip
    check_nothing_left(boot)
    asks, says = USERS[user]
    assert said(boot, "asking the TDX module") == asks, boot.console
    assert says in boot.console
    if user == "racers":
        races = re.search(r"(\d+) registrations so far", boot.console)
        assert races and int(races[1]) > 300, "they are to race the reset"


@pytest.mark.checked
def test_kexec_after_an_update(rust, chain, tdx_host, image):
    """The TDs went over to the new module, and so do the books about them."""
    update = """
    insmod /tdx-host.ko; fw=/sys/class/firmware/tdx_module
    echo 1 >$fw/loading; cat /new >$fw/data; echo 0 >$fw/loading
    until [ "$(cat $fw/status)" = idle ]; do sleep 0.1; done
    echo "update=$(cat $fw/error)"
    """
    new = image("--module", "update=26", *NO_DISABLE)
    boot = kexec(
        chain, rust, "two", *NO_DISABLE, "--file", f"{tdx_host('rust')}:tdx-host.ko",
        "--file", f"{new}:new", before=update,
    )  # fmt: skip
    assert boot.value("update") == "" and boot.summary["updates"] == 1
    check_nothing_left(boot)
    assert sum(boot.summary["kernels"][0]["converted_bytes"]) > 4 << 20, boot.report
