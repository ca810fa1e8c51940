//! What is counted in a run, and the figures that come of it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::origin::Origin;
use crate::people::{Nat, Visit};
use crate::player::Player;
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
    /// When the first viewer had all of a piece, by rendition and number.
    pub(crate) first_held: BTreeMap<(u8, u64), u64>,
    /// Messages beside blocks.
    pub(crate) control_messages: u64,
    /// The same, in bytes.
    pub(crate) control_bytes: u64,
    /// Events worked off.
    pub(crate) events: u64,
    /// What happened in each second, for recovery times and for people.
    pub(crate) seconds: Vec<Second>,
}

/// What happened in one second.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Second {
    /// Bytes of pieces that were given to players.
    pub(crate) used_bytes: u64,
    /// Viewers whose playback stood still.
    stopped: u32,
    /// Requests that players were sent to plain HTTP with.
    pub(crate) fallbacks: u32,
    /// Pieces that were complete later than a second after their publication.
    late: u32,
}

/// How far the figures have followed one viewer's player.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Followed {
    stalled_us: u64,
    played_us: u64,
    has_stalled: bool,
}

impl Measure {
    /// Whether a time counts.
    #[must_use]
    pub(crate) fn counts(&self, now_us: u64) -> bool {
        (self.from_us..self.to_us).contains(&now_us)
    }

    /// A viewer's playback stands still for want of a piece. `SPREAD_US` is what a piece takes to reach nearly everybody.
    pub(crate) fn stopped(&mut self, now_us: u64, rendition: u8, number: u64) {
        const SPREAD_US: u64 = 1_500_000;
        self.at(now_us).stopped += 1;
        let held = self.first_held.get(&(rendition, number));
        let held = held.is_some_and(|held_us| held_us + SPREAD_US < now_us);
        self.stopped_though_held += u64::from(held && self.counts(now_us));
    }

    /// A viewer has all of a piece in its store, from wherever: from now on the others can be expected to get it.
    pub(crate) fn held(&mut self, now_us: u64, rendition: u8, number: u64) {
        self.first_held.entry((rendition, number)).or_insert(now_us);
    }

    /// The second that a time lies in.
    pub(crate) fn at(&mut self, now_us: u64) -> &mut Second {
        let second = (now_us / 1_000_000) as usize;
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, Second::default());
        }
        &mut self.seconds[second]
    }

    /// A viewer has all of a piece, so long after its publication.
    pub(crate) fn completed(&mut self, now_us: u64, age_us: u64) {
        self.at(now_us).late += u32::from(age_us > 1_000_000);
        if self.counts(now_us) {
            self.arrival.add(age_us);
        }
    }

    /// Counts what a player, moved to now, did since the last call. To be called once a second for each viewer.
    pub(crate) fn second(&mut self, now_us: u64, player: &Player, followed: &mut Followed) {
        if self.counts(now_us) {
            if player.startup_us.is_some() {
                self.latency.add(player.latency_us_at(now_us));
            }
            self.stalled_us += player.stalled_us - followed.stalled_us;
            self.watched_us += player.played_us - followed.played_us;
            if player.stalled_us > followed.stalled_us && !followed.has_stalled {
                followed.has_stalled = true;
                self.stalled_viewers += 1;
            }
        }
        followed.stalled_us = player.stalled_us;
        followed.played_us = player.played_us;
    }

    /// A viewer who joined at `join_us` saw its first frame after this time.
    pub(crate) fn started(&mut self, join_us: u64, startup_us: u64) {
        self.startup_all.add(startup_us);
        if join_us >= self.from_us {
            self.startup.add(startup_us);
        }
    }

    /// One line for each second: what left the origin, the share of what was used that did not, who stood still.
    pub(crate) fn timeline(&self, origin: &Origin) -> Vec<String> {
        let line = |(number, second): (u64, &Second)| {
            let sent = origin.sent(number * 1_000_000, (number + 1) * 1_000_000);
            let offload = 100.0 * (1.0 - sent as f64 / second.used_bytes.max(1) as f64);
            let Second { stopped, fallbacks, late, .. } = second;
            format!(
                "{number:4} s  origin {:9} kB  offload {offload:8.2} %  stopped {stopped}  fallbacks {fallbacks}  late {late}",
                sent / 1_000
            )
        };
        (0..).zip(&self.seconds).map(line).collect()
    }

    /// A piece was given to a player.
    pub(crate) fn used(&mut self, now_us: u64, bytes: u64) {
        self.at(now_us).used_bytes += bytes;
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
            measured_over_bound: if bound > 0.0 { round(offload / bound, 5) } else { 1.0 },
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
            let used = self.seconds.get(second as usize).map_or(0, |second| second.used_bytes) as f64;
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

/// What no policy can exceed: min(reachable viewers − 1/n, where n is the mean of those times at which anybody watches; mean usable uplink / rate, 1 − 2^(−D/τ)), summed over the renditions.
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
        // For as long as anybody watches, one copy has to come from the origin. Visits are sorted by their beginning.
        let (mut watched_us, mut until_us) = (0, from_us);
        for visit in visits.iter().filter(|visit| visit.rendition == rendition) {
            let leave_us = visit.leave_us.min(to_us);
            let there = leave_us.saturating_sub(visit.join_us.max(from_us)) as f64;
            watched_us += leave_us.saturating_sub(visit.join_us.max(until_us));
            until_us = until_us.max(leave_us);
            time += there;
            // Who has no UDP can neither give nor take: the cut around him is his whole rate.
            if scenario.network.nat && visit.nat == Nat::Blocked {
                continue;
            }
            reachable += there;
            given += there * (visit.usable_bps as f64).min(scenario.people.uplink_cap * best_bps);
        }
        let viewers = time / (to_us - from_us) as f64;
        if time <= 0.0 {
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
        let by_count = (reachable - watched_us as f64) / time;
        saved += viewers * rate_bps * by_count.min(by_uplink).min(by_time).max(0.0);
    }
    if all > 0.0 { saved / all } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_counts_against_us_where_somebody_had_that_very_piece_for_a_while() {
        let mut measure = Measure { from_us: 0, to_us: 60_000_000, ..Measure::default() };
        measure.held(10_000_000, 1, 7);
        measure.held(12_000_000, 1, 7);
        for (now_us, rendition, number, counted) in [
            (11_000_000, 1, 7, 0),
            (13_000_000, 0, 7, 0),
            (13_000_000, 1, 8, 0),
            (13_000_000, 1, 7, 1),
            (61_000_000, 1, 7, 1),
        ] {
            measure.stopped(now_us, rendition, number);
            assert_eq!(measure.stopped_though_held, counted, "{now_us} {rendition} {number}");
        }
    }
}
