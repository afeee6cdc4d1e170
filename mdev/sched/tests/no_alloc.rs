//! Once tenants are admitted, no policy allocates: not to submit, grant, ask back, complete, drop or see a vblank.
#![allow(unsafe_code)] // A global allocator that counts cannot be written without.

use beamline_abi::{FrameId, JobIndex, Nanos};
use beamline_sched::{
    Class, Contract, Decision, GpuCaps, Guard, JobSpec, LateLatch, MissAllowance, Period, Policy,
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

/// What a job of this tenant takes, and at most: slack is long enough to be asked back.
fn job_cost(tenant: u16) -> (u64, u64) {
    if tenant % 4 < 2 { (150_000, 200_000) } else { (1_500_000, 2_000_000) }
}

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
        max_job: Nanos(job_cost(tenant).1),
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

/// A GPU on which the job granted last runs first.
struct Gpu {
    now: u64,
    /// Jobs on it: ticket, since when, until when.
    running: Vec<(Ticket, u64, u64)>,
    /// By ticket: what a job that was asked back has left.
    left: Vec<u64>,
    granted: u64,
    asked_back: u64,
}

impl Gpu {
    fn new() -> Self {
        let (running, left) = (Vec::with_capacity(256), vec![0; 256]);
        Self { now: 0, running, left, granted: 0, asked_back: 0 }
    }

    /// Runs what `policy` decides until `end`, or until nothing is left to do.
    fn run(&mut self, policy: &mut dyn Policy, end: u64) {
        while self.now < end {
            match policy.decide(Nanos(self.now)) {
                Decision::Grant { ticket, .. } => {
                    self.granted += 1;
                    let cost = match self.left[ticket.0 as usize] {
                        0 => job_cost((ticket.0 / 10) as u16).0,
                        left => left,
                    };
                    for (_, _, below) in &mut self.running {
                        *below += cost;
                    }
                    self.running.push((ticket, self.now, self.now + cost));
                }
                Decision::Preempt { ticket } => {
                    let (on_gpu, since, until) = self.running.pop().expect("a job runs");
                    assert_eq!(on_gpu, ticket);
                    self.asked_back += 1;
                    self.left[ticket.0 as usize] = until - self.now;
                    policy.preempted(Nanos(self.now), ticket, Nanos(self.now - since));
                }
                Decision::Idle { until, .. } => {
                    let next = until.map_or(u64::MAX, |at| at.0);
                    match self.running.last() {
                        Some(&(ticket, since, done)) if done <= next => {
                            self.running.pop();
                            self.left[ticket.0 as usize] = 0;
                            self.now = done;
                            policy.complete(Nanos(done), ticket, Nanos(done - since));
                        }
                        _ if until.is_some() => self.now = next,
                        _ => return,
                    }
                }
            }
        }
    }
}

/// Fifty periods of work on the GPU.
fn drive(policy: &mut dyn Policy, gpu: &mut Gpu) {
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
                    arrival: Nanos(gpu.now.max(start)),
                    release: Nanos(release),
                    deadline: Nanos(start + PERIOD),
                    slot,
                });
            }
        }
        if slot % 16 == 15 {
            policy.drop_jobs(TenantId((slot % u64::from(TENANTS)) as u16));
        }
        gpu.now = gpu.now.max(start);
        gpu.run(policy, start + PERIOD);
    }
    policy.remove(TenantId(3));
}

#[test]
fn nothing_is_allocated_after_admission() {
    let cost = Nanos(50_000);
    for preemption in
        [Preemption::None, Preemption::Levels { levels: 2, grain: cost }, Preemption::Full { cost }]
    {
        for kind in PolicyKind::ALL {
            let caps = GpuCaps {
                in_flight: 1,
                ahead: 1,
                switch_cost: Nanos(5_000),
                guard_margin: Nanos(50_000),
                preemption,
            };
            let mut policy = kind.build(caps, usize::from(TENANTS), 256);
            for t in 0..TENANTS {
                policy.admit(TenantId(t), &contract(t));
            }
            let mut gpu = Gpu::new();
            let before = ALLOCATIONS.with(Cell::get);
            drive(policy.as_mut(), &mut gpu);
            let more = ALLOCATIONS.with(Cell::get) - before;
            assert_eq!(more, 0, "{kind} allocated under {preemption:?}");
            assert!(gpu.granted > 500, "{kind} granted only {} under {preemption:?}", gpu.granted);
            let asks = kind == PolicyKind::Beamline && preemption == Preemption::Full { cost };
            assert!(!asks || gpu.asked_back > 20, "{kind} asked back only {}", gpu.asked_back);
        }
    }
}
