//! The publisher's clock: maps media positions to the machine's time and back.
//!
//! One timeline is shared by all tracks of a source. Its rate can differ from the machine's by some parts per
//! million, so that tests can play a publisher whose clock drifts.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A clock that started at a known moment and runs at a known rate. Positions are microseconds since its start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeline {
    start: Instant,
    start_unix_us: i64,
    rate: f64,
}

impl Timeline {
    /// A timeline that starts now and gains `drift_ppm` microseconds each second.
    pub(crate) fn start_now(drift_ppm: f64) -> Self {
        Self { start: Instant::now(), start_unix_us: unix_us(), rate: 1.0 + drift_ppm / 1e6 }
    }

    /// A timeline whose wall clock shows a given time at its start: for material that is made beforehand.
    pub(crate) fn at_unix_us(start_unix_us: i64) -> Self {
        Self { start: Instant::now(), start_unix_us, rate: 1.0 }
    }

    /// The position at a moment.
    pub(crate) fn position_us(&self, at: Instant) -> i64 {
        let elapsed = match at.checked_duration_since(self.start) {
            Some(after) => after.as_secs_f64(),
            None => -self.start.duration_since(at).as_secs_f64(),
        };
        (elapsed * self.rate * 1e6).round() as i64
    }

    /// The moment at which the timeline reaches a position.
    pub(crate) fn instant(&self, position_us: i64) -> Instant {
        let seconds = position_us as f64 / 1e6 / self.rate;
        if seconds >= 0.0 {
            self.start + Duration::from_secs_f64(seconds)
        } else {
            self.start.checked_sub(Duration::from_secs_f64(-seconds)).unwrap_or(self.start)
        }
    }

    /// What the publisher's wall clock shows at a position, in microseconds since the unix epoch.
    pub(crate) fn unix_us(&self, position_us: i64) -> i64 {
        self.start_unix_us + position_us
    }

    /// The same moment in the 64-bit format of sender reports (RFC 3550, section 4).
    pub(crate) fn ntp(&self, position_us: i64) -> u64 {
        /// Seconds between 1900 (NTP) and 1970 (unix).
        const NTP_EPOCH_OFFSET_S: i128 = 2_208_988_800;
        let us = i128::from(self.unix_us(position_us)) + NTP_EPOCH_OFFSET_S * 1_000_000;
        // The seconds wrap in 2036 by design; receivers work modulo 2^32.
        ((us << 32) / 1_000_000) as u64
    }
}

/// The machine's wall clock, in microseconds since the unix epoch.
pub(crate) fn unix_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_and_instant_are_inverse() {
        for ppm in [0.0, 200.0, -200.0] {
            let timeline = Timeline::start_now(ppm);
            for position in [-20_000, 0, 33_333, 3_600_000_000] {
                assert!(timeline.position_us(timeline.instant(position)).abs_diff(position) <= 1);
            }
        }
    }

    #[test]
    fn fast_clock_gains_its_ppm() {
        let timeline = Timeline::start_now(200.0);
        let after_1000_s = timeline.instant(0) + Duration::from_secs(1000);
        assert_eq!(timeline.position_us(after_1000_s), 1_000_200_000);
    }

    #[test]
    fn ntp_counts_from_1900_with_binary_fractions() {
        let timeline = Timeline { start: Instant::now(), start_unix_us: 500_000, rate: 1.0 };
        assert_eq!(timeline.ntp(0), 2_208_988_800 << 32 | 1 << 31);
    }
}
