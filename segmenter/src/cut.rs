//! Decides where a video rendition's parts and segments begin and end, and at which moments keyframes are wanted.
//!
//! Pure: frames with their times go in, finished parts come out; no clock, no bytes looked at. The rules that it
//! keeps whatever the publisher does (the property tests at the end check them on random input):
//!
//! - the timeline has no holes: a part begins where the one before it ended, in the media as in the playlist;
//! - a part is 85 to 100 % of the declared part target, unless it is the last of its segment;
//! - a part that is not marked as its segment's last is followed by another one in the same segment, so that the
//!   preload hint written with it holds, and viewers who have all parts know that they have the segment.
//!
//! A part goes out with its last frame (cut-through): its end is predicted from the frame interval, and the next
//! frame is put where the prediction said. Only where the next frame may be the keyframe that ends the segment
//! does the part wait for it.

use crate::config::Constants;
use crate::ladder::Begins;

/// A frame's place on the output timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sample<T> {
    pub(crate) start_us: i64,
    pub(crate) duration_us: i64,
    pub(crate) is_keyframe: bool,
    pub(crate) data: T,
}

/// A finished part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CutPart<T> {
    pub(crate) samples: Vec<Sample<T>>,
    /// Whether the segment ends with it.
    pub(crate) is_last: bool,
}

impl<T> CutPart<T> {
    pub(crate) fn start_us(&self) -> i64 {
        self.samples.first().map_or(0, |sample| sample.start_us)
    }

    pub(crate) fn end_us(&self) -> i64 {
        self.samples.last().map_or(0, |sample| sample.start_us + sample.duration_us)
    }
}

/// What a frame led to.
#[derive(Debug)]
pub(crate) struct Outcome<T> {
    /// Parts that are finished now, oldest first.
    pub(crate) parts: Vec<CutPart<T>>,
    /// How many of them were finished by the frame's coming, without it.
    pub(crate) parts_before: usize,
    /// What begins with the frame.
    pub(crate) begins: Begins,
    /// Whether a keyframe is wanted now.
    pub(crate) wants_keyframe: bool,
}

/// The state of one rendition's cutting.
#[derive(Debug)]
pub(crate) struct Cutter<T> {
    constants: Constants,
    segment_start_us: i64,
    part_start_us: i64,
    part_index: usize,
    /// The frames of the part in the making. Their durations are not known yet.
    pending: Vec<Pending<T>>,
    interval: Interval,
    keyframes: KeyframeHabits,
    /// How many segments have ended.
    ended: i32,
    follows: Option<Following>,
}

/// A simulcast layer below the best one does not decide when its segments end: it may end as many as the lead, so that
/// all renditions have the same media sequence numbers.
#[derive(Debug, Default)]
struct Following {
    /// How many segments more than this rendition the lead has ended or is about to end. Below zero after a cut for
    /// want of a keyframe.
    permits: i32,
}

#[derive(Debug)]
struct Pending<T> {
    start_us: i64,
    is_keyframe: bool,
    data: T,
}

impl<T> Cutter<T> {
    /// Starts a rendition whose first frame is shown at `start_us`.
    pub(crate) fn new(constants: Constants, start_us: i64) -> Self {
        Self {
            constants,
            segment_start_us: start_us,
            part_start_us: start_us,
            part_index: 0,
            pending: Vec::new(),
            interval: Interval::default(),
            keyframes: KeyframeHabits::default(),
            ended: 0,
            follows: None,
        }
    }

    /// Like [`Self::new`], for a rendition that ends its segments when the lead does.
    pub(crate) fn following(constants: Constants, start_us: i64) -> Self {
        Self { follows: Some(Following::default()), ..Self::new(constants, start_us) }
    }

    /// How many segments have ended, with media or without.
    pub(crate) fn ended(&self) -> i32 {
        self.ended
    }

    /// Decides from now on by itself when its segments end.
    pub(crate) fn lead(&mut self) {
        self.follows = None;
    }

    /// Follows, from now on, a lead that has ended so many segments.
    pub(crate) fn follow(&mut self, lead_ended: i32) {
        self.follows = Some(Following { permits: lead_ended - self.ended });
        self.keyframes.asked_at_us = None;
    }

    /// The lead ends a segment about now: the next keyframe may end one here.
    pub(crate) fn permit_end(&mut self) {
        if let Some(follows) = &mut self.follows {
            follows.permits += 1;
        }
    }

    /// How many segments this rendition is behind the lead.
    pub(crate) fn segments_behind(&self) -> i32 {
        self.follows.as_ref().map_or(0, |follows| follows.permits)
    }

    /// Where the media that has been cut ends.
    pub(crate) fn part_start_us(&self) -> i64 {
        self.part_start_us
    }

    /// The measured distance of frames.
    pub(crate) fn frame_interval_us(&self) -> i64 {
        self.interval.estimate_us()
    }

    /// Takes the next frame, shown at `pts_us`.
    pub(crate) fn frame(&mut self, pts_us: i64, is_keyframe: bool, data: T) -> Outcome<T> {
        let mut parts = Vec::new();
        self.interval.observe(pts_us);
        let answers = is_keyframe && self.keyframes.observe(pts_us);
        let ends_segment = is_keyframe && self.ends_segment(pts_us, answers);
        if answers {
            self.keyframes.asked_at_us = None;
        }
        if ends_segment {
            parts.extend(self.close(pts_us, true));
        } else if pts_us + self.interval.estimate_us() > self.segment_end_max_us() {
            // A frame that would reach over the segment's limit belongs to the next segment, keyframe or not.
            parts.extend(self.close(pts_us, true));
        } else if !self.fits(pts_us) {
            parts.extend(self.close(pts_us, false));
        }
        let parts_before = parts.len();
        let begins_part = self.pending.is_empty();
        let begins = Begins { part: begins_part, segment: begins_part && self.part_index == 0 };
        // A new part begins where the last one was said to end: the frame's own time may differ by the jitter.
        let start_us = match self.pending.last() {
            None => self.part_start_us,
            Some(last) => pts_us.max(last.start_us + SAMPLE_MIN_US),
        };
        self.pending.push(Pending { start_us, is_keyframe, data });

        let end_us = start_us.max(pts_us) + self.interval.estimate_us();
        if end_us + self.interval.estimate_us() > self.segment_end_max_us() {
            // No keyframe came in time; waiting longer would break the target duration.
            parts.extend(self.close(end_us, true));
        } else if !self.fits(end_us) && !self.may_end_segment(end_us) {
            parts.extend(self.close(end_us, false));
        }
        Outcome { parts, parts_before, begins, wants_keyframe: self.wants_keyframe(pts_us) }
    }

    /// Ends the segment with what there is: the publisher is gone, or all renditions are cut at `end_us`.
    pub(crate) fn finish(&mut self, end_us: i64) -> Option<CutPart<T>> {
        let end_us = end_us.max(self.part_start_us);
        let part = self.close(end_us, true);
        self.keyframes.asked_at_us = None;
        part
    }

    /// Ends the part in the making; others will say that there is nothing in the rest of its segment.
    pub(crate) fn break_off(&mut self) -> Option<CutPart<T>> {
        self.close(self.natural_end_us(), false)
    }

    /// Where the segment in the making begins.
    pub(crate) fn segment_start_us(&self) -> i64 {
        self.segment_start_us
    }

    /// Ends the segment without media of its own: what lies before `at_us` is left out, others have said that there is
    /// nothing.
    pub(crate) fn skip_to(&mut self, at_us: i64) {
        debug_assert!(self.pending.is_empty());
        self.note_end();
        self.part_start_us = self.part_start_us.max(at_us);
        self.segment_start_us = self.part_start_us;
        self.part_index = 0;
    }

    /// Whether nothing has come of the part in the making.
    pub(crate) fn is_between_parts(&self) -> bool {
        self.pending.is_empty()
    }

    /// Goes on in the same segment behind `parts` parts of which others have said that there is nothing in them.
    pub(crate) fn pass_over(&mut self, parts: usize) {
        debug_assert!(self.pending.is_empty());
        self.part_start_us += self.constants.part_us * parts as i64;
        self.part_index += parts;
    }

    /// Where the media would end if nothing more came.
    pub(crate) fn natural_end_us(&self) -> i64 {
        self.pending.last().map_or(self.part_start_us, |last| last.start_us + self.interval.estimate_us())
    }

    /// Whether one more frame, beginning at `pts_us`, can be in the part that is being made.
    fn fits(&self, pts_us: i64) -> bool {
        let end_us = pts_us + self.interval.estimate_us();
        end_us <= self.part_start_us + self.constants.part_target_us + JITTER_US
    }

    fn segment_end_max_us(&self) -> i64 {
        self.segment_start_us + self.constants.segment_max_us()
    }

    fn close(&mut self, end_us: i64, is_last: bool) -> Option<CutPart<T>> {
        let last_start_us = self.pending.last()?.start_us;
        let shortest = if is_last { 0 } else { self.constants.part_min_us() };
        let target_us = self.constants.part_target_us;
        let mut latest_us = self.part_start_us + target_us;
        if end_us > latest_us + target_us {
            // Frames come slower than parts must. A part too long is the lesser evil: else each frame would be
            // shown earlier than the one before, without end.
            latest_us = end_us;
        }
        let latest_us = latest_us.min(self.segment_end_max_us());
        let end_us = end_us.clamp((self.part_start_us + shortest).min(latest_us), latest_us);
        let end_us = end_us.max(last_start_us + SAMPLE_MIN_US);
        let pending = std::mem::take(&mut self.pending);
        let ends: Vec<i64> = pending.iter().skip(1).map(|next| next.start_us).chain([end_us]).collect();
        let samples = pending
            .into_iter()
            .zip(ends)
            .map(|(Pending { start_us, is_keyframe, data }, end_us)| Sample {
                start_us,
                duration_us: end_us - start_us,
                is_keyframe,
                data,
            })
            .collect();
        self.part_start_us = end_us;
        self.part_index += 1;
        if is_last {
            self.segment_start_us = end_us;
            self.part_index = 0;
            self.note_end();
        }
        Some(CutPart { samples, is_last })
    }

    fn note_end(&mut self) {
        self.ended += 1;
        if let Some(follows) = &mut self.follows {
            follows.permits -= 1;
        }
    }

    /// When the segment should end, seen from its last planned part: where that part is full.
    fn aim_us(&self) -> i64 {
        let parts = (self.constants.segment_us / self.constants.part_us).max(1) as usize;
        let interval = self.interval.estimate_us();
        let full = (self.constants.part_target_us + JITTER_US) / interval * interval;
        let rest = parts.saturating_sub(self.part_index) as i64;
        (self.part_start_us + rest * full.max(self.constants.part_min_us()))
            .min(self.segment_start_us + self.constants.segment_us)
    }

    fn wants_keyframe(&mut self, pts_us: i64) -> bool {
        if self.follows.is_some() {
            // The lead asks for all.
            return false;
        }
        if let Some(asked_at_us) = self.keyframes.asked_at_us {
            if pts_us - asked_at_us < ASK_AGAIN_US {
                return false;
            }
            self.keyframes.note_ignored();
        } else if pts_us + self.keyframes.lead_us + self.interval.estimate_us() * 3 / 2 < self.aim_us() {
            return false;
        }
        self.keyframes.asked_at_us = Some(pts_us);
        true
    }

    /// Whether a keyframe at `pts_us` that has arrived begins a new segment.
    fn ends_segment(&self, pts_us: i64, answers: bool) -> bool {
        if self.pending.is_empty() {
            // The part before it said that another follows (or nothing has come at all).
            return false;
        }
        if pts_us - self.segment_start_us < self.constants.segment_us / 4 {
            // A late answer, right behind a cut that could not wait for it: no segment of a few frames for its sake.
            return false;
        }
        match &self.follows {
            Some(follows) => follows.permits > 0,
            None => answers || self.may_cut_at(pts_us),
        }
    }

    /// Whether a keyframe at `pts_us`, should one come, might begin a new segment.
    fn may_end_segment(&self, pts_us: i64) -> bool {
        // A follower cannot know when the lead will ask. Its next keyframe may come right behind this part.
        let may_follow = || pts_us - self.segment_start_us >= self.constants.segment_us / 2;
        match &self.follows {
            Some(follows) => follows.permits > 0 || may_follow(),
            None => self.keyframes.asked_at_us.is_some() || self.may_cut_at(pts_us),
        }
    }

    fn may_cut_at(&self, pts_us: i64) -> bool {
        let elapsed_us = pts_us - self.segment_start_us;
        if elapsed_us < self.constants.segment_us / 2 {
            return false;
        }
        if pts_us + self.interval.estimate_us() >= self.aim_us() {
            return true;
        }
        // Well before the aim. A publisher who answers requests will be asked in time; with any other, the next
        // keyframe may come too late.
        let next_in_time = |gop_us| elapsed_us + gop_us <= self.constants.segment_max_us();
        !self.keyframes.is_responsive() && !self.keyframes.last_gop_us.is_some_and(next_in_time)
    }
}

/// No sample is shorter: two frames with the same time would else become one.
const SAMPLE_MIN_US: i64 = 1_000;
/// A frame may overshoot its part by this much and still belong to it; its duration is then shortened. RTP times
/// of a steady camera differ by a few milliseconds.
const JITTER_US: i64 = 4_000;
/// A request for a keyframe is repeated after this: lost, or the publisher is busy.
const ASK_AGAIN_US: i64 = 500_000;
/// A publisher who answers this late does not answer: the keyframe is one of his own rhythm.
const ANSWER_MAX_US: i64 = 400_000;

/// So many unanswered requests, less the answered ones, show that the publisher does not listen.
const IGNORED_MIN: u8 = 2;

/// The distance of frames, as a median: one late frame must not move it.
#[derive(Debug, Default)]
struct Interval {
    last_us: Option<i64>,
    recent: [i64; 15],
    count: usize,
    median_us: Option<i64>,
}

impl Interval {
    fn observe(&mut self, pts_us: i64) {
        if let Some(last_us) = self.last_us.replace(pts_us) {
            self.recent[self.count % self.recent.len()] = (pts_us - last_us).max(SAMPLE_MIN_US);
            self.count += 1;
            let known = self.count.min(self.recent.len());
            let mut sorted = self.recent;
            sorted[..known].sort_unstable();
            self.median_us = Some(sorted[known / 2]);
        }
    }

    /// 33 ms until there are two frames.
    fn estimate_us(&self) -> i64 {
        self.median_us.unwrap_or(33_333)
    }
}

/// How the publisher makes keyframes: on request, or in a rhythm of its own.
#[derive(Debug)]
struct KeyframeHabits {
    /// When this segment's keyframe was asked for the last time.
    asked_at_us: Option<i64>,
    /// How long after a request the keyframe comes, smoothed.
    lead_us: i64,
    last_us: Option<i64>,
    last_gop_us: Option<i64>,
    /// Rises with each request that was not answered and falls with each that was.
    ignored: u8,
}

impl Default for KeyframeHabits {
    fn default() -> Self {
        // Who has not answered yet may never do: until then, take the keyframes that come.
        Self { asked_at_us: None, lead_us: 0, last_us: None, last_gop_us: None, ignored: IGNORED_MIN }
    }
}

impl KeyframeHabits {
    /// Takes note of a keyframe; true if it answers a request.
    fn observe(&mut self, pts_us: i64) -> bool {
        if let Some(last_us) = self.last_us.replace(pts_us) {
            self.last_gop_us = Some(pts_us - last_us);
        }
        let Some(asked_at_us) = self.asked_at_us else { return false };
        let took_us = pts_us - asked_at_us;
        if took_us <= ANSWER_MAX_US {
            self.ignored = self.ignored.saturating_sub(1);
            self.lead_us += (took_us - self.lead_us) / 4;
        }
        true
    }

    fn note_ignored(&mut self) {
        self.ignored = (self.ignored + 1).min(2 * IGNORED_MIN);
    }

    fn is_responsive(&self) -> bool {
        self.ignored < IGNORED_MIN
    }
}

#[cfg(test)]
pub(crate) mod tests;
