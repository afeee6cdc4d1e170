//! A queue in use (split virtqueues: virtio 1.3, section 2.7), on its device's thread.

use super::chain::Chain;
use super::shared::Shared;
use crate::Gpa;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

/// A queue that the driver enabled.
pub struct VirtQueue {
    index: usize,
    ring: Queue,
    memory: Arc<GuestMemoryMmap>,
    shared: Arc<Shared>,
    kick: Arc<OwnedFd>,
    /// The ring made no sense: nothing more is taken from it.
    broken: bool,
    /// Buffers were used since the driver was last told.
    used: bool,
}

impl VirtQueue {
    pub(crate) fn new(
        index: usize,
        ring: Queue,
        memory: Arc<GuestMemoryMmap>,
        shared: Arc<Shared>,
        kick: Arc<OwnedFd>,
    ) -> Self {
        Self { index, ring, memory, shared, kick, broken: false, used: false }
    }

    /// Its number.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its size and addresses, for the kernel.
    pub(crate) fn ring(&self) -> &Queue {
        &self.ring
    }

    /// The eventfd that its kicks signal.
    pub(crate) fn kick_fd(&self) -> &OwnedFd {
        &self.kick
    }

    /// Takes the next chain that the driver made available; false where there is none.
    pub fn pop(&mut self, chain: &mut Chain) -> bool {
        if self.broken || !self.shared.may_serve() {
            return false;
        }
        let size = self.ring.size();
        match self.ring.iter(Arc::clone(&self.memory)) {
            Ok(mut available) => match available.next() {
                Some(next) if next.head_index() < size => {
                    chain.fill(next, size);
                    true
                }
                // An index beyond the table: there is no descriptor that could be given back.
                Some(_) => self.fail(),
                None => false,
            },
            Err(_) => self.fail(),
        }
    }

    /// The ring makes no sense: the driver has to start anew.
    fn fail(&mut self) -> bool {
        self.broken = true;
        self.shared.needs_reset();
        false
    }

    /// Gives the chain with this head back, `written` bytes of it written.
    pub fn push(&mut self, head: u16, written: u32) {
        self.used = true;
        if self.ring.add_used(&*self.memory, head, written).is_err() {
            self.fail();
        }
    }

    /// Leaves the chain that was taken last to the next [`Self::pop`].
    pub fn put_back(&mut self) {
        self.ring.go_to_previous_position();
    }

    /// Tells the driver what was used, where it wants to know.
    pub fn signal(&mut self) {
        if !std::mem::take(&mut self.used) || self.broken {
            return;
        }
        let wanted = match self.ring.needs_notification(&*self.memory) {
            Ok(wanted) => wanted && !self.interrupts_off(),
            Err(_) => self.fail(),
        };
        if wanted {
            self.shared.used(self.index);
        }
    }

    /// The driver's flag, which counts where event indices were not agreed on.
    fn interrupts_off(&self) -> bool {
        let flags: u16 = self.memory.read_obj(Gpa(self.ring.avail_ring())).unwrap_or(0);
        !self.ring.event_idx_enabled()
            && u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT != 0
    }

    /// Asks for a kick at the next chain; true where one is there already that may be taken. Where nothing may be, a
    /// kick comes when that changes, so that no caller tries again until then.
    pub fn ask_for_kick(&mut self) -> bool {
        if self.broken || !self.shared.may_serve() {
            return false;
        }
        self.ring.enable_notification(&*self.memory).unwrap_or_else(|_| self.fail())
    }

    /// Has the thread come back to this queue once it has looked at its other sources.
    pub fn again(&self) {
        super::shared::signal(&self.kick);
    }

    /// Serves what is available: `each` serves a chain and says how many bytes it wrote. After as many
    /// chains as the queue is long the thread looks at its other sources first.
    pub fn serve(&mut self, chain: &mut Chain, mut each: impl FnMut(&Chain) -> u32) {
        let mut left = self.ring.size();
        loop {
            if self.ring.disable_notification(&*self.memory).is_err() {
                self.fail();
                return;
            }
            while left > 0 && self.pop(chain) {
                left -= 1;
                let written = each(chain);
                self.push(chain.head(), written);
            }
            if left == 0 {
                self.again();
                break;
            }
            if !self.ask_for_kick() {
                break;
            }
        }
        self.signal();
    }
}
