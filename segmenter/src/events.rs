//! What the segmenter tells the rest of the program: the tracker passes it to viewers.

use std::sync::Arc;

use bytes::Bytes;
use shoal_digest::{Epoch, OriginKey, PieceId};

/// A change in what is published.
#[derive(Clone, Debug)]
pub enum Event {
    /// A stream began. Its multivariant playlist follows within a segment.
    Started {
        /// The stream's name.
        stream: Arc<str>,
        /// This publication's epoch, part of all its URLs and records.
        epoch: Epoch,
        /// Verifies its records.
        origin_key: Box<OriginKey>,
        /// Its renditions, in the order of their numbers.
        renditions: Vec<RenditionInfo>,
    },
    /// A piece can be fetched from now on.
    Published(Arc<Published>),
    /// A stream ended; what is in its playlist stays for a while.
    Ended {
        /// The stream's name.
        stream: Arc<str>,
        /// The epoch that ended; a newer one may have begun.
        epoch: Epoch,
    },
}

/// A rendition in short.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RenditionInfo {
    /// Its number in records.
    pub number: u8,
    /// Its name in URLs.
    pub name: String,
    /// The RFC 6381 name of its codec.
    pub codecs: String,
    /// Width and height in pixels; none for audio.
    pub resolution: Option<(u32, u32)>,
}

/// A piece that was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The stream's name.
    pub stream: Arc<str>,
    /// The publication's epoch.
    pub epoch: Epoch,
    /// Which piece.
    pub piece: PieceId,
    /// Its URL relative to the multivariant playlist's.
    pub uri: String,
    /// Its length in bytes.
    pub length: u32,
    /// Its duration in milliseconds, rounded.
    pub duration_ms: u32,
    /// Whether no further part follows in its segment.
    pub is_last_in_segment: bool,
    /// Its signed digest record.
    pub record: Bytes,
}
