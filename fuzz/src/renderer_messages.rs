//! A hostile renderer to its host, and a host's orders to a renderer: any packets and descriptors.

use crate::fds::{Open, Pool, send};
use crate::input::Input;
use beamline_abi::{Generation, Nanos};
use beamline_mdev::backend::wgpu::fuzz::Ear as HostEar;
use beamline_mdev::backend::{Event, SliceKey, Ticket};
use beamline_mdev::renderer::fuzz::{Ear as RendererEar, Order};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

const MAX_STEPS: usize = 32;
const KEY: SliceKey = SliceKey { index: 3, generation: Generation(7) };

thread_local! {
    static FIXED: (Pool, RefCell<RendererEar>) = (Pool::new(), RefCell::default());
}

/// Runs one connection, to one of its two ends.
pub(crate) fn run(data: &[u8]) {
    FIXED.with(|(pool, ear)| {
        let open = Open::now();
        let mut input = Input::new(data);
        if input.flag() {
            renderer(&mut input, pool, &mut ear.borrow_mut());
        } else {
            host(&mut input, pool);
        }
        open.check();
    });
}

fn pair() -> (OwnedFd, OwnedFd) {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .expect("a socket pair can be made")
}

/// A packet's head: kind, reason, token, three times, width, height, count, estimated.
fn head(input: &mut Input<'_>, kind: u32, token: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let reason = input.below(16) as u32;
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&reason.to_ne_bytes());
    bytes.extend_from_slice(&token.to_ne_bytes());
    for _ in 0..3 {
        bytes.extend_from_slice(&input.number().to_ne_bytes());
    }
    for _ in 0..4 {
        bytes.extend_from_slice(&input.number32().to_ne_bytes());
    }
    bytes
}

/// What the host ordered and has no answer to.
#[derive(Default)]
struct Due {
    setups: VecDeque<u64>,
    jobs: VecDeque<(Ticket, Nanos)>,
    captures: u32,
}

fn host(input: &mut Input<'_>, pool: &Pool) {
    let (ours, theirs) = pair();
    let mut ear = HostEar::new(KEY, ours);
    let (mut due, mut now, mut numbers) = (Due::default(), Nanos(1000), 0);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        match input.below(8) {
            0 => {
                numbers += 1;
                if ear.setup(numbers) {
                    due.setups.push_back(numbers);
                }
            }
            1 => {
                numbers += 1;
                let ticket = Ticket(numbers as u32);
                if ear.job(ticket, now) {
                    due.jobs.push_back((ticket, now));
                }
            }
            2 => due.captures += u32::from(ear.capture()),
            3 => now = Nanos(now.0 + input.number() % 1_000_000),
            4 => {
                send(&theirs, input.bytes(255), pool, &[]);
            }
            _ => answer(input, &theirs, pool, &due),
        }
        while let Some(heard) = ear.hear(now) {
            match heard {
                Ok(Some(event)) => check(event, &mut due, now),
                Ok(None) => due.captures = due.captures.min(4),
                // From here on the host listens no more.
                Err(_) => return,
            }
        }
    }
    drop(theirs);
    let words = ear.last_words();
    assert!(words.len() <= 4 * 512);
}

/// A packet from the renderer, mostly one that could be right.
fn answer(input: &mut Input<'_>, socket: &OwnedFd, pool: &Pool, due: &Due) {
    let kind = [65, 66, 67, 68, 69, input.u8().into()][input.below(6)];
    let token = match kind {
        66 => due.setups.front().copied(),
        67 => due.jobs.front().map(|(ticket, _)| ticket.0.into()),
        _ => None,
    };
    let token = if input.u8() < 0xe0 { token.unwrap_or(0) } else { input.number() };
    let mut bytes = head(input, kind, token);
    bytes.extend_from_slice(input.bytes(255));
    if input.u8() >= 0xf0 {
        bytes.resize(bytes.len() + usize::from(input.u16()) % 1024, b'x');
    }
    let tag = input.u8();
    let kinds: &[u8] = if tag & 0x80 == 0 { &[] } else { input.bytes(3) };
    send(socket, &bytes, pool, kinds);
}

/// An event answers what was ordered, in order, and its times are the host's.
fn check(event: Event, due: &mut Due, now: Nanos) {
    assert_eq!(event.slice(), KEY);
    match event {
        Event::Ready { description, .. } => assert!(description.len() <= 3 * 512),
        Event::Configured { token, .. } => assert_eq!(due.setups.pop_front(), Some(token)),
        Event::Done { ticket, gpu_start, gpu_end, busy, .. } => {
            let (wanted, submitted) = due.jobs.pop_front().expect("a job was ordered");
            assert_eq!(ticket, wanted);
            assert!(submitted <= gpu_start && gpu_start <= gpu_end && gpu_end <= now);
            assert!(busy.0 <= gpu_end.0 - gpu_start.0);
        }
        Event::Image { width, height, rgba, .. } => {
            due.captures = due.captures.checked_sub(1).expect("an image was asked for");
            assert_eq!(rgba.len() as u64, 4 * u64::from(width) * u64::from(height));
        }
        Event::Lost { .. } => panic!("nobody ended it"),
    }
}

fn renderer(input: &mut Input<'_>, pool: &Pool, ear: &mut RendererEar) {
    let (ours, theirs) = pair();
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let kind = [1, 2, 3, 3, 4, input.u8().into()][input.below(6)];
        let mut bytes = head(input, kind, 0);
        if input.flag() {
            // Latched reads of 260 bytes each, and their number.
            let count = input.below(4);
            let at = bytes.len() - 8;
            bytes[at..at + 4].copy_from_slice(&(count as u32).to_ne_bytes());
            bytes.resize(bytes.len() + 260 * count, 0x11);
        }
        bytes.extend_from_slice(input.bytes(255));
        let tag = input.u8();
        let kinds: &[u8] = if tag & 0x80 == 0 { &[] } else { input.bytes(3) };
        send(&theirs, &bytes, pool, kinds);
        loop {
            match ear.hear(ours.as_fd()) {
                Order::End => break,
                Order::Setup(Ok(commands)) => assert!(commands * 8 <= bytes.len()),
                Order::Job(Some((latched, commands))) => {
                    assert_eq!(kind, 3);
                    assert!(latched * 260 + commands.unwrap_or(0) * 8 <= bytes.len());
                }
                _ => {}
            }
        }
    }
}
