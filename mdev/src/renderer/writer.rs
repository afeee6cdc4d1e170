//! Writes command streams: for the renderer's warm-up and for tests.

use beamline_abi::frame::{
    Binding, CommandHeader, Dispatch, MAGIC, Op, SubmitHeader, SubmitKind, VERSION, WriteBuffer,
    pad8,
};
#[cfg(test)]
use beamline_abi::frame::{CreateBuffer, CreateImage, CreatePipeline, Destroy, Latch, Present};
use zerocopy::{Immutable, IntoBytes};

/// A stream in the making.
pub(crate) struct Writer {
    kind: SubmitKind,
    commands: u32,
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn new(kind: SubmitKind) -> Self {
        Self { kind, commands: 0, bytes: Vec::new() }
    }

    fn command<T: IntoBytes + Immutable>(mut self, op: Op, body: &T, tail: &[&[u8]]) -> Self {
        let tail_len: usize = tail.iter().map(|part| part.len()).sum();
        let len = pad8(size_of::<CommandHeader>() + size_of::<T>() + tail_len);
        let end = self.bytes.len() + len;
        let head = CommandHeader { op: op as u32, len: len as u32 };
        self.bytes.extend_from_slice(head.as_bytes());
        self.bytes.extend_from_slice(body.as_bytes());
        for part in tail {
            self.bytes.extend_from_slice(part);
        }
        self.bytes.resize(end, 0);
        self.commands += 1;
        self
    }

    #[cfg(test)]
    pub(crate) fn buffer(self, id: u32, size: u64) -> Self {
        let body = CreateBuffer { id, size, ..CreateBuffer::default() };
        self.command(Op::CreateBuffer, &body, &[])
    }

    #[cfg(test)]
    pub(crate) fn image(self, id: u32, width: u32, height: u32) -> Self {
        let body = CreateImage { id, format: 0, width, height };
        self.command(Op::CreateImage, &body, &[])
    }

    #[cfg(test)]
    pub(crate) fn pipeline(self, id: u32, entry: &str, wgsl: &str) -> Self {
        let body = CreatePipeline {
            id,
            entry_len: entry.len() as u32,
            wgsl_len: wgsl.len() as u32,
            reserved: 0,
        };
        self.command(Op::CreatePipeline, &body, &[entry.as_bytes(), wgsl.as_bytes()])
    }

    #[cfg(test)]
    pub(crate) fn destroy(self, id: u32) -> Self {
        self.command(Op::Destroy, &Destroy { id, reserved: 0 }, &[])
    }

    pub(crate) fn write(self, id: u32, offset: u64, data: &[u8]) -> Self {
        let body = WriteBuffer { id, len: data.len() as u32, offset };
        self.command(Op::WriteBuffer, &body, &[data])
    }

    #[cfg(test)]
    pub(crate) fn latch(self, id: u32, offset: u64, len: u32) -> Self {
        let body = Latch { id, len, offset, addr: 0 };
        self.command(Op::Latch, &body, &[])
    }

    pub(crate) fn dispatch(self, pipeline: u32, groups: [u32; 3], bindings: &[(u32, u32)]) -> Self {
        let body = Dispatch { pipeline, groups, bindings: bindings.len() as u32, reserved: 0 };
        let bindings: Vec<Binding> =
            bindings.iter().map(|&(slot, id)| Binding { slot, id }).collect();
        self.command(Op::Dispatch, &body, &[bindings.as_bytes()])
    }

    #[cfg(test)]
    pub(crate) fn present(self, image: u32) -> Self {
        self.command(Op::Present, &Present { image, scanout: 0 }, &[])
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        let header = SubmitHeader {
            magic: MAGIC,
            version: VERSION,
            kind: self.kind as u16,
            commands: self.commands,
            bytes: self.bytes.len() as u32,
            ..SubmitHeader::default()
        };
        let mut all = header.as_bytes().to_vec();
        all.extend_from_slice(&self.bytes);
        all
    }
}
