//! Pays first-use costs before a frame would have to.
//!
//! A driver may translate a pipeline to machine code only when it is first dispatched: tens of
//! milliseconds on a software GPU. So each pipeline is dispatched once when it is made, over stand-ins and
//! with no workgroups: the guest's code is compiled and none of it runs.

use super::RendererError;
use super::device::{Device, Timer};
use super::ends::IN_FLIGHT;
use super::job::Executor;
use super::resources::{Change, Pipeline, Resource};
use super::setup::{create_buffer, create_image, create_pipeline};
use super::writer::Writer;
use beamline_abi::Nanos;
use beamline_abi::frame::{MAX_BINDINGS, SubmitKind};
use wgpu::naga::{AddressSpace, Module, TypeInner, front::wgsl};
use wgpu::{
    BindGroupDescriptor, BindGroupEntry, BindingResource, CommandEncoderDescriptor,
    ComputePassDescriptor,
};

/// Sides of the stand-in images. Code for sizes that are powers of two can differ from that for others.
const SIDES: [u32; 2] = [4, 3];
/// The largest stand-in buffer, in bytes; a shader that wants more is compiled at its first job.
const MAX_STAND_IN: u64 = 1 << 20;

/// Runs a few jobs as frames will: reaches the driver's threads, the upload path and the clock. Answers the
/// timers that they used.
pub(crate) fn device(
    executor: &mut Executor,
    gpu: &Device,
) -> Result<[Timer; IN_FLIGHT], RendererError> {
    const WGSL: &str = "@group(0) @binding(0) var<storage, read_write> a: array<u32>;
        @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
            a[id.x] = a[id.x] * 3u + id.x;
        }";
    let failed = |reason: beamline_abi::Reason| {
        RendererError::Device(format!("the warm-up failed: {}", reason.name()))
    };
    let buffer = create_buffer(gpu, 4096).map_err(failed)?;
    let pipeline = create_pipeline(gpu, "main", WGSL).map_err(failed)?;
    executor.apply([
        Change::Add(1, Resource::Buffer(buffer)),
        Change::Add(2, Resource::Pipeline(Box::new(pipeline))),
    ]);
    let job = Writer::new(SubmitKind::Job)
        .write(1, 0, &[1; 64])
        .dispatch(2, [16, 1, 1], &[(0, 1)])
        .finish();
    let mut free = Nanos::ZERO;
    let mut timers = [(); IN_FLIGHT].map(|()| gpu.timer());
    for _ in 0..4 {
        let flights = timers.map(|timer| executor.submit(&job, &[], timer));
        let mut result = Ok(());
        timers = flights.map(|flight| {
            let (_, landed, timer) = flight.land(gpu, &mut free);
            result = result.and(landed);
            timer
        });
        result.map_err(failed)?;
    }
    executor.apply([Change::Remove(1), Change::Remove(2)]);
    Ok(timers)
}

/// What a shader wants at one binding.
enum StandIn {
    Buffer(u64),
    Image,
}

/// Has a pipeline compiled to the end. Where that does not work, its first job compiles it.
pub(crate) fn pipeline(gpu: &Device, pipeline: &Pipeline, wgsl: &str) {
    let Some(wants) = wants(wgsl) else {
        return;
    };
    for side in SIDES {
        if dispatch(gpu, pipeline, &wants, side).is_none() {
            return;
        }
        if !wants.iter().any(|(_, want)| matches!(want, StandIn::Image)) {
            return;
        }
    }
}

/// The bindings of group 0, if stand-ins for all of them can be made.
fn wants(source: &str) -> Option<Vec<(u32, StandIn)>> {
    let module: Module = wgsl::parse_str(source).ok()?;
    let mut all = Vec::new();
    for (_, variable) in module.global_variables.iter() {
        let Some(binding) = &variable.binding else {
            continue;
        };
        let inner = &module.types[variable.ty].inner;
        let want = match (variable.space, inner) {
            (AddressSpace::Uniform | AddressSpace::Storage { .. }, _) => {
                let size = u64::from(inner.size(module.to_ctx())).next_multiple_of(16);
                (size <= MAX_STAND_IN).then_some(StandIn::Buffer(size.max(16)))?
            }
            (AddressSpace::Handle, TypeInner::Image { .. }) => StandIn::Image,
            _ => return None,
        };
        if binding.group != 0 || all.len() == MAX_BINDINGS {
            return None;
        }
        all.push((binding.binding, want));
    }
    Some(all)
}

fn dispatch(gpu: &Device, pipeline: &Pipeline, wants: &[(u32, StandIn)], side: u32) -> Option<()> {
    let mut made = Vec::new();
    for (slot, want) in wants {
        let resource = match want {
            StandIn::Buffer(size) => Resource::Buffer(create_buffer(gpu, *size).ok()?),
            StandIn::Image => Resource::Image(create_image(gpu, side, side).ok()?),
        };
        made.push((*slot, resource));
    }
    let entries: Vec<BindGroupEntry<'_>> = made
        .iter()
        .filter_map(|(slot, resource)| {
            let resource = match resource {
                Resource::Buffer(buffer) => buffer.as_entire_binding(),
                Resource::Image(image) => BindingResource::TextureView(&image.view),
                Resource::Pipeline(_) => return None,
            };
            Some(BindGroupEntry { binding: *slot, resource })
        })
        .collect();
    let done = gpu
        .scoped(|| {
            let group = pipeline.layout.as_ref().map(|layout| {
                gpu.handle.create_bind_group(&BindGroupDescriptor {
                    label: None,
                    layout,
                    entries: &entries,
                })
            });
            let mut encoder =
                gpu.handle.create_command_encoder(&CommandEncoderDescriptor::default());
            {
                let mut pass = encoder.begin_compute_pass(&ComputePassDescriptor::default());
                pass.set_pipeline(&pipeline.compute);
                if group.is_some() {
                    pass.set_bind_group(0, group.as_ref(), &[]);
                }
                pass.dispatch_workgroups(0, 0, 0);
            }
            gpu.queue.submit([encoder.finish()])
        })
        .ok()?;
    gpu.wait(done).ok()
}
