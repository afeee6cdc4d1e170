//! MSI-X of a function whose interrupts come to this process as eventfds.
//!
//! Somebody else owns the table, a kernel or a server: what the driver writes there only says which vectors it wants.

use beamline_abi::pci::{capability, config, msix};
use beamline_guest_driver::transport::{Gpa, Width};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, read};
use std::ops::Range;
use std::os::fd::OwnedFd;

/// Longest list of capabilities.
const MAX_CAPABILITIES: usize = 48;

/// MSI-X of one function.
#[derive(Debug)]
pub struct Vectors {
    /// Offset of message control in configuration space.
    control: u16,
    /// Addresses of the table.
    table: Range<u64>,
    /// Vectors from 0 on that the driver has asked for.
    wanted: u32,
    events: Vec<OwnedFd>,
    counts: Vec<u64>,
}

impl Vectors {
    /// Those of the function whose configuration space `read` reads and whose BARs are at `bars`, 0 for none;
    /// `None` where it has no MSI-X.
    pub fn find(mut read: impl FnMut(u16, Width) -> u32, bars: &[u64; 6]) -> Option<Self> {
        let at = find_capability(&mut read, capability::MSIX)?;
        let table = read(at + msix::TABLE, Width::Dword);
        let count = u64::from(read(at + msix::CONTROL, Width::Word) & 0x7ff) + 1;
        let bar = bars.get((table & 7) as usize).copied().unwrap_or(0);
        let start = bar.saturating_add(u64::from(table & !7));
        let table = start..start.saturating_add(count * u64::from(msix::ENTRY_SIZE));
        let control = at + msix::CONTROL;
        Some(Self { control, table, wanted: 0, events: Vec::new(), counts: Vec::new() })
    }

    /// Takes a write to device memory; whether it was one to the table.
    pub fn take_write(&mut self, gpa: Gpa) -> bool {
        let within = self.table.contains(&gpa.0);
        if within {
            let entry = (gpa.0 - self.table.start) / u64::from(msix::ENTRY_SIZE);
            self.wanted = self.wanted.max(entry as u32 + 1);
        }
        within
    }

    /// Whether message control is at `offset` of configuration space.
    pub const fn is_control(&self, offset: u16) -> bool {
        self.control == offset
    }

    /// How many vectors a write of `value` to message control switches on; `None` where it switches on none.
    pub fn starts(&self, value: u32) -> Option<u32> {
        let on = value & u32::from(msix::CONTROL_ENABLE) != 0;
        (on && self.events.is_empty()).then_some(self.wanted)
    }

    /// Signals come as `events` from now on, from vector 0 on.
    pub fn switch_on(&mut self, events: Vec<OwnedFd>) {
        self.counts = vec![0; events.len()];
        self.events = events;
    }

    /// The eventfds, by vector.
    pub fn events(&self) -> &[OwnedFd] {
        &self.events
    }

    /// Counts what has come since the last time; whether anything has.
    pub fn collect(&mut self) -> bool {
        let mut any = false;
        for (event, count) in self.events.iter().zip(&mut self.counts) {
            let mut more = [0; 8];
            if matches!(read(event, &mut more), Ok(8)) {
                *count = count.saturating_add(u64::from_ne_bytes(more));
                any = true;
            }
        }
        any
    }

    /// How many interrupts of a vector have come.
    pub fn count(&self, vector: u16) -> u64 {
        self.counts.get(usize::from(vector)).copied().unwrap_or(0)
    }
}

/// Makes eventfds for `count` vectors, to be read without waiting.
///
/// # Errors
/// The kernel's.
pub fn eventfds(count: u32) -> Result<Vec<OwnedFd>, Errno> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    (0..count).map(|_| eventfd(0, flags)).collect()
}

fn find_capability(read: &mut impl FnMut(u16, Width) -> u32, wanted: u8) -> Option<u16> {
    let mut at = read(config::CAPABILITIES, Width::Byte) as u16 & 0xfc;
    for _ in 0..MAX_CAPABILITIES {
        if at == 0 {
            return None;
        }
        let head = read(at, Width::Word);
        if head as u8 == wanted {
            return Some(at);
        }
        at = (head >> 8) as u16 & 0xfc;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A configuration space with an MSI-X capability at 0x50 behind another one: 3 vectors, their table at 0x800 of
    /// BAR1.
    fn space() -> Vec<u8> {
        let mut space = vec![0; 256];
        space[usize::from(config::CAPABILITIES)] = 0x40;
        space[0x40..0x42].copy_from_slice(&[capability::VENDOR, 0x50]);
        space[0x50] = capability::MSIX;
        space[usize::from(0x50 + msix::CONTROL)] = 2;
        space[usize::from(0x50 + msix::TABLE)..][..4].copy_from_slice(&0x801u32.to_le_bytes());
        space
    }

    fn find(space: &[u8]) -> Option<Vectors> {
        let read = |at: u16, width: Width| {
            let mut value = [0; 4];
            let len = width.bytes() as usize;
            value[..len].copy_from_slice(&space[usize::from(at)..][..len]);
            u32::from_le_bytes(value)
        };
        Vectors::find(read, &[0, 0x10_0000, 0, 0, 0, 0])
    }

    #[test]
    fn what_is_written_to_the_table_is_switched_on_and_counted() {
        let mut vectors = find(&space()).unwrap();
        let enable = msix::CONTROL_ENABLE.into();
        assert!(!vectors.take_write(Gpa(0x10_0000)) && !vectors.take_write(Gpa(0x10_0830)));
        assert!(vectors.take_write(Gpa(0x10_081c)));
        assert!(vectors.is_control(0x50 + msix::CONTROL));
        assert_eq!((vectors.starts(0), vectors.starts(enable)), (None, Some(2)));
        vectors.switch_on(eventfds(2).unwrap());
        assert_eq!(vectors.starts(enable), None);
        assert!(!vectors.collect());
        for _ in 0..2 {
            rustix::io::write(&vectors.events()[1], &3u64.to_ne_bytes()).unwrap();
            assert!(vectors.collect());
        }
        assert_eq!([0, 1, 2].map(|v| vectors.count(v)), [0, 6, 0]);
    }

    #[test]
    fn a_list_that_is_a_loop_ends() {
        let mut space = space();
        space[0x50] = capability::VENDOR;
        space[0x51] = 0x40;
        assert!(find(&space).is_none());
        assert!(find(&[0xff; 512]).is_none());
    }
}
