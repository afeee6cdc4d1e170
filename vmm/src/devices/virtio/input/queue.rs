//! Events to the guest, status from it (virtio 1.3, sections 5.8.2 and 5.8.6).

use super::evdev::{Evdev, Reader};
use super::events::InputSender;
use crate::devices::virtio::{Chain, Serve, VirtQueue, shared};
use rustix::event::PollFlags;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

const EVENTS: usize = 0;
/// Sources.
const SENDER: u32 = 0;
const EVDEV: u32 = 1;
/// Bytes of an event.
const EVENT: u64 = 8;

/// Serves both queues.
pub(super) struct Reports {
    events: VirtQueue,
    status: Option<VirtQueue>,
    memory: Arc<GuestMemoryMmap>,
    sender: InputSender,
    evdev: Option<Reader>,
    chain: Chain,
}

impl Reports {
    pub(super) fn new(
        events: VirtQueue,
        status: Option<VirtQueue>,
        memory: Arc<GuestMemoryMmap>,
        sender: InputSender,
        evdev: Option<Arc<Evdev>>,
    ) -> Self {
        let evdev = evdev.map(Reader::new);
        Self { events, status, memory, sender, evdev, chain: Chain::default() }
    }

    /// Gives the guest what waits, as far as it has buffers: one event each.
    fn deliver(&mut self) {
        let mut waiting = self.sender.waiting();
        while let Some(event) = waiting.front() {
            let chain = &mut self.chain;
            if !(self.events.pop(chain) || self.events.ask_for_kick() && self.events.pop(chain)) {
                break;
            }
            let written = if self.chain.writable() >= EVENT {
                self.chain.write(&self.memory, 0, &event.bytes())
            } else {
                Err(crate::devices::virtio::Fault::Short)
            };
            // A buffer that cannot hold an event is given back; the event waits for the next.
            if written.is_ok() {
                waiting.pop_front();
            }
            self.events.push(self.chain.head(), written.map_or(0, |()| EVENT as u32));
        }
        drop(waiting);
        self.events.signal();
    }
}

impl Serve for Reports {
    fn kick(&mut self, queue: usize) {
        if queue == EVENTS {
            self.deliver();
        } else if let Some(status) = &mut self.status {
            // Lights and repeat rates: nobody here has any.
            status.serve(&mut self.chain, |_| 0);
        }
    }

    fn sources<'a>(&'a self, add: &mut dyn FnMut(u32, BorrowedFd<'a>, PollFlags)) {
        add(SENDER, self.sender.event().as_fd(), PollFlags::IN);
        if let Some(fd) = self.evdev.as_ref().and_then(Reader::fd) {
            add(EVDEV, fd, PollFlags::IN);
        }
    }

    fn ready(&mut self, source: u32, _: PollFlags) {
        match (source, &mut self.evdev) {
            (EVDEV, Some(evdev)) => evdev.read(&self.sender),
            _ => shared::drain(self.sender.event()),
        }
        self.deliver();
    }
}
