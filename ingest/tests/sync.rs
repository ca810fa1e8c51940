//! Sound and pictures stay together: half an hour of a source that flashes and beeps, with clocks that are wrong and a
//! network that loses, through the segmenter, measured on what viewers would get. All in virtual time.

#![allow(clippy::unwrap_used)] // also in helpers

mod support;

use std::collections::{BTreeMap, VecDeque};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use ed25519_dalek::SigningKey;
use ffmpeg_next::codec::Context;
use ffmpeg_next::media::Type;
use ffmpeg_next::{format, frame};
use http::Request;
use http_body_util::BodyExt as _;
use shoal_segmenter::frame::Input;
use shoal_segmenter::{Config, Event, Origin, Streams};
use support::camera::{Camera, opus};
use support::net::{Link, World};
use support::{Media, Reel};
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

/// What people begin to notice (ITU-R BT.1359).
const SKEW_MAX_MS: f64 = 45.0;
/// The first reports and the slewing towards them.
const START_S: f64 = 10.0;
/// The flash and the beep are so long: a lost packet more or less doesn't hide them.
const BEEP_S: f64 = 0.1;

/// One second of a flash and a beep that begin together.
fn reel() -> Reel {
    let (width, height) = (160, 96);
    let mut camera = Camera::new(width, height);
    let pictures = (0..30)
        .map(|number| {
            let luma = vec![if number < 3 { 235 } else { 16 }; (width * height) as usize];
            camera.encode(number, number == 0, &luma)
        })
        .collect();
    let samples: Vec<f32> = (0..48_000)
        .map(|index| {
            let at = f64::from(index) / 48_000.0;
            if at < BEEP_S { (0.5 * (at * 1000.0 * std::f64::consts::TAU).sin()) as f32 } else { 0.0 }
        })
        .collect();
    // The second of two seconds: the encoder's start is not what comes in a loop. Opus delays by 6.5 ms, which its
    // decoder makes up for only where it is told so; the limit has room for that.
    let sounds = opus(&[samples.clone(), samples].concat()).split_off(50);
    Reel { pictures, sounds }
}

/// What was published of one rendition, as a file that anything can play.
struct Collected {
    file: tempfile::NamedTempFile,
    has_init: bool,
}

struct Publishing {
    runtime: Runtime,
    streams: Streams,
    router: axum::Router,
    events: tokio::sync::broadcast::Receiver<Event>,
    renditions: Vec<Collected>,
}

impl Publishing {
    fn new() -> Self {
        let streams = Streams::new(Config::default(), SigningKey::from_bytes(&[8; 32]));
        let renditions = (0..2)
            .map(|_| Collected { file: tempfile::NamedTempFile::new().unwrap(), has_init: false })
            .collect();
        Self {
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
            router: Origin::router(streams.clone()),
            events: streams.subscribe(),
            streams,
            renditions,
        }
    }

    fn get(&self, path: &str) -> Vec<u8> {
        let request = Request::get(format!("/live/av/{path}")).body(Body::empty()).unwrap();
        self.runtime.block_on(async {
            let response = self.router.clone().oneshot(request).await.unwrap();
            assert!(response.status().is_success(), "{path}: {}", response.status());
            response.into_body().collect().await.unwrap().to_bytes().to_vec()
        })
    }

    /// Takes what was published meanwhile.
    fn collect(&mut self) {
        loop {
            let event = match self.events.try_recv() {
                Ok(event) => event,
                Err(tokio::sync::broadcast::error::TryRecvError::Empty) => return,
                Err(error) => panic!("{error}"),
            };
            let Event::Published(part) = event else { continue };
            let rendition = usize::from(part.piece.rendition);
            if !self.renditions[rendition].has_init {
                self.renditions[rendition].has_init = true;
                let folder = part.uri.rsplit_once('/').unwrap().0;
                let init = self.get(&format!("{folder}/init-0.mp4"));
                self.renditions[rendition].file.write_all(&init).unwrap();
            }
            let bytes = self.get(&part.uri);
            self.renditions[rendition].file.write_all(&bytes).unwrap();
        }
    }
}

/// A flash or a beep, in seconds of the output's timeline.
#[derive(Clone, Copy)]
struct Seen {
    begun: f64,
    ended: f64,
}

/// What is seen or heard. A beep whose beginning or end was lost on the way tells nothing of when it was to begin, and
/// is left out.
fn seen(path: &Path, kind: Type) -> Vec<Seen> {
    let mut input = format::input(path).unwrap();
    let stream = input.streams().best(kind).unwrap();
    let time_base = f64::from(stream.time_base());
    let context = Context::from_parameters(stream.parameters()).unwrap();
    let mut found = Vec::new();
    if kind == Type::Video {
        let mut decoder = context.decoder().video().unwrap();
        let (mut begun, mut shown) = (None, frame::Video::empty());
        for (_, packet) in input.packets() {
            decoder.send_packet(&packet).unwrap();
            while decoder.receive_frame(&mut shown).is_ok() {
                assert!(!shown.is_corrupt() && !shown.has_decode_errors());
                let is_bright = shown.data(0)[shown.stride(0) * 40 + 80] > 126;
                let at = shown.pts().unwrap() as f64 * time_base;
                if is_bright {
                    begun.get_or_insert(at);
                } else if let Some(begun) = begun.take() {
                    found.push(Seen { begun, ended: at });
                }
            }
        }
        return found;
    }
    let mut decoder = context.decoder().audio().unwrap();
    // Where the beep that is being heard began, and where it was last heard.
    let (mut begun, mut last) = (None, -1.0);
    let mut heard = frame::Audio::empty();
    let is_whole = |begun: f64, last: f64| (BEEP_S - 0.012..BEEP_S + 0.025).contains(&(last - begun));
    for (_, packet) in input.packets() {
        decoder.send_packet(&packet).unwrap();
        while decoder.receive_frame(&mut heard).is_ok() {
            let start = heard.pts().unwrap() as f64 * time_base;
            for (index, window) in heard.plane::<f32>(0).chunks(48).enumerate() {
                if !window.iter().any(|sample| sample.abs() > 0.1) {
                    continue;
                }
                let at = start + index as f64 / 1000.0;
                if at - last > 0.5 {
                    let whole = begun.filter(|begun| is_whole(*begun, last));
                    found.extend(whole.map(|begun| Seen { begun, ended: last }));
                    begun = Some(at);
                }
                last = at;
            }
        }
    }
    found
}

/// By how much each thing was late in the output, by the time at which it happened. `period` is the true time between
/// two of them.
fn lags(onsets: &[f64], period: f64) -> VecDeque<(f64, f64)> {
    let first = onsets[0];
    let lags = onsets.iter().map(|&onset| {
        // Lags differ by far less than half a period, or the test fails anyhow.
        let happened = ((onset - first) / period).round() * period;
        (happened, onset - happened)
    });
    lags.collect()
}

/// What half an hour showed.
struct Outcome {
    /// The largest difference of a sound and its picture, in milliseconds.
    worst_ms: f64,
    /// How many were compared.
    compared: usize,
    /// How many flashes began early: see below.
    early: usize,
}

/// A flash is measured by its end. Where a freeze begins right behind a part, that part has gone out with the end that was
/// foretold, and the first picture after the freeze is put there, so that the timeline has no hole: it is shown early, by
/// at most the freeze. That is the segmenter's choice and no fault of the clocks; how often it happens is counted.
fn run(seed: u64, minutes: u64, computer_ppm: i64, sound_card_ppm: i64) -> Outcome {
    let mut world = World::new(seed, Link { loss_percent: 5, ..Link::CLEAN });
    world.publisher.media = Media::Reel(reel());
    world.publisher.drift_ppm = computer_ppm;
    world.publisher.audio_ppm = Some(sound_card_ppm);
    world.connect();
    let mut publishing = Publishing::new();
    let publication = publishing.streams.publish("av").unwrap();
    publication.expect_tracks(&[shoal_segmenter::frame::TrackId(0), shoal_segmenter::frame::TrackId(1)]);
    // The reel's first picture is a keyframe: it begins when the connection stands.
    for _ in 0..minutes * 60 {
        world.run_for(Duration::from_secs(1));
        for (at, input) in world.inputs.drain(..) {
            assert_ne!(input, Input::Discontinuity, "at {at:?}");
            publication.push(input).unwrap();
        }
        while !publication.is_idle() {
            std::thread::sleep(Duration::from_micros(200));
        }
        publishing.collect();
    }
    assert!(world.figures().packets_missing > minutes * 40, "the network lost nothing");
    publication.end();
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while publishing.streams.list().iter().any(|stream| stream.state != shoal_segmenter::State::Ended) {
        assert!(std::time::Instant::now() < end, "the stream doesn't end");
        std::thread::sleep(Duration::from_millis(2));
    }
    publishing.collect();

    let flashes = seen(publishing.renditions[0].file.path(), Type::Video);
    let beeps = seen(publishing.renditions[1].file.path(), Type::Audio);
    let early =
        flashes.iter().filter(|flash| flash.ended - flash.begun > BEEP_S + SKEW_MAX_MS / 1000.0).count();
    let flashes: Vec<f64> = flashes.iter().map(|flash| flash.ended - BEEP_S).collect();
    let beeps: Vec<f64> = beeps.iter().map(|beep| beep.begun).collect();
    // A sound card that runs fast has had its 48,000 samples before the second is over.
    let beep_period = 1.0 - sound_card_ppm as f64 * 1e-6;
    let (flash_lags, beep_lags) = (lags(&flashes, 1.0), lags(&beeps, beep_period));
    // Both began together, whether or not the first of them can be seen in the output.
    let start = (beep_lags[0].1 - flash_lags[0].1).round();
    let mut skews: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    let mut beeps = beep_lags.iter().peekable();
    for (happened, flash_lag) in &flash_lags {
        while beeps.peek().is_some_and(|(at, _)| *at + start < happened - 0.6) {
            beeps.next();
        }
        let Some((_, beep_lag)) = beeps.peek().filter(|(at, _)| *at + start < happened + 0.6) else {
            continue;
        };
        if *happened > START_S {
            skews.entry(*happened as u64 / 60).or_default().push((beep_lag - start - flash_lag) * 1000.0);
        }
    }
    let compared = skews.values().map(Vec::len).sum();
    let worst_ms = skews.values().flatten().fold(0.0f64, |worst, skew| worst.max(skew.abs()));
    let medians: Vec<f64> = skews
        .values_mut()
        .map(|minute| {
            minute.sort_by(f64::total_cmp);
            minute[minute.len() / 2]
        })
        .collect();
    println!(
        "{computer_ppm} ppm, sound card {sound_card_ppm} ppm: medians of minutes {medians:.1?} ms, {worst_ms:.1} ms at most, \
         {compared} compared, {early} flashes early"
    );
    Outcome { worst_ms, compared, early }
}

fn check(outcome: &Outcome, compared_min: usize) {
    let Outcome { worst_ms, compared, early } = *outcome;
    assert!(compared > compared_min, "{compared} flashes with beeps");
    assert!(worst_ms < SKEW_MAX_MS, "{worst_ms:.1} ms");
    assert!(early * 20 < compared, "{early} flashes of {compared} began early");
}

#[test]
fn sound_and_pictures_stay_together_when_all_clocks_run_fast() {
    check(&run(41, 5, 200, 200), 200);
}

#[test]
fn sound_and_pictures_stay_together_for_half_an_hour_when_the_clocks_run_apart() {
    check(&run(42, 30, -200, 200), 1200);
}
