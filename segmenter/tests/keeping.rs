//! Recordings and the long live window, as viewers and operators meet them.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::kept::{
    check, check_file, check_lists, publish_short, recording_into, rewind, run, verify_media, with_dvr,
};
use common::{AUDIO, Audio, Fake, VIDEO, Video, World, push, push_all, until};
use ed25519_dalek::SigningKey;
use shoal_digest::Record;
use shoal_playlist::{MediaPlaylist, parse_media};
use shoal_segmenter::frame::{Input, TrackFormat};
use shoal_segmenter::{Config, RecordingState, State, Streams};
use tempfile::TempDir;

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
    assert_eq!(world.get_range("/vod/real/0/index.m3u8", None).await.0, 404);
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
    while world.get_range(&gap, None).await.0 != 200 {}
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

#[test]
fn storage_that_cannot_be_used_is_an_error_at_the_start() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "no directory").unwrap();
    let error = Streams::open(recording_into(&file), SigningKey::from_bytes(&[7; 32])).unwrap_err();
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
}
