//! A guest's side of a vGPU: its memory, a driver that gets the queue going, and what the host may touch.

use crate::fds::sized_memfd;
use beamline_abi::pci::{command, config as header};
use beamline_abi::virtio_gpu;
use beamline_abi::virtio_pci::{common, feature, status};
use beamline_mdev::device::virtio::gpu::{GpuConfig, GpuHandle, VirtioGpu};
use beamline_vfio_user::{Device, DmaFlags, DmaMap, RegionIndex};
use rustix::fs::SealFlags;
use std::ops::Range;
use std::os::fd::OwnedFd;

const BAR: RegionIndex = RegionIndex::bar(4);
const READ_WRITE: DmaFlags = DmaFlags { read: true, write: true };

/// A range that the VMM maps: where it is for the device, where it is in the memfd, and the rights.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) at: u64,
    pub(crate) size: u64,
    in_fd: u64,
    pub(crate) flags: DmaFlags,
}

/// Memory as hostile as a VMM can make it: two mappings that touch, one that may only be read and one that
/// may only be written, holes between them, and one at the end of the address space.
pub(crate) const PIECES: [Piece; 5] = [
    Piece { at: 0, size: 0x8000, in_fd: 0, flags: READ_WRITE },
    Piece { at: 0x8000, size: 0x2000, in_fd: 0x9000, flags: READ_WRITE },
    Piece { at: 0xb000, size: 0x1000, in_fd: 0xb000, flags: DmaFlags { read: true, write: false } },
    Piece { at: 0xd000, size: 0x1000, in_fd: 0xd000, flags: DmaFlags { read: false, write: true } },
    Piece { at: 0xffff_ffff_ffff_e000, size: 0x1000, in_fd: 0xe000, flags: READ_WRITE },
];
/// Bytes of the memfd; what lies between the pieces is never mapped.
pub(crate) const MEMORY: usize = 0xf000;

/// The memory, as the guest itself sees it.
pub(crate) struct Ram(OwnedFd);

impl Ram {
    /// Where an address is in the memfd.
    fn place(at: u64) -> Option<u64> {
        let piece = PIECES.iter().find(|p| (p.at..p.at + p.size).contains(&at))?;
        Some(at - piece.at + piece.in_fd)
    }

    /// Writes as a guest's CPU does, whatever the device may do there; nothing outside the pieces.
    pub(crate) fn write(&self, at: u64, data: &[u8]) {
        for piece in PIECES {
            // What of `data` lies in this piece: both ends are below 2^64.
            let start = at.max(piece.at);
            let end = at.saturating_add(data.len() as u64).min(piece.at + piece.size);
            if start < end {
                let part = &data[(start - at) as usize..(end - at) as usize];
                self.write_whole(start, part);
            }
        }
    }

    /// [`write`](Self::write) inside one piece, in one go.
    pub(crate) fn write_whole(&self, at: u64, data: &[u8]) {
        let place = Self::place(at).expect("a place in a piece");
        let written = rustix::io::pwrite(&self.0, data, place);
        assert_eq!(written, Ok(data.len()));
    }

    /// All of the memfd.
    pub(crate) fn all(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY];
        assert_eq!(rustix::io::pread(&self.0, &mut bytes, 0), Ok(MEMORY));
        bytes
    }

    /// That two looks at the memfd differ at most where the device was allowed to write.
    pub(crate) fn check_changes(before: &[u8], after: &[u8], allowed: &[Range<u64>]) {
        if before == after {
            return;
        }
        let mut may = vec![false; MEMORY];
        for range in allowed {
            for at in range.clone() {
                let place = Self::place(at).expect("an allowed range is mapped");
                may[place as usize] = true;
            }
        }
        let changed = (0..MEMORY).find(|n| before[*n] != after[*n] && !may[*n]);
        assert_eq!(changed, None, "the device wrote where it may not");
    }
}

/// Whether the device may do this; the mappings are those of [`PIECES`] for which `mapped` is set.
pub(crate) fn reachable(mapped: [bool; 5], at: u64, len: u64, write: bool) -> bool {
    (0..len).step_by(512).chain(len.checked_sub(1)).all(|n| {
        at.checked_add(n).is_some_and(|at| {
            PIECES.iter().zip(mapped).any(|(piece, mapped)| {
                let right = if write { piece.flags.write } else { piece.flags.read };
                mapped && right && (piece.at..piece.at + piece.size).contains(&at)
            })
        })
    })
}

/// Where a queue is.
#[derive(Clone, Copy)]
pub(crate) struct Rings {
    pub(crate) size: u16,
    pub(crate) table: u64,
    pub(crate) driver: u64,
    pub(crate) device: u64,
}

/// A vGPU with mapped memory.
pub(crate) struct Guest {
    pub(crate) gpu: VirtioGpu,
    pub(crate) handle: GpuHandle,
    pub(crate) ram: Ram,
}

impl Guest {
    pub(crate) fn new() -> Self {
        let (gpu, handle) =
            VirtioGpu::new(GpuConfig { contexts: true }).expect("a vGPU can be made");
        let seals = SealFlags::SHRINK | SealFlags::GROW;
        let ram = Ram(sized_memfd(MEMORY as u64, seals));
        let mut guest = Self { gpu, handle, ram };
        for piece in PIECES {
            guest.map(piece);
        }
        guest.master(true);
        guest
    }

    pub(crate) fn map(&mut self, piece: Piece) {
        let map = DmaMap {
            iova: piece.at,
            size: piece.size,
            flags: piece.flags,
            fd: Some(self.ram.0.try_clone().expect("a descriptor can be copied")),
            fd_offset: piece.in_fd,
        };
        self.gpu.dma_map(map).expect("the piece is free");
    }

    pub(crate) fn master(&mut self, on: bool) {
        let bits = command::MEMORY | if on { command::BUS_MASTER } else { 0 };
        let at = header::COMMAND.into();
        self.gpu.region_write(RegionIndex::CONFIG, at, &bits.to_le_bytes()).expect("it is there");
    }

    pub(crate) fn set(&mut self, field: u32, len: usize, value: u64) {
        self.gpu.region_write(BAR, field.into(), &value.to_le_bytes()[..len]).expect("it is there");
    }

    pub(crate) fn status(&mut self) -> u8 {
        let mut status = [0];
        self.gpu.region_read(BAR, common::DEVICE_STATUS.into(), &mut status).expect("it is there");
        status[0]
    }

    /// Resets the device and brings its control queue up; whether the device took it.
    pub(crate) fn start(&mut self, rings: Rings) -> bool {
        self.set(common::DEVICE_STATUS, 1, 0);
        self.set(common::DRIVER_FEATURE_SELECT, 4, 0);
        self.set(common::DRIVER_FEATURE, 4, virtio_gpu::feature::VIRGL);
        self.set(common::DRIVER_FEATURE_SELECT, 4, 1);
        self.set(common::DRIVER_FEATURE, 4, feature::VERSION_1 >> 32);
        let ready = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.set(common::DEVICE_STATUS, 1, ready.into());
        self.set(common::QUEUE_SELECT, 2, 0);
        self.set(common::QUEUE_SIZE, 2, rings.size.into());
        self.set(common::QUEUE_DESC, 8, rings.table);
        self.set(common::QUEUE_DRIVER, 8, rings.driver);
        self.set(common::QUEUE_DEVICE, 8, rings.device);
        self.set(common::QUEUE_ENABLE, 2, 1);
        self.set(common::DEVICE_STATUS, 1, (ready | status::DRIVER_OK).into());
        self.status() == ready | status::DRIVER_OK
    }
}
