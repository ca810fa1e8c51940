//! The pictures of a session: from a frame to parts of its layer's rendition. What becomes of a layer that stops
//! coming: `stall.rs`.

use std::sync::Arc;

use bytes::Bytes;

use super::{Session, SessionError, count_dropped};
use crate::codecs;
use crate::config::Constants;
use crate::cut::{CutPart, Cutter};
use crate::frame::{Frame, TrackFormat, TrackId, VideoCodec};
use crate::ladder::CutOfPart;
use crate::live::{Description, Live, NewPart, Rendition};
use crate::mux::{Muxer, SampleEntry, VIDEO_TIMESCALE};
use crate::transcode::h264;

/// One of the publisher's videos, and its rendition.
#[derive(Debug)]
pub(super) struct VideoTrack {
    /// Where its frames come from: the publisher's best track for the first rendition, the next for the second. None when
    /// a publisher that returned sends fewer layers.
    pub(super) track: Option<TrackId>,
    pub(super) format: TrackFormat,
    pub(super) rendition: Arc<Rendition>,
    pub(super) muxer: Muxer,
    pub(super) cutter: Cutter<Bytes>,
    /// Frames are dropped until a keyframe.
    pub(super) needs_keyframe: bool,
    /// The format is not the one that the rendition began with: see [`with_parameter_sets`].
    pub(super) has_changed: bool,
    /// Nothing came since its last segment was ended for that reason, or nothing of use: so many keyframes.
    pub(super) stalled: Option<u8>,
    /// Its newest picture that needs no other: see [`Session::close`].
    pub(super) still: Option<Bytes>,
}

impl VideoTrack {
    /// The layer at this place, from 0, of a stream that begins. The first one leads.
    pub(super) fn open(
        place: u8,
        (track, format): (TrackId, &TrackFormat),
        constants: Constants,
    ) -> Result<Self, SessionError> {
        let (entry, description) = sample_entry(track, format)?;
        let (muxer, init) = Muxer::open(&entry)?;
        let rendition = Rendition::new(place, format!("v{place}"), constants, init, description);
        Ok(Self {
            track: Some(track),
            format: format.clone(),
            rendition: Arc::new(rendition),
            muxer,
            cutter: cutter(place, constants, 0),
            needs_keyframe: true,
            has_changed: false,
            stalled: None,
            still: None,
        })
    }

    /// Begins anew at `at_us`, with what the publisher now sends for it.
    pub(super) fn resume(
        &mut self,
        place: u8,
        source: Option<(TrackId, &TrackFormat)>,
        (live, at_us): (&Live, i64),
    ) -> Result<(), SessionError> {
        self.track = source.map(|(track, _)| track);
        // A layer that is missing becomes gaps behind the same discontinuity.
        let format = source.map_or_else(|| self.format.clone(), |(_, format)| format.clone());
        let (entry, new) = sample_entry(self.track.unwrap_or(TrackId(place + 1)), &format)?;
        let (muxer, init) = Muxer::open(&entry)?;
        self.muxer = muxer;
        if self.format != format {
            (self.has_changed, self.still) = (true, None);
        }
        self.format = format;
        self.cutter = cutter(place, live.constants, at_us);
        (self.needs_keyframe, self.stalled) = (true, None);
        self.rendition.describe(|description| {
            description.codecs = new.codecs;
            description.resolution = new.resolution;
        });
        live.change(&self.rendition, |window| window.begin_discontinuity(init));
        Ok(())
    }

    /// Writes a part's pictures; returns its bytes.
    fn mux(&mut self, part: &CutPart<Bytes>) -> Result<Bytes, SessionError> {
        for sample in &part.samples {
            let start = video_ticks(sample.start_us);
            let duration = video_ticks(sample.start_us + sample.duration_us) - start;
            self.muxer.write(start, duration, sample.is_keyframe, &sample.data)?;
        }
        Ok(self.muxer.flush()?)
    }
}

impl Session {
    pub(super) fn video_frame(&mut self, index: usize, at_us: i64, frame: Frame) -> Result<(), SessionError> {
        let video = &mut self.videos[index];
        if video.needs_keyframe && !frame.is_keyframe {
            count_dropped("awaiting_keyframe", 1);
            return Ok(());
        }
        if video.stalled.is_some() && !self.end_stall(index, at_us, frame.is_keyframe)? {
            count_dropped("awaiting_keyframe", 1);
            return self.bridge_stalled_video(at_us);
        }
        self.bridge_late_picture(index, at_us);
        let video = &mut self.videos[index];
        (video.needs_keyframe, video.stalled) = (false, None);
        if frame.is_keyframe {
            video.still = Some(frame.data.clone());
        }
        let mut for_ladder = (index == 0 && self.ladder.is_some()).then(|| frame.data.clone());
        let repeats = frame.is_keyframe && video.has_changed;
        let data = if repeats { with_parameter_sets(&video.format, frame.data) } else { frame.data };
        let outcome = video.cutter.frame(at_us, frame.is_keyframe, data);
        if outcome.begins.segment && !frame.is_keyframe {
            // None came in time. Said before the segment can be seen.
            self.live.has_dependent_segment();
        }
        let ended = outcome.parts.iter().filter(|part| part.is_last).count();
        if index == self.leader {
            self.lead_followers(ended, outcome.wants_keyframe);
        }
        let mut parts = outcome.parts.into_iter();
        for part in parts.by_ref().take(outcome.parts_before) {
            self.publish_video(index, part)?;
        }
        if let (Some(ladder), Some(data)) = (&mut self.ladder, for_ladder.take()) {
            ladder.frame(at_us, frame.is_keyframe, outcome.begins, data);
        }
        for part in parts {
            self.publish_video(index, part)?;
        }
        // A layer that comes shows when the one that leads does not.
        if index == self.leader { self.catch_up_followers() } else { self.bridge_stalled_video(at_us) }
    }

    /// The lead ended so many segments, and perhaps wants a keyframe: then the others are to have one too.
    pub(super) fn lead_followers(&mut self, ended: usize, wants_keyframe: bool) {
        if wants_keyframe {
            self.keyframe_requests.extend(self.videos.iter().filter_map(|video| video.track));
        }
        // A permit for each of the lead's segments: when its end is asked for, or else when it ends.
        let mut permits = 0;
        for _ in 0..ended {
            permits += usize::from(!std::mem::take(&mut self.end_was_asked));
        }
        if wants_keyframe && !std::mem::replace(&mut self.end_was_asked, true) {
            permits += 1;
        }
        // What leads takes none.
        for video in &mut self.videos {
            (0..permits).for_each(|_| video.cutter.permit_end());
        }
    }

    pub(super) fn publish_video(&mut self, index: usize, part: CutPart<Bytes>) -> Result<(), SessionError> {
        let video = &mut self.videos[index];
        let (start_us, end_us, is_last) = (part.start_us(), part.end_us(), part.is_last);
        let bytes = video.mux(&part)?;
        let interval_us = video.cutter.frame_interval_us();
        let frame_rate_milli = (1_000_000_000 / interval_us.max(1)).unsigned_abs();
        video.rendition.describe(|description| description.frame_rate_milli = frame_rate_milli);
        let start_ms = self.zero_ms + start_us / 1000;
        let new = NewPart {
            bytes,
            start_ms,
            duration_us: end_us - start_us,
            is_independent: part.samples.first().is_some_and(|sample| sample.is_keyframe),
            has_keyframe: part.samples.iter().any(|sample| sample.is_keyframe),
            is_last,
        };
        self.live.publish(&video.rendition, new);
        if let (Some(ladder), 0) = (&mut self.ladder, index) {
            let starts_us = part.samples.iter().map(|sample| sample.start_us).collect();
            ladder.part(CutOfPart::new(starts_us, end_us, start_ms, is_last, frame_rate_milli));
        }
        if index == self.leader {
            self.follow(end_us, is_last)?;
        }
        Ok(())
    }
}

pub(crate) fn sample_entry(
    track: TrackId,
    format: &TrackFormat,
) -> Result<(SampleEntry, Description), SessionError> {
    let TrackFormat::Video { codec, width, height, config } = format else {
        return Err(SessionError::NoTrack);
    };
    let (codec, width, height) = (*codec, *width, *height);
    if codec == VideoCodec::Vp8 {
        return Err(SessionError::NoTrack);
    }
    let codecs = codecs::video(codec, config).ok_or(SessionError::BadConfig(track))?;
    let description = Description::video(codecs, width, height);
    Ok((SampleEntry::Video { codec, width, height, config: config.clone() }, description))
}

/// A moment on the timeline in the video renditions' own clock.
pub(crate) fn video_ticks(us: i64) -> i64 {
    (us * i64::from(VIDEO_TIMESCALE) + 500_000).div_euclid(1_000_000)
}

/// FFmpeg and all that is made of it skip a second initialization section (`moov`), so behind a change of format they
/// would decode with the parameters of the first. Keyframes bring theirs along from then on; for everybody else that is
/// a repetition. VP9 and AV1 do so always.
fn with_parameter_sets(format: &TrackFormat, data: Bytes) -> Bytes {
    let TrackFormat::Video { codec: VideoCodec::H264, config, .. } = format else { return data };
    h264::behind_parameter_sets(config, &data).map_or(data, Bytes::from)
}

fn cutter(place: u8, constants: Constants, start_us: i64) -> Cutter<Bytes> {
    if place == 0 { Cutter::new(constants, start_us) } else { Cutter::following(constants, start_us) }
}
