//! Opus in, AAC-LC out, on the sample clock of the stream, and the Opus itself beside it where that is wanted; and where
//! audio parts are cut.
//!
//! Every HLS player takes AAC; some take Opus. The decoder and the encoder are libavcodec's.

mod cut;
mod opus;
mod transcode;

pub(crate) use cut::{AudioCutter, AudioPart};
pub(crate) use opus::{OPUS_CONFIG, OpusClock};
pub(crate) use transcode::{AUDIO_CONFIG, AudioError, Transcoder};

/// Samples per second of everything in here.
pub(crate) const SAMPLE_RATE: i64 = 48_000;
/// Samples in an AAC frame.
pub(crate) const FRAME_SAMPLES: i64 = 1024;

/// An AAC frame or Opus packet, and its place on the stream's timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SoundFrame {
    /// The number of its first sample.
    pub(crate) start: i64,
    /// How many it has.
    pub(crate) samples: i64,
    pub(crate) data: bytes::Bytes,
}

impl SoundFrame {
    pub(crate) fn end(&self) -> i64 {
        self.start + self.samples
    }

    /// Whether most of it lies before a sample.
    fn is_before(&self, at: i64) -> bool {
        self.start + self.samples / 2 < at
    }
}

/// The sample at a moment in microseconds, rounded.
pub(crate) fn samples(us: i64) -> i64 {
    (us * 48 + 500).div_euclid(1000)
}

/// The moment of a sample in microseconds, rounded.
pub(crate) fn micros(samples: i64) -> i64 {
    (samples * 1000 + 24).div_euclid(48)
}
