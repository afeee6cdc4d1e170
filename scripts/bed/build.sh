#!/bin/sh
# Builds the software testbed: QEMU, a stock Debian kernel and a small initramfs, all from Debian packages.
#
# What is built already is left alone. Each part is made under another name and renamed when it is whole,
# so that an interrupted run leaves nothing that looks finished.
#
#   BEAMLINE_BED         where the bed is (default: bed/ in the target folder)
#   BEAMLINE_BED_MIRROR  the Debian mirror (default: the one that this machine's apt uses)
set -eu
cd "$(dirname "$0")/../.."
bed=${BEAMLINE_BED:-${CARGO_TARGET_DIR:-target}/bed}
here=scripts/bed

say() { printf 'bed: %s\n' "$*"; }
fail() {
    say "$*" >&2
    exit 1
}

# A part is current while the scripts that made it have not changed since.
key_of() { cat "$@" | cksum; }
current() { [ -f "$bed/$1.key" ] && [ "$(cat "$bed/$1.key")" = "$2" ]; }

root_key=$(key_of $here/root.sh)
initramfs_key=$(key_of $here/root.sh $here/initramfs.sh $here/modules $here/init)

if current root "$root_key" && current initramfs "$initramfs_key"; then
    say "$bed is built"
    cat "$bed/versions"
    exit 0
fi

[ "$(id -u)" -eq 0 ] || fail "this needs root (debootstrap makes a system tree); mend: sudo make bed"
mkdir -p "$bed"
bed=$(cd "$bed" && pwd)

# One build at a time. The lock is also its children's: it goes when the last of them has ended.
exec 9>"$bed/lock"
flock -n 9 || fail "another build of $bed is under way"

# debootstrap mounts /proc and /sys in the tree that it makes; nothing is removed while they are there.
sweep() {
    awk -v under="$bed/part/" 'index($2, under) == 1 { print $2 }' /proc/mounts | sort -r |
        while read -r mounted; do umount "$mounted"; done
    rm -rf --one-file-system "$bed/part"
}
end() {
    trap - EXIT INT TERM HUP
    sweep
    exit "$1"
}
sweep
trap 'end $?' EXIT
trap 'end 130' INT
trap 'end 143' TERM HUP
mkdir "$bed/part"

# Renames what was made to its name, and says that it is whole only after that.
keep() {
    rm -rf --one-file-system "${bed:?}/$1"
    mv "$bed/part/$1" "$bed/$1"
}

if ! current root "$root_key"; then
    rm -f "$bed/root.key" "$bed/initramfs.key"
    $here/root.sh "$bed/part"
    keep root
    keep qemu-system-x86_64
    keep vmlinuz
    keep versions
    printf '%s\n' "$root_key" >"$bed/root.key"
fi
rm -f "$bed/initramfs.key"
say "the initramfs"
work=$bed/root/work
rm -rf --one-file-system "$work"
mkdir "$work"
cp $here/initramfs.sh $here/modules $here/init "$work"
chroot "$bed/root" env PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C sh /work/initramfs.sh
mv "$work/initramfs.gz" "$bed/part"
rm -rf --one-file-system "$work"
keep initramfs.gz
printf '%s\n' "$initramfs_key" >"$bed/initramfs.key"
say "$bed is built"
cat "$bed/versions"
