//! Slices under a VMM and a kernel that are not ours: QEMU in software and a stock Debian kernel.
//!
//! A real `beamline host`, a real QEMU with its `vfio-user-pci`, and a guest that says what it sees. `make
//! bed` builds what is needed; without it the tests say so and are skipped. `BEAMLINE_BED` says where it is.

mod api;
mod archive;
mod bed;
#[path = "../command.rs"]
mod command;
mod console;
mod cpus;
mod devices;
mod display;
mod firmware;
mod flips;
mod frames;
mod full;
mod functions;
mod guest;
mod held;
mod host;
mod hotplug;
mod hyperv;
mod inner_flips;
mod iommu;
mod killed;
mod linux;
mod locked;
mod neighbour;
mod nested;
mod numa;
mod operator;
mod pacer;
mod pages;
mod passt;
mod picture;
mod port;
mod process;
#[path = "../random.rs"]
mod random;
mod sockets;
mod tpm;
mod witness;

use process::words;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One guest at a time: two would share the machine's few CPUs.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
