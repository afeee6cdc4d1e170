//! The renderer's side of its socket, for the fuzzer.

use super::Start;
use super::message::{self, Head, MAX_ORDER, PacketBuffer, Received};
use super::stream::Stream;
use beamline_abi::Reason;
use beamline_abi::frame::SubmitKind;
use rustix::fd::BorrowedFd;

/// How many commands a renderer finds in a stream, or why it runs none of it.
pub fn read_stream(bytes: &[u8], kind: SubmitKind) -> Result<usize, Reason> {
    Stream::open(bytes, kind)?.try_fold(0, |count, command| command.map(|_| count + 1))
}

/// What a renderer takes from its host's socket.
pub struct Ear(PacketBuffer);

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum Order {
    /// A start order, and whether it can be read.
    Start(bool),
    /// A setup: what [`read_stream`] says.
    Setup(Result<usize, Reason>),
    /// A job: latched reads, and what [`read_stream`] says. `None`: it is shorter than its latches.
    Job(Option<(usize, Result<usize, Reason>)>),
    /// A packet of another kind.
    Other,
    /// Not a packet.
    Garbage,
    /// Nothing more comes.
    End,
}

impl Default for Ear {
    fn default() -> Self {
        Self(PacketBuffer::new(MAX_ORDER))
    }
}

impl Ear {
    /// Takes the next packet, without waiting.
    pub fn hear(&mut self, socket: BorrowedFd<'_>) -> Order {
        let packet = match self.0.receive(socket, false) {
            Ok(Received::Packet(packet)) => packet,
            Ok(Received::Garbage) => return Order::Garbage,
            Ok(Received::Nothing | Received::Closed) | Err(_) => return Order::End,
        };
        let read = |bytes, kind| read_stream(bytes, kind);
        match packet.head.kind() {
            Some(message::Kind::Start) => {
                Order::Start(serde_json::from_slice::<Start>(packet.payload).is_ok())
            }
            Some(message::Kind::Setup) => Order::Setup(read(packet.payload, SubmitKind::Setup)),
            Some(message::Kind::Job) => Order::Job(job(&packet.head, packet.payload)),
            _ => Order::Other,
        }
    }
}

fn job(head: &Head, payload: &[u8]) -> Option<(usize, Result<usize, Reason>)> {
    let (latched, stream) = message::split_job(head, payload)?;
    Some((latched.len(), read_stream(stream, SubmitKind::Job)))
}
