//! Whether the viewer is short of processor time, or its line so full that nothing comes back in time.
//!
//! Each block would pass through it late, and be later at each step further on: while it lasts the viewer promises nothing
//! to others.

use crate::{Span, Time, rng::Rng};

/// A page that starts is busy with that for some seconds, on any machine.
const STARTING: Span = Span::from_secs(5);
/// How late it gets round to things meanwhile.
const STARTING_LATENESS: Span = Span::from_ms(50);
/// No single delay counts for more: a machine that slept, or a page that was busy once, is not short of processor time.
const LATENESS_MAX: Span = Span::from_ms(250);
/// After so many unanswered questions in a row a viewer counts as starved, too.
const UNANSWERED_MAX: u32 = 32;
/// It counts as such for so long, and at most so long, and up to half as long again by lot.
const LASTS_MIN: Span = Span::from_secs(10);
const LASTS_MAX: Span = Span::from_secs(60);

/// What tells that a viewer is starved, and until when it counts as that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Starvation {
    /// How late the viewer gets round to things, smoothed, from this time on.
    lateness: Span,
    lateness_from: Time,
    /// Questions to neighbors that were not answered in time, since the last that was.
    unanswered: u32,
    until: Time,
    lasts: Span,
}

impl Starvation {
    pub(crate) const fn new() -> Self {
        Self {
            lateness: Span::ZERO,
            lateness_from: Time::NEVER,
            unanswered: 0,
            until: Time::ZERO,
            lasts: Span::ZERO,
        }
    }

    /// Everything begins now.
    pub(crate) fn start(&mut self, now: Time) {
        self.lateness_from = now + STARTING;
    }

    pub(crate) fn is_on(&self, now: Time) -> bool {
        now < self.until
    }

    /// How much later than planned the viewer may get round to something, and then to what comes of it.
    pub(crate) fn expected_lateness(&self, now: Time) -> Span {
        let once = if now < self.lateness_from { STARTING_LATENESS } else { self.lateness };
        once + once
    }

    /// The viewer got round to something by `sample` later than planned. Whether that is too late, `limit` being what is
    /// not on average.
    pub(crate) fn note_lateness(&mut self, now: Time, sample: Span, limit: Span) -> bool {
        if now < self.lateness_from {
            return false;
        }
        let sample = sample.min(LATENESS_MAX);
        self.lateness = Span::from_us((self.lateness.as_us() * 3 + sample.as_us()) / 4);
        self.lateness > limit
    }

    /// A question was not answered in time. Whether those were too many, one after the other, by whomever: then what this
    /// viewer sends arrives too late, because its line is full or too slow, and each further question makes it worse.
    pub(crate) fn note_unanswered(&mut self) -> bool {
        self.unanswered += 1;
        let is_too_often = self.unanswered >= UNANSWERED_MAX;
        if is_too_often {
            self.unanswered = 0;
        }
        is_too_often
    }

    pub(crate) fn note_answered(&mut self) {
        self.unanswered = 0;
    }

    /// The viewer is starved from now on, for a while. Whether it was not before.
    pub(crate) fn begin(&mut self, now: Time, rng: &mut Rng) -> bool {
        let is_new = !self.is_on(now);
        if is_new {
            // Giving may be what it was too slow for: each time it comes back later, and not with all the others.
            let is_again = self.lasts > Span::ZERO && now.since(self.until) < LASTS_MAX;
            let longer = if is_again { self.lasts + self.lasts } else { LASTS_MIN };
            let longer = longer.min(LASTS_MAX);
            self.lasts = longer + Span::from_us(rng.below(longer.as_us() / 2));
        }
        self.until = now + self.lasts;
        is_new
    }
}
