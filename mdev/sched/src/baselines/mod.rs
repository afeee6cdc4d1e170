//! Stage 4, schedule: the policies of today's products, to compare frame contracts with.
//!
//! Each is a *model of documented behaviour*: its file names the documents and the constants, and what they
//! leave open. It is not the product. What they share:
//!
//! * A job is ready when its release has passed: guests submit their late latch late under every product.
//! * Jobs of a tenant run in the order in which they were submitted.
//! * [`GpuCaps::in_flight`](crate::GpuCaps::in_flight) is kept. A time slice is the whole GPU: jobs of two tenants
//!   are never on it together.
//! * At the end of a slice, what runs is asked back where the GPU preempts in full; elsewhere it runs to its
//!   end, and the product's rule for overshoots applies.
//! * Deadlines, budgets, guards and gaps mean nothing, except that [`Edf`] goes by deadlines.

mod backlog;
mod debt;
mod drm_fair;
mod fixed_share;
mod gim;
mod gvtg;
mod nvidia;
mod ranked;
mod round_robin;
mod xe;

pub use drm_fair::DrmFair;
pub use fixed_share::FixedShare;
pub use gim::GimFair;
pub use gvtg::GvtgWeighted;
pub use nvidia::{BestEffort, EqualShare};
pub use ranked::{Edf, FifoLate, Rank, Ranked};
pub use round_robin::{RoundRobin, Slicing};
pub use xe::XeQuantum;

#[cfg(test)]
mod driver;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
