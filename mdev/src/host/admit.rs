//! Which contracts a host has promised to keep: what may come, change and go while it runs.
//!
//! Decisions only, as functions of the set and the time; [`super::control`] carries them out. Admission looks
//! at sets that stand still, so changes are made one after the other, and none while the work of one before
//! may still be due:
//!
//! * From one contract to another a slice goes at once where the *join* of the two (the larger budgets, the
//!   shorter period and deadlines) is admitted: whatever frames of both fall into an interval, they ask for
//!   no more than it.
//! * Else its promise pauses: it is elastic until [`PAUSE`] periods after its last old frame was due. A
//!   contract of budget C and period T asks for at most C + C·t/T in any t. With an old contract before and
//!   a new one after a pause of three of the longer periods, both together ask for no more than the heavier
//!   alone would have in the whole time, and with that the set was admitted.
//! * What a removed or reduced contract leaves free is given away after the same time, for the same reason.

use super::HostError;
use crate::config::HostConfig;
use crate::mediate::dispatcher::{Change, Way};
use beamline_abi::Nanos;
use beamline_sched::slew::Slewing;
use beamline_sched::{
    Admission, Class, Contract, Current, GpuCaps, LateLatch, PolicyKind, Proof, Refusal, TenantId,
};

/// Periods between the last frame of one contract and the first promised one of another.
const PAUSE: u64 = 3;
/// A slew takes at most 101 periods that are at most 1 % longer; and it begins at a vblank.
const SLEW_PERIODS: u64 = 104;

/// Why a set of contracts does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    /// It is refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A change before is not over.
    #[error("a change before this one ends at {0} host time")]
    Busy(Nanos),
}

/// A contract and where its vblanks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// What is promised.
    pub contract: Contract,
    /// Offset of its vblanks from the host's grid.
    pub phase: Nanos,
}

/// What is known of the whole set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// What it rests on.
    pub proof: Proof,
    /// GPU use that is promised, in parts per million.
    pub promised_ppm: u64,
}

/// The contracts of a host, by place.
#[derive(Clone, Debug)]
pub struct Ledger {
    admission: Admission,
    /// Phases are the `beamline` policy's own lever: other policies run on one common phase.
    paced: bool,
    places: Vec<Option<Place>>,
    promise: Promise,
    /// Nothing changes before this.
    busy: Nanos,
}

impl Ledger {
    /// No contract yet.
    pub fn new(config: &HostConfig, caps: GpuCaps) -> Self {
        Self {
            admission: Admission::new(caps, config.max_slices),
            paced: config.policy == PolicyKind::Beamline,
            places: vec![None; config.max_slices],
            promise: Promise { proof: Proof::OffsetFree, promised_ppm: 0 },
            busy: Nanos::ZERO,
        }
    }

    /// The configuration's slices, tight contracts first, each at its own index.
    pub fn load(config: &HostConfig, caps: GpuCaps) -> Result<Self, HostError> {
        let mut ledger = Self::new(config, caps);
        let mut order: Vec<usize> = (0..config.slices.len()).collect();
        order.sort_by_key(|&i| {
            let c = &config.slices[i].contract;
            (c.class, c.late_latch.is_none(), c.period.floor(), i)
        });
        for i in order {
            let slice = &config.slices[i];
            let refused = |refusal| HostError::Refused { slice: slice.name.clone(), refusal };
            let full = Refusal::Full { max_tenants: config.max_slices };
            let place = ledger.judge(None, &slice.contract).map_err(refused)?;
            *ledger.places.get_mut(i).ok_or_else(|| refused(full))? = Some(place);
        }
        Ok(ledger)
    }

    /// The contract at `index`.
    pub fn place(&self, index: u16) -> Option<Place> {
        self.places.get(usize::from(index)).copied().flatten()
    }

    /// The whole set's promise.
    pub fn promise(&self) -> Promise {
        self.promise
    }

    /// Nothing changes before this host time.
    pub const fn busy_until(&self) -> Nanos {
        self.busy
    }

    /// Whether a contract is kept from now on at `index`, which is free.
    pub fn admit(&mut self, index: u16, contract: &Contract, now: Nanos) -> Result<Place, NotNow> {
        self.idle(now)?;
        let place = self.judge(None, contract)?;
        if let Some(slot) = self.places.get_mut(usize::from(index)) {
            *slot = Some(place);
        }
        Ok(place)
    }

    /// Whether the contract at `index` may become `new`, and how; it stays as it is where not.
    pub fn change(&mut self, index: u16, new: &Contract, now: Nanos) -> Result<Change, NotNow> {
        self.idle(now)?;
        let Some(old) = self.place(index) else {
            // Nothing is promised there: that is an admission.
            let phase = self.admit(index, new, now)?.phase;
            return Ok(Change {
                contract: *new,
                way: Way::Restart(phase),
                interim: None,
                hold: Nanos::ZERO,
            });
        };
        let promise = self.promise;
        let others = self.current(Some(index));
        let there = self.judge(Some(index), new)?;
        let (way, promised) = self.way(&others, index, old, there);
        let steady = match way {
            Way::Stay => true,
            Way::Slew(_) => promised,
            // One frame begins at neither of the two phases.
            Way::Restart(_) => self.promise.proof == Proof::OffsetFree,
        };
        let [was, is] = [&old.contract, new].map(|c| c.class == Class::Reserved);
        let join = join(&old.contract, new);
        let joined =
            || self.admission.try_admit(&others, &join).is_ok_and(|a| a.proof == Proof::OffsetFree);
        let longest = old.contract.period.ceil().max(new.period.ceil());
        let pause = Nanos(PAUSE * longest.0);
        let due = now
            .saturating_add(Nanos(2 * longest.0))
            .saturating_add(old.contract.deadline)
            .saturating_add(pause);
        // Admission counts on the new phase: nobody else comes or changes before the vblanks are there.
        let on_the_way = match way {
            Way::Slew(_) if is => Nanos(SLEW_PERIODS * longest.0),
            Way::Restart(_) if is => longest,
            _ => Nanos::ZERO,
        };
        let (interim, busy) = if !is || (steady && (!was || joined())) {
            let freed = was && (!is || join != *new);
            let waits = freed || on_the_way > Nanos::ZERO;
            (None, if waits { due.saturating_add(on_the_way) } else { Nanos::ZERO })
        } else {
            let interim = Contract { class: Class::Elastic, ..*new };
            if let Err(refusal) = self.admission.try_admit(&others, &interim) {
                self.promise = promise;
                return Err(refusal.into());
            }
            (Some(interim), due.saturating_add(on_the_way))
        };
        self.places[usize::from(index)] = Some(there);
        self.busy = self.busy.max(busy);
        Ok(Change { contract: *new, way, interim, hold: pause })
    }

    /// The contract at `index` is promised no more.
    pub fn remove(&mut self, index: u16, now: Nanos) {
        let Some(old) = self.places.get_mut(usize::from(index)).and_then(Option::take) else {
            return;
        };
        let c = &old.contract;
        if c.class == Class::Reserved {
            let pause = Nanos((PAUSE + 1) * c.period.ceil().0);
            self.busy = self.busy.max(now.saturating_add(c.deadline).saturating_add(pause));
        }
        self.promise = Promise { proof: Proof::OffsetFree, promised_ppm: 0 };
        // What is left of the set is a set that was admitted; only its sum has to be made anew.
        let left = self.current(None);
        if let Some((last, others)) = left.split_last()
            && let Ok(admitted) = self.admission.try_admit(others, &last.1)
        {
            let (proof, promised_ppm) = (admitted.proof, admitted.promised_ppm);
            self.promise = Promise { proof, promised_ppm };
        }
    }

    fn idle(&self, now: Nanos) -> Result<(), NotNow> {
        if now < self.busy { Err(NotNow::Busy(self.busy)) } else { Ok(()) }
    }

    /// Whether `contract` is kept beside all but `index`, and where its vblanks are then.
    fn judge(&mut self, index: Option<u16>, contract: &Contract) -> Result<Place, Refusal> {
        let admitted = self.admission.try_admit(&self.current(index), contract)?;
        let (proof, promised_ppm) = (admitted.proof, admitted.promised_ppm);
        self.promise = Promise { proof, promised_ppm };
        let phase = if self.paced { admitted.phase } else { Nanos::ZERO };
        Ok(Place { contract: *contract, phase })
    }

    fn current(&self, except: Option<u16>) -> Vec<Current> {
        let places = self.places.iter().enumerate();
        places
            .filter(|(i, _)| except.map(usize::from) != Some(*i))
            .filter_map(|(i, p)| p.map(|p| (TenantId(i as u16), p.contract, p.phase)))
            .collect()
    }

    /// How the vblanks get from `old` to `new`, and whether the promise holds on the way.
    fn way(&self, others: &[Current], index: u16, old: Place, new: Place) -> (Way, bool) {
        if old.contract.period != new.contract.period {
            return (Way::Restart(new.phase), true);
        }
        if old.phase == new.phase {
            return (Way::Stay, true);
        }
        let id = TenantId(index);
        let mut all = others.to_vec();
        all.push((id, new.contract, old.phase));
        match self.admission.try_slew(&all, id, new.phase) {
            Ok(Slewing::Promised) => (Way::Slew(new.phase), true),
            Ok(Slewing::PromisedOnArrival) => (Way::Slew(new.phase), false),
            // No phase on the way would do: one long period leads past them all.
            Err(_) => (Way::Restart(new.phase), false),
        }
    }
}

/// What asks for at least as much as any sequence of frames of the two.
fn join(a: &Contract, b: &Contract) -> Contract {
    let late_latch = match (a.late_latch, b.late_latch) {
        (Some(x), Some(y)) => {
            Some(LateLatch { window: x.window.min(y.window), budget: x.budget.max(y.budget) })
        }
        (one, other) => one.or(other),
    };
    let window = late_latch.map_or(Nanos::ZERO, |l| l.window);
    let main = a.main_deadline().min(b.main_deadline());
    Contract {
        period: if a.period.floor() <= b.period.floor() { a.period } else { b.period },
        deadline: a.deadline.min(b.deadline).min(main.saturating_add(window)),
        budget: a.budget.max(b.budget),
        max_job: a.max_job.max(b.max_job),
        gap: a.gap.max(b.gap),
        jitter: a.jitter.max(b.jitter),
        late_latch,
        ..*b
    }
}

/// Asks admission for every slice, tight contracts first, and answers their phases in the configuration's
/// order.
pub fn admit(config: &HostConfig, caps: GpuCaps) -> Result<Vec<Nanos>, HostError> {
    let ledger = Ledger::load(config, caps)?;
    Ok(ledger.places.iter().flatten().map(|place| place.phase).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use beamline_sched::{Guard, MissAllowance, Period, Sink};

    const BEGIN: Nanos = Nanos::from_secs(1);

    fn ledger() -> Ledger {
        let text = "run_dir = \"run\"\nmax_slices = 4\n[gpu]\nbackend = \"model\"\n";
        let config = HostConfig::parse(text, std::path::Path::new("host.toml")).unwrap();
        Ledger::new(&config, config.caps())
    }

    fn contract(hz: u64, class: Class, budget_ms: u64) -> Contract {
        let period = Period::from_hz(hz, 1).unwrap();
        Contract {
            period,
            deadline: period.floor(),
            budget: Nanos::from_millis(budget_ms),
            max_job: Nanos::from_millis(1),
            gap: Nanos::ZERO,
            jitter: Nanos::ZERO,
            sink: Sink::Virtual,
            class,
            miss: MissAllowance { misses: 0, frames: 1 },
            late_latch: None,
            guard: Guard::Deadline,
            depth: 2,
            weight: 100,
        }
    }

    #[test]
    fn what_is_freed_is_given_away_once_its_last_frames_are_over() {
        let mut ledger = ledger();
        let most = contract(60, Class::Reserved, 12);
        ledger.admit(0, &most, BEGIN).unwrap();
        let refused = ledger.admit(1, &most, BEGIN);
        assert!(matches!(refused, Err(NotNow::Refused(_))), "{refused:?}");
        ledger.remove(0, BEGIN);
        assert_eq!((ledger.place(0), ledger.promise().promised_ppm), (None, 0));
        let Err(NotNow::Busy(until)) = ledger.admit(1, &most, BEGIN) else { panic!("at once") };
        let after = until.saturating_sub(BEGIN).0;
        // The last frame's deadline, and three periods at least.
        assert!((4 * 16_666_666..6 * 16_666_666).contains(&after), "{after}");
        ledger.admit(1, &most, until).unwrap();
        // Nobody was promised a frame of an elastic slice.
        ledger.admit(2, &contract(60, Class::Elastic, 1), until).unwrap();
        ledger.remove(2, until);
        ledger.admit(2, &contract(60, Class::Elastic, 1), until).unwrap();
    }

    #[test]
    fn a_promise_holds_on_the_way_only_where_both_contracts_fit_together() {
        let (slow, fast) = (contract(60, Class::Reserved, 10), contract(120, Class::Reserved, 4));
        let mut ledger = ledger();
        ledger.admit(0, &slow, BEGIN).unwrap();
        // 10 ms at 120 Hz is more than there is.
        let change = ledger.change(0, &fast, BEGIN).unwrap();
        assert_eq!(
            change.interim.map(|c| (c.class, c.budget)),
            Some((Class::Elastic, fast.budget))
        );
        assert!(matches!(change.way, Way::Restart(_)));
        let Err(NotNow::Busy(until)) = ledger.change(0, &slow, BEGIN) else { panic!("at once") };
        // 4 ms at 120 Hz and less fit.
        let less = Contract { budget: Nanos::from_millis(3), ..fast };
        let change = ledger.change(0, &less, until).unwrap();
        assert_eq!((change.interim, change.way), (None, Way::Stay));
        assert_eq!(ledger.place(0).map(|place| place.contract), Some(less));
    }

    /// A headset, and a game whose longest job fits between the headset's jobs, but not before its late latch.
    fn phased() -> (Contract, Contract) {
        let us = Nanos::from_micros;
        let late_latch = Some(LateLatch { window: us(1_200), budget: us(400) });
        let guard = Guard::Release;
        let headset = Contract {
            budget: us(1_600),
            max_job: us(1_600),
            late_latch,
            guard,
            ..contract(90, Class::Reserved, 0)
        };
        let game = Contract {
            budget: us(700),
            jitter: us(100),
            guard,
            ..contract(60, Class::Reserved, 0)
        };
        (headset, game)
    }

    #[test]
    fn nothing_is_promised_on_the_way_to_a_phase_that_the_set_rests_on() {
        let (headset, game) = phased();
        let elastic = Contract { class: Class::Elastic, ..game };
        let mut ledger = ledger();
        ledger.admit(0, &headset, BEGIN).unwrap();
        let from = ledger.admit(1, &elastic, BEGIN).unwrap().phase;
        let change = ledger.change(1, &game, BEGIN).unwrap();
        assert_eq!(ledger.promise().proof, Proof::Phased);
        let Way::Slew(to) = change.way else { panic!("{change:?}") };
        assert_ne!(from, to);
        assert_eq!(change.interim, Some(elastic));
        let Err(NotNow::Busy(until)) = ledger.admit(2, &elastic, BEGIN) else { panic!("at once") };
        assert!(until.saturating_sub(BEGIN) > Nanos(101 * game.period.floor().0));
    }

    #[test]
    fn nobody_else_comes_while_promised_vblanks_move() {
        let mut ledger = ledger();
        ledger.admit(0, &contract(60, Class::Reserved, 2), BEGIN).unwrap();
        let from = ledger.admit(1, &contract(60, Class::Reserved, 2), BEGIN).unwrap().phase;
        let more = contract(60, Class::Reserved, 5);
        let change = ledger.change(1, &more, BEGIN).unwrap();
        assert_eq!((ledger.promise().proof, change.interim), (Proof::OffsetFree, None));
        let next = ledger.admit(2, &contract(60, Class::Reserved, 1), BEGIN);
        match change.way {
            Way::Slew(to) => {
                assert_ne!(from, to);
                assert!(matches!(next, Err(NotNow::Busy(_))), "{next:?}");
            }
            way => assert!(way == Way::Stay && next.is_ok(), "{way:?} {next:?}"),
        }
    }

    #[test]
    fn a_refused_change_leaves_no_trace() {
        let mut ledger = ledger();
        ledger.admit(0, &contract(60, Class::Reserved, 6), BEGIN).unwrap();
        ledger.admit(1, &contract(60, Class::Reserved, 4), BEGIN).unwrap();
        let before = (ledger.place(1), ledger.promise());
        let refused = ledger.change(1, &contract(60, Class::Reserved, 12), BEGIN);
        assert!(matches!(refused, Err(NotNow::Refused(_))), "{refused:?}");
        assert_eq!((ledger.place(1), ledger.promise()), before);
        ledger.change(1, &contract(60, Class::Reserved, 5), BEGIN).unwrap();
    }

    #[test]
    fn a_join_asks_for_no_less_than_either() {
        let latch = |window, budget| {
            Some(LateLatch {
                window: Nanos::from_millis(window),
                budget: Nanos::from_millis(budget),
            })
        };
        let a = Contract { late_latch: latch(4, 1), ..contract(60, Class::Reserved, 3) };
        let b = Contract { late_latch: latch(2, 2), ..contract(90, Class::Reserved, 2) };
        for (x, y) in [(a, b), (b, a), (a, contract(60, Class::Reserved, 4))] {
            let both = join(&x, &y);
            for one in [x, y] {
                assert!(both.period.ceil() <= one.period.ceil() && both.budget >= one.budget);
                assert!(both.main_deadline() <= one.main_deadline());
                if let Some(l) = one.late_latch {
                    let j = both.late_latch.unwrap();
                    assert!(j.window <= l.window && j.budget >= l.budget);
                }
            }
        }
    }
}
