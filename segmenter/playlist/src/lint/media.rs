//! Rules that one text of a media playlist can break.

use std::collections::BTreeMap;

use super::lines::{SegmentView, View};
use super::rules::*;
use super::{Finding, Findings};
use crate::attributes::Attributes;
use crate::parse_date_time;

/// Two dates may differ from the durations between them by this much: half a frame at 10 frames per second, and what
/// re-timing to a sender's clock does.
const DATE_SLACK_MS: i64 = 100;
/// Parts may differ from their segment by this much: one frame at 20 frames per second.
const SUM_SLACK_US: u64 = 50_000;

/// Judges a media playlist.
#[must_use]
pub fn lint_media(text: &str) -> Vec<Finding> {
    let mut findings = Findings::default();
    let first = text.lines().next().unwrap_or("");
    if first.trim_end() != "#EXTM3U" {
        findings.add(&HEADER, 1, format!("the first line is {first:?}"));
    }
    let view = View::of(text);
    syntax(&view, &mut findings);
    head(&view, &mut findings);
    segments(&view, &mut findings);
    if view.is_low_latency() {
        parts(&view, &mut findings);
    }
    control(&view, &mut findings);
    hints(&view, &mut findings);
    dates(&view, &mut findings);
    window(&view, &mut findings);
    findings.0
}

fn syntax(view: &View<'_>, findings: &mut Findings) {
    for line in &view.lines {
        let (is_fine, wanted): (bool, &str) = match line.tag {
            "EXT-X-VERSION"
            | "EXT-X-TARGETDURATION"
            | "EXT-X-MEDIA-SEQUENCE"
            | "EXT-X-DISCONTINUITY-SEQUENCE" => (line.value.parse::<u64>().is_ok(), "a decimal integer"),
            "EXTINF" => {
                let duration = line.value.split(',').next().unwrap_or("");
                (crate::attributes::parse_seconds(duration).is_some(), "a duration and a comma")
            }
            "EXT-X-PROGRAM-DATE-TIME" => {
                (parse_date_time(line.value).is_some(), "an ISO 8601 date with a zone")
            }
            "EXT-X-PLAYLIST-TYPE" => (matches!(line.value, "VOD" | "EVENT"), "VOD or EVENT"),
            "EXT-X-PART" => (has(line.value, &["URI", "DURATION"]), "URI and DURATION"),
            "EXT-X-MAP" => (has(line.value, &["URI"]), "URI"),
            "EXT-X-PART-INF" => (has(line.value, &["PART-TARGET"]), "PART-TARGET"),
            "EXT-X-SKIP" => (has(line.value, &["SKIPPED-SEGMENTS"]), "SKIPPED-SEGMENTS"),
            "EXT-X-PRELOAD-HINT" => (has(line.value, &["TYPE", "URI"]), "TYPE and URI"),
            "EXT-X-RENDITION-REPORT" => (has(line.value, &["URI", "LAST-MSN"]), "URI and LAST-MSN"),
            "EXT-X-SERVER-CONTROL" => (has(line.value, &[]), "attributes"),
            _ => continue,
        };
        if !is_fine {
            findings.add(&SYNTAX, line.number, format!("{} wants {wanted}, not {:?}", line.tag, line.value));
        }
    }
    for tag in [
        "EXT-X-VERSION",
        "EXT-X-TARGETDURATION",
        "EXT-X-MEDIA-SEQUENCE",
        "EXT-X-DISCONTINUITY-SEQUENCE",
        "EXT-X-PART-INF",
        "EXT-X-SERVER-CONTROL",
        "EXT-X-PLAYLIST-TYPE",
        "EXT-X-ENDLIST",
        "EXT-X-SKIP",
    ] {
        if let Some(second) = view.all(tag).nth(1) {
            findings.add(&TWICE, second.number, format!("{tag} stands here again"));
        }
    }
}

/// Whether a value is an attribute list with these names.
fn has(value: &str, names: &[&str]) -> bool {
    Attributes::parse(value).is_some_and(|attributes| names.iter().all(|name| attributes.get(name).is_some()))
}

fn head(view: &View<'_>, findings: &mut Findings) {
    if view.target_s.is_none() {
        findings.add(&NO_TARGET, 0, "there is no EXT-X-TARGETDURATION");
    }
    let first_segment = view.segments.first().map_or(usize::MAX, |segment| segment.line);
    if let Some(line) = view.all("EXT-X-MEDIA-SEQUENCE").find(|line| line.number > first_segment) {
        findings.add(&SEQUENCE_LATE, line.number, "the first segment stands before it");
    }
    let first_discontinuity = view.find("EXT-X-DISCONTINUITY").map(|line| line.number);
    let first_use = first_segment.min(first_discontinuity.unwrap_or(usize::MAX));
    if let Some(line) = view.all("EXT-X-DISCONTINUITY-SEQUENCE").find(|line| line.number > first_use) {
        findings.add(&DISCONTINUITY_LATE, line.number, "a segment or discontinuity stands before it");
    }
    if let (None, Some(first), true) =
        (view.find("EXT-X-DISCONTINUITY-SEQUENCE"), first_discontinuity, view.is_live())
    {
        findings.add(&NO_DISCONTINUITY_SEQUENCE, first, "a discontinuity, but no sequence number");
    }
    let version = view.find("EXT-X-VERSION").and_then(|line| line.value.parse::<u32>().ok()).unwrap_or(1);
    for (tag, needed) in [("EXT-X-SKIP", 9), ("EXT-X-GAP", 8), ("EXT-X-MAP", 6)] {
        if let Some(line) = view.find(tag).filter(|_| version < needed) {
            findings.add(&VERSION_LOW, line.number, format!("{tag} needs version {needed}, not {version}"));
        }
    }
    if let Some(line) = view.find("EXT-X-PLAYLIST-TYPE").filter(|line| line.value == "VOD" && view.is_live())
    {
        findings.add(&TYPE_VOD_OPEN, line.number, "there is no EXT-X-ENDLIST");
    }
}

fn segments(view: &View<'_>, findings: &mut Findings) {
    for segment in &view.segments {
        match (segment.duration, view.target_us()) {
            (None, _) => findings.add(&NO_EXTINF, segment.line, format!("{} has no EXTINF", segment.uri)),
            // Rounded to the nearest second.
            (Some(duration), Some(target)) if duration >= target + 500_000 => {
                findings.add(&TOO_LONG, segment.line, format!("{duration} us"));
            }
            _ => {}
        }
    }
    let is_mp4 = |uri: &str| {
        [".m4s", ".mp4", ".m4v", ".m4a", ".cmfv", ".cmfa"].iter().any(|end| path(uri).ends_with(end))
    };
    if let Some(first) =
        view.segments.first().filter(|first| view.skipped == 0 && is_mp4(first.uri) && !first.has_map)
    {
        findings.add(&NO_MAP, first.line, format!("{} has no EXT-X-MAP", first.uri));
    }
    let mut seen = BTreeMap::new();
    let parts = |segment: &SegmentView<'_>| -> Vec<(usize, String)> {
        segment.parts.iter().map(|part| (part.line, part.uri.to_owned())).collect()
    };
    let byte_ranges = view.find("EXT-X-BYTERANGE").is_some()
        || view.all("EXT-X-PART").any(|line| line.value.contains("BYTERANGE"));
    for segment in view.segments.iter().chain([&view.open]) {
        let own = (!segment.uri.is_empty()).then(|| (segment.line, segment.uri.to_owned()));
        for (line, uri) in parts(segment).into_iter().chain(own) {
            if let Some(before) = seen.insert(uri.clone(), line).filter(|_| !byte_ranges) {
                findings.add(&URI_TWICE, line, format!("{uri} stands in line {before} too"));
            }
        }
    }
}

fn path(uri: &str) -> &str {
    uri.split(['?', '#']).next().unwrap_or(uri)
}

fn parts(view: &View<'_>, findings: &mut Findings) {
    let Some(target) = view.part_target else {
        findings.add(&NO_PART_INF, 0, "there are parts, but no EXT-X-PART-INF");
        return;
    };
    let mut from_end: u64 = view.open.parts.iter().map(|part| part.duration).sum();
    for segment in std::iter::once(&view.open).chain(view.segments.iter().rev()) {
        let is_open = segment.uri.is_empty();
        for (index, part) in segment.parts.iter().enumerate() {
            let next = segment.parts.get(index + 1);
            if part.duration > target {
                findings.add(
                    &PART_LONG,
                    part.line,
                    format!("{} us, and the target is {target}", part.duration),
                );
            }
            let is_last = next.is_none() && !is_open;
            // The newest part of an open segment may turn out to be its last.
            let is_newest = next.is_none() && is_open;
            let is_exempt =
                part.is_independent || part.is_gap || is_last || is_newest || next.is_some_and(|n| n.is_gap);
            if part.duration * 100 < target * 85 && !is_exempt {
                findings.add(
                    &PART_SHORT,
                    part.line,
                    format!("{} us, and the target is {target}", part.duration),
                );
            }
        }
        if let Some(line) = segment.late_head {
            findings.add(&HEAD_LATE, line, "a part of the same segment stands before it");
        }
        if is_open {
            continue;
        }
        let sum: u64 = segment.parts.iter().map(|part| part.duration).sum();
        let duration = segment.duration.unwrap_or(0);
        if !segment.parts.is_empty() && sum.abs_diff(duration) > SUM_SLACK_US {
            findings.add(&PART_SUM, segment.line, format!("{sum} us of parts in {duration} us"));
        }
        // One segment of grace: the playlist may be of the moment in which it ended.
        let limit = view.target_us().unwrap_or(0) * 4;
        if let Some(part) = segment.parts.first().filter(|_| from_end > limit) {
            findings.add(&PART_OLD, part.line, format!("{from_end} us behind the end"));
        }
        from_end += duration;
    }
}

fn control(view: &View<'_>, findings: &mut Findings) {
    let line = view.find("EXT-X-SERVER-CONTROL");
    let number = line.map_or(0, |line| line.number);
    let attributes = line.map(super::lines::Line::attributes).unwrap_or_default();
    let at_least = |name: &str, least: u64| attributes.micros(name).filter(|value| *value < least);
    if let Some(target) = view.target_us() {
        if let Some(value) = at_least("HOLD-BACK", 3 * target) {
            findings.add(&HOLD_BACK_LOW, number, format!("{value} us"));
        }
        if let Some(value) = at_least("CAN-SKIP-UNTIL", 6 * target) {
            findings.add(&SKIP_UNTIL_LOW, number, format!("{value} us"));
        }
    }
    if let Some(skip) = view.find("EXT-X-SKIP").filter(|_| attributes.get("CAN-SKIP-UNTIL").is_none()) {
        findings.add(&SKIP_UNASKED, skip.number, "CAN-SKIP-UNTIL is missing");
    }
    let Some(part_target) = view.part_target.filter(|_| view.is_live()) else { return };
    match attributes.micros("PART-HOLD-BACK") {
        None => findings.add(&NO_PART_HOLD_BACK, number, "there are parts, but no PART-HOLD-BACK"),
        Some(value) if value < 2 * part_target => {
            findings.add(&PART_HOLD_BACK_LOW, number, format!("{value} us"))
        }
        Some(value) if value < 3 * part_target => {
            findings.add(&PART_HOLD_BACK_APPLE, number, format!("{value} us"))
        }
        Some(_) => {}
    }
    if !attributes.is_yes("CAN-BLOCK-RELOAD") {
        findings.add(&NO_BLOCK_RELOAD, number, "there are parts, but no CAN-BLOCK-RELOAD=YES");
    }
}

fn hints(view: &View<'_>, findings: &mut Findings) {
    let mut types = Vec::new();
    for line in view.all("EXT-X-PRELOAD-HINT") {
        let attributes = line.attributes();
        let (kind, uri) = (attributes.get("TYPE").unwrap_or(""), attributes.get("URI").unwrap_or(""));
        if types.contains(&kind) {
            findings.add(&HINT_TWICE, line.number, format!("another hint of type {kind}"));
        }
        types.push(kind);
        let is_listed = |segment: &SegmentView<'_>| segment.parts.iter().any(|part| part.uri == uri);
        let has_range = attributes.get("BYTERANGE-START").is_some();
        if kind == "PART" && !has_range && view.segments.iter().chain([&view.open]).any(is_listed) {
            findings.add(&HINT_LISTED, line.number, format!("{uri} is listed already"));
        }
        if view.is_ended {
            findings.add(&END_WITH_PROMISE, line.number, "a hint in an ended playlist");
        }
    }
    if view.is_live() && view.is_low_latency() && !types.contains(&"PART") {
        findings.add(&NO_HINT, 0, "there is no EXT-X-PRELOAD-HINT of type PART");
    }
}

fn dates(view: &View<'_>, findings: &mut Findings) {
    let has_date = view.find("EXT-X-PROGRAM-DATE-TIME").is_some();
    if view.is_live() && !has_date && !view.segments.is_empty() {
        findings.add(&NO_DATE, 0, "there is no EXT-X-PROGRAM-DATE-TIME");
    }
    let mut expected: Option<i64> = None;
    for segment in view.segments.iter().chain([&view.open]) {
        let line = segment.line;
        if segment.is_discontinuity && has_date && segment.date_ms.is_none() && line > 0 {
            findings.add(&DATE_AFTER_DISCONTINUITY, line, format!("{} has no date", segment.uri));
        }
        if let (Some(date_ms), Some(expected_ms)) = (segment.date_ms, expected) {
            // A discontinuity may leave time out.
            let is_early = date_ms + DATE_SLACK_MS < expected_ms;
            if is_early || (!segment.is_discontinuity && date_ms > expected_ms + DATE_SLACK_MS) {
                findings.add(&DATE_BACK, line, format!("{} ms off", date_ms - expected_ms));
            }
        }
        expected = segment.date_ms.or(expected).map(|date_ms| {
            date_ms + i64::try_from(segment.duration.unwrap_or(0) / 1000).unwrap_or(i64::MAX / 2)
        });
    }
}

fn window(view: &View<'_>, findings: &mut Findings) {
    let Some(target) = view.target_us().filter(|_| view.is_live() && view.skipped == 0) else { return };
    // A stream that has just begun cannot list more than there was.
    if view.media_sequence == 0 || view.find("EXT-X-PLAYLIST-TYPE").is_some() {
        return;
    }
    let total: u64 = view.segments.iter().filter_map(|segment| segment.duration).sum();
    if total < 3 * target {
        findings.add(&WINDOW_SHORT, 0, format!("{total} us"));
    } else if view.segments.len() < 6 {
        findings.add(&WINDOW_FEW, 0, format!("{} segments", view.segments.len()));
    }
}
