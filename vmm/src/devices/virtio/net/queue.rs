//! Frames, both ways (virtio 1.3, section 5.1.6).

use super::registers::feature;
use super::{Net, Port};
use crate::devices::virtio::{Chain, Serve, VirtQueue};
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use virtio_bindings::virtio_net as spec;
use vm_memory::GuestMemoryMmap;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// The port as a source: there are frames, and there is room for frames.
const READABLE: u32 = 0;
const WRITABLE: u32 = 1;
/// Bytes of the header in front of each frame.
pub(super) const HEADER: usize = 12;
/// Where it says over how many buffers a frame is spread.
const NUM_BUFFERS: usize = 10;
/// The longest frame with its header: 64 KiB of IP, Ethernet's header and a tag.
const MAX_FRAME: usize = HEADER + 65_535 + 18;
/// Frames taken from the port before the thread looks at its other sources.
const BURST: usize = 64;

/// Frames that were dropped.
#[derive(Debug, Default)]
pub struct Counters {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Counters {
    /// For the guest, but larger than its buffers, or its buffers were no RAM.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// From the guest, but malformed, or refused by the host.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// What became of a frame for the guest.
enum Delivery {
    /// It has it, or never will.
    Done,
    /// There are too few buffers, and a kick comes with the next.
    Short,
    /// There were too few buffers, and now there are more.
    More,
}

/// Serves both queues.
pub(super) struct Frames {
    receive: VirtQueue,
    transmit: VirtQueue,
    memory: Arc<GuestMemoryMmap>,
    features: u64,
    port: Arc<dyn Port>,
    counters: Arc<Counters>,
    label: String,
    chain: Chain,
    /// The buffers of a frame that is spread.
    spread: Vec<Chain>,
    /// A frame from the port, and its length; 0: none.
    incoming: Box<[u8]>,
    incoming_len: usize,
    /// A frame that the port had no room for; 0: none.
    outgoing: Box<[u8]>,
    outgoing_len: usize,
    /// There may be buffers for what comes.
    may_receive: bool,
    /// The port is broken.
    dead: bool,
}

impl Frames {
    pub(super) fn new(
        receive: VirtQueue,
        transmit: VirtQueue,
        memory: Arc<GuestMemoryMmap>,
        features: u64,
        net: &Net,
    ) -> Self {
        Self {
            receive,
            transmit,
            memory,
            features,
            port: Arc::clone(&net.port),
            counters: Arc::clone(&net.counters),
            label: net.label.clone(),
            chain: Chain::default(),
            spread: Vec::new(),
            incoming: vec![0; MAX_FRAME].into(),
            incoming_len: 0,
            outgoing: vec![0; MAX_FRAME].into(),
            outgoing_len: 0,
            may_receive: true,
            dead: false,
        }
    }

    fn lose(&mut self, e: Errno) {
        if !std::mem::replace(&mut self.dead, true) {
            tracing::warn!(
                "{}: the tap is gone ({e}): the guest has no network any more",
                self.label
            );
        }
    }

    /// Passes frames on until there are none, or no buffers.
    fn receive(&mut self) {
        for _ in 0..BURST {
            if self.incoming_len == 0 {
                match rustix::io::read(self.port.fd(), &mut *self.incoming) {
                    Ok(len) if len > HEADER => self.incoming_len = len,
                    Ok(0) => self.lose(Errno::PIPE),
                    Ok(_) | Err(Errno::INTR) => continue,
                    Err(Errno::AGAIN) => {}
                    Err(e) => self.lose(e),
                }
            }
            if self.incoming_len == 0 {
                break;
            }
            if !self.deliver() {
                self.may_receive = false;
                break;
            }
        }
        self.receive.signal();
    }

    /// Gives the guest the frame at hand; false: it has too few buffers, and the frame waits for a kick.
    fn deliver(&mut self) -> bool {
        loop {
            match self.try_deliver() {
                Delivery::Done => return true,
                Delivery::Short => return false,
                // At most as often as there are buffers in the ring: then the frame is dropped.
                Delivery::More => {}
            }
        }
    }

    fn try_deliver(&mut self) -> Delivery {
        let merge = self.features & feature::MERGE != 0;
        let (mut room, mut count) = (0, 0);
        while room < self.incoming_len as u64 {
            if count == self.spread.len() {
                self.spread.push(Chain::default());
            }
            // Without merging a frame has one buffer.
            let full = count > 0 && !merge || count >= super::QUEUES[RECEIVE].into();
            if full {
                (0..count).for_each(|_| self.receive.put_back());
                self.drop_incoming();
                return Delivery::Done;
            }
            if !self.receive.pop(&mut self.spread[count]) {
                // Before the buffers go back: a driver kicks at the buffer that it was asked for, and those that are
                // there already it has told of.
                let more = self.receive.ask_for_kick();
                (0..count).for_each(|_| self.receive.put_back());
                return if more { Delivery::More } else { Delivery::Short };
            }
            room += self.spread[count].writable();
            count += 1;
        }
        let number = (count as u16).to_le_bytes();
        self.incoming[NUM_BUFFERS..HEADER].copy_from_slice(&number);
        let mut done = 0;
        let mut sound = true;
        for chain in &self.spread[..count] {
            let now = chain.writable().min((self.incoming_len - done) as u64) as usize;
            sound &= chain.write(&self.memory, 0, &self.incoming[done..done + now]).is_ok();
            done += now;
            self.receive.push(chain.head(), if sound { now as u32 } else { 0 });
        }
        if !sound {
            self.counters.received.fetch_add(1, Ordering::Relaxed);
        }
        self.incoming_len = 0;
        Delivery::Done
    }

    fn drop_incoming(&mut self) {
        self.counters.received.fetch_add(1, Ordering::Relaxed);
        self.incoming_len = 0;
    }

    /// Sends what the guest has for as long as the port takes it.
    fn transmit(&mut self) {
        let Self { transmit, .. } = self;
        let mut left = super::QUEUES[TRANSMIT];
        while self.outgoing_len == 0 && left > 0 && transmit.pop(&mut self.chain) {
            left -= 1;
            let len = self.chain.readable();
            let fits = (HEADER as u64 + 1..=MAX_FRAME as u64).contains(&len);
            let frame = &mut self.outgoing[..if fits { len as usize } else { 0 }];
            let sound = fits
                && self.chain.read(&self.memory, 0, frame).is_ok()
                && header_is_agreed(frame, self.features);
            if sound {
                self.outgoing_len = frame.len();
            } else {
                self.counters.sent.fetch_add(1, Ordering::Relaxed);
            }
            transmit.push(self.chain.head(), 0);
            if sound {
                send(&*self.port, &self.outgoing, &mut self.outgoing_len, &self.counters);
            }
        }
        if self.outgoing_len == 0 && (left == 0 || transmit.ask_for_kick()) {
            transmit.again();
        }
        transmit.signal();
    }
}

/// Hands the frame to the port; where that has no room, it stays.
fn send(port: &dyn Port, frame: &[u8], len: &mut usize, counters: &Counters) {
    match rustix::io::write(port.fd(), &frame[..*len]) {
        Err(Errno::AGAIN | Errno::INTR) => return,
        Ok(_) => {}
        // The tap is down, or the frame is not one.
        Err(_) => {
            counters.sent.fetch_add(1, Ordering::Relaxed);
        }
    }
    *len = 0;
}

/// Whether a frame asks only for what was agreed on (5.1.6.2.1).
fn header_is_agreed(frame: &[u8], features: u64) -> bool {
    let [flags, kind, ..] = frame else { return false };
    let needs_checksum = u32::from(*flags) & spec::VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
    let segments = match u32::from(*kind) {
        spec::VIRTIO_NET_HDR_GSO_NONE => true,
        spec::VIRTIO_NET_HDR_GSO_TCPV4 => features & feature::HOST_TSO4 != 0,
        spec::VIRTIO_NET_HDR_GSO_TCPV6 => features & feature::HOST_TSO6 != 0,
        _ => false,
    };
    segments && (!needs_checksum || features & feature::CSUM != 0)
}

impl Serve for Frames {
    fn kick(&mut self, queue: usize) {
        match queue {
            RECEIVE => {
                self.may_receive = true;
                if self.incoming_len > 0 {
                    self.receive();
                }
            }
            _ => self.transmit(),
        }
    }

    fn sources<'a>(&'a self, add: &mut dyn FnMut(u32, BorrowedFd<'a>, PollFlags)) {
        if self.dead {
            return;
        }
        if self.may_receive {
            add(READABLE, self.port.fd().as_fd(), PollFlags::IN);
        }
        if self.outgoing_len > 0 {
            add(WRITABLE, self.port.fd().as_fd(), PollFlags::OUT);
        }
    }

    fn ready(&mut self, source: u32, flags: PollFlags) {
        match source {
            READABLE if flags.contains(PollFlags::IN) => self.receive(),
            WRITABLE if flags.contains(PollFlags::OUT) => {
                send(&*self.port, &self.outgoing, &mut self.outgoing_len, &self.counters);
                self.transmit();
            }
            // An error or an end, and nothing else.
            _ => self.lose(Errno::IO),
        }
    }
}
