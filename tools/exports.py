#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Compare the symbols that two TDX host supports export to modules.

Usage: exports.py C OURS

Each side is a symbol list of a kernel build (Module.symvers or vmlinux.symvers)
or a directory with the C sources that hold the export lines. What is exported to
whom depends on the configuration (KVM_INTEL=m or =y): give builds of the same,
or the sources on both sides. Prints what is missing, what is too much and what
differs in licence or in the modules that may use it; exits with 1 then.
"""

import re
import sys
from pathlib import Path

# The names that belong to TDX host support.
OURS = re.compile(r"(tdx|tdh|seamldr)_\w+")
# `EXPORT_SYMBOL_FOR_KVM(name)`, `EXPORT_SYMBOL_FOR_MODULES(name, "a,b")`...
LINE = re.compile(r"^(EXPORT_SYMBOL\w*)\((\w+)(?:,\s*(.*))?\);", re.MULTILINE)


def from_symvers(path):
    """Name -> (class, namespace) of each symbol the kernel image exports."""
    found = {}
    for line in path.read_text().splitlines():
        _crc, name, module, kind, namespace = (line.split("\t") + [""])[:5]
        if module == "vmlinux" and OURS.fullmatch(name):
            found[name] = (kind, namespace)
    return found


def from_sources(directory):
    """Name -> (macro, its arguments) of each export line."""
    found = {}
    for path in sorted(directory.glob("*.c")):
        for macro, name, rest in LINE.findall(path.read_text()):
            if OURS.fullmatch(name):
                found[name] = (macro, rest)
    return found


def exports(path):
    """The exports of one side."""
    path = Path(path)
    found = from_sources(path) if path.is_dir() else from_symvers(path)
    if not found:
        sys.exit(f"{path}: no exported symbol of TDX host support")
    return found


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    theirs, ours = (exports(path) for path in sys.argv[1:])
    problems = []
    for name in sorted(theirs.keys() | ours.keys()):
        if name not in ours:
            problems.append(f"missing: {name} {theirs[name]}")
        elif name not in theirs:
            problems.append(f"too much: {name} {ours[name]}")
        elif ours[name] != theirs[name]:
            problems.append(f"different: {name} {theirs[name]} became {ours[name]}")
    print(*problems, sep="\n", end="\n" if problems else "")
    print(f"{len(ours)} symbols, {len(problems)} differences")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
