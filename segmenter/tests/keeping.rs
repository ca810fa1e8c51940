//! Recordings and the long live window, as viewers and operators meet them.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::http::StatusCode;
use bytes::Bytes;
use common::{AUDIO, Audio, Fake, VIDEO, Video, World, push, push_all, until};
use ed25519_dalek::SigningKey;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s::{S3Error, S3ErrorCode, S3Result};
use shoal_digest::{BlockDigest, OriginKey, Record, block_bytes};
use shoal_playlist::lint::{lint_media, lint_multivariant, lint_renditions};
use shoal_playlist::{MediaPlaylist, PlaylistKind, parse_media};
use shoal_segmenter::frame::{Input, TrackFormat};
use shoal_segmenter::{Config, Publication, RecordingInfo, RecordingState, Secret, State, Streams};
use tempfile::TempDir;
use tokio::net::TcpListener;

/// A configuration that records into a directory.
fn recording_into(directory: &Path) -> Config {
    Config {
        recording: true,
        storage: directory.to_str().unwrap().to_owned(),
        storage_free_bytes_min: 0,
        ..Config::default()
    }
}

impl World {
    async fn ask(&self, path: &str, range: Option<&str>) -> (u16, Bytes) {
        let mut request = self.client.get(format!("{}{path}", self.base));
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.bytes().await.expect("the body is whole"))
    }

    /// The only recording, once it is closed.
    async fn recording(&self) -> RecordingInfo {
        let is_closed = |info: &RecordingInfo| info.state == RecordingState::Closed;
        until("the recording", || self.streams.recordings().first().is_some_and(is_closed)).await;
        assert_eq!(self.streams.recordings().len(), 1);
        self.streams.recordings().remove(0)
    }

    /// Waits until all that was pushed is published and, if it is to be, stored.
    async fn settle(&self, publication: &Publication) {
        until("the worker", || publication.is_idle()).await;
        until("the storage", || self.streams.stats().iter().all(|stats| stats.is_stored)).await;
    }
}

/// Runs a program to its end and demands that it had nothing to complain about.
async fn run(program: &'static str, arguments: &[&str]) -> String {
    let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let run = move || Command::new(program).args(&arguments).stdin(Stdio::null()).output();
    let Output { status, stdout, stderr } = tokio::task::spawn_blocking(run).await.unwrap().unwrap();
    let complaints = String::from_utf8_lossy(&stderr);
    assert!(status.success() && complaints.is_empty(), "{program}: {complaints}");
    String::from_utf8_lossy(&stdout).into_owned()
}

/// The frames that `ffprobe` decodes of the picture and of the sound.
async fn frames(input: &str) -> [u64; 2] {
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
async fn verify_media(world: &World, folder: &str, rendition: &str, key: &OriginKey) -> usize {
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
fn verify(mut media: &[u8], mut records: &[u8], key: &OriginKey) -> usize {
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
async fn check(world: &World, recording: &RecordingInfo, frames_min: u64) {
    check_lists(world, recording).await;
    let media = check_file(world, recording, frames_min).await;
    let url = format!("{}{}", world.base, recording.url.as_ref().unwrap());
    assert_eq!(frames(&url).await, media, "by the playlists");
}

/// Demands that the playlists are right and the media is what its records say.
async fn check_lists(world: &World, recording: &RecordingInfo) {
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
async fn check_file(world: &World, recording: &RecordingInfo, frames_min: u64) -> [u64; 2] {
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
        let (status, range) = world.ask(&mp4, Some(&format!("bytes={start}-{}", end - 1))).await;
        assert!(status == 206 && range == file.slice(start..end), "bytes {start} to {end}");
    }
    let probe =
        run("ffprobe", &["-v", "warning", "-show_entries", "format=duration", "-of", "csv=p=0", &url]).await;
    let (duration_s, expected_s): (f64, _) = (probe.trim().parse().unwrap(), video as f64 / 30.0);
    assert!((duration_s - expected_s).abs() < 0.6, "{duration_s} s of {expected_s} s");
    [video, audio]
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_stream_can_be_played_and_downloaded_to_the_last_frame() {
    let directory = TempDir::new().unwrap();
    let world = World::new(recording_into(directory.path())).await;
    let publication = world.streams.publish("real").unwrap();
    publication.expect_tracks(&[AUDIO, VIDEO]);
    let (mut video, mut audio) = (Video::new(VIDEO, 320, 180), Audio::new());
    video.rhythm = Some(60);
    push(&publication, Audio::format());
    push_all(&publication, &mut video, &mut audio, 200);
    world.settle(&publication).await;
    let making = &world.streams.recordings()[0];
    assert_eq!((making.state, &making.url), (RecordingState::Recording, &None));
    publication.end();
    let recording = world.recording().await;
    check(&world, &recording, 200).await;
    assert!((6_600..6_800).contains(&recording.duration_ms), "{recording:?}");
    let list = world.text("/api/recordings").await;
    assert!(
        list.contains("\"state\":\"closed\"") && list.contains(recording.mp4_url.as_ref().unwrap()),
        "{list}"
    );
    assert_eq!(world.ask("/vod/real/0/index.m3u8", None).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_stream_is_one_recording_without_a_hole() {
    let directory = TempDir::new().unwrap();
    let world = World::new(recording_into(directory.path())).await;
    let publication = world.streams.publish("real").unwrap();
    publication.expect_tracks(&[AUDIO, VIDEO]);
    let (mut video, mut audio) = (Video::new(VIDEO, 320, 180), Audio::new());
    video.rhythm = Some(60);
    push(&publication, Audio::format());
    push_all(&publication, &mut video, &mut audio, 100);
    world.settle(&publication).await;
    drop(publication);
    let away = || world.streams.list().first().is_some_and(|info| info.state == State::Away);
    until("the publisher to be away", away).await;
    // Until the first segment without media is complete; each request waits for it for three target durations.
    let gap = world.streams.stats()[0].epoch.clone();
    let gap = format!("/live/real/{gap}/v0/playlist.m3u8?_HLS_msn=2");
    while world.ask(&gap, None).await.0 != 200 {}
    let playlist = parse_media(&world.text(&gap).await).unwrap();
    assert!(playlist.segments[2].is_gap);

    let publication = world.streams.publish("real").unwrap();
    publication.expect_tracks(&[AUDIO, VIDEO]);
    let (mut video, mut audio) = (Video::new(VIDEO, 320, 180), Audio::new());
    video.rhythm = Some(60);
    push(&publication, Audio::format());
    push_all(&publication, &mut video, &mut audio, 100);
    world.settle(&publication).await;
    publication.end();
    let recording = world.recording().await;
    check_lists(&world, &recording).await;
    let folder = format!("/vod/real/{}", recording.epoch);
    let playlist: MediaPlaylist =
        parse_media(&world.text(&format!("{folder}/v0/playlist.m3u8")).await).unwrap();
    assert!(playlist.segments.iter().all(|segment| !segment.is_gap));
    assert_eq!(playlist.segments.iter().filter(|segment| segment.head.is_discontinuity).count(), 1);
    // Of the file, because ffmpeg's HLS reader warns of the initialization section behind the discontinuity.
    check_file(&world, &recording, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn publisher_that_returns_with_other_tracks_begins_another_recording() {
    let directory = TempDir::new().unwrap();
    let world = World::new(recording_into(directory.path())).await;
    for with_audio in [false, true] {
        let publication = world.streams.publish("show").unwrap();
        let mut fake = Fake::new();
        fake.with_audio = with_audio;
        fake.begin(&publication);
        fake.push(&publication, 5_000);
        until("the worker", || publication.is_idle()).await;
        drop(publication);
        let away = || world.streams.list()[0].state == State::Away;
        until("the publisher to be away", away).await;
    }
    world.streams.close();
    world.streams.recorded(std::time::Duration::from_secs(20)).await;
    let recordings = world.streams.recordings();
    let renditions: Vec<_> = recordings.iter().map(|recording| recording.renditions.join(" ")).collect();
    assert_eq!(renditions, ["v0 a0", "v0"], "newest first");
    for recording in &recordings {
        assert_eq!(recording.failure, "");
        check_lists(&world, recording).await;
        assert!((4_900..5_200).contains(&recording.duration_ms), "{recording:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn opus_of_one_channel_is_recorded_in_both_codecs_and_both_decode() {
    let directory = TempDir::new().unwrap();
    let world = World::new(Config { opus: true, ..recording_into(directory.path()) }).await;
    let publication = world.streams.publish("mono").unwrap();
    publication.expect_tracks(&[AUDIO, VIDEO]);
    let (mut video, mut audio) = (Video::new(VIDEO, 320, 180), Audio::mono());
    video.rhythm = Some(60);
    let format = TrackFormat::Opus { channels: 1 };
    push(&publication, Input::Format { track: AUDIO, format });
    push_all(&publication, &mut video, &mut audio, 150);
    world.settle(&publication).await;
    publication.end();
    let recording = world.recording().await;
    assert_eq!(recording.renditions, ["v0", "a0", "a1"]);
    check_lists(&world, &recording).await;
    for (rendition, codec) in [("a0", "aac"), ("a1", "opus")] {
        let url = format!("{}/vod/mono/{}/{rendition}/playlist.m3u8", world.base, recording.epoch);
        let show = ["-v", "error", "-show_entries", "stream=codec_name", "-of", "csv=p=0", &url];
        assert_eq!(run("ffprobe", &show).await.lines().next().unwrap(), codec);
        // The mean of the tone's squares, over all but the edges: an eighth at half the full amplitude.
        let measure = "atrim=1:4,astats=metadata=1:measure_overall=RMS_level:measure_perchannel=none:reset=0,\
            ametadata=print:key=lavfi.astats.Overall.RMS_level:file=-";
        let measure = ["-v", "error", "-i", &url, "-ac", "1", "-af", measure, "-f", "null", "-"];
        let levels = run("ffmpeg", &measure).await;
        let last = levels.lines().filter_map(|line| line.split_once("RMS_level=")).next_back();
        let level_db: f64 = last.unwrap_or_else(|| panic!("{levels}")).1.parse().unwrap();
        assert!((level_db + 9.0).abs() < 0.5, "{codec}: {level_db} dB");
    }
}

/// Not a test of its own: what [`killed_program_loses_at_most_the_unfinished_part`] kills.
#[test]
fn program_that_is_killed() {
    let Ok(directory) = std::env::var("SHOAL_TEST_RECORD_INTO") else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let world = World::new(recording_into(Path::new(&directory))).await;
        let publication = world.streams.publish("killed").unwrap();
        publication.expect_tracks(&[AUDIO, VIDEO]);
        let (mut video, mut audio) = (Video::new(VIDEO, 320, 180), Audio::new());
        video.rhythm = Some(60);
        push(&publication, Audio::format());
        push_all(&publication, &mut video, &mut audio, 200);
        loop {
            world.settle(&publication).await;
            println!("stored {}", world.streams.stats()[0].parts);
            std::io::stdout().flush().unwrap();
            push_all(&publication, &mut video, &mut audio, 10);
        }
    });
}

/// A child process that does not outlive its test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_program_loses_at_most_the_unfinished_part() {
    let directory = TempDir::new().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "program_that_is_killed", "--nocapture"])
        .env("SHOAL_TEST_RECORD_INTO", directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let mut child = Guard(child);
    let stored = output
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| line.strip_prefix("stored ")?.parse::<usize>().ok())
        // In the middle of a segment: 270 pictures of segments of 60.
        .nth(7)
        .expect("the child records");
    // SIGKILL, while it goes on.
    child.0.kill().unwrap();
    child.0.wait().unwrap();

    let world = World::new(recording_into(directory.path())).await;
    let recording = world.recording().await;
    let folder = format!("/vod/killed/{}", recording.epoch);
    let key = world.streams.origin_key();
    let parts =
        verify_media(&world, &folder, "v0", &key).await + verify_media(&world, &folder, "a0", &key).await;
    assert!(parts >= stored, "{parts} of {stored} parts");
    check(&world, &recording, 200).await;
    // Nothing of the making is left, and another start finds it as it is.
    for rendition in ["v0", "a0"] {
        let open = directory.path().join(format!("killed/{}/{rendition}/open", recording.epoch));
        assert_eq!(std::fs::read_dir(open).map_or(0, Iterator::count), 0);
    }
    drop(world);
    let world = World::new(recording_into(directory.path())).await;
    assert_eq!(world.recording().await, recording);
}

/// Publishes fake media of so many milliseconds and ends the stream.
async fn publish_short(world: &World, name: &str, milliseconds: i64) {
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

#[tokio::test(flavor = "multi_thread")]
async fn recording_promises_keyframes_only_where_each_segment_has_one() {
    const TAG: &str = "#EXT-X-INDEPENDENT-SEGMENTS";
    let directory = TempDir::new().unwrap();
    let world = World::new(recording_into(directory.path())).await;
    for (rhythm, is_promised) in [(60, true), (300, false)] {
        let publication = world.streams.publish(&format!("every{rhythm}")).unwrap();
        let mut fake = Fake::new();
        fake.rhythm = rhythm;
        fake.begin(&publication);
        fake.push(&publication, 6_000);
        until("the worker", || publication.is_idle()).await;
        publication.end();
        let closed = || {
            let recordings = world.streams.recordings();
            let of_this =
                recordings.into_iter().find(|recording| recording.stream == format!("every{rhythm}"));
            of_this.and_then(|recording| recording.url)
        };
        until("the recording", || closed().is_some()).await;
        assert_eq!(world.text(&closed().unwrap()).await.contains(TAG), is_promised, "every {rhythm} frames");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn recording_whose_renditions_cannot_be_counted_has_no_swarm() {
    let directory = TempDir::new().unwrap();
    let world = World::new(Config { settle_ms: 1, ..recording_into(directory.path()) }).await;
    // The second layer is announced and sends nothing: with sound, which is counted behind it, and without.
    for with_audio in [true, false] {
        let name = format!("audio-{with_audio}");
        let publication = world.streams.publish(&name).unwrap();
        let mut fake = Fake::new();
        (fake.with_audio, fake.with_second) = (with_audio, true);
        fake.begin(&publication);
        fake.with_second = false;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        fake.push(&publication, 6_000);
        world.settle(&publication).await;
        publication.end();
        let closed = || {
            let found = world.streams.recordings().into_iter().find(|recording| recording.stream == name);
            found.filter(|recording| recording.state == RecordingState::Closed)
        };
        until("the recording", || closed().is_some()).await;
        let recording = closed().unwrap();
        let folder = format!("/vod/{name}/{}", recording.epoch);
        let text = world.text(&format!("{folder}/index.m3u8")).await;
        assert!(text.contains("v0/playlist.m3u8") && !text.contains("v1/playlist.m3u8"), "{text}");
        assert_eq!(text.contains("live.shoal.tracker"), !with_audio, "{text}");
        if with_audio {
            assert_eq!(recording.renditions, ["v0", "v1", "a0"]);
            let record = world.get(&format!("{folder}/a0/part-0-0.m4s.digest")).await;
            let record = Record::verify(&record, &world.streams.origin_key()).expect("signed");
            assert_eq!(record.piece.rendition, 2, "and the playlist names it second");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_that_breaks_ends_the_recording_and_not_the_stream() {
    let directory = TempDir::new().unwrap();
    let place = directory.path().join("recordings");
    let world = World::new(recording_into(&place)).await;
    let publication = world.streams.publish("show").unwrap();
    let mut fake = Fake::new();
    fake.begin(&publication);
    fake.push(&publication, 5_000);
    world.settle(&publication).await;
    let failure = || world.streams.list()[0].recording.clone().unwrap().failure;
    assert_eq!(failure(), "");
    std::fs::rename(&place, directory.path().join("gone")).unwrap();
    std::fs::write(&place, "no directory").unwrap();
    fake.push(&publication, 5_000);
    until("the failure", || !failure().is_empty()).await;
    until("the worker", || publication.is_idle()).await;
    let parts = world.streams.stats()[0].parts;
    fake.push(&publication, 5_000);
    until("the worker", || publication.is_idle()).await;
    assert!(world.streams.stats()[0].parts >= parts + 18, "the stream goes on");
    let base = format!("/live/show/{}", world.streams.stats()[0].epoch);
    let playlist = parse_media(&world.text(&format!("{base}/v0/playlist.m3u8")).await).unwrap();
    assert_eq!((playlist.media_sequence, playlist.segments.len()), (0, 7));
    world.get(&format!("{base}/v0/seg-0.m4s")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_that_does_not_answer_ends_the_recording_and_not_the_stream() {
    // Takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    tokio::spawn(async move {
        let mut connections = Vec::new();
        while let Ok((connection, _)) = silent.accept().await {
            connections.push(connection);
        }
    });
    let world = World::new(Config { storage_queue_bytes_max: 1 << 20, ..s3(&endpoint) }).await;
    let publication = world.streams.publish("show").unwrap();
    let mut fake = Fake::new();
    fake.begin(&publication);
    fake.push(&publication, 20_000);
    until("the worker", || publication.is_idle()).await;
    let recording = world.streams.list()[0].recording.clone().unwrap();
    assert_eq!(recording.failure, "the storage can't keep up");
    assert!(world.streams.stats()[0].parts >= 76, "{:?}", world.streams.stats());
}

#[tokio::test(flavor = "multi_thread")]
async fn too_little_room_is_reported_and_does_not_stop_the_stream() {
    let directory = TempDir::new().unwrap();
    let config = Config { storage_free_bytes_min: u64::MAX, ..recording_into(directory.path()) };
    let world = World::new(config).await;
    let publication = world.streams.publish("show").unwrap();
    let mut fake = Fake::new();
    fake.begin(&publication);
    fake.push(&publication, 5_000);
    until("the worker", || publication.is_idle()).await;
    let failure = || world.streams.list()[0].recording.clone().unwrap().failure;
    until("the report", || failure().contains("bytes are free")).await;
    assert!(world.streams.stats()[0].parts >= 18);
    publication.end();
    world.streams.recorded(std::time::Duration::from_secs(20)).await;
    until("nothing to be left", || world.streams.recordings().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oldest_recordings_are_deleted_when_there_are_too_many_bytes_or_they_are_too_old() {
    let directory = TempDir::new().unwrap();
    let config = recording_into(directory.path());
    let world = World::new(config.clone()).await;
    publish_short(&world, "a", 3_000).await;
    let bytes = world.recording().await.bytes;
    drop(world);

    let limit = Config { recordings_bytes_max: bytes * 5 / 2, ..config.clone() };
    let world = World::new(limit).await;
    until("the first", || world.streams.recordings().len() == 1).await;
    publish_short(&world, "b", 3_000).await;
    publish_short(&world, "c", 3_000).await;
    let names =
        |world: &World| world.streams.recordings().into_iter().map(|info| info.stream).collect::<Vec<_>>();
    until("the deletion", || names(&world) == ["c", "b"] && !directory.path().join("a").exists()).await;
    drop(world);

    // Two hours after the end of "b".
    let header = std::fs::read_dir(directory.path().join("b")).unwrap().next().unwrap().unwrap().path();
    let header = header.join("recording.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&header).unwrap()).unwrap();
    json["closed_ms"] = (json["closed_ms"].as_u64().unwrap() - 7_200_000).into();
    std::fs::write(&header, json.to_string()).unwrap();
    let world = World::new(Config { recordings_keep_hours: 1, ..config }).await;
    until("the deletion", || names(&world) == ["c"] && !directory.path().join("b").exists()).await;
}

/// Publishes a minute with a window of ten, of which memory has twelve seconds, and reads all of it.
async fn rewind(world: &World) -> Publication {
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
            let (status, range) = world.ask(&path, Some("bytes=100-199")).await;
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

fn with_dvr(config: Config) -> Config {
    Config { recording: false, window_ms: 12_000, dvr_ms: 600_000, ended_keep_ms: 0, ..config }
}

#[tokio::test(flavor = "multi_thread")]
async fn viewers_can_go_back_further_than_memory_reaches() {
    let directory = TempDir::new().unwrap();
    let world = World::new(with_dvr(recording_into(directory.path()))).await;
    let publication = rewind(&world).await;
    assert!(world.streams.recordings().is_empty(), "nothing is to be kept");
    assert!(directory.path().join("show").exists());
    publication.end();
    until("the media to be deleted with the stream", || !directory.path().join("show").exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn window_shrinks_to_memory_when_its_storage_breaks() {
    let directory = TempDir::new().unwrap();
    let place = directory.path().join("recordings");
    let world = World::new(with_dvr(recording_into(&place))).await;
    let publication = world.streams.publish("show").unwrap();
    let mut fake = Fake::new();
    fake.begin(&publication);
    fake.push(&publication, 40_000);
    world.settle(&publication).await;
    let playlist = async || {
        let path = format!("/live/show/{}/v0/playlist.m3u8", world.streams.stats()[0].epoch);
        parse_media(&world.text(&path).await).unwrap()
    };
    assert_eq!(playlist().await.media_sequence, 0);
    std::fs::rename(&place, directory.path().join("gone")).unwrap();
    std::fs::write(&place, "no directory").unwrap();
    // The first write after the break fails, and the part after that shortens the window.
    for _ in 0..60 {
        if playlist().await.media_sequence > 0 {
            break;
        }
        fake.push(&publication, 1_000);
        until("the worker", || publication.is_idle()).await;
    }
    let playlist = playlist().await;
    assert!(playlist.segments.len() <= 8, "{} segments", playlist.segments.len());
    for segment in &playlist.segments {
        world.get(&format!("/live/show/{}/v0/{}", world.streams.stats()[0].epoch, segment.uri)).await;
    }
}

/// A configuration that records into the bucket `media` of an S3 service.
fn s3(endpoint: &str) -> Config {
    Config {
        recording: true,
        storage: "s3://media/live".to_owned(),
        s3_endpoint: endpoint.to_owned(),
        s3_access_key_id: "shoal".to_owned(),
        s3_secret_access_key: Secret("secret".to_owned()),
        ..Config::default()
    }
}

/// An S3 service, and its endpoint.
async fn serve_s3(directory: &Path) -> String {
    serve_s3_with(directory, Store::default()).await
}

/// What a test knows of a store, and does to it.
#[derive(Clone, Default)]
struct Store {
    /// It has no room for objects, and says so in the words of a real one.
    is_full: Arc<AtomicBool>,
    /// How many objects with `/pages/` in their names were read.
    pages_read: Arc<AtomicUsize>,
}

#[async_trait::async_trait]
impl S3Access for Store {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let is_page = cx.s3_path().get_object_key().is_some_and(|key| key.contains("/pages/"));
        if cx.s3_op().name() == "GetObject" && is_page {
            self.pages_read.fetch_add(1, Ordering::AcqRel);
        }
        if cx.s3_op().name() == "PutObject" && self.is_full.load(Ordering::Acquire) {
            let code = S3ErrorCode::Custom("XMinioStorageFull".into());
            let mut full = S3Error::with_message(code, "the free drive threshold has been reached");
            full.set_status_code(StatusCode::INSUFFICIENT_STORAGE);
            return Err(full);
        }
        Ok(())
    }
}

/// The same, with `store` in between.
async fn serve_s3_with(directory: &Path, store: Store) -> String {
    std::fs::create_dir_all(directory.join("media")).unwrap();
    let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(directory).unwrap());
    builder.set_auth(SimpleAuth::from_single("shoal", "secret"));
    builder.set_access(store);
    let service = builder.build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                let builder = Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    endpoint
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_store_keeps_recordings_over_a_restart() {
    let directory = TempDir::new().unwrap();
    let endpoint = serve_s3(directory.path()).await;
    let world = World::new(s3(&endpoint)).await;
    let publication = world.streams.publish("real").unwrap();
    publication.expect_tracks(&[AUDIO, VIDEO]);
    let (mut video, mut audio) = (Video::new(VIDEO, 320, 180), Audio::new());
    video.rhythm = Some(60);
    push(&publication, Audio::format());
    push_all(&publication, &mut video, &mut audio, 130);
    world.settle(&publication).await;
    // As a crash would leave it: the parts of the last segment are there, and nobody closes it.
    let other = World::new(s3(&endpoint)).await;
    let recording = other.recording().await;
    check(&other, &recording, 120).await;
    publication.end();
    world.streams.recorded(std::time::Duration::from_secs(20)).await;
    check(&world, &world.recording().await, 130).await;
    let world = World::new(Config { recordings_bytes_max: 1, ..s3(&endpoint) }).await;
    let header = directory.path().join(format!("media/live/real/{}/recording.json", recording.epoch));
    until("the deletion", || !header.exists()).await;
    assert!(world.streams.recordings().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn page_of_a_recording_is_read_once_for_all_that_it_describes() {
    let directory = TempDir::new().unwrap();
    let store = Store::default();
    let endpoint = serve_s3_with(directory.path(), store.clone()).await;
    let world = World::new(s3(&endpoint)).await;
    publish_short(&world, "show", 40_000).await;
    let folder = format!("/vod/show/{}", world.recording().await.epoch);
    let before = store.pages_read.load(Ordering::Acquire);
    let reads = || store.pages_read.load(Ordering::Acquire) - before;
    for file in ["part-0-0.m4s", "part-0-1.m4s", "part-15-3.m4s", "part-7-0.m4s", "seg-9.m4s"] {
        assert_eq!(world.ask(&format!("{folder}/v0/{file}"), Some("bytes=0-0")).await.0, 206, "{file}");
        world.get(&format!("{folder}/v0/{file}.digest")).await;
        assert_eq!(reads(), 1, "{file}");
    }
    world.get(&format!("{folder}/v0/seg-16.m4s")).await;
    assert_eq!(reads(), 2, "of the page behind it");
    world.get(&format!("{folder}/a0/part-0-0.m4s")).await;
    assert_eq!(reads(), 3, "of the sound's");
    world.get(&format!("{folder}/v0/part-0-2.m4s")).await;
    assert_eq!(reads(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn page_of_a_long_window_is_read_again_when_it_has_grown() {
    let directory = TempDir::new().unwrap();
    let world = World::new(with_dvr(recording_into(directory.path()))).await;
    let publication = world.streams.publish("show").unwrap();
    let mut fake = Fake::new();
    fake.begin(&publication);
    let mut push_until = async |milliseconds: u64| {
        while fake.pushed_ms() < milliseconds {
            fake.push(&publication, 5_000);
            world.settle(&publication).await;
        }
    };
    push_until(20_000).await;
    let folder = format!("/live/show/{}/v0", world.streams.stats()[0].epoch);
    world.get(&format!("{folder}/seg-0.m4s")).await;
    // Segments of the same page, which were not stored then and have left memory since.
    push_until(50_000).await;
    for msn in 0..16 {
        world.get(&format!("{folder}/seg-{msn}.m4s")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_store_serves_a_long_window() {
    let directory = TempDir::new().unwrap();
    let endpoint = serve_s3(directory.path()).await;
    let world = World::new(with_dvr(s3(&endpoint))).await;
    rewind(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn store_that_fills_up_ends_the_recording_which_is_closed_when_there_is_room_again() {
    let directory = TempDir::new().unwrap();
    let store = Store::default();
    let endpoint = serve_s3_with(directory.path(), store.clone()).await;
    let world = World::new(s3(&endpoint)).await;
    let publication = world.streams.publish("show").unwrap();
    let mut fake = Fake::new();
    fake.begin(&publication);
    fake.push(&publication, 5_000);
    world.settle(&publication).await;
    store.is_full.store(true, Ordering::Release);
    fake.push(&publication, 5_000);
    let failure = || world.streams.list()[0].recording.clone().unwrap().failure;
    until("the report", || failure().contains("XMinioStorageFull")).await;
    let parts = world.streams.stats()[0].parts;
    fake.push(&publication, 5_000);
    until("the worker", || publication.is_idle()).await;
    assert!(world.streams.stats()[0].parts >= parts + 18, "the stream goes on");

    // The next start, at the latest, closes what was stored in time. The first server's attempts go on failing: two that close
    // the same recording at the same time is another matter.
    let endpoint = serve_s3_with(directory.path(), Store::default()).await;
    let world = World::new(s3(&endpoint)).await;
    let recording = world.recording().await;
    check_lists(&world, &recording).await;
    assert!((4_900..5_200).contains(&recording.duration_ms), "{recording:?}");
}

#[test]
fn storage_that_cannot_be_used_is_an_error_at_the_start() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "no directory").unwrap();
    let error = Streams::open(recording_into(&file), SigningKey::from_bytes(&[7; 32])).unwrap_err();
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
}
