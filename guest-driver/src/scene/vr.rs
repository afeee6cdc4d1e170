//! The VR scene: job 0 draws both eyes with the pose of the submission; job 1, late latched, moves the
//! finished picture to the newest pose and presents it.

use super::{Params, Recording, groups};
use crate::gpu::Commands;
use crate::transport::{Arena, ArenaFull, Gpa, Transport};
use beamline_abi::frame::submit_flag;
use zerocopy::{Immutable, IntoBytes};

/// Resources, by ID.
mod id {
    pub(super) const EYES: [u32; 2] = [1, 2];
    pub(super) const LATE: u32 = 3;
    pub(super) const POSE: u32 = 4;
    /// Both eyes side by side, double-buffered.
    pub(super) const PIXELS: [u32; 2] = [5, 6];
    pub(super) const IMAGES: [u32; 2] = [7, 8];
    pub(super) const EYE_PIPELINE: u32 = 9;
    pub(super) const LATE_PIPELINE: u32 = 10;
}

/// TSC cycles of a tick of the head's clock, as a power of two: about 3 ms at 3 GHz.
const TSC_SHIFT: u32 = 23;
/// Ticks for one full sway.
const SWAY_TICKS: f32 = 1024.0;

/// The head, as the guest's memory holds it: 16 bytes. A late latch that meets an update may mix two poses
/// that are one wake apart, which is not visible.
#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
struct Pose {
    /// Radians to the right.
    yaw: f32,
    /// Radians upwards.
    pitch: f32,
    /// Metres to the right.
    x: f32,
    /// Sways since the start.
    time: f32,
}

/// `Eye` of vr_eye.wgsl.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Eye {
    size: [u32; 2],
    which: u32,
    samples: u32,
    pose: Pose,
}

/// `Late` of vr_late.wgsl.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Late {
    size: [u32; 2],
    taps: u32,
    reserved: u32,
    rendered: Pose,
}

#[derive(Debug)]
pub(super) struct Vr {
    memory: Gpa,
    pose: Pose,
    start: u64,
}

impl Vr {
    pub(super) fn new<T: Transport>(t: &mut T, arena: &mut Arena) -> Result<Self, ArenaFull> {
        let memory = arena.alloc(t, size_of::<Pose>() as u64, 64)?;
        let mut vr = Self { memory, pose: Pose::default(), start: t.tsc() };
        vr.update_pose(t);
        Ok(vr)
    }

    /// Moves the head on and puts the pose where a late latch reads it.
    pub(super) fn update_pose<T: Transport>(&mut self, t: &mut T) {
        let ticks = t.tsc().wrapping_sub(self.start) as f64 / f64::from(1u32 << TSC_SHIFT);
        let time = (ticks % 65_536.0) as f32 / SWAY_TICKS;
        self.pose = Pose {
            yaw: 0.35 * wave(time),
            pitch: 0.12 * wave(time * 2.0 + 0.25),
            x: 0.25 * wave(time + 0.5),
            time,
        };
        t.write(self.memory, self.pose.as_bytes());
    }

    #[expect(clippy::unused_self, reason = "the scenes have one shape")]
    pub(super) fn setup(&self, step: u32, params: &Params, commands: &mut Commands<'_>) -> bool {
        let (width, height) = (2 * params.width, params.height);
        match step {
            0 => {
                for id in id::EYES {
                    commands.create_buffer(id, size_of::<Eye>() as u64);
                }
                commands.create_buffer(id::LATE, size_of::<Late>() as u64);
                commands.create_buffer(id::POSE, size_of::<Pose>() as u64);
                for (pixels, image) in id::PIXELS.into_iter().zip(id::IMAGES) {
                    commands.create_buffer(pixels, 4 * u64::from(width) * u64::from(height));
                    commands.create_image(image, width, height);
                }
            }
            1 => commands.create_pipeline(id::EYE_PIPELINE, "main", include_str!("vr_eye.wgsl")),
            2 => commands.create_pipeline(id::LATE_PIPELINE, "main", include_str!("vr_late.wgsl")),
            _ => return false,
        }
        true
    }

    /// Records a job and answers its flags.
    pub(super) fn record(
        &self,
        at: Recording,
        params: &Params,
        commands: &mut Commands<'_>,
    ) -> u32 {
        let parity = (at.frame.0 % 2) as usize;
        let (pixels, image) = (id::PIXELS[parity], id::IMAGES[parity]);
        let size = [params.width, params.height];
        if at.job == 0 {
            for (eye, buffer) in id::EYES.into_iter().enumerate() {
                let samples = params.cost[0];
                let eye = Eye { size, which: eye as u32, samples, pose: self.pose };
                commands.write_buffer(buffer, 0, eye.as_bytes());
            }
            for buffer in id::EYES {
                let groups = groups(params.width, params.height);
                commands.dispatch(id::EYE_PIPELINE, groups, &[buffer, pixels]);
            }
            return 0;
        }
        let late = Late { size, taps: params.cost[1], reserved: 0, rendered: self.pose };
        commands.write_buffer(id::LATE, 0, late.as_bytes());
        commands.latch(id::POSE, self.memory.0, size_of::<Pose>() as u32);
        let groups = groups(2 * params.width, params.height);
        commands.dispatch(id::LATE_PIPELINE, groups, &[id::LATE, id::POSE, pixels, image]);
        commands.present(image);
        submit_flag::LATE_LATCH
    }
}

/// A smooth wave of period 1 and range −1 to 1, from parabolas: `core` has no sine.
fn wave(x: f32) -> f32 {
    let x = x - (x as i32) as f32;
    let half = if x < 0.5 { x } else { x - 0.5 };
    let bow = 16.0 * half * (0.5 - half);
    if x < 0.5 { bow } else { -bow }
}
