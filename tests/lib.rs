//! The whole path of a frame in one process, in virtual time: what the tests beside this file run on.
//!
//! A [`World`] joins the real guest driver and its scenes with the real device models, mediation,
//! scheduler and recorder. Only three things stand for others: a clock that is set, the `model` backend
//! for the GPU, and an in-process `Transport` for the VMM. One thread does everything, in a fixed order,
//! so the same seed gives the same stamps, byte for byte.
//!
//! * `world/mod.rs`: what happens next, and in which order.
//! * `world/host.rs`: the host's threads as steps.
//! * `world/guest.rs`: one guest: wakes, CPU time, its scene.
//! * `world/port.rs`: the functions a guest sees: configuration space, BARs, memory, interrupts.
//! * `world/tsc.rs`: time-stamp counters with a forced offset and scale.
//! * `world/cost.rs`: what jobs take on the modelled GPU.
//! * `world/scenario.rs`: the slices, contracts and costs that the tests share.
//! * `world/outcome.rs`: what became of a run.

mod world;

pub use world::cost::{Costs, Seeded};
pub use world::guest::{Habits, State};
pub use world::outcome::{Outcome, Tally};
pub use world::port::{Function, Port, RAM, RAM_SIZE};
pub use world::scenario::{FLOOD, GAME, Scenario, VR};
pub use world::{World, WorldError};
