//! A token bucket in integers, for every limit on a rate.
//!
//! Pure: the caller says what time it is.

/// How fast a bucket fills and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens per hour, so that slow rates stay integers.
    pub per_hour: u64,
    /// Tokens that a full bucket holds.
    pub burst: u32,
}

impl Rate {
    /// A rate given in tokens per second.
    #[must_use]
    pub fn per_second(per_second: u32, burst: u32) -> Self {
        Self { per_hour: u64::from(per_second) * 3600, burst }
    }
}

/// Milliseconds in an hour: one token is this many of the bucket's units, so that refilling never rounds.
const UNITS: u64 = 3_600_000;

/// A bucket; starts full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    units: u64,
    updated_ms: u64,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn full(rate: Rate, now_ms: u64) -> Self {
        Self { units: u64::from(rate.burst) * UNITS, updated_ms: now_ms }
    }

    /// Takes `tokens` if they are there.
    pub fn take(&mut self, rate: Rate, now_ms: u64, tokens: u32) -> bool {
        self.refill(rate, now_ms);
        let cost = u64::from(tokens) * UNITS;
        let has = self.units >= cost;
        if has {
            self.units -= cost;
        }
        has
    }

    /// Puts back what was taken for something that did not happen.
    pub fn give_back(&mut self, rate: Rate, tokens: u32) {
        let gained = u64::from(tokens) * UNITS;
        self.units = self.units.saturating_add(gained).min(u64::from(rate.burst) * UNITS);
    }

    /// Whether the bucket is full: then it says no more than a new one would, and may be forgotten.
    pub fn is_full(&mut self, rate: Rate, now_ms: u64) -> bool {
        self.refill(rate, now_ms);
        self.units == u64::from(rate.burst) * UNITS
    }

    fn refill(&mut self, rate: Rate, now_ms: u64) {
        let passed_ms = now_ms.saturating_sub(self.updated_ms);
        self.updated_ms = self.updated_ms.max(now_ms);
        let gained = passed_ms.saturating_mul(rate.per_hour);
        self.units = self.units.saturating_add(gained).min(u64::from(rate.burst) * UNITS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let rate = Rate::per_second(10, 5);
        let mut bucket = Bucket::full(rate, 1_000);
        assert_eq!((0..9).filter(|_| bucket.take(rate, 1_000, 1)).count(), 5);
        assert!(!bucket.take(rate, 1_099, 1));
        assert!(bucket.take(rate, 1_100, 1));
        assert_eq!((0..99).filter(|_| bucket.take(rate, 60_000, 1)).count(), 5);
    }

    #[test]
    fn time_that_goes_backwards_gives_nothing() {
        let rate = Rate::per_second(10, 1);
        let mut bucket = Bucket::full(rate, 5_000);
        assert!(bucket.take(rate, 5_000, 1));
        assert!(!bucket.take(rate, 1_000, 1));
        assert!(!bucket.take(rate, 5_000, 1));
    }
}
