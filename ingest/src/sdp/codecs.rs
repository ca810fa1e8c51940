//! Which of the offered codecs are used.

use shoal_segmenter::frame::VideoCodec;

use super::{Codec, Format, Kind, value};

/// The formats of a section that will be used. One codec only, so that a publisher can't change it without an
/// offer; H.264 first, because it is passed through to every player, VP8 last, because it must be transcoded.
pub(super) fn choose_formats(kind: Kind, payload_types: &[u8], section: &[String]) -> Vec<Format> {
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

/// A parameter of a codec, as `a=fmtp:` has it.
pub(super) fn parameter<'a>(fmtp: &'a str, name: &str) -> Option<&'a str> {
    fmtp.split(';').find_map(|parameter| {
        let (key, value) = parameter.trim().split_once('=')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
