//! A stock Linux kernel on Beamline's own VMM.

use crate::bed::Bed;
use crate::nested::{CPUS, INIT, OUTER, config, inner, run, share, start};
use crate::{turn, words};
use beamline_abi::pacer;
use std::collections::BTreeSet;
use std::io::Read;

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}

/// How often each CPU had the interrupt whose line has all of `names`.
fn counts(said: &[String], names: &[&str]) -> Vec<u64> {
    let lines = inner(said, "interrupt: ");
    let line = lines.iter().find(|line| names.iter().all(|name| line.contains(name)));
    let line = line.unwrap_or_else(|| panic!("no interrupt has {names:?}: {lines:#?}"));
    line.split_whitespace().skip(1).take(CPUS).map(|n| n.parse().unwrap()).collect()
}

#[test]
fn a_stock_kernel_boots_on_two_cpus_and_switches_off() {
    let Some(bed) = Bed::ready("a_stock_kernel_boots_on_two_cpus_and_switches_off") else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    // More RAM than there is room below the PCI window; pages that nobody touches cost nothing.
    let init = format!("{INIT}poweroff -f\n");
    share(&bed, &folder.path().join("share"), &init, &[], &[("linux.toml", &config("4G", ""))]);
    let said = run(
        &bed,
        folder.path(),
        "echo before: clock=$(date +%s)\n\
         beamline run /share/linux.toml\n\
         echo ended: status=$?\n\
         echo after: clock=$(date +%s)\n",
    );

    let up = inner(&said, "up: ");
    let up = words(up.first().expect("the inner guest's user space says that it is up"));
    assert_eq!(up["cpus"], "2");
    let memory: u64 = up["memory"].parse().unwrap();
    assert!(memory > 3 << 20, "RAM above 4 GiB is missing: {memory} KiB");
    let ids: BTreeSet<&str> = inner(&said, "cpu: ").iter().map(|l| words(l)["apicid"]).collect();
    assert_eq!(ids, ["0", "1"].into());

    // Both CPUs run, and wake each other; the serial port and power management have their interrupts.
    let timers = counts(&said, &["LOC:"]);
    assert!(timers.iter().all(|n| *n > 0), "{timers:?}");
    assert!(counts(&said, &["RES:"]).iter().sum::<u64>() > 0);
    assert!(counts(&said, &["IO-APIC", "4-edge", "ttyS0"]).iter().sum::<u64>() > 0);
    counts(&said, &["IO-APIC", "9-fasteoi", "acpi"]);

    // The clock was right: it is the outer guest's.
    let outer = |start: &str| {
        let line = said.iter().find(|line| line.starts_with(start)).expect("it is said");
        words(line)["clock"].parse::<u64>().unwrap()
    };
    let clock = up["clock"].parse().unwrap();
    // Each is cut to whole seconds.
    assert!((outer("before: ") - 1..=outer("after: ") + 1).contains(&clock), "{clock}");

    // The host bridge, by the window for configuration space: else it has 256 bytes.
    let bridge = inner(&said, "pci: ");
    let bridge = words(bridge.first().expect("the bus has a host bridge"));
    assert_eq!((bridge["at"], bridge["bytes"]), ("0000:00:00.0", "4096"));
    assert_eq!(hex(bridge["vendor"]), u64::from(pacer::VENDOR_ID));

    // ACPI's S5 ended it.
    assert!(said.iter().any(|line| line == "ended: status=0"), "{:?}", said.last());
}

/// The ELF image in a bzImage (linux: Documentation/arch/x86/boot.rst, `payload_offset`), which Debian packs
/// with zstd.
fn vmlinux(bzimage: &[u8]) -> Vec<u8> {
    let word = |at: usize| u32::from_le_bytes(bzimage[at..at + 4].try_into().unwrap()) as usize;
    let sectors = usize::from(bzimage[0x1f1]);
    let payload = (sectors + 1) * 512 + word(0x248);
    // Its last 4 bytes are the unpacked size.
    let packed = &bzimage[payload..payload + word(0x24c) - 4];
    let mut elf = Vec::new();
    let mut unpacker = ruzstd::decoding::StreamingDecoder::new(packed).unwrap();
    unpacker.read_to_end(&mut elf).unwrap();
    elf
}

#[test]
fn a_stock_kernel_boots_by_the_pvh_protocol() {
    let Some(bed) = Bed::ready("a_stock_kernel_boots_by_the_pvh_protocol") else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let config = config("256M", "").replace("vmlinuz", "vmlinux");
    let init = format!("{INIT}poweroff -f\n");
    share(&bed, &folder.path().join("share"), &init, &[], &[("linux.toml", &config)]);
    let elf = vmlinux(&std::fs::read(&bed.kernel).unwrap());
    std::fs::write(folder.path().join("share/vmlinux"), elf).unwrap();
    let said = run(&bed, folder.path(), "beamline run /share/linux.toml\necho ended: status=$?\n");
    let up = inner(&said, "up: ");
    let up = words(up.first().expect("the inner guest's user space says that it is up"));
    assert_eq!(up["cpus"], "2");
    counts(&said, &["IO-APIC", "9-fasteoi", "acpi"]);
    assert!(said.iter().any(|line| line == "ended: status=0"), "{said:#?}");
}

#[test]
fn a_guest_is_typed_to_and_boots_again_after_its_reset() {
    let test = "a_guest_is_typed_to_and_boots_again_after_its_reset";
    let Some(bed) = Bed::ready(test) else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let init = "#!/bin/busybox sh\n\
        /bin/busybox echo up\n\
        read -r word\n\
        /bin/busybox echo typed: $word\n\
        [ $word = again ] && /bin/busybox reboot -f\n\
        /bin/busybox poweroff -f\n";
    let config = config("128M", "").replace("[memory]", "on_reset = \"reboot\"\n[memory]");
    share(&bed, &folder.path().join("share"), init, &[], &[("linux.toml", &config)]);
    // The outer guest's terminal is the inner one's console: there are no lines with its name then.
    let script = format!(
        "{OUTER}/share/beamline run /share/linux.toml\n\
         echo ended: status=$?\n"
    );
    let mut guest = start(&bed, folder.path(), &script);
    for word in ["again", "enough"] {
        guest.until("up");
        guest.say(word);
        guest.until(&format!("typed: {word}"));
    }
    let said = guest.finish();
    assert!(said.iter().any(|line| line == "ended: status=0"), "{said:#?}");
}

#[test]
fn a_slices_functions_work_behind_our_own_vmm() {
    let Some(bed) = Bed::ready("a_slices_functions_work_behind_our_own_vmm") else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let host = "run_dir = \"/run\"\n[gpu]\nbackend = \"model\"\n\
        [[slice]]\nname = \"one\"\nwidth = 640\nheight = 480\nprofile = \"display\"\n\
        [slice.contract]\nrefresh_hz = \"60\"\nclass = \"elastic\"\n\
        budget_ms = 2.0\nmax_job_ms = 2.0\n";
    let devices = ["pacer", "gpu"].map(|function| {
        format!(
            "[[device]]\ntype = \"vfio-user\"\nsocket = \"/run/one-{function}.sock\"\n\
             timeout_ms = 60000\n"
        )
    });
    let init = format!(
        "{INIT}modprobe virtio_gpu\n\
         echo driver: name=$(basename $(readlink /sys/bus/pci/devices/0000:00:02.0/virtio*/driver))\n\
         echo card: status=$(cat /sys/class/drm/card0-Virtual-1/status) \
         mode=$(head -n 1 /sys/class/drm/card0-Virtual-1/modes)\n\
         sed 's/^/after: /' /proc/interrupts\n\
         poweroff -f\n"
    );
    let files = [("host.toml", host), ("linux.toml", &config("256M", &devices.concat()))];
    share(&bed, &folder.path().join("share"), &init, &[], &files);
    let said = run(
        &bed,
        folder.path(),
        "mkdir -p /run\n\
         beamline host /share/host.toml &\n\
         beamline run /share/linux.toml\n\
         echo ended: status=$?\n\
         killall beamline\n\
         wait\n",
    );

    let function = |at: &str| {
        let all: Vec<_> = inner(&said, "pci: ").into_iter().map(words).collect();
        let found = all.iter().find(|w| w["at"] == at).expect("the function is on the bus");
        (hex(found["vendor"]), hex(found["device"]))
    };
    let ids = (u64::from(pacer::VENDOR_ID), u64::from(pacer::DEVICE_ID));
    assert_eq!(function("0000:00:01.0"), ids);
    // virtio 1.3, section 4.1.2: device 0x1040 and the device type, 16 for a GPU.
    assert_eq!(function("0000:00:02.0"), (0x1af4, 0x1050));
    assert_eq!(inner(&said, "driver: "), ["name=virtio_gpu"]);
    assert_eq!(inner(&said, "card: "), ["status=connected mode=640x480"]);
    // The driver asked by a doorbell and had its answers by the function's interrupt.
    let lines = inner(&said, "after: ");
    let control = lines.iter().find(|l| l.contains("PCI-MSIX") && l.contains("virtio0-control"));
    let control = control.unwrap_or_else(|| panic!("no interrupt of the vGPU: {lines:#?}"));
    let counts = control.split_whitespace().skip(1).take(CPUS);
    assert!(counts.map(|n| n.parse::<u64>().unwrap()).sum::<u64>() > 0, "{control}");
    assert!(said.iter().any(|line| line == "ended: status=0"), "{said:#?}");
}
