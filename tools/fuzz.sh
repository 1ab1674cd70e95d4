#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Coverage-guided fuzzing of the pure files, with libFuzzer and the stable
# compiler. Usage: fuzz.sh [SECONDS]: so long for each target, 60 by default.
# SECONDS=0 only runs the corpus. Runs inside tools/enter.

set -euo pipefail
cd "$(dirname "$0")/.."

. tools/lib.sh

seconds=${1:-60}
fuzz=$CACHE/fuzz
corpus=tests/fuzz/corpus

# What cargo-fuzz passes, but for the sanitizers, which take an unstable
# compiler: the pure files have no unsafe code.
flags=(-Cpasses=sancov-module -Ccodegen-units=1 --cfg fuzzing
	-Cllvm-args=-sanitizer-coverage-level=4
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters
	-Cllvm-args=-sanitizer-coverage-pc-table
	-Cllvm-args=-sanitizer-coverage-trace-compares)

# libFuzzer is C++; nothing else here is, so the root gets it when it is needed.
has_cxx() { echo '#include <vector>' | "${CXX:-clang++}" -E -x c++ - >/dev/null 2>&1; }
if ! has_cxx && [ -e /etc/tdx-host-rs ]; then
	step "installing the C++ library" "$CACHE/logs/fuzz-install.log" \
		sh -c 'apt-get update && apt-get install -y --no-install-recommends libstdc++-14-dev'
fi
has_cxx || die "fuzzing needs the headers of a C++ library." "Install them (Debian: libstdc++-14-dev)."

# --target keeps build scripts free of the flags.
host=$(rustc -vV | sed -n 's/^host: //p')
CARGO_ENCODED_RUSTFLAGS=$(printf '%s\x1f' "${flags[@]}" | sed 's/\x1f$//') \
	CXX=${CXX:-clang++} cargo build --release --locked -j "${JOBS:-2}" \
	--manifest-path tests/fuzz/Cargo.toml --target "$host"

for name in plan metadata image; do
	new=$fuzz/corpus/$name
	mkdir -p "$new" "$fuzz/findings"
	limit=(-max_total_time="$seconds")
	[ "$seconds" != 0 ] || limit=(-runs=0)
	# Images are read by the page.
	[ "$name" = image ] && length=16384 || length=1024
	log=$CACHE/logs/fuzz-$name.log
	step "fuzzing $name for $seconds s, $(find "$corpus/$name" -type f | wc -l) files in the corpus" "$log" \
		"$CARGO_TARGET_DIR/$host/release/$name" "${limit[@]}" -seed=1 -max_len=$length -timeout=60 \
		-print_final_stats=1 -artifact_prefix="$fuzz/findings/$name-" "$new" "$corpus/$name"
	sed -n 's/^stat::\(number_of_executed_units\|new_units_added\): */   \1 /p' "$log"
done
say "no finding"
