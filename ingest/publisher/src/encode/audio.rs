//! Opus for live sending: 20 ms packets.

use crate::{
    error::{Context as _, Error},
    frame::{Frame, Track},
    options::Options,
    pattern::tone::{CHANNELS, SAMPLE_RATE},
};
use bytes::Bytes;
use ffmpeg_next::{
    ChannelLayout, Dictionary, Packet, Rational, codec, encoder,
    format::{Sample, sample::Type},
    frame,
};

/// Samples of a packet, for each channel: 20 ms, what browsers send.
pub(crate) const PACKET_SAMPLES: usize = 960;

/// Encodes interleaved stereo samples at 48 kHz.
pub(crate) struct AudioEncoder {
    inner: encoder::audio::Encoder,
    buffer: frame::Audio,
}

impl std::fmt::Debug for AudioEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AudioEncoder").finish_non_exhaustive()
    }
}

impl AudioEncoder {
    /// An encoder with the options' bitrate.
    pub(crate) fn new(options: &Options) -> Result<Self, Error> {
        let codec = encoder::find_by_name("libopus")
            .ok_or_else(|| Error::Option("this FFmpeg was built without libopus".into()))?;
        let mut audio =
            codec::Context::new_with_codec(codec).encoder().audio().context("prepare the audio encoder")?;
        let format = Sample::F32(Type::Packed);
        audio.set_rate(SAMPLE_RATE as i32);
        audio.set_format(format);
        audio.set_channel_layout(ChannelLayout::STEREO);
        audio.set_bit_rate(options.audio_bitrate.0 as usize);
        audio.set_time_base(Rational(1, SAMPLE_RATE as i32));
        let mut dictionary = Dictionary::new();
        dictionary.set("frame_duration", "20");
        let inner = audio.open_with(dictionary).context("open the audio encoder")?;
        let mut buffer = frame::Audio::new(format, PACKET_SAMPLES, ChannelLayout::STEREO);
        buffer.set_rate(SAMPLE_RATE);
        Ok(Self { inner, buffer })
    }

    /// Encodes [`PACKET_SAMPLES`] × [`CHANNELS`] samples that begin at `ticks` (48 kHz).
    ///
    /// The encoder delays the signal by its lookahead; the frame's ticks say which samples a decoder will put out
    /// for it, so they are earlier than `ticks` by that delay. `position_us` maps ticks to the source's timeline.
    pub(crate) fn encode(
        &mut self,
        samples: &[f32],
        ticks: i64,
        position_us: impl Fn(i64) -> i64,
    ) -> Result<Option<Frame>, Error> {
        assert_eq!(samples.len(), PACKET_SAMPLES * CHANNELS, "a packet's worth of samples");
        let bytes = self.buffer.data_mut(0);
        for (sample, bytes) in samples.iter().zip(bytes.chunks_exact_mut(4)) {
            bytes.copy_from_slice(&sample.to_ne_bytes());
        }
        self.buffer.set_pts(Some(ticks));
        self.inner.send_frame(&self.buffer).context("encode audio")?;
        let mut packet = Packet::empty();
        match self.inner.receive_packet(&mut packet) {
            Ok(()) => {}
            Err(ffmpeg_next::Error::Other { errno: ffmpeg_next::error::EAGAIN }) => return Ok(None),
            Err(error) => return Err(error).context("encode audio"),
        }
        let ticks = packet.pts().unwrap_or(ticks);
        let data = Bytes::copy_from_slice(packet.data().unwrap_or_default());
        Ok(Some(Frame {
            track: Track::Audio,
            ticks,
            position_us: position_us(ticks),
            is_keyframe: true,
            payloads: [data].into(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Source;

    #[test]
    fn packets_are_20_ms_apart_and_shifted_by_the_encoders_delay() {
        let mut encoder = AudioEncoder::new(&Options::new(Source::TestPattern, "http://h/whip/a")).unwrap();
        let samples = vec![0.1; PACKET_SAMPLES * CHANNELS];
        let ticks: Vec<_> = (0..5)
            .filter_map(|number| encoder.encode(&samples, number * 960, |ticks| ticks).unwrap())
            .map(|frame| frame.ticks)
            .collect();
        assert!(ticks.len() >= 4, "{ticks:?}");
        // libopus looks 6.5 ms ahead at 48 kHz.
        assert_eq!(ticks[0], -312);
        assert!(ticks.windows(2).all(|pair| pair[1] - pair[0] == 960), "{ticks:?}");
    }
}
