//! Frame contracts and the decisions that keep them.
//!
//! Everything here is a pure function of state and time: no clock, lock, thread, allocation after set-up
//! or I/O. The same code decides live, in the tests and in simulation.
//!
//! * [`contract`]: what a slice is promised.
//! * [`policy`]: the [`policy::Policy`] trait, the jobs it orders and what it decides.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;

pub mod contract;
pub mod policy;

pub use contract::{Class, Contract, Guard, LateLatch, MissAllowance, Period, Sink};
pub use policy::{Decision, Defer, GpuCaps, JobSpec, Policy, QueueFull, TenantId, Ticket, Vblank};
