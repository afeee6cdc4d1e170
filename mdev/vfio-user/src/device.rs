//! What a server serves: the [`Device`] trait, and the types that both sides of the socket use.

use std::os::fd::{BorrowedFd, OwnedFd};

/// VFIO's region numbers of a PCI device (linux/vfio.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegionIndex(pub u32);

impl RegionIndex {
    /// BAR `n`, 0 to 5.
    pub const fn bar(n: u32) -> Self {
        Self(n)
    }
    /// The expansion ROM.
    pub const ROM: Self = Self(6);
    /// Configuration space.
    pub const CONFIG: Self = Self(7);
    /// VGA.
    pub const VGA: Self = Self(8);
    /// How many there are.
    pub const COUNT: u32 = 9;
}

/// VFIO's interrupt indexes of a PCI device (linux/vfio.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IrqIndex(pub u32);

impl IrqIndex {
    /// Legacy INTx.
    pub const INTX: Self = Self(0);
    /// MSI.
    pub const MSI: Self = Self(1);
    /// MSI-X.
    pub const MSIX: Self = Self(2);
    /// Errors.
    pub const ERR: Self = Self(3);
    /// Requests to release the device.
    pub const REQ: Self = Self(4);
    /// How many there are.
    pub const COUNT: u32 = 5;
}

/// What the device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The function can be reset.
    pub resettable: bool,
}

/// Access rights of a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegionFlags {
    /// May be read.
    pub read: bool,
    /// May be written.
    pub write: bool,
}

/// A part of a region that may be mapped. Page-aligned, inside the region, apart from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparseArea {
    /// Bytes from the region's start.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// How parts of a region are mapped: `areas` of the region lie at the same offsets of `fd`, plus
/// `fd_offset`.
#[derive(Debug)]
pub struct RegionMapping<'a> {
    /// A memfd, sealed against shrinking and large enough for the areas; else it is not offered.
    pub fd: BorrowedFd<'a>,
    /// Where the region starts in `fd`: page-aligned.
    pub fd_offset: u64,
    /// May be mapped for writing. The protocol has one write flag for trapped and mapped access: where this
    /// is false and the region's trapped access is writable, the memfd must be sealed with
    /// `F_SEAL_FUTURE_WRITE`, else it is not offered.
    pub write: bool,
    /// The parts, at most 16.
    pub areas: Vec<SparseArea>,
}

/// A region.
#[derive(Debug, Default)]
pub struct RegionInfo<'a> {
    /// Bytes; 0: the region does not exist.
    pub size: u64,
    /// Rights of trapped access.
    pub flags: RegionFlags,
    /// What may be mapped.
    pub mapping: Option<RegionMapping<'a>>,
}

/// An interrupt index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IrqInfo {
    /// Vectors; 0: none.
    pub count: u32,
}

/// A doorbell: a write of `size` bytes at `offset` of the region signals `fd` and does nothing else
/// (`VFIO_USER_IO_FD_TYPE_IOEVENTFD`).
#[derive(Clone, Copy, Debug)]
pub struct IoFd<'a> {
    /// Bytes from the region's start.
    pub offset: u64,
    /// Bytes of the write: 1, 2, 4 or 8; 0: any.
    pub size: u64,
    /// An eventfd.
    pub fd: BorrowedFd<'a>,
    /// Only writes of this value signal.
    pub datamatch: Option<u64>,
}

/// What the peer may do in a mapped range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaFlags {
    /// The device may read.
    pub read: bool,
    /// The device may write.
    pub write: bool,
}

/// A range of guest memory that the client maps for the device.
#[derive(Debug)]
pub struct DmaMap {
    /// First I/O virtual address: page-aligned.
    pub iova: u64,
    /// Bytes: page-aligned, above 0; `iova + size` does not overflow.
    pub size: u64,
    /// Rights.
    pub flags: DmaFlags,
    /// The memory, from `fd_offset` on; without it the server would have to ask by message.
    pub fd: Option<OwnedFd>,
    /// Where the range starts in `fd`.
    pub fd_offset: u64,
}

/// `SET_IRQS`: what to do with vectors `start..start + count`.
#[derive(Debug)]
pub enum IrqAction {
    /// Signal these eventfds from now on, one per vector.
    SetEventFds(Vec<OwnedFd>),
    /// Forget the eventfds of these vectors. With `count` 0: all of the index.
    Clear,
    /// Signal these vectors once, as if the device had (for tests of a client).
    Trigger,
}

/// Why a device refuses a request. Becomes the `errno` of the reply; the connection goes on.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// An index, an offset or a length is out of range: `EINVAL`.
    #[error("{0}")]
    Invalid(String),
    /// The device does not do this: `ENOTSUP`.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// The range overlaps another: `EEXIST`.
    #[error("{0}")]
    Exists(String),
    /// Nothing is there: `ENOENT`.
    #[error("{0}")]
    NotFound(String),
    /// A limit is reached: `ENOSPC`.
    #[error("{0}")]
    Limit(String),
}

/// One PCI function, as a vfio-user server sees it. Calls come one at a time, in the order of the
/// messages; a call must not wait for the client.
pub trait Device: Send {
    /// What the device is.
    fn info(&self) -> DeviceInfo;
    /// Region `index`, which is below [`RegionIndex::COUNT`]. Size and rights do not change while a client
    /// is connected: the server asks for them once.
    fn region(&self, index: RegionIndex) -> RegionInfo<'_>;
    /// Interrupt index `index`, which is below [`IrqIndex::COUNT`].
    fn irq(&self, index: IrqIndex) -> IrqInfo;
    /// Doorbells of a region, at most 256. Those whose fds do not fit into the client's message (16 different
    /// ones in ours) are left out: their writes come to [`region_write`](Self::region_write).
    fn io_fds(&self, index: RegionIndex) -> Vec<IoFd<'_>>;
    /// Reads `data.len()` bytes; `offset + data.len()` lies within the region and is readable.
    fn region_read(
        &mut self,
        index: RegionIndex,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), DeviceError>;
    /// Writes `data`; `offset + data.len()` lies within the region and is writable.
    fn region_write(
        &mut self,
        index: RegionIndex,
        offset: u64,
        data: &[u8],
    ) -> Result<(), DeviceError>;
    /// Sets interrupts; `start + count` is within the index, and `SetEventFds` carries `count` fds, each
    /// one checked to be an eventfd.
    fn set_irqs(
        &mut self,
        index: IrqIndex,
        start: u32,
        count: u32,
        action: IrqAction,
    ) -> Result<(), DeviceError>;
    /// Takes a mapping. Sizes, alignment and that it overlaps no other are checked.
    fn dma_map(&mut self, map: DmaMap) -> Result<(), DeviceError>;
    /// Ends a mapping made with exactly this range; the server finds the mappings in the range that a client
    /// names. When it returns, nothing reads or writes there.
    fn dma_unmap(&mut self, iova: u64, size: u64) -> Result<(), DeviceError>;
    /// Ends every mapping.
    fn dma_unmap_all(&mut self);
    /// Function-level reset.
    fn reset(&mut self);
    /// The client is gone: forget its mappings and eventfds and reset.
    fn disconnected(&mut self);
}
