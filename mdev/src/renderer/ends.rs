//! Stage 6, fence: the thread that waits for the ends of jobs and tells the host of them. Meanwhile the job
//! thread can put the next one behind the one that runs, so that the GPU does not wait between two.

use super::device::{Device, Timer};
use super::job::Flight;
use super::message::{Head, Kind};
use super::{RendererError, reply, threads};
use beamline_abi::Nanos;
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{Shutdown, shutdown};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

/// Jobs of a slice on the GPU at most: one that runs, and one behind it.
pub(super) const IN_FLIGHT: usize = 2;

/// The thread, as the job thread sees it.
pub(super) struct Ends {
    flights: SyncSender<(u64, Flight)>,
    timers: Receiver<Timer>,
    thread: JoinHandle<Result<(), RendererError>>,
}

impl Ends {
    /// Starts the thread, which answers on `socket`. There are as many jobs in flight at most as `timers`.
    pub(super) fn start(
        gpu: Arc<Device>,
        timers: [Timer; IN_FLIGHT],
        socket: OwnedFd,
    ) -> Result<Self, RendererError> {
        let (flights, submitted) = sync_channel(IN_FLIGHT);
        let (back, free) = sync_channel(IN_FLIGHT);
        for timer in timers {
            // There is room for all of them.
            let _ = back.try_send(timer);
        }
        let thread = move || {
            threads::prefer();
            let host = Host(socket);
            answer(&gpu, &submitted, &back, &host.0)
        };
        let thread =
            Builder::new().name("ends".into()).spawn(thread).map_err(RendererError::Thread)?;
        Ok(Self { flights, timers: free, thread })
    }

    /// The timer of the next job: waits where as many as may be are in flight. `None`: the thread has ended.
    pub(super) fn timer(&self) -> Option<Timer> {
        self.timers.recv().ok()
    }

    /// Hands over a job with the host's token for it. Answers are sent in the order of these calls.
    pub(super) fn expect(&self, token: u64, flight: Flight) {
        // A thread that has ended is found at the next job.
        let _ = self.flights.send((token, flight));
    }

    /// Waits for the ends of all jobs; why the thread ended early, where it did.
    pub(super) fn finish(self) -> Result<(), RendererError> {
        let Self { flights, thread, .. } = self;
        drop(flights);
        // wgpu panics where a wait finds its device lost.
        thread.join().unwrap_or(Err(RendererError::Lost))
    }
}

/// The host's socket. When the thread ends, be it by a panic of wgpu's over a lost device, the job thread must not
/// go on waiting for orders that nobody would answer.
struct Host(OwnedFd);

impl Drop for Host {
    fn drop(&mut self) {
        // It can still be written to: the host is told why.
        let _ = shutdown(&self.0, Shutdown::Read);
    }
}

fn answer(
    gpu: &Device,
    flights: &Receiver<(u64, Flight)>,
    back: &SyncSender<Timer>,
    socket: &OwnedFd,
) -> Result<(), RendererError> {
    let mut free = Nanos::ZERO;
    for (token, flight) in flights {
        let (span, result, timer) = flight.land(gpu, &mut free);
        if gpu.is_lost() {
            return Err(RendererError::Lost);
        }
        // Before the answer: the host may give the next job at once. There is room for all timers.
        let _ = back.try_send(timer);
        let done = Head {
            start: span.start,
            end: span.end,
            busy: span.busy,
            estimated: u32::from(span.estimated),
            ..Head::token(Kind::Done, token).result(result)
        };
        reply(socket.as_fd(), &done, &[])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
    use rustix::net::{recv, send, socketpair};

    #[test]
    fn a_thread_that_panics_ends_the_wait_for_orders_and_lets_the_host_be_told() {
        let kind = SocketType::SEQPACKET;
        let (host, own) =
            socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        let theirs = Host(own.try_clone().unwrap());
        let thread = std::thread::spawn(move || {
            let _host = theirs;
            panic!("the device is lost");
        });
        let mut order = [0; 8];
        assert_eq!(recv(&own, &mut order, RecvFlags::empty()).unwrap().0, 0);
        assert!(thread.join().is_err());
        send(&own, b"why", SendFlags::empty()).unwrap();
        assert_eq!(recv(&host, &mut order, RecvFlags::empty()).unwrap().0, 3);
    }
}
