//! Stages 2 and 3: the requests that need no context and no GPU.

use super::Worker;
use crate::device::virtio::gpu::{Request, Shown};
use crate::device::virtio::queue::{AvailReader, Chain, QueueError};
use crate::mediate::display::{Done, Fault, Guest};
use crate::mediate::message::{Pending, Short};
use crate::memory::Gpa;
use beamline_abi::Nanos;
use beamline_abi::virtio_gpu::{CURSOR_QUEUE, cmd};

/// A request on its queue.
struct OnQueue<'a> {
    queue: &'a AvailReader,
    chain: &'a Chain,
}

impl Guest for OnQueue<'_> {
    fn request(&self, offset: u64, out: &mut [u8]) -> Result<(), Fault> {
        self.queue.read(self.chain, offset, out).map_err(fault)
    }

    fn memory(&self, at: Gpa, out: &mut [u8]) -> Result<(), Fault> {
        self.queue.read_memory(at, out).map_err(fault)
    }

    fn check(&self, at: Gpa, len: u64) -> Result<(), Fault> {
        self.queue.check_memory(at, len).map_err(fault)
    }
}

fn fault(error: QueueError) -> Fault {
    match error {
        QueueError::Closed | QueueError::Paused => Fault::Gone,
        _ => Fault::Unreachable,
    }
}

impl Worker {
    /// A request of the display on the queue that serves it. An error: the queue is gone.
    pub(super) fn show(
        &mut self,
        chain: &Chain,
        pending: Pending,
        request: &Shown,
        now: Nanos,
    ) -> Result<(), ()> {
        let Some(queue) = &self.queues[usize::from(pending.queue)] else { return Err(()) };
        let guest = OnQueue { queue, chain };
        let display = &mut self.parts.display;
        let done = if u16::from(pending.queue) == CURSOR_QUEUE {
            display.cursor(&guest, request)
        } else {
            display.control(&guest, request)
        };
        self.owed += display.take_cost();
        match done {
            Done::Answer(type_) => self.say(pending, Short::Plain(type_)),
            Done::Flushed => self.say_at_vblank(pending, Short::Plain(cmd::RESP_OK_NODATA), now),
            Done::Gone => return Err(()),
        }
        Ok(())
    }

    /// A request of the cursor queue.
    pub(super) fn cursor_request(
        &mut self,
        chain: &Chain,
        pending: Pending,
        request: &Request,
        now: Nanos,
    ) -> Result<(), ()> {
        if let Request::Show(shown) = request {
            return self.show(chain, pending, shown, now);
        }
        self.say(pending, Short::Plain(cmd::RESP_ERR_UNSPEC));
        Ok(())
    }

    /// Pays for what was copied so far, or says when the guest's allowance is large enough.
    pub(super) fn pay(&mut self, now: Nanos) -> Result<(), Nanos> {
        if self.owed > 0 {
            self.copies.take(now, self.owed)?;
            self.owed = 0;
        }
        Ok(())
    }
}
