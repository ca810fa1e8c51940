//! The media work of one publication: frames in, published parts out, on one timeline.
//!
//! The timeline begins at 0 with the lead track's first keyframe and never has a hole. The lead is the best video,
//! or the audio if there is none; audio follows the lead's cuts. What interrupts the media (the publisher left, a
//! clock jumped, a format changed) is a pause: everything is cut at one point, and the next media begins there with
//! a discontinuity and, where the format is another one, with another initialization section.
//!
//! Here are the beginning, the end, and which tracks are taken; `video.rs` and `audio.rs` have the way of a frame.

mod audio;
mod pause;
mod stall;
mod video;

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::debug;

use self::audio::AudioTrack;
use self::video::VideoTrack;
pub(crate) use self::video::{sample_entry, video_ticks};
use crate::audio::AudioError;
use crate::config::{Config, Constants};
use crate::frame::{Frame, TrackFormat, TrackId, VideoCodec};
use crate::ladder::{Ladder, Prepared};
use crate::live::{Live, Shared, State};
use crate::mux::MuxError;

/// Why a stream cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error(transparent)]
    Mux(#[from] MuxError),
    #[error(transparent)]
    Audio(#[from] AudioError),
    #[error("no track can be segmented")]
    NoTrack,
    #[error("track {0:?} has no usable configuration record")]
    BadConfig(TrackId),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Session {
    live: Arc<Live>,
    constants: Constants,
    audio_bps: u32,
    /// Added to a frame's time to get its place on the timeline.
    offset_us: i64,
    /// The wall-clock time of the timeline's zero, in milliseconds.
    zero_ms: i64,
    /// Up to where all renditions are cut, while there is no media.
    paused_at_us: Option<i64>,
    gap_parts: i64,
    videos: Vec<VideoTrack>,
    /// Which of the videos decides when segments end: the best one that comes.
    leader: usize,
    /// Does what is done to the first of the videos.
    ladder: Option<Ladder>,
    audio: Option<AudioTrack>,
    keyframe_requests: Vec<TrackId>,
    /// The end of the lead's segment in the making was asked for; its followers know.
    end_was_asked: bool,
}

/// The formats that become renditions: videos, best first, and the audio.
fn usable(formats: &BTreeMap<TrackId, TrackFormat>) -> (Vec<(TrackId, &TrackFormat)>, Option<TrackId>) {
    let videos = formats.iter().filter(|(_, format)| matches!(format, TrackFormat::Video { .. }));
    let audio = formats.iter().find(|(_, format)| matches!(format, TrackFormat::Opus { .. }));
    (videos.map(|(track, format)| (*track, format)).collect(), audio.map(|(track, _)| *track))
}

impl Session {
    /// Begins a new stream whose lead's first frame is `first`, which arrived at `arrived_ms`.
    pub(crate) fn start(
        name: &Arc<str>,
        config: &Config,
        shared: &Shared,
        formats: &BTreeMap<TrackId, TrackFormat>,
        first: &Frame,
        arrived_ms: i64,
    ) -> Result<Self, SessionError> {
        let constants = config.constants();
        let (sources, audio) = usable(formats);
        let videos = open_videos(&sources, constants)?;
        let types: Vec<_> = sources.iter().map(|(_, format)| *format).collect();
        let wanted = (&**name, &config.ladder[..]);
        let ladder = Prepared::new(wanted, &shared.slots, &types, &first.data, constants);
        // In the order of their numbers.
        let mut renditions: Vec<_> = videos.iter().map(|video| video.rendition.clone()).collect();
        renditions.extend(ladder.iter().flat_map(Prepared::renditions));
        let number = renditions.len() as u8;
        let audio = audio
            .map(|track| AudioTrack::open(track, number, config, constants, videos.is_empty()))
            .transpose()?;
        renditions.extend(audio.iter().flat_map(AudioTrack::renditions).cloned());
        if renditions.is_empty() {
            return Err(SessionError::NoTrack);
        }
        let started_ms = u64::try_from(arrived_ms).unwrap_or(0);
        let live = Arc::new(Live::start(name, started_ms, config, constants, shared, renditions));
        let ladder = ladder.and_then(|ladder| ladder.start(&live));
        Ok(Self {
            live,
            constants,
            audio_bps: config.audio_bps,
            offset_us: -first.pts.0,
            zero_ms: arrived_ms,
            paused_at_us: None,
            gap_parts: 0,
            videos,
            leader: 0,
            ladder,
            audio,
            keyframe_requests: Vec::new(),
            end_was_asked: false,
        })
    }

    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Nothing more comes. It is `now_ms`.
    pub(crate) fn end(mut self, now_ms: i64) {
        if let Err(cause) = self.close(now_ms) {
            debug!(%cause, "the last part is lost");
        }
        if let Some(ladder) = self.ladder.take() {
            ladder.end();
        }
        self.live.set_state(State::Ended);
    }

    /// The wall-clock time up to which media has come, in milliseconds.
    pub(crate) fn end_ms(&self) -> i64 {
        let videos = self.videos.iter().map(|video| video.cutter.natural_end_us());
        let audio = self.audio.iter().map(AudioTrack::end_us);
        self.zero_ms + videos.chain(audio).max().unwrap_or(0) / 1000
    }

    /// The tracks that it is made of.
    pub(crate) fn tracks(&self) -> Vec<TrackId> {
        self.videos
            .iter()
            .filter_map(|video| video.track)
            .chain(self.audio.as_ref().map(|audio| audio.track))
            .collect()
    }

    /// Whether these formats fit the renditions that the multivariant playlist already names. Silence can stand for
    /// a missing microphone and gaps for a missing layer; nothing can stand for a missing camera. Layers for which there is
    /// no rendition are left out.
    pub(crate) fn accepts(&self, formats: &BTreeMap<TrackId, TrackFormat>) -> bool {
        let (videos, audio) = usable(formats);
        let same_codecs = videos.is_empty() == self.videos.is_empty()
            && videos
                .iter()
                .zip(&self.videos)
                .all(|((_, format), video)| codec(format) == codec(&video.format));
        same_codecs
            && (self.audio.is_some() || audio.is_none())
            && (audio.is_some() || !self.videos.is_empty())
    }

    /// Whether a track whose format has come while the stream is live is to change it: it is part of it, or better than a
    /// layer that is, or there is room for it. Layers that come too late for the multivariant playlist are not.
    pub(crate) fn wants(&self, track: TrackId, formats: &BTreeMap<TrackId, TrackFormat>) -> bool {
        let (videos, _) = usable(formats);
        let place = videos.iter().position(|(video, _)| *video == track);
        place.is_none_or(|place| self.videos.is_empty() || place < self.videos.len())
    }

    /// The tracks from which keyframes are wanted since the last call.
    pub(crate) fn take_keyframe_requests(&mut self) -> Vec<TrackId> {
        std::mem::take(&mut self.keyframe_requests)
    }

    /// The queue overflowed: video cannot be decoded up to the next keyframe.
    pub(crate) fn frames_were_lost(&mut self) {
        for video in &mut self.videos {
            video.needs_keyframe = true;
            self.keyframe_requests.extend(video.track);
        }
    }

    /// Asks for the keyframes without which a layer can't begin.
    pub(crate) fn ask_for_missing_keyframes(&mut self) {
        let missing = self.videos.iter().filter(|video| video.needs_keyframe);
        self.keyframe_requests.extend(missing.filter_map(|video| video.track));
    }

    /// Takes a frame.
    pub(crate) fn frame(&mut self, frame: Frame) -> Result<(), SessionError> {
        if self.paused_at_us.is_some() {
            count_dropped("paused", 1);
            return Ok(());
        }
        let at_us = frame.pts.0 + self.offset_us;
        if let Some(index) = self.videos.iter().position(|video| video.track == Some(frame.track)) {
            self.video_frame(index, at_us, frame)
        } else if self.audio.as_ref().is_some_and(|audio| audio.track == frame.track) {
            self.audio_frame(at_us, &frame.data)
        } else {
            count_dropped("no_rendition", 1);
            Ok(())
        }
    }
}

/// Tracks for these videos, best first.
fn open_videos(
    sources: &[(TrackId, &TrackFormat)],
    constants: Constants,
) -> Result<Vec<VideoTrack>, SessionError> {
    (0..).zip(sources).map(|(place, source)| VideoTrack::open(place, *source, constants)).collect()
}

/// Counts frames that don't come out, by reason.
pub(crate) fn count_dropped(reason: &'static str, frames: usize) {
    metrics::counter!("segmenter_frames_dropped_total", "reason" => reason).increment(frames as u64);
}

fn codec(format: &TrackFormat) -> Option<VideoCodec> {
    match format {
        TrackFormat::Video { codec, .. } => Some(*codec),
        TrackFormat::Opus { .. } => None,
    }
}
