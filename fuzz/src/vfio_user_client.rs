//! A hostile host: any replies to our vfio-user client.

use crate::fds::{MEMFD_SIZE, Open, Pool, send};
use crate::input::Input;
use crate::vfio_user_stream::fields;
use beamline_vfio_user::client::{Client, ClientError, ClientMapping};
use beamline_vfio_user::wire::{
    self, Header, MAX_AREAS, MAX_IO_FDS, MAX_VECTORS, PAGE_SIZE, command, header_flags,
};
use beamline_vfio_user::{DmaFlags, IrqIndex, RegionIndex};
use rustix::fs::SealFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use zerocopy::IntoBytes;

const MAX_CALLS: usize = 16;
/// Nothing is waited for: what the server says is there before it is asked, and then its end.
const TIMEOUT: Duration = Duration::from_secs(30);

thread_local! {
    static POOL: Pool = Pool::new();
}

/// Runs one client against a server that has said all it will ever say.
pub(crate) fn run(data: &[u8]) {
    POOL.with(|pool| {
        let open = Open::now();
        let (ours, theirs) = pair(data.first().is_some_and(|tag| tag & 0x80 != 0));
        let calls = say_all(&mut Input::new(data), &theirs, pool);
        theirs.shutdown(Shutdown::Write).expect("the server's half can be closed");
        if let Ok(mut client) = Client::with_timeout(ours, TIMEOUT) {
            let mut over = false;
            for call in calls {
                let result = call.make(&mut client, pool);
                if over {
                    assert!(matches!(result, Err(ClientError::Disconnected(_))), "{result:?}");
                }
                over |= matches!(
                    result,
                    Err(ClientError::Disconnected(_)
                        | ClientError::Timeout(_)
                        | ClientError::Protocol { .. })
                );
            }
        }
        drop(theirs);
        open.check();
    });
}

/// Two connected sockets. On a stream the client sees at once that more has come than the reply that is due,
/// and ends; mostly the socket keeps the replies apart, as if each had been sent after its question.
fn pair(stream: bool) -> (UnixStream, UnixStream) {
    let kind = if stream { SocketType::STREAM } else { SocketType::SEQPACKET };
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
            .expect("a socket pair can be made");
    (ours.into(), theirs.into())
}

/// A call with small arguments.
#[derive(Clone, Copy)]
struct Call {
    which: u8,
    index: u8,
    size: u8,
}

impl Call {
    /// The command whose reply comes first.
    fn command(self) -> u16 {
        match self.which {
            0 => command::DEVICE_GET_INFO,
            1 | 2 => command::DEVICE_GET_REGION_INFO,
            3 => command::DEVICE_GET_IRQ_INFO,
            4 => command::REGION_READ,
            5 => command::REGION_WRITE,
            6..=8 => command::DEVICE_SET_IRQS,
            9 => command::DMA_MAP,
            10 => command::DMA_UNMAP,
            _ => command::DEVICE_RESET,
        }
    }

    /// Makes the call, and checks what it lets through.
    fn make(self, client: &mut Client, pool: &Pool) -> Result<(), ClientError> {
        let (region, irq) = (RegionIndex(self.index.into()), IrqIndex(self.index.into()));
        let pages = u64::from(self.size) * PAGE_SIZE;
        match self.which {
            0 => {
                let info = client.device_info()?;
                assert!(info.num_regions <= 64 && info.num_irqs <= 64);
            }
            1 => {
                let info = client.region_info(region)?;
                if let Some(mapping) = info.mapping {
                    check_mapping(info.size, &mapping);
                }
            }
            2 => {
                let bells = client.region_io_fds(region)?;
                assert!(bells.len() <= MAX_IO_FDS);
                for bell in bells {
                    assert!(bell.offset.checked_add(bell.size).is_some());
                    assert!(matches!(bell.size, 0 | 1 | 2 | 4 | 8));
                }
            }
            3 => assert!(client.irq_info(irq)?.count <= MAX_VECTORS),
            4 => client.region_read(region, 0, &mut vec![0; self.size.into()])?,
            5 => client.region_write(region, 0, &vec![0; self.size.into()])?,
            6 => client.set_irqs(irq, 0, &[pool.get(0)])?,
            7 => client.clear_irqs(irq, 0, 1)?,
            8 => client.trigger_irqs(irq, 0, 1)?,
            9 => {
                let flags = DmaFlags { read: true, write: true };
                client.dma_map(0, pages, flags, pool.get(1), 0)?;
            }
            10 => client.dma_unmap(0, pages)?,
            _ => client.reset()?,
        }
        Ok(())
    }
}

fn check_mapping(region: u64, mapping: &ClientMapping) {
    assert!((1..=MAX_AREAS).contains(&mapping.areas.len()));
    assert!(mapping.fd_offset.is_multiple_of(PAGE_SIZE));
    let seals = rustix::fs::fcntl_get_seals(&mapping.fd).expect("it is a memfd");
    assert!(seals.contains(SealFlags::SHRINK));
    assert!(!mapping.write || !seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE));
    let mut areas = mapping.areas.clone();
    areas.sort_by_key(|area| area.offset);
    let mut last = 0;
    for area in areas {
        assert!(area.offset >= last && area.size > 0);
        assert!(area.offset.is_multiple_of(PAGE_SIZE) && area.size.is_multiple_of(PAGE_SIZE));
        last = area.offset.checked_add(area.size).expect("an area does not wrap");
    }
    assert!(last <= region && mapping.fd_offset + last <= MEMFD_SIZE);
}

/// Writes the replies to a version and to some calls, right or wrong, and gives the calls.
fn say_all(input: &mut Input<'_>, socket: &UnixStream, pool: &Pool) -> Vec<Call> {
    let mut id = 1;
    let body: &[u8] = match input.below(4) {
        0 => b"\0\0\x01\0{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":4096}}\0",
        1 => b"\0\0\0\0",
        2 => b"\0\0\0\0{\"capabilities\":{\"max_data_xfer_size\":8}}\0",
        _ => input.bytes(255),
    };
    say(input, socket, pool, &mut id, command::VERSION, body);
    let mut calls = Vec::new();
    while !input.is_empty() && calls.len() < MAX_CALLS {
        // Nothing is asked of a server for no bytes, so that its end does not show.
        let size = input.u8().max(1);
        let call = Call { which: input.below(12) as u8, index: input.u8(), size };
        calls.push(call);
        reply(input, socket, pool, &mut id, call.command());
        if call.which == 2 {
            reply(input, socket, pool, &mut id, command::DEVICE_GET_REGION_IO_FDS);
        }
    }
    calls
}

fn reply(input: &mut Input<'_>, socket: &UnixStream, pool: &Pool, id: &mut u16, number: u16) {
    let mut body = match number {
        command::DMA_MAP | command::DEVICE_SET_IRQS => Vec::new(),
        _ => fields(input, number),
    };
    match (number, input.below(4)) {
        // Capabilities, or doorbells: whole structures of plausible numbers.
        (command::DEVICE_GET_REGION_INFO, 1) => {
            let areas = input.below(5);
            body.extend_from_slice(&[1, 0, 1, 0, 0, 0, 0, 0]);
            body.extend_from_slice(&(areas as u64).to_ne_bytes());
            (0..2 * areas).for_each(|_| body.extend_from_slice(&input.number().to_ne_bytes()));
            fix_size(&mut body);
        }
        (command::DEVICE_GET_REGION_IO_FDS, 1) => {
            let count = input.below(5);
            for _ in 0..count {
                for width in [8, 8, 4, 4, 4, 4, 8] {
                    body.extend_from_slice(&input.number().to_ne_bytes()[..width]);
                }
            }
            body[12..16].copy_from_slice(&(count as u32).to_ne_bytes());
            fix_size(&mut body);
        }
        (_, 2) => body.extend_from_slice(input.bytes(255)),
        _ => {}
    }
    say(input, socket, pool, id, number, &body);
}

/// `argsz` is the payload's bytes.
fn fix_size(body: &mut [u8]) {
    let size = body.len() as u32;
    body[..4].copy_from_slice(&size.to_ne_bytes());
}

/// One message, whose header is right unless the input says otherwise.
fn say(
    input: &mut Input<'_>,
    socket: &UnixStream,
    pool: &Pool,
    id: &mut u16,
    number: u16,
    body: &[u8],
) {
    let size = (size_of::<Header>() + body.len()) as u32;
    let mut header =
        Header { id: *id, command: number, size, flags: header_flags::REPLY, error: 0 };
    *id += 1;
    let mut body = body;
    let tweak = input.u8();
    let kinds: &[u8] = if tweak & 0x80 != 0 { input.bytes(crate::fds::MOST) } else { &[] };
    match tweak & 0x7f {
        0x40 => header.id = input.u16(),
        0x41 => header.command = input.number16(),
        0x42 => header.flags = input.number32(),
        0x43 => header.size = input.number32(),
        0x44 => {
            (header.flags, header.error) =
                (header_flags::REPLY | header_flags::ERROR, input.number32());
            (header.size, body) = (wire::size::<Header>(), &[]);
        }
        _ => {}
    }
    send(socket, &[header.as_bytes(), body].concat(), pool, kinds);
}
