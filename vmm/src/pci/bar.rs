//! One function's base address registers (PCI 3.0, section 6.2.5.1).

use crate::Gpa;

/// How many there are.
pub const BARS: usize = 6;

/// Bit 0: I/O space.
const IO: u32 = 1;
/// Bits 1 and 2: the type; 2 is 64 bits.
const TYPE: u32 = 0b110;
const TYPE_64: u32 = 0b100;
/// Bit 3: prefetchable.
const PREFETCH: u32 = 0b1000;
/// Smallest memory BAR: bytes.
const MIN: u64 = 16;

/// Why a function's BARs make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarError {
    /// A size that no BAR can have.
    #[error("BAR{bar} has {size:#x} bytes; a BAR has a power of two from 16 bytes on")]
    Size {
        /// The BAR.
        bar: usize,
        /// Its size in bytes.
        size: u64,
    },
    /// Too large for its address.
    #[error(
        "BAR{bar} has {size:#x} bytes, which its 32-bit address cannot hold; it must be 64-bit"
    )]
    TooLarge {
        /// The BAR.
        bar: usize,
        /// Its size in bytes.
        size: u64,
    },
    /// A 64-bit BAR without room for its upper half.
    #[error("BAR{bar} is 64-bit, but BAR{} is missing or has a size of its own", bar + 1)]
    Upper {
        /// The BAR.
        bar: usize,
    },
    /// I/O space.
    #[error("BAR{bar} is in I/O space; only memory BARs can be attached")]
    Io {
        /// The BAR.
        bar: usize,
    },
}

/// A memory BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarShape {
    /// Bytes: a power of two, at least 16.
    pub size: u64,
    /// The next register holds the upper half of the address.
    pub wide: bool,
    /// Reads have no side effects.
    pub prefetch: bool,
}

/// The BARs of a function, `None` where there is none.
pub type BarShapes = [Option<BarShape>; BARS];

/// Reads the shapes off a function: `registers` are its BARs, of which only the low bits count, and
/// `sizes` their sizes in bytes.
pub fn shapes(registers: [u32; BARS], sizes: [u64; BARS]) -> Result<BarShapes, BarError> {
    let mut shapes = [None; BARS];
    let mut bar = 0;
    while bar < BARS {
        let (low, size) = (registers[bar], sizes[bar]);
        if size == 0 {
            bar += 1;
            continue;
        }
        if low & IO != 0 {
            return Err(BarError::Io { bar });
        }
        if !size.is_power_of_two() || size < MIN {
            return Err(BarError::Size { bar, size });
        }
        let wide = low & TYPE == TYPE_64;
        if wide && sizes.get(bar + 1) != Some(&0) {
            return Err(BarError::Upper { bar });
        }
        if !wide && size > 1 << 31 {
            return Err(BarError::TooLarge { bar, size });
        }
        shapes[bar] = Some(BarShape { size, wide, prefetch: low & PREFETCH != 0 });
        bar += if wide { 2 } else { 1 };
    }
    Ok(shapes)
}

/// The registers, as the guest reads and writes them.
#[derive(Clone, Debug)]
pub struct BarRegisters {
    shapes: BarShapes,
    values: [u32; BARS],
}

impl BarRegisters {
    /// All addresses are 0.
    pub fn new(shapes: BarShapes) -> Self {
        let mut this = Self { shapes, values: [0; BARS] };
        this.reset();
        this
    }

    /// The shapes.
    pub fn shapes(&self) -> &BarShapes {
        &self.shapes
    }

    /// Back to address 0.
    pub fn reset(&mut self) {
        for bar in 0..BARS {
            self.write(bar, 0);
        }
    }

    /// Register `index`, below [`BARS`]; 0 outside.
    pub fn read(&self, index: usize) -> u32 {
        self.values.get(index).copied().unwrap_or(0)
    }

    /// Writes register `index`: only the address bits above the size change, so that all-ones reads back
    /// as the size. Writes outside [`BARS`] are dropped.
    pub fn write(&mut self, index: usize, value: u32) {
        let fixed = |shape: BarShape| {
            (if shape.wide { TYPE_64 } else { 0 }) | if shape.prefetch { PREFETCH } else { 0 }
        };
        let upper_of = index.checked_sub(1).and_then(|low| self.shapes.get(low).copied().flatten());
        let new = match (self.shapes.get(index).copied().flatten(), upper_of) {
            (Some(shape), _) => (value & !(shape.size - 1) as u32) | fixed(shape),
            (None, Some(low)) if low.wide => value & (!(low.size - 1) >> 32) as u32,
            _ => 0,
        };
        if let Some(register) = self.values.get_mut(index) {
            *register = new;
        }
    }

    /// Where BAR `index` is, and its size.
    pub fn address(&self, index: usize) -> Option<(Gpa, u64)> {
        let shape = (*self.shapes.get(index)?)?;
        let low = u64::from(self.values[index] & !0xf);
        let high = if shape.wide { u64::from(self.read(index + 1)) << 32 } else { 0 };
        Some((Gpa(high | low), shape.size))
    }

    /// Puts BAR `index` at `address`, which is a multiple of its size.
    pub fn place(&mut self, index: usize, address: Gpa) {
        self.write(index, address.0 as u32);
        if self.shapes.get(index).copied().flatten().is_some_and(|s| s.wide) {
            self.write(index + 1, (address.0 >> 32) as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registers() -> BarRegisters {
        let s = shapes([0, 0, 0xc, 0, 0, 0], [0x4000, 0, 0x2_0000_0000, 0, 0, 0x1000]).unwrap();
        BarRegisters::new(s)
    }

    #[test]
    fn sizing_shows_the_size_and_the_type() {
        let mut r = registers();
        for bar in 0..BARS {
            r.write(bar, u32::MAX);
        }
        let read: Vec<u32> = (0..BARS).map(|b| r.read(b)).collect();
        assert_eq!(read, [0xffff_c000, 0, 0xc, 0xffff_fffe, 0, 0xffff_f000]);
        r.write(9, 1);
        assert_eq!(r.read(9), 0);
    }

    #[test]
    fn addresses_are_put_together() {
        let mut r = registers();
        r.place(0, Gpa(0xc000_4000));
        r.place(2, Gpa(0x6_0000_0000));
        assert_eq!(r.address(0), Some((Gpa(0xc000_4000), 0x4000)));
        assert_eq!(r.address(2), Some((Gpa(0x6_0000_0000), 0x2_0000_0000)));
        assert_eq!(r.address(3), None);
        r.reset();
        assert_eq!(r.address(2), Some((Gpa(0), 0x2_0000_0000)));
    }

    #[test]
    fn nonsense_is_refused() {
        let one = |low, size, next| shapes([low, 0, 0, 0, 0, 0], [size, next, 0, 0, 0, 0]);
        assert_eq!(one(0, 24, 0), Err(BarError::Size { bar: 0, size: 24 }));
        assert_eq!(one(0, 8, 0), Err(BarError::Size { bar: 0, size: 8 }));
        assert_eq!(one(1, 16, 0), Err(BarError::Io { bar: 0 }));
        assert_eq!(one(0, 1 << 32, 0), Err(BarError::TooLarge { bar: 0, size: 1 << 32 }));
        assert_eq!(one(4, 16, 16), Err(BarError::Upper { bar: 0 }));
        let last = shapes([4; BARS], [0, 0, 0, 0, 0, 64]);
        assert_eq!(last, Err(BarError::Upper { bar: 5 }));
        assert!(one(4, 1 << 63, 0).is_ok());
    }
}
