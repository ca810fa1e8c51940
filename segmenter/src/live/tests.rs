//! What requests may rely on when a window changes.

use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use shoal_playlist::parse_media;

use super::*;

fn live() -> Live {
    let config = Config::default();
    let shared = Shared {
        signing_key: Arc::new(SigningKey::from_bytes(&[7; 32])),
        events: broadcast::channel(16).0,
        slots: Slots::new(1),
        recordings: None,
        studio: None,
    };
    let constants = config.constants();
    let description = Description::video("avc1.42e01f".to_owned(), 640, 360);
    let rendition = Rendition::new(0, "v0".to_owned(), constants, Bytes::new(), description);
    Live::start(&"show".into(), 0, &config, constants, &shared, vec![Arc::new(rendition)])
}

#[test]
fn revision_rises_before_a_change_can_be_seen() {
    let live = live();
    let before = live.revision();
    live.change(&live.renditions[0], |_| {
        assert!(live.revision() > before, "whoever waits for the lock comes to a new revision");
    });
}

#[test]
fn whoever_sees_a_part_gets_a_text_with_it() {
    let live = live();
    let rendition = &live.renditions[0];
    let has_ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for part in 0..400 {
                live.publish_gap(rendition, part * 500, 500_000, part % 4 == 3);
            }
            has_ended.store(true, Ordering::Release);
        });
        while !has_ended.load(Ordering::Acquire) {
            let seen = rendition.with_window(Window::progress);
            let text = live.playlist(rendition, false);
            let playlist = parse_media(std::str::from_utf8(&text.plain).unwrap()).unwrap();
            let next = playlist.media_sequence + playlist.segments.len() as u64;
            let parts = playlist.open.map_or(0, |open| open.parts.len() as u64);
            assert!(
                (next, parts) >= (seen.msn, seen.parts),
                "{seen:?} was seen before {next}, {parts} was sent"
            );
        }
    });
}
