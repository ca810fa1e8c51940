//! The sound of a session: encoded as AAC on an unbroken clock, as the publisher sent it beside that where `opus` says so,
//! and cut where the video is.

use std::sync::Arc;

use bytes::Bytes;

use super::{Session, SessionError};
use crate::audio::{
    self, AUDIO_CONFIG, AudioCutter, AudioPart, OPUS_CONFIG, OpusClock, SoundFrame, Transcoder,
};
use crate::codecs;
use crate::config::{Config, Constants};
use crate::frame::TrackId;
use crate::live::{Description, Live, NewPart, Rendition};
use crate::mux::{Muxer, SampleEntry};

/// Audio may lag so far behind the video before silence takes its place.
const LAG_MAX_US: i64 = 1_000_000;

/// The publisher's sound, and its renditions.
#[derive(Debug)]
pub(super) struct AudioTrack {
    pub(super) track: TrackId,
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

impl AudioTrack {
    /// The sound of a stream that begins. Its renditions are numbered from `number` on; without video it leads.
    pub(super) fn open(
        track: TrackId,
        number: u8,
        config: &Config,
        constants: Constants,
        leads: bool,
    ) -> Result<Self, SessionError> {
        let (muxer, init) = Muxer::open(&aac_entry())?;
        let description = Description::audio(codecs::AAC);
        let rendition = Rendition::new(number, "a0".to_owned(), constants, init, description);
        let opus = config.opus.then(|| OpusTrack::open(number + 1, constants, leads)).transpose()?;
        Ok(Self {
            track,
            rendition: Arc::new(rendition),
            muxer,
            transcoder: Transcoder::open(0, config.audio_bps)?,
            cutter: AudioCutter::new(&constants, 0, leads),
            is_silent: false,
            opus,
        })
    }

    /// Begins anew at `at_us`.
    pub(super) fn resume(
        &mut self,
        live: &Live,
        at_us: i64,
        bps: u32,
        leads: bool,
    ) -> Result<(), SessionError> {
        let (muxer, init) = Muxer::open(&aac_entry())?;
        let start = audio::samples(at_us);
        self.muxer = muxer;
        self.transcoder = Transcoder::open(start, bps)?;
        self.cutter = AudioCutter::new(&live.constants, start, leads);
        self.is_silent = false;
        live.change(&self.rendition, |window| window.begin_discontinuity(init));
        self.opus.as_mut().map_or(Ok(()), |opus| opus.resume(live, start, leads))
    }

    pub(super) fn renditions(&self) -> impl Iterator<Item = &Arc<Rendition>> {
        std::iter::once(&self.rendition).chain(self.opus.as_ref().map(|opus| &opus.rendition))
    }

    /// Up to where sound has come.
    pub(super) fn end_us(&self) -> i64 {
        audio::micros(self.transcoder.next())
    }

    /// Up to where it was cut, in the rendition that is further.
    pub(super) fn cut_us(&self) -> i64 {
        let opus = self.opus.as_ref().map(|opus| opus.cutter.part_start());
        audio::micros(opus.map_or(self.cutter.part_start(), |opus| opus.max(self.cutter.part_start())))
    }

    /// Takes a packet of the publisher's.
    fn push(&mut self, at_us: i64, data: &Bytes) -> Result<(), SessionError> {
        let mut frames = Vec::new();
        let broken = self.transcoder.broken;
        if !self.transcoder.push(at_us, data, &mut frames)? {
            metrics::counter!("segmenter_audio_late_total").increment(1);
        }
        if self.transcoder.broken > broken {
            metrics::counter!("segmenter_audio_broken_total").increment(1);
        }
        if let Some(opus) = &mut self.opus {
            let mut packets = Vec::new();
            opus.clock.push(at_us, data, &mut packets);
            opus.push(packets);
        }
        self.is_silent = false;
        frames.into_iter().for_each(|frame| self.cutter.push(frame));
        Ok(())
    }

    /// Silence up to sample `at`.
    pub(super) fn fill_to(&mut self, at: i64) -> Result<(), SessionError> {
        // Beyond it by what the encoder holds back.
        let mut frames = Vec::new();
        self.transcoder.fill_to(at + 2 * audio::FRAME_SAMPLES, &mut frames)?;
        frames.into_iter().for_each(|frame| self.cutter.push(frame));
        if let Some(opus) = &mut self.opus {
            opus.fill_to(at);
        }
        Ok(())
    }

    /// A part is to end at sample `at`.
    fn push_boundary(&mut self, at: i64, is_last: bool) {
        self.cutter.push_boundary(at, is_last);
        if let Some(opus) = &mut self.opus {
            opus.cutter.push_boundary(at, is_last);
        }
    }

    /// Drops what lies behind sample `at`.
    pub(super) fn cut_off(&mut self, at: i64) {
        self.cutter.cut_off(at);
        if let Some(opus) = &mut self.opus {
            opus.cutter.cut_off(at);
        }
    }

    /// Publishes what is cut.
    pub(super) fn publish(&mut self, live: &Live, zero_ms: i64) -> Result<(), SessionError> {
        while let Some(part) = self.cutter.poll() {
            publish_part(live, (&*self.rendition, &mut self.muxer), &part, zero_ms)?;
        }
        if let Some(opus) = &mut self.opus {
            while let Some(part) = opus.cutter.poll() {
                publish_part(live, (&*opus.rendition, &mut opus.muxer), &part, zero_ms)?;
            }
        }
        Ok(())
    }

    /// Publishes all that there is.
    pub(super) fn finish(&mut self, live: &Live, zero_ms: i64) -> Result<(), SessionError> {
        for part in self.cutter.finish() {
            publish_part(live, (&*self.rendition, &mut self.muxer), &part, zero_ms)?;
        }
        if let Some(opus) = &mut self.opus {
            for part in opus.cutter.finish() {
                publish_part(live, (&*opus.rendition, &mut opus.muxer), &part, zero_ms)?;
            }
        }
        Ok(())
    }
}

impl OpusTrack {
    fn open(number: u8, constants: Constants, leads: bool) -> Result<Self, SessionError> {
        let (muxer, init) = Muxer::open(&opus_entry())?;
        let description = Description::audio(codecs::OPUS);
        let rendition = Rendition::new(number, "a1".to_owned(), constants, init, description);
        let cutter = AudioCutter::new(&constants, 0, leads);
        Ok(Self { rendition: Arc::new(rendition), muxer, clock: OpusClock::new(0), cutter })
    }

    fn resume(&mut self, live: &Live, start: i64, leads: bool) -> Result<(), SessionError> {
        let (muxer, init) = Muxer::open(&opus_entry())?;
        self.muxer = muxer;
        self.clock = OpusClock::new(start);
        self.cutter = AudioCutter::new(&live.constants, start, leads);
        live.change(&self.rendition, |window| window.begin_discontinuity(init));
        Ok(())
    }

    fn push(&mut self, packets: Vec<SoundFrame>) {
        packets.into_iter().for_each(|packet| self.cutter.push(packet));
    }

    fn fill_to(&mut self, at: i64) {
        let mut packets = Vec::new();
        self.clock.fill_to(at, &mut packets);
        self.push(packets);
    }
}

impl Session {
    pub(super) fn audio_frame(&mut self, at_us: i64, data: &Bytes) -> Result<(), SessionError> {
        let Some(audio) = &mut self.audio else { return Ok(()) };
        audio.push(at_us, data)?;
        let end_us = audio.end_us();
        audio.publish(&self.live, self.zero_ms)?;
        self.bridge_stalled_video(end_us)
    }

    /// The lead ended a part at `end_us`: audio is to end one there too.
    pub(super) fn follow(&mut self, end_us: i64, is_last: bool) -> Result<(), SessionError> {
        let Some(audio) = &mut self.audio else { return Ok(()) };
        let at = audio::samples(end_us);
        audio.push_boundary(at, is_last);
        let lag = at - audio.transcoder.next();
        if lag > audio::samples(LAG_MAX_US) || (audio.is_silent && lag > 0) {
            audio.fill_to(at)?;
            audio.is_silent = true;
        }
        audio.publish(&self.live, self.zero_ms)
    }
}

fn opus_entry() -> SampleEntry {
    SampleEntry::Opus { channels: 2, config: Bytes::from_static(OPUS_CONFIG) }
}

fn aac_entry() -> SampleEntry {
    let config = Bytes::from_static(AUDIO_CONFIG);
    SampleEntry::Aac { sample_rate: audio::SAMPLE_RATE as u32, channels: 2, config }
}

fn publish_part(
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
