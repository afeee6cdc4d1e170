//! What the client gives its caller.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::{RegionFlags, SparseArea};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection could not be made.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The server is gone, or an earlier failure ended the connection.
    #[error("{0}: the server is gone")]
    Disconnected(&'static str),
    /// The server did not answer in time.
    #[error("{0}: the server did not answer in time")]
    Timeout(&'static str),
    /// The server sent what the protocol does not allow.
    #[error("{command}: the server broke the protocol: {what}")]
    Protocol {
        /// Answering which command.
        command: &'static str,
        /// What was wrong.
        what: String,
    },
    /// The server refused; the connection goes on.
    #[error("the server refused {command}: {}", io::Error::from_raw_os_error(*.errno))]
    Refused {
        /// Which command.
        command: &'static str,
        /// The errno of its reply; 0: it gave none.
        errno: i32,
    },
    /// The caller asked for what cannot be sent; nothing was.
    #[error("{command}: {what}")]
    Invalid {
        /// Which command.
        command: &'static str,
        /// What was wrong.
        what: String,
    },
    /// The socket failed.
    #[error("{command}: the socket failed: {errno}")]
    Io {
        /// Which command.
        command: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
}

/// What the server says of its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientDeviceInfo {
    /// [`Client::reset`](super::Client::reset) is served.
    pub resettable: bool,
    /// Regions.
    pub num_regions: u32,
    /// Interrupt indexes.
    pub num_irqs: u32,
}

/// A region.
#[derive(Debug)]
pub struct ClientRegion {
    /// Bytes; 0: the region does not exist.
    pub size: u64,
    /// Rights of trapped access.
    pub flags: RegionFlags,
    /// What can be mapped.
    pub mapping: Option<ClientMapping>,
}

/// How parts of a region are mapped.
#[derive(Debug)]
pub struct ClientMapping {
    /// A memfd, sealed against shrinking, that holds every area.
    pub fd: OwnedFd,
    /// Where the region starts in `fd`; page-aligned.
    pub fd_offset: u64,
    /// The region is writable, and `fd` can be mapped so.
    pub write: bool,
    /// Page-aligned, inside the region and apart from each other; at least one.
    pub areas: Vec<SparseArea>,
}

/// A doorbell: a write of `size` bytes at `offset` of the region may signal `fd` instead of becoming a message.
#[derive(Debug)]
pub struct ClientIoFd {
    /// Bytes from the region's start.
    pub offset: u64,
    /// Bytes of the write: 1, 2, 4 or 8; 0: any.
    pub size: u64,
    /// An eventfd.
    pub fd: OwnedFd,
    /// Only writes of this value signal.
    pub datamatch: Option<u64>,
}
