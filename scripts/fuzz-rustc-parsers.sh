#!/bin/sh
# Compiles crates of others that read a hostile file or peer with coverage, as fuzz-rustc.sh does with the workspace's
# own; cargo calls it as RUSTC_WRAPPER, for every crate.
set -eu
previous=
for argument in "$@"; do
    if [ "$previous" = --crate-name ]; then
        case $argument in
        imago | linux_loader | toml | toml_parser | vhost | vm_superio) exec "$(dirname "$0")/fuzz-rustc.sh" "$@" ;;
        esac
        break
    fi
    previous=$argument
done
exec "$@"
