//! A function's server, as its function and the IOMMU share it: one request at a time.

use super::link::{Link, LinkError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a server may take over one request of the guest's to its IOMMU, all mappings of it together: 2 ms for each
/// of the 4,096 that a host takes, which is far more than it needs. The last exchange may go on beyond that until its
/// own end.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is left of the patience with a server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience(Duration);

impl Patience {
    /// All of it.
    pub(super) const FULL: Self = Self(PATIENCE);
    /// Any exchange uses it up.
    #[cfg(test)]
    pub(super) const LEAST: Self = Self(Duration::from_nanos(1));
}

/// The connection, and whether there still is one.
pub(super) struct Server {
    label: String,
    state: Mutex<State>,
}

struct State {
    link: Box<dyn Link>,
    lost: bool,
}

impl Server {
    pub(super) fn new(label: String, link: Box<dyn Link>) -> Self {
        Self { label, state: Mutex::new(State { link, lost: false }) }
    }

    /// Makes a request; `None` where it failed. The loss of the server is logged once.
    pub(super) fn ask<T>(
        &self,
        request: impl FnOnce(&mut dyn Link) -> Result<T, LinkError>,
    ) -> Option<T> {
        self.attempt(request).and_then(Result::ok)
    }

    /// Makes a request; how it failed, or `None` where the server is lost. A server that is lost reads and
    /// writes nothing any more.
    pub(super) fn attempt<T>(
        &self,
        request: impl FnOnce(&mut dyn Link) -> Result<T, LinkError>,
    ) -> Option<Result<T, LinkError>> {
        let mut state = self.lock();
        if state.lost {
            return None;
        }
        let result = request(&mut *state.link);
        self.note(&mut state, &result);
        Some(result)
    }

    /// As [`Self::attempt`], where `patience` is left. A server that has used it up is hung up on: it is lost then, so
    /// that whoever waits for many small answers waits for a bounded time.
    pub(super) fn attempt_with<T>(
        &self,
        patience: &mut Patience,
        request: impl FnOnce(&mut dyn Link) -> Result<T, LinkError>,
    ) -> Option<Result<T, LinkError>> {
        let mut state = self.lock();
        if state.lost {
            return None;
        }
        if patience.0.is_zero() {
            state.link.hang_up();
            let slow = format!(
                "it took {} s over one request of the guest's to its IOMMU",
                PATIENCE.as_secs()
            );
            self.note(&mut state, &Err::<(), _>(LinkError::Lost(slow)));
            return None;
        }
        let start = Instant::now();
        let result = request(&mut *state.link);
        patience.0 = patience.0.saturating_sub(start.elapsed());
        self.note(&mut state, &result);
        Some(result)
    }

    /// Makes a request also where the server is lost: there is more to it than the server's answer.
    pub(super) fn tell(&self, request: impl FnOnce(&mut dyn Link) -> Result<(), LinkError>) {
        let mut state = self.lock();
        let result = request(&mut *state.link);
        if !state.lost {
            self.note(&mut state, &result);
        }
    }

    fn note<T>(&self, state: &mut State, result: &Result<T, LinkError>) {
        match result {
            Ok(_) => {}
            // A guest can cause these as fast as it likes.
            Err(LinkError::Refused(why)) => tracing::trace!("{}: {why}", self.label),
            Err(e @ LinkError::Lost(_)) => {
                state.lost = true;
                let label = &self.label;
                tracing::error!("{label}: {e}; the guest goes on and reads all-ones from it");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panics within a request leaves a connection that the next request finds out about.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
