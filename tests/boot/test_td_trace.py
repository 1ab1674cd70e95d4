# SPDX-License-Identifier: GPL-2.0
"""KVM on our module makes the SEAMCALLs that it makes on the C, from a TD's first to its last.

The calls agree in order, leaf, version, operands, status and returned registers.
No difference is known; if one comes up on purpose, it has to be listed here with
its reason. What cannot be compared is named in `td_trace`: where the kernel's
allocator puts a page, and the frequency of the TSC.
"""

from __future__ import annotations

import pytest

import td_trace
from td import LIFE, check_gone, check_guests, check_status

# The guest and the VMM do the same each time: one vCPU, and no halt, whose length is a matter of time.
SHAPES = {
    "1-cpu": ([], "run --read-cpuid", "", 1),
    # The VMM stays on CPU 1, so that its thread does not meet the vCPU on another CPU by chance.
    "2-packages": (["--cpus", "2", "--sockets", "2"], "run", "taskset 2", 1),
    "three-tds-in-turn": ([], "run --repeat 3", "", 3),
}


def in_order(calls: list[dict]) -> list[dict]:
    """TDH.PHYMEM.CACHE.WB runs on all packages at once: equal calls, in any order, with interrupts."""
    return [call for call in calls if call["leaf"] != "TDH.PHYMEM.CACHE.WB"]


def said(boot) -> list[str]:
    """What td-client printed, but for CPUID(15H): it has the measured frequency of the TSC."""
    return [line for line in boot.output.splitlines() if not line.startswith("00000015 ")]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_life_agrees(machine_with, run, shape, record_property):
    args, client, prefix, tds = SHAPES[shape]
    script = f"{prefix} /td-client {client} 2>&1; echo status=$?\n"
    boots = {kernel: run(machine_with(kernel), *args, guests=LIFE, script=script) for kernel in ("rust", "c")}
    for boot in boots.values():
        check_status(boot)
        check_gone(boot, tds)
        check_guests(boot, tds)
    ours, theirs = (td_trace.life(boot) for boot in boots.values())
    record_property("calls", len(ours))
    record_property("leaves", len({call["leaf"] for call in ours}))
    assert len(ours) > 150 * tds, "too few calls for a whole life"
    assert td_trace.first_difference(in_order(ours), in_order(theirs)) == ""
    leaf = "TDH.PHYMEM.CACHE.WB"
    assert boots["rust"].results(leaf) == boots["c"].results(leaf)
    assert said(boots["rust"]) == said(boots["c"]), "KVM tells the VMM the same"
