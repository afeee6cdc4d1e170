//! A disk whose host has no room left: a stock Linux kernel on Beamline's own VMM writes until it is told of an error,
//! finds what it wrote before, and goes on when there is room again.

use crate::bed::Bed;
use crate::nested::{INIT, config, inner, outer, patiently, share};
use crate::{turn, words};
use std::path::Path;

/// Bytes of a write, and how many the disk's file system has room for at most: fewer than are written.
const PIECE: usize = 64 << 10;
const PIECES: usize = 96;
const ROOM_MIB: usize = 4;

/// What the inner guest does: its disks have more sectors than their host has room.
fn init() -> String {
    format!(
        r#"{INIT}
modprobe virtio_pci
modprobe virtio_blk
# It would speak in between.
dmesg -n 1
dd if=/dev/urandom of=/from bs={PIECE} count={PIECES} 2>/dev/null
# One piece: on the disk when this has ended without an error.
write() {{ dd if=/from of=$1 bs={PIECE} skip=$2 seek=$2 count=1 conv=notrunc,fsync 2>/tmp/error; }}
hash() {{ dd if=$1 bs={PIECE} count=$2 2>/dev/null | sha256sum | cut -d ' ' -f 1; }}
for disk in vda vdb; do
    n=0
    while [ $n -lt {PIECES} ] && write /dev/$disk $n; do n=$((n + 1)); done
    echo "error: disk=$disk $(cat /tmp/error)"
    echo 3 >/proc/sys/vm/drop_caches
    echo "full: disk=$disk pieces=$n from=$(hash /from $n) disk=$(hash /dev/$disk $n)"
    until write /dev/$disk $n; do sleep 0.5; done
    echo "on: disk=$disk at=$n"
    while [ $n -lt {PIECES} ] && write /dev/$disk $n; do n=$((n + 1)); done
    echo 3 >/proc/sys/vm/drop_caches
    echo "all: disk=$disk pieces=$n from=$(hash /from $n) disk=$(hash /dev/$disk $n)"
done
poweroff -f
"#
    )
}

/// What the outer guest does: it has a small file system for each disk, and makes room when the guest has said how far
/// it came.
fn script() -> String {
    format!(
        r#"
for disk in vda vdb; do
    mkdir -p /small/$disk
    mount -t tmpfs -o size={ROOM_MIB}M tmpfs /small/$disk
done
truncate -s 32M /small/vda/disk
cp /share/disk.qcow2 /small/vdb/disk
/share/beamline run /share/full.toml >/tmp/guest 2>&1 </dev/null &
vmm=$!
for disk in vda vdb; do
    heard $vmm "full: disk=$disk" /tmp/guest
    n=$(sed -n "s/.*full: disk=$disk pieces=\([0-9]*\).*/\1/p" /tmp/guest)
    echo "host: disk=$disk free=$(df /small/$disk | awk 'END {{ print $4 }}')" \
        "holds=$(dd if=/small/$disk/disk bs={PIECE} count=$n 2>/dev/null | sha256sum | cut -d ' ' -f 1)"
    mount -o remount,size=64M /small/$disk
done
wait $vmm
echo "ended: status=$?"
cat /tmp/guest
"#
    )
}

/// An empty image with more sectors than there is room.
fn image(bed: &Bed, at: &Path) {
    let mut make = bed.debian_program("usr/bin/qemu-img");
    let status = make.args(["create", "-q", "-f", "qcow2"]).arg(at).arg("32M").status().unwrap();
    assert!(status.success(), "qemu-img");
}

#[test]
fn a_disk_without_room_keeps_what_it_has_and_goes_on_with_more() {
    let test = "a_disk_without_room_keeps_what_it_has_and_goes_on_with_more";
    let Some(bed) = Bed::ready(test) else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("share");
    let disk = |name: &str, format: &str| {
        format!(
            "[[device]]\ntype = \"virtio-blk\"\npath = \"/small/{name}/disk\"\nformat = \"{format}\"\n"
        )
    };
    let config = config("256M", &(disk("vda", "raw") + &disk("vdb", "qcow2")));
    share(&bed, &shared, &init(), &[], &[("full.toml", &config)]);
    image(&bed, &shared.join("disk.qcow2"));
    let said = patiently(&bed, folder.path(), &script()).finish();

    let errors = inner(&said, "error: ");
    assert!(errors.iter().all(|error| error.contains("Input/output error")), "{errors:#?}");
    let line = |start: &str, disk: &str| {
        let lines = inner(&said, start);
        let own = format!("disk={disk} ");
        let line = lines.iter().find_map(|line| line.strip_prefix(&*own));
        words(line.unwrap_or_else(|| panic!("nothing of {disk}: {said:#?}")))
    };
    let hosts: Vec<_> = outer(&said, "host: ").into_iter().map(words).collect();
    for (number, name) in ["vda", "vdb"].into_iter().enumerate() {
        let full = line("full: ", name);
        let pieces: usize = full["pieces"].parse().unwrap();
        assert!(pieces > 0 && pieces * PIECE <= ROOM_MIB << 20, "{full:?}");
        assert_eq!(full["from"], full["disk"], "what was written before is there");
        assert_eq!(line("on: ", name)["at"], full["pieces"], "the guest goes on where it was");
        let all = line("all: ", name);
        assert_eq!((all["pieces"], all["from"]), (&*PIECES.to_string(), all["disk"]));
        // The VMM has said what failed, once, and what its operator can do.
        let start = format!("inner/{number}: the host's disk failed a request");
        let warnings: Vec<_> = said.iter().filter(|line| line.contains(&start)).collect();
        assert_eq!(warnings.len(), 1, "{said:#?}");
        let told = |what: &str| warnings[0].contains(what);
        assert!(told("No space left") && told("make room where its image is"), "{warnings:?}");
    }
    // A raw image has the guest's bytes where the guest wrote them.
    assert_eq!(hosts[0]["holds"], line("full: ", "vda")["from"]);
    assert!(said.iter().any(|line| line == "ended: status=0"), "{said:#?}");
}
