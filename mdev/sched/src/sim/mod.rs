//! The simulator: the live policies over a modelled GPU and modelled guests, in virtual time.
//!
//! What decides here is the same code that decides in the host; only the GPU, the guests and the clock are
//! models. Everything that comes out is *simulated* and has to be shown with that word. The same scenario and seed
//! give the same outcome, bit by bit.
//!
//! * [`scenario`]: what is simulated, checked; [`cost`]: how long things take.
//! * [`run`]: the engine; `gpu`, `guest` and `work` are its models.
//! * [`config`]: scenario files; [`csv`]: recorded traces; [`builtin`]: the scenarios that come with it.
//! * [`outcome`]: what came of one run; [`runs`]: of several seeds together.
//! * [`solo`]: a tenant alone; [`density`]: how many tenants fit.

pub mod builtin;
pub mod config;
pub mod cost;
pub mod csv;
pub mod density;
mod engine;
mod gpu;
mod guest;
mod ledger;
#[cfg(test)]
mod mutate;
pub mod outcome;
mod place;
pub mod runs;
pub mod scenario;
pub mod solo;
#[cfg(test)]
mod tests;
mod verdict;
mod work;

pub use cost::Cost;
pub use density::{Density, Search, density};
pub use engine::run;
pub use outcome::{Outcome, OwnCause, Span, Tally, TenantOutcome};
pub use runs::{Interval, Runs};
pub use scenario::{Options, Phases, Scenario, ScenarioError, Tenant, Work};
pub use solo::{interference, solo};
pub use work::mean_demand;
