# SPDX-License-Identifier: GPL-2.0
"""The TDX module is replaced while the kernel runs, through the driver tdx-host.

Where the C and our module differ the test says for each what happens: ours
refuses beforehand what the C finds out when its old module is gone.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hotplug import PLUG, SLOTS, plug_in

# install NAME FILE: an update, its result as NAME=; empty if it went well.
# show NAME: what sysfs tells, as NAME.version= and so on.
PRELUDE = """
fw=/sys/class/firmware/tdx_module
host=/sys/devices/faux/tdx_host
insmod /tdx-host.ko; echo insmod=$?
install() {
	echo 1 >$fw/loading; cat $2 >$fw/data; echo 0 >$fw/loading
	until [ "$(cat $fw/status)" = idle ]; do sleep 0.1; done
	echo "$1=$(cat $fw/error)"
}
show() {
	echo "$1.version=$(cat $host/version 2>&1)"
	echo "$1.seamldr=$(cat $host/seamldr_version 2>&1)"
	echo "$1.left=$(cat $host/num_remaining_updates 2>&1)"
}
"""
INVALID = "transferring:firmware-invalid"
NO_DEVICE = "No such device or address"
UPDATES = 8

NOT_UPDATED = "the TDX module was not updated and is what it was before"
LOST = "the TDX module was lost in an update that failed half-way: no TD can run"

# The C has no message about what an update that fails means, and says "seamldr:" in those it has.
# KVM marks a VM as broken, and warns, when a SEAMCALL fails that it expects to succeed.
KVM_WARNS = r"WARNING: arch/x86/kvm/(vmx/tdx\.c|vmx/main\.c|mmu/)|Call Trace:"

TD = "mmio-write 0xfe000000 4 1\nstay 10000\nat-end loop\n"


@pytest.fixture
def boot(tdx_host, td_client, tmp_path: Path):
    """A function: boot, load the driver, run `script` with the images `files` and td-client."""

    def run(machine, script: str, *args: str, files: dict[str, Path] | None = None, **more):
        guests = tmp_path / f"guests-{machine.kernel}-{machine.runs}"
        guests.write_text(TD)
        extra = []
        for path, guest in [(tdx_host(machine.kernel), "tdx-host.ko"), (td_client, "td-client")]:
            extra += ["--file", f"{path}:{guest}"]
        for name, path in (files or {}).items():
            extra += ["--file", f"{path}:{name}"]
        return machine.run(
            "--append", "kvm_intel.tdx=1", "--td-script", str(guests), *extra, *args,
            script=PRELUDE + script, **more,
        )  # fmt: skip

    return run


@pytest.fixture
def newer(image) -> dict[str, Path]:
    """The image of a newer module, as file "new" in the guest."""
    return {"new": image("--module", "update=26")}


def check_updated(boot, updates: int, cpus: int) -> None:
    """All CPUs took part in each update, nothing was done twice, and TDX is up."""
    boot.check_up()
    assert boot.summary["bring_up"]["ready"] or boot.summary["bring_up"]["was_ready"]
    assert boot.summary["updates"] == updates, boot.report
    assert boot.results("SEAMLDR.INSTALL") == {"SUCCESS": updates * cpus}
    assert boot.results("TDH.SYS.SHUTDOWN") == {"SUCCESS": updates}
    assert boot.results("TDH.SYS.INIT") == {"SUCCESS": updates + 1}
    assert boot.results("TDH.SYS.LP.INIT") == {"SUCCESS": (updates + 1) * cpus}
    assert boot.results("TDH.SYS.UPDATE") == {"SUCCESS": updates}
    assert boot.count("TDH.SYS.CONFIG") == 1


def check_refused(boot, why: str) -> None:
    """Nothing has happened to the old module; our log says why."""
    assert boot.value("first") == INVALID
    assert boot.count("TDH.SYS.SHUTDOWN") == 0 and boot.count("SEAMLDR.INSTALL") == 0
    if boot.kernel == "rust":
        assert any(why in line for line in boot.tdx_log), boot.tdx_log
        assert NOT_UPDATED in boot.tdx_log


def check_lost(boot) -> None:
    """There is no module to call any more, which sysfs shows and our log says."""
    assert boot.value("first") == INVALID
    assert boot.summary["updates"] == 0
    assert NO_DEVICE in boot.value("then.version")
    if boot.kernel == "rust":
        assert any(LOST in line for line in boot.tdx_log), boot.tdx_log


def check_td(boot, name: str) -> None:
    """td-client has built a TD, run and destroyed it."""
    assert boot.value(name) == "0", boot.output


@pytest.mark.parametrize("cpus, sockets", [("1", "1"), ("4", "2")])
def test_update(machine, boot, newer, cpus, sockets):
    script = """
    show before; install first /new; show then
    /td-client run --max-exits 20 2>&1; echo td=$?
    """
    done = boot(machine, script, "--cpus", cpus, "--sockets", sockets, files=newer)
    assert done.value("first") == ""
    assert (done.value("before.version"), done.value("then.version")) == ("1.5.25", "1.5.26")
    assert done.value("then.seamldr") == "1.5.03"
    assert (done.value("before.left"), done.value("then.left")) == (str(UPDATES), str(UPDATES - 1))
    check_updated(done, 1, int(cpus))
    check_td(done, "td")
    if machine.kernel == "rust":
        assert "TDX module updated to version 1.5.26" in done.tdx_log


def test_two_updates_in_a_row(machine, boot, newer, image):
    files = newer | {"newest": image("--module", "update=27")}
    script = "install first /new; show then; install second /newest; show last\n"
    done = boot(machine, script, "--cpus", "2", files=files)
    assert (done.value("first"), done.value("second")) == ("", "")
    assert (done.value("then.version"), done.value("last.version")) == ("1.5.26", "1.5.27")
    assert done.value("last.left") == str(UPDATES - 2)
    check_updated(done, 2, 2)


@pytest.mark.parametrize(
    "switch", ["active_at_first", "old_module_answers", "image_checked_last", "unfinished_counts"]
)
def test_update_whatever_the_loader_is_like(machine, boot, newer, switch):
    """Nobody has published these points: a host must not depend on them."""
    done = boot(
        machine, "install first /new; show then\n", "--cpus", "3",
        "--seamldr", f"open.{switch}=true", files=newer,
    )  # fmt: skip
    assert (done.value("first"), done.value("then.version")) == ("", "1.5.26")
    check_updated(done, 1, 3)


def test_image_without_a_checksum_or_with_any(machine, boot, image):
    """Nobody defines the checksum."""
    files = {"new": image("--module", "update=26", "--patch", "2=abcd")}
    done = boot(machine, "install first /new; show then\n", files=files)
    assert done.value("then.version") == "1.5.26"


# What is wrong with the file, and what our log says about it.
WRONG = {
    "no-header": (["--length", "4095"], "4095 bytes are too few for its 4096 byte header"),
    "mark": (["--patch", "4=58"], "does not have the mark of a TDX module image"),
    "format": (["--format", "0x201"], "its format is version 0x201, only 0x200 is supported"),
    "sigstruct-pages": (["--sigstruct-pages", "2"], "its signature has 2 pages"),
    "module-pages": (["--module-pages", "497"], "its module has 497 pages"),
    "reserved": (["--patch", "4095=01"], "byte 4095 of its header must be 0"),
    "short": (["--length", "20480"], "it has 20480 bytes, and 24576 by its header"),
    "long": (["--length", "24577"], "it has 24577 bytes, and 24576 by its header"),
    "overflow": (["--patch", "12=00001000"], "its signature has 1048576 pages"),
}


def test_wrong_images_are_refused(machine, boot, image):
    """Before anything has happened. The right one still goes in after that."""
    files = {f"wrong-{name}": image(*args) for name, (args, _) in WRONG.items()}
    files["new"] = image("--module", "update=26")
    script = "".join(f"install {name} /wrong-{name}\n" for name in WRONG)
    done = boot(machine, script + "show between; install good /new; show then\n", files=files)
    assert {done.value(name) for name in WRONG} == {INVALID}
    assert done.value("between.version") == "1.5.25"
    assert (done.value("good"), done.value("then.version")) == ("", "1.5.26")
    check_updated(done, 1, 1)
    if machine.kernel == "rust":
        refused = [line for line in done.tdx_log if "update refused: not a valid image" in line]
        assert len(refused) == len(WRONG), done.tdx_log
        for line, (_, why) in zip(refused, WRONG.values(), strict=True):
            assert why in line, line
        assert done.tdx_log.count(NOT_UPDATED) == len(WRONG)


@pytest.mark.parametrize(
    "args, why",
    [
        (["--sigstruct-pages", "0"], "its signature has 0 pages"),
        (["--module-pages", "0"], "its module has 0 pages"),
    ],
    ids=["signature", "module"],
)
def test_image_without_signature_or_module(machine, boot, image, args, why):
    """The C takes it for an image, and loses its module to the P-SEAMLDR's refusal."""
    done = boot(machine, "install first /new; show then\n", files={"new": image(*args)})
    if machine.kernel == "rust":
        check_refused(done, why)
        assert done.value("then.version") == "1.5.25"
    else:
        check_lost(done)


@pytest.mark.parametrize("patch", ["4096=00", "8300=ff"], ids=["signature", "module"])
def test_loader_refuses_the_image(machine, boot, image, patch):
    """Only the P-SEAMLDR can tell that it is not genuine; by then the old module is shut down."""
    files = {"new": image("--patch", patch)}
    done = boot(machine, "install first /new; show then\n", "--cpus", "2", files=files)
    check_lost(done)
    assert "SEAMLDR_BAD_IMAGE" in done.results("SEAMLDR.INSTALL")
    if machine.kernel == "rust":
        assert any("the P-SEAMLDR refuses this TDX module" in line for line in done.tdx_log)


def test_no_update_left(machine, boot, newer, image):
    """The C asks nobody beforehand, and loses its module."""
    files = newer | {"newest": image("--module", "update=27")}
    script = """
    install good /new; show between; install first /newest; show then
    /td-client run --max-exits 5 2>&1; echo td=$?
    """
    done = boot(
        machine, script, "--cpus", "2", "--updates", "1", files=files, allow=KVM_WARNS
    )
    assert (done.value("good"), done.value("first")) == ("", INVALID)
    assert (done.value("between.left"), done.value("then.left")) == ("0", "0")
    if machine.kernel == "rust":
        assert done.value("then.version") == "1.5.26"
        assert done.count("TDH.SYS.SHUTDOWN") == 1
        check_td(done, "td")
        why = "the P-SEAMLDR takes no more updates until the machine is reset (-28)"
        assert any(why in line for line in done.tdx_log), done.tdx_log
        assert NOT_UPDATED in done.tdx_log
    else:
        assert NO_DEVICE in done.value("then.version")


@pytest.mark.parametrize("fault", ["OPERAND_INVALID", "vmfail", "RND_NO_ENTROPY"])
def test_failure_before_shutdown(machine, boot, newer, fault):
    """The old module works on, and the next attempt may succeed."""
    script = """
    install first /new; show between
    /td-client run --max-exits 5 2>&1; echo td=$?
    install second /new; show then
    """
    # No entropy is repeated up to ten times.
    count = 10 if fault == "RND_NO_ENTROPY" else 1
    inject = f"TDH.SYS.SHUTDOWN={fault}*{count}"
    done = boot(machine, script, "--cpus", "2", "--inject", inject, files=newer)
    assert (done.value("first"), done.value("between.version")) == (INVALID, "1.5.25")
    assert (done.value("second"), done.value("then.version")) == ("", "1.5.26")
    check_td(done, "td")
    assert done.count("SEAMLDR.INSTALL") == 2
    if machine.kernel == "rust":
        assert any("TDH.SYS.SHUTDOWN failed" in line for line in done.tdx_log)
        assert NOT_UPDATED in done.tdx_log


def test_handoff_version_cannot_be_read(machine, boot, newer):
    script = "install first /new; show then\n"
    done = boot(machine, script, "--metadata", "8900000100000000=absent", files=newer)
    check_refused(done, "MODULE_HV")
    assert done.value("then.version") == "1.5.25"


# Each step after the shutdown, on one CPU. There are 2, each was initialised once at boot.
AFTER = {
    "install-first": "SEAMLDR.INSTALL:1=0x8000000000010001",
    "install-last": "SEAMLDR.INSTALL:2=0x8000000000010001",
    "install-vmfail": "SEAMLDR.INSTALL:2=vmfail",
    "init": "TDH.SYS.INIT:2=INCORRECT_MSR_VALUE*always",
    "lp-init-first": "TDH.SYS.LP.INIT:3=INCONSISTENT_MSR",
    "lp-init-last": "TDH.SYS.LP.INIT:4=INCONSISTENT_MSR",
    "update": "TDH.SYS.UPDATE=SYS_INVALID_HANDOFF",
    "update-vmfail": "TDH.SYS.UPDATE=vmfail",
}


@pytest.mark.parametrize("step", AFTER)
def test_failure_after_shutdown(machine, boot, newer, step):
    """The module is lost: everything says so, and every later SEAMCALL fails cleanly."""
    script = """
    install first /new; show then
    /td-client run --max-exits 5 2>&1; echo td=$?
    install second /new
    echo 0 >/sys/devices/system/cpu/cpu1/online; echo off=$?
    """
    done = boot(
        machine, script, "--cpus", "2", "--inject", AFTER[step], files=newer, allow=KVM_WARNS
    )
    check_lost(done)
    assert done.results("TDH.SYS.SHUTDOWN")["SUCCESS"] == 1
    assert done.value("td") == "1"
    assert done.value("second") == INVALID
    assert done.value("off") == "0"
    if machine.kernel == "rust":
        assert done.count("TDH.SYS.SHUTDOWN") == 1, "a lost module is not shut down again"
        assert sum(LOST in line for line in done.tdx_log) == 2


def test_new_module_cannot_read_the_handoff(machine, boot, image):
    files = {"new": image("--module", "min_update_hv=2", "--module", "module_hv=2")}
    done = boot(machine, "install first /new; show then\n", "--cpus", "2", files=files)
    check_lost(done)
    assert done.results("TDH.SYS.UPDATE") == {"SYS_INVALID_HANDOFF": 1}
    if machine.kernel == "rust":
        assert any("TDX_SYS_INVALID_HANDOFF" in line for line in done.tdx_log), done.tdx_log


def test_new_module_does_not_tell_its_version(machine, boot, image):
    """It works all the same; the old version stays in the books. The C warns."""
    files = {"new": image("--metadata", "0800000100000005=absent")}
    c_warns = r"WARNING: arch/x86/virt/vmx/tdx/tdx\.c|Call Trace:"
    allow = c_warns if machine.kernel == "c" else None
    script = """
    install first /new; show then
    /td-client run --max-exits 5 2>&1; echo td=$?
    """
    done = boot(machine, script, "--cpus", "2", files=files, allow=allow)
    assert (done.value("first"), done.value("then.version")) == ("", "1.5.25")
    check_updated(done, 1, 2)
    check_td(done, "td")
    if machine.kernel == "rust":
        assert any("reading UPDATE_VERSION" in line for line in done.tdx_log), done.tdx_log


BUSY = {
    "shutdown": ("TDH.SYS.SHUTDOWN=SYS_BUSY*3", "1.5.25"),
    "init": ("TDH.SYS.INIT:2=SYS_BUSY*3", None),
    "lp-init": ("TDH.SYS.LP.INIT:3=SYS_BUSY*3", None),
    "update": ("TDH.SYS.UPDATE=SYS_BUSY*3", None),
}


@pytest.mark.parametrize("step", BUSY)
def test_module_is_busy_for_a_while(machine, boot, newer, step):
    """Ours tries again. The C gives up at once, which after the shutdown loses the module."""
    inject, left = BUSY[step]
    script = "install first /new; show then\n"
    done = boot(machine, script, "--cpus", "2", "--inject", inject, files=newer)
    if machine.kernel == "rust":
        assert (done.value("first"), done.value("then.version")) == ("", "1.5.26")
    elif left:
        assert (done.value("first"), done.value("then.version")) == (INVALID, left)
    else:
        check_lost(done)


def test_no_entropy_for_a_while(machine, boot, newer):
    inject = ["--inject", "SEAMLDR.INSTALL:2=RND_NO_ENTROPY*5"]
    inject += ["--inject", "TDH.SYS.LP.INIT:3=RND_NO_ENTROPY*5"]
    done = boot(machine, "install first /new; show then\n", "--cpus", "2", *inject, files=newer)
    assert (done.value("first"), done.value("then.version")) == ("", "1.5.26")


def test_cpu_is_offline(machine, boot, newer):
    """The new module needs all CPUs: ours refuses to begin, the C finds out too late."""
    script = """
    echo 0 >/sys/devices/system/cpu/cpu2/online
    install first /new; show then
    echo 1 >/sys/devices/system/cpu/cpu2/online; echo on=$?
    install second /new; show last
    """
    done = boot(machine, script, "--cpus", "4", files=newer)
    if machine.kernel == "rust":
        assert (done.value("first"), done.value("then.version")) == (INVALID, "1.5.25")
        why = "CPU 2 is offline; bring it online for the update (-16)"
        assert any(why in line for line in done.tdx_log), done.tdx_log
        assert (done.value("on"), done.value("second")) == ("0", "")
        assert done.value("last.version") == "1.5.26"
        check_updated(done, 1, 4)
    else:
        check_lost(done)


def test_cpus_come_and_go_after_an_update(machine, boot, newer):
    script = """
    install first /new
    for c in 1 2 3; do
        echo 0 >/sys/devices/system/cpu/cpu$c/online; echo off$c=$?
        echo 1 >/sys/devices/system/cpu/cpu$c/online; echo on$c=$?
    done
    /td-client run --vcpus 4 --max-exits 50 2>&1; echo td=$?
    """
    done = boot(machine, script, "--cpus", "4", "--sockets", "2", files=newer)
    assert [done.value(f"{way}{cpu}") for cpu in (1, 2, 3) for way in ("off", "on")] == ["0"] * 6
    check_td(done, "td")
    # The new module knows all CPUs: none is initialised twice.
    check_updated(done, 1, 4)


def test_cpus_come_and_go_after_the_module_is_lost(machine, boot, newer):
    """The C keeps a CPU out that it cannot initialise. Ours needs no module for a CPU."""
    script = """
    install first /new; show then
    echo 0 >/sys/devices/system/cpu/cpu1/online; echo off=$?
    echo 1 >/sys/devices/system/cpu/cpu1/online; echo on=$?
    echo "cpus=$(nproc)"
    """
    inject = "SEAMLDR.INSTALL:1=0x8000000000010001"
    done = boot(machine, script, "--cpus", "2", "--inject", inject, files=newer)
    check_lost(done)
    assert done.value("off") == "0"
    came = machine.kernel == "rust"
    assert (done.value("on") == "0") == came
    assert done.value("cpus") == ("2" if came else "1")


def test_memory_is_taken_after_the_module_is_lost(machine, boot, newer):
    """No page becomes a TD's any more, so ours lets in memory that the TDX module does not know."""
    script = f"install first /new; show then\n{PLUG}"
    inject = "SEAMLDR.INSTALL:1=0x8000000000010001"
    done = boot(machine, script, "--inject", inject, *SLOTS, files=newer, meanwhile=plug_in)
    check_lost(done)
    came = machine.kernel == "rust"
    assert (done.value("online") == "0") == came
    assert done.value("is") == ("online" if came else "offline")


HIDDEN = {
    "erratum": ["--seamret-invalidates-vmcs"],
    "no-td-preserving": ["--no-feature", "td-preserving"],
}


@pytest.mark.parametrize("why", HIDDEN)
def test_update_is_not_offered(machine, boot, newer, why):
    script = 'echo "fw=$(ls /sys/class/firmware)"; show then\n'
    done = boot(machine, script, *HIDDEN[why], files=newer)
    assert (done.value("fw"), done.value("then.version")) == ("", "1.5.25")
    assert "No such file" in done.value("then.left")
    assert done.count("SEAMLDR.INFO") == 0


def test_no_loader(machine, boot, newer):
    """The C shuts its module down before it asks for the P-SEAMLDR."""
    done = boot(machine, "install first /new; show then\n", "--no-seamldr", files=newer)
    assert "No such device" in done.value("then.left")
    if machine.kernel == "rust":
        check_refused_by_loader = any("the P-SEAMLDR is not loaded" in x for x in done.tdx_log)
        assert check_refused_by_loader, done.tdx_log
        assert done.value("then.version") == "1.5.25"
        assert done.count("TDH.SYS.SHUTDOWN") == 0
    else:
        check_lost(done)


def test_everybody_asks_the_loader_at_once(machine, boot, newer):
    """It serves one CPU at a time, and the kernel keeps the others waiting."""
    script = """
    for n in 1 2 3; do
        while [ ! -e /stop ]; do cat $host/num_remaining_updates $host/version; done >/read$n 2>&1 &
    done
    sleep 1; install first /new; sleep 1
    touch /stop; wait
    echo "read=$(cat /read? | sort -u | tr '\\n' ' ')"
    """
    slow = ["--slow", "SEAMLDR.INFO=5000", "--slow", "SEAMLDR.INSTALL=5000"]
    done = boot(machine, script, "--cpus", "4", *slow, files=newer)
    assert done.value("first") == ""
    assert done.value("read") == f"1.5.25 1.5.26 {UPDATES - 1} {UPDATES}"
    assert done.results("SEAMLDR.INFO").keys() == {"SUCCESS"}


# Waits until td-client, in the background, has its TD running.
RUNNING = """
    /td-client run --vcpus 2 --max-exits 600 >/log 2>&1 &
    client=$!
    for i in $(seq 100); do grep -q built /log && break; sleep 0.1; done
    sleep 0.5
"""


def entries(done, leaf: str) -> list[dict]:
    """Trace lines of TDH.VP.ENTER after the (only) call of `leaf`."""
    after = [call["seq"] for call in done.calls(leaf)]
    assert len(after) == 1, after
    return [call for call in done.calls("TDH.VP.ENTER") if call["seq"] > after[0]]


def test_update_while_a_td_runs(machine, boot, newer):
    """The TD does not notice."""
    script = RUNNING + """
    install first /new; show then
    wait $client; echo td=$?; cat /log
    """
    done = boot(machine, script, "--cpus", "4", files=newer)
    assert (done.value("first"), done.value("then.version")) == ("", "1.5.26")
    check_td(done, "td")
    check_updated(done, 1, 4)
    assert entries(done, "TDH.SYS.UPDATE")
    assert done.results("TDH.VP.ENTER").keys() == {"SUCCESS"}, "no entry failed"
    assert done.summary["tds_alive"] == 0 and done.summary["private_pages"] == 0, done.report
    for guest in done.summary["guests"]:
        assert guest["failures"] == 0, guest


def test_three_updates_while_two_tds_live(machine, boot, image):
    files = {f"new{n}": image("--module", f"update={n}") for n in (26, 27, 28)}
    script = """
    /td-client run --tds 2 --vcpus 2 --max-exits 600 >/log 2>&1 &
    client=$!
    for i in $(seq 100); do grep -q 'td 0: built' /log && break; sleep 0.1; done
    for n in 26 27 28; do install up$n /new$n; done
    show then
    wait $client; echo td=$?; cat /log
    """
    done = boot(machine, script, "--cpus", "4", "--sockets", "2", files=files)
    assert [done.value(f"up{n}") for n in (26, 27, 28)] == ["", "", ""]
    assert done.value("then.version") == "1.5.28"
    check_td(done, "td")
    check_updated(done, 3, 4)
    assert done.summary["tds_created"] == 2
    assert done.summary["tds_alive"] == 0 and done.summary["private_pages"] == 0, done.report


@pytest.mark.parametrize("step", ["install-last", "lp-init-last", "update"])
def test_module_is_lost_while_a_td_runs(machine, boot, newer, step):
    """Its VMM gets an error, and can go away."""
    # There are 4 CPUs here.
    inject = AFTER[step].replace(":4=", ":8=").replace(":2=", ":4=")
    script = RUNNING + """
    install first /new; show then
    wait $client; echo td=$?; cat /log
    /td-client run --max-exits 5 2>&1; echo next=$?
    """
    done = boot(
        machine, script, "--cpus", "4", "--inject", inject, files=newer, allow=KVM_WARNS
    )
    check_lost(done)
    assert done.value("td") == "1", done.output
    assert "KVM_RUN" in done.output
    assert done.value("next") == "1", done.output
