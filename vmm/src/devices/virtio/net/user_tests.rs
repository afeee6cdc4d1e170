//! A server that speaks vhost-user by the words of its specification, and a driver in front of it.

use super::*;
use crate::devices::virtio::testing::{Driver, Part};
use crate::devices::virtio::vhost::user::ConnectError;
use crate::testing::{signal, take};
use beamline_abi::virtio_pci::feature as ring_feature;
use rustix::event::{PollFd, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::collections::HashMap;
use std::io::{IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Requests.
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_ADDR: u32 = 9;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_VRING_ENABLE: u32 = 18;
/// Flags of a message.
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

const PROTOCOL_FEATURES: u64 = 1 << 30;
const REPLY_ACK: u64 = 1 << 3;
const MERGE: u64 = 1 << 15;

/// Where in a file each piece of the guest's memory is.
struct Region {
    guest: u64,
    size: u64,
    user: u64,
    offset: u64,
    file: OwnedFd,
}

/// One connection's state.
struct Server {
    stream: UnixStream,
    features: u64,
    regions: Vec<Region>,
    /// By queue: descriptors, used, available.
    rings: HashMap<u32, [u64; 3]>,
    kicks: HashMap<u32, OwnedFd>,
    calls: HashMap<u32, OwnedFd>,
    /// What the test sees: request and first word.
    asked: Sender<(u32, u64)>,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn half(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl Server {
    /// A message's request, flags, body and descriptors; `None` at the end.
    fn hear(&mut self) -> Option<(u32, u32, Vec<u8>, Vec<OwnedFd>)> {
        let mut head = [0; 12];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut head)];
        let got = recvmsg(&self.stream, &mut parts, &mut control, RecvFlags::WAITALL).ok()?;
        if got.bytes == 0 {
            return None;
        }
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        let mut body = vec![0; half(&head, 8) as usize];
        self.stream.read_exact(&mut body).ok()?;
        Some((half(&head, 0), half(&head, 4), body, fds))
    }

    fn reply(&mut self, request: u32, body: &[u8]) {
        let mut message = Vec::new();
        for field in [request, VERSION | REPLY, body.len() as u32] {
            message.extend(field.to_le_bytes());
        }
        message.extend(body);
        self.stream.write_all(&message).unwrap();
    }

    fn run(mut self) {
        while let Some((request, flags, body, fds)) = self.hear() {
            let mut fds = fds.into_iter();
            let mut answer = None;
            match request {
                GET_FEATURES => answer = Some(self.features.to_le_bytes().to_vec()),
                GET_PROTOCOL_FEATURES => answer = Some(REPLY_ACK.to_le_bytes().to_vec()),
                GET_VRING_BASE => answer = Some([&body[..4], &[0; 4]].concat()),
                SET_MEM_TABLE => {
                    self.regions = body[8..]
                        .chunks_exact(32)
                        .map(|r| Region {
                            guest: word(r, 0),
                            size: word(r, 8),
                            user: word(r, 16),
                            offset: word(r, 24),
                            file: fds.next().expect("a file for each region"),
                        })
                        .collect();
                }
                SET_VRING_ADDR => {
                    let areas = [8, 16, 24].map(|at| word(&body, at));
                    self.rings.insert(half(&body, 0), areas);
                }
                SET_VRING_KICK | SET_VRING_CALL => {
                    let all =
                        if request == SET_VRING_KICK { &mut self.kicks } else { &mut self.calls };
                    all.insert(half(&body, 0), fds.next().expect("an eventfd"));
                }
                _ => {}
            }
            if let Some(answer) = answer {
                self.reply(request, &answer);
            } else if flags & NEED_REPLY != 0 {
                self.reply(request, &[0; 8]);
            }
            let first = body.get(..8).map_or(0, |_| word(&body, 0));
            // Nobody listens where the test is about something else.
            let _ = self.asked.send((request, first));
            // The second ring is on: one frame from the guest, unless the connection ends before.
            if (request, first) == (SET_VRING_ENABLE, 1 << 32 | 1) && self.is_kicked() {
                let frame = self.take_frame();
                let _ = self.asked.send((u32::MAX, frame));
            }
        }
    }

    fn is_kicked(&self) -> bool {
        let kick = &self.kicks[&1];
        let mut both =
            [PollFd::new(kick, PollFlags::IN), PollFd::new(&self.stream, PollFlags::RDHUP)];
        poll(&mut both, None).unwrap();
        take(kick) > 0
    }

    /// Reads guest memory by an address of the VMM's or of the guest's.
    fn read(&self, at: u64, user: bool, len: usize) -> Vec<u8> {
        let (file, offset) = self.find(at, user);
        let mut bytes = vec![0; len];
        assert_eq!(rustix::io::pread(file, &mut bytes, offset).unwrap(), len);
        bytes
    }

    fn find(&self, at: u64, user: bool) -> (&OwnedFd, u64) {
        let start = |r: &Region| if user { r.user } else { r.guest };
        let region =
            self.regions.iter().find(|r| (start(r)..start(r) + r.size).contains(&at)).unwrap();
        (&region.file, region.offset + (at - start(region)))
    }

    /// The first 8 bytes of the first frame in the transmit ring, which it gives back.
    fn take_frame(&self) -> u64 {
        let [descriptors, used, available] = self.rings[&1];
        assert_eq!(self.read(available + 2, true, 2), [1, 0], "there is a frame");
        let head = u16::from_le_bytes(self.read(available + 4, true, 2).try_into().unwrap());
        let descriptor = self.read(descriptors + 16 * u64::from(head), true, 16);
        let frame = self.read(word(&descriptor, 0), false, 8);
        let put = |at, bytes: &[u8]| {
            let (file, offset) = self.find(at, true);
            rustix::io::pwrite(file, bytes, offset).unwrap();
        };
        put(used + 4, &u32::from(head).to_le_bytes());
        put(used + 8, &0u32.to_le_bytes());
        put(used + 2, &1u16.to_le_bytes());
        signal(&self.calls[&1]);
        word(&frame, 0)
    }
}

/// A server at a path, what it is asked, and the end of its connection.
fn serve(features: u64) -> (tempfile::TempDir, VhostUser, Receiver<(u32, u64)>, UnixStream) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let (asked, heard) = channel();
    let (end, theirs) = channel();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        end.send(stream.try_clone().unwrap()).unwrap();
        let (regions, rings) = (Vec::new(), HashMap::new());
        let (kicks, calls) = (HashMap::new(), HashMap::new());
        Server { stream, features, regions, rings, kicks, calls, asked }.run();
    });
    let server = VhostUser::connect(&path, UserNet::QUEUES).unwrap();
    (folder, server, heard, theirs.recv().unwrap())
}

fn until(heard: &Receiver<(u32, u64)>, request: u32) -> u64 {
    heard.iter().find(|(r, _)| *r == request).expect("the server goes on").1
}

#[test]
fn frames_go_by_the_servers_own_hands() {
    let features = PROTOCOL_FEATURES | ring_feature::VERSION_1 | MERGE;
    let (_folder, server, heard, end) = serve(features);
    let mut d = Driver::new(UserNet::new(server, Mac::derived("vr", 0)));
    // Nothing that the server cannot do; address and link are the card's own.
    let own = 1 << 5 | 1 << 16;
    assert_eq!(d.offered(), ring_feature::VERSION_1 | MERGE | own);
    for round in 0..2u64 {
        d.agree(u64::MAX);
        let (_receive, mut transmit) = (d.queue(0, 16), d.queue(1, 16));
        d.ready();
        assert_eq!(
            until(&heard, SET_FEATURES),
            PROTOCOL_FEATURES | ring_feature::VERSION_1 | MERGE
        );
        let at = d.bytes(&(0x1122_3344 + round).to_le_bytes());
        d.add(&mut transmit, &[Part::Out(at, 8)]);
        d.kick(&transmit);
        assert_eq!(until(&heard, u32::MAX), 0x1122_3344 + round);
        d.wait(&mut transmit);
        // Each ring is disabled, and asked where it stopped.
        d.reset();
        assert_eq!(until(&heard, GET_VRING_BASE) as u32, 0);
        assert_eq!(until(&heard, GET_VRING_BASE) as u32, 1);
    }

    // The server ends: the guest is told that its link is down.
    d.agree(u64::MAX);
    let _rings = [d.queue(0, 16), d.queue(1, 16)];
    d.ready();
    let link = |d: &mut Driver| {
        let mut status = [0; 2];
        d.device_config(6, &mut status);
        status
    };
    assert_eq!(link(&mut d), [1, 0]);
    end.shutdown(std::net::Shutdown::Both).unwrap();
    d.wait_vector(0);
    assert_eq!(link(&mut d), [0, 0]);
    d.reset();
}

#[test]
fn a_server_that_is_not_there_or_cannot_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.sock");
    let missing = VhostUser::connect(&path, 2).err().expect("nobody is there").to_string();
    assert!(missing.contains("net.sock: start it first"), "{missing}");

    let listener = UnixListener::bind(&path).unwrap();
    let old = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let (asked, _heard) = channel();
        let (regions, rings) = (Vec::new(), HashMap::new());
        let (kicks, calls) = (HashMap::new(), HashMap::new());
        let features = ring_feature::VERSION_1;
        Server { stream, features, regions, rings, kicks, calls, asked }.run();
    });
    match VhostUser::connect(&path, 2) {
        Err(ConnectError::Lacks { what, .. }) => {
            assert!(what.contains("protocol features"), "{what}");
        }
        other => panic!("{:?}", other.err()),
    }
    // It ends where the test has stopped to listen, or at the hang-up.
    let _ = old.join();
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let silent = VhostUser::connect(&path, 2).err().expect("it does not answer");
    assert!(matches!(silent, ConnectError::Refused(_)), "{silent}");
}
