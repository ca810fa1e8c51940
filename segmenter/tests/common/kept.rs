//! Recordings and long windows: making them, and comparing what viewers get of them with what was published.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use bytes::Bytes;
use shoal_digest::{BlockDigest, OriginKey, Record, block_bytes};
use shoal_playlist::lint::{lint_media, lint_multivariant, lint_renditions};
use shoal_playlist::{PlaylistKind, parse_media};
use shoal_segmenter::{Config, Publication, RecordingInfo, RecordingState, State};

use super::{Fake, World, until};
/// A configuration that records into a directory.
pub(crate) fn recording_into(directory: &Path) -> Config {
    Config {
        recording: true,
        storage: directory.to_str().unwrap().to_owned(),
        storage_free_bytes_min: 0,
        ..Config::default()
    }
}

impl World {
    pub(crate) async fn get_range(&self, path: &str, range: Option<&str>) -> (u16, Bytes) {
        let mut request = self.client.get(format!("{}{path}", self.base));
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.bytes().await.expect("the body is whole"))
    }

    /// The only recording, once it is closed.
    pub(crate) async fn recording(&self) -> RecordingInfo {
        let is_closed = |info: &RecordingInfo| info.state == RecordingState::Closed;
        until("the recording", || self.streams.recordings().first().is_some_and(is_closed)).await;
        assert_eq!(self.streams.recordings().len(), 1);
        self.streams.recordings().remove(0)
    }

    /// Waits until all that was pushed is published and, if it is to be, stored.
    pub(crate) async fn settle(&self, publication: &Publication) {
        until("the worker", || publication.is_idle()).await;
        until("the storage", || self.streams.stats().iter().all(|stats| stats.is_stored)).await;
    }
}

/// Runs a program to its end and demands that it had nothing to complain about.
pub(crate) async fn run(program: &'static str, arguments: &[&str]) -> String {
    let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let run = move || Command::new(program).args(&arguments).stdin(Stdio::null()).output();
    let Output { status, stdout, stderr } = tokio::task::spawn_blocking(run).await.unwrap().unwrap();
    let complaints = String::from_utf8_lossy(&stderr);
    assert!(status.success() && complaints.is_empty(), "{program}: {complaints}");
    String::from_utf8_lossy(&stdout).into_owned()
}

/// The frames that `ffprobe` decodes of the picture and of the sound.
pub(crate) async fn frames(input: &str) -> [u64; 2] {
    let show = "stream=codec_type,nb_read_frames";
    let arguments = ["-v", "warning", "-count_frames", "-show_entries", show, "-of", "csv=p=0", input];
    let text = run("ffprobe", &arguments).await;
    ["video", "audio"].map(|kind| {
        // An HLS stream is listed twice: in its program and by itself.
        let line = text.lines().find(|line| line.starts_with(kind)).unwrap_or_else(|| panic!("{text}"));
        line.split(',').nth(1).unwrap().trim().parse().unwrap()
    })
}

/// Demands that every segment that a recording's rendition lists is what its signed records say; returns how many
/// parts there are.
pub(crate) async fn verify_media(world: &World, folder: &str, rendition: &str, key: &OriginKey) -> usize {
    let playlist = parse_media(&world.text(&format!("{folder}/{rendition}/playlist.m3u8")).await).unwrap();
    let mut parts = 0;
    for segment in &playlist.segments {
        let media = world.get(&format!("{folder}/{rendition}/{}", segment.uri)).await;
        parts +=
            verify(&media, &world.get(&format!("{folder}/{rendition}/{}.digest", segment.uri)).await, key);
    }
    parts
}

/// Demands that a segment is what its parts' records say; returns how many there are.
pub(crate) fn verify(mut media: &[u8], mut records: &[u8], key: &OriginKey) -> usize {
    let mut parts = 0;
    while let Some((length, rest)) = records.split_first_chunk::<4>() {
        let (record, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        let record = Record::verify(record, key).expect("the origin signed it");
        let (part, other) = media.split_at(record.length as usize);
        for (block, digest) in part.chunks(block_bytes(record.length) as usize).zip(&record.blocks) {
            assert_eq!(BlockDigest::of(block), *digest);
        }
        (records, media, parts) = (rest, other, parts + 1);
    }
    assert!(media.is_empty(), "bytes without a record");
    parts
}

/// Demands that the recording is whole: its playlists, its media by their records, and what ffmpeg makes of it.
pub(crate) async fn check(world: &World, recording: &RecordingInfo, frames_min: u64) {
    check_lists(world, recording).await;
    let media = check_file(world, recording, frames_min).await;
    let url = format!("{}{}", world.base, recording.url.as_ref().unwrap());
    assert_eq!(frames(&url).await, media, "by the playlists");
}

/// Demands that the playlists are right and the media is what its records say.
pub(crate) async fn check_lists(world: &World, recording: &RecordingInfo) {
    let folder = format!("/vod/{}/{}", recording.stream, recording.epoch);
    assert_eq!(recording.url.as_deref().unwrap(), format!("{folder}/index.m3u8"));
    let text = world.text(&format!("{folder}/index.m3u8")).await;
    assert_eq!(lint_multivariant(&text), []);
    let (stream, epoch) = (&recording.stream, &recording.epoch);
    assert!(text.contains(&format!(r#""live.shoal.stream",VALUE="{stream}/{epoch}""#)), "{text}");
    assert!(text.contains(r#""live.shoal.tracker",VALUE="/tracker""#), "its viewers find each other: {text}");
    let mut texts = Vec::new();
    for rendition in &recording.renditions {
        let text = world.text(&format!("{folder}/{rendition}/playlist.m3u8")).await;
        let playlist = parse_media(&text).unwrap();
        assert!(playlist.is_ended && playlist.kind == Some(PlaylistKind::Vod));
        assert_eq!(lint_media(&text), [], "{text}");
        texts.push(text);
        assert!(verify_media(world, &folder, rendition, &world.streams.origin_key()).await > 0);
    }
    assert_eq!(lint_renditions(&texts.iter().map(String::as_str).collect::<Vec<_>>()), []);
}

/// Demands that the MP4 file has so many pictures, sound beside them, and any range of itself; returns what it has.
pub(crate) async fn check_file(world: &World, recording: &RecordingInfo, frames_min: u64) -> [u64; 2] {
    let mp4 = recording.mp4_url.clone().unwrap();
    let url = format!("{}{mp4}", world.base);
    let [video, audio] = frames(&url).await;
    assert!(video >= frames_min, "{video} of {frames_min} frames");
    // 30 pictures and 46.875 packets of AAC in a second; a part of one may be without the other's.
    let expected = video * 46_875 / 30_000;
    assert!(audio.abs_diff(expected) <= 30, "{audio} of {expected} packets");

    let file = world.get(&mp4).await;
    let length = file.len();
    for (start, end) in [(0, 10), (length / 3, length / 3 * 2), (length - 10, length), (0, length)] {
        let (status, range) = world.get_range(&mp4, Some(&format!("bytes={start}-{}", end - 1))).await;
        assert!(status == 206 && range == file.slice(start..end), "bytes {start} to {end}");
    }
    let probe =
        run("ffprobe", &["-v", "warning", "-show_entries", "format=duration", "-of", "csv=p=0", &url]).await;
    let (duration_s, expected_s): (f64, _) = (probe.trim().parse().unwrap(), video as f64 / 30.0);
    assert!((duration_s - expected_s).abs() < 0.6, "{duration_s} s of {expected_s} s");
    [video, audio]
}

/// Publishes fake media of so many milliseconds and ends the stream.
pub(crate) async fn publish_short(world: &World, name: &str, milliseconds: i64) {
    let publication = world.streams.publish(name).unwrap();
    let mut fake = Fake::new();
    fake.begin(&publication);
    fake.push(&publication, milliseconds);
    until("the worker", || publication.is_idle()).await;
    publication.end();
    let is_ended = || world.streams.list().iter().any(|info| info.name == name && info.state == State::Ended);
    until("the end", is_ended).await;
    world.streams.recorded(std::time::Duration::from_secs(20)).await;
}

/// Publishes a minute with a window of ten, of which memory has twelve seconds, and reads all of it.
pub(crate) async fn rewind(world: &World) -> Publication {
    let publication = world.streams.publish("show").unwrap();
    let mut fake = Fake::new();
    fake.begin(&publication);
    for _ in 0..12 {
        fake.push(&publication, 5_000);
        world.settle(&publication).await;
    }
    let stats = &world.streams.stats()[0];
    // 12 s of memory, a segment in the making, and what was just being stored.
    let second = stats.media_bytes / 60;
    assert!(stats.held_bytes < 20 * second, "{} bytes held, {second} in a second", stats.held_bytes);
    let base = format!("/live/show/{}", stats.epoch);
    let mut texts = Vec::new();
    for rendition in ["v0", "a0"] {
        let text = world.text(&format!("{base}/{rendition}/playlist.m3u8")).await;
        assert_eq!(lint_media(&text), [], "{text}");
        let playlist = parse_media(&text).unwrap();
        assert_eq!(playlist.media_sequence, 0);
        assert!((29..=30).contains(&playlist.segments.len()), "{} segments", playlist.segments.len());
        for segment in &playlist.segments {
            let media = world.get(&format!("{base}/{rendition}/{}", segment.uri)).await;
            let records = world.get(&format!("{base}/{rendition}/{}.digest", segment.uri)).await;
            assert_eq!(verify(&media, &records, &world.streams.origin_key()), 4);
            let path = format!("{base}/{rendition}/{}", segment.uri);
            let (status, range) = world.get_range(&path, Some("bytes=100-199")).await;
            assert!(status == 206 && range == media.slice(100..200));
            // Viewers swap parts, also of what playlists list as whole segments.
            let (name, mut parts) = (segment.uri.replace("seg-", "part-"), Vec::new());
            for part in 0..4 {
                let name = format!("{base}/{rendition}/{}", name.replace(".m4s", &format!("-{part}.m4s")));
                let bytes = world.get(&name).await;
                let record = world.get(&format!("{name}.digest")).await;
                let record = Record::verify(&record, &world.streams.origin_key()).expect("signed");
                assert_eq!((record.piece.part, record.length as usize), (part, bytes.len()));
                parts.extend_from_slice(&bytes);
            }
            assert!(parts == media, "the parts of {}", segment.uri);
        }
        let delta = world.text(&format!("{base}/{rendition}/playlist.m3u8?_HLS_skip=YES")).await;
        assert!(delta.contains("#EXT-X-SKIP:SKIPPED-SEGMENTS=2"), "{delta}");
        texts.push(text);
    }
    assert_eq!(lint_renditions(&[&texts[0], &texts[1]]), []);
    publication
}

pub(crate) fn with_dvr(config: Config) -> Config {
    Config { recording: false, window_ms: 12_000, dvr_ms: 600_000, ended_keep_ms: 0, ..config }
}
