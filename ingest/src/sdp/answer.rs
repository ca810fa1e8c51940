//! Writes what a publisher is answered: the stack's answer, finished, and the fragment that answers a restart.

use super::{Kind, Offer, push_line, value};

/// Finishes the stack's answer: our candidates in the first section that is taken, and only there, and stereo
/// sound asked for when the publisher has it.
pub fn finish_answer(answer: &str, candidates: &[String], offer: &Offer) -> String {
    let first = offer.sections().map(|section| section.index).min().unwrap_or(0);
    let mut out = String::new();
    let mut section: Option<usize> = None;
    let finish = |out: &mut String, section: Option<usize>| {
        if section == Some(first) {
            for candidate in candidates {
                push_line(out, &format!("a={candidate}"));
            }
            push_line(out, "a=end-of-candidates");
        }
    };
    for line in answer.lines().filter(|line| !line.is_empty()) {
        if line.starts_with("a=candidate:") || line == "a=end-of-candidates" {
            continue;
        }
        if line.starts_with("m=") {
            finish(&mut out, section);
            section = Some(section.map_or(0, |index| index + 1));
        }
        let stereo = offer.audio.as_ref().filter(|audio| audio.is_stereo && section == Some(audio.index));
        if let (Some(_), Some(rest)) = (stereo, line.strip_prefix("a=fmtp:"))
            && !rest.contains("stereo=1")
        {
            push_line(&mut out, &format!("{line};stereo=1"));
            continue;
        }
        push_line(&mut out, line);
        // RFC 9725, 4.4.1
        if line == "a=rtcp-mux" && !answer.contains("a=rtcp-mux-only") {
            push_line(&mut out, "a=rtcp-mux-only");
        }
    }
    finish(&mut out, section);
    out
}

/// The lines before the ICE parameters in a fragment that answers a restart (RFC 8840, 4.1): the answer's ICE options,
/// which must stay the same (RFC 9725, 4.3.3), the bundle and the section that stands for it.
pub fn fragment_head(offer: &Offer, answer: &str) -> String {
    let mut out = String::new();
    for prefix in ["a=ice-lite", "a=ice-options:"] {
        if let Some(line) = answer.lines().find(|line| line.starts_with(prefix)) {
            push_line(&mut out, line);
        }
    }
    let group = offer.lines[..offer.bounds[0]].iter().find(|line| line.starts_with("a=group:BUNDLE "));
    if let Some(group) = group {
        push_line(&mut out, group);
    }
    if let Some(section) = offer.sections().min_by_key(|section| section.index) {
        let lines = &offer.lines[offer.bounds[section.index]..offer.bounds[section.index + 1]];
        let name = if section.kind == Kind::Audio { "audio" } else { "video" };
        let format = section.formats.first().map_or(0, |format| format.payload_type);
        push_line(&mut out, &format!("m={name} 9 UDP/TLS/RTP/SAVPF {format}"));
        if let Some(mid) = value(lines, "a=mid:") {
            push_line(&mut out, &format!("a=mid:{mid}"));
        }
    }
    out
}
