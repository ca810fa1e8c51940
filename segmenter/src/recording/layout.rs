//! What a recording is made of in the storage: names of objects and what stands in them.
//!
//! ```text
//! {stream}/{epoch}/recording.json            written first: what it is and how far it got; deleted last
//!                  poster.jpg
//!                  thumbs/{n}.jpg, {n}.json  sheets of thumbnails, and which segment each of them is from
//!                  thumbnails.vtt            of the closed recording: the times of the thumbnails
//!                  index.m3u8                of the closed recording, as are the playlists
//!                  {rendition}/init-{n}.mp4, seg-{msn}.m4s, playlist.m3u8
//!                              open/{msn}-{part}        parts of the segment in the making, each with its description
//!                              pages/{n}.json           descriptions and digest records of 16 segments each
//!                              segments.json            the same in short, of the closed recording
//! ```
//! So a closed recording is a folder of ordinary HLS, which any web server or bucket can serve too. Pure.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::live::Description;
use crate::window::{PartEntry, PartHead};

/// Segments whose descriptions share an object, which is written anew with each of them.
pub(super) const PAGE_SEGMENTS: u64 = 16;
/// The version of everything here.
pub(super) const VERSION: u32 = 1;
/// The header's name in its folder.
pub(crate) const HEADER: &str = "recording.json";

/// Where a recording stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordingState {
    /// The stream is live, or the program was killed while it was.
    Recording,
    /// It can be played.
    Closed,
    /// It is being deleted.
    Deleting,
}

/// `recording.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) stream: String,
    /// In hex.
    pub(crate) epoch: String,
    /// The origin's public key in base64: a recording belongs to whoever can sign for it.
    pub(crate) origin_key: String,
    pub(crate) started_ms: u64,
    pub(crate) target_duration_s: u64,
    /// False: it only serves the live window and goes with it.
    pub(crate) is_kept: bool,
    pub(crate) state: RecordingState,
    /// In the order of their numbers.
    pub(crate) renditions: Vec<RenditionHeader>,
    /// From here on: known once it is closed.
    pub(crate) closed_ms: u64,
    pub(crate) duration_ms: u64,
    pub(crate) bytes: u64,
    /// Why it ended before its stream did; empty if it did not.
    pub(crate) failure: String,
    /// Whether there are a poster and thumbnails.
    #[serde(default)]
    pub(crate) has_pictures: bool,
}

/// A rendition of a recording.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RenditionHeader {
    pub(crate) number: u8,
    pub(crate) name: String,
    pub(crate) description: Description,
}

impl Header {
    /// The folder of the recording in the storage.
    pub(crate) fn folder(&self) -> String {
        format!("{}/{}", self.stream, self.epoch)
    }

    pub(crate) fn rendition(&self, name: &str) -> Option<&RenditionHeader> {
        self.renditions.iter().find(|rendition| rendition.name == name)
    }
}

/// A segment whose media is one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SegmentMeta {
    pub(crate) msn: u64,
    pub(crate) head: PartHead,
    pub(crate) parts: Vec<PartMeta>,
}

/// A part of it: its bytes follow those of the part before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartMeta {
    pub(crate) duration_us: i64,
    pub(crate) bytes: u64,
    pub(crate) is_gap: bool,
    /// The signed digest record; empty for a gap.
    #[serde(with = "base64_bytes")]
    pub(crate) record: Bytes,
}

impl PartMeta {
    pub(crate) fn of(part: &PartEntry) -> Self {
        Self {
            duration_us: part.duration_us,
            bytes: part.bytes.len() as u64,
            is_gap: part.is_gap,
            record: part.record.clone(),
        }
    }
}

/// `pages/{n}.json`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Page {
    pub(crate) version: u32,
    /// What is known of the rendition with its newest segment.
    pub(crate) description: Description,
    pub(crate) segments: Vec<SegmentMeta>,
}

/// The description in front of an open part's bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct OpenPart {
    pub(super) version: u32,
    pub(super) head: PartHead,
    pub(super) meta: PartMeta,
    pub(super) description: Description,
}

impl OpenPart {
    /// One object of it: the length of the description, itself, and the media.
    pub(super) fn encode(&self, media: Bytes) -> Vec<Bytes> {
        let json = json(self);
        let length = u32::try_from(json.len()).unwrap_or(u32::MAX);
        vec![Bytes::copy_from_slice(&length.to_be_bytes()), json, media]
    }

    pub(super) fn decode(object: &Bytes) -> Option<(Self, Bytes)> {
        let (length, _) = object.split_first_chunk::<4>()?;
        let end = 4 + u32::from_be_bytes(*length) as usize;
        let part: Self = serde_json::from_slice(object.get(4..end)?).ok()?;
        let media = object.slice(end..);
        (part.version == VERSION && media.len() as u64 == part.meta.bytes).then_some((part, media))
    }
}

/// A segment of a closed recording, in `segments.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) msn: u64,
    pub(crate) date_time_ms: i64,
    pub(crate) duration_us: i64,
    pub(crate) bytes: u64,
    /// How many of its parts have media.
    pub(crate) parts: u32,
    pub(crate) init: u32,
    pub(crate) is_discontinuity: bool,
    pub(crate) is_gap: bool,
    /// What was left out of the timeline in front of it, since the beginning: nobody was publishing then.
    pub(crate) skipped_us: i64,
}

impl Row {
    pub(super) fn of(segment: &SegmentMeta) -> Self {
        Self {
            msn: segment.msn,
            date_time_ms: segment.head.date_time_ms,
            duration_us: segment.parts.iter().map(|part| part.duration_us).sum(),
            bytes: segment.parts.iter().map(|part| part.bytes).sum(),
            parts: segment.parts.iter().filter(|part| !part.is_gap).count() as u32,
            init: segment.head.init,
            is_discontinuity: segment.head.is_discontinuity,
            is_gap: segment.parts.iter().all(|part| part.is_gap),
            skipped_us: 0,
        }
    }
}

pub(super) fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("our types have string keys and no failing parts").into()
}

pub(super) fn page_number(msn: u64) -> u64 {
    msn / PAGE_SEGMENTS
}

pub(crate) fn page_name(folder: &str, rendition: &str, msn: u64) -> String {
    // Padded, so that listings are in order.
    format!("{folder}/{rendition}/pages/{:08}.json", page_number(msn))
}

pub(super) fn open_name(folder: &str, rendition: &str, msn: u64, part: u64) -> String {
    format!("{folder}/{rendition}/open/{msn:08}-{part:03}")
}

/// The segment and part of a name that [`open_name`] made.
pub(super) fn parse_open(name: &str) -> Option<(u64, u64)> {
    let (msn, part) = name.split_once('-')?;
    Some((msn.parse().ok()?, part.parse().ok()?))
}

pub(crate) fn segment_name(folder: &str, rendition: &str, msn: u64) -> String {
    format!("{folder}/{rendition}/seg-{msn}.m4s")
}

pub(crate) fn init_name(folder: &str, rendition: &str, number: u32) -> String {
    format!("{folder}/{rendition}/init-{number}.mp4")
}

pub(crate) fn rows_name(folder: &str, rendition: &str) -> String {
    format!("{folder}/{rendition}/segments.json")
}

/// Bytes in JSON.
mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use bytes::Bytes;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Bytes::from).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_part_is_read_back_and_a_torn_one_is_not() {
        let media = Bytes::from_static(b"media");
        let part = OpenPart {
            version: VERSION,
            head: PartHead { date_time_ms: 1, is_discontinuity: true, init: 2 },
            meta: PartMeta { duration_us: 3, bytes: 5, is_gap: false, record: Bytes::from_static(b"record") },
            description: Description::audio("mp4a.40.2"),
        };
        let object = Bytes::from(part.encode(media.clone()).concat());
        let (read, read_media) = OpenPart::decode(&object).unwrap();
        assert_eq!((read.head, read.meta, read_media), (part.head, part.meta, media));
        for length in 0..object.len() {
            assert!(OpenPart::decode(&object.slice(..length)).is_none(), "{length} bytes");
        }
    }

    #[test]
    fn names_sort_as_their_numbers() {
        assert!(open_name("f", "v0", 9, 10) < open_name("f", "v0", 10, 2));
        assert!(page_name("f", "v0", 15 * 16) < page_name("f", "v0", 100 * 16));
        assert_eq!(parse_open("00000009-010"), Some((9, 10)));
        assert_eq!(page_number(16), 1);
    }
}
