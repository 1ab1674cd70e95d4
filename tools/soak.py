# SPDX-License-Identifier: GPL-2.0
"""Random ways from one kernel to the next, with our module: kexec and kdump. Usage: soak.py

Runs inside tools/enter. N (100) cycles, from number FIRST (1) on, of the seed SEED (a random one).
A cycle is a boot that starts another kernel at a random instant, with random CPUs, TDs, TDX module
and users of the memory reset. SEED and the number of a cycle give its choices again; when exactly
things meet they do not say. Stops at the first cycle after which something is wrong, and says with
which command it can be had again.
"""

from __future__ import annotations

import os
import random
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from steps import CACHE, GUEST, RESULTS, TARGET, TOP, clock, shell_tool, trees

sys.path.insert(0, str(TOP / "tests/boot"))

import handover  # noqa: E402
from machine import Boot, Machine  # noqa: E402

# Kernel functions at whose Nth call an NMI comes, and the largest N. Loops of TDs call them all.
PLACES = {
    "tdh_mng_create": 20,
    "tdh_mng_addcx": 100,
    "tdh_mng_key_freeid": 15,
    "tdh_vp_create": 30,
    "tdh_vp_addcx": 150,
    "tdh_mem_sept_add": 80,
    "tdh_mem_page_add": 100,
    "tdh_mem_page_aug": 40,
    "tdh_mem_range_block": 100,
    "tdh_mem_page_remove": 100,
    "tdh_phymem_page_reclaim": 500,
    "tdh_phymem_page_wbinvd_hkid": 100,
    "tdh_phymem_page_wbinvd_tdr": 15,
    "tdx_quirk_reset_paddr": 500,
    "tdx_sept_set_private_spte": 200,
    "tdx_sept_free_private_spt": 60,
    "tdx_reclaim_page": 200,
}
MODULES = {
    "keeps its memory": handover.NO_DISABLE,
    "does not end": ["--inject", "TDH.SYS.DISABLE=OPERAND_INVALID*always"],
    "ends": [],
    "ends late": ["--inject", "TDH.SYS.DISABLE=INTERRUPTED_RESUMABLE*1000"],
}
USERS = ("fail=1", "stop=1", "lie=1", "alone=1", "racers=1", "racers=4")
# Each user that does not come back in a crash takes a CPU with it; the others need one, too.
LOST_USERS = ("hang=1", "hang=2", "oops=1")
# Those but the first are the module's that has the awkward users.
CONTEXTS = ("task", "irq", "softirq")


@dataclass(frozen=True)
class Cycle:
    """The choices of one cycle."""

    cpus: int
    sockets: int
    memory: str
    erratum: bool
    module: str
    user: str
    # Either TDs that were built, or loops that build them and take them down.
    tds: int
    loops: int
    vcpus: int
    # "kexec", a context, or a place.
    way: str
    # Seconds after all TDs run.
    delay: float

    @property
    def nobody_knows(self) -> bool:
        """Which page a CPU is just taking from a TD, when a crash stops it, only KVM knows."""
        return self.user == "alone=1" and self.loops > 0 and self.way != "kexec"

    def __str__(self) -> str:
        tds = f"{self.loops} loops of TDs" if self.loops else f"{self.tds} TDs"
        return ", ".join([
            self.way, f"{self.cpus} CPUs in {self.sockets} packages", self.memory,
            f"{tds} of {self.vcpus} vCPUs", f"module {self.module}",
            f"erratum {'on' if self.erratum else 'off'}", self.user or "no other user",
            f"after {self.delay:.2f} s",
        ])  # fmt: skip


def choose(seed: int, number: int) -> Cycle:
    """The choices of cycle `number`, whatever cycles were before."""
    pick = random.Random(f"{seed}/{number}")
    cpus = pick.choice([1, 2, 2, 4, 4, 6])
    way = pick.choice(["kexec", "context", "place"])
    loops = pick.randint(1, 6) if way == "place" or pick.random() < 0.4 else 0
    if way == "context":
        way = pick.choice(CONTEXTS)
    elif way == "place":
        function = pick.choice(list(PLACES))
        way = f"{function}:{pick.randint(1, PLACES[function])}"
    users = USERS + LOST_USERS if way != "kexec" and cpus > 2 else USERS
    user = pick.choice(users) if pick.random() < 0.4 else ""
    return Cycle(
        cpus=cpus,
        sockets=pick.choice([1, 2]) if cpus % 2 == 0 else 1,
        memory=pick.choice(["1G", "1G", "2G"]),
        erratum=pick.random() < 0.9,
        module=pick.choices(list(MODULES), [6, 2, 1, 1])[0],
        user=user,
        tds=0 if loops else pick.choice([0, 1, 2, 4, 8]),
        loops=loops,
        # A TD has as many vCPUs as there are CPUs, at most.
        vcpus=pick.choice([vcpus for vcpus in (1, 2, 4) if vcpus <= cpus]),
        way=way,
        delay=pick.uniform(0, 2),
    )


def run(cycle: Cycle, machine: Machine, files: dict[str, Path]) -> Boot:
    """Boot, start the next kernel, and check what the first one left.

    # Raises

    AssertionError: something is wrong.
    """
    if cycle.loops:
        before = handover.churning(cycle.loops, cycle.vcpus, cycle.cpus)
    else:
        before = handover.running(cycle.tds, cycle.vcpus)
    crash = "echo c >/proc/sysrq-trigger" if cycle.way == "task" else ""
    if cycle.way in CONTEXTS[1:]:
        crash = f"insmod /reset-test.ko {cycle.user} crash={cycle.way}"
    elif cycle.user:
        before += f"insmod /reset-test.ko {cycle.user} || exit 6\n"
    before += f"sleep {cycle.delay:.2f}\n"
    args = ["--cpus", str(cycle.cpus), "--sockets", str(cycle.sockets), "--memory", cycle.memory]
    args += ["--erratum", "on" if cycle.erratum else "off", *MODULES[cycle.module]]
    if cycle.way == "kexec":
        script, after = handover.kexec(before), "true\n"
    else:
        script, after = handover.crash(before, crash), handover.COPY
    if cycle.nobody_knows:
        args += ["--allow", "private-left"]
    if ":" in cycle.way:
        args += ["--at", f"{cycle.way}=nmi"]
    guests = machine.directory / "guests"
    guests.write_text(handover.BUSY)
    args += ["--td-script", str(guests)]
    for name, path in files.items():
        args += ["--file", f"{path}:{name}"]
    boot = machine.run(
        *args, "--append", f"{handover.PARAMETERS} {handover.CRASH['append']}",
        script=script, next_script=after, allow=f"{handover.KVM_WARNS}|{handover.PANIC}", timeout=600,
    )  # fmt: skip
    handover.check_next(boot)
    leaving = re.search(r"virt/tdx: (\d+) pages were just leaving TDs", boot.console)
    if cycle.nobody_knows and leaving and handover.said(boot, "pages may be left private"):
        left = boot.summary["kernels"][0]["private_bytes"]
        assert sum(left.values()) <= int(leaving[1]) * 4096, boot.report
    elif cycle.erratum:
        handover.check_nothing_left(boot)
    else:
        assert boot.summary["kernels"][0]["dirty_cpus"] == [], boot.report
    return boot


def setup(directory: Path) -> tuple[Machine, dict[str, Path]]:
    """The machine with our kernel, and the files that a cycle needs in it."""
    build = trees() / "rust/build"
    image = build / "arch/x86/boot/bzImage"
    files = {
        "bzImage": image, "kexec-tool": GUEST / "kexec-tool", "td-client": GUEST / "td-client",
        "reset-test.ko": build / "tests-module/tdx-reset-test.ko",
    }  # fmt: skip
    return Machine(TARGET / "release/tdx-machine", "rust", image, directory), files


def main() -> int:
    """All cycles; the exit status."""
    seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
    first, count = int(os.environ.get("FIRST") or 1), int(os.environ.get("N") or 100)
    if not (shell_tool("tools/machine.sh") and shell_tool("tools/kernel.sh", "rust")):
        return 1
    directory = RESULTS / f"soak-{seed}-{os.getpid()}"
    directory.mkdir(parents=True)
    machine, files = setup(directory)
    print(f"-- soak: SEED={seed}, cycles {first} to {first + count - 1} in {directory}", flush=True)
    start = time.monotonic()
    for number in range(first, first + count):
        cycle = choose(seed, number)
        print(f"{number:>5} {clock(time.monotonic() - start):>6} {cycle}", flush=True)
        try:
            run(cycle, machine, files)
        except AssertionError as wrong:
            print(f"\n{wrong}\n\nwrong in cycle {number}; again: make soak SEED={seed} FIRST={number} N=1")
            return 1
    print(f"{count} cycles, nothing wrong; SEED={seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
