//! A host on a clock that can be moved, and its control API without the socket, for the fuzzer.

use super::routes;
use super::server::connection;
use crate::config::HostConfig;
use crate::host::{Host, HostError, RendererProgram, system};
use beamline_abi::Nanos;
use beamline_latency::clock::{Clock, MonotonicClock};
use hyper::rt::{Read, ReadBufCursor, Write};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::runtime::Runtime;

/// Looks at an incomplete request before it breaks off: more than it takes to read what is there.
const LOOKS: u32 = 64;

/// The real clock, moved forward.
#[derive(Default)]
struct Moved(AtomicU64);

impl Clock for Moved {
    fn now(&self) -> Nanos {
        MonotonicClock.now().saturating_add(Nanos(self.0.load(Ordering::Relaxed)))
    }
}

/// A host that is asked through [`Door::say`].
pub struct Door {
    host: Host,
    clock: Arc<Moved>,
    runtime: Runtime,
}

impl Door {
    /// Starts a host.
    ///
    /// # Errors
    /// Those of [`Host::start`].
    pub fn open(config: HostConfig) -> Result<Self, HostError> {
        let clock = Arc::new(Moved::default());
        let time: Arc<dyn Clock> = clock.clone();
        let renderer = RendererProgram { exe: "none".into(), args: Vec::new() };
        let host = Host::start_unasked(config, renderer, time, || Ok(()))?;
        // One thread that stays, so that threads can be counted.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .max_blocking_threads(1)
            .thread_keep_alive(Duration::MAX)
            .build()
            .map_err(system("start a runtime"))?;
        Ok(Self { host, clock, runtime })
    }

    /// What a connection answers that brings these bytes and no more. No request waits for a change.
    pub fn say(&self, bytes: &[u8]) -> Vec<u8> {
        let busy = Arc::new(AtomicBool::new(false));
        let mut said = Vec::new();
        let wire = Wire { left: bytes, busy: Arc::clone(&busy), looks: 0, said: &mut said };
        let controller = Arc::clone(self.host.controller());
        let answer = move |request, busy| {
            routes::answer(Arc::clone(&controller), request, busy, Duration::ZERO)
        };
        self.runtime.block_on(connection(wire, answer, busy));
        said
    }

    /// Moves the host's clock forward.
    pub fn advance(&self, by: Nanos) {
        self.clock.0.fetch_add(by.0, Ordering::Relaxed);
        self.host.controller().wake();
    }
}

/// A peer that has sent all it will.
struct Wire<'a> {
    left: &'a [u8],
    /// The request is complete: the peer waits for its answer.
    busy: Arc<AtomicBool>,
    looks: u32,
    said: &'a mut Vec<u8>,
}

impl Read for Wire<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut to: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let len = self.left.len().min(to.remaining());
        let (now, left) = self.left.split_at(len);
        if len > 0 {
            to.put_slice(now);
            self.left = left;
            return Poll::Ready(Ok(()));
        }
        if self.busy.load(Ordering::Relaxed) {
            // The answer wakes whoever waits here.
            return Poll::Pending;
        }
        self.looks += 1;
        if self.looks > LOOKS {
            return Poll::Ready(Ok(()));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Write for Wire<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.said.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
