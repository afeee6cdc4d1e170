//! What a guest or a peer can send, made up by a fuzzer, and what must hold whatever it is.
//!
//! Each target runs one life of one part of the stack, in this thread, on choices that it reads from the
//! fuzzer's bytes. A broken promise is a panic. `make fuzz` looks for bytes that cause one; the package's
//! test runs every file in `corpus/` again.

mod boot_images;
mod config_files;
mod control_api;
mod fds;
mod function;
mod gpu_commands;
mod guest;
mod guest_bus;
mod input;
mod limit;
mod marker_ring;
mod pci_config;
mod peer;
mod peers;
mod platform_devices;
mod renderer_messages;
mod vfio_user_client;
mod vfio_user_stream;
mod virtio_devices;
mod virtqueue;

pub use limit::MOST as MOST_AT_ONCE;

/// One of the things that are fuzzed.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, which is that of its folder in `corpus/`.
    pub name: &'static str,
    /// Runs it once. Panics where a promise is broken.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: [Target; 14] = [
    Target { name: "vfio_user_stream", run: vfio_user_stream::run },
    Target { name: "vfio_user_client", run: vfio_user_client::run },
    Target { name: "pci_config", run: pci_config::run },
    Target { name: "virtqueue", run: virtqueue::run },
    Target { name: "gpu_commands", run: gpu_commands::run },
    Target { name: "marker_ring", run: marker_ring::run },
    Target { name: "renderer_messages", run: renderer_messages::run },
    Target { name: "guest_bus", run: guest_bus::run },
    Target { name: "virtio_devices", run: virtio_devices::run },
    Target { name: "control_api", run: control_api::run },
    Target { name: "platform_devices", run: platform_devices::run },
    Target { name: "boot_images", run: boot_images::run },
    Target { name: "config_files", run: config_files::run },
    Target { name: "peers", run: peers::run },
];

/// The target with this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}
