//! The exit port: a guest that writes a code there has ended.

/// The port.
pub const PORT: u16 = 0xf4;

/// The code in a write of 1, 2 or 4 bytes: little endian, further bytes are ignored.
pub fn code(data: &[u8]) -> u32 {
    data.iter().take(4).rev().fold(0, |code, byte| code << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        assert_eq!(code(&[]), 0);
        assert_eq!(code(&[7]), 7);
        assert_eq!(code(&[0x34, 0x12, 0, 0, 0xff]), 0x1234);
    }
}
