//! Rules about the media that a playlist lists: whether it is there, and is what the playlist says.

use std::collections::BTreeMap;

use super::lines::{SegmentView, View, lines};
use super::mp4::{Fragment, Init};
use super::rules::*;
use super::{Finding, Findings};

/// Media may last longer or shorter than listed by this much: one frame at 20 frames per second.
const DURATION_SLACK_US: u64 = 50_000;
/// Decode times may be off by this much between fragments: rounding to milliseconds.
const TIME_SLACK_US: u64 = 1_000;

/// What became of fetching a file that a playlist lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched<'a> {
    /// The server did not give it: the HTTP status, 0 where no answer came.
    Missing(u16),
    /// Its first bytes' worth of structure was read by [`Init::read`].
    Init(Option<&'a Init>),
    /// A segment or part, read by [`Fragment::read`], and how many bytes it has.
    Fragment(Option<Fragment>, u64),
}

/// Judges what a media playlist lists by what was fetched of it, by URI as it stands there. Files that were not
/// fetched are passed over. `is_promised`: the multivariant playlist has `EXT-X-INDEPENDENT-SEGMENTS`, which is said of
/// this playlist too.
#[must_use]
pub fn lint_fragments(text: &str, files: &BTreeMap<String, Fetched<'_>>, is_promised: bool) -> Vec<Finding> {
    let mut findings = Findings::default();
    let view = View::of(text);
    for line in view.all("EXT-X-MAP") {
        let attributes = line.attributes();
        let uri = attributes.get("URI").unwrap_or("");
        match files.get(uri) {
            Some(Fetched::Missing(status)) => missing(uri, *status, line.number, &mut findings),
            Some(Fetched::Init(None) | Fetched::Fragment(..)) => {
                findings.add(&INIT_BROKEN, line.number, format!("{uri} has no ftyp, moov and mvex"));
            }
            Some(Fetched::Init(Some(_))) | None => {}
        }
    }
    let starts_independent = is_promised || view.find("EXT-X-INDEPENDENT-SEGMENTS").is_some();
    // Where the next fragment should begin: of the segments, and of the parts.
    let (mut segment_us, mut part_us) = (None, None);
    for segment in view.segments.iter().chain([&view.open]) {
        if segment.is_discontinuity {
            (segment_us, part_us) = (None, None);
        }
        let whole = judge(segment.uri, segment.line, segment.duration, &mut segment_us, files, &mut findings);
        if let Some(whole) = whole.filter(|whole| whole.is_video && starts_independent)
            && !whole.starts_with_keyframe
        {
            let detail = format!("{} does not begin with a keyframe", segment.uri);
            findings.add(&SEGMENT_DEPENDS, segment.line, detail);
        }
        judge_parts(segment, whole, &mut part_us, files, &mut findings);
    }
    findings.0
}

fn missing(uri: &str, status: u16, line: usize, findings: &mut Findings) {
    let answer = if status == 0 { "no answer".to_owned() } else { format!("status {status}") };
    findings.add(&UNAVAILABLE, line, format!("{uri}: {answer}"));
}

fn judge_parts(
    segment: &SegmentView<'_>,
    whole: Option<Fragment>,
    expected_us: &mut Option<u64>,
    files: &BTreeMap<String, Fetched<'_>>,
    findings: &mut Findings,
) {
    if segment.parts.is_empty() {
        *expected_us = None;
    }
    let mut together: Option<(u64, u64)> = None;
    let mut are_all_known = !segment.parts.is_empty();
    for part in &segment.parts {
        if part.is_gap {
            (*expected_us, are_all_known) = (None, false);
            continue;
        }
        let read = judge(part.uri, part.line, Some(part.duration), expected_us, files, findings);
        let Some(read) = read else {
            are_all_known = false;
            continue;
        };
        if part.is_independent && !read.has_keyframe {
            findings.add(&INDEPENDENT_LIE, part.line, format!("{} has no keyframe", part.uri));
        }
        together = Some((together.map_or(read.start_us, |(start, _)| start), read.end_us));
    }
    if let (Some(whole), Some((start, end)), true) = (whole, together, are_all_known) {
        let apart = whole.start_us.abs_diff(start).max(whole.end_us.abs_diff(end));
        if apart > DURATION_SLACK_US {
            let detail = format!("{} and its parts are {apart} us apart", segment.uri);
            findings.add(&PARTS_OTHER_MEDIA, segment.line, detail);
        }
    }
}

/// Judges one file by itself and by where the one before it ended.
fn judge(
    uri: &str,
    line: usize,
    duration: Option<u64>,
    expected_us: &mut Option<u64>,
    files: &BTreeMap<String, Fetched<'_>>,
    findings: &mut Findings,
) -> Option<Fragment> {
    let before = expected_us.take();
    match files.get(uri)? {
        Fetched::Missing(status) => {
            missing(uri, *status, line, findings);
            None
        }
        Fetched::Init(_) | Fetched::Fragment(None, _) => {
            findings.add(&FRAGMENT_BROKEN, line, format!("{uri} is no sequence of moof and mdat"));
            None
        }
        Fetched::Fragment(Some(fragment), _) => {
            let off_us = before.map_or(0, |before| fragment.start_us.abs_diff(before));
            if off_us > TIME_SLACK_US || !fragment.is_continuous {
                let detail = format!("{uri} begins {off_us} us beside the end of what is before it");
                findings.add(&TIME_GAP, line, detail);
            }
            let (listed, real) = (duration.unwrap_or(0), fragment.duration_us());
            if duration.is_some() && listed.abs_diff(real) > DURATION_SLACK_US {
                findings.add(&DURATION_OTHER, line, format!("{uri}: {listed} us listed, {real} us of media"));
            }
            *expected_us = Some(fragment.end_us);
            Some(*fragment)
        }
    }
}

/// The highest bit rate of the segments that were fetched, in bits per second; 0 where none was. Section 4.4.6.2
/// counts those of half a target duration and more.
#[must_use]
pub fn peak_bps(text: &str, files: &BTreeMap<String, Fetched<'_>>) -> u64 {
    let view = View::of(text);
    let half_us = view.target_us().unwrap_or(0) / 2;
    let rates = view.segments.iter().filter_map(|segment| {
        let duration = segment.duration.filter(|duration| *duration >= half_us.max(1))?;
        match files.get(segment.uri)? {
            Fetched::Fragment(_, bytes) => bytes.checked_mul(8_000_000)?.checked_div(duration),
            _ => None,
        }
    });
    rates.max().unwrap_or(0)
}

/// Judges the bit rates that a multivariant playlist promises by the peaks that its playlists, by URI as it stands
/// there, really had.
#[must_use]
pub fn lint_bandwidth(multivariant: &str, peaks: &BTreeMap<String, u64>) -> Vec<Finding> {
    let mut findings = Findings::default();
    let lines = lines(multivariant);
    let beside = |group: &str| {
        let of_group = lines.iter().filter(|line| line.tag == "EXT-X-MEDIA").filter_map(|line| {
            let attributes = line.attributes();
            let is_of_group = attributes.get("GROUP-ID") == Some(group);
            attributes.get("URI").filter(|_| is_of_group).and_then(|uri| peaks.get(uri)).copied()
        });
        of_group.max().unwrap_or(0)
    };
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| line.tag == "EXT-X-STREAM-INF") {
        let attributes = line.attributes();
        let Some(bandwidth) = attributes.number("BANDWIDTH") else { continue };
        let Some(own) = lines.get(index + 1).and_then(|next| peaks.get(next.value)) else { continue };
        let peak = own.saturating_add(attributes.get("AUDIO").map_or(0, beside));
        if u128::from(peak) * 100 > u128::from(bandwidth) * 125 {
            let detail = format!("{peak} bit/s, and BANDWIDTH is {bandwidth}");
            findings.add(&BANDWIDTH_EXCEEDED, line.number, detail);
        }
    }
    findings.0
}
