# SPDX-License-Identifier: GPL-2.0
"""Boots a kernel on the simulated machine and reads what came of it.

`run` starts `tdx-machine run` and gives a `Boot`: console, kernel log, what the
script printed, SEAMCALL trace and summary. Every boot must be clean (see
`Boot.check_clean`): no violation and no kernel complaint, whatever the scenario.
"""

from __future__ import annotations

import bisect
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

# How many times slower than usual the kernels are: all limits of time are multiplied by it.
SLOWER = int(os.environ.get("TDX_SLOWER", "1"))
# They check themselves: functions are inlined less, and freed memory is kept for a while.
CHECKED = SLOWER > 1

# A kernel that complains: never expected, whatever the machine does to it.
COMPLAINTS = re.compile(
    r"WARNING:|\bBUG\b|Oops|Call Trace:|Kernel panic|UBSAN|general protection|"
    r"unchecked MSR access|rcu: INFO|INFO: task .* blocked|divide error|Bad page"
)

# The script's output and the kernel's log are printed one after the other, so
# that lines of one never cut lines of the other.
WRAPPER = """\
dmesg -n 1
echo; echo TDX-OUTPUT
sh /scenario-$((TDX_MACHINE_KERNEL > 1))
status=$?
echo; echo TDX-LOG
dmesg
echo TDX-END
exit $status
"""


@dataclass
class Boot:
    """One finished run of the machine."""

    kernel: str
    directory: Path
    system_map: Path
    status: int
    report: str
    console: str
    summary: dict
    trace: list[dict] = field(repr=False)

    @property
    def log(self) -> str:
        """The kernel's log; the console if the script did not get that far."""
        found = re.search(r"^TDX-LOG$(.*?)^TDX-END$", self.console, re.MULTILINE | re.DOTALL)
        return found.group(1) if found else self.console

    @property
    def tdx_log(self) -> list[str]:
        """Lines of TDX host support in the kernel's log, without the time."""
        return re.findall(r"^\[[^\]]*\] virt/tdx: (.*)$", self.log, re.MULTILINE)

    @property
    def output(self) -> str:
        """What the script printed."""
        found = re.search(r"^TDX-OUTPUT$(.*?)^TDX-LOG$", self.console, re.MULTILINE | re.DOTALL)
        assert found, f"the script did not end; see {self.directory}"
        return found.group(1)

    def value(self, name: str) -> str:
        """What the script printed as `name=value`."""
        found = re.findall(rf"^{re.escape(name)}=(.*)$", self.output, re.MULTILINE)
        assert len(found) == 1, f"{name} printed {len(found)} times:\n{self.output}"
        return found[0].strip()

    def calls(self, leaf: str) -> list[dict]:
        """Lines of the trace about a leaf, such as TDH.SYS.INIT."""
        return [x for x in self.trace if x["type"] == "seamcall" and x["leaf"] == leaf]

    def count(self, leaf: str) -> int:
        """How often a leaf was called."""
        return self.summary["leaves"].get(leaf, {"calls": 0})["calls"]

    def results(self, leaf: str) -> dict[str, int]:
        """How the calls of a leaf ended: status name -> number."""
        return self.summary["leaves"].get(leaf, {"results": {}})["results"]

    def callers(self, violation: dict) -> list[str]:
        """The functions that a backtrace goes through, innermost first."""
        lines = map(str.split, self.system_map.read_text().splitlines())
        symbols = sorted((int(address, 16), name) for address, _, name in lines)
        # The call may be the last instruction of its function.
        places = [bisect.bisect_left(symbols, (address, "")) - 1 for address in violation["backtrace"]]
        return [symbols[place][1] for place in places]

    def check_clean(self, allow: str | None = None) -> None:
        """No violation, no injection that missed, no complaint of the kernel.

        `allow` is a pattern of warnings that are known, and why they are is said
        where it is used. Each of them comes with one call trace.
        """
        violations = [v | {"callers": self.callers(v)} for v in self.summary.get("first_violations", [])]
        assert self.summary.get("violations") == {}, f"{violations}\n{self.report}"
        assert self.summary["unused_injections"] == [], self.report
        known, unknown, traces = [], [], []
        # A console that is taken over in the middle of a line breaks it off and writes it again.
        console = re.sub(r"^.*\n\*\* replaying previous printk message \*\*$", "", self.console, flags=re.M)
        for line in filter(COMPLAINTS.search, console.splitlines()):
            if allow and re.search(allow, line):
                known.append(line)
            else:
                (traces if line.endswith("Call Trace:") else unknown).append(line)
        if unknown or len(traces) > len(known):
            where = f"{self.directory}/console.log"
            raise AssertionError(f"the kernel complains, see {where}: {unknown or traces}")

    def check_up(self) -> None:
        """TDX came up, and all it took was given back or is the module's own."""
        assert "TDX-Module initialized" in self.tdx_log, self.tdx_log
        assert self.summary["bring_up"]["ready"] or self.summary["bring_up"]["was_ready"]

    def check_off(self) -> None:
        """TDX is off and nothing in memory is private."""
        assert "TDX-Module initialized" not in self.tdx_log, self.tdx_log
        assert not self.summary["bring_up"]["ready"], self.report
        assert self.summary["private_pages"] == 0, self.report


def read_trace(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def with_parameters(args: Iterable[str]) -> list[str]:
    """The arguments, with what TDX_PARAMETERS has for every kernel added to the kernel's parameters."""
    result, more = list(args), os.environ.get("TDX_PARAMETERS")
    if more and "--append" in result:
        result[result.index("--append") + 1] += f" {more}"
    elif more:
        result += ["--append", more]
    return result


class Machine:
    """Starts the launcher with one kernel."""

    def __init__(self, launcher: Path, kernel: str, image: Path, directory: Path):
        self.launcher = launcher
        self.kernel = kernel
        self.image = image
        self.directory = directory
        self.runs = 0

    def disassembly(self, function: str) -> list[tuple[int, str]]:
        """Address and mnemonic of each instruction of a function of the kernel."""
        vmlinux = self.image.parents[3] / "vmlinux"
        command = ["llvm-objdump", "-d", f"--disassemble-symbols={function}", str(vmlinux)]
        text = subprocess.run(command, check=True, text=True, capture_output=True).stdout
        found = re.findall(r"^([0-9a-f]+): (?:[0-9a-f]{2} )+\s*(\S+)", text, re.MULTILINE)
        return [(int(address, 16), mnemonic) for address, mnemonic in found]

    def run(
        self,
        *args: str,
        script: str = "true\n",
        next_script: str | None = None,
        status: int = 0,
        allow: str | None = None,
        meanwhile: Callable[[Path], None] | None = None,
        timeout: int = 120,
    ) -> Boot:
        """Boot, let `script` run in the guest, and check that all is clean.

        In a kernel that `script` starts `next_script` runs; what both print is output.
        `status` is the launcher's expected exit status. `meanwhile` runs while
        the machine does, with the run's directory (for the socket `qmp` in it).
        """
        self.runs += 1
        timeout *= SLOWER
        directory = self.directory / f"{self.kernel}-{self.runs}"
        directory.mkdir(parents=True)
        (directory / "script").write_text(WRAPPER)
        for number, text in enumerate((script, next_script or "")):
            (directory / f"scenario-{number}").write_text(text)
        command = [str(self.launcher), "run", "--kernel", str(self.image), "--quiet"]
        command += ["--out", str(directory), "--timeout", str(timeout)]
        command += ["--script", str(directory / "script")]
        command += ["--file", str(directory / "scenario-0"), "--file", str(directory / "scenario-1")]
        if next_script is not None:
            command += ["--next-script", str(directory / "script")]
        if meanwhile:
            command += ["--qmp", str(directory / "qmp")]
        command += with_parameters(args)
        with subprocess.Popen(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            try:
                if meanwhile:
                    meanwhile(directory)
                report, _ = process.communicate(timeout=timeout + 60)
            finally:
                process.kill()
        summary = directory / "summary.json"
        console = directory / "console.log"
        boot = Boot(
            kernel=self.kernel,
            directory=directory,
            system_map=self.image.parents[3] / "System.map",
            status=process.returncode,
            report=report,
            console=console.read_text(errors="replace").replace("\r", "") if console.exists() else "",
            summary=json.loads(summary.read_text()) if summary.exists() else {},
            trace=read_trace(directory / "trace.jsonl"),
        )
        assert boot.summary, f"no summary: {report}"
        boot.check_clean(allow)
        assert boot.status == status, f"{' '.join(command)}\n{report}"
        return boot


def wait_for(directory: Path, text: str, timeout: float = 60) -> None:
    """Wait until `text` stands on the console as a line of its own."""
    end = time.monotonic() + timeout * SLOWER
    console = directory / "console.log"
    while time.monotonic() < end:
        if console.exists() and re.search(
            rf"^{re.escape(text)}\r?$", console.read_text(errors="replace"), re.MULTILINE
        ):
            return
        time.sleep(0.1)
    raise AssertionError(f"'{text}' did not appear on the console in {timeout} s: {directory}")
