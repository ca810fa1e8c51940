//! Files against a real WHIP endpoint: passed through where that is possible, encoded where not, looped without a seam,
//! in real time. The files are made by the `ffmpeg` program, not by the code under test.

#![allow(clippy::unwrap_used)]

mod common;

use common::{
    Behavior, Endpoint, Seen,
    decode::{h264_units, in_order, pictures, samples},
};
use ffmpeg_next::codec::Id;
use shoal_publisher::{Error, Options, Publisher, Source, Transcode};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tempfile::TempDir;

/// A file of moving bars and a 500 Hz tone, made with these arguments.
fn make(directory: &TempDir, name: &str, seconds: f64, arguments: &[&str]) -> PathBuf {
    let path = directory.path().join(name);
    let status = Command::new("ffmpeg")
        .args(["-hide_banner", "-loglevel", "error", "-nostdin", "-y"])
        .args(["-f", "lavfi", "-i", &format!("testsrc2=size=320x180:rate=25:duration={seconds}")])
        .args(["-f", "lavfi", "-i", &format!("sine=frequency=500:sample_rate=44100:duration={seconds}")])
        .args(arguments)
        .arg(&path)
        .status()
        .unwrap();
    assert!(status.success());
    path
}

fn options(path: &Path, url: String) -> Options {
    Options::new(Source::File(path.into()), url)
}

/// What arrives within a time of the first video packet.
async fn watch(endpoint: &mut Endpoint, seconds: f64) -> Vec<Seen> {
    let mut first = None;
    endpoint
        .until(|seen| match seen {
            Seen::Rtp { unix_us, .. } => unix_us - *first.get_or_insert(*unix_us) > (seconds * 1e6) as i64,
            _ => false,
        })
        .await
}

/// Differences between the time stamps of successive frames, in ticks.
fn steps(packets: &[rtc::rtp::Packet]) -> Vec<i32> {
    let mut stamps: Vec<u32> = packets.iter().map(|packet| packet.header.timestamp).collect();
    stamps.dedup();
    stamps.windows(2).map(|pair| pair[1].wrapping_sub(pair[0]) as i32).collect()
}

const NO_B_FRAMES: [&str; 10] =
    ["-c:v", "libx264", "-profile:v", "main", "-bf", "0", "-g", "25", "-preset", "ultrafast"];

#[tokio::test(flavor = "multi_thread")]
async fn h264_in_mp4_passes_unchanged_and_loops_without_a_seam() {
    passes_unchanged_and_loops("a.mp4", &["-c:a", "aac"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h264_in_matroska_passes_unchanged_and_loops_without_a_seam() {
    passes_unchanged_and_loops("a.mkv", &["-c:a", "libopus"]).await;
}

async fn passes_unchanged_and_loops(name: &str, more: &[&str]) {
    let directory = TempDir::new().unwrap();
    let path = make(&directory, name, 1.2, &[&NO_B_FRAMES, more].concat());
    let mut endpoint = Endpoint::start(Behavior::default()).await;
    let publisher = Publisher::start(options(&path, endpoint.url("a")));
    let seen = watch(&mut endpoint, 2.8).await;
    let progress = publisher.progress().borrow().clone();
    publisher.stop().await.unwrap();
    assert_eq!(progress.note, None, "nothing is encoded");

    let (video, missing) = in_order(&seen, true);
    assert_eq!(missing, 0);
    let units = h264_units(&video);
    assert!((60..=80).contains(&units.len()), "2.8 s in real time: {} frames", units.len());
    // Containers count in milliseconds or finer; a 25 Hz grid of 90 kHz ticks otherwise.
    for step in steps(&video) {
        assert!(step.abs_diff(3600) <= 300, "{name}: {step}");
    }
    let span: i32 = steps(&video).iter().sum();
    let mean = f64::from(span) / steps(&video).len() as f64;
    assert!((mean - 3600.0).abs() < 10.0, "{name}: {mean} ticks a frame");
    // The second loop has the very same bytes.
    let stripped = |unit: &[u8]| unit[unit.len().saturating_sub(200)..].to_vec();
    assert_eq!(stripped(&units[3].1), stripped(&units[33].1));
    let pictures = pictures(Id::H264, &units);
    assert_eq!((pictures[0].width, pictures[0].height), (320, 180));

    let (audio, missing) = in_order(&seen, false);
    assert_eq!(missing, 0);
    let sounding = samples(&audio).iter().filter(|(_, sample)| sample.abs() > 0.01).count();
    assert!(sounding > 48_000 * 18 / 10, "{name}: it sounds nearly all the time: {sounding}");
}

#[tokio::test(flavor = "multi_thread")]
async fn b_frames_and_other_codecs_are_encoded_and_it_says_why() {
    let directory = TempDir::new().unwrap();
    let cases = [
        ("b.mp4", &["-c:v", "libx264", "-bf", "2", "-g", "25", "-preset", "veryfast"][..], "B-frames"),
        ("v.webm", &["-c:v", "libvpx", "-deadline", "realtime", "-c:a", "libopus"], "vp8"),
        ("g.mp4", &["-c:v", "libx264", "-bf", "0", "-g", "500", "-preset", "ultrafast"], "keyframes"),
    ];
    for (name, arguments, word) in cases {
        let path = make(&directory, name, 6.0, arguments);
        let mut endpoint = Endpoint::start(Behavior::default()).await;
        let publisher = Publisher::start(options(&path, endpoint.url("a")));
        let seen = watch(&mut endpoint, 1.0).await;
        let note = publisher.progress().borrow().note.clone().unwrap_or_default();
        publisher.stop().await.unwrap();
        assert!(note.contains(word), "{name}: {note}");
        let (video, missing) = in_order(&seen, true);
        assert_eq!(missing, 0);
        let units = h264_units(&video);
        assert!((18..=32).contains(&units.len()), "{name}: {} frames in 1 s", units.len());
        assert!(steps(&video).iter().all(|step| step.abs_diff(3600) <= 100), "{name}: in order");
        pictures(Id::H264, &units);
        assert!(steps(&in_order(&seen, false).0).iter().all(|step| *step == 960), "{name}: sound");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn played_once_it_ends_by_itself_after_its_length() {
    let directory = TempDir::new().unwrap();
    let path = make(&directory, "a.mp4", 1.5, &[&NO_B_FRAMES[..], &["-c:a", "aac"]].concat());
    let endpoint = Endpoint::start(Behavior::default()).await;
    let mut options = options(&path, endpoint.url("a"));
    options.once = true;
    let summary = Publisher::start(options).ended().await.unwrap();
    assert!((36..=38).contains(&summary.frames_sent), "{summary:?}");
    let length = summary.live_for;
    assert!(length > Duration::from_millis(1300) && length < Duration::from_millis(2500), "{length:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_sent_are_refused_before_anybody_is_called() {
    let directory = TempDir::new().unwrap();
    let text = directory.path().join("notes.txt");
    std::fs::write(&text, "no film").unwrap();
    let b_frames = make(&directory, "b.mp4", 1.0, &["-c:v", "libx264", "-bf", "2"]);
    // No server there: it must not come to a call.
    let url = "http://127.0.0.1:9/whip/a".to_owned();
    for (path, transcode, words) in [
        (text, Transcode::Auto, "no media file"),
        (directory.path().join("missing.mp4"), Transcode::Auto, "No such file"),
        (b_frames, Transcode::Never, "B-frames"),
    ] {
        let mut options = options(&path, url.clone());
        options.transcode = transcode;
        let error = Publisher::start(options).ended().await.unwrap_err();
        assert!(matches!(error, Error::Source { .. }), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_film_from_a_turned_phone_comes_out_upright() {
    let directory = TempDir::new().unwrap();
    // White in the upper left corner of the stored picture. FFmpeg's own player shows it lower left with this tag.
    let draw = "color=black:size=320x180:rate=25:duration=1,drawbox=w=160:h=90:color=white:t=fill";
    let (flat, turned) = (directory.path().join("flat.mp4"), directory.path().join("turned.mp4"));
    let ffmpeg = |arguments: &[&str]| {
        let program = ["-hide_banner", "-loglevel", "error", "-nostdin", "-y"];
        assert!(Command::new("ffmpeg").args(program).args(arguments).status().unwrap().success());
    };
    let (flat, turned) = (flat.to_str().unwrap(), turned.to_str().unwrap());
    ffmpeg(&["-f", "lavfi", "-i", draw, "-c:v", "libx264", "-bf", "0", "-pix_fmt", "yuv420p", flat]);
    ffmpeg(&["-i", flat, "-c", "copy", "-metadata:s:v", "rotate=90", turned]);
    let mut endpoint = Endpoint::start(Behavior::default()).await;
    let publisher = Publisher::start(options(Path::new(turned), endpoint.url("a")));
    let seen = watch(&mut endpoint, 0.5).await;
    publisher.stop().await.unwrap();
    let pictures = pictures(Id::H264, &h264_units(&in_order(&seen, true).0));
    let picture = &pictures[5];
    assert_eq!((picture.width, picture.height), (180, 320));
    let luma = |x: usize, y: usize| picture.luma[y * picture.stride + x];
    let corners = [luma(40, 60), luma(140, 60), luma(40, 260), luma(140, 260)].map(|luma| luma > 128);
    assert_eq!(corners, [false, false, true, false], "upper left, upper right, lower left, lower right");
}
