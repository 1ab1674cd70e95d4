# SPDX-License-Identifier: GPL-2.0
"""Fixtures of the boot scenarios.

Which binaries are tested is said by TDX_MACHINE, TDX_TD_CLIENT, TDX_KEXEC_TOOL,
TDX_KERNEL_*, TDX_HOST_KO_* and TDX_RESET_TEST_KO; `make boot-test` builds them and sets the variables.
TDX_KERNELS names the kernels on which the scenarios run. Another one, if its variable is set, is
there for comparison; what needs one that is not there is skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

import handover
from machine import Boot, Machine
from td import LIFE

KERNELS = {"c": "TDX_KERNEL_C", "rust": "TDX_KERNEL_RUST"}
DRIVERS = {"c": "TDX_HOST_KO_C", "rust": "TDX_HOST_KO_RUST"}
PRESENT = os.environ.get("TDX_KERNELS", "c rust").split()


def binary(variable: str) -> Path:
    """What an environment variable names. A missing file is an error, never a skip."""
    path = os.environ.get(variable)
    if not path:
        pytest.fail(f"{variable} is not set: run this with 'make boot-test'", pytrace=False)
    if not Path(path).is_file():
        pytest.fail(f"{variable}={path} does not exist", pytrace=False)
    return Path(path)


@pytest.fixture(scope="session")
def machine_with(tmp_path_factory):
    """A function: the machine for the kernel "c" or "rust"."""

    def make(kernel: str) -> Machine:
        if kernel not in PRESENT and KERNELS[kernel] not in os.environ:
            pytest.skip(f"needs the kernel '{kernel}'")
        directory = tmp_path_factory.mktemp("boot")
        return Machine(binary("TDX_MACHINE"), kernel, binary(KERNELS[kernel]), directory)

    return make


@pytest.fixture(params=PRESENT)
def machine(request, machine_with) -> Machine:
    """The machine with each kernel in turn: the C as released, and ours."""
    return machine_with(request.param)


@pytest.fixture
def rust(machine_with) -> Machine:
    """The machine with our kernel, for what the C does not do."""
    return machine_with("rust")


FREE = "echo 3 >/proc/sys/vm/drop_caches; sed -n 's/^MemFree: *\\([0-9]*\\) kB/free=\\1/p' /proc/meminfo\n"


@pytest.fixture(scope="session")
def free_without_tdx(machine_with):
    """A function: KB free on a machine whose firmware left TDX off."""
    known: dict[str, int] = {}

    def measure(kernel: str) -> int:
        if kernel not in known:
            boot = machine_with(kernel).run("--cpus", "2", "--keyids", "0", script=FREE)
            known[kernel] = int(boot.value("free"))
        return known[kernel]

    return measure


@pytest.fixture
def assert_given_back(free_without_tdx):
    """A function: a failed bring-up on 2 CPUs and 2 GB has kept no memory.

    The PAMT of 2 GB has 8212 KB; up to 5 MB have been seen to differ from boot to boot.
    """

    def check(boot: Boot) -> None:
        lost = free_without_tdx(boot.kernel) - int(boot.value("free"))
        assert lost < 7168, f"{lost} KB are not given back"

    return check


@pytest.fixture
def free_script() -> str:
    """Script that prints how much memory is free, for `assert_given_back`."""
    return FREE


@pytest.fixture(scope="session")
def tdx_host():
    """A function: the driver tdx-host of the kernel "c" or "rust", a kernel module."""
    return lambda kernel: binary(DRIVERS[kernel])


@pytest.fixture
def image(tmp_path_factory):
    """A function: makes the image of a TDX module from options of `tdx-machine image`."""

    def make(*args: str) -> Path:
        path = tmp_path_factory.mktemp("image") / "module"
        command = [str(binary("TDX_MACHINE")), "image", "--out", str(path), *args]
        subprocess.run(command, check=True)
        return path

    return make


@pytest.fixture(scope="session")
def td_client() -> Path:
    """The program that runs TDs inside the machine."""
    return binary("TDX_TD_CLIENT")


@pytest.fixture(scope="session")
def kexec_tool() -> Path:
    """The program that starts another kernel inside the machine."""
    return binary("TDX_KEXEC_TOOL")


@pytest.fixture(scope="session")
def reset_test() -> Path:
    """The module for our kernel that has awkward users of the memory reset, and crashes."""
    return binary("TDX_RESET_TEST_KO")


@pytest.fixture
def chain(kexec_tool, td_client, tmp_path: Path, request, record_property):
    """A function: boot with what it takes to run TDs and to start another kernel.

    Its account of the first kernel goes into the report of the tests, for tools/handovers.py.
    """

    def boot(machine: Machine, *args: str, append: str = "", guests: str = handover.BUSY, **more) -> Boot:
        path = tmp_path / f"guests-{machine.kernel}-{machine.runs}"
        path.write_text(guests)
        done = machine.run(
            "--file", f"{machine.image}:bzImage", "--file", str(kexec_tool),
            "--file", str(td_client), "--append", f"{handover.PARAMETERS} {append}",
            "--td-script", str(path), *args, **more,
        )  # fmt: skip
        account = handover.account(done, request.node.name)
        record_property("handover", json.dumps(account))
        return done

    return boot


@pytest.fixture
def run(td_client, tmp_path: Path):
    """A function: boot with td-client, the guests' script and KVM's TDX switched on."""
    return client_runner(td_client, tmp_path)


def client_runner(td_client: Path, directory: Path):
    """What the fixture `run` gives."""

    def boot(
        machine: Machine,
        *args: str,
        guests: str = LIFE,
        client: str = "run",
        script: str | None = None,
        **more,
    ) -> Boot:
        path = directory / f"guests-{machine.kernel}-{machine.runs}"
        path.write_text(guests)
        if script is None:
            script = f"/td-client {client} 2>&1; echo status=$?\n"
        return machine.run(
            "--append", "kvm_intel.tdx=1", "--file", str(td_client), "--td-script", str(path),
            *args, script=script, **more,
        )  # fmt: skip

    return boot
