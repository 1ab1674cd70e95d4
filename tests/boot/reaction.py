# SPDX-License-Identifier: GPL-2.0
"""What KVM does when a SEAMCALL fails, in a form in which two kernels can be compared.

Many TDs live in one boot, one after the other, and each meets another fault. A
`Reaction` holds what the VMM was told, what the kernel logged, and what is left
of the TD.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from machine import Boot

MARK = "next fault:"
PAGE = 4096


@dataclass(frozen=True)
class Fault:
    """A fault in the life of one TD, and what is known of KVM's answer."""

    # `LEAF[:FIRST]=WHAT[*COUNT]`; without FIRST and COUNT it is the first call that fails.
    rule: str
    # Part of what td-client says; empty if it does not notice.
    says: str = ""
    # Functions of KVM that warn.
    warns: tuple[str, ...] = ()
    # More arguments of td-client.
    client: str = ""
    # Calls of TDH.MNG.CREATE until this TD has ended.
    creates: int = 1


@dataclass(frozen=True)
class Reaction:
    """What came of a fault."""

    status: int
    says: tuple[str, ...]
    log: tuple[str, ...]
    # Pages that are private after it and were not before, by use; "forgotten" ones the
    # module does not use any more, and KVM did not convert. "tds": TDs that still exist.
    left: dict[str, int]

    def __str__(self) -> str:
        left = ", ".join(f"{count} {name}" for name, count in self.left.items()) or "nothing"
        return "\n".join([f"status {self.status}", *self.says, *self.log, f"left: {left}"])


def arguments(faults: Sequence[Fault]) -> list[str]:
    """The machine's arguments that make the n-th TD meet the n-th fault."""
    args, td = [], 1
    for fault in faults:
        if fault.rule:
            leaf, first, what = re.fullmatch(r"([A-Z.]+)(:\d+)?(=.*)", fault.rule).groups()
            first = first or ("" if "*" in what else ":1")
            args += ["--inject", f"TDH.{leaf}@{td}{first}{what}"]
        td += fault.creates
    return args


def script(faults: Sequence[Fault], client: str) -> str:
    """A TD for each fault, one after the other."""
    lines = []
    for number, fault in enumerate(faults):
        lines += [
            # Each warning is given once only, unless it is told to forget that.
            "echo 1 >/sys/kernel/debug/clear_warn_once",
            f"echo '{MARK} {number}' >/dev/kmsg",
            f"echo '{MARK} {number}'",
            f"{client} {fault.client} 2>&1; echo status=$?",
        ]
    return "\n".join([*lines, "true\n"])


def functions(faults: Sequence[Fault]) -> str:
    """A pattern of the warnings that these faults are known for."""
    names = sorted({name for fault in faults for name in fault.warns})
    return rf"WARNING: arch/x86/kvm/(vmx|mmu)/[a-z_/]+\.[ch]:\d+ at ({'|'.join(names) or '-'})\+"


def parts(text: str) -> list[list[str]]:
    """Lines after each mark."""
    result: list[list[str]] = []
    for line in text.splitlines():
        if MARK in line:
            result.append([])
        elif result:
            result[-1].append(line)
    return result


# Lines of the kernel's log about KVM and TDX. Of a warning only its place is compared.
KEPT = re.compile(r"WARNING: |SEAMCALL|TDH_|HKID|kvm|virt/tdx|BUG|Bad page|td-client")
DROPPED = re.compile(
    r"^(RIP|CPU|Modules|Call Trace|Hardware|Code|R\w\w:| |\?|(hard|soft)irqs last)|\[last unloaded"
)


def log_line(line: str) -> str | None:
    """A line without time, addresses and the CPU; None if it does not matter."""
    line = re.sub(r"^\[[^\]]*\] ", "", line)
    if DROPPED.search(line) or not KEPT.search(line):
        return None
    place = re.match(r"WARNING: (\S+?):\d+ at (\w+)", line)
    if place:
        return f"warning in {place[2]} ({place[1].rpartition('/')[2]})"
    line = re.sub(r"kvm \[\d+\]", "kvm [PID]", line)
    return re.sub(r"0x[0-9a-f]+000\b", page_name, line)


def page_name(number: re.Match) -> str:
    """Pages of the kernel: where they lie is its allocator's matter. Guests have 2 MB here."""
    return "PAGE" if 2 << 20 <= int(number[0], 16) < 1 << 46 else number[0]


def left_after(boot: Boot) -> list[dict[str, int]]:
    """What is left at every TDH.MNG.CREATE and before the shutdown, PAMT not counted."""
    return [
        {name: size // PAGE for name, size in x["private"].items() if name != "pamt"}
        | {"forgotten": x["unconverted"] // PAGE, "tds": x["tds"]}
        for x in boot.trace
        if x.get("event") == "census"
    ]


def reactions(boot: Boot, faults: Sequence[Fault]) -> list[Reaction]:
    """What came of each fault."""
    said, logged, left = parts(boot.output), parts(boot.log), left_after(boot)
    assert len(said) == len(logged) == len(faults), boot.output
    result, td = [], 0
    for number, fault in enumerate(faults):
        before, after = left[td], left[td + fault.creates]
        status = [line for line in said[number] if line.startswith("status=")]
        result.append(
            Reaction(
                status=int(status[0].removeprefix("status=")),
                says=tuple(line for line in said[number] if line.startswith("td")),
                log=tuple(filter(None, map(log_line, logged[number]))),
                left={
                    name: after.get(name, 0) - before.get(name, 0)
                    for name in sorted(before.keys() | after.keys())
                    if after.get(name, 0) != before.get(name, 0)
                },
            )
        )
        td += fault.creates
    return result


def keyids(boot: Boot) -> list[str]:
    """KeyIDs in the order in which TDs were to get them: one that KVM leaked is missing."""
    return [call["in"]["rdx"] for call in boot.calls("TDH.MNG.CREATE")]
