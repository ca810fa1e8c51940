//! What is counted in a run, and the figures that come of it.

use serde::Serialize;

use crate::origin::Origin;
use crate::people::{Nat, Visit};
use crate::scenario::Scenario;

/// Counts in steps of 10 ms, for percentiles without keeping every value.
#[derive(Clone, Debug, Default)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    const STEP_US: u64 = 10_000;

    /// Counts a time.
    pub(crate) fn add(&mut self, us: u64) {
        // A minute and everything above are the same to us.
        let slot = (us / Self::STEP_US).min(6_000) as usize;
        if self.counts.len() <= slot {
            self.counts.resize(slot + 1, 0);
        }
        self.counts[slot] += 1;
        self.total += 1;
    }

    /// A percentile, in microseconds.
    #[must_use]
    pub(crate) fn percentile(&self, percent: f64) -> u64 {
        let wanted = (self.total as f64 * percent / 100.0).ceil() as u64;
        let mut seen = 0;
        for (slot, count) in (0..).zip(&self.counts) {
            seen += count;
            if seen >= wanted && *count > 0 {
                return (slot + 1) * Self::STEP_US;
            }
        }
        0
    }
}

/// What is counted while a run goes on. Bytes are media bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measure {
    /// Figures count from here.
    pub(crate) from_us: u64,
    /// To here.
    pub(crate) to_us: u64,
    /// Bytes of pieces that were given to players.
    pub(crate) used_bytes: u64,
    /// Bytes of pieces that were published.
    pub(crate) media_bytes: u64,
    /// Bytes received that were of no use.
    pub(crate) waste_bytes: u64,
    /// Bytes received.
    pub(crate) received_bytes: u64,
    /// Bytes that were played or passed on without being what the origin signed.
    pub(crate) bad_bytes: u64,
    /// Distance to the camera, once a second for each viewer.
    pub(crate) latency: Histogram,
    /// From joining to the first frame, of those who joined in the time measured.
    pub(crate) startup: Histogram,
    /// The same of all.
    pub(crate) startup_all: Histogram,
    /// From publication of a piece to its last block at a viewer.
    pub(crate) arrival: Histogram,
    /// Playback stopped.
    pub(crate) stalled_us: u64,
    /// Playback or stop.
    pub(crate) watched_us: u64,
    /// Viewers who stopped at least once.
    pub(crate) stalled_viewers: u64,
    /// Seconds in which a viewer's playback stood still although somebody had the next piece for a while.
    pub(crate) stopped_though_held: u64,
    /// When the first viewer had a piece, by number.
    pub(crate) first_held: std::collections::BTreeMap<u64, u64>,
    /// Viewers stopped, in each second.
    pub(crate) stopped_by_second: Vec<u32>,
    /// Messages beside blocks.
    pub(crate) control_messages: u64,
    /// The same, in bytes.
    pub(crate) control_bytes: u64,
    /// Events worked off.
    pub(crate) events: u64,
    /// Offload in each second, for recovery times.
    pub(crate) used_by_second: Vec<u64>,
}

impl Measure {
    /// Whether a time counts.
    #[must_use]
    pub(crate) fn counts(&self, now_us: u64) -> bool {
        (self.from_us..self.to_us).contains(&now_us)
    }

    /// A viewer's playback stands still for want of a piece. `SPREAD_US` is what a piece takes to reach nearly everybody.
    pub(crate) fn stopped(&mut self, now_us: u64, number: u64) {
        const SPREAD_US: u64 = 1_500_000;
        let second = (now_us / 1_000_000) as usize;
        if self.stopped_by_second.len() <= second {
            self.stopped_by_second.resize(second + 1, 0);
        }
        self.stopped_by_second[second] += 1;
        let held = self.first_held.get(&number).is_some_and(|held_us| held_us + SPREAD_US < now_us);
        self.stopped_though_held += u64::from(held && self.counts(now_us));
    }

    /// One line for each second: what left the origin, the share of what was used that did not, who stood still.
    pub(crate) fn timeline(&self, origin: &Origin) -> Vec<String> {
        let seconds = 0..self.used_by_second.len();
        let line = |second: usize| {
            let from_us = second as u64 * 1_000_000;
            let sent = origin.sent(from_us, from_us + 1_000_000);
            let used = self.used_by_second[second];
            let stopped = self.stopped_by_second.get(second).copied().unwrap_or(0);
            let offload = 100.0 * (1.0 - sent as f64 / used.max(1) as f64);
            format!("{second:4} s  origin {:9} kB  offload {offload:8.2} %  stopped {stopped}", sent / 1_000)
        };
        seconds.map(line).collect()
    }

    /// A piece was given to a player.
    pub(crate) fn used(&mut self, now_us: u64, bytes: u64) {
        let second = (now_us / 1_000_000) as usize;
        if self.used_by_second.len() <= second {
            self.used_by_second.resize(second + 1, 0);
        }
        self.used_by_second[second] += bytes;
        if self.counts(now_us) {
            self.used_bytes += bytes;
        }
    }

    /// The figures of the run.
    #[must_use]
    pub(crate) fn figures(&self, origin: &Origin, bound: f64) -> Figures {
        let sent = origin.sent(self.from_us, self.to_us) as f64;
        let offload = 1.0 - sent / (self.used_bytes as f64).max(1.0);
        let startup = if self.startup.total > 0 { &self.startup } else { &self.startup_all };
        Figures {
            offload: round(offload, 5),
            bound: round(bound, 5),
            measured_over_bound: round(offload / bound.max(1e-9), 5),
            copies_per_piece: round(sent / (self.media_bytes as f64).max(1.0), 3),
            latency_p95_s: self.latency.percentile(95.0) as f64 / 1e6,
            startup_p95_ms: startup.percentile(95.0) as f64 / 1e3,
            rebuffer_ratio: round(self.stalled_us as f64 / (self.watched_us as f64).max(1.0), 6),
            origin_peak_over_mean: round(origin.peak_over_mean(self.from_us, self.to_us), 3),
            waste_ratio: round(self.waste_bytes as f64 / (self.received_bytes as f64).max(1.0), 5),
            bad_bytes: self.bad_bytes,
            stalled_viewers: self.stalled_viewers,
            stopped_though_held_s: self.stopped_though_held,
            arrival_p50_ms: self.arrival.percentile(50.0) / 1_000,
            arrival_p95_ms: self.arrival.percentile(95.0) / 1_000,
            requests_100ms_max: origin.requests_max(self.from_us, self.to_us),
            recovery_s: None,
        }
    }

    /// How long after `at_s` the offload of a second stayed below 95 %, up to the end of the run.
    #[must_use]
    pub(crate) fn recovery_s(&self, origin: &Origin, at_s: f64) -> f64 {
        let from = at_s as u64;
        let to = self.to_us / 1_000_000;
        let offload = |second: u64| {
            let used = self.used_by_second.get(second as usize).copied().unwrap_or(0) as f64;
            1.0 - origin.sent(second * 1_000_000, (second + 1) * 1_000_000) as f64 / used.max(1.0)
        };
        (from..to).rev().find(|second| offload(*second) < 0.95).map_or(0.0, |last| (last + 1 - from) as f64)
    }
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

/// The figures of one policy in one run.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// 1 − bytes that the origin sent / bytes that viewers used.
    pub offload: f64,
    /// What nobody can exceed.
    pub bound: f64,
    /// One divided by the other.
    pub measured_over_bound: f64,
    /// Bytes that the origin sent / bytes of the media that existed.
    pub copies_per_piece: f64,
    /// 95th percentile of the distance to the camera.
    pub latency_p95_s: f64,
    /// 95th percentile of the time to the first frame.
    pub startup_p95_ms: f64,
    /// Share of the time after the first frame without playback.
    pub rebuffer_ratio: f64,
    /// The origin's busiest second over its mean.
    pub origin_peak_over_mean: f64,
    /// Bytes received in vain / bytes received.
    pub waste_ratio: f64,
    /// Bytes played or passed on that the origin did not sign.
    pub bad_bytes: u64,
    /// Viewers whose playback stopped at least once.
    pub stalled_viewers: u64,
    /// Seconds, over all viewers, in which playback stood still for a piece that some viewer had had for 1.5 s.
    pub stopped_though_held_s: u64,
    /// Median time from publication to a piece being complete at a viewer.
    pub arrival_p50_ms: u64,
    /// 95th percentile of that.
    pub arrival_p95_ms: u64,
    /// Requests to the origin in the worst 100 ms.
    pub requests_100ms_max: u32,
    /// Seconds after a fault until the offload stays at 95 % or more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_s: Option<f64>,
}

/// What no policy can exceed: min(reachable viewers − 1/n, mean usable uplink / rate, 1 − 2^(−D/τ)), summed over the renditions.
///
/// D is the time between publication and the last useful moment, τ the shortest time in which copies of a block can
/// double: its serialisation at the largest permitted uplink and half the shortest round trip.
#[must_use]
pub(crate) fn bound(scenario: &Scenario, visits: &[Visit]) -> f64 {
    let from_us = (scenario.measure_from_s * 1e6) as u64;
    let to_us = (scenario.seconds * 1e6) as u64;
    let overhead = 1_240.0 / 1_150.0;
    let best_bps = f64::from(scenario.media.rates_kbps[0]) * 1e3;
    let (mut all, mut saved) = (0.0, 0.0);
    for (rendition, rate_kbps) in (0_u8..).zip(&scenario.media.rates_kbps) {
        let rate_bps = f64::from(*rate_kbps) * 1e3;
        // Viewers switch, but the share of each rendition stays: the bound is that of the first choice.
        let (mut time, mut given) = (0.0, 0.0);
        let mut reachable = 0.0;
        for visit in visits.iter().filter(|visit| visit.rendition == rendition) {
            let there = visit.leave_us.min(to_us).saturating_sub(visit.join_us.max(from_us)) as f64;
            time += there;
            // Who has no UDP can neither give nor take: the cut around him is his whole rate.
            if scenario.network.nat && visit.nat == Nat::Blocked {
                continue;
            }
            reachable += there;
            given += there * (visit.usable_bps as f64).min(scenario.people.uplink_cap * best_bps);
        }
        let viewers = time / (to_us - from_us) as f64;
        if viewers <= 0.0 {
            continue;
        }
        let slack_ms = f64::from(scenario.play.latency_ms)
            - f64::from(scenario.media.piece_ms)
            - f64::from(scenario.media.publish_delay_ms);
        let block_ms = 131.072 / (scenario.people.uplink_cap * best_bps / 1e6);
        let tau_ms = block_ms + scenario.network.access_rtt_ms[0];
        let by_time = 1.0 - (-slack_ms / tau_ms).exp2();
        let by_uplink = given / time / overhead / rate_bps;
        all += viewers * rate_bps;
        let by_count = reachable / time - 1.0 / viewers.max(1.0);
        saved += viewers * rate_bps * by_count.min(by_uplink).min(by_time).max(0.0);
    }
    if all > 0.0 { saved / all } else { 0.0 }
}
