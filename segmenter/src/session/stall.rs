//! Stalls: what happens to segments when a track stops coming while others go on.

use tracing::warn;

use super::{Session, SessionError, VIDEO_LAG_MAX_US};
use crate::window::Window;

impl Session {
    /// A layer that is two segments behind the lead has stopped coming: browsers do that when the uplink gets narrow.
    pub(super) fn catch_up_followers(&mut self) -> Result<(), SessionError> {
        for index in 1..self.videos.len() {
            while self.videos[index].cutter.segments_behind() >= 2 {
                self.end_stalled_segment(index)?;
            }
        }
        Ok(())
    }

    /// Audio has come up to `audio_end_us`. Where the video is so far behind that its segment would outgrow the target
    /// duration, the segment is ended with what there is, and what is missing is said to be a gap.
    pub(super) fn bridge_stalled_video(&mut self, audio_end_us: i64) -> Result<(), SessionError> {
        let patience_us = self.constants.segment_max_us() + VIDEO_LAG_MAX_US;
        while let Some(lead) = self.videos.first()
            && audio_end_us - lead.cutter.segment_start_us() > patience_us
        {
            warn!(at_us = lead.cutter.part_start_us(), "video has stalled");
            metrics::counter!("segmenter_video_stalls_total").increment(1);
            if let Some(end_us) = self.end_stalled_segment(0)? {
                self.follow(end_us, true)?;
            }
            self.lead_followers(1, false);
            self.catch_up_followers()?;
        }
        Ok(())
    }

    /// Ends a video rendition's segment; returns where, unless [`Self::publish_video`] has told the audio already.
    fn end_stalled_segment(&mut self, index: usize) -> Result<Option<i64>, SessionError> {
        let video = &mut self.videos[index];
        self.keyframe_requests.push(video.track);
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
