//! What a guest's handle and its vCPU threads share: who still runs, and why the guest ended.
//!
//! ```text
//!  Starting ─ enter ─► Running ─ leave(reason) ─► Gone      one per vCPU
//! ```
//!
//! The first thread that leaves says why the guest ended and has the others leave, too. The guest has ended
//! when all are gone.
//!
//! ```text
//!             pause                    all that are not gone have parked
//!  Running ──────────► on their way ───────────────────────────────────► Paused
//!     ▲ resume, or not all parked in time │                                │ resume
//!     └───────────────────────────────────┴────────────────────────────────┘
//! ```
//!
//! A thread parks between two `KVM_RUN`s, with every exit served.

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
    stop: bool,
    pause: bool,
    /// How many of those that have not left wait for the guest to go on.
    parked: usize,
}

impl State {
    fn is_paused(&self) -> bool {
        self.left > 0 && self.pause && self.parked == self.left
    }
}

/// What a vCPU's thread does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Next {
    /// It enters the guest.
    Run,
    /// It enters the guest, which was paused.
    Resume,
    /// It leaves.
    Stop,
}

/// Why a guest is not paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PauseError {
    /// There is nothing to pause.
    #[error("the guest has ended")]
    Ended,
    /// It runs on.
    #[error(
        "a vCPU did not come out of the guest in time, since it waits for a device's server; the guest runs on"
    )]
    Slow,
    /// It runs on.
    #[error("somebody let the guest go on before all vCPUs had come out of it")]
    Resumed,
}

/// A guest's life.
#[derive(Debug)]
pub(crate) struct Life {
    state: Mutex<State>,
    changed: Condvar,
    /// Something other than running is asked for: the one word that a running thread looks at.
    attention: AtomicBool,
}

impl Life {
    /// The life of a guest with `vcpus` threads, none of which runs yet.
    pub(crate) fn new(vcpus: usize) -> Self {
        let state = State {
            running: vec![None; vcpus],
            left: vcpus,
            reason: None,
            stop: false,
            pause: false,
            parked: 0,
        };
        let attention = AtomicBool::new(false);
        Self { state: Mutex::new(state), changed: Condvar::new(), attention }
    }

    /// What the calling vCPU's thread does next. Waits while the guest is paused.
    pub(crate) fn next(&self) -> Next {
        if !self.attention.load(Ordering::Acquire) {
            return Next::Run;
        }
        let mut state = self.state();
        let mut next = Next::Run;
        if state.pause && !state.stop {
            state.parked += 1;
            self.changed.notify_all();
            let paused = |s: &mut State| s.pause && !s.stop;
            state = self.changed.wait_while(state, paused).unwrap_or_else(PoisonError::into_inner);
            state.parked -= 1;
            next = Next::Resume;
        }
        if state.stop { Next::Stop } else { next }
    }

    /// Has all threads park; returns once they have. Where they do not within `limit`, the guest runs on.
    pub(crate) fn pause(&self, limit: Duration) -> Result<(), PauseError> {
        let mut state = self.state();
        if state.stop || state.left == 0 {
            return Err(PauseError::Ended);
        }
        state.pause = true;
        self.kick(&state);
        let under_way = |s: &mut State| s.pause && !s.stop && !s.is_paused();
        let (mut state, _) = self
            .changed
            .wait_timeout_while(state, limit, under_way)
            .unwrap_or_else(PoisonError::into_inner);
        if state.stop {
            return Err(PauseError::Ended);
        }
        if state.is_paused() {
            return Ok(());
        }
        if !state.pause {
            return Err(PauseError::Resumed);
        }
        self.go_on(&mut state);
        Err(PauseError::Slow)
    }

    /// Lets all threads go on. False: the guest has ended.
    pub(crate) fn resume(&self) -> bool {
        let mut state = self.state();
        self.go_on(&mut state);
        !state.stop && state.left > 0
    }

    fn go_on(&self, state: &mut State) {
        state.pause = false;
        self.attention.store(state.stop, Ordering::Release);
        self.changed.notify_all();
    }

    /// Whether all threads that have not left wait for the guest to go on.
    pub(crate) fn is_paused(&self) -> bool {
        let state = self.state();
        state.is_paused() && !state.stop
    }

    /// Whether the guest has ended, or is about to.
    pub(crate) fn ends(&self) -> bool {
        let state = self.state();
        state.stop || state.left == 0
    }

    /// Every change is whole before the lock is let go, so that a panic elsewhere leaves it sound.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The calling thread runs vCPU `index` from now on and can be kicked. It asks for [`Self::next`]
    /// after this.
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
        self.ask(&mut state);
    }

    /// Asks all threads to leave, and returns at once. Where none has given a reason before, it is `reason`.
    pub(crate) fn request_end(&self, reason: ExitReason) {
        let mut state = self.state();
        state.reason.get_or_insert(reason);
        self.ask(&mut state);
    }

    fn ask(&self, state: &mut State) {
        state.stop = true;
        self.kick(state);
        // Those that are parked, and who waits for the end.
        self.changed.notify_all();
    }

    /// While the lock is held no thread can end, so that their numbers are their own.
    fn kick(&self, state: &State) {
        self.attention.store(true, Ordering::Release);
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
    use std::sync::atomic::AtomicU64;

    #[test]
    fn the_first_reason_counts_and_the_last_thread_ends_it() {
        let life = Life::new(2);
        let none = Some(Duration::ZERO);
        crate::kick::install().unwrap();
        let mut first = Seated::new(&life, 0);
        first.ends(ExitReason::GuestExit(7));
        drop(first);
        assert_eq!(life.next(), Next::Stop);
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

    /// Runs `threads` that do nothing but ask what is next, until the guest ends; `then` is called beside them.
    fn with_threads(threads: usize, then: impl FnOnce(&Life, &[AtomicU64])) {
        crate::kick::install().unwrap();
        let life = Life::new(threads);
        let turns: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for (index, turns) in turns.iter().enumerate() {
                let life = &life;
                scope.spawn(move || {
                    let mut seated = Seated::new(life, index);
                    while life.next() != Next::Stop {
                        turns.fetch_add(1, Ordering::Relaxed);
                        std::thread::yield_now();
                    }
                    seated.ends(ExitReason::Stopped);
                });
            }
            then(&life, &turns);
            life.request_end(ExitReason::Stopped);
        });
        assert_eq!(life.wait(None), Some(ExitReason::Stopped));
    }

    const LONG: Duration = Duration::from_mins(1);

    #[test]
    fn paused_threads_take_no_turn_until_they_are_resumed() {
        with_threads(3, |life, turns| {
            let taken =
                || -> Vec<u64> { turns.iter().map(|t| t.load(Ordering::Relaxed)).collect() };
            for _ in 0..50 {
                life.pause(LONG).unwrap();
                assert!(life.is_paused() && !life.ends());
                // Twice is once.
                life.pause(LONG).unwrap();
                let before = taken();
                std::thread::yield_now();
                assert_eq!(taken(), before);
                assert!(life.resume() && !life.is_paused());
                while taken().iter().zip(&before).any(|(now, before)| now == before) {
                    std::thread::yield_now();
                }
            }
        });
    }

    #[test]
    fn a_paused_guest_can_be_ended() {
        with_threads(2, |life, _| life.pause(LONG).unwrap());
    }

    #[test]
    fn a_thread_that_does_not_come_lets_the_guest_run_on() {
        let life = Life::new(1);
        crate::kick::install().unwrap();
        let mut seated = Seated::new(&life, 0);
        assert_eq!(life.pause(Duration::ZERO), Err(PauseError::Slow));
        assert_eq!((life.next(), life.is_paused()), (Next::Run, false));
        seated.ends(ExitReason::Shutdown);
        drop(seated);
        assert_eq!(life.pause(LONG), Err(PauseError::Ended));
        assert!(!life.resume() && life.ends());
        assert_eq!(life.next(), Next::Stop);
    }

    #[test]
    fn a_pause_that_meets_a_resume_is_told_so() {
        let life = Life::new(1);
        crate::kick::install().unwrap();
        // It never comes, so that nothing but the resume ends the pause.
        let mut seated = Seated::new(&life, 0);
        let paused = std::thread::scope(|scope| {
            let pausing = scope.spawn(|| life.pause(LONG));
            while !pausing.is_finished() {
                assert!(life.resume());
                std::thread::yield_now();
            }
            pausing.join().unwrap()
        });
        assert_eq!(paused, Err(PauseError::Resumed));
        assert_eq!((life.next(), life.is_paused()), (Next::Run, false));
        seated.ends(ExitReason::Stopped);
    }

    #[test]
    fn who_asks_for_the_end_gives_the_reason() {
        let life = Life::new(1);
        crate::kick::install().unwrap();
        let mut seated = Seated::new(&life, 0);
        life.request_end(ExitReason::Reset);
        seated.ends(ExitReason::Stopped);
        drop(seated);
        assert_eq!(life.wait(None), Some(ExitReason::Reset));
    }
}
