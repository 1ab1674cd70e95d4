# SPDX-License-Identifier: GPL-2.0
"""TDs live their whole life, built by KVM and run by `td-client`.

What runs inside a TD is a script given to the machine. A guest that finds
something wrong counts a failure, which every scenario looks at.
"""

from __future__ import annotations

import re

import pytest

from handover import KVM_WARNS
from machine import CHECKED
from td import EXTENDS, MEASURED, SHARED, UNMEASURED, check_gone, check_guests, check_status, life


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


def test_task_moves_while_it_initializes_a_vcpu(machine, run):
    """TDH.VP.INIT ties the vCPU to a CPU, on which it has to stay until KVM would flush it elsewhere.

    The C's does not, and the TD is lost (patches/0006).
    """
    script = """
    taskset -p 4 $$ >/dev/null
    for round in 1 2 3 4 5; do
        taskset 3 /td-client run --vcpus 2 >/log 2>&1 &
        client=$!
        moves=0
        while kill -0 $client 2>/dev/null; do
            for mask in 1 2; do taskset -p $mask $client >/dev/null 2>&1 && moves=$((moves + 1)); done
        done
        wait $client; status=$?
        echo "round $round: $moves moves"; cat /log
        [ $status = 0 ] || break
    done
    echo status=$status
    """
    ours = machine.kernel == "rust"
    known = {} if ours else {"allow": KVM_WARNS}
    args = ["--cpus", "3", "--latency", "TDH.VP.INIT=100000", *([] if ours else ["--allow", "td-misuse"])]
    boot = run(machine, *args, script=script, guests="at-end shutdown\n", **known)
    check_status(boot, "0" if ours else "1")
    assert ("VCPU_ASSOCIATED" in boot.results("TDH.VP.WR")) != ours, boot.report
    if ours:
        check_gone(boot, 5)


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


def test_create_and_destroy_often(machine, run, free_script):
    """200 TDs take turns with the only KeyID. None keeps a page: 180 of them cost no memory."""
    client = "/td-client run --pages 0 --memory 2"
    script = f"{client} --repeat 20; echo status=$?\n{free_script}{client} --repeat 180; echo ended=$?\n"
    script += free_script.replace("free=", "later=")
    boot = run(
        machine, "--keyids", "2,2", script=script, guests="accept 0x100000\nat-end shutdown\n", timeout=300
    )
    check_status(boot)
    assert re.findall(r"^ended=(\d+)", boot.output, re.MULTILINE) == ["20", "180", "0"]
    check_gone(boot, 200)
    assert boot.summary["unconverted_bytes"] == 0, boot.report
    lost = int(boot.value("free")) - int(boot.value("later"))
    assert CHECKED or lost < 180 * 4 * 3 // 4, f"{lost} KB are not given back"


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


def test_cpuid_of_a_td(machine, run):
    """KVM reads the values that the TD sees from the module, field by field."""
    boot = run(machine, client="run --read-cpuid", guests="at-end shutdown\n")
    check_status(boot)
    check_gone(boot, 1)
    count = re.search(r"^td 0: (\d+) CPUID entries$", boot.output, re.MULTILINE)
    table = re.findall(r"^([0-9a-f]{8}) +(\d+)  ([0-9a-f]{8}) [0-9a-f]{8} ", boot.output, re.MULTILINE)
    assert count and int(count[1]) == len(table) > 20
    values = {(leaf, index): eax for leaf, index, eax in table}
    assert int(values["00000000", "0"], 16) >= 0x1F
    # The width of guest physical addresses is KVM's own.
    assert int(values["80000008", "0"], 16) >> 16 & 0xFF == 48
    # Fields without a value are refused: that is how KVM finds the last subleaf.
    assert boot.results("TDH.MNG.RD")["SUCCESS"] == 2 + 2 * len(table)


def test_quote(machine, run):
    """A quote is the VMM's business. KVM passes the request on, if the buffer is shared."""
    guests = f"""
    map-gpa shared 0x200000 0x1000
    get-quote {SHARED | 0x200000:#x} 0x1000
    expect r10=0
    load shared 0x200008
    expect r11=0x8000000000000001
    get-quote 0x200000 0x1000
    expect r10=0x8000000000000000
    get-quote {SHARED | 0x40000000:#x} 0x1000
    expect r10=0x8000000000000000
    event-notify 0x40
    expect r10=0
    event-notify 3
    expect r10=0x8000000000000000
    vmcall r11=0x1ffff
    expect r10=0x8000000000000003
    at-end shutdown
    """
    boot = run(machine, guests=guests)
    check_status(boot)
    check_gone(boot, 1)
    check_guests(boot, 1)
    assert "td 0: ended: shutdown; exits: map-gpa-shared 1, shutdown 1, tdvmcall 3" in boot.output


def test_normal_vm_fails(machine, run):
    """The machine has TDs only. A VM that is none fails where its VMM can tell, and TDs go on."""
    script = "/td-client normal 2>&1; echo normal=$?\n/td-client run 2>&1; echo status=$?\n"
    allow = r"WARNING: arch/x86/kvm/vmx/vmx\.c:\d+ at vm(read|write|clear|ptrld)_error\+"
    boot = run(machine, script=script, allow=allow)
    assert boot.value("normal") == "1"
    assert "td-client: KVM_RUN: entry failed on CPU 0, reason 0x0" in boot.output
    told = {x["text"].split()[0] for x in boot.trace if x.get("event") == "unsupported"}
    assert {"VMCLEAR", "VMPTRLD", "VMWRITE", "VMLAUNCH"} <= told
    check_status(boot)
    check_gone(boot, 1)
