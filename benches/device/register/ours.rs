//! Our client and our server.

use super::{REGION, REGISTER, Side};
use anyhow::{Context, anyhow, ensure};
use beamline_mdev::host::threads::pin;
use beamline_vfio_user::client::Client;
use beamline_vfio_user::server::{End, Listener, ServeError, Stop, serve};
use beamline_vfio_user::{
    Device, DeviceError, DeviceInfo, DmaMap, IoFd, IrqAction, IrqIndex, IrqInfo, RegionFlags,
    RegionIndex, RegionInfo,
};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

const REGISTERS: RegionIndex = RegionIndex::bar(0);

pub(super) struct Ours {
    client: Client,
    server: JoinHandle<Result<End, ServeError>>,
}

impl Ours {
    /// Listens at `path`, and serves from a thread on CPU `cpu`.
    pub(super) fn start(path: &Path, cpu: usize) -> anyhow::Result<Self> {
        let listener = Listener::bind(path).context("our server's socket")?;
        let stop = Stop::new().context("an eventfd")?;
        let server = std::thread::spawn(move || {
            // Without a place of its own it is slower, and the reader sees a worse ratio.
            let _ = pin(&[cpu]);
            match listener.accept(&stop)? {
                Some(stream) => serve(stream, &mut Registers([0; REGION as usize]), &stop),
                None => Ok(End::Stopped),
            }
        });
        let client = Client::connect(path, Duration::from_secs(10)).context("our client")?;
        Ok(Self { client, server })
    }

    /// Ends the connection, and the server with it.
    pub(super) fn stop(self) -> anyhow::Result<()> {
        drop(self.client);
        let end = self.server.join().map_err(|_| anyhow!("our server panicked"))?;
        ensure!(matches!(end, Ok(End::Disconnected)), "our server ended with {end:?}");
        Ok(())
    }
}

impl Side for Ours {
    fn read(&mut self) -> anyhow::Result<u32> {
        let mut word = [0; 4];
        self.client.region_read(REGISTERS, REGISTER, &mut word)?;
        Ok(u32::from_le_bytes(word))
    }

    fn write(&mut self, value: u32) -> anyhow::Result<()> {
        Ok(self.client.region_write(REGISTERS, REGISTER, &value.to_le_bytes())?)
    }
}

/// Bytes that keep what is written.
struct Registers([u8; REGION as usize]);

impl Device for Registers {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { resettable: false }
    }
    fn region(&self, index: RegionIndex) -> RegionInfo<'_> {
        let size = if index == REGISTERS { REGION } else { 0 };
        let flags = RegionFlags { read: true, write: true };
        RegionInfo { size, flags, mapping: None }
    }
    fn irq(&self, _index: IrqIndex) -> IrqInfo {
        IrqInfo { count: 0 }
    }
    fn io_fds(&self, _index: RegionIndex) -> Vec<IoFd<'_>> {
        Vec::new()
    }
    fn region_read(
        &mut self,
        _index: RegionIndex,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), DeviceError> {
        // The server has checked the range.
        data.copy_from_slice(&self.0[offset as usize..][..data.len()]);
        Ok(())
    }
    fn region_write(
        &mut self,
        _index: RegionIndex,
        offset: u64,
        data: &[u8],
    ) -> Result<(), DeviceError> {
        self.0[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
    fn set_irqs(
        &mut self,
        _index: IrqIndex,
        _start: u32,
        _count: u32,
        _action: IrqAction,
    ) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported("an interrupt"))
    }
    fn dma_map(&mut self, _map: DmaMap) -> Result<(), DeviceError> {
        Ok(())
    }
    fn dma_unmap(&mut self, _iova: u64, _size: u64) -> Result<(), DeviceError> {
        Ok(())
    }
    fn dma_unmap_all(&mut self) {}
    fn reset(&mut self) {}
    fn disconnected(&mut self) {}
}
