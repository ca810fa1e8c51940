//! Stalls: what happens to segments when a track stops coming while others go on.

use tracing::{info, warn};

use super::video::VideoTrack;
use super::{Session, SessionError};
use crate::config::Constants;
use crate::window::Window;

/// Video may lag so far behind the audio, beyond the longest segment, before a gap takes its place.
const VIDEO_LAG_MAX_US: i64 = 500_000;

/// The layer that leads may lag so far behind another one before that one leads: longer than a lost picture takes to be
/// repaired or replaced.
const LEAD_LAG_MAX_US: i64 = 1_000_000;

/// A shorter time without pictures is bridged by the first of them.
const GAP_MIN_US: i64 = 150_000;

/// Dates and durations may differ by less.
const HOLE_MIN_US: i64 = 50_000;

/// So many keyframes of a layer that comes again are let pass in the hope of one where a segment of the lead's begins.
const KEYFRAMES_PASSED_MAX: u8 = 2;

impl Session {
    /// A layer has stopped coming that is two segments behind the lead, or long without pictures: browsers do that when the
    /// uplink gets narrow. As long as nothing comes, its segments end with the lead's.
    pub(super) fn catch_up_followers(&mut self) -> Result<(), SessionError> {
        for index in 0..self.videos.len() {
            while index != self.leader && self.is_to_catch_up(&self.videos[index]) {
                self.end_stalled_segment(index)?;
            }
        }
        Ok(())
    }

    fn is_to_catch_up(&self, video: &VideoTrack) -> bool {
        let lag_us = self.videos[self.leader].cutter.natural_end_us() - video.cutter.natural_end_us();
        let has_stopped = video.stalled.is_some() || lag_us > LEAD_LAG_MAX_US;
        video.cutter.segments_behind() >= 2 || has_stopped && self.behind_lead(video) > 0
    }

    /// How many segments more the lead has ended.
    fn behind_lead(&self, video: &VideoTrack) -> i32 {
        self.videos[self.leader].cutter.ended() - video.cutter.ended()
    }

    /// Other media has come up to `end_us`. Where the video that leads is so far behind that its segment would outgrow the
    /// target duration, the segment is ended with what there is, and what is missing is said to be a gap. If there is
    /// another layer that comes, that one leads.
    pub(super) fn bridge_stalled_video(&mut self, end_us: i64) -> Result<(), SessionError> {
        self.change_leader(end_us)?;
        let patience_us = self.constants.segment_max_us() + VIDEO_LAG_MAX_US;
        while let Some(lead) = self.videos.get(self.leader)
            && end_us - lead.cutter.segment_start_us() > patience_us
        {
            warn!(at_us = lead.cutter.part_start_us(), "video has stalled");
            metrics::counter!("segmenter_video_stalls_total").increment(1);
            self.end_leaders_segment()?;
            self.catch_up_followers()?;
        }
        Ok(())
    }

    fn end_leaders_segment(&mut self) -> Result<(), SessionError> {
        if let Some(end_us) = self.end_stalled_segment(self.leader)? {
            self.follow(end_us, true)?;
        }
        self.lead_followers(1, false);
        Ok(())
    }

    /// Lets the best layer that comes lead when the one that leads does not.
    fn change_leader(&mut self, end_us: i64) -> Result<(), SessionError> {
        let lag_us = |index: usize| end_us - self.videos[index].cutter.natural_end_us();
        let comes = |index: usize| {
            let video = &self.videos[index];
            video.track.is_some() && !video.needs_keyframe && lag_us(index) < LEAD_LAG_MAX_US / 2
        };
        if self.leader >= self.videos.len() || lag_us(self.leader) <= LEAD_LAG_MAX_US {
            return Ok(());
        }
        let Some(next) = (0..self.videos.len()).find(|index| *index != self.leader && comes(*index)) else {
            return Ok(());
        };
        info!(from = self.leader, to = next, "another layer leads");
        // Both are to have ended as many segments: the sound has as many as the one that leads.
        while self.videos[next].cutter.ended() < self.videos[self.leader].cutter.ended() {
            self.end_stalled_segment(next)?;
        }
        while self.videos[self.leader].cutter.ended() < self.videos[next].cutter.ended() {
            self.end_leaders_segment()?;
        }
        (self.leader, self.end_was_asked) = (next, false);
        let ended = self.videos[next].cutter.ended();
        for (index, video) in self.videos.iter_mut().enumerate() {
            if index == next { video.cutter.lead() } else { video.cutter.follow(ended) }
        }
        Ok(())
    }

    /// Ends segments of layers that have ended fewer than others, so that all are in the same one.
    pub(super) fn even_out_segments(&mut self) -> Result<(), SessionError> {
        let most = self.videos.iter().map(|video| video.cutter.ended()).max().unwrap_or(0);
        for index in 0..self.videos.len() {
            while self.videos[index].cutter.ended() < most {
                if index == self.leader {
                    self.end_leaders_segment()?;
                } else {
                    self.end_stalled_segment(index)?;
                }
            }
        }
        Ok(())
    }

    /// Ends a layer's segment at `end_us`. Where its pictures ended so early that its last part can't last until then, there
    /// is nothing in between.
    pub(super) fn end_layer(&mut self, index: usize, end_us: i64) -> Result<(), SessionError> {
        let video = &mut self.videos[index];
        let end_us = end_us.min(video.cutter.segment_start_us() + self.constants.segment_max_us());
        let last = if end_us <= video.cutter.part_start_us() + self.constants.part_target_us + HOLE_MIN_US {
            video.cutter.finish(end_us)
        } else {
            video.cutter.break_off()
        };
        if let Some(part) = last {
            self.publish_video(index, part)?;
        }
        if end_us - self.videos[index].cutter.part_start_us() >= HOLE_MIN_US {
            self.publish_gaps(index, end_us);
        }
        Ok(())
    }

    /// Where the segment in the making ends if there is nothing in it: where the lead's ended, as far as that may be.
    fn gap_end_us(&self, index: usize) -> i64 {
        let Constants { part_us, segment_us, .. } = self.constants;
        let video = &self.videos[index];
        let start_us = video.cutter.segment_start_us();
        if index == self.leader || self.behind_lead(video) != 1 {
            return start_us + segment_us;
        }
        let lead_us = self.videos[self.leader].cutter.segment_start_us();
        lead_us.clamp(start_us + part_us, start_us + self.constants.segment_max_us())
    }

    /// Ends a video rendition's segment behind what it has, or says that there is nothing in it; returns where it ends, unless
    /// [`Self::publish_video`] has told the audio already.
    fn end_stalled_segment(&mut self, index: usize) -> Result<Option<i64>, SessionError> {
        let due_us = self.gap_end_us(index);
        let video = &mut self.videos[index];
        video.stalled.get_or_insert(0);
        self.keyframe_requests.extend(video.track);
        // No further: the layer may come nevertheless, and has its pictures from here on.
        if let Some(part) = video.cutter.finish(video.cutter.natural_end_us()) {
            self.publish_video(index, part)?;
            return Ok(None);
        }
        let at_us = video.cutter.part_start_us();
        if video.rendition.with_window(Window::progress).parts > 0 {
            self.live.end_segment(&video.rendition);
            if let (Some(ladder), 0) = (&mut self.ladder, index) {
                ladder.end_segment();
            }
            video.cutter.skip_to(at_us);
            return Ok(Some(at_us));
        }
        self.publish_gaps(index, due_us);
        Ok(Some(due_us))
    }

    /// Says that there is nothing in the rest of a segment, which ends at `end_us`.
    fn publish_gaps(&mut self, index: usize, end_us: i64) {
        let from_us = self.videos[index].cutter.part_start_us();
        for start_us in (from_us..end_us).step_by(self.constants.part_us.unsigned_abs() as usize) {
            let duration_us = self.constants.part_us.min(end_us - start_us);
            self.publish_gap(index, start_us, duration_us, start_us + duration_us >= end_us);
        }
        self.videos[index].cutter.skip_to(end_us);
    }

    fn publish_gap(&mut self, index: usize, start_us: i64, duration_us: i64, is_last: bool) {
        let start_ms = self.zero_ms + start_us / 1000;
        self.live.publish_gap(&self.videos[index].rendition, start_ms, duration_us, is_last);
        if let (Some(ladder), 0) = (&mut self.ladder, index) {
            ladder.gap(start_ms, duration_us, is_last);
        }
    }

    /// A layer that follows has its next picture at `at_us`. Where that is parts later than the last one ended, as with layers
    /// that first come when the lead has begun, says that there is nothing in those parts: shown from their beginning, it
    /// would last longer than a part may.
    pub(super) fn bridge_late_picture(&mut self, index: usize, at_us: i64) {
        let Constants { part_us, .. } = self.constants;
        let cutter = &self.videos[index].cutter;
        if index == self.leader || !cutter.is_between_parts() {
            return;
        }
        let from_us = cutter.part_start_us();
        let latest_us = cutter.segment_start_us() + self.constants.segment_max_us() - part_us;
        let parts = (at_us.min(latest_us) - from_us).div_euclid(part_us).max(0);
        for part in 0..parts {
            self.publish_gap(index, from_us + part * part_us, part_us, false);
        }
        self.videos[index].cutter.pass_over(parts.unsigned_abs() as usize);
    }

    /// A picture has come of a layer that had stalled: says that there was nothing before it. False if it is of no use, for
    /// layers that follow can be taken up where a segment of the lead's begins, and there with a keyframe.
    pub(super) fn end_stall(
        &mut self,
        index: usize,
        at_us: i64,
        is_keyframe: bool,
    ) -> Result<bool, SessionError> {
        let leads = index == self.leader;
        // Where the lead stalls too, this layer will lead.
        let waits = !leads && self.videos[self.leader].stalled.is_none();
        let video = &mut self.videos[index];
        if !leads && !is_keyframe {
            return Ok(false);
        }
        let start_us = video.cutter.part_start_us();
        if at_us - start_us < GAP_MIN_US {
            return Ok(true);
        }
        if waits && video.cutter.segments_behind() <= 0 && video.stalled < Some(KEYFRAMES_PASSED_MAX) {
            video.stalled = video.stalled.map(|passed| passed + 1);
            return Ok(false);
        }
        let end_us = at_us.min(start_us + self.constants.segment_max_us());
        self.publish_gaps(index, end_us);
        if leads {
            self.follow(end_us, true)?;
            self.lead_followers(1, false);
        }
        Ok(true)
    }
}
