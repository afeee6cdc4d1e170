//! Asking the host for another contract, and reading its answer.
//!
//! One request is under way at a time. The answer comes with the pacer's vector 1; what was granted holds once
//! the timing page says so, with that vector again.

use super::Pacer;
use crate::transport::Transport;
use beamline_abi::pacer::{answer, feature, reg};
use beamline_abi::{Nanos, Reason};

/// What a guest asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// The refresh period in ns, numerator and denominator; `None`: it stays.
    pub period: Option<(u64, u64)>,
    /// GPU time per period, without the late latch; `None`: it stays.
    pub budget: Option<Nanos>,
    /// When a frame is due after its vblank; `None`: after one period.
    pub deadline: Option<Nanos>,
    /// The late latch; `None`: there is none.
    pub late_latch: Option<AskLatch>,
}

/// A late latch that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskLatch {
    /// Length of its window, which ends when the frame is due.
    pub window: Nanos,
    /// GPU time per period; `None`: it stays.
    pub budget: Option<Nanos>,
}

/// Why nothing was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The host takes no such requests.
    #[error(
        "this host takes no requests for another contract: its pacer has no feature CONTRACT_ASK"
    )]
    Unsupported,
    /// The host would drop it.
    #[error("the request before this one is not answered yet: wait for the pacer's vector 1")]
    Pending,
}

/// How the host has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The contract becomes what was asked for.
    Granted,
    /// It becomes that with less.
    Reduced {
        /// Why; `None` for a reason that this driver does not know.
        reason: Option<Reason>,
        /// GPU time per period that it becomes.
        budget: Nanos,
    },
    /// It stays as it is.
    Refused {
        /// As above.
        reason: Option<Reason>,
        /// GPU time per period that would fit, if that is known.
        fits: Option<Nanos>,
    },
}

impl Pacer {
    /// Asks for another contract. Several exits: not for every frame.
    ///
    /// # Errors
    /// Where the host takes no requests, or has not answered the one before.
    pub fn ask<T: Transport>(&mut self, t: &mut T, ask: &Ask) -> Result<(), AskError> {
        if u64::from(self.read(t, reg::FEATURES)) & feature::CONTRACT_ASK == 0 {
            return Err(AskError::Unsupported);
        }
        if self.read(t, reg::ANSWER) == answer::PENDING {
            return Err(AskError::Pending);
        }
        // A reset may have put the count back.
        self.answers = self.read(t, reg::ANSWER_COUNT);
        let time = |time: Option<Nanos>| time.map_or(0, |t| t.0);
        let (num, den) = ask.period.unwrap_or((0, 0));
        let latch = ask.late_latch;
        for (register, value) in [
            (reg::ASK_PERIOD_NUM, num),
            (reg::ASK_PERIOD_DEN, den),
            (reg::ASK_BUDGET, time(ask.budget)),
            (reg::ASK_DEADLINE, time(ask.deadline)),
            (reg::ASK_LATE_LATCH, time(latch.map(|l| l.window))),
            (reg::ASK_LATCH_BUDGET, time(latch.and_then(|l| l.budget))),
        ] {
            self.write(t, register, value as u32);
            self.write(t, register + 4, (value >> 32) as u32);
        }
        self.write(t, reg::ASK_COMMIT, 1);
        Ok(())
    }

    /// The answer to the latest request, once; `None`: it has not come, or was seen. To be looked at when
    /// vector 1 has fired. Exits: not for every frame.
    pub fn poll_answer<T: Transport>(&mut self, t: &mut T) -> Option<Answer> {
        let answers = self.read(t, reg::ANSWER_COUNT);
        if answers == self.answers {
            return None;
        }
        self.answers = answers;
        let said = self.read(t, reg::ANSWER);
        let reason = Reason::from_raw(self.read(t, reg::ANSWER_REASON));
        let low = self.read(t, reg::ANSWER_BUDGET);
        let high = self.read(t, reg::ANSWER_BUDGET + 4);
        let budget = Nanos(u64::from(high) << 32 | u64::from(low));
        match said {
            answer::GRANTED => Some(Answer::Granted),
            answer::REDUCED => Some(Answer::Reduced { reason, budget }),
            answer::REFUSED => {
                let fits = Some(budget).filter(|fits| *fits > Nanos::ZERO);
                Some(Answer::Refused { reason, fits })
            }
            // A reset has dropped it, or the host is newer than this driver.
            _ => None,
        }
    }
}
