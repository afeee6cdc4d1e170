//! Stage 5, GPU: the host's side of the renderers, from a grant to the packet that says it is done.
//!
//! Each slice's life is one process ([`crate::renderer`]), driven over a packet socket. A renderer runs a
//! guest's shaders in a large driver, so it is not trusted: a packet that is not the answer to an order
//! ends it.
//!
//! ```text
//!            attach                Ready                    detach
//!   (none) ─────────▶ starting ──────────▶ ready ──────────────────────▶ (none)
//!                        │                   │                             ▲
//!                        └───── closed, or a wrong packet ──▶ lost ────────┘
//! ```

#[cfg(feature = "fuzz")]
pub mod fuzz;
mod keeper;
mod slice;
#[cfg(test)]
mod tests;

use self::keeper::Keeper;
use self::slice::{Heard, MAX_CAPTURES, Slice};
use super::{
    Event, Gpu, GpuError, Grant, Label, MAX_QUEUED_JOBS, MAX_QUEUED_SETUPS, MAX_RESOURCES,
    SliceKey, SliceLimits,
};
use crate::renderer::Launcher;
use crate::renderer::message::{Head, Kind, MAX_REPLY, PacketBuffer, Received, send};
use beamline_abi::frame::{MAX_COMMANDS, MAX_SUBMIT_BYTES};
use beamline_abi::{Generation, Nanos};
use rustix::event::{Timespec, epoll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use zerocopy::IntoBytes;

/// Descriptors looked at in one poll; others wait for the next.
const READY_AT_ONCE: usize = 32;
/// Packets taken from one renderer in one poll, so that none keeps the others waiting.
const PACKETS_AT_ONCE: usize = 32;
/// The epoll data of the keeper; no slice has it, since a slice's index has 16 bits.
const KEEPER: u64 = u64::MAX;

/// A GPU behind Vulkan, shared by one renderer per slice.
pub struct WgpuGpu {
    launcher: Launcher,
    keeper: Keeper,
    /// Readable when any renderer, or the keeper, has something to say.
    epoll: OwnedFd,
    /// By [`SliceKey::index`].
    slices: Vec<Option<Slice>>,
    packets: PacketBuffer,
    description: Option<String>,
}

impl WgpuGpu {
    /// A GPU whose renderers are started by `launcher`.
    pub fn new(launcher: Launcher) -> Result<Self, GpuError> {
        let system = |what| move |source: io::Error| GpuError::System { what, source };
        let keeper = Keeper::new(launcher.clone())
            .map_err(system("start the thread that keeps renderers"))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|error| system("make an epoll")(error.into()))?;
        watch(&epoll, keeper.fd(), KEEPER)
            .map_err(|error| system("watch the thread that keeps renderers")(error.into()))?;
        Ok(Self {
            launcher,
            keeper,
            epoll,
            slices: Vec::new(),
            packets: PacketBuffer::new(MAX_REPLY),
            description: None,
        })
    }

    fn slice(&mut self, key: SliceKey) -> Result<&mut Slice, GpuError> {
        match self.slices.get_mut(usize::from(key.index)) {
            Some(Some(slice)) if slice.key == key && slice.lost => Err(GpuError::Lost(key)),
            Some(Some(slice)) if slice.key == key => Ok(slice),
            _ => Err(GpuError::NotAttached(key)),
        }
    }

    /// Hands out what one renderer has said.
    fn hear(&mut self, key: SliceKey, now: Nanos, events: &mut dyn FnMut(Event)) {
        let Some(Some(slice)) = self.slices.get_mut(usize::from(key.index)) else {
            return;
        };
        if slice.key != key || slice.lost {
            return;
        }
        for _ in 0..PACKETS_AT_ONCE {
            let heard = match self.packets.receive(slice.socket.as_fd(), false) {
                Ok(Received::Packet(packet)) => slice.take(packet, now).map_err(String::from),
                Ok(Received::Nothing) => return,
                Ok(Received::Closed) => Err(slice.last_words()),
                Ok(Received::Garbage) => Err("it sent a packet of a wrong size".into()),
                Err(error) => Err(format!("its socket failed: {error}")),
            };
            match heard {
                Ok(Heard::Nothing) => {}
                Ok(Heard::Event(event)) => {
                    if let Event::Ready { description, .. } = &event {
                        self.description = Some(description.clone());
                    }
                    events(event);
                }
                Ok(Heard::Pixels { width, height, pixels }) => {
                    self.keeper.copy(key, width, height, pixels);
                }
                Err(reason) => {
                    slice.end(&self.epoll, &self.keeper);
                    events(Event::Lost { slice: key, reason });
                    return;
                }
            }
        }
    }

    /// Hands out what the keeper has done for lives that are still there.
    fn hear_keeper(&mut self, events: &mut dyn FnMut(Event)) {
        for event in self.keeper.drain() {
            let key = event.slice();
            let Some(Some(slice)) = self.slices.get_mut(usize::from(key.index)) else {
                continue;
            };
            if slice.key != key || slice.lost {
                continue;
            }
            if matches!(event, Event::Lost { .. }) {
                slice.end(&self.epoll, &self.keeper);
            }
            events(event);
        }
    }
}

impl Gpu for WgpuGpu {
    fn label(&self) -> Label {
        Label::Measured
    }

    fn describe(&self) -> String {
        match &self.description {
            Some(description) => description.clone(),
            None => "Vulkan, not started yet".into(),
        }
    }

    fn attach(&mut self, key: SliceKey, limits: SliceLimits) -> Result<(), GpuError> {
        if limits.max_resources > MAX_RESOURCES {
            return Err(GpuError::Limits(limits.max_resources));
        }
        let index = usize::from(key.index);
        if let Some(Some(old)) = self.slices.get(index) {
            return Err(GpuError::InUse { new: key, old: old.key });
        }
        let system = |source| GpuError::System { what: "connect a renderer", source };
        let (socket, theirs) = self.launcher.connect(limits).map_err(system)?;
        watch(&self.epoll, socket.as_fd(), pack(key)).map_err(|error| system(error.into()))?;
        let life = Arc::default();
        self.keeper.start(key, Arc::clone(&life), theirs);
        if index >= self.slices.len() {
            self.slices.resize_with(index + 1, || None);
        }
        self.slices[index] = Some(Slice::new(key, socket, life));
        Ok(())
    }

    fn detach(&mut self, key: SliceKey) {
        if let Some(slot) = self.slices.get_mut(usize::from(key.index))
            && let Some(slice) = slot.as_mut().filter(|slice| slice.key == key)
        {
            slice.end(&self.epoll, &self.keeper);
            *slot = None;
        }
    }

    fn configure(&mut self, key: SliceKey, token: u64, setup: &[u8]) -> Result<(), GpuError> {
        let slice = self.slice(key)?;
        if setup.len() > MAX_SUBMIT_BYTES {
            return Err(GpuError::TooLong { len: setup.len(), latched: 0 });
        }
        if slice.setups.len() >= MAX_QUEUED_SETUPS {
            return Err(GpuError::Busy(key));
        }
        order(slice, &Head::token(Kind::Setup, token), [setup, &[]])?;
        slice.setups.push_back(token);
        Ok(())
    }

    fn submit(&mut self, now: Nanos, grant: Grant<'_>) -> Result<(), GpuError> {
        let (key, ticket) = (grant.slice(), grant.ticket());
        let (job, latched) = (grant.bytes(), grant.latched());
        let slice = self.slice(key)?;
        if job.len() > MAX_SUBMIT_BYTES || latched.len() > MAX_COMMANDS {
            return Err(GpuError::TooLong { len: job.len(), latched: latched.len() });
        }
        if slice.jobs.len() >= MAX_QUEUED_JOBS {
            return Err(GpuError::Busy(key));
        }
        let head =
            Head { count: latched.len() as u32, ..Head::token(Kind::Job, u64::from(ticket.0)) };
        order(slice, &head, [latched.as_bytes(), job])?;
        slice.jobs.push_back((ticket, now));
        Ok(())
    }

    fn poll(&mut self, _now: Nanos, events: &mut dyn FnMut(Event)) {
        let mut room = [MaybeUninit::uninit(); READY_AT_ONCE];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let Ok((ready, _)) = epoll::wait(&self.epoll, &mut room, Some(&at_once)) else {
            // Interrupted: what is there stays there.
            return;
        };
        // Later than the caller's time, which may lie before the end of a job that is done by now.
        let now = crate::renderer::now();
        // Why a renderer could not start is told before its socket ends.
        if ready.iter().any(|event| event.data.u64() == KEEPER) {
            self.hear_keeper(events);
        }
        for event in &*ready {
            let data = event.data.u64();
            if data != KEEPER {
                self.hear(unpack(data), now, events);
            }
        }
    }

    fn next_event(&self) -> Option<Nanos> {
        None
    }

    fn register(&self, poller: &mut dyn FnMut(BorrowedFd<'_>)) {
        poller(self.epoll.as_fd());
    }

    fn capture(&mut self, key: SliceKey) -> Result<(), GpuError> {
        let slice = self.slice(key)?;
        if slice.captures >= MAX_CAPTURES {
            return Err(GpuError::Busy(key));
        }
        order(slice, &Head::new(Kind::Capture), [&[], &[]])?;
        slice.captures += 1;
        Ok(())
    }
}

impl Drop for WgpuGpu {
    fn drop(&mut self) {
        for slice in self.slices.iter_mut().flatten() {
            slice.end(&self.epoll, &self.keeper);
        }
    }
}

/// Sends an order without waiting for room.
fn order(slice: &Slice, head: &Head, payload: [&[u8]; 2]) -> Result<(), GpuError> {
    match send(slice.socket.as_fd(), head, payload, None, false) {
        Ok(()) => Ok(()),
        Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => Err(GpuError::Busy(slice.key)),
        // Its end comes as an event.
        Err(_) => Err(GpuError::Lost(slice.key)),
    }
}

fn watch(epoll: &OwnedFd, fd: BorrowedFd<'_>, data: u64) -> Result<(), Errno> {
    let data = epoll::EventData::new_u64(data);
    epoll::add(epoll, fd, data, epoll::EventFlags::IN)
}

/// A key as epoll data.
fn pack(key: SliceKey) -> u64 {
    u64::from(key.index) << 32 | u64::from(key.generation.0)
}

fn unpack(data: u64) -> SliceKey {
    SliceKey { index: (data >> 32) as u16, generation: Generation(data as u32) }
}
