//! The EDID of a slice's display (E-EDID 1.4): its one mode is the configured size at the contract's rate.
//!
//! The mode is a detailed timing in the base block. Where that cannot hold it (a pixel clock above
//! 655.35 MHz, a side above 4,095 pixels) it is a type I timing of a DisplayID 1.3 extension, marked as
//! preferred, and the base block has 1024 × 768 at 60 Hz for readers that do not look further.
//!
//! Blanking is as short as for CVT's reduced blanking. A pixel clock is told in steps of 10 kHz, so the
//! number of blank lines is chosen such that the rate comes out best.

use beamline_sched::Period;

/// Bytes of a block.
pub const BLOCK: usize = 128;
/// Blank pixels of a line: front porch, sync and back porch of CVT's reduced blanking.
const H_BLANK: u32 = 160;
const H_FRONT: u32 = 48;
const H_SYNC: u32 = 32;
const V_FRONT: u32 = 3;
const V_SYNC: u32 = 5;
/// Front porch, sync, and CVT's shortest back porch.
const V_BLANK_MIN: u32 = V_FRONT + V_SYNC + 6;
/// CVT's shortest vertical blanking, ns.
const V_BLANK_NS: u128 = 460_000;
/// Numbers of blank lines that are tried.
const TRIED: u32 = 64;
/// Largest field of a detailed timing.
const MAX_FIELD: u32 = 4095;
/// What to say where the base block cannot hold the mode.
const FALLBACK: (u32, u32, u64) = (1024, 768, 60);

/// A mode as an EDID tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Timing {
    /// In units of 10 kHz.
    clock: u32,
    width: u32,
    height: u32,
    v_blank: u32,
}

impl Timing {
    /// The best timing of this size for `period`.
    fn new(width: u32, height: u32, period: Period) -> Self {
        let (num, den) = (u128::from(period.num()), u128::from(period.den()));
        let blank_ns = V_BLANK_NS * den;
        let shortest = blank_ns * u128::from(height) / num.saturating_sub(blank_ns).max(1) + 1;
        let shortest = shortest.clamp(V_BLANK_MIN.into(), MAX_FIELD.into()) as u32;
        let mut best: Option<(u128, u128, Self)> = None;
        for v_blank in shortest..=(shortest + TRIED - 1).min(MAX_FIELD) {
            let pixels = u128::from(width + H_BLANK) * u128::from(height + v_blank);
            // The exact clock in units of 10 kHz is `wanted / num`.
            let wanted = pixels * 100_000 * den;
            let clock = ((wanted + num / 2) / num).clamp(1, 1 << 24);
            let error = (clock * num).abs_diff(wanted);
            if best.is_none_or(|(least, of, _)| error * of < least * wanted) {
                let timing = Self { clock: clock as u32, width, height, v_blank };
                best = Some((error, wanted, timing));
            }
        }
        // The range has at least one number in it.
        best.map_or(Self { clock: 1, width, height, v_blank: shortest }, |(_, _, timing)| timing)
    }

    /// Whether a detailed timing can hold it.
    fn fits(&self) -> bool {
        self.clock <= u16::MAX.into() && self.width <= MAX_FIELD && self.height <= MAX_FIELD
    }

    /// The detailed timing descriptor (E-EDID 1.4, 3.10.2).
    fn descriptor(&self) -> [u8; 18] {
        let Self { clock, width, height, v_blank } = *self;
        let (mm_wide, mm_high) = (millimetres(width), millimetres(height));
        // The low byte of one field, and the high halves of two in one byte.
        let low = |n: u32| n as u8;
        let high = |a: u32, b: u32| ((a >> 8) << 4 | b >> 8) as u8;
        [
            low(clock),
            (clock >> 8) as u8,
            low(width),
            low(H_BLANK),
            high(width, H_BLANK),
            low(height),
            low(v_blank),
            high(height, v_blank),
            low(H_FRONT),
            low(H_SYNC),
            (V_FRONT << 4 | V_SYNC) as u8,
            // The high bits of porches and syncs, none of which has any.
            0,
            low(mm_wide),
            low(mm_high),
            high(mm_wide, mm_high),
            0,
            0,
            // Digital separate syncs, the horizontal one positive, as reduced blanking has them.
            0x1a,
        ]
    }

    /// The DisplayID type I timing (DisplayID 1.3, 4.4.1): every field is one less than its value.
    fn displayid(&self) -> [u8; 20] {
        const PREFERRED: u8 = 0x80;
        const NO_ASPECT: u8 = 8;
        const POSITIVE: u32 = 1 << 15;
        let mut out = [0; 20];
        out[..3].copy_from_slice(&(self.clock - 1).to_le_bytes()[..3]);
        out[3] = PREFERRED | NO_ASPECT;
        let fields = [
            self.width - 1,
            H_BLANK - 1,
            (H_FRONT - 1) | POSITIVE,
            H_SYNC - 1,
            self.height - 1,
            self.v_blank - 1,
            V_FRONT - 1,
            V_SYNC - 1,
        ];
        for (to, field) in out[4..].chunks_exact_mut(2).zip(fields) {
            to.copy_from_slice(&(field as u16).to_le_bytes());
        }
        out
    }
}

/// At 96 dots per inch, in millimetres.
fn millimetres(pixels: u32) -> u32 {
    (pixels * 254 / 960).min(MAX_FIELD)
}

/// The EDID of a display: one or two blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edid {
    bytes: [u8; 2 * BLOCK],
    len: usize,
}

impl Edid {
    /// The EDID of a display of this size, from 1 to 65,535 pixels a side, whose vblanks come every `period`.
    pub fn new(width: u32, height: u32, period: Period) -> Self {
        let side = 1..=u32::from(u16::MAX);
        let (width, height) =
            (width.clamp(*side.start(), *side.end()), height.clamp(*side.start(), *side.end()));
        let timing = Timing::new(width, height, period);
        let mut edid = Self { bytes: [0; 2 * BLOCK], len: BLOCK };
        if timing.fits() {
            edid.base(width, height, &timing, 0);
        } else {
            let (w, h, hz) = FALLBACK;
            let usual = Period::from_hz(hz, 1).unwrap_or(period);
            edid.base(width, height, &Timing::new(w, h, usual), 1);
            edid.extension(&timing);
            edid.len = 2 * BLOCK;
        }
        edid
    }

    /// The blocks.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The base block (E-EDID 1.4, 3.1).
    fn base(&mut self, width: u32, height: u32, timing: &Timing, extensions: u8) {
        let block = &mut self.bytes[..BLOCK];
        block[1..7].fill(0xff);
        // The manufacturer: three letters of 5 bits, "BML".
        block[8..10].copy_from_slice(&letters(*b"BML").to_be_bytes());
        block[10] = 1;
        // Made in 1990 + 36, week not told; EDID 1.4.
        block[17..20].copy_from_slice(&[36, 1, 4]);
        // Digital, 8 bits per colour.
        block[20] = 0xa0;
        block[21] = (millimetres(width) / 10).clamp(1, 255) as u8;
        block[22] = (millimetres(height) / 10).clamp(1, 255) as u8;
        // Gamma 2.2; sRGB, and the first timing is the native mode.
        block[23..25].copy_from_slice(&[120, 0x06]);
        // sRGB's chromaticities.
        block[25..35]
            .copy_from_slice(&[0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54]);
        // No established timings; standard timings not in use.
        block[38..54].fill(1);
        block[54..72].copy_from_slice(&timing.descriptor());
        block[72..90].copy_from_slice(b"\0\0\0\xfc\0Beamline\n    ");
        for unused in [90, 108] {
            block[unused + 3] = 0x10;
        }
        block[126] = extensions;
        block[127] = checksum(&block[..127]);
    }

    /// The extension block with a DisplayID section.
    fn extension(&mut self, timing: &Timing) {
        let block = &mut self.bytes[BLOCK..];
        block[0] = 0x70;
        // Version 1.3, 23 bytes, an extension, no other sections; then a block of one type I timing.
        block[1..8].copy_from_slice(&[0x13, 23, 0, 0, 3, 0, 20]);
        block[8..28].copy_from_slice(&timing.displayid());
        block[28] = checksum(&block[1..28]);
        block[127] = checksum(&block[..127]);
    }
}

/// What makes the sum of all bytes 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

fn letters(name: [u8; 3]) -> u16 {
    name.iter().fold(0, |all, letter| all << 5 | u16::from(letter - b'A' + 1))
}

#[cfg(test)]
#[path = "edid_tests.rs"]
mod tests;
