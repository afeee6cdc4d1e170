//! A device of the host, by its event device (linux/input.h). The crate evdev finds out what it is; events
//! are read here, with the eventfd beside them.

use super::events::{EV_SYN, Event, InputSender, SYN_REPORT};
use super::registers::{AbsInfo, Description, set};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a `struct input_event` on 64-bit machines: a time, type, code, value.
const RECORD: usize = 24;
/// Most events of a report; a longer one is dropped.
const MOST: usize = 64;
/// The kernel dropped events: what follows, up to the next report's end, is incomplete.
const SYN_DROPPED: u16 = 3;
/// Most codes of a type.
const CODES: u16 = 0x300;

/// Why a device of the host cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EvdevError {
    /// It cannot be opened.
    #[error("{}: cannot be opened as an event device (/dev/input/event*)", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another program has it for itself.
    #[error("{}: another program has it for itself", path.display())]
    Grab {
        /// The device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// An event device, which only the guest gets the events of.
#[derive(Debug)]
pub struct Evdev {
    fd: OwnedFd,
    description: Description,
}

impl Evdev {
    /// Opens `path` and takes its events from everybody else.
    pub fn open(path: &Path) -> Result<Self, EvdevError> {
        let failed = |source| EvdevError::Open { path: path.to_owned(), source };
        let mut device = evdev::Device::open(path).map_err(failed)?;
        device.grab().map_err(|source| EvdevError::Grab { path: path.to_owned(), source })?;
        device.set_nonblocking(true).map_err(failed)?;
        let description = describe(&device).map_err(failed)?;
        // The grab is the open file's, which both descriptors share.
        let fd = device.as_fd().try_clone_to_owned().map_err(failed)?;
        Ok(Self { fd, description })
    }

    /// What it is.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// A device whose events come from a pipe.
    #[cfg(test)]
    pub(super) fn from_pipe(fd: OwnedFd, description: Description) -> Self {
        Self { fd, description }
    }
}

fn describe(device: &evdev::Device) -> io::Result<Description> {
    let id = device.input_id();
    let mut this = Description {
        name: device.name().unwrap_or("input").to_owned(),
        ids: [id.bus_type().0, id.vendor(), id.product(), id.version()],
        ..Description::default()
    };
    for property in device.properties() {
        set(&mut this.properties, property.0);
    }
    let mut add = |kind: evdev::EventType, codes: Vec<u16>| {
        let bits = this.events.entry(kind.0).or_default();
        codes.into_iter().filter(|c| *c < CODES).for_each(|code| set(bits, code));
    };
    if let Some(keys) = device.supported_keys() {
        add(evdev::EventType::KEY, keys.iter().map(|k| k.0).collect());
    }
    if let Some(axes) = device.supported_relative_axes() {
        add(evdev::EventType::RELATIVE, axes.iter().map(|a| a.0).collect());
    }
    if let Some(axes) = device.supported_absolute_axes() {
        add(evdev::EventType::ABSOLUTE, axes.iter().map(|a| a.0).collect());
    }
    if let Some(switches) = device.supported_switches() {
        add(evdev::EventType::SWITCH, switches.iter().map(|s| s.0).collect());
    }
    if let Some(misc) = device.misc_properties() {
        add(evdev::EventType::MISC, misc.iter().map(|m| m.0).collect());
    }
    for (code, axis) in device.get_absinfo()? {
        let axis = AbsInfo {
            min: axis.minimum(),
            max: axis.maximum(),
            fuzz: axis.fuzz(),
            flat: axis.flat(),
            resolution: axis.resolution(),
        };
        this.axes.insert(code.0, axis);
    }
    Ok(this)
}

/// Reads a device's events, a report at a time.
pub(super) struct Reader {
    device: Arc<Evdev>,
    report: Vec<Event>,
    /// What is gathered is incomplete.
    broken: bool,
    /// The device was unplugged.
    gone: bool,
}

impl Reader {
    pub(super) fn new(device: Arc<Evdev>) -> Self {
        Self { device, report: Vec::with_capacity(MOST), broken: false, gone: false }
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        (!self.gone).then(|| self.device.fd.as_fd())
    }

    /// Passes on what there is. A report that the guest has no room for is dropped.
    pub(super) fn read(&mut self, sender: &InputSender) {
        let mut bytes = [0; RECORD * 64];
        match rustix::io::read(&self.device.fd, &mut bytes) {
            Ok(0) => self.lose(Errno::NODEV),
            Ok(len) => bytes[..len].chunks_exact(RECORD).for_each(|r| self.take(r, sender)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(e) => self.lose(e),
        }
    }

    fn lose(&mut self, e: Errno) {
        self.gone = true;
        tracing::warn!("{}: the device is gone ({e})", self.device.description.name);
    }

    fn take(&mut self, record: &[u8], sender: &InputSender) {
        let half = |at: usize| u16::from_le_bytes([record[at], record[at + 1]]);
        let value = i32::from_le_bytes([record[20], record[21], record[22], record[23]]);
        let event = Event { kind: half(16), code: half(18), value };
        match (event.kind, event.code) {
            (EV_SYN, SYN_REPORT) => {
                if !self.broken && !self.report.is_empty() {
                    // Where the guest does not keep up, older news matter more than newer ones.
                    let _ = sender.send(&self.report);
                }
                self.report.clear();
                self.broken = false;
            }
            (EV_SYN, SYN_DROPPED) => self.broken = true,
            (EV_SYN, _) => {}
            _ if self.report.len() == MOST => self.broken = true,
            _ => self.report.push(event),
        }
    }
}
