//! Configuration mechanism 1 (PCI 3.0, section 3.2.2.3.2): the address at 0xcf8, the data at 0xcfc.

/// First port of the address register.
pub const ADDRESS: u16 = 0xcf8;
/// First port of the data register.
pub const DATA: u16 = 0xcfc;
/// Last port of the data register.
pub const DATA_END: u16 = 0xcff;

const ENABLE: u32 = 1 << 31;

/// A register of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Bus number.
    pub bus: u8,
    /// Slot, below 32.
    pub slot: usize,
    /// Byte offset in configuration space.
    pub offset: u16,
}

/// The address register.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConfigPort {
    address: u32,
}

impl ConfigPort {
    /// Writes the address register: only whole words at [`ADDRESS`] count.
    pub fn write_address(&mut self, data: &[u8]) {
        if let Ok(word) = <[u8; 4]>::try_from(data) {
            self.address = u32::from_le_bytes(word);
        }
    }

    /// Reads the address register; anything but a whole word reads all-ones.
    pub fn read_address(self, data: &mut [u8]) {
        if data.len() == 4 {
            data.copy_from_slice(&self.address.to_le_bytes());
        } else {
            super::nothing(data);
        }
    }

    /// What `length` bytes at `port`, from [`DATA`] to [`DATA_END`], reach: function 0 of a slot,
    /// within one register.
    pub fn target(self, port: u16, length: usize) -> Option<Target> {
        let byte = port.checked_sub(DATA).filter(|b| *b < 4)?;
        let function = (self.address >> 8) & 7;
        if self.address & ENABLE == 0 || function != 0 {
            return None;
        }
        if !matches!(length, 1 | 2 | 4) || usize::from(byte) + length > 4 {
            return None;
        }
        Some(Target {
            bus: (self.address >> 16) as u8,
            slot: ((self.address >> 11) & 0x1f) as usize,
            offset: (self.address & 0xfc) as u16 + byte,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(address: u32) -> ConfigPort {
        let mut p = ConfigPort::default();
        p.write_address(&address.to_le_bytes());
        p
    }

    #[test]
    fn targets() {
        let p = port(ENABLE | 3 << 11 | 0x10);
        assert_eq!(p.target(0xcfc, 4), Some(Target { bus: 0, slot: 3, offset: 0x10 }));
        assert_eq!(p.target(0xcfe, 2), Some(Target { bus: 0, slot: 3, offset: 0x12 }));
        assert_eq!(p.target(0xcfe, 4), None, "across registers");
        assert_eq!(p.target(0xcfc, 8), None);
        assert_eq!(p.target(0xcfc, 0), None);
        assert_eq!(p.target(0xd00, 1), None);
        assert_eq!(port(3 << 11).target(0xcfc, 4), None, "disabled");
        assert_eq!(port(ENABLE | 7 << 16).target(0xcfc, 4).map(|t| t.bus), Some(7));
        assert_eq!(port(ENABLE | 1 << 8).target(0xcfc, 4), None, "function 1");
    }

    #[test]
    fn only_words_reach_the_address() {
        let mut p = port(0x8000_1234);
        p.write_address(&[0xff]);
        let mut word = [0; 4];
        p.read_address(&mut word);
        assert_eq!(u32::from_le_bytes(word), 0x8000_1234);
        let mut byte = [0];
        p.read_address(&mut byte);
        assert_eq!(byte, [0xff]);
    }
}
