//! EDIDs, read back by a parser that shares nothing with the writer.

use super::*;
use proptest::prelude::*;

/// What a reader finds.
#[derive(Debug, PartialEq)]
struct Mode {
    width: u32,
    height: u32,
    h_total: u32,
    v_total: u32,
    clock_hz: u64,
}

impl Mode {
    fn hz(&self) -> f64 {
        self.clock_hz as f64 / f64::from(self.h_total) / f64::from(self.v_total)
    }
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().map(|b| u32::from(*b)).sum::<u32>().is_multiple_of(256)
}

/// The preferred mode and the monitor's name.
fn parse(edid: &[u8]) -> (Mode, String) {
    assert_eq!(edid[..8], [0, 255, 255, 255, 255, 255, 255, 0], "no header");
    assert_eq!(edid[18..20], [1, 4], "version");
    assert_eq!(edid.len(), 128 * (1 + usize::from(edid[126])), "blocks");
    assert!(edid.chunks(128).all(sums_to_zero), "a checksum");
    let maker = u16::from_be_bytes([edid[8], edid[9]]);
    let letter = |shift: u16| char::from(b'@' + (maker >> shift & 31) as u8);
    assert_eq!([letter(10), letter(5), letter(0)], ['B', 'M', 'L']);

    let mut name = String::new();
    for d in edid[54..126].chunks(18) {
        if d[..5] == [0, 0, 0, 0xfc, 0] {
            name = d[5..].iter().map(|b| char::from(*b)).take_while(|c| *c != '\n').collect();
        }
    }
    if edid[126] == 1 {
        return (displayid(&edid[128..]), name);
    }
    (detailed(&edid[54..72]), name)
}

fn detailed(d: &[u8]) -> Mode {
    let n = |low: usize, high: usize, shift: u32| {
        u32::from(d[low]) + 256 * (u32::from(d[high]) >> shift & 15)
    };
    let (width, h_blank) = (n(2, 4, 4), n(3, 4, 0));
    let (height, v_blank) = (n(5, 7, 4), n(6, 7, 0));
    let (h_front, h_sync) = (u32::from(d[8]), u32::from(d[9]));
    let (v_front, v_sync) = (u32::from(d[10] >> 4), u32::from(d[10] & 15));
    assert_eq!(d[11], 0);
    assert!(h_front > 0 && h_sync > 0 && h_front + h_sync < h_blank);
    assert!(v_front > 0 && v_sync > 0 && v_front + v_sync < v_blank);
    assert_eq!(d[17] & 0x98, 0x18, "digital separate sync, not interlaced");
    let clock_hz = 10_000 * u64::from(u16::from_le_bytes([d[0], d[1]]));
    assert_ne!(clock_hz, 0, "not a timing");
    Mode { width, height, h_total: width + h_blank, v_total: height + v_blank, clock_hz }
}

fn displayid(block: &[u8]) -> Mode {
    assert_eq!((block[0], block[1]), (0x70, 0x13));
    let section = &block[1..];
    let len = usize::from(section[1]) + 5;
    assert!(sums_to_zero(&section[..len]), "the section's checksum");
    let data = &section[4..len - 1];
    assert_eq!((data[0], usize::from(data[2])), (3, data.len() - 3), "type I timings");
    let t = &data[3..];
    assert_eq!(t.len(), 20);
    assert_ne!(t[3] & 0x80, 0, "preferred");
    let n = |at: usize| u32::from(u16::from_le_bytes([t[at], t[at + 1]]) & 0x7fff) + 1;
    let clock = u64::from(t[0]) | u64::from(t[1]) << 8 | u64::from(t[2]) << 16;
    let (width, height) = (n(4), n(12));
    assert!(n(8) + n(10) < n(6) && n(16) + n(18) < n(14));
    Mode {
        width,
        height,
        h_total: width + n(6),
        v_total: height + n(14),
        clock_hz: (clock + 1) * 10_000,
    }
}

fn made(width: u32, height: u32, num: u64, den: u64) -> (Mode, usize) {
    let edid = Edid::new(width, height, Period::from_hz(num, den).unwrap());
    let (mode, name) = parse(edid.as_bytes());
    assert_eq!(name, "Beamline");
    assert_eq!((mode.width, mode.height), (width, height));
    (mode, edid.as_bytes().len())
}

#[test]
fn usual_modes_are_within_a_few_parts_in_a_million() {
    for (width, height, num, den, bytes) in [
        (1920, 1080, 60, 1, 128),
        (1920, 1080, 60_000, 1001, 128),
        (1280, 720, 90, 1, 128),
        (512, 288, 72, 1, 128),
        (640, 480, 120, 1, 128),
        (2560, 1440, 90, 1, 128),
        (3840, 2160, 60, 1, 128),
        (4095, 64, 60, 1, 128),
        (4096, 64, 60, 1, 256),
        (3840, 2160, 120, 1, 256),
        (4096, 4096, 90, 1, 256),
    ] {
        let (mode, len) = made(width, height, num, den);
        let hz = num as f64 / den as f64;
        let error = (mode.hz() / hz - 1.0).abs();
        assert!(error < 10e-6, "{width}x{height} at {hz}: {} Hz, off by {error:e}", mode.hz());
        assert_eq!(len, bytes, "{width}x{height} at {hz}");
    }
}

#[test]
fn the_base_block_of_two_has_a_mode_of_its_own() {
    let edid = Edid::new(4096, 2160, Period::from_hz(144, 1).unwrap());
    let mode = detailed(&edid.as_bytes()[54..72]);
    assert_eq!((mode.width, mode.height), (1024, 768));
    assert!((mode.hz() - 60.0).abs() < 0.001);
}

proptest! {
    /// No size and rate that a configuration may have is off by more than the clock's own step.
    #[test]
    fn every_mode_reads_back(
        width in 16u32..=4096,
        height in 16u32..=4096,
        num in 1u64..=1000,
        den in 1u64..=10,
    ) {
        let Some(period) = Period::from_hz(num, den) else { return Ok(()) };
        let (mode, _) = parse(Edid::new(width, height, period).as_bytes());
        prop_assert_eq!((mode.width, mode.height), (width, height));
        let pixels = f64::from(mode.h_total) * f64::from(mode.v_total);
        let wanted = pixels * num as f64 / den as f64;
        prop_assert!((mode.clock_hz as f64 - wanted).abs() <= 5_001.0 || wanted < 10_000.0);
    }
}
