#!/bin/sh
# Formatting, clippy with warnings as errors, and the dependency policy.
set -eu
cd "$(dirname "$0")/.."
CARGO=${CARGO:-cargo}

if "$CARGO" fmt --version >/dev/null 2>&1; then
    "$CARGO" fmt --all -- --check
else
    echo "lint: formatting not checked: no rustfmt (mend: rustup component add rustfmt)"
fi
if "$CARGO" clippy --version >/dev/null 2>&1; then
    "$CARGO" clippy --locked --workspace --all-targets -- -D warnings
else
    echo "lint: clippy not run: not installed (mend: rustup component add clippy)"
fi
if "$CARGO" deny --version >/dev/null 2>&1; then
    "$CARGO" deny --locked check
else
    echo "lint: dependency policy (deny.toml) not checked: cargo-deny is not installed (mend: cargo install cargo-deny)"
fi
