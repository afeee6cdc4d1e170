//! What the path of interrupts and doorbells adds to what KVM itself costs, on this machine, in one run.
//!
//! Two guests with the same code answer interrupts with doorbells: one on the smallest KVM machine that can
//! be built, one on Beamline's VMM with its pacer and vGPU. Both are pinned alike and waited for alike;
//! blocks of round trips alternate, so that the machine's noise hits both.

mod bare;
mod guest;
mod handover;
mod stack;
mod trip;
mod tsc;

use anyhow::{Context, ensure};
use beamline_abi::Nanos;
use beamline_benches::report::{Gate, LABEL, Row, table, write_json};
use beamline_benches::stats::Summary;
use beamline_latency::clock::TscMap;
use beamline_mdev::host::threads::{KeepAwake, pin};
use beamline_vmm::interrupt::stats::{Counter, Counts};
use std::process::ExitCode;
use trip::{Side, Trip};

/// Blocks of each side.
const BLOCKS: usize = 20;
/// Round trips of a block.
const TRIPS: usize = 250;
/// Round trips before a block that are not counted.
const WARM_UP: usize = 25;
/// Between two round trips: the guest is halted again when the next interrupt comes.
const PAUSE: Nanos = Nanos::from_micros(100);
/// At most this times what KVM itself costs, there and back, the hand-over to another thread included.
const LIMIT: f64 = 1.3;
/// At most this times what KVM itself costs, each way.
const WAY_LIMIT: f64 = 1.15;

fn main() -> ExitCode {
    beamline_benches::run("interrupts", bench)
}

fn bench() -> anyhow::Result<()> {
    let kvm = beamline_vmm::probe::kvm();
    if !kvm.usable() {
        println!("skip: interrupts: {kvm}");
        return Ok(());
    }
    report(&kvm.to_string(), measure()?)
}

/// Durations of one side, ns.
#[derive(Default)]
struct Durations {
    round: Vec<u64>,
    /// From the post to the guest's handler.
    interrupt: Vec<u64>,
    /// From the guest's handler to the thread that waits.
    doorbell: Vec<u64>,
    /// Trips whose guest time does not lie within them: the counters cannot be compared.
    strange: usize,
}

impl Durations {
    fn add(&mut self, trip: Trip, mult: u64) {
        let ns = |ticks: u64| ((u128::from(ticks) * u128::from(mult)) >> 32) as u64;
        self.round.push(ns(trip.woken - trip.posted));
        if (trip.posted..=trip.woken).contains(&trip.handled) {
            self.interrupt.push(ns(trip.handled - trip.posted));
            self.doorbell.push(ns(trip.woken - trip.handled));
        } else {
            self.strange += 1;
        }
    }
}

/// The CPUs that this process may use.
fn cpus() -> anyhow::Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None).context("this process's CPUs")?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// Both sides, and how often the guest exited to Beamline's VMM meanwhile.
struct Measured {
    bare: Durations,
    stack: Durations,
    /// From the worker's signal to the dispatcher.
    handover: Vec<u64>,
    exits: u64,
    /// What KVM counted meanwhile, of the bare guest and of Beamline's; why it did not.
    counts: Result<[Counts; 2], String>,
}

fn measure() -> anyhow::Result<Measured> {
    let cpus = cpus()?;
    ensure!(!cpus.is_empty(), "this process may use no CPU");
    let (host_cpu, guest_cpu) = (cpus[0], cpus[1 % cpus.len()]);
    // As a host does: an idle virtual CPU wakes late, on both sides alike.
    let _awake = KeepAwake::start(&[host_cpu, guest_cpu]).context("keep-awake threads")?;
    let map = TscMap::calibrate(Nanos::from_millis(200)).context("the time-stamp counter")?;
    let pause = ((u128::from(PAUSE.0) << 32) / u128::from(map.mult.max(1))) as u64;
    let mut bare = bare::Bare::start(guest_cpu)?;
    let mut stack = stack::Stack::start(guest_cpu, map)?;
    // Only now: the threads that were started have other places.
    pin(&[host_cpu]).context("pinning")?;
    bare.ready().context("the bare guest")?;
    stack.ready().context("Beamline's guest")?;
    let counts = |bare: &bare::Bare, stack: &stack::Stack| {
        bare.counts().and_then(|b| Ok([b, stack.counts()?])).map_err(|e| format!("{e:#}"))
    };
    let before = counts(&bare, &stack);
    let (mut of_bare, mut of_stack) = (Durations::default(), Durations::default());
    let mut step = handover::Handover::start(host_cpu)?;
    let mut handover = Vec::with_capacity(BLOCKS * TRIPS);
    for _ in 0..BLOCKS {
        block(&mut bare, &mut of_bare, map.mult, pause).context("the bare guest")?;
        block(&mut stack, &mut of_stack, map.mult, pause).context("Beamline's guest")?;
        for _ in 0..TRIPS {
            let ticks = step.once()?;
            handover.push(((u128::from(ticks) * u128::from(map.mult)) >> 32) as u64);
            tsc::spin(pause);
        }
    }
    let counts = before.and_then(|[bare_before, stack_before]| {
        let [of_bare, of_stack] = counts(&bare, &stack)?;
        Ok([of_bare.since(bare_before), of_stack.since(stack_before)])
    });
    let exits = stack.stop();
    bare.stop()?;
    Ok(Measured { bare: of_bare, stack: of_stack, handover, exits, counts })
}

fn block(side: &mut impl Side, into: &mut Durations, mult: u64, pause: u64) -> anyhow::Result<()> {
    for n in 0..WARM_UP + TRIPS {
        let trip = side.trip()?;
        if n >= WARM_UP {
            into.add(trip, mult);
        }
        tsc::spin(pause);
    }
    Ok(())
}

/// Whether it is one way only.
fn doorbell_way(what: &str) -> bool {
    what.contains(" to ")
}

/// Prints what KVM counted per trip, one interrupt and one doorbell; answers both sides' exits.
fn exits_per_trip(counts: &Result<[Counts; 2], String>) -> Option<[Option<f64>; 2]> {
    let counts = match counts {
        Ok(counts) => counts,
        Err(why) => {
            println!("skip: exits per vblank and doorbell: {why}");
            return None;
        }
    };
    let trips = (BLOCKS * (WARM_UP + TRIPS)) as f64;
    for (side, counts) in ["KVM alone", "Beamline"].into_iter().zip(counts) {
        let each: Vec<String> = counts
            .iter()
            .filter(|(_, n)| *n > 0)
            .map(|(counter, n)| format!("{} {:.2}", counter.name(), n as f64 / trips))
            .collect();
        println!("KVM counted per vblank and doorbell, {side} ({LABEL}): {}", each.join(", "));
    }
    Some(counts.map(|c| c.get(Counter::Exits).map(|n| n as f64 / trips)))
}

fn report(kvm: &str, measured: Measured) -> anyhow::Result<()> {
    let Measured { mut bare, mut stack, mut handover, exits, counts } = measured;
    let mut parts = vec![("round trip", &mut bare.round, &mut stack.round)];
    let strange = bare.strange + stack.strange;
    if strange == 0 {
        parts.push(("interrupt: post to handler", &mut bare.interrupt, &mut stack.interrupt));
        parts.push(("doorbell: handler to waiter", &mut bare.doorbell, &mut stack.doorbell));
    } else {
        println!(
            "skip: interrupts, each way: guest and host counters differ by an unknown amount ({strange} trips)"
        );
    }
    let (mut rows, mut gates) = (Vec::new(), Vec::new());
    // Of the last part, which is the doorbell.
    let mut doorbell = None;
    for (what, bare, stack) in parts {
        let (bare, stack) = (Summary::of(bare), Summary::of(stack));
        doorbell = Some((bare.median_ns, stack.median_ns));
        let ratio = stack.ratio(&bare);
        rows.push(Row { name: format!("{what}, KVM alone"), summary: bare, ratio: None });
        rows.push(Row { name: format!("{what}, Beamline"), summary: stack, ratio });
        let limit = if doorbell_way(what) { WAY_LIMIT } else { LIMIT };
        gates.push(Gate::at_most(format!("{what}, medians"), limit, ratio.unwrap_or(f64::NAN)));
    }
    rows.push(Row {
        name: "hand-over: worker to dispatcher".into(),
        summary: Summary::of(&mut handover),
        ratio: None,
    });
    // Against KVM's doorbell, which wakes one thread where this wakes two.
    if let (0, Some((bare, bell))) = (strange, doorbell) {
        let whole = (bell + Summary::of(&mut handover).median_ns) as f64;
        let what = format!("doorbell to dispatcher, {:.2} µs as a sum of medians", whole / 1e3);
        gates.push(Gate::at_most(what, LIMIT, whole / bare.max(1) as f64));
    }
    print!("{}", table(&format!("Interrupts and doorbells on {kvm}"), &rows));
    println!("exits to Beamline's VMM meanwhile: {exits}");
    let per_trip = exits_per_trip(&counts);
    for gate in &gates {
        println!("gate: {}", gate.line("×"));
    }
    let json = serde_json::json!({
        "bench": "interrupts", "label": LABEL, "kvm": kvm, "blocks": BLOCKS, "trips_per_block": TRIPS,
        "exits_to_vmm": exits, "exits_per_trip": per_trip,
        "rows": rows, "gates": gates,
    });
    println!("{}\n", write_json("interrupts", &json)?.display());
    Ok(())
}
