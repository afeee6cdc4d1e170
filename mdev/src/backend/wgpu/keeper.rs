//! What the backend must not wait for: starting and reaping processes, and copying images.
//!
//! The keeper is a thread. Renderers die with the thread that started them, so it lives as long as the
//! backend does.

use crate::backend::{Event, SliceKey};
use crate::renderer::Launcher;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::process::Child;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// How often processes that were killed are looked for until all are reaped.
const REAP_INTERVAL: Duration = Duration::from_millis(50);

/// A renderer's process, between the thread that starts it and the thread that ends it.
#[derive(Debug, Default)]
pub(super) struct Life(Mutex<Process>);

#[derive(Debug, Default)]
enum Process {
    /// It is not there yet.
    #[default]
    Starting,
    Running(Child),
    /// It is to be killed, or was.
    Ended,
}

impl Life {
    /// Hands over the started process, or gives it back where it is no longer wanted.
    fn started(&self, child: Child) -> Option<Child> {
        let mut process = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*process, Process::Starting) {
            *process = Process::Running(child);
            None
        } else {
            Some(child)
        }
    }

    fn is_over(&self) -> bool {
        matches!(*self.0.lock().unwrap_or_else(PoisonError::into_inner), Process::Ended)
    }

    /// Kills the process; the caller has it reaped.
    fn end(&self) -> Option<Child> {
        let mut process = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *process, Process::Ended) {
            Process::Running(mut child) => {
                // It fails only for a process that was reaped, and this one was not.
                let _ = child.kill();
                Some(child)
            }
            Process::Starting | Process::Ended => None,
        }
    }

    /// Kills the process and tells nobody.
    #[cfg(test)]
    pub(super) fn crash(&self) {
        if let Process::Running(child) = &mut *self.0.lock().unwrap() {
            child.kill().unwrap();
        }
    }

    /// How the process ended, for people, where it has.
    pub(super) fn status(&self) -> Option<String> {
        let mut process = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *process {
            Process::Running(child) => Some(child.try_wait().ok()??.to_string()),
            Process::Starting | Process::Ended => None,
        }
    }
}

enum Order {
    Start { slice: SliceKey, life: Arc<Life>, socket: OwnedFd },
    Reap(Child),
    Copy { slice: SliceKey, width: u32, height: u32, pixels: OwnedFd },
}

/// The thread, as the backend sees it.
pub(super) struct Keeper {
    orders: Option<Sender<Order>>,
    done: Receiver<Event>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(super) fn new(launcher: Launcher) -> io::Result<Self> {
        let (orders, queue) = channel();
        let (events, done) = channel();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let worker = Worker { launcher, events, wake: Arc::clone(&wake), killed: Vec::new() };
        let thread = Builder::new().name("keeper".into()).spawn(move || worker.run(&queue))?;
        Ok(Self { orders: Some(orders), done, wake, thread: Some(thread) })
    }

    /// Readable when [`Self::drain`] has something.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// What is done: images, and lives that could not be started.
    pub(super) fn drain(&self) -> impl Iterator<Item = Event> {
        let mut count = [0; 8];
        // Nothing to read only means that nothing was announced.
        let _ = rustix::io::read(&*self.wake, &mut count);
        self.done.try_iter()
    }

    pub(super) fn start(&self, slice: SliceKey, life: Arc<Life>, socket: OwnedFd) {
        self.order(Order::Start { slice, life, socket });
    }

    /// Kills a life's process at once and leaves the rest to the thread.
    pub(super) fn end(&self, life: &Life) {
        if let Some(child) = life.end() {
            self.order(Order::Reap(child));
        }
    }

    pub(super) fn copy(&self, slice: SliceKey, width: u32, height: u32, pixels: OwnedFd) {
        self.order(Order::Copy { slice, width, height, pixels });
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // The thread ends only when `orders` is dropped.
            let _ = orders.send(order);
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    launcher: Launcher,
    events: Sender<Event>,
    wake: Arc<OwnedFd>,
    killed: Vec<Child>,
}

impl Worker {
    fn run(mut self, queue: &Receiver<Order>) {
        loop {
            let order = if self.killed.is_empty() {
                queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                queue.recv_timeout(REAP_INTERVAL)
            };
            match order {
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.killed.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        }
        for mut child in self.killed {
            let _ = child.wait();
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Start { slice, life, socket } => self.start(slice, &life, socket),
            Order::Reap(child) => self.killed.push(child),
            Order::Copy { slice, width, height, pixels } => {
                let event = match copy(width, height, pixels) {
                    Ok(rgba) => Event::Image { slice, width, height, rgba },
                    Err(error) => {
                        tracing::warn!(%slice, %error, "a renderer's image cannot be read");
                        Event::Image { slice, width: 0, height: 0, rgba: Vec::new() }
                    }
                };
                self.tell(event);
            }
        }
    }

    fn start(&mut self, slice: SliceKey, life: &Life, socket: OwnedFd) {
        // A life that is over already needs no process.
        if life.is_over() {
            return;
        }
        // Kept until a failure is told, so that it comes before the socket's end.
        let _open = socket.try_clone();
        match self.launcher.spawn(socket) {
            Ok(child) => {
                if let Some(mut unwanted) = life.started(child) {
                    let _ = unwanted.kill();
                    self.killed.push(unwanted);
                }
            }
            Err(error) => self.tell(Event::Lost {
                slice,
                reason: format!(
                    "cannot start the renderer {}: {error}",
                    self.launcher.exe.display()
                ),
            }),
        }
    }

    fn tell(&self, event: Event) {
        if self.events.send(event).is_ok() {
            // It cannot fill up: every read takes the whole count.
            let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        }
    }
}

/// Reads pixels, from a file that may be anything: the sizes were checked by the caller.
pub(super) fn copy(width: u32, height: u32, pixels: OwnedFd) -> io::Result<Vec<u8>> {
    let stat = rustix::fs::fstat(&pixels)?;
    let bytes = 4 * width as usize * height as usize;
    let regular = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
    if !regular || usize::try_from(stat.st_size) != Ok(bytes) {
        return Err(io::Error::other(format!(
            "not a file of {bytes} bytes, as {width} by {height} pixels are"
        )));
    }
    let mut rgba = vec![0; bytes];
    File::from(pixels).read_exact_at(&mut rgba, 0)?;
    Ok(rgba)
}
