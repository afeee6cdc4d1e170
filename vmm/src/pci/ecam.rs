//! Configuration space as memory (PCI Express 6.0, section 7.2.2): 4 KiB for each function of bus 0.

use super::layout::ECAM_SIZE;

/// A register of a function on bus 0, or where none is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Function 0 of a slot.
    Function {
        /// Slot, below 32.
        slot: usize,
        /// Byte offset in configuration space, below 4096.
        offset: u16,
    },
    /// No function is there, or the access is none that a register has.
    Nothing,
}

/// What `length` bytes at `at` reach, where configuration space is at `ecam`; `None`: something else.
pub fn target(ecam: u64, at: u64, length: usize) -> Option<Target> {
    let offset = at.checked_sub(ecam).filter(|o| *o < ECAM_SIZE)?;
    let (function, register) = ((offset >> 12) & 7, (offset & 0xfff) as u16);
    let within = matches!(length, 1 | 2 | 4) && usize::from(register & 3) + length <= 4;
    Some(if function == 0 && within {
        Target::Function { slot: (offset >> 15) as usize, offset: register }
    } else {
        Target::Nothing
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::layout::ECAM;

    fn target(at: u64, length: usize) -> Option<Target> {
        super::target(ECAM, at, length)
    }

    #[test]
    fn targets() {
        let at = |slot: u64, function: u64, register: u64| {
            ECAM + (slot << 15 | function << 12 | register)
        };
        let hit = |slot, offset| Some(Target::Function { slot, offset });
        assert_eq!(target(at(0, 0, 0), 4), hit(0, 0));
        assert_eq!(target(at(31, 0, 0xffe), 2), hit(31, 0xffe));
        assert_eq!(target(at(3, 0, 0x11), 1), hit(3, 0x11));
        assert_eq!(target(at(3, 0, 2), 4), Some(Target::Nothing), "across registers");
        assert_eq!(target(at(3, 0, 0), 8), Some(Target::Nothing), "no register is so wide");
        assert_eq!(target(at(3, 1, 0), 4), Some(Target::Nothing), "function 1");
        assert_eq!(target(ECAM - 1, 1), None);
        assert_eq!(target(ECAM + ECAM_SIZE, 1), None);
    }
}
