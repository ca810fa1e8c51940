//! Pauses: everything is cut at one point, gaps stand for the time without a publisher, and what comes next begins
//! there with a discontinuity.

use std::collections::BTreeMap;

use tracing::{debug, info};

use super::audio::AudioTrack;
use super::video::VideoTrack;
use super::{Session, SessionError, usable};
use crate::audio;
use crate::frame::{Frame, MediaTime, TrackFormat, TrackId};
use crate::live::State;

impl VideoTrack {
    /// The last picture that can be shown by itself, as the first of what comes.
    fn last_picture(&self) -> Option<Frame> {
        let (track, data) = (self.track?, self.still.clone()?);
        Some(Frame { track, pts: MediaTime(0), is_keyframe: true, data })
    }
}

impl Session {
    /// Cuts everything at one point: the media stops here. Returns at once if it is paused already.
    pub(crate) fn pause(&mut self) -> Result<(), SessionError> {
        if self.paused_at_us.is_some() {
            return Ok(());
        }
        self.cut(None)
    }

    /// Cuts everything at `end_us`, or behind what has come if that is later.
    fn cut(&mut self, end_us: Option<i64>) -> Result<(), SessionError> {
        // Where the one that came furthest ends, so that what comes next begins at one point for all.
        let end_us = self.videos.iter().map(|video| video.cutter.natural_end_us()).chain(end_us).max();
        self.even_out_segments()?;
        for index in 0..self.videos.len() {
            self.end_layer(index, end_us.unwrap_or(0))?;
        }
        let video_end_us = self.videos.iter().map(|video| video.cutter.part_start_us()).max().or(end_us);
        self.end_audio(video_end_us)?;
        let end_us = video_end_us.max(self.audio.as_ref().map(AudioTrack::cut_us)).unwrap_or(0);
        self.align(end_us);
        self.paused_at_us = Some(end_us);
        self.gap_parts = 0;
        self.live.set_state(State::Away);
        debug!(end_us, "paused");
        Ok(())
    }

    /// Ends the sound where the video ended, neither before nor behind it, because the next media begins for both at the
    /// same point; without video where it ends itself.
    fn end_audio(&mut self, video_end_us: Option<i64>) -> Result<(), SessionError> {
        let Some(audio) = &mut self.audio else { return Ok(()) };
        if let Some(at) = video_end_us.map(audio::samples) {
            audio.fill_to(at)?;
            // In the segments that the video has had, before what is left is cut off.
            audio.publish(&self.live, self.zero_ms)?;
            audio.cut_off(at);
        }
        audio.finish(&self.live, self.zero_ms)
    }

    /// Lets all renditions have ended as many segments; a layer that had stopped may be one behind the others.
    fn align(&mut self, end_us: i64) {
        // Videos are numbered from 0.
        let ends_us: Vec<i64> = self.videos.iter().map(|video| video.cutter.part_start_us()).collect();
        let end_ms = |number: u8| self.zero_ms + ends_us.get(usize::from(number)).unwrap_or(&end_us) / 1000;
        let msn = self.live.align(self.constants.part_us, self.zero_ms + end_us / 1000, end_ms);
        if let Some(ladder) = &mut self.ladder {
            ladder.align(msn, self.zero_ms, self.constants.part_us);
        }
    }

    /// While the publisher is away, says that there is nothing, part by part as its time passes.
    pub(crate) fn fill_with_gaps(&mut self, now_ms: i64) {
        let Some(at_us) = &mut self.paused_at_us else { return };
        while self.zero_ms + (*at_us + self.constants.part_us) / 1000 <= now_ms {
            self.gap_parts += 1;
            let is_last = self.gap_parts * self.constants.part_us % self.constants.segment_us == 0;
            let start_ms = self.zero_ms + *at_us / 1000;
            for rendition in self.live.own_renditions() {
                self.live.publish_gap(rendition, start_ms, self.constants.part_us, is_last);
            }
            if let Some(ladder) = &mut self.ladder {
                ladder.gap(start_ms, self.constants.part_us, is_last);
            }
            *at_us += self.constants.part_us;
        }
    }

    /// Makes sure, before the stream ends, that media is the last that there is: players come to a stream's end by playing
    /// it, and stop for ever before gaps that nothing follows. Behind gaps each layer's last picture stands for one part,
    /// with silence.
    pub(super) fn close(&mut self, now_ms: i64) -> Result<(), SessionError> {
        self.pause()?;
        let Some(at_us) = self.paused_at_us.filter(|_| self.gap_parts > 0) else { return Ok(()) };
        let pictures: Vec<Frame> = self.videos.iter().filter_map(VideoTrack::last_picture).collect();
        if pictures.is_empty() && !self.videos.is_empty() {
            return Ok(());
        }
        let videos = self.videos.iter().filter_map(|video| Some((video.track?, video.format.clone())));
        let audio = self.audio.iter().map(|audio| (audio.track, TrackFormat::Opus { channels: 2 }));
        self.resume(&videos.chain(audio).collect(), 0, now_ms)?;
        for picture in pictures {
            self.frame(picture)?;
        }
        self.cut(Some(at_us + self.constants.part_us))
    }

    /// Media comes again; the lead's first frame has the time `first_us` and arrived at `arrived_ms`.
    pub(crate) fn resume(
        &mut self,
        formats: &BTreeMap<TrackId, TrackFormat>,
        first_us: i64,
        arrived_ms: i64,
    ) -> Result<(), SessionError> {
        let Some(at_us) = self.paused_at_us.take() else { return Ok(()) };
        self.offset_us = at_us - first_us;
        (self.leader, self.end_was_asked) = (0, false);
        // The date of the media that comes, but never before that of the media that was.
        self.zero_ms = self.zero_ms.max(arrived_ms - at_us / 1000);
        self.resume_videos(formats, at_us)?;
        if let Some(audio) = &mut self.audio {
            audio.resume(&self.live, at_us, self.audio_bps, self.videos.is_empty())?;
        }
        self.live.set_state(State::Live);
        Ok(())
    }

    /// Gives the best track there is to the best rendition: it is the one that must not be missing.
    fn resume_videos(
        &mut self,
        formats: &BTreeMap<TrackId, TrackFormat>,
        at_us: i64,
    ) -> Result<(), SessionError> {
        let (sources, _) = usable(formats);
        if sources.len() > self.videos.len() {
            let ignored = sources.len() - self.videos.len();
            info!(ignored, "layers without a rendition are left out");
            metrics::counter!("segmenter_layers_ignored_total").increment(ignored as u64);
        }
        let mut sources = sources.into_iter();
        for (place, video) in (0..).zip(&mut self.videos) {
            video.resume(place, sources.next(), (&self.live, at_us))?;
            if let (Some(ladder), 0) = (&mut self.ladder, place) {
                ladder.restart(video.format.clone());
            }
        }
        Ok(())
    }
}
