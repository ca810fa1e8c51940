//! Rules of the multivariant playlist.

use super::lines::lines;
use super::rules::*;
use super::{Finding, Findings};

/// Judges a multivariant playlist.
#[must_use]
pub fn lint_multivariant(text: &str) -> Vec<Finding> {
    let mut findings = Findings::default();
    let first = text.lines().next().unwrap_or("");
    if first.trim_end() != "#EXTM3U" {
        findings.add(&HEADER, 1, format!("the first line is {first:?}"));
    }
    let lines = lines(text);
    if !lines.iter().any(|line| line.tag == "EXT-X-INDEPENDENT-SEGMENTS") {
        findings.add(&NO_INDEPENDENT, 0, "there is no EXT-X-INDEPENDENT-SEGMENTS");
    }
    let mut groups = Vec::new();
    for line in lines.iter().filter(|line| line.tag == "EXT-X-MEDIA") {
        let attributes = line.attributes();
        if attributes.get("TYPE") == Some("AUDIO") {
            groups.extend(attributes.get("GROUP-ID"));
            if attributes.get("LANGUAGE").is_none() {
                findings.add(&NO_LANGUAGE, line.number, "LANGUAGE is missing");
            }
        }
    }
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| line.tag == "EXT-X-STREAM-INF") {
        if lines.get(index + 1).is_none_or(|next| !next.tag.is_empty()) {
            findings.add(&NO_VARIANT, line.number, "no URI follows");
        }
        let attributes = line.attributes();
        if attributes.number("BANDWIDTH").is_none() {
            findings.add(&NO_BANDWIDTH, line.number, "BANDWIDTH is missing");
        }
        if attributes.number("AVERAGE-BANDWIDTH").is_none() {
            findings.add(&NO_AVERAGE, line.number, "AVERAGE-BANDWIDTH is missing");
        }
        let codecs = attributes.get("CODECS");
        if codecs.is_none_or(str::is_empty) {
            findings.add(&NO_CODECS, line.number, "CODECS is missing");
        }
        let is_audio_codec = |codec: &str| {
            ["mp4a", "opus", "Opus", "ac-3", "ec-3", "fLaC"].iter().any(|a| codec.trim().starts_with(a))
        };
        let is_video = codecs.is_none_or(|codecs| !codecs.split(',').all(is_audio_codec));
        if is_video && attributes.get("RESOLUTION").is_none() {
            findings.add(&NO_RESOLUTION, line.number, "RESOLUTION is missing");
        }
        if is_video && attributes.get("FRAME-RATE").is_none() {
            findings.add(&NO_FRAME_RATE, line.number, "FRAME-RATE is missing");
        }
        if let Some(group) = attributes.get("AUDIO").filter(|group| !groups.contains(group)) {
            findings.add(&NO_GROUP, line.number, format!("there is no group {group:?}"));
        }
    }
    findings.0
}
