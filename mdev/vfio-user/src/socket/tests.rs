use super::*;

fn pair() -> (Socket, Socket) {
    let (a, b) = UnixStream::pair().unwrap();
    (Socket::new(a), Socket::new(b))
}

#[test]
fn a_stop_and_a_deadline_end_waits_for_input_and_for_room() {
    let (_a, b) = pair();
    let stop = rustix::event::eventfd(1, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let stopped = Wait { stop: Some(stop.as_fd()), ..Wait::default() };
    let soon = Some(Instant::now() + Duration::from_millis(1));
    let late = Wait { deadline: soon, ..Wait::default() };
    assert_eq!(b.wait_for_input(stopped), Err(SocketError::Stopped));
    assert_eq!(b.wait_for_input(late), Err(SocketError::Timeout));
    // More than any socket buffer holds, and nobody reads.
    let flood = vec![0; 64 << 20];
    assert_eq!(b.send(&flood, &[], stopped), Err(SocketError::Stopped));
    assert_eq!(b.send(&flood, &[], late), Err(SocketError::Timeout));
}

#[test]
fn a_peer_that_is_gone_is_told_with_and_without_descriptors() {
    let (a, b) = pair();
    drop(a);
    let stop = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    assert_eq!(b.send(&[1], &[], Wait::default()), Err(SocketError::Closed));
    assert_eq!(b.send(&[1], &[stop.as_fd()], Wait::default()), Err(SocketError::Closed));
}
