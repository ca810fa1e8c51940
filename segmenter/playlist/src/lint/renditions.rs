//! Rules between the renditions of one stream, seen at about the same moment.

use super::lines::{SegmentView, View};
use super::rules::*;
use super::{Finding, Findings};

/// By dates: HLS does not want the same sequence numbers in all renditions, and nothing can be said without either.
fn in_step(first: &View<'_>, other: &View<'_>, findings: &mut Findings) {
    let target_ms = i64::try_from(first.target_s.unwrap_or(0).saturating_mul(1000)).unwrap_or(i64::MAX);
    let slack_ms = target_ms / 2;
    let (of_first, of_other) = (first.dated(), other.dated());
    for ((here, _), (there, there_end_ms), is_first) in
        [(&of_first, &of_other, true), (&of_other, &of_first, false)]
    {
        let (Some((there_begin_ms, _)), Some(there_end_ms)) = (there.first(), there_end_ms) else { continue };
        for (at_ms, segment) in here.iter().filter(|(_, segment)| segment.is_discontinuity) {
            let is_listed = there_begin_ms + slack_ms < *at_ms && at_ms + slack_ms < *there_end_ms;
            let is_near = |(twin_ms, twin): &&(i64, &SegmentView<'_>)| {
                twin.is_discontinuity && twin_ms.abs_diff(*at_ms) <= slack_ms.unsigned_abs()
            };
            if is_listed && !there.iter().any(|twin| is_near(&twin)) {
                let (has, has_not) =
                    if is_first { ("the first", "this one") } else { ("this one", "the first") };
                let detail = format!("{} in {has} of the two playlists, but not in {has_not}", segment.uri);
                findings.add(&RENDITION_DISCONTINUITY, if is_first { 0 } else { segment.line }, detail);
            }
        }
    }
    if let (Some(first_end_ms), Some(other_end_ms), true) = (of_first.1, of_other.1, first.is_live()) {
        // One segment, and what segments differ by.
        if first_end_ms.abs_diff(other_end_ms) > (target_ms + slack_ms).unsigned_abs() {
            let detail = format!("the ends are {} ms apart", first_end_ms.abs_diff(other_end_ms));
            findings.add(&RENDITION_APART, 0, detail);
        }
    }
}

/// Judges the media playlists of one stream against the first of them. The texts must have been fetched together.
#[must_use]
pub fn lint_renditions(texts: &[&str]) -> Vec<Finding> {
    let mut findings = Findings::default();
    let views: Vec<_> = texts.iter().map(|text| View::of(text)).collect();
    let Some((first, others)) = views.split_first() else { return findings.0 };
    for other in others {
        let line = |tag| other.find(tag).map_or(0, |line| line.number);
        if first.target_s != other.target_s {
            let detail = format!("{:?} and {:?}", first.target_s, other.target_s);
            findings.add(&RENDITION_TARGET, line("EXT-X-TARGETDURATION"), detail);
        }
        let control = |view: &View<'_>| view.find("EXT-X-SERVER-CONTROL").map(|line| line.value.to_owned());
        if control(first) != control(other) {
            let detail = format!("{:?} and {:?}", control(first), control(other));
            findings.add(&RENDITION_CONTROL, line("EXT-X-SERVER-CONTROL"), detail);
        }
        in_step(first, other, &mut findings);
    }
    for view in views.iter().filter(|view| view.is_live() && view.is_low_latency()) {
        let reports = view.all("EXT-X-RENDITION-REPORT").count();
        if reports + 1 < views.len() {
            findings.add(&NO_REPORT, 0, format!("{reports} reports, and {} renditions", views.len()));
        }
    }
    findings.0
}
