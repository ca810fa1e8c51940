//! Rules about how playlists are served: status, type, compression, delivery directives.

use super::lines::View;
use super::rules::*;
use super::{Finding, Findings};

/// An answer to a request for a playlist that sent `Accept-Encoding: gzip`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The HTTP status.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: &'a str,
    /// `Content-Encoding`.
    pub content_encoding: &'a str,
    /// The text, uncompressed.
    pub text: &'a str,
}

/// What a request asked of a server that offers blocking reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// `_HLS_msn`, and `_HLS_part` where there are parts.
    Next(u64, Option<u64>),
    /// `_HLS_part` without `_HLS_msn`.
    PartAlone,
    /// A media sequence number that is far ahead.
    FarAhead(u64),
}

/// Judges how a playlist was sent.
#[must_use]
pub fn lint_answer(answer: &Answer<'_>) -> Vec<Finding> {
    let mut findings = Findings::default();
    if !(200..300).contains(&answer.status) {
        findings.add(&UNAVAILABLE, 0, format!("the playlist: status {}", answer.status));
        return findings.0;
    }
    let essence = answer.content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if !matches!(essence.as_str(), "application/vnd.apple.mpegurl" | "audio/mpegurl") {
        findings.add(&PLAYLIST_TYPE, 0, format!("Content-Type is {:?}", answer.content_type));
    }
    let is_coded = ["gzip", "br", "zstd"].contains(&answer.content_encoding);
    // What fits into one packet gains nothing.
    if !is_coded && answer.text.len() > 1_200 {
        findings.add(&NOT_COMPRESSED, 0, format!("{} bytes, not compressed", answer.text.len()));
    }
    findings.0
}

/// Judges the answer to a request with delivery directives, of a server that offers blocking reload.
#[must_use]
pub fn lint_directives(asked: Asked, answer: &Answer<'_>) -> Vec<Finding> {
    let mut findings = Findings::default();
    match asked {
        Asked::Next(msn, part) if answer.status == 200 => {
            let view = View::of(answer.text);
            let open = view.first_listed() + view.segments.len() as u64;
            let has =
                open > msn || (open == msn && part.is_some_and(|part| (view.open.parts.len() as u64) > part));
            if !has && view.is_live() {
                let wanted = part.map_or(format!("segment {msn}"), |part| format!("part {part} of {msn}"));
                findings.add(&BLOCKING_EARLY, 0, format!("{wanted} was asked for and is not there"));
            }
        }
        Asked::Next(..) => {}
        Asked::PartAlone | Asked::FarAhead(_) => {
            let what = match asked {
                Asked::FarAhead(msn) => format!("_HLS_msn={msn}"),
                _ => "_HLS_part without _HLS_msn".to_owned(),
            };
            if answer.status != 400 {
                findings.add(&DIRECTIVES_UNCHECKED, 0, format!("{what} is answered {}", answer.status));
            }
        }
    }
    findings.0
}

/// Judges a delta (`_HLS_skip=YES`) against a full playlist of about the same moment.
#[must_use]
pub fn lint_delta(full: &str, delta: &str) -> Vec<Finding> {
    let mut findings = Findings::default();
    let (full, delta) = (View::of(full), View::of(delta));
    let Some(skip) = delta.find("EXT-X-SKIP") else { return findings.0 };
    for (number, segment) in delta.numbered() {
        let twin = full.numbered().find(|(of, _)| *of == number).map(|(_, twin)| twin);
        let said = |segment: &super::lines::SegmentView<'_>| {
            (segment.uri.to_owned(), segment.duration, segment.date_ms, segment.is_discontinuity)
        };
        if let Some(twin) = twin.filter(|twin| said(twin) != said(segment)) {
            let detail = format!("number {number} is {} here and {} in full", segment.uri, twin.uri);
            findings.add(&DELTA_DIFFERS, segment.line, detail);
        }
    }
    let control = delta.find("EXT-X-SERVER-CONTROL").map(super::lines::Line::attributes).unwrap_or_default();
    let segments: u64 = delta.segments.iter().filter_map(|segment| segment.duration).sum();
    let left = segments + delta.open.parts.iter().map(|part| part.duration).sum::<u64>();
    if let Some(until) = control.micros("CAN-SKIP-UNTIL").filter(|until| left < *until) {
        findings.add(&SKIP_TOO_MUCH, skip.number, format!("{left} us are left, CAN-SKIP-UNTIL is {until}"));
    }
    findings.0
}
