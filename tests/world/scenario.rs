//! The slices that the tests share: a VR headset, a game and a background load on one GPU.

use super::cost::Costs;
use super::guest::Habits;
use super::{World, WorldError};
use beamline_abi::Nanos;
use beamline_sched::PolicyKind;
use std::fmt::Write as _;

/// The VR slice: 90 Hz, 1.6 ms and a late latch of 0.4 ms in a window of 1.2 ms.
pub const VR: usize = 0;
/// The game: 60 Hz, three jobs of 0.5 ms.
pub const GAME: usize = 1;
/// The background load: jobs of 1.1 ms, four at a time, with a minimum of 2 ms in every 16.7 ms.
pub const FLOOD: usize = 2;

/// Each job takes up to this many thousandths longer than its base.
const JITTER_PERMILLE: u64 = 50;

const VR_SLICE: &str = r#"
[[slice]]
name = "vr"
width = 512
height = 144
[slice.contract]
refresh_hz = "90"
class = "reserved"
budget_ms = 1.7
max_job_ms = 1.7
jitter_ms = 0.5
late_latch = { window_ms = 1.2, budget_ms = 0.45 }
"#;

const GAME_SLICE: &str = r#"
[[slice]]
name = "game"
width = 256
height = 144
[slice.contract]
refresh_hz = "60"
class = "reserved"
budget_ms = 1.6
max_job_ms = 0.6
jitter_ms = 0.5
"#;

const FLOOD_SLICE: &str = r#"
[[slice]]
name = "flood"
width = 256
height = 144
[slice.contract]
refresh_hz = "60"
class = "background"
budget_ms = 2.0
max_job_ms = 1.2
depth = 4
"#;

/// What is run: who decides, who takes part, and how.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Who decides.
    pub policy: PolicyKind,
    /// Jobs on the GPU at once.
    pub in_flight: u8,
    /// How long beyond its `max_job` a job may run.
    pub kill_grace: Nanos,
    /// Seed of the jobs' jitter.
    pub seed: u64,
    /// Further `[[slice]]` sections, from slice 3 on.
    pub more: &'static str,
}

impl Scenario {
    /// The three slices under `policy`.
    pub fn new(policy: PolicyKind, seed: u64) -> Self {
        Self { policy, in_flight: 1, kill_grace: Nanos::from_millis(20), seed, more: "" }
    }

    /// The host's configuration.
    pub fn config(&self) -> String {
        let mut text = String::from("run_dir = \"run\"\n[gpu]\nbackend = \"model\"\n");
        let grace = self.kill_grace.as_millis_f64();
        // Writing to a string cannot fail.
        let _ = write!(text, "policy = \"{}\"\nkill_grace_ms = {grace:?}\n", self.policy);
        let _ = writeln!(text, "in_flight = {}", self.in_flight);
        text.push_str("switch_cost_ms = 0.0\nguard_margin_ms = 0.05\n");
        text + VR_SLICE + GAME_SLICE + FLOOD_SLICE + self.more
    }

    /// What the jobs take.
    pub fn costs(&self) -> Costs {
        let micros = Nanos::from_micros;
        Costs::new(micros(500), JITTER_PERMILLE, self.seed)
            .with(VR as u16, 0, micros(1600))
            .with(VR as u16, 1, micros(400))
            .with(FLOOD as u16, 0, micros(1100))
    }

    /// The world, without guests.
    pub fn world(&self, costs: Costs) -> Result<World, WorldError> {
        World::new(&self.config(), costs, self.seed)
    }

    /// The world with these of the three guests attached.
    pub fn with_guests(&self, costs: Costs, guests: &[usize]) -> Result<World, WorldError> {
        let mut world = self.world(costs)?;
        for &index in guests {
            world.attach(index, Self::line(index), Habits::default())?;
        }
        Ok(world)
    }

    /// The guest's command line.
    pub fn line(index: usize) -> &'static str {
        match index {
            VR => "scene=vr",
            GAME => "scene=game",
            _ => "scene=flood depth=4",
        }
    }
}
