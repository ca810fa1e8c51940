//! Tests of the window.

use proptest::collection::vec;
use proptest::prelude::*;
use shoal_playlist::{Hint, HintKind, Map, MediaPlaylist, parse_media};

use super::*;
use crate::config::Config;

fn window() -> Window {
    let config = Config { window_ms: 12_000, ..Config::default() };
    Window::new(config.constants(), Bytes::from_static(b"init"))
}

fn part(duration_us: i64) -> PartEntry {
    let bytes = Bytes::from_static(b"part");
    PartEntry { duration_us, record: bytes.clone(), bytes, is_independent: false, is_gap: false }
}

fn add_segments(window: &mut Window, count: usize) {
    for _ in 0..count {
        for _ in 0..4 {
            window.add_part(part(500_000), 0);
        }
        window.end_segment();
    }
}

#[test]
fn window_slides_and_keeps_what_just_left_for_late_clients() {
    let mut window = window();
    add_segments(&mut window, 20);
    assert_eq!(window.listed_from, 14);
    assert!(window.segment(13).is_some() && window.segment(11).is_some());
    assert!(window.segment(10).is_none());
    assert_eq!(window.bytes(), 9 * 4 * 4);
}

#[test]
fn request_past_the_end_of_a_segment_waits_for_the_next_ones_first_part() {
    let mut window = window();
    add_segments(&mut window, 1);
    assert!(window.has(0, Some(3)));
    assert!(!window.has(0, Some(4)));
    window.add_part(part(500_000), 0);
    assert!(window.has(0, Some(4)) && window.has(1, Some(0)));
    assert!(!window.has(1, None) && !window.has(1, Some(1)));
}

#[test]
fn delta_with_the_copy_that_the_client_has_gives_the_whole() {
    let config = Config { window_ms: 60_000, ..Config::default() };
    let mut window = Window::new(config.constants(), Bytes::new());
    add_segments(&mut window, 30);
    let full = window.playlist(Vec::new(), false);
    let delta = window.playlist(Vec::new(), true);
    let skipped = delta.skipped.unwrap() as usize;
    assert_eq!(full.segments[skipped..], delta.segments);
    let rest: u64 = delta.segments.iter().map(|segment| segment.duration).sum();
    assert!(rest >= config.constants().can_skip_until_us(), "skipped beyond the boundary");
    assert_eq!(delta.version, 9);
}

#[test]
fn next_part_with_another_map_is_announced() {
    let mut window = window();
    add_segments(&mut window, 2);
    window.mark_discontinuity();
    window.set_init(Bytes::from_static(b"other"));
    let hints = window.playlist(Vec::new(), false).hints;
    assert_eq!(
        hints[0],
        Hint { kind: HintKind::Map, uri: "init-1.mp4".to_owned(), start: None, length: None }
    );
    window.add_part(part(500_000), 0);
    let playlist = window.playlist(Vec::new(), false);
    assert_eq!(playlist.hints.len(), 1);
    let head = playlist.open.unwrap().head;
    assert!(
        head.is_discontinuity && head.map == Some(Map { uri: "init-1.mp4".to_owned(), byte_range: None })
    );
    add_segments(&mut window, 20);
    let playlist = window.playlist(Vec::new(), false);
    assert_eq!(playlist.discontinuity_sequence, 1);
    assert_eq!(playlist.segments[0].head.map, Some(Map { uri: "init-1.mp4".to_owned(), byte_range: None }));
    assert!(window.init(0).is_none(), "an init that nothing needs is let go");
}

#[test]
fn kept_segments_leave_memory_and_stay_in_the_playlist() {
    let config = Config { window_ms: 12_000, dvr_ms: 60_000, ..Config::default() };
    let mut window = Window::new(config.constants(), Bytes::new());
    window.watch_changes(true);
    for _ in 0..40 {
        add_segments(&mut window, 1);
        window.set_stored(window.msn - 1);
    }
    assert_eq!(window.playlist(Vec::new(), false).segments.len(), 30);
    // Twelve seconds, and no more.
    assert_eq!(window.bytes(), 6 * 4 * 4);
    assert_eq!(window.segment(15).unwrap().stored_bytes(), Some(16));
    assert!(window.has(15, Some(9)) && window.part(15, 0).is_none());
    let dropped = |change: &Change| matches!(change, Change::Dropped { .. });
    assert_eq!(window.take_changes().iter().filter(|change| dropped(change)).count(), 7);
    window.lose_storage();
    assert_eq!(window.playlist(Vec::new(), false).segments.len(), 6);
}

#[test]
fn ended_playlist_promises_nothing() {
    let mut window = window();
    add_segments(&mut window, 3);
    window.end();
    let playlist = window.playlist(Vec::new(), true);
    assert!(playlist.is_ended && playlist.hints.is_empty() && playlist.skipped.is_none());
}

#[derive(Clone, Debug)]
enum Step {
    Part(i64),
    EndSegment,
    Discontinuity { with_init: bool },
    Shed,
    Stored,
    Lose,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (400_000i64..512_000).prop_map(Step::Part),
        2 => Just(Step::EndSegment),
        1 => any::<bool>().prop_map(|with_init| Step::Discontinuity { with_init }),
        1 => Just(Step::Shed),
        2 => Just(Step::Stored),
    ]
}

proptest! {
    #[test]
    fn window_never_goes_backwards_and_constants_never_change(
        steps in vec(step(), 1..200), with_storage: bool, lost_at in 0usize..400,
    ) {
        let config = Config { window_ms: 12_000, dvr_ms: 24_000, ..Config::default() };
        let mut window = Window::new(config.constants(), Bytes::from_static(b"init"));
        window.watch_changes(with_storage);
        let mut stored = 0;
        let mut before = window.playlist(Vec::new(), false);
        let mut discontinuities = std::collections::BTreeMap::new();
        for (index, step) in steps.into_iter().enumerate() {
            match if index == lost_at { Step::Lose } else { step } {
                Step::Part(duration_us) => window.add_part(part(duration_us), 0),
                Step::EndSegment => window.end_segment(),
                Step::Discontinuity { with_init } => {
                    window.mark_discontinuity();
                    if with_init { window.set_init(Bytes::new()); }
                }
                Step::Shed => { window.shed(); }
                Step::Stored => {
                    stored = window.msn;
                    window.set_stored(stored);
                }
                Step::Lose => {
                    window.lose_storage();
                    stored = 0;
                }
            }
            let now = window.playlist(Vec::new(), false);
            prop_assert_eq!(parse_media(&now.render()), Ok(now.clone()));
            prop_assert_eq!(now.target_duration_s, before.target_duration_s);
            prop_assert_eq!(now.part_target, before.part_target);
            prop_assert_eq!(&now.server_control, &before.server_control);
            prop_assert!(now.media_sequence >= before.media_sequence);
            let last = |playlist: &MediaPlaylist| playlist.media_sequence + playlist.segments.len() as u64;
            prop_assert!(last(&now) >= last(&before));
            // A segment keeps its discontinuity sequence number while and after it is listed.
            let mut sequence = now.discontinuity_sequence;
            for (index, segment) in now.segments.iter().enumerate() {
                sequence += u64::from(segment.head.is_discontinuity);
                let known = *discontinuities.entry(now.media_sequence + index as u64).or_insert(sequence);
                prop_assert_eq!(known, sequence);
                for part in &segment.parts {
                    prop_assert!(part.uri.starts_with("part-"));
                }
            }
            let held: usize = window.complete.iter().chain(&window.open).map(SegmentEntry::bytes).sum();
            prop_assert_eq!(held, window.bytes());
            // What is listed can be had: from memory, or from a storage that is there.
            for segment in window.listed() {
                prop_assert!(!segment.parts.is_empty() || (with_storage && segment.msn < stored));
            }
            before = now;
        }
    }
}
