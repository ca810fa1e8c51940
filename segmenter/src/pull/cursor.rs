//! What is new in an upstream's media playlist: the way of one rendition from playlist to playlist. Pure.
//!
//! The cursor says where the rendition stands by the upstream's own numbers; [`Cursor::take`] gives what has to be done
//! to come up with a playlist, in order. Byte ranges, maps and dates are resolved against all of the playlist here, so
//! that each step stands for itself.

use std::ops::Range;

use shoal_playlist::{ByteRange, Head, HintKind, MediaPlaylist, Part, Segment};

/// Parts and their segment may differ by this much before the list of parts counts as incomplete.
const SUM_SLACK_US: u64 = 100_000;
/// What is shorter is no media but rounding.
const REST_MIN_US: u64 = 1_000;
/// A segment with more parts is refused: 10 s of parts of 20 ms.
const PARTS_MAX: usize = 512;

/// Numbers beyond this are mistakes, and what is calculated with them would overflow.
const NUMBER_MAX: u64 = 1 << 53;
/// No segment is longer: a day.
const DURATION_MAX_US: u64 = 86_400_000_000;

/// Whether a playlist's numbers can be calculated with; if not, why.
pub(super) fn check(playlist: &MediaPlaylist) -> Result<(), &'static str> {
    let parts = playlist.segments.iter().flat_map(|segment| &segment.parts);
    let parts = parts.chain(playlist.open.iter().flat_map(|open| &open.parts));
    let durations = playlist.segments.iter().map(|segment| segment.duration);
    let longest_us = durations.chain(parts.map(|part| part.duration)).max().unwrap_or(0);
    if playlist.target_duration_s > DURATION_MAX_US / 1_000_000 || longest_us > DURATION_MAX_US {
        return Err("it has durations longer than a day");
    }
    if playlist.media_sequence > NUMBER_MAX {
        return Err("its media sequence number is too large");
    }
    Ok(())
}

/// A resource or a range of it, by its URI in the playlist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) uri: String,
    pub(super) range: Option<Range<u64>>,
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A segment begins.
    Begin {
        is_discontinuity: bool,
        /// Its initialization section; none where the playlist names none.
        map: Option<Place>,
        /// Its date, as far as the playlist tells.
        date_ms: Option<i64>,
    },
    /// A part, or a segment as a whole. None for a gap.
    Piece { place: Option<Place>, duration_us: u64, is_last: bool },
    /// What is behind the parts that were taken, of a segment that is not listed by its parts any more.
    Rest { place: Place, duration_us: u64 },
    /// The segment has no more parts, which was not known with the last one.
    End,
}

/// Why a playlist does not continue what was taken before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Break {
    /// So many segments left the playlist before they were taken.
    Missed(u64),
    /// It ends before what was taken already: an old copy, or the upstream began anew.
    Behind,
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    /// The segment whose next piece comes next.
    pub(super) msn: u64,
    /// How many of its parts were taken, and how long they are.
    part: usize,
    part_us: u64,
    with_parts: bool,
}

impl Cursor {
    pub(super) fn new(msn: u64, with_parts: bool) -> Self {
        Self { msn, part: 0, part_us: 0, with_parts }
    }

    /// The number of the part that comes next.
    pub(super) fn part(&self) -> u64 {
        self.part as u64
    }

    /// Takes all that is new in `playlist`.
    pub(super) fn take(&mut self, playlist: &MediaPlaylist) -> Result<Vec<Step>, Break> {
        let first = playlist.media_sequence;
        if self.msn < first {
            return Err(Break::Missed(first - self.msn));
        }
        let end = first.saturating_add(playlist.segments.len() as u64);
        let open_parts = playlist.open.as_ref().map_or(0, |open| open.parts.len());
        if self.msn > end || (self.msn == end && self.part > open_parts) {
            return Err(Break::Behind);
        }
        let mut steps = Vec::new();
        let mut walk = Walk::default();
        for (msn, segment) in (first..).zip(&playlist.segments) {
            let at = walk.segment(&segment.head, &segment.parts, Some(segment));
            if msn < self.msn {
                continue;
            }
            let sum_us: u64 = segment.parts.iter().map(|part| part.duration).sum();
            let lists_parts = self.with_parts
                && !segment.parts.is_empty()
                && segment.parts.len() <= PARTS_MAX
                && sum_us.abs_diff(segment.duration) <= SUM_SLACK_US;
            if lists_parts && self.part <= segment.parts.len() {
                self.parts(&segment.parts, at, true, &mut steps);
            } else if self.part == 0 {
                steps.push(at.begin);
                let place = (!segment.is_gap).then_some(at.whole).flatten();
                steps.push(Step::Piece { place, duration_us: segment.duration, is_last: true });
            } else {
                // Some of its parts were taken, and the others are not listed any more, as at a stream's end.
                let duration_us = segment.duration.saturating_sub(self.part_us);
                match at.whole.filter(|_| !segment.is_gap && duration_us >= REST_MIN_US) {
                    Some(place) => steps.push(Step::Rest { place, duration_us }),
                    None => steps.push(Step::End),
                }
            }
            self.msn = msn + 1;
            (self.part, self.part_us) = (0, 0);
        }
        if let Some(open) =
            playlist.open.as_ref().filter(|open| self.with_parts && open.parts.len() <= PARTS_MAX)
        {
            let at = walk.segment(&open.head, &open.parts, None);
            self.parts(&open.parts, at, false, &mut steps);
        }
        Ok(steps)
    }

    fn parts(&mut self, parts: &[Part], at: At, is_complete: bool, steps: &mut Vec<Step>) {
        if self.part == 0 && !parts.is_empty() {
            steps.push(at.begin);
        } else if self.part == parts.len() && is_complete {
            steps.push(Step::End);
        }
        let count = parts.len();
        for (index, (part, place)) in parts.iter().zip(at.parts).enumerate().skip(self.part) {
            let place = (!part.is_gap).then_some(place);
            let is_last = is_complete && index + 1 == count;
            steps.push(Step::Piece { place, duration_us: part.duration, is_last });
        }
        self.part = count;
        self.part_us = parts.iter().map(|part| part.duration).sum();
    }
}

/// The hinted next part, where it is a resource of its own. (A hinted range has no end yet.)
pub(super) fn hinted(playlist: &MediaPlaylist) -> Option<Place> {
    let hint = playlist.hints.iter().find(|hint| hint.kind == HintKind::Part)?;
    let is_whole = hint.start.is_none() && hint.length.is_none();
    is_whole.then(|| Place { uri: hint.uri.clone(), range: None })
}

/// A complete segment by what is needed to choose where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) msn: u64,
    pub(super) duration_us: u64,
    pub(super) date_ms: Option<i64>,
}

/// The complete segments of a playlist.
pub(super) fn listed(playlist: &MediaPlaylist) -> Vec<Listed> {
    let mut walk = Walk::default();
    let segment = |(msn, segment): (u64, &Segment)| {
        let at = walk.segment(&segment.head, &segment.parts, Some(segment));
        let date_ms = match at.begin {
            Step::Begin { date_ms, .. } => date_ms,
            _ => None,
        };
        Listed { msn, duration_us: segment.duration, date_ms }
    };
    (playlist.media_sequence..).zip(&playlist.segments).map(segment).collect()
}

/// What a walk knows of a segment.
struct At {
    begin: Step,
    whole: Option<Place>,
    parts: Vec<Place>,
}

/// What is carried from line to line of a playlist.
#[derive(Default)]
struct Walk {
    map: Option<Place>,
    date_ms: Option<i64>,
    /// The resource and end of the range before, of segments, parts and maps.
    ends: [Option<(String, u64)>; 3],
}

impl Walk {
    fn segment(&mut self, head: &Head, parts: &[Part], whole: Option<&Segment>) -> At {
        if let Some(map) = &head.map {
            self.map = Some(self.place(2, &map.uri, map.byte_range));
        }
        let date_ms = match (head.date_time_ms, head.is_discontinuity) {
            (Some(date_ms), _) => Some(date_ms),
            (None, true) => None,
            (None, false) => self.date_ms,
        };
        let duration_us = whole.map_or(0, |segment| segment.duration);
        let ms = i64::try_from(duration_us / 1000).unwrap_or(0);
        self.date_ms = date_ms.map(|date_ms| date_ms.saturating_add(ms));
        let begin = Step::Begin { is_discontinuity: head.is_discontinuity, map: self.map.clone(), date_ms };
        let parts = parts.iter().map(|part| self.place(1, &part.uri, part.byte_range)).collect();
        let whole = whole.map(|segment| self.place(0, &segment.uri, segment.byte_range));
        At { begin, whole, parts }
    }

    /// Sections 4.4.4.2 and 4.4.4.9: a range without a start begins where the one before it in the same resource ended.
    fn place(&mut self, of: usize, uri: &str, range: Option<ByteRange>) -> Place {
        let before = self.ends[of].take().filter(|(before, _)| before == uri).map_or(0, |(_, end)| end);
        let range = range.map(|ByteRange { length, start }| {
            let start = start.unwrap_or(before);
            start..start.saturating_add(length)
        });
        self.ends[of] = range.as_ref().map(|range| (uri.to_owned(), range.end));
        Place { uri: uri.to_owned(), range }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shoal_playlist::parse_media;

    use super::*;

    fn playlist(text: &str) -> MediaPlaylist {
        parse_media(&format!("#EXTM3U\n#EXT-X-TARGETDURATION:2\n{text}")).unwrap()
    }

    fn pieces(steps: &[Step]) -> Vec<(String, bool)> {
        let piece = |step: &Step| match step {
            Step::Piece { place, is_last, .. } => {
                Some((place.as_ref().map_or("gap".to_owned(), |place| place.uri.clone()), *is_last))
            }
            _ => None,
        };
        steps.iter().filter_map(piece).collect()
    }

    #[test]
    fn each_segment_is_taken_once_as_the_window_slides() {
        let mut cursor = Cursor::new(4, false);
        let text = |first: u64, count: u64| {
            let segments: String =
                (first..first + count).map(|msn| format!("#EXTINF:2,\n{msn}.m4s\n")).collect();
            playlist(&format!("#EXT-X-MEDIA-SEQUENCE:{first}\n{segments}"))
        };
        let names = |steps: Vec<Step>| pieces(&steps).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(cursor.take(&text(3, 3)).unwrap()), ["4.m4s", "5.m4s"]);
        assert_eq!(names(cursor.take(&text(3, 3)).unwrap()), [""; 0]);
        assert_eq!(names(cursor.take(&text(4, 3)).unwrap()), ["6.m4s"]);
        assert_eq!(cursor.take(&text(3, 2)), Err(Break::Behind), "an old copy");
        assert_eq!(names(cursor.take(&text(7, 1)).unwrap()), ["7.m4s"]);
        assert_eq!(cursor.take(&text(10, 3)), Err(Break::Missed(2)));
        assert_eq!(cursor.take(&text(0, 3)), Err(Break::Behind), "begun anew");
    }

    #[test]
    fn parts_are_taken_as_they_come_and_the_last_one_is_known_by_its_segment() {
        let mut cursor = Cursor::new(0, true);
        let part = |index: u32| format!("#EXT-X-PART:DURATION=0.5,URI=\"p{index}\"\n");
        let open = |count| (0..count).map(part).collect::<String>();
        assert_eq!(pieces(&cursor.take(&playlist(&open(1))).unwrap()), [("p0".to_owned(), false)]);
        assert_eq!(pieces(&cursor.take(&playlist(&open(1))).unwrap()), []);
        let closed = format!("{}#EXTINF:1.5,\ns0\n", open(3));
        assert_eq!(
            pieces(&cursor.take(&playlist(&closed)).unwrap()),
            [("p1".to_owned(), false), ("p2".to_owned(), true)]
        );
        assert_eq!((cursor.msn, cursor.part()), (1, 0));
    }

    #[test]
    fn segment_that_ends_behind_its_last_part_is_ended() {
        let mut cursor = Cursor::new(0, true);
        let part = "#EXT-X-PART:DURATION=0.5,URI=\"p0\"\n";
        cursor.take(&playlist(part)).unwrap();
        let closed = format!("{part}#EXTINF:0.5,\ns0\n");
        assert_eq!(cursor.take(&playlist(&closed)), Ok(vec![Step::End]));
    }

    #[test]
    fn segment_without_its_parts_is_taken_whole_or_what_is_left_of_it() {
        let whole = playlist("#EXTINF:1.5,\ns0\n");
        let mut cursor = Cursor::new(0, true);
        assert_eq!(pieces(&cursor.take(&whole).unwrap()), [("s0".to_owned(), true)]);
        let mut cursor = Cursor::new(0, true);
        cursor.take(&playlist("#EXT-X-PART:DURATION=0.5,URI=\"p0\"\n")).unwrap();
        let rest = Step::Rest { place: Place { uri: "s0".to_owned(), range: None }, duration_us: 1_000_000 };
        assert_eq!(cursor.take(&whole), Ok(vec![rest]));
        assert_eq!((cursor.msn, cursor.part()), (1, 0));
    }

    #[test]
    fn ranges_maps_and_dates_are_resolved() {
        let text = "#EXT-X-MAP:URI=\"all\",BYTERANGE=\"100@0\"\n\
            #EXT-X-PROGRAM-DATE-TIME:1970-01-01T00:00:10Z\n\
            #EXTINF:2,\n#EXT-X-BYTERANGE:50@100\nall\n#EXTINF:2,\n#EXT-X-BYTERANGE:60\nall\n\
            #EXT-X-DISCONTINUITY\n#EXTINF:2,\n#EXT-X-GAP\nnone\n";
        let steps = Cursor::new(0, false).take(&playlist(text)).unwrap();
        let map = Some(Place { uri: "all".to_owned(), range: Some(0..100) });
        let begin = |is_discontinuity, date_ms| Step::Begin { is_discontinuity, map: map.clone(), date_ms };
        let piece = |range: Option<Range<u64>>| Step::Piece {
            place: range.map(|range| Place { uri: "all".to_owned(), range: Some(range) }),
            duration_us: 2_000_000,
            is_last: true,
        };
        assert_eq!(
            steps,
            [
                begin(false, Some(10_000)),
                piece(Some(100..150)),
                begin(false, Some(12_000)),
                piece(Some(150..210)),
                begin(true, None),
                piece(None),
            ]
        );
    }

    #[test]
    fn numbers_that_cannot_be_calculated_with_are_refused() {
        for text in [
            "#EXTINF:86401,\na\n",
            "#EXT-X-PART:DURATION=86401,URI=\"p\"\n",
            "#EXT-X-MEDIA-SEQUENCE:18446744073709551615\n#EXTINF:1,\na\n",
        ] {
            assert!(check(&playlist(text)).is_err(), "{text}");
        }
        assert_eq!(check(&playlist("#EXTINF:86400,\na\n")), Ok(()));
    }

    #[test]
    fn hint_is_of_use_where_it_is_a_resource_of_its_own() {
        let hint = |attributes: &str| {
            hinted(&playlist(&format!("#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"p\"{attributes}\n")))
        };
        assert_eq!(hint(""), Some(Place { uri: "p".to_owned(), range: None }));
        assert_eq!(hint(",BYTERANGE-START=5"), None);
    }

    proptest! {
        /// Whatever stands in the numbers, nothing overflows and no piece comes twice.
        #[test]
        fn any_sequence_of_playlists_is_taken_without_a_panic(
            playlists in proptest::collection::vec((0u64..1 << 53, 0usize..4, 0usize..4, 0u64..86_400_000_000), 1..6),
            start in 0u64..1 << 53,
        ) {
            let mut cursor = Cursor::new(start, true);
            let mut last = (cursor.msn, cursor.part());
            for (first, segments, parts, number) in playlists {
                let part = Part { uri: "p".to_owned(), duration: number, byte_range: Some(ByteRange { length: number, start: None }), ..Part::default() };
                let segment = Segment { duration: number, parts: vec![part.clone(); parts], byte_range: Some(ByteRange { length: number, start: Some(number) }), ..Segment::default() };
                let playlist = MediaPlaylist {
                    media_sequence: first,
                    segments: vec![segment; segments],
                    open: Some(shoal_playlist::OpenSegment { head: Head { date_time_ms: Some(i64::MAX), ..Head::default() }, parts: vec![part; parts] }),
                    ..MediaPlaylist::default()
                };
                prop_assert_eq!(check(&playlist), Ok(()));
                if cursor.take(&playlist).is_ok() {
                    let now = (cursor.msn, cursor.part());
                    prop_assert!(now >= last);
                    last = now;
                }
            }
        }
    }
}
