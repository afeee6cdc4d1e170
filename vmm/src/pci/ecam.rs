//! Configuration space as memory (PCI Express 6.0, section 7.2.2): 4 KiB for each function.

use super::layout::Windows;

/// A register of a function, or where none is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Function 0 of a slot.
    Function {
        /// Bus number.
        bus: u8,
        /// Slot, below 32.
        slot: usize,
        /// Byte offset in configuration space, below 4096.
        offset: u16,
    },
    /// No function is there, or the access is none that a register has.
    Nothing,
}

/// What `length` bytes at `at` reach, by the place of configuration space in `windows`; `None`: something else.
pub fn target(windows: Windows, at: u64, length: usize) -> Option<Target> {
    let offset = at.checked_sub(windows.ecam()).filter(|o| *o < windows.ecam_size())?;
    let (function, register) = ((offset >> 12) & 7, (offset & 0xfff) as u16);
    let within = matches!(length, 1 | 2 | 4) && usize::from(register & 3) + length <= 4;
    Some(if function == 0 && within {
        // There are 256 buses at most.
        let (bus, slot) = ((offset >> 20) as u8, (offset >> 15 & 0x1f) as usize);
        Target::Function { bus, slot, offset: register }
    } else {
        Target::Nothing
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::layout::{ECAM, ECAM_SIZE};

    fn target(at: u64, length: usize) -> Option<Target> {
        super::target(Windows::default(), at, length)
    }

    #[test]
    fn targets() {
        let at = |slot: u64, function: u64, register: u64| {
            ECAM + (slot << 15 | function << 12 | register)
        };
        let hit = |slot, offset| Some(Target::Function { bus: 0, slot, offset });
        assert_eq!(target(at(0, 0, 0), 4), hit(0, 0));
        assert_eq!(target(at(31, 0, 0xffe), 2), hit(31, 0xffe));
        assert_eq!(target(at(3, 0, 0x11), 1), hit(3, 0x11));
        assert_eq!(target(at(3, 0, 2), 4), Some(Target::Nothing), "across registers");
        assert_eq!(target(at(3, 0, 0), 8), Some(Target::Nothing), "no register is so wide");
        assert_eq!(target(at(3, 1, 0), 4), Some(Target::Nothing), "function 1");
        assert_eq!(target(ECAM - 1, 1), None);
        assert_eq!(target(ECAM + ECAM_SIZE, 1), None);
    }

    #[test]
    fn each_port_has_a_bus_more() {
        let windows = Windows::beside(0).with_ports(2);
        let at = |bus: u64, slot: u64| windows.ecam() + (bus << 20 | slot << 15 | 4);
        let hit = |bus, slot| Some(Target::Function { bus, slot, offset: 4 });
        assert_eq!(super::target(windows, at(1, 0), 4), hit(1, 0));
        assert_eq!(super::target(windows, at(2, 31), 4), hit(2, 31));
        assert_eq!(super::target(windows, at(3, 0), 4), None);
    }
}
