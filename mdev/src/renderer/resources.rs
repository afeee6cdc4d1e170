//! What a slice has on the GPU: made by the setup thread, used by the job thread.

use super::stream::Bindings;
use beamline_abi::Reason;
use wgpu::{
    BindGroup, BindGroupDescriptor, BindGroupEntry, BindGroupLayout, BindingResource, Buffer,
    ComputePipeline, Device, Texture, TextureView,
};

/// Bind groups kept per pipeline: enough for a few images in turn.
const CACHED_GROUPS: usize = 16;

/// An image.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) texture: Texture,
    pub(crate) view: TextureView,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

/// A pipeline, and the bind groups it was used with.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) compute: ComputePipeline,
    /// `None` where the shader binds nothing.
    pub(crate) layout: Option<BindGroupLayout>,
    groups: Vec<(Bindings, BindGroup)>,
    /// Which of the full cache is replaced next.
    oldest: usize,
}

impl Pipeline {
    pub(crate) fn new(compute: ComputePipeline, layout: Option<BindGroupLayout>) -> Self {
        Self { compute, layout, groups: Vec::with_capacity(CACHED_GROUPS), oldest: 0 }
    }

    fn cached(&self, bindings: &Bindings) -> Option<&BindGroup> {
        self.groups.iter().find_map(|(key, group)| (key == bindings).then_some(group))
    }

    fn keep(&mut self, bindings: Bindings, group: BindGroup) {
        if self.groups.len() < CACHED_GROUPS {
            self.groups.push((bindings, group));
        } else {
            self.groups[self.oldest] = (bindings, group);
            self.oldest = (self.oldest + 1) % CACHED_GROUPS;
        }
    }
}

/// One of a slice's resources.
#[derive(Debug)]
pub(crate) enum Resource {
    Buffer(Buffer),
    Image(Image),
    Pipeline(Box<Pipeline>),
}

impl Resource {
    fn binding(&self) -> Option<BindingResource<'_>> {
        match self {
            Self::Buffer(buffer) => Some(buffer.as_entire_binding()),
            Self::Image(image) => Some(BindingResource::TextureView(&image.view)),
            Self::Pipeline(_) => None,
        }
    }
}

/// A step of a setup that has succeeded.
#[derive(Debug)]
pub(crate) enum Change {
    Add(u32, Resource),
    Remove(u32),
}

/// Resources by ID.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Option<Resource>>);

impl Table {
    /// Takes over what a setup made.
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Add(id, resource) => {
                let index = id as usize;
                if index >= self.0.len() {
                    self.0.resize_with(index + 1, || None);
                }
                self.0[index] = Some(resource);
            }
            Change::Remove(id) => {
                if let Some(slot) = self.0.get_mut(id as usize) {
                    *slot = None;
                }
                self.forget_groups(id);
            }
        }
    }

    /// Drops the bind groups that keep a destroyed resource alive, or would name its successor.
    fn forget_groups(&mut self, id: u32) {
        for resource in self.0.iter_mut().flatten() {
            if let Resource::Pipeline(pipeline) = resource {
                pipeline
                    .groups
                    .retain(|(key, _)| key.as_slice().iter().all(|binding| binding.id != id));
                pipeline.oldest = 0;
            }
        }
    }

    fn get(&self, id: u32) -> Result<&Resource, Reason> {
        self.0.get(id as usize).and_then(Option::as_ref).ok_or(Reason::BadId)
    }

    /// The buffer with this ID, in which `len` bytes at `offset` exist.
    pub(crate) fn buffer(&self, id: u32, offset: u64, len: usize) -> Result<&Buffer, Reason> {
        let Resource::Buffer(buffer) = self.get(id)? else {
            return Err(Reason::BadId);
        };
        match offset.checked_add(len as u64) {
            Some(end) if end <= buffer.size() => Ok(buffer),
            _ => Err(Reason::OutOfBounds),
        }
    }

    pub(crate) fn image(&self, id: u32) -> Result<&Image, Reason> {
        match self.get(id)? {
            Resource::Image(image) => Ok(image),
            _ => Err(Reason::BadId),
        }
    }

    /// The pipeline with this ID and a bind group of these resources, made at their first use.
    pub(crate) fn pipeline(
        &mut self,
        device: &Device,
        id: u32,
        bindings: &Bindings,
    ) -> Result<(ComputePipeline, Option<BindGroup>), Reason> {
        let Resource::Pipeline(found) = self.get(id)? else {
            return Err(Reason::BadId);
        };
        let pipeline = found.compute.clone();
        let Some(layout) = &found.layout else {
            let unbound = bindings.as_slice().is_empty();
            return unbound.then_some((pipeline, None)).ok_or(Reason::Malformed);
        };
        if let Some(group) = found.cached(bindings) {
            return Ok((pipeline, Some(group.clone())));
        }
        let group = self.group(device, layout, bindings)?;
        if let Some(Some(Resource::Pipeline(found))) = self.0.get_mut(id as usize) {
            found.keep(*bindings, group.clone());
        }
        Ok((pipeline, Some(group)))
    }

    /// A bind group that does not fit the layout is an error that wgpu reports when it is used.
    fn group(
        &self,
        device: &Device,
        layout: &BindGroupLayout,
        bindings: &Bindings,
    ) -> Result<BindGroup, Reason> {
        let mut entries = Vec::with_capacity(bindings.as_slice().len());
        for binding in bindings.as_slice() {
            entries.push(BindGroupEntry {
                binding: binding.slot,
                resource: self.get(binding.id)?.binding().ok_or(Reason::BadId)?,
            });
        }
        Ok(device.create_bind_group(&BindGroupDescriptor {
            label: None,
            layout,
            entries: &entries,
        }))
    }
}
