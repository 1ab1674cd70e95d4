# SPDX-License-Identifier: GPL-2.0
"""A TDX module that reports odd or hostile metadata harms nobody."""

from __future__ import annotations

import pytest

MAX_TDMRS = "9100000100000008"
MAX_RESERVED = "9100000100000009"
PAMT_4K_ENTRY = "9100000100000010"
FEATURES0 = "0A00000300000008"
NUM_CMRS = "9000000100000000"
CMR_BASE0 = "9000000300000080"
CMR_SIZE0 = "9000000300000100"
VERSION_MINOR = "0800000100000003"

# id -> field, value. The kernel may come up or not; it must not crash, break a
# rule, or keep memory when it does not.
HOSTILE = {
    "no-tdmrs": (MAX_TDMRS, "0"),
    "many-tdmrs": (MAX_TDMRS, "0xffff"),
    "no-reserved-areas": (MAX_RESERVED, "0"),
    "many-reserved-areas": (MAX_RESERVED, "0xffff"),
    "no-pamt": (PAMT_4K_ENTRY, "0"),
    "huge-pamt": (PAMT_4K_ENTRY, "0xffff"),
    "value-too-large-for-the-field": (MAX_TDMRS, "0x100000000000001"),
    "no-cmrs": (NUM_CMRS, "0"),
    "too-many-cmrs": (NUM_CMRS, "0xffff"),
    "cmr-wraps": (CMR_SIZE0, "0xffffffffffffffff"),
    "cmr-unaligned": (CMR_BASE0, "0x100001"),
    "cmr-empty": (CMR_SIZE0, "0"),
    "no-features": (FEATURES0, "0"),
    "missing-limit": (MAX_TDMRS, "absent"),
    "missing-version": (VERSION_MINOR, "absent"),
}
# What the plan then is, the module judges by its real limits.
ALLOW = ["--allow", "plan-rejected"]


@pytest.mark.parametrize(("field", "value"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_metadata(rust, field, value, free_script, assert_given_back, record_property):
    boot = rust.run("--cpus", "2", "--metadata", f"{field}={value}", *ALLOW, script=free_script)
    record_property("says", "\n".join(boot.tdx_log))
    if "TDX-Module initialized" in boot.tdx_log:
        boot.check_up()
        return
    boot.check_off()
    last = boot.tdx_log[-1]
    assert last.startswith("TDX-Module initialization failed (-"), boot.tdx_log
    assert len([line for line in boot.tdx_log if "failed" in line or "error" in line]) >= 1
    assert_given_back(boot)


@pytest.mark.parametrize("limit", ["1", "2"])
def test_few_tdmrs(machine, limit):
    """Fewer TDMRs than the memory map has regions: up with fewer, or off in words."""
    boot = machine.run("--memory", "4G", "--max-tdmrs", limit)
    if "TDX-Module initialized" in boot.tdx_log:
        assert len(boot.calls("TDH.SYS.CONFIG")[0]["tdmrs"]) <= int(limit)
    else:
        boot.check_off()
        assert any("TDMR" in line for line in boot.tdx_log), boot.tdx_log


@pytest.mark.parametrize("size", ["8", "32", "16,32,64"])
def test_other_pamt_entry_sizes(machine, size):
    boot = machine.run("--pamt-entry-size", size)
    boot.check_up()
