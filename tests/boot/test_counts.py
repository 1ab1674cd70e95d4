# SPDX-License-Identifier: GPL-2.0
"""How many instructions a call about a TD takes on our module, and on the C it replaces.

The machine counts them, from the first instruction of a function to its return,
SEAMCALL as one. Calls that were interrupted are left out, and the fewest
instructions of the others are compared.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from machine import Boot, Machine
from td import LIFE

pytestmark = pytest.mark.counts

# What KVM calls while a TD runs, and for each of its pages.
HOT = ["tdh_vp_enter", "tdh_mem_page_aug", "tdh_mem_page_remove", "tdh_mem_track"]

# Calls that take more than in the C, and at most how many more. Disabling preemption and marking
# the cache are macros in C; Rust reaches preemption through a function call, which forces values
# that live across it out of registers. And on this machine, which has the partial-write erratum, the
# calls that give a page to the module or take one from it keep the books for the memory reset (a
# region and a page noted, 14 instructions; a page given back, 54 or 51), which the C does not have.
# Everything else has to be as short as the C or shorter.
MORE = {
    "tdh_mem_page_add": 28,
    "tdh_mem_page_aug": 35,
    "tdh_mem_page_remove": 59,
    "tdh_mem_range_block": 5,
    "tdh_mem_sept_add": 29,
    "tdh_mng_addcx": 20,
    "tdh_mng_create": 25,
    "tdh_phymem_page_reclaim": 51,
    "tdh_phymem_page_wbinvd_hkid": 14,
    "tdh_phymem_page_wbinvd_tdr": 22,
    "tdh_vp_addcx": 16,
    "tdh_vp_create": 19,
}


def count(machine: Machine, tmp_path: Path, client: Path) -> Boot:
    guests = tmp_path / "guests"
    guests.write_text(LIFE)
    return machine.run(
        "--cpus", "2", "--append", "kvm_intel.tdx=1", "--file", str(client), "--td-script", str(guests),
        "--count-symbols", "tdh_*",
        script="/td-client run --tds 4 --vcpus 2\n", timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def boots(machine_with, td_client, tmp_path_factory) -> dict[str, Boot]:
    """The same TDs on the C and on ours."""
    tmp_path = tmp_path_factory.mktemp("counts")
    return {which: count(machine_with(which), tmp_path, td_client) for which in ("c", "rust")}


def fewest(boot: Boot) -> dict[str, int]:
    """Function -> instructions of its shortest call."""
    found = boot.summary["instructions"]
    return {name: counts["min"] for name, counts in found.items() if counts["min"] is not None}


def test_calls_are_as_long_as_known(boots, record_property):
    c, rust = fewest(boots["c"]), fewest(boots["rust"])
    calls = sorted(c)
    table = [f"{name:<28} {c[name]:>5} {rust.get(name, 0):>5}" for name in calls]
    record_property("instructions", "\n".join(table))
    print("\n".join(["function                         C  Rust", *table]))
    assert set(HOT) <= set(calls) and len(calls) > 20, calls
    assert set(calls) <= set(rust), "both made the same calls"
    longer = [line for line, name in zip(table, calls) if rust[name] > c[name] + MORE.get(name, 0)]
    assert not longer, longer
    known = {name: more for name, more in MORE.items() if rust[name] <= c[name]}
    assert not known, f"not longer any more, take them off the list: {known}"


def test_calls_are_counted_as_often_as_made(boots):
    """One SEAMCALL each, and those that were interrupted are told."""
    for boot in boots.values():
        for name in HOT:
            leaf = name.upper().replace("_", ".")
            assert boot.summary["instructions"][name]["calls"] == boot.count(leaf), name


def test_instructions_between_calls_are_counted(boots):
    """All of the kernel's, on all CPUs: at least 20 a call, or it would not get to the next one."""
    for boot in boots.values():
        read = boot.summary["leaves"]["TDH.SYS.RD"]
        between = read["last"]["executed"] - read["first"]["executed"]
        assert between > 20 * read["calls"], read


def test_count_is_that_of_the_code(boots, machine_with):
    """What the disassembler lists up to the return is what is counted: jumps go where it fails."""
    name = "tdh_vp_enter"
    mnemonics = [mnemonic for _, mnemonic in machine_with("rust").disassembly(name)]
    assert "seamcall" in mnemonics, mnemonics
    length = mnemonics.index("retq") + 1
    counts = boots["rust"].summary["instructions"][name]
    assert {counts["min"], counts["median"], counts["max"]} == {length}, mnemonics
