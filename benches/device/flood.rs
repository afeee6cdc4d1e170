//! A slice whose VMM does all it can, as fast as it can: it writes the pacer's registers, rings the vGPU's
//! doorbells, and submits requests.

use super::guest::{self, BAR, Guest, MEMORY};
use anyhow::{Context, anyhow};
use beamline_abi::pacer::{control, reg};
use beamline_vfio_user::client::Client;
use beamline_vfio_user::{DmaFlags, RegionIndex};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Requests between two register writes of the vGPU.
const SUBMISSIONS: usize = 64;

/// Floods for `time`; what was done: register writes and doorbells.
pub(super) fn flood(pacer: &mut Client, gpu: &Path, time: Duration) -> anyhow::Result<(u64, u64)> {
    let (stop, writes, doorbells) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let goes_on = || !stop.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        let of_pacer = scope.spawn(|| {
            // Its vblanks stay on.
            let on = control::VBLANK_ENABLE.to_le_bytes();
            while goes_on() {
                pacer.region_write(RegionIndex::bar(0), reg::CONTROL.into(), &on)?;
                writes.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
        let of_gpu = scope.spawn(|| {
            let mut client = Client::connect(gpu, Duration::from_secs(10)).context("the vGPU")?;
            let mut guest = Guest::new()?;
            let flags = DmaFlags { read: true, write: true };
            client.dma_map(0, MEMORY, flags, guest.memory().as_fd(), 0)?;
            let doorbells_of = client.region_io_fds(BAR)?;
            let (mut frame, create) = (0, guest::context());
            while goes_on() {
                // Where the queue was overrun, the device asks for this.
                guest.restart()?;
                Guest::start(&mut |region, at, bytes| {
                    writes.fetch_add(1, Ordering::Relaxed);
                    Ok(client.region_write(region, at, bytes)?)
                })?;
                guest.offer(&create)?;
                for _ in 0..SUBMISSIONS {
                    frame += 1;
                    // Whether the queue has room or not: what lies there is taken, or taken again.
                    guest.offer(&guest::frame(frame))?;
                    for io in &doorbells_of {
                        // A full counter is a doorbell that has been rung.
                        let _ = rustix::io::write(&io.fd, &1u64.to_ne_bytes());
                        doorbells.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            anyhow::Ok(())
        });
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        let joined = |thread: std::thread::ScopedJoinHandle<'_, anyhow::Result<()>>| {
            thread.join().map_err(|_| anyhow!("a flooding thread panicked"))?
        };
        joined(of_pacer).context("flooding the pacer")?;
        joined(of_gpu).context("flooding the vGPU")
    })?;
    Ok((writes.into_inner(), doorbells.into_inner()))
}
