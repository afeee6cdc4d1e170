//! What the machine did meanwhile, told by threads that do nothing: one on each CPU, which sleeps and looks how much
//! longer than asked that took.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long each thread sleeps.
const SLEEP: Duration = Duration::from_millis(2);

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// The longest that a thread was held up, ns.
    worst: AtomicU64,
}

/// Threads that watch every CPU that this process may use.
pub(crate) struct Witness(Arc<Shared>);

impl Witness {
    pub(crate) fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let mine = sched_getaffinity(None).unwrap();
        for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| mine.is_set(*cpu)) {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                let mut one = CpuSet::new();
                one.set(cpu);
                // A CPU that has gone since is watched by nobody.
                if sched_setaffinity(None, &one).is_err() {
                    return;
                }
                while !shared.stop.load(Ordering::Relaxed) {
                    let since = Instant::now();
                    std::thread::sleep(SLEEP);
                    let late = since.elapsed().saturating_sub(SLEEP).as_nanos() as u64;
                    shared.worst.fetch_max(late, Ordering::Relaxed);
                }
            });
        }
        Self(shared)
    }

    /// The longest that a thread was held up since this was last asked.
    pub(crate) fn worst(&self) -> Duration {
        Duration::from_nanos(self.0.worst.swap(0, Ordering::Relaxed))
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}
