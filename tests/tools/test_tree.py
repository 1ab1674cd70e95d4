# SPDX-License-Identifier: GPL-2.0
"""install-tree and uninstall-tree on small trees made of the files that matter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / "tools"))
import tree as tool  # noqa: E402

TDX = tool.TDX


def touched() -> list[str]:
    """Files outside TDX that the patches change."""
    names = set()
    for patch in (TOP / "patches").glob("*.patch"):
        for line in patch.read_text().splitlines():
            if line.startswith(("--- a/", "+++ b/")):
                names.add(line[6:].split("\t")[0])
    return sorted(names)


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A tree with the files of the pristine kernel that an installation looks at."""
    pristine = Path(os.environ["TDX_PRISTINE"])
    root = tmp_path / "linux"
    shutil.copytree(pristine / TDX, root / TDX)
    for name in ["Makefile", "Kbuild", *touched()]:
        if (pristine / name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(pristine / name, root / name)
    return root


def git(root: Path, *args: str) -> str:
    who = ["-c", "user.name=tester", "-c", "user.email=tester@localhost"]
    return subprocess.run(["git", *who, *args], cwd=root, check=True, text=True, capture_output=True).stdout


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    """Content and modification time of every file."""
    files = (path for path in root.rglob("*") if path.is_file() and ".git" not in path.parts)
    return {str(p.relative_to(root)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def test_install_puts_ours_in_and_takes_the_c_out(kernel):
    tool.install(kernel)
    for path in TOP.glob("*.rs"):
        assert (kernel / TDX / path.name).read_bytes() == path.read_bytes()
    for name in tool.REPLACED:
        assert not (kernel / TDX / name).exists()
    assert (kernel / TDX / "tdxcall.S").exists(), "TDX guests need it"
    assert 'source "arch/x86/virt/vmx/tdx/Kconfig"' in (kernel / "arch/x86/Kconfig").read_text()


def test_second_install_writes_nothing(kernel):
    tool.install(kernel)
    before = {k: v for k, v in snapshot(kernel).items() if not k.startswith(tool.STATE)}
    assert tool.install(kernel) == []
    assert {k: v for k, v in snapshot(kernel).items() if not k.startswith(tool.STATE)} == before


def test_uninstall_gives_the_tree_back_to_the_byte_and_second(kernel):
    before = snapshot(kernel)
    tool.install(kernel)
    assert snapshot(kernel) != before
    tool.uninstall(kernel)
    assert snapshot(kernel) == before
    assert tool.uninstall(kernel) == [], "nothing is left to remove"


def test_update_writes_only_what_changed(kernel, monkeypatch, tmp_path):
    copy = tmp_path / "checkout"
    copy.mkdir()
    for pattern in tool.KERNEL_FILES:
        for path in TOP.glob(pattern):
            shutil.copy2(path, copy)
    shutil.copytree(TOP / "patches", copy / "patches")
    monkeypatch.setattr(tool, "TOP", copy)
    before = snapshot(kernel)
    tool.install(kernel)
    with (copy / "range.rs").open("a") as file:
        file.write("// changed\n")
    (copy / "status.rs").unlink()
    assert sorted(tool.install(kernel)) == [f"{TDX}/range.rs", f"{TDX}/status.rs"]
    assert not (kernel / TDX / "status.rs").exists()
    # A patch that is dropped is taken back, the file keeps its old time.
    next((copy / "patches").glob("0001*")).unlink()
    assert "arch/x86/Kconfig" in tool.install(kernel)
    assert snapshot(kernel)["arch/x86/Kconfig"] == before["arch/x86/Kconfig"]
    tool.uninstall(kernel)
    assert snapshot(kernel) == before


def test_install_in_a_git_checkout_commits_nothing(kernel):
    git(kernel, "init", "-q")
    git(kernel, "add", "-A")
    git(kernel, "commit", "-qm", "release")
    tool.install(kernel)
    assert git(kernel, "rev-list", "--count", "HEAD").strip() == "1"
    assert ".tdx-host-rs" not in git(kernel, "status", "--porcelain")
    tool.uninstall(kernel)
    assert git(kernel, "status", "--porcelain") == ""


def refused(action, kernel: Path) -> str:
    before = snapshot(kernel)
    with pytest.raises(tool.Refusal) as refusal:
        action(kernel)
    assert snapshot(kernel) == before, "a refusal must leave the tree alone"
    return str(refusal.value)


def test_uncommitted_changes_are_refused(kernel):
    git(kernel, "init", "-q")
    git(kernel, "add", "-A")
    git(kernel, "commit", "-qm", "release")
    with (kernel / "arch/x86/Kconfig").open("a") as file:
        file.write("# mine\n")
    assert "arch/x86/Kconfig" in refused(tool.install, kernel)


def test_changes_after_the_installation_are_not_lost(kernel):
    tool.install(kernel)
    with (kernel / TDX / "range.rs").open("a") as file:
        file.write("// mine\n")
    assert f"{TDX}/range.rs" in refused(tool.install, kernel)
    assert f"{TDX}/range.rs" in refused(tool.uninstall, kernel)


@pytest.mark.parametrize("line", ["PATCHLEVEL = 2", "PATCHLEVEL = 4"])
def test_other_series_are_refused_by_name(kernel, line):
    makefile = kernel / "Makefile"
    makefile.write_text(makefile.read_text().replace("PATCHLEVEL = 3", line))
    message = refused(tool.install, kernel)
    assert f"7.{line[-1]}." in message
    assert "7.3 series" in message


def test_any_patch_level_is_taken(kernel):
    makefile = kernel / "Makefile"
    text = [("SUBLEVEL = 99" if x.startswith("SUBLEVEL") else x) for x in makefile.read_text().splitlines()]
    makefile.write_text("\n".join(text))
    tool.install(kernel)
    assert tool.version(kernel)[2] == "7.3.99"


def test_what_is_no_kernel_is_refused(tmp_path):
    assert "not a Linux source tree" in refused(tool.install, tmp_path)


def test_foreign_files_and_missing_files_are_refused(kernel):
    (kernel / TDX / "other.rs").write_text("// somebody else's\n")
    assert "other.rs" in refused(tool.install, kernel)
    (kernel / TDX / "other.rs").unlink()
    (kernel / TDX / "seamldr.c").unlink()
    assert "seamldr.c" in refused(tool.install, kernel)


def test_a_patch_that_does_not_apply_is_named_and_leaves_no_trace(kernel):
    (kernel / "arch/x86/Kconfig").write_text("# SPDX-License-Identifier: GPL-2.0\n")
    assert "0001" in refused(tool.install, kernel)


def test_command_line_reports_on_stderr(kernel, tmp_path):
    command = [sys.executable, str(TOP / "tools/tree.py"), "install", str(tmp_path)]
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stdout == ""
