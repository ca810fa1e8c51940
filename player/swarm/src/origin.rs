//! Fetches from the origin: what runs, how long such a thing takes, when to try again.
//!
//! Estimates only; which bytes are fetched when is decided in `peer::schedule`.

use shoal_digest::PieceId;

use crate::{Span, Time, input::FetchId, map::Map, rng::Rng};

/// Before the first measurement: a new HTTPS connection across a continent.
const FIRST_BLOCK_INITIAL: Span = Span::from_ms(300);
/// Before the first measurement: 4 Mbit/s.
const NEXT_BLOCK_INITIAL: Span = Span::from_ms(32);
/// Enough for a 95th percentile, few enough to follow an origin whose load changes within half a minute.
const SAMPLES: usize = 32;
/// No measurement counts for more, in microseconds: a fetch that the machine slept through, or one among a newcomer's first
/// few, would have everything asked of the origin at once for as long as it is remembered.
const SAMPLE_MAX_US: u64 = 1_000_000;
/// The first wait after a failure; doubled for each further one, and jittered.
const BACKOFF_FIRST: Span = Span::from_ms(100);
/// No longer, because those who ask first bring everybody back; the others do not ask at all meanwhile.
const BACKOFF_MAX: Span = Span::from_ms(1500);
/// After so many failures in a row it is the origin that fails, not one answer.
const DOWN_FAILURES: u32 = 2;

/// Why a fetch was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The local peer brings these blocks into the swarm.
    Seed,
    /// A deadline came near.
    Deadline,
}

/// One running fetch.
#[derive(Clone, Debug)]
pub(crate) struct Fetch {
    pub(crate) piece: PieceId,
    pub(crate) first: u32,
    pub(crate) count: u32,
    pub(crate) started: Time,
    /// When the last block came, or when the fetch started.
    pub(crate) progress: Time,
    pub(crate) received: u32,
}

impl Fetch {
    pub(crate) fn covers(&self, block: u32) -> bool {
        (self.first..self.first + self.count).contains(&block)
    }
}

/// The origin as seen from here.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) fetches: Map<FetchId, Fetch>,
    next_id: FetchId,
    first_block: Samples,
    next_block: Samples,
    failures: u32,
    /// No fetch before this.
    pub(crate) closed_until: Time,
    /// Tests show with it what patience prevents.
    #[cfg(test)]
    pub(crate) never_down: bool,
    /// Until when the swarm is catching up with what it could not have.
    pub(crate) recovering_until: Time,
}

impl Origin {
    pub(crate) fn new() -> Self {
        Self {
            fetches: Map::new(),
            next_id: 0,
            first_block: Samples::new(FIRST_BLOCK_INITIAL),
            next_block: Samples::new(NEXT_BLOCK_INITIAL),
            failures: 0,
            closed_until: Time::ZERO,
            #[cfg(test)]
            never_down: false,
            recovering_until: Time::ZERO,
        }
    }

    /// Whether the last answers failed, as far as the local peer knows.
    pub(crate) fn is_down(&self) -> bool {
        #[cfg(test)]
        if self.never_down {
            return false;
        }
        self.failures >= DOWN_FAILURES
    }

    /// Whether one fetch at a time has to show first that the origin answers.
    pub(crate) fn is_doubted(&self) -> bool {
        self.failures > 0
    }

    /// It answers again, or somebody else got something from it.
    pub(crate) fn is_back(&mut self) {
        self.failures = 0;
        self.closed_until = Time::ZERO;
    }

    pub(crate) fn start(&mut self, now: Time, piece: PieceId, first: u32, count: u32) -> FetchId {
        self.next_id = self.next_id.wrapping_add(1);
        let fetch = Fetch { piece, first, count, started: now, progress: now, received: 0 };
        self.fetches.insert(self.next_id, fetch);
        self.next_id
    }

    /// Notes that a block of a fetch came.
    pub(crate) fn progressed(&mut self, now: Time, fetch: FetchId) {
        let Some(fetch) = self.fetches.get_mut(&fetch) else { return };
        if fetch.received == 0 {
            self.first_block.add(now.since(fetch.started));
        } else {
            self.next_block.add(now.since(fetch.progress));
        }
        fetch.received += 1;
        fetch.progress = now;
        if !self.is_down() {
            self.is_back();
        }
    }

    /// Learns from a piece that the driver loaded itself. Half of the time counts as waiting, which is true enough to
    /// estimate pieces of that size.
    pub(crate) fn loaded(&mut self, blocks: u32, took: Span) {
        self.first_block.add(took.percent(50));
        self.next_block.add(Span::from_us(took.as_us() / 2 / u64::from(blocks.max(1))));
    }

    /// A fetch is given up. That it took so long to begin is a measurement, too: with the old ones only, an origin that has
    /// become slow would never be waited for long enough.
    pub(crate) fn stalled(&mut self, now: Time, fetch: FetchId) {
        if let Some(fetch) = self.fetches.get(&fetch).filter(|fetch| fetch.received == 0) {
            self.first_block.add(now.since(fetch.started));
        }
    }

    /// A fetch failed. What fails together, as all fetches over one connection do, is one failure.
    pub(crate) fn failed(&mut self, now: Time, rng: &mut Rng) {
        if now < self.closed_until {
            return;
        }
        self.failures = (self.failures + 1).min(6);
        let backoff = (BACKOFF_FIRST.as_us() << (self.failures - 1)).min(BACKOFF_MAX.as_us());
        // From half to the whole, so that viewers that failed together do not return together.
        self.closed_until = now + Span::from_us(backoff / 2 + rng.below(backoff / 2));
    }

    /// How long fetching so many blocks takes, in 95 of 100 cases.
    pub(crate) fn estimate(&self, blocks: u32) -> Span {
        self.first_block.p95()
            + Span::from_us(self.next_block.p50().as_us() * u64::from(blocks.saturating_sub(1)))
    }

    /// How long to wait for the next block of a running fetch before it counts as stalled.
    pub(crate) fn patience(&self) -> Span {
        self.first_block.p95().percent(300) + Span::from_ms(500)
    }

    pub(crate) fn p95(&self) -> Span {
        self.first_block.p95()
    }
}

/// The last measurements of a duration and their quantiles.
#[derive(Debug)]
struct Samples {
    ring: [u32; SAMPLES],
    count: usize,
    p50: Span,
    p95: Span,
}

impl Samples {
    fn new(initial: Span) -> Self {
        Self { ring: [0; SAMPLES], count: 0, p50: initial, p95: initial }
    }

    fn add(&mut self, span: Span) {
        self.ring[self.count % SAMPLES] = span.as_us().min(SAMPLE_MAX_US) as u32;
        self.count += 1;
        let mut sorted = self.ring;
        let sorted = &mut sorted[..self.count.min(SAMPLES)];
        // Insertion by hand: the library's sort is more code than everything else in this file.
        for at in 1..sorted.len() {
            let mut at = at;
            while at > 0 && sorted[at - 1] > sorted[at] {
                sorted.swap(at - 1, at);
                at -= 1;
            }
        }
        self.p50 = Span::from_us(u64::from(sorted[sorted.len() / 2]));
        let measured = Span::from_us(u64::from(sorted[(sorted.len() * 95).div_ceil(100) - 1]));
        // The largest of a handful is no 95th percentile: until there are enough, leave room.
        self.p95 = if self.count < 8 { measured.percent(150) } else { measured };
    }

    fn p50(&self) -> Span {
        self.p50
    }

    fn p95(&self) -> Span {
        self.p95
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p95_follows_what_was_measured() {
        let mut samples = Samples::new(FIRST_BLOCK_INITIAL);
        assert_eq!(samples.p95(), FIRST_BLOCK_INITIAL);
        (0..100).for_each(|_| samples.add(Span::from_ms(20)));
        assert_eq!(samples.p95(), Span::from_ms(20));
        samples.add(Span::from_ms(900));
        assert_eq!(samples.p95(), Span::from_ms(20), "one in 32 is not yet the 95th percentile");
        samples.add(Span::from_ms(900));
        assert_eq!(samples.p95(), Span::from_ms(900));
    }

    #[test]
    fn fetches_that_fail_together_are_one_failure() {
        let (mut origin, mut rng) = (Origin::new(), Rng::new(1));
        (0..6).for_each(|_| origin.failed(Time::from_ms(1000), &mut rng));
        assert!(origin.is_doubted() && !origin.is_down(), "a connection was lost");
        let later = origin.closed_until;
        origin.failed(later, &mut rng);
        assert!(origin.is_down());
    }

    #[test]
    fn failures_back_off_until_a_block_comes() {
        let (mut origin, mut rng) = (Origin::new(), Rng::new(1));
        let mut now = Time::from_ms(1000);
        for _ in 0..40 {
            now = now.max(origin.closed_until);
            origin.failed(now, &mut rng);
        }
        let wait = origin.closed_until.since(now);
        assert!(wait >= BACKOFF_MAX.percent(50) && wait <= BACKOFF_MAX && origin.is_down(), "{wait:?}");
        let piece = PieceId { rendition: 0, msn: 1, part: 0 };
        let fetch = origin.start(now, piece, 0, 1);
        origin.progressed(now, fetch);
        origin.is_back();
        assert_eq!((origin.closed_until, origin.is_down()), (Time::ZERO, false));
    }
}
