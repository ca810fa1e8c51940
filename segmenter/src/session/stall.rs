//! Stalls: what happens to segments when a track stops coming while others go on.

use tracing::{info, warn};

use super::{Session, SessionError, VIDEO_LAG_MAX_US};
use crate::window::Window;

/// The layer that leads may lag so far behind another one before that one leads: longer than a lost picture takes to be
/// repaired or replaced.
const LEAD_LAG_MAX_US: i64 = 1_000_000;

impl Session {
    /// A layer that is two segments behind the lead has stopped coming: browsers do that when the uplink gets narrow.
    pub(super) fn catch_up_followers(&mut self) -> Result<(), SessionError> {
        for index in 0..self.videos.len() {
            while index != self.leader && self.videos[index].cutter.segments_behind() >= 2 {
                self.end_stalled_segment(index)?;
            }
        }
        Ok(())
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

    /// Ends a video rendition's segment; returns where, unless [`Self::publish_video`] has told the audio already.
    fn end_stalled_segment(&mut self, index: usize) -> Result<Option<i64>, SessionError> {
        let video = &mut self.videos[index];
        self.keyframe_requests.extend(video.track);
        let due_us = video.cutter.segment_start_us() + self.constants.segment_us;
        if let Some(part) = video.cutter.finish(due_us) {
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
        for start_us in (at_us..due_us).step_by(self.constants.part_us.unsigned_abs() as usize) {
            let duration_us = self.constants.part_us.min(due_us - start_us);
            let is_last = start_us + duration_us >= due_us;
            let start_ms = self.zero_ms + start_us / 1000;
            self.live.publish_gap(&video.rendition, start_ms, duration_us, is_last);
            if let (Some(ladder), 0) = (&mut self.ladder, index) {
                ladder.gap(start_ms, duration_us, is_last);
            }
        }
        video.cutter.skip_to(due_us);
        Ok(Some(due_us))
    }
}
