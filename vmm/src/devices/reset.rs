//! The two ways in which a PC is reset by software.

/// Keyboard controller's data port. The controller is empty and idle, apart from its reset command.
pub const KEYBOARD_DATA: u16 = 0x60;
/// Keyboard controller's command port.
pub const KEYBOARD: u16 = 0x64;
/// The command that pulses the reset line.
const KEYBOARD_RESET: u8 = 0xfe;
/// The reset control register; ACPI's reset register is the same.
pub const CONTROL: u16 = 0xcf9;
/// What resets the whole machine: the reset bit, and the bit that makes it a hard one.
pub const CONTROL_RESET: u8 = 6;
/// The bit that resets.
const RESET_CPU: u8 = 4;

/// Whether a write of `data` to `port` resets the machine.
pub fn resets(port: u16, data: &[u8]) -> bool {
    match (port, data) {
        (KEYBOARD, [command, ..]) => *command == KEYBOARD_RESET,
        (CONTROL, [value]) => value & RESET_CPU != 0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_commands_reset() {
        assert!(resets(KEYBOARD, &[0xfe]) && resets(CONTROL, &[CONTROL_RESET]));
        for (port, data) in [
            (KEYBOARD, &[0xd1][..]),
            (KEYBOARD, &[]),
            (KEYBOARD_DATA, &[0xfe]),
            (CONTROL, &[2]),
            // Four bytes belong to the PCI address register around it.
            (CONTROL, &[6, 0]),
        ] {
            assert!(!resets(port, data), "{port:#x} {data:?}");
        }
    }
}
