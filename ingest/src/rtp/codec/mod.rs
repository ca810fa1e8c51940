//! Payload formats: what the packets of one picture or sound amount to.
//!
//! A [`Depacketizer`] sees the payloads of one stream in order without gaps and makes pictures of them. It doesn't
//! trust the packets: a picture whose beginning was lost is recognised as such, sizes are checked, and garbage
//! ends in [`Malformed`].

pub mod av1;
mod av1_sequence;
mod bits;
pub mod h264;
pub mod opus;
mod sps;
#[cfg(test)]
mod tests;
pub mod vp8;
pub mod vp9;

use bytes::Bytes;
use shoal_segmenter::frame::{TrackFormat, VideoCodec};

/// A larger picture is taken for garbage. Keyframes of 4K screens stay below 2 MB.
pub const PICTURE_BYTES_MAX: usize = 8 << 20;

/// Why a picture was thrown away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// A picture, as the segmenter wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Whether decoding can start here.
    pub is_keyframe: bool,
    /// The encoding, with every keyframe.
    pub format: Option<TrackFormat>,
    /// The bytes.
    pub data: Bytes,
}

/// Makes pictures of payloads.
pub trait Depacketizer: Send {
    /// Adds a packet's payload to the picture.
    fn push(&mut self, payload: &Bytes) -> Result<(), Malformed>;
    /// Ends the picture. `None` when the packets held nothing to show.
    fn finish(&mut self) -> Result<Option<Picture>, Malformed>;
    /// Forgets the unfinished picture, not the parameters.
    fn reset(&mut self);
}

/// The depacketizer for a codec.
pub fn depacketizer(codec: VideoCodec) -> Box<dyn Depacketizer> {
    match codec {
        VideoCodec::H264 => Box::<h264::H264>::default(),
        VideoCodec::Vp8 => Box::<vp8::Vp8>::default(),
        VideoCodec::Vp9 => Box::<vp9::Vp9>::default(),
        VideoCodec::Av1 => Box::<av1::Av1>::default(),
    }
}
