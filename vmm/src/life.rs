//! What a guest's handle and its vCPU threads share: who still runs, and why the guest ended.
//!
//! ```text
//!  Starting ─ enter ─► Running ─ leave(reason) ─► Gone      one per vCPU
//! ```
//!
//! The first thread that leaves says why the guest ended and has the others leave, too. The guest has ended
//! when all are gone.

use crate::kick::Thread;
use crate::vcpu::GuestError;
use crate::vm::ExitReason;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Debug)]
struct State {
    /// Those that can be kicked: they have not ended.
    running: Vec<Option<Thread>>,
    /// How many have not left.
    left: usize,
    reason: Option<ExitReason>,
}

/// A guest's life.
#[derive(Debug)]
pub(crate) struct Life {
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

impl Life {
    /// The life of a guest with `vcpus` threads, none of which runs yet.
    pub(crate) fn new(vcpus: usize) -> Self {
        let state = State { running: vec![None; vcpus], left: vcpus, reason: None };
        Self { state: Mutex::new(state), changed: Condvar::new(), stop: AtomicBool::new(false) }
    }

    /// Set: all threads leave as soon as they see it.
    pub(crate) fn stop(&self) -> &AtomicBool {
        &self.stop
    }

    /// Every change is whole before the lock is let go, so that a panic elsewhere leaves it sound.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The calling thread runs vCPU `index` from now on and can be kicked. It looks at [`Self::stop`] after
    /// this.
    fn enter(&self, index: usize) {
        if let Some(thread) = self.state().running.get_mut(index) {
            *thread = Some(Thread::current());
        }
    }

    /// vCPU `index` will not run again. Whatever its thread held is dropped already.
    fn leave(&self, index: usize, reason: ExitReason) {
        let mut state = self.state();
        if let Some(thread) = state.running.get_mut(index) {
            *thread = None;
        }
        state.reason.get_or_insert(reason);
        state.left = state.left.saturating_sub(1);
        self.ask(&state);
        if state.left == 0 {
            self.changed.notify_all();
        }
    }

    /// Asks all threads to leave, and returns at once.
    pub(crate) fn request_stop(&self) {
        self.ask(&self.state());
    }

    /// While the lock is held no thread can end, so that their numbers are their own.
    fn ask(&self, state: &State) {
        self.stop.store(true, Ordering::Release);
        for thread in state.running.iter().flatten() {
            thread.kick();
        }
    }

    /// The threads from `index` on were never started.
    pub(crate) fn abandon(&self, index: usize) {
        // Its own statement: the lock is let go at the end of it.
        let vcpus = self.state().running.len();
        for index in index..vcpus {
            self.leave(index, ExitReason::Stopped);
        }
    }

    /// Waits for the end, at most for `limit`.
    pub(crate) fn wait(&self, limit: Option<Duration>) -> Option<ExitReason> {
        let lives = |s: &mut State| s.left > 0;
        let state = match limit {
            None => {
                self.changed.wait_while(self.state(), lives).unwrap_or_else(PoisonError::into_inner)
            }
            Some(limit) => {
                self.changed
                    .wait_timeout_while(self.state(), limit, lives)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
        state.reason.clone().filter(|_| state.left == 0)
    }
}

/// A vCPU's thread. Whatever ends the thread, the guest's life says so.
pub(crate) struct Seated<'a> {
    life: &'a Life,
    index: usize,
    reason: Option<ExitReason>,
}

impl<'a> Seated<'a> {
    /// The calling thread runs vCPU `index`. Declare it before what the thread holds: that has to be dropped
    /// first.
    pub(crate) fn new(life: &'a Life, index: usize) -> Self {
        life.enter(index);
        Self { life, index, reason: None }
    }

    /// The thread is about to end, for this reason.
    pub(crate) fn ends(&mut self, reason: ExitReason) {
        self.reason = Some(reason);
    }
}

impl Drop for Seated<'_> {
    fn drop(&mut self) {
        let panicked = || ExitReason::Error(GuestError::Panicked);
        self.life.leave(self.index, self.reason.take().unwrap_or_else(panicked));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_counts_and_the_last_thread_ends_it() {
        let life = Life::new(2);
        let none = Some(Duration::ZERO);
        crate::kick::install().unwrap();
        let mut first = Seated::new(&life, 0);
        first.ends(ExitReason::GuestExit(7));
        drop(first);
        assert!(life.stop().load(Ordering::Acquire));
        assert_eq!(life.wait(none), None, "one is left");
        let mut second = Seated::new(&life, 1);
        second.ends(ExitReason::Stopped);
        drop(second);
        assert_eq!(life.wait(none), Some(ExitReason::GuestExit(7)));
    }

    #[test]
    fn a_thread_that_says_nothing_has_panicked() {
        let life = Life::new(1);
        drop(Seated::new(&life, 0));
        assert_eq!(life.wait(None), Some(ExitReason::Error(GuestError::Panicked)));
    }

    #[test]
    fn threads_that_were_never_started_are_not_waited_for() {
        let life = Life::new(3);
        let mut first = Seated::new(&life, 0);
        crate::kick::install().unwrap();
        life.abandon(1);
        first.ends(ExitReason::Stopped);
        drop(first);
        assert_eq!(life.wait(None), Some(ExitReason::Stopped));
    }
}
