# SPDX-License-Identifier: GPL-2.0
#
# For people. The kernel's build system reads Kbuild instead of this file.
# Everything is made in the cache (CACHE=), with the tools on PATH or, when
# those do not suffice, in a Debian root: see tools/setup.sh.

CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tdx-host-rs
ROOT ?= auto
JOBS ?= $(shell nproc)
export CACHE ROOT JOBS
# Set by the user, if at all.
export KERNEL MIRROR K N SEED FIRST VECTORS SEQUENCES MACHINE_ARGS

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help run test lint setup kernel kernel-c machine kunit-test host-test host-test-long fuzz \
	machine-test boot-test replay sanitize bench soak shell install-tree uninstall-tree clean distclean

help:
	@sed -n 's/^#: \{0,1\}//p' Makefile

#: Targets
#:   run             build kernel and machine, boot, watch the TDX module come up
#:   test            every test; ends with a table and "N passed, N failed"
#:   shell           a shell inside the simulated machine
#:
#:   kernel          the kernel with the Rust TDX host module
#:   kernel-c        the kernel as released, with the C it replaces (the control)
#:   machine         the simulated machine
#:   lint            formatting, clippy, documentation, checkpatch, sparse, licences
#:   machine-test    cargo tests of the machine
#:   host-test       cargo tests of the module's pure files
#:   host-test-long  100,000 cases of each of the 18 properties of planning: half
#:                   an hour (CASES=N for another number)
#:   fuzz            coverage-guided fuzzing of the pure files, a minute for each
#:                   of three targets (FUZZ_SECONDS=N for another time)
#:   kunit-test      the module's KUnit suites, in a booted kernel
#:   boot-test       scenarios on the machine; K=EXPRESSION selects some
#:   replay          check answers recorded from a real TDX module against the
#:                   machine; VECTORS=FILE SEQUENCES=FILE
#:   sanitize        KUnit and the boot scenarios on a kernel that checks itself
#:                   (KASAN, lockdep, noinstr); slow, not part of test
#:   bench           compare speed and size with the C; some minutes
#:   soak            N=100 random ways from one kernel to the next, kexec and kdump,
#:                   until something is wrong; SEED= and FIRST= repeat them
#:   setup           only look for the tools, or make the Debian root
#:
#:   install-tree    put the module and the patches into a tree; KERNEL=DIR
#:   uninstall-tree  take them out again; KERNEL=DIR
#:   clean           remove what was built
#:   distclean       remove the cache
#:
#: Variables
#:   KERNEL=DIR      build in your own Linux 7.3 tree, which is copied, not changed
#:   CACHE=DIR       where everything is built (~/.cache/tdx-host-rs)
#:   ROOT=auto       tools from PATH if they suffice, else a Debian root;
#:                   none: always from PATH; always: always the root
#:   MIRROR=URL      Debian mirror for the root
#:   JOBS=N          parallel jobs (as many as there are CPUs)
#:   MACHINE_ARGS=   more arguments for the machine in run and shell

run:
	@tools/run.sh

test:
	@tools/enter --lock python3 tools/test.py

lint:
	@tools/enter --lock python3 tools/test.py lint

machine-test:
	@tools/enter --lock python3 tools/test.py machine

host-test:
	@tools/enter --lock python3 tools/test.py host

host-test-long:
	@tools/enter --lock env PROPTEST_CASES=$(or $(CASES),100000) \
		cargo test --locked --release -j $(JOBS) --manifest-path tests/host/Cargo.toml \
		--test plan --test sys_config --test exists --test hostile

fuzz:
	@tools/enter --lock tools/fuzz.sh $(FUZZ_SECONDS)

kunit-test:
	@tools/enter --lock python3 tools/test.py kunit

boot-test:
	@tools/enter --lock python3 tools/test.py boot

bench:
	@tools/enter --lock python3 tools/bench.py

sanitize:
	@tools/enter --lock python3 tools/test.py checked

soak:
	@tools/enter --lock python3 tools/soak.py

setup:
	@tools/enter true

kernel:
	@tools/enter --lock tools/kernel.sh rust

kernel-c:
	@tools/enter --lock tools/kernel.sh c

machine:
	@tools/enter --lock tools/machine.sh

replay:
	@tools/replay.sh

shell:
	@tools/run.sh --shell

install-tree uninstall-tree:
	@tools/install-tree.sh $(@:-tree=)

clean distclean:
	@tools/clean.sh $@
