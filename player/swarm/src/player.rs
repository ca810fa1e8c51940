//! Where the player is, and so how long each piece may take.
//!
//! Turns program date times (Unix milliseconds) into deadlines on the driver's clock. Knows nothing of sources.

use shoal_digest::{PieceId, Record};

use crate::{
    Span, Time,
    input::{RequestId, Target},
};

/// A request of the player that has not been answered.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) id: RequestId,
    pub(crate) target: Target,
    pub(crate) deadline: Option<Time>,
    pub(crate) since: Time,
    /// When to fall back if records are still missing. After that, when what the player loads itself counts as failed: drivers
    /// tell of successes only.
    pub(crate) give_up: Time,
    /// The last record that was asked for on its behalf.
    pub(crate) record_fetched: Option<PieceId>,
}

/// The playhead as last told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Player {
    pub(crate) has_started: bool,
    pub(crate) is_stalled: bool,
    stalled_since: Time,
    position_ms: u64,
    pub(crate) buffered_until_ms: u64,
    rate_percent: u16,
    at: Time,
}

impl Player {
    /// Takes a new position; gives the time spent without playback for want of data since the last one.
    pub(crate) fn update(
        &mut self,
        now: Time,
        position_ms: u64,
        buffered_until_ms: u64,
        rate_percent: u16,
        is_stalled: bool,
    ) -> Span {
        let stalled = if self.is_stalled { now.since(self.at) } else { Span::ZERO };
        if !self.is_stalled {
            self.stalled_since = now;
        }
        self.position_ms = position_ms;
        self.buffered_until_ms = buffered_until_ms;
        self.rate_percent = rate_percent;
        self.is_stalled = is_stalled && rate_percent > 0;
        self.has_started |= rate_percent > 0;
        self.at = now;
        stalled
    }

    /// Since when playback has been waiting for data, if it does.
    pub(crate) fn stalled_for(&self, now: Time) -> Span {
        if self.is_stalled { now.since(self.stalled_since) } else { Span::ZERO }
    }

    /// The player was given a piece: where that continues its buffer, the buffer ends later. The driver says so too, but up
    /// to a second later, and a buffer that seems a second shorter than it is makes requests give up too early.
    pub(crate) fn was_given(&mut self, record: &Record) {
        let end_ms = record.start_ms + u64::from(record.duration_ms);
        if !self.lacks_before(record) {
            self.buffered_until_ms = self.buffered_until_ms.max(end_ms);
        }
    }

    /// Whether there is a gap between the buffer's end and this piece.
    fn lacks_before(&self, record: &Record) -> bool {
        record.start_ms > self.buffered_until_ms + u64::from(record.duration_ms / 2)
    }

    /// The program date time at the playhead.
    pub(crate) fn position_ms(&self, now: Time) -> u64 {
        if self.is_stalled {
            return self.position_ms;
        }
        let played = now.since(self.at).as_ms() * u64::from(self.rate_percent) / 100;
        // Without data the playhead does not move, whether the driver has said so yet or not.
        (self.position_ms + played).min(self.buffered_until_ms.max(self.position_ms))
    }

    /// Media ahead of the playhead.
    pub(crate) fn buffer_ms(&self, now: Time) -> u64 {
        self.buffered_until_ms.saturating_sub(self.position_ms(now))
    }

    /// Whether the player has yet to get this piece.
    pub(crate) fn lacks(&self, record: &Record) -> bool {
        // Half of the duration, because times are rounded and the player's buffer rarely ends on the millisecond.
        record.start_ms + u64::from(record.duration_ms / 2) >= self.buffered_until_ms
    }

    /// When the playhead reaches the program date time `start_ms`, or never while paused.
    pub(crate) fn reaches(&self, now: Time, start_ms: u64) -> Time {
        if !self.has_started || self.rate_percent == 0 {
            return Time::NEVER;
        }
        // A playhead that waits goes on with what comes next, however much is left in the buffer: that is due now.
        let (from, position_ms) = if self.is_stalled {
            (now, self.position_ms.max(self.buffered_until_ms))
        } else {
            (self.at, self.position_ms)
        };
        let ahead_ms = start_ms.saturating_sub(position_ms);
        from + Span::from_us(ahead_ms.saturating_mul(100_000) / u64::from(self.rate_percent))
    }
}
