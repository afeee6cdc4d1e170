//! Guests' requests for other contracts: one thread of ordinary priority decides on them, one at a time.
//!
//! No guest can cost the host more than this:
//!
//! * one decision on a slice in [`PER_SLICE`], however often it asks or resets; nobody is woken more often;
//! * after a change, the slice's next decision waits twice as long as the change keeps others waiting;
//! * the thread rests after each decision for as long as it took;
//! * an operator's change that waits goes first.

use super::{Controller, Entry, LOOK_AGAIN, State};
use crate::config::GuestContract;
use crate::device::eventfd::EventFd;
use crate::device::pacer::{Answer, Ask, AskTurn, PacerShared};
use crate::host::ask::{self, Decision, Terms};
use crate::host::slice::{readable, wait};
use crate::host::threads::Role;
use crate::host::{HostError, system};
use beamline_abi::{Nanos, Reason};
use beamline_vfio_user::server::Stop;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

/// Between two decisions on one slice, at least.
const PER_SLICE: Nanos = Nanos::from_millis(100);
/// How long a request waits for changes before it, as one on the control socket does.
const PATIENCE: Nanos = Nanos::from_secs(5);

/// What a slice's guest asked for last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastAsk {
    /// What.
    pub ask: Ask,
    /// How it was answered, once it is.
    pub answer: Option<Answer>,
}

/// A slice's requests.
#[derive(Default)]
pub(super) struct Asked {
    /// One that waits for a change before it.
    in_hand: Option<InHand>,
    /// When the next is looked at.
    not_before: Nanos,
    last: Option<LastAsk>,
}

#[derive(Clone, Copy)]
struct InHand {
    turn: AskTurn,
    ask: Ask,
    /// How long it waits at most.
    until: Nanos,
}

impl Asked {
    /// What was asked for last, unless it was reset before it was answered.
    pub(super) fn last(&self, pacer: &PacerShared) -> Option<LastAsk> {
        let dropped = self.in_hand.is_some_and(|hand| !pacer.awaits(hand.turn));
        self.last.filter(|_| !dropped)
    }

    /// What is to be decided on at `now`, if the guest still waits for it.
    fn next(&mut self, pacer: &PacerShared, now: Nanos) -> Option<InHand> {
        if let Some(hand) = self.in_hand.take() {
            if pacer.awaits(hand.turn) {
                return Some(hand);
            }
            // It was reset since.
            self.last = None;
        }
        let (turn, ask) = pacer.take_ask()?;
        self.last = Some(LastAsk { ask, answer: None });
        Some(InHand { turn, ask, until: now.saturating_add(PATIENCE) })
    }
}

impl Entry {
    /// When its guest's request is to be looked at, if there is one.
    fn ask_due(&self) -> Option<Nanos> {
        let server = self.server.as_ref()?;
        let any = self.asked.in_hand.is_some() || server.pacer().has_ask();
        any.then_some(self.asked.not_before)
    }
}

impl Controller {
    /// Decides on one request that is due; when to look again, `None`: once somebody asks.
    fn decide_ask(&self) -> Option<Nanos> {
        let mut state = self.lock();
        if state.ended {
            return None;
        }
        let now = self.workshop.clock.now();
        let places = state.slices.iter().enumerate();
        let due = places.filter_map(|(index, entry)| {
            let entry = entry.as_ref()?;
            let at = entry.ask_due()?;
            // Of those that are due, the one that has waited longest: nobody is passed over for ever.
            let until = entry.asked.in_hand.as_ref().map_or(Nanos::MAX, |hand| hand.until);
            Some((at.max(now), until, index))
        });
        let (at, _, index) = due.min()?;
        if at > now {
            return Some(at);
        }
        let State { slices, .. } = &mut *state;
        let entry = slices[index].as_mut()?;
        let pacer = Arc::clone(entry.server.as_ref()?.pacer());
        entry.asked.not_before = now.saturating_add(PER_SLICE);
        // There may be others.
        let Some(hand) = entry.asked.next(&pacer, now) else { return Some(now) };
        let decision = state.decide(index, &hand.ask, now);
        let busy = state.ledger.busy_until().saturating_sub(now);
        let asked = &mut state.slices[index].as_mut()?.asked;
        let answer = match decision {
            Decision::Later(until) if until < hand.until => {
                asked.not_before = asked.not_before.max(until);
                asked.in_hand = Some(hand);
                return Some(now);
            }
            Decision::Later(_) => Answer::Refused { reason: Reason::Busy, budget: Nanos::ZERO },
            Decision::Answered(answer, change) => {
                if change.is_some() {
                    let turn = now.saturating_add(Nanos(busy.0.saturating_mul(2)));
                    asked.not_before = asked.not_before.max(turn);
                }
                answer
            }
        };
        if let Some(last) = &mut asked.last {
            last.answer = Some(answer);
        }
        // A guest that has reset its pacer meanwhile reads on the page what it has got.
        pacer.answer(hand.turn, answer);
        Some(now)
    }
}

impl State {
    /// Decides, and has the change carried out.
    fn decide(&mut self, index: usize, ask: &Ask, now: Nanos) -> Decision {
        let again = Decision::Later(now.saturating_add(LOOK_AGAIN));
        let Some(entry) = &self.slices[index] else { return again };
        let policy = entry.config.guest_contract;
        if policy != GuestContract::Fixed {
            if entry.counters.changing.load(Ordering::Acquire) || self.link.is_open().is_err() {
                return again;
            }
            if now < self.claimed {
                return Decision::Later(self.claimed);
            }
        }
        let terms = Terms { policy, ceiling: entry.ceiling, current: entry.place.contract };
        let decision = ask::decide(&mut self.ledger, index as u16, &terms, ask, now);
        if let Decision::Answered(_, Some(change)) = decision
            && self.carry_out(index as u16, change).is_err()
        {
            // The dispatcher has ended since it was looked at: the host is of no use any more.
            return again;
        }
        decision
    }
}

/// The thread that decides. Dropping it ends it.
pub(in crate::host) struct AskThread {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl AskThread {
    /// Decides on what the guests of the controller's host ask for.
    pub(in crate::host) fn start(controller: Arc<Controller>) -> Result<Self, HostError> {
        let stop = Stop::new().map_err(system("make a stop handle"))?;
        let stopped = stop.clone();
        let placement = controller.placement().clone();
        let body = move || run(&controller, &controller.workshop.asked, &stopped);
        let thread = placement
            .spawn("asks", Role::Control, body)
            .map_err(system("start the thread that decides on contracts"))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for AskThread {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn run(controller: &Controller, asked: &EventFd, stop: &Stop) {
    let clock = &controller.workshop.clock;
    loop {
        asked.take();
        let began = clock.now();
        let next = controller.decide_ask();
        let ended = clock.now();
        let rest = ended.saturating_sub(began).max(Nanos(1));
        if wait(&mut [readable(stop)], Some(rest)) {
            return;
        }
        let idle = next.map(|next| next.saturating_sub(clock.now()));
        if wait(&mut [readable(asked), readable(stop)], idle) {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
