//! An implementation of vfio-user that is not ours, the crate `vfio_user`, as the judge of both our ends: its
//! client drives our server with our device models behind it, and our client drives its server.
//!
//! What the crate (0.1.7) cannot do is not judged here: `DEVICE_GET_REGION_IO_FDS`, `DMA_READ` and `DMA_WRITE`,
//! `REGION_WRITE_MULTI`, and refusals: its client reads an error's reply as if it were a success, or waits for
//! bytes that never come. So every step is looked at from the other side as well.

use beamline_abi::pacer::{self, TimingPage, reg, vector};
use beamline_abi::pci::{command, config as header};
use beamline_abi::{Generation, Nanos, SliceId};
use beamline_mdev::device::pacer::{Pacer, PacerConfig};
use beamline_mdev::device::virtio::gpu::{GpuConfig, VirtioGpu};
use beamline_mdev::memory::Gpa;
use beamline_vfio_user::client::{Client, ClientError};
use beamline_vfio_user::server::{End, Listener, Stop, serve};
use beamline_vfio_user::{Device, DmaFlags, IrqIndex, RegionIndex, SparseArea};
use rustix::event::EventfdFlags;
use rustix::fs::{MemfdFlags, SealFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
    vfio_region_sparse_mmap_area,
};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion};
use zerocopy::FromBytes;

const CONFIG: u32 = 7;
const PAGE: u64 = 4096;
const TIMEOUT: Duration = Duration::from_secs(20);

fn eventfd() -> OwnedFd {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// What an eventfd counted since it was last asked.
fn counted(fd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    rustix::io::read(fd, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
}

/// A memfd that can be shared: sealed against shrinking.
fn memory(pages: u64) -> File {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("interop", flags).unwrap();
    rustix::fs::ftruncate(&fd, pages * PAGE).unwrap();
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
    fd.into()
}

/// Serves `device` to one client of the crate, which `drive` uses; both must come to a good end.
fn driven_by_theirs(device: &mut dyn Device, drive: impl FnOnce(&mut vfio_user::Client) + Send) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = Listener::bind(&path).unwrap();
    let stop = Stop::new().unwrap();
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut client = vfio_user::Client::new(&path).expect("its client connects");
            drive(&mut client);
            client.shutdown().unwrap();
        });
        let stream = listener.accept(&stop).unwrap().expect("nobody stops it");
        assert_eq!(serve(stream, device, &stop).unwrap(), End::Disconnected);
        client.join().expect("its client's thread ends well");
    });
}

#[test]
fn their_client_drives_our_pacer() {
    let config = PacerConfig {
        slice: SliceId(*b"0123456789abcdef"),
        generation: Generation(3),
        now: Arc::new(|| Nanos(0x1_0000_0002)),
    };
    let (mut device, _, handle) = Pacer::new(config).unwrap();
    let shared = Arc::clone(handle.shared());
    driven_by_theirs(&mut device, move |client| {
        regions_are_told(client);
        let read = |client: &mut vfio_user::Client, at: u32| {
            let mut word = [0; 4];
            client.region_read(0, at.into(), &mut word).unwrap();
            u32::from_le_bytes(word)
        };
        assert_eq!(read(client, reg::MAGIC), pacer::MAGIC);
        assert_eq!((read(client, reg::TIME), read(client, reg::TIME + 4)), (2, 1));
        client.region_write(0, reg::CONTROL.into(), &1u32.to_le_bytes()).unwrap();
        assert!(shared.vblank_enabled());
        assert_eq!(read(client, reg::CONTROL), 1);
        // More than a register, in one message.
        let mut page = vec![0; 4096];
        client.region_read(0, 0, &mut page).unwrap();
        assert_eq!(page[usize::try_from(reg::SLICE_ID).unwrap()..][..16], *b"0123456789abcdef");

        let irqs = client.get_irq_info(VFIO_PCI_MSIX_IRQ_INDEX).unwrap();
        assert_eq!((irqs.count, irqs.flags), (3, VFIO_IRQ_INFO_EVENTFD));
        assert_eq!(client.get_irq_info(0).unwrap().count, 0, "no INTx");

        let wires = [eventfd(), eventfd(), eventfd()];
        let fds = wires.each_ref().map(AsRawFd::as_raw_fd);
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        client.set_irqs(VFIO_PCI_MSIX_IRQ_INDEX, flags, 0, 3, &fds).unwrap();
        assert_eq!(handle.signal(vector::VBLANK), Ok(false), "bus mastering is off");
        let bits = command::MEMORY | command::BUS_MASTER;
        client.region_write(CONFIG, header::COMMAND.into(), &bits.to_le_bytes()).unwrap();
        assert_eq!(handle.signal(vector::VBLANK), Ok(true));
        assert_eq!(wires.each_ref().map(counted), [1, 0, 0]);
        let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
        client.set_irqs(VFIO_PCI_MSIX_IRQ_INDEX, flags, 1, 2, &[]).unwrap();
        assert_eq!(wires.each_ref().map(counted), [0, 1, 1]);

        // Its `resettable` is the opposite of what the server says, so nothing asks for it here.
        client.reset().unwrap();
        assert_eq!(shared.resets(), 1);
        assert!(!shared.vblank_enabled());
        // And the stream is in step after all that.
        assert_eq!(read(client, reg::VERSION), pacer::VERSION);
    });
}

/// What the crate's client learnt when it connected.
fn regions_are_told(client: &vfio_user::Client) {
    let (read, write) = (VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE);
    let registers = client.region(0).unwrap();
    assert_eq!((registers.size, registers.flags), (pacer::BAR0_SIZE, read | write));
    assert!(registers.file_offset.is_none());
    assert_eq!(client.region(1).unwrap().size, 0);
    assert_eq!(client.region(CONFIG).unwrap().size, 4096);

    let timing = client.region(2).unwrap();
    assert_eq!(timing.size, pacer::BAR2_SIZE);
    assert_eq!(
        timing.flags & (read | write | VFIO_REGION_INFO_FLAG_MMAP),
        read | VFIO_REGION_INFO_FLAG_MMAP
    );
    let [area] = timing.sparse_areas.as_slice() else { panic!("{:?}", timing.sparse_areas) };
    assert_eq!((area.offset, area.size), (0, pacer::BAR2_SIZE));
    let place = timing.file_offset.as_ref().unwrap();
    let mut bytes = [0; size_of::<TimingPage>()];
    place.file().read_exact_at(&mut bytes, place.start()).unwrap();
    let (page, _) = TimingPage::read_from_prefix(&bytes).unwrap();
    assert_eq!((page.version, page.lock % 2), (pacer::VERSION, 0));
    assert!(place.file().write_at(&[1], 0).is_err(), "the page is the host's to write");
}

#[test]
fn their_client_lends_memory_to_our_vgpu() {
    let (mut device, handle) = VirtioGpu::new(GpuConfig { contexts: true }).unwrap();
    let guest = Arc::clone(handle.memory());
    driven_by_theirs(&mut device, move |client| {
        let (low, high) = (memory(4), memory(2));
        low.write_all_at(b"at the start", PAGE).unwrap();
        client.dma_map(PAGE, 0, 3 * PAGE, low.as_raw_fd()).unwrap();
        client.dma_map(0, 1 << 32, 2 * PAGE, high.as_raw_fd()).unwrap();
        let mut text = [0; 12];
        guest.read(Gpa(0), &mut text).unwrap();
        assert_eq!(&text, b"at the start");
        guest.write(Gpa((1 << 32) + 2 * PAGE - 4), b"last").unwrap();
        let mut last = [0; 4];
        high.read_exact_at(&mut last, 2 * PAGE - 4).unwrap();
        assert_eq!(&last, b"last");

        client.dma_unmap(0, 3 * PAGE).unwrap();
        assert!(guest.read(Gpa(0), &mut text).is_err());
        assert!(guest.read(Gpa(1 << 32), &mut text).is_ok());

        // Memory that could shrink is refused. The crate's client takes that reply for a success; the stream
        // stays in step, because an error is as long as the success that it waits for.
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let unsealed = rustix::fs::memfd_create("interop", flags).unwrap();
        rustix::fs::ftruncate(&unsealed, PAGE).unwrap();
        client.dma_map(0, 0, PAGE, unsealed.as_raw_fd()).unwrap();
        assert!(guest.read(Gpa(0), &mut text).is_err());
        let mut id = [0; 2];
        client.region_read(CONFIG, 0, &mut id).unwrap();
        assert_eq!(u16::from_le_bytes(id), 0x1af4);
    });
    // The client is gone, and its memory with it.
    assert!(handle.memory().read(Gpa(1 << 32), &mut [0]).is_err());
}

/// Registers in region 0, a mapped region 2, 4 MSI-X vectors: what the crate's server asks of a device.
#[derive(Default)]
struct Tiny {
    bytes: Vec<u8>,
    seen: Arc<Mutex<Seen>>,
    wires: Vec<Option<File>>,
    /// First address, size, place in the memfd, memfd.
    maps: Vec<(u64, u64, u64, File)>,
}

#[derive(Default)]
struct Seen {
    resets: u32,
    rights: Vec<DmaMapFlags>,
}

/// A write here signals the vector that it names.
const SIGNAL: u64 = 0x10;
/// A write here copies 8 bytes from the guest's address that it names to [`COPIED`].
const COPY: u64 = 0x18;
const COPIED: usize = 0x20;

impl Tiny {
    fn new(seen: &Arc<Mutex<Seen>>) -> Self {
        let wires = (0..4).map(|_| None).collect();
        Self { bytes: vec![0; 4096], seen: Arc::clone(seen), wires, maps: Vec::new() }
    }

    fn copy(&mut self, from: u64) -> io::Result<()> {
        let map = self.maps.iter().find(|(at, size, ..)| (*at..at + size).contains(&from));
        let (at, _, offset, file) = map.ok_or(io::ErrorKind::NotFound)?;
        file.read_exact_at(&mut self.bytes[COPIED..COPIED + 8], from - at + offset)
    }
}

impl ServerBackend for Tiny {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        assert_eq!(region, 0);
        data.copy_from_slice(&self.bytes[usize::try_from(offset).unwrap()..][..data.len()]);
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        assert_eq!(region, 0);
        match (offset, <[u8; 8]>::try_from(data)) {
            (SIGNAL, Ok(vector)) => {
                let vector = usize::try_from(u64::from_ne_bytes(vector)).unwrap();
                let wire = self.wires[vector].as_ref().ok_or(io::ErrorKind::NotFound)?;
                rustix::io::write(wire, &1u64.to_ne_bytes())?;
            }
            (COPY, Ok(from)) => self.copy(u64::from_ne_bytes(from))?,
            _ => {
                self.bytes[usize::try_from(offset).unwrap()..][..data.len()].copy_from_slice(data);
            }
        }
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<File>,
    ) -> io::Result<()> {
        self.seen.lock().unwrap().rights.push(flags);
        self.maps.push((address, size, offset, fd.ok_or(io::ErrorKind::InvalidInput)?));
        Ok(())
    }

    fn dma_unmap(&mut self, _flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        self.maps.retain(|(at, bytes, ..)| (*at, *bytes) != (address, size));
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.bytes.fill(0);
        self.seen.lock().unwrap().resets += 1;
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        fds: Vec<File>,
    ) -> io::Result<()> {
        assert_eq!(index, VFIO_PCI_MSIX_IRQ_INDEX);
        if flags & VFIO_IRQ_SET_DATA_EVENTFD != 0 {
            let vectors = start as usize..(start + count) as usize;
            let mut fds = fds.into_iter();
            self.wires[vectors].fill_with(|| fds.next());
        } else if count == 0 {
            self.wires.fill_with(|| None);
        } else {
            for wire in self.wires[start as usize..][..count as usize].iter().flatten() {
                rustix::io::write(wire, &1u64.to_ne_bytes())?;
            }
        }
        Ok(())
    }
}

/// Has the crate's server serve [`Tiny`] to our client, until `drive` is done with it; how the server ended.
fn driving_theirs(
    seen: &Arc<Mutex<Seen>>,
    drive: impl FnOnce(&mut Client),
) -> Result<(), vfio_user::Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let shared = memory(4);
    let server = server(&path, &shared);
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| server.run(&mut Tiny::new(seen)));
        let mut client = Client::connect(&path, TIMEOUT).expect("our client connects");
        drive(&mut client);
        drop(client);
        serving.join().expect("its server does not panic")
    })
}

fn server(path: &Path, shared: &File) -> Server {
    let region = |index, flags, size| ServerRegion {
        region_info: vfio_region_info {
            argsz: u32::try_from(size_of::<vfio_region_info>()).unwrap(),
            flags,
            index,
            size,
            ..Default::default()
        },
        sparse_areas: Vec::new(),
        mmap_fd: None,
    };
    let both = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    let mut regions: Vec<_> = (0..9).map(|index| region(index, 0, 0)).collect();
    regions[0] = region(0, both, 4096);
    regions[2] = region(2, both | VFIO_REGION_INFO_FLAG_MMAP, 4 * PAGE);
    // It sends a region's descriptor only together with sparse areas.
    let area = vfio_region_sparse_mmap_area { offset: PAGE, size: 2 * PAGE };
    regions[2].sparse_areas.push(vfio_user::SparseArea { area });
    regions[2].mmap_fd = Some(shared.as_raw_fd());
    let irqs = [0, 0, 4, 0, 0].into_iter().zip(0..);
    let irqs = irqs.map(|(count, index)| IrqInfo { index, flags: VFIO_IRQ_INFO_EVENTFD, count });
    Server::new(path, true, irqs.collect(), regions).unwrap()
}

#[test]
fn our_client_drives_their_server() {
    let seen = Arc::default();
    driving_theirs(&seen, |client| {
        let info = client.device_info().unwrap();
        assert_eq!((info.resettable, info.num_regions, info.num_irqs), (true, 9, 5));
        let registers = client.region_info(RegionIndex::bar(0)).unwrap();
        assert_eq!((registers.size, registers.flags.write), (4096, true));
        assert!(registers.mapping.is_none());
        let mapped = client.region_info(RegionIndex::bar(2)).unwrap();
        let mapping = mapped.mapping.unwrap();
        assert_eq!(mapping.areas, [SparseArea { offset: PAGE, size: 2 * PAGE }]);
        assert!(mapping.write && mapped.size == 4 * PAGE);

        let registers = RegionIndex::bar(0);
        client.region_write(registers, 0, b"registers").unwrap();
        let mut text = [0; 9];
        client.region_read(registers, 0, &mut text).unwrap();
        assert_eq!(&text, b"registers");

        assert_eq!(client.irq_info(IrqIndex::MSIX).unwrap().count, 4);
        assert_eq!(client.irq_info(IrqIndex::INTX).unwrap().count, 0);
        // The server takes one descriptor per message; our client splits the four.
        let wires = [eventfd(), eventfd(), eventfd(), eventfd()];
        client.set_irqs(IrqIndex::MSIX, 0, &wires.each_ref().map(AsFd::as_fd)).unwrap();
        client.region_write(registers, SIGNAL, &2u64.to_ne_bytes()).unwrap();
        assert_eq!(wires.each_ref().map(counted), [0, 0, 1, 0]);
        client.trigger_irqs(IrqIndex::MSIX, 0, 2).unwrap();
        assert_eq!(wires.each_ref().map(counted), [1, 1, 0, 0]);
        client.clear_irqs(IrqIndex::MSIX, 0, 1).unwrap();
        client.trigger_irqs(IrqIndex::MSIX, 0, 2).unwrap();
        assert_eq!(wires.each_ref().map(counted), [0, 1, 0, 0]);
        client.clear_irqs(IrqIndex::MSIX, 0, 0).unwrap();

        let lent = memory(4);
        lent.write_all_at(b"from afar", 3 * PAGE + 8).unwrap();
        let flags = DmaFlags { read: true, write: false };
        client.dma_map(1 << 40, 2 * PAGE, flags, lent.as_fd(), 2 * PAGE).unwrap();
        client.region_write(registers, COPY, &((1u64 << 40) + PAGE + 8).to_ne_bytes()).unwrap();
        let mut copied = [0; 8];
        client.region_read(registers, COPIED as u64, &mut copied).unwrap();
        assert_eq!(&copied, b"from afa");
        client.dma_unmap(1 << 40, 2 * PAGE).unwrap();
        // What is taken back is gone. Its server answers a failed write with an error and no errno, and
        // has read all of the command by then, so that the stream stays in step.
        let gone = client.region_write(registers, COPY, &(1u64 << 40).to_ne_bytes());
        assert!(matches!(gone, Err(ClientError::Refused { errno: 0, .. })), "{gone:?}");

        client.reset().unwrap();
        client.region_read(registers, 0, &mut text).unwrap();
        assert_eq!(text, [0; 9]);
    })
    .expect("its server ends well");
    let seen = seen.lock().unwrap();
    assert_eq!(seen.resets, 1);
    assert_eq!(seen.rights, [DmaMapFlags::READ]);
}

/// The crate's server leaves the payload of a command that it does not serve in the stream, and takes it for
/// the next header. Our client notices that the answers are not to its commands, and ends the connection.
#[test]
fn our_client_leaves_a_server_that_is_out_of_step() {
    // Whether its server still has something to say when our client has left is its own affair.
    let _ = driving_theirs(&Arc::default(), |client| {
        // Its two answers come together, or one by one.
        let bells = client.region_io_fds(RegionIndex::bar(0));
        if matches!(bells, Err(ClientError::Refused { errno: 0, .. })) {
            let after = client.device_info();
            assert!(matches!(after, Err(ClientError::Protocol { .. })), "{after:?}");
        } else {
            assert!(matches!(bells, Err(ClientError::Protocol { .. })), "{bells:?}");
        }
        let then = client.device_info();
        assert!(matches!(then, Err(ClientError::Disconnected(_))), "{then:?}");
    });
}
