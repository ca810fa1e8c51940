//! The multivariant playlist: which renditions there are.

use crate::media::line;

/// A multivariant playlist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MultivariantPlaylist {
    /// `EXT-X-VERSION`.
    pub version: u32,
    /// Whether every segment of every rendition starts with a frame at which decoding can start.
    pub has_independent_segments: bool,
    /// `EXT-X-SESSION-DATA`.
    pub session_data: Vec<SessionData>,
    /// `EXT-X-MEDIA` of type AUDIO.
    pub audio: Vec<AudioRendition>,
    /// `EXT-X-STREAM-INF`, best first: players that measure nothing start with the first.
    pub variants: Vec<Variant>,
}

/// `EXT-X-SESSION-DATA` with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionData {
    /// `DATA-ID`.
    pub id: String,
    /// `VALUE`.
    pub value: String,
}

/// An audio rendition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AudioRendition {
    /// `GROUP-ID`: renditions of another codec are in a group of their own.
    pub group: String,
    /// What a menu shows.
    pub name: String,
    /// `LANGUAGE`, a BCP 47 tag.
    pub language: Option<String>,
    /// Whether it plays when nobody chose.
    pub is_default: bool,
    /// `CHANNELS`.
    pub channels: u8,
    /// The playlist's URI, relative to this one.
    pub uri: String,
}

/// A variant stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variant {
    /// The peak of the segments' bit rates, all renditions played together, in bits per second.
    pub bandwidth: u64,
    /// The mean of them.
    pub average_bandwidth: u64,
    /// The RFC 6381 names of all codecs played together.
    pub codecs: Vec<String>,
    /// Width and height in pixels; none for audio.
    pub resolution: Option<(u32, u32)>,
    /// Thousandths of a frame per second; none for audio.
    pub frame_rate_milli: Option<u64>,
    /// The group of audio renditions that plays beside it.
    pub audio_group: Option<String>,
    /// The playlist's URI, relative to this one.
    pub uri: String,
}

impl MultivariantPlaylist {
    /// The playlist's text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        line(&mut out, format_args!("#EXTM3U"));
        line(&mut out, format_args!("#EXT-X-VERSION:{}", self.version));
        if self.has_independent_segments {
            line(&mut out, format_args!("#EXT-X-INDEPENDENT-SEGMENTS"));
        }
        for SessionData { id, value } in &self.session_data {
            line(&mut out, format_args!("#EXT-X-SESSION-DATA:DATA-ID=\"{id}\",VALUE=\"{value}\""));
        }
        for audio in &self.audio {
            let language =
                audio.language.as_ref().map(|tag| format!(",LANGUAGE=\"{tag}\"")).unwrap_or_default();
            let default = if audio.is_default { "YES" } else { "NO" };
            line(
                &mut out,
                format_args!(
                    "#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"{}\",NAME=\"{}\"{language},DEFAULT={default},AUTOSELECT=YES,\
                     CHANNELS=\"{}\",URI=\"{}\"",
                    audio.group, audio.name, audio.channels, audio.uri
                ),
            );
        }
        for variant in &self.variants {
            variant.render(&mut out);
        }
        out
    }
}

impl Variant {
    fn render(&self, out: &mut String) {
        let mut text = format!("BANDWIDTH={},AVERAGE-BANDWIDTH={}", self.bandwidth, self.average_bandwidth);
        text += &format!(",CODECS=\"{}\"", self.codecs.join(","));
        if let Some((width, height)) = self.resolution {
            text += &format!(",RESOLUTION={width}x{height}");
        }
        if let Some(rate) = self.frame_rate_milli {
            text += &format!(",FRAME-RATE={}.{:03}", rate / 1000, rate % 1000);
        }
        if let Some(group) = &self.audio_group {
            text += &format!(",AUDIO=\"{group}\"");
        }
        line(out, format_args!("#EXT-X-STREAM-INF:{text}"));
        line(out, format_args!("{}", self.uri));
    }
}
