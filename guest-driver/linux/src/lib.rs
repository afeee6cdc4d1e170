//! The guest driver in a Linux guest's user space: a `Transport` over vfio-pci, behind a virtual IOMMU. And what a
//! program needs that uses the display through the kernel's own driver.
//!
//! * [`paced`]: the slice's pacer, found and opened.
//! * [`port`]: the transport: functions as slots, BARs by address, interrupts as eventfds.
//! * [`vfio`]: the few calls of the kernel's VFIO interface that it needs.
//! * [`vectors`]: a function's interrupts as eventfds.
//! * [`mapping`]: device and shared memory, accessed as a device's must be.
//! * [`kms`]: page flips on a card of the kernel.
//! * [`clock`]: the pacer's count of vblanks, read through sysfs.
//!
//! For the port, the functions must be bound to vfio-pci before: write that name to their `driver_override`, and their
//! address to `drivers_probe`.

pub mod clock;
pub mod kms;
pub mod mapping;
pub mod paced;
pub mod port;
pub mod vectors;
pub mod vfio;

use std::error::Error;
use std::process::ExitCode;

/// What a program ends with: an error and its causes are printed, a line each, behind the program's name.
pub fn report(name: &str, result: Result<(), Box<dyn Error>>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let mut next: Option<&dyn Error> = Some(error.as_ref());
    while let Some(error) = next {
        println!("{name}: error: {error}");
        next = error.source();
    }
    ExitCode::FAILURE
}
