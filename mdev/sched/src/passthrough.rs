//! Stage 4, schedule: from mediate/job to backend. No mediation: every job goes to the GPU once released.
//!
//! What guests get that share a GPU without a scheduler in front of it: the GPU's own queue decides.

use crate::contract::Contract;
use crate::fifo::{ArrivalOrder, delegate_to_arrival_order};
use crate::policy::{Decision, JobSpec, Policy, QueueFull, TenantId, Ticket, Vblank};
use beamline_abi::Nanos;

/// No mediation.
#[derive(Debug)]
pub struct Passthrough(ArrivalOrder);

impl Passthrough {
    /// A policy for at most `max_tenants` tenants and `max_jobs` jobs queued or running.
    pub fn new(max_tenants: usize, max_jobs: usize) -> Self {
        Self(ArrivalOrder::new(None, max_tenants, max_jobs))
    }
}

impl Policy for Passthrough {
    fn name(&self) -> &'static str {
        "none"
    }
    delegate_to_arrival_order!();
}
