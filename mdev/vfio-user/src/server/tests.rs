//! The server against clients that lie.

use std::cell::RefCell;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;
use crate::inbox::Inbox;
use crate::socket::{Fds, Wait};
use crate::testing::{Running, event, memory, start};
use crate::wire::{self, Header, command, header_flags};

/// A client of bare messages.
struct Raw(Socket, RefCell<Inbox>);

impl Raw {
    fn new(stream: UnixStream) -> Self {
        Self(Socket::new(stream), RefCell::default())
    }

    fn send(&self, number: u16, flags: u32, body: &[u8], fds: &[&OwnedFd]) {
        let size = (16 + body.len()) as u32;
        let header = Header { id: 0x1234, command: number, size, flags, error: 0 };
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.0.send(&[header.as_bytes(), body].concat(), &fds, Wait::default()).unwrap();
    }

    fn receive(&self) -> (Header, Vec<u8>, Fds) {
        let (mut fds, mut body) = (Fds::default(), Vec::new());
        let mut inbox = self.1.borrow_mut();
        let header = inbox.receive(&self.0, &mut body, &mut fds, Wait::default()).unwrap();
        (header, body, fds)
    }

    /// The errno of the reply, or 0 and its payload.
    fn call(&self, number: u16, body: &[u8], fds: &[&OwnedFd]) -> (u32, Vec<u8>) {
        self.send(number, 0, body, fds);
        let (header, body, _) = self.receive();
        assert_eq!((header.id, header.command), (0x1234, number));
        assert_eq!(header.flags & header_flags::TYPE_MASK, header_flags::REPLY);
        assert_eq!(header.flags & header_flags::ERROR != 0, header.error != 0);
        assert!(header.error == 0 || body.is_empty());
        (header.error, body)
    }

    fn still_in_step(&self) {
        let ask = wire::DeviceInfo { argsz: 16, ..Default::default() };
        let (errno, body) = self.call(command::DEVICE_GET_INFO, ask.as_bytes(), &[]);
        assert_eq!((errno, body.len()), (0, 16));
    }
}

const HELLO: &[u8] =
    b"\0\0\x01\0{\"capabilities\":{\"max_msg_fds\":16,\"write_multiple\":true,\"migration\":{}}}\0";

fn connected() -> (Raw, Running) {
    let (stream, server) = start();
    let raw = Raw::new(stream);
    assert_eq!(raw.call(command::VERSION, HELLO, &[]).0, 0);
    (raw, server)
}

#[test]
fn the_version_reply_names_only_what_the_client_named() {
    let (stream, _server) = start();
    let raw = Raw::new(stream);
    let (_, body) = raw.call(command::VERSION, HELLO, &[]);
    let json = br#"{"capabilities":{"max_msg_fds":16,"write_multiple":true}}"#;
    assert_eq!(body, [&[0, 0, 1, 0], &json[..], &[0]].concat());
}

#[test]
fn a_bad_or_missing_version_ends_the_connection_with_a_reply() {
    let bad: [(u16, &[u8]); 5] = [
        (command::VERSION, b"\x01\0\0\0{}\0"),
        (command::VERSION, b"\0\0"),
        (command::VERSION, b"\0\0\0\0{}"),
        (command::VERSION, b"\0\0\0\0[1\0"),
        (command::DEVICE_RESET, b""),
    ];
    for (number, body) in bad {
        let (stream, server) = start();
        let raw = Raw::new(stream);
        assert_eq!(raw.call(number, body, &[]).0, 22);
        let seen = server.seen.clone();
        let end = server.end();
        assert!(matches!(end, Err(ServeError::Version(_) | ServeError::NotVersion(_))), "{end:?}");
        assert_eq!(seen.lock().unwrap().disconnects, 0);
    }
}

#[test]
fn commands_that_are_not_served_leave_the_stream_in_step() {
    let (raw, _server) = connected();
    for number in [0, 11, 12, 14, 16, 17, 18, 19, 0xffff] {
        assert_eq!(raw.call(number, &[7; 100], &[]).0, 95, "command {number}");
        raw.still_in_step();
    }
    assert_eq!(raw.call(command::VERSION, HELLO, &[]).0, 22);
    raw.still_in_step();
}

#[test]
fn payloads_that_do_not_fit_are_refused() {
    let (raw, server) = connected();
    for number in 2..=10 {
        for length in [0, 3, 8, 15] {
            assert_eq!(raw.call(number, &vec![0xff; length], &[]).0, 22, "{number} {length}");
        }
    }
    let access = |offset, region, count| wire::RegionAccess { offset, region, count };
    let bad_writes = [
        (access(0, 0, 4), 3),
        (access(0, 0, 4), 5),
        (access(0, 0, u32::MAX), 0),
        (access(u64::MAX, 0, 1), 1),
        (access(0x4000, 0, 1), 1),
        (access(0, 9, 1), 1),
        (access(0, 7, 1), 1),
    ];
    for (access, length) in bad_writes {
        let body = [access.as_bytes(), &vec![0; length]].concat();
        assert_eq!(raw.call(command::REGION_WRITE, &body, &[]).0, 22, "{access:?}");
    }
    for count in [wire::MAX_DATA_XFER + 1, u32::MAX, 0x4001] {
        let body = access(0, 0, count);
        assert_eq!(raw.call(command::REGION_READ, body.as_bytes(), &[]).0, 22);
    }
    assert_eq!(server.seen.lock().unwrap().calls, 0);
    raw.still_in_step();
}

#[test]
fn argsz_bounds_the_reply_and_tells_what_is_needed() {
    let (raw, _server) = connected();
    let ask = |argsz| wire::RegionInfo { argsz, ..Default::default() };
    assert_eq!(raw.call(command::DEVICE_GET_REGION_INFO, ask(31).as_bytes(), &[]).0, 22);
    let (_, body) = raw.call(command::DEVICE_GET_REGION_INFO, ask(32).as_bytes(), &[]);
    let (info, rest) = wire::take::<wire::RegionInfo>(&body).unwrap();
    assert_eq!((info.argsz, info.cap_offset, info.flags, rest.len()), (64, 32, 0b1111, 0));
    raw.send(command::DEVICE_GET_REGION_INFO, 0, ask(64).as_bytes(), &[]);
    let (_, body, fds) = raw.receive();
    assert_eq!((body.len(), fds.list.len()), (64, 1));

    let ask = |argsz| wire::RegionIoFds { argsz, ..Default::default() };
    let (_, body) = raw.call(command::DEVICE_GET_REGION_IO_FDS, ask(16).as_bytes(), &[]);
    let (head, rest) = wire::take::<wire::RegionIoFds>(&body).unwrap();
    assert_eq!((head.argsz, head.count, rest.len()), (16 + 3 * 40, 3, 0));
    raw.send(command::DEVICE_GET_REGION_IO_FDS, 0, ask(136).as_bytes(), &[]);
    let (_, body, fds) = raw.receive();
    assert_eq!((body.len(), fds.list.len()), (136, 2));
    let (entry, _) = wire::take::<wire::IoFd>(&body[16 + 80..]).unwrap();
    assert_eq!((entry.offset, entry.size, entry.fd_index), (0x108, 0, 0));
}

#[test]
fn a_client_that_does_not_say_gets_one_fd_per_message() {
    let (stream, _server) = start();
    let raw = Raw::new(stream);
    raw.call(command::VERSION, &[0, 0, 1, 0], &[]);
    let ask = wire::RegionIoFds { argsz: 4096, ..Default::default() };
    raw.send(command::DEVICE_GET_REGION_IO_FDS, 0, ask.as_bytes(), &[]);
    let (_, body, fds) = raw.receive();
    // The doorbell with the second eventfd is left to REGION_WRITE.
    assert_eq!((body.len(), fds.list.len()), (16 + 2 * 40, 1));
    assert_eq!(raw.call(command::REGION_WRITE_MULTI, &[0; 8], &[]).0, 95);
}

#[test]
fn fds_that_do_not_belong_are_refused_and_closed() {
    let (raw, server) = connected();
    let (event, memory) = (event(), memory(0x1000));
    let info = wire::DeviceInfo { argsz: 16, ..Default::default() };
    assert_eq!(raw.call(command::DEVICE_GET_INFO, info.as_bytes(), &[&event]).0, 22);

    let set = |flags, start, count| wire::IrqSet { argsz: 20, flags, index: 2, start, count };
    let cases: [(wire::IrqSet, &[&OwnedFd]); 8] = [
        (set(0x24, 0, 1), &[&memory]),
        (set(0x24, 0, 2), &[&event]),
        (set(0x24, 0, 1), &[&event, &event]),
        (set(0x24, 0, 0), &[&event]),
        (set(0x24, u32::MAX, 2), &[&event, &event]),
        (set(0x21, 0, 1), &[&event]),
        (set(0x27, 0, 1), &[]),
        (set(0x20, 0, 1), &[]),
    ];
    for (set, fds) in cases {
        assert_eq!(raw.call(command::DEVICE_SET_IRQS, set.as_bytes(), fds).0, 22, "{set:?}");
    }
    assert_eq!(raw.call(command::DEVICE_SET_IRQS, set(0x09, 0, 1).as_bytes(), &[]).0, 95);

    let map = wire::DmaMap { argsz: 32, flags: 3, offset: 0, address: 0, size: 0x1000 };
    let two: [&OwnedFd; 2] = [&memory, &memory];
    assert_eq!(raw.call(command::DMA_MAP, map.as_bytes(), &two).0, 22);
    let far = wire::DmaMap { address: u64::MAX - 0xfff, ..map };
    assert_eq!(raw.call(command::DMA_MAP, far.as_bytes(), &[&memory]).0, 22);
    let unaligned = wire::DmaMap { address: 0x10, ..map };
    assert_eq!(raw.call(command::DMA_MAP, unaligned.as_bytes(), &[&memory]).0, 22);
    let flags = wire::DmaMap { flags: 8, ..map };
    assert_eq!(raw.call(command::DMA_MAP, flags.as_bytes(), &[&memory]).0, 22);
    assert!(server.seen.lock().unwrap().maps.is_empty());

    // Without an fd the range is the device's to accept; `UNMAP_ALL` takes it away again.
    assert_eq!(raw.call(command::DMA_MAP, map.as_bytes(), &[]).0, 0);
    assert!(server.seen.lock().unwrap().maps[&0].fd.is_none());
    let all = wire::DmaUnmap { argsz: 24, flags: 2, address: 0, size: 0 };
    assert_eq!(raw.call(command::DMA_UNMAP, all.as_bytes(), &[]), (0, all.as_bytes().to_vec()));
    assert!(server.seen.lock().unwrap().maps.is_empty());
    raw.still_in_step();
}

/// What QEMU sends where a virtual IOMMU drops an address space.
#[test]
fn a_range_unmaps_all_that_lies_in_it_and_cuts_nothing() {
    let (raw, server) = connected();
    let map = |address, size| {
        let map = wire::DmaMap { argsz: 32, flags: 1, offset: 0, address, size };
        raw.call(command::DMA_MAP, map.as_bytes(), &[]).0
    };
    let unmap = |address, size| {
        let unmap = wire::DmaUnmap { argsz: 24, flags: 0, address, size };
        raw.call(command::DMA_UNMAP, unmap.as_bytes(), &[]).0
    };
    let left = || server.seen.lock().unwrap().maps.len();
    for address in [0x1000, 0x2000, 0xf000, 0xfee0_0000] {
        assert_eq!(map(address, 0x1000), 0);
    }
    assert_eq!(map(0x1_0000, 0x2000), 0);
    assert_eq!(map(0x1_1000, 0x1000), 17);

    assert_eq!(unmap(0x1_1000, 0x1000), 22);
    assert_eq!(unmap(0x8000, 0x9000), 22);
    assert_eq!(left(), 5);
    assert_eq!(unmap(0, 0x3000), 0);
    assert_eq!(left(), 3);
    // Nothing is there.
    assert_eq!(unmap(0x1_0000_0000, 0x1_0000_0000), 0);
    // Up to the end of the address space, and past it.
    assert_eq!(unmap(0xfef0_0000, 0xfef0_0000_u64.wrapping_neg()), 0);
    assert_eq!(unmap(0xfef0_0000, 0u64.wrapping_sub(0x1000)), 22);
    assert_eq!(left(), 3);
    assert_eq!(unmap(0x1000, 0u64.wrapping_sub(0x1000)), 0);
    assert_eq!(left(), 0);
    raw.still_in_step();
}

#[test]
fn mappings_are_bounded() {
    let (raw, server) = connected();
    for i in 0..=wire::MAX_DMA_MAPS {
        let address = u64::from(i) * 0x1000;
        let map = wire::DmaMap { argsz: 32, flags: 1, offset: 0, address, size: 0x1000 };
        let wanted = if i < wire::MAX_DMA_MAPS { 0 } else { 28 };
        assert_eq!(raw.call(command::DMA_MAP, map.as_bytes(), &[]).0, wanted);
    }
    assert_eq!(server.seen.lock().unwrap().maps.len(), wire::MAX_DMA_MAPS as usize);
}

#[test]
fn chosen_vectors_are_triggered() {
    let (raw, _server) = connected();
    let (a, b) = (event(), event());
    let set = |flags| wire::IrqSet { argsz: 20, flags, index: 2, start: 0, count: 2 };
    assert_eq!(raw.call(command::DEVICE_SET_IRQS, set(0x24).as_bytes(), &[&a, &b]).0, 0);
    let body = [set(0x22).as_bytes(), &[0, 1]].concat();
    assert_eq!(raw.call(command::DEVICE_SET_IRQS, &body, &[]).0, 0);
    assert_eq!((crate::testing::counted(&a), crate::testing::counted(&b)), (0, 1));
    assert_eq!(raw.call(command::DEVICE_SET_IRQS, &body[..21], &[]).0, 22);
}

#[test]
fn several_writes_at_once_stop_at_the_first_that_is_refused() {
    let (raw, server) = connected();
    let write = |offset, count| wire::MultiWrite { offset, region: 0, count, data: [9; 8] };
    let multi = |writes: &[wire::MultiWrite]| {
        [&(writes.len() as u64).to_ne_bytes(), writes.as_bytes()].concat()
    };
    let (good, outside, wide) = (write(0, 8), write(0x3ffc, 8), write(0, 9));
    let call = |body: &[u8]| raw.call(command::REGION_WRITE_MULTI, body, &[]);
    assert_eq!(call(&multi(&[good, good, outside, good])), (0, 2u64.to_ne_bytes().to_vec()));
    assert_eq!(call(&multi(&[wide])).0, 22);
    assert_eq!(call(&[0xff; 8]).0, 22);
    assert_eq!(call(&multi(&[good])[..31]).0, 22);
    assert_eq!(server.seen.lock().unwrap().calls, 2);
}

#[test]
fn commands_without_reply_get_none_also_when_they_fail() {
    let (raw, server) = connected();
    raw.send(command::DEVICE_RESET, header_flags::NO_REPLY, &[], &[]);
    raw.send(0x77, header_flags::NO_REPLY, &[1; 40], &[]);
    raw.send(command::REGION_READ, header_flags::NO_REPLY, &[0; 3], &[]);
    raw.still_in_step();
    assert_eq!(server.seen.lock().unwrap().resets, 1);
}

#[test]
fn streams_that_make_no_sense_end() {
    let header = |size, flags| Header { id: 1, command: 4, size, flags, error: 0 };
    let cases = [
        header(8, 0).as_bytes().to_vec(),
        header(u32::MAX, 0).as_bytes().to_vec(),
        header(16, header_flags::REPLY).as_bytes().to_vec(),
        header(16, 5).as_bytes().to_vec(),
        header(16, 0).as_bytes()[..9].to_vec(),
        header(32, 0).as_bytes().to_vec(),
    ];
    for case in cases {
        let (raw, server) = connected();
        raw.0.send(&case, &[], Wait::default()).unwrap();
        drop(raw);
        let seen = server.seen.clone();
        let end = server.end();
        assert!(matches!(end, Err(ServeError::Stream(_) | ServeError::NotCommand(_))), "{end:?}");
        assert_eq!(seen.lock().unwrap().disconnects, 1);
    }
}

#[test]
fn a_stop_ends_a_connection_at_every_point() {
    // Before the version, between messages, inside one, and while the client does not read replies.
    let (_stream, server) = start();
    server.stop.stop();
    assert_eq!(server.end().unwrap(), End::Stopped);

    let (raw, server) = connected();
    server.stop.stop();
    assert_eq!(server.end().unwrap(), End::Stopped);
    drop(raw);

    let (raw, server) = connected();
    raw.0.send(&[1; 5], &[], Wait::default()).unwrap();
    server.stop.stop();
    assert_eq!(server.end().unwrap(), End::Stopped);

    let (raw, server) = connected();
    let read = wire::RegionAccess { offset: 0, region: 0, count: 0x4000 };
    for _ in 0..64 {
        raw.send(command::REGION_READ, 0, read.as_bytes(), &[]);
    }
    server.stop.stop();
    assert_eq!(server.end().unwrap(), End::Stopped);
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_or_a_file_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    // A listener that is dropped without unlinking leaves what a dead server leaves.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let listener = Listener::bind(&path).unwrap();
    assert!(matches!(Listener::bind(&path), Err(ListenError::InUse(_))));
    let mode = rustix::fs::lstat(&path).unwrap().st_mode;
    assert_eq!(mode & 0o777, 0o600);
    drop(listener);
    assert!(!path.exists());

    std::fs::write(&path, b"precious").unwrap();
    assert!(matches!(Listener::bind(&path), Err(ListenError::NotSocket(_))));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let long = folder.path().join("x".repeat(200));
    assert!(matches!(Listener::bind(&long), Err(ListenError::Io { .. })));
}

#[test]
fn a_listener_does_not_remove_its_successors_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = Listener::bind(&path).unwrap();
    // Keep the old inode, so that the new file cannot have its number.
    std::fs::rename(&path, folder.path().join("moved")).unwrap();
    let _successor = UnixListener::bind(&path).unwrap();
    drop(listener);
    assert!(path.exists());
}

/// Commands with plausible numbers and anything behind them.
fn messages() -> impl Strategy<Value = Vec<(u16, bool, Vec<u8>, usize)>> {
    let word = prop_oneof![Just(0u32), 0..64u32, Just(u32::MAX), any::<u32>()];
    let body = prop::collection::vec(word, 0..16)
        .prop_map(|words| words.iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<u8>>());
    let message = (0..20u16, any::<bool>(), body, 0..4usize);
    prop::collection::vec(message, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_commands_are_each_answered(messages in messages()) {
        let (raw, server) = connected();
        let pool = [event(), memory(0x4000), event(), memory(0x1000)];
        for (number, no_reply, body, fds) in messages {
            let fds: Vec<_> = pool.iter().take(fds).collect();
            if no_reply {
                raw.send(number, header_flags::NO_REPLY, &body, &fds);
            } else {
                raw.call(number, &body, &fds);
            }
        }
        raw.still_in_step();
        drop(raw);
        prop_assert_eq!(server.end().unwrap(), End::Disconnected);
    }

    #[test]
    fn any_bytes_end_the_connection_or_are_answered(
        hello in any::<bool>(),
        bytes in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let (mut stream, server) = start();
        if hello {
            let raw = Raw::new(stream.try_clone().unwrap());
            raw.call(command::VERSION, HELLO, &[]);
        }
        // The server may be gone before all is written.
        let _ = stream.write_all(&bytes);
        drop(stream);
        let _ = server.end();
    }
}

#[test]
fn a_stream_that_is_closed_at_once_is_a_disconnect() {
    let (ours, theirs): (UnixStream, UnixStream) = UnixStream::pair().unwrap();
    drop(ours);
    let stop = Stop::new().unwrap();
    let mut device = crate::testing::TestDevice::new();
    assert_eq!(serve(theirs, &mut device, &stop).unwrap(), End::Disconnected);
}
