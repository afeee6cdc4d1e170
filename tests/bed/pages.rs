//! Where a guest's memory comes from and goes to: a pool of huge pages, huge pages of the kernel's own making, and a
//! balloon that a stock Linux kernel blows up.

use crate::bed::Bed;
use crate::nested::{INIT, config, inner, outer, patiently, share, tried};
use crate::{turn, words};
use std::collections::HashMap;

/// Pages of the outer guest's pool, and of the guest.
const POOL: u64 = 80;
const TAKEN: u64 = 64;
/// KiB of a MiB.
const MIB: u64 = 1 << 10;
/// MiB that the inner guest fills, and that the balloon takes.
const FILLED: u64 = 96;
const BALLOON: u64 = 128;

/// The pool, before, while and after a guest has it; what the kernel makes of a guest's pages where it is asked for
/// huge ones, and where it is not.
fn huge() -> String {
    format!(
        r#"
free() {{ awk '/HugePages_Free/ {{ print $2 }}' /proc/meminfo; }}
pool() {{ echo "pool: when=$1 free=$(free)"; }}
begin() {{
    /share/beamline run /share/$1.toml --json >/tmp/events 2>/tmp/console </dev/null &
    vmm=$!
    heard $vmm '"started"' /tmp/events
}}
echo {POOL} >/proc/sys/vm/nr_hugepages
pool before
begin huge
pool killing
kill -9 $vmm
wait $vmm 2>/dev/null
pool killed
begin huge
pool running
wait $vmm
echo "ended: of=huge status=$?"
cat /tmp/console
pool ended
echo $(({TAKEN} - 1)) >/proc/sys/vm/nr_hugepages
try few /share/beamline run /share/huge.toml
echo 0 >/proc/sys/vm/nr_hugepages
shared=/sys/kernel/mm/transparent_hugepage/shmem_enabled
echo never >$shared
try forbidden /share/beamline run /share/transparent.toml
echo advise >$shared
for kind in transparent plain; do
    begin $kind
    echo "mapped: kind=$kind kib=$(awk '/^(ShmemPmdMapped|FilePmdMapped):/ {{ n += $2 }} END {{ print n }}' /proc/$vmm/smaps)"
    kill -INT $vmm
    wait $vmm
    echo "ended: of=$kind status=$?"
done
"#
    )
}

/// What the inner guest does: it ends, or, with a disk, uses memory at each line that is typed.
fn init() -> String {
    format!(
        r#"{INIT}
modprobe virtio_pci
modprobe virtio_blk
[ -e /dev/vda ] || poweroff -f
modprobe virtio_balloon
memory() {{ echo "$1: $(awk '/^(MemTotal|MemAvailable):/ {{ print substr($1, 1, length($1) - 1) "=" $2 }}' /proc/meminfo | tr '\n' ' ')"; }}
memory ready
read -r word
dd if=/dev/zero of=/fill bs=1M count={FILLED} 2>/dev/null
memory filled
read -r word
rm /fill
memory freed
read -r word
# Clean pages that the kernel can do without. Nobody has them any more once the disk is closed.
exec 3</dev/vda
cat <&3 >/dev/null
memory cached
read -r word
memory inflated
read -r word
memory deflated
read -r word
"#
    )
}

/// What the outer guest does with the balloon: after each step of the guest it says what the VMM has in memory.
fn balloon() -> String {
    format!(
        r#"
truncate -s {BALLOON}M /tmp/disk
/share/beamline run /share/balloon.toml --api /tmp/api/socket >/tmp/guest 2>&1 </dev/null &
vmm=$!
guest() {{ /share/beamline guest --api /tmp/api/socket "$@" </dev/null; }}
rss() {{ awk '/VmRSS/ {{ print $2 }}' /proc/$vmm/status; }}
next() {{ guest type --serial --enter on >/dev/null; }}
step() {{ heard $vmm " $1: " /tmp/guest; echo "rss: when=$1 kib=$(rss)"; }}
# Waits a while for the VMM to have less than this.
below() {{
    try=0
    while [ $(rss) -gt $1 ] && [ $try -lt 100 ]; do sleep 0.3; try=$((try + 1)); done
}}
asked() {{
    guest balloon $1 >/dev/null
    try=0
    until guest balloon | grep -q "gave $2 MiB" || [ $try -ge 100 ]; do sleep 0.3; try=$((try + 1)); done
    echo "balloon: $(guest balloon)"
}}
step ready
next
step filled
most=$(rss)
next
step freed
below $((most - {FILLED} * {MIB} * 3 / 4))
echo "rss: when=reported kib=$(rss)"
next
step cached
asked {BALLOON}M {BALLOON}
next
step inflated
asked 0 0
next
step deflated
guest stats | sed 's/^/stats: /'
guest stop >/dev/null
wait $vmm
echo "ended: of=balloon status=$?"
cat /tmp/guest
"#
    )
}

/// A guest's file whose memory is `size`, with more keys.
fn file(size: &str, keys: &str, more: &str) -> String {
    config(size, more).replacen("\n[vcpus]", &format!("\n{keys}[vcpus]"), 1)
}

#[test]
fn huge_pages_and_a_balloon_give_back_what_they_take() {
    let test = "huge_pages_and_a_balloon_give_back_what_they_take";
    let Some(bed) = Bed::ready(test) else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let size = format!("{}M", 2 * TAKEN);
    let disk = "[[device]]\ntype = \"virtio-blk\"\npath = \"/tmp/disk\"\nformat = \"raw\"\nreadonly = true\n";
    let files = [
        ("huge.toml", file(&size, "hugepages = \"2M\"\nprefault = true\n", "")),
        ("transparent.toml", file(&size, "hugepages = \"transparent\"\nprefault = true\n", "")),
        ("plain.toml", file(&size, "prefault = true\n", "")),
        (
            "balloon.toml",
            file("256M", "", &format!("{disk}[[device]]\ntype = \"virtio-balloon\"\n")),
        ),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, &**text)).collect();
    share(&bed, &folder.path().join("share"), &init(), &[], &files);
    let script = huge() + &balloon();
    let said = patiently(&bed, folder.path(), &script).finish();

    let ended = ["huge", "transparent", "plain", "balloon"].map(|of| format!("of={of} status=0"));
    assert_eq!(outer(&said, "ended: "), ended, "{said:#?}");
    pools(&said);
    balloons(&said);
}

/// The pool has less while a guest lives, and all of it after, however that one ended.
fn pools(said: &[String]) {
    let pool: Vec<_> = outer(said, "pool: ").into_iter().map(words).collect();
    let free: Vec<(&str, u64)> = pool.iter().map(|w| (w["when"], number(w, "free"))).collect();
    let rest = POOL - TAKEN;
    let expected = [("before", POOL), ("killing", rest), ("killed", POOL), ("running", rest)];
    assert_eq!(free[..4], expected);
    assert_eq!(free[4..], [("ended", POOL)]);
    assert_eq!(inner(said, "up: ").len(), 2, "a guest came up in huge pages: {said:#?}");
    let few = tried(said, "few", "2");
    assert!(
        few.contains("nr_hugepages") && few.contains(&format!("{} are free", TAKEN - 1)),
        "{few}"
    );
    let forbidden = tried(said, "forbidden", "2");
    assert!(forbidden.contains("shmem_enabled"), "{forbidden}");

    let mapped: Vec<_> = outer(said, "mapped: ").into_iter().map(words).collect();
    let kib: Vec<(&str, u64)> = mapped.iter().map(|w| (w["kind"], number(w, "kib"))).collect();
    println!("  huge pages mapped, KiB: {kib:?}");
    // All of the guest's memory, but what the kernel found no huge page for.
    assert!(kib[0].0 == "transparent" && kib[0].1 > TAKEN * 2 * MIB / 2, "{kib:?}");
    assert_eq!(kib[1], ("plain", 0));
}

fn number(words: &HashMap<&str, &str>, key: &str) -> u64 {
    words[key].parse().unwrap()
}

/// The guest has less while its balloon is blown up; the VMM has less then, and where the guest frees memory by itself.
fn balloons(said: &[String]) {
    let rss: HashMap<_, _> = outer(said, "rss: ")
        .into_iter()
        .map(words)
        .map(|line| (line["when"].to_owned(), number(&line, "kib")))
        .collect();
    let available = |when: &str| {
        let lines = inner(said, &format!("{when}: "));
        number(
            &words(lines.first().unwrap_or_else(|| panic!("not {when}: {said:#?}"))),
            "MemAvailable",
        )
    };
    println!("  the VMM's memory, KiB: {rss:?}");
    // What it filled came from the host, but for pages that its boot had used; freed, it went back by itself.
    assert!(rss["filled"] > rss["ready"] + FILLED * MIB / 4, "{rss:?}");
    assert!(rss["reported"] < rss["filled"] - FILLED * MIB / 2, "{rss:?}");
    // What its cache had went back by the balloon, and the guest has that much less.
    assert!(rss["inflated"] < rss["cached"] - BALLOON * MIB / 2, "{rss:?}");
    assert!(available("inflated") < available("cached") - BALLOON * MIB * 3 / 4, "{said:#?}");
    assert!(available("deflated") > available("inflated") + BALLOON * MIB * 3 / 4, "{said:#?}");
    let asked = |gave: u64| format!("asked for {gave} MiB, gave {gave} MiB");
    assert_eq!(outer(said, "balloon: "), [asked(BALLOON), asked(0)]);
}
