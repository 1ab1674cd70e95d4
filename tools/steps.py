# SPDX-License-Identifier: GPL-2.0
"""What the Python tools share: places, results of tests, and running a long step.

The environment is that of tools/enter; see tools/lib.sh for the variables.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("CACHE", ""))
JOBS = os.environ.get("JOBS", "2")
LOGS = CACHE / "logs"
RESULTS = CACHE / "results"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ""))
GUEST = TARGET / "x86_64-unknown-linux-gnu/release"

# Lines of a failure that are shown; the log has the rest.
SHOWN = 30


class Outcome(Enum):
    """How a test ended. A test that could not run has failed or is skipped, never passed."""

    PASSED = "passed"
    FAILED = "FAILED"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Result:
    """One test: its name, how it ended, and why if it did not pass."""

    name: str
    outcome: Outcome
    detail: str = ""


def passed(name: str) -> Result:
    return Result(name, Outcome.PASSED)


def failed(name: str, detail: str) -> Result:
    return Result(name, Outcome.FAILED, detail)


def skipped(name: str, detail: str) -> Result:
    return Result(name, Outcome.SKIPPED, detail)


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    status: int
    output: str
    log: Path

    @property
    def tail(self) -> str:
        lines = self.output.rstrip().splitlines()
        return "\n".join([*lines[-SHOWN:], f"(log: {self.log})"])


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def trees() -> Path:
    """Directory of the kernel trees for the source in use."""
    script = f'. "{TOP}/tools/lib.sh" && trees_dir'
    done = subprocess.run(["bash", "-c", script], text=True, capture_output=True, check=True)
    return Path(done.stdout.strip())


def shell_tool(*command: str) -> bool:
    """Run one of the shell tools, which show their progress themselves."""
    sys.stdout.flush()
    return subprocess.run(["bash", *command], cwd=TOP).returncode == 0


def run(
    title: str,
    command: list[str] | str,
    *,
    cwd: Path = TOP,
    env: dict[str, str] | None = None,
    quiet: bool = False,
) -> Done:
    """Run a command with its output in a log; a sign of life every 30 s."""
    log = LOGS / f"{title.replace(' ', '-').replace('/', '-')}.log"
    LOGS.mkdir(parents=True, exist_ok=True)
    if not quiet:
        print(f"-- {title} (log: {log})", flush=True)
    start = said = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            shell=isinstance(command, str),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            time.sleep(0.1)
            if time.monotonic() - said >= 30:
                said = time.monotonic()
                print(f"   {clock(said - start)} {last_line(log)}", flush=True)
    if not quiet:
        print(f"   done in {clock(time.monotonic() - start)}", flush=True)
    return Done(process.returncode, log.read_text(errors="replace"), log)


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").rstrip().splitlines()
    return "".join(c for c in lines[-1] if c.isprintable())[:100] if lines else ""
