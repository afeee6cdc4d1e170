#!/bin/sh
# Compiles the workspace's own crates with coverage for libFuzzer; cargo calls it as RUSTC_WORKSPACE_WRAPPER.
# These are stable code generation flags, and dependencies stay as they are.
set -eu
exec "$@" -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
