//! The client and the server of the crate `vfio_user`.

use super::{REGION, REGISTER, Side};
use anyhow::{Context, anyhow};
use beamline_mdev::host::threads::pin;
use std::fs::File;
use std::io;
use std::path::Path;
use std::thread::JoinHandle;
use vfio_bindings::bindings::vfio::{
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
};
use vfio_user::{Client, DmaMapFlags, DmaUnmapFlags, Error, Server, ServerBackend, ServerRegion};

pub(super) struct Theirs {
    client: Client,
    server: JoinHandle<Result<(), Error>>,
}

impl Theirs {
    /// Listens at `path`, and serves from a thread on CPU `cpu`.
    pub(super) fn start(path: &Path, cpu: usize) -> anyhow::Result<Self> {
        let region_info = vfio_region_info {
            argsz: size_of::<vfio_region_info>() as u32,
            flags: VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE,
            size: REGION,
            ..Default::default()
        };
        let region = ServerRegion { region_info, sparse_areas: Vec::new(), mmap_fd: None };
        let server = Server::new(path, false, Vec::new(), vec![region])
            .context("the crate's server's socket")?;
        let server = std::thread::spawn(move || {
            // As for ours.
            let _ = pin(&[cpu]);
            server.run(&mut Registers([0; REGION as usize]))
        });
        let client = Client::new(path).context("the crate's client")?;
        Ok(Self { client, server })
    }

    /// Ends the connection, and the server with it.
    pub(super) fn stop(self) -> anyhow::Result<()> {
        self.client.shutdown().context("the crate's client")?;
        let end = self.server.join().map_err(|_| anyhow!("the crate's server panicked"))?;
        end.context("the crate's server")
    }
}

impl Side for Theirs {
    fn read(&mut self) -> anyhow::Result<u32> {
        let mut word = [0; 4];
        self.client.region_read(0, REGISTER, &mut word)?;
        Ok(u32::from_le_bytes(word))
    }

    fn write(&mut self, value: u32) -> anyhow::Result<()> {
        Ok(self.client.region_write(0, REGISTER, &value.to_le_bytes())?)
    }
}

/// Bytes that keep what is written.
struct Registers([u8; REGION as usize]);

impl ServerBackend for Registers {
    fn region_read(&mut self, _region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        data.copy_from_slice(&self.0[offset as usize..][..data.len()]);
        Ok(())
    }
    fn region_write(&mut self, _region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
    fn dma_map(
        &mut self,
        _flags: DmaMapFlags,
        _offset: u64,
        _address: u64,
        _size: u64,
        _fd: Option<File>,
    ) -> io::Result<()> {
        Ok(())
    }
    fn dma_unmap(&mut self, _flags: DmaUnmapFlags, _address: u64, _size: u64) -> io::Result<()> {
        Ok(())
    }
    fn reset(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn set_irqs(
        &mut self,
        _index: u32,
        _flags: u32,
        _start: u32,
        _count: u32,
        _fds: Vec<File>,
    ) -> io::Result<()> {
        Ok(())
    }
}
