//! Reads offers and writes what of them is passed on to the WebRTC stack.
//!
//! Only what a WHIP endpoint decides by is looked at: media sections, codecs, directions, ICE and DTLS
//! parameters, simulcast. The stack never sees the offer itself but [`Offer::reduce`]d text: one video codec
//! with its retransmission format, one audio codec, the header extensions that we use, and no candidates. So
//! what a publisher writes into the rest of its offer reaches no parser but this one. SDP fragments of PATCH
//! requests are in `sdpfrag.rs`.
//!
//! `offer.rs` reads, `codecs.rs` chooses, `reduce.rs` writes for the stack, `answer.rs` for the publisher.

mod answer;
mod codecs;
mod offer;
mod reduce;
#[cfg(test)]
mod tests;

use shoal_segmenter::frame::{TrackId, VideoCodec};

pub use self::answer::{finish_answer, fragment_head};
pub use self::offer::check_ice;

/// Sections in an offer. A WHIP offer has two; a few more leave room for stopped ones of a renegotiated
/// connection.
pub const SECTIONS_MAX: usize = 8;
/// Layers that a publisher may send; more than browsers can.
pub const LAYERS_MAX: usize = 4;

/// The header extensions that we answer with. `urn:3gpp:video-orientation` is left out on purpose: a sender
/// that can't signal a rotation turns the pixels instead, and HLS has no way to carry it.
pub const EXTENSIONS: [&str; 4] = [MID_URI, RID_URI, REPAIRED_RID_URI, TRANSPORT_CC_URI];
/// Names the media section of a packet.
pub const MID_URI: &str = "urn:ietf:params:rtp-hdrext:sdes:mid";
/// Names the simulcast layer of a packet.
pub const RID_URI: &str = "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id";
/// Names the simulcast layer that a retransmission repairs.
pub const REPAIRED_RID_URI: &str = "urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id";
/// Numbers packets for congestion control.
pub const TRANSPORT_CC_URI: &str =
    "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01";

/// What we take, in words for a publisher that offers something else.
pub const CODECS_TAKEN: &str =
    "video: H264 (packetization-mode=1), VP9 (profile 0), AV1 (profile 0) or VP8; audio: opus/48000/2";

/// Why an offer is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It isn't SDP. 400.
    #[error("malformed SDP: {0}")]
    Malformed(&'static str),
    /// It is SDP, but nothing that a WHIP publisher may offer. 422.
    #[error("unacceptable offer: {0}")]
    Unacceptable(&'static str),
    /// A section has no codec that we can use. 406.
    #[error("no usable codec for {0}; taken are: {CODECS_TAKEN}")]
    NoCodec(&'static str),
}

/// Whether a section carries sound or pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `m=audio`.
    Audio,
    /// `m=video`.
    Video,
}

/// A codec of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// The one audio codec.
    Opus,
    /// A video codec.
    Video(VideoCodec),
}

/// A payload type of the offer that will be used, with its parameters as offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    /// The number on the wire.
    pub payload_type: u8,
    /// The codec.
    pub codec: Codec,
    /// The encoding's name as registered, e.g. `video/H264`.
    pub mime: &'static str,
    /// The format parameters as offered; empty when there are none.
    pub fmtp: String,
    /// The payload type of its retransmissions.
    pub rtx: Option<u8>,
}

/// A media section that is taken.
#[derive(Clone, Debug)]
pub struct Section {
    /// Sound or pictures.
    pub kind: Kind,
    /// Its position among the offer's sections.
    pub index: usize,
    /// What will be sent in it, best first: several H.264 profiles, or one of anything else.
    pub formats: Vec<Format>,
    /// The layers that the publisher announced, in its order; empty without simulcast.
    pub rids: Vec<String>,
    /// Header extensions that we know: their numbers and names.
    pub extensions: Vec<(u8, &'static str)>,
    /// Whether the publisher announced stereo sound.
    pub is_stereo: bool,
}

/// An offer that can be answered.
#[derive(Clone, Debug)]
pub struct Offer {
    lines: Vec<String>,
    /// Start of each section among `lines`, then the number of lines.
    bounds: Vec<usize>,
    /// At most one section of sound.
    pub audio: Option<Section>,
    /// At most one section of pictures.
    pub video: Option<Section>,
    /// The publisher's ICE user name fragment and password.
    pub ice: (String, String),
}

impl Offer {
    /// The sections that are taken.
    pub fn sections(&self) -> impl Iterator<Item = &Section> {
        self.audio.iter().chain(&self.video)
    }

    /// The tracks that were announced: audio, then the video or its layers.
    pub fn tracks(&self) -> Vec<TrackId> {
        let layers = self.video.as_ref().map_or(0, |video| video.rids.len().max(1)) as u8;
        let first = if self.audio.is_some() { 0 } else { 1 };
        (first..=layers).map(TrackId).collect()
    }

    /// How many of them are VP8, which has to be transcoded.
    pub fn vp8_tracks(&self) -> usize {
        let is_vp8 = |video: &&Section| {
            video.formats.iter().any(|format| format.codec == Codec::Video(VideoCodec::Vp8))
        };
        self.video.as_ref().filter(is_vp8).map_or(0, |video| video.rids.len().max(1))
    }
}

/// The value of the first line that starts with `prefix`.
pub fn attribute<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.trim_end().strip_prefix(prefix))
}

fn push_line(out: &mut String, line: &str) {
    out.push_str(line);
    out.push_str("\r\n");
}

fn value<'a>(lines: &'a [String], prefix: &str) -> Option<&'a str> {
    lines.iter().find_map(|line| line.strip_prefix(prefix))
}
