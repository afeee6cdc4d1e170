//! A Linux guest in QEMU, on a processor in software.

use crate::archive::Initramfs;
use crate::bed::Bed;
use crate::process::{PATIENCE, Process};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

/// Said by the guest's first process.
const UP: &str = "bed: up ";
/// Said by it when `/test.sh` has ended, with its status.
const END: &str = "bed: end ";

/// What QEMU complains of.
const QEMU_LOG: &str = "qemu.log";
/// The kernel's console.
const CONSOLE_LOG: &str = "console.log";

/// Time passes as it does for everyone.
pub(crate) const REAL_TIME: [&str; 2] = ["-accel", "tcg,thread=multi"];
/// Time passes by the instructions that were executed, whatever the machine's own CPUs do meanwhile. Two CPUs of a
/// guest's guest that wait for each other's interrupts may wait forever then.
pub(crate) const COUNTED_TIME: [&str; 6] =
    ["-accel", "tcg,thread=single", "-icount", "shift=3,sleep=off", "-rtc", "clock=vm"];

/// An IOMMU, without which nothing can be driven from user space.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Iommu {
    None,
    /// VT-d, with interrupt remapping.
    Intel,
    /// virtio 1.3, section 5.13: the device that needs no emulated hardware, and remaps no interrupts.
    Virtio,
}

/// What a guest is made of.
pub(crate) struct Machine<'a> {
    /// What it does, in the shell's language.
    pub(crate) script: &'a str,
    /// Programs beside the script.
    pub(crate) programs: &'a [&'a str],
    /// Devices of QEMU.
    pub(crate) devices: Vec<String>,
    pub(crate) iommu: Iommu,
    /// Further words on the kernel's command line.
    pub(crate) words: &'a str,
}

/// What a machine has that its guest's script does not choose.
pub(crate) struct Hardware<'a> {
    /// A processor of QEMU's.
    pub(crate) cpu: &'a str,
    /// As QEMU takes it.
    pub(crate) memory: &'a str,
    /// A folder that the guest sees as the 9p file system `share`, and cannot write.
    pub(crate) share: Option<&'a Path>,
    /// How QEMU runs it: `-accel` and what belongs to that.
    pub(crate) engine: &'a [&'a str],
    /// Further arguments of QEMU, before those of its devices.
    pub(crate) arguments: Vec<String>,
    /// How long it may take in all.
    pub(crate) patience: Duration,
}

impl Default for Hardware<'_> {
    fn default() -> Self {
        Self {
            cpu: "max",
            memory: "512M",
            share: None,
            engine: &REAL_TIME,
            arguments: vec![],
            patience: PATIENCE,
        }
    }
}

/// A guest that runs.
pub(crate) struct Guest {
    process: Process,
    folder: PathBuf,
}

impl Guest {
    /// Starts a guest whose files are in `folder`, and waits until it is up.
    pub(crate) fn boot(bed: &Bed, folder: &Path, machine: &Machine<'_>) -> Self {
        let mut guest = Self::start(bed, folder, machine);
        guest.until(UP);
        guest
    }

    /// Starts a guest whose files are in `folder`.
    pub(crate) fn start(bed: &Bed, folder: &Path, machine: &Machine<'_>) -> Self {
        Self::start_on(bed, folder, machine, &Hardware::default())
    }

    /// Starts a guest whose files are in `folder`.
    pub(crate) fn start_on(
        bed: &Bed,
        folder: &Path,
        machine: &Machine<'_>,
        hardware: &Hardware<'_>,
    ) -> Self {
        let mut initramfs =
            Initramfs::on(&bed.initramfs).file("test.sh", machine.script.as_bytes());
        for name in machine.programs {
            initramfs = initramfs.file(name, &bed.program(name));
        }
        let initrd = folder.join("initramfs");
        std::fs::write(&initrd, initramfs.finish()).unwrap();

        let mut words = format!("console=ttyS0 panic=-1 quiet {}", machine.words);
        let mut command = Command::new(&bed.qemu);
        command
            .args(hardware.engine)
            .args(["-cpu", hardware.cpu, "-smp", "1"])
            // The functions' servers map the guest's memory, so it is a file that can be shared.
            .arg("-object")
            .arg(format!("memory-backend-memfd,id=memory,size={},share=on", hardware.memory))
            .args(["-m", hardware.memory])
            .args(["-M", "q35,memory-backend=memory,kernel-irqchip=split"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            // It dies with this process, also where that is killed.
            .args(["-run-with", "exit-with-parent=on"])
            .arg("-serial")
            .arg(format!("file:{}", folder.join(CONSOLE_LOG).display()))
            .args(["-serial", "stdio"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", qmp(folder).display()))
            .arg("-kernel")
            .arg(&bed.kernel)
            .arg("-initrd")
            .arg(&initrd);
        match machine.iommu {
            Iommu::None => {}
            Iommu::Intel => {
                command.args(["-device", "intel-iommu,intremap=on,caching-mode=on,aw-bits=48"]);
                words.push_str(" intel_iommu=on");
            }
            Iommu::Virtio => {
                command.args(["-device", "virtio-iommu-pci,bus=pcie.0,addr=6"]);
                // VFIO refuses a device whose interrupts nobody remaps, unless it is told not to.
                words.push_str(" vfio_iommu_type1.allow_unsafe_interrupts=1");
            }
        }
        if let Some(share) = hardware.share {
            let folder = share.display();
            command
                .arg("-fsdev")
                .arg(format!(
                    "local,id=share,path={folder},security_model=none,readonly=on,multidevs=remap"
                ))
                .args(["-device", "virtio-9p-pci,fsdev=share,mount_tag=share"]);
        }
        command.args(&hardware.arguments);
        for device in &machine.devices {
            command.args(["-device", device]);
        }
        command.args(["-append", &words]);
        // It warns of what it lacks at every start.
        command.stderr(File::create(folder.join(QEMU_LOG)).unwrap());
        let logs = [QEMU_LOG, CONSOLE_LOG].map(|log| folder.join(log));
        let process = Process::start("guest", &mut command, true);
        let process = process.showing(logs.into()).patient(hardware.patience);
        Self { process, folder: folder.into() }
    }

    /// The next line that starts with `start`.
    pub(crate) fn until(&mut self, start: &str) -> String {
        self.process.until(start)
    }

    /// As [`Self::until`]; `None`: QEMU has ended by `fault`, a mistake of its own that it names.
    ///
    /// # Panics
    /// Where it has ended otherwise, too.
    pub(crate) fn until_unless(&mut self, start: &str, fault: &str) -> Option<String> {
        let line = self.process.until_end(start);
        if line.is_none() && !self.process.logs().contains(fault) {
            self.process.fail(&format!("ended before {start:?}"));
        }
        line
    }

    /// Says a line, for the script's `read`.
    pub(crate) fn say(&mut self, line: &str) {
        self.process.say(line);
    }

    /// Everything that it has said so far.
    pub(crate) fn said(&self) -> &[String] {
        self.process.said()
    }

    /// QEMU's control socket.
    pub(crate) fn qmp(&self) -> PathBuf {
        qmp(&self.folder)
    }

    /// Waits until the guest has switched off; everything that it said.
    ///
    /// # Panics
    /// Where its script failed, with the kernel's console.
    pub(crate) fn finish(mut self) -> Vec<String> {
        let (status, said) = self.process.finish();
        self.judge(status, said)
    }

    /// As [`Self::finish`]; `None`: QEMU has ended by `fault`, a mistake of its own that it names.
    ///
    /// # Panics
    /// Where it has ended otherwise, too.
    pub(crate) fn finish_unless(mut self, fault: &str) -> Option<Vec<String>> {
        let (status, said) = self.process.finish();
        let faulted = !status.success() && self.process.logs().contains(fault);
        (!faulted).then(|| self.judge(status, said))
    }

    fn judge(&self, status: ExitStatus, said: Vec<String>) -> Vec<String> {
        let logs = self.process.logs();
        assert!(status.success(), "QEMU ended with {status}{logs}");
        let end = said.iter().rev().find_map(|line| line.strip_prefix(END));
        assert_eq!(end, Some("0"), "the guest's script failed{logs}");
        said
    }
}

fn qmp(folder: &Path) -> PathBuf {
    folder.join("qmp.sock")
}
