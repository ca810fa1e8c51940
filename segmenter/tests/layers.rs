//! Simulcast layers that are late, missing, or stop: what viewers have goes on.

#![allow(clippy::unwrap_used)] // also in helpers

mod common;

use std::time::Duration;

use common::{Fake, SECOND, VIDEO, World, push, until};
use shoal_playlist::lint::{lint_media, lint_renditions};
use shoal_playlist::{MediaPlaylist, parse_media};
use shoal_segmenter::{Config, Publication};

/// Short, so that what is late need not be waited for.
fn config() -> Config {
    Config { settle_ms: 1, ..Config::default() }
}

/// What is to be seen of the stream.
struct Seen {
    multivariant: String,
    /// The folder of the epoch.
    epoch: String,
    playlists: Vec<MediaPlaylist>,
}

impl Seen {
    async fn of(world: &World, publication: &Publication) -> Self {
        until("the worker", || publication.is_idle()).await;
        let multivariant = world.text("/live/show/index.m3u8").await;
        let names: Vec<&str> = multivariant
            .split(['\n', '"'])
            .filter(|text| text.ends_with("/playlist.m3u8"))
            .filter(|text| text.contains("/v"))
            .collect();
        let epoch = names[0].split('/').next().unwrap().to_owned();
        let mut texts = Vec::new();
        for name in &names {
            texts.push(world.text(&format!("/live/show/{name}")).await);
            assert_eq!(lint_media(texts.last().unwrap()), [], "{}", texts.last().unwrap());
        }
        let all: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert_eq!(lint_renditions(&all), []);
        let playlists = texts.iter().map(|text| parse_media(text).unwrap()).collect();
        Self { epoch, playlists, multivariant: multivariant.clone() }
    }

    fn sizes(&self) -> Vec<&str> {
        let after = self.multivariant.split("RESOLUTION=").skip(1);
        after.map(|text| text.split([',', '\n']).next().unwrap()).collect()
    }

    /// Whether the newest segments of a rendition are media.
    fn goes_on(&self, rendition: usize) -> bool {
        self.playlists[rendition].segments.iter().rev().take(2).all(|segment| !segment.is_gap)
    }

    fn newest(&self, rendition: usize) -> u64 {
        let playlist = &self.playlists[rendition];
        playlist.media_sequence + playlist.segments.len() as u64
    }
}

fn two_layers() -> Fake {
    let mut fake = Fake::new();
    fake.with_second = true;
    fake
}

#[tokio::test]
async fn a_layer_that_comes_too_late_is_left_out_and_viewers_notice_nothing() {
    let world = World::new(config()).await;
    let publication = world.streams.publish("show").unwrap();
    let mut fake = Fake::new();
    fake.begin(&publication);
    tokio::time::sleep(Duration::from_millis(5)).await;
    fake.push(&publication, 6_000);
    let before = Seen::of(&world, &publication).await;
    push(&publication, Fake::layer_format(SECOND, 320, 180));
    fake.with_second = true;
    fake.push(&publication, 6_000);
    let after = Seen::of(&world, &publication).await;
    assert_eq!(after.epoch, before.epoch, "the stream that viewers have goes on");
    assert_eq!(after.sizes(), ["640x360"]);
    assert!(after.playlists[0].segments.iter().all(|segment| !segment.head.is_discontinuity));
    assert!(after.newest(0) >= before.newest(0) + 2);
}

#[tokio::test]
async fn the_best_layer_may_come_late_and_takes_the_best_place() {
    let world = World::new(config()).await;
    let mut publication = world.streams.publish("show").unwrap();
    let mut keyframes = publication.take_keyframe_requests();
    let mut fake = two_layers();
    fake.show(false);
    fake.begin(&publication);
    tokio::time::sleep(Duration::from_millis(5)).await;
    fake.push(&publication, 6_500);
    let before = Seen::of(&world, &publication).await;
    assert_eq!(before.sizes(), ["320x180"]);
    while keyframes.try_recv().is_ok() {}
    push(&publication, Fake::video_format(640, 360));
    fake.show(true);
    // Not from a keyframe on: one is asked for.
    fake.push(&publication, 500);
    until("the worker", || publication.is_idle()).await;
    assert_eq!(keyframes.try_recv().unwrap().track, VIDEO);
    fake.push(&publication, 6_000);
    let after = Seen::of(&world, &publication).await;
    assert_eq!(after.epoch, before.epoch);
    assert_eq!(after.sizes(), ["640x360"]);
    assert!(after.goes_on(0));
    assert_eq!(after.playlists[0].segments.iter().filter(|segment| segment.head.is_discontinuity).count(), 1);
}

#[tokio::test]
async fn a_publisher_may_return_with_fewer_layers_and_the_missing_one_later() {
    for is_best_missing in [false, true] {
        let world = World::new(config()).await;
        let publication = world.streams.publish("show").unwrap();
        let mut fake = two_layers();
        fake.begin(&publication);
        fake.push(&publication, 6_000);
        let before = Seen::of(&world, &publication).await;
        assert_eq!(before.sizes(), ["640x360", "320x180"]);
        drop(publication);

        let publication = world.streams.publish("show").unwrap();
        let mut fake = two_layers();
        (fake.with_video, fake.with_second) = (!is_best_missing, is_best_missing);
        fake.begin(&publication);
        tokio::time::sleep(Duration::from_millis(5)).await;
        fake.push(&publication, 8_000);
        let without = Seen::of(&world, &publication).await;
        assert_eq!(without.epoch, before.epoch, "the stream that viewers have goes on");
        assert!(without.goes_on(0) && !without.goes_on(1), "the best place is never the empty one");
        assert!(without.newest(0).abs_diff(without.newest(1)) <= 2);

        let (track, width, height) = if is_best_missing { (VIDEO, 640, 360) } else { (SECOND, 320, 180) };
        push(&publication, Fake::layer_format(track, width, height));
        (fake.with_video, fake.with_second) = (true, true);
        fake.push(&publication, 10_000);
        let again = Seen::of(&world, &publication).await;
        assert_eq!(again.epoch, before.epoch);
        assert_eq!(again.sizes(), ["640x360", "320x180"]);
        assert!(again.goes_on(0) && again.goes_on(1));
    }
}

#[tokio::test]
async fn when_the_best_layer_stops_the_next_one_leads_with_sound_and_without() {
    for with_audio in [true, false] {
        let world = World::new(config()).await;
        let mut publication = world.streams.publish("show").unwrap();
        let mut keyframes = publication.take_keyframe_requests();
        let mut fake = two_layers();
        fake.with_audio = with_audio;
        fake.begin(&publication);
        fake.push(&publication, 8_700);
        let before = Seen::of(&world, &publication).await;
        fake.show(false);
        fake.push(&publication, 3_000);
        until("the worker", || publication.is_idle()).await;
        while keyframes.try_recv().is_ok() {}
        fake.push(&publication, 12_000);
        let without = Seen::of(&world, &publication).await;
        let mut asked = 0;
        while keyframes.try_recv().is_ok() {
            asked += 1;
        }
        assert!(asked >= 5, "keyframes are asked for all the time: {asked}");
        assert!(without.goes_on(1) && !without.goes_on(0));
        assert!(without.newest(0).abs_diff(without.newest(1)) <= 2);
        assert!(without.newest(1) >= before.newest(1) + 6, "nobody waits");
        let low = &without.playlists[1].segments;
        assert!(low.iter().all(|segment| !segment.is_gap && segment.duration < 2_500_000));
        fake.show(true);
        fake.push(&publication, 12_000);
        let again = Seen::of(&world, &publication).await;
        assert_eq!(again.epoch, before.epoch);
        assert!(again.goes_on(0) && again.goes_on(1));
        assert!(again.newest(0).abs_diff(again.newest(1)) <= 1);
        assert!(
            again
                .playlists
                .iter()
                .all(|playlist| { playlist.segments.iter().all(|segment| !segment.head.is_discontinuity) })
        );
    }
}
