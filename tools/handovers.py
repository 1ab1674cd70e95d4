# SPDX-License-Identifier: GPL-2.0
"""What each kernel left to the next in the scenarios of kexec and kdump, as a table.

Usage: handovers.py [REPORT.xml...], by default that of the boot scenarios. The scenarios put
their accounts into the JUnit report of the tests (tests/boot/handover.py); this reads them,
prints the table and, with --json FILE, writes them as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

COLUMNS = (
    "scenario", "kernel", "violations", "left private", "converted / had to be", "released",
    "late calls", "WBINVDs", "dirty CPUs",
)  # fmt: skip


def accounts(report: Path) -> list[dict]:
    """The accounts in a JUnit report, the kernels of a scenario next to each other."""
    found = ElementTree.parse(report).iterfind(".//property[@name='handover']")
    rows = [json.loads(item.get("value", "null")) for item in found]
    return sorted(rows, key=lambda row: (row["scenario"], row["kernel"]))


def size(count: int) -> str:
    """A number of bytes; KB are small enough for single pages."""
    return f"{count >> 10} KB" if count else "0"


def cells(row: dict) -> list[str]:
    """The cells of one line."""
    violations = ", ".join(f"{count} {kind}" for kind, count in sorted(row["violations"].items()))
    left = ", ".join(f"{size(count)} {use}" for use, count in sorted(row["left"].items()))
    return [
        row["scenario"], row["kernel"], violations or "none", left or "nothing",
        f"{size(row['converted'])} / {size(row['needed'])}", size(row["released"]),
        str(row["late_seamcalls"]), str(row["wbinvds"]), str(row["dirty_cpus"]),
    ]  # fmt: skip


def table(rows: list[dict]) -> str:
    """A table for people, which is one in Markdown as well."""
    lines = [list(COLUMNS), *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    return "\n".join(text) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", nargs="*", type=Path)
    parser.add_argument("--json", type=Path, help="write the accounts there")
    options = parser.parse_args()
    reports = options.report or [Path(os.environ["CACHE"]) / "results/boot.xml"]
    rows = [row for report in reports for row in accounts(report)]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows), end="")


if __name__ == "__main__":
    main()
