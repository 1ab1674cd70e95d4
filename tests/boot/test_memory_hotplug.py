# SPDX-License-Identifier: GPL-2.0
"""Memory comes and goes on a running system.

What was there when TDX came up may go and come back; nothing else may come while TDX is up.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from handover import KVM_WARNS
from hotplug import BLOCK, BLOCKS, PLUG, SLOTS, monitor, plug_at_once, plug_in
from machine import Boot, wait_for
from td import check_status

# Memory goes and comes so often while TDs run; DIMMs and virtio-mem a sixth of that.
CYCLES = int(os.environ.get("TDX_HOTPLUG_CYCLES", "60"))
PLUGS = max(CYCLES // 6, 1)
LONG = 300 + 3 * CYCLES


def plug(machine, *args: str, meanwhile: Callable[[Path], None] = plug_in, **more) -> Boot:
    boot = machine.run(
        "--cpus", "2", *SLOTS, *args, script=more.pop("script", PLUG), meanwhile=meanwhile, **more
    )
    assert int(boot.value("blocks")) > 0, boot.output
    assert boot.value("was") == "offline"
    return boot


def refusals(boot: Boot) -> list[str]:
    """Our lines about memory that stays offline."""
    return [line for line in boot.tdx_log if "stays offline" in line]


def check_refused(boot: Boot, times: int = 1) -> None:
    """The memory is offline, and our log says which it is, why, and what can be done."""
    boot.check_up()
    if boot.kernel != "rust":
        return
    assert len(refusals(boot)) == times, boot.tdx_log
    for line in refusals(boot):
        start, end = (int(x, 16) for x in re.findall(r"0x[0-9a-f]+", line)[:2])
        assert start % BLOCK == 0 and end - start == BLOCK, line
        assert "TDX came up without it" in line and "reboot with it in place" in line, line


def test_memory_outside_tdx_memory_is_refused(machine):
    """Memory that the TDX module does not know must not reach the page allocator."""
    boot = plug(machine)
    assert boot.value("online") != "0"
    assert boot.value("is") == "offline"
    check_refused(boot)


def test_memory_that_comes_during_boot_is_refused(machine):
    """ACPI adds it right after bring-up, which is the earliest it can."""
    script = PLUG.replace("before=$(count)", f"before=$((2048 / {BLOCK >> 20}))")
    boot = plug(machine, script=script, meanwhile=plug_at_once)
    assert boot.value("online") != "0"
    assert boot.value("is") == "offline"
    check_refused(boot)


OFF = {
    "no-tdx": ["--keyids", "0"],
    "no-module": ["--no-module"],
    "failed": ["--inject", "TDH.SYS.TDMR.INIT:5=OPERAND_INVALID"],
}


@pytest.mark.parametrize("why", OFF)
def test_memory_is_taken_while_tdx_is_off(machine, why):
    boot = plug(machine, *OFF[why])
    boot.check_off()
    assert boot.value("online") == "0"
    assert boot.value("is") == "online"
    assert not refusals(boot)


def test_dimm_comes_and_goes(machine):
    """A DIMM whose memory is refused can be taken out, and the next one is refused likewise."""
    script = f"""{BLOCKS}
    refused=0
    for i in $(seq {PLUGS}); do
        echo; echo ready$i
        wait_blocks -gt $before || break
        block=$(last)
        echo online 2>/dev/null >$block/state || refused=$((refused + 1))
        echo; echo done$i
        wait_blocks -eq $before || break
    done
    echo "refused=$refused"
    echo "blocks=$(($(count) - before))"
    """

    def meanwhile(directory: Path) -> None:
        with monitor(directory) as qmp:
            for cycle in range(1, PLUGS + 1):
                wait_for(directory, f"ready{cycle}")
                qmp.plug()
                wait_for(directory, f"done{cycle}")
                qmp.unplug()

    boot = machine.run("--cpus", "2", *SLOTS, script=script, meanwhile=meanwhile, timeout=LONG)
    assert (boot.value("refused"), boot.value("blocks")) == (str(PLUGS), "0")
    check_refused(boot, PLUGS)


VIRTIO_MEM = ["--memory", "2G", "--virtio-mem", "512M", "--max-memory", "4G"]


@pytest.mark.parametrize("tdx", ["up", "off"])
def test_virtio_mem_grows_and_shrinks(machine, tdx):
    """Its driver adds memory, which stays offline while TDX is up, and takes it out again."""
    script = f"""{BLOCKS}
    ended=0
    for i in $(seq {PLUGS}); do
        echo; echo ready$i
        wait_blocks -ge $((before + 2)) || break
        block=$(last)
        echo online_movable 2>/dev/null >$block/state
        [ $? = {int(tdx == "up")} ] && ended=$((ended + 1))
        echo; echo done$i
        wait_blocks -eq $before || break
    done
    echo "ended=$ended"
    echo "blocks=$(($(count) - before))"
    """

    def meanwhile(directory: Path) -> None:
        with monitor(directory) as qmp:
            for cycle in range(1, PLUGS + 1):
                wait_for(directory, f"ready{cycle}")
                qmp.resize(2 * BLOCK)
                wait_for(directory, f"done{cycle}")
                qmp.resize(0)
                qmp.wait_size(0)

    args = VIRTIO_MEM + (OFF["no-module"] if tdx == "off" else [])
    boot = machine.run("--cpus", "2", *args, script=script, meanwhile=meanwhile, timeout=LONG)
    assert (boot.value("ended"), boot.value("blocks")) == (str(PLUGS), "0"), boot.output
    if tdx == "up":
        check_refused(boot, PLUGS)
    else:
        boot.check_off()
        assert not refusals(boot)


# cycle BLOCK: offline and online again; counts what went off in `off`, and in `lost` what did not
# come back. Memory that cannot go, because of a hole or the PAMT in it, does not count.
CYCLE = f"""{BLOCKS}
off=0; lost=0
cycle() {{
    echo offline 2>/dev/null >$1/state || return 0
    off=$((off + 1))
    echo online >$1/state || lost=$((lost + 1))
}}
"""


def test_tdx_memory_goes_and_comes_back(machine, run):
    """Every block in turn, then a TD that may get any of it."""
    script = f"""{CYCLE}
    for block in $(ls -d memory[0-9]* | sort -V); do cycle $block; done
    echo "off=$off"; echo "lost=$lost"
    echo "online=$(grep -l online */state | wc -l)"
    /td-client run 2>&1; echo status=$?
    """
    boot = run(machine, "--cpus", "2", "--memory", "2G", script=script)
    boot.check_up()
    # The first block has a hole, the last has another or the PAMT.
    assert int(boot.value("off")) >= 2 * 1024 // 128 - 4, boot.output
    assert boot.value("lost") == "0"
    assert boot.value("online") == str((2 << 30) // BLOCK)
    check_status(boot)
    assert not refusals(boot)


def test_memory_and_cpus_come_and_go_while_tds_run(machine, run):
    """Pages of TDs cannot move: a block that holds some goes once the TD has ended.

    The C loses a TD if a CPU goes while one of its vCPUs is initialized (patches/0006).
    """
    script = f"""{CYCLE}
    (cd /; tds=0; lost=0
    until [ -e /end ]; do
        if /td-client run >/log 2>&1; then tds=$((tds + 1)); else cat /log; lost=$((lost + 1)); fi
    done
    echo "tds=$tds"; echo "lost_tds=$lost") &
    client=$!
    (cpus=0
    until [ -e /end ]; do
        for state in 0 1; do echo $state >/sys/devices/system/cpu/cpu1/online || echo lost=cpu; done
        cpus=$((cpus + 1))
    done
    echo "cpus=$cpus") &
    cpus=$!
    for round in $(seq {CYCLES}); do
        for block in $(ls -d memory[0-9]* | sort -V); do
            [ $off -lt {CYCLES} ] && cycle $block
        done
        [ $off -ge {CYCLES} ] && break
    done
    : >/end
    wait $client $cpus
    echo "off=$off"; echo "lost=$lost"
    """
    args, more = ["--cpus", "2", "--memory", "2G"], {}
    if machine.kernel == "c":
        args += ["--allow", "td-misuse"]
        more["allow"] = KVM_WARNS
    boot = run(machine, *args, script=script, timeout=LONG, **more)
    boot.check_up()
    assert (boot.value("off"), boot.value("lost")) == (str(CYCLES), "0")
    assert int(boot.value("tds")) > 0 and int(boot.value("cpus")) > 0
    lost = boot.value("lost_tds")
    if machine.kernel == "rust":
        assert lost == "0", boot.output
    else:
        assert int(lost) == boot.results("TDH.VP.WR").get("VCPU_ASSOCIATED", 0), boot.report
    if lost == "0":
        assert boot.summary["violations"] | boot.summary["allowed_violations"] == {}, boot.report
        assert "WARNING:" not in boot.log
        assert boot.summary["tds_alive"] == 0 and boot.summary["private_pages"] == 0, boot.report
    assert not refusals(boot)
