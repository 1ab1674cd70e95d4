# SPDX-License-Identifier: GPL-2.0
"""Each SEAMCALL of a TD's life fails in turn: KVM reacts on our module as on the C.

What KVM does about a failure is its own affair, leaks included. Here it counts
that the VMM is told the same, the log says the same and the same is left
behind, whichever module answered.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from conftest import client_runner
from handover import KVM_WARNS
from machine import CHECKED
from reaction import Fault, Reaction, arguments, functions, keyids, reactions, script
from td_faults import ALONE, FAULTS, HALTING

CLIENT = "/td-client run --pages 1 --unmeasured 1 --memory 2 --timeout 20"
# A page is added and accepted, given back and taken again.
GUEST = """
accept 0x100000
store 0x100000 7
map-gpa shared 0x100000 0x1000
store shared 0x100000 1
map-gpa private 0x100000 0x1000
accept 0x100000
at-end shutdown
"""

# What is not the same, and why. Everything else must be.
#
# When SEAMCALL itself fails the module has written no register. The C then reports its own
# operands as "entry" and "level_state"; ours reports zeroes.
NOT_REACHED = {"mem.page.add-no-module"}


def run_all(run, machine, faults: dict[str, Fault], guests: str = GUEST) -> dict[str, Reaction]:
    """One boot in which TDs meet these faults."""
    known = list(faults.values())
    boot = run(
        machine, *arguments(known), guests=guests, script=script(known, CLIENT),
        allow=KVM_WARNS if CHECKED else functions(known), timeout=300,
    )  # fmt: skip
    found = reactions(boot, known)
    return dict(zip(faults, found, strict=True)) | {"keyids": keyids(boot)}


def without_details(log: tuple[str, ...]) -> list[str]:
    return [line.partition(", entry ")[0] for line in log]


def without_warnings(reaction: Reaction) -> Reaction:
    """For comparison with a kernel that checks itself, in which other functions are inlined."""
    log = tuple(line for line in reaction.log if not line.startswith("warning in "))
    return replace(reaction, log=log)


def check_same(name: str, fault: Fault, ours: Reaction, theirs: Reaction) -> None:
    """Both kernels reacted as is known, and alike."""
    print(f"{name}: {fault.rule}\n{theirs}")
    warned = {line.split()[2] for line in theirs.log if line.startswith("warning in ")}
    assert warned == set(fault.warns)
    if CHECKED:
        ours, theirs = without_warnings(ours), without_warnings(theirs)
    if name in NOT_REACHED:
        assert without_details(ours.log) == without_details(theirs.log)
        assert ours.log != theirs.log, "no difference any more: take it out of the list"
    else:
        assert ours.log == theirs.log
    assert ours.says == theirs.says
    assert (ours.status, ours.left) == (theirs.status, theirs.left)
    assert theirs.status == (1 if fault.says else 0), theirs
    assert fault.says in "\n".join(theirs.says), theirs


@pytest.fixture(scope="module")
def batch(machine_with, td_client, tmp_path_factory):
    """Reactions of both kernels to all of `FAULTS`, by kernel and fault."""
    run = client_runner(td_client, tmp_path_factory.mktemp("guests"))
    return {kernel: run_all(run, machine_with(kernel), FAULTS) for kernel in ("c", "rust")}


@pytest.mark.xdist_group("td-failures")
@pytest.mark.parametrize("name", FAULTS)
def test_call_fails(batch, name, record_property):
    ours, theirs = batch["rust"][name], batch["c"][name]
    record_property("reaction", str(theirs))
    check_same(name, FAULTS[name], ours, theirs)


@pytest.mark.xdist_group("td-failures")
def test_keyids_are_leaked_alike(batch):
    """The next TD gets the KeyID on our module that it gets on the C: as many are gone."""
    assert batch["rust"]["keyids"] == batch["c"]["keyids"]
    assert batch["rust"]["none"] == batch["rust"]["none-at-last"]


@pytest.mark.parametrize("name", [*ALONE, *HALTING])
def test_call_fails_alone(machine_with, run, name, record_property):
    faults = {name: (ALONE | HALTING)[name]}
    guests = "at-end hlt\n" if name in HALTING else GUEST
    found = {kernel: run_all(run, machine_with(kernel), faults, guests) for kernel in ("c", "rust")}
    record_property("reaction", str(found["c"][name]))
    check_same(name, faults[name], found["rust"][name], found["c"][name])
