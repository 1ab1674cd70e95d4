#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Build what it takes, boot the kernel on the simulated machine, show TDX coming
# up and a TD living its life. Usage: run.sh [--shell]. MACHINE_ARGS holds more
# arguments for "tdx-machine run", see its --help.

set -euo pipefail
. "$(dirname "$0")/lib.sh"

"$TOP/tools/enter" --lock bash -c 'tools/machine.sh && tools/kernel.sh rust'
built=$SECONDS
status=0
# shellcheck disable=SC2016 # expanded inside the root
TDX_ENTERED=1 "$TOP/tools/enter" bash -c '
	. tools/lib.sh
	image=$(trees_dir)/rust/build/arch/x86/boot/bzImage
	machine=("$CARGO_TARGET_DIR/release/tdx-machine" run --kernel "$image" --append kvm_intel.tdx=1
		--file "$CARGO_TARGET_DIR/x86_64-unknown-linux-gnu/release/td-client" ${MACHINE_ARGS:-})
	case "${MACHINE_ARGS:-}" in
	*--td-script*) ;;
	*) machine+=(--td-script tools/demo/guest.td) ;;
	esac
	if [ "$1" = --shell ]; then
		exec "${machine[@]}" --shell
	fi
	out=$CACHE/results/run
	case "${MACHINE_ARGS:-}" in
	*--cpus*) ;;
	*) machine+=(--cpus 2) ;;
	esac
	case "${MACHINE_ARGS:-}" in
	*--script*) ;;
	*) machine+=(--script tools/demo/host.sh) ;;
	esac
	rm -rf "$out"
	mkdir -p "$out"
	say "-- booting Linux $(python3 tools/tree.py version "$(trees_dir)/rust") on the simulated machine (console: $out/console.log)"
	status=0
	"${machine[@]}" --quiet --out "$out" >"$out.report" 2>&1 || status=$?
	say
	grep -aE "virt/tdx:|^td " "$out/console.log" | tr -d "\r" || warn "the kernel said nothing about TDX"
	cat "$out.report"
	if [ "$status" -ne 0 ]; then
		die "the machine ended with exit status $status" "see $out/console.log and $out/trace.jsonl"
	fi
	grep -aq "virt/tdx: TDX-Module initialized" "$out/console.log" || die "TDX did not come up"
' _ "${1:-}" || status=$?
if [ "${1:-}" != --shell ]; then
	say
	say "total time $(elapsed $SECONDS), of which building took $(elapsed $built)"
fi
exit $status
