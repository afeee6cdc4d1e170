//! What the guest does: read the command line, attach, draw until done.
#![allow(unsafe_code, reason = "the panic handler and the entry points have fixed names")]

use crate::boot::FIRST_VECTOR;
use crate::machine::Machine;
use crate::platform::{self, Serial, exit, line};
use beamline_guest_driver::guest::{self, Chain};
use beamline_guest_driver::pci::MsiTarget;
use beamline_guest_driver::scene::{Params, SceneError, Stats, Targets};

/// Exit codes of the guest.
mod code {
    pub(super) const DONE: u8 = 0;
    pub(super) const COMMAND_LINE: u8 = 1;
    pub(super) const DEVICE: u8 = 2;
    pub(super) const FAULT: u8 = 3;
    pub(super) const PANIC: u8 = 0xff;
}

/// Where the entry code goes, at privilege level 3.
pub(crate) extern "C" fn guest_main() -> ! {
    let params = match Params::parse(platform::command_line()) {
        Ok(params) => params,
        Err(error) => {
            line!("ERROR: command line: {error}");
            exit(code::COMMAND_LINE)
        }
    };
    match draw(params) {
        Ok(_) => exit(code::DONE),
        Err(error) => {
            line!("ERROR: {}", Chain(&error));
            exit(code::DEVICE)
        }
    }
}

/// An MSI to this CPU.
const fn msi(vector: u8) -> MsiTarget {
    MsiTarget { address: 0xfee0_0000, data: (FIRST_VECTOR + vector) as u32 }
}

fn draw(params: Params) -> Result<Stats, SceneError> {
    let mut arena = Machine::arena();
    let targets = Targets::each(msi);
    guest::draw(&mut Machine::new(), &mut arena, params, &targets, &mut Serial)
}

/// Where an exception of unprivileged code goes.
pub(crate) extern "C" fn guest_fault(vector: u64, error: u64, rip: u64, address: u64) -> ! {
    line!("ERROR: exception {vector}, code {error:#x}, at {rip:#x}, address {address:#x}");
    exit(code::FAULT)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    line!("PANIC: {info}");
    exit(code::PANIC)
}
