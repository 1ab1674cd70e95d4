# SPDX-License-Identifier: GPL-2.0
"""Kdump: the crash kernel finds nothing private, in whatever context and place the first one panics.

Bring-up is not among the places: no crash kernel can be loaded before user space is there, and
bring-up is over by then. A panic before that stops the machine.
"""

from __future__ import annotations

import re

import pytest

from handover import (
    COPY,
    CRASH,
    MEMORY,
    NO_DISABLE,
    PANIC,
    VMCORE_MIN,
    allowed,
    check_next,
    check_nothing_left,
    churning,
    crash,
    running,
    said,
    starts,
)

pytestmark = pytest.mark.two_kernels

# The contexts of a panic: more arguments of the machine, what the script does, and with what the panic
# begins. The module with awkward users is for our kernel only.
CONTEXTS = {
    "task": ([], "taskset 4 sh -c 'echo c >/proc/sysrq-trigger'", "sysrq triggered crash"),
    "nmi": (
        ["--at", "version_proc_show:2=nmi"],
        "cat /proc/version; taskset 4 cat /proc/version",
        "NMI: Not continuing",
    ),
    "irq": ([], "taskset 4 insmod /reset-test.ko crash=irq", "crash in a hard interrupt"),
    "softirq": ([], "taskset 4 insmod /reset-test.ko crash=softirq", "crash in a soft interrupt"),
}


def kdump(chain, machine, before: str, how: str, *args: str, cpus: int = 4, **more):
    """Crash, and let the crash kernel read all of the memory."""
    args = ("--cpus", str(cpus), *MEMORY, *NO_DISABLE, *args, *allowed(machine))
    boot = chain(
        machine, *args, script=crash(before, how), next_script=COPY, allow=PANIC, timeout=540,
        **CRASH, **more,
    )  # fmt: skip
    check_next(boot)
    assert int(boot.value("vmcore")) > VMCORE_MIN
    if machine.kernel == "rust":
        check_nothing_left(boot)
        assert said(boot, "memory reset in .* on 1 CPUs"), boot.console
    return boot


@pytest.mark.parametrize("context", ["task", "nmi"])
def test_kdump_with_eight_tds(machine, chain, context):
    args, how, panic = CONTEXTS[context]
    boot = kdump(chain, machine, running(8, 4), how, *args)
    assert f"not syncing: {panic}" in boot.console
    assert starts(boot) == [0, 2], "the crash kernel starts where the panic was"
    if machine.kernel == "rust":
        assert not said(boot, "asking the TDX module"), "KVM knows its TDs"
    else:
        assert "private-left" in boot.summary["allowed_violations"]


def test_nothing_private_is_touched_by_the_dump(rust, chain):
    """Every load and store is watched, those of the copy of all memory among them."""
    kdump(chain, rust, running(2, 2), CONTEXTS["task"][1], "--watch-memory")


@pytest.mark.parametrize("context", [pytest.param("irq", marks=pytest.mark.checked), "softirq"])
def test_kdump_in_an_interrupt(rust, chain, reset_test, context):
    _, how, panic = CONTEXTS[context]
    file = f"{reset_test}:reset-test.ko"
    boot = kdump(chain, rust, running(2, 2), how, "--file", file)
    assert f"tdx-reset-test: {panic} (1)" in boot.console


def test_kdump_with_sys_disable(rust, chain):
    """Nothing is left to convert."""
    script = crash(running(2, 2), CONTEXTS["task"][1])
    boot = chain(
        rust, "--cpus", "4", *MEMORY, script=script, next_script=COPY, allow=PANIC, timeout=360, **CRASH
    )  # fmt: skip
    check_nothing_left(boot)
    assert boot.summary["kernels"][0]["released_bytes"] > 0, boot.report
    assert not said(boot, "memory reset in"), boot.console


def test_kdump_with_sys_disable_before_a_conversion(rust, chain):
    """The module gave a page back before it was disabled, and nobody has converted it."""
    boot = chain(
        rust, "--cpus", "4", *MEMORY, "--at", f"{PLACES['convert']}=nmi",
        script=crash(churning(4), ""), next_script=COPY, allow=PANIC, timeout=540, **CRASH,
    )  # fmt: skip
    check_nothing_left(boot)
    # Another CPU may have been as far.
    assert said(boot, r"memory reset in .*: 0 KB of PAMT, [1-9]\d* KB found"), boot.console


def after_removal(machine) -> list[str]:
    """Arguments: an NMI right after a TDH.MEM.PAGE.REMOVE."""
    function = "tdh_mem_page_remove"
    code = machine.disassembly(function)
    places = [code[n + 1][0] - code[0][0] for n, (_, name) in enumerate(code) if name == "seamcall"]
    assert len(places) == 1, code
    return ["--at", f"{function}+{places[0]:#x}:10=nmi"]


@pytest.mark.checked
def test_kdump_with_sys_disable_right_after_a_removal(rust, chain):
    """The module gave a page back before it was disabled, and only its user can name it.

    One loop: with more of them there may be other pages to convert.
    """
    boot = chain(
        rust, "--cpus", "4", *MEMORY, *after_removal(rust), script=crash(churning(1), ""),
        next_script=COPY, allow=PANIC, timeout=540, **CRASH,
    )  # fmt: skip
    check_nothing_left(boot)
    assert said(boot, "1 pages were just leaving TDs"), boot.console


# Calls of kernel functions at which an NMI comes while TDs are built and taken down in several loops:
# before a page is handed over, between the module's giving it back and its conversion, in the middle
# of KVM's changes of its page tables. The number lets the loops get going first.
PLACES = {
    "td": "tdh_mng_create:9",
    "page-table": "tdh_mem_sept_add:31",
    "remove": "tdh_mem_page_remove:40",
    "zap": "tdx_sept_set_private_spte:61",
    "unlink": "tdx_sept_free_private_spt:20",
    "reclaim": "tdh_phymem_page_reclaim:77",
    "convert": "tdx_quirk_reset_paddr:55",
}


@pytest.mark.parametrize(
    "place", [pytest.param(x, marks=pytest.mark.checked) if x == "remove" else x for x in PLACES]
)
def test_kdump_at_any_instruction(rust, chain, place):
    kdump(chain, rust, churning(4), "", "--at", f"{PLACES[place]}=nmi")


@pytest.mark.parametrize("leaf", ["MNG.CREATE", "VP.ADDCX", "MEM.SEPT.ADD", "MEM.PAGE.REMOVE"])
def test_kdump_right_after_a_call(rust, chain, leaf):
    """The module has the page, or has given it back, and the kernel does not know yet.

    Most of the time one of the CPUs is in a slow call, after which the first thing is the NMI that
    stops it.
    """
    how = CONTEXTS["task"][1]
    kdump(chain, rust, churning(4, vcpus=1), how, "--slow", f"TDH.{leaf}=100000")


def test_kdump_while_tds_get_memory(rust, chain):
    """The module has a page already that KVM does not map yet: it is the last that a CPU gave it.

    Such a page becomes private with TDH.MEM.PAGE.ADD; with TDH.MEM.PAGE.AUG only when the guest
    accepts it.
    """
    before = """
    for n in 1 2 3; do /td-client run --unmeasured 3000 --timeout 3600 >/log$n 2>&1 & done
    sleep 2
    """
    slow = ["--slow", "TDH.MEM.PAGE.ADD=100000"]
    boot = kdump(chain, rust, before, CONTEXTS["task"][1], *slow)
    assert boot.count("TDH.MEM.PAGE.ADD") > 3, boot.report


def test_kdump_at_a_removal_of_the_c(machine_with, chain):
    """For the table of what each kernel leaves."""
    kdump(chain, machine_with("c"), churning(4), "", "--at", f"{PLACES['remove']}=nmi")


@pytest.mark.parametrize("place", ["remove", "convert"])
def test_kdump_with_tds_that_nobody_knows(rust, chain, reset_test, place):
    """KVM is taken out of the chain. The TDX module calls a page free that is not converted yet.

    One loop, so that no other CPU is just inside TDH.MEM.PAGE.REMOVE: the NMI that stops it would come
    before the kernel knows which page that was. Nobody but a user that is registered knows it then.
    """
    before = "insmod /reset-test.ko alone=1 || exit 6\n" + churning(1)
    file = f"{reset_test}:reset-test.ko"
    boot = kdump(chain, rust, before, "", "--at", f"{PLACES[place]}=nmi", "--file", file)
    assert said(boot, "asking the TDX module"), boot.console


def test_kdump_says_what_nobody_knows(rust, chain, reset_test):
    """The module has given a page back, the kernel does not know which one, and KVM is not asked."""
    before = "insmod /reset-test.ko alone=1 || exit 6\n" + churning(4)
    boot = chain(
        rust, "--cpus", "4", *MEMORY, *NO_DISABLE, *after_removal(rust),
        "--file", f"{reset_test}:reset-test.ko", "--allow", "private-left",
        script=crash(before, ""), next_script=COPY, allow=PANIC, timeout=540, **CRASH,
    )  # fmt: skip
    check_next(boot)
    leaving = re.search(r"virt/tdx: ([1-3]) pages were just leaving TDs", boot.console)
    assert leaving, boot.console
    assert said(boot, f"pages may be left private \\({leaving[1]} that nobody could name"), boot.console
    left = boot.summary["kernels"][0]["private_bytes"]
    assert 0 < sum(left.values()) <= int(leaving[1]) * 4096, left


# Users that do not come back, by the parameters of the module with awkward users: their callbacks.
LOST = {
    "hang=2": ["test_hang", "test_hang"],
    "oops=1": ["test_oops"],
}


@pytest.mark.parametrize("users", LOST)
def test_kdump_with_users_that_do_not_come_back(rust, chain, reset_test, users):
    """Each of them takes a stopped CPU with it. All others are called, and the dump is made."""
    before = running(2, 2) + f"insmod /reset-test.ko {users}\n"
    boot = kdump(chain, rust, before, CONTEXTS["task"][1], "--file", f"{reset_test}:reset-test.ko")
    lost = re.findall(r"virt/tdx: user (\w+) .*of TDs hangs, or has crashed", boot.console)
    assert lost == LOST[users], boot.console
    of = len(lost) + 1
    assert said(boot, f"{len(lost)} of {of} users of TDs could not make their memory normal")
    assert not said(boot, "TDs exist, and"), "KVM has converted its TDs"


def test_kdump_on_one_cpu_with_a_user_that_fails(rust, chain, reset_test):
    """There is no CPU to help: users are called on the one that crashes."""
    before = running(1, 1) + "insmod /reset-test.ko fail=1\n"
    file = f"{reset_test}:reset-test.ko"
    boot = kdump(chain, rust, before, "echo c >/proc/sysrq-trigger", "--file", file, cpus=1)
    assert said(boot, "user test_reset .*of TDs could not make its memory normal"), boot.console
    assert said(boot, "asking the TDX module"), boot.console


@pytest.mark.parametrize(
    "place", ["up_write:60000", "blocking_notifier_chain_unregister:701"]
)
def test_kdump_while_users_come_and_go(rust, chain, reset_test, place):
    """The chain's lock is held, and the chain is in the middle of a change."""
    before = running(2, 2) + "insmod /reset-test.ko racers=4\n"
    kdump(chain, rust, before, "", "--at", f"{place}=nmi", "--file", f"{reset_test}:reset-test.ko")


def test_kdump_in_an_update(rust, chain, tdx_host, image):
    """All CPUs are in the update's lockstep, and the old module is being replaced."""
    update = """
    insmod /tdx-host.ko; fw=/sys/class/firmware/tdx_module
    echo 1 >$fw/loading; cat /new >$fw/data; echo 0 >$fw/loading
    """
    new = image("--module", "update=26", *NO_DISABLE)
    kdump(
        chain, rust, running(2, 2), update, "--at", "tdx_glue_lock_seamldr:2=nmi",
        "--file", f"{tdx_host('rust')}:tdx-host.ko", "--file", f"{new}:new",
    )  # fmt: skip
