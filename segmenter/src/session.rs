//! The media work of one publication: frames in, published parts out, on one timeline.
//!
//! The timeline begins at 0 with the lead track's first keyframe and never has a hole. The lead is the best video,
//! or the audio if there is none; audio follows the lead's cuts. What interrupts the media (the publisher left, a
//! clock jumped, a format changed) is a pause: everything is cut at one point, and the next media begins there with
//! a discontinuity and, where the format is another one, with another initialization section.

mod pause;
mod stall;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tracing::debug;

use crate::audio::{
    self, AUDIO_CONFIG, AudioCutter, AudioError, AudioPart, OPUS_CONFIG, OpusClock, SoundFrame, Transcoder,
};
use crate::codecs;
use crate::config::{Config, Constants};
use crate::cut::{CutPart, Cutter};
use crate::frame::{Frame, TrackFormat, TrackId, VideoCodec};
use crate::ladder::{CutOfPart, Ladder, Prepared};
use crate::live::{Description, Live, NewPart, Rendition, Shared, State};
use crate::mux::{MuxError, Muxer, SampleEntry, VIDEO_TIMESCALE};
use crate::transcode::h264;

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

#[derive(Debug)]
struct VideoTrack {
    /// Where its frames come from: the publisher's best track for the first rendition, the next for the second. None when
    /// a publisher that returned sends fewer layers.
    track: Option<TrackId>,
    format: TrackFormat,
    rendition: Arc<Rendition>,
    muxer: Muxer,
    cutter: Cutter<Bytes>,
    /// Frames are dropped until a keyframe.
    needs_keyframe: bool,
    /// The format is not the one that the rendition began with: see [`with_parameter_sets`].
    has_changed: bool,
    /// Nothing came since its last segment was ended for that reason, or nothing of use: so many keyframes.
    stalled: Option<u8>,
    /// Its newest picture that needs no other: see [`Session::close`].
    still: Option<Bytes>,
}

#[derive(Debug)]
struct AudioTrack {
    track: TrackId,
    rendition: Arc<Rendition>,
    muxer: Muxer,
    transcoder: Transcoder,
    cutter: AudioCutter,
    /// Nothing came since silence was last filled in.
    is_silent: bool,
    /// The publisher's Opus beside it.
    opus: Option<OpusTrack>,
}

/// The same sound as the publisher encoded it.
#[derive(Debug)]
struct OpusTrack {
    rendition: Arc<Rendition>,
    muxer: Muxer,
    clock: OpusClock,
    cutter: AudioCutter,
}

impl OpusTrack {
    fn push(&mut self, packets: Vec<SoundFrame>) {
        packets.into_iter().for_each(|packet| self.cutter.push(packet));
    }

    /// Silence up to sample `at`.
    fn fill_to(&mut self, at: i64) {
        let mut packets = Vec::new();
        self.clock.fill_to(at, &mut packets);
        self.push(packets);
    }
}

/// Video may lag so far behind the audio, beyond the longest segment, before a gap takes its place.
const VIDEO_LAG_MAX_US: i64 = 500_000;
/// Audio may lag so far behind the video before silence takes its place.
const AUDIO_LAG_MAX_US: i64 = 1_000_000;

/// The formats that become renditions: videos, best first, and the audio.
fn usable(formats: &BTreeMap<TrackId, TrackFormat>) -> (Vec<(TrackId, &TrackFormat)>, Option<TrackId>) {
    let videos = formats.iter().filter(|(_, format)| matches!(format, TrackFormat::Video { .. }));
    let audio = formats.iter().find(|(_, format)| matches!(format, TrackFormat::Opus { .. }));
    (videos.map(|(track, format)| (*track, format)).collect(), audio.map(|(track, _)| *track))
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

fn opus_entry() -> SampleEntry {
    SampleEntry::Opus { channels: 2, config: Bytes::from_static(OPUS_CONFIG) }
}

fn audio_entry() -> SampleEntry {
    let config = Bytes::from_static(AUDIO_CONFIG);
    SampleEntry::Aac { sample_rate: audio::SAMPLE_RATE as u32, channels: 2, config }
}

/// A moment on the timeline in the video renditions' own clock.
pub(crate) fn video_ticks(us: i64) -> i64 {
    (us * i64::from(VIDEO_TIMESCALE) + 500_000).div_euclid(1_000_000)
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
        let (video_formats, audio_track) = usable(formats);
        let video_types: Vec<_> = video_formats.iter().map(|(_, format)| *format).collect();
        let mut renditions = Vec::new();
        let mut videos = Vec::new();
        for (track, format) in video_formats {
            let (entry, description) = sample_entry(track, format)?;
            let (muxer, init) = Muxer::open(&entry)?;
            let number = renditions.len() as u8;
            let rendition =
                Arc::new(Rendition::new(number, format!("v{number}"), constants, init, description));
            renditions.push(rendition.clone());
            let cutter = cutter(constants, 0, videos.is_empty());
            videos.push(VideoTrack {
                track: Some(track),
                format: format.clone(),
                rendition,
                muxer,
                cutter,
                needs_keyframe: true,
                has_changed: false,
                stalled: None,
                still: None,
            });
        }
        let wanted = (&**name, &config.ladder[..]);
        let ladder = Prepared::new(wanted, &shared.slots, &video_types, &first.data, constants);
        renditions.extend(ladder.iter().flat_map(Prepared::renditions));
        let audio = match audio_track {
            None => None,
            Some(track) => {
                let (muxer, init) = Muxer::open(&audio_entry())?;
                let description = Description::audio(codecs::AAC);
                let rendition =
                    Rendition::new(renditions.len() as u8, "a0".to_owned(), constants, init, description);
                let rendition = Arc::new(rendition);
                renditions.push(rendition.clone());
                let leads = videos.is_empty();
                let mut opus = None;
                if config.opus {
                    let (muxer, init) = Muxer::open(&opus_entry())?;
                    let description = Description::audio(codecs::OPUS);
                    let number = renditions.len() as u8;
                    let rendition = Rendition::new(number, "a1".to_owned(), constants, init, description);
                    let rendition = Arc::new(rendition);
                    renditions.push(rendition.clone());
                    let cutter = AudioCutter::new(&constants, 0, leads);
                    opus = Some(OpusTrack { rendition, muxer, clock: OpusClock::new(0), cutter });
                }
                Some(AudioTrack {
                    track,
                    rendition,
                    muxer,
                    transcoder: Transcoder::open(0, config.audio_bps)?,
                    cutter: AudioCutter::new(&constants, 0, leads),
                    is_silent: false,
                    opus,
                })
            }
        };
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
        let audio = self.audio.iter().map(|audio| audio::micros(audio.transcoder.next()));
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

    fn video_frame(&mut self, index: usize, at_us: i64, frame: Frame) -> Result<(), SessionError> {
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
    fn lead_followers(&mut self, ended: usize, wants_keyframe: bool) {
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

    fn publish_video(&mut self, index: usize, part: CutPart<Bytes>) -> Result<(), SessionError> {
        let video = &mut self.videos[index];
        let (start_us, end_us, is_last) = (part.start_us(), part.end_us(), part.is_last);
        for sample in &part.samples {
            let start = video_ticks(sample.start_us);
            let duration = video_ticks(sample.start_us + sample.duration_us) - start;
            video.muxer.write(start, duration, sample.is_keyframe, &sample.data)?;
        }
        let bytes = video.muxer.flush()?;
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

    /// The lead ended a part at `end_us`: audio is to end one there too.
    fn follow(&mut self, end_us: i64, is_last: bool) -> Result<(), SessionError> {
        let Some(audio) = &mut self.audio else { return Ok(()) };
        let at = audio::samples(end_us);
        audio.cutter.push_boundary(at, is_last);
        if let Some(opus) = &mut audio.opus {
            opus.cutter.push_boundary(at, is_last);
        }
        let lag = at - audio.transcoder.next();
        if lag > audio::samples(AUDIO_LAG_MAX_US) || (audio.is_silent && lag > 0) {
            // Beyond the boundary by what the encoder holds back.
            let mut frames = Vec::new();
            audio.transcoder.fill_to(at + 2 * audio::FRAME_SAMPLES, &mut frames)?;
            frames.into_iter().for_each(|frame| audio.cutter.push(frame));
            if let Some(opus) = &mut audio.opus {
                opus.fill_to(at);
            }
            audio.is_silent = true;
        }
        self.publish_audio()
    }

    fn audio_frame(&mut self, at_us: i64, data: &Bytes) -> Result<(), SessionError> {
        let Some(audio) = &mut self.audio else { return Ok(()) };
        let mut frames = Vec::new();
        let broken = audio.transcoder.broken;
        if !audio.transcoder.push(at_us, data, &mut frames)? {
            metrics::counter!("segmenter_audio_late_total").increment(1);
        }
        if audio.transcoder.broken > broken {
            metrics::counter!("segmenter_audio_broken_total").increment(1);
        }
        if let Some(opus) = &mut audio.opus {
            let mut packets = Vec::new();
            opus.clock.push(at_us, data, &mut packets);
            opus.push(packets);
        }
        audio.is_silent = false;
        frames.into_iter().for_each(|frame| audio.cutter.push(frame));
        let end_us = audio::micros(audio.transcoder.next());
        self.publish_audio()?;
        self.bridge_stalled_video(end_us)
    }

    fn publish_audio(&mut self) -> Result<(), SessionError> {
        let Some(audio) = &mut self.audio else { return Ok(()) };
        while let Some(part) = audio.cutter.poll() {
            publish_audio_part(&self.live, (&*audio.rendition, &mut audio.muxer), &part, self.zero_ms)?;
        }
        if let Some(opus) = &mut audio.opus {
            while let Some(part) = opus.cutter.poll() {
                publish_audio_part(&self.live, (&*opus.rendition, &mut opus.muxer), &part, self.zero_ms)?;
            }
        }
        Ok(())
    }
}

/// Counts frames that don't come out, by reason.
pub(crate) fn count_dropped(reason: &'static str, frames: usize) {
    metrics::counter!("segmenter_frames_dropped_total", "reason" => reason).increment(frames as u64);
}

/// FFmpeg and all that is made of it skip a second initialization section (`moov`), so behind a change of format they
/// would decode with the parameters of the first. Keyframes bring theirs along from then on; for everybody else that is
/// a repetition. VP9 and AV1 do so always.
fn with_parameter_sets(format: &TrackFormat, data: Bytes) -> Bytes {
    let TrackFormat::Video { codec: VideoCodec::H264, config, .. } = format else { return data };
    h264::behind_parameter_sets(config, &data).map_or(data, Bytes::from)
}

fn cutter(constants: Constants, start_us: i64, leads: bool) -> Cutter<Bytes> {
    if leads { Cutter::new(constants, start_us) } else { Cutter::following(constants, start_us) }
}

fn codec(format: &TrackFormat) -> Option<VideoCodec> {
    match format {
        TrackFormat::Video { codec, .. } => Some(*codec),
        TrackFormat::Opus { .. } => None,
    }
}

fn publish_audio_part(
    live: &Live,
    (rendition, muxer): (&Rendition, &mut Muxer),
    part: &AudioPart,
    zero_ms: i64,
) -> Result<(), SessionError> {
    let (Some(first), Some(last)) = (part.frames.first(), part.frames.last()) else { return Ok(()) };
    for frame in &part.frames {
        muxer.write(frame.start, frame.samples, true, &frame.data)?;
    }
    let new = NewPart {
        bytes: muxer.flush()?,
        start_ms: zero_ms + audio::micros(first.start) / 1000,
        duration_us: audio::micros(last.end()) - audio::micros(first.start),
        is_independent: true,
        has_keyframe: true,
        is_last: part.is_last,
    };
    live.publish(rendition, new);
    Ok(())
}
