#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Build the simulated machine: launcher, QEMU plugin, replay. Runs inside
# tools/enter. Result: $CACHE/target/release/{tdx-machine,tdx-replay,*.so}

set -euo pipefail
. "$(dirname "$0")/lib.sh"

[ -e "$TOP/machine/Cargo.toml" ] || die "machine/Cargo.toml is missing from this checkout"
export CARGO_TARGET_DIR=$CACHE/target
step "building the simulated machine" "$CACHE/logs/machine.log" \
	cargo build --release --locked --workspace --manifest-path "$TOP/machine/Cargo.toml" -j "$JOBS"
