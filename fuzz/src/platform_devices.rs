//! Devices of the machine itself: the firmware's flash, the TPM's registers in front of an emulator that answers as it
//! likes, the serial port, the clock, power management, and the ports that reset and end a guest.

mod flash;
mod ports;
mod tpm;

use crate::fds::Open;
use crate::input::Input;

/// Most steps of an input.
const STEPS: usize = 200;

/// Runs one life of the devices.
pub(crate) fn run(bytes: &[u8]) {
    let open = Open::now();
    let mut input = Input::new(bytes);
    let first = input.u8();
    // One of them alone finds more in as many bytes.
    match first % 4 {
        0 => live(&mut input, ports::Ports::new(first & 4 != 0), ports::Ports::step, drop),
        1 | 2 => {
            if let Some(chip) = flash::Chip::open(&mut input) {
                live(&mut input, chip, flash::Chip::step, flash::Chip::finish);
            }
        }
        _ => {
            if let Some(tpm) = tpm::Bench::connect(&mut input) {
                live(&mut input, tpm, tpm::Bench::step, tpm::Bench::finish);
            }
        }
    }
    open.check();
}

fn live<T>(
    input: &mut Input<'_>,
    mut device: T,
    step: impl Fn(&mut T, &mut Input<'_>),
    finish: impl FnOnce(T),
) {
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        step(&mut device, input);
    }
    finish(device);
}
