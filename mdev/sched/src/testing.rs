//! Contracts for the unit tests.

use crate::contract::{Class, Contract, Guard, LateLatch, MissAllowance, Period, Sink};
use crate::policy::{GpuCaps, Preemption};
use beamline_abi::Nanos;

/// A reserved contract: `hz`, budget and longest job in µs, due at the next vblank.
pub(crate) fn contract(hz: u64, budget_us: u64, max_job_us: u64) -> Contract {
    let period = Period::from_hz(hz, 1).unwrap();
    Contract {
        period,
        deadline: period.floor(),
        budget: Nanos::from_micros(budget_us),
        max_job: Nanos::from_micros(max_job_us),
        gap: Nanos::ZERO,
        jitter: Nanos::ZERO,
        sink: Sink::Virtual,
        class: Class::Reserved,
        miss: MissAllowance { misses: 0, frames: 1 },
        late_latch: None,
        guard: Guard::Release,
        depth: 1,
        weight: 100,
    }
}

/// VR: 90 Hz, 1.6 ms, and 0.4 ms in a window of 1.2 ms.
pub(crate) fn vr() -> Contract {
    Contract {
        jitter: Nanos::from_millis(1),
        late_latch: Some(LateLatch {
            window: Nanos::from_micros(1_200),
            budget: Nanos::from_micros(400),
        }),
        ..contract(90, 1_600, 1_600)
    }
}

/// A game: 60 Hz, three jobs of 0.6 ms with pauses of 0.2 ms.
pub(crate) fn game() -> Contract {
    Contract {
        jitter: Nanos::from_millis(1),
        gap: Nanos::from_micros(200),
        ..contract(60, 1_800, 600)
    }
}

/// Background: jobs up to 2 ms, 5% of each 100 ms.
pub(crate) fn flood() -> Contract {
    Contract { class: Class::Background, ..contract(10, 5_000, 2_000) }
}

pub(crate) const CAPS: GpuCaps = GpuCaps {
    in_flight: 1,
    ahead: 0,
    switch_cost: Nanos(10_000),
    guard_margin: Nanos(150_000),
    preemption: Preemption::None,
};
