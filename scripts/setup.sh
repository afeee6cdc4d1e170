#!/bin/sh
# Installs what is missing on Debian (as root), or says what is missing. Changes nothing when all is there.
set -eu

say() { printf 'setup: %s\n' "$*"; }
bad=0

# Each line: package, then what it is for.
wanted='gcc linking Rust programs
libc6-dev linking Rust programs
libvulkan1 the Vulkan loader
mesa-vulkan-drivers a Vulkan software GPU, where there is no other
swtpm the TPM of the tests'

installed() { dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null | grep -q '^ii'; }

if ! command -v dpkg-query >/dev/null 2>&1; then
    say "not a Debian system: make sure that a C linker (cc), the Vulkan loader and a Vulkan driver are installed"
else
    missing=$(printf '%s\n' "$wanted" | while read -r pkg _why; do
        installed "$pkg" || printf '%s ' "$pkg"
    done)
    if [ -n "$missing" ]; then
        if [ "$(id -u)" -eq 0 ]; then
            say "installing: $missing"
            export DEBIAN_FRONTEND=noninteractive
            # Word splitting of $missing is wanted.
            # shellcheck disable=SC2086
            if ! apt-get install -y -q --no-install-recommends $missing >/dev/null 2>&1; then
                # A fresh system has no package lists yet.
                apt-get update -q
                apt-get install -y -q --no-install-recommends $missing
            fi
        else
            say "missing packages, and not root:"
            printf '%s\n' "$wanted" | while read -r pkg why; do
                installed "$pkg" || say "  $pkg ($why)"
            done
            say "mend: sudo apt-get install --no-install-recommends $missing"
            bad=1
        fi
    fi
fi

if ! command -v cargo >/dev/null 2>&1 || ! command -v rustc >/dev/null 2>&1; then
    say "no cargo or rustc on PATH; mend: install the Rust toolchain (https://rustup.rs), 1.95 or newer"
    bad=1
else
    have=$(rustc --version | sed -n 's/^rustc \([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
    major=${have% *} minor=${have#* }
    if [ "${major:-0}" -lt 1 ] || { [ "$major" -eq 1 ] && [ "$minor" -lt 95 ]; }; then
        say "$(rustc --version) is too old; mend: rustup update stable (1.95 or newer)"
        bad=1
    fi
fi

if [ ! -e /dev/kvm ]; then
    say "note: no /dev/kvm, so no virtual machine runs here: the demo takes processes ('beamline doctor' says how to mend it)"
elif [ ! -r /dev/kvm ] || [ ! -w /dev/kvm ]; then
    say "note: no permission on /dev/kvm, so no virtual machine runs here: the demo takes processes ('beamline doctor' says how to mend it)"
fi
exit "$bad"
