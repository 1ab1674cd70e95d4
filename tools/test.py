# SPDX-License-Identifier: GPL-2.0
"""Run the test suites and say how they went. Usage: test.py [SUITE...]

Without arguments, all but MORE.

Runs inside tools/enter. Prints what failed, a table of the suites, how long it
took, and last the line "N passed, N failed". The exit status is 0 if and only
if something ran and nothing failed.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import exports
import handovers
import lint
from steps import (
    CACHE,
    GUEST,
    JOBS,
    RESULTS,
    TARGET,
    TOP,
    Outcome,
    Result,
    clock,
    failed,
    passed,
    run,
    shell_tool,
    skipped,
    trees,
)

Suite = Callable[[], list[Result]]


def kernel(which: str) -> Path:
    return trees() / which / "build/arch/x86/boot/bzImage"


def tdx_host(which: str) -> Path:
    """The driver with which user space updates the TDX module: a kernel module."""
    return trees() / which / "build/drivers/virt/coco/tdx-host/tdx-host.ko"


def reset_test(which: str) -> Path:
    """The module with awkward users of the memory reset, for a kernel with our files."""
    return trees() / which / "build/tests-module/tdx-reset-test.ko"


def build(*wanted: str) -> list[Result]:
    """Build "machine", "c", "rust"; a failed build is a failed test."""
    results = []
    for what in wanted:
        tool = ["tools/machine.sh"] if what == "machine" else ["tools/kernel.sh", what]
        if not shell_tool(*tool):
            results.append(failed(f"build of {what}", "see above"))
    return results


def cargo_test(title: str, manifest: Path, *args: str, bootstrap: str = "") -> list[Result]:
    """Run cargo's tests and count them one by one."""
    if not manifest.exists():
        return [failed(title, f"{manifest} is missing")]
    command = ["cargo", "test", "--locked", "--no-fail-fast", "-j", JOBS]
    command += ["--manifest-path", str(manifest), *args]
    env = {"RUSTC_BOOTSTRAP": bootstrap} if bootstrap else {}
    done = run(title, command, env=env)
    results = []
    ends = {"ok": passed, "FAILED": lambda name: failed(name, done.tail)}
    line = re.compile(r"^test (.+?) \.\.\. (ok|FAILED|ignored)", re.MULTILINE)
    for name, end in line.findall(done.output):
        results.append(ends[end](name) if end in ends else skipped(name, "ignored"))
    if done.status and not any(r.outcome is Outcome.FAILED for r in results):
        results.append(failed(f"cargo test in {manifest.parent}", done.tail))
    return results


def machine() -> list[Result]:
    """Tests of the simulated machine, without a kernel."""
    return cargo_test("tests of the machine", TOP / "machine/Cargo.toml", "--workspace")


def host() -> list[Result]:
    """Tests of the module's pure files in user space."""
    # With unstable features on for this crate only, rustdoc also checks *why* what must not
    # compile does not.
    return cargo_test("host tests", TOP / "tests/host/Cargo.toml", bootstrap="tdx_host_tests")


# Only our suites: the kernel has others of its own.
KUNIT = "kunit.enable=1 kunit.autorun=1 kunit.filter_glob=tdx_host*"
# One of the suites runs TDs, with a vCPU on each CPU. Each step of TLB tracking finds the module busy
# once in the part in Rust and once in the part in C, which remove 200 pages each.
KUNIT_MACHINE = ["--cpus", "4", "--sockets", "2", "--td-script", str(TOP / "tests/kunit/guest-script")]
for place in (
    "TDH.MEM.RANGE.BLOCK:7=OPERAND_BUSY",
    "TDH.MEM.TRACK:5=OPERAND_BUSY",
    "TDH.MEM.PAGE.REMOVE:60=OPERAND_BUSY",
    "TDH.MEM.RANGE.BLOCK:250=OPERAND_BUSY",
    "TDH.MEM.TRACK:40=PREVIOUS_TLB_EPOCH_BUSY",
    "TDH.MEM.PAGE.REMOVE:300=OPERAND_BUSY",
):
    KUNIT_MACHINE += ["--inject", place]


def kunit(which: str = "rust", parameters: str = "") -> list[Result]:
    """The module's KUnit suites in a booted kernel, read by the kernel's own parser."""
    results = build("machine", which)
    if results:
        return results
    out = RESULTS / f"kunit-{which}"
    report = out / "kunit.json"
    command = [str(TARGET / "release/tdx-machine"), "run", "--kernel", str(kernel(which))]
    command += ["--quiet", "--out", str(out), "--append", f"{KUNIT} {parameters}", *KUNIT_MACHINE]
    summary = out / "summary.json"
    summary.unlink(missing_ok=True)
    done = run(f"KUnit in a booted kernel, {which}", command)
    if done.status:
        results.append(failed("boot with KUnit", done.tail))
    results.append(kunit_tds(json.loads(summary.read_text()) if summary.exists() else {}))
    report.unlink(missing_ok=True)
    parser = trees() / "rust/tools/testing/kunit/kunit.py"
    command = ["python3", str(parser), "parse", f"--json={report}", str(out / "console.log")]
    done = run("KTAP", command, cwd=out, quiet=True)
    found = kunit_cases(json.loads(report.read_text()), out) if report.exists() else []
    if not found:
        results.append(failed("KUnit suites of tdx_host", "none in the log\n" + done.tail))
    if done.status and not any(r.outcome is Outcome.FAILED for r in found):
        results.append(failed("KTAP is complete", done.tail))
    return results + found


def kunit_tds(summary: dict) -> Result:
    """The TDs of the suites ran, their guests found nothing wrong, and nothing of them is left."""
    name = "TDs of the KUnit suites ran and are gone"
    guests = summary.get("guests", [])
    faults = [guest["exits"].get("exit 48", 0) for guest in guests]
    wrong = {
        "no guest": not guests,
        "guests found failures": any(guest["failures"] for guest in guests),
        "no guest lost memory": not any(count > 1 for count in faults),
        "a call was not made": summary.get("unused_injections") != [],
        "TDs are left": summary.get("tds_alive") != 0,
        "private memory is left": summary.get("private_pages") != 0,
    }
    reasons = [reason for reason, is_so in wrong.items() if is_so]
    return failed(name, ", ".join(reasons)) if reasons else passed(name)


def kunit_cases(group: dict, out: Path, path: str = "") -> list[Result]:
    """Flatten what kunit.py writes: groups in groups, and test cases in them."""
    ends = {"PASS": passed, "SKIP": lambda name: skipped(name, "skipped by the test")}
    results = []
    for case in group.get("test_cases", []):
        make = ends.get(case["status"], lambda n: failed(n, f"see {out}/console.log"))
        results.append(make(f"{path}{case['name']}"))
    for inner in group.get("sub_groups", []):
        results += kunit_cases(inner, out, f"{path}{inner['name']}.")
    return results


def pytest(title: str, directory: Path, env: dict[str, str], *args: str, name: str = "") -> list[Result]:
    """Run pytest and count by its JUnit report; `name` is that of the results' directory."""
    name = name or directory.name
    report = RESULTS / f"{name}.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    command = ["python3", "-m", "pytest", "--tb=short", f"--junit-xml={report}"]
    command += [f"--basetemp={RESULTS / name}", *args]
    done = run(title, command, cwd=directory, env=env)
    if not report.exists():
        return [failed(title, done.tail)]
    results = [junit_case(case) for case in ElementTree.parse(report).iter("testcase")]
    if done.status and not any(r.outcome is Outcome.FAILED for r in results):
        results.append(failed(title, done.tail))
    return results


def junit_case(case: ElementTree.Element) -> Result:
    name = f"{case.get('classname')}::{case.get('name')}"
    for kind in ("failure", "error"):
        found = case.find(kind)
        if found is not None:
            return failed(name, "\n".join((found.text or "").splitlines()[-30:]))
    found = case.find("skipped")
    return passed(name) if found is None else skipped(name, found.get("message", ""))


def boot() -> list[Result]:
    """Scenarios on the machine, with the C as released and with our module."""
    results = build("machine", "c", "rust")
    if results:
        return results
    return scenarios("boot scenarios", "boot", {"c": "c", "rust": "rust"})


def scenarios(
    title: str,
    name: str,
    kernels: dict[str, str],
    *more: str,
    only: str = "",
    slower: int = 1,
    parameters: str = "",
) -> list[Result]:
    """Boot scenarios, with `more` arguments for pytest. `kernels` says which build stands for "c" and
    "rust", which get `parameters`; the slowest takes `slower` times as long as usual. With `only` one
    of them, the other is there for comparison."""
    env = {
        "TDX_PARAMETERS": parameters,
        "TDX_MACHINE": str(TARGET / "release/tdx-machine"),
        "TDX_TD_CLIENT": str(GUEST / "td-client"),
        "TDX_KEXEC_TOOL": str(GUEST / "kexec-tool"),
        "TDX_KERNELS": only or " ".join(kernels),
        "TDX_SLOWER": str(slower),
    }
    for which, built in kernels.items():
        env[f"TDX_KERNEL_{which.upper()}"] = str(kernel(built))
        env[f"TDX_HOST_KO_{which.upper()}"] = str(tdx_host(built))
    if "rust" in kernels:
        env["TDX_RESET_TEST_KO"] = str(reset_test(kernels["rust"]))
    # Tests that share a boot run in one process: they name a group.
    args = ["-n", JOBS, "--dist=loadgroup", *more]
    if os.environ.get("K"):
        args += ["-k", os.environ["K"]]
    results = pytest(title, TOP / "tests/boot", env, *args, name=name)
    write_handovers(name)
    return results


def write_handovers(name: str) -> None:
    """Put what the kernels left to the next, in scenarios of kexec and kdump, in a table."""
    report = RESULTS / f"{name}.xml"
    rows = handovers.accounts(report) if report.exists() else []
    if rows:
        path = RESULTS / f"{name}-handover.txt"
        path.write_text(handovers.table(rows))
        path.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
        print(f"   what each kernel left to the next: {path}")


# How many times slower the kernel with more checks is.
CHECKED_SLOWER = 6
# With five-level paging the addresses that KASAN takes for valid depend on a CPU feature that is
# cleared for a moment while a CPU is identified: an access in an interrupt just then is reported.
CHECKED_PARAMETERS = "no5lvl"


def checked() -> list[Result]:
    """KUnit and the boot scenarios, with our module in a kernel that checks itself
    (tools/config/checked.config)."""
    results = build("machine", "c", "checked")
    if results:
        return results
    # A sample of those in which one kernel starts another.
    sample = ["-m", "not (two_kernels or counts) or checked"]
    title = "boot scenarios, checked kernel"
    return kunit("checked", CHECKED_PARAMETERS) + scenarios(
        title, "boot-checked", {"c": "c", "rust": "checked"}, *sample,
        only="rust", slower=CHECKED_SLOWER, parameters=CHECKED_PARAMETERS,
    )  # fmt: skip


def tools() -> list[Result]:
    """Tests of the tools themselves: install-tree."""
    if not shell_tool("tools/source.sh"):
        return [failed("kernel source", "see above")]
    env = {"TDX_PRISTINE": str(trees() / "c")}
    return pytest("tests of the tools", TOP / "tests/tools", env)


def exported() -> list[Result]:
    """What modules may use is what they may use of the C, with KVM built in and as modules."""
    results = build("c", "rust")
    if results:
        return results
    theirs, ours = (trees() / which / "build" for which in ("c", "rust"))
    RESULTS.mkdir(parents=True, exist_ok=True)
    for kvm, path in (("built-in", "Module.symvers"), ("modules", "")):
        sides = [exports.exports(side / path) for side in (theirs, ours)]
        problems = exports.differences(*sides)
        name = f"exports with KVM {kvm}"
        results.append(failed(name, "\n".join(problems)) if problems else passed(name))
        (RESULTS / f"exports-kvm-{kvm}.txt").write_text(exports.table(sides[1]))
    return results


def linters() -> list[Result]:
    """Everything that reads the sources instead of running them."""
    results = build("rust")
    return results + lint.checks(trees(), built=not results)


SUITES: dict[str, Suite] = {
    "lint": linters,
    "tools": tools,
    "exports": exported,
    "machine": machine,
    "host": host,
    "kunit": kunit,
    "boot": boot,
}
# Not run unless asked for.
MORE: dict[str, Suite] = {"checked": checked}


def count(results: list[Result], outcome: Outcome) -> int:
    return sum(r.outcome is outcome for r in results)


def report(done: dict[str, tuple[list[Result], float]], seconds: float) -> int:
    """Print what failed, the table and the totals; the exit status."""
    everything = [r for results, _ in done.values() for r in results]
    for suite, (results, _) in done.items():
        for result in results:
            if result.outcome is not Outcome.PASSED:
                print(f"\n{result.outcome.value}: {suite}: {result.name}")
                print("\n".join(f"    {line}" for line in result.detail.splitlines()))
    print(f"\n{'suite':<10} {'passed':>7} {'failed':>7} {'skipped':>8} {'time':>7}")
    for suite, (results, taken) in done.items():
        numbers = [count(results, outcome) for outcome in Outcome]
        print(f"{suite:<10} {numbers[0]:>7} {numbers[1]:>7} {numbers[2]:>8} {clock(taken):>7}")
    good, bad = count(everything, Outcome.PASSED), count(everything, Outcome.FAILED)
    empty = [suite for suite, (results, _) in done.items() if not results]
    for suite in empty:
        print(f"suite {suite} ran no test: counted as a failure")
    bad += len(empty)
    print(f"\ntotal time {clock(seconds)}; logs and results in {CACHE}")
    print(f"{good} passed, {bad} failed")
    return 0 if good and not bad else 1


def main(names: list[str]) -> int:
    known = SUITES | MORE
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"error: no suite {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    start = time.monotonic()
    done = {}
    for name in names or SUITES:
        print(f"\n== {name}", flush=True)
        began = time.monotonic()
        results = known[name]()
        done[name] = (results, time.monotonic() - began)
        bad = count(results, Outcome.FAILED)
        print(f"   {count(results, Outcome.PASSED)} passed, {bad} failed", flush=True)
    return report(done, time.monotonic() - start)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
