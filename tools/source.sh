#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Bring a pristine Linux tree into the cache: the packaged source, or a copy of
# the tree that KERNEL names (which is only read). Prints nothing when there is
# nothing to do. Runs inside tools/enter. Result: $(trees_dir)/c

set -euo pipefail
. "$(dirname "$0")/lib.sh"

TARBALL=$CACHE/linux-source-$SERIES.tar.xz
trees=$(trees_dir)
log=$CACHE/logs/kernel-source.log

# check_series TREE: refuse what is not a tree of our series.
check_series() {
	python3 "$TOP/tools/tree.py" check-series "$1"
}

# Files of a tree that a build made, when it is no git checkout that knows.
BUILT=(--exclude='*.o' --exclude='*.a' --exclude='*.ko' --exclude='*.cmd' --exclude='*.rmeta'
	--exclude='*.so' --exclude='/.config*' --exclude='/vmlinux*' --exclude='/include/config'
	--exclude='/include/generated' --exclude='/arch/x86/include/generated' --exclude='/build' --exclude='/.git')

# copy_files: make $trees/c equal to $KERNEL; the names that changed go to
# $trees/changes.
copy_files() {
	if git -C "$KERNEL" rev-parse --show-cdup 2>/dev/null | grep -qx ''; then
		git -C "$KERNEL" ls-files -co --exclude-standard | sort -u >"$trees/names"
		(cd "$KERNEL" && rsync -a --out-format=%n --files-from="$trees/names" \
			--ignore-missing-args ./ "$trees/c/") >"$trees/changes"
		(cd "$trees/c" && find . -path ./build -prune -o -not -type d -printf '%P\n') | sort |
			comm -13 "$trees/names" - | tee -a "$trees/changes" |
			(cd "$trees/c" && xargs -r -d '\n' rm -f)
	else
		rsync -a --delete --out-format=%n "${BUILT[@]}" "$KERNEL/" "$trees/c/" >"$trees/changes"
	fi
}

# The file "generation" tells the Rust tree when this one has changed.
copy_user_tree() {
	check_series "$KERNEL"
	[ ! -e "$KERNEL/arch/x86/virt/vmx/tdx/.tdx-host-rs" ] ||
		die "our files are installed in $KERNEL; KERNEL= takes the tree without them." \
			"Remove them with: make uninstall-tree KERNEL=$KERNEL"
	mkdir -p "$trees/c"
	printf '%s\n' "$KERNEL" >"$trees/origin"
	: >"$trees/changes"
	[ ! -e "$trees/generation" ] || mv "$trees/generation" "$trees/generation.old"
	step "copying what changed in $KERNEL" "$log" copy_files
	if [ -e "$trees/generation.old" ] && ! grep -qv '/$' "$trees/changes"; then
		mv "$trees/generation.old" "$trees/generation"
	else
		date +%s%N >"$trees/generation"
	fi
}

# Fetch the package with apt and take the archive out of it, without installing.
download() {
	local dir=$CACHE/download found
	apt-get update
	if ! apt-cache show "linux-source-$SERIES" >/dev/null 2>&1; then
		found=$(apt-cache search --names-only '^linux-source-[0-9]' | cut -d' ' -f1 | sort -V | paste -sd' ')
		echo "The package linux-source-$SERIES is not in this distribution any more (it has: ${found:-none})."
		echo "Give a tree of the series yourself: make KERNEL=/path/to/linux-$SERIES ..."
		return 1
	fi
	rm -rf "$dir"
	mkdir -p "$dir"
	(cd "$dir" && apt-get -o APT::Sandbox::User=root download "linux-source-$SERIES")
	dpkg-deb --fsys-tarfile "$dir"/*.deb | tar -C "$dir" -x "./usr/src/linux-source-$SERIES.tar.xz"
	mv "$dir/usr/src/linux-source-$SERIES.tar.xz" "$TARBALL"
	rm -rf "$dir"
}

unpack() {
	rm -rf "$trees/c.partial"
	mkdir -p "$trees/c.partial"
	xz -dcT0 "$TARBALL" | tar -C "$trees/c.partial" --strip-components=1 -x
}

packaged_tree() {
	[ ! -e "$trees/c/Makefile" ] || return 0
	if [ ! -e "$TARBALL" ]; then
		if [ -e "/usr/src/linux-source-$SERIES.tar.xz" ]; then
			cp "/usr/src/linux-source-$SERIES.tar.xz" "$TARBALL.partial"
			mv "$TARBALL.partial" "$TARBALL"
		else
			step "fetching the packaged source of Linux $SERIES" "$log" download
		fi
	fi
	step "unpacking the source of Linux $SERIES" "$CACHE/logs/kernel-unpack.log" unpack
	check_series "$trees/c.partial"
	rm -rf "$trees/c"
	mv "$trees/c.partial" "$trees/c"
	date +%s%N >"$trees/generation"
}

if [ -n "$KERNEL" ]; then
	copy_user_tree
else
	packaged_tree
fi
