# SPDX-License-Identifier: GPL-2.0
"""What firmware, module or kernel parameters leave out keeps TDX off, and the log says so."""

from __future__ import annotations

import pytest

# The C reads IA32_VMX_BASIC although the processor has no VMX: the read faults
# and the kernel complains once. Ours must not.
VMX_BASIC = r"unchecked MSR access error: RDMSR from 0x480|Call Trace:"

# id, arguments, part of the C's log line (None: it says nothing), parts of ours.
CASES = [
    ("no-module", ["--no-module"], "module not loaded", ["TDH.SYS.INIT", "not loaded", "BIOS", "(-19)"]),
    ("no-seamrr", ["--no-seamrr"], None, ["TDH.SYS.INIT", "SEAM", "BIOS", "(-95)"]),
    ("no-vmx", ["--no-vmx"], None, ["VMX", "BIOS", "(-95)"]),
    ("too-few-keyids", ["--keyids", "1"], "too few private KeyIDs", ["too few private KeyIDs", "BIOS"]),
    ("no-keyids", ["--keyids", "0"], "TDX not supported", ["KeyIDs", "BIOS"]),
    ("hibernation", ["--hibernation"], "Hibernation support is enabled", ["Hibernation", "nohibernate"]),
    ("no-movdir64b", ["--no-movdir64b"], "MOVDIR64B is required", ["MOVDIR64B is required", "(-22)"]),
    ("no-selfsnoop", ["--no-selfsnoop"], "Self-snoop is required", ["Self-snoop is required", "(-19)"]),
    ("old-module", ["--profile", "1.5.01"], "(-5)", ["TDH.SYS.RD", "too old", "update", "(-5)"]),
    ("rbp-clobbered", ["--no-feature", "no-rbp-mod"], "RBP", ["RBP", "(-22)"]),
    ("maxcpus", ["--append", "maxcpus=1"], "(-5)", ["TDH.SYS.CONFIG", "maxcpus=", "1 of 2", "(-5)"]),
    (
        "firmware-enabled-more",
        ["--enabled-cpus", "4"],
        "(-5)",
        ["TDH.SYS.CONFIG", "TDX_SYS_CONFIG_NOT_PENDING", "(-5)"],
    ),
]


IDS = [case[0] for case in CASES]


@pytest.mark.parametrize(("args", "c_says", "rust_says"), [case[1:] for case in CASES], ids=IDS)
def test_off(machine, args, c_says, rust_says, assert_given_back, free_script, record_property):
    c = machine.kernel == "c"
    allow = VMX_BASIC if c and "--no-vmx" in args else None
    boot = machine.run("--cpus", "2", *args, script=free_script, allow=allow)
    boot.check_off()
    text = "\n".join(boot.tdx_log)
    record_property("says", text)
    for part in [c_says] if c and c_says else [] if c else rust_says:
        assert part in text, f"'{part}' is not in:\n{text}"
    assert_given_back(boot)
