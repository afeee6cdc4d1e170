//! A run allocates at its beginning and end only: how often does not depend on how long it lasts.
#![cfg(feature = "sim")]
#![allow(unsafe_code)] // A global allocator that counts cannot be written without.

use beamline_abi::Nanos;
use beamline_sched::sim::scenario::{Flood, Frames};
use beamline_sched::sim::{Cost, Options, Phases, Scenario, Tenant, Work, run};
use beamline_sched::{
    Class, Contract, GpuCaps, Guard, LateLatch, MissAllowance, Period, PolicyKind, Preemption, Sink,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    // Constant and without a destructor: reading it allocates nothing.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on unchanged to the system allocator, which keeps the trait's promises.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promises about `layout` are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `alloc` above with this layout, hence from `System`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn uniform(low: u64, high: u64) -> Cost {
    Cost::Uniform { low: Nanos::from_micros(low), high: Nanos::from_micros(high) }
}

fn tenant(i: u64) -> Tenant {
    let headset = i.is_multiple_of(3);
    let contract = Contract {
        period: Period::from_hz(90, 1).expect("90 Hz is in range"),
        deadline: Nanos(11_111_111),
        budget: Nanos(400_000),
        max_job: Nanos(400_000),
        gap: Nanos(50_000),
        jitter: Nanos(100_000),
        sink: Sink::Virtual,
        class: if i % 3 == 2 { Class::Background } else { Class::Reserved },
        miss: MissAllowance { misses: 0, frames: 1 },
        late_latch: headset
            .then_some(LateLatch { window: Nanos(1_000_000), budget: Nanos(50_000) }),
        guard: Guard::Release,
        depth: 1,
        weight: 100,
    };
    let work = if contract.class == Class::Background {
        Work::Flood(Flood { depth: 8, cost: uniform(50, 390), burst: None })
    } else {
        Work::Frames(Frames {
            // Some overrun, some are killed, some vblanks find the guest busy.
            jobs: vec![uniform(100, 250), uniform(100, 900)],
            late_latch: headset.then(|| uniform(20, 49)),
            wake: uniform(0, 300),
            gap: uniform(0, 60),
            scene_change: None,
            overrun: None,
        })
    };
    Tenant { name: format!("tenant {i}"), contract, work, phase: None }
}

fn allocations(policy: PolicyKind, preemption: Preemption, millis: u64) -> u64 {
    let scenario = Scenario {
        name: "allocations".to_owned(),
        about: String::new(),
        caps: GpuCaps {
            in_flight: 2,
            ahead: 0,
            switch_cost: Nanos(10_000),
            guard_margin: Nanos(50_000),
            preemption,
        },
        kill_grace: Nanos(200_000),
        length: Nanos::from_millis(millis),
        warm_up: Nanos::ZERO,
        tenants: (0..12).map(tenant).collect(),
        victim: None,
        density: None,
    };
    let phases = Phases::Random;
    let options = Options { policy, phases, admission: false, seed: 1, timeline: false };
    let before = ALLOCATIONS.with(Cell::get);
    let outcome = run(&scenario, &options).expect("the scenario is right");
    assert!(outcome.gpu.busy > Nanos::ZERO);
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn a_longer_run_allocates_no_more() {
    for preemption in [
        Preemption::None,
        Preemption::Levels { levels: 2, grain: Nanos(20_000) },
        Preemption::Full { cost: Nanos(20_000) },
    ] {
        for policy in PolicyKind::ALL {
            let (short, long) =
                (allocations(policy, preemption, 200), allocations(policy, preemption, 3_000));
            assert!(short > 0, "the allocator counts");
            assert_eq!(short, long, "{policy} on a GPU with {preemption:?}");
        }
    }
}
