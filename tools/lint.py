# SPDX-License-Identifier: GPL-2.0
"""Checks that read the sources instead of running them, each counted as one test.

Kernel code is checked with the very command line that kbuild used for it (it
keeps it beside each object), with clippy or rustdoc in the place of rustc: the
same lints as `make CLIPPY=1` and `make rustdoc`, without building twice.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from steps import CACHE, JOBS, TOP, Result, failed, passed, run
from tree import TDX, git, patched

CARGO = {
    "machine": TOP / "machine/Cargo.toml",
    "host tests": TOP / "tests/host/Cargo.toml",
    "guest programs": TOP / "tests/guest/Cargo.toml",
}
OBJECT = f"{TDX}/tdx_host.o"


def command(name: str, words: list[str] | str, cwd: Path = TOP, **env: str) -> Result:
    """A check that passes when a command succeeds."""
    done = run(name, words, cwd=cwd, env=env, quiet=True)
    return failed(name, done.tail) if done.status else passed(name)


def cargo(name: str, verb: str, manifest: Path, *args: str, **env: str) -> Result:
    words = ["cargo", verb, "--manifest-path", str(manifest), *args]
    return command(name, words, CARGO_TERM_COLOR="never", **env)


def cargo_checks() -> list[Callable[[], Result]]:
    checks = []
    for what, manifest in CARGO.items():
        extra = ["--workspace"] if what == "machine" else []
        build = ["--locked", "-j", JOBS, *extra]
        checks += [
            lambda w=what, m=manifest: cargo(f"rustfmt of {w}", "fmt", m, "--all", "--check"),
            lambda w=what, m=manifest, b=build: cargo(
                f"clippy of {w}", "clippy", m, *b, "--all-targets", "--", "-Dwarnings"
            ),
            lambda w=what, m=manifest, b=build: cargo(
                f"rustdoc of {w}", "doc", m, *b, "--no-deps", RUSTDOCFLAGS="-Dwarnings"
            ),
        ]
    return checks


def rustfmt_kernel(tree: Path) -> Result:
    config = str(tree / ".rustfmt.toml")
    files = [str(path) for path in sorted(TOP.glob("*.rs"))]
    name = "rustfmt of the kernel module"
    return command(name, ["rustfmt", "--check", "--edition=2021", "--config-path", config, *files])


def kbuild_command(build: Path) -> list[str]:
    """The words with which kbuild ran rustc on our crate, without its results."""
    saved = build / Path(OBJECT).parent / f".{Path(OBJECT).name}.cmd"
    line = saved.read_text().splitlines()[0].partition(" := ")[2].partition(" ; ")[0]
    words = shlex.split(line.replace("$$", "$").replace("$(pound)", "#"))
    kept, skip = [], False
    for word in words:
        if skip or word.startswith("--emit="):
            skip = False
        elif word == "--out-dir":
            skip = True
        else:
            kept.append(word)
    return kept


def with_tool(words: list[str], tool: str, *more: str) -> list[str]:
    """Replace rustc by another driver; variables before it go through env."""
    at = words.index("rustc")
    return ["env", "RUSTC_BOOTSTRAP=1", *words[:at], tool, *words[at + 1 :], *more]


def clippy_kernel(tree: Path, build: Path) -> Result:
    with tempfile.TemporaryDirectory() as scratch:
        more = ["-Dwarnings", "--emit=metadata", "--out-dir", scratch]
        words = with_tool(kbuild_command(build), "clippy-driver", *more)
        return command("clippy of the kernel module", words, build, CLIPPY_CONF_DIR=str(tree))


def rustdoc_kernel(build: Path) -> Result:
    words = [w for w in kbuild_command(build) if not w.startswith("--remap-path-scope")]
    # rustdoc does not record what the crates were built with; kbuild's own rule
    # for rustdoc says this, too.
    mismatch = "-Cunsafe-allow-abi-mismatch=fixed-x18,sanitizer"
    with tempfile.TemporaryDirectory() as scratch:
        # Most of a kernel module is private: documented are all items, and links
        # to private ones are as good as others.
        more = ["-Dwarnings", "-Arustdoc::private_intra_doc_links", "--document-private-items"]
        more += [mismatch, "--output", scratch]
        words = with_tool(words, "rustdoc", "--crate-name", "tdx_host", *more)
        return command("rustdoc of the kernel module", words, build)


def test_modules() -> list[Path]:
    """Kernel modules for tests."""
    return sorted(TOP.glob("tests/module/*.c"))


def c_files() -> list[Path]:
    return sorted(path for suffix in ("c", "h", "S") for path in TOP.glob(f"*.{suffix}"))


def compile_c(build: Path) -> Result:
    """The C files once more, with warnings on that kbuild leaves to W=1."""
    name = "warnings of the C files"
    problems = []
    for path in TOP.glob("*.c"):
        saved = build / TDX / f".{path.stem}.o.cmd"
        if not saved.exists():
            return failed(name, f"{saved} is missing: {path.name} is not built")
        line = saved.read_text().splitlines()[0].partition(" := ")[2].partition(" ; ")[0]
        words = shlex.split(line.replace("$$", "$").replace("$(pound)", "#"))
        words = [w for w in words if not w.startswith("-Wp,-MMD")]
        words[words.index("-o") + 1] = os.devnull
        more = ["-Wall", "-Wunused", "-Wmissing-prototypes", "-Wmissing-declarations", "-ferror-limit=0"]
        done = run(name, [*words, *more], cwd=build, quiet=True)
        if done.status:
            return failed(name, done.tail)
        # Warnings of the kernel's own headers are not ours.
        problems += [x for x in done.output.splitlines() if f"tdx/{path.name}" in x and ": " in x]
    return failed(name, "\n".join(problems)) if problems else passed(name)


def sparse(tree: Path, build: Path) -> Result:
    """sparse on our directory; what it says about headers of others is theirs."""
    name = "sparse of the C files"
    # Released versions of sparse do not know this C23 operator, which drops
    # qualifiers: all that is lost is that check.
    sparse_here = "CHECK=sparse -D__typeof_unqual__=__typeof__"
    words = ["make", "-C", str(tree), f"O={build}", "LLVM=1", "CC=ccache clang", sparse_here]
    words += ["C=2", f"{TDX}/"]
    done = run(name, words, quiet=True)
    checked = [x for x in done.output.splitlines() if x.lstrip().startswith("CHECK")]
    if done.status or not checked:
        return failed(name, f"sparse checked nothing\n{done.tail}")
    ours = [x for x in done.output.splitlines() if f"{TDX}/" in x and re.search(r":\d+:\d+: ", x)]
    return failed(name, "\n".join(ours)) if ours else passed(name)


def checkpatch(name: str, tree: Path, *words: str) -> Result:
    script = tree / "scripts/checkpatch.pl"
    # EXPORT_SYMBOL wants the function right before the line; ours are in Rust.
    always = ["--strict", "--no-tree", "--color=never", "--ignore=EXPORT_SYMBOL"]
    return command(name, ["perl", str(script), *always, *words])


def patches() -> list[Path]:
    return sorted((TOP / "patches").glob("*.patch"))


def git_am(tree: Path) -> Result:
    """The patches apply as mails, one commit each, without a fuzz."""
    name = "patches are git am-able"
    originals = {path: content for path, content in before_patches(tree).items() if content}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch).resolve()
        for path, content in originals.items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_bytes(content)
        who = ["-c", "user.name=tester", "-c", "user.email=tester@localhost"]
        for words in (
            ["init", "-q"],
            ["add", "-A"],
            [*who, "commit", "-qm", "before"],
            [*who, "am", "-q", *map(str, patches())],
        ):
            done = git(work, *words)
            if done.returncode:
                return failed(name, done.stdout + done.stderr)
        commits = git(work, "rev-list", "--count", "HEAD").stdout.strip()
    if commits != str(len(patches()) + 1):
        return failed(name, f"{len(patches())} patches gave {commits} commits")
    return passed(name)


def before_patches(tree: Path) -> dict[str, bytes | None]:
    """The files that the patches touch, as they are in the pristine tree."""
    names = patched(patches(), {}, tree)
    return {name: (tree / name).read_bytes() if (tree / name).exists() else None for name in names}


def tracked() -> list[Path]:
    """Files of the project: tracked ones, and new ones that git does not ignore."""
    words = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    done = subprocess.run(words, cwd=TOP, capture_output=True, check=True)
    names = [name.decode() for name in done.stdout.split(b"\0") if name]
    return [TOP / name for name in names if (TOP / name).is_file()]


# Files that cannot hold a tag; a README with one beside them speaks for them.
DATA = {".json", ".jsonl", ".gz", ".txt", ".patch", ".csv", ".proptest-regressions"}
# Inputs of fuzzers have no suffix; the README of the fuzzers speaks for them.
CORPUS = TOP / "tests/fuzz/corpus"
TAG = re.compile(rb"SPDX-License-Identifier: GPL-2\.0\b")


def spdx() -> Result:
    """Every file says its licence in its first lines."""
    untagged = []
    for path in tracked():
        if path.name in ("Cargo.lock", "COPYING") or TAG.search(b"\n".join(path.read_bytes().splitlines()[:5])):
            continue
        corpus = path.is_relative_to(CORPUS)
        readmes = (CORPUS.parent if corpus else path.parent).glob("README*")
        if (corpus or path.suffix in DATA) and any(TAG.search(readme.read_bytes()) for readme in readmes):
            continue
        untagged.append(str(path.relative_to(TOP)))
    return failed("SPDX tags", "no tag in:\n" + "\n".join(untagged)) if untagged else passed("SPDX tags")


# Parts are joined here so that this file does not contain what it looks for.
PLACES = ["/" + "root/", "/" + "home/", "/" + "work/", "deb" + ".debian.org"]


def places() -> Result:
    """No file names a directory or host of the machine it was written on."""
    name = "no names of local places"
    words = {*PLACES, str(TOP), str(CACHE)} - {"/", "."}
    host = socket.gethostname()
    # A place is the start of a path: not what follows a variable, as in $CACHE.
    patterns = [rf"(?<![\w.}}]){re.escape(word)}" for word in words]
    if len(host) > 3 and host != "localhost":
        patterns.append(rf"\b{re.escape(host)}\b")
    pattern = re.compile("|".join(patterns).encode())
    found = [
        f"{path.relative_to(TOP)}:{number}: {line.decode(errors='replace').strip()}"
        for path in tracked()
        if path.suffix != ".gz"
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
        if pattern.search(line)
    ]
    sources = re.compile(r'^source = "(?!registry\+https://github\.com/rust-lang/crates\.io-index")', re.M)
    found += [str(p.relative_to(TOP)) for p in tracked() if p.name == "Cargo.lock" and sources.search(p.read_text())]
    return failed(name, "\n".join(found)) if found else passed(name)


def checks(trees: Path, built: bool) -> list[Result]:
    """All checks. `built` says that the Rust kernel is built, which some of them need."""
    pristine, tree = trees / "c", trees / "rust"
    build = tree / "build"
    todo: list[Callable[[], Result]] = [
        spdx,
        places,
        lambda: rustfmt_kernel(tree),
        *cargo_checks(),
        lambda: checkpatch("checkpatch of the patches", tree, *map(str, patches())),
        lambda: checkpatch("checkpatch of the C files", tree, "-f", *map(str, c_files() + test_modules())),
        lambda: git_am(pristine),
    ]
    results = [run_check(check) for check in todo]
    kernel = {
        "clippy of the kernel module": lambda: clippy_kernel(tree, build),
        "rustdoc of the kernel module": lambda: rustdoc_kernel(build),
        "warnings of the C files": lambda: compile_c(build),
        "sparse of the C files": lambda: sparse(tree, build),
    }
    for name, check in kernel.items():
        results.append(run_check(check) if built else failed(name, "the kernel is not built"))
    return results


def run_check(check: Callable[[], Result]) -> Result:
    result = check()
    print(f"   {result.outcome.value:<8} {result.name}", flush=True)
    return result
