//! Function-level reset, as far as the VMM must see it (PCI Express base 5.0, sections 6.6.2 and 7.5.3).

/// Offset of the device control register in the PCI Express capability.
pub(super) const DEVICE_CONTROL: u16 = 8;
/// Its bit "initiate function level reset".
pub(super) const INITIATE_FLR: u16 = 1 << 15;

/// Whether writing `data` at `offset` of configuration space starts a function-level reset of a function
/// whose PCI Express capability is at `express`.
pub(super) fn starts_flr(express: Option<u16>, offset: u16, data: &[u8]) -> bool {
    let Some(high_byte) = express.and_then(|at| at.checked_add(DEVICE_CONTROL + 1)) else {
        return false;
    };
    high_byte
        .checked_sub(offset)
        .and_then(|i| data.get(usize::from(i)))
        .is_some_and(|byte| byte & (INITIATE_FLR >> 8) as u8 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_is_seen() {
        let flr = |offset, data: &[u8]| starts_flr(Some(0x40), offset, data);
        assert!(flr(0x48, &[0, 0x80, 0, 0]));
        assert!(flr(0x48, &[0, 0x80]));
        assert!(flr(0x49, &[0x80]));
        assert!(!flr(0x48, &[0x80]));
        assert!(!flr(0x4a, &[0x80, 0x80]));
        assert!(!flr(0x48, &[0xff, 0x7f, 0xff, 0xff]));
        assert!(!starts_flr(None, 0x48, &[0xff; 4]));
        assert!(!starts_flr(Some(u16::MAX), 0x48, &[0xff; 4]));
    }
}
