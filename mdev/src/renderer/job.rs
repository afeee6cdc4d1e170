//! Stage 5, GPU: inside a renderer, from a job's packet to the end of its work on the GPU.

use super::device::{Device, Span, now};
use super::resources::{Change, Image, Table};
use super::stream::{Command, Stream};
use crate::backend::Latched;
use beamline_abi::Reason;
use beamline_abi::frame::SubmitKind;
use std::sync::Arc;
use wgpu::{CommandBuffer, CommandEncoderDescriptor, ComputePassDescriptor};

/// Runs the jobs of one slice, one at a time.
pub(crate) struct Executor {
    gpu: Arc<Device>,
    table: Table,
    presented: Option<Image>,
}

impl Executor {
    pub(crate) fn new(gpu: Arc<Device>) -> Self {
        Self { gpu, table: Table::default(), presented: None }
    }

    /// Takes over what a setup made.
    pub(crate) fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.table.apply(change);
        }
    }

    /// The image presented last.
    pub(crate) fn presented(&self) -> Option<&Image> {
        self.presented.as_ref()
    }

    /// Runs a job and waits for its end.
    pub(crate) fn run(&mut self, stream: &[u8], latched: &[Latched]) -> (Span, Result<(), Reason>) {
        let (commands, present) = match self.encode(stream, latched) {
            Ok(encoded) => encoded,
            Err(reason) => {
                // What wgpu said on the way belongs to this job and not to the next.
                let _ = self.gpu.fault();
                return (Span::none(now()), Err(reason));
            }
        };
        let gpu = &self.gpu;
        let submitted = now();
        let submission = gpu.queue.submit([commands]);
        if let Some(timer) = gpu.timer() {
            timer.map();
        }
        let waited = gpu.wait(submission);
        let notified = now();
        let span = match gpu.timer() {
            Some(timer) => timer.read(submitted, notified),
            None => super::device::place(None, 1.0, submitted, notified),
        };
        let result = waited.and_then(|()| gpu.fault());
        if result.is_ok() && present.is_some() {
            self.presented = present;
        }
        (span, result)
    }

    fn encode(
        &mut self,
        stream: &[u8],
        latched: &[Latched],
    ) -> Result<(CommandBuffer, Option<Image>), Reason> {
        let gpu = &self.gpu;
        let mut encoder =
            gpu.handle.create_command_encoder(&CommandEncoderDescriptor { label: None });
        let mut present = None;
        {
            let mut pass = encoder.begin_compute_pass(&ComputePassDescriptor {
                label: None,
                timestamp_writes: gpu.timer().map(super::device::Timer::writes),
            });
            for (index, command) in Stream::open(stream, SubmitKind::Job)?.enumerate() {
                match command? {
                    Command::Write { id, offset, data } => {
                        let buffer = self.table.buffer(id, offset, data.len())?;
                        gpu.queue.write_buffer(buffer, offset, data);
                    }
                    Command::Latch(latch) => {
                        let data = latched_bytes(latched, index, latch.len)?;
                        let buffer = self.table.buffer(latch.id, latch.offset, data.len())?;
                        gpu.queue.write_buffer(buffer, latch.offset, data);
                    }
                    Command::Dispatch { pipeline, groups: [x, y, z], bindings } => {
                        let (pipeline, group) =
                            self.table.pipeline(&gpu.handle, pipeline, &bindings)?;
                        pass.set_pipeline(&pipeline);
                        if group.is_some() {
                            pass.set_bind_group(0, group.as_ref(), &[]);
                        }
                        pass.dispatch_workgroups(x, y, z);
                    }
                    Command::Present(body) => {
                        present = Some(self.table.image(body.image)?.clone());
                    }
                    _ => return Err(Reason::Malformed),
                }
            }
        }
        if let Some(timer) = gpu.timer() {
            timer.resolve(&mut encoder);
        }
        let commands = encoder.finish();
        // What wgpu found wrong shows here; such commands must not be submitted.
        gpu.fault()?;
        Ok((commands, present))
    }
}

/// What was read for the command at `index`, which wants `len` bytes.
fn latched_bytes(latched: &[Latched], index: usize, len: u32) -> Result<&[u8], Reason> {
    let found = latched
        .iter()
        .find(|one| usize::from(one.command) == index && u32::from(one.len) == len)
        .ok_or(Reason::Malformed)?;
    found.data.get(..usize::from(found.len)).ok_or(Reason::Malformed)
}
