//! Whatever a publisher does, the lint finds nothing in our playlists: cutting, windows and texts together, without
//! clocks, sockets or codecs.

use bytes::Bytes;
use proptest::prelude::*;
use shoal_playlist::RenditionReport;
use shoal_playlist::lint::{Finding, Snapshot, lint_media, lint_renditions, lint_updates};

use crate::audio::{AudioCutter, FRAME_SAMPLES, SoundFrame, micros, samples};
use crate::config::{Config, Constants};
use crate::cut::tests::{Publisher, drive};
use crate::window::{PartEntry, Window};

fn add(window: &mut Window, start_us: i64, end_us: i64, is_independent: bool, is_last: bool) {
    let bytes = Bytes::from_static(b"part");
    let record = bytes.clone();
    let part = PartEntry { duration_us: end_us - start_us, bytes, record, is_independent, is_gap: false };
    window.add_part(part, 1_700_000_000_000 + start_us / 1000);
    if is_last {
        window.end_segment();
    }
}

fn text(window: &Window, other: &Window) -> String {
    let report = |(last_msn, last_part)| RenditionReport {
        uri: "../other/playlist.m3u8".to_owned(),
        last_msn,
        last_part: Some(last_part),
    };
    window.playlist(other.last_part().map(report).into_iter().collect(), false).render()
}

/// Runs a publisher of video with steady sound and gathers what the lint has to say about both renditions.
fn findings(publisher: &Publisher, constants: Constants, audio_ahead_us: i64) -> Vec<Finding> {
    let mut video = Window::new(constants, Bytes::new());
    let mut audio = Window::new(constants, Bytes::new());
    let mut cutter = AudioCutter::new(&constants, 0, false);
    let mut sound = 0;
    let mut before: Option<[String; 2]> = None;
    let mut findings = Vec::new();
    drive(publisher, 500, |pts_us, parts| {
        while micros(sound) < pts_us + audio_ahead_us {
            cutter.push(SoundFrame { start: sound, samples: FRAME_SAMPLES, data: Bytes::new() });
            sound += FRAME_SAMPLES;
        }
        let has_changed = !parts.is_empty();
        for part in parts {
            let is_independent = part.samples.iter().any(|sample| sample.is_keyframe);
            add(&mut video, part.start_us(), part.end_us(), is_independent, part.is_last);
            cutter.push_boundary(samples(part.end_us()), part.is_last);
        }
        while let Some(part) = cutter.poll() {
            let start = part.frames[0].start;
            let end = start + part.frames.len() as i64 * FRAME_SAMPLES;
            add(&mut audio, micros(start), micros(end), true, part.is_last);
        }
        // Nothing is served before each rendition has media.
        if has_changed && video.last_part().is_some() && audio.last_part().is_some() {
            let now = [text(&video, &audio), text(&audio, &video)];
            for (index, text) in now.iter().enumerate() {
                findings.extend(lint_media(text));
                if let Some(before) = &before {
                    let snapshots =
                        [Snapshot { at_ms: 0, text: &before[index] }, Snapshot { at_ms: 1, text }];
                    findings.extend(lint_updates(&snapshots));
                }
            }
            findings.extend(lint_renditions(&[&now[0], &now[1]]));
            before = Some(now);
        }
    });
    findings
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn lint_finds_nothing_whatever_the_publisher_does(
        interval_us in 8_000i64..130_000, jitter_percent in 0i64..45, answers_after in proptest::option::of(1usize..20),
        own_rhythm in proptest::option::of(1usize..400), loses_every in 3usize..200, seed: u64,
        audio_ahead_us in -200_000i64..400_000,
    ) {
        let jitter_us = interval_us * jitter_percent / 100;
        let publisher = Publisher { interval_us, jitter_us, answers_after, own_rhythm, loses_every, seed };
        let constants = Config { window_ms: 14_000, ..Config::default() }.constants();
        let findings = findings(&publisher, constants, audio_ahead_us);
        prop_assert!(findings.is_empty(), "{:#?}", &findings[..findings.len().min(5)]);
    }
}

#[test]
fn lint_sees_what_the_cutters_guard_against() {
    // The negative control: with parts longer than they may be, the property above must fail.
    let publisher = Publisher {
        interval_us: 33_333,
        jitter_us: 0,
        answers_after: Some(2),
        own_rhythm: None,
        loses_every: usize::MAX,
        seed: 1,
    };
    let mut constants = Config::default().constants();
    assert_eq!(findings(&publisher, constants, 0), []);
    let mut window = Window::new(constants, Bytes::new());
    constants.part_target_us += 50_000;
    drive(&publisher, 60, |_, _| {});
    add(&mut window, 0, constants.part_target_us, true, false);
    let other = Window::new(constants, Bytes::new());
    assert!(lint_media(&text(&window, &other)).iter().any(|finding| finding.rule.id == "part-too-long"));
}
