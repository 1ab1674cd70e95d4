# SPDX-License-Identifier: GPL-2.0
"""Compare our module with the C it replaces. Usage: bench.py [SECTION...]

Runs inside tools/enter. Boots both kernels in turn on the same simulated machine
and prints tables with ratios, which also go to results/performance.txt in the
cache. What is counted comes out the same each time but for what the text says;
what is timed is made of calls that sleep, so that the emulator weighs little.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from steps import CACHE, GUEST, RESULTS, TARGET, TOP, run, shell_tool, trees

sys.path.insert(0, str(TOP / "tests/boot"))
from machine import Boot, Machine  # noqa: E402
from td import LIFE  # noqa: E402

KERNELS = ("c", "rust")
DIRECTORY = "arch/x86/virt/vmx/tdx"
# Fewest of so many boots: interrupts only ever add instructions.
REPEATS = 3
# The leaves of bring-up, first and last in this order.
BRING_UP = [
    f"TDH.SYS.{leaf}" for leaf in ("INIT", "LP.INIT", "RD", "CONFIG", "KEY.CONFIG", "TDMR.INIT")
]


@dataclass(frozen=True)
class Row:
    """One line of a table. The ratio is ours to theirs unless that makes no sense."""

    name: str
    c: float | None
    rust: float
    form: str = ",.0f"
    ratio: str = ".2f"

    def cells(self) -> list[str]:
        c = "-" if self.c is None else format(self.c, self.form)
        ratio = format(self.rust / self.c, self.ratio) if self.c else "-"
        return [self.name, c, format(self.rust, self.form), ratio]


@dataclass(frozen=True)
class Table:
    title: str
    text: str
    rows: list[Row]

    def __str__(self) -> str:
        lines = [["\\", "C", "Rust", "Rust / C"], *(row.cells() for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(4)]
        # Names to the left, numbers to the right.
        form = "  ".join(f"{{:{'<' if i == 0 else '>'}{width}}}" for i, width in enumerate(widths))
        head, *body = (form.format(*line).rstrip() for line in lines)
        rule = "  ".join("=" * width for width in widths)
        title = [self.title, "-" * len(self.title)]
        return "\n".join([*title, "", self.text, "", rule, head, rule, *body, rule, ""])


def build_directory(which: str) -> Path:
    return trees() / which / "build"


def boot(which: str, *args: str, **more) -> Boot:
    """Boot one kernel; a boot that is not clean is an error."""
    print(f"   {which}: {' '.join(args)}", flush=True)
    image = build_directory(which) / "arch/x86/boot/bzImage"
    with tempfile.TemporaryDirectory(dir=RESULTS) as directory:
        machine = Machine(TARGET / "release/tdx-machine", which, image, Path(directory))
        return machine.run(*args, **more)


def both(*args: str, **more) -> dict[str, Boot]:
    boots = {which: boot(which, *args, **more) for which in KERNELS}
    for done in boots.values():
        done.check_up()
    return boots


def span(done: Boot, first: str, unit: str) -> int:
    """From the first call of a leaf to the end of TDMR initialisation: "micros" or "executed"."""
    leaves = done.summary["leaves"]
    return leaves[BRING_UP[-1]]["last"][unit] - leaves[first]["first"][unit]


def instructions() -> Table:
    rows = []
    for cpus, memory in (1, 2), (1, 16), (1, 128), (8, 16):
        # Counting is for all of the kernel once it is for one function. Only errors go to the
        # console, which is slow and of no interest.
        args = ["--cpus", str(cpus), "--memory", f"{memory}G", "--count-symbols", "tdh_mem_track"]
        runs = [both(*args, "--append", "loglevel=4") for _ in range(REPEATS)]
        counts = {which: [span(r[which], BRING_UP[0], "executed") for r in runs] for which in KERNELS}
        assert all(min(each) > 0 for each in counts.values()), "the machine did not count"
        for which, found in counts.items():
            print(f"   {which}: {min(found):,} to {max(found):,}")
        name = f"{memory} GB, {cpus} CPU{'s' * (cpus > 1)}"
        rows.append(Row(f"Instructions, {name}", *(min(counts[which]) for which in KERNELS)))
        calls = {which: sum(runs[0][which].count(leaf) for leaf in BRING_UP) for which in KERNELS}
        rows.append(Row(f"SEAMCALLs, {name}", *(calls[which] for which in KERNELS)))
    text = (
        "Instructions that the kernel executes from TDH.SYS.INIT to the end of the last TDH.SYS.TDMR.INIT,\n"
        "a SEAMCALL being one of them, on all CPUs: interrupts and idle loops are included, so the numbers differ\n"
        f"by some thousand from boot to boot. The fewest of {REPEATS} boots."
    )
    return Table("Bring-up, counted", text, rows)


def times() -> Table:
    rows = []
    for cpus in 1, 2, 8, 32:
        boots = both(
            "--cpus", str(cpus), "--memory", "32G", "--latency", "all=100", "--latency", "TDH.SYS.TDMR.INIT=1000",
            timeout=300,
        )  # fmt: skip
        for name, first in ("TDMRs", BRING_UP[-1]), ("all", BRING_UP[0]):
            seconds = [span(boots[which], first, "micros") / 1e6 for which in KERNELS]
            rows.append(Row(f"{cpus} CPU{'s' * (cpus > 1)}, {name}", *seconds, form=".3f"))
    text = (
        "Seconds that bring-up takes on a machine with 32 GB on which TDH.SYS.TDMR.INIT takes 1 ms for 4 MB\n"
        "and each other SEAMCALL 0.1 ms: the initialisation of the TDMRs, and all from TDH.SYS.INIT on. One boot\n"
        "each; they differ by some percent."
    )
    return Table("Bring-up, timed", text, rows)


def calls() -> Table:
    client = GUEST / "td-client"
    RESULTS.mkdir(parents=True, exist_ok=True)
    guests = RESULTS / "bench-guests"
    guests.write_text(LIFE)
    boots = both(
        "--cpus", "2", "--append", "kvm_intel.tdx=1", "--file", str(client), "--td-script", str(guests),
        "--count-symbols", "tdh_*",
        script="/td-client run --tds 4 --vcpus 2\n", timeout=300,
    )  # fmt: skip
    fewest = {
        which: {name: n["min"] for name, n in done.summary["instructions"].items() if n["min"] is not None}
        for which, done in boots.items()
    }
    names = sorted(fewest["c"].keys() & fewest["rust"].keys())
    rows = [Row(name, *(fewest[which][name] for which in KERNELS)) for name in names]
    text = (
        "Instructions of the calls that KVM makes, from the first to the return, SEAMCALL as one. Of the calls\n"
        "that no interrupt hit, the shortest. The same each time."
    )
    return Table("Calls about TDs", text, rows)


def without_kunit(build: Path, directory: Path) -> Path:
    """Our object compiled once more by the same command, without the tests in it."""
    text = (build / DIRECTORY / ".tdx_host.o.cmd").read_text()
    command = text.splitlines()[0].split(":=", 1)[1].split(";")[0]
    config = directory / "rustc_cfg"
    lines = (build / "include/generated/rustc_cfg").read_text().splitlines()
    config.write_text("\n".join(x for x in lines if "INTEL_TDX_HOST_KUNIT_TEST" not in x) + "\n")
    command = command.replace("@./include/generated/rustc_cfg", f"@{config}")
    command = command.replace(f"{DIRECTORY}/ ", f"{shlex.quote(str(directory))} ")
    command = re.sub(rf"=({DIRECTORY})/(\.?tdx_host\.o)", rf"={directory}/\2", command)
    subprocess.run(command, shell=True, cwd=build, check=True, env={**os.environ, "RUSTC_BOOTSTRAP": "1"})
    return directory / "tdx_host.o"


def sections(objects: list[Path]) -> Counter:
    """Bytes of code, constants, variables and zeroed variables in some objects."""
    kinds = {"text": "text", "rodata": "rodata", "data": "data", "bss": "bss"}
    total = Counter()
    listing = subprocess.run(["llvm-size", "-A", *map(str, objects)], check=True, text=True, capture_output=True)
    for name, size in re.findall(r"^(\.\S+)\s+(\d+)\s", listing.stdout, re.MULTILINE):
        if name.startswith((".discard", ".rela", ".comment", ".debug")):
            continue
        kind = next((kind for part in name.split(".") for kind in kinds if part == kind), None)
        total[kind or "other"] += int(size)
    return total


def sizes() -> Table:
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        for which in KERNELS:
            build = build_directory(which)
            archive = build / DIRECTORY / "built-in.a"
            done = subprocess.run(["llvm-ar", "t", str(archive)], check=True, text=True, capture_output=True)
            objects = [build / DIRECTORY / Path(name).name for name in done.stdout.split()]
            if which == "rust":
                objects = [o for o in objects if o.name not in ("tdx_host.o", "test_glue.o")]
                objects.append(without_kunit(build, Path(directory)))
            found[which] = sections(objects)
    kinds = {"text": "Code", "rodata": "Constants", "data": "Variables", "bss": "Zeroed variables"}
    rows = [Row(f"{title}, bytes", *(found[which][kind] for which in KERNELS)) for kind, title in kinds.items()]
    return Table("Size", f"The objects of {DIRECTORY}, without our KUnit tests. The same each time.", rows)


def pamt(done: Boot) -> int:
    """KB that the TDX module was given for its tables."""
    tables = ("pamt_4k", "pamt_2m", "pamt_1g")
    return sum(int(t[name][1], 16) for t in done.calls("TDH.SYS.CONFIG")[0]["tdmrs"] for name in tables) >> 10


def memory() -> Table:
    free = "echo 3 >/proc/sys/vm/drop_caches; sed -n 's/^MemFree: *\\([0-9]*\\) kB/free=\\1/p' /proc/meminfo\n"
    rows = []
    for cpus in 1, 8:
        boots = both("--cpus", str(cpus), "--memory", "16G", script=free)
        off = {which: boot(which, "--cpus", str(cpus), "--memory", "16G", "--keyids", "0", script=free) for which in KERNELS}
        name = f"{cpus} CPU{'s' * (cpus > 1)}"
        rows.append(Row(f"PAMT, KB, {name}", *(pamt(boots[which]) for which in KERNELS), ratio=".6f"))
        lost = [int(off[which].value("free")) - int(boots[which].value("free")) for which in KERNELS]
        rows.append(Row(f"Less free than without TDX, KB, {name}", *lost))
    text = (
        "Memory that is gone after bring-up, of 16 GB. The PAMT is the same each time; what is free differs by up\n"
        "to 5 MB from boot to boot."
    )
    return Table("Memory", text, rows)


def scaling() -> Table:
    command = ["cargo", "test", "--locked", "--release", "--manifest-path", str(TOP / "tests/host/Cargo.toml")]
    done = run("planning", [*command, "--test", "scaling", "--", "--nocapture"])
    if done.status:
        raise SystemExit(done.tail)
    rows = []
    for line in re.findall(r"^SCALING ([\d ]+)$", done.output, re.MULTILINE):
        size, tdmrs_of_c, kb_of_c, cpus, tdmrs, kb, micros = map(int, line.split())
        # With one CPU the plan is that of the C, and with some it lies between these two.
        if cpus in (1, 128):
            name = f"{size} GB, {cpus} CPU{'s' * (cpus > 1)}"
            rows.append(Row(f"{name}: TDMRs", tdmrs_of_c, tdmrs))
            rows.append(Row(f"{name}: PAMT, KB", kb_of_c, kb, ratio=".6f"))
            rows.append(Row(f"{name}: microseconds", None, micros))
    text = (
        "Planning of TDMRs and PAMTs in user space on the host, for machines with up to 6 TB. The C's figures are\n"
        "its rules (c_rules.rs). All but the time is the same each time."
    )
    return Table("Planning", text, rows)


SECTIONS: dict[str, Callable[[], Table]] = {
    "counts": instructions,
    "times": times,
    "calls": calls,
    "size": sizes,
    "memory": memory,
    "planning": scaling,
}


def build() -> Iterator[bool]:
    yield shell_tool("tools/machine.sh")
    for which in KERNELS:
        yield shell_tool("tools/kernel.sh", which)


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        print(f"error: no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    if not all(build()):
        return 1
    RESULTS.mkdir(parents=True, exist_ok=True)
    tables = []
    for name in names or SECTIONS:
        print(f"\n== {name}", flush=True)
        tables.append(SECTIONS[name]())
    text = "\n".join(map(str, tables))
    print(f"\n{text}")
    path = RESULTS / "performance.txt"
    path.write_text(text)
    print(f"These tables are in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
