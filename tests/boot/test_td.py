# SPDX-License-Identifier: GPL-2.0
"""TDs live their whole life, built by KVM and run by `td-client`.

What runs inside a TD is a script given to the machine. A guest that finds
something wrong counts a failure, which every scenario looks at.
"""

from __future__ import annotations

from pathlib import Path

import pytest

# td-client adds these pages from GPA 0 unless told otherwise: 4 are measured, one is not.
MEASURED, UNMEASURED = 4, 1
# TDH.MR.EXTEND measures 256 bytes.
EXTENDS = MEASURED * 4096 // 256


def life(base: int) -> str:
    """Steps of a guest that uses all it can, in 3 MB from `base` on (page 1 was there before)."""
    private, converted = base + 0x100000, base + 0x200000
    return f"""
    store 0x1000 0x1234
    accept {private:#x}
    store {private:#x} 7
    load {private:#x}
    expect r11=7
    map-gpa shared {converted:#x} 0x3000
    expect r10=0
    store shared {converted + 0x1000:#x} 0x55
    load shared {converted + 0x1000:#x}
    expect r11=0x55
    map-gpa private {converted:#x} 0x3000
    expect r10=0
    accept {converted + 0x1000:#x}
    load {converted + 0x1000:#x}
    expect r11=0
    mmio-write 0xfe000000 4 0xabcd
    mmio-read 0xfe000000 4
    expect r11=0xabcd
    io-write 0x3f8 1 0x68
    io-write 0x3f8 1 0x0a
    info 1
    expect r10=0
    """


LIFE = life(0) + "at-end shutdown\n"


@pytest.fixture
def machine(machine_with):
    """Our module only: the control is not yet held to these scenarios."""
    return machine_with("rust")


@pytest.fixture
def run(td_client, tmp_path: Path):
    """A function: boot with td-client, the guests' script and KVM's TDX switched on."""

    def boot(machine, *args: str, guests: str = LIFE, client: str = "run", script: str | None = None, **more):
        path = tmp_path / f"guests-{machine.runs}"
        path.write_text(guests)
        if script is None:
            script = f"/td-client {client} 2>&1; echo status=$?\n"
        return machine.run(
            "--append", "kvm_intel.tdx=1", "--file", str(td_client), "--td-script", str(path),
            *args, script=script, **more,
        )  # fmt: skip

    return boot


def check_gone(boot, tds: int) -> None:
    """All TDs were created and are gone: no page, KeyID or private line is left."""
    assert boot.summary["tds_created"] == tds, boot.report
    assert boot.summary["tds_alive"] == 0, boot.report
    assert boot.summary["private_pages"] == 0, boot.report
    for leaf in ("TDH.MNG.CREATE", "TDH.MNG.KEY.FREEID"):
        assert boot.results(leaf) == {"SUCCESS": tds}, leaf
    pages = boot.count("TDH.MEM.PAGE.ADD") + boot.count("TDH.MEM.PAGE.AUG")
    assert boot.results("TDH.MEM.PAGE.REMOVE") == ({"SUCCESS": pages} if pages else {})


def check_guests(boot, guests: int) -> None:
    """That many guests ran, and found nothing wrong."""
    assert len(boot.summary["guests"]) == guests, boot.report
    for guest in boot.summary["guests"]:
        assert guest["entries"] > 0 and guest["failures"] == 0, guest


def check_status(boot, expected: str = "0") -> None:
    assert boot.value("status") == expected, boot.output


def test_info(machine, run):
    boot = run(machine, client="info")
    check_status(boot)
    assert int(boot.value("vm_types"), 16) & 1 << 5
    assert int(boot.value("cpuid_entries")) == 28
    assert boot.count("TDH.MNG.CREATE") == 0


def test_whole_life(machine, run):
    boot = run(machine)
    check_status(boot)
    check_gone(boot, 1)
    check_guests(boot, 1)
    assert boot.count("TDH.MEM.PAGE.ADD") == MEASURED + UNMEASURED
    assert boot.count("TDH.MR.EXTEND") == EXTENDS
    assert boot.results("TDH.MR.FINALIZE") == {"SUCCESS": 1}
    # One page was accepted, one was converted and accepted again.
    assert boot.count("TDH.MEM.PAGE.AUG") == 2
    assert "td 0: says: h" in boot.output
    assert "td 0: ended: shutdown; exits: io-out 2, map-gpa-private 1, map-gpa-shared 1" in boot.output


def test_four_vcpus(machine, run):
    guests = "".join(f"vcpu {n}\n{life(n * 0x400000)}\nat-end hlt\n" for n in range(4))
    boot = run(machine, "--cpus", "4", guests=guests, client="run --vcpus 4 --until-halt --memory 32")
    check_status(boot)
    check_gone(boot, 1)
    check_guests(boot, 4)
    assert boot.results("TDH.VP.INIT") == {"SUCCESS": 4}
    assert "td 0: ended: halted" in boot.output


def test_vcpus_move_between_cpus(machine, run):
    """A vCPU that moves is flushed on the CPU that it leaves."""
    guests = "mmio-write 0xfe000000 4 1\nmmio-write 0xfe000004 4 2\nat-end loop\n"
    client = "run --vcpus 2 --roam --max-exits 100"
    boot = run(machine, "--cpus", "4", guests=guests, client=client)
    check_status(boot)
    check_gone(boot, 1)
    assert {call["cpu"] for call in boot.calls("TDH.VP.ENTER")} == set(range(4))
    assert boot.results("TDH.VP.FLUSH").get("SUCCESS", 0) > 10


def test_several_tds(machine, run):
    boot = run(machine, "--cpus", "2", client="run --tds 3")
    check_status(boot)
    check_gone(boot, 3)
    check_guests(boot, 3)
    assert len({call["in"]["rdx"] for call in boot.calls("TDH.MNG.CREATE")}) == 3, "KeyIDs are shared"


def test_keyids_run_out(machine, run):
    """Of 4 KeyIDs one is the module's own. KVM says that there are no more, and recovers."""
    boot = run(machine, "--keyids", "4,2", client="exhaust")
    check_status(boot)
    assert boot.value("built") == "3"
    assert boot.value("refused") == "KVM_TDX_INIT_VM: No space left on device (os error 28)"
    assert boot.value("again") == "3"
    check_gone(boot, 4)


def test_create_and_destroy_often(machine, run):
    boot = run(machine, client="run --repeat 50", guests="accept 0x100000\nat-end shutdown\n")
    check_status(boot)
    check_gone(boot, 50)
    assert boot.value("ended") == "50"


def test_client_is_killed(machine, run):
    """A VMM that dies leaves no TD behind, and the next one can have as many."""
    script = """
    /td-client run --vcpus 2 >/log 2>&1 &
    for i in $(seq 100); do grep -q built /log && break; sleep 0.1; done
    sleep 0.5
    kill -9 $!; wait $!; echo killed=$?
    /td-client run --vcpus 2 --max-exits 10; echo status=$?
    """
    guests = "mmio-write 0xfe000000 4 1\nstay 1000\nat-end loop\n"
    boot = run(machine, "--cpus", "2", "--keyids", "2,2", script=script, guests=guests)
    assert boot.value("killed") == "137"
    check_status(boot)
    check_gone(boot, 2)


def test_conversion_without_asking(machine, run):
    """Memory that the guest uses the other way is converted, as a VMM does."""
    guests = """
    store shared 0x300000 9
    load shared 0x300000
    expect r11=9
    accept 0x300000
    load 0x300000
    expect r11=0
    at-end shutdown
    """
    boot = run(machine, guests=guests)
    check_status(boot)
    check_gone(boot, 1)
    check_guests(boot, 1)
    assert "fault-private 1, fault-shared 1" in boot.output


def test_fatal_error_ends_the_td(machine, run):
    boot = run(machine, guests="fatal 0x42\n")
    check_status(boot, "1")
    assert "td 0: vCPU 0: the TD reported a fatal error 0x42" in boot.output
    check_gone(boot, 1)


def test_more_vcpus_than_cpus(machine, run):
    boot = run(machine, "--cpus", "2", client="run --vcpus 3")
    check_status(boot, "1")
    assert "td 0: 3 vCPUs: a TD has 2 at most on this machine" in boot.output
    assert boot.count("TDH.MNG.CREATE") == 0


def test_kvm_without_tdx(machine, td_client):
    """The TDX of kvm_intel is off unless asked for."""
    script = "/td-client info 2>&1; echo status=$?\n"
    boot = machine.run("--file", str(td_client), script=script)
    check_status(boot, "1")
    assert "KVM offers no TDs" in boot.output


def test_init_that_fails_says_why(machine, run):
    """An operand that the module refuses is the VMM's fault: no warning, and all is undone."""
    boot = run(machine, "--inject", "TDH.MNG.INIT:1=0xC000010000000045")
    check_status(boot, "1")
    expected = "td 0: KVM_TDX_INIT_VM: Invalid argument (os error 22), SEAMCALL status 0xc000010000000045"
    assert expected in boot.output
    check_gone(boot, 1)


def test_cpu_goes_offline_while_a_td_runs(machine, run):
    """Its vCPU goes on elsewhere. The last CPU of a package must stay as long as there are TDs."""
    script = """
    /td-client run --vcpus 2 --max-exits 400 >/log 2>&1 &
    for i in $(seq 100); do grep -q built /log && break; sleep 0.1; done
    echo 0 >/sys/devices/system/cpu/cpu1/online; echo off=$?
    echo 0 >/sys/devices/system/cpu/cpu3/online; echo first=$?
    echo 0 >/sys/devices/system/cpu/cpu2/online; echo last=$?
    wait $!; echo status=$?
    cat /log
    echo 0 >/sys/devices/system/cpu/cpu2/online; echo later=$?
    """
    guests = "mmio-write 0xfe000000 4 1\nstay 10000\nat-end loop\n"
    boot = run(machine, "--cpus", "4", "--sockets", "2", script=script, guests=guests)
    check_status(boot)
    assert [boot.value(name) for name in ("off", "first", "later")] == ["0", "0", "0"]
    assert boot.value("last") != "0", "the package has no CPU left to flush its caches"
    check_gone(boot, 1)


# A call that fails where KVM expects none to fail: it warns, and the TD is of no use any more.
FAILING = [
    ("TDH.MNG.KEY.CONFIG", "KVM_TDX_INIT_VM"),
    ("TDH.MNG.ADDCX", "KVM_TDX_INIT_VM"),
    ("TDH.VP.CREATE", "KVM_TDX_INIT_VCPU"),
    ("TDH.VP.ADDCX", "KVM_TDX_INIT_VCPU"),
    ("TDH.VP.INIT", "KVM_TDX_INIT_VCPU"),
    # KVM marks the VM as broken and lets KVM_TDX_INIT_VCPU succeed: the next call is refused.
    ("TDH.VP.WR", "KVM_CREATE_GUEST_MEMFD"),
    ("TDH.MEM.SEPT.ADD", "KVM_TDX_INIT_MEM_REGION"),
    ("TDH.MEM.PAGE.ADD", "KVM_TDX_INIT_MEM_REGION"),
    ("TDH.MR.EXTEND", "KVM_TDX_INIT_MEM_REGION"),
    ("TDH.MR.FINALIZE", "KVM_TDX_FINALIZE_VM"),
]


@pytest.mark.parametrize("leaf, step", FAILING, ids=[leaf for leaf, _ in FAILING])
def test_call_fails_while_a_td_is_built(machine, run, leaf, step):
    """KVM gives up this TD and takes it down; the next TD is not concerned."""
    script = """
    /td-client run 2>&1; echo first=$?
    /td-client run 2>&1; echo status=$?
    """
    boot = run(
        machine, "--inject", f"{leaf}:1=OPERAND_INVALID", script=script,
        allow=r"WARNING: arch/x86/kvm/(vmx/tdx\.c|mmu/)|Call Trace:",
    )  # fmt: skip
    assert boot.value("first") == "1"
    assert step in boot.output
    check_status(boot)
    assert boot.results(leaf)["OPERAND_INVALID"] == 1
    assert boot.summary["tds_alive"] == 0, boot.report
    assert boot.results("TDH.MNG.KEY.FREEID") == {"SUCCESS": 2}


@pytest.mark.parametrize(
    "leaf, message",
    [
        ("TDH.VP.ENTER", "KVM_RUN: internal error 4"),
        ("TDH.MEM.PAGE.AUG", "KVM_RUN: Input/output error"),
    ],
    ids=["VP.ENTER", "MEM.PAGE.AUG"],
)
def test_call_fails_while_a_td_runs(machine, run, leaf, message):
    """The VMM is told, and the TD can still be taken down without a trace."""
    boot = run(
        machine, "--inject", f"{leaf}:1=OPERAND_INVALID",
        # After a failed entry KVM asks for the guest's RIP, which it cannot have: vmx/main.c warns.
        allow=r"WARNING: arch/x86/kvm/(vmx/tdx\.c|vmx/main\.c|mmu/)|Call Trace:",
    )  # fmt: skip
    check_status(boot, "1")
    assert f"td 0: vCPU 0: {message}" in boot.output
    assert boot.results(leaf)["OPERAND_INVALID"] == 1
    assert boot.summary["tds_alive"] == 0, boot.report
    assert boot.results("TDH.MNG.KEY.FREEID") == {"SUCCESS": 1}
