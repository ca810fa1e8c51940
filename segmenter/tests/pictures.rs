//! Posters and thumbnails: x264 publishes, the real `ffmpeg` looks at what comes out.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::io::Write as _;
use std::process::{Command, Stdio};

use common::{Fake, VIDEO, Video, World, push, until};
use shoal_playlist::lint::lint_multivariant;
use shoal_playlist::parse_date_time;
use shoal_segmenter::{Config, Publication, RecordingState};

/// Segments of one second, and a picture of each of them.
fn config() -> Config {
    Config { segment_ms: 1_000, window_ms: 10_000, pictures_interval_ms: 1_000, ..Config::default() }
}

impl World {
    async fn ask(&self, path: &str) -> reqwest::Response {
        self.client.get(format!("{}{path}", self.base)).send().await.unwrap()
    }

    fn poster_url(&self) -> Option<String> {
        self.streams.list().first().and_then(|info| info.poster_url.clone())
    }

    /// Waits for the poster that is the `number`th picture.
    async fn poster(&self, number: usize) -> String {
        let ending = format!("?{number}");
        until(&format!("poster {number}"), || self.poster_url().is_some_and(|url| url.ends_with(&ending)))
            .await;
        self.poster_url().unwrap()
    }

    /// What the thumbnails of a list show: time in milliseconds, program date time, brightness.
    async fn thumbnails(&self, path: &str) -> Vec<(u64, i64, u8)> {
        let folder = path.rsplit_once('/').unwrap().0;
        let text = self.text(path).await;
        let mut found = Vec::new();
        let mut sheet = (String::new(), Vec::new());
        for cue in text.split("\n\n").skip(1) {
            let lines: Vec<_> = cue.lines().collect();
            let [date, times, uri] = lines[..] else { panic!("{cue}") };
            let (uri, place) = uri.split_once("#xywh=").unwrap();
            if sheet.0 != uri {
                sheet = (uri.to_owned(), grey(&self.get(&format!("{folder}/{uri}")).await, "null"));
            }
            let place: Vec<usize> = place.split(',').map(|number| number.parse().unwrap()).collect();
            let [x, y, width, height] = place[..] else { panic!("{cue}") };
            // A sheet is five cells wide.
            let rows = sheet.1.chunks_exact(5 * 160).skip(y).take(height);
            let cell: Vec<u8> = rows.flat_map(|row| &row[x..x + width]).copied().collect();
            let (start, _) = times.split_once(" --> ").unwrap();
            found.push((milliseconds(start), parse_date_time(date).unwrap(), mean(&cell)));
        }
        found
    }
}

fn milliseconds(time: &str) -> u64 {
    let numbers: Vec<u64> = time.split([':', '.']).map(|number| number.parse().unwrap()).collect();
    let [hours, minutes, seconds, milliseconds] = numbers[..] else { panic!("{time}") };
    ((hours * 60 + minutes) * 60 + seconds) * 1000 + milliseconds
}

fn mean(values: &[u8]) -> u8 {
    (values.iter().map(|value| u64::from(*value)).sum::<u64>() / values.len() as u64) as u8
}

/// The mean brightness of what a filter leaves of a JPEG.
fn brightness(jpeg: &[u8], filter: &str) -> u8 {
    mean(&grey(jpeg, filter))
}

/// The brightness of each pixel that a filter leaves of a JPEG, as `ffmpeg` decodes it.
fn grey(jpeg: &[u8], filter: &str) -> Vec<u8> {
    let arguments = ["-v", "error", "-f", "mjpeg", "-i", "-", "-vf", filter];
    let mut ffmpeg = Command::new("ffmpeg")
        .args(arguments)
        .args(["-f", "rawvideo", "-pix_fmt", "gray", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("ffmpeg is installed");
    ffmpeg.stdin.take().unwrap().write_all(jpeg).unwrap();
    let output = ffmpeg.wait_with_output().unwrap();
    assert!(output.status.success() && !output.stdout.is_empty());
    output.stdout
}

/// How bright the publisher's picture is in a segment, and how bright that is in a JPEG, which has no head- and footroom.
fn level(segment: usize) -> u8 {
    30 + (segment * 17 % 190) as u8
}

fn is_level(brightness: u8, segment: usize) -> bool {
    let expected = (f64::from(level(segment)) - 16.0) * 255.0 / 219.0;
    (f64::from(brightness) - expected).abs() < 4.0
}

/// Publishes a segment of a second, all of one brightness.
fn push_segment(publication: &Publication, video: &mut Video, segment: usize) {
    video.rhythm = Some(30);
    video.level = Some(level(segment));
    for _ in 0..30 {
        video.next(false).into_iter().for_each(|input| push(publication, input));
    }
}

fn publish(world: &World) -> Publication {
    let publication = world.streams.publish("show").unwrap();
    publication.expect_tracks(&[VIDEO]);
    publication
}

#[tokio::test(flavor = "multi_thread")]
async fn poster_is_the_newest_picture_and_thumbnails_are_those_of_their_times() {
    let world = World::new(config()).await;
    let publication = publish(&world);
    let mut video = Video::new(VIDEO, 1280, 720);
    for segment in 0..7 {
        push_segment(&publication, &mut video, segment);
        let url = world.poster(segment + 1).await;
        let answer = world.ask(&url).await;
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(
            (&*header("content-type"), &*header("cache-control")),
            ("image/jpeg", "public, max-age=1")
        );
        let tag = header("etag");
        let poster = answer.bytes().await.unwrap();
        assert!(is_level(brightness(&poster, "null"), segment), "segment {segment}");
        let known = world.client.get(format!("{}{url}", world.base)).header("if-none-match", tag);
        assert_eq!(known.send().await.unwrap().status(), 304);
    }
    let size = brightness(&world.get("/live/show/poster.jpg").await, "crop=640:360:0:0");
    assert!(is_level(size, 6), "it is 640x360");

    let found = world.thumbnails("/live/show/thumbnails.vtt").await;
    assert_eq!(found.len(), 7);
    for (segment, (start_ms, date_ms, brightness)) in found.iter().enumerate() {
        assert!(start_ms.abs_diff(segment as u64 * 1_000) < 5, "{start_ms} ms");
        assert_eq!(date_ms - found[0].1, i64::try_from(start_ms - found[0].0).unwrap());
        assert!(is_level(*brightness, segment), "segment {segment}: {brightness}");
    }
    let multivariant = world.text("/live/show/index.m3u8").await;
    assert_eq!(lint_multivariant(&multivariant), []);
    for entry in ["poster\",VALUE=\"poster.jpg\"", "thumbnails\",VALUE=\"thumbnails.vtt\""] {
        assert!(
            multivariant.contains(&format!("#EXT-X-SESSION-DATA:DATA-ID=\"live.shoal.{entry}")),
            "{multivariant}"
        );
    }
    assert!(world.streams.stats()[0].sent_bytes.picture > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_that_cannot_be_decoded_has_no_poster_and_does_not_stop_those_of_others() {
    let world = World::new(config()).await;
    let nonsense = world.streams.publish("nonsense").unwrap();
    let mut fake = Fake::new();
    fake.with_audio = false;
    fake.begin(&nonsense);
    fake.push(&nonsense, 10_000);
    until("the worker", || nonsense.is_idle()).await;
    let publication = publish(&world);
    let mut video = Video::new(VIDEO, 180, 320);
    push_segment(&publication, &mut video, 3);
    let shown = || world.streams.list().into_iter().find(|info| info.name == "show")?.poster_url;
    until("the other's poster", || shown().is_some()).await;
    assert!(is_level(brightness(&world.get("/live/show/poster.jpg").await, "crop=180:320:0:0"), 3));
    for path in ["/live/nonsense/poster.jpg", "/live/nonsense/thumbnails.vtt", "/live/nobody/poster.jpg"] {
        assert_eq!(world.ask(path).await.status(), 404, "{path}");
    }
    assert!(!world.text("/live/nonsense/index.m3u8").await.contains("poster.jpg"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_pictures_are_made_where_none_are_wanted() {
    let world = World::new(Config { pictures_interval_ms: 0, ..config() }).await;
    let publication = publish(&world);
    let mut video = Video::new(VIDEO, 320, 180);
    push_segment(&publication, &mut video, 0);
    push_segment(&publication, &mut video, 1);
    assert!(!world.text("/live/show/index.m3u8").await.contains("poster"));
    assert_eq!(world.ask("/live/show/poster.jpg").await.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_are_kept_with_the_recording_and_beyond_memory() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config {
        recording: true,
        dvr_ms: 600_000,
        storage: directory.path().to_str().unwrap().to_owned(),
        storage_free_bytes_min: 0,
        ..config()
    };
    let world = World::new(config).await;
    let publication = publish(&world);
    let mut video = Video::new(VIDEO, 64, 64);
    // Two sheets of 25 stay in memory; the first one does not.
    let segments = 52;
    for segment in 0..segments {
        push_segment(&publication, &mut video, segment);
        world.poster(segment + 1).await;
    }
    until("the storage", || world.streams.stats()[0].is_stored).await;
    let check = |found: Vec<(u64, i64, u8)>| {
        assert_eq!(found.len(), segments);
        for (segment, (start_ms, _, brightness)) in found.into_iter().enumerate() {
            assert!(start_ms.abs_diff(segment as u64 * 1_000) < 40, "{start_ms} ms");
            assert!(is_level(brightness, segment), "segment {segment}: {brightness}");
        }
    };
    check(world.thumbnails("/live/show/thumbnails.vtt").await);
    publication.end();
    let closed = || world.streams.recordings().into_iter().find(|info| info.state == RecordingState::Closed);
    until("the recording", || closed().is_some()).await;
    let recording = closed().unwrap();
    check(world.thumbnails(&recording.thumbnails_url.unwrap()).await);
    // The 32nd of 52.
    let poster = world.get(&recording.poster_url.unwrap()).await;
    assert!(is_level(brightness(&poster, "null"), 31));
    let multivariant = world.text(&recording.url.unwrap()).await;
    assert!(
        multivariant.contains("VALUE=\"poster.jpg\"") && multivariant.contains("VALUE=\"thumbnails.vtt\"")
    );
    assert_eq!(lint_multivariant(&multivariant), []);
}
