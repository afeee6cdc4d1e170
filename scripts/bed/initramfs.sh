#!/bin/sh
# Puts initramfs.gz together, in its own folder, from busybox, kernel modules and `init`. Runs inside the
# bed's Debian tree (build.sh). What a test adds comes behind it, in an archive of its own.
set -eu
cd "$(dirname "$0")"

modules=$(echo /kernel/usr/lib/modules/*)
release=${modules##*/}
to=tree/lib/modules/$release
mkdir -p tree/bin tree/dev tree/proc tree/sys tree/tmp "$to"
cp "$(command -v busybox)" tree/bin/busybox
cp init tree/init
chmod +x tree/init

# A module with all that it needs: lines of the form `insmod FILE`. What is built in needs nothing.
depmod -b /kernel/usr "$release"
grep -v '^#' modules | while read -r module _why; do
    modprobe -d /kernel/usr -S "$release" --show-depends "$module" || echo "missing $module"
done >needed
if grep '^missing' needed; then exit 1; fi
sed -n 's/^insmod \([^ ]*\).*/\1/p' needed | sort -u | while read -r file; do
    name=$(basename "${file%.xz}")
    case $file in
    *.xz) xz -dc "$file" >"$to/$name" ;;
    *) cp "$file" "$to/$name" ;;
    esac
done
for list in modules.builtin modules.builtin.modinfo modules.order; do
    cp "$modules/$list" "$to"
done
depmod -b tree "$release"

(cd tree && find . | cpio -o -H newc --quiet) >initramfs
gzip -1 <initramfs >initramfs.gz
