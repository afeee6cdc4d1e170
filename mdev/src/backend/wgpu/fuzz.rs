//! The host's side of one renderer's socket, for the fuzzer: without a process at the other end.

use super::keeper;
use super::slice::{Heard, MAX_CAPTURES, Slice};
use crate::backend::{Event, MAX_QUEUED_JOBS, MAX_QUEUED_SETUPS, SliceKey, Ticket};
use crate::renderer::message::{MAX_REPLY, PacketBuffer, Received};
use beamline_abi::Nanos;
use rustix::fd::{AsFd, OwnedFd};

/// What the host takes from a renderer.
pub struct Ear {
    slice: Slice,
    packets: PacketBuffer,
}

impl Ear {
    /// The host of life `key`, which listens to `socket`.
    pub fn new(key: SliceKey, socket: OwnedFd) -> Self {
        let packets = PacketBuffer::new(MAX_REPLY);
        Self { slice: Slice::new(key, socket, std::sync::Arc::default()), packets }
    }

    /// A setup was ordered. `false`: that are too many.
    pub fn setup(&mut self, token: u64) -> bool {
        let room = self.slice.setups.len() < MAX_QUEUED_SETUPS;
        room.then(|| self.slice.setups.push_back(token)).is_some()
    }

    /// A job was ordered at `now`. `false`: that are too many.
    pub fn job(&mut self, ticket: Ticket, now: Nanos) -> bool {
        let room = self.slice.jobs.len() < MAX_QUEUED_JOBS;
        room.then(|| self.slice.jobs.push_back((ticket, now))).is_some()
    }

    /// An image was asked for. `false`: that are too many.
    pub fn capture(&mut self) -> bool {
        let room = self.slice.captures < MAX_CAPTURES;
        self.slice.captures += u32::from(room);
        room
    }

    /// Takes the next packet, without waiting: `None` where nothing is left to hear. An error: the renderer
    /// is not to be trusted any more.
    pub fn hear(&mut self, now: Nanos) -> Option<Result<Option<Event>, String>> {
        let packet = match self.packets.receive(self.slice.socket.as_fd(), false) {
            Ok(Received::Packet(packet)) => packet,
            Ok(Received::Garbage) => return Some(Err("it sent a packet of a wrong size".into())),
            Ok(Received::Nothing | Received::Closed) | Err(_) => return None,
        };
        Some(match self.slice.take(packet, now) {
            Err(reason) => Err(reason.into()),
            Ok(Heard::Event(event)) => Ok(Some(event)),
            Ok(Heard::Nothing) => Ok(None),
            Ok(Heard::Pixels { width, height, pixels }) => {
                let image = keeper::copy(width, height, pixels);
                let slice = self.slice.key;
                Ok(image.ok().map(|rgba| Event::Image { slice, width, height, rgba }))
            }
        })
    }

    /// Why a renderer that has closed its socket is gone.
    pub fn last_words(&mut self) -> String {
        self.slice.last_words()
    }
}
