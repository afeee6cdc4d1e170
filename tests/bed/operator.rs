//! What an operator meets: Beamline's own VMM started by an ordinary user, whose disks he may only read, and what the
//! real processes have given up while a stock Linux kernel runs in them.

use crate::bed::Bed;
use crate::nested::{INIT, config, inner, outer, patiently, share, tried};
use crate::{turn, words};
use std::collections::HashMap;

/// What each thread of a process has given up, and which processes are its children.
const STATUS: &str = r#"
children() { awk -v of=$1 '/^Pid:/ { pid = $2 } /^PPid:/ && $2 == of { print pid }' /proc/[0-9]*/status 2>/dev/null; }
status() {
    for task in /proc/$2/task/*; do
        echo "status: of=$1 thread=$(tr ' ' _ <$task/comm)" $(awk \
            '/^(Seccomp|NoNewPrivs|Cap...|Uid):/ { print substr($1, 1, length($1) - 1) "=" $2 }' $task/status)
    done
}
"#;

/// Users and groups, and a user's folder with configurations.
const USERS: &str = r#"
mkdir -p /etc /run /home
printf 'root:x:0:0::/:/bin/sh\nplayer:x:1000:1000::/home/player:/bin/sh\n' >/etc/passwd
printf 'root:x:0:\nplayer:x:1000:\nkvm:x:104:player\n' >/etc/group
mkdir -p /home/player
cp /share/*.toml /home/player
chown -R player:player /home/player
chmod 1777 /tmp
as_player() { su -s /bin/sh player -c "cd; exec $*"; }
folder() { echo "folder: when=$1 has=$(cd /home/player; find . -type f -o -type s -o -type d | sort | tr '\n' ,)"; }
"#;

/// Disks that the user may only read: by the file's mode, and by the file system's.
const DISKS: &str = r#"
mkdir -p /images /sealed
mount -t tmpfs tmpfs /sealed
dd if=/dev/urandom of=/images/disk bs=64k count=16 2>/dev/null
dd if=/dev/urandom of=/sealed/disk bs=64k count=16 2>/dev/null
chown player /sealed/disk
mount -o remount,ro /sealed
hash() { sha256sum "$1" | cut -d ' ' -f 1; }
echo "disks: images=$(hash /images/disk) sealed=$(hash /sealed/disk)"
"#;

/// First nobody but root may open `/dev/kvm`, then the user's group may.
const PLAYER: &str = r#"
chmod 600 /dev/kvm
folder before
try denied as_player /share/beamline run run.toml
try denied-check as_player /share/beamline run run.toml --check
folder denied
chgrp kvm /dev/kvm
chmod 660 /dev/kvm
for disk in images sealed; do
    try $disk as_player /share/beamline run $disk.toml
    try $disk-check as_player /share/beamline run $disk.toml --check
done
folder refused
su -s /bin/sh player -c 'cd; exec /share/beamline run run.toml' >/tmp/player 2>&1 </dev/null &
player=$!
heard $player 'disks: ' /tmp/player
cat /tmp/player
status player $(pidof beamline)
try shown as_player /share/beamline guest show --api run/api.sock
try stopped as_player /share/beamline guest stop --api run/api.sock
wait $player
echo "ended: of=player status=$?"
folder ended
"#;

/// A host and a guest with its functions, one of them behind a port, as root: in the sandbox, then without. The guest
/// comes to its end where it has no sandbox; in it, others here do.
const ROOT: &str = r#"
status shell $$
for sandbox in "" --no-sandbox; do
    /share/beamline host /share/host.toml $sandbox >/tmp/host 2>&1 </dev/null &
    host=$!
    heard $host '"ready"' /tmp/host
    /share/beamline run /share/slice.toml --json $sandbox >/tmp/vmm 2>/tmp/console </dev/null &
    vmm=$!
    heard $vmm '"started"' /tmp/vmm
    status vmm$sandbox $vmm
    status host$sandbox $host
    for child in $(children $vmm); do
        # Nobody waits for it to be confined.
        try=0
        until [ -n "$sandbox" ] || grep -q '^Seccomp:.2' /proc/$child/status || [ $try -ge 50 ]; do
            sleep 0.2
            try=$((try + 1))
        done
        status connector$sandbox $child
    done
    [ -n "$sandbox" ] || kill -INT $vmm
    wait $vmm
    echo "ended: of=vmm$sandbox status=$?"
    kill -TERM $host
    wait $host
    echo "ended: of=host$sandbox status=$?"
    cat /tmp/console
    grep interrupts /tmp/vmm
done
echo "run: $(ls /run | tr '\n' ' ')"
"#;

/// The inner guest reads its disks and waits, or has none and ends.
const DISKS_OR_END: &str = r#"
modprobe virtio_pci
modprobe virtio_blk
if [ -e /dev/vda ]; then
    hash() { sha256sum $1 | cut -d ' ' -f 1; }
    echo "disks: images=$(hash /dev/vda) sealed=$(hash /dev/vdb) readonly=$(cat /sys/block/vda/ro)$(cat /sys/block/vdb/ro)"
    while true; do sleep 1000; done
fi
poweroff -f
"#;

const HOST: &str = "run_dir = \"/run\"\n[gpu]\nbackend = \"model\"\n\
    [[slice]]\nname = \"one\"\nwidth = 640\nheight = 480\nprofile = \"render\"\n\
    [slice.contract]\nrefresh_hz = \"60\"\nclass = \"elastic\"\nbudget_ms = 2.0\nmax_job_ms = 2.0\n";

/// A function that is there from the start, and one that may be plugged in.
const FUNCTIONS: &str = "[[device]]\ntype = \"vfio-user\"\nsocket = \"/run/one-gpu.sock\"\ntimeout_ms = 60000\n\
    [[port]]\nname = \"pacer\"\n[port.device]\ntype = \"vfio-user\"\nsocket = \"/run/one-pacer.sock\"\n";

/// `CAP_SYS_NICE` and `CAP_IPC_LOCK` (linux: include/uapi/linux/capability.h); with `CAP_DAC_OVERRIDE` and
/// `CAP_SETPCAP`; `CAP_DAC_OVERRIDE` alone.
const OF_VMM: &str = "0000000000804000";
const OF_HOST: &str = "0000000000804102";
const OF_CONNECTOR: &str = "0000000000000002";
const NONE: &str = "0000000000000000";

/// A guest's file, for a folder that is not the share.
fn file(more: &str) -> String {
    config("256M", more)
        .replace("\"vmlinuz\"", "\"/share/vmlinuz\"")
        .replace("\"initrd\"", "\"/share/initrd\"")
}

fn disk(path: &str, more: &str) -> String {
    format!("[[device]]\ntype = \"virtio-blk\"\npath = \"{path}\"\nformat = \"raw\"\n{more}")
}

/// The threads of a process, by their `status`.
fn threads<'a>(said: &'a [String], of: &str) -> Vec<HashMap<&'a str, &'a str>> {
    let all = outer(said, "status: ").into_iter().map(words);
    let threads: Vec<_> = all.filter(|thread| thread["of"] == of).collect();
    assert!(!threads.is_empty(), "nothing is said of {of}: {said:#?}");
    threads
}

/// That each thread of the process has these, and no more.
fn confined(said: &[String], of: &str, keeps: &str, bounding: &str) {
    for thread in threads(said, of) {
        assert_eq!((thread["Seccomp"], thread["NoNewPrivs"]), ("2", "1"), "{thread:?}");
        assert_eq!([thread["CapEff"], thread["CapPrm"]], [keeps, keeps], "{thread:?}");
        assert_eq!([thread["CapInh"], thread["CapAmb"]], [NONE, NONE], "{thread:?}");
        assert_eq!(thread["CapBnd"], bounding, "{thread:?}");
    }
}

#[test]
fn an_ordinary_user_is_told_and_each_process_is_confined() {
    let test = "an_ordinary_user_is_told_and_each_process_is_confined";
    let Some(bed) = Bed::ready(test) else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let readonly = "readonly = true\n";
    let both = disk("/images/disk", readonly) + &disk("/sealed/disk", readonly);
    let console = "[[device]]\ntype = \"virtio-console\"\noutput = \"console.txt\"\n";
    let api = "[api]\nsocket = \"run/api.sock\"\n";
    let files = [
        ("run.toml", file(&format!("{both}{console}{api}"))),
        ("images.toml", file(&disk("/images/disk", ""))),
        ("sealed.toml", file(&disk("/sealed/disk", ""))),
        ("slice.toml", file(FUNCTIONS)),
        ("host.toml", HOST.to_owned()),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, &**text)).collect();
    let init = format!("{INIT}{DISKS_OR_END}");
    share(&bed, &folder.path().join("share"), &init, &[], &files);
    let script = [STATUS, USERS, DISKS, PLAYER, ROOT].concat();
    let said = patiently(&bed, folder.path(), &script).finish();

    refused_in_words(&said);
    a_user_runs_a_guest(&said);

    // The shell's processes are root's, with all that there is.
    let all = threads(&said, "shell")[0]["CapEff"];
    assert_ne!(all, OF_HOST, "there is something to give up");
    confined(&said, "vmm", OF_VMM, OF_VMM);
    confined(&said, "host", OF_HOST, OF_HOST);
    confined(&said, "connector", OF_CONNECTOR, OF_CONNECTOR);
    for process in ["vmm", "host", "connector"] {
        for thread in threads(&said, &format!("{process}--no-sandbox")) {
            assert_eq!((thread["Seccomp"], thread["NoNewPrivs"]), ("0", "0"), "{thread:?}");
            assert_eq!([thread["CapEff"], thread["CapBnd"]], [all, all], "{thread:?}");
        }
    }
    let ended: Vec<_> = outer(&said, "ended: ");
    let all_ended = ["player", "vmm", "host", "vmm--no-sandbox", "host--no-sandbox"];
    assert_eq!(ended, all_ended.map(|of| format!("of={of} status=0")), "{said:#?}");
    // The user's guest came to user space, and the one without a sandbox.
    assert_eq!(inner(&said, "up: ").len(), 2, "{said:#?}");
    assert_eq!(outer(&said, "run: "), [""], "sockets have stayed");
    interrupts(&said);
}

/// What cannot be opened is named, with what would mend it, and nothing is left of the try.
fn refused_in_words(said: &[String]) {
    for name in ["denied", "denied-check"] {
        let denied = tried(said, name, "2");
        assert!(denied.contains("/dev/kvm") && denied.contains("group kvm"), "{denied}");
    }
    for name in ["images", "sealed"] {
        for how in ["", "-check"] {
            let refused = tried(said, &format!("{name}{how}"), "2");
            let named = refused.contains(&format!("/{name}/disk"));
            assert!(named && refused.contains("readonly = true"), "{refused}");
        }
    }
    let folders: Vec<_> = outer(said, "folder: ").into_iter().map(words).collect();
    assert_eq!(folders.len(), 4);
    for folder in &folders[1..3] {
        assert_eq!(folder["has"], folders[0]["has"], "{folder:?}");
    }
    // The guest's API had its folder; its socket is gone.
    assert!(!folders[3]["has"].contains("sock"), "{folders:?}");
}

/// Without root, from disks that may only be read.
fn a_user_runs_a_guest(said: &[String]) {
    let disks = words(outer(said, "disks: ")[0]);
    let seen = inner(said, "disks: ");
    let seen = words(seen.first().unwrap_or_else(|| panic!("no disks: {said:#?}")));
    assert_eq!((seen["images"], seen["sealed"]), (disks["images"], disks["sealed"]));
    assert_eq!(seen["readonly"], "11");
    assert!(tried(said, "shown", "0").contains("running"));
    tried(said, "stopped", "0");
    // No capability is his; what programs could get at most is not his to change, and nothing gives him any.
    let all = threads(said, "shell")[0]["CapBnd"];
    confined(said, "player", NONE, all);
    assert!(threads(said, "player").iter().all(|thread| thread["Uid"] == "1000"));
}

/// The guests' end says how their interrupts came on this machine, which is `kvm_amd` in software.
fn interrupts(said: &[String]) {
    let events: Vec<serde_json::Value> = said
        .iter()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|event: &serde_json::Value| event["event"] == "interrupts")
        .collect();
    assert_eq!(events.len(), 2, "{said:#?}");
    for event in &events {
        assert_eq!(event["label"], "measured", "{event}");
        let devices = event["devices"].as_array().unwrap();
        assert!(!devices.is_empty(), "{event}");
        for device in devices {
            assert_eq!(device["mode"], "injected with an exit", "{event}");
            assert!(device["found"].as_str().is_some_and(|found| !found.is_empty()), "{event}");
        }
    }
    // KVM's own: a guest that has booted was left often, and had vectors put in.
    for counter in ["exits", "irq_injections", "halt_exits"] {
        let counted = events[1]["all"]["counters"][counter].as_u64();
        assert!(counted > Some(0), "{counter}: {}", events[1]);
    }
}
