//! A function for the tests, served in-process over a real vfio-user connection.
//!
//! | BAR | size | what |
//! |---|---|---|
//! | 0 | 16 KiB | trapped; [`bar0`]; MSI-X table at 0x1000, pending bits at 0x2000 |
//! | 2 | 4 KiB | mapped, read-only; holds [`PAGE_VALUE`] |
//! | 4 | 8 KiB, 64-bit | first page mapped, writable |

use super::{eventfd, memfd, signal};
use crate::passthrough::connect::{Cutter, speak};
use crate::passthrough::link::Link;
use beamline_abi::pacer;
use beamline_abi::pci::{capability, config, status};
use beamline_vfio_user::server::{self, Stop};
use beamline_vfio_user::{
    Device, DeviceError, DeviceInfo, DmaMap, IoFd, IrqAction, IrqIndex, IrqInfo, RegionFlags,
    RegionIndex, RegionInfo, RegionMapping, SparseArea,
};
use rustix::event::{PollFd, PollFlags};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// Offsets in BAR0.
pub(crate) mod bar0 {
    /// Writing n signals vector n.
    pub(crate) const TRIGGER: u32 = 0x80;
    /// A doorbell: 4-byte writes signal an eventfd.
    pub(crate) const BELL: u32 = 0x84;
    /// A doorbell: 4-byte writes of 5 signal an eventfd.
    pub(crate) const MATCH: u32 = 0x88;
    /// Reads do not come back before the probe's gate is signalled.
    pub(crate) const HANG: u32 = 0x90;
    /// Reads 0x1234_5678.
    pub(crate) const ID: u32 = 0x8c;
}

/// What the read-only page starts with.
pub(crate) const PAGE_VALUE: u32 = 0xcafe_f00d;
/// Where the MSI-X capability is.
pub(crate) const MSIX: u16 = 0x40;
/// Where the PCI Express capability is.
pub(crate) const EXPRESS: u16 = 0x60;
/// How many vectors.
pub(crate) const VECTORS: u32 = 3;

/// What the function has seen, and its resources.
pub(crate) struct Seen {
    pub(crate) config: [u8; 256],
    /// Writes to BAR0: offset, value.
    pub(crate) writes: Vec<(u64, u32)>,
    pub(crate) maps: Vec<(u64, u64)>,
    /// Where each of them is in its file.
    pub(crate) offsets: Vec<u64>,
    /// More mappings are refused.
    pub(crate) most_maps: usize,
    pub(crate) vectors: Vec<Option<OwnedFd>>,
    pub(crate) connected: bool,
    pub(crate) hangs: bool,
    /// Mappings are not answered before the probe's gate is signalled.
    pub(crate) hangs_in_maps: bool,
}

/// The function's side that a test keeps.
#[derive(Clone)]
pub(crate) struct Probe {
    seen: Arc<Mutex<Seen>>,
    pub(crate) bell: Arc<OwnedFd>,
    pub(crate) matched: Arc<OwnedFd>,
    pub(crate) gate: Arc<OwnedFd>,
    pub(crate) page: Arc<OwnedFd>,
    pub(crate) shared: Arc<OwnedFd>,
}

impl Probe {
    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// Signals a vector as the device would; false if it has no eventfd.
    pub(crate) fn trigger(&self, vector: usize) -> bool {
        self.seen().vectors[vector].as_ref().map(signal).is_some()
    }

    /// Waits for the gate.
    fn wait(&self) {
        let mut gate = [PollFd::new(&*self.gate, PollFlags::IN)];
        rustix::event::poll(&mut gate, None).unwrap();
    }

    /// A word of one of the memfds.
    pub(crate) fn word(fd: &OwnedFd, at: u64) -> u32 {
        let mut word = [0; 4];
        rustix::io::pread(fd, &mut word, at).unwrap();
        u32::from_le_bytes(word)
    }
}

/// The function, served on a thread until it is dropped.
pub(crate) struct Served {
    pub(crate) probe: Probe,
    /// The client's end of the connection.
    tap: UnixStream,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    /// Serves a function and connects to it.
    pub(crate) fn new() -> (Self, Box<dyn Link>, Cutter) {
        let (this, ours) = Self::listening();
        let (client, cutter) = speak(Path::new("test"), ours).unwrap();
        (this, Box::new(client), cutter)
    }

    /// Serves a function to whoever speaks over this connection.
    pub(crate) fn listening() -> (Self, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let tap = ours.try_clone().unwrap();
        let probe = probe();
        let stop = Stop::new().unwrap();
        let (mut device, stop2) = (TestDevice(probe.clone()), stop.clone());
        let thread = std::thread::spawn(move || {
            let _ = server::serve(theirs, &mut device, &stop2);
        });
        (Self { probe, tap, stop, thread: Some(thread) }, ours)
    }

    /// Whether the client's end was cut.
    pub(crate) fn is_cut(&mut self) -> bool {
        self.tap.set_nonblocking(true).unwrap();
        self.tap.read(&mut [0]).is_ok_and(|length| length == 0)
    }

    /// Ends the server as if its process had died.
    pub(crate) fn die(&mut self) {
        self.stop.stop();
        signal(&self.probe.gate);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.die();
    }
}

fn probe() -> Probe {
    let page = memfd(4096, true);
    rustix::io::pwrite(&page, &PAGE_VALUE.to_le_bytes(), 0).unwrap();
    let seen = Seen {
        config: config_space(),
        writes: Vec::new(),
        maps: Vec::new(),
        offsets: Vec::new(),
        most_maps: usize::MAX,
        vectors: (0..VECTORS).map(|_| None).collect(),
        connected: true,
        hangs: false,
        hangs_in_maps: false,
    };
    Probe {
        seen: Arc::new(Mutex::new(seen)),
        bell: Arc::new(eventfd()),
        matched: Arc::new(eventfd()),
        gate: Arc::new(eventfd()),
        page: Arc::new(page),
        shared: Arc::new(memfd(8192, true)),
    }
}

fn config_space() -> [u8; 256] {
    let mut c = [0; 256];
    let mut put = |at: u16, bytes: &[u8]| {
        c[usize::from(at)..usize::from(at) + bytes.len()].copy_from_slice(bytes);
    };
    put(config::VENDOR_ID, &pacer::VENDOR_ID.to_le_bytes());
    put(config::DEVICE_ID, &pacer::DEVICE_ID.to_le_bytes());
    put(config::STATUS, &status::CAPABILITIES.to_le_bytes());
    put(config::BAR0 + 16, &0xcu32.to_le_bytes());
    put(config::CAPABILITIES, &[MSIX as u8]);
    put(MSIX, &[capability::MSIX, EXPRESS as u8, VECTORS as u8 - 1, 0]);
    put(MSIX + 4, &0x1000u32.to_le_bytes());
    put(MSIX + 8, &0x2000u32.to_le_bytes());
    put(EXPRESS, &[capability::EXPRESS, 0, 2, 0]);
    c
}

struct TestDevice(Probe);

impl Device for TestDevice {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { resettable: true }
    }

    fn region(&self, index: RegionIndex) -> RegionInfo<'_> {
        let rw = RegionFlags { read: true, write: true };
        let map = |fd, write| {
            let areas = vec![SparseArea { offset: 0, size: 4096 }];
            Some(RegionMapping { fd, fd_offset: 0, write, areas })
        };
        match index {
            RegionIndex(0) => RegionInfo { size: 0x4000, flags: rw, mapping: None },
            RegionIndex(2) => RegionInfo {
                size: 0x1000,
                flags: RegionFlags { read: true, write: false },
                mapping: map(self.0.page.as_fd(), false),
            },
            RegionIndex(4) => {
                RegionInfo { size: 0x2000, flags: rw, mapping: map(self.0.shared.as_fd(), true) }
            }
            RegionIndex::CONFIG => RegionInfo { size: 256, flags: rw, mapping: None },
            _ => RegionInfo::default(),
        }
    }

    fn irq(&self, index: IrqIndex) -> IrqInfo {
        IrqInfo { count: if index == IrqIndex::MSIX { VECTORS } else { 0 } }
    }

    fn io_fds(&self, index: RegionIndex) -> Vec<IoFd<'_>> {
        if index != RegionIndex::bar(0) {
            return Vec::new();
        }
        let bell =
            |offset: u32, fd, datamatch| IoFd { offset: offset.into(), size: 4, fd, datamatch };
        vec![
            bell(bar0::BELL, self.0.bell.as_fd(), None),
            bell(bar0::MATCH, self.0.matched.as_fd(), Some(5)),
        ]
    }

    fn region_read(
        &mut self,
        index: RegionIndex,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), DeviceError> {
        data.fill(0);
        let at = offset as usize;
        match index {
            RegionIndex::CONFIG => data.copy_from_slice(&self.0.seen().config[at..at + data.len()]),
            RegionIndex(0) if offset == u64::from(bar0::ID) && data.len() == 4 => {
                data.copy_from_slice(&0x1234_5678u32.to_le_bytes());
            }
            RegionIndex(0) if offset == u64::from(bar0::HANG) => {
                self.0.seen().hangs = true;
                self.0.wait();
            }
            _ => {}
        }
        Ok(())
    }

    fn region_write(
        &mut self,
        index: RegionIndex,
        offset: u64,
        data: &[u8],
    ) -> Result<(), DeviceError> {
        let at = offset as usize;
        match index {
            RegionIndex::CONFIG if (4..6).contains(&at) && at + data.len() <= 8 => {
                self.0.seen().config[at..at + data.len()].copy_from_slice(data);
            }
            RegionIndex(0) if data.len() == 4 => {
                let value = u32::from_le_bytes(data.try_into().unwrap());
                self.0.seen().writes.push((offset, value));
                if offset == u64::from(bar0::TRIGGER) {
                    self.0.trigger(value as usize % VECTORS as usize);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn set_irqs(
        &mut self,
        _: IrqIndex,
        start: u32,
        count: u32,
        action: IrqAction,
    ) -> Result<(), DeviceError> {
        let mut seen = self.0.seen();
        match action {
            IrqAction::SetEventFds(fds) => {
                for (vector, fd) in (start as usize..).zip(fds) {
                    seen.vectors[vector] = Some(fd);
                }
            }
            IrqAction::Clear if count == 0 => seen.vectors.fill_with(|| None),
            IrqAction::Clear => {
                seen.vectors[start as usize..(start + count) as usize].fill_with(|| None);
            }
            IrqAction::Trigger => {}
        }
        Ok(())
    }

    fn dma_map(&mut self, map: DmaMap) -> Result<(), DeviceError> {
        assert!(map.fd.is_some());
        if self.0.seen().hangs_in_maps {
            self.0.wait();
        }
        let mut seen = self.0.seen();
        if seen.maps.len() >= seen.most_maps {
            return Err(DeviceError::Limit("no more mappings".into()));
        }
        seen.maps.push((map.iova, map.size));
        seen.offsets.push(map.fd_offset);
        Ok(())
    }

    fn dma_unmap(&mut self, iova: u64, size: u64) -> Result<(), DeviceError> {
        let mut seen = self.0.seen();
        let at = seen.maps.iter().position(|map| *map == (iova, size)).expect("it is mapped");
        seen.maps.remove(at);
        seen.offsets.remove(at);
        Ok(())
    }

    fn dma_unmap_all(&mut self) {}

    fn reset(&mut self) {}

    fn disconnected(&mut self) {
        self.0.seen().connected = false;
    }
}
