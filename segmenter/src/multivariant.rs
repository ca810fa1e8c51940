//! The multivariant playlist of a stream or of its recording. Pure.

use shoal_playlist::{AudioRendition, MultivariantPlaylist, SessionData, Variant};

use crate::codecs;
use crate::live::Description;
use crate::pictures::POSTER;
use crate::pictures::sheet::VTT;

/// What it is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    pub(crate) stream: &'a str,
    /// In hex.
    pub(crate) epoch: &'a str,
    /// In base64.
    pub(crate) origin_key: &'a str,
    /// Empty: there is none.
    pub(crate) tracker_url: &'a str,
    /// In front of the renditions' names in URLs: empty, or ending with a slash.
    pub(crate) folder: &'a str,
    /// Whether there are a poster and thumbnails beside the playlist.
    pub(crate) has_pictures: bool,
    /// Names and descriptions, in the order of their numbers. Viewers count them: with a tracker, none may be missing before
    /// another.
    pub(crate) renditions: &'a [(String, Description)],
    /// Whether each segment begins with a keyframe.
    pub(crate) has_independent_segments: bool,
    /// Whether nothing will be added, so that bit rates are what they are.
    pub(crate) is_complete: bool,
}

/// The playlist that a player begins with.
pub(crate) fn playlist(source: &Source<'_>) -> MultivariantPlaylist {
    let renditions = source.renditions;
    let uri = |name: &str| format!("{}{name}/playlist.m3u8", source.folder);
    let has_video = renditions.iter().any(|(_, description)| description.is_video());
    let audios: Vec<_> = renditions.iter().filter(|(_, description)| !description.is_video()).collect();
    // A tenth above the highest so far: section 4.4.6.2 wants an upper bound, and what comes is not known.
    let bound = |bps: u64| if source.is_complete { bps } else { bps + bps / 10 };
    let variant = |(name, description): &(String, Description), beside: Option<&(String, Description)>| {
        let beside = beside.map(|(_, audio)| audio);
        let (beside_peak, beside_average) =
            beside.map_or((0, 0), |audio| (audio.peak_bps, audio.average_bps()));
        Variant {
            bandwidth: bound(description.peak_bps + beside_peak),
            average_bandwidth: description.average_bps() + beside_average,
            codecs: [Some(description), beside].into_iter().flatten().map(|d| d.codecs.clone()).collect(),
            resolution: description.resolution,
            frame_rate_milli: description.is_video().then_some(description.frame_rate_milli),
            audio_group: beside.map(group),
            uri: uri(name),
        }
    };
    // All with the first audio, which is AAC where it is ours, and then all with the next: a player that takes the first
    // variant it sees has sound that everybody can play.
    let besides: Vec<_> = audios.iter().copied().map(Some).collect();
    let besides = if has_video && !besides.is_empty() { besides } else { vec![None] };
    let mut variants = Vec::new();
    for beside in besides {
        let leads = renditions.iter().filter(|(_, description)| description.is_video() || !has_video);
        variants.extend(leads.map(|lead| variant(lead, beside)));
    }
    let session_data = [
        ("live.shoal.key", source.origin_key),
        ("live.shoal.epoch", source.epoch),
        ("live.shoal.tracker", source.tracker_url),
        ("live.shoal.stream", source.stream),
        ("live.shoal.poster", if source.has_pictures { POSTER } else { "" }),
        ("live.shoal.thumbnails", if source.has_pictures { VTT } else { "" }),
    ];
    MultivariantPlaylist {
        version: 6,
        has_independent_segments: source.has_independent_segments,
        session_data: session_data
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(id, value)| SessionData { id: id.to_owned(), value: value.to_owned() })
            .collect(),
        audio: audios
            .iter()
            .filter(|_| has_video)
            .map(|(name, description)| AudioRendition {
                group: group(description),
                name: "Audio".to_owned(),
                language: Some("und".to_owned()),
                is_default: true,
                channels: 2,
                uri: uri(name),
            })
            .collect(),
        variants,
    }
}

/// The group of an audio rendition: those of another codec than AAC are another choice.
fn group(audio: &Description) -> String {
    if audio.codecs == codecs::OPUS { "audio-opus" } else { "audio" }.to_owned()
}
