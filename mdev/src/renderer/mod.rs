//! The renderer: the process that executes one slice's GPU work, and that can be killed.
//!
//! The host starts one per slice with [`Launcher`] and talks to it over a `SOCK_SEQPACKET` pair, whose
//! other end is the renderer's standard input. A shader that never ends, a driver that crashes and memory
//! that a shader corrupts all end with this process, and with nothing else.
//!
//! | thread | does | files |
//! |---|---|---|
//! | job | takes packets in order, gives each job to the GPU | `job`, `device` |
//! | ends | waits for each job's end, and answers | `ends` |
//! | setup | makes resources, reads images back | `setup`, `warm`, `capture` |
//!
//! Streams were validated by the host; they are checked again as they are read (`stream`), because that
//! costs little.
#![cfg(feature = "wgpu")]

mod capture;
mod device;
mod ends;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod job;
mod launch;
pub(crate) mod message;
mod resources;
mod setup;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod threads;
mod warm;
pub(crate) mod writer;

pub use device::adapters;
pub(crate) use device::now;
pub use launch::{Launcher, Start};
pub use threads::JOB_PRIORITY;

use self::device::Device;
use self::ends::Ends;
use self::job::Executor;
use self::message::{Head, Kind, MAX_ORDER, MAX_TEXT, Packet, PacketBuffer, Received, send};
use self::resources::Change;
use self::setup::{Order, Setup};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::SocketType;
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel};

/// Why a renderer ended.
#[derive(Debug, thiserror::Error)]
pub enum RendererError {
    /// It was not started by a host.
    #[error("standard input is not the host's socket; a renderer is started by `beamline host`")]
    NotAChild,
    /// The socket failed.
    #[error("cannot {what} on the host's socket")]
    Socket {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: Errno,
    },
    /// The host said something that is not in the protocol.
    #[error("the host sent {0}: host and renderer must be the same build")]
    Protocol(&'static str),
    /// There is no GPU.
    #[error("no Vulkan device: install mesa-vulkan-drivers for a software GPU")]
    NoVulkan,
    /// No GPU has the wanted name.
    #[error("no Vulkan device has `{wanted}` in its name; there are: {there}")]
    NoSuchAdapter {
        /// What was asked for.
        wanted: String,
        /// The names of all.
        there: String,
    },
    /// The GPU does not work.
    #[error("cannot use the Vulkan device: {0}")]
    Device(String),
    /// The GPU was lost while it was used.
    #[error("the Vulkan device was lost")]
    Lost,
    /// A thread could not be started, or not be given the host's socket.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// The setup thread is gone.
    #[error("the setup thread has ended early")]
    SetupEnded,
}

/// A renderer's whole life, on the socket that its host gave it as standard input. Returns when the host
/// closes the socket.
pub fn main() -> Result<(), RendererError> {
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(|_| RendererError::NotAChild)?;
    if rustix::net::sockopt::socket_type(&socket) != Ok(SocketType::SEQPACKET) {
        return Err(RendererError::NotAChild);
    }
    confine();
    let result = serve(&socket);
    if let Err(error) = &result {
        let mut text = error.to_string();
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        let head = Head::new(Kind::Failed);
        // The host may be gone, and then nobody needs to know.
        let _ = send(socket.as_fd(), &head, [text.as_bytes(), &[]], None, false);
    }
    result
}

/// Dies with the host, gains no rights, leaves no core with a guest's data in it. Where the system does
/// not have one of these, the others still help.
fn confine() {
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let _ = rustix::thread::set_no_new_privs(true);
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let _ = setrlimit(Resource::Core, none);
}

fn serve(socket: &OwnedFd) -> Result<(), RendererError> {
    let mut packets = PacketBuffer::new(MAX_ORDER);
    let Some(start) = receive_start(socket.as_fd(), &mut packets)? else {
        return Ok(());
    };
    // The driver's threads inherit where the thread that makes them runs, and how urgently.
    threads::ordinary();
    threads::pin(&start.render_cpus);
    let gpu = Arc::new(Device::open(start.adapter.as_deref())?);
    let mut executor = Executor::new(Arc::clone(&gpu));
    let timers = warm::device(&mut executor, &gpu)?;
    threads::pin(&start.host_cpus);

    let (changes, made) = channel();
    let own = || socket.try_clone().map_err(RendererError::Thread);
    let orders = Setup::start(Arc::clone(&gpu), start.limits, changes, own()?)?;
    let ends = Ends::start(Arc::clone(&gpu), timers, own()?)?;
    threads::prefer();

    let mut name = gpu.description().to_owned();
    name.truncate(name.floor_char_boundary(MAX_TEXT));
    reply(socket.as_fd(), &Head::new(Kind::Ready), name.as_bytes())?;
    let mut renderer = Renderer { socket: socket.as_fd(), executor, ends, orders, made };
    renderer.run(&mut packets)?;
    renderer.ends.finish()
}

fn receive_start(
    socket: BorrowedFd<'_>,
    packets: &mut PacketBuffer,
) -> Result<Option<Start>, RendererError> {
    match receive(socket, packets)? {
        None => Ok(None),
        Some(packet) if packet.head.kind() == Some(Kind::Start) => {
            serde_json::from_slice(packet.payload)
                .map(Some)
                .map_err(|_| RendererError::Protocol("a start order that cannot be read"))
        }
        Some(_) => Err(RendererError::Protocol("another order before the start")),
    }
}

/// The next packet; `None` when the host has closed.
fn receive<'a>(
    socket: BorrowedFd<'_>,
    packets: &'a mut PacketBuffer,
) -> Result<Option<Packet<'a>>, RendererError> {
    match packets.receive(socket, true) {
        Ok(Received::Packet(packet)) => Ok(Some(packet)),
        Ok(Received::Closed | Received::Nothing) => Ok(None),
        Ok(Received::Garbage) => Err(RendererError::Protocol("a packet of a wrong size")),
        Err(source) => Err(RendererError::Socket { what: "receive", source }),
    }
}

fn reply(socket: BorrowedFd<'_>, head: &Head, text: &[u8]) -> Result<(), RendererError> {
    send(socket, head, [text, &[]], None, true)
        .map_err(|source| RendererError::Socket { what: "send", source })
}

/// The job thread.
struct Renderer<'a> {
    socket: BorrowedFd<'a>,
    executor: Executor,
    ends: Ends,
    orders: SyncSender<Order>,
    /// What the setup thread has made and the executor does not have yet.
    made: Receiver<Vec<Change>>,
}

impl Renderer<'_> {
    fn run(&mut self, packets: &mut PacketBuffer) -> Result<(), RendererError> {
        while let Some(packet) = receive(self.socket, packets)? {
            for changes in self.made.try_iter() {
                self.executor.apply(changes);
            }
            let Packet { head, payload, .. } = packet;
            match head.kind() {
                Some(Kind::Job) => {
                    let (latched, stream) = message::split_job(&head, payload)
                        .ok_or(RendererError::Protocol("a job shorter than its latches"))?;
                    // Why it has ended is told by `Ends::finish`.
                    let Some(timer) = self.ends.timer() else { return Ok(()) };
                    let flight = self.executor.submit(stream, latched, timer);
                    self.ends.expect(head.token, flight);
                }
                Some(Kind::Setup) => self.setup(head.token, payload)?,
                Some(Kind::Capture) => self.capture()?,
                _ => return Err(RendererError::Protocol("an unknown order")),
            }
        }
        Ok(())
    }

    fn setup(&mut self, token: u64, stream: &[u8]) -> Result<(), RendererError> {
        let stream = stream.to_vec();
        self.order(Order::Setup { token, stream })
    }

    fn capture(&mut self) -> Result<(), RendererError> {
        self.order(Order::Capture(self.executor.presented().cloned()))
    }

    fn order(&self, order: Order) -> Result<(), RendererError> {
        self.orders.try_send(order).map_err(|error| match error {
            TrySendError::Full(_) => RendererError::Protocol("more setups than it may have open"),
            TrySendError::Disconnected(_) => RendererError::SetupEnded,
        })
    }
}
