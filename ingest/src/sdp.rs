//! Reads offers and writes what of them is passed on to the WebRTC stack.
//!
//! Only what a WHIP endpoint decides by is looked at: media sections, codecs, directions, ICE and DTLS
//! parameters, simulcast. The stack never sees the offer itself but [`Offer::reduce`]d text: one video codec
//! with its retransmission format, one audio codec, the header extensions that we use, and no candidates. So
//! what a publisher writes into the rest of its offer reaches no parser but this one. SDP fragments of PATCH
//! requests are in `sdpfrag.rs`.

use std::fmt::Write as _;

use shoal_segmenter::frame::{TrackId, VideoCodec};

/// Sections in an offer. A WHIP offer has two; a few more leave room for stopped ones of a renegotiated
/// connection.
pub const SECTIONS_MAX: usize = 8;
/// Payload types in a section. Chromium offers about 30.
const PAYLOAD_TYPES_MAX: usize = 96;
/// Bytes in one line. The longest that browsers send (fingerprints, fmtp) stay below 300.
const LINE_BYTES_MAX: usize = 2048;
/// Layers that a publisher may send; more than browsers can.
pub const LAYERS_MAX: usize = 4;

/// The header extensions that we answer with. `urn:3gpp:video-orientation` is left out on purpose: a sender
/// that can't signal a rotation turns the pixels instead, and HLS has no way to carry it.
pub const EXTENSIONS: [&str; 4] = [MID_URI, RID_URI, REPAIRED_RID_URI, TRANSPORT_CC_URI];
/// Names the media section of a packet.
pub const MID_URI: &str = "urn:ietf:params:rtp-hdrext:sdes:mid";
/// Names the simulcast layer of a packet.
pub const RID_URI: &str = "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id";
/// Names the simulcast layer that a retransmission repairs.
pub const REPAIRED_RID_URI: &str = "urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id";
/// Numbers packets for congestion control.
pub const TRANSPORT_CC_URI: &str =
    "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01";

/// What we take, in words for a publisher that offers something else.
pub const CODECS_TAKEN: &str =
    "video: H264 (packetization-mode=1), VP9 (profile 0), AV1 (profile 0) or VP8; audio: opus/48000/2";

/// Why an offer is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It isn't SDP. 400.
    #[error("malformed SDP: {0}")]
    Malformed(&'static str),
    /// It is SDP, but nothing that a WHIP publisher may offer. 422.
    #[error("unacceptable offer: {0}")]
    Unacceptable(&'static str),
    /// A section has no codec that we can use. 406.
    #[error("no usable codec for {0}; taken are: {CODECS_TAKEN}")]
    NoCodec(&'static str),
}

/// Whether a section carries sound or pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `m=audio`.
    Audio,
    /// `m=video`.
    Video,
}

/// A codec of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// The one audio codec.
    Opus,
    /// A video codec.
    Video(VideoCodec),
}

/// A payload type of the offer that will be used, with its parameters as offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    /// The number on the wire.
    pub payload_type: u8,
    /// The codec.
    pub codec: Codec,
    /// The encoding's name as registered, e.g. `video/H264`.
    pub mime: &'static str,
    /// The format parameters as offered; empty when there are none.
    pub fmtp: String,
    /// The payload type of its retransmissions.
    pub rtx: Option<u8>,
}

/// A media section that is taken.
#[derive(Clone, Debug)]
pub struct Section {
    /// Sound or pictures.
    pub kind: Kind,
    /// Its position among the offer's sections.
    pub index: usize,
    /// What will be sent in it, best first: several H.264 profiles, or one of anything else.
    pub formats: Vec<Format>,
    /// The layers that the publisher announced, in its order; empty without simulcast.
    pub rids: Vec<String>,
    /// Header extensions that we know: their numbers and names.
    pub extensions: Vec<(u8, &'static str)>,
    /// Whether the publisher announced stereo sound.
    pub is_stereo: bool,
}

/// An offer that can be answered.
#[derive(Clone, Debug)]
pub struct Offer {
    lines: Vec<String>,
    /// Start of each section among `lines`, then the number of lines.
    bounds: Vec<usize>,
    /// At most one section of sound.
    pub audio: Option<Section>,
    /// At most one section of pictures.
    pub video: Option<Section>,
    /// The publisher's ICE user name fragment and password.
    pub ice: (String, String),
}

impl Offer {
    /// Reads an offer and chooses the codecs.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let lines = split_lines(text)?;
        if lines.first().map(String::as_str) != Some("v=0") {
            return Err(Refusal::Malformed("the first line is not v=0"));
        }
        let mut bounds: Vec<usize> =
            lines.iter().enumerate().filter(|(_, line)| line.starts_with("m=")).map(|(i, _)| i).collect();
        if bounds.is_empty() {
            return Err(Refusal::Malformed("no media section"));
        }
        if bounds.len() > SECTIONS_MAX {
            return Err(Refusal::Unacceptable("too many media sections"));
        }
        bounds.push(lines.len());
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
            read_dtls(session, section)?;
            streams.extend(section.iter().filter_map(|line| line.strip_prefix("a=msid:")?.split(' ').next()));
        }
        if streams.iter().any(|stream| *stream != streams[0]) {
            return Err(Refusal::Unacceptable("the tracks belong to more than one MediaStream"));
        }
        // Cut off, or put together wrongly: browsers name just the sections that there are.
        let has_mid = |mid: &str| lines.iter().any(|line| line.strip_prefix("a=mid:") == Some(mid));
        let mut groups = session.iter().filter_map(|line| line.strip_prefix("a=group:BUNDLE "));
        if !groups.all(|group| group.split(' ').all(has_mid)) {
            return Err(Refusal::Malformed("the BUNDLE group names a section that isn't there"));
        }
        if offer.audio.is_none() && offer.video.is_none() {
            return Err(Refusal::Unacceptable("neither audio nor video is offered"));
        }
        if offer.audio.is_some() && offer.video.is_some() && !is_bundled(session, &mids) {
            return Err(Refusal::Unacceptable("audio and video must be in one BUNDLE group"));
        }
        offer.lines = lines;
        Ok(offer)
    }

    /// The sections that are taken.
    pub fn sections(&self) -> impl Iterator<Item = &Section> {
        self.audio.iter().chain(&self.video)
    }

    /// The tracks that were announced: audio, then the video or its layers.
    pub fn tracks(&self) -> Vec<TrackId> {
        let layers = self.video.as_ref().map_or(0, |video| video.rids.len().max(1)) as u8;
        let first = if self.audio.is_some() { 0 } else { 1 };
        (first..=layers).map(TrackId).collect()
    }

    /// How many of them are VP8, which has to be transcoded.
    pub fn vp8_tracks(&self) -> usize {
        let is_vp8 = |video: &&Section| {
            video.formats.iter().any(|format| format.codec == Codec::Video(VideoCodec::Vp8))
        };
        self.video.as_ref().filter(is_vp8).map_or(0, |video| video.rids.len().max(1))
    }

    /// The offer as the WebRTC stack sees it, with the publisher's ICE parameters replaced when it restarts ICE.
    pub fn reduce(&self, restart: Option<(&str, &str)>) -> String {
        let mut out = String::new();
        for line in &self.lines[..self.bounds[0]] {
            self.copy_line(&mut out, line, None, restart);
        }
        for index in 0..self.bounds.len() - 1 {
            let section = self.sections().find(|section| section.index == index);
            for line in &self.lines[self.bounds[index]..self.bounds[index + 1]] {
                self.copy_line(&mut out, line, section, restart);
            }
        }
        out
    }

    fn copy_line(
        &self,
        out: &mut String,
        line: &str,
        section: Option<&Section>,
        restart: Option<(&str, &str)>,
    ) {
        if let Some((ufrag, pwd)) = restart {
            let replaced = match line {
                _ if line.starts_with("a=ice-ufrag:") => Some(format!("a=ice-ufrag:{ufrag}")),
                _ if line.starts_with("a=ice-pwd:") => Some(format!("a=ice-pwd:{pwd}")),
                _ => None,
            };
            if let Some(line) = replaced {
                push_line(out, &line);
                return;
            }
        }
        const DROPPED: [&str; 5] =
            ["a=candidate:", "a=end-of-candidates", "a=remote-candidates:", "a=extmap-allow-mixed", "b="];
        if DROPPED.iter().any(|prefix| line.starts_with(prefix)) {
            return;
        }
        let Some(section) = section else { return push_line(out, line) };
        if let Some(media) = line.strip_prefix("m=") {
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
            return push_line(out, &kept);
        }
        for prefix in ["a=rtpmap:", "a=fmtp:", "a=rtcp-fb:"] {
            if let Some(rest) = line.strip_prefix(prefix) {
                let payload_type = rest.split(' ').next().unwrap_or("");
                let is_kept = payload_type == "*"
                    || payload_type.parse().is_ok_and(|payload_type: u8| {
                        let of = |f: &Format| f.payload_type == payload_type || f.rtx == Some(payload_type);
                        section.formats.iter().any(of)
                    });
                if is_kept {
                    push_line(out, line);
                }
                return;
            }
        }
        if let Some(rest) = line.strip_prefix("a=extmap:") {
            if section.extensions.iter().any(|(_, uri)| rest.split(' ').nth(1) == Some(uri)) {
                push_line(out, line);
            }
            return;
        }
        if line == "a=bundle-only" || line == "a=sendrecv" {
            // We send nothing: what the publisher would also receive is not part of the answer.
            if line == "a=sendrecv" {
                push_line(out, "a=sendonly");
            }
            return;
        }
        push_line(out, line);
    }
}

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

/// The value of the first line that starts with `prefix`.
pub fn attribute<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.trim_end().strip_prefix(prefix))
}

fn push_line(out: &mut String, line: &str) {
    out.push_str(line);
    out.push_str("\r\n");
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
    let direction = |line: &str| matches!(line, "a=recvonly" | "a=inactive");
    let says_sending = has("a=sendonly") || has("a=sendrecv");
    if section.iter().any(|line| direction(line))
        || (!says_sending && session.iter().any(|line| direction(line)))
    {
        return Err(Refusal::Unacceptable("a publisher's sections are sendonly or sendrecv"));
    }
    if !has("a=rtcp-mux") {
        return Err(Refusal::Unacceptable("rtcp-mux is required"));
    }
    let mid = value(section, "a=mid:").filter(|mid| !mid.is_empty() && mid.len() <= 64);
    let mid = mid.ok_or(Refusal::Unacceptable("a media section without a mid"))?;
    mids.push(mid.to_owned());
    let payload_types: Vec<u8> = fields
        .map(str::parse)
        .collect::<Result<_, _>>()
        .map_err(|_| Refusal::Malformed("a payload type is not a number"))?;
    if payload_types.len() > PAYLOAD_TYPES_MAX || payload_types.iter().any(|payload_type| *payload_type > 127)
    {
        return Err(Refusal::Malformed("payload types out of range"));
    }
    let formats = choose_formats(kind, &payload_types, section);
    if formats.is_empty() {
        return Err(Refusal::NoCodec(if kind == Kind::Audio { "audio" } else { "video" }));
    }
    let is_stereo = kind == Kind::Audio && {
        let has = |name: &str| parameter(&formats[0].fmtp, name) == Some("1");
        has("stereo") || has("sprop-stereo")
    };
    let extensions = section
        .iter()
        .filter_map(|line| line.strip_prefix("a=extmap:"))
        .filter_map(|rest| {
            let mut fields = rest.split(' ');
            let number = fields.next()?.split('/').next()?.parse().ok().filter(|n| (1..=255).contains(n))?;
            let uri = fields.next()?;
            EXTENSIONS.iter().find(|known| **known == uri).map(|known| (number, *known))
        })
        .collect();
    Ok(Some(Section { kind, index, formats, rids: read_rids(section)?, extensions, is_stereo }))
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

/// The formats of a section that will be used. One codec only, so that a publisher can't change it without an
/// offer; H.264 first, because it is passed through to every player, VP8 last, because it must be transcoded.
fn choose_formats(kind: Kind, payload_types: &[u8], section: &[String]) -> Vec<Format> {
    let mut found: Vec<Format> = Vec::new();
    for payload_type in payload_types {
        let Some(map) = value(section, &format!("a=rtpmap:{payload_type} ")) else { continue };
        let fmtp = value(section, &format!("a=fmtp:{payload_type} ")).unwrap_or("");
        let Some((codec, mime)) = recognise(kind, map, fmtp) else { continue };
        let rtx = payload_types.iter().copied().find(|rtx| {
            let is_rtx = value(section, &format!("a=rtpmap:{rtx} "))
                .is_some_and(|map| map.eq_ignore_ascii_case("rtx/90000"));
            let apt = value(section, &format!("a=fmtp:{rtx} ")).and_then(|fmtp| parameter(fmtp, "apt"));
            is_rtx && apt.is_some_and(|apt| apt.parse() == Ok(*payload_type))
        });
        found.push(Format { payload_type: *payload_type, codec, mime, fmtp: fmtp.to_owned(), rtx });
    }
    const PREFERENCE: [Codec; 5] = [
        Codec::Opus,
        Codec::Video(VideoCodec::H264),
        Codec::Video(VideoCodec::Vp9),
        Codec::Video(VideoCodec::Av1),
        Codec::Video(VideoCodec::Vp8),
    ];
    let chosen = PREFERENCE.iter().find(|codec| found.iter().any(|format| format.codec == **codec));
    found.retain(|format| Some(&format.codec) == chosen);
    if !matches!(chosen, Some(Codec::Video(VideoCodec::H264))) {
        found.truncate(1);
    }
    found
}

fn recognise(kind: Kind, map: &str, fmtp: &str) -> Option<(Codec, &'static str)> {
    let map = map.to_ascii_lowercase();
    let is_profile_0 = |name| parameter(fmtp, name).is_none_or(|profile| profile == "0");
    match (kind, map.as_str()) {
        (Kind::Audio, "opus/48000/2") => Some((Codec::Opus, "audio/opus")),
        // Other profiles than baseline, main and high (4:2:0, 8 bits) play nowhere; mode 0 has no large frames.
        (Kind::Video, "h264/90000") if parameter(fmtp, "packetization-mode") == Some("1") => {
            let profile = parameter(fmtp, "profile-level-id").unwrap_or("42000a");
            matches!(profile.get(..2).map(str::to_ascii_lowercase).as_deref(), Some("42" | "4d" | "64"))
                .then_some((Codec::Video(VideoCodec::H264), "video/H264"))
        }
        (Kind::Video, "vp9/90000") if is_profile_0("profile-id") => {
            Some((Codec::Video(VideoCodec::Vp9), "video/VP9"))
        }
        (Kind::Video, "av1/90000") if is_profile_0("profile") => {
            Some((Codec::Video(VideoCodec::Av1), "video/AV1"))
        }
        (Kind::Video, "vp8/90000") => Some((Codec::Video(VideoCodec::Vp8), "video/VP8")),
        _ => None,
    }
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

fn read_dtls(session: &[String], section: &[String]) -> Result<(), Refusal> {
    let find = |prefix| value(section, prefix).or_else(|| value(session, prefix));
    if find("a=fingerprint:").is_none() {
        return Err(Refusal::Unacceptable("no DTLS fingerprint"));
    }
    // We answer `passive` (RFC 9725, 4.4.2: the publisher offers actpass).
    match find("a=setup:") {
        Some("actpass" | "active") => Ok(()),
        _ => Err(Refusal::Unacceptable("the DTLS setup attribute must be actpass")),
    }
}

fn is_bundled(session: &[String], mids: &[String]) -> bool {
    session.iter().filter_map(|line| line.strip_prefix("a=group:BUNDLE ")).any(|group| {
        let group: Vec<&str> = group.split(' ').collect();
        mids.iter().all(|mid| group.contains(&mid.as_str()))
    })
}

fn value<'a>(lines: &'a [String], prefix: &str) -> Option<&'a str> {
    lines.iter().find_map(|line| line.strip_prefix(prefix))
}

fn parameter<'a>(fmtp: &'a str, name: &str) -> Option<&'a str> {
    fmtp.split(';').find_map(|parameter| {
        let (key, value) = parameter.trim().split_once('=')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OFFER: &str = include_str!("../tests/support/chromium-offer.sdp");

    #[test]
    fn h264_is_preferred_and_keeps_its_profiles_and_retransmissions() {
        let offer = Offer::parse(OFFER).unwrap();
        let formats = &offer.video.as_ref().unwrap().formats;
        let numbers: Vec<(u8, Option<u8>)> = formats.iter().map(|f| (f.payload_type, f.rtx)).collect();
        assert_eq!(numbers, [(102, Some(103)), (106, Some(107)), (108, Some(109))], "mode 0 is left out");
        assert_eq!(offer.tracks(), [TrackId(0), TrackId(1)]);
    }

    #[test]
    fn without_h264_the_next_best_codec_is_taken_alone() {
        let mut text = OFFER.replace("H264/90000", "H265/90000");
        for (codec, number) in [("VP9", 98), ("AV1", 45), ("VP8", 96)] {
            let offer = Offer::parse(&text).unwrap();
            let formats = &offer.video.as_ref().unwrap().formats;
            assert_eq!((formats.len(), formats[0].payload_type), (1, number), "{codec}");
            text = text.replace(&format!("{codec}/90000"), "H265/90000");
        }
        assert_eq!(Offer::parse(&text).unwrap_err(), Refusal::NoCodec("video"));
    }

    #[test]
    fn the_stack_sees_no_candidates_no_other_codecs_and_no_other_extensions() {
        let reduced = Offer::parse(OFFER).unwrap().reduce(None);
        for absent in ["a=candidate", ".local", "VP8", "PCMU", "ulpfec", "video-orientation", "playout-delay"]
        {
            assert!(!reduced.contains(absent), "{absent} in\n{reduced}");
        }
        assert!(reduced.contains("m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n"), "{reduced}");
        assert!(reduced.contains("m=video 9 UDP/TLS/RTP/SAVPF 102 103 106 107 108 109\r\n"), "{reduced}");
        assert!(reduced.contains("a=ssrc-group:FID 2222 3333"), "{reduced}");
        let again = Offer::parse(&reduced).unwrap();
        assert_eq!(again.reduce(None), reduced, "reducing twice changes nothing");
    }

    #[test]
    fn a_restart_replaces_the_ice_parameters_everywhere() {
        let offer = Offer::parse(OFFER).unwrap();
        let restarted = offer.reduce(Some(("ysXw", "vw5LmwG4y/e6dPP/zAP9Gp5k")));
        assert_eq!(restarted.matches("a=ice-ufrag:ysXw").count(), 2);
        assert!(!restarted.contains("5wlI"));
    }

    #[test]
    fn layers_are_read_in_the_publishers_order() {
        let text = OFFER.replace("a=mid:1", "a=mid:1\r\na=simulcast:send h,x;~m;l recv r");
        let offer = Offer::parse(&text).unwrap();
        assert_eq!(offer.video.as_ref().unwrap().rids, ["h", "m", "l"]);
        assert_eq!(offer.tracks().len(), 4);
        let many = OFFER.replace("a=mid:1", "a=mid:1\r\na=simulcast:send a;b;c;d;e");
        assert!(matches!(Offer::parse(&many), Err(Refusal::Unacceptable(_))));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in "([a-z]=[ -~]{0,60}\r\n|\\PC{0,40}\n){0,20}") {
            let _ = Offer::parse(&text);
        }

        /// Real offers with lines lost, doubled, swapped and damaged get further than noise does; what is accepted
        /// can be reduced, and the result is an offer again.
        #[test]
        fn damaged_offers_never_panic(
            edits in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..4, any::<u8>()), 1..8),
        ) {
            let mut lines: Vec<String> = OFFER.lines().map(str::to_owned).collect();
            for (index, kind, byte) in edits {
                let index = index.index(lines.len());
                match kind {
                    0 => { lines.remove(index); }
                    1 => { let line = lines[index].clone(); lines.insert(index, line); }
                    2 => { let last = lines.len() - 1; lines.swap(index, last); }
                    _ => {
                        let at = usize::from(byte) % (lines[index].len() + 1);
                        lines[index].insert(at, char::from(byte & 0x7f));
                    }
                }
            }
            if let Ok(offer) = Offer::parse(&lines.join("\r\n")) {
                let reduced = offer.reduce(None);
                prop_assert!(Offer::parse(&reduced).is_ok(), "{reduced}");
            }
        }
    }
}
