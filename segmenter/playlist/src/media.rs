//! The media playlist: what one rendition's players may fetch now.

use std::fmt::Write as _;

use crate::attributes::format_seconds;
use crate::{Micros, format_date_time};

/// A media playlist, or the delta of one where [`MediaPlaylist::skipped`] is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MediaPlaylist {
    /// `EXT-X-VERSION`: 6 for `EXT-X-MAP`, 9 with `EXT-X-SKIP`.
    pub version: u32,
    /// `EXT-X-TARGETDURATION` in seconds. Never changes in a stream's life.
    pub target_duration_s: u64,
    /// `EXT-X-PART-INF`: the longest part. Never changes. None in a playlist without parts.
    pub part_target: Option<Micros>,
    /// `EXT-X-SERVER-CONTROL`. Never changes.
    pub server_control: Option<ServerControl>,
    /// `EXT-X-PLAYLIST-TYPE`: none for a sliding window.
    pub kind: Option<PlaylistKind>,
    /// Whether `EXT-X-INDEPENDENT-SEGMENTS` stands in this playlist.
    pub has_independent_segments: bool,
    /// The media sequence number of the first segment, skipped ones included.
    pub media_sequence: u64,
    /// How many discontinuities have left the playlist.
    pub discontinuity_sequence: u64,
    /// `EXT-X-SKIP`: how many segments at the front are left out because the client has them. None in a full
    /// playlist.
    pub skipped: Option<u64>,
    /// The complete segments, oldest first.
    pub segments: Vec<Segment>,
    /// The parts of the segment that is being made.
    pub open: Option<OpenSegment>,
    /// `EXT-X-PRELOAD-HINT`: what comes next. At most one of each kind.
    pub hints: Vec<Hint>,
    /// `EXT-X-RENDITION-REPORT`: how far the other renditions are.
    pub reports: Vec<RenditionReport>,
    /// Whether `EXT-X-ENDLIST` stands at the end: nothing will be added.
    pub is_ended: bool,
    /// The first `METHOD` of an `EXT-X-KEY` that is not `NONE`. Read only: nothing of ours is encrypted.
    pub encryption: Option<String>,
}

/// `EXT-X-PLAYLIST-TYPE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaylistKind {
    /// Segments are only ever appended.
    Event,
    /// Nothing changes.
    Vod,
}

/// `EXT-X-SERVER-CONTROL`: what a client may ask for and how far behind live it shall play.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerControl {
    /// Whether `_HLS_msn` and `_HLS_part` hold a request until the playlist has what they name.
    pub can_block_reload: bool,
    /// Segments older than this (counted from the playlist's end) may be skipped in a delta.
    pub can_skip_until: Option<Micros>,
    /// The distance from the end for clients that play segments.
    pub hold_back: Option<Micros>,
    /// The distance from the end for clients that play parts.
    pub part_hold_back: Option<Micros>,
}

/// A complete segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// What stands in front of its media.
    pub head: Head,
    /// Its parts, while they are still of use to clients at the live edge.
    pub parts: Vec<Part>,
    /// `EXTINF`.
    pub duration: Micros,
    /// `EXT-X-GAP`: the segment has no media and must not be fetched.
    pub is_gap: bool,
    /// `EXT-X-BYTERANGE`: it is this part of what the URI names.
    pub byte_range: Option<ByteRange>,
    /// Its URI, relative to the playlist.
    pub uri: String,
}

/// A part of a resource: `LENGTH@START`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByteRange {
    /// In bytes.
    pub length: u64,
    /// Where it begins; none: where the range before it in the same resource ended.
    pub start: Option<u64>,
}

impl std::fmt::Display for ByteRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.length)?;
        self.start.map_or(Ok(()), |start| write!(f, "@{start}"))
    }
}

/// A segment that is still being made: it has parts but no URI yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenSegment {
    /// What stands in front of its media.
    pub head: Head,
    /// Its parts so far.
    pub parts: Vec<Part>,
}

/// The tags in front of a segment's first part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// `EXT-X-DISCONTINUITY`.
    pub is_discontinuity: bool,
    /// `EXT-X-MAP`, where it differs from the segment before or this is the first one listed.
    pub map: Option<Map>,
    /// `EXT-X-PROGRAM-DATE-TIME` of its first sample, in milliseconds since the Unix epoch.
    pub date_time_ms: Option<i64>,
}

/// `EXT-X-MAP`: the initialization section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map {
    /// Its URI, relative to the playlist.
    pub uri: String,
    /// `BYTERANGE`.
    pub byte_range: Option<ByteRange>,
}

/// `EXT-X-PART`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Its URI, relative to the playlist.
    pub uri: String,
    /// Its duration.
    pub duration: Micros,
    /// Whether it contains a frame at which decoding can start.
    pub is_independent: bool,
    /// Whether it has no media and must not be fetched.
    pub is_gap: bool,
    /// `BYTERANGE`.
    pub byte_range: Option<ByteRange>,
}

/// `EXT-X-PRELOAD-HINT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// What it is.
    pub kind: HintKind,
    /// Its URI, relative to the playlist.
    pub uri: String,
    /// `BYTERANGE-START`.
    pub start: Option<u64>,
    /// `BYTERANGE-LENGTH`: none where it is not known yet, or all of the resource.
    pub length: Option<u64>,
}

/// What a preload hint announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HintKind {
    /// The next part.
    Part,
    /// The initialization section of the next part, where it is another one.
    Map,
}

/// `EXT-X-RENDITION-REPORT`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RenditionReport {
    /// The other playlist's URI, relative to this one.
    pub uri: String,
    /// The media sequence number of its last segment, complete or not.
    pub last_msn: u64,
    /// The index of the last part in it.
    pub last_part: Option<u64>,
}

impl MediaPlaylist {
    /// The playlist's text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::with_capacity(256 + 160 * self.segments.len());
        self.render_head(&mut out);
        for segment in &self.segments {
            segment.head.render(&mut out);
            segment.parts.iter().for_each(|part| part.render(&mut out));
            line(&mut out, format_args!("#EXTINF:{},", format_seconds(segment.duration)));
            if segment.is_gap {
                line(&mut out, format_args!("#EXT-X-GAP"));
            }
            if let Some(range) = segment.byte_range {
                line(&mut out, format_args!("#EXT-X-BYTERANGE:{range}"));
            }
            line(&mut out, format_args!("{}", segment.uri));
        }
        if let Some(open) = &self.open {
            open.head.render(&mut out);
            open.parts.iter().for_each(|part| part.render(&mut out));
        }
        for Hint { kind, uri, start, length } in &self.hints {
            let kind = match kind {
                HintKind::Part => "PART",
                HintKind::Map => "MAP",
            };
            let start = start.map(|start| format!(",BYTERANGE-START={start}")).unwrap_or_default();
            let length = length.map(|length| format!(",BYTERANGE-LENGTH={length}")).unwrap_or_default();
            line(&mut out, format_args!("#EXT-X-PRELOAD-HINT:TYPE={kind},URI=\"{uri}\"{start}{length}"));
        }
        for report in &self.reports {
            let RenditionReport { uri, last_msn, last_part } = report;
            let part = last_part.map(|part| format!(",LAST-PART={part}")).unwrap_or_default();
            line(&mut out, format_args!("#EXT-X-RENDITION-REPORT:URI=\"{uri}\",LAST-MSN={last_msn}{part}"));
        }
        if self.is_ended {
            line(&mut out, format_args!("#EXT-X-ENDLIST"));
        }
        out
    }

    fn render_head(&self, out: &mut String) {
        line(out, format_args!("#EXTM3U"));
        line(out, format_args!("#EXT-X-VERSION:{}", self.version));
        line(out, format_args!("#EXT-X-TARGETDURATION:{}", self.target_duration_s));
        if let Some(control) = &self.server_control {
            control.render(out);
        }
        if let Some(target) = self.part_target {
            line(out, format_args!("#EXT-X-PART-INF:PART-TARGET={}", format_seconds(target)));
        }
        match self.kind {
            Some(PlaylistKind::Event) => line(out, format_args!("#EXT-X-PLAYLIST-TYPE:EVENT")),
            Some(PlaylistKind::Vod) => line(out, format_args!("#EXT-X-PLAYLIST-TYPE:VOD")),
            None => {}
        }
        if self.has_independent_segments {
            line(out, format_args!("#EXT-X-INDEPENDENT-SEGMENTS"));
        }
        // Before EXT-X-SKIP: hls.js counts the skipped segments from it. The discontinuity sequence always stands
        // beside it, because a player that once read it without would have to guess later.
        line(out, format_args!("#EXT-X-MEDIA-SEQUENCE:{}", self.media_sequence));
        line(out, format_args!("#EXT-X-DISCONTINUITY-SEQUENCE:{}", self.discontinuity_sequence));
        if let Some(skipped) = self.skipped {
            line(out, format_args!("#EXT-X-SKIP:SKIPPED-SEGMENTS={skipped}"));
        }
    }
}

impl ServerControl {
    fn render(&self, out: &mut String) {
        let mut attributes = Vec::new();
        if self.can_block_reload {
            attributes.push("CAN-BLOCK-RELOAD=YES".to_owned());
        }
        for (name, value) in [
            ("CAN-SKIP-UNTIL", self.can_skip_until),
            ("HOLD-BACK", self.hold_back),
            ("PART-HOLD-BACK", self.part_hold_back),
        ] {
            attributes.extend(value.map(|value| format!("{name}={}", format_seconds(value))));
        }
        line(out, format_args!("#EXT-X-SERVER-CONTROL:{}", attributes.join(",")));
    }
}

impl Head {
    fn render(&self, out: &mut String) {
        if self.is_discontinuity {
            line(out, format_args!("#EXT-X-DISCONTINUITY"));
        }
        if let Some(map) = &self.map {
            let range = quoted_range(map.byte_range);
            line(out, format_args!("#EXT-X-MAP:URI=\"{}\"{range}", map.uri));
        }
        if let Some(ms) = self.date_time_ms {
            line(out, format_args!("#EXT-X-PROGRAM-DATE-TIME:{}", format_date_time(ms)));
        }
    }
}

impl Part {
    fn render(&self, out: &mut String) {
        let independent = if self.is_independent { ",INDEPENDENT=YES" } else { "" };
        let gap = if self.is_gap { ",GAP=YES" } else { "" };
        let duration = format_seconds(self.duration);
        let range = quoted_range(self.byte_range);
        line(
            out,
            format_args!("#EXT-X-PART:DURATION={duration},URI=\"{}\"{range}{independent}{gap}", self.uri),
        );
    }
}

fn quoted_range(range: Option<ByteRange>) -> String {
    range.map(|range| format!(",BYTERANGE=\"{range}\"")).unwrap_or_default()
}

pub(crate) fn line(out: &mut String, content: std::fmt::Arguments<'_>) {
    out.write_fmt(content).expect("a String takes any text");
    out.push('\n');
}
