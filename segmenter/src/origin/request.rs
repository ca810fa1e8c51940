//! What a URL asks for: file names of media, and the delivery directives of playlists. Pure.

/// A media file of a rendition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MediaFile {
    pub(crate) kind: MediaKind,
    /// Whether its digest records are meant, not itself.
    pub(crate) is_digest: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MediaKind {
    Init(u32),
    Segment(u64),
    Part(u64, u64),
}

impl MediaFile {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (name, is_digest) = match name.strip_suffix(".digest") {
            Some(rest) => (rest, true),
            None => (name, false),
        };
        let kind = if let Some(number) = name.strip_prefix("init-").and_then(|rest| rest.strip_suffix(".mp4"))
        {
            MediaKind::Init(number.parse().ok()?)
        } else {
            let name = name.strip_suffix(".m4s")?;
            if let Some(msn) = name.strip_prefix("seg-") {
                MediaKind::Segment(digits(msn)?)
            } else {
                let (msn, part) = name.strip_prefix("part-")?.split_once('-')?;
                MediaKind::Part(digits(msn)?, digits(part)?)
            }
        };
        let has_digest = !matches!(kind, MediaKind::Init(_));
        (has_digest || !is_digest).then_some(Self { kind, is_digest })
    }
}

/// A number as we write it: each resource has one URL, or caches would hold it twice.
fn digits(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// The delivery directives of a playlist request (section 6.2.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Directives {
    pub(crate) msn: Option<u64>,
    pub(crate) part: Option<u64>,
    pub(crate) wants_delta: bool,
}

/// The directives contradict each other or are not numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadDirectives;

impl Directives {
    /// Reads a query string. Parameters that are not directives are the embedder's (tokens) and passed over.
    pub(crate) fn parse(query: &str) -> Result<Self, BadDirectives> {
        let mut directives = Self::default();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "_HLS_msn" => directives.msn = Some(value.parse().map_err(|_| BadDirectives)?),
                "_HLS_part" => directives.part = Some(value.parse().map_err(|_| BadDirectives)?),
                "_HLS_skip" => directives.wants_delta = matches!(value, "YES" | "v2"),
                _ => {}
            }
        }
        if directives.part.is_some() && directives.msn.is_none() {
            Err(BadDirectives)
        } else {
            Ok(directives)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn file_names_have_one_meaning_and_one_spelling() {
        let file = |kind, is_digest| Some(MediaFile { kind, is_digest });
        for (name, expected) in [
            ("init-0.mp4", file(MediaKind::Init(0), false)),
            ("seg-12.m4s", file(MediaKind::Segment(12), false)),
            ("part-12-3.m4s", file(MediaKind::Part(12, 3), false)),
            ("part-12-3.m4s.digest", file(MediaKind::Part(12, 3), true)),
            ("seg-12.m4s.digest", file(MediaKind::Segment(12), true)),
            ("init-0.mp4.digest", None),
            ("seg-012.m4s", None),
            ("seg-+1.m4s", None),
            ("seg-.m4s", None),
            ("part-1.m4s", None),
            ("seg-99999999999999999999.m4s", None),
            ("../init-0.mp4", None),
        ] {
            assert_eq!(MediaFile::parse(name), expected, "{name}");
        }
    }

    #[test]
    fn directives_are_read_and_the_rest_is_passed_over() {
        let parsed = Directives::parse("token=a&_HLS_msn=5&_HLS_part=2&_HLS_skip=YES");
        assert_eq!(parsed, Ok(Directives { msn: Some(5), part: Some(2), wants_delta: true }));
        assert_eq!(Directives::parse(""), Ok(Directives::default()));
        for bad in ["_HLS_part=1", "_HLS_msn=x", "_HLS_msn=-1", "_HLS_msn=1&_HLS_part="] {
            assert_eq!(Directives::parse(bad), Err(BadDirectives), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in ".{0,60}") {
            let _ = (MediaFile::parse(&text), Directives::parse(&text));
        }
    }
}
