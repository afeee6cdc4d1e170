//! A whole host with its threads and sockets: a VMM attaches, its guest draws, flushes and waits for the
//! fence, and the host shows the same picture, on request and when it drains.

use beamline_abi::pci::{command, config};
use beamline_abi::virtio_gpu::{
    AttachBacking, CtrlHeader, FLAG_FENCE, MemEntry, Rect, ResourceCreate2d, ResourceFlush,
    SetScanout, TransferToHost2d, cmd, feature, format,
};
use beamline_abi::virtio_pci::{common, feature as transport, ring, status};
use beamline_mdev::config::HostConfig;
use beamline_mdev::host::{Host, RendererProgram};
use beamline_vfio_user::client::Client;
use beamline_vfio_user::{DmaFlags, IrqIndex, RegionIndex};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use zerocopy::IntoBytes;

const HOST: &str = r#"
run_dir = "run"
[gpu]
backend = "model"
[output]
images = "images"
[[slice]]
name = "desktop"
width = 64
height = 64
profile = "display"
[slice.contract]
refresh_hz = "60"
class = "elastic"
budget_ms = 1.0
max_job_ms = 1.0
"#;

const BAR: RegionIndex = RegionIndex::bar(4);
const NOTIFY: u64 = 0x3000;
const MEMORY: u64 = 0x10_0000;
const TABLE: u64 = 0x1000;
const DRIVER: u64 = 0x2000;
const DEVICE: u64 = 0x3000;
const REQUEST: u64 = 0x4000;
const IMAGE: u64 = 0x1_0000;
const WHOLE: Rect = Rect { x: 0, y: 0, width: 64, height: 64 };
const PATIENCE: Duration = Duration::from_secs(20);

/// A VMM and its guest in one.
struct Guest {
    client: Client,
    memory: OwnedFd,
    irq: OwnedFd,
    put: u16,
}

impl Guest {
    fn attach(socket: &std::path::Path) -> Self {
        let mut client = Client::connect(socket, PATIENCE).unwrap();
        let seals = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = rustix::fs::memfd_create("guest", seals).unwrap();
        rustix::fs::ftruncate(&memory, MEMORY).unwrap();
        rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        let rights = DmaFlags { read: true, write: true };
        client.dma_map(0, MEMORY, rights, memory.as_fd(), 0).unwrap();
        let irq = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        client.set_irqs(IrqIndex::MSIX, 1, &[irq.as_fd()]).unwrap();
        let bits = command::MEMORY | command::BUS_MASTER;
        client
            .region_write(RegionIndex::CONFIG, config::COMMAND.into(), &bits.to_le_bytes())
            .unwrap();
        let mut guest = Self { client, memory, irq, put: 0 };
        guest.bring_up();
        guest
    }

    fn set(&mut self, field: u32, len: usize, value: u64) {
        self.client.region_write(BAR, field.into(), &value.to_le_bytes()[..len]).unwrap();
    }

    fn bring_up(&mut self) {
        let mut bits = status::ACKNOWLEDGE | status::DRIVER;
        self.set(common::DEVICE_STATUS, 1, bits.into());
        let features = feature::EDID | feature::RESOURCE_BLOB | transport::VERSION_1;
        for half in 0..2 {
            self.set(common::DRIVER_FEATURE_SELECT, 4, half);
            self.set(common::DRIVER_FEATURE, 4, features >> (32 * half) & 0xffff_ffff);
        }
        bits |= status::FEATURES_OK;
        self.set(common::DEVICE_STATUS, 1, bits.into());
        self.set(common::QUEUE_SIZE, 2, 8);
        self.set(common::QUEUE_MSIX_VECTOR, 2, 1);
        self.set(common::QUEUE_DESC, 8, TABLE);
        self.set(common::QUEUE_DRIVER, 8, DRIVER);
        self.set(common::QUEUE_DEVICE, 8, DEVICE);
        self.set(common::QUEUE_ENABLE, 2, 1);
        bits |= status::DRIVER_OK;
        self.set(common::DEVICE_STATUS, 1, bits.into());
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        assert_eq!(rustix::io::pwrite(&self.memory, bytes, at).unwrap(), bytes.len());
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        assert_eq!(rustix::io::pread(&self.memory, &mut bytes, at).unwrap(), N);
        bytes
    }

    /// One request, fenced; returns once its interrupt has come.
    fn ask(&mut self, type_: u32, body: &[u8]) {
        let fence_id = u64::from(self.put) + 100;
        let header = CtrlHeader { type_, flags: FLAG_FENCE, fence_id, ..CtrlHeader::default() };
        let request = [header.as_bytes(), body].concat();
        let answer = REQUEST + 0x800;
        self.write(REQUEST, &request);
        for (n, (at, len, flags)) in
            [(REQUEST, request.len() as u32, ring::DESC_NEXT), (answer, 24, ring::DESC_WRITE)]
                .into_iter()
                .enumerate()
        {
            let entry = TABLE + 16 * n as u64;
            self.write(entry, &at.to_le_bytes());
            self.write(entry + 8, &len.to_le_bytes());
            self.write(entry + 12, &flags.to_le_bytes());
            self.write(entry + 14, &1u16.to_le_bytes());
        }
        self.put += 1;
        self.write(DRIVER + 2, &self.put.to_le_bytes());
        self.client.region_write(BAR, NOTIFY, &[0, 0]).unwrap();
        let time = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        while u16::from_le_bytes(self.read(DEVICE + 2)) != self.put {
            let mut fds = [PollFd::new(&self.irq, PollFlags::IN)];
            assert_eq!(poll(&mut fds, Some(&time)).unwrap(), 1, "no answer to {type_:#x}");
            let mut count = [0; 8];
            let _ = rustix::io::read(&self.irq, &mut count);
        }
        assert_eq!(self.read::<4>(answer), cmd::RESP_OK_NODATA.to_le_bytes(), "{type_:#x}");
        assert_eq!(self.read::<8>(answer + 8), fence_id.to_le_bytes());
    }
}

#[test]
fn what_a_guest_draws_is_what_the_host_shows() {
    let folder = tempfile::tempdir().unwrap();
    let config = HostConfig::parse(HOST, &folder.path().join("host.toml")).unwrap();
    let nothing = RendererProgram { exe: "true".into(), args: Vec::new() };
    let host = Host::start(config, nothing).unwrap();
    assert!(host.scanout("desktop").is_none() && host.scanout("nobody").is_none());

    let mut guest = Guest::attach(&host.ready().slices[0].gpu.clone());
    let pixels: Vec<u8> = (0..64 * 64u32).flat_map(|n| [n as u8, (n / 64) as u8, 50, 0]).collect();
    guest.write(IMAGE, &pixels);
    let create =
        ResourceCreate2d { resource_id: 1, format: format::R8G8B8X8_UNORM, width: 64, height: 64 };
    guest.ask(cmd::RESOURCE_CREATE_2D, create.as_bytes());
    let attach = AttachBacking { resource_id: 1, nr_entries: 1 };
    let piece = MemEntry { addr: IMAGE, length: pixels.len() as u32, padding: 0 };
    guest.ask(cmd::RESOURCE_ATTACH_BACKING, &[attach.as_bytes(), piece.as_bytes()].concat());
    let transfer = TransferToHost2d { r: WHOLE, offset: 0, resource_id: 1, padding: 0 };
    guest.ask(cmd::TRANSFER_TO_HOST_2D, transfer.as_bytes());
    let scanout = SetScanout { r: WHOLE, scanout_id: 0, resource_id: 1 };
    guest.ask(cmd::SET_SCANOUT, scanout.as_bytes());
    let flush = ResourceFlush { r: WHOLE, resource_id: 1, padding: 0 };
    guest.ask(cmd::RESOURCE_FLUSH, flush.as_bytes());

    let want: Vec<u8> = pixels.chunks(4).flat_map(|p| [p[0], p[1], p[2], 255]).collect();
    let image = host.scanout("desktop").unwrap();
    assert_eq!((image.width, image.height), (64, 64));
    assert!(image.rgba == want);
    let drained = host.drain();
    assert_eq!(drained.problems, [""; 0]);
    assert_eq!(drained.images, [folder.path().join("images/desktop.png")]);
    let file = std::io::BufReader::new(std::fs::File::open(&drained.images[0]).unwrap());
    let mut reader = png::Decoder::new(file).read_info().unwrap();
    let mut rgba = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut rgba).unwrap();
    assert!(rgba == want);
}
