//! Reads offers, and refuses what a WHIP publisher may not offer.

use super::codecs::{choose_formats, parameter};
use super::{EXTENSIONS, Kind, LAYERS_MAX, Offer, Refusal, SECTIONS_MAX, Section, value};

/// Payload types in a section. Chromium offers about 30.
const PAYLOAD_TYPES_MAX: usize = 96;
/// Bytes in one line. The longest that browsers send (fingerprints, fmtp) stay below 300.
const LINE_BYTES_MAX: usize = 2048;

impl Offer {
    /// Reads an offer and chooses the codecs.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let lines = split_lines(text)?;
        if lines.first().map(String::as_str) != Some("v=0") {
            return Err(Refusal::Malformed("the first line is not v=0"));
        }
        let bounds = read_bounds(&lines)?;
        let session = &lines[..bounds[0]];
        if !session.iter().any(|line| line.starts_with("o=")) {
            return Err(Refusal::Malformed("no origin line"));
        }
        let mut offer =
            Self { bounds, audio: None, video: None, ice: (String::new(), String::new()), lines: Vec::new() };
        let (mut mids, mut streams) = (Vec::new(), Vec::new());
        for index in 0..offer.bounds.len() - 1 {
            let section = &lines[offer.bounds[index]..offer.bounds[index + 1]];
            let Some(found) = read_section(index, session, section, &mut mids)? else { continue };
            let slot = if found.kind == Kind::Audio { &mut offer.audio } else { &mut offer.video };
            if slot.replace(found).is_some() {
                return Err(Refusal::Unacceptable("more than one audio or more than one video section"));
            }
            if offer.ice.0.is_empty() {
                offer.ice = read_ice(session, section)?;
            }
            check_dtls(session, section)?;
            streams.extend(section.iter().filter_map(|line| line.strip_prefix("a=msid:")?.split(' ').next()));
        }
        if streams.iter().any(|stream| *stream != streams[0]) {
            return Err(Refusal::Unacceptable("the tracks belong to more than one MediaStream"));
        }
        check_groups(session, &lines)?;
        if offer.audio.is_none() && offer.video.is_none() {
            return Err(Refusal::Unacceptable("neither audio nor video is offered"));
        }
        if offer.audio.is_some() && offer.video.is_some() && !is_bundled(session, &mids) {
            return Err(Refusal::Unacceptable("audio and video must be in one BUNDLE group"));
        }
        offer.lines = lines;
        Ok(offer)
    }
}

fn split_lines(text: &str) -> Result<Vec<String>, Refusal> {
    let mut lines = Vec::new();
    for line in text.lines() {
        let line = line.trim_end();
        if line.is_empty() {
            continue;
        }
        if line.len() > LINE_BYTES_MAX {
            return Err(Refusal::Malformed("a line is too long"));
        }
        let bytes = line.as_bytes();
        if bytes.len() < 2 || !bytes[0].is_ascii_lowercase() || bytes[1] != b'=' {
            return Err(Refusal::Malformed("a line is not of the form <letter>=<value>"));
        }
        if line.chars().any(char::is_control) {
            return Err(Refusal::Malformed("control characters"));
        }
        lines.push(line.to_owned());
    }
    Ok(lines)
}

/// Where each section starts, then the number of lines.
fn read_bounds(lines: &[String]) -> Result<Vec<usize>, Refusal> {
    let mut bounds: Vec<usize> =
        lines.iter().enumerate().filter(|(_, line)| line.starts_with("m=")).map(|(i, _)| i).collect();
    if bounds.is_empty() {
        return Err(Refusal::Malformed("no media section"));
    }
    if bounds.len() > SECTIONS_MAX {
        return Err(Refusal::Unacceptable("too many media sections"));
    }
    bounds.push(lines.len());
    Ok(bounds)
}

/// None for a section that the publisher has stopped.
fn read_section(
    index: usize,
    session: &[String],
    section: &[String],
    mids: &mut Vec<String>,
) -> Result<Option<Section>, Refusal> {
    let mut fields = section[0][2..].split(' ');
    let media = fields.next().unwrap_or("");
    let port: u16 = fields
        .next()
        .and_then(|port| port.parse().ok())
        .ok_or(Refusal::Malformed("a media section without a port"))?;
    let proto = fields.next().ok_or(Refusal::Malformed("a media section without a protocol"))?;
    let has = |line: &str| section.iter().any(|other| other == line);
    if port == 0 && !has("a=bundle-only") {
        return Ok(None);
    }
    let kind = match media {
        "audio" => Kind::Audio,
        "video" => Kind::Video,
        "application" => return Err(Refusal::Unacceptable("data channels are not taken")),
        _ => return Err(Refusal::Unacceptable("a media section that is neither audio nor video")),
    };
    if !matches!(proto, "UDP/TLS/RTP/SAVPF" | "TCP/TLS/RTP/SAVPF" | "RTP/SAVPF") {
        return Err(Refusal::Unacceptable("the transport is not UDP/TLS/RTP/SAVPF"));
    }
    check_direction(session, section)?;
    if !has("a=rtcp-mux") {
        return Err(Refusal::Unacceptable("rtcp-mux is required"));
    }
    let mid = value(section, "a=mid:").filter(|mid| !mid.is_empty() && mid.len() <= 64);
    let mid = mid.ok_or(Refusal::Unacceptable("a media section without a mid"))?;
    mids.push(mid.to_owned());
    let formats = choose_formats(kind, &read_payload_types(fields)?, section);
    if formats.is_empty() {
        return Err(Refusal::NoCodec(if kind == Kind::Audio { "audio" } else { "video" }));
    }
    let is_stereo = kind == Kind::Audio && {
        let has = |name: &str| parameter(&formats[0].fmtp, name) == Some("1");
        has("stereo") || has("sprop-stereo")
    };
    let (rids, extensions) = (read_rids(section)?, read_extensions(section));
    Ok(Some(Section { kind, index, formats, rids, extensions, is_stereo }))
}

/// A direction in the section counts more than the session's.
fn check_direction(session: &[String], section: &[String]) -> Result<(), Refusal> {
    let is_other = |line: &String| matches!(line.as_str(), "a=recvonly" | "a=inactive");
    let says_sending = section.iter().any(|line| matches!(line.as_str(), "a=sendonly" | "a=sendrecv"));
    if section.iter().any(is_other) || (!says_sending && session.iter().any(is_other)) {
        return Err(Refusal::Unacceptable("a publisher's sections are sendonly or sendrecv"));
    }
    Ok(())
}

fn read_payload_types<'a>(fields: impl Iterator<Item = &'a str>) -> Result<Vec<u8>, Refusal> {
    let payload_types: Vec<u8> = fields
        .map(str::parse)
        .collect::<Result<_, _>>()
        .map_err(|_| Refusal::Malformed("a payload type is not a number"))?;
    if payload_types.len() > PAYLOAD_TYPES_MAX || payload_types.iter().any(|payload_type| *payload_type > 127)
    {
        return Err(Refusal::Malformed("payload types out of range"));
    }
    Ok(payload_types)
}

/// The header extensions that we know: their numbers and names.
fn read_extensions(section: &[String]) -> Vec<(u8, &'static str)> {
    section
        .iter()
        .filter_map(|line| line.strip_prefix("a=extmap:"))
        .filter_map(|rest| {
            let mut fields = rest.split(' ');
            let number = fields.next()?.split('/').next()?.parse().ok().filter(|n| (1..=255).contains(n))?;
            let uri = fields.next()?;
            EXTENSIONS.iter().find(|known| **known == uri).map(|known| (number, *known))
        })
        .collect()
}

/// The simulcast layers in the order of the publisher's `a=simulcast:send`; alternatives are not taken.
fn read_rids(section: &[String]) -> Result<Vec<String>, Refusal> {
    let Some(simulcast) = value(section, "a=simulcast:") else { return Ok(Vec::new()) };
    let mut fields = simulcast.split(' ');
    while let Some(direction) = fields.next() {
        let list = fields.next().unwrap_or("");
        if direction != "send" {
            continue;
        }
        let mut rids = Vec::new();
        for layer in list.split(';') {
            let rid = layer.split(',').next().unwrap_or("").trim_start_matches('~');
            if rid.is_empty() || rid.len() > 16 || !rid.bytes().all(|b| b.is_ascii_alphanumeric()) {
                return Err(Refusal::Malformed("a simulcast layer's name"));
            }
            rids.push(rid.to_owned());
        }
        if rids.len() > LAYERS_MAX {
            return Err(Refusal::Unacceptable("too many simulcast layers"));
        }
        return Ok(rids);
    }
    Ok(Vec::new())
}

fn read_ice(session: &[String], section: &[String]) -> Result<(String, String), Refusal> {
    let find = |prefix| value(section, prefix).or_else(|| value(session, prefix));
    let (Some(ufrag), Some(pwd)) = (find("a=ice-ufrag:"), find("a=ice-pwd:")) else {
        return Err(Refusal::Unacceptable("no ICE user name fragment or password"));
    };
    check_ice(ufrag, pwd).map(|()| (ufrag.to_owned(), pwd.to_owned()))
}

/// RFC 8839, 5.4: 4 to 256 and 22 to 256 characters out of `ALPHA DIGIT + /`.
pub fn check_ice(ufrag: &str, pwd: &str) -> Result<(), Refusal> {
    let is_ice = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/');
    if (4..=256).contains(&ufrag.len()) && (22..=256).contains(&pwd.len()) && is_ice(ufrag) && is_ice(pwd) {
        Ok(())
    } else {
        Err(Refusal::Malformed("ICE user name fragment or password"))
    }
}

fn check_dtls(session: &[String], section: &[String]) -> Result<(), Refusal> {
    let find = |prefix| value(section, prefix).or_else(|| value(session, prefix));
    if find("a=fingerprint:").is_none() {
        return Err(Refusal::Unacceptable("no DTLS fingerprint"));
    }
    // We answer `passive` (RFC 9725, 4.4.4: the publisher offers actpass).
    match find("a=setup:") {
        Some("actpass" | "active") => Ok(()),
        _ => Err(Refusal::Unacceptable("the DTLS setup attribute must be actpass")),
    }
}

/// Cut off, or put together wrongly: browsers name just the sections that there are.
fn check_groups(session: &[String], lines: &[String]) -> Result<(), Refusal> {
    let has_mid = |mid: &str| lines.iter().any(|line| line.strip_prefix("a=mid:") == Some(mid));
    let mut groups = session.iter().filter_map(|line| line.strip_prefix("a=group:BUNDLE "));
    if groups.all(|group| group.split(' ').all(has_mid)) {
        Ok(())
    } else {
        Err(Refusal::Malformed("the BUNDLE group names a section that isn't there"))
    }
}

fn is_bundled(session: &[String], mids: &[String]) -> bool {
    session.iter().filter_map(|line| line.strip_prefix("a=group:BUNDLE ")).any(|group| {
        let group: Vec<&str> = group.split(' ').collect();
        mids.iter().all(|mid| group.contains(&mid.as_str()))
    })
}
