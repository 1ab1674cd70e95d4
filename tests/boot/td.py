# SPDX-License-Identifier: GPL-2.0
"""What the scenarios with TDs share: a guest that uses all it can, and what must be true after."""

from __future__ import annotations

from machine import Boot

# td-client adds these pages from GPA 0 unless told otherwise: 4 are measured, one is not.
MEASURED, UNMEASURED = 4, 1
# TDH.MR.EXTEND measures 256 bytes.
EXTENDS = MEASURED * 4096 // 256
# Bit of a GPA of 48 bits that makes it shared.
SHARED = 1 << 47


def life(base: int) -> str:
    """Steps of a guest that uses all it can, in 3 MB from `base` on (page 1 was there before)."""
    private, converted = base + 0x100000, base + 0x200000
    return f"""
    store 0x1000 0x1234
    accept {private:#x}
    store {private:#x} 7
    load {private:#x}
    expect r11=7
    map-gpa shared {converted:#x} 0x3000
    expect r10=0
    store shared {converted + 0x1000:#x} 0x55
    load shared {converted + 0x1000:#x}
    expect r11=0x55
    map-gpa private {converted:#x} 0x3000
    expect r10=0
    accept {converted + 0x1000:#x}
    load {converted + 0x1000:#x}
    expect r11=0
    mmio-write 0xfe000000 4 0xabcd
    mmio-read 0xfe000000 4
    expect r11=0xabcd
    io-write 0x3f8 1 0x68
    io-write 0x3f8 1 0x0a
    info 1
    expect r10=0
    """


LIFE = life(0) + "at-end shutdown\n"


def check_status(boot: Boot, expected: str = "0") -> None:
    """The script's `status` is td-client's exit status."""
    assert boot.value("status") == expected, boot.output


def check_gone(boot: Boot, tds: int) -> None:
    """All TDs were created and are gone: no page, KeyID or private line is left."""
    assert boot.summary["tds_created"] == tds, boot.report
    assert boot.summary["tds_alive"] == 0, boot.report
    assert boot.summary["private_pages"] == 0, boot.report
    for leaf in ("TDH.MNG.CREATE", "TDH.MNG.KEY.FREEID"):
        assert boot.results(leaf) == {"SUCCESS": tds}, leaf
    pages = boot.count("TDH.MEM.PAGE.ADD") + boot.count("TDH.MEM.PAGE.AUG")
    assert boot.results("TDH.MEM.PAGE.REMOVE") == ({"SUCCESS": pages} if pages else {})


def check_guests(boot: Boot, guests: int) -> None:
    """That many guests ran, and found nothing wrong."""
    assert len(boot.summary["guests"]) == guests, boot.report
    for guest in boot.summary["guests"]:
        assert guest["entries"] > 0 and guest["failures"] == 0, guest
