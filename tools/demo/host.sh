#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# What `make run` does on the simulated machine: a TD lives its life, if TDX came up.

if [ "$(cat /sys/module/kvm_intel/parameters/tdx)" = Y ]; then
	exec /td-client run --vcpus 1
fi
echo "td: KVM offers no TDs"
