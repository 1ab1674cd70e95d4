#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Put our files and patches into the tree KERNEL, or take them out again.
# Usage: install-tree.sh install|uninstall. Takes Python and git from PATH, and
# only if there are none those of the Debian root.

set -euo pipefail
. "$(dirname "$0")/lib.sh"

[ -n "$KERNEL" ] || die "say which tree: make $1-tree KERNEL=/path/to/linux"
[ -d "$KERNEL" ] || die "KERNEL=$KERNEL is not a directory"
KERNEL=$(cd "$KERNEL" && pwd -P)
if command -v git >/dev/null && python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
	exec python3 "$TOP/tools/tree.py" "$1" "$KERNEL"
fi
exec "$TOP/tools/enter" python3 "$TOP/tools/tree.py" "$1" "$KERNEL"
