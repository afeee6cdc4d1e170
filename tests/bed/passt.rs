//! A network card that passt carries: a stock Linux kernel on Beamline's own VMM gets its address from passt, and files
//! go both ways, without a tap.

use crate::bed::Bed;
use crate::nested::{INIT, config, inner, put, run, share};
use crate::{turn, words};

/// Bytes of a file that goes over the network: pieces of 64 KiB.
const PIECES: usize = 24;

/// The outer guest has an interface that leads nowhere, for passt to look at. passt answers for the gateway: what is
/// sent there comes to the outer guest's own loopback.
///
/// passt takes its root directory away (`pivot_root`), which a kernel refuses for the initramfs, and makes a user
/// namespace, which it refuses under `chroot`. So passt has a file system that is the root of a mount namespace.
fn outer() -> String {
    format!(
        r#"for module in tun virtio_net; do modprobe $module || exit; done
hash() {{ sha256sum "$1" | cut -d ' ' -f 1; }}
mkdir -p /tmp/web /jail
dd if=/dev/urandom of=/tmp/web/outer bs=64k count={PIECES} 2>/dev/null
ip link set lo up
tunctl -t ext0 >/dev/null
ip addr add 10.8.0.1/24 dev ext0
ip link set ext0 up
ip route add default via 10.8.0.254
httpd -p 127.0.0.1:80 -h /tmp/web

mount -t tmpfs jail /jail
mkdir -p /jail/lib64 /jail/usr/bin /jail/lib/x86_64-linux-gnu /jail/proc /jail/dev /jail/tmp /jail/run
chmod 1777 /jail/tmp /jail/run
cp /share/passt /jail/usr/bin
cp /share/passt-libs/ld-linux-x86-64.so.2 /jail/lib64
cp /share/passt-libs/libc.so.6 /jail/lib/x86_64-linux-gnu
mount -t proc proc /jail/proc
mount -t devtmpfs dev /jail/dev
unshare -m sh -c 'cd /jail && mount -o move . / && exec chroot . /usr/bin/passt --foreground --vhost-user \
    --interface ext0 --runas 65534:65534 --socket /run/net.sock --tcp-ports 8080:80' &
passt=$!
until [ -e /jail/run/net.sock ]; do kill -0 $passt || exit 1; sleep 0.2; done

beamline run /share/net.toml &
vmm=$!
runs() {{ kill -0 $vmm 2>/dev/null || exit 1; sleep 0.2; }}
until wget -q -O /tmp/inner http://127.0.0.1:8080/inner 2>/dev/null; do runs; done
echo "outer: web=$(hash /tmp/web/outer) fetched=$(hash /tmp/inner)"
touch /tmp/web/end
wait $vmm
echo "ended: status=$?"
"#
    )
}

/// The inner guest asks for its address as any does.
fn init() -> String {
    format!(
        r#"{INIT}
hash() {{ sha256sum "$1" | cut -d ' ' -f 1; }}
modprobe virtio_net
mkdir -p /tmp/web
dd if=/dev/urandom of=/tmp/web/inner bs=64k count={PIECES} 2>/dev/null
net=$(basename /sys/class/net/e*)
ip link set lo up
ip link set $net up
cat >/tmp/bound <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface
ip route add default via $router
echo "bound: ip=$ip mask=$mask router=$router"
END
chmod +x /tmp/bound
udhcpc -i $net -q -n -t 20 -T 1 -s /tmp/bound
httpd -p 80 -h /tmp/web
until wget -q -O /tmp/outer http://10.8.0.254/outer 2>/dev/null; do sleep 0.2; done
echo "net: web=$(hash /tmp/web/inner) fetched=$(hash /tmp/outer) driver=$(basename $(readlink /sys/class/net/$net/device/driver))"
until wget -q -O /tmp/end http://10.8.0.254/end 2>/dev/null; do sleep 0.2; done
poweroff -f
"#
    )
}

#[test]
fn passt_carries_a_guests_network() {
    let Some(bed) = Bed::ready("passt_carries_a_guests_network") else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("share");
    let card = "[[device]]\ntype = \"virtio-net\"\nvhost_user = \"/jail/run/net.sock\"\n";
    share(&bed, &shared, &init(), &[], &[("net.toml", &config("256M", card))]);
    put(&bed.debian("usr/bin/passt"), &shared.join("passt"));
    let libraries = shared.join("passt-libs");
    std::fs::create_dir(&libraries).unwrap();
    for library in ["lib64/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu/libc.so.6"] {
        let from = bed.debian(library);
        put(&from, &libraries.join(from.file_name().expect("a file has a name")));
    }
    let said = run(&bed, folder.path(), &outer());

    let bound = inner(&said, "bound: ");
    let bound = words(bound.first().expect("passt answers the guest's DHCP client"));
    assert_eq!((bound["ip"], bound["router"]), ("10.8.0.1", "10.8.0.254"));
    let net = inner(&said, "net: ");
    let net = words(net.first().expect("the inner guest says what it fetched"));
    let outer = said.iter().find_map(|line| line.strip_prefix("outer: "));
    let outer = words(outer.expect("the outer guest says what it fetched"));
    assert_eq!(net["fetched"], outer["web"]);
    assert_eq!(outer["fetched"], net["web"]);
    assert_eq!(net["driver"], "virtio_net");
    assert!(said.iter().any(|line| line == "ended: status=0"), "{said:#?}");
}
