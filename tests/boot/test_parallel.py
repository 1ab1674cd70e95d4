# SPDX-License-Identifier: GPL-2.0
"""TDMRs are initialised on several CPUs at once.

Calls get a latency where all CPUs are to take part: the first would be done with
everything before the last has woken up.
"""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

from machine import Boot

LEAF = "TDH.SYS.TDMR.INIT"
GB = 1 << 30
# The machine initialises 4 MB in a call.
CALLS_PER_GB = 256


def tdmrs(boot: Boot) -> list[dict]:
    """TDMRs given to the module."""
    return boot.calls("TDH.SYS.CONFIG")[0]["tdmrs"]


def workers(boot: Boot) -> dict[str, set[int]]:
    """TDMR -> the CPUs that initialised it."""
    cpus = defaultdict(set)
    for call in boot.calls(LEAF):
        cpus[call["in"]["rcx"]].add(call["cpu"])
    return cpus


def phase(boot: Boot) -> float:
    """Seconds from the first TDH.SYS.TDMR.INIT to the end of the last."""
    leaf = boot.summary["leaves"][LEAF]
    return (leaf["last"]["micros"] - leaf["first"]["micros"]) / 1e6


def logged(boot: Boot) -> tuple[int, int]:
    """CPUs and GB of the line about initialisation."""
    found = [re.match(r"TDMRs initialized in \S+ ms, CPUs: (\d+), (\d+) GB", line) for line in boot.tdx_log]
    (match,) = filter(None, found)
    return int(match[1]), int(match[2])


def test_each_tdmr_is_initialised_by_one_of_many_cpus(rust):
    boot = rust.run("--cpus", "8", "--memory", "16G", "--latency", f"{LEAF}=300")
    boot.check_up()
    assert boot.results(LEAF) == {"SUCCESS": 16 * CALLS_PER_GB}
    by_tdmr = workers(boot)
    assert by_tdmr.keys() == {tdmr["base"] for tdmr in tdmrs(boot)}
    assert all(len(cpus) == 1 for cpus in by_tdmr.values()), by_tdmr
    assert set.union(*by_tdmr.values()) == set(range(8))
    assert logged(boot) == (8, 16)


def test_one_cpu_does_it_alone_and_nothing_is_cut(rust):
    boot = rust.run("--cpus", "1", "--memory", "8G")
    boot.check_up()
    assert [int(t["size"], 16) // GB for t in tdmrs(boot)] == [2, 6]
    assert logged(boot) == (1, 8)


def test_cpus_work_on_their_own_node(rust):
    """Until there is nothing left to do there."""
    boot = rust.run(
        "--cpus", "4", "--sockets", "2", "--numa", "2", "--memory", "16G", "--latency", f"{LEAF}=500",
        script="for node in 0 1; do echo node$node=$(cat /sys/devices/system/node/node$node/cpulist); done\n",
    )  # fmt: skip
    boot.check_up()
    first, last = map(int, boot.value("node1").split("-"))
    # QEMU gives half of the memory to each node, and 2 GB of it lie below the PCI hole.
    boundary = 10 * GB
    at_home = [
        (int(tdmr, 16) >= boundary) == (first <= cpu <= last) for tdmr, cpus in workers(boot).items() for cpu in cpus
    ]
    assert len(at_home) >= 8
    assert sum(at_home) >= len(at_home) * 3 / 4, at_home


def test_failure_stops_all(rust):
    """The others do not finish their TDMRs, the log tells of one failure, and nothing is left."""
    failing = 500
    # One more call each, if the host were to let the CPU that failed say so at once. To finish the
    # TDMRs they are at would take about 1300.
    more = 200
    boot = rust.run(
        "--cpus", "8", "--memory", "16G", "--latency", f"{LEAF}=300", "--inject", f"{LEAF}:{failing}=SYS_NOT_READY"
    )
    boot.check_off()
    assert boot.results(LEAF)["SYS_NOT_READY"] == 1
    assert failing <= boot.count(LEAF) <= failing + more
    failures = [line for line in boot.tdx_log if f"{LEAF} failed" in line]
    assert len(failures) == 1 and "SYS_NOT_READY" in failures[0], boot.tdx_log
    assert boot.tdx_log[-1] == "TDX-Module initialization failed (-5)"


def test_failure_of_all_is_told_once(rust):
    boot = rust.run("--cpus", "4", "--memory", "8G", "--inject", f"{LEAF}:200=SYS_NOT_READY*always")
    boot.check_off()
    assert len([line for line in boot.tdx_log if f"{LEAF} failed" in line]) == 1, boot.tdx_log


def test_busy_is_tried_again(rust):
    boot = rust.run("--cpus", "8", "--memory", "8G", "--inject", f"{LEAF}:100=OPERAND_BUSY*500")
    boot.check_up()
    assert boot.results(LEAF) == {"SUCCESS": 8 * CALLS_PER_GB, "OPERAND_BUSY": 500}


def test_busy_for_ever_is_given_up(rust):
    """A CPU calls a thousand times; others may learn of its failure before they have, too."""
    cpus = 4
    boot = rust.run("--cpus", str(cpus), "--memory", "8G", "--inject", f"{LEAF}:100=OPERAND_BUSY*always")
    boot.check_off()
    assert 1000 <= boot.results(LEAF)["OPERAND_BUSY"] <= cpus * 1000
    assert boot.tdx_log[-1] == "TDX-Module initialization failed (-5)"


def test_one_cpu_gives_up_as_well(rust):
    boot = rust.run("--cpus", "1", "--inject", f"{LEAF}:100=OPERAND_BUSY*always")
    boot.check_off()
    assert boot.results(LEAF)["OPERAND_BUSY"] == 1000


@pytest.mark.parametrize("limit", [2, 3])
def test_tdmrs_are_cut_as_far_as_the_limit_goes(rust, limit):
    boot = rust.run("--cpus", "4", "--memory", "8G", "--max-tdmrs", str(limit))
    boot.check_up()
    assert len(tdmrs(boot)) == limit
    # Memory needs two of them, so few are left in both cases; what was cut for speed does not count.
    warnings = [line for line in boot.tdx_log if line.startswith(f"2 of {limit} TDMRs are needed")]
    assert len(warnings) == 1, boot.tdx_log


@pytest.mark.counts
def test_eight_cpus_are_six_times_as_fast_as_the_c(machine_with, record_property):
    """Calls of 1 ms: what the emulator takes besides is small."""
    args = ["--cpus", "8", "--memory", "16G", "--latency", f"{LEAF}=1000"]
    c, rust = (machine_with(kernel).run(*args) for kernel in ("c", "rust"))
    for boot in (c, rust):
        boot.check_up()
    assert rust.results(LEAF) == c.results(LEAF), "the same work"
    record_property("seconds", f"C {phase(c):.2f}, Rust {phase(rust):.2f}")
    assert phase(c) > 6 * phase(rust), (phase(c), phase(rust))
