//! Reads a stream's playlists, as a player at the live edge does: the multivariant playlist once, then each media
//! playlist with blocking reload.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use reqwest::{Client, StatusCode, Url};
use shoal_digest::{Epoch, OriginKey, PieceId};
use shoal_playlist::{MediaPlaylist, parse_media};
use tokio::{sync::mpsc, time::sleep};

use crate::Mode;

/// The longest playlist that is read, in bytes. Hours of DVR stay below it.
const PLAYLIST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long a playlist request may take: a blocking reload answers after one part, an origin in trouble later.
const PLAYLIST_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a stream can't be followed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The URL is none.
    #[error("{0} is not a URL: {1}")]
    BadUrl(String, String),
    /// Nobody answered, or the answer broke off.
    #[error("{url} can't be read: {source}")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// Why it failed.
        source: reqwest::Error,
    },
    /// The server answered with an error.
    #[error("{url} answered {status}{}", if *status == 404 { ": is the stream live?" } else { "" })]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The answer is not the playlist that it should be.
    #[error("{url} is not a playlist that can be followed: {what}")]
    NotPlaylist {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        what: String,
    },
}

/// What the multivariant playlist says.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    /// All media playlists; a rendition's number is its place.
    pub(crate) renditions: Vec<Url>,
    /// The numbers of those that are played: the first variant and its audio.
    pub(crate) played: Vec<u8>,
    /// What the swarm needs; none where the origin is not Shoal's.
    pub(crate) swarm: Option<SwarmInfo>,
}

impl Stream {
    /// The numbers of the renditions that a viewer takes.
    pub(crate) fn taken(&self, mode: Mode) -> Vec<u8> {
        match mode {
            Mode::Watch => self.played.clone(),
            // The viewers around a helper play whatever their lines carry.
            Mode::Seed => (0..=u8::MAX).zip(&self.renditions).map(|(number, _)| number).collect(),
        }
    }

    /// The URL of a piece, of which the tracker says that it has this URI. None where that is not in the rendition's own folder: a
    /// tracker may not send viewers elsewhere.
    pub(crate) fn noticed_url(&self, base: &Url, rendition: u8, uri: &str) -> Option<Url> {
        let folder = |url: &Url| url.join(".").ok();
        let playlist = self.renditions.get(usize::from(rendition))?;
        base.join(uri).ok().filter(|url| folder(url).is_some() && folder(url) == folder(playlist))
    }
}

/// The `EXT-X-SESSION-DATA` of an origin that has a swarm.
#[derive(Clone, Debug)]
pub(crate) struct SwarmInfo {
    pub(crate) key: OriginKey,
    pub(crate) epoch: Epoch,
    pub(crate) tracker: Url,
    pub(crate) stream: String,
}

/// A piece that a playlist lists.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) piece: PieceId,
    pub(crate) url: Url,
    /// Program date time of its first sample, Unix milliseconds.
    pub(crate) start_ms: u64,
    pub(crate) duration_ms: u32,
    /// Whether it is gone from the origin (`GAP=YES`).
    pub(crate) is_gap: bool,
    /// Whether decoding can start with it.
    pub(crate) is_independent: bool,
}

/// What following a media playlist brings.
#[derive(Debug)]
pub(crate) enum SourceEvent {
    /// Pieces that were not listed before, in order, and the distance from the end at which to play.
    Listed { pieces: Vec<Listed>, hold_back_ms: u64 },
    /// A rendition has ended.
    Ended,
    /// The playlist can't be had for long.
    Failed { rendition: u8, error: SourceError },
}

/// Fetches and reads the multivariant playlist.
pub(crate) async fn open(client: &Client, url: &str) -> Result<Stream, SourceError> {
    let base = Url::parse(url).map_err(|error| SourceError::BadUrl(url.to_owned(), error.to_string()))?;
    let text = get_text(client, base.clone()).await?;
    read_multivariant(&base, &text).map_err(|what| SourceError::NotPlaylist { url: base.to_string(), what })
}

fn read_multivariant(base: &Url, text: &str) -> Result<Stream, String> {
    let (_, playlist) =
        m3u8_rs::parse_master_playlist(text.as_bytes()).map_err(|_| "no multivariant playlist".to_owned())?;
    let videos = || playlist.variants.iter().filter(|variant| !variant.is_i_frame);
    let first = videos().next().ok_or("it has no variant")?;
    let audios = || {
        let audios = playlist.alternatives.iter();
        let audios = audios.filter(|media| media.media_type == m3u8_rs::AlternativeMediaType::Audio);
        audios.filter_map(|media| Some((&media.group_id, media.uri.as_deref()?)))
    };
    // Rendition numbers follow the multivariant playlist: the videos, then the audio. A video is listed once for each group of
    // audio that it can be played with, and the one playlist of an audio-only stream as variant and as audio.
    let mut renditions: Vec<Url> = Vec::new();
    let uris = videos().map(|variant| variant.uri.as_str()).chain(audios().map(|(_, uri)| uri));
    for uri in uris {
        let url = join(base, uri)?;
        if !renditions.contains(&url) {
            renditions.push(url);
        }
    }
    let its_audio = audios().find(|(group, _)| Some(*group) == first.audio.as_ref()).map(|(_, uri)| uri);
    let mut played = Vec::new();
    for uri in [Some(first.uri.as_str()), its_audio].into_iter().flatten() {
        let url = join(base, uri)?;
        let place = renditions.iter().position(|known| *known == url).unwrap_or_default();
        played.push(u8::try_from(place).map_err(|_| "it has too many renditions")?);
    }
    played.dedup();
    let data = |id: &str| {
        playlist.session_data.iter().find(|data| data.data_id == id).and_then(|data| match &data.field {
            m3u8_rs::SessionDataField::Value(value) => Some(value.clone()),
            m3u8_rs::SessionDataField::Uri(_) => None,
        })
    };
    let swarm = || -> Option<SwarmInfo> {
        let key: [u8; 32] = BASE64.decode(data("live.shoal.key")?).ok()?.try_into().ok()?;
        let epoch: [u8; 16] = hex::decode(data("live.shoal.epoch")?).ok()?.try_into().ok()?;
        let mut tracker = base.join(&data("live.shoal.tracker")?).ok()?;
        let scheme = if tracker.scheme().ends_with('s') { "wss" } else { "ws" };
        tracker.set_scheme(scheme).ok()?;
        Some(SwarmInfo {
            key: OriginKey::from_bytes(&key).ok()?,
            epoch: Epoch(epoch),
            tracker,
            stream: data("live.shoal.stream")?,
        })
    };
    Ok(Stream { renditions, played, swarm: swarm() })
}

fn join(base: &Url, uri: &str) -> Result<Url, String> {
    base.join(uri).map_err(|error| format!("URI {uri}: {error}"))
}

/// Follows one media playlist until it ends, the receiver is gone, or it can't be had for 30 s.
pub(crate) async fn follow(client: Client, rendition: u8, url: Url, events: mpsc::Sender<SourceEvent>) {
    let mut seen: Option<(u64, u16)> = None;
    let mut reload = url.clone();
    let mut failures = 0_u32;
    loop {
        let playlist = match get_media(&client, reload.clone()).await {
            Ok(playlist) => playlist,
            Err(error) => {
                failures += 1;
                if failures > 30 {
                    let _ = events.send(SourceEvent::Failed { rendition, error }).await;
                    return;
                }
                reload = url.clone();
                sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        failures = 0;
        let pieces: Vec<Listed> = list(rendition, &url, &playlist)
            .into_iter()
            .filter(|listed| seen.is_none_or(|seen| (listed.piece.msn, listed.piece.part) > seen))
            .collect();
        let is_new = !pieces.is_empty();
        if let Some(last) = pieces.last() {
            seen = Some((last.piece.msn, last.piece.part));
        }
        let hold_back_ms = hold_back_ms(&playlist);
        if is_new && events.send(SourceEvent::Listed { pieces, hold_back_ms }).await.is_err() {
            return;
        }
        if playlist.is_ended {
            let _ = events.send(SourceEvent::Ended).await;
            return;
        }
        let blocks = playlist.server_control.as_ref().is_some_and(|control| control.can_block_reload);
        reload = url.clone();
        if blocks {
            let (msn, part) = next_after(&playlist);
            let mut query = reload.query_pairs_mut();
            query.append_pair("_HLS_msn", &msn.to_string());
            if playlist.part_target.is_some() {
                query.append_pair("_HLS_part", &part.to_string());
            }
        } else {
            // RFC 8216bis 6.3.4: after a change wait a target duration, without one half of it.
            let target = playlist.target_duration_s.max(1) * 1000;
            sleep(Duration::from_millis(if is_new { target } else { target / 2 })).await;
        }
    }
}

/// The media sequence number and part that come next.
fn next_after(playlist: &MediaPlaylist) -> (u64, usize) {
    let skipped = playlist.skipped.unwrap_or(0);
    let next = playlist.media_sequence + skipped + playlist.segments.len() as u64;
    (next, playlist.open.as_ref().map_or(0, |open| open.parts.len()))
}

fn hold_back_ms(playlist: &MediaPlaylist) -> u64 {
    let control = playlist.server_control.as_ref();
    let part = control.and_then(|control| control.part_hold_back);
    let whole = control.and_then(|control| control.hold_back);
    let default = playlist.target_duration_s * 3_000_000;
    let micros = if playlist.part_target.is_some() { part.or(whole) } else { whole };
    micros.unwrap_or(default) / 1000
}

/// All pieces of a playlist in order: parts where it lists them, else segments.
fn list(rendition: u8, base: &Url, playlist: &MediaPlaylist) -> Vec<Listed> {
    let mut out = Vec::new();
    let mut clock_us: u64 = 0;
    let mut push =
        |uri: &str, msn: u64, part: usize, start_us: u64, duration: u64, is_gap, is_independent| {
            let (Ok(url), Ok(part)) = (base.join(uri), u16::try_from(part)) else { return };
            out.push(Listed {
                piece: PieceId { rendition, msn, part },
                url,
                start_ms: start_us / 1000,
                duration_ms: u32::try_from(duration / 1000).unwrap_or(u32::MAX),
                is_gap,
                is_independent,
            });
        };
    let first = playlist.media_sequence + playlist.skipped.unwrap_or(0);
    for (msn, segment) in (first..).zip(&playlist.segments) {
        if let Some(ms) = segment.head.date_time_ms {
            clock_us = u64::try_from(ms).unwrap_or(0) * 1000;
        }
        let mut at = clock_us;
        for (index, part) in segment.parts.iter().enumerate() {
            push(&part.uri, msn, index, at, part.duration, part.is_gap, part.is_independent);
            at += part.duration;
        }
        if segment.parts.is_empty() && playlist.part_target.is_none() {
            push(&segment.uri, msn, 0, clock_us, segment.duration, segment.is_gap, true);
        }
        clock_us += segment.duration;
    }
    if let Some(open) = &playlist.open {
        if let Some(ms) = open.head.date_time_ms {
            clock_us = u64::try_from(ms).unwrap_or(0) * 1000;
        }
        let msn = first + playlist.segments.len() as u64;
        for (index, part) in open.parts.iter().enumerate() {
            push(&part.uri, msn, index, clock_us, part.duration, part.is_gap, part.is_independent);
            clock_us += part.duration;
        }
    }
    out
}

async fn get_media(client: &Client, url: Url) -> Result<MediaPlaylist, SourceError> {
    let text = get_text(client, url.clone()).await?;
    parse_media(&text)
        .map_err(|error| SourceError::NotPlaylist { url: url.to_string(), what: error.to_string() })
}

async fn get_text(client: &Client, url: Url) -> Result<String, SourceError> {
    let unreachable = |source| SourceError::Unreachable { url: url.to_string(), source };
    let mut response = client.get(url.clone()).timeout(PLAYLIST_TIMEOUT).send().await.map_err(unreachable)?;
    if response.status() != StatusCode::OK {
        return Err(SourceError::Status { url: url.to_string(), status: response.status().as_u16() });
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        body.extend_from_slice(&chunk);
        if body.len() > PLAYLIST_BYTES_MAX {
            let what = format!("longer than {PLAYLIST_BYTES_MAX} bytes");
            return Err(SourceError::NotPlaylist { url: url.to_string(), what });
        }
    }
    String::from_utf8(body)
        .map_err(|_| SourceError::NotPlaylist { url: url.to_string(), what: "not UTF-8".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MULTIVARIANT: &str = "#EXTM3U\n#EXT-X-VERSION:6\n\
        #EXT-X-SESSION-DATA:DATA-ID=\"live.shoal.key\",VALUE=\"WGZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmY=\"\n\
        #EXT-X-SESSION-DATA:DATA-ID=\"live.shoal.epoch\",VALUE=\"000102030405060708090a0b0c0d0e0f\"\n\
        #EXT-X-SESSION-DATA:DATA-ID=\"live.shoal.tracker\",VALUE=\"/tracker\"\n\
        #EXT-X-SESSION-DATA:DATA-ID=\"live.shoal.stream\",VALUE=\"demo\"\n\
        #EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"audio\",NAME=\"Audio\",URI=\"e/a0/playlist.m3u8\"\n\
        #EXT-X-STREAM-INF:BANDWIDTH=3000000,CODECS=\"avc1.42c01f,mp4a.40.2\",AUDIO=\"audio\"\ne/v0/playlist.m3u8\n\
        #EXT-X-STREAM-INF:BANDWIDTH=900000,CODECS=\"avc1.42c01f,mp4a.40.2\",AUDIO=\"audio\"\ne/v1/playlist.m3u8\n";

    #[test]
    fn rendition_numbers_count_videos_before_audio() {
        let base = Url::parse("https://origin.test/live/demo/index.m3u8").unwrap();
        let stream = read_multivariant(&base, MULTIVARIANT).unwrap();
        let paths: Vec<_> = stream.renditions.iter().map(Url::path).collect();
        let [low, high, audio] = ["v0", "v1", "a0"].map(|name| format!("/live/demo/e/{name}/playlist.m3u8"));
        assert_eq!(paths, [low, high, audio]);
        assert_eq!(stream.taken(Mode::Watch), [0, 2]);
        let swarm = stream.swarm.unwrap();
        assert_eq!(swarm.tracker.as_str(), "wss://origin.test/tracker");
        assert_eq!(swarm.stream, "demo");
    }

    #[test]
    fn video_that_is_listed_with_each_group_of_audio_counts_once() {
        let base = Url::parse("https://origin.test/live/demo/index.m3u8").unwrap();
        let text = MULTIVARIANT.to_owned()
            + "#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"audio-opus\",NAME=\"Audio\",URI=\"e/a1/playlist.m3u8\"\n\
               #EXT-X-STREAM-INF:BANDWIDTH=3000000,CODECS=\"avc1.42c01f,opus\",AUDIO=\"audio-opus\"\ne/v0/playlist.m3u8\n";
        let stream = read_multivariant(&base, &text).unwrap();
        assert_eq!((stream.taken(Mode::Watch), stream.renditions.len()), (vec![0, 2], 4));
    }

    #[test]
    fn a_helper_takes_all_renditions() {
        let base = Url::parse("https://origin.test/live/demo/index.m3u8").unwrap();
        assert_eq!(read_multivariant(&base, MULTIVARIANT).unwrap().taken(Mode::Seed), [0, 1, 2]);
    }

    #[test]
    fn playlist_of_an_audio_only_stream_is_one_rendition() {
        let base = Url::parse("https://origin.test/live/demo/index.m3u8").unwrap();
        let text = "#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"audio\",NAME=\"Audio\",URI=\"e/a0/playlist.m3u8\"\n\
            #EXT-X-STREAM-INF:BANDWIDTH=96000,CODECS=\"mp4a.40.2\",AUDIO=\"audio\"\ne/a0/playlist.m3u8\n";
        let stream = read_multivariant(&base, text).unwrap();
        assert_eq!((stream.taken(Mode::Watch), stream.taken(Mode::Seed)), (vec![0], vec![0]));
    }

    #[test]
    fn a_tracker_names_files_of_the_renditions_folder_only() {
        let base = Url::parse("https://origin.test/live/demo/index.m3u8").unwrap();
        let stream = read_multivariant(&base, MULTIVARIANT).unwrap();
        let path = |uri: &str| stream.noticed_url(&base, 1, uri).map(|url| url.path().to_owned());
        let part = Some("/live/demo/e/v1/part-1-0.m4s".to_owned());
        assert_eq!(path("e/v1/part-1-0.m4s"), part);
        assert_eq!(path("/live/demo/e/v1/part-1-0.m4s?token=x"), part);
        for elsewhere in [
            "http://10.0.0.1/admin?delete=all",
            "//10.0.0.1/live/demo/e/v1/part-1-0.m4s",
            "https://origin.test:8443/live/demo/e/v1/part-1-0.m4s",
            "http://origin.test/live/demo/e/v1/part-1-0.m4s",
            "https://me@origin.test/live/demo/e/v1/part-1-0.m4s",
            "e/v0/part-1-0.m4s",
            "e/v1/deeper/part-1-0.m4s",
            "e/v1/../part-1-0.m4s",
            "/api/tracker",
            "data:text/plain,x",
            "",
        ] {
            assert_eq!(path(elsewhere), None, "{elsewhere}");
        }
        assert_eq!(stream.noticed_url(&base, 9, "e/v1/part-1-0.m4s"), None, "there is no such rendition");
    }

    #[test]
    fn origin_without_session_data_has_no_swarm() {
        let base = Url::parse("http://origin.test/index.m3u8").unwrap();
        let text = "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nv.m3u8\n";
        assert!(read_multivariant(&base, text).unwrap().swarm.is_none());
    }

    #[test]
    fn parts_are_listed_with_their_own_times() {
        let base = Url::parse("http://origin.test/v0/playlist.m3u8").unwrap();
        let text = "#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:2\n\
            #EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,PART-HOLD-BACK=1.5,HOLD-BACK=6\n\
            #EXT-X-PART-INF:PART-TARGET=0.5\n#EXT-X-MEDIA-SEQUENCE:7\n#EXT-X-MAP:URI=\"init-0.mp4\"\n\
            #EXT-X-PROGRAM-DATE-TIME:1970-01-01T00:00:10.000Z\n\
            #EXT-X-PART:URI=\"part-7-0.m4s\",DURATION=0.5,INDEPENDENT=YES\n\
            #EXT-X-PART:URI=\"part-7-1.m4s\",DURATION=0.5\n#EXTINF:1.0,\nseg-7.m4s\n\
            #EXT-X-PROGRAM-DATE-TIME:1970-01-01T00:00:11.000Z\n\
            #EXT-X-PART:URI=\"part-8-0.m4s\",DURATION=0.5,INDEPENDENT=YES\n\
            #EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"part-8-1.m4s\"\n";
        let playlist = parse_media(text).unwrap();
        let pieces = list(3, &base, &playlist);
        let found: Vec<_> =
            pieces.iter().map(|listed| (listed.piece.msn, listed.piece.part, listed.start_ms)).collect();
        assert_eq!(found, [(7, 0, 10_000), (7, 1, 10_500), (8, 0, 11_000)]);
        assert_eq!(next_after(&playlist), (8, 1));
        assert_eq!(hold_back_ms(&playlist), 1500);
    }
}
