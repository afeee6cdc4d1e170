//! The sandbox of each process that this command becomes: what it may still open, and when it gives up the rest.

use crate::failure::refused;
use beamline_mdev::config::{BackendKind, HostConfig};
use beamline_vmm::Config;
use beamline_vmm::config::{Boot, Device, InputDevice, NetPort};
use beamline_vmm::devices::virtio::console::Output;
use beamline_vmm::sandbox::{
    Enforced, Files, Keep, Role, SandboxError, Threads, confine, drop_capabilities, launcher_files,
    renderer_files, restrict,
};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// This very file, also where it was replaced since.
const PROGRAM: &str = "/proc/self/exe";

/// What is said of the machine's memory, huge pages and NUMA nodes.
const MACHINE: [&str; 3] = ["/proc/meminfo", "/sys/kernel/mm", "/sys/devices/system/node"];

/// What every process may read: itself, where a panic looks for names, and its share of the machine.
fn own_files() -> Files {
    Files {
        read: ["/proc/self", PROGRAM, "/sys/fs/cgroup"].map(Into::into).into(),
        ..Files::default()
    }
}

/// Leaves this process the files that `config` names. Before its guest is built.
pub(crate) fn vmm_set_up(config: &Config) -> anyhow::Result<()> {
    let mut files = own_files();
    match &config.guest.boot {
        Boot::Image(image) => {
            files.read.push(image.path.clone());
            files.read.extend(image.initrd.clone());
        }
        Boot::Firmware(firmware) => {
            files.read.push(firmware.code.clone());
            files.write.push(firmware.variables.clone());
        }
    }
    files.devices.push("/dev/kvm".into());
    if let Some(folder) = config.api.as_ref().and_then(|api| api.socket.parent()) {
        // The socket is made and removed there.
        files.sockets.push(self::folder(folder));
    }
    // What memory there is.
    files.read.extend(MACHINE.map(Into::into));
    let files = config.functions().map(device).fold(files, Files::and);
    warn(restrict(&files, Keep::vmm_set_up()).map_err(classed)?);
    Ok(())
}

/// What one of a guest's devices opens.
fn device(device: &Device) -> Files {
    let mut files = Files::default();
    match device {
        Device::Blk(disk) => {
            let path = disk.source.path.clone();
            let regular = path.metadata().is_ok_and(|m| m.is_file());
            match (regular, disk.source.readonly) {
                (true, true) => files.read.push(path),
                (true, false) => files.write.push(path),
                // A block device is asked for the size of its sectors.
                (false, _) => files.devices.push(path),
            }
        }
        Device::Net(net) => match &net.port {
            NetPort::Tap(_) => files.devices.push("/dev/net/tun".into()),
            // It is connected to, which needs no right to a file.
            NetPort::VhostUser(_) => {}
        },
        Device::Vsock(_) => files.devices.push("/dev/vhost-vsock".into()),
        Device::Console(console) => match &console.output {
            Output::Terminal => {}
            Output::File(path) => {
                make_file(path);
                files.write.push(path.clone());
            }
            Output::Socket(path) => files.sockets.extend(path.parent().map(folder)),
        },
        Device::Input(InputDevice::Evdev(path)) => files.devices.push(path.clone()),
        Device::VfioUser(_) | Device::Rng | Device::Input(_) | Device::Balloon => {}
    }
    files
}

/// A folder by a name that is not empty.
fn folder(path: &Path) -> PathBuf {
    Path::new(".").join(path)
}

/// Leaves this process what a running guest takes. Once the guest is built, before it runs.
pub(crate) fn vmm_run() -> anyhow::Result<()> {
    drop_capabilities(Keep::urgency()).map_err(classed)?;
    confine(Role::Vmm, Threads::All).map_err(classed)
}

/// Leaves a guest without a virtual machine no file but its own. Before it connects to its functions, whose sockets
/// may be another user's.
pub(crate) fn guest_set_up() -> anyhow::Result<()> {
    warn(restrict(&own_files(), Keep::vmm_set_up()).map_err(classed)?);
    Ok(())
}

/// Leaves it what drawing takes. Once its functions are there.
pub(crate) fn guest_run() -> anyhow::Result<()> {
    drop_capabilities(Keep::urgency()).map_err(classed)?;
    confine(Role::Guest, Threads::All).map_err(classed)
}

/// Leaves this process what connecting to sockets takes. Before it does anything.
pub(crate) fn connector() -> anyhow::Result<()> {
    // Sockets of another user's, as for a VMM that is set up. The VMM has said where the kernel cannot.
    restrict(&own_files(), Keep::vmm_set_up()).map_err(classed)?;
    drop_capabilities(Keep::connecting()).map_err(classed)?;
    confine(Role::Connector, Threads::All).map_err(classed)
}

/// Leaves this process the folders of `config` and what renderers take. Before it starts any thread.
pub(crate) fn host_set_up(config: &HostConfig) -> anyhow::Result<()> {
    let mut files = own_files();
    // Landlock's rules are about what is there.
    make_folder(&config.run_dir);
    files.write.push(folder(&config.run_dir));
    if let Some(images) = &config.images {
        make_folder(images);
        files.write.push(images.clone());
    }
    if let Some(stamps) = &config.stamps {
        make_file(stamps);
        files.write.push(stamps.clone());
    }
    let renders = config.backend == BackendKind::Wgpu;
    if renders {
        files = files.and(launcher_files(Path::new(PROGRAM)));
    }
    warn(restrict(&files, Keep::host()).map_err(classed)?);
    if renders {
        confine(Role::Launcher, Threads::All).map_err(classed)?;
    }
    Ok(())
}

/// Leaves the calling thread, and those that it starts, what serving slices takes.
pub(crate) fn host_run() -> io::Result<()> {
    confine(Role::Host, Threads::Calling).map_err(io::Error::other)
}

/// Leaves this process what rendering takes, the looking for a driver included. Before it does anything.
pub(crate) fn renderer() -> anyhow::Result<()> {
    // The host has said where the kernel cannot.
    restrict(&renderer_files(), Keep::urgency()).map_err(classed)?;
    confine(Role::Renderer, Threads::All).map_err(classed)
}

/// A kernel without seccomp is the user's to mend; the rest has failed.
fn classed(error: SandboxError) -> anyhow::Error {
    match error {
        SandboxError::NoSeccomp => refused(error),
        other => anyhow::Error::new(other).context("the sandbox"),
    }
}

fn warn(enforced: Enforced) {
    match enforced {
        Enforced::Fully => {}
        Enforced::Partly => {
            tracing::debug!("this kernel's Landlock is an older one: see `beamline doctor`");
        }
        Enforced::Not => tracing::warn!(
            "this kernel has no Landlock: files are within reach that the process does not need; see `beamline doctor`"
        ),
    }
}

/// Makes a folder that is its owner's alone. Where that fails, whoever uses it says so.
pub(crate) fn make_folder(path: &Path) {
    let _ = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
}

/// Makes an empty file and its folder: Landlock's rules are about what is there. Where that fails, whoever uses it says so.
fn make_file(path: &Path) {
    if let Some(folder) = path.parent() {
        let _ = std::fs::create_dir_all(folder);
    }
    // One that is there stays as it is.
    let _ = std::fs::OpenOptions::new().write(true).create_new(true).open(path);
}

#[cfg(test)]
#[path = "confine_tests.rs"]
mod tests;
