//! The origin behind its CDN: answers after a while, sends no faster than it can, and counts what it sends.

use crate::random::Random;
use crate::scenario::Scenario;

/// Peaks are taken over this time: two parts.
const PEAK_US: u64 = 1_000_000;
/// Requests are counted over this time.
const BURST_US: u64 = 100_000;

/// The origin, seen from outside.
#[derive(Debug)]
pub(crate) struct Origin {
    capacity_bps: u64,
    free_us: u64,
    answer_median_us: f64,
    answer_sigma: f64,
    stall_us: [u64; 2],
    random: Random,
    sent: Vec<u64>,
    requests: Vec<u32>,
}

/// When an answer leaves the origin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    /// When the first byte leaves.
    pub(crate) first_us: u64,
    /// What the origin gives to this answer, in bit/s.
    pub(crate) rate_bps: u64,
}

impl Origin {
    /// An origin for so many viewers.
    #[must_use]
    pub(crate) fn new(scenario: &Scenario, viewers: usize, random: Random) -> Self {
        let origin = &scenario.origin;
        let rate_kbps = f64::from(scenario.media.rates_kbps[0]);
        let capacity_kbps = (origin.capacity * viewers as f64 * rate_kbps).max(origin.capacity_min_kbps);
        let stall_at = (scenario.faults.at_s * 1e6) as u64;
        Self {
            capacity_bps: (capacity_kbps * 1e3) as u64,
            free_us: 0,
            answer_median_us: origin.answer_median_ms * 1e3,
            answer_sigma: origin.answer_sigma,
            stall_us: [stall_at, stall_at + (scenario.faults.origin_stall_s * 1e6) as u64],
            random,
            sent: Vec::new(),
            requests: Vec::new(),
        }
    }

    /// Answers a request that arrives at `at_us` for so many bytes.
    pub(crate) fn answer(&mut self, at_us: u64, bytes: u64) -> Answer {
        let slot = (at_us / BURST_US) as usize;
        if self.requests.len() <= slot {
            self.requests.resize(slot + 1, 0);
        }
        self.requests[slot] += 1;
        let think_us = self.random.lognormal(self.answer_median_us, self.answer_sigma) as u64;
        let mut first_us = self.free_us.max(at_us + think_us);
        if (self.stall_us[0]..self.stall_us[1]).contains(&first_us) {
            first_us = self.stall_us[1];
        }
        let busy_from = self.free_us.max(if first_us == self.stall_us[1] { first_us } else { at_us });
        self.free_us = busy_from + bytes * 8_000_000 / self.capacity_bps;
        Answer { first_us, rate_bps: self.capacity_bps }
    }

    /// Counts bytes that left at this time.
    pub(crate) fn count(&mut self, at_us: u64, bytes: u64) {
        let slot = (at_us / PEAK_US) as usize;
        if self.sent.len() <= slot {
            self.sent.resize(slot + 1, 0);
        }
        self.sent[slot] += bytes;
    }

    /// Bytes sent between two times.
    #[must_use]
    pub(crate) fn sent(&self, from_us: u64, to_us: u64) -> u64 {
        self.slots(from_us, to_us).iter().sum()
    }

    /// The busiest second between two times, over the mean.
    #[must_use]
    pub(crate) fn peak_over_mean(&self, from_us: u64, to_us: u64) -> f64 {
        let slots = self.slots(from_us, to_us);
        let seconds = (to_us - from_us) as f64 / PEAK_US as f64;
        let mean = slots.iter().sum::<u64>() as f64 / seconds.max(1.0);
        let peak = slots.iter().copied().max().unwrap_or(0) as f64;
        if mean > 0.0 { peak / mean } else { 0.0 }
    }

    /// Requests in the worst 100 ms between two times.
    #[must_use]
    pub(crate) fn requests_max(&self, from_us: u64, to_us: u64) -> u32 {
        let slot = |at_us: u64| ((at_us / BURST_US) as usize).min(self.requests.len());
        self.requests[slot(from_us)..slot(to_us)].iter().copied().max().unwrap_or(0)
    }

    fn slots(&self, from_us: u64, to_us: u64) -> &[u64] {
        let slot = |at_us: u64| ((at_us / PEAK_US) as usize).min(self.sent.len());
        &self.sent[slot(from_us)..slot(to_us)]
    }
}
