//! A file's sound, as it is or decoded, resampled and encoded as Opus.

use super::plan;
use crate::{
    encode::audio::{AudioEncoder, PACKET_SAMPLES},
    error::{Context as _, Error},
    frame::{Frame, Track},
    options::Options,
    pattern::tone::{CHANNELS, SAMPLE_RATE},
};
use bytes::Bytes;
use ffmpeg_next::{
    ChannelLayout, Packet, decoder,
    format::{Sample, context::Input, sample::Type},
    frame,
    software::resampling,
};
use std::collections::VecDeque;

/// Samples that are off their place by less than this are rounding of the container's time stamps.
const JITTER_MAX_TICKS: i64 = PACKET_SAMPLES as i64;
/// The same for packets that are passed through.
const ROUNDING_MAX_TICKS: i64 = 240;
/// A longer hole is a broken file; filling it would only take memory.
const SILENCE_MAX_TICKS: i64 = 60 * SAMPLE_RATE as i64;

/// Encodes samples that arrive in pieces of any size, on a continuous time line. Lives across the loops of a file.
pub(super) struct Assembler {
    encoder: AudioEncoder,
    waiting: VecDeque<f32>,
    next_tick: Option<i64>,
    packet: Vec<f32>,
}

impl Assembler {
    pub(super) fn new(options: &Options) -> Result<Self, Error> {
        let packet = Vec::with_capacity(PACKET_SAMPLES * CHANNELS);
        Ok(Self { encoder: AudioEncoder::new(options)?, waiting: VecDeque::new(), next_tick: None, packet })
    }

    /// Adds interleaved samples that begin at `tick`. Holes are filled with silence, overlaps cut off.
    fn add(&mut self, tick: i64, mut samples: &[f32], out: &mut Vec<Frame>) -> Result<(), Error> {
        let next_tick = *self.next_tick.get_or_insert(tick);
        let end = next_tick + (self.waiting.len() / CHANNELS) as i64;
        let offset = tick - end;
        if offset > JITTER_MAX_TICKS {
            let silence = offset.min(SILENCE_MAX_TICKS) as usize * CHANNELS;
            self.waiting.extend(std::iter::repeat_n(0.0, silence));
        } else if offset < -JITTER_MAX_TICKS {
            samples = &samples[samples.len().min(-offset as usize * CHANNELS)..];
        }
        self.waiting.extend(samples);
        while self.waiting.len() >= PACKET_SAMPLES * CHANNELS {
            self.packet.clear();
            self.packet.extend(self.waiting.drain(..PACKET_SAMPLES * CHANNELS));
            let tick = self.next_tick.unwrap_or(tick);
            self.next_tick = Some(tick + PACKET_SAMPLES as i64);
            out.extend(self.encoder.encode(&self.packet, tick, position_us)?);
        }
        Ok(())
    }
}

/// Turns packets into frames, during one loop of a file.
pub(super) enum AudioReader {
    Copy { next_tick: Option<i64> },
    Decode { decoder: Box<decoder::Audio>, resampler: Option<resampling::Context> },
}

impl AudioReader {
    pub(super) fn new(input: &Input, audio: &plan::AudioPlan) -> Result<Self, Error> {
        if audio.is_copied {
            return Ok(Self::Copy { next_tick: None });
        }
        let decoder = Box::new(plan::audio_decoder(input, audio.stream)?);
        Ok(Self::Decode { decoder, resampler: None })
    }

    /// Packets of sound before the loop's beginning are of use to a decoder only.
    pub(super) fn is_copying(&self) -> bool {
        matches!(self, Self::Copy { .. })
    }

    /// Takes a packet that is presented at `at_us`.
    pub(super) fn take(
        &mut self,
        packet: &mut Packet,
        at_us: i64,
        assembler: Option<&mut Assembler>,
        out: &mut Vec<Frame>,
    ) -> Result<(), Error> {
        match self {
            Self::Copy { next_tick } => {
                let data = Bytes::copy_from_slice(packet.data().unwrap_or_default());
                // Containers round to milliseconds: time stamps count samples as long as that agrees.
                let stated = ticks(at_us);
                let expected = next_tick.filter(|expected| (expected - stated).abs() < ROUNDING_MAX_TICKS);
                let ticks = expected.unwrap_or(stated);
                *next_tick = opus_samples(&data).map(|samples| ticks + samples);
                let payloads = [data].into();
                let (track, is_keyframe) = (Track::Audio, true);
                out.push(Frame { track, ticks, position_us: at_us, is_keyframe, payloads });
                Ok(())
            }
            Self::Decode { decoder, .. } => {
                packet.set_pts(Some(at_us));
                packet.set_dts(None);
                if decoder.send_packet(packet).is_err() {
                    tracing::debug!(at_us, "undecodable audio packet");
                }
                self.collect(assembler, out)
            }
        }
    }

    /// The file ends: what the decoder still holds.
    pub(super) fn finish(
        &mut self,
        assembler: Option<&mut Assembler>,
        out: &mut Vec<Frame>,
    ) -> Result<(), Error> {
        if let Self::Decode { decoder, .. } = self
            && decoder.send_eof().is_ok()
        {
            return self.collect(assembler, out);
        }
        Ok(())
    }

    fn collect(&mut self, assembler: Option<&mut Assembler>, out: &mut Vec<Frame>) -> Result<(), Error> {
        let (Self::Decode { decoder, resampler }, Some(assembler)) = (self, assembler) else { return Ok(()) };
        let mut sound = frame::Audio::empty();
        while decoder.receive_frame(&mut sound).is_ok() {
            let Some(at_us) = sound.timestamp() else { continue };
            if sound.channel_layout().is_empty() {
                sound.set_channel_layout(ChannelLayout::default(i32::from(sound.channels())));
            }
            let is_fitting = resampler.as_ref().is_some_and(|resampler| {
                let input = resampler.input();
                (input.format, input.rate, input.channel_layout)
                    == (sound.format(), sound.rate(), sound.channel_layout())
            });
            if !is_fitting {
                *resampler = Some(resample_from(&sound)?);
            }
            let Some(resampler) = resampler else { continue };
            // Room for all that comes out: the wrapper's own frame has as many samples as the input, and the rest
            // would pile up inside when the rate goes up.
            let room = sound.samples() * SAMPLE_RATE as usize / sound.rate().max(1) as usize + 256;
            let mut resampled = frame::Audio::new(FORMAT, room, ChannelLayout::STEREO);
            resampler.run(&sound, &mut resampled).context("resample")?;
            let bytes = &resampled.data(0)[..resampled.samples() * CHANNELS * 4];
            let samples: Vec<f32> = bytes
                .chunks_exact(4)
                .map(|bytes| f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
                .collect();
            assembler.add(ticks(at_us), &samples, out)?;
        }
        Ok(())
    }
}

/// Samples at 48 kHz in an Opus packet (RFC 6716, section 3.1).
fn opus_samples(packet: &[u8]) -> Option<i64> {
    let toc = *packet.first()?;
    let frame = match toc >> 3 {
        config @ 0..=11 => [480, 960, 1920, 2880][usize::from(config % 4)],
        config @ 12..=15 => [480, 960][usize::from(config % 2)],
        config => [120, 240, 480, 960][usize::from(config % 4)],
    };
    let frames = match toc & 3 {
        0 => 1,
        1 | 2 => 2,
        _ => i64::from(packet.get(1)? & 0x3f),
    };
    Some(frame * frames)
}

const FORMAT: Sample = Sample::F32(Type::Packed);

fn resample_from(sound: &frame::Audio) -> Result<resampling::Context, Error> {
    resampling::Context::get(
        sound.format(),
        sound.channel_layout(),
        sound.rate(),
        FORMAT,
        ChannelLayout::STEREO,
        SAMPLE_RATE,
    )
    .context("prepare resampling")
}

fn ticks(position_us: i64) -> i64 {
    (i128::from(position_us) * i128::from(SAMPLE_RATE) / 1_000_000) as i64
}

fn position_us(ticks: i64) -> i64 {
    (i128::from(ticks) * 1_000_000 / i128::from(SAMPLE_RATE)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Source;

    #[test]
    fn opus_packets_tell_their_length() {
        assert_eq!(opus_samples(&[0xfc]), Some(960)); // CELT, 20 ms, one frame: what libopus sends at this rate.
        assert_eq!(opus_samples(&[0x0b, 0x03]), Some(2880)); // SILK, 20 ms, three frames.
        assert_eq!(opus_samples(&[0x61]), Some(960)); // Hybrid, 10 ms, two frames.
        assert_eq!(opus_samples(&[0x83]), None);
        assert_eq!(opus_samples(&[]), None);
    }

    #[test]
    fn packets_stay_continuous_over_holes_overlaps_and_jitter() {
        let mut assembler = Assembler::new(&Options::new(Source::TestPattern, "http://h/whip/a")).unwrap();
        let mut out = Vec::new();
        let second = vec![0.1; 48_000 * CHANNELS];
        assembler.add(0, &second, &mut out).unwrap();
        assembler.add(48_000 + 300, &second, &mut out).unwrap(); // Jitter.
        assembler.add(144_000, &second, &mut out).unwrap(); // A hole of a second.
        assembler.add(168_000, &second, &mut out).unwrap(); // An overlap of half a second.
        let ticks: Vec<_> = out.iter().map(|frame| frame.ticks).collect();
        assert!(ticks.windows(2).all(|pair| pair[1] - pair[0] == 960), "{ticks:?}");
        let end = ticks.last().unwrap();
        assert!((216_000 - 3_000..=216_000).contains(end), "4.5 s in all: {end}");
    }
}
