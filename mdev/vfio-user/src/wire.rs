//! The messages, as they lie on the socket.
//!
//! Source: QEMU's docs/interop/vfio-user.rst, "Protocol Specification", and linux/vfio.h. All fields are in
//! the host's byte order, as that document says. The structures have no padding and hold plain integers, so
//! that a message is copied into one and checked there; nothing here is trusted by being of this type.

use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The major version of the protocol that is spoken here.
pub const MAJOR: u16 = 0;
/// The newest minor version that is spoken here.
pub const MINOR: u16 = 1;

/// Bytes of a page: what mappings are aligned to.
pub const PAGE_SIZE: u64 = 4096;
/// The most bytes that one region access carries: the protocol's default `max_data_xfer_size`.
pub const MAX_DATA_XFER: u32 = 1 << 20;
/// The most bytes of one message: the largest data transfer and its fixed fields.
pub const MAX_MESSAGE: u32 = MAX_DATA_XFER + 4096;
/// The most file descriptors of one message.
pub const MAX_FDS: usize = 16;
/// `max_msg_fds` of a peer that does not say.
pub const DEFAULT_PEER_FDS: usize = 1;
/// The most areas of a region that may be mapped.
pub const MAX_AREAS: usize = 16;
/// The most doorbells of a region.
pub const MAX_IO_FDS: usize = 256;
/// The most DMA ranges of a connection.
pub const MAX_DMA_MAPS: u32 = 4096;
/// The most vectors of an interrupt index (PCI Local Bus 3.0, 6.8.2: MSI-X table size).
pub const MAX_VECTORS: u32 = 2048;

/// Message numbers.
pub mod command {
    /// Negotiates the version; the first message.
    pub const VERSION: u16 = 1;
    /// Maps guest memory.
    pub const DMA_MAP: u16 = 2;
    /// Ends a mapping.
    pub const DMA_UNMAP: u16 = 3;
    /// What the device is.
    pub const DEVICE_GET_INFO: u16 = 4;
    /// What a region is, and the fd to map it by.
    pub const DEVICE_GET_REGION_INFO: u16 = 5;
    /// The doorbells of a region.
    pub const DEVICE_GET_REGION_IO_FDS: u16 = 6;
    /// What an interrupt index is.
    pub const DEVICE_GET_IRQ_INFO: u16 = 7;
    /// Sets, clears or triggers interrupts.
    pub const DEVICE_SET_IRQS: u16 = 8;
    /// Reads from a region.
    pub const REGION_READ: u16 = 9;
    /// Writes to a region.
    pub const REGION_WRITE: u16 = 10;
    /// The server reads guest memory through the client.
    pub const DMA_READ: u16 = 11;
    /// The server writes guest memory through the client.
    pub const DMA_WRITE: u16 = 12;
    /// Resets the function.
    pub const DEVICE_RESET: u16 = 13;
    /// Several small region writes at once.
    pub const REGION_WRITE_MULTI: u16 = 15;
    /// Gets, sets or probes a device feature.
    pub const DEVICE_FEATURE: u16 = 16;
    /// Reads migration data.
    pub const MIG_DATA_READ: u16 = 17;
    /// Writes migration data.
    pub const MIG_DATA_WRITE: u16 = 18;

    /// The name that the specification gives `command`.
    pub fn name(command: u16) -> &'static str {
        match command {
            VERSION => "VERSION",
            DMA_MAP => "DMA_MAP",
            DMA_UNMAP => "DMA_UNMAP",
            DEVICE_GET_INFO => "DEVICE_GET_INFO",
            DEVICE_GET_REGION_INFO => "DEVICE_GET_REGION_INFO",
            DEVICE_GET_REGION_IO_FDS => "DEVICE_GET_REGION_IO_FDS",
            DEVICE_GET_IRQ_INFO => "DEVICE_GET_IRQ_INFO",
            DEVICE_SET_IRQS => "DEVICE_SET_IRQS",
            REGION_READ => "REGION_READ",
            REGION_WRITE => "REGION_WRITE",
            DMA_READ => "DMA_READ",
            DMA_WRITE => "DMA_WRITE",
            DEVICE_RESET => "DEVICE_RESET",
            REGION_WRITE_MULTI => "REGION_WRITE_MULTI",
            DEVICE_FEATURE => "DEVICE_FEATURE",
            MIG_DATA_READ => "MIG_DATA_READ",
            MIG_DATA_WRITE => "MIG_DATA_WRITE",
            _ => "an unknown command",
        }
    }
}

/// Bits of [`Header::flags`].
pub mod header_flags {
    /// The bits that hold the type.
    pub const TYPE_MASK: u32 = 0xf;
    /// Type: a command.
    pub const COMMAND: u32 = 0;
    /// Type: a reply.
    pub const REPLY: u32 = 1;
    /// In a command: send no reply.
    pub const NO_REPLY: u32 = 1 << 4;
    /// In a reply: the command failed; `error` is an errno.
    pub const ERROR: u32 = 1 << 5;
}

/// Bits of [`DeviceInfo::flags`].
pub mod device_flags {
    /// `VFIO_DEVICE_FLAGS_RESET`.
    pub const RESET: u32 = 1 << 0;
    /// `VFIO_DEVICE_FLAGS_PCI`.
    pub const PCI: u32 = 1 << 1;
}

/// Bits of [`RegionInfo::flags`], and the number of the capability that is used here.
pub mod region_flags {
    /// `VFIO_REGION_INFO_FLAG_READ`.
    pub const READ: u32 = 1 << 0;
    /// `VFIO_REGION_INFO_FLAG_WRITE`.
    pub const WRITE: u32 = 1 << 1;
    /// `VFIO_REGION_INFO_FLAG_MMAP`.
    pub const MMAP: u32 = 1 << 2;
    /// `VFIO_REGION_INFO_FLAG_CAPS`.
    pub const CAPS: u32 = 1 << 3;
    /// `VFIO_REGION_INFO_CAP_SPARSE_MMAP`.
    pub const CAP_SPARSE_MMAP: u16 = 1;
}

/// Bits of [`DmaMap::flags`] and [`DmaUnmap::flags`].
pub mod dma_flags {
    /// The device may read.
    pub const READ: u32 = 1 << 0;
    /// The device may write.
    pub const WRITE: u32 = 1 << 1;
    /// `VFIO_DMA_UNMAP_FLAG_ALL`: every mapping; address and size are 0.
    pub const UNMAP_ALL: u32 = 1 << 1;
}

/// Bits of [`IrqInfo::flags`] and [`IrqSet::flags`].
pub mod irq_flags {
    /// `VFIO_IRQ_INFO_EVENTFD`.
    pub const INFO_EVENTFD: u32 = 1 << 0;
    /// `VFIO_IRQ_SET_DATA_NONE`.
    pub const DATA_NONE: u32 = 1 << 0;
    /// `VFIO_IRQ_SET_DATA_BOOL`.
    pub const DATA_BOOL: u32 = 1 << 1;
    /// `VFIO_IRQ_SET_DATA_EVENTFD`.
    pub const DATA_EVENTFD: u32 = 1 << 2;
    /// `VFIO_IRQ_SET_ACTION_MASK`.
    pub const ACTION_MASK: u32 = 1 << 3;
    /// `VFIO_IRQ_SET_ACTION_UNMASK`.
    pub const ACTION_UNMASK: u32 = 1 << 4;
    /// `VFIO_IRQ_SET_ACTION_TRIGGER`.
    pub const ACTION_TRIGGER: u32 = 1 << 5;
}

/// Values of [`IoFd`].
pub mod io_fd {
    /// `VFIO_USER_IO_FD_TYPE_IOEVENTFD`.
    pub const TYPE_IOEVENTFD: u32 = 0;
    /// `KVM_IOEVENTFD_FLAG_DATAMATCH` in `flags`.
    pub const FLAG_DATAMATCH: u32 = 1 << 0;
}

macro_rules! message {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $($(#[$fdoc])* pub $field: $type,)* }
    };
}

message! {
    /// What every message starts with.
    Header {
        /// Chosen by the sender of a command, echoed in its reply.
        id: u16,
        /// See [`command`].
        command: u16,
        /// Bytes of the whole message, with this header.
        size: u32,
        /// See [`header_flags`].
        flags: u32,
        /// In a failed reply: an errno.
        error: u32,
    }
}

message! {
    /// `VERSION`, before its JSON.
    Version {
        /// Must be the same on both sides.
        major: u16,
        /// The reply's is at most the request's.
        minor: u16,
    }
}

message! {
    /// `DMA_MAP`.
    DmaMap {
        /// Bytes of this structure.
        argsz: u32,
        /// See [`dma_flags`].
        flags: u32,
        /// Where the range starts in the fd.
        offset: u64,
        /// First I/O virtual address.
        address: u64,
        /// Bytes.
        size: u64,
    }
}

message! {
    /// `DMA_UNMAP`, both ways.
    DmaUnmap {
        /// The most bytes of the reply's payload.
        argsz: u32,
        /// See [`dma_flags`].
        flags: u32,
        /// First I/O virtual address.
        address: u64,
        /// Bytes.
        size: u64,
    }
}

message! {
    /// `DEVICE_GET_INFO`, both ways.
    DeviceInfo {
        /// The most, then the needed bytes of the reply's payload.
        argsz: u32,
        /// See [`device_flags`].
        flags: u32,
        /// Regions.
        num_regions: u32,
        /// Interrupt indexes.
        num_irqs: u32,
    }
}

message! {
    /// `DEVICE_GET_REGION_INFO`, both ways (`struct vfio_region_info`).
    RegionInfo {
        /// The most, then the needed bytes of the reply's payload.
        argsz: u32,
        /// See [`region_flags`].
        flags: u32,
        /// Which region.
        index: u32,
        /// Where the first capability is, from the start of this structure.
        cap_offset: u32,
        /// Bytes of the region.
        size: u64,
        /// Where the region starts in the fd.
        offset: u64,
    }
}

message! {
    /// The head of a capability (`struct vfio_info_cap_header`).
    CapHeader {
        /// Which.
        id: u16,
        /// Of what version.
        version: u16,
        /// Where the next is, from the start of [`RegionInfo`]; 0: nowhere.
        next: u32,
    }
}

message! {
    /// What follows the head of the sparse-mmap capability; the areas come next.
    SparseHeader {
        /// Areas.
        nr_areas: u32,
        /// 0.
        reserved: u32,
    }
}

message! {
    /// One area of the sparse-mmap capability.
    Area {
        /// From the region's start.
        offset: u64,
        /// Bytes.
        size: u64,
    }
}

message! {
    /// `DEVICE_GET_REGION_IO_FDS`, both ways; in the reply, sub-regions follow.
    RegionIoFds {
        /// The most, then the needed bytes of the reply's payload.
        argsz: u32,
        /// 0.
        flags: u32,
        /// Which region.
        index: u32,
        /// Sub-regions.
        count: u32,
    }
}

message! {
    /// A sub-region of [`RegionIoFds`].
    IoFd {
        /// From the region's start.
        offset: u64,
        /// Bytes of the access; 0: any.
        size: u64,
        /// Which of the message's fds.
        fd_index: u32,
        /// [`io_fd::TYPE_IOEVENTFD`].
        kind: u32,
        /// See [`io_fd`].
        flags: u32,
        /// 0.
        padding: u32,
        /// The value that signals.
        datamatch: u64,
    }
}

message! {
    /// `DEVICE_GET_IRQ_INFO`, both ways (`struct vfio_irq_info`).
    IrqInfo {
        /// The most, then the needed bytes of the reply's payload.
        argsz: u32,
        /// See [`irq_flags`].
        flags: u32,
        /// Which index.
        index: u32,
        /// Vectors.
        count: u32,
    }
}

message! {
    /// `DEVICE_SET_IRQS` (`struct vfio_irq_set`); booleans may follow.
    IrqSet {
        /// Bytes of this structure and what follows.
        argsz: u32,
        /// See [`irq_flags`].
        flags: u32,
        /// Which index.
        index: u32,
        /// First vector.
        start: u32,
        /// Vectors.
        count: u32,
    }
}

message! {
    /// `REGION_READ` and `REGION_WRITE`, both ways; data follows in a write and in a read's reply.
    RegionAccess {
        /// From the region's start.
        offset: u64,
        /// Which region.
        region: u32,
        /// Bytes of data.
        count: u32,
    }
}

message! {
    /// `REGION_WRITE_MULTI`, both ways; in the request, writes follow.
    WriteMulti {
        /// Writes in the request, writes done in the reply.
        count: u64,
    }
}

message! {
    /// One write of [`WriteMulti`].
    MultiWrite {
        /// From the region's start.
        offset: u64,
        /// Which region.
        region: u32,
        /// Bytes of `data` that count: at most 8.
        count: u32,
        /// The data.
        data: [u8; 8],
    }
}

/// Bytes of a `T` on the wire.
pub const fn size<T>() -> u32 {
    size_of::<T>() as u32
}

/// Copies a `T` from the start of `bytes`, and gives what follows it. `None`: too short.
pub fn take<T: FromBytes>(bytes: &[u8]) -> Option<(T, &[u8])> {
    T::read_from_prefix(bytes).ok()
}

/// The JSON that follows [`Version`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionData {
    /// What the sender can do.
    #[serde(default)]
    pub capabilities: Capabilities,
}

/// What a side can do. What is absent has the default that the specification gives; unknown names are
/// ignored, since newer peers and QEMU's `migration` send them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The most fds that the sender takes in one message; default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_msg_fds: Option<u64>,
    /// The most bytes of one data transfer; default 1 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_data_xfer_size: Option<u64>,
    /// The most DMA ranges at one time; default 65535.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_dma_maps: Option<u64>,
    /// Page sizes of DMA ranges, or'ed together; default 4096.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pgsizes: Option<u64>,
    /// `REGION_WRITE_MULTI` is understood; default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_multiple: Option<bool>,
}

/// Why the payload of a `VERSION` message was not understood.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// It does not hold major and minor.
    #[error("the VERSION message holds {0} bytes, at least 4 are needed")]
    Short(usize),
    /// The JSON has no end.
    #[error("the JSON of the VERSION message does not end with a NUL")]
    NoNul,
    /// It is not the JSON that the specification shows.
    #[error("the JSON of the VERSION message is not understood")]
    Json(#[from] serde_json::Error),
}

/// Reads the payload of a `VERSION` message. Without JSON the defaults count.
pub fn parse_version(body: &[u8]) -> Result<(Version, VersionData), VersionError> {
    let (version, json) = take::<Version>(body).ok_or(VersionError::Short(body.len()))?;
    let data = match json {
        [] | [0] => VersionData::default(),
        [text @ .., 0] => serde_json::from_slice(text)?,
        _ => return Err(VersionError::NoNul),
    };
    Ok((version, data))
}

/// Appends the payload of a `VERSION` message to `out`.
pub fn write_version(
    out: &mut Vec<u8>,
    version: Version,
    data: &VersionData,
) -> Result<(), VersionError> {
    out.extend_from_slice(version.as_bytes());
    serde_json::to_writer(&mut *out, data)?;
    out.push(0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The specification's sizes.
    #[test]
    fn sizes_are_those_of_the_specification() {
        assert_eq!(size::<Header>(), 16);
        assert_eq!(size::<Version>(), 4);
        assert_eq!(size::<DmaMap>(), 32);
        assert_eq!(size::<DmaUnmap>(), 24);
        assert_eq!(size::<DeviceInfo>(), 16);
        assert_eq!(size::<RegionInfo>(), 32);
        assert_eq!(size::<CapHeader>() + size::<SparseHeader>(), 16);
        assert_eq!(size::<Area>(), 16);
        assert_eq!(size::<RegionIoFds>(), 16);
        assert_eq!(size::<IoFd>(), 40);
        assert_eq!(size::<IrqInfo>(), 16);
        assert_eq!(size::<IrqSet>(), 20);
        assert_eq!(size::<RegionAccess>(), 16);
        assert_eq!(size::<MultiWrite>(), 24);
    }

    #[test]
    fn version_json_round_trips_and_ignores_what_it_does_not_know() {
        let mut bytes = vec![0, 0, 1, 0];
        bytes.extend_from_slice(
            br#"{"capabilities":{"max_msg_fds":16,"migration":{"pgsize":4096},"pgsizes":4096}}"#,
        );
        bytes.push(0);
        let (version, data) = parse_version(&bytes).unwrap();
        assert_eq!((version.major, version.minor), (0, 1));
        assert_eq!(data.capabilities.max_msg_fds, Some(16));
        assert_eq!(data.capabilities.max_data_xfer_size, None);

        let mut again = Vec::new();
        write_version(&mut again, version, &data).unwrap();
        assert_eq!(parse_version(&again).unwrap(), (version, data));
    }

    #[test]
    fn version_without_json_means_defaults_and_bad_json_is_refused() {
        assert_eq!(parse_version(&[0, 0, 1, 0]).unwrap().1, VersionData::default());
        assert!(matches!(parse_version(&[0, 0]), Err(VersionError::Short(2))));
        assert!(matches!(parse_version(b"\0\0\0\0{}"), Err(VersionError::NoNul)));
        assert!(matches!(parse_version(b"\0\0\0\0{\"\0"), Err(VersionError::Json(_))));
        assert!(matches!(
            parse_version(b"\0\0\0\0{\"capabilities\":{\"max_msg_fds\":-1}}\0"),
            Err(VersionError::Json(_))
        ));
    }
}
