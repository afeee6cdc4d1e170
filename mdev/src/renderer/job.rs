//! Stage 5, GPU: inside a renderer, from a job's packet to the end of its work on the GPU.

use super::device::{Device, Span, Timer, now};
use super::resources::{Change, Image, Table};
use super::stream::{Command, Stream};
use crate::backend::Latched;
use beamline_abi::frame::SubmitKind;
use beamline_abi::{Nanos, Reason};
use std::sync::Arc;
use wgpu::{CommandBuffer, CommandEncoderDescriptor, ComputePassDescriptor, SubmissionIndex};

/// Gives the jobs of one slice to the GPU, in their order.
pub(crate) struct Executor {
    gpu: Arc<Device>,
    table: Table,
    presented: Option<Image>,
}

/// A job on the GPU, or one that did not get there.
pub(crate) struct Flight {
    submission: Option<SubmissionIndex>,
    submitted: Nanos,
    result: Result<(), Reason>,
    timer: Timer,
}

impl Flight {
    /// Waits for the job's end: when it ran, what became of it, and the timer for another job. `free`: when
    /// the one before it was done; then, when this one was. Any thread may wait while another one submits.
    pub(crate) fn land(self, gpu: &Device, free: &mut Nanos) -> (Span, Result<(), Reason>, Timer) {
        let Self { submission, submitted, result, timer } = self;
        let Some(submission) = submission else { return (Span::none(submitted), result, timer) };
        let waited = gpu.wait(submission);
        let notified = now();
        let span = timer.read(submitted, *free, notified);
        *free = notified;
        (span, result.and(waited), timer)
    }
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

    /// The image presented last. The job that draws it may still be on the GPU: what is submitted from now
    /// on runs behind it.
    pub(crate) fn presented(&self) -> Option<&Image> {
        self.presented.as_ref()
    }

    /// Gives a job to the GPU, behind those that are there.
    pub(crate) fn submit(&mut self, stream: &[u8], latched: &[Latched], timer: Timer) -> Flight {
        let (commands, present) = match self.encode(stream, latched, &timer) {
            Ok(encoded) => encoded,
            Err(reason) => {
                // What wgpu said on the way belongs to this job and not to the next.
                let _ = self.gpu.fault();
                let result = Err(reason);
                return Flight { submission: None, submitted: now(), result, timer };
            }
        };
        let gpu = &self.gpu;
        let submitted = now();
        let submission = Some(gpu.queue.submit([commands]));
        timer.map();
        // Looked at here and not after the wait: by then another job may be the one at fault.
        let result = gpu.fault();
        if result.is_ok() && present.is_some() {
            self.presented = present;
        }
        Flight { submission, submitted, result, timer }
    }

    fn encode(
        &mut self,
        stream: &[u8],
        latched: &[Latched],
        timer: &Timer,
    ) -> Result<(CommandBuffer, Option<Image>), Reason> {
        let gpu = &self.gpu;
        let mut encoder =
            gpu.handle.create_command_encoder(&CommandEncoderDescriptor { label: None });
        let mut present = None;
        {
            let mut pass = encoder.begin_compute_pass(&ComputePassDescriptor {
                label: None,
                timestamp_writes: timer.writes(),
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
        timer.resolve(&mut encoder);
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
