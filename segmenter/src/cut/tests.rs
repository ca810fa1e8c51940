//! A publisher model (steady or jittered frames, answers to keyframe requests or a rhythm of its own) drives the
//! cutter; every part is checked.

use proptest::prelude::*;

use super::*;
use crate::config::Config;

/// How a publisher behaves.
#[derive(Clone, Debug)]
pub(crate) struct Publisher {
    pub(crate) interval_us: i64,
    pub(crate) jitter_us: i64,
    /// Frames from request to keyframe; none if requests are ignored.
    pub(crate) answers_after: Option<usize>,
    /// Keyframes every so many frames, whatever is asked.
    pub(crate) own_rhythm: Option<usize>,
    /// Every so many frames, one is lost.
    pub(crate) loses_every: usize,
    pub(crate) seed: u64,
}

const BROWSER: Publisher = Publisher {
    interval_us: 33_333,
    jitter_us: 0,
    answers_after: Some(2),
    own_rhythm: None,
    loses_every: usize::MAX,
    seed: 1,
};

fn run(publisher: &Publisher, frames: usize) -> Vec<CutPart<usize>> {
    let mut parts = Vec::new();
    drive(publisher, frames, |_, cut| parts.extend(cut));
    parts
}

/// Lets a publisher send so many frames; `take` gets each frame's time and the parts that it finished.
pub(crate) fn drive(publisher: &Publisher, frames: usize, mut take: impl FnMut(i64, Vec<CutPart<usize>>)) {
    let mut cutter = Cutter::new(Config::default().constants(), 0);
    let mut random = publisher.seed | 1;
    let mut due = None;
    for index in 0..frames {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let jitter = (random >> 33) as i64 % (2 * publisher.jitter_us + 1) - publisher.jitter_us;
        if index % publisher.loses_every == publisher.loses_every - 1 {
            continue;
        }
        let is_keyframe = index == 0
            || due.is_some_and(|due| index >= due)
            || publisher.own_rhythm.is_some_and(|rhythm| index % rhythm == 0);
        if is_keyframe {
            due = None;
        }
        let pts_us = if index == 0 { 0 } else { index as i64 * publisher.interval_us + jitter };
        let outcome = cutter.frame(pts_us, is_keyframe, index);
        take(pts_us, outcome.parts);
        if let (true, Some(after), None) = (outcome.wants_keyframe, publisher.answers_after, due) {
            due = Some(index + after);
        }
    }
}

/// The rules that hold for every publisher.
fn check_always(parts: &[CutPart<usize>]) {
    let constants = Config::default().constants();
    let mut expected_start = 0;
    let mut segment_us = 0;
    let mut next_frame = 0;
    for part in parts {
        assert!(!part.samples.is_empty());
        assert_eq!(part.start_us(), expected_start, "a hole before the part");
        for sample in &part.samples {
            assert_eq!(sample.start_us, expected_start, "a hole before a sample");
            assert!(sample.duration_us >= SAMPLE_MIN_US);
            assert!(sample.data >= next_frame, "frames out of order");
            next_frame = sample.data + 1;
            expected_start = sample.start_us + sample.duration_us;
        }
        let duration = part.end_us() - part.start_us();
        assert!(duration <= constants.part_target_us, "part of {duration} us");
        if !part.is_last {
            assert!(duration * 100 >= constants.part_target_us * 85, "part of {duration} us");
        }
        segment_us += duration;
        assert!(
            segment_us < constants.target_duration_s as i64 * 1_000_000 + 500_000,
            "segment of {segment_us} us"
        );
        if part.is_last {
            segment_us = 0;
        }
    }
}

fn segment_durations(parts: &[CutPart<usize>]) -> Vec<i64> {
    let mut durations = vec![0];
    for part in parts {
        *durations.last_mut().unwrap() += part.end_us() - part.start_us();
        if part.is_last {
            durations.push(0);
        }
    }
    durations.pop();
    durations
}

#[test]
fn browser_at_30_fps_gives_four_parts_in_two_seconds() {
    for after in [1, 2, 3, 5] {
        let parts = run(&Publisher { answers_after: Some(after), ..BROWSER }, 3_000);
        check_always(&parts);
        let durations = segment_durations(&parts);
        for duration in &durations[4..] {
            assert!((1_850_000..=2_034_000).contains(duration), "answers after {after}: {duration}");
        }
        let per_segment = parts.len() as f64 / durations.len() as f64;
        assert!(per_segment < 4.3, "answers after {after}: {per_segment}");
    }
}

#[test]
fn every_segment_of_a_responsive_publisher_starts_with_a_keyframe() {
    for interval_us in [16_667, 20_000, 33_333, 40_000, 41_667, 66_667, 100_000] {
        let parts = run(&Publisher { interval_us, jitter_us: interval_us / 8, ..BROWSER }, 2_000);
        check_always(&parts);
        let mut starts = true;
        for part in &parts {
            assert!(!starts || part.samples[0].is_keyframe, "at {interval_us} us");
            starts = part.is_last;
        }
    }
}

#[test]
fn parts_leave_with_their_last_frame() {
    let mut cutter = Cutter::new(Config::default().constants(), 0);
    for index in 0..14 {
        assert!(cutter.frame(index * 33_333, index == 0, ()).parts.is_empty());
    }
    let parts = cutter.frame(14 * 33_333, false, ()).parts;
    assert_eq!(parts.len(), 1);
    assert_eq!(parts[0].samples.len(), 15);
}

#[test]
fn long_rhythm_that_ignores_requests_is_cut_at_the_target_durations_limit() {
    let parts = run(&Publisher { answers_after: None, own_rhythm: Some(250), ..BROWSER }, 3_000);
    check_always(&parts);
    assert!(segment_durations(&parts).iter().all(|duration| *duration > 500_000));
}

#[test]
fn rhythm_of_its_own_that_fits_gives_segments_with_keyframes() {
    for rhythm in [15, 30, 45, 60] {
        let parts = run(&Publisher { answers_after: None, own_rhythm: Some(rhythm), ..BROWSER }, 3_000);
        check_always(&parts);
        let mut starts = true;
        for part in &parts {
            assert!(!starts || part.samples[0].is_keyframe, "rhythm {rhythm}");
            starts = part.is_last;
        }
    }
}

proptest! {
    #[test]
    fn rules_hold_for_any_publisher(interval_us in 8_000i64..130_000, jitter_percent in 0i64..45,
                                    answers_after in proptest::option::of(1usize..20),
                                    own_rhythm in proptest::option::of(1usize..400),
                                    loses_every in 3usize..200, seed: u64) {
        let jitter_us = interval_us * jitter_percent / 100;
        check_always(&run(&Publisher { interval_us, jitter_us, answers_after, own_rhythm, loses_every, seed }, 800));
    }
}
