use super::*;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

use crate::wire::MAX_FDS;

fn pair() -> (Socket, Socket) {
    let (a, b) = UnixStream::pair().unwrap();
    (Socket::new(a), Socket::new(b))
}

fn event() -> OwnedFd {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap()
}

fn message(id: u16, body: usize) -> Vec<u8> {
    let header = Header { id, size: 16 + body as u32, ..Header::default() };
    [header.as_bytes(), &vec![id as u8; body]].concat()
}

/// One receiver of a stream.
#[derive(Default)]
struct End {
    inbox: Inbox,
    body: Vec<u8>,
    fds: Fds,
}

impl End {
    fn take(&mut self, socket: &Socket, wait: Wait<'_>) -> Result<Header, SocketError> {
        self.inbox.receive(socket, &mut self.body, &mut self.fds, wait)
    }

    /// The next message is this one, with so many descriptors.
    fn expect(&mut self, socket: &Socket, wanted: &[u8], fds: usize) {
        let header = self.take(socket, Wait::default()).unwrap();
        assert_eq!([header.as_bytes(), &self.body].concat(), wanted);
        assert_eq!((self.fds.list.len(), self.fds.surplus), (fds, false), "message {}", header.id);
    }
}

#[test]
fn a_message_in_parts_arrives_whole_with_the_fds_of_all() {
    for body in [0, 4, AHEAD - HEADER, AHEAD - HEADER + 1, 70_000] {
        for cut in [1, 15, 16, 17] {
            for in_kernel in [false, true] {
                let (a, b) = pair();
                let (bytes, first, second) = (message(7, body), event(), event());
                let wait = Wait { in_kernel, ..Wait::default() };
                let mut end = End::default();
                let (now, later) = bytes.split_at(cut.min(bytes.len()));
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        a.send(now, &[first.as_fd()], Wait::default()).unwrap();
                        a.send(later, &[second.as_fd()], Wait::default()).unwrap();
                    });
                    end.take(&b, wait).unwrap();
                });
                assert_eq!(end.body, bytes[16..]);
                let parts = if later.is_empty() { 1 } else { 2 };
                assert_eq!((end.fds.list.len(), end.inbox.left()), (parts, 0), "{body} {cut}");
                for fd in &end.fds.list {
                    let flags = rustix::io::fcntl_getfd(fd).unwrap();
                    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
                }
            }
        }
    }
}

#[test]
fn messages_that_come_together_are_told_apart_with_their_fds() {
    let (a, b) = pair();
    let event = event();
    let one = [event.as_fd()];
    let sizes = [0, 20, 0, 9_000, 3, AHEAD, 1];
    // Every subset of them brings descriptors, and nothing is received before all were sent.
    for which in 0..1 << sizes.len() {
        let has = |n: usize| which & 1 << n != 0;
        for (n, body) in sizes.into_iter().enumerate() {
            let fds: &[_] = if has(n) { &one } else { &[] };
            a.send(&message(n as u16, body), fds, Wait::default()).unwrap();
        }
        let mut end = End::default();
        for (n, body) in sizes.into_iter().enumerate() {
            end.expect(&b, &message(n as u16, body), usize::from(has(n)));
        }
        assert_eq!(end.inbox.left(), 0);
    }
}

#[test]
fn surplus_fds_are_closed_and_told() {
    let (a, b) = pair();
    let event = event();
    let many = [event.as_fd(); MAX_FDS];
    let bytes = message(1, 0);
    a.send(&bytes[..8], &many, Wait::default()).unwrap();
    a.send(&bytes[8..], &many, Wait::default()).unwrap();
    a.send(&message(2, 0), &[], Wait::default()).unwrap();
    let mut end = End::default();
    end.take(&b, Wait::default()).unwrap();
    assert_eq!((end.fds.list.len(), end.fds.surplus), (MAX_FDS, true));
    end.expect(&b, &message(2, 0), 0);
}

#[test]
fn a_close_between_messages_differs_from_one_inside() {
    for (bytes, wanted) in [
        (Vec::new(), SocketError::Closed),
        (vec![1; 10], SocketError::Cut(6)),
        (message(1, 9)[..20].to_vec(), SocketError::Cut(5)),
    ] {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(&bytes).unwrap();
        drop(a);
        let b = Socket::new(b);
        assert_eq!(End::default().take(&b, Wait::default()), Err(wanted));
    }
    let (a, b) = pair();
    a.send(&message(1, 3), &[], Wait::default()).unwrap();
    drop(a);
    let mut end = End::default();
    end.expect(&b, &message(1, 3), 0);
    assert_eq!(end.take(&b, Wait::default()), Err(SocketError::Closed));
}

#[test]
fn sizes_are_bounded_before_anything_is_allocated() {
    for bad in [0, 15, MAX_MESSAGE + 1, u32::MAX] {
        let (a, b) = pair();
        let header = Header { size: bad, ..Header::default() };
        a.send(header.as_bytes(), &[], Wait::default()).unwrap();
        let got = End::default().take(&b, Wait::default());
        assert_eq!(got, Err(SocketError::Size(bad)));
    }
}

#[test]
fn a_large_message_passes_through_a_small_socket_buffer() {
    let (a, b) = pair();
    let message = message(9, MAX_MESSAGE as usize - HEADER);
    std::thread::scope(|scope| {
        scope.spawn(|| a.send(&message, &[], Wait::default()).unwrap());
        End::default().expect(&b, &message, 0);
    });
}

#[test]
fn a_stop_and_a_deadline_end_the_wait() {
    let (a, b) = pair();
    let stop = rustix::event::eventfd(1, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let stopped = Wait { stop: Some(stop.as_fd()), ..Wait::default() };
    assert_eq!(End::default().take(&b, stopped), Err(SocketError::Stopped));
    assert!(b.set_timeout(Duration::ZERO));
    let late = Wait { deadline: Some(Instant::now()), ..Wait::default() };
    for in_kernel in [false, true] {
        let wait = Wait { in_kernel, ..late };
        assert_eq!(End::default().take(&b, wait), Err(SocketError::Timeout));
        // A peer that sends too little, and then goes on, does not hold it up either.
        a.send(&message(1, 9)[..4], &[], Wait::default()).unwrap();
        assert_eq!(End::default().take(&b, wait), Err(SocketError::Timeout));
    }
}
