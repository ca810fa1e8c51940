//! Encoded frames, split for RTP, as they travel from a source to the sessions that send them.
//!
//! A frame is encoded and split once; the sessions of a load test share it and add only their RTP headers.

use bytes::Bytes;
use std::sync::Arc;

/// The two tracks of a publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Track {
    Video,
    Audio,
}

impl Track {
    /// The RTP clock.
    pub(crate) fn clock_rate(self) -> u32 {
        match self {
            Self::Video => 90_000,
            Self::Audio => 48_000,
        }
    }
}

/// An access unit of video or a packet of audio.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) track: Track,
    /// Presentation time in units of the track's RTP clock. Negative at the start where an encoder has a delay.
    pub(crate) ticks: i64,
    /// The same moment on the source's timeline, in microseconds.
    pub(crate) position_us: i64,
    pub(crate) is_keyframe: bool,
    /// One RTP payload each; the last one gets the marker bit (video).
    pub(crate) payloads: Arc<[Bytes]>,
}
