//! What whoever follows a playlist needs to know of it, broken or not.

use super::lines::{View, lines};

/// A media playlist for a follower: [`super::super::parse_media`] would refuse a broken one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// The target duration in seconds; 0 where there is none.
    pub target_s: u64,
    /// Whether it has ended.
    pub is_ended: bool,
    /// Whether it offers blocking reload.
    pub can_block: bool,
    /// Whether it offers deltas.
    pub can_skip: bool,
    /// Whether it has parts.
    pub has_parts: bool,
    /// The media sequence number of the segment that is not complete yet.
    pub next_msn: u64,
    /// How many parts that segment has.
    pub next_part: u64,
    /// Its segments, the open one last (with an empty URI).
    pub segments: Vec<Listed>,
}

/// A segment of an [`Outline`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Its URI; empty where it is a gap or not complete.
    pub uri: String,
    /// Its parts' URIs, gaps left out.
    pub parts: Vec<String>,
    /// The URI of its initialization section; empty where media cannot be judged by itself (byte ranges, encryption,
    /// other formats than fragmented MP4).
    pub map: String,
}

impl Outline {
    /// Reads a media playlist.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let view = View::of(text);
        let control =
            view.find("EXT-X-SERVER-CONTROL").map(super::lines::Line::attributes).unwrap_or_default();
        let has_ranges =
            view.lines.iter().any(|line| line.tag.contains("BYTERANGE") || line.value.contains("BYTERANGE"));
        let is_encrypted =
            view.all("EXT-X-KEY").any(|line| line.attributes().get("METHOD").is_some_and(|m| m != "NONE"));
        let mut map = "";
        let segments = view.segments.iter().chain([&view.open]).map(|segment| {
            map = segment.map.unwrap_or(map);
            let uri = if segment.is_gap { "" } else { segment.uri };
            let parts = segment.parts.iter().filter(|part| !part.is_gap).map(|part| part.uri.to_owned());
            let map = if has_ranges || is_encrypted { "" } else { map };
            Listed { uri: uri.to_owned(), parts: parts.collect(), map: map.to_owned() }
        });
        let segments = segments.collect();
        Self {
            target_s: view.target_s.unwrap_or(0),
            is_ended: view.is_ended,
            can_block: control.is_yes("CAN-BLOCK-RELOAD"),
            can_skip: control.get("CAN-SKIP-UNTIL").is_some(),
            has_parts: view.is_low_latency(),
            next_msn: view.first_listed() + view.segments.len() as u64,
            next_part: view.open.parts.len() as u64,
            segments,
        }
    }
}

/// Whether a multivariant playlist says of all its media playlists that each segment begins with a keyframe.
#[must_use]
pub fn promises_independence(text: &str) -> bool {
    lines(text).iter().any(|line| line.tag == "EXT-X-INDEPENDENT-SEGMENTS")
}

/// The media playlists that a multivariant playlist names, each once, in its order; none where it is no multivariant
/// playlist.
#[must_use]
pub fn media_playlists(text: &str) -> Option<Vec<String>> {
    let lines = lines(text);
    if !lines.iter().any(|line| line.tag == "EXT-X-STREAM-INF") {
        return None;
    }
    let mut uris: Vec<String> = Vec::new();
    for line in &lines {
        let uri = match line.tag {
            "" => Some(line.value.to_owned()),
            "EXT-X-MEDIA" => line.attributes().get("URI").map(str::to_owned),
            _ => None,
        };
        uris.extend(uri.filter(|uri| !uris.contains(uri)));
    }
    Some(uris)
}
