//! Stage 4, schedule: from mediate/job to backend. What every policy is asked, and what it answers.

use crate::contract::Contract;
use beamline_abi::{FrameId, JobIndex, Nanos};

/// A slice as the scheduler knows it: the index that [`Policy::admit`] was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(pub u16);

/// Names a queued job between [`Policy::submit`] and [`Policy::complete`]. Chosen by the caller, unique
/// among the jobs that are queued or running, below the `max_jobs` the policy was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u32);

/// A vblank of one tenant: where a frame's budget begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vblank {
    /// Number on the tenant's grid.
    pub seq: u64,
    /// Its time on the absolute grid.
    pub time: Nanos,
    /// The next one's time.
    pub next: Nanos,
}

/// A job that waits for its grant. Jobs of a tenant run in the order they were submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobSpec {
    /// The caller's name for it.
    pub ticket: Ticket,
    /// Whose it is.
    pub tenant: TenantId,
    /// The frame; [`FrameId::NONE`] for work that belongs to none.
    pub frame: FrameId,
    /// Place in the frame.
    pub job: JobIndex,
    /// Jobs of the frame.
    pub jobs: u16,
    /// Held until the window before the deadline.
    pub late_latch: bool,
    /// When it became known.
    pub arrival: Nanos,
    /// It may not start before this: the frame's vblank, or the late-latch window.
    pub release: Nanos,
    /// When it must be done; [`Nanos::MAX`] for none.
    pub deadline: Nanos,
    /// The vblank (of this tenant) whose budget pays for it.
    pub slot: u64,
}

/// How a job on the GPU can make room for another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preemption {
    /// It cannot: it runs to its end.
    #[default]
    None,
    /// The GPU knows levels: granted at a higher level, a job takes the GPU from one at a lower level, which
    /// goes on by itself afterwards. Within a level a job runs to its end.
    Levels {
        /// How many, at least 2; 0 is the lowest.
        levels: u8,
        /// The longest until the higher job has the GPU, ns.
        grain: Nanos,
    },
    /// It can be asked back ([`Decision::Preempt`]) and goes on later where it stopped.
    Full {
        /// The longest until it is off the GPU; and again what it takes to go on, ns.
        cost: Nanos,
    },
}

/// What the GPU behind the policy can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuCaps {
    /// Jobs that may be on the GPU at once under a policy that bounds it.
    pub in_flight: u8,
    /// Jobs that may be there beyond those, in line, while nobody else can want the GPU: the way to the GPU and
    /// back then costs it no time. For the frame-contract policy, where the GPU cannot be preempted.
    pub ahead: u8,
    /// Cost of changing from one tenant to another, ns.
    pub switch_cost: Nanos,
    /// Kept free before a guarded release for the dispatcher's own lateness, ns.
    pub guard_margin: Nanos,
    /// How a running job makes room.
    pub preemption: Preemption,
}

/// Why nothing was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Defer {
    /// Nothing is queued.
    Empty,
    /// As many jobs as allowed are on the GPU.
    InFlight,
    /// The queued jobs are released later.
    NotReleased,
    /// The only jobs that could run would not end before a guarded release.
    Guarded,
    /// The only jobs that could run are beyond their tenant's budget.
    NoBudget,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Run this job. It has left the queue and counts as in flight.
    Grant {
        /// Which.
        ticket: Ticket,
        /// How long the policy expects it to run, ns.
        expected: Nanos,
        /// The level it runs at; 0 where the GPU knows none.
        level: u8,
    },
    /// Ask this running job back. It is in flight until [`Policy::preempted`], or [`Policy::complete`] where it
    /// ended meanwhile. Only where the GPU preempts in full ([`Preemption::Full`]).
    Preempt {
        /// Which.
        ticket: Ticket,
    },
    /// Run nothing.
    Idle {
        /// Ask again at this time at the latest; `None`: only something new can change the answer.
        until: Option<Nanos>,
        /// Why.
        why: Defer,
    },
}

/// The policy's queue is full; the caller drops the job and tells its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the scheduler's queue of {capacity} jobs is full")]
pub struct QueueFull {
    /// Jobs it holds.
    pub capacity: u32,
}

/// A scheduling policy. Calls never allocate once the tenants are admitted.
pub trait Policy: Send {
    /// Its name in reports.
    fn name(&self) -> &'static str;

    /// Takes a tenant whose contract admission has accepted. The caller owns the numbering: below the
    /// `max_tenants` the policy was made with, not in use.
    fn admit(&mut self, tenant: TenantId, contract: &Contract);

    /// Forgets a tenant and its queued jobs. Jobs of it on the GPU are still completed by the caller.
    fn remove(&mut self, tenant: TenantId);

    /// Forgets a tenant's queued jobs (a reset), keeps its contract and its debt.
    fn drop_jobs(&mut self, tenant: TenantId);

    /// A vblank of this tenant has come: its budget is renewed, and the next release is known. Called in
    /// time order per tenant.
    fn vblank(&mut self, tenant: TenantId, vblank: Vblank);

    /// A job waits.
    fn submit(&mut self, job: JobSpec) -> Result<(), QueueFull>;

    /// A granted job has left the GPU after `cost` ns on it (also when it failed or was killed).
    fn complete(&mut self, now: Nanos, ticket: Ticket, cost: Nanos);

    /// A job that was asked back is off the GPU at `now`, `ran` ns after its latest grant (its own work; the
    /// cost of preemption is not part of it). It is the first of its tenant's jobs again, and keeps its ticket;
    /// granted again, it goes on where it stopped, and its last [`Policy::complete`] names only what ran since.
    fn preempted(&mut self, now: Nanos, ticket: Ticket, ran: Nanos);

    /// What to do at `now`. Called again after every grant until it answers [`Decision::Idle`].
    fn decide(&mut self, now: Nanos) -> Decision;

    /// GPU ns that this tenant still has in its current period, and its debt, for reports.
    fn balance(&self, tenant: TenantId) -> (Nanos, Nanos);
}
