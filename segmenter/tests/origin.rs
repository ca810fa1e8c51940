//! The origin as a client meets it, by the checklist of the LL-HLS server profile.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use bytes::Bytes;
use common::{Fake, push, until};
use ed25519_dalek::SigningKey;
use http_body_util::BodyExt as _;
use shoal_digest::{BlockDigest, Record, block_bytes};
use shoal_playlist::lint::{lint_media, lint_multivariant, lint_renditions};
use shoal_playlist::{HintKind, MediaPlaylist, Segment, parse_media};
use shoal_segmenter::frame::Input;
use shoal_segmenter::{Config, Event, Origin, Publication, Published, State, StreamStats, Streams};
use tokio::sync::broadcast;
use tower::ServiceExt as _;

/// A stream with a fake publisher, and its origin without a socket.
struct World {
    streams: Streams,
    router: Router,
    events: broadcast::Receiver<Event>,
    parts: Vec<Arc<Published>>,
    base: String,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl World {
    fn new(config: Config) -> Self {
        let streams = Streams::new(config, SigningKey::from_bytes(&[7; 32]));
        let router = Origin::router(streams.clone());
        let events = streams.subscribe();
        Self { streams, router, events, parts: Vec::new(), base: String::new() }
    }

    /// A world with a stream of so many milliseconds.
    async fn with_stream(config: Config, mut fake: Fake, milliseconds: i64) -> (Self, Publication, Fake) {
        let mut world = Self::new(config);
        let publication = world.streams.publish("show").unwrap();
        fake.begin(&publication);
        fake.push(&publication, milliseconds);
        world.settle(&publication).await;
        (world, publication, fake)
    }

    /// Waits until the worker has taken all that was pushed, and collects its events.
    async fn settle(&mut self, publication: &Publication) {
        until("the worker", || publication.is_idle()).await;
        while let Ok(event) = self.events.try_recv() {
            match event {
                Event::Started { epoch, .. } => self.base = format!("/live/show/{epoch:?}"),
                Event::Published(published) => self.parts.push(published),
                Event::Ended { .. } => {}
            }
        }
    }

    fn part(&self, rendition: u8, msn: u64, part: u16) -> Option<&Arc<Published>> {
        let wanted =
            |p: &&Arc<Published>| (p.piece.rendition, p.piece.msn, p.piece.part) == (rendition, msn, part);
        self.parts.iter().find(wanted)
    }

    async fn ask(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("the body is whole").to_bytes();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, uri: &str) -> Answer {
        self.ask(Request::get(uri).body(Body::empty()).unwrap()).await
    }

    async fn get_with(&self, uri: &str, name: &str, value: &str) -> Answer {
        self.ask(Request::get(uri).header(name, value).body(Body::empty()).unwrap()).await
    }

    async fn playlist(&self, rendition: &str) -> MediaPlaylist {
        let answer = self.get(&format!("{}/{rendition}/playlist.m3u8", self.base)).await;
        assert_eq!(answer.status, StatusCode::OK);
        parse_media(answer.text()).unwrap()
    }

    /// Demands that the lint finds nothing in what this world serves now.
    async fn lint(&self) {
        self.lint_but(&[]).await;
    }

    /// The same, except for that the stream does not promise keyframes: [`Fake`] makes none when asked, so that one of
    /// its rhythm may come too late.
    async fn lint_without_promise(&self) {
        self.lint_but(&["independent-segments-missing"]).await;
    }

    async fn lint_but(&self, expected: &[&str]) {
        let multivariant = self.get("/live/show/index.m3u8").await;
        let findings = lint_multivariant(multivariant.text());
        assert_eq!(findings.iter().map(|finding| finding.rule.id).collect::<Vec<_>>(), expected);
        let mut texts = Vec::new();
        for info in &self.streams.list()[0].renditions {
            let answer = self.get(&format!("{}/{}/playlist.m3u8", self.base, info.name)).await;
            assert_eq!(lint_media(answer.text()), [], "{}", answer.text());
            texts.push(answer.text().to_owned());
        }
        let texts: Vec<_> = texts.iter().map(String::as_str).collect();
        assert_eq!(lint_renditions(&texts), []);
    }

    fn stats(&self) -> StreamStats {
        self.streams.stats().remove(0)
    }
}

#[tokio::test]
async fn multivariant_playlist_describes_what_was_measured() {
    let (world, _publication, _) = World::with_stream(Config::default(), Fake::new(), 5_000).await;
    let answer = world.get("/live/show/index.m3u8").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.header("content-type"), "application/vnd.apple.mpegurl");
    let text = answer.text();
    for needed in [
        "#EXT-X-INDEPENDENT-SEGMENTS",
        "DATA-ID=\"live.shoal.key\"",
        "DATA-ID=\"live.shoal.epoch\"",
        "DATA-ID=\"live.shoal.tracker\",VALUE=\"/tracker\"",
        "DATA-ID=\"live.shoal.stream\",VALUE=\"show\"",
        "RESOLUTION=640x360",
        "CODECS=\"avc1.42e01f,mp4a.40.2\"",
        "#EXT-X-MEDIA:TYPE=AUDIO",
        "/a0/playlist.m3u8\"",
        "/v0/playlist.m3u8\n",
    ] {
        assert!(text.contains(needed), "{needed} is missing in {text}");
    }
    let rate: f64 = text.split("FRAME-RATE=").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
    assert!((29.9..30.1).contains(&rate), "{rate}");
    // 30 kB and 59 times 3 kB in 2 s of video: 828 kbit/s, and audio besides.
    let bandwidth: u64 =
        text.split(":BANDWIDTH=").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
    assert!((850_000..1_150_000).contains(&bandwidth), "{bandwidth}");
    let (_, variants) = m3u8_rs_variants(text);
    assert_eq!(variants, 1);
}

fn m3u8_rs_variants(text: &str) -> (usize, usize) {
    let count = |tag: &str| text.lines().filter(|line| line.starts_with(tag)).count();
    (count("#EXT-X-MEDIA:"), count("#EXT-X-STREAM-INF:"))
}

#[tokio::test]
async fn playlist_has_every_tag_that_the_profile_demands() {
    let (world, _publication, _) = World::with_stream(Config::default(), Fake::new(), 20_700).await;
    for (rendition, other) in [("v0", "../a0/playlist.m3u8"), ("a0", "../v0/playlist.m3u8")] {
        let playlist = world.playlist(rendition).await;
        assert_eq!(
            (playlist.version, playlist.target_duration_s, playlist.part_target),
            (6, 2, Some(512_000))
        );
        let control = playlist.server_control.as_ref().unwrap();
        assert!(control.can_block_reload);
        assert!(control.part_hold_back.unwrap() >= 3 * 512_000);
        assert!(control.hold_back.unwrap() >= 6_000_000);
        assert!(control.can_skip_until.unwrap() >= 12_000_000);
        assert_eq!(playlist.segments.len(), 10);
        assert!(playlist.segments[0].head.map.is_some());
        let mut date_ms = None;
        for segment in &playlist.segments {
            let now = segment.head.date_time_ms.expect("a date on every segment");
            assert!(date_ms.replace(now).is_none_or(|before| (1_960..=2_040).contains(&(now - before))));
            assert!((1_970_000..=2_030_000).contains(&segment.duration), "{}", segment.duration);
            let parts: u64 = segment.parts.iter().map(|part| part.duration).sum();
            assert!(segment.parts.is_empty() || parts == segment.duration);
        }
        let listed = playlist.segments.iter().filter(|segment| !segment.parts.is_empty()).count();
        assert!((3..=4).contains(&listed), "parts are for the live edge, {listed} segments have some");
        assert_eq!(playlist.hints.len(), 1);
        assert_eq!(playlist.hints[0].kind, HintKind::Part);
        assert_eq!(playlist.reports.len(), 1);
        assert_eq!(playlist.reports[0].uri, other);
        assert_eq!(playlist.reports[0].last_msn, 10);
    }
    world.lint().await;
}

#[tokio::test]
async fn pieces_match_their_signed_records_and_segments_are_their_parts() {
    let (world, _publication, _) = World::with_stream(Config::default(), Fake::new(), 6_500).await;
    let key = world.streams.origin_key();
    for published in &world.parts {
        let answer = world.get(&format!("/live/show/{}", published.uri)).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("cache-control"), "public, max-age=31536000, immutable");
        let record = Record::verify(&published.record, &key).unwrap();
        assert_eq!((record.length as usize, record.piece), (answer.body.len(), published.piece));
        for (block, digest) in answer.body.chunks(block_bytes(record.length) as usize).zip(&record.blocks) {
            assert_eq!(BlockDigest::of(block), *digest);
        }
        let digest = world.get(&format!("/live/show/{}.digest", published.uri)).await;
        assert_eq!(digest.body, published.record);
    }
    for rendition in ["v0", "a0"] {
        let number = u8::from(rendition == "a0");
        for msn in 0..3 {
            let segment = world.get(&format!("{}/{rendition}/seg-{msn}.m4s", world.base)).await;
            let mut records =
                world.get(&format!("{}/{rendition}/seg-{msn}.m4s.digest", world.base)).await.body;
            let (mut joined, mut part) = (Vec::new(), 0);
            while let Some(published) = world.part(number, msn, part) {
                joined.extend_from_slice(&world.get(&format!("/live/show/{}", published.uri)).await.body);
                let length = u32::from_be_bytes(records.split_to(4)[..].try_into().unwrap());
                assert_eq!(records.split_to(length as usize), published.record);
                let is_last = world.part(number, msn, part + 1).is_none();
                assert_eq!(published.is_last_in_segment, is_last, "{:?}", published.piece);
                part += 1;
            }
            assert_eq!(segment.body, joined);
            assert!(records.is_empty());
        }
    }
}

#[tokio::test]
async fn blocked_request_is_answered_by_the_part_it_names() {
    let (mut world, publication, mut fake) = World::with_stream(Config::default(), Fake::new(), 4_100).await;
    let router = world.router.clone();
    let uri = format!("{}/v0/playlist.m3u8?_HLS_msn=2&_HLS_part=1", world.base);
    let blocked =
        tokio::spawn(
            async move { router.oneshot(Request::get(uri).body(Body::empty()).unwrap()).await.unwrap() },
        );
    // It asks before there is what it waits for.
    tokio::task::yield_now().await;
    fake.push(&publication, 300);
    world.settle(&publication).await;
    assert!(!blocked.is_finished());
    fake.push(&publication, 700);
    let response = blocked.await.unwrap();
    assert_eq!(response.headers()["cache-control"], "public, max-age=12");
    let text = response.into_body().collect().await.unwrap().to_bytes();
    let playlist = parse_media(std::str::from_utf8(&text).unwrap()).unwrap();
    assert!(playlist.open.unwrap().parts.len() >= 2);
    assert!(world.stats().blocked_requests >= 1);
}

#[tokio::test(start_paused = true)]
async fn directives_that_cannot_be_met_get_the_errors_of_the_specification() {
    let (world, _publication, _) = World::with_stream(Config::default(), Fake::new(), 90_200).await;
    let playlist = format!("{}/v0/playlist.m3u8", world.base);
    let open = world.playlist("v0").await.media_sequence + world.playlist("v0").await.segments.len() as u64;
    for (query, status, cache) in [
        ("_HLS_part=0".to_owned(), 400, "public, max-age=8"),
        ("_HLS_msn=x".to_owned(), 400, "public, max-age=8"),
        (format!("_HLS_msn={}", open + 2), 400, "public, max-age=8"),
        (format!("_HLS_msn={open}&_HLS_part=7"), 400, "public, max-age=8"),
        // Gone from the playlist, or there already: the playlist is due at once.
        ("_HLS_msn=0".to_owned(), 200, "public, max-age=12"),
        ("_HLS_msn=0&_HLS_part=3".to_owned(), 200, "public, max-age=12"),
        (format!("_HLS_msn={}&_HLS_part=99", open - 2), 200, "public, max-age=12"),
        // Nothing comes any more.
        (format!("_HLS_msn={open}"), 503, "no-store"),
        (format!("_HLS_msn={}&_HLS_part=0", open + 1), 503, "no-store"),
        (String::new(), 200, "public, max-age=1"),
    ] {
        let answer = world.get(&format!("{playlist}?{query}")).await;
        assert_eq!((answer.status.as_u16(), answer.header("cache-control")), (status, cache), "{query}");
        assert_eq!(answer.header("access-control-allow-origin"), "*");
    }
}

#[tokio::test]
async fn hinted_part_is_held_and_any_other_is_not_found() {
    let (mut world, publication, mut fake) = World::with_stream(Config::default(), Fake::new(), 4_100).await;
    let hint = world.playlist("v0").await.hints.remove(0).uri;
    let router = world.router.clone();
    let uri = format!("{}/v0/{hint}", world.base);
    let held =
        tokio::spawn(
            async move { router.oneshot(Request::get(uri).body(Body::empty()).unwrap()).await.unwrap() },
        );
    for missing in ["part-2-1.m4s", "part-9-0.m4s", "seg-2.m4s", "seg-x.m4s", "init-7.mp4", "part-0-9.m4s"] {
        let answer = world.get(&format!("{}/v0/{missing}", world.base)).await;
        assert_eq!((answer.status.as_u16(), answer.header("cache-control")), (404, "no-store"), "{missing}");
        assert_eq!(answer.header("access-control-allow-origin"), "*");
    }
    assert!(!held.is_finished());
    fake.push(&publication, 600);
    world.settle(&publication).await;
    let response = held.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body.len() as u32, world.part(0, 2, 0).unwrap().length);
}

#[tokio::test]
async fn what_is_not_there_is_not_found_with_cross_origin_headers() {
    let (world, _publication, _) = World::with_stream(Config::default(), Fake::new(), 4_100).await;
    for uri in [
        "/live/nobody/index.m3u8",
        "/live/show/00000000000000000000000000000000/v0/playlist.m3u8",
        &format!("{}/v7/playlist.m3u8", world.base),
        &format!("{}/v0/anything", world.base),
        "/live/show",
        "/live/a/b/c/d/e/f",
    ] {
        let answer = world.get(uri).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{uri}");
        assert_eq!(answer.header("access-control-allow-origin"), "*", "{uri}");
        assert!(answer.header("access-control-expose-headers").contains("ETag"), "{uri}");
    }
    let request =
        Request::builder().method(Method::OPTIONS).uri("/live/show/index.m3u8").body(Body::empty()).unwrap();
    let answer = world.ask(request).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert!(answer.header("access-control-allow-headers").contains("Range"));
}

#[tokio::test]
async fn playlists_are_compressed_and_tagged_and_media_is_not_compressed() {
    let (world, _publication, _) = World::with_stream(Config::default(), Fake::new(), 4_100).await;
    let uri = format!("{}/v0/playlist.m3u8", world.base);
    let plain = world.get(&uri).await;
    let gzip = world.get_with(&uri, "accept-encoding", "gzip, br").await;
    assert_eq!(gzip.header("content-encoding"), "gzip");
    assert_eq!(gzip.header("vary"), "Accept-Encoding");
    let mut unpacked = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&gzip.body[..]), &mut unpacked).unwrap();
    assert_eq!(unpacked, plain.text());
    assert_ne!(gzip.header("etag"), plain.header("etag"));
    let again = world.get_with(&uri, "if-none-match", plain.header("etag")).await;
    assert_eq!((again.status, again.body.len()), (StatusCode::NOT_MODIFIED, 0));

    let media = world.get_with(&format!("{}/v0/seg-0.m4s", world.base), "accept-encoding", "gzip").await;
    assert_eq!(media.header("content-encoding"), "");
    assert_eq!(media.header("content-type"), "video/mp4");
}

#[tokio::test]
async fn ranges_of_segments_cross_their_parts() {
    let (world, _publication, _) = World::with_stream(Config::default(), Fake::new(), 4_100).await;
    let uri = format!("{}/v0/seg-0.m4s", world.base);
    let whole = world.get(&uri).await;
    let first = world.part(0, 0, 0).unwrap().length as usize;
    for (from, to) in
        [(0, 0), (first - 3, first + 3), (10, whole.body.len() - 1), (first, whole.body.len() - 1)]
    {
        let answer = world.get_with(&uri, "range", &format!("bytes={from}-{to}")).await;
        assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT);
        assert_eq!(answer.header("content-range"), format!("bytes {from}-{to}/{}", whole.body.len()));
        assert_eq!(answer.body, whole.body[from..=to]);
    }
    let answer = world.get_with(&uri, "range", "bytes=99999999-").await;
    assert_eq!(answer.status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(answer.header("content-range"), format!("bytes */{}", whole.body.len()));
}

#[tokio::test]
async fn figures_are_exact() {
    let (world, _publication, _) = World::with_stream(Config::default(), Fake::new(), 4_100).await;
    let existed: u64 = world.parts.iter().map(|part| u64::from(part.length)).sum();
    assert_eq!(world.stats().media_bytes, existed);
    let mut segment_bytes = 0;
    for uri in ["v0/seg-0.m4s", "a0/seg-0.m4s", "v0/seg-0.m4s"] {
        segment_bytes += world.get(&format!("{}/{uri}", world.base)).await.body.len() as u64;
    }
    let part = world.get_with(&format!("{}/v0/part-1-0.m4s", world.base), "range", "bytes=5-104").await;
    assert_eq!(part.body.len(), 100);
    let head = Request::head(format!("{}/v0/seg-0.m4s", world.base)).body(Body::empty()).unwrap();
    let head = world.ask(head).await;
    assert!(head.body.is_empty() && head.header("content-length").parse::<u32>().unwrap() > 100);
    let stats = world.stats();
    assert_eq!((stats.sent_bytes.segment, stats.sent_bytes.part), (segment_bytes, 100));
    assert_eq!(stats.media_sent_bytes, segment_bytes + 100);
    assert_eq!((stats.requests.segment, stats.requests.part), (4, 1));
}

#[tokio::test]
async fn returning_publisher_continues_the_stream_behind_a_discontinuity() {
    // Short segments, so that the gaps that the wall clock brings come soon.
    let config = Config { part_ms: 200, segment_ms: 400, window_ms: 20_000, ..Config::default() };
    let (mut world, publication, _) = World::with_stream(config, Fake::new(), 1_000).await;
    let before = world.playlist("v0").await;
    drop(publication);
    until("gaps", || world.streams.list()[0].state == State::Away).await;
    let mut gaps = 0;
    for _ in 0..500 {
        gaps = world.playlist("v0").await.segments.iter().filter(|segment| segment.is_gap).count();
        if gaps >= 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(gaps >= 2, "what is missing is said to be missing");

    let publication = world.streams.publish("show").unwrap();
    let mut fake = Fake::new();
    fake.begin(&publication);
    fake.push(&publication, 4_100);
    world.settle(&publication).await;
    assert_eq!(world.streams.list()[0].state, State::Live);
    for rendition in ["v0", "a0"] {
        let after = world.playlist(rendition).await;
        assert_eq!(after.media_sequence, before.media_sequence);
        let index = after.segments.iter().position(|segment| segment.head.is_discontinuity).unwrap();
        assert!(index >= gaps);
        let head = &after.segments[index].head;
        assert_eq!(head.map.as_ref().unwrap().uri, "init-1.mp4");
        let dates: Vec<_> = after.segments.iter().map(|segment| segment.head.date_time_ms.unwrap()).collect();
        assert!(dates.is_sorted(), "{dates:?}");
        let init = world.get(&format!("{}/{rendition}/init-1.mp4", world.base)).await;
        assert_eq!(init.status, StatusCode::OK);
    }
    world.lint_without_promise().await;
}

#[tokio::test]
async fn stream_without_a_publisher_ends_and_is_forgotten() {
    let config = Config { grace_ms: 100, ended_keep_ms: 400, ..Config::default() };
    let (mut world, publication, _) = World::with_stream(config, Fake::new(), 4_500).await;
    let uri = format!("{}/v0/playlist.m3u8?_HLS_msn=5", world.base);
    drop(publication);
    until("the end", || world.streams.list().first().is_none_or(|info| info.state == State::Ended)).await;
    let answer = world.get(&uri).await;
    assert_eq!(answer.status, StatusCode::OK, "directives count no more");
    let playlist = parse_media(answer.text()).unwrap();
    assert!(playlist.is_ended && playlist.hints.is_empty() && playlist.open.is_none());
    assert_eq!(playlist.segments.len(), 3, "the unfinished part is not lost");
    assert!(world.events.try_recv().is_ok());
    until("forgetting", || world.streams.list().is_empty()).await;
    assert_eq!(world.get("/live/show/index.m3u8").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn stream_that_ends_right_behind_a_keyframe_has_as_many_segments_of_sound_as_of_pictures() {
    for opus in [false, true] {
        let config = Config { opus, ..Config::default() };
        // The keyframe is the last frame: the segment before it has ended for the pictures, and not for the sound.
        let (world, publication, _) = World::with_stream(config, Fake::new(), 4_034).await;
        publication.end();
        until("the end", || world.streams.list()[0].state == State::Ended).await;
        for rendition in ["v0", "a0", "a1"].iter().take(2 + usize::from(opus)) {
            let playlist = world.playlist(rendition).await;
            let rounded = |segment: &Segment| (segment.is_gap, (segment.duration + 50_000) / 100_000);
            let durations: Vec<_> = playlist.segments.iter().map(rounded).collect();
            assert_eq!(durations, [(false, 20), (false, 20), (false, 0)], "{rendition}");
        }
    }
}

#[tokio::test]
async fn new_size_is_cut_on_all_renditions() {
    let (mut world, publication, mut fake) = World::with_stream(Config::default(), Fake::new(), 6_000).await;
    push(&publication, Fake::video_format(360, 640));
    fake.push(&publication, 6_500);
    world.settle(&publication).await;
    for rendition in ["v0", "a0"] {
        let playlist = world.playlist(rendition).await;
        let cuts: Vec<_> =
            (0..).zip(&playlist.segments).filter(|(_, s)| s.head.is_discontinuity).map(|(i, _)| i).collect();
        assert_eq!(cuts, [3], "{rendition}");
        assert_eq!(playlist.segments[3].head.map.as_ref().unwrap().uri, "init-1.mp4");
    }
    let text = world.get("/live/show/index.m3u8").await;
    assert!(text.text().contains("RESOLUTION=360x640"));
    world.lint().await;
}

#[tokio::test]
async fn clock_jump_is_a_discontinuity() {
    let (mut world, publication, mut fake) = World::with_stream(Config::default(), Fake::new(), 4_000).await;
    push(&publication, Input::Discontinuity);
    fake.push(&publication, 4_500);
    world.settle(&publication).await;
    let playlist = world.playlist("v0").await;
    assert_eq!(playlist.segments.iter().filter(|segment| segment.head.is_discontinuity).count(), 1);
    world.lint().await;
}

#[tokio::test]
async fn simulcast_layers_are_renditions_with_the_same_segments() {
    for second_late in [0, 3, 20] {
        let mut fake = Fake::new();
        (fake.with_second, fake.second_late) = (true, second_late);
        let (mut world, publication, mut fake) = World::with_stream(Config::default(), fake, 30_000).await;
        let text = world.get("/live/show/index.m3u8").await;
        assert_eq!(m3u8_rs_variants(text.text()), (1, 2), "{}", text.text());
        assert!(text.text().contains("RESOLUTION=320x180"));
        // A layer whose keyframes come much later than the first's, and not when they are asked for, has segments without.
        if second_late < 20 {
            world.lint().await;
        } else {
            world.lint_without_promise().await;
        }
        let (first, second) = (world.playlist("v0").await, world.playlist("v1").await);
        for (first, second) in first.segments.iter().zip(&second.segments) {
            let apart_ms = first.head.date_time_ms.unwrap() - second.head.date_time_ms.unwrap();
            assert!(apart_ms.abs() < 1_000, "{second_late} frames late: {apart_ms} ms");
        }
        // The layer stops, as browsers do with a narrow uplink, and comes back.
        fake.with_second = false;
        fake.push(&publication, 10_000);
        fake.with_second = true;
        fake.push(&publication, 10_000);
        world.settle(&publication).await;
        let (first, second) = (world.playlist("v0").await, world.playlist("v1").await);
        let newest = |playlist: &MediaPlaylist| playlist.media_sequence + playlist.segments.len() as u64;
        assert!(newest(&first).abs_diff(newest(&second)) <= 1);
        assert!(second.segments.iter().any(|segment| segment.is_gap));
        assert!(!second.segments.last().unwrap().is_gap);
        assert!(first.segments.iter().all(|segment| !segment.is_gap));
    }
}

#[tokio::test]
async fn layer_that_stops_in_its_first_segment_does_not_hold_up_the_others() {
    // After its first part, which is complete then, and after nothing but the word that it would come.
    for frames in [15, 0] {
        let mut world = World::new(Config::default());
        let publication = world.streams.publish("show").unwrap();
        let mut fake = Fake::new();
        fake.with_second = true;
        fake.begin(&publication);
        fake.push(&publication, frames * 1000 / 30);
        fake.with_second = false;
        fake.push(&publication, 9_000);
        world.settle(&publication).await;
        let asked = tokio::time::Instant::now();
        let answer = world.get("/live/show/index.m3u8").await;
        assert_eq!(answer.status, StatusCode::OK, "{frames} frames: {}", answer.text());
        assert!(asked.elapsed() < Duration::from_secs(5), "it was held");
        assert_eq!(m3u8_rs_variants(answer.text()), (1, 2), "{}", answer.text());
        assert!(!answer.text().contains("BANDWIDTH=0,"), "{}", answer.text());
        assert_eq!(lint_multivariant(answer.text()), []);
    }
}

#[tokio::test]
async fn segments_without_keyframes_end_the_promise_that_there_are_none() {
    const TAG: &str = "#EXT-X-INDEPENDENT-SEGMENTS";
    let (mut world, publication, mut fake) = World::with_stream(Config::default(), Fake::new(), 5_000).await;
    assert!(world.get("/live/show/index.m3u8").await.text().contains(TAG));
    // The publisher takes ten seconds between keyframes, whatever is asked.
    fake.rhythm = 300;
    fake.push(&publication, 4_000);
    world.settle(&publication).await;
    assert!(!world.get("/live/show/index.m3u8").await.text().contains(TAG));
}

#[tokio::test]
async fn stalled_camera_becomes_gaps_while_the_sound_goes_on() {
    let (mut world, publication, mut fake) = World::with_stream(Config::default(), Fake::new(), 5_000).await;
    fake.show(false);
    fake.push(&publication, 9_000);
    fake.show(true);
    fake.push(&publication, 8_000);
    world.settle(&publication).await;
    let (video, audio) = (world.playlist("v0").await, world.playlist("a0").await);
    for playlist in [&video, &audio] {
        for segment in &playlist.segments {
            assert!(segment.duration < 2_500_000, "the target duration holds: {}", segment.duration);
        }
    }
    let gaps = video.segments.iter().filter(|segment| segment.is_gap).count();
    assert!((2..=5).contains(&gaps), "{gaps} gaps");
    assert!(audio.segments.iter().all(|segment| !segment.is_gap));
    assert!(!video.segments.last().unwrap().is_gap);
    // Both still have the same numbers for the same time.
    for (video, audio) in video.segments.iter().zip(&audio.segments) {
        let (video_ms, audio_ms) = (video.head.date_time_ms.unwrap(), audio.head.date_time_ms.unwrap());
        assert!((video_ms - audio_ms).abs() < 700, "{video_ms} {audio_ms}");
    }
    let total =
        |playlist: &MediaPlaylist| playlist.segments.iter().map(|segment| segment.duration).sum::<u64>();
    assert!(total(&video).abs_diff(total(&audio)) < 700_000);
    world.lint().await;
}

#[tokio::test]
async fn announced_but_silent_microphone_gets_its_rendition_and_may_speak_later() {
    let config = Config { part_ms: 200, segment_ms: 400, ..Config::default() };
    let mut world = World::new(config);
    let publication = world.streams.publish("show").unwrap();
    let mut fake = Fake::new();
    publication.expect_tracks(&fake.tracks());
    push(&publication, Fake::video_format(640, 360));
    fake.with_audio = false;
    fake.push(&publication, 4_000);
    until("the start without sound", || !world.streams.list().is_empty()).await;
    fake.push(&publication, 2_000);
    push(&publication, common::Audio::format());
    fake.with_audio = true;
    fake.push(&publication, 2_000);
    world.settle(&publication).await;
    let (video, audio) = (world.playlist("v0").await, world.playlist("a0").await);
    assert!(audio.segments.len().abs_diff(video.segments.len()) <= 1);
    assert!(audio.segments.iter().all(|segment| !segment.head.is_discontinuity));
    world.lint_without_promise().await;
}

#[tokio::test]
async fn sound_alone_and_picture_alone_are_streams_too() {
    for (with_audio, with_video, rendition) in [(true, false, "a0"), (false, true, "v0")] {
        let mut fake = Fake::new();
        (fake.with_audio, fake.with_video) = (with_audio, with_video);
        let (world, _publication, _) = World::with_stream(Config::default(), fake, 9_000).await;
        let text = world.get("/live/show/index.m3u8").await;
        assert_eq!(m3u8_rs_variants(text.text()), (0, 1), "{}", text.text());
        let playlist = world.playlist(rendition).await;
        assert!(playlist.segments.len() >= 3, "{} segments", playlist.segments.len());
        assert!(playlist.segments.iter().all(|segment| (1_970_000..2_030_000).contains(&segment.duration)));
        assert!(playlist.reports.is_empty());
        world.lint().await;
    }
}

#[tokio::test]
async fn stream_holds_no_more_than_its_limit() {
    let config = Config { stream_bytes_max: 2 << 20, window_ms: 600_000, ..Config::default() };
    let (world, _publication, _) = World::with_stream(config, Fake::new(), 60_000).await;
    let stats = world.stats();
    assert!(stats.media_bytes > 4 << 20, "the test pushes more than the limit");
    assert!(stats.held_bytes <= 2 << 20, "{} bytes", stats.held_bytes);
    let playlist = world.playlist("v0").await;
    assert!(playlist.media_sequence > 0);
    assert!(playlist.segments.len() >= 3);
    let audio = world.playlist("a0").await;
    assert!(audio.media_sequence.abs_diff(playlist.media_sequence) <= 1);
    world.lint().await;
}

#[tokio::test]
async fn delta_completes_the_copy_that_a_client_has() {
    let (world, _publication, _) = World::with_stream(Config::default(), Fake::new(), 40_000).await;
    let full = world.playlist("v0").await;
    for value in ["YES", "v2"] {
        let answer = world.get(&format!("{}/v0/playlist.m3u8?_HLS_skip={value}", world.base)).await;
        let delta = parse_media(answer.text()).unwrap();
        let skipped = delta.skipped.unwrap() as usize;
        assert_eq!(full.segments[skipped..], delta.segments);
        assert!(answer.text().find("MEDIA-SEQUENCE").unwrap() < answer.text().find("EXT-X-SKIP").unwrap());
    }
    world.lint().await;
}
