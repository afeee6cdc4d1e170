//! Where BARs may be, and where they are before the guest runs. Pure functions.

use super::bar::BarShape;
use crate::Gpa;
use std::ops::RangeInclusive;

/// First address of the window below 4 GiB. RAM ends below.
pub const WINDOW: u64 = 0xc000_0000;
/// End of it: configuration space, the I/O APIC, the local APIC and KVM's own pages follow.
pub const WINDOW_END: u64 = ECAM;
/// Configuration space as memory (PCI Express 6.0, section 7.2.2).
pub const ECAM: u64 = 0xfeb0_0000;
/// Its bytes: 32 slots of 8 functions of 4 KiB. Each further bus takes as many.
pub const ECAM_SIZE: u64 = 1 << 20;
/// Configuration space of a guest with root ports: there is room for 16 buses.
pub const ECAM_WITH_PORTS: u64 = 0xfc00_0000;
/// Most root ports.
pub const MAX_PORTS: usize = 8;
/// What a root port passes on at first: bytes, more than our own functions take, and whole MiB.
pub const PORT_WINDOW: u64 = 32 << 20;
/// Configuration space where there is firmware: its place in OVMF, which reserves all of its 256 MiB.
pub const FIRMWARE_ECAM: u64 = 0xe000_0000;
/// Where OVMF's window starts, where RAM leaves it free.
const FIRMWARE_LOW: u64 = 0x8000_0000;
/// First address of the window above, where no RAM is there.
pub const HIGH: u64 = 1 << 32;
/// End of it: 39 bits of address are what the smallest hardware has.
pub const HIGH_END: u64 = 1 << 39;
/// What the window above starts at a multiple of.
const HIGH_ALIGN: u64 = 1 << 30;
/// BARs larger than this go above 4 GiB where they can: they would crowd the low window.
const LARGE: u64 = 256 << 20;
/// BARs are kept apart by at least a page, because a page is what can be mapped.
const PAGE: u64 = 4096;

/// A BAR does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the BARs of all functions do not fit: {size:#x} bytes of BAR{bar} of the function {seat} are over"
)]
pub struct Full {
    /// The function.
    pub seat: Seat,
    /// The BAR.
    pub bar: usize,
    /// Its size in bytes.
    pub size: u64,
}

/// Where a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    /// In this slot of bus 0.
    Slot(usize),
    /// Behind the root port in this slot of bus 0.
    Behind(usize),
}

impl std::fmt::Display for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Slot(slot) => write!(f, "in slot {slot}"),
            Self::Behind(slot) => write!(f, "behind the root port in slot {slot}"),
        }
    }
}

/// A BAR to place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The function.
    pub seat: Seat,
    /// The BAR.
    pub bar: usize,
    /// What it needs.
    pub shape: BarShape,
}

/// Where BARs may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// First address of the window below 4 GiB, which goes to `ecam`.
    low: u64,
    /// Where configuration space is.
    ecam: u64,
    /// The last bus that it has.
    last_bus: u8,
    /// First address of the window above 4 GiB, which goes to [`HIGH_END`].
    high: u64,
}

impl Default for Windows {
    fn default() -> Self {
        Self { low: WINDOW, ecam: ECAM, last_bus: 0, high: HIGH }
    }
}

impl Windows {
    /// The windows of a guest whose RAM ends at `ram_end`.
    pub fn beside(ram_end: u64) -> Self {
        // RAM ends far below: a guest has at most half of the addresses.
        let high = ram_end.max(HIGH).next_multiple_of(HIGH_ALIGN).min(HIGH_END);
        Self { high, ..Self::default() }
    }

    /// The same where there is firmware, which places BARs by itself: OVMF does so from 2 GiB on where RAM leaves
    /// that free, and below its own place for configuration space.
    pub fn of_firmware(low_ram_end: u64, ram_end: u64) -> Self {
        let low = if low_ram_end <= FIRMWARE_LOW { FIRMWARE_LOW } else { WINDOW };
        Self { low, ecam: FIRMWARE_ECAM, ..Self::beside(ram_end) }
    }

    /// The same with `ports` root ports, [`MAX_PORTS`] at most: each has a bus behind it.
    #[must_use]
    pub fn with_ports(self, ports: usize) -> Self {
        match ports.min(MAX_PORTS) {
            0 => self,
            ports => Self { ecam: ECAM_WITH_PORTS, last_bus: ports as u8, ..self },
        }
    }

    /// First address of the window below 4 GiB.
    pub fn low(self) -> Gpa {
        Gpa(self.low)
    }

    /// Where configuration space is, which is also the end of the window below 4 GiB.
    pub fn ecam(self) -> u64 {
        self.ecam
    }

    /// Bytes of configuration space.
    pub fn ecam_size(self) -> u64 {
        ECAM_SIZE * (u64::from(self.last_bus) + 1)
    }

    /// The last bus.
    pub fn last_bus(self) -> u8 {
        self.last_bus
    }

    /// What root port `index`, below [`MAX_PORTS`], passes on at first: the ports' are one below the other, from the end
    /// of the window below 4 GiB.
    pub fn of_port(self, index: usize) -> RangeInclusive<u64> {
        let end = self.ecam - PORT_WINDOW * index.min(MAX_PORTS) as u64;
        end - PORT_WINDOW..=end - 1
    }

    /// The end of the window below 4 GiB where BARs of functions on bus 0 are placed.
    fn low_end(self) -> u64 {
        self.ecam - PORT_WINDOW * u64::from(self.last_bus)
    }

    /// First address of the window above 4 GiB.
    pub fn high(self) -> Gpa {
        Gpa(self.high)
    }

    /// Whether a guest may put `size` bytes at `at`.
    pub fn allow(self, at: Gpa, size: u64) -> bool {
        let Some(end) = at.0.checked_add(size) else { return false };
        (at.0 >= self.low && end <= self.ecam) || (at.0 >= self.high && end <= HIGH_END)
    }
}

/// Places every BAR of a function on bus 0, aligned to its size, none over another: (function, BAR, address).
pub fn place(windows: Windows, mut wanted: Vec<Wanted>) -> Result<Vec<(Seat, usize, Gpa)>, Full> {
    // Largest first leaves no holes between powers of two.
    wanted.sort_by_key(|w| std::cmp::Reverse(w.shape.size));
    let (mut low, mut high) = (windows.low, windows.high);
    let mut placed = Vec::with_capacity(wanted.len());
    for Wanted { seat, bar, shape } in wanted {
        let full = Full { seat, bar, size: shape.size };
        let (next, end) = if shape.wide && shape.size > LARGE {
            (&mut high, HIGH_END)
        } else {
            (&mut low, windows.low_end())
        };
        let at = next.checked_next_multiple_of(shape.size).ok_or(full)?;
        let after = at.checked_add(shape.size.max(PAGE)).filter(|a| *a <= end).ok_or(full)?;
        *next = after;
        placed.push((seat, bar, Gpa(at)));
    }
    Ok(placed)
}

/// A BAR that a function decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The function.
    pub seat: Seat,
    /// The BAR.
    pub bar: usize,
    /// First address.
    pub at: Gpa,
    /// Bytes.
    pub size: u64,
}

impl Decoded {
    fn overlaps(&self, other: &Self) -> bool {
        // Ends do not overflow: both are in a window.
        self.at.0 < other.at.0 + other.size && other.at.0 < self.at.0 + self.size
    }
}

/// What is decoded next, given what is decoded `now` and what the registers `ask` for. A BAR outside the
/// windows is not decoded; where two overlap, the one that was there first stays.
pub fn decode(windows: Windows, now: &[Decoded], ask: &[Decoded]) -> Vec<Decoded> {
    let mut next: Vec<Decoded> = now.iter().filter(|d| ask.contains(d)).copied().collect();
    for d in ask {
        if windows.allow(d.at, d.size) && !next.iter().any(|n| n.overlaps(d)) {
            next.push(*d);
        }
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(at: Gpa, size: u64) -> bool {
        Windows::default().allow(at, size)
    }

    fn wanted(slot: usize, size: u64, wide: bool) -> Wanted {
        let seat = Seat::Slot(slot);
        Wanted { seat, bar: 0, shape: BarShape { size, wide, prefetch: false } }
    }

    #[test]
    fn bars_are_aligned_and_apart() {
        let all = vec![
            wanted(1, 0x1000, false),
            wanted(2, 16, false),
            wanted(3, 0x4000, true),
            wanted(4, 16, false),
            wanted(5, 8 << 30, true),
        ];
        let placed = place(Windows::default(), all.clone()).unwrap();
        assert_eq!(placed.len(), all.len());
        let decoded: Vec<Decoded> = placed
            .iter()
            .map(|&(seat, bar, at)| {
                let size = all.iter().find(|w| w.seat == seat).unwrap().shape.size;
                Decoded { seat, bar, at, size }
            })
            .collect();
        for (i, a) in decoded.iter().enumerate() {
            assert!(allowed(a.at, a.size) && a.at.0.is_multiple_of(a.size), "{a:?}");
            assert!(!decoded[i + 1..].iter().any(|b| a.overlaps(b)));
            assert!(!decoded[i + 1..].iter().any(|b| a.at.0 / PAGE == b.at.0 / PAGE));
        }
        assert_eq!(placed[0], (Seat::Slot(5), 0, Gpa(2 << 32)));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let e = place(Windows::default(), vec![wanted(1, 1 << 31, false)]).unwrap_err();
        assert_eq!((e.seat, e.size), (Seat::Slot(1), 1 << 31));
        assert!(place(Windows::default(), vec![wanted(1, 1 << 63, true)]).is_err());
        assert!(
            place(Windows::default(), vec![wanted(1, 1 << 62, true), wanted(2, 1 << 63, true)])
                .is_err()
        );
    }

    #[test]
    fn windows() {
        assert!(allowed(Gpa(WINDOW), 0x1000));
        assert!(!allowed(Gpa(0x10_0000), 0x1000), "RAM");
        assert!(!allowed(Gpa(0xfee0_0000), 0x1000), "local APIC");
        assert!(!allowed(Gpa(ECAM), 0x1000), "configuration space");
        assert!(!allowed(Gpa(WINDOW_END - 0x1000), 0x2000));
        assert!(!allowed(Gpa(u64::MAX - 0xfff), 0x1000), "overflow");
    }

    #[test]
    fn the_high_window_starts_above_the_ram() {
        assert_eq!(Windows::beside(WINDOW), Windows::default());
        let w = Windows::beside(HIGH + (5 << 20));
        assert_eq!(w.high(), Gpa(HIGH + HIGH_ALIGN));
        assert!(!w.allow(Gpa(HIGH), 0x1000), "RAM");
        assert!(w.allow(w.high(), 0x1000));
        let placed = place(w, vec![wanted(1, 1 << 30, true)]).unwrap();
        assert_eq!(placed, [(Seat::Slot(1), 0, w.high())]);
        assert_eq!(Windows::beside(u64::MAX >> 1).high(), Gpa(HIGH_END));
    }

    #[test]
    fn firmware_has_windows_of_its_own() {
        let small = Windows::of_firmware(512 << 20, 512 << 20);
        assert_eq!((small.low(), small.ecam()), (Gpa(0x8000_0000), 0xe000_0000));
        assert!(small.allow(Gpa(0x8000_0000), 0x1000));
        assert!(!small.allow(Gpa(FIRMWARE_ECAM), 0x1000), "configuration space");
        assert!(!small.allow(Gpa(WINDOW_END - 0x1000), 0x1000), "where it is without firmware");
        let large = Windows::of_firmware(WINDOW, HIGH + (5 << 30));
        assert_eq!((large.low(), large.high()), (Gpa(WINDOW), Gpa(HIGH + (5 << 30))));
        assert!(!large.allow(Gpa(0x8000_0000), 0x1000), "RAM");
    }

    #[test]
    fn ports_have_windows_and_buses_of_their_own() {
        let w = Windows::default();
        assert_eq!(w.with_ports(0), w);
        for ports in 1..=MAX_PORTS {
            let w = w.with_ports(ports);
            assert_eq!((w.last_bus(), w.ecam_size()), (ports as u8, (ports as u64 + 1) << 20));
            assert!(w.ecam() + w.ecam_size() <= ECAM && w.ecam().is_multiple_of(16 << 20));
            let mut end = w.ecam();
            for index in 0..ports {
                let window = w.of_port(index);
                assert_eq!(window.end() + 1, end);
                assert!(w.allow(Gpa(*window.start()), PORT_WINDOW));
                end = *window.start();
            }
            // Nothing of bus 0 is placed there.
            let all = vec![wanted(1, 256 << 20, false), wanted(2, 256 << 20, false)];
            let placed = place(w, all).unwrap();
            assert!(placed.iter().all(|(_, _, at)| at.0 + (256 << 20) <= end), "{placed:x?}");
        }
        assert_eq!(w.with_ports(99), w.with_ports(MAX_PORTS));
    }

    #[test]
    fn the_first_of_two_stays() {
        let at = |slot, at| Decoded { seat: Seat::Slot(slot), bar: 0, at: Gpa(at), size: 0x1000 };
        let now = [at(2, WINDOW)];
        assert_eq!(
            decode(Windows::default(), &now, &[at(1, WINDOW), at(2, WINDOW)]),
            [at(2, WINDOW)]
        );
        assert_eq!(decode(Windows::default(), &now, &[at(1, WINDOW)]), [at(1, WINDOW)]);
        assert_eq!(decode(Windows::default(), &now, &[at(2, 0)]), []);
        assert_eq!(
            decode(Windows::default(), &now, &[at(2, WINDOW + 0x1000)]),
            [at(2, WINDOW + 0x1000)]
        );
    }
}
