//! The background load: one job after the other, never waiting for a vblank, showing a picture now and then.

use super::{Params, Recording, groups};
use crate::gpu::Commands;
use zerocopy::{Immutable, IntoBytes};

/// Resources, by ID.
mod id {
    pub(super) const PASS: u32 = 1;
    pub(super) const IMAGES: [u32; 2] = [2, 3];
    pub(super) const PIPELINE: u32 = 4;
}

/// Every so many jobs one presents.
const PRESENT_EVERY: u64 = 64;

/// `Pass` of flood.wgsl.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Pass {
    size: [u32; 2],
    cost: u32,
    frame: u32,
}

#[derive(Debug)]
pub(super) struct Flood;

impl Flood {
    #[expect(clippy::unused_self, reason = "the scenes have one shape")]
    pub(super) fn setup(&self, step: u32, params: &Params, commands: &mut Commands<'_>) -> bool {
        match step {
            0 => {
                commands.create_buffer(id::PASS, size_of::<Pass>() as u64);
                for image in id::IMAGES {
                    commands.create_image(image, params.width, params.height);
                }
            }
            1 => commands.create_pipeline(id::PIPELINE, "main", include_str!("flood.wgsl")),
            _ => return false,
        }
        true
    }

    /// Records a job and answers its flags.
    #[expect(clippy::unused_self, reason = "the scenes have one shape")]
    pub(super) fn record(
        &self,
        at: Recording,
        params: &Params,
        commands: &mut Commands<'_>,
    ) -> u32 {
        // One image is drawn until it is presented; then it is the other's turn.
        let image = id::IMAGES[((at.frame.0 - 1) / PRESENT_EVERY % 2) as usize];
        let size = [params.width, params.height];
        let pass = Pass { size, cost: params.cost[0], frame: at.frame.0 as u32 };
        commands.write_buffer(id::PASS, 0, pass.as_bytes());
        let groups = groups(params.width, params.height);
        commands.dispatch(id::PIPELINE, groups, &[id::PASS, image]);
        if at.frame.0.is_multiple_of(PRESENT_EVERY) {
            commands.present(image);
        }
        0
    }
}
