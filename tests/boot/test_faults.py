# SPDX-License-Identifier: GPL-2.0
"""SEAMCALLs that fail: TDX comes up all the same, or stays off with everything given back."""

from __future__ import annotations

import pytest

# Leaf -> a status that it can really give, and with which bring-up cannot go on.
FAILURES = {
    "TDH.SYS.INIT": "SYS_INIT_NOT_PENDING",
    "TDH.SYS.LP.INIT": "INCONSISTENT_CPUID_FIELD",
    "TDH.SYS.RD": "METADATA_FIELD_ID_INCORRECT",
    "TDH.SYS.CONFIG": "OPERAND_INVALID",
    "TDH.SYS.KEY.CONFIG": "KEY_GENERATION_FAILED",
    "TDH.SYS.TDMR.INIT": "SYS_NOT_READY",
}
# What the instruction itself can do -> name in our log, errno.
NOT_REACHED = {
    "vmfail": ("SEAMCALL_VMFAILINVALID", -19),
    "gp": ("SEAMCALL_GP", -95),
    "ud": ("SEAMCALL_UD", -13),
}
EIO = -5


def check_rust_says(boot, leaf: str, status: str, errno: int) -> None:
    """Our log names the leaf, the status and the errno, and closes with the errno."""
    about = [line for line in boot.tdx_log if leaf in line and "failed" in line]
    assert about, f"no line about {leaf}: {boot.tdx_log}"
    assert f"TDX_{status}" in about[0], about[0]
    assert f"({errno})" in about[0], about[0]
    assert boot.tdx_log[-1] == f"TDX-Module initialization failed ({errno})", boot.tdx_log


def fail(machine, injection: str, script: str, record_property):
    boot = machine.run("--cpus", "2", "--sockets", "2", "--inject", injection, script=script)
    record_property("says", "\n".join(boot.tdx_log))
    record_property("seamcalls", boot.summary["seamcalls"])
    boot.check_off()
    return boot


@pytest.mark.parametrize("leaf", FAILURES)
def test_leaf_fails(machine, leaf, free_script, assert_given_back, record_property):
    boot = fail(machine, f"{leaf}={FAILURES[leaf]}", free_script, record_property)
    if machine.kernel == "rust":
        check_rust_says(boot, leaf, FAILURES[leaf], EIO)
    assert_given_back(boot)


@pytest.mark.parametrize("leaf", ["TDH.SYS.LP.INIT", "TDH.SYS.KEY.CONFIG", "TDH.SYS.TDMR.INIT"])
def test_second_call_fails(machine, leaf, free_script, assert_given_back, record_property):
    """The first CPU, package or chunk is done when the next one fails."""
    boot = fail(machine, f"{leaf}:2={FAILURES[leaf]}*always", free_script, record_property)
    if machine.kernel == "rust":
        check_rust_says(boot, leaf, FAILURES[leaf], EIO)
    assert_given_back(boot)


@pytest.mark.parametrize("cause", NOT_REACHED)
@pytest.mark.parametrize("leaf", ["TDH.SYS.INIT", "TDH.SYS.CONFIG", "TDH.SYS.TDMR.INIT"])
def test_module_is_not_reached(machine, leaf, cause, free_script, assert_given_back, record_property):
    """The module shuts itself down, or firmware takes it away, in the middle of bring-up."""
    boot = fail(machine, f"{leaf}={cause}", free_script, record_property)
    if machine.kernel == "rust":
        status, errno = NOT_REACHED[cause]
        check_rust_says(boot, leaf, status, errno)
    assert_given_back(boot)


@pytest.mark.parametrize("leaf", FAILURES)
def test_every_failure_says_what_to_do(rust, leaf):
    """A line follows that is no repetition of the failure: the remedy."""
    boot = rust.run("--inject", f"{leaf}={FAILURES[leaf]}")
    lines = boot.tdx_log
    failure = next(i for i, line in enumerate(lines) if f"{leaf} failed" in line)
    assert not lines[failure + 1].startswith("TDX-Module initialization failed"), lines[failure:]


ENTROPY_LEAVES = ["TDH.SYS.INIT", "TDH.SYS.KEY.CONFIG", "TDH.SYS.TDMR.INIT"]


@pytest.mark.parametrize("leaf", ENTROPY_LEAVES)
def test_no_entropy_for_a_while(machine, leaf):
    boot = machine.run("--cpus", "2", "--inject", f"{leaf}=RND_NO_ENTROPY*5")
    boot.check_up()
    assert boot.results(leaf)["RND_NO_ENTROPY"] == 5


@pytest.mark.parametrize("leaf", ENTROPY_LEAVES)
def test_no_entropy_for_ever(machine, leaf, free_script, assert_given_back, record_property):
    boot = fail(machine, f"{leaf}=RND_NO_ENTROPY", free_script, record_property)
    # The call is repeated, but not without end.
    assert 1 < boot.count(leaf) <= 100, boot.count(leaf)
    if machine.kernel == "rust":
        check_rust_says(boot, leaf, "RND_NO_ENTROPY", EIO)
    assert_given_back(boot)


def test_tdmr_init_busy(rust):
    """Another CPU holds the TDMR: our module tries again (the C gives up)."""
    boot = rust.run("--cpus", "2", "--inject", "TDH.SYS.TDMR.INIT=OPERAND_BUSY*7")
    boot.check_up()
    assert boot.results("TDH.SYS.TDMR.INIT")["OPERAND_BUSY"] == 7


def test_key_generation_fails_for_a_while(rust):
    """Another package may use up the entropy: our module tries again (the C gives up)."""
    boot = rust.run("--cpus", "2", "--inject", "TDH.SYS.KEY.CONFIG=KEY_GENERATION_FAILED*2")
    boot.check_up()
    assert boot.results("TDH.SYS.KEY.CONFIG") == {"KEY_GENERATION_FAILED": 2, "SUCCESS": 1}


def test_c_gives_up_when_tdmr_init_is_busy(machine_with, record_property):
    """The control for the test above: this is what our module does better."""
    boot = fail(machine_with("c"), "TDH.SYS.TDMR.INIT=OPERAND_BUSY*1", "true\n", record_property)
    assert boot.count("TDH.SYS.TDMR.INIT") == 1


def test_tdmr_init_is_resumed(machine):
    """The module does a TDMR in many short calls; none is left out."""
    boot = machine.run("--memory", "4G")
    boot.check_up()
    assert boot.count("TDH.SYS.TDMR.INIT") > 1000


def test_entropy_fails_while_tdmrs_are_initialised(machine):
    """Interrupted at several places, the rest goes on where it stood."""
    args = []
    for call in (2, 40, 300):
        args += ["--inject", f"TDH.SYS.TDMR.INIT:{call}=RND_NO_ENTROPY"]
    boot = machine.run("--cpus", "2", *args)
    boot.check_up()
    assert boot.results("TDH.SYS.TDMR.INIT")["RND_NO_ENTROPY"] == 3


def test_shutdown_is_interrupted(machine):
    """TDH.SYS.DISABLE stops for interrupts and is called again."""
    boot = machine.run("--cpus", "2", "--inject", "TDH.SYS.DISABLE=INTERRUPTED_RESUMABLE*3")
    boot.check_up()
    assert boot.results("TDH.SYS.DISABLE")["SUCCESS"] == 1
    assert boot.summary["private_pages"] == 0
