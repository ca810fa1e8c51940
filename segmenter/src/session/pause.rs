//! Pauses: everything is cut at one point, gaps stand for the time without a publisher, and what comes next begins
//! there with a discontinuity.

use std::collections::BTreeMap;

use tracing::{debug, info};

use super::{
    OpusTrack, Session, SessionError, VideoTrack, audio_entry, cutter, opus_entry, publish_audio_part,
    sample_entry, usable,
};
use crate::audio::{self, AudioCutter, OpusClock, Transcoder};
use crate::frame::{Frame, MediaTime, TrackFormat, TrackId};
use crate::live::State;
use crate::mux::Muxer;

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
        if let (Some(audio), Some(at)) = (&mut self.audio, video_end_us.map(audio::samples)) {
            // Neither shorter than the video nor longer: the next media begins for both at the same point.
            let mut frames = Vec::new();
            audio.transcoder.fill_to(at + 2 * audio::FRAME_SAMPLES, &mut frames)?;
            frames.into_iter().for_each(|frame| audio.cutter.push(frame));
            if let Some(opus) = &mut audio.opus {
                opus.fill_to(at);
            }
            // In the segments that the video has had, before what is left is cut off.
            self.publish_audio()?;
        }
        if let Some(audio) = &mut self.audio {
            if let Some(at) = video_end_us.map(audio::samples) {
                audio.cutter.cut_off(at);
                if let Some(opus) = &mut audio.opus {
                    opus.cutter.cut_off(at);
                }
            }
            for part in audio.cutter.finish() {
                publish_audio_part(&self.live, (&*audio.rendition, &mut audio.muxer), &part, self.zero_ms)?;
            }
            if let Some(opus) = &mut audio.opus {
                for part in opus.cutter.finish() {
                    publish_audio_part(&self.live, (&*opus.rendition, &mut opus.muxer), &part, self.zero_ms)?;
                }
            }
        }
        let sound_end = |cutter: &AudioCutter| audio::micros(cutter.part_start());
        let audio_end = self.audio.as_ref().map(|audio| sound_end(&audio.cutter));
        let opus = self.audio.as_ref().and_then(|audio| audio.opus.as_ref());
        let audio_end = audio_end.max(opus.map(|opus| sound_end(&opus.cutter)));
        let end_us = video_end_us.max(audio_end).unwrap_or(0);
        // A layer that had stopped may be a segment behind the others. Videos are numbered from 0.
        let ends_us: Vec<i64> = self.videos.iter().map(|video| video.cutter.part_start_us()).collect();
        let end_ms = |number: u8| self.zero_ms + ends_us.get(usize::from(number)).unwrap_or(&end_us) / 1000;
        let msn = self.live.align(self.constants.part_us, self.zero_ms + end_us / 1000, end_ms);
        if let Some(ladder) = &mut self.ladder {
            ladder.align(msn, self.zero_ms, self.constants.part_us);
        }
        self.paused_at_us = Some(end_us);
        self.gap_parts = 0;
        self.live.set_state(State::Away);
        debug!(end_us, "paused");
        Ok(())
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
        // The best track there is for the best rendition: it is the one that must not be missing.
        let (sources, _) = usable(formats);
        if sources.len() > self.videos.len() {
            let ignored = sources.len() - self.videos.len();
            info!(ignored, "layers without a rendition are left out");
            metrics::counter!("segmenter_layers_ignored_total").increment(ignored as u64);
        }
        let mut sources = sources.into_iter();
        for (index, video) in self.videos.iter_mut().enumerate() {
            let source = sources.next();
            video.track = source.map(|(track, _)| track);
            // A layer that is missing becomes gaps behind the same discontinuity.
            let format = source.map_or_else(|| video.format.clone(), |(_, format)| format.clone());
            let (entry, new) = sample_entry(video.track.unwrap_or(TrackId(index as u8 + 1)), &format)?;
            let (muxer, init) = Muxer::open(&entry)?;
            video.muxer = muxer;
            if video.format != format {
                (video.has_changed, video.still) = (true, None);
            }
            video.format = format.clone();
            video.cutter = cutter(self.constants, at_us, index == 0);
            (video.needs_keyframe, video.stalled) = (true, None);
            video.rendition.describe(|description| {
                description.codecs = new.codecs;
                description.resolution = new.resolution;
            });
            self.live.change(&video.rendition, |window| window.begin_discontinuity(init));
            if let (Some(ladder), 0) = (&mut self.ladder, index) {
                ladder.restart(format);
            }
        }
        if let Some(audio) = &mut self.audio {
            let (muxer, init) = Muxer::open(&audio_entry())?;
            let start = audio::samples(at_us);
            audio.muxer = muxer;
            audio.transcoder = Transcoder::open(start, self.audio_bps)?;
            audio.cutter = AudioCutter::new(&self.constants, start, self.videos.is_empty());
            audio.is_silent = false;
            self.live.change(&audio.rendition, |window| window.begin_discontinuity(init));
            if let Some(opus) = &mut audio.opus {
                let (muxer, init) = Muxer::open(&opus_entry())?;
                let cutter = AudioCutter::new(&self.constants, start, self.videos.is_empty());
                let rendition = opus.rendition.clone();
                self.live.change(&rendition, |window| window.begin_discontinuity(init));
                *opus = OpusTrack { rendition, muxer, clock: OpusClock::new(start), cutter };
            }
        }
        self.live.set_state(State::Live);
        Ok(())
    }
}
