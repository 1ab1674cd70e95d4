# SPDX-License-Identifier: GPL-2.0
"""The calls of a TD's life in a form in which two kernels can be compared.

Pages come from the kernel's allocator, so their addresses say nothing: each is
named by what it was given to the TDX module for, in order. The frequency of the TSC
is measured at each boot. Everything else, KeyIDs included, is compared as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from machine import Boot

ADDRESS = 0x000F_FFFF_FFFF_F000
# Bits of an address that hold the KeyID on this machine (46 of 52 are left).
KEYID_SHIFT = 46
# A leaf that takes a page: the register with its address, and what it is then.
TAKEN = {
    "TDH.MNG.CREATE": ("rcx", "tdr"),
    "TDH.MNG.ADDCX": ("rcx", "tdcs"),
    "TDH.VP.CREATE": ("rcx", "tdvpr"),
    "TDH.VP.ADDCX": ("rcx", "tdcx"),
    "TDH.MEM.SEPT.ADD": ("r8", "sept"),
    "TDH.MEM.PAGE.ADD": ("r8", "page"),
    "TDH.MEM.PAGE.AUG": ("r8", "page"),
}
# Registers with the address of a page that was taken earlier.
NAMED = {
    "TDH.MNG.KEY.CONFIG": ["rcx"],
    "TDH.MNG.ADDCX": ["rdx"],
    "TDH.MNG.INIT": ["rcx"],
    "TDH.MNG.RD": ["rcx"],
    "TDH.MNG.VPFLUSHDONE": ["rcx"],
    "TDH.MNG.KEY.FREEID": ["rcx"],
    "TDH.VP.CREATE": ["rdx"],
    "TDH.VP.ADDCX": ["rdx"],
    "TDH.VP.INIT": ["rcx"],
    "TDH.VP.FLUSH": ["rcx"],
    "TDH.VP.RD": ["rcx"],
    "TDH.VP.WR": ["rcx"],
    "TDH.VP.ENTER": ["rcx"],
    "TDH.MEM.SEPT.ADD": ["rdx"],
    "TDH.MEM.PAGE.ADD": ["rdx"],
    "TDH.MEM.PAGE.AUG": ["rdx"],
    "TDH.MEM.RANGE.BLOCK": ["rdx"],
    "TDH.MEM.TRACK": ["rcx"],
    "TDH.MEM.PAGE.REMOVE": ["rdx"],
    "TDH.MR.EXTEND": ["rdx"],
    "TDH.MR.FINALIZE": ["rcx"],
    "TDH.PHYMEM.PAGE.RECLAIM": ["rcx"],
    "TDH.PHYMEM.PAGE.WBINVD": ["rcx"],
}
# The same among the registers that the module returns.
RETURNED = {"TDH.MEM.PAGE.REMOVE": ["rcx"], "TDH.PHYMEM.PAGE.RECLAIM": ["rdx"]}
# Registers with an address of other memory of the kernel: TD_PARAMS, the page to copy.
OTHER = {"TDH.MNG.INIT": ["rdx"], "TDH.MEM.PAGE.ADD": ["r9"]}
# Fields of a TD that tell the frequency of the TSC: its multiplier, and EBX of CPUID(15H).
MEASURED_FIELDS = {0x110000000000000B, 0x9410000300000000 | 0x15 << 9 | 0x1FE}
# Fields of a vCPU that hold an address: the posted-interrupt descriptor and the shared EPT.
ADDRESS_FIELDS = {0x2016, 0x203C}


@dataclass
class Names:
    """Pages by what they were last taken for."""

    pages: dict[int, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def take(self, value: int, use: str) -> str:
        number = self.counts[use] = self.counts.get(use, -1) + 1
        self.pages[value & ADDRESS] = f"{use} {number}"
        return self.name(value)

    def name(self, value: int) -> str:
        """The name, with the KeyID and the bits below the address if there are any."""
        address, key = value & ADDRESS & ((1 << KEYID_SHIFT) - 1), value >> KEYID_SHIFT
        text = self.pages.get(address, f"page {address:#x} that no leaf took")
        text += f" key {key}" if key else ""
        return text + (f" + {value & 0xFFF:#x}" if value & 0xFFF else "")


def describe(call: dict, names: Names) -> dict:
    """One call without addresses of the kernel's memory."""
    leaf = call["leaf"]
    before = {name: int(value, 16) for name, value in call["in"].items()}
    after = {name: int(value, 16) for name, value in call["out"].items()}
    result = {key: call.get(key) for key in ("leaf", "version", "status", "rax", "count", "injected")}
    shown = {name: f"{value:#x}" for name, value in before.items()}
    returned = {name: f"{value:#x}" for name, value in after.items()}
    if leaf in TAKEN:
        register, use = TAKEN[leaf]
        shown[register] = names.take(before[register], use)
    for register in NAMED.get(leaf, []):
        shown[register] = names.name(before[register])
    for register in OTHER.get(leaf, []):
        shown[register] = f"memory + {before[register] & 0xFF:#x}"
    if leaf == "TDH.VP.WR" and before["rdx"] & 0xFFFFFF in ADDRESS_FIELDS:
        shown["r8"] = f"memory + {before['r8'] & 0x3F:#x}"
        returned.pop("r8", None)
    if leaf == "TDH.MNG.RD" and before["rdx"] in MEASURED_FIELDS:
        returned["r8"] = "measured"
    for register in RETURNED.get(leaf, []):
        if register in after:
            returned[register] = names.name(after[register])
    return result | {"in": shown, "out": returned}


def life(boot: Boot) -> list[dict]:
    """Every call that is about TDs, in order."""
    names = Names()
    calls = [x for x in boot.trace if x["type"] == "seamcall" and not x["leaf"].startswith("TDH.SYS.")]
    calls.sort(key=lambda call: call["seq"])
    return [describe(call, names) for call in calls]


def first_difference(ours: list[dict], theirs: list[dict]) -> str:
    """Where two lives part, in words; empty if they do not."""
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        if mine != other:
            return f"call {number}:\n  ours {mine}\n  C    {other}"
    if len(ours) != len(theirs):
        rest = max(ours, theirs, key=len)[min(len(ours), len(theirs))]
        return f"ours has {len(ours)} calls, the C {len(theirs)}; the first of the rest: {rest}"
    return ""
