//! What the tracker is told at intervals, so that it can plan and sum up.

use crate::{Span, Stats, Time, output::Report};

/// Reports before their time are at least this far apart.
const INTERVAL_MIN: Span = Span::from_secs(1);

/// When the next report is due, and what the last one said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reports {
    /// Zero where the tracker wants none.
    interval: Span,
    due_at: Time,
    told: Stats,
    told_at: Time,
    told_bps: u64,
}

impl Reports {
    pub(crate) fn new() -> Self {
        Self {
            interval: Span::ZERO,
            due_at: Time::NEVER,
            told: Stats::default(),
            told_at: Time::ZERO,
            told_bps: 0,
        }
    }

    /// A tracker wants one at this interval, or none at all where it is zero.
    pub(crate) fn start(&mut self, now: Time, interval: Span) {
        self.interval = interval;
        self.due_at = if interval > Span::ZERO { now + interval } else { Time::NEVER };
    }

    /// There is nobody to tell any more.
    pub(crate) fn stop(&mut self) {
        self.due_at = Time::NEVER;
    }

    pub(crate) fn is_due(&self, now: Time) -> bool {
        self.due_at <= now
    }

    /// Before its time, if reports are wanted at all.
    pub(crate) fn soon(&mut self) {
        if self.due_at < Time::NEVER {
            self.due_at = self.due_at.min(self.told_at + INTERVAL_MIN);
        }
    }

    /// At once, if reports are wanted at all.
    pub(crate) fn hurry(&mut self, now: Time) {
        if self.due_at < Time::NEVER {
            self.due_at = self.due_at.min(now);
        }
    }

    /// The planner should soon know of an uplink that differs so much from what it was told.
    pub(crate) fn note_uplink(&mut self, bps: u64) {
        if bps.abs_diff(self.told_bps) > self.told_bps / 4 {
            self.soon();
        }
    }

    /// The report of now: of what is counted in `stats` what the one before did not say.
    pub(crate) fn make(&mut self, now: Time, stats: &Stats, uplink_bps: u64, playing: &[u8]) -> Report {
        let waste = |stats: &Stats| stats.duplicate_bytes + stats.late_bytes + stats.rejected_bytes;
        let clamp = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let report = Report {
            uplink_kbps: clamp(uplink_bps / 1000),
            renditions: playing.to_vec(),
            buffer_ms: stats.buffer_ms,
            behind_ms: stats.behind_ms,
            peer_bytes: stats.peer_bytes - self.told.peer_bytes,
            origin_bytes: stats.origin_bytes - self.told.origin_bytes,
            sent_bytes: stats.sent_bytes - self.told.sent_bytes,
            waste_bytes: waste(stats) - waste(&self.told),
            rebuffer_ms: clamp(stats.rebuffer_ms - self.told.rebuffer_ms),
        };
        self.due_at = now + self.interval;
        self.told = *stats;
        self.told_at = now;
        self.told_bps = uplink_bps;
        report
    }
}
