//! A freestanding guest that draws frames: boot, attach to the slice, and run a scene between interrupts.
//!
//! * `boot`: from the PVH entry to unprivileged 64-bit code, and the few privileged stubs.
//! * `platform`: what those stubs do for the rest: ports, waiting, the command line.
//! * `machine`: the driver's `Transport` over this platform.
//!
//! All of Rust runs at privilege level 3: under a hypervisor without hardware support that is the code
//! which runs natively, while privileged code is interpreted.
#![cfg_attr(freestanding, no_std, no_main)]

#[cfg(freestanding)]
mod boot;
#[cfg(freestanding)]
mod guest;
#[cfg(freestanding)]
mod machine;
#[cfg(freestanding)]
mod memory;
#[cfg(freestanding)]
mod platform;

#[cfg(not(freestanding))]
fn main() -> std::process::ExitCode {
    eprintln!(
        "This program is a guest image and was built without its flags; build it with `make guest`."
    );
    std::process::ExitCode::FAILURE
}
