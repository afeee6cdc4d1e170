//! A device's own thread: waits for kicks, for the device's descriptors and for its end.

use super::shared::{self, Shared};
use super::{DeviceError, Serve};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

/// A running thread. Dropping it stops and joins the thread.
pub(super) struct Worker {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread that runs `serve`, with the eventfds of the queues that it has.
    pub(super) fn start(
        name: &str,
        serve: Box<dyn Serve>,
        kicks: Vec<(usize, Arc<OwnedFd>)>,
        shared: Arc<Shared>,
    ) -> Result<Self, DeviceError> {
        let failed = |what| move |source| DeviceError::Os { what, source };
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| failed("an eventfd cannot be made")(e.into()))?;
        let stop = Arc::new(stop);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let guard = PanicGuard(shared);
                if let Err(e) = run(serve, &kicks, &stopped) {
                    tracing::error!("a device's thread cannot wait: {e}");
                    guard.0.needs_reset();
                }
            })
            .map_err(failed("the device's thread cannot be started"))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        shared::signal(&self.stop);
        if let Some(thread) = self.thread.take() {
            // A panic was reported when it happened, and the guest was told.
            let _ = thread.join();
        }
    }
}

/// A thread that panics leaves a device that needs a reset, not one that hangs.
struct PanicGuard(Arc<Shared>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.needs_reset();
        }
    }
}

fn run(
    mut serve: Box<dyn Serve>,
    kicks: &[(usize, Arc<OwnedFd>)],
    stop: &OwnedFd,
) -> Result<(), Errno> {
    let mut ready: Vec<(u32, PollFlags)> = Vec::new();
    let mut kicked: Vec<usize> = Vec::new();
    loop {
        let mut numbers = Vec::new();
        let mut fds = Vec::with_capacity(kicks.len() + 4);
        fds.push(PollFd::new(stop, PollFlags::IN));
        fds.extend(kicks.iter().map(|(_, fd)| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
        serve.sources(&mut |number, fd, flags| {
            numbers.push(number);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        });
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e),
        }
        if !fds[0].revents().is_empty() {
            return Ok(());
        }
        kicked.clear();
        for ((queue, kick), fd) in kicks.iter().zip(&fds[1..]) {
            if !fd.revents().is_empty() {
                shared::drain(kick);
                kicked.push(*queue);
            }
        }
        ready.clear();
        for (number, fd) in numbers.iter().zip(&fds[1 + kicks.len()..]) {
            if !fd.revents().is_empty() {
                ready.push((*number, fd.revents()));
            }
        }
        drop(fds);
        for (number, flags) in &ready {
            serve.ready(*number, *flags);
        }
        for queue in &kicked {
            serve.kick(*queue);
        }
    }
}
