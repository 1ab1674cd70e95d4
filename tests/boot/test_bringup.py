# SPDX-License-Identifier: GPL-2.0
"""TDX comes up on machines of many shapes."""

from __future__ import annotations

from pathlib import Path

import pytest

# Bytes of PAMT for one page of the PAMT's size class, as the machine reports them.
PAMT_ENTRY = 16
GB = 1 << 30

SHAPES = [
    pytest.param(["--cpus", "1"], id="1-cpu"),
    pytest.param(["--cpus", "2"], id="2-cpus"),
    pytest.param(["--cpus", "4"], id="4-cpus"),
    pytest.param(["--cpus", "2", "--sockets", "2"], id="2-sockets"),
    pytest.param(["--cpus", "4", "--sockets", "2"], id="2-sockets-4-cpus"),
    pytest.param(["--cpus", "2", "--numa", "2", "--memory", "4G"], id="2-nodes"),
    pytest.param(["--cpus", "4", "--sockets", "2", "--numa", "2", "--memory", "8G"], id="2-sockets-2-nodes"),
    pytest.param(["--memory", "3G"], id="3G"),
    pytest.param(["--memory", "16G"], id="16G"),
    pytest.param(["--memory", "64G"], id="64G"),
    pytest.param(["--erratum", "off"], id="no-erratum"),
    pytest.param(["--keyids", "2,0"], id="fewest-keyids"),
    pytest.param(["--keyids", "31,32"], id="keyids-31"),
    pytest.param(["--no-feature", "sys-disable"], id="no-sys-disable"),
]


def argument(args: list[str], name: str, default: int) -> int:
    return int(args[args.index(name) + 1]) if name in args else default


@pytest.mark.parametrize("shape", SHAPES)
def test_shape(machine, shape):
    boot = machine.run(*shape)
    boot.check_up()
    cpus = argument(shape, "--cpus", 1)
    sockets = argument(shape, "--sockets", 1)
    assert boot.results("TDH.SYS.INIT") == {"SUCCESS": 1}
    assert boot.results("TDH.SYS.LP.INIT") == {"SUCCESS": cpus}
    assert boot.results("TDH.SYS.KEY.CONFIG") == {"SUCCESS": sockets}
    assert {call["cpu"] for call in boot.calls("TDH.SYS.LP.INIT")} == set(range(cpus))
    assert boot.results("TDH.SYS.CONFIG") == {"SUCCESS": 1}


def pamt_kb(boot) -> int:
    """KB of PAMT in the plan that the module was given."""
    tdmrs = boot.calls("TDH.SYS.CONFIG")[0]["tdmrs"]
    pamts = ("pamt_4k", "pamt_2m", "pamt_1g")
    return sum(int(tdmr[pamt][1], 16) for tdmr in tdmrs for pamt in pamts) >> 10


@pytest.mark.parametrize("memory", [2, 8])
def test_pamt_reported_is_pamt_used(machine, memory):
    boot = machine.run("--memory", f"{memory}G")
    lines = [line for line in boot.tdx_log if line.endswith("KB allocated for PAMT")]
    assert len(lines) == 1, boot.tdx_log
    assert int(lines[0].split()[0]) == pamt_kb(boot)
    covered = sum(int(t["size"], 16) for t in boot.calls("TDH.SYS.CONFIG")[0]["tdmrs"])
    assert covered >= memory * GB
    assert pamt_kb(boot) << 10 >= covered // 4096 * PAMT_ENTRY


def test_every_line_of_a_node_is_on_that_node(rust):
    """PAMTs lie on the node whose memory they describe."""
    boot = rust.run("--cpus", "2", "--numa", "2", "--memory", "8G")
    boot.check_up()
    tdmrs = boot.calls("TDH.SYS.CONFIG")[0]["tdmrs"]
    # QEMU gives half of the memory to each node, and 2 GB of it lie below the PCI hole.
    boundary = 6 * GB
    for tdmr in tdmrs:
        start = int(tdmr["base"], 16)
        pamt = int(tdmr["pamt_4k"][0], 16)
        if start >= boundary:
            assert pamt >= boundary, tdmr
        elif start + int(tdmr["size"], 16) <= boundary:
            assert pamt < boundary, tdmr


MAP = """\
# Two holes below 2 GB and one CMR that ends early.
e820 0x0000000000000000 0x000000000009efff usable
e820 0x000000000009f000 0x00000000000fffff reserved
e820 0x0000000000100000 0x000000003fffffff usable
e820 0x0000000040000000 0x000000004000ffff reserved
e820 0x0000000040010000 0x000000005fffffff usable
e820 0x0000000060000000 0x00000000600fffff acpi
e820 0x0000000060100000 0x000000006fffffff usable
cmr 0x100000 0x70000000
"""


def test_memory_map_from_a_file(machine, tmp_path: Path):
    path = tmp_path / "map.txt"
    path.write_text(MAP)
    boot = machine.run("--memory-map", str(path))
    boot.check_up()
    for start, size in [(0x40000000, 0x10000), (0x60000000, 0x100000)]:
        assert is_left_out(boot, start, size), f"the hole at {start:#x} is TDX memory"
    assert not is_left_out(boot, 0x50000000, 0x100000), "memory is missing"


def is_left_out(boot, start: int, size: int) -> bool:
    """No TDMR has any of [start, start + size) outside its reserved areas."""
    for tdmr in boot.calls("TDH.SYS.CONFIG")[0]["tdmrs"]:
        base, length = int(tdmr["base"], 16), int(tdmr["size"], 16)
        if base + length <= start or start + size <= base:
            continue
        areas = [(base + int(a, 16), int(b, 16)) for a, b in tdmr["reserved"]]
        if not any(a <= start and start + size <= a + b for a, b in areas):
            return False
    return True


def test_memory_outside_every_cmr_keeps_tdx_off(machine):
    """The plan that memory asks for cannot be had: CONFIG would refuse it."""
    boot = machine.run("--memory", "2G", "--cmr", "1M-1G", "--allow", "plan-rejected")
    boot.check_off()
    if machine.kernel == "rust":
        named = [i for i, x in enumerate(boot.tdx_log) if x.startswith("memory [0x40000000, ")]
        failed = [i for i, x in enumerate(boot.tdx_log) if "TDH.SYS.CONFIG" in x]
        assert named and "the TDX module will refuse" in boot.tdx_log[named[0]], boot.tdx_log
        assert named[0] < failed[0], boot.tdx_log


EMERALD_RAPIDS = Path(__file__).resolve().parents[1] / "host/tests/data/emerald-rapids.txt"


def test_real_server_whose_reserved_areas_run_out(machine):
    """The memory map of a server on which the C finds no plan, because of holes that are harmless."""
    boot = machine.run("--memory-map", str(EMERALD_RAPIDS))
    if machine.kernel == "rust":
        boot.check_up()
        low = boot.calls("TDH.SYS.CONFIG")[0]["tdmrs"][0]
        assert (int(low["base"], 16), int(low["size"], 16)) == (0, 2 * GB)
        areas = [(int(a, 16), int(b, 16)) for a, b in low["reserved"]]
        assert 1 <= len([size for _, size in areas if size]) <= 16
        # What must be reserved: the first megabyte, and what lies above the CMR.
        assert is_left_out(boot, 0, 1 << 20)
        assert is_left_out(boot, 0x6F800000, 2 * GB - 0x6F800000)
        return
    boot.check_off()
    assert boot.count("TDH.SYS.CONFIG") == 0
    assert any("TDMR [0x0, 0x80000000): reserved areas exhausted" in line for line in boot.tdx_log)
    assert boot.tdx_log[-1] == "TDX-Module initialization failed (-28)"


def test_few_reserved_areas_suffice(rust):
    """One area for the hole below 1 MB, one that the end of memory takes, none for the PAMT."""
    boot = rust.run("--memory", "2G", "--max-reserved", "2")
    boot.check_up()
    tdmrs = boot.calls("TDH.SYS.CONFIG")[0]["tdmrs"]
    assert all(len([b for _, b in tdmr["reserved"] if int(b, 16)]) <= 2 for tdmr in tdmrs)


# MAX_TDMRS and MAX_RESERVED_PER_TDMR
@pytest.mark.parametrize("field", ["0x9100000100000008", "0x9100000100000009"])
def test_limit_that_is_short_is_named(rust, field):
    boot = rust.run("--memory", "2G", "--metadata", f"{field}=0")
    boot.check_off()
    assert boot.count("TDH.SYS.CONFIG") == 0
    assert any("the TDX module offers 0" in line for line in boot.tdx_log), boot.tdx_log
    assert boot.tdx_log[-1] == "TDX-Module initialization failed (-28)"


def test_one_tdmr_covers_a_hole_of_gigabytes(rust):
    """Memory below 2 GB and above 4 GB in one TDMR, when the module offers no more."""
    boot = rust.run("--memory", "4G", "--max-tdmrs", "1")
    boot.check_up()
    tdmrs = boot.calls("TDH.SYS.CONFIG")[0]["tdmrs"]
    assert [(int(t["base"], 16), int(t["size"], 16)) for t in tdmrs] == [(0, 6 * GB)]
