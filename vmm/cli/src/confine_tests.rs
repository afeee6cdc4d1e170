//! The lists of files that configurations make, in force in a process of their own: this very test program, started
//! once more.

use super::*;
use crate::read;
use beamline_vmm::sandbox::{Landlock, landlock};
use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::process::Command;

/// Tells the child whose list it is to be confined to, and the folder.
const ROLE: &str = "BEAMLINE_CONFINE_ROLE";
const FOLDER: &str = "BEAMLINE_CONFINE_FOLDER";

const GUEST: &str = "[guest]\nname = \"one\"\nimage = \"image\"\ninitrd = \"initrd\"\n[memory]\nsize = \"32M\"\n\
    [[device]]\ntype = \"virtio-blk\"\npath = \"disk\"\nformat = \"raw\"\n\
    [[device]]\ntype = \"virtio-blk\"\npath = \"sealed\"\nformat = \"raw\"\nreadonly = true\n\
    [[device]]\ntype = \"virtio-console\"\noutput = \"console\"\n\
    [[port]]\nname = \"scratch\"\n[port.device]\ntype = \"virtio-blk\"\npath = \"later\"\nformat = \"raw\"\n\
    [api]\nsocket = \"api/socket\"\n";

const HOST: &str = "run_dir = \"run\"\n[gpu]\nbackend = \"model\"\n\
    [output]\nstamps = \"stamps\"\nimages = \"images\"\n\
    [[slice]]\nname = \"one\"\nwidth = 640\nheight = 480\nprofile = \"render\"\n\
    [slice.contract]\nrefresh_hz = \"60\"\nclass = \"elastic\"\nbudget_ms = 2.0\nmax_job_ms = 2.0\n";

/// Confines a child to the list of `role`, in a folder with files of every kind; it must get as far as its end.
fn is_held_to_its_list(test: &str, role: &str) {
    let Landlock::Version(_) = landlock() else {
        println!("skip: {test}: this kernel has no Landlock");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    for name in ["image", "initrd", "disk", "sealed", "later", "hidden"] {
        fs::write(folder.path().join(name), "text").unwrap();
    }
    fs::write(folder.path().join("guest.toml"), GUEST).unwrap();
    fs::write(folder.path().join("host.toml"), HOST).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["confine::tests::child", "--exact", "--ignored", "--nocapture"])
        .env(ROLE, role)
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let [said, errors] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success() && said.contains("held to its list"), "{said}{errors}");
}

#[test]
fn a_guests_file_names_all_that_its_vmm_reaches() {
    is_held_to_its_list("a_guests_file_names_all_that_its_vmm_reaches", "vmm");
}

#[test]
fn a_hosts_file_names_all_that_it_reaches() {
    is_held_to_its_list("a_hosts_file_names_all_that_it_reaches", "host");
}

fn refused<T: std::fmt::Debug>(what: &str, result: io::Result<T>) {
    let error = result.map(|made| format!("{made:?}")).expect_err(what);
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}");
}

#[test]
#[ignore = "started by other tests as a process of its own"]
fn child() {
    let (Ok(role), Ok(folder)) = (std::env::var(ROLE), std::env::var(FOLDER)) else {
        println!("skip: child: nobody started it with a role");
        return;
    };
    let folder = PathBuf::from(folder);
    let at = |name: &str| folder.join(name);
    let writes = |name: &str| fs::OpenOptions::new().write(true).open(at(name));
    match &*role {
        "vmm" => {
            let config = read::guest(&at("guest.toml")).unwrap();
            make_folder(&at("api"));
            vmm_set_up(&config).unwrap();
            for name in ["image", "initrd", "sealed"] {
                fs::read(at(name)).unwrap();
                refused(name, writes(name));
            }
            for name in ["disk", "later", "console"] {
                fs::read(at(name)).unwrap();
                writes(name).unwrap();
            }
            drop(UnixListener::bind(at("api/socket")).unwrap());
            fs::remove_file(at("api/socket")).unwrap();
            refused("a file beside the API's socket", fs::write(at("api/file"), "text"));
        }
        "host" => {
            let config = read::host(&at("host.toml")).unwrap();
            host_set_up(&config).unwrap();
            writes("stamps").unwrap();
            fs::write(at("images/one.png"), "text").unwrap();
            drop(UnixListener::bind(at("run/socket")).unwrap());
            fs::remove_file(at("run/socket")).unwrap();
            for name in ["image", "disk"] {
                refused(name, fs::read(at(name)));
            }
        }
        other => panic!("no role {other:?}"),
    }
    let own = if role == "vmm" { "guest.toml" } else { "host.toml" };
    refused("another file", fs::read(at("hidden")));
    refused("writing another file", writes("hidden"));
    refused("removing another file", fs::remove_file(at("hidden")));
    refused("a new file", fs::write(at("new"), "text"));
    refused("its own file of configuration", fs::read(at(own)));
    refused("the machine's users", fs::read("/etc/passwd"));
    refused("the folder", fs::read_dir(&folder));
    refused("a program", Command::new("/bin/true").status());
    if matches!(landlock(), Landlock::Version(4..)) {
        refused("TCP", TcpListener::bind("127.0.0.1:0"));
    }
    println!("held to its list");
}
