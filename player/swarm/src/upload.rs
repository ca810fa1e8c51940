//! Upload control: what waits to be sent, how fast it may go out, and what the uplink can carry.
//!
//! Uploads leave in bursts of a few blocks at most, out of a token bucket. A burst also measures the line: how fast the
//! channels' send queues drain while they are not empty is what the uplink (or the path) carries. Which blocks are
//! queued is decided in `peer::blocks` and `peer::messages`.

use shoal_digest::{BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, PieceId};

use crate::{Span, Time, input::PeerId};

/// The token bucket's depth at least: four blocks, enough to measure a line by. Where the rate is higher it holds what comes
/// in the configured time.
const BURST_BYTES_MIN: u64 = 4 * BLOCK_BYTES_MAX as u64;
/// What one byte costs in the bucket's unit.
const UNIT: u64 = 8_000_000;
/// A neighbor's channel is given no more while this much waits in it: what is handed over can't be cancelled.
pub(crate) const CHANNEL_BYTES_MAX: u32 = 4 * BLOCK_BYTES_MAX;
/// Before the line is measured what is to leave waits for so much together, this long at most: a fast line sends block by block
/// faster than they come, and would never be measured.
const GATHER: Span = Span::from_ms(100);
/// Shorter measurements say more about the channel than about the line.
const SAMPLE_BYTES_MIN: u64 = 2 * BLOCK_BYTES_MAX as u64;
/// A line that is busy for longer than this is measured before it rests.
const SAMPLE_MAX: Span = Span::from_ms(1000);
/// What waits in all channels together may take the line so long. What is handed over can't be cancelled: viewers with lines of
/// 64 kbit/s had given 46 s of blocks to their neighbors' channels, and nobody heard from them any more.
const CHANNELS_MAX: Span = Span::from_ms(1000);
/// The send queue of a line slower than this is not worth measuring further.
const UPLINK_MIN_BPS: u64 = 50_000;

/// One block that waits to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Upload {
    pub(crate) peer: PeerId,
    pub(crate) piece: PieceId,
    pub(crate) block: u16,
    pub(crate) hops: u8,
    pub(crate) is_answer: bool,
    pub(crate) bytes: u32,
    /// After this the receiver has got it from elsewhere or does not need it any more.
    pub(crate) until: Time,
}

/// The upload queue with its token bucket and the uplink's estimate.
#[derive(Debug)]
pub(crate) struct Uploads {
    /// Sorted by rank; among equals the first come is the first.
    queue: Vec<(Time, Upload)>,
    queued_bytes: u64,
    /// In bits times microseconds per second, so that no refill is lost to rounding.
    tokens: i64,
    tokens_at: Time,
    burst: Span,
    burst_min: u64,
    rate_bps: u64,
    uplink_bps: u64,
    sent_total: u64,
    buffered: u64,
    /// When the send queues became non-empty, and `sent_total - buffered` then.
    busy: Option<(Time, u64)>,
}

impl Uploads {
    /// Bursts hold what comes in `burst`, but so much as to measure the line by.
    pub(crate) fn new(burst: Span) -> Self {
        Self::with_burst_min(burst, BURST_BYTES_MIN)
    }

    /// For a line that need not be measured: a block at a time. What has not left yet can be cancelled, and what is more
    /// urgent goes first.
    pub(crate) fn unmeasured() -> Self {
        Self::with_burst_min(Span::ZERO, u64::from(BLOCK_BYTES_MIN))
    }

    fn with_burst_min(burst: Span, burst_min: u64) -> Self {
        Self {
            burst,
            burst_min,
            queue: Vec::new(),
            queued_bytes: 0,
            tokens: (burst_min * UNIT) as i64,
            tokens_at: Time::ZERO,
            rate_bps: 0,
            uplink_bps: 0,
            sent_total: 0,
            buffered: 0,
            busy: None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    #[cfg(any(test, feature = "checks"))]
    pub(crate) fn answers(&self) -> usize {
        self.queue.iter().filter(|(_, upload)| upload.is_answer).count()
    }

    /// Queues a block; those with the earliest `rank` leave first.
    pub(crate) fn push(&mut self, rank: Time, upload: Upload) {
        self.queued_bytes += u64::from(upload.bytes);
        let at = self.queue.partition_point(|(other, _)| *other <= rank);
        self.queue.insert(at, (rank, upload));
    }

    /// Takes the uploads that `goes` says yes to out of the queue; gives their number.
    pub(crate) fn remove(&mut self, goes: &mut dyn FnMut(&Upload) -> bool) -> usize {
        let before = self.queue.len();
        let mut bytes = 0;
        let mut at = 0;
        while let Some((_, upload)) = self.queue.get(at) {
            if goes(upload) {
                bytes += u64::from(upload.bytes);
                self.queue.remove(at);
            } else {
                at += 1;
            }
        }
        self.queued_bytes -= bytes;
        before - self.queue.len()
    }

    /// A neighbor is gone: its uploads are dropped, and what waited in its channel was never sent. In the others there wait so
    /// many bytes.
    pub(crate) fn forget(&mut self, peer: PeerId, buffered: u64) {
        self.remove(&mut |upload| upload.peer == peer);
        self.sent_total -= self.buffered.saturating_sub(buffered);
        self.buffered = self.buffered.min(buffered);
    }

    /// Whether the line has enough to do with what waits in the channels: before it is measured that is what measures it, and
    /// no more, because it takes a line of 64 kbit/s four seconds, and neighbors take who says nothing for longer to be gone. A
    /// line that need not be measured gets a block at a time anyway.
    fn is_full(&self) -> bool {
        if self.uplink_bps == 0 {
            return self.burst_min == BURST_BYTES_MIN && self.buffered >= SAMPLE_BYTES_MIN;
        }
        self.buffered >= u64::from(BLOCK_BYTES_MAX)
            && Span::of_bytes(self.buffered, self.uplink_bps) > CHANNELS_MAX
    }

    pub(crate) fn contains(&self, peer: PeerId, piece: PieceId, block: u16) -> bool {
        self.queue
            .iter()
            .any(|(_, upload)| upload.peer == peer && upload.piece == piece && upload.block == block)
    }

    /// How long the queue takes at the present rate.
    pub(crate) fn backlog(&self) -> Span {
        if self.queued_bytes == 0 { Span::ZERO } else { Span::of_bytes(self.queued_bytes, self.rate_bps) }
    }

    /// How long what leaves no later than an upload of this rank takes at the present rate.
    pub(crate) fn backlog_before(&self, rank: Time) -> Span {
        let mut bytes = 0;
        for (other, upload) in &self.queue {
            if *other > rank {
                break;
            }
            bytes += u64::from(upload.bytes);
        }
        if bytes == 0 { Span::ZERO } else { Span::of_bytes(bytes, self.rate_bps) }
    }

    /// Sets the rate that the token bucket fills at.
    pub(crate) fn set_rate(&mut self, now: Time, rate_bps: u64) {
        if rate_bps != self.rate_bps {
            self.refill(now);
            self.rate_bps = rate_bps;
        }
    }

    pub(crate) fn rate_bps(&self) -> u64 {
        self.rate_bps
    }

    /// The measured uplink, 0 before the first measurement.
    pub(crate) fn uplink_bps(&self) -> u64 {
        self.uplink_bps
    }

    fn refill(&mut self, now: Time) {
        let elapsed = now.since(self.tokens_at).as_us().min(60_000_000);
        let depth = (self.rate_bps.saturating_mul(self.burst.as_us())).max(self.burst_min * UNIT);
        let come = i64::try_from(elapsed.saturating_mul(self.rate_bps)).unwrap_or(i64::MAX);
        self.tokens = self.tokens.saturating_add(come).min(i64::try_from(depth).unwrap_or(i64::MAX));
        self.tokens_at = now;
    }

    /// The tokens that must be there for a block to leave. A longer block than the bucket holds leaves it in debt.
    fn cost(&self, bytes: u32) -> (i64, i64) {
        let cost = u64::from(bytes) * UNIT;
        (cost.min(self.burst_min * UNIT) as i64, cost as i64)
    }

    /// The first upload in the queue that the rate and its receiver's channel have room for. `is_open` says whether a
    /// receiver's channel has.
    pub(crate) fn next(&mut self, now: Time, mut is_open: impl FnMut(PeerId) -> bool) -> Option<Upload> {
        if self.queue.is_empty() {
            return None;
        }
        let is_full = self.is_full();
        self.refill(now);
        let at = self.queue.iter().position(|(_, upload)| is_open(upload.peer))?;
        let (rank, upload) = self.queue[at];
        if self.gathers_until(rank) > now {
            return None;
        }
        // Past their time ones leave whatever the rate; the caller drops them.
        if upload.until > now {
            let (needed, cost) = self.cost(upload.bytes);
            if self.tokens < needed || is_full {
                return None;
            }
            self.tokens -= cost;
        }
        self.queued_bytes -= u64::from(upload.bytes);
        self.queue.remove(at);
        Some(upload)
    }

    /// When [`Uploads::next`] has something next, as far as the rate is concerned.
    pub(crate) fn next_at(&self, is_open: impl Fn(PeerId) -> bool) -> Option<Time> {
        let (rank, upload) = self.queue.iter().find(|(_, upload)| is_open(upload.peer))?;
        if self.rate_bps == 0 || self.is_full() {
            return Some(upload.until);
        }
        let missing = self.cost(upload.bytes).0.saturating_sub(self.tokens).max(0) as u64;
        // Rounded up, so that the wake-up finds the tokens.
        let at = self.tokens_at + Span::from_us(missing.div_ceil(self.rate_bps));
        Some(at.max(self.gathers_until(*rank)).min(upload.until))
    }

    /// Notes that a block was handed to a channel.
    pub(crate) fn sent(&mut self, now: Time, bytes: u32) {
        if self.busy.is_none() {
            self.busy = Some((now, self.sent_total));
        }
        self.sent_total += u64::from(bytes);
        self.buffered += u64::from(bytes);
    }

    /// Until when the first upload, which has this rank, waits for others, so that together they measure the line.
    fn gathers_until(&self, rank: Time) -> Time {
        let gathers = self.uplink_bps == 0 && self.burst_min == BURST_BYTES_MIN && self.busy.is_none();
        if gathers && self.queued_bytes < SAMPLE_BYTES_MIN { rank + GATHER } else { Time::ZERO }
    }

    /// Takes the sum of what waits in all channels and learns the uplink from how it drains.
    pub(crate) fn drained(&mut self, now: Time, buffered: u64) {
        // What waits was sent before: a driver that counts more counts headers.
        self.buffered = buffered.min(self.sent_total);
        let gone = self.sent_total - self.buffered;
        let Some((since, gone_then)) = self.busy else { return };
        let (bytes, elapsed) = (gone.saturating_sub(gone_then), now.since(since));
        let is_idle = buffered == 0;
        // Drivers tell of a channel when it has run empty: until all have, some of what is counted as waiting has left,
        // and would be counted in a later, shorter sample. Only a line that never rests is measured in between.
        let is_whole = is_idle || elapsed >= SAMPLE_MAX;
        if is_whole && bytes >= SAMPLE_BYTES_MIN && elapsed > Span::ZERO {
            let sample = (bytes * 8_000_000 / elapsed.as_us()).max(UPLINK_MIN_BPS);
            // A rise is believed at once: nothing drains faster than the line. A fall is believed slowly, because a
            // single busy path or a late notice looks the same.
            self.uplink_bps =
                if sample > self.uplink_bps { sample } else { (self.uplink_bps * 15 + sample) / 16 };
            self.busy = Some((now, gone));
        }
        if is_idle {
            self.busy = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(peer: PeerId, block: u16) -> Upload {
        let piece = PieceId { rendition: 0, msn: 1, part: 0 };
        let until = Time::from_ms(10_000);
        Upload { peer, piece, block, hops: 0, is_answer: false, bytes: BLOCK_BYTES_MAX, until }
    }

    #[test]
    fn the_bucket_holds_uploads_to_its_rate() {
        let mut uploads = Uploads::new(Span::from_ms(350));
        uploads.set_rate(Time::ZERO, 1_000_000);
        (0..200).for_each(|block| uploads.push(Time::ZERO, upload(1, block)));
        let mut sent = 0;
        for ms in 0..=2000 {
            while uploads.next(Time::from_ms(ms), |_| true).is_some() {
                sent += u64::from(BLOCK_BYTES_MAX);
            }
        }
        // 250 kB in two seconds, and the burst.
        let expected = 250_000 + BURST_BYTES_MIN;
        assert!(sent <= expected && sent + 2 * u64::from(BLOCK_BYTES_MAX) > expected, "{sent}");
    }

    #[test]
    fn a_granted_line_carries_its_rate_one_long_block_at_a_time() {
        let mut uploads = Uploads::unmeasured();
        uploads.set_rate(Time::ZERO, 1_000_000);
        (0..40).for_each(|block| uploads.push(Time::ZERO, upload(1, block)));
        let mut sent = 0;
        for ms in 0..=2000 {
            let mut at_once = 0;
            while uploads.next(Time::from_ms(ms), |_| true).is_some() {
                at_once += 1;
            }
            assert!(at_once <= 1, "{at_once} blocks at {ms} ms");
            sent += at_once * u64::from(BLOCK_BYTES_MAX);
        }
        // 250 kB in two seconds; a block that has begun to leave counts whole.
        assert!(sent.abs_diff(250_000) <= u64::from(BLOCK_BYTES_MAX), "{sent}");
    }

    #[test]
    fn a_blocked_channel_does_not_hold_up_the_others() {
        let mut uploads = Uploads::new(Span::from_ms(350));
        uploads.set_rate(Time::ZERO, 1_000_000);
        uploads.push(Time::ZERO, upload(1, 0));
        uploads.push(Time::ZERO, upload(2, 0));
        assert_eq!(uploads.next(Time::ZERO, |peer| peer != 1).map(|upload| upload.peer), Some(2));
        assert_eq!(uploads.len(), 1);
    }

    #[test]
    fn the_wake_up_finds_tokens() {
        let mut uploads = Uploads::new(Span::from_ms(350));
        uploads.set_rate(Time::ZERO, 777_777);
        (0..20).for_each(|block| uploads.push(Time::ZERO, upload(1, block)));
        let mut now = Time::ZERO;
        while uploads.len() > 0 {
            while uploads.next(now, |_| true).is_some() {}
            let Some(next) = uploads.next_at(|_| true) else { break };
            assert!(next > now, "a wake-up that finds nothing would spin");
            now = next;
        }
        assert_eq!(uploads.len(), 0);
    }

    #[test]
    fn late_notices_of_drained_channels_do_not_double_the_uplink() {
        // Two channels with two blocks each, which leave in turns on a line of 8 Mbit/s; each channel is told of only when
        // it is empty, so the last notice speaks of a block that left long before.
        let mut uploads = Uploads::new(Span::from_ms(350));
        let block = Span::of_bytes(u64::from(BLOCK_BYTES_MAX), 8_000_000);
        let mut now = Time::from_ms(5);
        for _ in 0..20 {
            (0..4).for_each(|_| uploads.sent(now, BLOCK_BYTES_MAX));
            uploads.drained(now + block + block + block, 2 * u64::from(BLOCK_BYTES_MAX));
            uploads.drained(now + block + block + block + block, 0);
            now += Span::from_ms(200);
        }
        assert!(uploads.uplink_bps() < 8_100_000, "{}", uploads.uplink_bps());
    }

    #[test]
    fn draining_queues_measure_the_line() {
        let mut uploads = Uploads::new(Span::from_ms(350));
        let mut now = Time::from_ms(5);
        for _ in 0..20 {
            (0..4).for_each(|_| uploads.sent(now, BLOCK_BYTES_MAX));
            now += Span::of_bytes(4 * u64::from(BLOCK_BYTES_MAX), 8_000_000);
            uploads.drained(now, 0);
            now += Span::from_ms(100);
        }
        let error = uploads.uplink_bps().abs_diff(8_000_000);
        assert!(error < 100_000, "{}", uploads.uplink_bps());
    }

    #[test]
    fn a_line_that_is_faster_than_blocks_come_is_measured_and_nothing_waits_for_long() {
        // A block each 30 ms, which leaves at once.
        let mut uploads = Uploads::new(Span::from_ms(350));
        uploads.set_rate(Time::ZERO, 20_000_000);
        let mut longest = Span::ZERO;
        for ms in 1..1_000 {
            let now = Time::from_ms(ms);
            if ms % 30 == 0 {
                uploads
                    .push(now, Upload { piece: PieceId { rendition: 0, msn: ms, part: 0 }, ..upload(1, 0) });
            }
            let mut sent = 0;
            while let Some(upload) = uploads.next(now, |_| true) {
                uploads.sent(now, upload.bytes);
                longest = longest.max(now.since(Time::from_ms(upload.piece.msn)));
                sent += upload.bytes;
            }
            if sent > 0 {
                uploads.drained(now + Span::of_bytes(u64::from(sent), 500_000_000), 0);
            }
        }
        assert!(uploads.uplink_bps() > 400_000_000, "{}", uploads.uplink_bps());
        assert!(longest <= GATHER, "{longest:?}");
    }

    /// Blocks for twenty neighbors on a line that carries this much; gives what waits in their channels at the most, in bytes.
    fn most_in_channels(line_bps: u64, seconds: u64) -> u64 {
        let mut uploads = Uploads::new(Span::from_ms(350));
        uploads.set_rate(Time::ZERO, 1_000_000);
        (0..400).for_each(|block| uploads.push(Time::ZERO, upload(u32::from(block) % 20, block)));
        let (mut waits, mut most) = (0, 0);
        for ms in 0..seconds * 1000 {
            let now = Time::from_ms(ms);
            while let Some(upload) = uploads.next(now, |_| true) {
                waits += u64::from(upload.bytes) * 8000;
                uploads.sent(now, upload.bytes);
            }
            most = most.max(waits / 8000);
            waits -= line_bps.min(waits);
            if waits % (u64::from(BLOCK_BYTES_MAX) * 8000) < line_bps {
                uploads.drained(now, waits / 8000);
                uploads.set_rate(
                    now,
                    if uploads.uplink_bps() > 0 { uploads.uplink_bps() / 2 } else { 1_000_000 },
                );
            }
        }
        most
    }

    #[test]
    fn a_slow_line_is_not_buried_under_what_many_neighbors_channels_would_take() {
        assert_eq!(most_in_channels(64_000, 9), SAMPLE_BYTES_MIN, "what it takes to measure it");
        assert!(most_in_channels(64_000_000, 2) <= BURST_BYTES_MIN, "a fast one needs no more");
    }

    #[test]
    fn a_neighbor_that_leaves_does_not_hide_how_slow_the_line_is() {
        let block = u64::from(BLOCK_BYTES_MAX);
        let mut uploads = Uploads::new(Span::from_ms(350));
        (0..4).for_each(|_| uploads.sent(Time::from_ms(5), BLOCK_BYTES_MAX));
        // A line of 64 kbit/s has sent two blocks when the neighbor goes that another was for.
        let now = Time::from_ms(5) + Span::of_bytes(2 * block, 64_000);
        uploads.forget(7, 3 * block);
        uploads.drained(now, block);
        assert!(uploads.uplink_bps().abs_diff(64_000) < 1_000, "{}", uploads.uplink_bps());
    }
}
