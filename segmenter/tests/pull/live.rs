//! Live upstreams: another Shoal with parts, and a sliding window of segments that breaks off in all ways.

use std::path::Path;

use shoal_segmenter::{Config, State, Streams};

use crate::common::{self, Fake, until};
use crate::upstream::{File, Upstream, encode};
use crate::{World, pull_config, source};

/// The newest segment and part that a playlist lists.
fn newest(playlist: &shoal_playlist::MediaPlaylist) -> (u64, usize) {
    let parts = playlist.open.as_ref().map_or(0, |open| open.parts.len());
    (playlist.media_sequence + playlist.segments.len() as u64, parts)
}

fn upstream_parts(streams: &Streams) -> u64 {
    streams.stats()[0].parts
}

#[tokio::test(flavor = "multi_thread")]
async fn low_latency_origin_is_pulled_part_by_part() {
    let (streams, address) = common::serve(Config::default()).await;
    let publication = streams.publish("show").unwrap();
    let mut fake = Fake::new();
    fake.begin(&publication);
    fake.push(&publication, 5_000);
    let mut world = World::pull(source(&format!("http://{address}/live/show/index.m3u8")));
    let folders = world.folders().await;
    let mut published = Vec::new();
    for _ in 0..10 {
        fake.push(&publication, 700);
        until("the upstream", || publication.is_idle()).await;
        let parts = upstream_parts(&streams);
        until("every part", || {
            published.extend(world.published());
            published.len() as u64 >= parts
        })
        .await;
    }
    // Each part was fetched once, also those that were asked for before they were listed.
    let stats = &streams.stats()[0];
    assert_eq!(stats.media_sent_bytes, stats.media_bytes);
    world.examine().await;
    let (text, playlist) = world.playlist(&folders[0], "parts", |playlist| playlist.open.is_some()).await;
    assert!(text.contains("#EXT-X-PART-INF:PART-TARGET=0.512\n"), "{text}");
    assert!(text.contains("CAN-BLOCK-RELOAD=YES") && text.contains("PRELOAD-HINT:TYPE=PART"), "{text}");
    assert!(playlist.segments.last().unwrap().parts.len() >= 4);
    assert!(published.iter().all(|(_, uri)| uri.contains("/part-")), "{published:?}");

    publication.end();
    for folder in &folders {
        world.playlist(folder, "the end", |playlist| playlist.is_ended).await;
    }
    until("the end", || world.info().state == State::Ended).await;
    let ours = world.examine().await;
    // Byte for byte what the upstream has, from the first segment that both list.
    let theirs = World {
        streams: streams.clone(),
        router: shoal_segmenter::Origin::router(streams.clone()),
        events: streams.subscribe(),
    };
    let epoch = streams.stats()[0].epoch.clone();
    for (name, segments) in ["v0", "a0"].into_iter().zip(&ours) {
        for (msn, segment) in segments.iter().enumerate() {
            assert_eq!(
                *segment,
                theirs.bytes(&format!("/live/show/{epoch}/{name}/seg-{msn}.m4s")).await,
                "{name} {msn}"
            );
        }
    }
    assert_eq!(ours[0].len(), 6);
}

/// A live playlist of 1 s segments `from..to` of the recording in `name`.
fn sliding(name: &str, sequence: u64, from: u64, to: u64, end: &str) -> File {
    let segments: String = (from..to).map(|n| format!("#EXTINF:1.000000,\n{name}{n}.m4s\n")).collect();
    File::new(format!(
        "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:{sequence}\n\
         #EXT-X-MAP:URI=\"init.mp4\"\n{segments}{end}"
    ))
}

async fn upstream_with_segments(folder: &Path, seconds: u32) -> Upstream {
    encode(folder, seconds, "160x90", &["-hls_segment_type", "fmp4", "p.m3u8"]);
    let upstream = Upstream::start().await;
    upstream.put_folder("/", folder);
    upstream
}

#[tokio::test(flavor = "multi_thread")]
async fn live_transport_streams_are_pulled_and_recorded_with_a_window_beyond_memory() {
    let (folder, storage) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    encode(folder.path(), 24, "160x90", &["p.m3u8"]);
    let upstream = Upstream::start().await;
    upstream.put_folder("/", folder.path());
    let put = |from: u64, to: u64, end: &str| {
        let segments: String = (from..to).map(|n| format!("#EXTINF:1.000000,\np{n}.ts\n")).collect();
        let head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n";
        upstream.put_text("/live.m3u8", format!("{head}#EXT-X-MEDIA-SEQUENCE:{from}\n{segments}{end}"));
    };
    put(0, 6, "");
    let config = Config {
        segment_ms: 1_000,
        window_ms: 6_000,
        dvr_ms: 60_000,
        recording: true,
        storage: storage.path().display().to_string(),
        storage_free_bytes_min: 0,
        ..Config::default()
    };
    let world = World::with(config, &pull_config(source(&upstream.url("/live.m3u8"))));
    let folders = world.folders().await;
    assert_eq!(folders.len(), 2, "picture and sound");
    for to in 7..=24 {
        put(to - 6, to, "");
        let reach = |playlist: &shoal_playlist::MediaPlaylist| newest(playlist).0 >= to - 3;
        world.playlist(&folders[0], "the next segment", reach).await;
    }
    // Nothing has left the window, which is far longer than what memory holds.
    for folder in &folders {
        let all = |playlist: &shoal_playlist::MediaPlaylist| newest(playlist).0 == 21;
        let (text, playlist) = world.playlist(folder, "all", all).await;
        assert_eq!(
            (playlist.media_sequence, playlist.segments.len(), playlist.is_ended),
            (0, 21, false),
            "{text}"
        );
    }
    world.examine().await;

    put(18, 24, "#EXT-X-ENDLIST\n");
    until("the end", || world.info().state == State::Ended).await;
    let ours = world.examine().await;
    world.streams.recorded(std::time::Duration::from_secs(20)).await;
    let recording = world.streams.recordings().remove(0);
    assert_eq!((recording.failure.as_str(), recording.renditions.join(" ").as_str()), ("", "v0 a0"));
    assert!((20_900..21_100).contains(&recording.duration_ms), "{recording:?}");
    for (name, segments) in ["v0", "a0"].into_iter().zip(&ours) {
        for (msn, segment) in segments.iter().enumerate() {
            let kept = world.bytes(&format!("/vod/news/{}/{name}/seg-{msn}.m4s", recording.epoch)).await;
            assert_eq!(kept, *segment, "{name} {msn}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn window_that_jumps_and_begins_anew_goes_on_behind_discontinuities() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with_segments(folder.path(), 20).await;
    let put =
        |sequence, from, to, end: &str| upstream.put("/live.m3u8", sliding("p", sequence, from, to, end));
    put(100, 0, 6, "");
    let world = World::pull(source(&upstream.url("/live.m3u8")));
    let folders = world.folders().await;
    let reach = |msn| move |playlist: &shoal_playlist::MediaPlaylist| newest(playlist).0 >= msn;
    // Three target durations before the end, where players begin.
    let (_, playlist) = world.playlist(&folders[0], "the first segments", reach(3)).await;
    assert_eq!((newest(&playlist).0, playlist.is_ended), (3, false));
    put(102, 2, 8, "");
    world.playlist(&folders[0], "two more", reach(5)).await;
    assert_eq!(world.info().upstream.unwrap().segments_missed, 0);

    // Two segments leave before they can be had; what is taken up is the live edge, three more behind them.
    put(110, 10, 16, "");
    let (_, playlist) = world.playlist(&folders[0], "the jump", reach(8)).await;
    assert!(playlist.segments[5].head.is_discontinuity, "{playlist:?}");
    assert_eq!(world.info().upstream.unwrap().segments_missed, 5);

    put(0, 0, 6, "");
    let (_, playlist) = world.playlist(&folders[0], "the new beginning", reach(11)).await;
    assert!(playlist.segments[8].head.is_discontinuity, "{playlist:?}");
    assert_eq!(playlist.segments.iter().filter(|segment| segment.head.is_discontinuity).count(), 2);
    assert_eq!(folders, world.folders().await, "the same epoch");

    put(0, 0, 7, "#EXT-X-ENDLIST\n");
    world.playlist(&folders[0], "the end", |playlist| playlist.is_ended).await;
    let segments = world.examine().await;
    let original = |n: u64| std::fs::read(folder.path().join(format!("p{n}.m4s"))).unwrap();
    let expected: Vec<_> = [3, 4, 5, 6, 7, 13, 14, 15, 3, 4, 5, 6].into_iter().map(original).collect();
    assert_eq!(segments[0], expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_that_is_away_for_a_while_goes_on_and_one_that_stays_away_ends() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = upstream_with_segments(folder.path(), 12).await;
    let put = |from, to, end: &str| upstream.put("/live.m3u8", sliding("p", from, from, to, end));
    put(0, 4, "");
    let config = Config { grace_ms: 4_500, ..Config::default() };
    let world = World::with(config, &pull_config(source(&upstream.url("/live.m3u8"))));
    let folders = world.folders().await;
    let reach = |msn| move |playlist: &shoal_playlist::MediaPlaylist| newest(playlist).0 >= msn;
    world.playlist(&folders[0], "the first segments", reach(3)).await;
    assert_eq!(world.info().state, State::Live);

    upstream.remove("/live.m3u8");
    until("its absence", || world.info().state == State::Away).await;
    assert!(world.problem().contains("status 404"), "{}", world.problem());
    put(2, 6, "");
    let (_, playlist) = world.playlist(&folders[0], "more", reach(5)).await;
    assert!(playlist.segments.iter().all(|segment| !segment.head.is_discontinuity), "nothing was lost");
    until("its return", || world.info().state == State::Live && world.problem().is_empty()).await;

    // The same playlist for ever is no life either.
    until("its end", || world.info().state == State::Ended).await;
    world.playlist(&folders[0], "the end", |playlist| playlist.is_ended).await;
    world.examine().await;

    // What has ended stays so until there is something new.
    put(4, 9, "");
    until("a new stream", || world.info().state == State::Live).await;
    let anew = world.folders().await;
    assert_ne!(anew, folders, "another epoch");
    world.playlist(&anew[0], "its segments", reach(3)).await;
    world.examine().await;
}
