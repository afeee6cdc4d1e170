//! Stage 8, posted interrupt: the guest's MSI-X table decides which eventfds are irqfds.
//!
//! The VMM owns table, masks and pending bits (PCI 3.0, section 6.8.2); the function, be it ours or a
//! server's, only knows an eventfd per vector. Per vector, from the moment the guest enables MSI-X:
//!
//! ```text
//!              unmask: route, attach irqfd          signal ─► KVM injects
//!   ┌────────┐ ───────────────────────────► ┌──────┐
//!   │ masked │                              │ live │
//!   └────────┘ ◄─────────────────────────── └──────┘
//!   signal ─►   mask: detach irqfd
//!   the eventfd stays readable: that is the pending bit
//! ```
//!
//! KVM empties the eventfd whenever it injects, and when an irqfd is detached; attaching one to a
//! readable eventfd injects. So a signal is delivered exactly once, whichever way it meets a mask.

use super::wiring::Wiring;
use crate::interrupt::{Gsi, MsiMessage};
use crate::platform::PlatformError;
use beamline_abi::pci::msix;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most vectors of a function that is attached; each costs a file descriptor.
const MAX_VECTORS: u16 = 256;
/// Eventfds in one message: servers bound this.
const BATCH: usize = 8;
const ENTRY: u64 = msix::ENTRY_SIZE as u64;

/// Why a function's MSI-X capability cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MsixError {
    /// Too many vectors.
    #[error("it has {0} MSI-X vectors; at most {MAX_VECTORS} can be attached")]
    Vectors(u16),
    /// The server says something else.
    #[error("its MSI-X capability has {table} vectors, but the server offers {server}")]
    Count {
        /// According to the capability.
        table: u16,
        /// According to the interrupt information.
        server: u32,
    },
    /// Table or pending bits are outside the BAR.
    #[error("its MSI-X {what} is at {offset:#x} of BAR{bar}, which is not inside that BAR")]
    Place {
        /// Table or pending bits.
        what: &'static str,
        /// The BAR.
        bar: usize,
        /// Offset in bytes.
        offset: u64,
    },
    /// They overlap.
    #[error("its MSI-X table and pending bits overlap")]
    Overlap,
}

/// Where a structure lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The BAR.
    pub bar: usize,
    /// Its bytes.
    pub range: Range<u64>,
}

/// A function's MSI-X capability, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Offset in configuration space.
    pub at: u16,
    /// Number of vectors.
    pub vectors: u16,
    /// The table.
    pub table: Place,
    /// The pending bits.
    pub pba: Place,
}

impl Capability {
    /// Checks the capability `raw` at `at`, against the BARs' sizes and the server's vectors.
    pub fn check(
        at: u16,
        raw: [u8; msix::CAP_SIZE as usize],
        bar_sizes: &[u64; 6],
        server: u32,
    ) -> Result<Self, MsixError> {
        let word = |i: u16| {
            let i = usize::from(i);
            u32::from_le_bytes([raw[i], raw[i + 1], raw[i + 2], raw[i + 3]])
        };
        let vectors = (u16::from_le_bytes([raw[2], raw[3]]) & 0x7ff) + 1;
        if vectors > MAX_VECTORS {
            return Err(MsixError::Vectors(vectors));
        }
        if u32::from(vectors) != server {
            return Err(MsixError::Count { table: vectors, server });
        }
        let place = |what, word: u32, size: u64| {
            let (bar, offset) = ((word & 7) as usize, u64::from(word & !7));
            let end = offset + size;
            if bar_sizes.get(bar).is_none_or(|s| end > *s) {
                return Err(MsixError::Place { what, bar, offset });
            }
            Ok(Place { bar, range: offset..end })
        };
        let table = place("table", word(msix::TABLE), u64::from(vectors) * ENTRY)?;
        let pba_size = u64::from(vectors).div_ceil(64) * 8;
        let pba = place("pending-bit array", word(msix::PBA), pba_size)?;
        let overlap = table.range.start < pba.range.end && pba.range.start < table.range.end;
        if table.bar == pba.bar && overlap {
            return Err(MsixError::Overlap);
        }
        Ok(Self { at, vectors, table, pba })
    }
}

/// Who signals a function's vectors.
pub trait Signaller {
    /// Why it does not take eventfds.
    type Error;
    /// From now on it signals `fds` for the vectors from `start` on: at most 8 in one call.
    fn set(&mut self, start: u32, fds: &[BorrowedFd<'_>]) -> Result<(), Self::Error>;
    /// It forgets the eventfds of the first `count` vectors.
    fn clear(&mut self, count: u32) -> Result<(), Self::Error>;
}

/// A vector that can be signalled.
#[derive(Debug)]
struct Wire {
    event: OwnedFd,
    gsi: Gsi,
    /// The irqfd is attached.
    live: bool,
}

impl Wire {
    fn pending(&self) -> bool {
        let mut fds = [PollFd::new(&self.event, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        !self.live && rustix::event::poll(&mut fds, Some(&now)) == Ok(1)
    }
}

#[derive(Debug)]
struct Vector {
    message: MsiMessage,
    masked: bool,
    wire: Option<Wire>,
}

impl Vector {
    const RESET: Self =
        Self { message: MsiMessage { address: 0, data: 0 }, masked: true, wire: None };
}

/// A function's MSI-X state.
#[derive(Debug)]
pub struct Msix {
    capability: Capability,
    vectors: Vec<Vector>,
    enabled: bool,
    all_masked: bool,
}

impl Msix {
    /// Disabled, every vector masked.
    pub fn new(capability: Capability) -> Self {
        let vectors = (0..capability.vectors).map(|_| Vector::RESET).collect();
        Self { capability, vectors, enabled: false, all_masked: false }
    }

    /// The capability.
    pub fn capability(&self) -> &Capability {
        &self.capability
    }

    /// Puts message control over `data`, read at `offset` of configuration space.
    pub fn overlay_control(&self, offset: u16, data: &mut [u8]) {
        let control = (self.capability.vectors - 1)
            | if self.enabled { msix::CONTROL_ENABLE } else { 0 }
            | if self.all_masked { msix::CONTROL_MASK_ALL } else { 0 };
        for (value, at) in
            control.to_le_bytes().into_iter().zip(self.capability.at + msix::CONTROL..)
        {
            if let Some(byte) = at.checked_sub(offset).and_then(|i| data.get_mut(usize::from(i))) {
                *byte = value;
            }
        }
    }

    /// Takes what `data`, written at `offset` of configuration space, says about the enable and mask bits.
    pub fn write_control<S: Signaller>(
        &mut self,
        wiring: &mut dyn Wiring,
        signaller: &mut S,
        offset: u16,
        data: &[u8],
    ) -> Result<(), S::Error> {
        let high = self.capability.at + msix::CONTROL + 1;
        let Some(byte) = high.checked_sub(offset).and_then(|i| data.get(usize::from(i))) else {
            return Ok(());
        };
        let control = u16::from(*byte) << 8;
        let enable = control & msix::CONTROL_ENABLE != 0;
        self.all_masked = control & msix::CONTROL_MASK_ALL != 0;
        let result = match (self.enabled, enable) {
            (false, true) => self.wire_up(wiring, signaller),
            (true, false) => {
                self.enabled = false;
                self.refresh_all(wiring);
                self.unwire(wiring, signaller)
            }
            _ => Ok(()),
        };
        self.enabled = enable;
        self.refresh_all(wiring);
        result
    }

    /// The function was reset: all masked and disabled.
    pub fn reset<S: Signaller>(
        &mut self,
        wiring: &mut dyn Wiring,
        signaller: &mut S,
    ) -> Result<(), S::Error> {
        (self.enabled, self.all_masked) = (false, false);
        self.refresh_all(wiring);
        let result = self.unwire(wiring, signaller);
        self.vectors.fill_with(|| Vector::RESET);
        result
    }

    /// Reads the table from `offset` of it on; beyond its end, zeros.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            let index = usize::try_from(at / ENTRY).unwrap_or(usize::MAX);
            *byte = self.vectors.get(index).map_or(0, |v| {
                let entry = [
                    v.message.address as u32,
                    (v.message.address >> 32) as u32,
                    v.message.data,
                    u32::from(v.masked),
                ];
                (entry[(at % ENTRY / 4) as usize] >> (8 * (at % 4))) as u8
            });
        }
    }

    /// Writes the table from `offset` of it on: aligned accesses of 4 or 8 bytes, as the specification
    /// asks; others are dropped.
    pub fn write_table(&mut self, wiring: &mut dyn Wiring, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        let index = usize::try_from(offset / ENTRY).unwrap_or(usize::MAX);
        let Some(v) = self.vectors.get_mut(index) else { return };
        for (word, field) in data.chunks_exact(4).zip(offset % ENTRY / 4..) {
            let value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            match field {
                0 => v.message.address = v.message.address >> 32 << 32 | u64::from(value & !3),
                1 => {
                    v.message.address =
                        u64::from(value) << 32 | v.message.address & u64::from(u32::MAX);
                }
                2 => v.message.data = value,
                _ => v.masked = value & msix::ENTRY_MASKED != 0,
            }
        }
        self.refresh(wiring, index);
    }

    /// Reads the pending bits from `offset` of them on.
    pub fn read_pba(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            let first = usize::try_from(at.saturating_mul(8)).unwrap_or(usize::MAX);
            *byte = (0..8).fold(0, |bits, bit| {
                let wire =
                    self.vectors.get(first.saturating_add(bit)).and_then(|v| v.wire.as_ref());
                bits | u8::from(wire.is_some_and(Wire::pending)) << bit
            });
        }
    }

    /// Gives every vector an eventfd and tells who signals it: signals that come before a vector is first
    /// unmasked are pending then.
    fn wire_up<S: Signaller>(
        &mut self,
        wiring: &mut dyn Wiring,
        signaller: &mut S,
    ) -> Result<(), S::Error> {
        for (index, v) in self.vectors.iter_mut().enumerate() {
            match new_wire(wiring) {
                Ok(wire) => v.wire = Some(wire),
                Err(e) => {
                    tracing::warn!("MSI-X vectors from {index} on stay silent: {e}");
                    break;
                }
            }
        }
        let fds: Vec<BorrowedFd<'_>> =
            self.vectors.iter().map_while(|v| v.wire.as_ref().map(|w| w.event.as_fd())).collect();
        for (start, batch) in (0..).step_by(BATCH).zip(fds.chunks(BATCH)) {
            signaller.set(start, batch)?;
        }
        Ok(())
    }

    /// Takes the eventfds back. No irqfd is attached.
    fn unwire<S: Signaller>(
        &mut self,
        wiring: &mut dyn Wiring,
        signaller: &mut S,
    ) -> Result<(), S::Error> {
        let mut wired = false;
        for wire in self.vectors.iter_mut().filter_map(|v| v.wire.take()) {
            wiring.give_gsi(wire.gsi);
            wired = true;
        }
        if wired {
            signaller.clear(u32::from(self.capability.vectors))?;
        }
        Ok(())
    }

    fn refresh_all(&mut self, wiring: &mut dyn Wiring) {
        for index in 0..self.vectors.len() {
            self.refresh(wiring, index);
        }
    }

    /// Brings a vector's irqfd and route in line with its masks and message.
    fn refresh(&mut self, wiring: &mut dyn Wiring, index: usize) {
        let on = self.enabled && !self.all_masked;
        let Some(v) = self.vectors.get_mut(index) else { return };
        let Some(wire) = v.wire.as_mut() else { return };
        let live = on && !v.masked;
        let result = match (wire.live, live) {
            (false, true) => wiring
                .route(wire.gsi, v.message)
                .and_then(|()| wiring.attach_irqfd(wire.event.as_fd(), wire.gsi)),
            (true, false) => wiring.detach_irqfd(wire.event.as_fd(), wire.gsi),
            (true, true) => wiring.route(wire.gsi, v.message),
            (false, false) => return,
        };
        match result {
            Ok(()) => wire.live = live,
            Err(e) => tracing::warn!("MSI-X vector {index} cannot change: {e}"),
        }
    }
}

fn new_wire(wiring: &mut dyn Wiring) -> Result<Wire, WireError> {
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    Ok(Wire { event, gsi: wiring.take_gsi()?, live: false })
}

/// Why a vector has no eventfd.
#[derive(Debug, thiserror::Error)]
enum WireError {
    #[error("no eventfd: {0}")]
    Event(#[from] rustix::io::Errno),
    #[error(transparent)]
    Gsi(#[from] PlatformError),
}

#[cfg(test)]
mod tests;
