#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Decide which tools to build with: those on PATH when they suffice, otherwise
# a Debian root in the cache, which is made here. Usage: setup.sh [--quiet]
# Result: $CACHE/tools holds "host" or "root". Safe to run at any time.

set -euo pipefail
. "$(dirname "$0")/lib.sh"

SUITE=trixie
PACKAGES=(ca-certificates
	rustc rust-src rustfmt rust-clippy cargo bindgen clang lld llvm gcc libc6-dev ccache
	make flex bison bc perl libelf-dev libssl-dev kmod cpio rsync git patch xz-utils sparse
	qemu-system-x86 busybox-static python3 python3-pytest python3-pytest-xdist python3-qemu-qmp)

quiet=
[ "${1:-}" != --quiet ] || quiet=1
note() { [ -n "$quiet" ] || say "$*"; }

missing=()

# need NAME MINIMUM VERSION: record NAME as missing unless VERSION is enough.
need() {
	if [ -z "$3" ]; then
		missing+=("$1 >= $2 (none found)")
	elif ! version_ge "$3" "$2"; then
		missing+=("$1 >= $2 (found $3)")
	fi
}

# version_of COMMAND...: the first version number in what it prints.
version_of() { { "$@" 2>/dev/null || :; } | grep -Eom1 '[0-9]+\.[0-9]+(\.[0-9]+)?' | head -n 1 || :; }

has_header() { printf '#include <%s>\n' "$1" | clang -E -x c - >/dev/null 2>&1; }
has_module() { python3 -c "import $1" 2>/dev/null; }

# What the kernel, the machine and the tests need from the system.
check_host() {
	local tool sysroot
	need rustc 1.88 "$(version_of rustc --version)"
	need cargo 1.88 "$(version_of cargo --version)"
	need bindgen 0.71.1 "$(version_of bindgen --version)"
	need clang 17 "$(version_of clang --version)"
	need ld.lld 17 "$(version_of ld.lld --version)"
	need qemu-system-x86_64 11 "$(version_of qemu-system-x86_64 --version)"
	need python3 3.11 "$(version_of python3 --version)"
	need make 4.0 "$(version_of make --version)"
	for tool in rustfmt clippy-driver cargo-clippy llvm-ar ccache sparse gcc flex bison bc perl git \
		patch rsync cpio xz depmod busybox; do
		command -v "$tool" >/dev/null || missing+=("$tool")
	done
	sysroot=$(rustc --print sysroot 2>/dev/null || :)
	[ -e "${RUST_LIB_SRC:-$sysroot/lib/rustlib/src/rust/library}/core/src/lib.rs" ] ||
		missing+=("rust-src (the source of the Rust library)")
	has_header gelf.h || missing+=("libelf headers (gelf.h)")
	has_header openssl/ssl.h || missing+=("OpenSSL headers (openssl/ssl.h)")
	for tool in pytest xdist qemu.qmp; do
		has_module "$tool" || missing+=("Python module $tool")
	done
	# grep -q would close the pipe early and make QEMU fail.
	! command -v qemu-system-x86_64 >/dev/null ||
		qemu-system-x86_64 -help | grep -c -- '^-plugin' >/dev/null ||
		missing+=("a QEMU with TCG plugins")
	[ -n "$KERNEL" ] || [ -e "/usr/src/linux-source-$SERIES.tar.xz" ] ||
		[ -e "$CACHE/linux-source-$SERIES.tar.xz" ] ||
		missing+=("the package linux-source-$SERIES, or KERNEL=/path/to/a/$SERIES/tree")
}

get_mmdebstrap() {
	command -v mmdebstrap >/dev/null && return
	if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
		step "installing mmdebstrap" "$CACHE/logs/mmdebstrap-install.log" \
			sh -c 'apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends mmdebstrap debian-archive-keyring'
	else
		die "mmdebstrap is needed to make a Debian root, and is not installed." \
			"Install it (Debian, Ubuntu: apt install mmdebstrap debian-archive-keyring uidmap)," \
			"or install the tools listed above and run again with ROOT=none."
	fi
}

# debootstrap_to TARGET MODE: a Debian $SUITE with backports. The line for the
# backports is derived from the one that mmdebstrap wrote for the mirror in use.
debootstrap_to() {
	local include
	include=$(IFS=,; echo "${PACKAGES[*]}")
	# shellcheck disable=SC2016 # $1 belongs to the hook
	mmdebstrap --mode="$2" --variant=apt --include="$include" \
		--aptopt="APT::Default-Release \"$SUITE-backports\"" \
		--aptopt='APT::Install-Recommends "false"' \
		--aptopt='APT::Sandbox::User "root"' \
		--setup-hook='sed -n "s/ '"$SUITE"' main/ '"$SUITE"'-backports main/p" "$1/etc/apt/sources.list" |
			head -n 1 >"$1/etc/apt/sources.list.d/backports.list"
			grep -q . "$1/etc/apt/sources.list.d/backports.list"' \
		--skip=cleanup/apt/lists \
		"$SUITE" "$1" ${MIRROR:+"$MIRROR"}
}

make_root() {
	local partial=$CACHE/root.partial log=$CACHE/logs/root.log
	[ ! -e "$CACHE/root" ] || [ -e "$CACHE/root/etc/tdx-host-rs" ] ||
		die "$CACHE/root was not made by this project; remove it by hand or set CACHE="
	get_mmdebstrap
	remove_root "$partial"
	if [ "$(id -u)" -eq 0 ]; then
		step "making the Debian $SUITE root, about 1 GB of packages" "$log" \
			debootstrap_to "$partial" root
	else
		command -v newuidmap >/dev/null ||
			die "making a root without being root needs newuidmap." \
				"Install the package uidmap, or run as root, or use ROOT=none."
		step "making the Debian $SUITE root (unprivileged), about 1 GB of packages" "$log" \
			debootstrap_to "$partial.tar" unshare
		mkdir "$partial"
		step "unpacking the root" "$CACHE/logs/root-unpack.log" \
			tar -C "$partial" --no-same-owner --exclude='./dev/*' -xf "$partial.tar"
		rm -f "$partial.tar"
	fi
	mkdir -p "$partial/proc" "$partial/sys" "$partial/dev"
	printf '%s\n' "$want" >"$partial/etc/tdx-host-rs"
	# The old root stays until the new one is there.
	if [ -e "$CACHE/root" ]; then
		remove_root "$CACHE/root.old"
		mv "$CACHE/root" "$CACHE/root.old"
	fi
	mv "$partial" "$CACHE/root"
	remove_root "$CACHE/root.old"
}

# Nothing is ever mounted in the root outside a private mount namespace, so
# removing it is safe; --one-file-system in case somebody mounted something.
remove_root() {
	[ -e "$1" ] || return 0
	chmod -R u+w "$1" 2>/dev/null || :
	rm -rf --one-file-system "$1"
}

[ "$(uname -m)" = x86_64 ] || die "an x86-64 machine is needed; this one is $(uname -m)"
open_cache

want="$SUITE ${PACKAGES[*]}"
choice=
case $ROOT in
none)
	check_host
	[ ${#missing[@]} -eq 0 ] || die "ROOT=none, but this system lacks:" "${missing[@]}"
	choice=host
	note "tools: those on PATH ($(rustc --version), ROOT=none)"
	;;
auto | always)
	if [ -e "$CACHE/root/etc/tdx-host-rs" ] && [ "$(cat "$CACHE/root/etc/tdx-host-rs")" = "$want" ]; then
		choice=root
		note "tools: Debian root $CACHE/root"
	elif [ "$ROOT" = auto ]; then
		check_host
		if [ ${#missing[@]} -eq 0 ]; then
			choice=host
			note "tools: those on PATH, they suffice ($(rustc --version)); ROOT=always to use a Debian root"
		else
			say "tools: a Debian $SUITE root in $CACHE/root, because this system lacks:"
			printf '       %s\n' "${missing[@]}"
		fi
	else
		say "tools: a Debian $SUITE root in $CACHE/root (ROOT=always)"
	fi
	;;
*) die "ROOT is '$ROOT'; it can be auto, always or none" ;;
esac
if [ -z "$choice" ]; then
	make_root
	choice=root
fi
printf '%s\n' "$choice" >"$CACHE/tools"
