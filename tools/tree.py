# SPDX-License-Identifier: GPL-2.0
"""Put our files and patches into a Linux tree, and take them out again.

    tree.py install [--quiet] TREE    idempotent; also updates an older installation
    tree.py uninstall TREE            gives the tree back as it was
    tree.py check-series TREE         fails unless TREE is a kernel of our series
    tree.py version TREE              prints the kernel version

Nothing is committed in a git checkout: whoever wants commits uses `git am`.
Files whose content is already right are not written, so that a build after
an update compiles only what changed. The directory STATE in the tree keeps
the originals of everything touched. Standard library and git only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SERIES = (7, 3)
TOP = Path(__file__).resolve().parent.parent
TDX = "arch/x86/virt/vmx/tdx"
STATE = f"{TDX}/.tdx-host-rs"

# Our files at the top of the checkout that belong into TDX.
KERNEL_FILES = ("Kbuild", "Kconfig", "*.rs", "*.c", "*.S", "*.h")
# The C implementation that they replace. tdxcall.S stays: TDX guests use it.
REPLACED = (
    "Makefile",
    "seamcall.S",
    "seamcall_internal.h",
    "seamldr.c",
    "tdx.c",
    "tdx.h",
    "tdx_global_metadata.c",
)
KEPT = ("tdxcall.S",)

# Path in the tree -> content, or None for "does not exist".
Contents = dict[str, bytes | None]


class Refusal(Exception):
    """The tree is not one we can work on; the text says why and what to do."""


def read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def digest(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()


def version(tree: Path) -> tuple[int, int, str]:
    """Series (two numbers) and full version of a kernel tree."""
    makefile = read(tree / "Makefile")
    found = dict(
        re.findall(
            r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *= *(\S*)",
            (makefile or b"").decode(errors="replace"),
            re.MULTILINE,
        )
    )
    if not (tree / "Kbuild").exists() or not {"VERSION", "PATCHLEVEL"} <= found.keys():
        raise Refusal(f"{tree} is not a Linux source tree")
    full = ".".join(found.get(key) or "0" for key in ("VERSION", "PATCHLEVEL", "SUBLEVEL"))
    return int(found["VERSION"]), int(found["PATCHLEVEL"]), full + found.get("EXTRAVERSION", "")


def check_series(tree: Path) -> None:
    major, minor, full = version(tree)
    if (major, minor) != SERIES:
        raise Refusal(
            f"{tree} is Linux {full}; this project works on the {SERIES[0]}.{SERIES[1]} series.\n"
            f"Use a {SERIES[0]}.{SERIES[1]} tree, or leave KERNEL unset to use the packaged source."
        )


def our_files() -> Contents:
    files = sorted(path for pattern in KERNEL_FILES for path in TOP.glob(pattern))
    if not (TOP / "Kbuild").exists():
        raise Refusal(f"there are no kernel files in {TOP}: Kbuild is missing")
    return {f"{TDX}/{path.name}": path.read_bytes() for path in files}


def git(tree: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run git in `tree` without looking for a repository above it."""
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.parent)}
    return subprocess.run(["git", *args], cwd=tree, env=env, text=True, capture_output=True)


def patched(patches: list[Path], original: Contents, tree: Path) -> Contents:
    """What the files that `patches` name look like with all of them applied.

    `original` overrides the content in the tree (where ours is installed). The
    work happens in a scratch directory: a patch that fails leaves no trace.
    """
    names = set()
    for patch in patches:
        for side in re.findall(r"^(?:---|\+\+\+) [ab]/(\S+)", patch.read_text(), re.MULTILINE):
            names.add(side)
    with tempfile.TemporaryDirectory(prefix="tdx-host-rs-") as scratch:
        work = Path(scratch).resolve()
        for name in names:
            content = original[name] if name in original else read(tree / name)
            if content is not None:
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                (work / name).write_bytes(content)
        for patch in patches:
            done = git(work, "apply", "--whitespace=nowarn", str(patch))
            if done.returncode:
                raise Refusal(
                    f"{patch.name} does not apply to {tree} (Linux {version(tree)[2]}):\n"
                    + done.stderr.strip()
                )
        return {name: read(work / name) for name in names}


def check_pristine(tree: Path) -> None:
    """Refuse a tree that is not the C implementation as it was released."""
    directory = tree / TDX
    missing = [name for name in (*REPLACED, *KEPT) if not (directory / name).is_file()]
    if missing:
        raise Refusal(
            f"{directory} lacks {', '.join(missing)}: this is not the TDX host code of the series"
        )
    sources = {path.name for pattern in KERNEL_FILES for path in directory.glob(pattern)}
    foreign = sorted(sources - {*REPLACED, *KEPT})
    if foreign:
        raise Refusal(f"{directory} holds files of somebody else: {', '.join(foreign)}")
    if (tree / ".git").exists():
        status = git(tree, "status", "--porcelain", "--untracked-files=no")
        if status.returncode:
            raise Refusal(f"git status in {tree} failed:\n{status.stderr.strip()}")
        if status.stdout:
            raise Refusal(
                f"{tree} has uncommitted changes:\n{status.stdout.rstrip()}\n"
                "Commit or stash them first, then run this again."
            )


def load_state(tree: Path) -> dict:
    path = tree / STATE / "state.json"
    if not path.exists():
        return {}
    try:
        state = json.loads(path.read_text())
        return dict(state["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise Refusal(f"{path} is damaged ({error}); restore the tree by other means") from error


def check_unmodified(tree: Path, state: dict) -> None:
    """Refuse if a file that we installed was changed by somebody else since."""
    changed = [
        name
        for name, known in state.items()
        if digest(read(tree / name)) not in (known["installed"], known["original"])
    ]
    if changed:
        raise Refusal(
            f"these files in {tree} were changed after our files were installed:\n"
            + "\n".join(f"  {name}" for name in changed)
            + "\nSave those changes elsewhere and restore the files, then run this again."
        )


def backup(tree: Path, name: str) -> Path:
    return tree / STATE / "original" / name


def write(path: Path, content: bytes | None) -> bool:
    """Make `path` hold `content`. Replaces the file, never writes into it."""
    if read(path) == content:
        return False
    if content is None:
        path.unlink()
        return True
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    if path.exists():
        shutil.copymode(path, partial)
    partial.replace(path)
    return True


def restore(tree: Path, name: str) -> bool:
    """Give one file back as it was, with its old modification time."""
    saved = backup(tree, name)
    if not write(tree / name, read(saved)):
        return False
    if saved.exists():
        shutil.copystat(saved, tree / name)
    return True


def save_state(tree: Path, state: dict) -> None:
    directory = tree / STATE
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ".gitignore").write_text("*\n")
    partial = directory / "state.json.partial"
    partial.write_text(json.dumps({"files": state}, indent=1, sort_keys=True) + "\n")
    partial.replace(directory / "state.json")


def install(tree: Path) -> list[str]:
    """Install or update; returns the paths that were written or removed."""
    check_series(tree)
    old = load_state(tree)
    if old:
        check_unmodified(tree, old)
    else:
        check_pristine(tree)
    original: Contents = {name: read(backup(tree, name)) for name in old}
    wanted: Contents = {f"{TDX}/{name}": None for name in REPLACED}
    wanted |= patched(sorted((TOP / "patches").glob("*.patch")), original, tree)
    wanted |= our_files()

    state = {}
    for name, content in wanted.items():
        if name not in old and (tree / name).exists():
            backup(tree, name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, backup(tree, name))
        before = original[name] if name in old else read(tree / name)
        state[name] = {"original": digest(before), "installed": digest(content)}
    dropped = [name for name in old if name not in wanted]
    # The state goes first: it also describes a tree in which only some of the
    # files below were written.
    save_state(tree, {**{name: old[name] for name in dropped}, **state})
    changed = [name for name in dropped if restore(tree, name)]
    changed += [name for name, content in wanted.items() if write(tree / name, content)]
    save_state(tree, state)
    return changed


def uninstall(tree: Path) -> list[str]:
    """Remove what `install` did; returns the paths that were given back."""
    check_series(tree)
    state = load_state(tree)
    check_unmodified(tree, state)
    changed = [name for name in state if restore(tree, name)]
    if (tree / STATE).exists():
        shutil.rmtree(tree / STATE)
    return changed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("command", choices=["install", "uninstall", "check-series", "version"])
    parser.add_argument("tree", type=Path, metavar="TREE", help="a Linux source tree")
    parser.add_argument("--quiet", action="store_true", help="say nothing when all is well")
    args = parser.parse_args()
    tree = args.tree.resolve()
    try:
        if args.command == "version":
            print(version(tree)[2])
        elif args.command == "check-series":
            check_series(tree)
        else:
            changed = install(tree) if args.command == "install" else uninstall(tree)
            if not args.quiet:
                for name in changed:
                    print(f"  {name}")
                print(f"{args.command}: {tree}: {len(changed)} files changed")
    except (Refusal, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
