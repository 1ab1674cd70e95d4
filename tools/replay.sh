#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Check recorded answers of a real TDX module against the machine's model.
# VECTORS=FILE   TDH.SYS.CONFIG cases       SEQUENCES=FILE   SEAMCALL sequences
# A platform.json beside a file says what machine its answers come from.

set -euo pipefail
. "$(dirname "$0")/lib.sh"

[ -n "${VECTORS:-}${SEQUENCES:-}" ] ||
	die "say what to replay: make replay VECTORS=FILE SEQUENCES=FILE (one of them is enough)"
for name in VECTORS SEQUENCES; do
	file=${!name:-}
	[ -n "$file" ] || continue
	[ -r "$file" ] || die "$name=$file cannot be read"
	export "$name=$(realpath "$file")"
done
"$TOP/tools/enter" --lock tools/machine.sh
exec env TDX_ENTERED=1 "$TOP/tools/enter" bash -uc '
	status=0
	for kind in vectors sequences; do
		name=${kind^^}
		file=${!name:-}
		[ -n "$file" ] || continue
		platform=$(dirname "$file")/platform.json
		[ -e "$platform" ] || platform=
		echo "== $kind of $file"
		"$CARGO_TARGET_DIR/release/tdx-replay" "$kind" ${platform:+--platform "$platform"} "$file" || status=$?
	done
	exit $status'
