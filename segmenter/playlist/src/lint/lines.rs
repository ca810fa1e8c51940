//! A playlist as numbered tags and URIs, and what the rules want to know of its segments.

use crate::attributes::{Attributes, parse_seconds};
use crate::{Micros, parse_date_time};

/// A line that says something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    pub(super) number: usize,
    /// `EXT-X-PART` and the like; empty for a URI.
    pub(super) tag: &'a str,
    /// The tag's value, or the URI.
    pub(super) value: &'a str,
}

pub(super) fn lines(text: &str) -> Vec<Line<'_>> {
    text.lines().enumerate().filter_map(|(index, line)| read(index + 1, line.trim_end())).collect()
}

/// None for comments and blank lines.
fn read(number: usize, line: &str) -> Option<Line<'_>> {
    if let Some(tag) = line.strip_prefix('#').filter(|tag| tag.starts_with("EXT")) {
        let (tag, value) = tag.split_once(':').unwrap_or((tag, ""));
        return Some(Line { number, tag, value });
    }
    (!line.is_empty() && !line.starts_with('#')).then_some(Line { number, tag: "", value: line })
}

impl<'a> Line<'a> {
    pub(super) fn attributes(&self) -> Attributes<'a> {
        Attributes::parse(self.value).unwrap_or_default()
    }
}

/// What is read from the network is cut off here, so that sums of all that a playlist can list do not overflow: 12 days
/// in microseconds, and numbers that no playlist gets to by counting.
const DURATION_US_MAX: Micros = 1 << 40;
const TARGET_S_MAX: u64 = DURATION_US_MAX / 1_000_000;
const NUMBER_MAX: u64 = u64::MAX / 4;

fn number(text: &str) -> u64 {
    text.parse().map_or(0, |number: u64| number.min(NUMBER_MAX))
}

/// The bytes of a file that are a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) length: u64,
    /// None where it follows from a line that is not there.
    pub(super) start: Option<u64>,
}

impl Range {
    /// Reads `LENGTH` or `LENGTH@START`.
    fn read(text: &str) -> Option<Self> {
        let (length, start) =
            text.split_once('@').map_or((text, None), |(length, start)| (length, Some(start)));
        Some(Self {
            length: length.trim().parse().ok()?,
            start: start.and_then(|start| start.trim().parse().ok()),
        })
    }

    fn end(self) -> Option<u64> {
        self.start?.checked_add(self.length)
    }

    /// Whether both can be the same bytes.
    fn fits(self, other: Self) -> bool {
        self.length == other.length && self.start.zip(other.start).is_none_or(|(start, other)| start == other)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PartView<'a> {
    pub(super) line: usize,
    pub(super) uri: &'a str,
    pub(super) duration: Micros,
    pub(super) is_independent: bool,
    pub(super) is_gap: bool,
}

/// A segment, or the one in the making, as far as it can be understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SegmentView<'a> {
    pub(super) line: usize,
    pub(super) uri: &'a str,
    /// `EXT-X-BYTERANGE`.
    pub(super) range: Option<Range>,
    pub(super) duration: Option<Micros>,
    pub(super) date_ms: Option<i64>,
    pub(super) is_discontinuity: bool,
    pub(super) has_map: bool,
    /// `EXT-X-MAP`'s URI.
    pub(super) map: Option<&'a str>,
    pub(super) is_gap: bool,
    /// A tag of its head stands behind its first part: its line.
    pub(super) late_head: Option<usize>,
    pub(super) parts: Vec<PartView<'a>>,
}

impl SegmentView<'_> {
    /// Whether both may name the same media: the same bytes of the same file.
    pub(super) fn is_same_media(&self, other: &SegmentView<'_>) -> bool {
        let are_same_bytes = match (self.range, other.range) {
            (Some(range), Some(other)) => range.fits(other),
            (None, None) => true,
            _ => false,
        };
        self.uri == other.uri && are_same_bytes
    }
}

/// A media playlist, as far as it can be understood.
#[derive(Clone, Debug, Default)]
pub(super) struct View<'a> {
    pub(super) lines: Vec<Line<'a>>,
    pub(super) target_s: Option<u64>,
    pub(super) part_target: Option<Micros>,
    pub(super) media_sequence: u64,
    pub(super) discontinuity_sequence: u64,
    pub(super) skipped: u64,
    pub(super) segments: Vec<SegmentView<'a>>,
    pub(super) open: SegmentView<'a>,
    pub(super) is_ended: bool,
}

impl<'a> View<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        let mut view = Self { lines: lines(text), ..Self::default() };
        let mut segment = SegmentView::default();
        let limited = |duration: Micros| duration.min(DURATION_US_MAX);
        for line in view.lines.clone() {
            let is_late = !segment.parts.is_empty() && segment.late_head.is_none();
            match line.tag {
                "EXT-X-TARGETDURATION" => {
                    view.target_s = line.value.parse().ok().map(|seconds: u64| seconds.min(TARGET_S_MAX));
                }
                "EXT-X-PART-INF" => {
                    view.part_target = line.attributes().micros("PART-TARGET").map(limited);
                }
                "EXT-X-MEDIA-SEQUENCE" => view.media_sequence = number(line.value),
                "EXT-X-DISCONTINUITY-SEQUENCE" => view.discontinuity_sequence = number(line.value),
                "EXT-X-SKIP" => {
                    view.skipped = line.attributes().get("SKIPPED-SEGMENTS").map_or(0, number);
                }
                "EXT-X-ENDLIST" => view.is_ended = true,
                "EXTINF" => {
                    segment.duration = line.value.split(',').next().and_then(parse_seconds).map(limited);
                }
                "EXT-X-BYTERANGE" => segment.range = Range::read(line.value),
                "EXT-X-GAP" => segment.is_gap = true,
                "EXT-X-DISCONTINUITY" | "EXT-X-MAP" | "EXT-X-PROGRAM-DATE-TIME" => {
                    match line.tag {
                        "EXT-X-DISCONTINUITY" => segment.is_discontinuity = true,
                        "EXT-X-MAP" => {
                            segment.has_map = true;
                            segment.map = line.attributes().get("URI");
                        }
                        _ => segment.date_ms = parse_date_time(line.value),
                    }
                    if is_late {
                        segment.late_head = Some(line.number);
                    }
                }
                "EXT-X-PART" => {
                    let attributes = line.attributes();
                    segment.parts.push(PartView {
                        line: line.number,
                        uri: attributes.get("URI").unwrap_or(""),
                        duration: attributes.micros("DURATION").map_or(0, limited),
                        is_independent: attributes.is_yes("INDEPENDENT"),
                        is_gap: attributes.is_yes("GAP"),
                    });
                }
                "" => {
                    segment.line = line.number;
                    segment.uri = line.value;
                    // Without a start it begins where the one before it ends.
                    let before = view.segments.last().filter(|before| before.uri == line.value);
                    let follows = before.and_then(|before| before.range?.end());
                    if let Some(range) = &mut segment.range {
                        range.start = range.start.or(follows);
                    }
                    view.segments.push(std::mem::take(&mut segment));
                }
                _ => {}
            }
        }
        view.open = segment;
        view
    }

    pub(super) fn find(&self, tag: &str) -> Option<&Line<'a>> {
        self.lines.iter().find(|line| line.tag == tag)
    }

    pub(super) fn all<'v>(&'v self, tag: &'v str) -> impl Iterator<Item = &'v Line<'a>> {
        self.lines.iter().filter(move |line| line.tag == tag)
    }

    pub(super) fn target_us(&self) -> Option<Micros> {
        self.target_s.map(|seconds| seconds * 1_000_000)
    }

    pub(super) fn is_low_latency(&self) -> bool {
        self.part_target.is_some() || self.find("EXT-X-PART").is_some()
    }

    pub(super) fn is_live(&self) -> bool {
        !self.is_ended
    }

    /// The number of the first segment that stands in the text.
    pub(super) fn first_listed(&self) -> u64 {
        self.media_sequence + self.skipped
    }

    /// The segments with the dates of their beginnings, as far as they are known, and the date of the end of the last.
    pub(super) fn dated(&self) -> (Vec<(i64, &SegmentView<'a>)>, Option<i64>) {
        let (mut dated, mut next_ms) = (Vec::new(), None);
        for segment in &self.segments {
            // Behind a discontinuity, only its own date counts.
            let begin_ms = segment.date_ms.or(next_ms.filter(|_| !segment.is_discontinuity));
            dated.extend(begin_ms.map(|begin_ms| (begin_ms, segment)));
            let duration_ms = i64::try_from(segment.duration.unwrap_or(0) / 1000).unwrap_or(0);
            next_ms = begin_ms.map(|begin_ms| begin_ms.saturating_add(duration_ms));
        }
        (dated, next_ms)
    }

    /// The segments with their numbers.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (u64, &SegmentView<'a>)> {
        (self.first_listed()..).zip(&self.segments)
    }
}
