# SPDX-License-Identifier: GPL-2.0
"""What the scenarios of memory hotplug share: the monitor's side and the guest's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qemu.qmp import QMPError
from qemu.qmp.legacy import QEMUMonitorProtocol

from machine import SLOWER, wait_for

BLOCK = 128 << 20
DIMM = 256 << 20
SLOTS = ["--memory", "2G", "--dimm-slots", "2", "--max-memory", "4G"]


class Qmp:
    """The machine's monitor, as far as hotplug needs it."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.slot = 0
        self.protocol = QEMUMonitorProtocol(str(directory / "qmp"))
        end = time.monotonic() + 30 * SLOWER
        while True:
            try:
                self.protocol.connect(negotiate=True)
                return
            except (OSError, QMPError):
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def plug(self) -> None:
        """Plug in a DIMM, each time in the other slot.

        When a DIMM is gone the guest looks at its slot once more, and takes a new one there for it.
        """
        backend = {"qom-type": "memory-backend-ram", "id": "dimm0", "size": DIMM}
        self.protocol.cmd("object-add", **backend)
        self.protocol.cmd("device_add", driver="pc-dimm", id="plugged", memdev="dimm0", slot=self.slot)
        self.slot ^= 1

    def unplug(self) -> None:
        """Ask the guest to give the DIMM back, and wait until it has."""
        self.protocol.cmd("device_del", id="plugged")
        self.wait(lambda: not self.protocol.cmd("query-memory-devices"))
        self.protocol.cmd("object-del", id="dimm0")

    def resize(self, size: int) -> None:
        """Tell the virtio-mem device to give that much memory. The guest takes its time."""
        self.protocol.cmd("qom-set", path="virtio-mem", property="requested-size", value=size)

    def wait_size(self, size: int) -> None:
        """Wait until the guest has taken that much of the virtio-mem device."""
        ask = {"path": "virtio-mem", "property": "size"}
        self.wait(lambda: self.protocol.cmd("qom-get", **ask) == size)

    def wait(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + 60 * SLOWER
        while not done():
            assert time.monotonic() < end, f"the guest does not react: {self.directory}"
            time.sleep(0.05)


@contextmanager
def monitor(directory: Path) -> Iterator[Qmp]:
    """The monitor of the machine that runs in `directory`; waits until there is one."""
    qmp = Qmp(directory)
    try:
        yield qmp
    finally:
        qmp.protocol.close()


# count: the number of blocks. last: the one with the highest address.
# wait_blocks COMPARISON NUMBER: until that is true of the number of blocks.
BLOCKS = """
cd /sys/devices/system/memory
count() { ls -d memory[0-9]* | wc -l; }
wait_blocks() { for try in $(seq 600); do [ $(count) $1 $2 ] && return; sleep 0.1; done; false; }
last() { ls -d memory[0-9]* | sort -V | tail -n 1; }
before=$(count)
"""

# The line "ready" on the console tells the test to plug the DIMM in.
PLUG = f"""{BLOCKS}
echo; echo ready
wait_blocks -gt $before
block=$(last)
echo "blocks=$(($(count) - before))"
echo "was=$(cat $block/state)"
echo online >$block/state; echo "online=$?"
echo "is=$(cat $block/state)"
"""


def plug_in(directory: Path) -> None:
    """Plug in as soon as the guest waits for it."""
    wait_for(directory, "ready")
    with monitor(directory) as qmp:
        qmp.plug()


def plug_at_once(directory: Path) -> None:
    """Plug in long before user space is there."""
    with monitor(directory) as qmp:
        qmp.plug()
