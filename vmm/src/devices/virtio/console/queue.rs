//! The port's two queues (virtio 1.3, sections 5.3.2 and 5.3.6).

use super::Endpoint;
use crate::devices::virtio::{Chain, Serve, VirtQueue};
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

/// Queues.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Sources.
const INPUT: u32 = 0;
const OUTPUT: u32 = 1;
const LISTENER: u32 = 2;
const PEER: u32 = 3;
/// Bytes that are moved at once: what a pipe that is writable takes without waiting.
const PIECE: usize = 4096;
/// Most bytes of one buffer that are taken: the rest of a longer one is dropped.
const MOST: u64 = 64 << 10;

/// Serves the port.
pub(super) struct Port {
    receive: Option<VirtQueue>,
    transmit: Option<VirtQueue>,
    memory: Arc<GuestMemoryMmap>,
    endpoint: Arc<Endpoint>,
    peer: Option<UnixStream>,
    chain: Chain,
    /// Printed by the guest and not written yet: from `done` on.
    pending: Vec<u8>,
    done: usize,
    /// There may be a buffer for what comes in.
    may_receive: bool,
    /// The input has ended.
    deaf: bool,
    /// The output is broken: what is printed is dropped.
    mute: bool,
}

impl Port {
    pub(super) fn new(
        receive: Option<VirtQueue>,
        transmit: Option<VirtQueue>,
        memory: Arc<GuestMemoryMmap>,
        endpoint: Arc<Endpoint>,
    ) -> Self {
        let peer = endpoint.peer().take();
        Self {
            may_receive: receive.is_some(),
            receive,
            transmit,
            memory,
            endpoint,
            peer,
            chain: Chain::default(),
            pending: Vec::new(),
            done: 0,
            deaf: false,
            mute: false,
        }
    }

    fn output(&self) -> Option<BorrowedFd<'_>> {
        match (&self.endpoint.output, &self.peer) {
            (Some(file), _) if !self.mute => Some(file.as_fd()),
            (None, Some(peer)) => Some(peer.as_fd()),
            _ => None,
        }
    }

    fn input(&self) -> Option<BorrowedFd<'_>> {
        match (&self.endpoint.input, &self.peer) {
            (Some(file), _) if !self.deaf => Some(file.as_fd()),
            (None, Some(peer)) => Some(peer.as_fd()),
            _ => None,
        }
    }

    /// Takes what the guest printed, as long as the output keeps up.
    fn transmit(&mut self) {
        let Some(mut queue) = self.transmit.take() else { return };
        loop {
            while self.pending.is_empty() && queue.pop(&mut self.chain) {
                self.take();
                queue.push(self.chain.head(), 0);
            }
            // The rest waits until the output is writable.
            if !self.pending.is_empty() || !queue.ask_for_kick() {
                break;
            }
        }
        queue.signal();
        self.transmit = Some(queue);
    }

    /// Takes a buffer's contents.
    fn take(&mut self) {
        if self.output().is_none() {
            return;
        }
        self.pending.resize(self.chain.readable().min(MOST) as usize, 0);
        self.done = 0;
        if self.chain.read(&self.memory, 0, &mut self.pending).is_err() {
            self.pending.clear();
        }
        if self.endpoint.plain {
            self.pending.iter_mut().for_each(|byte| *byte = harmless(*byte));
        }
    }

    /// Writes some of what is pending; the output is writable.
    fn write(&mut self) {
        let rest = self.pending.get(self.done..).unwrap_or(&[]);
        let piece = &rest[..rest.len().min(PIECE)];
        let result = match self.output() {
            Some(output) => rustix::io::write(output, piece),
            None => Ok(piece.len()),
        };
        match result {
            Ok(len) => self.done += len,
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(e) => {
                self.done = self.pending.len();
                self.lose_output(e);
            }
        }
        if self.done >= self.pending.len() {
            self.pending.clear();
            self.transmit();
        }
    }

    fn lose_output(&mut self, e: Errno) {
        if self.endpoint.output.is_some() {
            self.mute = true;
            tracing::warn!("the console's output cannot be written ({e}): the rest is dropped");
        } else {
            self.peer = None;
        }
    }

    /// Gives the guest what came in; the input is readable.
    fn receive(&mut self) {
        let Some(mut queue) = self.receive.take() else { return };
        if queue.pop(&mut self.chain) || queue.ask_for_kick() && queue.pop(&mut self.chain) {
            match self.read() {
                Some(len) => queue.push(self.chain.head(), len),
                None => queue.put_back(),
            }
        } else {
            self.may_receive = false;
        }
        queue.signal();
        self.receive = Some(queue);
    }

    /// Fills the buffer at hand; `None`: nothing came. A buffer that cannot be filled is given back.
    fn read(&mut self) -> Option<u32> {
        let mut bytes = [0; PIECE];
        let room = self.chain.writable().min(PIECE as u64) as usize;
        if room == 0 {
            return Some(0);
        }
        let result = rustix::io::read(self.input()?, &mut bytes[..room]);
        match result {
            Ok(0) => self.lose_input(),
            Ok(len) => {
                let written = self.chain.write(&self.memory, 0, &bytes[..len]);
                return Some(written.map_or(0, |()| len as u32));
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.lose_input(),
        }
        None
    }

    fn lose_input(&mut self) {
        if self.endpoint.input.is_some() {
            self.deaf = true;
        } else {
            self.peer = None;
        }
    }

    /// Somebody connected: whoever was connected before stays.
    fn accept(&mut self) {
        let Some(listener) = &self.endpoint.listener else { return };
        if let Ok((stream, _)) = listener.accept()
            && self.peer.is_none()
            && stream.set_nonblocking(true).is_ok()
        {
            self.peer = Some(stream);
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // The peer stays connected while the guest's driver starts anew.
        *self.endpoint.peer() = self.peer.take();
    }
}

impl Serve for Port {
    fn has(&self, queue: usize) -> bool {
        match queue {
            RECEIVE => self.receive.is_some(),
            _ => self.transmit.is_some(),
        }
    }

    fn kick(&mut self, queue: usize) {
        match queue {
            RECEIVE => self.may_receive = true,
            TRANSMIT => self.transmit(),
            _ => {}
        }
    }

    fn sources<'a>(&'a self, add: &mut dyn FnMut(u32, BorrowedFd<'a>, PollFlags)) {
        if let Some(output) = self.output().filter(|_| !self.pending.is_empty()) {
            add(OUTPUT, output, PollFlags::OUT);
        }
        match (self.input(), &self.peer) {
            (Some(input), _) if self.may_receive => add(INPUT, input, PollFlags::IN),
            // A peer that goes is noticed all the same.
            (_, Some(peer)) => add(PEER, peer.as_fd(), PollFlags::empty()),
            _ => {}
        }
        if let Some(listener) = &self.endpoint.listener {
            add(LISTENER, listener.as_fd(), PollFlags::IN);
        }
    }

    fn ready(&mut self, source: u32, _: PollFlags) {
        match source {
            INPUT => self.receive(),
            OUTPUT => self.write(),
            LISTENER => self.accept(),
            PEER => {
                // Only its end makes it ready.
                self.peer = None;
            }
            _ => {}
        }
        // A peer that went must not hold up what the guest prints from now on.
        if self.output().is_none() && !self.pending.is_empty() {
            self.pending.clear();
            self.transmit();
        }
    }
}

/// What of a guest's bytes may go to somebody's terminal: text and line ends, no control sequences.
pub(super) fn harmless(byte: u8) -> u8 {
    match byte {
        b' '..=b'~' | b'\n' | b'\r' | b'\t' | 8 => byte,
        _ => b'?',
    }
}
