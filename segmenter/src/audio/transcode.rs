//! Opus packets with times become AAC frames on an unbroken sample clock.
//!
//! The clock never jumps: a gap becomes silence, an overlap is cut off, and a slow drift between the publisher's
//! sampling clock and the stream's is taken up by stretching packets by less than one percent.

use bytes::Bytes;
use ffmpeg_next::codec::{self, Context, Id, decoder, encoder};
use ffmpeg_next::format::sample::{Sample, Type};
use ffmpeg_next::{ChannelLayout, Packet, frame};

use super::{FRAME_SAMPLES, SAMPLE_RATE, SoundFrame, samples};

/// The AudioSpecificConfig of all our audio: AAC-LC, 48 kHz, stereo.
pub(crate) const AUDIO_CONFIG: &[u8] = &[0x11, 0x90];

/// Differences below this are the jitter of times and left alone.
const DRIFT_MIN: i64 = SAMPLE_RATE / 200;
/// Differences above this are gaps or overlaps, not drift. Less than a lost packet's 20 ms.
const DRIFT_MAX: i64 = SAMPLE_RATE * 15 / 1000;
/// Packets are stretched by at most one part in so many: inaudible as pitch, yet 0.5 s are made up in a minute.
const STRETCH: i64 = 120;
/// A gap longer than this is the caller's to bridge; a broken time must not make us write hours of silence.
const GAP_MAX: i64 = 10 * SAMPLE_RATE;

/// The encoder works at a constant quality, in libavcodec's unit: so many bits per second for each step of it are what dense
/// music takes, and simple sounds take less. Made to spend a bit rate on everything, it searches up to five times for where
/// to put bits that a simple sound has no use for, which was most of what a stream cost.
const BITS_PER_QUALITY: u32 = 1_360;

/// libavcodec refused something. Broken packets are not among this: they are counted and become silence.
#[derive(Clone, Debug, thiserror::Error)]
#[error("libavcodec: {action}: {cause}")]
pub(crate) struct AudioError {
    action: &'static str,
    cause: ffmpeg_next::Error,
}

fn failed(action: &'static str) -> impl Fn(ffmpeg_next::Error) -> AudioError {
    move |cause| AudioError { action, cause }
}

/// See the module.
pub(crate) struct Transcoder {
    decoder: decoder::Audio,
    encoder: encoder::audio::Encoder,
    /// Samples that do not fill an AAC frame yet, left and right.
    waiting: [Vec<f32>; 2],
    /// The sample after the last one that was decoded or filled.
    next: i64,
    /// The first sample of the timeline; the encoder's priming before it is thrown away.
    start: i64,
    /// How many packets could not be decoded.
    pub(crate) broken: u64,
}

impl std::fmt::Debug for Transcoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transcoder").field("next", &self.next).finish_non_exhaustive()
    }
}

impl Transcoder {
    /// Opens decoder and encoder; the first frame out begins at sample `start`. Dense music takes `bits_per_second`.
    pub(crate) fn open(start: i64, bits_per_second: u32) -> Result<Self, AudioError> {
        let missing = failed("this FFmpeg has no Opus decoder or no AAC encoder");
        let opus =
            codec::decoder::find(Id::OPUS).ok_or(ffmpeg_next::Error::DecoderNotFound).map_err(&missing)?;
        let aac =
            codec::encoder::find(Id::AAC).ok_or(ffmpeg_next::Error::EncoderNotFound).map_err(&missing)?;
        let decoder =
            Context::new_with_codec(opus).decoder().audio().map_err(failed("open the Opus decoder"))?;

        let opening = failed("open the AAC encoder");
        let mut context = Context::new_with_codec(aac);
        context.set_flags(codec::Flags::GLOBAL_HEADER | codec::Flags::QSCALE);
        let mut settings = context.encoder().audio().map_err(&opening)?;
        settings.set_rate(SAMPLE_RATE as i32);
        settings.set_channel_layout(ChannelLayout::STEREO);
        settings.set_channels(2);
        settings.set_format(Sample::F32(Type::Planar));
        settings.set_bit_rate(bits_per_second as usize);
        settings.set_quality((bits_per_second / BITS_PER_QUALITY) as usize);
        settings.set_time_base((1, SAMPLE_RATE as i32));
        let encoder = settings.open_as(aac).map_err(&opening)?;
        Ok(Self { decoder, encoder, waiting: [Vec::new(), Vec::new()], next: start, start, broken: 0 })
    }

    /// The sample after the last one that was taken in.
    pub(crate) fn next(&self) -> i64 {
        self.next
    }

    /// Takes a packet whose first sample is played at `pts_us`. False if all of it came too late to be used.
    pub(crate) fn push(
        &mut self,
        pts_us: i64,
        data: &[u8],
        out: &mut Vec<SoundFrame>,
    ) -> Result<bool, AudioError> {
        let Some(mut planes) = self.decode(data) else {
            self.broken += 1;
            return Ok(true);
        };
        let ahead = samples(pts_us) - self.next;
        if ahead > GAP_MAX {
            return Ok(true);
        } else if ahead > DRIFT_MAX {
            self.fill_to(self.next + ahead, out)?;
        } else if ahead < -DRIFT_MAX {
            let overlap = usize::try_from(-ahead).unwrap_or(usize::MAX);
            if overlap >= planes[0].len() {
                return Ok(false);
            }
            planes.iter_mut().for_each(|plane| drop(plane.drain(..overlap)));
        } else if ahead.abs() > DRIFT_MIN {
            let length = planes[0].len() as i64;
            let stretched = length + ahead.clamp(-length / STRETCH, length / STRETCH);
            planes = planes.map(|plane| stretch(&plane, stretched as usize));
        }
        self.take(&planes, out)?;
        Ok(true)
    }

    /// Fills up with silence, so that the samples before `until` exist.
    pub(crate) fn fill_to(&mut self, until: i64, out: &mut Vec<SoundFrame>) -> Result<(), AudioError> {
        let missing = usize::try_from(until - self.next).unwrap_or(0);
        if missing > 0 {
            self.take(&[vec![0.0; missing], vec![0.0; missing]], out)?;
        }
        Ok(())
    }

    fn take(&mut self, planes: &[Vec<f32>; 2], out: &mut Vec<SoundFrame>) -> Result<(), AudioError> {
        self.next += planes[0].len() as i64;
        for (waiting, plane) in self.waiting.iter_mut().zip(planes) {
            waiting.extend_from_slice(plane);
        }
        let length = FRAME_SAMPLES as usize;
        while self.waiting[0].len() >= length {
            let first = self.next - self.waiting[0].len() as i64;
            let mut full = frame::Audio::new(Sample::F32(Type::Planar), length, ChannelLayout::STEREO);
            full.set_rate(SAMPLE_RATE as u32);
            full.set_pts(Some(first));
            for (index, waiting) in self.waiting.iter_mut().enumerate() {
                full.plane_mut::<f32>(index).copy_from_slice(&waiting[..length]);
                waiting.drain(..length);
            }
            self.encoder.send_frame(&full).map_err(failed("encode AAC"))?;
            self.receive(out);
        }
        Ok(())
    }

    fn receive(&mut self, out: &mut Vec<SoundFrame>) {
        let mut packet = Packet::empty();
        while self.encoder.receive_packet(&mut packet).is_ok() {
            let (Some(start), Some(data)) = (packet.pts(), packet.data()) else { continue };
            if start >= self.start {
                out.push(SoundFrame { start, samples: FRAME_SAMPLES, data: Bytes::copy_from_slice(data) });
            }
        }
    }

    /// Left and right of a packet; none if it is broken.
    fn decode(&mut self, data: &[u8]) -> Option<[Vec<f32>; 2]> {
        if data.is_empty() {
            return None;
        }
        self.decoder.send_packet(&Packet::copy(data)).ok()?;
        let mut planes = [Vec::new(), Vec::new()];
        let mut decoded = frame::Audio::empty();
        while self.decoder.receive_frame(&mut decoded).is_ok() {
            let is_expected =
                decoded.format() == Sample::F32(Type::Planar) && decoded.rate() == SAMPLE_RATE as u32;
            if !is_expected || decoded.planes() == 0 {
                return None;
            }
            let right = usize::from(decoded.planes() > 1);
            planes[0].extend_from_slice(decoded.plane::<f32>(0));
            planes[1].extend_from_slice(decoded.plane::<f32>(right));
        }
        (!planes[0].is_empty()).then_some(planes)
    }
}

/// `plane` with another length, linearly interpolated.
fn stretch(plane: &[f32], length: usize) -> Vec<f32> {
    let last = plane.len().saturating_sub(1);
    let step = if length > 1 { last as f32 / (length - 1) as f32 } else { 0.0 };
    (0..length)
        .map(|index| {
            let at = index as f32 * step;
            let left = (at as usize).min(last);
            let right = (left + 1).min(last);
            plane[left] + (plane[right] - plane[left]) * (at - left as f32)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 20 ms of Opus silence (RFC 6716: a code 0 CELT frame).
    const SILENCE: &[u8] = &[0xfc, 0xff, 0xfe];

    fn transcoder() -> Transcoder {
        Transcoder::open(0, 128_000).unwrap()
    }

    fn check_unbroken(frames: &[SoundFrame]) {
        for (index, frame) in frames.iter().enumerate() {
            assert_eq!(frame.start, index as i64 * FRAME_SAMPLES);
        }
    }

    #[test]
    fn frames_continue_without_a_break_over_gaps_and_overlaps() {
        let mut transcoder = transcoder();
        let mut out = Vec::new();
        for pts_ms in
            (0..1_000).step_by(20).chain((1_500..2_000).step_by(20)).chain((1_900..3_000).step_by(20))
        {
            transcoder.push(pts_ms * 1000, SILENCE, &mut out).unwrap();
        }
        check_unbroken(&out);
        assert_eq!(transcoder.next(), 3 * SAMPLE_RATE);
        assert!(out.len() as i64 >= 3 * SAMPLE_RATE / FRAME_SAMPLES - 2);
    }

    #[test]
    fn drifting_clock_is_followed_without_silence() {
        let mut transcoder = transcoder();
        let mut out = Vec::new();
        // 0.2 % fast, for a minute: 120 ms in all.
        for index in 0..3_000i64 {
            transcoder.push(index * 20_040, SILENCE, &mut out).unwrap();
        }
        check_unbroken(&out);
        let behind = samples(3_000 * 20_040) - transcoder.next();
        assert!(behind.abs() <= 2 * DRIFT_MIN, "{behind} samples off");
    }

    #[test]
    fn broken_packets_are_counted_and_replaced_by_silence() {
        let mut transcoder = transcoder();
        let mut out = Vec::new();
        for index in 0..100i64 {
            let packet: &[u8] = if index % 10 == 5 { &[] } else { SILENCE };
            transcoder.push(index * 20_000, packet, &mut out).unwrap();
        }
        assert_eq!(transcoder.broken, 10);
        check_unbroken(&out);
        assert_eq!(transcoder.next(), 2 * SAMPLE_RATE);
    }

    #[test]
    fn time_that_is_hours_off_writes_no_hours_of_silence() {
        let mut transcoder = transcoder();
        let mut out = Vec::new();
        transcoder.push(0, SILENCE, &mut out).unwrap();
        transcoder.push(3_600_000_000, SILENCE, &mut out).unwrap();
        assert!(transcoder.next() < SAMPLE_RATE);
    }
}
