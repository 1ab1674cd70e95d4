#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Compare the symbols that two TDX host supports export to modules.

Usage: exports.py C OURS

Each side is a symbol list of a kernel build (Module.symvers or vmlinux.symvers),
a directory with the C sources that hold the export lines, or the directory of a
kernel build: then their objects are made once more as if KVM_INTEL were a module.
What is exported to whom depends on that: give the same on both sides. Prints what
is missing, what is too much and what differs in licence or in the modules that may
use it; exits with 1 then.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

# What we export on purpose and the C does not, name -> in the same way as which of its symbols,
# or class and namespace.
MORE = {
    f"tdx_tlb_{step}": "tdh_mem_track"
    for step in ("create", "destroy", "block", "track", "kick", "remove_next", "cancel")
} | {
    f"tdx_{verb}_memory_reset_notifier": ("EXPORT_SYMBOL_GPL", "") for verb in ("register", "unregister")
}

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


DIRECTORY = "arch/x86/virt/vmx/tdx"
# The configuration of KVM as modules, on top of one in which it is built in.
AS_MODULES = """
#undef CONFIG_KVM
#undef CONFIG_KVM_INTEL
#define CONFIG_KVM_MODULE 1
#define CONFIG_KVM_INTEL_MODULE 1
"""


def from_build(build):
    """Name -> (class, namespace), as in `from_symvers`, of a kernel with KVM as modules.

    The C files are compiled with the command that kbuild keeps beside each object, and the
    exports read where modpost finds them: a string with the licence and one with the
    namespace behind each `__export_symbol_*`.
    """
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        header, obj, section = (Path(scratch) / name for name in ("modules.h", "object.o", "section"))
        header.write_text(AS_MODULES)
        for saved in sorted((build / DIRECTORY).glob(".*.o.cmd")):
            line = saved.read_text().splitlines()[0].partition(" := ")[2].partition(" ; ")[0]
            words = shlex.split(line.replace("$$", "$").replace("$(pound)", "#"))
            if not words or not words[-1].endswith(".c"):
                continue
            words = [word for word in words if not word.startswith("-Wp,-MMD")]
            words[words.index("-o") + 1] = str(obj)
            run(*words[:-1], "-include", str(header), words[-1], cwd=build)
            run("llvm-objcopy", "-O", "binary", "--only-section=.export_symbol", str(obj), str(section))
            content = section.read_bytes() if section.exists() else b""
            for place in run("llvm-nm", str(obj)).splitlines():
                address, _, name = place.rpartition(" ")
                name = name.removeprefix("__export_symbol_")
                if place.endswith(f" __export_symbol_{name}") and OURS.fullmatch(name):
                    kind, namespace, *_ = content[int(address.split()[0], 16) :].split(b"\0")
                    kind = "EXPORT_SYMBOL" + (f"_{kind.decode()}" if kind else "")
                    found[name] = (kind, namespace.decode())
    return found


def run(*words, cwd=None):
    environment = {**os.environ, "CCACHE_DISABLE": "1"}
    return subprocess.run(words, cwd=cwd, env=environment, check=True, text=True, stdout=subprocess.PIPE).stdout


def exports(path):
    """The exports of one side."""
    path = Path(path)
    if (path / DIRECTORY).is_dir():
        found = from_build(path)
    else:
        found = from_sources(path) if path.is_dir() else from_symvers(path)
    if not found:
        sys.exit(f"{path}: no exported symbol of TDX host support")
    return found


def differences(theirs, ours):
    """What is not as in the C, a line each."""
    more = {name: like if isinstance(like, tuple) else theirs.get(like) for name, like in MORE.items()}
    theirs = theirs | {name: symbol for name, symbol in more.items() if symbol}
    problems = []
    for name in sorted(theirs.keys() | ours.keys()):
        if name not in ours:
            problems.append(f"missing: {name} {theirs[name]}")
        elif name not in theirs:
            problems.append(f"too much: {name} {ours[name]}")
        elif ours[name] != theirs[name]:
            problems.append(f"different: {name} {theirs[name]} became {ours[name]}")
    return problems


def table(symbols):
    """The symbols as a table for people: name, class, who may use it."""
    width = max(map(len, symbols))
    return "".join(f"{name:<{width}}  {kind:<17}  {who}\n" for name, (kind, who) in sorted(symbols.items()))


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    theirs, ours = (exports(path) for path in sys.argv[1:])
    problems = differences(theirs, ours)
    print(*problems, sep="\n", end="\n" if problems else "")
    print(f"{len(ours)} symbols, {len(problems)} differences")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
