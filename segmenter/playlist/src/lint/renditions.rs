//! Rules between the renditions of one stream, seen at about the same moment.

use super::lines::View;
use super::rules::*;
use super::{Finding, Findings};

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
        for (number, segment) in other.numbered() {
            let twin = first.numbered().find(|(n, _)| *n == number).map(|(_, twin)| twin);
            if let Some(twin) = twin.filter(|twin| twin.is_discontinuity != segment.is_discontinuity) {
                let detail = format!(
                    "number {number}: {} here, {} there",
                    segment.is_discontinuity, twin.is_discontinuity
                );
                findings.add(&RENDITION_DISCONTINUITY, segment.line, detail);
            }
        }
        let ahead = |view: &View<'_>| view.first_listed() + view.segments.len() as u64;
        if first.is_live() && ahead(first).abs_diff(ahead(other)) > 1 {
            findings.add(&RENDITION_APART, 0, format!("segment {} and {}", ahead(first), ahead(other)));
        }
    }
    for view in views.iter().filter(|view| view.is_live() && view.is_low_latency()) {
        let reports = view.all("EXT-X-RENDITION-REPORT").count();
        if reports + 1 < views.len() {
            findings.add(&NO_REPORT, 0, format!("{reports} reports, and {} renditions", views.len()));
        }
    }
    findings.0
}
