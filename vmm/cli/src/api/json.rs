//! What the guest's API says and takes, as JSON: the same types for both ends.

use beamline_vmm::config::InputKind;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The version of this API. It rises when something that was there changes its meaning or goes.
pub(crate) const API_VERSION: u32 = 1;

/// `GET /v1/guest`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct GuestJson {
    pub(crate) name: String,
    /// `running`, `paused` or `ended`.
    pub(crate) state: String,
    /// Of the process that runs it.
    pub(crate) pid: u32,
    /// Of that process.
    pub(crate) beamline: String,
    /// [`API_VERSION`].
    pub(crate) api: u32,
    /// Since it was started.
    pub(crate) uptime_ms: u64,
    pub(crate) vcpus: u32,
    pub(crate) memory_bytes: u64,
    /// What it boots: either of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) firmware: Option<PathBuf>,
    pub(crate) devices: Vec<DeviceJson>,
    /// Where its picture is taken: a host's slice.
    pub(crate) display: Option<DisplayJson>,
}

/// A function on its PCI bus.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct DeviceJson {
    /// Bus, device and function, such as `00:01.0`.
    pub(crate) pci: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// What of the host is behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) opens: Option<String>,
    /// The root port that it can be plugged into.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<PortJson>,
}

/// What is in a root port: the answer to `plug` and `unplug`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct PortJson {
    pub(crate) port: String,
    /// `empty`, `plugged`, or `asked` where the guest was asked to let it go.
    pub(crate) state: String,
}

/// The body of `POST /v1/guest/ports/NAME/unplug`; without a body, nothing is forced.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UnplugJson {
    /// Take it out whatever the guest does.
    #[serde(default)]
    pub(crate) force: bool,
}

/// A slice of a host.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct DisplayJson {
    pub(crate) slice: String,
    /// The host's control socket.
    pub(crate) host: PathBuf,
}

/// `GET /v1/guest/stats`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct StatsJson {
    pub(crate) state: String,
    pub(crate) uptime_ms: u64,
    /// How often each vCPU exited to this process. What KVM serves itself is not in it.
    pub(crate) vcpus: Vec<VcpuJson>,
    pub(crate) devices: Vec<ActivityJson>,
    pub(crate) balloon: Option<BalloonJson>,
}

/// A vCPU's exits.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct VcpuJson {
    /// Port accesses.
    pub(crate) io: u64,
    /// Accesses to memory that is not RAM.
    pub(crate) mmio: u64,
    /// Signals and all others.
    pub(crate) other: u64,
}

/// What a device of this process has done. Those that other processes serve are not there.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct ActivityJson {
    pub(crate) pci: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// Interrupts that this process sent. The kernel's (vhost) are not known.
    pub(crate) interrupts: u64,
    /// It waits for its driver to reset it.
    pub(crate) broken: bool,
}

/// The body of `POST /v1/guest/writes`: for how long to look.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WritesForJson {
    pub(crate) for_ms: u64,
}

/// What the guest's vCPUs have written meanwhile.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct WritesJson {
    /// How long it was looked.
    pub(crate) ms: u64,
    /// Pages of 4 KiB; one that was written often is counted once.
    pub(crate) pages: u64,
    /// The same in bytes.
    pub(crate) bytes: u64,
}

/// `GET /v1/guest/balloon`, and the answer to `PUT`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct BalloonJson {
    /// What the guest is asked to give up.
    pub(crate) target_bytes: u64,
    /// What it says that it gave up.
    pub(crate) actual_bytes: u64,
}

/// The body of `PUT /v1/guest/balloon`.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TargetJson {
    pub(crate) target_bytes: u64,
}

/// The body of `POST /v1/guest/input`: what happens on one device, in this order, all of it or nothing.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InputJson {
    /// The first device of this kind.
    pub(crate) device: InputKind,
    #[serde(rename = "do")]
    pub(crate) acts: Vec<ActJson>,
}

/// Something that happens on an input device.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum ActJson {
    /// Keys or buttons go down together and up again: `"ctrl+alt+delete"`.
    Tap(String),
    /// They go down and stay there.
    Down(String),
    /// They go up.
    Up(String),
    /// Keys of a US keyboard that give this text.
    Text(String),
    /// A mouse moves: right and down.
    Move([i32; 2]),
    /// A tablet points: from 0, 0 at the upper left to 1, 1 at the lower right.
    Point([f64; 2]),
    /// A wheel turns: up is positive.
    Wheel(i32),
    /// A gamepad's axis: sticks `x`, `y`, `rx`, `ry` and cross `hat-x`, `hat-y` from -1 to 1, triggers `z`,
    /// `rz` from 0 to 1.
    Axis { name: String, value: f64 },
}

/// The body of `POST /v1/guest/serial`, and the answer: how much of it was taken.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SerialJson {
    pub(crate) text: String,
}

/// How many bytes the serial port took.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct TakenJson {
    pub(crate) taken: usize,
}

/// What the guest is doing now: the answer to `pause` and the like.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct StateJson {
    pub(crate) state: String,
}
