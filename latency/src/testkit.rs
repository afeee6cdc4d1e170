//! Hand-made logs for the tests: one paced slice at 100 Hz, a neighbour, and a builder of stamps.

use crate::clock::{GuestTsc, TscMap};
use crate::log::Log;
use crate::meta::{ContractMeta, Label, Meta, SliceMeta};
use crate::stamp::{JobKey, SliceIndex, Stamp};
use beamline_abi::{FrameId, Generation, JobIndex, Nanos};

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const US: u64 = 1_000;
/// The time of vblank 0: sequence numbers begin at 1.
pub(crate) const T0: u64 = 1_000 * MS;
pub(crate) const PERIOD: u64 = 10 * MS;

pub(crate) fn contract() -> ContractMeta {
    ContractMeta {
        period_num: PERIOD,
        period_den: 1,
        deadline_ns: PERIOD,
        budget_ns: 3 * MS,
        max_job_ns: 2 * MS,
        gap_ns: 200 * US,
        jitter_ns: MS,
        late_latch_ns: 0,
        late_latch_budget_ns: 0,
        paced: true,
        class: "reserved".into(),
    }
}

pub(crate) fn guest_tsc() -> GuestTsc {
    GuestTsc { offset: 0u64.wrapping_sub(999), scale: 2 << 48 }
}

pub(crate) fn meta() -> Meta {
    let slice = |name: &str, contract| SliceMeta {
        name: name.into(),
        contract,
        guest_tsc: Some(guest_tsc()),
    };
    Meta {
        label: Label::Modelled,
        run: "test".into(),
        slices: vec![slice("vr", Some(contract())), slice("flood", None)],
        // 1 GHz: host ticks are host ns.
        tsc: Some(TscMap {
            tsc_ref: 0,
            ns_ref: 0,
            mult: 1 << 32,
            err_ns: 20,
            rate_err_ns_per_s: 0,
        }),
        gpu_clock_err_ns: 0,
        seed: 1,
        config_hash: String::new(),
    }
}

pub(crate) fn tick_time(seq: u64) -> u64 {
    T0 + seq * PERIOD
}

/// When the steps of one job happen, in host ns.
#[derive(Clone, Copy)]
pub(crate) struct Job {
    pub key: JobKey,
    pub submit: u64,
    pub release: u64,
    pub deadline: u64,
    pub start: u64,
    pub end: u64,
    pub predicted: u64,
}

pub(crate) fn key(slice: u16, frame: u64, job: u16, jobs: u16) -> JobKey {
    JobKey {
        slice: SliceIndex(slice),
        generation: Generation(1),
        frame: FrameId(frame),
        job: JobIndex(job),
        jobs,
        late_latch: false,
    }
}

/// A job of 1 ms for the frame released by vblank `seq`, all well.
pub(crate) fn good(seq: u64, job: u16, jobs: u16) -> Job {
    let release = tick_time(seq);
    let submit = release + 100 * US + u64::from(job) * 1_300 * US;
    Job {
        key: key(0, seq, job, jobs),
        submit,
        release,
        deadline: release + PERIOD,
        start: submit + 50 * US,
        end: submit + 1_050 * US,
        predicted: 0,
    }
}

impl Job {
    /// The same, run from `start` for `len`.
    pub(crate) fn run(self, start: u64, len: u64) -> Self {
        Self { start, end: start + len, ..self }
    }

    pub(crate) fn stamps(self) -> Vec<Stamp> {
        let k = self.key;
        let predicted = Some(Nanos(self.predicted)).filter(|p| p.0 > 0);
        let (release, deadline) = (Nanos(self.release), Nanos(self.deadline));
        let (start, end) = (Nanos(self.start), Nanos(self.end));
        vec![
            Stamp::submit(k, guest_tsc().from_host(self.submit)),
            Stamp::doorbell(k, Nanos(self.submit + 10 * US)),
            Stamp::mediated(k, Nanos(self.submit + 20 * US), 64),
            Stamp::granted(k, Nanos(self.start - 10 * US), release, deadline, predicted),
            Stamp::gpu(k, start, end, end - start, false),
            Stamp::fence(k, Nanos(self.end + 20 * US)),
        ]
    }
}

/// What a vblank leaves: emitted on time, seen by the guest 40 µs after the write.
pub(crate) fn vblank(seq: u64) -> Vec<Stamp> {
    vblank_seen(seq, 40 * US)
}

pub(crate) fn vblank_seen(seq: u64, delivery: u64) -> Vec<Stamp> {
    let (slice, generation) = (SliceIndex(0), Generation(1));
    let grid = Nanos(tick_time(seq));
    let posted = Nanos(grid.0 + 5 * US);
    vec![
        Stamp::tick(slice, generation, seq, grid, Nanos(grid.0 + 2 * US)),
        Stamp::posted(slice, generation, FrameId::NONE, seq, (posted, posted)),
        Stamp::guest(slice, generation, seq, guest_tsc().from_host(posted.0 + delivery)),
    ]
}

pub(crate) fn shown(frame: u64, seq: u64) -> Stamp {
    let grid = Nanos(tick_time(seq));
    let emitted = Nanos(grid.0 + 2 * US);
    Stamp::vblank(SliceIndex(0), Generation(1), FrameId(frame), seq, grid, emitted)
}

/// Vblanks 1 to `last`, and a good frame of one job for each but those in `without` and the last two.
pub(crate) fn run(last: u64, without: &[u64]) -> Vec<Stamp> {
    let mut stamps: Vec<Stamp> = (1..=last).flat_map(vblank).collect();
    for seq in (1..last).filter(|s| !without.contains(s)) {
        stamps.extend(good(seq, 0, 1).stamps());
        stamps.push(shown(seq, seq + 1));
    }
    stamps
}

pub(crate) fn log(stamps: Vec<Stamp>) -> Log {
    Log { meta: meta(), stamps, dropped: 0 }
}
