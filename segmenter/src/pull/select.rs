//! Which renditions of an upstream are pulled. Pure.

use m3u8_rs::{AlternativeMedia, AlternativeMediaType, MasterPlaylist, VariantStream};

/// What is pulled, by URIs in the multivariant playlist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// Videos, best first; or a single audio rendition where there is no video.
    pub(super) variants: Vec<Chosen>,
    /// The audio beside the videos, where it is a rendition of its own.
    pub(super) audio: Option<String>,
}

/// A variant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) uri: String,
    /// Thousandths of a frame per second; 0 where it is not said.
    pub(super) frame_rate_milli: u64,
}

/// Chooses from a multivariant playlist; none where the text is a media playlist.
///
/// Videos of one codec, so that a player can switch among all of them without a break: H.264 where there is some,
/// because everything plays it, or else the first variant's. `max` of them: the best, the smallest, and some between.
pub(super) fn choose(text: &str, max: usize) -> Result<Option<Choice>, String> {
    if !text.starts_with("#EXTM3U") {
        return Err("this is no playlist: its first line is not #EXTM3U".to_owned());
    }
    if text.lines().any(|line| line.starts_with("#EXT-X-DEFINE:")) {
        return Err("playlists with variables (EXT-X-DEFINE) cannot be pulled".to_owned());
    }
    let is_multivariant = text.lines().any(|line| line.starts_with("#EXT-X-STREAM-INF:"));
    if !is_multivariant {
        return Ok(None);
    }
    let playlist = m3u8_rs::parse_master_playlist_res(text.as_bytes())
        .map_err(|_| "its multivariant playlist cannot be read".to_owned())?;
    let mut variants: Vec<&VariantStream> =
        playlist.variants.iter().filter(|variant| !variant.is_i_frame && !variant.uri.is_empty()).collect();
    let has_video = variants.iter().any(|variant| family(variant).is_some());
    if has_video {
        let families: Vec<&str> = variants.iter().filter_map(|variant| family(variant)).collect();
        let wanted = if families.contains(&"avc") { "avc" } else { families[0] };
        variants.retain(|variant| family(variant) == Some(wanted));
    }
    // Best first; of those with the same URI, or that differ in their sound only, the first.
    variants.sort_by_key(|variant| std::cmp::Reverse(variant.bandwidth));
    let Some(best) = variants.first().copied() else {
        return Err("its multivariant playlist names no variant".to_owned());
    };
    let mut kept: Vec<&VariantStream> = Vec::new();
    for variant in variants {
        let is_twin = |other: &&VariantStream| {
            other.uri == variant.uri || (other.audio != variant.audio && is_same_picture(other, variant))
        };
        if !kept.iter().any(is_twin) {
            kept.push(variant);
        }
    }
    if !has_video {
        kept.truncate(1);
    }
    let audio = best.audio.as_deref().filter(|_| has_video).and_then(|group| audio(&playlist, group));
    Ok(Some(Choice {
        variants: spread(kept.len(), max).into_iter().map(|index| chosen(kept[index])).collect(),
        audio: audio.and_then(|audio| audio.uri.clone()),
    }))
}

fn chosen(variant: &VariantStream) -> Chosen {
    let rate = variant.frame_rate.filter(|rate| (0.0..1000.0).contains(rate)).unwrap_or(0.0);
    Chosen { uri: variant.uri.clone(), frame_rate_milli: (rate * 1000.0).round() as u64 }
}

/// `max` of `count` indices: the first, the last, and some between.
fn spread(count: usize, max: usize) -> Vec<usize> {
    match (count, max) {
        (count, max) if count <= max => (0..count).collect(),
        (_, 0 | 1) => vec![0],
        (count, max) => (0..max).map(|index| index * (count - 1) / (max - 1)).collect(),
    }
}

/// The codec of a variant's picture; none where it has none. Without CODECS it is taken to have the usual one.
fn family(variant: &VariantStream) -> Option<&str> {
    let Some(codecs) = variant.codecs.as_deref() else { return Some("avc") };
    let of = |codec: &str| match codec.trim().get(..4)? {
        "avc1" | "avc3" => Some("avc"),
        "hvc1" | "hev1" => Some("hevc"),
        "dvh1" | "dvhe" => Some("dolby vision"),
        "av01" => Some("av1"),
        "vp09" => Some("vp9"),
        _ => None,
    };
    let found = codecs.split(',').find_map(of);
    // A codec that we do not know has a picture if it has a size.
    found.or(variant.resolution.is_some().then_some("other"))
}

fn is_same_picture(one: &VariantStream, other: &VariantStream) -> bool {
    let size = |variant: &VariantStream| variant.resolution.map(|size| (size.width, size.height));
    let picture = |variant: &VariantStream| {
        let codecs = variant.codecs.as_deref().unwrap_or("");
        codecs.split(',').next().unwrap_or("").trim().to_owned()
    };
    size(one).is_some() && size(one) == size(other) && picture(one) == picture(other)
}

/// The group's default audio, or its first.
fn audio<'a>(playlist: &'a MasterPlaylist, group: &str) -> Option<&'a AlternativeMedia> {
    let is_of = |media: &&AlternativeMedia| {
        media.media_type == AlternativeMediaType::Audio && media.group_id == group
    };
    let of_group = || playlist.alternatives.iter().filter(is_of);
    of_group().find(|media| media.default).or_else(|| of_group().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen_of(lines: &str, max: usize) -> (Vec<String>, Option<String>) {
        let choice = choose(&format!("#EXTM3U\n{lines}"), max).unwrap().expect("a multivariant playlist");
        (choice.variants.into_iter().map(|chosen| chosen.uri).collect(), choice.audio)
    }

    #[test]
    fn all_variants_of_one_codec_are_taken_best_first_with_the_default_audio() {
        let (variants, audio) = chosen_of(
            "#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"a\",NAME=\"en\",URI=\"en.m3u8\"\n\
             #EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"a\",NAME=\"de\",DEFAULT=YES,URI=\"de.m3u8\"\n\
             #EXT-X-STREAM-INF:BANDWIDTH=1000,CODECS=\"avc1.4d401f,mp4a.40.2\",RESOLUTION=640x360,AUDIO=\"a\"\nlow.m3u8\n\
             #EXT-X-STREAM-INF:BANDWIDTH=5000,CODECS=\"hvc1.1.6.L93.B0,mp4a.40.2\",RESOLUTION=1920x1080,AUDIO=\"a\"\nhevc.m3u8\n\
             #EXT-X-STREAM-INF:BANDWIDTH=3000,CODECS=\"avc1.4d401f,mp4a.40.2\",RESOLUTION=1280x720,FRAME-RATE=29.97,AUDIO=\"a\"\nhigh.m3u8\n\
             #EXT-X-STREAM-INF:BANDWIDTH=100,CODECS=\"mp4a.40.2\",AUDIO=\"a\"\nsound.m3u8\n\
             #EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=50,CODECS=\"avc1.4d401f\",URI=\"iframes.m3u8\"\n",
            6,
        );
        assert_eq!(variants, ["high.m3u8", "low.m3u8"]);
        assert_eq!(audio.as_deref(), Some("de.m3u8"));
    }

    #[test]
    fn variants_that_differ_in_their_sound_only_are_one() {
        let (variants, _) = chosen_of(
            "#EXT-X-STREAM-INF:BANDWIDTH=3100,CODECS=\"avc1.4d401f,ec-3\",RESOLUTION=1280x720,AUDIO=\"b\"\nsurround.m3u8\n\
             #EXT-X-STREAM-INF:BANDWIDTH=3000,CODECS=\"avc1.4d401f,mp4a.40.2\",RESOLUTION=1280x720,AUDIO=\"a\"\nstereo.m3u8\n",
            6,
        );
        assert_eq!(variants, ["surround.m3u8"]);
    }

    #[test]
    fn limit_keeps_the_best_and_the_smallest() {
        let lines: String = (1..=9)
            .map(|n| format!("#EXT-X-STREAM-INF:BANDWIDTH={n}000,CODECS=\"avc1.4d401f\",RESOLUTION={n}00x100\n{n}.m3u8\n"))
            .collect();
        assert_eq!(chosen_of(&lines, 3).0, ["9.m3u8", "5.m3u8", "1.m3u8"]);
        assert_eq!(chosen_of(&lines, 1).0, ["9.m3u8"]);
    }

    #[test]
    fn sound_alone_is_one_rendition() {
        let (variants, audio) = chosen_of(
            "#EXT-X-STREAM-INF:BANDWIDTH=64000,CODECS=\"mp4a.40.2\"\nlow.m3u8\n\
             #EXT-X-STREAM-INF:BANDWIDTH=128000,CODECS=\"mp4a.40.2\"\nhigh.m3u8\n",
            6,
        );
        assert_eq!((variants, audio), (vec!["high.m3u8".to_owned()], None));
    }

    #[test]
    fn other_texts_are_told_apart() {
        assert_eq!(choose("#EXTM3U\n#EXTINF:2,\nseg.m4s\n", 6), Ok(None));
        assert!(choose("<html>", 6).unwrap_err().contains("no playlist"));
        assert!(choose("#EXTM3U\n#EXT-X-DEFINE:NAME=\"a\",VALUE=\"b\"\n", 6).unwrap_err().contains("DEFINE"));
        assert!(choose("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=x\n\n", 6).is_err());
    }
}
