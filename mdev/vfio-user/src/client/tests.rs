//! The client against our server, and against servers that lie.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::JoinHandle;

use super::*;
use crate::server::{End, Listener, Stop};
use crate::testing::{BAR0_SIZE, TestDevice, VECTORS, counted, event, memory, start, unsealed};

const BAR0: RegionIndex = RegionIndex::bar(0);
const READ_WRITE: DmaFlags = DmaFlags { read: true, write: true };

fn refused(result: Result<(), ClientError>) -> i32 {
    match result {
        Err(ClientError::Refused { errno, .. }) => errno,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn every_query_tells_what_the_device_has() {
    let (stream, server) = start();
    let mut client = Client::from_stream(stream).unwrap();
    let info = client.device_info().unwrap();
    assert_eq!(info, ClientDeviceInfo { resettable: true, num_regions: 9, num_irqs: 5 });

    let bar0 = client.region_info(BAR0).unwrap();
    assert_eq!((bar0.size, bar0.flags), (BAR0_SIZE, RegionFlags { read: true, write: true }));
    let mapping = bar0.mapping.unwrap();
    assert!(mapping.write && mapping.fd_offset == 0);
    assert_eq!(mapping.areas, [SparseArea { offset: 0x3000, size: 0x1000 }]);

    // Trapped access may write, mapped access may not: its fd says so.
    let bar2 = client.region_info(RegionIndex::bar(2)).unwrap();
    assert!(bar2.flags.write && !bar2.mapping.unwrap().write);
    let none = client.region_info(RegionIndex::bar(4)).unwrap();
    assert!(none.size == 0 && none.mapping.is_none());

    assert_eq!(client.irq_info(IrqIndex::MSIX).unwrap().count, VECTORS);
    assert_eq!(client.irq_info(IrqIndex::INTX).unwrap().count, 0);
    assert_eq!(refused(client.irq_info(IrqIndex(5)).map(|_| ())), 22);
    drop(client);
    assert_eq!(server.end().unwrap(), End::Disconnected);
}

#[test]
fn doorbells_arrive_with_their_eventfds_and_values() {
    let (stream, _server) = start();
    let mut client = Client::from_stream(stream).unwrap();
    let bells = client.region_io_fds(BAR0).unwrap();
    let what: Vec<_> = bells.iter().map(|b| (b.offset, b.size, b.datamatch)).collect();
    assert_eq!(what, [(0x100, 2, Some(0)), (0x104, 4, None), (0x108, 0, None)]);
    // The first and the last share one.
    rustix::io::write(&bells[0].fd, &3u64.to_ne_bytes()).unwrap();
    assert_eq!((counted(&bells[1].fd), counted(&bells[2].fd)), (0, 3));
    assert!(client.region_io_fds(RegionIndex::bar(2)).unwrap().is_empty());
}

#[test]
fn reads_and_writes_reach_the_device_whatever_their_size() {
    let (stream, _server) = start();
    let mut client = Client::from_stream(stream).unwrap();
    client.region_write(BAR0, 8, &0xdead_beef_u32.to_ne_bytes()).unwrap();
    let mut word = [0; 4];
    client.region_read(BAR0, 8, &mut word).unwrap();
    assert_eq!(u32::from_ne_bytes(word), 0xdead_beef);

    let all: Vec<u8> = (0..BAR0_SIZE).map(|i| (i * 7) as u8).collect();
    client.region_write(BAR0, 0, &all).unwrap();
    let mut back = vec![0; all.len()];
    client.region_read(BAR0, 0, &mut back).unwrap();
    assert_eq!(back, all);
    client.max_data = 1000;
    back.fill(0);
    client.region_read(BAR0, 0, &mut back).unwrap();
    assert_eq!(back, all);

    assert_eq!(refused(client.region_read(BAR0, BAR0_SIZE - 3, &mut word)), 22);
    assert_eq!(refused(client.region_read(RegionIndex(9), 0, &mut word)), 22);
    assert_eq!(refused(client.region_write(RegionIndex::CONFIG, 0, &word)), 22);
    assert_eq!(refused(client.region_write(BAR0, 0, &[0xff; 3])), 28);
    let overflow = client.region_read(BAR0, u64::MAX, &mut word);
    assert!(matches!(overflow, Err(ClientError::Invalid { .. })));
    client.region_read(BAR0, BAR0_SIZE - 4, &mut word).unwrap();
}

#[test]
fn interrupts_are_set_in_portions_triggered_and_cleared() {
    let (stream, server) = start();
    let mut client = Client::from_stream(stream).unwrap();
    let events: Vec<_> = (0..VECTORS).map(|_| event()).collect();
    let fds: Vec<BorrowedFd<'_>> = events.iter().map(AsFd::as_fd).collect();
    client.set_irqs(IrqIndex::MSIX, 0, &fds).unwrap();
    client.trigger_irqs(IrqIndex::MSIX, 15, 20).unwrap();
    let counts: Vec<_> = events.iter().map(counted).collect();
    assert!((0..).zip(&counts).all(|(i, &n)| n == u64::from((15..35).contains(&i))), "{counts:?}");

    client.clear_irqs(IrqIndex::MSIX, 20, 2).unwrap();
    client.trigger_irqs(IrqIndex::MSIX, 19, 4).unwrap();
    assert_eq!([19, 20, 21, 22].map(|i: usize| counted(&events[i])), [1, 0, 0, 1]);
    client.clear_irqs(IrqIndex::MSIX, 0, 0).unwrap();
    client.trigger_irqs(IrqIndex::MSIX, 0, VECTORS).unwrap();
    assert!(events.iter().all(|fd| counted(fd) == 0));
    assert_eq!(server.seen.lock().unwrap().cleared, [(20, 2), (0, 0)]);

    assert_eq!(refused(client.set_irqs(IrqIndex::MSIX, VECTORS - 1, &fds[..2])), 22);
    assert_eq!(refused(client.set_irqs(IrqIndex::INTX, 0, &fds[..1])), 22);
    let not_event = memory(4096);
    assert_eq!(refused(client.set_irqs(IrqIndex::MSIX, 0, &[not_event.as_fd()])), 22);
    client.set_irqs(IrqIndex::MSIX, VECTORS - 2, &fds[..2]).unwrap();
}

#[test]
fn guest_memory_is_mapped_once_and_only_if_it_can_be_trusted() {
    let (stream, server) = start();
    let mut client = Client::from_stream(stream).unwrap();
    let guest = memory(0x10000);
    client.dma_map(0x8000_0000, 0x8000, READ_WRITE, guest.as_fd(), 0x4000).unwrap();
    {
        let seen = server.seen.lock().unwrap();
        let map = &seen.maps[&0x8000_0000];
        assert_eq!((map.size, map.fd_offset, map.flags), (0x8000, 0x4000, READ_WRITE));
        let theirs = rustix::fs::fstat(map.fd.as_ref().unwrap()).unwrap().st_ino;
        assert_eq!(theirs, rustix::fs::fstat(&guest).unwrap().st_ino);
    }
    assert_eq!(refused(client.dma_map(0x8000_0000, 0x1000, READ_WRITE, guest.as_fd(), 0)), 17);
    assert_eq!(refused(client.dma_unmap(0x8000_0000, 0x1000)), 22);
    client.dma_unmap(0x8000_0000, 0x8000).unwrap();

    let open = unsealed(0x10000);
    assert_eq!(refused(client.dma_map(0, 0x1000, READ_WRITE, open.as_fd(), 0)), 22);
    assert_eq!(refused(client.dma_map(0, 0x11000, READ_WRITE, guest.as_fd(), 0)), 22);
    assert_eq!(refused(client.dma_map(0, 0x1000, READ_WRITE, guest.as_fd(), 0x10)), 22);
    assert_eq!(refused(client.dma_map(0, 0x1000, READ_WRITE, guest.as_fd(), u64::MAX - 0xfff)), 22);
    let not_memory = event();
    assert_eq!(refused(client.dma_map(0, 0x1000, READ_WRITE, not_memory.as_fd(), 0)), 22);
    let past_the_end = client.dma_map(u64::MAX - 0xfff, 0x1000, READ_WRITE, guest.as_fd(), 0);
    assert!(matches!(past_the_end, Err(ClientError::Invalid { .. })));
    assert!(server.seen.lock().unwrap().maps.is_empty());
}

#[test]
fn a_reset_reaches_the_device_and_so_does_the_end() {
    let (stream, server) = start();
    let mut client = Client::from_stream(stream).unwrap();
    client.reset().unwrap();
    assert_eq!(server.seen.lock().unwrap().resets, 1);
    server.stop.stop();
    let seen = server.seen.clone();
    assert_eq!(server.end().unwrap(), End::Stopped);
    assert_eq!(seen.lock().unwrap().disconnects, 1);
    assert!(matches!(client.reset(), Err(ClientError::Disconnected(_))));
    assert!(matches!(client.device_info(), Err(ClientError::Disconnected(_))));
}

#[test]
fn one_client_after_the_other_connects_by_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = Listener::bind(&path).unwrap();
    let stop = Stop::new().unwrap();
    std::thread::scope(|scope| {
        let watched = stop.clone();
        let thread = scope.spawn(move || listener.serve(&mut TestDevice::new(), &watched));
        for _ in 0..3 {
            let mut client = Client::connect(&path, DEFAULT_TIMEOUT).unwrap();
            assert!(client.device_info().unwrap().resettable);
        }
        stop.stop();
        thread.join().unwrap().unwrap();
    });
    // The thread took the listener with it, and the listener its file.
    assert!(!path.exists());
    let gone = Client::connect(&path, DEFAULT_TIMEOUT);
    assert!(matches!(gone, Err(ClientError::Connect { .. })));
}

/// A server that answers the version, then once with `answer`, made from the request's header.
fn liar(
    answer: impl FnOnce(Header) -> (Vec<u8>, Vec<OwnedFd>) + Send + 'static,
) -> (Client, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let (socket, wait) = (Socket::new(theirs), Wait::default());
        let (mut fds, mut body) = (Fds::default(), Vec::new());
        let mut inbox = Inbox::default();
        let mut header = inbox.receive(&socket, &mut body, &mut fds, wait).unwrap();
        header.flags = header_flags::REPLY;
        let hello = [header.as_bytes(), &body].concat();
        socket.send(&hello, &[], wait).unwrap();
        let header = inbox.receive(&socket, &mut body, &mut fds, wait).unwrap();
        let (message, fds) = answer(header);
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let _ = socket.send(&message, &fds, wait);
    });
    (Client::from_stream(ours).unwrap(), thread)
}

fn reply(ask: Header, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let size = (size_of::<Header>() + body.len()) as u32;
    let header = Header { size, flags: header_flags::REPLY, ..ask };
    [header.as_bytes(), &body].concat()
}

fn protocol<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    match result {
        Err(ClientError::Protocol { what, .. }) => what,
        other => panic!("not a protocol error: {other:?}"),
    }
}

#[test]
fn replies_to_something_else_end_the_connection() {
    let cases: [fn(Header) -> Vec<u8>; 6] = [
        |h| reply(Header { id: h.id ^ 1, ..h }, &[]),
        |h| reply(Header { command: h.command + 1, ..h }, &[]),
        |h| Header { size: 16, ..h }.as_bytes().to_vec(),
        |h| Header { size: 8, flags: header_flags::REPLY, ..h }.as_bytes().to_vec(),
        |h| reply(h, &[&[0; 3]]),
        |h| reply(h, &[&[0xff; 16]]),
    ];
    for case in cases {
        let (mut client, thread) = liar(move |h| (case(h), Vec::new()));
        protocol(client.device_info());
        assert!(matches!(client.device_info(), Err(ClientError::Disconnected(_))));
        thread.join().unwrap();
    }
}

#[test]
fn region_replies_that_lie_are_refused() {
    let info = |size: u64, offset, more: usize| wire::RegionInfo {
        argsz: 32 + more as u32,
        flags: 0b1111,
        index: 0,
        cap_offset: 32,
        size,
        offset,
    };
    let cap = |next, areas: &[(u64, u64)]| {
        let mut bytes = wire::CapHeader { id: 1, version: 1, next }.as_bytes().to_vec();
        bytes.extend(wire::SparseHeader { nr_areas: areas.len() as u32, reserved: 0 }.as_bytes());
        for &(offset, size) in areas {
            bytes.extend(wire::Area { offset, size }.as_bytes());
        }
        bytes
    };
    let tell = |info: wire::RegionInfo, cap: Vec<u8>, fds: Vec<OwnedFd>| {
        let (mut client, thread) = liar(move |h| (reply(h, &[info.as_bytes(), &cap]), fds));
        let result = client.region_info(BAR0);
        thread.join().unwrap();
        result
    };
    let good = cap(0, &[(0, 0x1000), (0x2000, 0x1000)]);
    let n = good.len();
    let mapping =
        tell(info(0x4000, 0x1000, n), good.clone(), vec![memory(0x4000)]).unwrap().mapping;
    assert_eq!(mapping.unwrap().areas.len(), 2);

    let lies = [
        (info(0x4000, 0x2000, n), good.clone(), vec![memory(0x4000)]),
        (info(0x4000, 0, n), good.clone(), vec![unsealed(0x4000)]),
        (info(0x4000, 0, n), good.clone(), vec![event()]),
        (info(0x4000, 0, n), good.clone(), vec![]),
        (info(0x4000, 0, n), good.clone(), vec![memory(0x4000), memory(0x4000)]),
        (info(0x4000, 8, n), good.clone(), vec![memory(0x8000)]),
        (info(0x4000, u64::MAX - 0xfff, n), good.clone(), vec![memory(0x4000)]),
        (info(0x2000, 0, n), good.clone(), vec![memory(0x4000)]),
        (info(0x4000, 0, n + 1), good.clone(), vec![memory(0x4000)]),
        (wire::RegionInfo { index: 1, ..info(0x4000, 0, n) }, good.clone(), vec![memory(0x4000)]),
        (
            wire::RegionInfo { cap_offset: 8, ..info(0x4000, 0, n) },
            good.clone(),
            vec![memory(0x4000)],
        ),
        (wire::RegionInfo { cap_offset: 4000, ..info(0x4000, 0, n) }, good, vec![memory(0x4000)]),
    ];
    for (i, (info, cap, fds)) in lies.into_iter().enumerate() {
        let what = protocol(tell(info, cap, fds));
        assert!(!what.is_empty(), "{i}");
    }
    // Capabilities that point at themselves.
    let mut looped = wire::CapHeader { id: 9, version: 1, next: 32 }.as_bytes().to_vec();
    looped.extend([0; 8]);
    protocol(tell(info(0x4000, 0, looped.len()), looped, vec![memory(0x4000)]));
}

#[test]
fn a_read_reply_must_be_exactly_what_was_asked() {
    let answer = |offset, count: u32, data: usize| {
        let (mut client, thread) = liar(move |h| {
            let access = RegionAccess { offset, region: 0, count };
            (reply(h, &[access.as_bytes(), &vec![1; data]]), Vec::new())
        });
        let mut word = [0; 4];
        let result = client.region_read(BAR0, 8, &mut word);
        thread.join().unwrap();
        result.map(|()| word)
    };
    assert_eq!(answer(8, 4, 4).unwrap(), [1; 4]);
    protocol(answer(8, 4, 3));
    protocol(answer(8, 4, 5));
    protocol(answer(8, 8, 8));
    protocol(answer(0, 4, 4));
}

#[test]
fn a_server_that_hangs_is_a_timeout_and_then_gone() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let hung = Client::with_timeout(ours, Duration::from_millis(1));
    assert!(matches!(hung, Err(ClientError::Timeout(_))));

    let (mut client, thread) = liar(|h| (reply(h, &[])[..8].to_vec(), Vec::new()));
    assert!(matches!(client.reset(), Err(ClientError::Disconnected(_))));
    thread.join().unwrap();
}
