//! Devices that are plugged in and out by command, in the sandbox, with a host that serves one of them.

use super::*;

const PORTS: &str = "[[port]]\nname = \"disk\"\n\
    device = { type = \"virtio-blk\", path = \"disk.img\", format = \"raw\" }\n\
    [[port]]\nname = \"pacer\"\nplugged = false\n\
    device = { type = \"vfio-user\", socket = \"host/vr-pacer.sock\" }\n";
const HOST: &str = "run_dir = \"host\"\n[gpu]\nbackend = \"model\"\n[[slice]]\nname = \"vr\"\nwidth = 512\n\
    height = 288\n[slice.contract]\nrefresh_hz = \"90\"\nclass = \"elastic\"\nbudget_ms = 2.0\nmax_job_ms = 2.0\n";

fn state(folder: &Path, device: usize) -> Value {
    asked(&["show"], folder)["devices"][device]["state"].clone()
}

fn refused(arguments: &[&str], word: &str, folder: &Path) {
    let (code, text) = failure(&[&["guest", "--api", SOCKET], arguments].concat(), folder);
    assert!(code == Some(2) && text.contains(word), "{arguments:?}: {text}");
}

/// The process that makes connections for the one with this number.
fn connector(of: u32) -> u32 {
    let children = std::fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap();
    children.trim().parse().expect("one child")
}

fn command_line(process: u32) -> Vec<u8> {
    // Nothing is there, or nothing is in it, where it has ended.
    std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default()
}

#[test]
fn ports_take_devices_and_give_them_back() {
    if !kvm_or_skip("ports_take_devices_and_give_them_back") {
        return;
    }
    let folder = folder_with(&format!("{GUEST}{PORTS}"));
    let folder = folder.path();
    std::fs::write(folder.join("disk.img"), vec![0; 1 << 20]).unwrap();
    std::fs::write(folder.join("host.toml"), HOST).unwrap();
    let guest = Running::start(&[], folder);
    let devices = asked(&["show"], folder)["devices"].clone();
    assert_eq!((&devices[0]["pci"], &devices[0]["port"]), (&"01:00.0".into(), &"disk".into()));
    assert_eq!((&devices[1]["pci"], &devices[1]["port"]), (&"02:00.0".into(), &"pacer".into()));
    assert_eq!((&devices[0]["state"], &devices[1]["state"]), (&"plugged".into(), &"empty".into()));
    let connector = connector(guest.child.id());
    assert!(String::from_utf8(command_line(connector)).unwrap().contains("connector"));
    // It starts beside the guest, and is confined before it looks at a request: see below.
    refused(&["plug", "pacer"], "beamline host", folder);
    assert!(statuses(connector).iter().all(|t| t.contains("Seccomp:\t2\n")));

    let host = Running::host(folder);
    let plugged = json!({ "port": "pacer", "state": "plugged" });
    let empty = json!({ "port": "pacer", "state": "empty" });
    // Twice: the slice is free again in between. Nobody in this guest looks at its ports.
    for force in [&[][..], &["--force"]] {
        assert_eq!(asked(&["plug", "pacer"], folder), plugged);
        refused(&["plug", "pacer"], "unplug it first", folder);
        assert_eq!(asked(&[&["unplug", "pacer"], force].concat(), folder), empty);
        refused(&["unplug", "pacer"], "plug it first", folder);
    }
    // What is there from the start the guest is asked for, and this one does not answer.
    let asks = json!({ "port": "disk", "state": "asked" });
    assert_eq!(asked(&["unplug", "disk"], folder), asks);
    assert_eq!(asked(&["unplug", "disk"], folder), asks);
    assert_eq!(state(folder, 0), "asked");
    assert_eq!(asked(&["unplug", "disk", "--force"], folder)["state"], "empty");
    assert_eq!(asked(&["plug", "disk"], folder)["state"], "plugged");
    refused(&["plug", "none"], "use one of disk, pacer", folder);
    refused(&["plug", "../disk"], "lower-case", folder);
    for (method, path, body, status) in [
        ("POST", "/v1/guest/ports/disk/unplug", "{\"forced\":true}", 422),
        ("POST", "/v1/guest/ports/disk/unplug", "{", 400),
        ("GET", "/v1/guest/ports/disk/plug", "", 405),
        ("POST", "/v1/guest/ports/disk/eject", "", 404),
        ("POST", "/v1/guest/ports//plug", "", 404),
        ("POST", "/v1/guest/ports/disk", "", 404),
    ] {
        assert_eq!(send(folder, method, path, body).0, status, "{method} {path} {body}");
    }
    assert_eq!(state(folder, 0), "plugged");
    asked(&["stop"], folder);
    let (code, events, _) = guest.ends();
    assert_eq!(code, Some(0));
    let of = |port: &str| -> Vec<Value> {
        events.iter().filter(|e| e["port"] == port).map(|e| e["event"].clone()).collect()
    };
    assert_eq!(of("pacer"), ["plugged", "unplugged", "plugged", "unplugged"]);
    let mut disk = of("disk");
    disk.retain(|event| event != "unplug-asked");
    assert_eq!((disk, of("disk").len()), (vec!["unplugged".into(), "plugged".into()], 4));
    while !command_line(connector).is_empty() {
        std::thread::yield_now();
    }
    drop(host);
}

#[test]
fn a_check_tells_of_ports() {
    let twice = "[[device]]\ntype = \"virtio-blk\"\npath = \"link.img\"\n";
    let folder = folder_with(&format!("{GUEST}{twice}{PORTS}"));
    let folder = folder.path();
    std::fs::write(folder.join("disk.img"), [0; 4096]).unwrap();
    std::os::unix::fs::symlink("disk.img", folder.join("link.img")).unwrap();
    let out = output(&["run", "guest.toml", "--check", "--json"], folder);
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((out.status.code(), &report["ok"]), (Some(2), &false.into()));
    let place = |list: &str, word: &str| {
        let all = report[list].as_array().unwrap();
        let said = all.iter().find(|f| f["what"].as_str().unwrap().contains(word));
        said.unwrap_or_else(|| panic!("{word}: {report}"))["where"].clone()
    };
    assert_eq!(place("errors", "device[0]"), "port[0].device.path");
    assert_eq!(place("warnings", "beamline host"), "port[1].device.socket");
    assert_eq!(report["devices"][1]["state"], "plugged");
    assert_eq!(report["devices"][2]["pci"], "02:00.0");
}
