# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What every script in tools/ shares: where things are, how to say something,
# how to run a long step. Source it, do not run it.
#
# Variables a user may set (on the make command line or in the environment):
#   CACHE   everything that can be made again: root, kernel trees, objects, crates
#   KERNEL  a Linux 7.3 source tree to use instead of the packaged source
#   ROOT    auto (default), always or none: whether to use a Debian root
#   MIRROR  Debian mirror for that root, when the default one is not reachable
#   JOBS    parallel compile jobs

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
: "${CACHE:=${XDG_CACHE_HOME:-${HOME:?}/.cache}/tdx-host-rs}"
: "${KERNEL:=}" "${ROOT:=auto}" "${MIRROR:=}" "${JOBS:=$(nproc)}"
SERIES=7.3

say() { printf '%s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
	printf 'error: %s\n' "$1" >&2
	shift
	[ $# -eq 0 ] || printf '       %s\n' "$@" >&2
	exit 1
}

# The kernel's build system splits words at blanks and colons in paths.
check_path() {
	case $2 in
	/*) ;;
	*) die "$1 must be an absolute path, not '$2'" ;;
	esac
	case $2 in
	*[[:space:]:]*) die "$1 is '$2', and the kernel cannot be built in a path with blanks or colons." \
		"Set $1 to another directory." ;;
	esac
}

# The cache is created on first use and marked, so that 'make distclean' never
# removes a directory that is not ours.
open_cache() {
	check_path CACHE "$CACHE"
	mkdir -p "$CACHE/logs" || die "cannot create the cache $CACHE (set CACHE= to a writable directory)"
	CACHE=$(cd "$CACHE" && pwd -P)
	if [ ! -e "$CACHE/CACHEDIR.TAG" ]; then
		printf '%s\n' 'Signature: 8a477f597d28d172789f06886806bc55' \
			'# Made by tdx-host-rs; can be removed at any time (make distclean).' \
			>"$CACHE/CACHEDIR.TAG"
	fi
	export CACHE
}

# trees: the directory that holds the kernel trees for the source in use.
trees_dir() {
	if [ -n "$KERNEL" ]; then
		printf '%s/linux-%s\n' "$CACHE" "$(printf %s "$KERNEL" | sha256sum | cut -c1-12)"
	else
		printf '%s/linux\n' "$CACHE"
	fi
}

# version_ge A B: is version A at least B?
version_ge() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

elapsed() { printf '%d:%02d' $((($1) / 60)) $((($1) % 60)); }

# step TITLE LOG COMMAND...: run a long command with its output in LOG. Shows
# the time that passed (every second on a terminal, every 30 s otherwise) and
# the tail of the log if the command fails.
step() {
	local title=$1 log=$2 start=$SECONDS pid status last=0 now
	shift 2
	mkdir -p "$(dirname "$log")"
	say "-- $title (log: $log)"
	"$@" >"$log" 2>&1 </dev/null &
	pid=$!
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.5
		now=$((SECONDS - start))
		if [ -t 1 ]; then
			printf '\r   %s %.70s\033[K' "$(elapsed "$now")" "$(tail -c 300 "$log" | tail -n 1 | tr -cd '[:print:]')"
		elif [ $((now - last)) -ge 30 ]; then
			last=$now
			printf '   %s %.100s\n' "$(elapsed "$now")" "$(tail -c 300 "$log" | tail -n 1 | tr -cd '[:print:]')"
		fi
	done
	status=0
	wait "$pid" || status=$?
	[ ! -t 1 ] || printf '\r\033[K'
	now=$((SECONDS - start))
	if [ "$status" -ne 0 ]; then
		tail -n 40 "$log" | sed 's/^/   | /' >&2
		die "$title failed (exit status $status) after $(elapsed "$now")" "full log: $log"
	fi
	say "   done in $(elapsed "$now")"
}
