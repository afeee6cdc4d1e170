//! Reads the frame context's command streams, believing nothing they say.

use beamline_abi::Reason;
use beamline_abi::frame::{
    Binding, CommandHeader, CreateBuffer, CreateImage, CreatePipeline, Destroy, Dispatch, Latch,
    MAGIC, MAX_BINDINGS, MAX_COMMANDS, MAX_ENTRY_BYTES, MAX_IMAGE_SIDE, MAX_LATCH_BYTES,
    MAX_WGSL_BYTES, Op, Present, SubmitHeader, SubmitKind, VERSION, WriteBuffer,
};
use std::str;
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// The bindings of one dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bindings {
    all: [Binding; MAX_BINDINGS],
    len: usize,
}

impl Bindings {
    pub(crate) fn as_slice(&self) -> &[Binding] {
        &self.all[..self.len]
    }

    fn read(count: u32, mut bytes: &[u8]) -> Option<Self> {
        let len = usize::try_from(count).ok().filter(|&n| n <= MAX_BINDINGS)?;
        let mut all = [Binding::default(); MAX_BINDINGS];
        for binding in &mut all[..len] {
            (*binding, bytes) = Binding::read_from_prefix(bytes).ok()?;
        }
        Some(Self { all, len })
    }
}

/// A command whose fields are in range; its IDs and offsets are not checked.
#[derive(Debug)]
pub(crate) enum Command<'a> {
    CreateBuffer(CreateBuffer),
    CreateImage(CreateImage),
    CreatePipeline { id: u32, entry: &'a str, wgsl: &'a str },
    Destroy(Destroy),
    Write { id: u32, offset: u64, data: &'a [u8] },
    Latch(Latch),
    Dispatch { pipeline: u32, groups: [u32; 3], bindings: Bindings },
    Present(Present),
}

/// The commands of one submission. Ends after the first error.
pub(crate) struct Stream<'a> {
    kind: SubmitKind,
    left: u32,
    bytes: &'a [u8],
}

impl<'a> Stream<'a> {
    /// Checks the header; the submission must be of this kind.
    pub(crate) fn open(bytes: &'a [u8], kind: SubmitKind) -> Result<Self, Reason> {
        let (header, rest) =
            SubmitHeader::read_from_prefix(bytes).map_err(|_| Reason::Malformed)?;
        if header.magic != MAGIC || header.version != VERSION {
            return Err(Reason::Unsupported);
        }
        let commands = usize::try_from(header.commands).map_err(|_| Reason::Malformed)?;
        if SubmitKind::from_raw(header.kind) != Some(kind)
            || commands > MAX_COMMANDS
            || usize::try_from(header.bytes) != Ok(rest.len())
        {
            return Err(Reason::Malformed);
        }
        Ok(Self { kind, left: header.commands, bytes: rest })
    }

    fn command(&mut self) -> Result<Command<'a>, Reason> {
        let head = CommandHeader::read_from_prefix(self.bytes).map_err(|_| Reason::Malformed)?;
        let len = usize::try_from(head.0.len).map_err(|_| Reason::Malformed)?;
        if len < size_of::<CommandHeader>() || !len.is_multiple_of(8) {
            return Err(Reason::Malformed);
        }
        let (command, rest) = self.bytes.split_at_checked(len).ok_or(Reason::Malformed)?;
        self.bytes = rest;
        let op = Op::from_raw(head.0.op).ok_or(Reason::Unsupported)?;
        let setup =
            matches!(op, Op::CreateBuffer | Op::CreateImage | Op::CreatePipeline | Op::Destroy);
        if setup != (self.kind == SubmitKind::Setup) {
            return Err(Reason::Malformed);
        }
        decode(op, &command[size_of::<CommandHeader>()..]).ok_or(Reason::Malformed)
    }
}

impl<'a> Iterator for Stream<'a> {
    type Item = Result<Command<'a>, Reason>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            if self.bytes.is_empty() {
                return None;
            }
            self.bytes = &[];
            return Some(Err(Reason::Malformed));
        }
        self.left -= 1;
        let command = self.command();
        if command.is_err() {
            self.left = 0;
            self.bytes = &[];
        }
        Some(command)
    }
}

fn body<T: FromBytes + KnownLayout + Immutable>(bytes: &[u8]) -> Option<(T, &[u8])> {
    T::read_from_prefix(bytes).ok()
}

fn decode(op: Op, bytes: &[u8]) -> Option<Command<'_>> {
    Some(match op {
        Op::CreateBuffer => {
            let (body, _) = body::<CreateBuffer>(bytes)?;
            (body.size > 0 && body.size.is_multiple_of(16))
                .then_some(Command::CreateBuffer(body))?
        }
        Op::CreateImage => {
            let (body, _) = body::<CreateImage>(bytes)?;
            let sides = 1..=MAX_IMAGE_SIDE;
            let known = body.format == 0;
            (known && sides.contains(&body.width) && sides.contains(&body.height))
                .then_some(Command::CreateImage(body))?
        }
        Op::CreatePipeline => decode_pipeline(bytes)?,
        Op::Destroy => Command::Destroy(body(bytes)?.0),
        Op::WriteBuffer => {
            let (body, rest) = body::<WriteBuffer>(bytes)?;
            let data = rest.get(..usize::try_from(body.len).ok()?)?;
            let whole = body.len > 0 && body.len.is_multiple_of(4);
            (whole && body.offset.is_multiple_of(4)).then_some(Command::Write {
                id: body.id,
                offset: body.offset,
                data,
            })?
        }
        Op::Latch => {
            let (body, _) = body::<Latch>(bytes)?;
            let fits = body.len as usize <= MAX_LATCH_BYTES;
            let whole = body.len > 0 && body.len.is_multiple_of(4);
            (fits && whole && body.offset.is_multiple_of(4)).then_some(Command::Latch(body))?
        }
        Op::Dispatch => {
            let (body, rest) = body::<Dispatch>(bytes)?;
            let bindings = Bindings::read(body.bindings, rest)?;
            let in_range = body.groups.iter().all(|n| (1..=65_535).contains(n));
            in_range.then_some(Command::Dispatch {
                pipeline: body.pipeline,
                groups: body.groups,
                bindings,
            })?
        }
        Op::Present => {
            let (body, _) = body::<Present>(bytes)?;
            (body.scanout == 0).then_some(Command::Present(body))?
        }
    })
}

fn decode_pipeline(bytes: &[u8]) -> Option<Command<'_>> {
    let (body, rest) = body::<CreatePipeline>(bytes)?;
    let entry_len = usize::try_from(body.entry_len).ok()?;
    let wgsl_len = usize::try_from(body.wgsl_len).ok()?;
    if !(1..=MAX_ENTRY_BYTES).contains(&entry_len) || !(1..=MAX_WGSL_BYTES).contains(&wgsl_len) {
        return None;
    }
    let (entry, rest) = rest.split_at_checked(entry_len)?;
    Some(Command::CreatePipeline {
        id: body.id,
        entry: str::from_utf8(entry).ok()?,
        wgsl: str::from_utf8(rest.get(..wgsl_len)?).ok()?,
    })
}
