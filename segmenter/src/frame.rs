//! What a publisher's side hands to the segmenter: frames of tracks, on one clock.
//!
//! `ingest` fills these from RTP; tests and pull sources fill them from elsewhere. The segmenter does not know
//! where a frame came from.

use bytes::Bytes;

/// A moment on the stream's timeline, in microseconds since its first frame's arrival. All tracks of a stream
/// share the timeline; a publisher that returns continues it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MediaTime(pub i64);

/// A track of one publisher: 0 for its audio, 1 and up for its video layers, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrackId(pub u8);

/// The video codecs that a publisher may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VideoCodec {
    /// Passed through.
    H264,
    /// Transcoded to H.264: no HLS player takes it.
    Vp8,
    /// Passed through.
    Vp9,
    /// Passed through.
    Av1,
}

/// How a track is encoded. A track's first input, and sent again whenever it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrackFormat {
    /// A video track or simulcast layer.
    Video {
        /// The codec.
        codec: VideoCodec,
        /// Width in pixels, as coded in the bitstream (after cropping).
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The codec's configuration record as it stands in an MP4 sample entry: `avcC`, `vpcC`, `av1C` contents.
        /// Empty for VP8.
        config: Bytes,
    },
    /// An Opus track; always at 48 kHz.
    Opus {
        /// 1 or 2.
        channels: u8,
    },
}

/// One access unit of video or one packet of audio.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The track it belongs to.
    pub track: TrackId,
    /// When it is presented. Decode order is presentation order: B-frames are refused at the ingest.
    pub pts: MediaTime,
    /// Whether decoding can start here. Audio frames always say true.
    pub is_keyframe: bool,
    /// The bytes: for H.264 NAL units with 4-byte lengths, without parameter sets and delimiters; for VP8, VP9
    /// and Opus the frame; for AV1 the temporal unit in low-overhead format without temporal delimiters.
    pub data: Bytes,
}

/// What a publisher sends into its [`crate::Publication`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A track begins or changes its encoding.
    Format {
        /// The track.
        track: TrackId,
        /// Its encoding from the next frame on.
        format: TrackFormat,
    },
    /// A frame, in decode order within its track.
    Frame(Frame),
    /// The clocks had to be re-synchronised: times from here on do not continue those before.
    Discontinuity,
}
