//! Stage 2, doorbell: how fast one slice may make the host work, whatever its guest does.

use beamline_abi::Nanos;

/// A token bucket: so many at once, and one more every so often.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Time that one token takes to come back.
    interval: Nanos,
    /// Tokens when full.
    burst: u64,
    /// When the bucket would be full again if nothing more were taken.
    full_at: Nanos,
}

impl Bucket {
    /// A full bucket of `burst` tokens, each back after `interval`.
    pub const fn new(burst: u64, interval: Nanos) -> Self {
        Self { interval, burst, full_at: Nanos::ZERO }
    }

    /// Takes `tokens`, or says when there will be as many. More than the burst never come together: they
    /// are taken as soon as the bucket is full, and owed.
    pub fn take(&mut self, now: Nanos, tokens: u64) -> Result<(), Nanos> {
        let room = Nanos(self.interval.0.saturating_mul(self.burst));
        let cost = Nanos(self.interval.0.saturating_mul(tokens));
        let full_at = self.full_at.max(now);
        let owed = full_at.saturating_sub(now);
        let allowed = room.saturating_sub(Nanos(cost.0.min(room.0)));
        if owed > allowed {
            return Err(full_at.saturating_sub(allowed));
        }
        self.full_at = full_at.saturating_add(cost);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut bucket = Bucket::new(3, Nanos(10));
        for _ in 0..3 {
            assert_eq!(bucket.take(Nanos(100), 1), Ok(()));
        }
        assert_eq!(bucket.take(Nanos(100), 1), Err(Nanos(110)));
        assert_eq!(bucket.take(Nanos(109), 1), Err(Nanos(110)));
        assert_eq!(bucket.take(Nanos(110), 1), Ok(()));
        assert_eq!(bucket.take(Nanos(110), 1), Err(Nanos(120)));
        assert_eq!(bucket.take(Nanos(1_000), 3), Ok(()), "full again, and not more than full");
        assert_eq!(bucket.take(Nanos(1_000), 1), Err(Nanos(1_010)));
    }

    #[test]
    fn more_than_the_burst_is_owed() {
        let mut bucket = Bucket::new(2, Nanos(10));
        assert_eq!(bucket.take(Nanos(0), 5), Ok(()));
        assert_eq!(bucket.take(Nanos(0), 5), Err(Nanos(50)));
        assert_eq!(bucket.take(Nanos(50), u64::MAX), Ok(()), "no overflow");
    }
}
