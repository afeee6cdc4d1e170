//! Stage 10, harness: carries stamps from the threads of the frame's path to the log, without a lock.
//!
//! Each thread owns one [`Recorder`]: a ring that was allocated beforehand. A full ring drops the stamp
//! and counts it; the path never waits. One [`Collector`] empties all rings.

use crate::stamp::Stamp;
use rtrb::{Consumer, Producer, RingBuffer};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Stamps that fit a ring made with this capacity: 0.8 MiB, more than a second of the busiest thread.
pub const DEFAULT_CAPACITY: usize = 16 * 1024;

/// Writes the stamps of one thread.
#[derive(Debug)]
pub struct Recorder {
    ring: Option<Producer<Stamp>>,
    dropped: Arc<AtomicU64>,
}

impl Recorder {
    /// A recorder that keeps nothing, for hosts that do not measure.
    pub fn off() -> Self {
        Self { ring: None, dropped: Arc::new(AtomicU64::new(0)) }
    }

    /// Keeps `stamp`, or counts it as dropped where the ring is full. Neither blocks nor allocates.
    #[inline]
    pub fn record(&mut self, stamp: Stamp) {
        if let Some(ring) = &mut self.ring
            && ring.push(stamp).is_err()
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many stamps found no room.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Input {
    ring: Consumer<Stamp>,
    dropped: Arc<AtomicU64>,
}

/// Makes recorders, from any thread, for one [`Collector`].
#[derive(Clone, Debug, Default)]
pub struct Registry(Arc<Mutex<Vec<Input>>>);

impl Registry {
    /// A new recorder with room for `capacity` stamps between two drains. Allocates and locks: not for
    /// the hot path.
    pub fn recorder(&self, capacity: usize) -> Recorder {
        let (producer, consumer) = RingBuffer::new(capacity);
        let dropped = Arc::new(AtomicU64::new(0));
        let input = Input { ring: consumer, dropped: Arc::clone(&dropped) };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(input);
        Recorder { ring: Some(producer), dropped }
    }
}

/// Empties the rings of all recorders.
#[derive(Debug, Default)]
pub struct Collector {
    registry: Registry,
    inputs: Vec<Input>,
    dropped_by_the_gone: u64,
}

impl Collector {
    /// A collector without recorders.
    pub fn new() -> Self {
        Self::default()
    }

    /// What makes recorders for this collector.
    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// Hands every waiting stamp to `sink`, ring by ring, and returns how many there were. One call is
    /// bounded: it takes what is in each ring when it gets there. Rings whose recorder is gone are freed
    /// once they are empty.
    ///
    /// # Errors
    /// Passes on the first error of `sink`; stamps that were not reached stay in their rings.
    pub fn drain<E>(&mut self, mut sink: impl FnMut(&Stamp) -> Result<(), E>) -> Result<u64, E> {
        let new =
            std::mem::take(&mut *self.registry.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.inputs.extend(new);
        let mut taken = 0;
        for input in &mut self.inputs {
            for _ in 0..input.ring.slots() {
                let Ok(stamp) = input.ring.pop() else { break };
                taken += 1;
                sink(&stamp)?;
            }
        }
        let gone = &mut self.dropped_by_the_gone;
        self.inputs.retain(|input| {
            // Order matters: a recorder may push and then go away between the two looks.
            let done = input.ring.is_abandoned() && input.ring.is_empty();
            if done {
                *gone += input.dropped.load(Ordering::Relaxed);
            }
            !done
        });
        Ok(taken)
    }

    /// How many stamps found no room, over all recorders ever made.
    pub fn dropped(&self) -> u64 {
        let registered = self.registry.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = self.inputs.iter().chain(registered.iter());
        self.dropped_by_the_gone + waiting.map(|i| i.dropped.load(Ordering::Relaxed)).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn drain(collector: &mut Collector) -> Vec<Stamp> {
        let mut out = Vec::new();
        let taken = collector.drain(|s| {
            out.push(*s);
            Ok::<_, Infallible>(())
        });
        assert_eq!(taken, Ok(out.len() as u64));
        out
    }

    #[test]
    fn a_full_ring_drops_and_counts() {
        let mut collector = Collector::new();
        let mut recorder = collector.registry().recorder(2);
        for time in 0..5 {
            recorder.record(Stamp { time, ..Stamp::default() });
        }
        assert_eq!(recorder.dropped(), 3);
        assert_eq!(collector.dropped(), 3, "also before the first drain");
        let times: Vec<u64> = drain(&mut collector).iter().map(|s| s.time).collect();
        assert_eq!(times, [0, 1]);
        drop(recorder);
        assert!(drain(&mut collector).is_empty());
        assert!(collector.inputs.is_empty(), "the ring of a recorder that is gone is freed");
        assert_eq!(collector.dropped(), 3);
    }

    #[test]
    fn stamps_of_many_threads_all_arrive() {
        let mut collector = Collector::new();
        let registry = collector.registry();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let mut recorder = registry.recorder(1000);
                scope.spawn(move || {
                    for time in 0..1000 {
                        recorder.record(Stamp { time, ..Stamp::default() });
                    }
                });
            }
        });
        assert_eq!(drain(&mut collector).len(), 4000);
        assert_eq!(collector.dropped(), 0);
    }

    #[test]
    fn a_recorder_that_is_off_keeps_nothing() {
        let mut recorder = Recorder::off();
        recorder.record(Stamp::default());
        assert_eq!(recorder.dropped(), 0);
    }
}
