//! Writes an offer anew for the WebRTC stack.

use std::fmt::Write as _;

use super::{Format, Offer, Section, push_line};

impl Offer {
    /// The offer as the WebRTC stack sees it, with the publisher's ICE parameters replaced when it restarts ICE.
    pub fn reduce(&self, restart: Option<(&str, &str)>) -> String {
        let mut out = String::new();
        for line in &self.lines[..self.bounds[0]] {
            copy_line(&mut out, line, None, restart);
        }
        for index in 0..self.bounds.len() - 1 {
            let section = self.sections().find(|section| section.index == index);
            for line in &self.lines[self.bounds[index]..self.bounds[index + 1]] {
                copy_line(&mut out, line, section, restart);
            }
        }
        out
    }
}

fn copy_line(out: &mut String, line: &str, section: Option<&Section>, restart: Option<(&str, &str)>) {
    if let Some((ufrag, pwd)) = restart {
        if line.starts_with("a=ice-ufrag:") {
            return push_line(out, &format!("a=ice-ufrag:{ufrag}"));
        }
        if line.starts_with("a=ice-pwd:") {
            return push_line(out, &format!("a=ice-pwd:{pwd}"));
        }
    }
    const DROPPED: [&str; 5] =
        ["a=candidate:", "a=end-of-candidates", "a=remote-candidates:", "a=extmap-allow-mixed", "b="];
    if DROPPED.iter().any(|prefix| line.starts_with(prefix)) {
        return;
    }
    let Some(section) = section else { return push_line(out, line) };
    if let Some(media) = line.strip_prefix("m=") {
        return push_line(out, &media_line(media, section));
    }
    match line {
        "a=bundle-only" => {}
        // We send nothing: what the publisher would also receive is not part of the answer.
        "a=sendrecv" => push_line(out, "a=sendonly"),
        _ if is_used(line, section) => push_line(out, line),
        _ => {}
    }
}

/// The first line of a section, with the payload types that will be used.
fn media_line(media: &str, section: &Section) -> String {
    let mut fields = media.split(' ');
    let (name, port, proto) = (fields.next(), fields.next(), fields.next());
    // A section that is only good inside the bundle says port 0, which the stack takes for a refusal.
    let port = port.filter(|port| *port != "0").unwrap_or("9");
    let mut kept = format!("m={} {port} {}", name.unwrap_or(""), proto.unwrap_or(""));
    for format in &section.formats {
        let _ = write!(kept, " {}", format.payload_type);
        if let Some(rtx) = format.rtx {
            let _ = write!(kept, " {rtx}");
        }
    }
    kept
}

/// Not if the line is about a payload type or a header extension that won't be used.
fn is_used(line: &str, section: &Section) -> bool {
    for prefix in ["a=rtpmap:", "a=fmtp:", "a=rtcp-fb:"] {
        if let Some(rest) = line.strip_prefix(prefix) {
            let payload_type = rest.split(' ').next().unwrap_or("");
            return payload_type == "*"
                || payload_type.parse().is_ok_and(|payload_type: u8| {
                    let of = |f: &Format| f.payload_type == payload_type || f.rtx == Some(payload_type);
                    section.formats.iter().any(of)
                });
        }
    }
    match line.strip_prefix("a=extmap:") {
        Some(rest) => section.extensions.iter().any(|(_, uri)| rest.split(' ').nth(1) == Some(uri)),
        None => true,
    }
}
