//! Upstreams that want a secret, lead elsewhere, fail, or talk nonsense.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use shoal_segmenter::pull::{self, Source};
use shoal_segmenter::{Config, PublishError, State};

use crate::common::until;
use crate::upstream::{File, Upstream, encode};
use crate::{World, pull_config, source};

fn is_complete(playlist: &shoal_playlist::MediaPlaylist) -> bool {
    playlist.is_ended
}

/// Four segments of 1 s: `p.m3u8`, `init.mp4`, `p0.m4s` and so on.
fn media() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    encode(folder.path(), 4, "160x90", &["-hls_segment_type", "fmp4", "p.m3u8"]);
    folder
}

fn read(folder: &tempfile::TempDir, name: &str) -> Vec<u8> {
    std::fs::read(folder.path().join(name)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_go_to_the_named_host_only_and_are_never_shown() {
    let folder = media();
    let (upstream, cdn) = (Upstream::start().await, Upstream::start().await);
    cdn.put_folder("/", folder.path());
    let secret = "Bearer hidden";
    let text = String::from_utf8(read(&folder, "p.m3u8")).unwrap();
    upstream.put("/p.m3u8", File::new(text).secret(secret));
    upstream.put("/init.mp4", File::new(read(&folder, "init.mp4")).secret(secret));
    for n in 0..4 {
        let name = format!("p{n}.m4s");
        upstream.put(&format!("/{name}"), File::redirect(&cdn.url(&format!("/{name}"))).secret(secret));
    }
    let url = upstream.url("/p.m3u8?token=hidden").replace("http://", "http://user:hidden@");
    let world = World::pull(Source {
        headers: vec![format!("Authorization: {secret}").into()],
        hosts: vec![cdn.address.to_string()],
        ..source(&url)
    });
    let folders = world.folders().await;
    world.playlist(&folders[0], "the end", is_complete).await;
    world.examine().await;
    assert!(upstream.asked().iter().all(|asked| asked.authorization.as_deref() == Some(secret)));
    assert_eq!(cdn.asked().len(), 4);
    assert!(cdn.asked().iter().all(|asked| asked.authorization.is_none()), "{:?}", cdn.asked());
    let shown = serde_json::to_string(&world.streams.list()).unwrap() + &format!("{:?}", world.streams);
    assert!(shown.contains("/p.m3u8") && !shown.contains("hidden"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_were_not_named_are_never_asked() {
    let folder = media();
    let (upstream, other) = (Upstream::start().await, Upstream::start().await);
    other.put_folder("/", folder.path());
    upstream.put("/redirect.m3u8", File::redirect(&other.url("/p.m3u8")));
    upstream.put_text(
        "/uri.m3u8",
        format!("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1000\n{}\n", other.url("/p.m3u8")),
    );
    let text = String::from_utf8(read(&folder, "p.m3u8")).unwrap();
    upstream.put_text("/map.m3u8", text.replace("init.mp4", &other.url("/init.mp4")));
    upstream.put_text("/segment.m3u8", text.replace("p0.m4s", &other.url("/p0.m4s")));
    upstream.put("/init.mp4", File::new(read(&folder, "init.mp4")));
    upstream.put_text("/file.m3u8", "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1000\nfile:///etc/passwd\n");
    for (path, words) in [
        ("/redirect.m3u8", format!("add \"{}\" to `hosts`", other.address)),
        ("/uri.m3u8", format!("add \"{}\" to `hosts`", other.address)),
        ("/map.m3u8", format!("add \"{}\" to `hosts`", other.address)),
        ("/segment.m3u8", format!("add \"{}\" to `hosts`", other.address)),
        ("/file.m3u8", "not HTTP".to_owned()),
    ] {
        let world = World::pull(source(&upstream.url(path)));
        until(&words, || world.problem().contains(&words)).await;
        assert_eq!(world.info().state, State::Waiting);
        world.streams.close();
    }
    assert!(other.asked().is_empty(), "{:?}", other.asked());
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_tried_again_and_counted() {
    let folder = media();
    let upstream = Upstream::start().await;
    for name in ["p.m3u8", "init.mp4", "p0.m4s", "p1.m4s", "p2.m4s", "p3.m4s"] {
        upstream.put(&format!("/{name}"), File::new(read(&folder, name)).failing(2));
    }
    let world = World::pull(source(&upstream.url("/p.m3u8")));
    let folders = world.folders().await;
    world.playlist(&folders[0], "the end", is_complete).await;
    assert_eq!(world.examine().await[0].len(), 4);
    let status = world.info().upstream.unwrap();
    assert_eq!((status.failures, status.segments_missed), (12, 0), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_and_broken_segments_become_gaps() {
    let folder = media();
    let upstream = Upstream::start().await;
    upstream.put_folder("/", folder.path());
    upstream.remove("/p1.m4s");
    upstream.put_text("/p2.m4s", "this is no film");
    let world = World::pull(source(&upstream.url("/p.m3u8")));
    let folders = world.folders().await;
    let (text, playlist) = world.playlist(&folders[0], "the end", is_complete).await;
    let gaps: Vec<bool> = playlist.segments.iter().map(|segment| segment.is_gap).collect();
    assert_eq!(gaps, [false, true, true, false], "{text}");
    assert_eq!(world.examine().await[0].len(), 2);
    assert_eq!(world.info().upstream.unwrap().segments_missed, 2);
    assert_eq!(upstream.asked_for("/p1.m4s"), 3, "asked for again, and not for ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_named_and_what_comes_after_it_is_pulled() {
    let folder = media();
    let upstream = Upstream::start().await;
    upstream.put_folder("/", folder.path());
    let good = File::new(read(&folder, "p.m3u8"));
    let gzip = |text: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(text).unwrap();
        let body = encoder.finish().unwrap();
        File { headers: vec![("content-encoding", "gzip".to_owned())], ..File::new(body) }
    };
    let bomb = vec![b'#'; 4 << 20];
    let encrypted = String::from_utf8(good.body.to_vec()).unwrap();
    let encrypted = encrypted.replacen("#EXTINF", "#EXT-X-KEY:METHOD=AES-128,URI=\"k\"\n#EXTINF", 1);
    upstream.put("/live.m3u8", File::redirect("/live.m3u8"));
    let pull =
        pull::Config { playlist_bytes_max: 64 << 10, ..pull_config(source(&upstream.url("/live.m3u8"))) };
    let world = World::with(Config::default(), &pull);
    assert_eq!(world.streams.publish("news").unwrap_err(), PublishError::Busy, "the name is taken");
    let cases = [
        (None, "redirected more than 5 times"),
        (Some(File::new("<html>no stream here</html>")), "no playlist"),
        (Some(File::new(bomb.clone())), "larger than 65536 bytes"),
        (Some(File::new(vec![0xff; 1000])), "no playlist"),
        (Some(gzip(&bomb)), "larger than 65536 bytes"),
        (
            Some(File { headers: vec![("content-encoding", "gzip".to_owned())], ..File::new("no gzip") }),
            "gzip is broken",
        ),
        (Some(File::new("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=x\n")), "multivariant playlist"),
        (Some(File::new("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nhttp://\n")), "URI"),
        (Some(File::new("#EXTM3U\n#EXTINF:x,\np0.m4s\n")), "line 2"),
        (
            Some(File::new("#EXTM3U\n#EXT-X-TARGETDURATION:18446744073709551615\n#EXTINF:1,\nx\n")),
            "longer than a day",
        ),
    ];
    for (file, words) in cases {
        if let Some(file) = file {
            upstream.put("/live.m3u8", file);
        }
        until(words, || world.problem().contains(words)).await;
        assert_eq!(world.info().state, State::Waiting);
    }
    // And its good form, compressed.
    upstream.put("/live.m3u8", gzip(&good.body));
    let folders = world.folders().await;
    world.playlist(&folders[0], "the end", is_complete).await;
    world.examine().await;
    assert_eq!(world.problem(), "");

    upstream.put("/encrypted.m3u8", File::new(encrypted));
    let world = World::pull(source(&upstream.url("/encrypted.m3u8")));
    until("the refusal", || world.problem().contains("encrypted (EXT-X-KEY:METHOD=AES-128)")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recording_that_does_not_fit_is_served_as_far_as_it_does() {
    let folder = media();
    let upstream = Upstream::start().await;
    upstream.put_folder("/", folder.path());
    let room = read(&folder, "p0.m4s").len() + read(&folder, "p1.m4s").len() + 10;
    let config = Config { stream_bytes_max: room, ..Config::default() };
    let world = World::with(config, &pull_config(source(&upstream.url("/p.m3u8"))));
    until("the end", || world.info().state == State::Ended).await;
    assert!(world.problem().contains("segmenter.stream_bytes_max"), "{}", world.problem());
    assert_eq!(world.examine().await[0].len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_ends_what_is_pulled() {
    let folder = media();
    let upstream = Upstream::start().await;
    upstream.put_folder("/", folder.path());
    let text = String::from_utf8(read(&folder, "p.m3u8")).unwrap();
    upstream.put_text("/p.m3u8", text.replace("#EXT-X-ENDLIST", "").replace("#EXT-X-PLAYLIST-TYPE:VOD", ""));
    let world = World::pull(source(&upstream.url("/p.m3u8")));
    let folders = world.folders().await;
    world.playlist(&folders[0], "segments", |playlist| !playlist.segments.is_empty()).await;
    assert_eq!(world.info().state, State::Live);
    world.streams.close();
    world.playlist(&folders[0], "the end", is_complete).await;
}
