//! `beamline run-process`: the guest of a file as a process of the host, for machines without a usable KVM.
//!
//! The same driver draws the same scene as in the freestanding image, over the same functions; only what is around it
//! differs. What of the file belongs to a virtual machine alone is refused, or means nothing here: the image, of which
//! the command line is taken, and the memory.

use crate::confine;
use crate::device;
use crate::events::{Costs, DeviceDelivery, GuestEvent, InterruptsEvent};
use crate::failure::{refused, refused_by};
use crate::output;
use crate::read;
use crate::signals::Stop;
use anyhow::Context;
use beamline_guest_driver::guest;
use beamline_guest_driver::pci::MsiTarget;
use beamline_guest_driver::scene::{Params, Stats, Targets};
use beamline_guest_process::Port;
use beamline_vmm::config::{Boot, Device, VfioUserDevice};
use beamline_vmm::passthrough::connect::{ConnectError, connect};
use beamline_vmm::{Config, turn};
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Instant;

/// What `beamline run-process` is asked to do.
#[derive(clap::Args)]
pub(crate) struct RunProcess {
    /// The guest's configuration, as `beamline run` reads it
    guest: PathBuf,
    /// Keep all files, system calls and privileges within reach, to look for what the sandbox stops
    #[arg(long)]
    no_sandbox: bool,
}

/// The guest's lines, with its name before each.
struct Lines<'a> {
    guest: &'a str,
    line: String,
}

impl fmt::Write for Lines<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive('\n') {
            self.line += part.trim_end_matches('\n');
            if part.ends_with('\n') {
                output::line(&format!("{}: {}", self.guest, self.line));
                self.line.clear();
            }
        }
        Ok(())
    }
}

/// Draws until the guest's frames are done, its host ends, or a signal comes.
pub(crate) fn run(options: &RunProcess) -> anyhow::Result<()> {
    let stop = Stop::install()?;
    let path = &options.guest;
    let config = read::guest(path)?;
    let (params, functions) =
        parts(&config).map_err(|why| refused(format!("{}: {why}", path.display())))?;
    let name = &config.guest.name;
    output::error(&format!("beamline: {name}: a process of the host, no virtual machine"));
    if !options.no_sandbox {
        confine::guest_set_up()?;
    }
    turn::check(&config.vcpus).map_err(|e| refused(format!("{}: {e}", path.display())))?;
    turn::place(&config.vcpus, 0).with_context(|| path.display().to_string())?;
    let clients = functions
        .iter()
        .map(|function| connect(&function.socket, function.timeout).map(|(client, _)| client))
        .collect::<Result<Vec<_>, ConnectError>>()
        .map_err(refused_by)?;
    let signal = stop.as_fd().try_clone_to_owned().context("cannot duplicate a descriptor")?;
    let mut port = Port::new(clients, signal)?;
    if !options.no_sandbox {
        confine::guest_run()?;
    }

    let began = Instant::now();
    // Nobody looks at what a message says: a vector's eventfd stands for it.
    let targets = Targets::each(|_| MsiTarget { address: 0, data: 0 });
    let mut arena = port.arena();
    let mut lines = Lines { guest: name, line: String::new() };
    let drawn = guest::draw(&mut port, &mut arena, params, &targets, &mut lines);
    if let Ok(stats) = &drawn {
        let told = told(&functions, stats, began.elapsed().as_secs_f64());
        // Nobody may listen any more, which is no mistake.
        output::json_line(&GuestEvent::Interrupts(told))?;
    }
    // The driver fails of what the port has failed of.
    if let Some(failure) = port.take_failure() {
        return Err(failure).context(path.display().to_string());
    }
    match drawn {
        // A signal may come while the driver waits for its setup.
        Err(_) if stop.requested() => Ok(()),
        drawn => drawn.map(drop).with_context(|| path.display().to_string()),
    }
}

/// What the file says that means something here; else what is wrong, and what would be right.
fn parts(config: &Config) -> Result<(Params, Vec<VfioUserDevice>), String> {
    let Boot::Image(image) = &config.guest.boot else {
        return Err("guest.firmware: a host process boots none; name an image".into());
    };
    let params =
        Params::parse(&image.cmdline).map_err(|error| format!("guest.cmdline: {error}"))?;
    for (there, what) in [
        (image.initrd.is_some(), "guest.initrd: a host process loads none"),
        (config.vcpus.count > 1, "vcpus.count: a host process has one thread, so it is 1"),
        (config.iommu.enabled, "iommu.enabled: a host process has no IOMMU"),
        (config.api.is_some(), "[api]: a host process has none"),
    ] {
        if there {
            return Err(format!("{what}; leave it out, or use `beamline run`"));
        }
    }
    let functions = config.devices.iter().map(|device| match device {
        Device::VfioUser(function) => Ok(function.clone()),
        other => Err(format!(
            "device type `{}`: a host process has none but `vfio-user`; leave it out, or use `beamline run`",
            device::kind(other)
        )),
    });
    Ok((params, functions.collect::<Result<_, _>>()?))
}

/// How the interrupts came, in the words that a virtual machine's are told in.
fn told(functions: &[VfioUserDevice], stats: &Stats, seconds: f64) -> InterruptsEvent {
    let delivery = |f: &VfioUserDevice| DeviceDelivery {
        device: f.socket.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        mode: "are eventfds that its process polls".into(),
        found: "the guest is a process of the host, no virtual machine".into(),
    };
    InterruptsEvent {
        label: "measured".into(),
        devices: functions.iter().map(delivery).collect(),
        all: Costs {
            seconds,
            vblanks: stats.vblanks + stats.missed_vblanks,
            exits_per_vblank: None,
            counters: BTreeMap::new(),
        },
        paced: None,
        to_vmm_io: 0,
        to_vmm_mmio: 0,
        to_vmm_other: 0,
        missing: Some("a host process has no exits".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const GUEST: &str = "[guest]\nname = \"vr\"\nimage = \"nowhere\"\ncmdline = \"scene=vr depth=1\"\n[memory]\nsize = \"32M\"\n";

    fn read(more: &str) -> Result<(Params, Vec<VfioUserDevice>), String> {
        let text = format!("{GUEST}{more}");
        parts(&Config::parse(&text, Path::new("/x/guest.toml")).expect(&text))
    }

    #[test]
    fn what_only_a_virtual_machine_has_is_refused() {
        let pacer = "[[device]]\ntype = \"vfio-user\"\nsocket = \"/x/vr-pacer.sock\"\n";
        let (params, functions) = read(pacer).unwrap();
        assert_eq!((params.depth, functions.len()), (1, 1));
        for (more, word) in [
            ("[[device]]\ntype = \"virtio-rng\"\n", "virtio-rng"),
            ("[vcpus]\ncount = 2\n", "vcpus.count"),
            ("[iommu]\nenabled = true\n", "iommu.enabled"),
            ("[api]\nsocket = \"/x/api.sock\"\n", "[api]"),
        ] {
            let why = read(more).unwrap_err();
            assert!(why.contains(word) && why.contains("beamline run"), "{why}");
        }
        let text = GUEST.replace("scene=vr", "scene=no");
        let config = Config::parse(&text, Path::new("/x/guest.toml")).unwrap();
        assert!(parts(&config).unwrap_err().contains("guest.cmdline"));
    }

    #[test]
    fn each_line_has_the_guests_name() {
        use fmt::Write;
        let mut lines = Lines { guest: "vr", line: String::new() };
        write!(lines, "a\nb").unwrap();
        assert_eq!(lines.line, "b");
    }
}
