//! Stage 4, schedule: slewing: how a tenant's vblanks move to another phase while it goes on rendering.
//!
//! Periods are only ever lengthened, by at most 1% each, until the tenant has fallen back to its new phase; so
//! it goes forward round its period, never back. [`Slew`] plans this in whole ns: before and after it the
//! vblanks are those of an absolute grid, and nothing adds up. At worst it takes 101 periods.
//!
//! [`Admission::try_slew`] says whether that breaks a promise:
//! * What passes the offset-free test may slew at any time, several tenants at once: longer periods are what
//!   sporadic releases are allowed, and the test holds for every alignment on the way.
//! * What rests on its phases may not: there are phases between two good ones that are not ([`Refused::Phases`]).
//!   But a newcomer may slew into its place before anything is promised to it, where the others' promises hold
//!   beside it as an elastic tenant, and all of them once it has arrived.

use crate::admission::{Admission, Current, Proof, Refusal};
use crate::contract::{Class, Contract, Period, Sink};
use crate::policy::TenantId;
use alloc::vec::Vec;
use beamline_abi::Nanos;

/// A period is lengthened by at most one part in this.
const PART: u64 = 100;

/// The vblanks of one tenant on their way from one phase to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slew {
    period: Period,
    from: Nanos,
    to: Nanos,
    /// Whole periods that the new grid is ahead in its numbering: 1 where the new phase is before the old one.
    turns: u64,
    /// The last vblank before the first longer period.
    first: u64,
    /// Longer periods.
    count: u64,
    /// What they are longer by in all, ns.
    distance: u64,
}

/// A phase that is no place within the period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the phase is {phase}; it must be below the period, {period}")]
pub struct NoPhase {
    /// As given.
    pub phase: Nanos,
    /// The period, rounded up.
    pub period: Nanos,
}

impl Slew {
    /// Moves the vblanks of a grid with this period from the phase `from` to the phase `to` (ns after the host's
    /// grid, both below the period); the period after vblank `first` is the first longer one.
    pub fn plan(period: Period, from: Nanos, to: Nanos, first: u64) -> Result<Self, NoPhase> {
        for phase in [from, to] {
            if u128::from(phase.0) * u128::from(period.den()) >= u128::from(period.num()) {
                return Err(NoPhase { phase, period: period.ceil() });
            }
        }
        let turns = u64::from(to < from);
        // At most a period, which is 10 s; two vblanks that are rounded down are a nanosecond more apart at most.
        let most = (turns * period.ceil().0 + to.0) - from.0;
        let count = most.div_ceil(period.floor().0 / PART);
        let mut slew = Self { period, from, to, turns, first, count, distance: 0 };
        let last = slew.last();
        slew.distance = slew.new_time(last).saturating_sub(slew.old_time(last)).0;
        Ok(slew)
    }

    fn old_time(&self, seq: u64) -> Nanos {
        self.from.saturating_add(self.period.times(seq))
    }

    fn new_time(&self, seq: u64) -> Nanos {
        self.to.saturating_add(self.period.times(seq.saturating_add(self.turns)))
    }

    /// The time of vblank `seq`, in ns after the origin of the host's grid. Later for every `seq`, before, on and
    /// after the way.
    pub fn time(&self, seq: u64) -> Nanos {
        if seq >= self.last() {
            return self.new_time(seq);
        }
        let gone = seq.saturating_sub(self.first);
        // Below `last` there is a way to go, so `count` is not 0; the quotient is below the distance.
        let moved = u128::from(self.distance) * u128::from(gone) / u128::from(self.count.max(1));
        self.old_time(seq).saturating_add(Nanos(moved as u64))
    }

    /// The first vblank on the new grid: it and all later ones are at whole periods from the new phase.
    pub const fn last(&self) -> u64 {
        self.first.saturating_add(self.count)
    }

    /// How many periods are longer.
    pub const fn periods(&self) -> u64 {
        self.count
    }

    /// What vblank `seq` of this tenant is on the new grid from [`Slew::last`] on: a period more where the way led
    /// past the host's own grid point.
    pub const fn turns(&self) -> u64 {
        self.turns
    }
}

/// How a tenant may slew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slewing {
    /// At any time, with all that is promised.
    Promised,
    /// As an elastic tenant: its frames are promised from its arrival on. All others keep their promises.
    PromisedOnArrival,
}

/// Why a tenant must stay where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No tenant has this number.
    #[error("there is no tenant {}; name one that is admitted", .0.0)]
    NoTenant(TenantId),
    /// Its display's clock is its own.
    #[error(
        "the tenant's display has a clock of its own; only a virtual one's vblanks can be moved"
    )]
    OwnClock,
    /// The new phase is no place within its period.
    #[error(transparent)]
    Phase(#[from] NoPhase),
    /// Promises could be broken on the way or at the new phase.
    #[error("the set rests on its phases, and not on these: {0}")]
    Phases(Refusal),
}

impl Admission {
    /// Whether `mover`, one of `current`, may slew to the phase `to`. Takes milliseconds: not for the frame's path.
    pub fn try_slew(
        &self,
        current: &[Current],
        mover: TenantId,
        to: Nanos,
    ) -> Result<Slewing, Refused> {
        let found = current.iter().find(|(id, _, _)| *id == mover);
        let &(_, contract, from) = found.ok_or(Refused::NoTenant(mover))?;
        if contract.sink != Sink::Virtual {
            return Err(Refused::OwnClock);
        }
        Slew::plan(contract.period, from, to, 0)?;
        if self.proof(current).is_ok_and(|p| p == Proof::OffsetFree) {
            return Ok(Slewing::Promised);
        }
        let with = |class: Class, phase: Nanos| -> Vec<Current> {
            let moved = (mover, Contract { class, ..contract }, phase);
            current.iter().map(|c| if c.0 == mover { moved } else { *c }).collect()
        };
        self.proof(&with(Class::Elastic, from)).map_err(Refused::Phases)?;
        self.proof(&with(contract.class, to)).map_err(Refused::Phases)?;
        Ok(Slewing::PromisedOnArrival)
    }
}

#[cfg(test)]
#[path = "slew_tests.rs"]
mod tests;
