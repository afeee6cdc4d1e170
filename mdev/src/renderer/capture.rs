//! Reads a presented image back, beside the frame's path.

use super::device::Device;
use super::resources::Image;
use rustix::fd::OwnedFd;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::fs::File;
use std::io::Write;
use wgpu::{
    BufferDescriptor, BufferUsages, COPY_BYTES_PER_ROW_ALIGNMENT, CommandEncoderDescriptor,
    Extent3d, MapMode, TexelCopyBufferInfo, TexelCopyBufferLayout,
};

/// The pixels of an image in a sealed memfd, rows from the top without padding. `None` where the GPU or
/// the system fails.
pub(crate) fn read(gpu: &Device, image: &Image) -> Option<OwnedFd> {
    let row = 4 * image.width;
    let pitch = row.next_multiple_of(COPY_BYTES_PER_ROW_ALIGNMENT);
    let (buffer, done) = gpu
        .scoped(|| {
            let buffer = gpu.handle.create_buffer(&BufferDescriptor {
                label: None,
                size: u64::from(pitch) * u64::from(image.height),
                usage: BufferUsages::MAP_READ | BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            let mut encoder =
                gpu.handle.create_command_encoder(&CommandEncoderDescriptor { label: None });
            encoder.copy_texture_to_buffer(
                image.texture.as_image_copy(),
                TexelCopyBufferInfo {
                    buffer: &buffer,
                    layout: TexelCopyBufferLayout {
                        offset: 0,
                        bytes_per_row: Some(pitch),
                        rows_per_image: None,
                    },
                },
                Extent3d { width: image.width, height: image.height, depth_or_array_layers: 1 },
            );
            let done = gpu.queue.submit([encoder.finish()]);
            buffer.map_async(MapMode::Read, .., |_| {});
            (buffer, done)
        })
        .ok()?;
    gpu.wait(done).ok()?;
    let view = buffer.get_mapped_range(..).ok()?;

    let fd =
        memfd_create(c"beamline-image", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).ok()?;
    let mut file = File::from(fd);
    for line in view.chunks_exact(pitch as usize) {
        file.write_all(line.get(..row as usize)?).ok()?;
    }
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    fcntl_add_seals(&file, seals).ok()?;
    Some(file.into())
}
