//! Debian's UEFI firmware (OVMF) on Beamline's own VMM: its shell, its variables, and a stock Linux kernel that
//! it boots from a disk.

use crate::bed::Bed;
use crate::guest::{COUNTED_TIME, Guest, Hardware, Iommu, Machine, REAL_TIME};
use crate::nested::{CPUS, INIT, INNER, OUTER, hardware, inner, put, share};
use crate::{turn, words};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The disk: bytes, and where its EFI system partition starts.
const DISK: u64 = 96 << 20;
const PARTITION: u64 = 1 << 20;
const SECTOR: u64 = 512;

/// The guest's configuration. Its disk and its variables are of its own.
pub(crate) const CONFIG: &str = "[guest]\nname = \"inner\"\nfirmware = \"/share/OVMF_CODE_4M.fd\"\n\
    variables = \"/tmp/vars.fd\"\n[memory]\nsize = \"512M\"\n[vcpus]\ncount = 2\n\
    [[device]]\ntype = \"virtio-blk\"\npath = \"/tmp/disk.img\"\nformat = \"raw\"\n";

/// A variable of nobody else's; its value as the shell takes it, and its bytes as the shell shows them.
const VARIABLE: &str = "Beamline -guid 5ca1ab1e-0001-4002-8003-beefbeefbeef";
const VALUE: &str = "0x0123456789ABCDEF";
const BYTES: &str = "EF CD AB 89 67 45 23 01";

/// What has the shell start Linux from that disk.
pub(crate) const LINUX: &str = "@echo -off\r\nfs0:\r\n\
    vmlinuz initrd=\\initrd console=ttyS0 panic=-1 quiet rdinit=/inner\r\n";

/// Firmware, variables and a disk with `startup`, which the firmware's shell runs, and `files`, in what the outer
/// guest sees.
pub(crate) fn prepare(bed: &Bed, folder: &Path, startup: &str, files: &[&str]) {
    let shared = folder.join("share");
    for name in ["OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"] {
        put(&bed.debian(&format!("usr/share/OVMF/{name}")), &shared.join(name));
    }
    let script = folder.join("startup.nsh");
    std::fs::write(&script, startup).unwrap();
    let image = shared.join("disk.img");
    let disk = std::fs::File::create(&image).unwrap();
    disk.set_len(DISK).unwrap();
    // A master boot record with one partition of type 0xef (UEFI 2.10, section 5.2.2).
    let mut record = [0; SECTOR as usize];
    let words = [PARTITION / SECTOR, (DISK - PARTITION) / SECTOR].map(|n| (n as u32).to_le_bytes());
    record[446..454].copy_from_slice(&[0, 0xff, 0xff, 0xff, 0xef, 0xff, 0xff, 0xff]);
    record[454..462].copy_from_slice(&words.concat());
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    disk.write_all_at(&record, 0).unwrap();
    let partition = format!("{}@@{PARTITION}", image.display());
    let mtools = |arguments: &[&str]| {
        let mut command = bed.debian_program("usr/bin/mtools");
        let status = command.arg("-c").args(arguments).status().unwrap();
        assert!(status.success(), "mtools {arguments:?}: {status}");
    };
    let sectors = ((DISK - PARTITION) / SECTOR).to_string();
    mtools(&["mformat", "-i", &partition, "-F", "-T", &sectors, "::"]);
    let mut copied = vec![script];
    copied.extend(files.iter().map(|name| shared.join(name)));
    for file in copied {
        let file = file.display().to_string();
        mtools(&["mcopy", "-i", &partition, &file, "::"]);
    }
}

/// What QEMU's model of SVM ends QEMU with where a guest's guest writes CR8, as OVMF does at the end of each
/// interrupt, while another interrupt waits: ticks that pile up because the machine is busy.
const QEMU_FAILS: &str = "cpu_interrupt: assertion failed";
/// How often that may happen.
const TRIES: usize = 8;

/// Starts `script` in the outer guest.
fn start(bed: &Bed, folder: &Path, engine: &[&str], script: &str) -> Guest {
    let script = format!(
        "{OUTER}\ncp /share/disk.img /tmp/disk.img\ncp /share/OVMF_VARS_4M.fd /tmp/vars.fd\n{script}"
    );
    let shared = folder.join("share");
    let hardware = Hardware { engine, ..hardware(&shared) };
    let words = "mitigations=off";
    let machine =
        Machine { script: &script, programs: &[], devices: vec![], iommu: Iommu::None, words };
    Guest::start_on(bed, folder, &machine, &hardware)
}

/// Runs `script` there by counted time, in which ticks do not pile up; everything that both guests have said.
fn run_counted(bed: &Bed, folder: &Path, script: &str) -> Vec<String> {
    start(bed, folder, &COUNTED_TIME, script).finish()
}

/// The same in real time, again where QEMU failed as it does.
pub(crate) fn run(bed: &Bed, folder: &Path, script: &str) -> Vec<String> {
    for n in 1..=TRIES {
        let guest = start(bed, folder, &REAL_TIME, script);
        if let Some(said) = guest.finish_unless(QEMU_FAILS) {
            return said;
        }
        println!("run {n}: {QEMU_FAILS}: again");
    }
    panic!("QEMU failed {TRIES} times: the machine is too busy")
}

#[test]
fn firmware_reaches_its_shell_and_keeps_its_variables() {
    let Some(bed) = Bed::ready("firmware_reaches_its_shell_and_keeps_its_variables") else {
        return;
    };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    share(&bed, &folder.path().join("share"), "", &[], &[("efi.toml", CONFIG)]);
    let startup = format!(
        "echo before-it-is-set\r\nsetvar {VARIABLE}\r\necho setting-it\r\n\
         setvar {VARIABLE} -nv -bs -rt ={VALUE}\r\nreset -s\r\n"
    );
    prepare(&bed, folder.path(), &startup, &[]);
    let said = run_counted(
        &bed,
        folder.path(),
        "for n in 1 2; do\n\
             beamline run /share/efi.toml\n\
             echo ended: run=$n status=$?\n\
         done\n\
         cmp -s /share/OVMF_VARS_4M.fd /tmp/vars.fd || echo written: yes\n",
    );
    let ends: Vec<usize> = (0..said.len()).filter(|i| said[*i].starts_with("ended: ")).collect();
    assert_eq!(ends.len(), 2, "{said:#?}");
    let runs = [&said[..ends[0]], &said[ends[0] + 1..ends[1]]];
    for (run, end) in runs.iter().zip(&ends) {
        let shell = |line: &String| line.starts_with(INNER) && line.contains("Shell>");
        assert!(run.iter().any(shell), "the firmware's shell is reached: {said:#?}");
        // The shell switched the guest off.
        assert_eq!(words(&said[*end])["status"], "0");
    }
    // What the shell shows of the variable before it is set anew.
    let shown = |run: &[String]| {
        let from = run.iter().position(|l| l.contains("before-it-is-set"));
        let before: Vec<&String> = run[from.expect("the shell runs the script")..]
            .iter()
            .take_while(|line| !line.contains("setting-it"))
            .collect();
        before.iter().any(|line| line.contains(BYTES))
    };
    assert!(!shown(runs[0]), "{said:#?}");
    assert!(shown(runs[1]), "{said:#?}");
    assert!(said.iter().any(|line| line == "written: yes"));
}

#[test]
fn firmware_boots_a_stock_kernel_from_a_disk() {
    let Some(bed) = Bed::ready("firmware_boots_a_stock_kernel_from_a_disk") else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let init = format!(
        "{INIT}\
         echo \"efi: bits=$(cat /sys/firmware/efi/fw_platform_size)\"\n\
         echo \"tables: $(ls /sys/firmware/acpi/tables | tr '\\n' ' ')\"\n\
         modprobe virtio_blk\n\
         echo \"disk: sectors=$(cat /sys/block/vda/size)\"\n\
         poweroff -f\n"
    );
    share(&bed, &folder.path().join("share"), &init, &[], &[("efi.toml", CONFIG)]);
    prepare(&bed, folder.path(), LINUX, &["vmlinuz", "initrd"]);
    let said = run(&bed, folder.path(), "beamline run /share/efi.toml\necho ended: status=$?\n");
    let up = inner(&said, "up: ");
    let up = words(up.first().expect("the inner guest's user space says that it is up"));
    assert_eq!(up["cpus"], CPUS.to_string());
    assert_eq!(inner(&said, "efi: "), ["bits=64"]);
    let tables = inner(&said, "tables: ");
    let tables: Vec<&str> = tables.first().expect("it is said").split_whitespace().collect();
    for table in ["APIC", "DSDT", "FACP", "FACS", "MCFG"] {
        assert!(tables.contains(&table), "{table} is missing: {tables:?}");
    }
    // Configuration space as memory: else a function has 256 bytes.
    let functions: Vec<_> = inner(&said, "pci: ").into_iter().map(words).collect();
    let at = |at: &str| functions.iter().find(|f| f["at"] == at).expect("it is on the bus");
    assert_eq!((at("0000:00:00.0")["device"], at("0000:00:00.0")["bytes"]), ("0x29c0", "4096"));
    assert_eq!(at("0000:00:01.0")["device"], "0x1042");
    assert_eq!(at("0000:00:1f.0")["device"], "0x2918");
    assert_eq!(inner(&said, "disk: "), [format!("sectors={}", DISK / SECTOR)]);
    // ACPI's S5 ended it.
    assert!(said.iter().any(|line| line == "ended: status=0"), "{said:#?}");
}
