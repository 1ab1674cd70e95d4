#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Build a kernel: "c" is the tree as it is (the control), "rust" the same tree
# with our files and patches, any other name the latter with more checks, those
# of tools/config/NAME.config. Usage: kernel.sh c|rust|NAME [make arguments...]
# Runs inside tools/enter. Result: $(trees_dir)/NAME/build/arch/x86/boot/bzImage, and in the same
# build directory the module drivers/virt/coco/tdx-host/tdx-host.ko and, except for c, that of
# tests/module, tests-module/tdx-reset-test.ko.
#
# The build directory of c and rust lies in the tree: then the kernel's build
# system names its sources relatively, and ccache serves one kernel from the
# other's objects. Those with more checks share nothing but the tree of rust.

set -euo pipefail
shopt -s nullglob
. "$(dirname "$0")/lib.sh"

which=${1:-}
[ -n "$which" ] || die "usage: kernel.sh c|rust|NAME [make arguments...]"
shift

trees=$(trees_dir)
tree=$trees/$which
build=$trees/$which/build
fragments=("$TOP/tools/config/base.config")
if [ "$which" != c ]; then
	tree=$trees/rust
	fragments+=("$TOP/tools/config/rust.config")
	[ "$which" = rust ] || fragments+=("$TOP/tools/config/$which.config")
fi
for fragment in "${fragments[@]}"; do
	[ -e "$fragment" ] || die "there is no kernel '$which': $fragment does not exist"
done
export CCACHE_DIR CCACHE_NOHASHDIR=1 CCACHE_MAXSIZE=2G CCACHE_COMPILERCHECK=content
export KBUILD_BUILD_USER=tdx-host-rs KBUILD_BUILD_HOST=tdx-host-rs
kmake() { make -C "$tree" O="$build" LLVM=1 CC="ccache clang" -j"$JOBS" "$@"; }

# The Rust tree starts as a copy of the pristine one and is brought up to date
# when that one changes. Our files go in by content, so that what did not change
# is not built again.
prepare_tree() {
	bash "$TOP/tools/source.sh"
	[ "$which" != c ] || return 0
	if [ "$(cat "$tree/build/.tdx-generation" 2>/dev/null)" != "$(cat "$trees/generation")" ]; then
		step "copying the kernel tree" "$CACHE/logs/kernel-copy.log" copy_tree
	fi
	python3 "$TOP/tools/tree.py" install --quiet "$tree"
}

copy_tree() {
	mkdir -p "$tree/build"
	rm -f "$tree/build/.tdx-generation"
	[ ! -e "$tree/Makefile" ] || python3 "$TOP/tools/tree.py" uninstall "$tree"
	rsync -a --delete --exclude=/build "$trees/c/" "$tree/"
	cp "$trees/generation" "$tree/build/.tdx-generation"
}

# Every option asked for must be in the result: a dependency that is missing
# makes Kconfig drop it silently.
verify_config() {
	local line name dropped=()
	while read -r line; do
		case $line in
		CONFIG_*=n) name=${line%=n} ; ! grep -q "^$name=" "$build/.config" || dropped+=("$line") ;;
		CONFIG_*=*) grep -qxF "$line" "$build/.config" || dropped+=("$line") ;;
		'# CONFIG_'*' is not set')
			name=${line#'# '}
			! grep -q "^${name%' is not set'}=" "$build/.config" || dropped+=("$line")
			;;
		esac
	done < <(cat "${fragments[@]}")
	[ ${#dropped[@]} -eq 0 ] || die "the kernel configuration did not take these options of tools/config:" \
		"${dropped[@]}" "A dependency is missing, or the option is not in this tree."
}

configure() {
	local stamp
	mkdir -p "$build"
	stamp=$(cat "${fragments[@]}" "$tree/Makefile" "$tree/arch/x86/Kconfig" \
		"$tree"/arch/x86/virt/vmx/tdx/Kconfi[g] | sha256sum)
	if [ ! -e "$build/.config" ] || [ "$(cat "$build/.tdx-config" 2>/dev/null)" != "$stamp" ]; then
		rm -f "$build/.tdx-config"
		[ "$which" = c ] || check_rust
		cat "${fragments[@]}" >"$build/fragments.config"
		step "configuring the $which kernel" "$CACHE/logs/kernel-$which-config.log" \
			kmake KCONFIG_ALLCONFIG="$build/fragments.config" allnoconfig
		verify_config
		printf '%s\n' "$stamp" >"$build/.tdx-config"
	fi
}

check_rust() {
	kmake -s rustavailable >"$CACHE/logs/rustavailable.log" 2>&1 || {
		tail -n 20 "$CACHE/logs/rustavailable.log" >&2
		die "the Rust tools do not suffice for this kernel (make rustavailable says why, above)"
	}
}

# A module for tests, which needs symbols that c does not have. Built in a copy: the
# checkout may lie in a path that the kernel's build system does not like.
build_tests() {
	rsync -a --delete-excluded --include='/*.[ch]' --include=/Kbuild --exclude='*' \
		"$TOP/tests/module/" "$build/tests-module.src/"
	kmake M="$build/tests-module.src" MO="$build/tests-module" modules
}

prepare_tree
configure
[ $# -gt 0 ] || set -- bzImage modules
step "building the $which kernel, Linux $(python3 "$TOP/tools/tree.py" version "$tree")" \
	"$CACHE/logs/kernel-$which.log" kmake "$@"
if [ "$which" != c ] && [ "$*" = "bzImage modules" ]; then
	step "building the module for tests" "$CACHE/logs/kernel-$which-tests.log" build_tests
fi
