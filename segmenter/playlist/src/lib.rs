//! HLS and LL-HLS playlists as types and text (draft-pantos-hls-rfc8216bis), and the lint.
//!
//! Pure: no I/O, no clock. `segmenter` decides what stands in a playlist; this crate only writes it down and reads
//! it back. Durations are whole microseconds, wall-clock times whole milliseconds since the Unix epoch: both
//! survive the way through text exactly, which binary fractions do not.

mod attributes;
mod date_time;
pub mod lint;
mod media;
mod multivariant;
mod parse;

pub use date_time::{format_date_time, parse_date_time};
pub use media::{
    ByteRange, Head, Hint, HintKind, Map, MediaPlaylist, OpenSegment, Part, PlaylistKind, RenditionReport,
    Segment, ServerControl,
};
pub use multivariant::{AudioRendition, MultivariantPlaylist, SessionData, Variant};
pub use parse::{ParseError, parse_media};

/// A span of media in microseconds.
pub type Micros = u64;
