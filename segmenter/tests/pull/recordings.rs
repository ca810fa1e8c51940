//! Complete playlists: whole segments of fragmented MP4, in every way in which they are written down.

use std::process::{Command, Stdio};

use crate::upstream::{File, Upstream, encode};
use crate::{World, source};

/// All segments in one file, as byte ranges.
const ONE_FILE: [&str; 5] = ["-hls_segment_type", "fmp4", "-hls_flags", "single_file", "one.m3u8"];

fn is_complete(playlist: &shoal_playlist::MediaPlaylist) -> bool {
    playlist.is_ended
}

/// The frames of the best picture, as ffprobe counts them, which must have no complaint.
fn frames(url: &str) -> String {
    let output = Command::new("ffprobe")
        .args([
            "-v",
            "warning",
            "-count_frames",
            "-select_streams",
            "v:0",
            "-show_entries",
            "stream=nb_read_frames",
        ])
        .args(["-of", "csv=p=0", url])
        .stdin(Stdio::null())
        .output()
        .expect("ffprobe is installed");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaints.is_empty(), "{complaints}");
    // It stands there once for the program and once for the stream.
    String::from_utf8_lossy(&output.stdout).lines().next().unwrap().to_owned()
}

async fn serve(world: &World) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = world.router.clone();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}/live/news/index.m3u8")
}

#[tokio::test(flavor = "multi_thread")]
async fn recording_in_byte_ranges_is_served_byte_for_byte_with_digests() {
    let folder = tempfile::tempdir().unwrap();
    encode(folder.path(), 8, "320x180", &ONE_FILE);
    let upstream = Upstream::start().await;
    upstream.put_folder("/a/", folder.path());
    let mut world = World::pull(source(&upstream.url("/a/one.m3u8")));
    let folders = world.folders().await;
    let (text, playlist) = world.playlist(&folders[0], "the end", is_complete).await;
    assert_eq!(playlist.segments.len(), 8);
    assert!(
        !text.contains("EXT-X-PART") && !text.contains("PRELOAD"),
        "whole segments are listed as such: {text}"
    );

    let segments = world.examine().await;
    let original = std::fs::read(folder.path().join("one.m4s")).unwrap();
    let init = world.bytes(&format!("{}/init-0.mp4", folders[0])).await;
    assert_eq!([&init[..], &segments[0].concat()].concat(), original);
    let multivariant = world.multivariant().await;
    assert!(
        multivariant.contains("CODECS=\"avc1.") && multivariant.contains(",mp4a.40.2\""),
        "{multivariant}"
    );
    assert!(multivariant.contains("RESOLUTION=320x180,FRAME-RATE=30.000"), "{multivariant}");
    let published = world.published();
    assert_eq!(published.len(), 8);
    assert!(published[7].1.ends_with("/v0/seg-7.m4s"), "named as the playlist names it: {published:?}");

    let url = serve(&world).await;
    let counted = tokio::task::spawn_blocking(move || frames(&url)).await.unwrap();
    assert_eq!(counted, "240");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_knows_no_ranges_is_pulled_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    encode(folder.path(), 3, "160x90", &ONE_FILE);
    let upstream = Upstream::start().await;
    upstream.put_folder("/", folder.path());
    let media = File::new(std::fs::read(folder.path().join("one.m4s")).unwrap());
    upstream.put("/one.m4s", File { with_ranges: false, ..media.clone() });
    let world = World::pull(source(&upstream.url("/one.m3u8")));
    let folders = world.folders().await;
    world.playlist(&folders[0], "the end", is_complete).await;
    let segments = world.examine().await;
    assert!(media.body.ends_with(&segments[0].concat()));
}

#[tokio::test(flavor = "multi_thread")]
async fn renditions_with_sound_beside_them_are_served_together() {
    let folder = tempfile::tempdir().unwrap();
    encode(
        folder.path(),
        6,
        "320x180",
        &[
            "-map",
            "0:v",
            "-map",
            "0:v",
            "-map",
            "1:a",
            "-s:v:1",
            "160x90",
            "-b:v:0",
            "600k",
            "-b:v:1",
            "200k",
            "-hls_segment_type",
            "fmp4",
            "-hls_flags",
            "independent_segments+program_date_time",
            "-master_pl_name",
            "index.m3u8",
            "-var_stream_map",
            "v:0,agroup:a v:1,agroup:a a:0,agroup:a,default:yes",
            "-hls_segment_filename",
            "%v-%d.m4s",
            "-hls_fmp4_init_filename",
            "init-%v.mp4",
            "%v.m3u8",
        ],
    );
    let upstream = Upstream::start().await;
    upstream.put_folder("/a/", folder.path());
    // The playlist is somewhere else: what it names is relative to where it was in the end.
    upstream.put("/news", File::redirect("/a/index.m3u8"));
    let world = World::pull(source(&upstream.url("/news")));
    let folders = world.folders().await;
    let names: Vec<_> = folders.iter().map(|folder| folder.rsplit('/').next().unwrap()).collect();
    assert_eq!(names, ["v0", "v1", "a0"]);
    for folder in &folders {
        world.playlist(folder, "the end", is_complete).await;
    }
    let segments = world.examine().await;
    assert_eq!(segments.iter().map(Vec::len).collect::<Vec<_>>(), [6, 6, 7]);
    let multivariant = world.multivariant().await;
    assert!(multivariant.contains("EXT-X-INDEPENDENT-SEGMENTS"), "the upstream says so: {multivariant}");
    let infos = world.info().renditions;
    assert_eq!(
        infos.iter().map(|info| info.resolution).collect::<Vec<_>>(),
        [Some((320, 180)), Some((160, 90)), None]
    );
    // The dates are the upstream's.
    let theirs = std::fs::read_to_string(folder.path().join("0.m3u8")).unwrap();
    let date = shoal_playlist::parse_media(&theirs).unwrap().segments[0].head.date_time_ms;
    let (_, ours) = world.playlist(&folders[2], "the end", is_complete).await;
    assert!(date.is_some());
    assert_eq!(ours.segments[0].head.date_time_ms, date);

    let url = serve(&world).await;
    let counted = tokio::task::spawn_blocking(move || frames(&url)).await.unwrap();
    assert_eq!(counted, "180");
}

#[tokio::test(flavor = "multi_thread")]
async fn discontinuities_and_changed_initialization_sections_go_through() {
    let upstream = Upstream::start().await;
    let mut texts = Vec::new();
    for (name, size) in [("a", "320x180"), ("b", "160x90")] {
        let folder = tempfile::tempdir().unwrap();
        encode(folder.path(), 2, size, &["-hls_segment_type", "fmp4", "p.m3u8"]);
        upstream.put_folder(&format!("/{name}/"), folder.path());
        let text = std::fs::read_to_string(folder.path().join("p.m3u8")).unwrap();
        let body = text.split_once("#EXT-X-MAP:URI=\"").unwrap().1.replace("#EXT-X-ENDLIST", "");
        let body =
            body.replace("p0.m4s", &format!("{name}/p0.m4s")).replace("p1.m4s", &format!("{name}/p1.m4s"));
        texts.push(format!("#EXT-X-MAP:URI=\"{name}/{body}"));
    }
    let all = format!(
        "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:70\n{0}#EXT-X-DISCONTINUITY\n{1}\
         #EXT-X-DISCONTINUITY\n{0}#EXT-X-ENDLIST\n",
        texts[0], texts[1]
    );
    upstream.put_text("/all.m3u8", all);
    let world = World::pull(source(&upstream.url("/all.m3u8")));
    let folders = world.folders().await;
    let (_, playlist) = world.playlist(&folders[0], "the end", is_complete).await;
    let heads: Vec<_> = playlist
        .segments
        .iter()
        .map(|segment| (segment.head.is_discontinuity, segment.head.map.as_ref().map(|map| map.uri.as_str())))
        .collect();
    assert_eq!(
        heads,
        [
            (false, Some("init-0.mp4")),
            (false, None),
            (true, Some("init-1.mp4")),
            (false, None),
            (true, Some("init-2.mp4")),
            (false, None)
        ]
    );
    assert!(playlist.segments.iter().all(|segment| segment.head.date_time_ms.is_some()), "dates are made");
    world.examine().await;
}

/// What `ffmpeg` decodes of one track, as a hash, and when the track begins in microseconds.
fn decoded(url: &str, track: &str, format: &str) -> (String, f64) {
    let run = |program: &str, arguments: &[&str]| {
        let output =
            Command::new(program).args(arguments).stdin(Stdio::null()).output().expect("ffmpeg is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let hash =
        ["-v", "error", "-i", url, "-map", track, "-c:v", "rawvideo", "-c:a", format, "-f", "md5", "-"];
    let select = track.trim_start_matches("0:");
    let start = [
        "-v",
        "error",
        "-select_streams",
        select,
        "-show_entries",
        "stream=start_time",
        "-of",
        "csv=p=0",
        url,
    ];
    let start = run("ffprobe", &start);
    let start = start.lines().next().unwrap().trim_end_matches(',').parse().unwrap();
    (run("ffmpeg", &hash), start)
}

#[tokio::test(flavor = "multi_thread")]
async fn transport_streams_become_mp4_without_a_changed_picture_or_sound() {
    let folder = tempfile::tempdir().unwrap();
    encode(folder.path(), 6, "320x180", &["p.m3u8"]);
    let upstream = Upstream::start().await;
    upstream.put_folder("/", folder.path());
    let world = World::pull(source(&upstream.url("/p.m3u8")));
    let folders = world.folders().await;
    for folder in &folders {
        world.playlist(folder, "the end", is_complete).await;
    }
    assert_eq!(world.examine().await.iter().map(Vec::len).collect::<Vec<_>>(), [6, 6]);
    let multivariant = world.multivariant().await;
    assert!(multivariant.contains("mp4a.40.2\",RESOLUTION=320x180,FRAME-RATE=30.000"), "{multivariant}");
    let (theirs, ours) = (upstream.url("/p.m3u8"), serve(&world).await);
    tokio::task::spawn_blocking(move || {
        let compare = |track: &str| {
            let (their_hash, their_start) = decoded(&theirs, track, "pcm_s16le");
            let (our_hash, our_start) = decoded(&ours, track, "pcm_s16le");
            assert_eq!(our_hash, their_hash, "{track}");
            our_start - their_start
        };
        let apart = compare("0:v:0") - compare("0:a:0");
        assert!(apart.abs() < 0.002, "sound and picture moved by {apart} s");
        assert_eq!(frames(&ours), "180");
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_muxed_anew_is_refused_in_words() {
    let upstream = Upstream::start().await;
    upstream.put_text("/p.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\np0.ts\n#EXT-X-ENDLIST\n");
    for (media, words) in
        [(vec![0x47; 188 * 20], "MPEG-TS"), (b"ID3 and some AAC".to_vec(), "neither fragmented MP4")]
    {
        upstream.put("/p0.ts", File::new(media));
        let world = World::pull(source(&upstream.url("/p.m3u8")));
        crate::common::until(words, || world.problem().contains(words)).await;
    }
}
