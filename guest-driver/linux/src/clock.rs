//! The pacer as a clock for a program that needs no interrupts of it: its BARs through sysfs, without VFIO.
//!
//! Memory access must be on before: write 1 to the function's `enable`.

use crate::mapping::Mapping;
use beamline_abi::pacer::{self, TimingPage, control, reg};
use beamline_guest_driver::transport::Width;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use std::mem::offset_of;
use std::os::fd::OwnedFd;

/// The pacer cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// A BAR cannot be mapped.
    #[error("{path} cannot be mapped: {errno}")]
    Map {
        /// Its file.
        path: String,
        /// Why.
        errno: Errno,
    },
    /// Something else is at that address.
    #[error("the function at {0} is no pacer: its first register says {1:#x}")]
    NoPacer(String, u64),
}

/// A pacer whose vblanks are on.
#[derive(Debug)]
pub struct VblankClock {
    registers: Mapping,
    page: Mapping,
}

impl VblankClock {
    /// Switches the vblanks of the pacer at a PCI address on.
    ///
    /// # Errors
    /// Its BARs cannot be mapped, or they are no pacer's.
    pub fn open(address: &str) -> Result<Self, ClockError> {
        let registers =
            bar(address, 0, OFlags::RDWR, |file| Mapping::of(file, 0, pacer::BAR0_SIZE as usize))?;
        // A guest that writes to the page may end its own VMM.
        let page = bar(address, 2, OFlags::RDONLY, |file| {
            Mapping::read_only(file, 0, pacer::BAR2_SIZE as usize)
        })?;
        let magic = registers.read(reg::MAGIC.into(), Width::Dword);
        if magic != u64::from(pacer::MAGIC) {
            return Err(ClockError::NoPacer(address.into(), magic));
        }
        let clock = Self { registers, page };
        clock.control(control::VBLANK_ENABLE);
        Ok(clock)
    }

    /// The latest vblank's number; 0 before the first. One aligned field, so that the page's lock is not needed.
    pub fn vblank(&self) -> u64 {
        self.page.read(offset_of!(TimingPage, vblank_seq) as u64, Width::Qword)
    }

    fn control(&self, bits: u32) {
        self.registers.write(reg::CONTROL.into(), Width::Dword, bits.into());
    }
}

impl Drop for VblankClock {
    fn drop(&mut self) {
        self.control(0);
    }
}

fn bar(
    address: &str,
    number: u32,
    access: OFlags,
    map: impl FnOnce(OwnedFd) -> Result<Mapping, Errno>,
) -> Result<Mapping, ClockError> {
    let path = format!("/sys/bus/pci/devices/{address}/resource{number}");
    let mapped = open(&path, access | OFlags::CLOEXEC, Mode::empty()).and_then(map);
    mapped.map_err(|errno| ClockError::Map { path, errno })
}
