//! What a guest asks for, on its way to whoever decides, and the answer on its way back.
//!
//! The server's thread stages registers and puts one request into one slot; everything else happens in a
//! thread of the host's control side. Neither waits for the other.
//!
//! ```text
//!   None ──commit──▶ Pending ──answer──▶ Granted, Reduced or Refused ──commit──▶ Pending ...
//!     ▲                 │ commit: dropped              │
//!     └──── reset ──────┴──────────────────────────────┘
//! ```
//!
//! Each commit and each reset begins a new *turn*. An answer names the turn that it is for, so one that comes
//! after a reset is dropped, also where the guest has asked again meanwhile.

use super::PacerShared;
use crate::device::eventfd::EventFd;
use arc_swap::ArcSwapOption;
use beamline_abi::pacer::{answer, vector};
use beamline_abi::{Nanos, Reason};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// What a guest asks for, as it was staged: nothing of it is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// Period in ns, numerator; 0 with `period_den`: the period stays.
    pub period_num: u64,
    /// Denominator.
    pub period_den: u64,
    /// GPU time per period; zero: it stays.
    pub budget: Nanos,
    /// When a frame is due after its vblank; zero: one period.
    pub deadline: Nanos,
    /// Length of the late-latch window; zero: none.
    pub late_latch: Nanos,
    /// GPU time of the late latch; zero: it stays.
    pub latch_budget: Nanos,
}

/// Which request an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskTurn(u32);

/// How a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The contract becomes what was asked for.
    Granted,
    /// It becomes that with less.
    Reduced {
        /// Why not all.
        reason: Reason,
        /// GPU time per period that it becomes.
        budget: Nanos,
    },
    /// It stays.
    Refused {
        /// Why.
        reason: Reason,
        /// GPU time per period that would fit; zero: none is known.
        budget: Nanos,
    },
}

impl Answer {
    /// Why it is not all that was asked for, and the budget that it names.
    const fn told(self) -> (u32, Reason, Nanos) {
        match self {
            Self::Granted => (answer::GRANTED, Reason::None, Nanos::ZERO),
            Self::Reduced { reason, budget } => (answer::REDUCED, reason, budget),
            Self::Refused { reason, budget } => (answer::REFUSED, reason, budget),
        }
    }
}

/// Where a slice's request and its answer lie.
pub(super) struct Desk {
    /// A [`Stand`].
    stand: AtomicU64,
    /// Means something only where `stand` says reduced or refused.
    budget: AtomicU64,
    slot: ArcSwapOption<(AskTurn, Ask)>,
    /// Something was put into the slot since it was last emptied: whoever decides has been woken for it.
    posted: AtomicBool,
    /// Wakes whoever decides, once there is somebody.
    wake: OnceLock<EventFd>,
}

/// The turn (32 bits), how many answers there were (16), the reason (8), and the ANSWER (8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stand(u64);

impl Stand {
    const fn new(turn: u32, count: u16, reason: Reason, answer: u32) -> Self {
        Self(
            (turn as u64) << 32
                | (count as u64) << 16
                | (reason as u64 & 0xff) << 8
                | answer as u64,
        )
    }
    const fn turn(self) -> AskTurn {
        AskTurn((self.0 >> 32) as u32)
    }
    /// ANSWER_COUNT.
    pub(super) const fn count(self) -> u16 {
        (self.0 >> 16) as u16
    }
    /// ANSWER_REASON.
    pub(super) const fn reason(self) -> u32 {
        (self.0 >> 8) as u32 & 0xff
    }
    /// ANSWER.
    pub(super) const fn answer(self) -> u32 {
        self.0 as u32 & 0xff
    }
}

impl Desk {
    pub(super) const fn new() -> Self {
        Self {
            stand: AtomicU64::new(0),
            budget: AtomicU64::new(0),
            slot: ArcSwapOption::const_empty(),
            posted: AtomicBool::new(false),
            wake: OnceLock::new(),
        }
    }

    /// How the guest's request stands.
    pub(super) fn stand(&self) -> Stand {
        Stand(self.stand.load(Ordering::Acquire))
    }

    /// ANSWER_BUDGET.
    pub(super) fn budget(&self) -> Nanos {
        match self.stand().answer() {
            answer::REDUCED | answer::REFUSED => Nanos(self.budget.load(Ordering::Relaxed)),
            _ => Nanos::ZERO,
        }
    }

    /// The guest commits what it staged; dropped while a request is pending. For the server's thread.
    pub(super) fn commit(&self, ask: Ask) {
        let Some(turn) = self.advance(answer::PENDING) else { return };
        self.slot.store(Some(Arc::new((turn, ask))));
        // A guest that resets and asks again as fast as it can wakes nobody a second time.
        if !self.posted.swap(true, Ordering::AcqRel)
            && let Some(wake) = self.wake.get()
        {
            wake.signal();
        }
    }

    /// Drops the request and the answer. For the server's thread.
    pub(super) fn reset(&self) {
        // Always begins a turn.
        let _ = self.advance(answer::NONE);
    }

    /// Begins a turn; `None` where a request is pending and this is another.
    fn advance(&self, to: u32) -> Option<AskTurn> {
        let next = |stand: u64| {
            let now = Stand(stand);
            let turn = now.turn().0.wrapping_add(1);
            match to {
                answer::PENDING if now.answer() == answer::PENDING => None,
                answer::PENDING => Some(Stand::new(turn, now.count(), Reason::None, to).0),
                _ => Some(Stand::new(turn, 0, Reason::None, to).0),
            }
        };
        let before = self.stand.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).ok()?;
        Some(AskTurn(Stand(before).turn().0.wrapping_add(1)))
    }

    /// Who is woken by a request. The first one stays.
    pub(super) fn listen(&self, wake: EventFd) {
        let _ = self.wake.set(wake);
        // What came before there was anybody.
        if self.posted.load(Ordering::Acquire)
            && let Some(wake) = self.wake.get()
        {
            wake.signal();
        }
    }

    /// Whether there is something to take.
    pub(super) fn is_posted(&self) -> bool {
        self.posted.load(Ordering::Acquire)
    }

    /// The request that lies there, if it is still wanted.
    pub(super) fn take(&self) -> Option<(AskTurn, Ask)> {
        self.posted.store(false, Ordering::Release);
        let taken = self.slot.swap(None)?;
        self.is_pending(taken.0).then_some(*taken)
    }

    /// Whether this turn's request is still unanswered and wanted.
    pub(super) fn is_pending(&self, turn: AskTurn) -> bool {
        let stand = self.stand();
        stand.turn() == turn && stand.answer() == answer::PENDING
    }

    /// Answers; `false` where nobody waits for it any more. For the one thread that decides.
    pub(super) fn answer(&self, turn: AskTurn, answer: Answer) -> bool {
        if !self.is_pending(turn) {
            return false;
        }
        let (word, reason, budget) = answer.told();
        // Not looked at until this thread has ended the pending request.
        self.budget.store(budget.0, Ordering::Relaxed);
        let next = |stand: u64| {
            let now = Stand(stand);
            let pending = now.turn() == turn && now.answer() == answer::PENDING;
            let count = now.count().wrapping_add(1);
            pending.then(|| Stand::new(turn.0, count, reason, word).0)
        };
        self.stand.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).is_ok()
    }
}

impl PacerShared {
    /// Has `wake` signalled when the guest has asked for another contract. The first one stays.
    pub fn listen(&self, wake: EventFd) {
        self.desk.listen(wake);
    }

    /// Whether [`PacerShared::take_ask`] may have something.
    pub fn has_ask(&self) -> bool {
        self.desk.is_posted()
    }

    /// What the guest asks for, once.
    pub fn take_ask(&self) -> Option<(AskTurn, Ask)> {
        self.desk.take()
    }

    /// Whether the guest still waits for the answer of this turn.
    pub fn awaits(&self, turn: AskTurn) -> bool {
        self.desk.is_pending(turn)
    }

    /// Answers what the guest asked for, and tells it so; `false` where it does not wait any more. Only one
    /// thread answers.
    pub fn answer(&self, turn: AskTurn, answer: Answer) -> bool {
        let waited = self.desk.answer(turn, answer);
        if waited {
            self.notify(vector::CONTRACT);
        }
        waited
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: Answer =
        Answer::Refused { reason: Reason::Ceiling, budget: Nanos::from_millis(2) };

    fn ask(budget: u64) -> Ask {
        Ask { budget: Nanos(budget), ..Ask::default() }
    }

    #[test]
    fn one_request_is_under_way_and_each_is_answered_once() {
        let desk = Desk::new();
        assert_eq!(desk.take(), None);
        desk.commit(ask(1));
        desk.commit(ask(2));
        let (turn, first) = desk.take().unwrap();
        assert_eq!((first, desk.stand().answer()), (ask(1), answer::PENDING));
        assert_eq!(desk.take(), None);
        assert!(desk.answer(turn, REFUSED));
        assert!(!desk.answer(turn, Answer::Granted));
        let stand = desk.stand();
        assert_eq!((stand.answer(), stand.count()), (answer::REFUSED, 1));
        assert_eq!((stand.reason(), desk.budget()), (13, Nanos::from_millis(2)));
        desk.commit(ask(3));
        assert_eq!((desk.stand().reason(), desk.budget()), (0, Nanos::ZERO));
        let (turn, _) = desk.take().unwrap();
        assert!(desk.answer(turn, Answer::Granted));
        assert_eq!((desk.stand().count(), desk.budget()), (2, Nanos::ZERO));
    }

    #[test]
    fn an_answer_after_a_reset_reaches_nobody() {
        let desk = Desk::new();
        desk.commit(ask(1));
        let (old, _) = desk.take().unwrap();
        desk.reset();
        assert!(!desk.is_pending(old) && !desk.answer(old, REFUSED));
        assert_eq!((desk.stand().answer(), desk.stand().count()), (answer::NONE, 0));
        desk.commit(ask(2));
        assert!(!desk.answer(old, REFUSED), "not the request that it was asked for");
        assert_eq!(desk.stand().answer(), answer::PENDING);
        // One that was reset before anybody took it.
        desk.reset();
        assert_eq!(desk.take(), None);
    }

    #[test]
    fn a_flood_wakes_whoever_decides_once() {
        let desk = Desk::new();
        let wake = EventFd::new().unwrap();
        desk.commit(ask(0));
        desk.listen(wake.clone());
        assert!(wake.take(), "it came before anybody listened");
        for n in 0..1_000 {
            desk.commit(ask(n));
            desk.reset();
        }
        desk.commit(ask(7));
        assert!(!wake.take(), "there is one to look at already");
        assert_eq!(desk.take().map(|(_, ask)| ask), Some(ask(7)));
        desk.reset();
        desk.commit(ask(8));
        assert!(wake.take());
    }
}
