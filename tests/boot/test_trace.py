# SPDX-License-Identifier: GPL-2.0
"""The SEAMCALLs of our module and of the C are the same, up to what is listed here."""

from __future__ import annotations

from collections import Counter

import pytest

SHAPES = {
    "1-cpu": ["--cpus", "1"],
    "2-sockets": ["--cpus", "4", "--sockets", "2"],
    "2-nodes": ["--cpus", "2", "--numa", "2", "--memory", "6G"],
    "8G": ["--cpus", "2", "--memory", "8G"],
}

# Differences, each with its reason. Everything else must agree.
#
# 1. TDH.SYS.RD: ours reads more fields and in another order. That the fields of
#    the C are all among them is asserted; the additional ones are these.
ADDITIONAL_FIELDS = {
    "0x8800000100000002": "build number, for the log",
    "0x8800000200000001": "build date, for the log",
    "0x9000000100000000": "number of CMRs, for the log",
}
CMRS = range(32)
ADDITIONAL_FIELDS |= {f"{0x9000000300000080 + n:#x}": "base of a CMR, for the log" for n in CMRS}
ADDITIONAL_FIELDS |= {f"{0x9000000300000100 + n:#x}": "size of a CMR, for the log" for n in CMRS}
# 2. Addresses of memory that the kernel allocates: the array of TDMRs and the
#    PAMTs. Sizes and alignment of PAMTs are compared.
#    PAMTs of TDMRs share memory in ours, so that neighbours need one reserved area:
#    never more areas than in the C, and the same bytes.
# 3. Which CPU runs TDH.SYS.KEY.CONFIG for a package, and the order of the CPUs
#    in TDH.SYS.LP.INIT: any is right.


def order(boot) -> list[str]:
    """Leaves in the order of their first call."""
    return list(dict.fromkeys(x["leaf"] for x in boot.trace if x["type"] == "seamcall"))


def plan(boot) -> list[dict]:
    """TDMRs given to the module, without addresses of allocated memory."""
    return [
        {
            "base": tdmr["base"],
            "size": tdmr["size"],
            "pamt_sizes": [tdmr[name][1] for name in ("pamt_1g", "pamt_2m", "pamt_4k")],
            "reserved_bytes": sum(int(size, 16) for _, size in tdmr["reserved"]),
        }
        for tdmr in boot.calls("TDH.SYS.CONFIG")[0]["tdmrs"]
    ]


def areas(boot) -> list[int]:
    """Reserved areas of each TDMR."""
    return [len(tdmr["reserved"]) for tdmr in boot.calls("TDH.SYS.CONFIG")[0]["tdmrs"]]


def initialised(boot) -> Counter:
    """Calls of TDH.SYS.TDMR.INIT per TDMR."""
    calls = Counter()
    for call in boot.calls("TDH.SYS.TDMR.INIT"):
        calls[call["in"]["rcx"]] += call["count"]
    return calls


def fields(boot) -> set[str]:
    return {call["in"]["rdx"] for call in boot.calls("TDH.SYS.RD")}


@pytest.fixture(scope="module")
def boots(machine_with):
    """A function: one boot of each kernel on the same machine."""
    known: dict[str, tuple] = {}

    def boot(shape: str):
        if shape not in known:
            known[shape] = tuple(machine_with(k).run(*SHAPES[shape]) for k in ("c", "rust"))
        return known[shape]

    return boot


@pytest.mark.parametrize("shape", SHAPES)
def test_traces_agree(boots, shape, record_property):
    c, rust = boots(shape)
    record_property("seamcalls-c", c.summary["seamcalls"])
    record_property("seamcalls-rust", rust.summary["seamcalls"])
    assert order(rust) == order(c)
    for leaf in order(c):
        if leaf != "TDH.SYS.RD":
            assert rust.results(leaf) == c.results(leaf), leaf
    assert plan(rust) == plan(c)
    assert all(ours <= theirs for ours, theirs in zip(areas(rust), areas(c), strict=True))
    assert initialised(rust) == initialised(c)
    assert not fields(c) - fields(rust), "fields that the C reads and ours does not"
    assert fields(rust) - fields(c) == ADDITIONAL_FIELDS.keys(), "list these fields with their reason"
