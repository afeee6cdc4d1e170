//! The game scene: three jobs, one pass each: geometry, lighting, post-processing and present.

use super::{Params, Recording, groups};
use crate::gpu::Commands;
use zerocopy::{Immutable, IntoBytes};

/// Resources, by ID.
mod id {
    pub(super) const PASSES: [u32; 3] = [1, 2, 3];
    /// Normal, depth and albedo of every pixel.
    pub(super) const GEOMETRY: u32 = 4;
    /// The lit picture.
    pub(super) const LIT: u32 = 5;
    /// Double-buffered: one is shown while the other is drawn.
    pub(super) const IMAGES: [u32; 2] = [6, 7];
    pub(super) const PIPELINES: [u32; 3] = [8, 9, 10];
}

/// `Pass` of the three shaders.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Pass {
    size: [u32; 2],
    cost: u32,
    frame: u32,
}

#[derive(Debug)]
pub(super) struct Game;

impl Game {
    #[expect(clippy::unused_self, reason = "the scenes have one shape")]
    pub(super) fn setup(&self, step: u32, params: &Params, commands: &mut Commands<'_>) -> bool {
        let pixels = u64::from(params.width) * u64::from(params.height);
        match step {
            0 => {
                for id in id::PASSES {
                    commands.create_buffer(id, size_of::<Pass>() as u64);
                }
                commands.create_buffer(id::GEOMETRY, 16 * pixels);
                commands.create_buffer(id::LIT, 16 * pixels);
                for image in id::IMAGES {
                    commands.create_image(image, params.width, params.height);
                }
            }
            1 => commands.create_pipeline(
                id::PIPELINES[0],
                "main",
                include_str!("game_geometry.wgsl"),
            ),
            2 => {
                commands.create_pipeline(id::PIPELINES[1], "main", include_str!("game_light.wgsl"));
            }
            3 => commands.create_pipeline(id::PIPELINES[2], "main", include_str!("game_post.wgsl")),
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
        let job = usize::from(at.job).min(2);
        let image = id::IMAGES[(at.frame.0 % 2) as usize];
        let size = [params.width, params.height];
        let pass = Pass { size, cost: params.cost[job], frame: at.frame.0 as u32 };
        let buffer = id::PASSES[job];
        let bindings: [&[u32]; 3] =
            [&[buffer, id::GEOMETRY], &[buffer, id::GEOMETRY, id::LIT], &[buffer, id::LIT, image]];
        let groups = groups(params.width, params.height);
        commands.write_buffer(buffer, 0, pass.as_bytes());
        commands.dispatch(id::PIPELINES[job], groups, bindings[job]);
        if job == 2 {
            commands.present(image);
        }
        0
    }
}
