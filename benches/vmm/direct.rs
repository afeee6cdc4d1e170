//! A host process that submits frames straight to wgpu: what a guest's throughput is held against.
//!
//! It draws what the guest's scene `flood` draws, by the same shader, and keeps as many frames on the GPU as the
//! guest keeps in its queue: it never waits for one before it has submitted the next. It is a process of its own,
//! because a software GPU takes its number of threads from the environment.

use super::throughput::{DEPTH, HEIGHT, WIDTH};
use anyhow::{Context, bail, ensure};
use beamline_mdev::host::threads::{Placement, Role, pin};
use std::collections::VecDeque;
use std::path::Path;
use std::pin::pin as pinned;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::{Duration, Instant};

/// The argument that makes this program such a process.
const ROLE: &str = "direct";
/// Frames before those that count: the shader is translated meanwhile.
const WARM_UP: u32 = 20;
/// The scene's shader.
const SHADER: &str = include_str!("../../guest-driver/src/scene/flood.wgsl");

/// Frames per second at `cost`, over `length`, on these CPUs: host and renderer.
pub(crate) fn measure(cost: u32, length: Duration, cpus: [usize; 2]) -> anyhow::Result<f64> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let words = [cost as usize, length.as_millis() as usize, cpus[0], cpus[1]];
    let out = Command::new(program)
        .args(["--bench", ROLE])
        .args(words.map(|n| n.to_string()))
        // As the host starts its renderers.
        .env("LP_NUM_THREADS", "1")
        .env("MESA_SHADER_CACHE_DISABLE", "true")
        .env("NODEVICE_SELECT", "1")
        .env_remove("DISPLAY")
        .env_remove("WAYLAND_DISPLAY")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("a process that draws")?;
    ensure!(out.status.success(), "the process that draws failed");
    let text = String::from_utf8_lossy(&out.stdout);
    text.trim().parse().with_context(|| format!("the process that draws said {text:?}"))
}

/// Whether this program was started as such a process: then it draws, and prints frames per second.
pub(crate) fn is_role() -> Option<anyhow::Result<()>> {
    let mut words = std::env::args().skip_while(|word| word != ROLE);
    words.next()?;
    let numbers: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
    let &[cost, millis, host, render] = &numbers[..] else { return None };
    let cpus = [host as usize, render as usize];
    Some(draw(cost as u32, Duration::from_millis(millis), cpus).map(|rate| println!("{rate}")))
}

/// The value of a future that does not wait: all of wgpu's are such on Vulkan.
fn at_once<F: Future>(future: F) -> anyhow::Result<F::Output> {
    match pinned!(future).poll(&mut TaskContext::from_waker(Waker::noop())) {
        Poll::Ready(value) => Ok(value),
        Poll::Pending => bail!("wgpu does not answer at once"),
    }
}

/// Whether there is anything to draw on.
pub(crate) fn has_gpu(beamline: &Path) -> bool {
    let out = Command::new(beamline).arg("adapters").env("NODEVICE_SELECT", "1").output();
    out.is_ok_and(|out| {
        serde_json::from_slice::<Vec<String>>(&out.stdout).is_ok_and(|names| !names.is_empty())
    })
}

fn draw(cost: u32, length: Duration, [host, render]: [usize; 2]) -> anyhow::Result<f64> {
    // The software GPU's thread stays where it was started.
    pin(&[render]).context("pinning")?;
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN;
    let instance = wgpu::Instance::new(descriptor);
    let adapter = at_once(instance.request_adapter(&wgpu::RequestAdapterOptions::default()))?
        .context("no Vulkan device")?;
    let (device, queue) = at_once(adapter.request_device(&wgpu::DeviceDescriptor::default()))?
        .context("the Vulkan device")?;
    // As urgent as the thread of a renderer that does the same.
    let place = Placement { cpus: vec![host], realtime: true };
    let (say, said) = channel();
    let thread = place.spawn("draw", Role::Worker, move || {
        // Nobody listens where the benchmark has given up.
        let _ = say.send(frames(&device, &queue, cost, length));
    });
    let rate = said.recv().context("the thread that draws panicked");
    // It has said what there is to say.
    let _ = thread.context("a thread that draws")?.join();
    rate?
}

/// Draws for `length`; frames per second.
fn frames(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    cost: u32,
    length: Duration,
) -> anyhow::Result<f64> {
    let scene = Scene::new(device);
    let mut flights = VecDeque::with_capacity(DEPTH);
    let (mut frames, mut began) = (0u32, Instant::now());
    loop {
        if frames == WARM_UP {
            began = Instant::now();
        }
        if frames > WARM_UP && began.elapsed() >= length {
            break;
        }
        if flights.len() == DEPTH {
            let submission_index = flights.pop_front();
            device
                .poll(wgpu::PollType::Wait { submission_index, timeout: None })
                .context("the GPU")?;
        }
        frames += 1;
        flights.push_back(scene.submit(device, queue, cost, frames));
    }
    // Those that are on their way are neither more nor fewer than when the time began.
    Ok(f64::from(frames - WARM_UP) / began.elapsed().as_secs_f64())
}

/// What a frame needs.
struct Scene {
    pass: wgpu::Buffer,
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
}

impl Scene {
    fn new(device: &wgpu::Device) -> Self {
        let pass = device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 16,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let image = device.create_texture(&wgpu::TextureDescriptor {
            label: None,
            size: wgpu::Extent3d { width: WIDTH, height: HEIGHT, depth_or_array_layers: 1 },
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format: wgpu::TextureFormat::Rgba8Unorm,
            usage: wgpu::TextureUsages::STORAGE_BINDING | wgpu::TextureUsages::COPY_SRC,
            view_formats: &[],
        });
        let view = image.create_view(&wgpu::TextureViewDescriptor::default());
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(SHADER.into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[
                wgpu::BindGroupEntry { binding: 0, resource: pass.as_entire_binding() },
                wgpu::BindGroupEntry {
                    binding: 1,
                    resource: wgpu::BindingResource::TextureView(&view),
                },
            ],
        });
        Self { pass, pipeline, group }
    }

    fn submit(
        &self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        cost: u32,
        frame: u32,
    ) -> wgpu::SubmissionIndex {
        let words = [WIDTH, HEIGHT, cost, frame].map(u32::to_le_bytes);
        queue.write_buffer(&self.pass, 0, words.as_flattened());
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&self.pipeline);
            pass.set_bind_group(0, &self.group, &[]);
            pass.dispatch_workgroups(WIDTH.div_ceil(8), HEIGHT.div_ceil(8), 1);
        }
        queue.submit([encoder.finish()])
    }
}
