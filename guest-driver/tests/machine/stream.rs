//! Reads a command stream back, written from the layouts alone.

use beamline_abi::frame::{
    Binding, CommandHeader, CreateBuffer, CreateImage, CreatePipeline, Destroy, Dispatch, Latch,
    MAGIC, Op, Present, SubmitHeader, SubmitKind, VERSION, WriteBuffer,
};
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// A command with its tail.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Command {
    Buffer(CreateBuffer),
    Image(CreateImage),
    Pipeline { id: u32, entry: String, wgsl: String },
    Destroy(Destroy),
    Write { id: u32, offset: u64, bytes: Vec<u8> },
    Latch(Latch),
    Dispatch { pipeline: u32, groups: [u32; 3], bindings: Vec<Binding> },
    Present(Present),
}

/// The header and the commands; `None` for anything that is not exactly what the layouts say.
pub(crate) fn decode(bytes: &[u8]) -> Option<(SubmitHeader, Vec<Command>)> {
    let (header, mut rest) = SubmitHeader::read_from_prefix(bytes).ok()?;
    let known = header.magic == MAGIC && header.version == VERSION;
    SubmitKind::from_raw(header.kind).filter(|_| known && header.bytes as usize == rest.len())?;
    let mut commands = Vec::new();
    while !rest.is_empty() {
        let (head, _) = CommandHeader::read_from_prefix(rest).ok()?;
        let len = Some(head.len as usize).filter(|n| n.is_multiple_of(8) && *n >= 8)?;
        let body = rest.get(8..len)?;
        rest = rest.get(len..)?;
        commands.push(command(Op::from_raw(head.op)?, body)?);
    }
    (commands.len() == header.commands as usize).then_some((header, commands))
}

fn split<T: FromBytes + KnownLayout + Immutable>(body: &[u8]) -> Option<(T, &[u8])> {
    T::read_from_prefix(body).ok()
}

/// A tail with less than 8 bytes of padding, all zero.
fn tail(rest: &[u8], len: usize) -> Option<&[u8]> {
    let (tail, padding) = rest.split_at_checked(len)?;
    (padding.len() < 8 && padding.iter().all(|b| *b == 0)).then_some(tail)
}

fn command(op: Op, body: &[u8]) -> Option<Command> {
    Some(match op {
        Op::CreateBuffer => Command::Buffer(CreateBuffer::read_from_bytes(body).ok()?),
        Op::CreateImage => Command::Image(CreateImage::read_from_bytes(body).ok()?),
        Op::CreatePipeline => {
            let (c, rest) = split::<CreatePipeline>(body)?;
            let text = tail(rest, (c.entry_len + c.wgsl_len) as usize)?;
            let text = String::from_utf8(text.to_vec()).ok()?;
            let (entry, wgsl) = text.split_at_checked(c.entry_len as usize)?;
            Command::Pipeline { id: c.id, entry: entry.into(), wgsl: wgsl.into() }
        }
        Op::Destroy => Command::Destroy(Destroy::read_from_bytes(body).ok()?),
        Op::WriteBuffer => {
            let (c, rest) = split::<WriteBuffer>(body)?;
            let bytes = tail(rest, c.len as usize)?.to_vec();
            Command::Write { id: c.id, offset: c.offset, bytes }
        }
        Op::Latch => Command::Latch(Latch::read_from_bytes(body).ok()?),
        Op::Dispatch => {
            let (c, rest) = split::<Dispatch>(body)?;
            let bindings = tail(rest, 8 * c.bindings as usize)?
                .chunks_exact(8)
                .map(|b| Binding::read_from_bytes(b).ok())
                .collect::<Option<_>>()?;
            Command::Dispatch { pipeline: c.pipeline, groups: c.groups, bindings }
        }
        Op::Present => Command::Present(Present::read_from_bytes(body).ok()?),
    })
}
