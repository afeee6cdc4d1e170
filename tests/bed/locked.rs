//! A disk that another VMM has: QEMU locks its images in a way of its own, and a guest of ours must not write them.

use crate::bed::Bed;
use crate::process::Process;
use std::path::Path;
use std::process::Command;

/// What `beamline run --check` says of a guest with the disk.
fn check(bed: &Bed, folder: &Path, words: &str) -> String {
    let config = format!(
        "[guest]\nname = \"one\"\nimage = \"{}\"\n[memory]\nsize = \"64M\"\n\
         [[device]]\ntype = \"virtio-blk\"\npath = \"disk.img\"\nformat = \"raw\"\n{words}",
        bed.kernel.canonicalize().unwrap().display()
    );
    std::fs::write(folder.join("one.toml"), config).unwrap();
    let mut command = Command::new(&bed.beamline);
    let said = command.args(["run", "--check", "one.toml"]).current_dir(folder).output().unwrap();
    let text = [said.stdout, said.stderr].concat();
    String::from_utf8(text).unwrap()
}

#[test]
fn a_disk_that_qemu_has_is_refused() {
    let Some(bed) = Bed::ready("a_disk_that_qemu_has_is_refused") else { return };
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.img");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let in_use = |words| check(&bed, folder.path(), words).contains("disk.img: is in use");
    for (qemu, beamline, expected) in [
        ("off", "", true),
        ("off", "readonly = true\n", true),
        ("on", "", true),
        ("on", "readonly = true\n", false),
    ] {
        let mut command = Command::new(&bed.qemu);
        command
            .args(["-S", "-nodefaults", "-display", "none", "-run-with", "exit-with-parent=on"])
            .args(["-qmp", "stdio", "-drive"])
            .arg(format!("file={},format=raw,if=none,id=d,readonly={qemu}", disk.display()))
            .args(["-device", "virtio-blk-pci,drive=d"]);
        let mut process = Process::start("qemu", &mut command, false);
        process.until("{\"QMP\"");
        // It greets before its device has the disk, and answers only after.
        process.say("{\"execute\": \"qmp_capabilities\"}");
        process.until("{\"return\"");
        assert_eq!(in_use(beamline), expected, "QEMU: readonly={qemu}, Beamline: {beamline:?}");
    }
    // Nobody has it.
    assert!(!in_use(""));
}
