//! Real encoders publish, the real `ffmpeg` and `ffprobe` read over HTTP.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{AUDIO, Audio, TONE_HZ, VIDEO, Video, push, push_all, serve, until};
use shoal_playlist::lint::{lint_media, lint_multivariant, lint_renditions};
use shoal_segmenter::{Config, Event, State};

/// Runs a program to its end and demands that it had nothing to complain about.
fn run(program: &str, arguments: &[&str]) -> Output {
    let output =
        Command::new(program).args(arguments).stdin(Stdio::null()).output().expect("ffmpeg is installed");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaints.is_empty(), "{program} {arguments:?}: {complaints}");
    output
}

/// How far the tone stands above everything else, in dB, by projection on sine and cosine.
fn tone_snr_db(samples: &[f32]) -> f64 {
    let step = TONE_HZ * std::f64::consts::TAU / 48_000.0;
    let (mut sine, mut cosine, mut total) = (0.0, 0.0, 0.0);
    for (index, sample) in samples.iter().enumerate() {
        let (sample, angle) = (f64::from(*sample), step * index as f64);
        sine += sample * angle.sin();
        cosine += sample * angle.cos();
        total += sample * sample;
    }
    let tone = 2.0 * (sine * sine + cosine * cosine) / samples.len() as f64;
    10.0 * (tone / (total - tone)).log10()
}

#[tokio::test(flavor = "multi_thread")]
async fn ffmpeg_reads_every_frame_and_a_clean_tone_from_an_ended_stream() {
    let (streams, address) = serve(Config::default()).await;
    let publication = streams.publish("real").unwrap();
    publication.expect_tracks(&[AUDIO, VIDEO]);
    let (mut video, mut audio) = (Video::new(VIDEO, 320, 180), Audio::new());
    video.rhythm = Some(60);
    push(&publication, Audio::format());
    push_all(&publication, &mut video, &mut audio, 300);
    publication.end();
    until("the end of the stream", || streams.list().first().is_some_and(|info| info.state == State::Ended))
        .await;

    let url = format!("http://{address}/live/real/index.m3u8");
    tokio::task::spawn_blocking(move || {
        let probe = run(
            "ffprobe",
            &[
                "-v",
                "warning",
                "-count_frames",
                "-show_entries",
                "stream=codec_name,profile,width,height,sample_rate,channels,nb_read_frames,start_time",
                "-of",
                "csv=p=0",
                &url,
            ],
        );
        let probe = String::from_utf8(probe.stdout).unwrap();
        assert!(probe.contains("h264") && probe.contains(",320,180,"), "{probe}");
        assert!(probe.contains("aac,LC,48000,2"), "{probe}");
        let frames = probe
            .lines()
            .find(|line| line.starts_with("h264"))
            .unwrap()
            .rsplit(',')
            .next()
            .unwrap()
            .trim()
            .to_owned();
        assert_eq!(frames, "300", "{probe}");

        let sound =
            run("ffmpeg", &["-v", "warning", "-i", &url, "-map", "0:a", "-ac", "1", "-f", "f32le", "-"])
                .stdout;
        let samples: Vec<f32> =
            sound.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        // 10 s less the start-up and end of both codecs.
        assert!((9.8..10.1).contains(&(samples.len() as f64 / 48_000.0)), "{} samples", samples.len());
        for second in 1..9 {
            let snr_db = tone_snr_db(&samples[second * 48_000..(second + 1) * 48_000]);
            assert!(snr_db > 30.0, "second {second}: {snr_db} dB");
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ffmpeg_plays_through_changes_of_size() {
    let (streams, address) = serve(Config::default()).await;
    let publication = streams.publish("sizes").unwrap();
    publication.expect_tracks(&[AUDIO, VIDEO]);
    let mut audio = Audio::new();
    push(&publication, Audio::format());
    let sizes = [(320, 180, 60u8), (160, 90, 120), (90, 160, 180)];
    let mut before: Option<Video> = None;
    for (width, height, level) in sizes {
        let mut video = Video::new(VIDEO, width, height);
        (video.rhythm, video.level) = (Some(60), Some(level));
        before.iter().for_each(|before| video.skip_to(before));
        push_all(&publication, &mut video, &mut audio, 120);
        before = Some(video);
    }
    publication.end();
    until("the end of the stream", || streams.list().first().is_some_and(|info| info.state == State::Ended))
        .await;
    let url = format!("http://{address}/live/sizes/index.m3u8");
    let read = move || {
        let scaled = ["-vf", "scale=16:16", "-fps_mode", "passthrough", "-enc_time_base", "1:90000"];
        let raw = ["-f", "rawvideo", "-pix_fmt", "gray", "-"];
        let arguments = [&["-v", "error", "-i", &url, "-map", "0:v"][..], &scaled, &raw].concat();
        run("ffmpeg", &arguments).stdout
    };
    let frames = tokio::task::spawn_blocking(read).await.unwrap();
    let levels: Vec<u8> = frames
        .as_chunks::<256>()
        .0
        .iter()
        .map(|frame| (frame.iter().map(|luma| u32::from(*luma)).sum::<u32>() / 256) as u8)
        .collect();
    assert_eq!(levels.len(), 360);
    // ffmpeg makes the full range of what was meant for a screen: what counts is that each size has its own.
    for (index, levels) in levels.chunks(120).enumerate() {
        assert!(levels.iter().all(|level| level.abs_diff(levels[60]) <= 4), "size {index}: {levels:?}");
        assert!(levels[60].abs_diff(sizes[index].2) < 24, "size {index}: {}", levels[60]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ffmpeg_follows_a_live_stream_whose_keyframes_come_on_request() {
    let (streams, address) = serve(Config::default()).await;
    let mut publication = streams.publish("live").unwrap();
    publication.expect_tracks(&[AUDIO, VIDEO]);
    let mut requests = publication.take_keyframe_requests();
    let mut events = streams.subscribe();
    let publisher = std::thread::spawn(move || {
        let (mut video, mut audio) = (Video::new(VIDEO, 320, 180), Audio::new());
        push(&publication, Audio::format());
        let start = Instant::now();
        // In real time, as a browser does: keyframes only when asked for.
        while start.elapsed() < Duration::from_secs(11) {
            while audio.next_us() < video.next_us() {
                push(&publication, audio.next());
            }
            let is_asked = requests.try_recv().is_ok();
            video.next(is_asked).into_iter().for_each(|input| push(&publication, input));
            let due = Duration::from_micros(video.next_us() as u64);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
    });
    let url = format!("http://{address}/live/live/index.m3u8");
    let reader = tokio::task::spawn_blocking(move || {
        // Errors only: it warns of the initialization section, which it reads anew with every live playlist.
        run("ffmpeg", &["-v", "error", "-i", &url, "-t", "6", "-f", "null", "-"]);
        run("ffmpeg", &["-v", "error", "-i", &url, "-t", "1", "-map", "0:a", "-f", "null", "-"]);
    });
    reader.await.unwrap();
    publisher.join().unwrap();

    // Segments of a publisher who answers are two seconds.
    let mut parts = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let Event::Published(published) = event {
            parts.push(published);
        }
    }
    for rendition in [0, 1] {
        let (mut durations_ms, mut duration_ms) = (Vec::new(), 0);
        for part in parts.iter().filter(|part| part.piece.rendition == rendition) {
            duration_ms += part.duration_ms;
            if part.is_last_in_segment {
                durations_ms.push(std::mem::take(&mut duration_ms));
            }
        }
        assert!(durations_ms.iter().all(|duration| *duration < 2_500), "{durations_ms:?}");
        // Where the machine is busy, a keyframe comes late now and then.
        durations_ms.sort_unstable();
        let median_ms = durations_ms[durations_ms.len() / 2];
        assert!((1_800..2_100).contains(&median_ms), "rendition {rendition}: {durations_ms:?}");
    }
    assert!(parts.len() > 2 * 18, "{} parts", parts.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn opus_goes_through_as_it_is_beside_aac_also_over_pauses_in_its_transmission() {
    let (streams, address) = serve(Config { opus: true, ..Config::default() }).await;
    let publication = streams.publish("opus").unwrap();
    publication.expect_tracks(&[AUDIO, VIDEO]);
    let (mut video, mut audio) = (Video::new(VIDEO, 320, 180), Audio::new());
    video.rhythm = Some(60);
    push(&publication, Audio::format());
    push_all(&publication, &mut video, &mut audio, 150);
    // For three seconds nobody speaks, and a packet comes each 400 ms only.
    let mut packets = 0;
    for _ in 0..90 {
        while audio.next_us() < video.next_us() {
            let packet = audio.next();
            if packets % 20 == 0 {
                push(&publication, packet);
            }
            packets += 1;
        }
        video.next(false).into_iter().for_each(|input| push(&publication, input));
    }
    push_all(&publication, &mut video, &mut audio, 150);
    publication.end();
    until("the end of the stream", || streams.list().first().is_some_and(|info| info.state == State::Ended))
        .await;

    let names: Vec<_> = streams.list()[0].renditions.iter().map(|info| info.name.clone()).collect();
    assert_eq!(names, ["v0", "a0", "a1"]);
    let base = format!("http://{address}/live/opus");
    let get = async |url: String| reqwest::get(url).await.unwrap().text().await.unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let multivariant = get(format!("{base}/index.m3u8")).await;
    assert_eq!(lint_multivariant(&multivariant), []);
    let variants: Vec<_> =
        multivariant.lines().filter(|line| line.starts_with("#EXT-X-STREAM-INF")).collect();
    assert_eq!(variants.len(), 2, "{multivariant}");
    assert!(
        variants[0].contains(",mp4a.40.2\"") && variants[0].ends_with("AUDIO=\"audio\""),
        "{multivariant}"
    );
    assert!(
        variants[1].contains(",opus\"") && variants[1].ends_with("AUDIO=\"audio-opus\""),
        "{multivariant}"
    );

    let epoch = &streams.stats()[0].epoch;
    let mut texts = Vec::new();
    for name in &names {
        let text = get(format!("{base}/{epoch}/{name}/playlist.m3u8")).await;
        assert_eq!(lint_media(&text), [], "{name}: {text}");
        texts.push(text);
    }
    let texts: Vec<_> = texts.iter().map(String::as_str).collect();
    assert_eq!(lint_renditions(&texts), []);

    let url = format!("{base}/{epoch}/a1/playlist.m3u8");
    tokio::task::spawn_blocking(move || {
        let show = "stream=codec_name,sample_rate,channels,start_time";
        let probe = run("ffprobe", &["-v", "error", "-show_entries", show, "-of", "csv=p=0", &url]).stdout;
        let probe = String::from_utf8(probe).unwrap();
        assert!(probe.contains("opus,48000,2,"), "{probe}");
        let arguments = ["-v", "error", "-i", &url, "-ac", "1", "-ar", "48000", "-f", "f32le", "-"];
        let sound = run("ffmpeg", &arguments).stdout;
        let samples: Vec<f32> =
            sound.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        assert!((12.9..13.1).contains(&(samples.len() as f64 / 48_000.0)), "{} samples", samples.len());
        let second = |second: usize| &samples[second * 48_000..(second + 1) * 48_000];
        for spoken in [1, 2, 3, 9, 10, 11] {
            let snr_db = tone_snr_db(second(spoken));
            assert!(snr_db > 30.0, "second {spoken}: {snr_db} dB");
        }
        let loudness = |samples: &[f32]| samples.iter().map(|sample| sample * sample).sum::<f32>();
        assert!(loudness(second(6)) * 4.0 < loudness(second(2)), "the pause is quiet");
    })
    .await
    .unwrap();
}
