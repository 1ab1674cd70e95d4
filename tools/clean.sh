#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# clean: remove what was built, keep what was fetched. distclean: remove the
# cache. Both leave anything that is not our cache alone.

set -euo pipefail
. "$(dirname "$0")/lib.sh"

if [ ! -e "$CACHE" ]; then
	say "nothing to remove: $CACHE does not exist"
	exit 0
fi
grep -qs tdx-host-rs "$CACHE/CACHEDIR.TAG" ||
	die "$CACHE does not look like a cache of this project (no CACHEDIR.TAG of ours); remove it by hand"
exec 9>"$CACHE/lock"
flock -n 9 || die "another make is using $CACHE"
# Nothing is mounted there outside a private namespace; make sure all the same.
if [ "$1" = distclean ]; then
	chmod -R u+w "$CACHE/root" 2>/dev/null || :
	rm -rf --one-file-system "$CACHE"
	say "removed $CACHE"
else
	rm -rf --one-file-system "$CACHE"/linux*/*/build "$CACHE"/target* "$CACHE/fuzz" "$CACHE/results" "$CACHE/logs"
	say "removed what was built in $CACHE (the root, sources, crates and compiler cache stay)"
fi
