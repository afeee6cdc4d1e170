//! A device for the tests, and what to feed it with.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use rustix::event::EventfdFlags;
use rustix::fs::{MemfdFlags, SealFlags};

use crate::server::{End, ServeError, Stop, serve};
use crate::{
    Device, DeviceError, DeviceInfo, DmaMap, IoFd, IrqAction, IrqIndex, IrqInfo, RegionFlags,
    RegionIndex, RegionInfo, RegionMapping, SparseArea,
};

pub(crate) const BAR0_SIZE: u64 = 0x4000;
pub(crate) const VECTORS: u32 = 40;

/// What the device saw, for the test to look at.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) resets: u32,
    pub(crate) disconnects: u32,
    pub(crate) cleared: Vec<(u32, u32)>,
    pub(crate) maps: BTreeMap<u64, DmaMap>,
    pub(crate) calls: u64,
}

/// BAR0: trapped registers over 16 KiB of bytes, its last page mapped, two doorbells on one eventfd and one
/// on another. BAR2: a page that can only be read. 40 MSI-X vectors.
pub(crate) struct TestDevice {
    pub(crate) seen: Arc<Mutex<Seen>>,
    bytes: Vec<u8>,
    page: OwnedFd,
    timing: OwnedFd,
    bells: [OwnedFd; 2],
    vectors: Vec<Option<OwnedFd>>,
}

impl TestDevice {
    pub(crate) fn new() -> Self {
        let timing = memory(4096);
        rustix::fs::fcntl_add_seals(&timing, SealFlags::FUTURE_WRITE).unwrap();
        Self {
            seen: Arc::default(),
            bytes: vec![0; BAR0_SIZE as usize],
            page: memory(BAR0_SIZE),
            timing,
            bells: [event(), event()],
            vectors: (0..VECTORS).map(|_| None).collect(),
        }
    }
}

impl Device for TestDevice {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { resettable: true }
    }

    fn region(&self, index: RegionIndex) -> RegionInfo<'_> {
        match index.0 {
            0 => RegionInfo {
                size: BAR0_SIZE,
                flags: RegionFlags { read: true, write: true },
                mapping: Some(RegionMapping {
                    fd: self.page.as_fd(),
                    fd_offset: 0,
                    write: true,
                    areas: vec![SparseArea { offset: 0x3000, size: 0x1000 }],
                }),
            },
            2 => RegionInfo {
                size: 4096,
                flags: RegionFlags { read: true, write: true },
                mapping: Some(RegionMapping {
                    fd: self.timing.as_fd(),
                    fd_offset: 0,
                    write: false,
                    areas: vec![SparseArea { offset: 0, size: 4096 }],
                }),
            },
            7 => RegionInfo {
                size: 4096,
                flags: RegionFlags { read: true, write: false },
                mapping: None,
            },
            _ => RegionInfo::default(),
        }
    }

    fn irq(&self, index: IrqIndex) -> IrqInfo {
        IrqInfo { count: if index == IrqIndex::MSIX { VECTORS } else { 0 } }
    }

    fn io_fds(&self, index: RegionIndex) -> Vec<IoFd<'_>> {
        if index.0 != 0 {
            return Vec::new();
        }
        let [a, b] = &self.bells;
        vec![
            IoFd { offset: 0x100, size: 2, fd: a.as_fd(), datamatch: Some(0) },
            IoFd { offset: 0x104, size: 4, fd: b.as_fd(), datamatch: None },
            IoFd { offset: 0x108, size: 0, fd: a.as_fd(), datamatch: None },
        ]
    }

    fn region_read(
        &mut self,
        index: RegionIndex,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), DeviceError> {
        self.seen.lock().unwrap().calls += 1;
        if index.0 == 0 {
            data.copy_from_slice(&self.bytes[offset as usize..][..data.len()]);
        }
        Ok(())
    }

    fn region_write(
        &mut self,
        index: RegionIndex,
        offset: u64,
        data: &[u8],
    ) -> Result<(), DeviceError> {
        self.seen.lock().unwrap().calls += 1;
        if data == [0xff; 3] {
            return Err(DeviceError::Limit("three times 0xff is too much".into()));
        }
        assert!(index.0 == 0 || index.0 == 2);
        self.bytes[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: IrqIndex,
        start: u32,
        count: u32,
        action: IrqAction,
    ) -> Result<(), DeviceError> {
        assert!(index == IrqIndex::MSIX || count == 0);
        match action {
            IrqAction::SetEventFds(fds) => {
                assert_eq!(fds.len(), count as usize);
                for (slot, fd) in self.vectors[start as usize..].iter_mut().zip(fds) {
                    *slot = Some(fd);
                }
            }
            IrqAction::Clear => {
                self.seen.lock().unwrap().cleared.push((start, count));
                let range = if count == 0 { 0..VECTORS } else { start..start + count };
                range.for_each(|v| self.vectors[v as usize] = None);
            }
            IrqAction::Trigger => {
                for fd in self.vectors[start as usize..][..count as usize].iter().flatten() {
                    // A hostile test may have filled the counter; then it is signalled already.
                    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
                }
            }
        }
        Ok(())
    }

    fn dma_map(&mut self, map: DmaMap) -> Result<(), DeviceError> {
        let mut seen = self.seen.lock().unwrap();
        if seen.maps.contains_key(&map.iova) {
            return Err(DeviceError::Exists(format!("{:#x} is mapped", map.iova)));
        }
        seen.maps.insert(map.iova, map);
        Ok(())
    }

    fn dma_unmap(&mut self, iova: u64, size: u64) -> Result<(), DeviceError> {
        let mut seen = self.seen.lock().unwrap();
        match seen.maps.get(&iova) {
            Some(map) if map.size == size => {
                seen.maps.remove(&iova);
                Ok(())
            }
            _ => Err(DeviceError::NotFound(format!("{iova:#x} of {size:#x} is not mapped"))),
        }
    }

    fn dma_unmap_all(&mut self) {
        self.seen.lock().unwrap().maps.clear();
    }

    fn reset(&mut self) {
        self.seen.lock().unwrap().resets += 1;
    }

    fn disconnected(&mut self) {
        self.vectors.fill_with(|| None);
        let mut seen = self.seen.lock().unwrap();
        seen.maps.clear();
        seen.disconnects += 1;
    }
}

/// A sealed memfd.
pub(crate) fn memory(size: u64) -> OwnedFd {
    let fd = unsealed(size);
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
    fd
}

pub(crate) fn unsealed(size: u64) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("test", flags).unwrap();
    rustix::fs::ftruncate(&fd, size).unwrap();
    fd
}

pub(crate) fn event() -> OwnedFd {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// What an eventfd counted since it was last asked.
pub(crate) fn counted(fd: &OwnedFd) -> u64 {
    let mut bytes = [0; 8];
    match rustix::io::read(fd, &mut bytes) {
        Ok(_) => u64::from_ne_bytes(bytes),
        Err(_) => 0,
    }
}

/// A server thread, and what it leaves.
pub(crate) struct Running {
    pub(crate) stop: Stop,
    pub(crate) seen: Arc<Mutex<Seen>>,
    thread: std::thread::JoinHandle<Result<End, ServeError>>,
}

impl Running {
    pub(crate) fn end(self) -> Result<End, ServeError> {
        self.thread.join().expect("the server does not panic")
    }
}

/// Serves a [`TestDevice`] on the other end of the stream.
pub(crate) fn start() -> (UnixStream, Running) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut device = TestDevice::new();
    let seen = device.seen.clone();
    let stop = Stop::new().unwrap();
    let watched = stop.clone();
    let thread = std::thread::spawn(move || serve(theirs, &mut device, &watched));
    (ours, Running { stop, seen, thread })
}
