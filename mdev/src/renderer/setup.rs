//! The setup thread of a renderer: makes resources and reads images back, beside the jobs.

use super::RendererError;
use super::device::Device;
use super::message::{Head, Kind, send};
use super::resources::{Change, Image, Pipeline, Resource};
use super::stream::{Command, Stream};
use super::{capture, warm};
use crate::backend::{MAX_QUEUED_SETUPS, SliceLimits};
use beamline_abi::Reason;
use beamline_abi::frame::SubmitKind;
use rustix::fd::{AsFd, OwnedFd};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::thread;
use wgpu::{
    BufferDescriptor, BufferUsages, CommandEncoderDescriptor, ComputePipelineDescriptor, Extent3d,
    ImageSubresourceRange, ShaderModuleDescriptor, ShaderSource, TextureDescriptor,
    TextureDimension, TextureFormat, TextureUsages,
};

/// Orders that may wait for the thread: all that the host may have open, and its captures.
const QUEUE: usize = MAX_QUEUED_SETUPS + 16;
/// WGSL is parsed by recursion; wgpu bounds its depth but wants more room than a thread's default.
const STACK_BYTES: usize = 32 << 20;

/// What the thread does.
pub(crate) enum Order {
    /// Runs a setup stream and answers `Configured`.
    Setup { token: u64, stream: Vec<u8> },
    /// Reads an image back and answers `Image`.
    Capture(Option<Image>),
}

/// What a resource counts against the slice's memory, in bytes.
type Ledger = HashMap<u32, u64>;

pub(crate) struct Setup {
    gpu: Arc<Device>,
    limits: SliceLimits,
    ledger: Ledger,
    changes: Sender<Vec<Change>>,
    socket: OwnedFd,
}

impl Setup {
    /// Starts the thread. It ends when the returned sender is dropped, or the host is gone.
    pub(crate) fn start(
        gpu: Arc<Device>,
        limits: SliceLimits,
        changes: Sender<Vec<Change>>,
        socket: OwnedFd,
    ) -> Result<SyncSender<Order>, RendererError> {
        let (orders, queue) = sync_channel(QUEUE);
        let mut setup = Self { gpu, limits, ledger: Ledger::new(), changes, socket };
        thread::Builder::new()
            .name("setup".into())
            .stack_size(STACK_BYTES)
            .spawn(move || setup.run(&queue))
            .map_err(RendererError::Thread)?;
        Ok(orders)
    }

    fn run(&mut self, queue: &Receiver<Order>) {
        for order in queue {
            let going_on = match order {
                Order::Setup { token, stream } => self.setup(token, &stream),
                Order::Capture(image) => self.capture(image.as_ref()),
            };
            if !going_on {
                break;
            }
        }
    }

    /// Whether the host is still there.
    fn setup(&mut self, token: u64, stream: &[u8]) -> bool {
        let mut batch = Batch {
            gpu: &self.gpu,
            limits: self.limits,
            ledger: self.ledger.clone(),
            changes: Vec::new(),
        };
        let result = batch.run(stream);
        if result.is_ok() {
            let Batch { ledger, changes, .. } = batch;
            self.ledger = ledger;
            // Before the answer: the job thread takes changes over before each job.
            if self.changes.send(changes).is_err() {
                return false;
            }
        }
        let head = Head::token(Kind::Configured, token).result(result);
        send(self.socket.as_fd(), &head, [&[], &[]], None, true).is_ok()
    }

    fn capture(&self, image: Option<&Image>) -> bool {
        let pixels = image.and_then(|image| Some((image, capture::read(&self.gpu, image)?)));
        let mut head = Head::new(Kind::Image);
        let fd = pixels.as_ref().map(|(image, fd)| {
            (head.width, head.height) = (image.width, image.height);
            fd.as_fd()
        });
        send(self.socket.as_fd(), &head, [&[], &[]], fd, true).is_ok()
    }
}

/// One setup stream: all of it takes effect, or nothing.
struct Batch<'a> {
    gpu: &'a Device,
    limits: SliceLimits,
    ledger: Ledger,
    changes: Vec<Change>,
}

impl Batch<'_> {
    fn run(&mut self, stream: &[u8]) -> Result<(), Reason> {
        for command in Stream::open(stream, SubmitKind::Setup)? {
            match command? {
                Command::CreateBuffer(body) => {
                    self.account(body.id, body.size)?;
                    let buffer = create_buffer(self.gpu, body.size)?;
                    self.changes.push(Change::Add(body.id, Resource::Buffer(buffer)));
                }
                Command::CreateImage(body) => {
                    let bytes = 4 * u64::from(body.width) * u64::from(body.height);
                    self.account(body.id, bytes)?;
                    let image = create_image(self.gpu, body.width, body.height)?;
                    self.changes.push(Change::Add(body.id, Resource::Image(image)));
                }
                Command::CreatePipeline { id, entry, wgsl } => {
                    self.account(id, 0)?;
                    let pipeline = create_pipeline(self.gpu, entry, wgsl)?;
                    self.changes.push(Change::Add(id, Resource::Pipeline(Box::new(pipeline))));
                }
                Command::Destroy(body) => {
                    self.ledger.remove(&body.id).ok_or(Reason::BadId)?;
                    self.changes.push(Change::Remove(body.id));
                }
                _ => return Err(Reason::Malformed),
            }
        }
        Ok(())
    }

    /// Takes an ID and memory from the slice's limits.
    fn account(&mut self, id: u32, bytes: u64) -> Result<(), Reason> {
        if id == 0 || self.ledger.contains_key(&id) {
            return Err(Reason::BadId);
        }
        // No sum of these can overflow: each entry is below the limit it passed.
        let used: u64 = self.ledger.values().sum();
        let fits = used.checked_add(bytes).is_some_and(|all| all <= self.limits.memory);
        if id >= self.limits.max_resources || !fits {
            return Err(Reason::Quota);
        }
        self.ledger.insert(id, bytes);
        Ok(())
    }
}

/// A buffer of zeros. They are written here so that the first job that uses it does not pay for them.
pub(crate) fn create_buffer(gpu: &Device, size: u64) -> Result<wgpu::Buffer, Reason> {
    if size > gpu.handle.limits().max_buffer_size {
        return Err(Reason::Quota);
    }
    gpu.scoped(|| {
        let buffer = gpu.handle.create_buffer(&BufferDescriptor {
            label: None,
            size,
            usage: BufferUsages::STORAGE
                | BufferUsages::UNIFORM
                | BufferUsages::COPY_DST
                | BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let mut encoder =
            gpu.handle.create_command_encoder(&CommandEncoderDescriptor { label: None });
        encoder.clear_buffer(&buffer, 0, None);
        (buffer, gpu.queue.submit([encoder.finish()]))
    })
    .and_then(|(buffer, done)| gpu.wait(done).map(|()| buffer))
}

/// A transparent black image, cleared here for the same reason.
pub(crate) fn create_image(gpu: &Device, width: u32, height: u32) -> Result<Image, Reason> {
    gpu.scoped(|| {
        let texture = gpu.handle.create_texture(&TextureDescriptor {
            label: None,
            size: Extent3d { width, height, depth_or_array_layers: 1 },
            mip_level_count: 1,
            sample_count: 1,
            dimension: TextureDimension::D2,
            format: TextureFormat::Rgba8Unorm,
            usage: TextureUsages::STORAGE_BINDING
                | TextureUsages::TEXTURE_BINDING
                | TextureUsages::COPY_SRC
                | TextureUsages::COPY_DST,
            view_formats: &[],
        });
        let view = texture.create_view(&wgpu::TextureViewDescriptor::default());
        let mut encoder =
            gpu.handle.create_command_encoder(&CommandEncoderDescriptor { label: None });
        if gpu.handle.features().contains(wgpu::Features::CLEAR_TEXTURE) {
            encoder.clear_texture(&texture, &ImageSubresourceRange::default());
        }
        let done = gpu.queue.submit([encoder.finish()]);
        let image = Image { texture, view, width, height };
        (image, done)
    })
    .and_then(|(image, done)| gpu.wait(done).map(|()| image))
}

/// A pipeline that has run once, so that its first job does not wait for a compiler.
pub(crate) fn create_pipeline(gpu: &Device, entry: &str, wgsl: &str) -> Result<Pipeline, Reason> {
    let pipeline = gpu
        .scoped(|| {
            let module = gpu.handle.create_shader_module(ShaderModuleDescriptor {
                label: None,
                source: ShaderSource::Wgsl(wgsl.into()),
            });
            gpu.handle.create_compute_pipeline(&ComputePipelineDescriptor {
                label: None,
                layout: None,
                module: &module,
                entry_point: Some(entry),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                cache: None,
            })
        })
        .map_err(|reason| match reason {
            Reason::DeviceLost => Reason::DeviceLost,
            _ => Reason::Shader,
        })?;
    // An error here only says that the shader binds nothing.
    let layout = gpu.scoped(|| pipeline.get_bind_group_layout(0)).ok();
    let pipeline = Pipeline::new(pipeline, layout);
    warm::pipeline(gpu, &pipeline, wgsl);
    Ok(pipeline)
}
