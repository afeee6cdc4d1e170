//! The requests that attaching a function needs of its server, and how they fail.

use beamline_vfio_user::client::{Client, ClientError};
use beamline_vfio_user::{DmaFlags, IrqIndex, RegionFlags, RegionIndex, SparseArea};
use std::os::fd::{BorrowedFd, OwnedFd};

/// How a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The server said no; the connection goes on.
    #[error("the server refused: {0}")]
    Refused(String),
    /// There is no server any more.
    #[error("the connection to the server has ended: {0}")]
    Lost(String),
}

/// How parts of a region are mapped.
#[derive(Debug)]
pub struct RemoteMapping {
    /// What is mapped.
    pub fd: OwnedFd,
    /// Where the region starts in `fd`: bytes.
    pub fd_offset: u64,
    /// The guest may write.
    pub write: bool,
    /// The parts.
    pub areas: Vec<SparseArea>,
}

/// A region.
#[derive(Debug, Default)]
pub struct RemoteRegion {
    /// Bytes; 0: it does not exist.
    pub size: u64,
    /// Rights of trapped access.
    pub flags: RegionFlags,
    /// What may be mapped.
    pub mapping: Option<RemoteMapping>,
}

/// A doorbell of a region.
#[derive(Debug)]
pub struct RemoteDoorbell {
    /// Bytes from the region's start.
    pub offset: u64,
    /// Bytes of the write: 1, 2, 4 or 8; 0: any.
    pub size: u64,
    /// An eventfd, says the server.
    pub fd: OwnedFd,
    /// Only writes of this value signal.
    pub datamatch: Option<u64>,
}

/// A connection to a function's server. Every answer is an allegation.
pub trait Link: Send {
    /// Region `index`.
    fn region(&mut self, index: RegionIndex) -> Result<RemoteRegion, LinkError>;
    /// Doorbells of region `index`; none where the server does not know the request.
    fn doorbells(&mut self, index: RegionIndex) -> Result<Vec<RemoteDoorbell>, LinkError>;
    /// How many vectors `index` has.
    fn vectors(&mut self, index: IrqIndex) -> Result<u32, LinkError>;
    /// Reads a region.
    fn read(&mut self, index: RegionIndex, offset: u64, data: &mut [u8]) -> Result<(), LinkError>;
    /// Writes a region.
    fn write(&mut self, index: RegionIndex, offset: u64, data: &[u8]) -> Result<(), LinkError>;
    /// Signals `fds` for the vectors from `start` on.
    fn set_irqs(
        &mut self,
        index: IrqIndex,
        start: u32,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), LinkError>;
    /// Forgets the eventfds of vectors.
    fn clear_irqs(&mut self, index: IrqIndex, start: u32, count: u32) -> Result<(), LinkError>;
    /// Shows guest memory to the function.
    fn dma_map(
        &mut self,
        iova: u64,
        size: u64,
        flags: DmaFlags,
        fd: BorrowedFd<'_>,
        fd_offset: u64,
    ) -> Result<(), LinkError>;
    /// Takes back exactly what was shown by one [`Self::dma_map`]. When it returns, the function uses it no more.
    fn dma_unmap(&mut self, iova: u64, size: u64) -> Result<(), LinkError>;
    /// Ends the connection: the server hears of it, and every further request says that it is lost.
    fn hang_up(&mut self);
}

impl From<ClientError> for LinkError {
    fn from(e: ClientError) -> Self {
        match e {
            ClientError::Refused { .. } | ClientError::Invalid { .. } => {
                Self::Refused(e.to_string())
            }
            _ => Self::Lost(e.to_string()),
        }
    }
}

impl Link for Client {
    fn region(&mut self, index: RegionIndex) -> Result<RemoteRegion, LinkError> {
        let region = self.region_info(index)?;
        let mapping = region.mapping.map(|m| RemoteMapping {
            fd: m.fd,
            fd_offset: m.fd_offset,
            write: m.write,
            areas: m.areas,
        });
        Ok(RemoteRegion { size: region.size, flags: region.flags, mapping })
    }

    fn doorbells(&mut self, index: RegionIndex) -> Result<Vec<RemoteDoorbell>, LinkError> {
        let bells = self.region_io_fds(index)?.into_iter().map(|b| RemoteDoorbell {
            offset: b.offset,
            size: b.size,
            fd: b.fd,
            datamatch: b.datamatch,
        });
        Ok(bells.collect())
    }

    fn vectors(&mut self, index: IrqIndex) -> Result<u32, LinkError> {
        Ok(self.irq_info(index)?.count)
    }

    fn read(&mut self, index: RegionIndex, offset: u64, data: &mut [u8]) -> Result<(), LinkError> {
        Ok(self.region_read(index, offset, data)?)
    }

    fn write(&mut self, index: RegionIndex, offset: u64, data: &[u8]) -> Result<(), LinkError> {
        Ok(self.region_write(index, offset, data)?)
    }

    fn set_irqs(
        &mut self,
        index: IrqIndex,
        start: u32,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), LinkError> {
        Ok(Client::set_irqs(self, index, start, fds)?)
    }

    fn clear_irqs(&mut self, index: IrqIndex, start: u32, count: u32) -> Result<(), LinkError> {
        Ok(Client::clear_irqs(self, index, start, count)?)
    }

    fn dma_map(
        &mut self,
        iova: u64,
        size: u64,
        flags: DmaFlags,
        fd: BorrowedFd<'_>,
        fd_offset: u64,
    ) -> Result<(), LinkError> {
        Ok(Client::dma_map(self, iova, size, flags, fd, fd_offset)?)
    }

    fn dma_unmap(&mut self, iova: u64, size: u64) -> Result<(), LinkError> {
        Ok(Client::dma_unmap(self, iova, size)?)
    }

    fn hang_up(&mut self) {
        Client::hang_up(self);
    }
}
