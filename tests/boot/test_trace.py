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

PAGE = 4096

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
# 4. With several CPUs ours cuts the TDMRs of the C into more, so that CPUs can share
#    the work: the same memory, the same tables of 4 KB and 2 MB pages, and a page more
#    for each cut, to which the table of 1 GB pages is rounded up.
# 5. The TDMRs are initialised side by side, each by as many calls as in the C.


def order(boot) -> list[str]:
    """Leaves in the order of their first call."""
    return list(dict.fromkeys(x["leaf"] for x in boot.trace if x["type"] == "seamcall"))


def tdmrs(boot) -> list[dict]:
    """TDMRs given to the module."""
    return boot.calls("TDH.SYS.CONFIG")[0]["tdmrs"]


def pieces(rust, whole: dict) -> list[dict]:
    """Our TDMRs that begin in a TDMR of the C."""
    start, end = span(whole)
    return [tdmr for tdmr in tdmrs(rust) if start <= span(tdmr)[0] < end]


def span(tdmr: dict) -> tuple[int, int]:
    base = int(tdmr["base"], 16)
    return base, base + int(tdmr["size"], 16)


def tables(tdmr: dict) -> dict[str, int]:
    """Bytes of its PAMT, table by table."""
    return {name: int(tdmr[name][1], 16) for name in ("pamt_4k", "pamt_2m", "pamt_1g")}


def reserved(boot) -> int:
    """Bytes in reserved areas, PAMTs among them."""
    return sum(int(size, 16) for tdmr in tdmrs(boot) for _, size in tdmr["reserved"])


def check_same_memory(whole: dict, parts: list[dict]) -> None:
    """`parts` make up `whole`, with a page more of PAMT for each cut."""
    ends = [span(part) for part in parts]
    assert (ends[0][0], ends[-1][1]) == span(whole)
    assert all(one[1] == two[0] for one, two in zip(ends, ends[1:]))
    expected = tables(whole)
    expected["pamt_1g"] += PAGE * (len(parts) - 1)
    assert {name: sum(tables(part)[name] for part in parts) for name in expected} == expected


def areas(tdmr: dict) -> int:
    """Reserved areas of a TDMR."""
    return len(tdmr["reserved"])


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
    assert len(tdmrs(rust)) == sum(len(pieces(rust, whole)) for whole in tdmrs(c))
    assert reserved(rust) == reserved(c) + PAGE * (len(tdmrs(rust)) - len(tdmrs(c)))
    for whole in tdmrs(c):
        parts = pieces(rust, whole)
        assert shape != "1-cpu" or len(parts) == 1, "one CPU has nobody to share with"
        check_same_memory(whole, parts)
        assert all(areas(part) <= areas(whole) for part in parts)
        assert sum(initialised(rust)[part["base"]] for part in parts) == initialised(c)[whole["base"]]
    assert not fields(c) - fields(rust), "fields that the C reads and ours does not"
    assert fields(rust) - fields(c) == ADDITIONAL_FIELDS.keys(), "list these fields with their reason"
