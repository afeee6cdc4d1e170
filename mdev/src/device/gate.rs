//! A gate that one thread can shut on others, and know that they are out.
//!
//! Threads that touch what a reset takes away (rings, guest memory) pass through the gate for each
//! bounded step; the reset shuts it and waits. Passing costs two uncontended atomic operations.

use std::sync::atomic::{AtomicU32, Ordering};

const CLOSED: u32 = 1 << 31;
const PAUSED: u32 = 1 << 30;
const INSIDE: u32 = PAUSED - 1;

/// The gate. Open when made.
#[derive(Debug, Default)]
pub struct Gate {
    /// How many are inside, and the two flags.
    state: AtomicU32,
}

/// Why a gate let nobody in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It never opens again.
    Closed,
    /// It may open again.
    Paused,
}

/// Someone is inside until this is dropped. To be held for a bounded step only.
#[must_use]
#[derive(Debug)]
pub struct Pass<'a>(&'a Gate);

impl Gate {
    /// Goes in.
    pub fn enter(&self) -> Result<Pass<'_>, Refused> {
        let before = self.state.fetch_add(1, Ordering::Acquire);
        let pass = Pass(self);
        match before {
            state if state & CLOSED != 0 => Err(Refused::Closed),
            state if state & PAUSED != 0 => Err(Refused::Paused),
            _ => Ok(pass),
        }
    }

    /// Shuts the gate for good; when it returns, nobody is inside.
    pub fn close(&self) {
        self.shut(CLOSED);
    }

    /// Shuts the gate until [`Gate::resume`]; when it returns, nobody is inside.
    pub fn pause(&self) {
        self.shut(PAUSED);
    }

    /// Opens the gate again, unless it is closed.
    pub fn resume(&self) {
        self.state.fetch_and(!PAUSED, Ordering::Release);
    }

    /// Whether the gate is shut for good.
    pub fn is_closed(&self) -> bool {
        self.state.load(Ordering::Relaxed) & CLOSED != 0
    }

    fn shut(&self, how: u32) {
        self.state.fetch_or(how, Ordering::AcqRel);
        // Whoever comes now is refused; those inside leave after one bounded step.
        while self.state.load(Ordering::Acquire) & INSIDE != 0 {
            std::thread::yield_now();
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn paused_and_closed_are_told_apart() {
        let gate = Gate::default();
        drop(gate.enter().unwrap());
        gate.pause();
        assert_eq!(gate.enter().unwrap_err(), Refused::Paused);
        gate.resume();
        drop(gate.enter().unwrap());
        gate.close();
        gate.resume();
        assert_eq!(gate.enter().unwrap_err(), Refused::Closed);
        assert!(gate.is_closed());
    }

    /// The owner changes two cells only while the gate is shut; a thread inside sees them equal.
    #[test]
    fn nobody_is_inside_a_shut_gate() {
        let gate = Gate::default();
        let cells = [AtomicU64::new(0), AtomicU64::new(0)];
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        match gate.enter() {
                            Ok(_pass) => {
                                let first = cells[0].load(Ordering::Relaxed);
                                std::thread::yield_now();
                                assert_eq!(first, cells[1].load(Ordering::Relaxed));
                            }
                            Err(Refused::Paused) => std::thread::yield_now(),
                            Err(Refused::Closed) => break,
                        }
                    }
                });
            }
            for n in 0..1000 {
                gate.pause();
                cells[0].store(n, Ordering::Relaxed);
                cells[1].store(n, Ordering::Relaxed);
                gate.resume();
            }
            gate.close();
        });
    }
}
