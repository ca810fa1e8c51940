//! Reads a media playlist back into types.
//!
//! Tolerant as section 6.3.1 demands of a client: unknown tags are passed over. What can't be understood at all is an
//! error with its line. Whether a playlist that can be read is also a good one is the lint's business.

use crate::attributes::{Attributes, parse_seconds};
use crate::media::{
    ByteRange, Head, Hint, HintKind, Map, MediaPlaylist, OpenSegment, Part, PlaylistKind, RenditionReport,
    Segment, ServerControl,
};
use crate::parse_date_time;

/// Why a text is not a media playlist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// The first line is not `#EXTM3U`.
    #[error("not a playlist: the first line is not #EXTM3U")]
    NoHeader,
    /// A known tag has a value that it cannot have.
    #[error("line {line}: the tag's value cannot be understood")]
    BadTag {
        /// Counted from 1.
        line: usize,
    },
    /// A segment's URI stands without its `EXTINF`.
    #[error("line {line}: a segment without EXTINF")]
    NoDuration {
        /// Counted from 1.
        line: usize,
    },
}

/// Reads a media playlist.
///
/// # Errors
/// See [`ParseError`].
pub fn parse_media(text: &str) -> Result<MediaPlaylist, ParseError> {
    let mut lines = text.lines().enumerate();
    if lines.next().map(|(_, first)| first.trim_end()) != Some("#EXTM3U") {
        return Err(ParseError::NoHeader);
    }
    let mut reader =
        Reader { playlist: MediaPlaylist { version: 1, ..Default::default() }, ..Default::default() };
    for (index, line) in lines {
        let line_number = index + 1;
        let line = line.trim_end();
        if let Some(tag) = line.strip_prefix("#EXT") {
            reader.tag(tag).ok_or(ParseError::BadTag { line: line_number })?;
        } else if !line.is_empty() && !line.starts_with('#') {
            reader.uri(line).ok_or(ParseError::NoDuration { line: line_number })?;
        }
    }
    let Reader { mut playlist, head, parts, .. } = reader;
    if head != Head::default() || !parts.is_empty() {
        playlist.open = Some(OpenSegment { head, parts });
    }
    Ok(playlist)
}

/// The playlist so far, and what was read of the segment whose URI has not come yet.
#[derive(Default)]
struct Reader {
    playlist: MediaPlaylist,
    head: Head,
    parts: Vec<Part>,
    duration: Option<u64>,
    is_gap: bool,
    byte_range: Option<ByteRange>,
}

impl Reader {
    /// Takes a tag without its `#EXT`; none where its value is broken.
    fn tag(&mut self, tag: &str) -> Option<()> {
        let (name, value) = tag.split_once(':').unwrap_or((tag, ""));
        let playlist = &mut self.playlist;
        match name {
            "INF" => self.duration = Some(parse_seconds(value.split(',').next()?.trim())?),
            "-X-VERSION" => playlist.version = value.parse().ok()?,
            "-X-TARGETDURATION" => playlist.target_duration_s = value.parse().ok()?,
            "-X-MEDIA-SEQUENCE" => playlist.media_sequence = value.parse().ok()?,
            "-X-DISCONTINUITY-SEQUENCE" => playlist.discontinuity_sequence = value.parse().ok()?,
            "-X-INDEPENDENT-SEGMENTS" => playlist.has_independent_segments = true,
            "-X-ENDLIST" => playlist.is_ended = true,
            "-X-PLAYLIST-TYPE" => {
                playlist.kind = Some(match value {
                    "EVENT" => PlaylistKind::Event,
                    "VOD" => PlaylistKind::Vod,
                    _ => return None,
                });
            }
            "-X-PART-INF" => playlist.part_target = Some(Attributes::parse(value)?.micros("PART-TARGET")?),
            "-X-SERVER-CONTROL" => playlist.server_control = Some(server_control(&Attributes::parse(value)?)),
            "-X-SKIP" => playlist.skipped = Some(Attributes::parse(value)?.number("SKIPPED-SEGMENTS")?),
            "-X-DISCONTINUITY" => self.head.is_discontinuity = true,
            "-X-MAP" => {
                let attributes = Attributes::parse(value)?;
                let uri = attributes.get("URI")?.to_owned();
                self.head.map = Some(Map { uri, byte_range: range_of(&attributes)? });
            }
            "-X-BYTERANGE" => self.byte_range = Some(byte_range(value)?),
            "-X-KEY" => {
                let attributes = Attributes::parse(value)?;
                let method = attributes.get("METHOD")?;
                if method != "NONE" {
                    playlist.encryption.get_or_insert_with(|| method.to_owned());
                }
            }
            "-X-PROGRAM-DATE-TIME" => self.head.date_time_ms = Some(parse_date_time(value)?),
            "-X-GAP" => self.is_gap = true,
            "-X-PART" => self.parts.push(part(&Attributes::parse(value)?)?),
            "-X-PRELOAD-HINT" => playlist.hints.push(hint(&Attributes::parse(value)?)?),
            "-X-RENDITION-REPORT" => playlist.reports.push(report(&Attributes::parse(value)?)?),
            _ => {}
        }
        Some(())
    }

    fn uri(&mut self, uri: &str) -> Option<()> {
        self.playlist.segments.push(Segment {
            head: std::mem::take(&mut self.head),
            parts: std::mem::take(&mut self.parts),
            duration: self.duration.take()?,
            is_gap: std::mem::take(&mut self.is_gap),
            byte_range: self.byte_range.take(),
            uri: uri.to_owned(),
        });
        Some(())
    }
}

fn server_control(attributes: &Attributes<'_>) -> ServerControl {
    ServerControl {
        can_block_reload: attributes.is_yes("CAN-BLOCK-RELOAD"),
        can_skip_until: attributes.micros("CAN-SKIP-UNTIL"),
        hold_back: attributes.micros("HOLD-BACK"),
        part_hold_back: attributes.micros("PART-HOLD-BACK"),
    }
}

fn part(attributes: &Attributes<'_>) -> Option<Part> {
    Some(Part {
        uri: attributes.get("URI")?.to_owned(),
        duration: attributes.micros("DURATION")?,
        is_independent: attributes.is_yes("INDEPENDENT"),
        is_gap: attributes.is_yes("GAP"),
        byte_range: range_of(attributes)?,
    })
}

/// `LENGTH` or `LENGTH@START`.
fn byte_range(text: &str) -> Option<ByteRange> {
    let (length, start) = text.trim().split_once('@').map_or((text.trim(), None), |(l, s)| (l, Some(s)));
    let start = match start {
        Some(start) => Some(start.parse().ok()?),
        None => None,
    };
    Some(ByteRange { length: length.parse().ok()?, start })
}

/// The attribute `BYTERANGE`, which may be missing but not be broken.
fn range_of(attributes: &Attributes<'_>) -> Option<Option<ByteRange>> {
    match attributes.get("BYTERANGE") {
        Some(text) => byte_range(text).map(Some),
        None => Some(None),
    }
}

fn hint(attributes: &Attributes<'_>) -> Option<Hint> {
    let kind = match attributes.get("TYPE")? {
        "PART" => HintKind::Part,
        "MAP" => HintKind::Map,
        _ => return None,
    };
    let (start, length) = (attributes.number("BYTERANGE-START"), attributes.number("BYTERANGE-LENGTH"));
    Some(Hint { kind, uri: attributes.get("URI")?.to_owned(), start, length })
}

fn report(attributes: &Attributes<'_>) -> Option<RenditionReport> {
    Some(RenditionReport {
        uri: attributes.get("URI")?.to_owned(),
        last_msn: attributes.number("LAST-MSN")?,
        last_part: attributes.number("LAST-PART"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    prop_compose! {
        fn any_range()(length: u64, start in option::of(any::<u64>())) -> ByteRange {
            ByteRange { length, start }
        }
    }
    prop_compose! {
        fn head()(is_discontinuity: bool, map in option::of("[a-z0-9/.-]{1,12}"), byte_range in option::of(any_range()),
                  date_time_ms in option::of(0i64..4_000_000_000_000)) -> Head {
            Head { is_discontinuity, map: map.map(|uri| Map { uri, byte_range }), date_time_ms }
        }
    }
    prop_compose! {
        fn any_part()(uri in "[a-z0-9/.?=,-]{1,12}", duration in 0u64..20_000_000, is_independent: bool,
                      is_gap: bool, byte_range in option::of(any_range())) -> Part {
            Part { uri, duration, is_independent, is_gap, byte_range }
        }
    }
    prop_compose! {
        fn segment()(head in head(), parts in vec(any_part(), 0..5), duration in 0u64..20_000_000, is_gap: bool,
                     byte_range in option::of(any_range()), uri in "[a-z0-9/.-]{1,12}") -> Segment {
            Segment { head, parts, duration, is_gap, byte_range, uri }
        }
    }
    prop_compose! {
        fn control()(can_block_reload: bool, can_skip_until in option::of(0u64..60_000_000),
                     hold_back in option::of(0u64..60_000_000),
                     part_hold_back in option::of(0u64..60_000_000)) -> ServerControl {
            ServerControl { can_block_reload, can_skip_until, hold_back, part_hold_back }
        }
    }
    prop_compose! {
        fn tail()(open in option::of((head(), vec(any_part(), 1..5))), is_ended: bool,
                  hints in vec((any::<bool>(), "[a-z0-9/.-]{1,12}", option::of(any::<u64>()), option::of(any::<u64>())), 0..2),
                  reports in vec(("[a-z0-9/.-]{1,12}", any::<u64>(), option::of(any::<u64>())), 0..3)) -> MediaPlaylist {
            MediaPlaylist {
                open: open.map(|(head, parts)| OpenSegment { head, parts }),
                is_ended,
                hints: hints
                    .into_iter()
                    .map(|(is_map, uri, start, length)| {
                        Hint { kind: if is_map { HintKind::Map } else { HintKind::Part }, uri, start, length }
                    })
                    .collect(),
                reports: reports
                    .into_iter()
                    .map(|(uri, last_msn, last_part)| RenditionReport { uri, last_msn, last_part })
                    .collect(),
                ..Default::default()
            }
        }
    }
    prop_compose! {
        fn playlist()(tail in tail(), version in 1u32..13, target_duration_s in 1u64..20,
                      part_target in option::of(1u64..2_000_000), server_control in option::of(control()),
                      kind in option::of(prop_oneof![Just(PlaylistKind::Event), Just(PlaylistKind::Vod)]),
                      has_independent_segments: bool, media_sequence: u64, discontinuity_sequence: u64,
                      skipped in option::of(any::<u64>()), segments in vec(segment(), 0..6)) -> MediaPlaylist {
            MediaPlaylist {
                version, target_duration_s, part_target, server_control, kind, has_independent_segments,
                media_sequence, discontinuity_sequence, skipped, segments, ..tail
            }
        }
    }

    proptest! {
        #[test]
        fn render_then_parse_is_identity(playlist in playlist()) {
            prop_assert_eq!(parse_media(&playlist.render()), Ok(playlist));
        }

        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in "(#EXTM3U\n)?(#EXT(-X-[A-Z-]{2,20})?:[ -~]{0,30}\n|[ -~]{0,20}\n){0,10}") {
            let _ = parse_media(&text);
        }

        #[test]
        fn another_reader_sees_the_same_segments(playlist in playlist()) {
            let text = playlist.render();
            let (_, theirs) = m3u8_rs::parse_media_playlist(text.as_bytes()).expect("m3u8-rs reads it");
            prop_assert_eq!(theirs.media_sequence, playlist.media_sequence);
            prop_assert_eq!(theirs.end_list, playlist.is_ended);
            let uris: Vec<_> = theirs.segments.iter().map(|segment| segment.uri.clone()).collect();
            let ours: Vec<_> = playlist.segments.iter().map(|segment| segment.uri.clone()).collect();
            prop_assert_eq!(uris, ours);
        }
    }

    #[test]
    fn encryption_is_seen_and_its_end_is_none() {
        let text = "#EXTM3U\n#EXT-X-KEY:METHOD=NONE\n#EXTINF:1,\na\n";
        assert_eq!(parse_media(text).unwrap().encryption, None);
        let text = "#EXTM3U\n#EXTINF:1,\na\n#EXT-X-KEY:METHOD=AES-128,URI=\"k\"\n#EXTINF:1,\nb\n";
        assert_eq!(parse_media(text).unwrap().encryption.as_deref(), Some("AES-128"));
    }

    #[test]
    fn errors_name_the_line() {
        assert_eq!(parse_media("#EXTINF:1,\n"), Err(ParseError::NoHeader));
        assert_eq!(parse_media("#EXTM3U\n#EXTINF:x,\n"), Err(ParseError::BadTag { line: 2 }));
        assert_eq!(parse_media("#EXTM3U\n\nseg.m4s\n"), Err(ParseError::NoDuration { line: 3 }));
    }
}
