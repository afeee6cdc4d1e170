//! One slice's renderer, as the backend knows it: what it was asked, and whether its answers fit.

use super::keeper::{Keeper, Life};
use crate::backend::{Event, MAX_QUEUED_JOBS, MAX_QUEUED_SETUPS, SliceKey, Ticket};
use crate::renderer::message::{Head, Kind, Packet};
use beamline_abi::Nanos;
use beamline_abi::frame::MAX_IMAGE_SIDE;
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use std::collections::VecDeque;
use std::sync::Arc;

/// Images that may be asked for before one has come.
pub(super) const MAX_CAPTURES: u32 = 4;

pub(super) struct Slice {
    pub(super) key: SliceKey,
    pub(super) socket: OwnedFd,
    pub(super) life: Arc<Life>,
    /// `Event::Lost` was handed out: nothing follows but the detach.
    pub(super) lost: bool,
    ready: bool,
    /// Setups without an answer.
    pub(super) setups: VecDeque<u64>,
    /// Jobs without an answer, in order, and when they were submitted.
    pub(super) jobs: VecDeque<(Ticket, Nanos)>,
    /// Captures without an answer.
    pub(super) captures: u32,
    /// Why the renderer ends, in its own words.
    failure: Option<String>,
}

/// What an accepted packet means.
pub(super) enum Heard {
    Event(Event),
    /// An image that is still to be copied.
    Pixels {
        width: u32,
        height: u32,
        pixels: OwnedFd,
    },
    Nothing,
}

impl Slice {
    pub(super) fn new(key: SliceKey, socket: OwnedFd, life: Arc<Life>) -> Self {
        Self {
            key,
            socket,
            life,
            lost: false,
            ready: false,
            setups: VecDeque::with_capacity(MAX_QUEUED_SETUPS),
            jobs: VecDeque::with_capacity(MAX_QUEUED_JOBS),
            captures: 0,
            failure: None,
        }
    }

    /// Takes a packet that was received at `now`. An error says why the renderer cannot be trusted.
    pub(super) fn take(&mut self, packet: Packet<'_>, now: Nanos) -> Result<Heard, &'static str> {
        let Packet { head, payload, fd } = packet;
        match head.kind() {
            Some(Kind::Ready) if !self.ready => {
                self.ready = true;
                Ok(Heard::Event(Event::Ready {
                    slice: self.key,
                    description: String::from_utf8_lossy(payload).into_owned(),
                }))
            }
            Some(Kind::Configured) => self.configured(&head),
            Some(Kind::Done) => self.done(&head, now),
            Some(Kind::Image) => self.image(&head, fd),
            Some(Kind::Failed) => {
                self.failure = Some(String::from_utf8_lossy(payload).into_owned());
                Ok(Heard::Nothing)
            }
            _ => Err("it sent a packet that nobody asked for"),
        }
    }

    fn configured(&mut self, head: &Head) -> Result<Heard, &'static str> {
        if self.setups.pop_front() != Some(head.token) {
            return Err("it answered a setup that it was not given");
        }
        let result = head.reason().ok_or("it gave a reason that is not known")?;
        Ok(Heard::Event(Event::Configured { slice: self.key, token: head.token, result }))
    }

    /// The times are the renderer's word: they are held to what the host saw itself.
    fn done(&mut self, head: &Head, now: Nanos) -> Result<Heard, &'static str> {
        let Some((ticket, submitted)) = self.jobs.pop_front() else {
            return Err("it finished a job that it was not given");
        };
        if head.token != u64::from(ticket.0) {
            return Err("it finished a job out of order");
        }
        let result = head.reason().ok_or("it gave a reason that is not known")?;
        let now = now.max(submitted);
        let gpu_start = head.start.clamp(submitted, now);
        let gpu_end = head.end.clamp(gpu_start, now);
        Ok(Heard::Event(Event::Done {
            slice: self.key,
            ticket,
            gpu_start,
            gpu_end,
            busy: head.busy.min(gpu_end - gpu_start),
            estimated: head.estimated != 0,
            result,
        }))
    }

    fn image(&mut self, head: &Head, fd: Option<OwnedFd>) -> Result<Heard, &'static str> {
        self.captures =
            self.captures.checked_sub(1).ok_or("it sent an image that nobody asked for")?;
        let sides = 1..=MAX_IMAGE_SIDE;
        match (head.width, head.height, fd) {
            (0, 0, None) => Ok(Heard::Event(Event::Image {
                slice: self.key,
                width: 0,
                height: 0,
                rgba: Vec::new(),
            })),
            (width, height, Some(pixels)) if sides.contains(&width) && sides.contains(&height) => {
                Ok(Heard::Pixels { width, height, pixels })
            }
            _ => Err("it sent an image of a size that is not possible"),
        }
    }

    /// Why a renderer that has closed its socket is gone.
    pub(super) fn last_words(&mut self) -> String {
        if let Some(failure) = self.failure.take() {
            return failure;
        }
        match self.life.status() {
            Some(status) => format!("the renderer ended by itself: {status}"),
            None => "the renderer ended by itself".into(),
        }
    }

    /// Kills the renderer and stops listening to it.
    pub(super) fn end(&mut self, epoll: &OwnedFd, keeper: &Keeper) {
        if !self.lost {
            self.lost = true;
            // The socket was added when the slice was made, so this cannot fail.
            let _ = epoll::delete(epoll, &self.socket);
            keeper.end(&self.life);
        }
    }
}
