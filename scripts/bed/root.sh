#!/bin/sh
# root.sh INTO: makes in INTO a Debian tree (root), a starter of its QEMU (qemu-system-x86_64), a kernel
# (vmlinuz) and what apt resolved (versions). Called by build.sh.
set -eu
into=$1
suite=trixie
root=$into/root

say() { printf 'bed: %s\n' "$*"; }
fail() {
    say "$*" >&2
    exit 1
}

# What this machine needs: package, then what it is for.
wanted='debootstrap making a Debian tree
debian-archive-keyring the signatures of Debian packages'

missing=$(printf '%s\n' "$wanted" | while read -r pkg _why; do
    dpkg-query -W -f '${db:Status-Abbrev}' "$pkg" 2>/dev/null | grep -q '^ii' || printf '%s ' "$pkg"
done)
export DEBIAN_FRONTEND=noninteractive
if [ -n "$missing" ]; then
    say "installing: $missing"
    # Word splitting of $missing is wanted.
    # shellcheck disable=SC2086
    if ! apt-get install -y -q --no-install-recommends $missing >/dev/null 2>&1; then
        apt-get update -q
        apt-get install -y -q --no-install-recommends $missing
    fi
fi

# The mirror that apt uses for Debian itself: by what its lists say, else the first one there is.
mirrors() {
    # These are apt's own names, not the shell's.
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null
}
mirror=${BEAMLINE_BED_MIRROR:-$(mirrors | sed -n 's/^Debian //p' | head -n 1)}
[ -n "$mirror" ] || {
    apt-get update -q
    mirror=$(mirrors | sed -n 's/^Debian //p' | head -n 1)
}
[ -n "$mirror" ] || fail "apt has no Debian mirror; mend: BEAMLINE_BED_MIRROR=http://... make bed"

# debootstrap fetches with wget, which knows nothing of apt's proxy.
apt_proxy=
eval "$(apt-config shell apt_proxy Acquire::http::Proxy)"
[ -z "$apt_proxy" ] || export http_proxy="$apt_proxy"

say "a Debian tree ($suite)"
debootstrap --variant=minbase $suite "$root" "$mirror" >"$into/log" 2>&1 || {
    tail -n 20 "$into/log" >&2
    fail "debootstrap failed"
}
apt-config dump | grep -i '^Acquire::[^ ]*proxy' >"$root/etc/apt/apt.conf.d/90bed" || true
cat >>"$root/etc/apt/apt.conf.d/90bed" <<END
Acquire::Languages "none";
APT::Install-Recommends "false";
END
for pocket in $suite $suite-updates $suite-backports; do
    printf 'deb %s %s main\n' "$mirror" "$pocket"
done >"$root/etc/apt/sources.list"
cp /etc/resolv.conf "$root/etc/resolv.conf"

within() {
    chroot "$root" env PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C "$@" >>"$into/log" 2>&1 || {
        tail -n 20 "$into/log" >&2
        fail "failed in the tree: $*"
    }
}

say "QEMU ($suite-backports)"
within apt-get update
# seabios: the firmware; kmod, cpio, busybox-static, xz-utils: the initramfs is put together with them.
within apt-get install -y -t $suite-backports qemu-system-x86
within apt-get install -y seabios kmod cpio busybox-static xz-utils
# evtest: says what a guest's input device does. qemu-img: makes images that are not of our own make.
within apt-get install -y evtest
within apt-get install -y -t $suite-backports qemu-utils
# ovmf: UEFI firmware; mtools: makes FAT file systems for it to boot from.
within apt-get install -y ovmf mtools
# passt: carries a guest's network.
within apt-get install -y passt
# swtpm: a TPM for a guest of Beamline's own VMM.
within apt-get install -y swtpm

say "a stock kernel ($suite)"
release=$(chroot "$root" apt-cache depends linux-image-amd64 |
    sed -n 's/^ *Depends: \(linux-image-[0-9].*-amd64\)$/\1/p' | head -n 1)
[ -n "$release" ] || fail "linux-image-amd64 depends on no kernel"
# Unpacked, not installed: nothing is to boot from this tree.
mkdir "$root/kernel"
within sh -c "cd /kernel && apt-get download $release && dpkg-deb -x ./*.deb . && rm ./*.deb"
cp "$root"/kernel/boot/vmlinuz-* "$into/vmlinuz"
within apt-get clean
rm -rf "${root:?}"/var/lib/apt/lists/*

# Runs the tree's QEMU with the tree's own libraries, from wherever the bed lies.
cat >"$into/qemu-system-x86_64" <<'END'
#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/root
libs=$root/usr/lib/x86_64-linux-gnu
QEMU_MODULE_DIR=$libs/qemu
export QEMU_MODULE_DIR
exec "$root/lib64/ld-linux-x86-64.so.2" --library-path "$libs" "$root/usr/bin/qemu-system-x86_64" \
    -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
END
chmod +x "$into/qemu-system-x86_64"
"$into/qemu-system-x86_64" -device help | grep -q '"vfio-user-pci"' ||
    fail "QEMU has no vfio-user-pci: 10.1 or newer is needed"

{
    # These are dpkg's own names, not the shell's.
    # shellcheck disable=SC2016
    chroot "$root" dpkg-query -W -f 'bed: ${Package} ${Version}\n' qemu-system-x86 seabios ovmf swtpm busybox-static
    printf 'bed: %s\n' "$release"
} >"$into/versions"
