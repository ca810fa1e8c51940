//! Rules that only show over time: what one rendition's playlist says now against what it said before.

use std::collections::BTreeMap;

use super::lines::{SegmentView, View};
use super::rules::*;
use super::{Finding, Findings};

/// A text of a media playlist and when it was received.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a> {
    /// Milliseconds on any clock that does not jump.
    pub at_ms: i64,
    /// The playlist, full or a delta.
    pub text: &'a str,
}

/// Judges successive texts of one playlist. Each text by itself is [`super::lint_media`]'s business.
#[must_use]
pub fn lint_updates(snapshots: &[Snapshot<'_>]) -> Vec<Finding> {
    let mut findings = Findings::default();
    let mut known = BTreeMap::new();
    let mut before: Option<(i64, View<'_>)> = None;
    let mut grew_at_ms = snapshots.first().map_or(0, |first| first.at_ms);
    for snapshot in snapshots {
        let view = View::of(snapshot.text);
        if let Some((_, old)) = &before {
            compare(old, &view, &mut findings);
            let limit_ms = i64::try_from(view.target_s.unwrap_or(0) * 1500).unwrap_or(i64::MAX);
            if newest(&view) > newest(old) {
                // Late is what was seen late: who asks seldom cannot tell when it came.
                grew_at_ms = snapshot.at_ms;
            } else if view.is_live() && snapshot.at_ms - grew_at_ms > limit_ms {
                findings.add(&STALE, 0, format!("nothing new for {} ms", snapshot.at_ms - grew_at_ms));
                grew_at_ms = snapshot.at_ms;
            }
        }
        for (number, segment) in view.numbered() {
            let old: Option<SegmentView<'_>> = known.insert(number, segment.clone());
            if let Some(old) = old.filter(|old| has_changed(old, segment)) {
                let said =
                    |segment: &SegmentView<'_>| (segment.uri.to_owned(), segment.duration, segment.date_ms);
                let detail = format!("number {number} was {:?} and is {:?}", said(&old), said(segment));
                findings.add(&CHANGED_SEGMENT, segment.line, detail);
            }
        }
        before = Some((snapshot.at_ms, view));
    }
    findings.0
}

/// Whether the same segment is said to be another one.
fn has_changed(old: &SegmentView<'_>, new: &SegmentView<'_>) -> bool {
    // A date may stand there only while the segment is the playlist's first.
    let has_other_date = old.date_ms.zip(new.date_ms).is_some_and(|(old, new)| old != new);
    !old.is_same_media(new) || old.duration != new.duration || has_other_date
}

/// How far a playlist is: complete segments, and parts of the next.
fn newest(view: &View<'_>) -> (u64, usize) {
    (view.first_listed() + view.segments.len() as u64, view.open.parts.len())
}

fn compare(old: &View<'_>, new: &View<'_>, findings: &mut Findings) {
    let line = |tag| new.find(tag).map_or(0, |line| line.number);
    if old.target_s != new.target_s {
        findings.add(
            &CHANGED_TARGET,
            line("EXT-X-TARGETDURATION"),
            format!("{:?}, {:?}", old.target_s, new.target_s),
        );
    }
    if old.part_target != new.part_target {
        let detail = format!("{:?}, {:?}", old.part_target, new.part_target);
        findings.add(&CHANGED_PART_TARGET, line("EXT-X-PART-INF"), detail);
    }
    let control = |view: &View<'_>| view.find("EXT-X-SERVER-CONTROL").map(|line| line.value.to_owned());
    if control(old) != control(new) {
        findings.add(
            &CHANGED_CONTROL,
            line("EXT-X-SERVER-CONTROL"),
            format!("{:?}, {:?}", control(old), control(new)),
        );
    }
    let sequence_line = line("EXT-X-MEDIA-SEQUENCE");
    if new.media_sequence < old.media_sequence {
        findings.add(
            &SEQUENCE_BACK,
            sequence_line,
            format!("{} after {}", new.media_sequence, old.media_sequence),
        );
        return;
    }
    if newest(new).0 < newest(old).0 {
        findings.add(
            &SEQUENCE_JUMP,
            sequence_line,
            "newer segments than this playlist's newest were listed before",
        );
    }
    if let Some(first) = new.segments.first()
        && let Some((number, _)) = old.numbered().find(|(_, segment)| segment.is_same_media(first))
        // Byte ranges without a start are not known well enough.
        && first.range.is_none_or(|range| range.start.is_some())
        && number != new.first_listed()
    {
        let detail = format!("{} was number {number} and is {}", first.uri, new.first_listed());
        findings.add(&SEQUENCE_JUMP, sequence_line, detail);
    }
    discontinuities(old, new, line("EXT-X-DISCONTINUITY-SEQUENCE"), findings);
    if old.is_ended && (!new.is_ended || newest(new) != newest(old)) {
        findings.add(&CHANGED_AFTER_END, 0, "the playlist had ended");
    }
    hint_kept(old, new, findings);
}

fn discontinuities(old: &View<'_>, new: &View<'_>, line: usize, findings: &mut Findings) {
    // With skipped segments, or after more left than were listed, it cannot be counted.
    let gone = new.media_sequence - old.media_sequence;
    if old.skipped > 0 || gone > old.segments.len() as u64 {
        return;
    }
    let left =
        old.segments.iter().take(usize::try_from(gone).unwrap_or(0)).filter(|s| s.is_discontinuity).count()
            as u64;
    let expected = old.discontinuity_sequence + left;
    if new.discontinuity_sequence != expected {
        findings.add(&DISCONTINUITY_COUNT, line, format!("{}, not {expected}", new.discontinuity_sequence));
    }
}

/// The part that the old playlist hinted at is the next one of its segment, or the segment ended.
fn hint_kept(old: &View<'_>, new: &View<'_>, findings: &mut Findings) {
    let hint =
        old.all("EXT-X-PRELOAD-HINT").map(|line| line.attributes()).find(|a| a.get("TYPE") == Some("PART"));
    let Some(uri) = hint.and_then(|attributes| attributes.get("URI")) else { return };
    if newest(new) <= newest(old) {
        return;
    }
    let (number, parts) = newest(old);
    let segment = new.numbered().find(|(n, _)| *n == number).map(|(_, segment)| segment);
    let segment = segment.or((newest(new).0 == number).then_some(&new.open));
    if let Some(part) = segment.and_then(|segment| segment.parts.get(parts))
        && part.uri != uri
    {
        findings.add(&HINT_BROKEN, part.line, format!("{uri} was hinted at, {} came", part.uri));
    }
}
