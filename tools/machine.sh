#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Build the simulated machine: launcher, QEMU plugin, replay, and the programs that
# run inside it. Runs inside tools/enter. Result, in $CARGO_TARGET_DIR:
# release/{tdx-machine,tdx-replay,*.so}, x86_64-unknown-linux-gnu/release/{td-client,kexec-tool}

set -euo pipefail
. "$(dirname "$0")/lib.sh"

[ -e "$TOP/machine/Cargo.toml" ] || die "machine/Cargo.toml is missing from this checkout"
step "building the simulated machine" "$CACHE/logs/machine.log" \
	cargo build --release --locked --workspace --manifest-path "$TOP/machine/Cargo.toml" -j "$JOBS"

# It runs on a busybox initramfs, so it is linked statically. With --target the
# flags do not reach build scripts and macros, which cannot be static.
RUSTFLAGS="-Ctarget-feature=+crt-static" \
	step "building the guest programs" "$CACHE/logs/guest.log" \
	cargo build --release --locked --target x86_64-unknown-linux-gnu \
	--manifest-path "$TOP/tests/guest/Cargo.toml" -j "$JOBS"
