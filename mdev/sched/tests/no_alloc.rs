//! Once tenants are admitted, no policy allocates: not to submit, grant, complete, drop or see a vblank.
#![allow(unsafe_code)] // A global allocator that counts cannot be written without.

use beamline_abi::{FrameId, JobIndex, Nanos};
use beamline_sched::{
    Class, Contract, Decision, GpuCaps, Guard, JobSpec, LateLatch, MissAllowance, Period,
    PolicyKind, Preemption, Sink, TenantId, Ticket, Vblank,
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

const TENANTS: u16 = 24;
const PERIOD: u64 = 11_111_111;

fn contract(tenant: u16) -> Contract {
    let class = match tenant % 4 {
        0 | 1 => Class::Reserved,
        2 => Class::Elastic,
        _ => Class::Background,
    };
    Contract {
        period: Period::from_hz(90, 1).expect("90 Hz is in range"),
        deadline: Nanos(PERIOD),
        budget: Nanos(200_000),
        max_job: Nanos(200_000),
        gap: Nanos(50_000),
        jitter: Nanos(100_000),
        sink: Sink::Virtual,
        class,
        miss: MissAllowance { misses: 0, frames: 1 },
        late_latch: tenant
            .is_multiple_of(4)
            .then_some(LateLatch { window: Nanos(1_000_000), budget: Nanos(50_000) }),
        guard: Guard::Release,
        depth: 1,
        weight: 100,
    }
}

#[test]
fn nothing_is_allocated_after_admission() {
    for kind in PolicyKind::ALL {
        let caps = GpuCaps {
            in_flight: 1,
            switch_cost: Nanos(5_000),
            guard_margin: Nanos(50_000),
            preemption: Preemption::None,
        };
        let mut policy = kind.build(caps, usize::from(TENANTS), 256);
        for t in 0..TENANTS {
            policy.admit(TenantId(t), &contract(t));
        }
        let before = ALLOCATIONS.with(Cell::get);
        let mut grants = 0u64;
        let mut now = 0;
        for slot in 0..50u64 {
            let start = slot * PERIOD;
            for t in 0..TENANTS {
                let vblank = Vblank { seq: slot, time: Nanos(start), next: Nanos(start + PERIOD) };
                policy.vblank(TenantId(t), vblank);
                for job in 0..3u16 {
                    let late_latch = t % 4 == 0 && job == 2;
                    let release = if late_latch { start + PERIOD - 1_000_000 } else { start };
                    // Overruns fill the table in time: a refusal must not allocate either.
                    let _ = policy.submit(JobSpec {
                        ticket: Ticket(u32::from(t) * 10 + u32::from(job) + 3 * (slot % 2) as u32),
                        tenant: TenantId(t),
                        frame: FrameId(slot + 1),
                        job: JobIndex(job),
                        jobs: 3,
                        late_latch,
                        arrival: Nanos(now.max(start)),
                        release: Nanos(release),
                        deadline: Nanos(start + PERIOD),
                        slot,
                    });
                }
            }
            if slot % 16 == 15 {
                policy.drop_jobs(TenantId((slot % u64::from(TENANTS)) as u16));
            }
            now = now.max(start);
            while now < start + PERIOD {
                match policy.decide(Nanos(now)) {
                    Decision::Grant { ticket, .. } => {
                        grants += 1;
                        now += 150_000;
                        policy.complete(Nanos(now), ticket, Nanos(150_000));
                    }
                    Decision::Preempt { .. } => unreachable!("the GPU asks no job back"),
                    Decision::Idle { until: Some(at), .. } => now = at.0,
                    Decision::Idle { until: None, .. } => break,
                }
            }
        }
        policy.remove(TenantId(3));
        assert_eq!(ALLOCATIONS.with(Cell::get), before, "{kind} allocated");
        assert!(grants > 1_000, "{kind} granted only {grants}");
    }
}
