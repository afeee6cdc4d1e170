//! Frame contracts and the decisions that keep them.
//!
//! Everything here is a pure function of state and time: no clock, lock, thread, allocation after set-up
//! or I/O. The same code decides live, in the tests and in simulation.
//!
//! * [`contract`]: what a slice is promised.
//! * [`admission`]: whether one more contract can be kept; [`phase`]: where its vblanks should lie.
//! * [`policy`]: the [`policy::Policy`] trait, the jobs it orders and what it decides.
//! * [`beamline`], [`fifo`], [`passthrough`]: the policies; [`baselines`]: models of today's products;
//!   [`PolicyKind`] makes one by name.
//! * [`mk`]: which frames of a contract that allows misses are mandatory.
//! * [`slew`]: how vblanks move to another phase.
//! * [`budget`] and [`predict`]: what a tenant may still use, and what its jobs are expected to cost.
//! * `sim` (feature `sim`, with std): the policies over a modelled GPU and modelled guests, in virtual time.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
#[cfg(feature = "sim")]
extern crate std;

pub mod admission;
pub mod baselines;
pub mod beamline;
pub mod budget;
pub mod contract;
pub mod demand;
pub mod fifo;
mod guard;
mod heap;
mod kind;
pub mod mk;
pub mod passthrough;
pub mod phase;
pub mod policy;
pub mod predict;
mod preempt;
mod queue;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(test)]
mod sim_gpu;
#[cfg(test)]
mod sim_tests;
mod slack;
pub mod slew;
mod tenant;
#[cfg(test)]
mod testing;
pub mod validate;
#[cfg(feature = "config")]
pub mod written;

pub use admission::{Admission, Admitted, Current, Nearest, Proof, Refusal};
pub use beamline::Beamline;

pub use contract::{Class, Contract, Guard, LateLatch, MissAllowance, Period, Sink};
pub use demand::Shortage;
pub use fifo::Fifo;
pub use kind::{PolicyKind, UnknownPolicy};
pub use passthrough::Passthrough;
pub use policy::{
    Decision, Defer, GpuCaps, JobSpec, Policy, Preemption, QueueFull, TenantId, Ticket, Vblank,
};
pub use tenant::Breach;
pub use validate::ContractError;
