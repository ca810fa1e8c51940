//! Layers that are late, missing, or stop, and publishers of whom nothing comes: what viewers have goes on.

#![allow(clippy::unwrap_used)] // also in helpers

mod common;

use std::time::{Duration, Instant};

use common::{Fake, SECOND, VIDEO, World, push, until};
use shoal_playlist::lint::{lint_media, lint_renditions};
use shoal_playlist::{MediaPlaylist, parse_media};
use shoal_segmenter::frame::Input;
use shoal_segmenter::{Config, Publication, State};

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
        Self::now(world).await
    }

    async fn now(world: &World) -> Self {
        let multivariant = world.text("/live/show/index.m3u8").await;
        let mut names: Vec<&str> =
            multivariant.split(['\n', '"']).filter(|text| text.ends_with("/playlist.m3u8")).collect();
        // Pictures first, best first: v0, v1, and then a0.
        names.sort_by_key(|name| (name.contains("/a"), name.to_string()));
        names.dedup();
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

    /// Where a rendition's complete segments end, in milliseconds.
    fn end_ms(&self, rendition: usize) -> u64 {
        let last = self.playlists[rendition].segments.last().unwrap();
        last.head.date_time_ms.unwrap() as u64 + last.duration / 1000
    }

    /// How much a rendition lists, with the segment in the making, in milliseconds.
    fn listed_ms(&self, rendition: usize) -> u64 {
        let playlist = &self.playlists[rendition];
        let open = playlist.open.iter().flat_map(|open| &open.parts).map(|part| part.duration);
        playlist.segments.iter().map(|segment| segment.duration).chain(open).sum::<u64>() / 1000
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
async fn a_layer_whose_first_picture_is_late_has_no_part_that_is_too_long() {
    // In frames: less than a part, and two parts and more.
    for late in [14, 16, 20, 31, 40, 58] {
        let world = World::new(config()).await;
        let publication = world.streams.publish("show").unwrap();
        let mut fake = two_layers();
        fake.second_late = late;
        fake.begin(&publication);
        // Nobody looks before there is something to be seen of both.
        fake.push(&publication, 3_000);
        let seen = Seen::of(&world, &publication).await;
        let segments = seen.playlists[1].segments.iter().flat_map(|segment| &segment.parts);
        let parts = segments.chain(seen.playlists[1].open.iter().flat_map(|open| &open.parts));
        let longest = parts.map(|part| part.duration).max().unwrap_or(0);
        // The target, and what clocks jitter by. Other rules are lint's, which looks at each playlist.
        assert!(longest <= 550_000, "{late} frames late: {longest} us");
        let seen = push_and_look(&world, &publication, &mut fake, 6_000).await;
        assert!(seen.goes_on(0) && seen.goes_on(1));
        assert!(seen.newest(0).abs_diff(seen.newest(1)) <= 1, "{late} frames late");
        assert!(seen.end_ms(0).abs_diff(seen.end_ms(1)) < 2_600, "{late} frames late");
    }
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

/// Pushes so much, and looks at all playlists after each half second: parts are listed for a short time only.
async fn push_and_look(world: &World, publication: &Publication, fake: &mut Fake, milliseconds: i64) -> Seen {
    let mut seen = Seen::of(world, publication).await;
    for _ in 0..milliseconds / 500 {
        fake.push(publication, 500);
        seen = Seen::of(world, publication).await;
        for rendition in 0..seen.playlists.len() {
            let (listed, pushed) = (seen.listed_ms(rendition), fake.pushed_ms());
            assert!(
                listed <= pushed + 50,
                "{rendition}: pictures are shown for longer than they last: {listed} {pushed}"
            );
        }
    }
    seen
}

#[tokio::test]
async fn when_the_best_layer_stops_the_next_one_leads_with_sound_and_without() {
    // In the last case the layers' keyframes come at other times, and the lead stops behind the end of a segment.
    for (with_audio, second_late, milliseconds) in [(true, 0, 8_700), (false, 0, 8_700), (true, 9, 8_100)] {
        let world = World::new(config()).await;
        let mut publication = world.streams.publish("show").unwrap();
        let mut keyframes = publication.take_keyframe_requests();
        let mut fake = two_layers();
        (fake.with_audio, fake.second_late) = (with_audio, second_late);
        fake.begin(&publication);
        fake.push(&publication, milliseconds);
        let before = Seen::of(&world, &publication).await;
        fake.show(false);
        push_and_look(&world, &publication, &mut fake, 3_000).await;
        while keyframes.try_recv().is_ok() {}
        let without = push_and_look(&world, &publication, &mut fake, 12_000).await;
        let mut asked = 0;
        while keyframes.try_recv().is_ok() {
            asked += 1;
        }
        assert!(asked >= 5, "keyframes are asked for all the time: {asked}");
        assert!(without.goes_on(1) && !without.goes_on(0));
        assert_eq!(without.newest(0), without.newest(1));
        assert!(
            without.end_ms(0).abs_diff(without.end_ms(1)) < 100,
            "its gaps are those of the segments that come"
        );
        assert!(without.newest(1) >= before.newest(1) + 6, "nobody waits");
        let low = &without.playlists[1].segments;
        assert!(low.iter().all(|segment| !segment.is_gap && segment.duration < 2_500_000));
        fake.show(true);
        let again = push_and_look(&world, &publication, &mut fake, 12_000).await;
        assert_eq!(again.epoch, before.epoch);
        assert!(again.goes_on(0) && again.goes_on(1));
        assert!(again.newest(0).abs_diff(again.newest(1)) <= 1);
        let segments = || again.playlists.iter().flat_map(|playlist| &playlist.segments);
        assert!(segments().all(|segment| !segment.head.is_discontinuity));
        // It is taken up with its first keyframe, or the third if they come at other times than those of the other layer.
        let best = &again.playlists[0].segments;
        let back = best.iter().rposition(|segment| segment.is_gap).unwrap() + 1;
        let at_ms = best[back].head.date_time_ms.unwrap() - best[0].head.date_time_ms.unwrap();
        let due_ms = if second_late == 0 { 24_000 } else { 28_000 };
        assert!((at_ms - due_ms).abs() < 50, "{at_ms} ms");
    }
}

#[tokio::test]
async fn without_its_best_layer_a_stream_goes_on_behind_a_jump_of_the_clock() {
    let world = World::new(config()).await;
    let mut publication = world.streams.publish("show").unwrap();
    let mut keyframes = publication.take_keyframe_requests();
    let mut fake = two_layers();
    fake.begin(&publication);
    fake.push(&publication, 6_000);
    fake.show(false);
    fake.push(&publication, 4_500);
    let before = Seen::of(&world, &publication).await;
    while keyframes.try_recv().is_ok() {}
    push(&publication, Input::Discontinuity);
    // Its next keyframe would come 1.5 s later.
    fake.push(&publication, 900);
    until("the worker", || publication.is_idle()).await;
    assert!(keyframes.try_recv().is_err(), "the best layer is waited for");
    fake.push(&publication, 300);
    until("the worker", || publication.is_idle()).await;
    assert_eq!(keyframes.try_recv().unwrap().track, SECOND, "a keyframe is asked of the layer that comes");
    fake.push(&publication, 6_000);
    let without = Seen::of(&world, &publication).await;
    assert_eq!(without.epoch, before.epoch);
    assert!(without.newest(1) >= before.newest(1) + 2, "nobody waits for a layer that does not come");
    assert!(without.goes_on(1) && !without.goes_on(0));
    fake.show(true);
    fake.push(&publication, 12_000);
    let again = Seen::of(&world, &publication).await;
    assert!(again.goes_on(0) && again.goes_on(1));
}

#[tokio::test]
async fn layers_that_stopped_at_other_times_pause_together() {
    for (best_stops, behind_ms) in
        [(true, 300), (true, 700), (true, 1_100), (true, 1_900), (false, 300), (false, 700), (false, 1_500)]
    {
        let world = World::new(short()).await;
        let publication = world.streams.publish("show").unwrap();
        let mut fake = two_layers();
        fake.rhythm = 12;
        fake.begin(&publication);
        fake.push(&publication, 1_300);
        if best_stops {
            fake.show(false)
        } else {
            fake.with_second = false
        }
        fake.push(&publication, behind_ms);
        let before = Seen::of(&world, &publication).await;
        drop(publication);
        // Each look at the playlists demands that their dates follow their durations.
        let count = before.playlists[0].segments.iter().filter(|segment| segment.is_gap).count();
        more_gaps(&world, &before.epoch, count + 1).await;
        let away = Seen::now(&world).await;
        assert_eq!(away.newest(0), away.newest(1));
        let apart = away.end_ms(0).abs_diff(away.end_ms(1));
        assert!(apart <= 50, "{best_stops} {behind_ms}: the layers end {apart} ms apart");
    }
}

/// Short segments, so that the gaps that the wall clock brings come soon.
fn short() -> Config {
    Config { part_ms: 200, segment_ms: 400, window_ms: 20_000, ..config() }
}

/// How many of a rendition's segments are gaps, once there are some more; nothing else may happen to the stream.
async fn more_gaps(world: &World, epoch: &str, than: usize) -> usize {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let seen = Seen::now(world).await;
        assert_eq!(seen.epoch, epoch, "the stream that viewers have goes on");
        let gaps = seen.playlists[0].segments.iter().filter(|segment| segment.is_gap).count();
        if gaps >= than + 2 {
            return gaps;
        }
        assert!(Instant::now() < deadline, "waited in vain for gaps");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn while_a_publisher_sends_nothing_viewers_are_told_that_there_is_nothing() {
    let world = World::new(short()).await;
    let mut publication = world.streams.publish("show").unwrap();
    let mut keyframes = publication.take_keyframe_requests();
    let mut fake = Fake::new();
    fake.rhythm = 12;
    fake.begin(&publication);
    fake.push(&publication, 500);
    let epoch = Seen::of(&world, &publication).await.epoch;
    while keyframes.try_recv().is_ok() {}
    // Connected and silent.
    let silent = more_gaps(&world, &epoch, 0).await;
    fake.push(&publication, 200);
    until("a keyframe is asked for", || keyframes.try_recv().is_ok()).await;
    fake.push(&publication, 1_200);
    assert!(Seen::of(&world, &publication).await.goes_on(0));
    // Away.
    drop(publication);
    let away = more_gaps(&world, &epoch, silent).await;
    // Connected again, and silent still.
    let publication = world.streams.publish("show").unwrap();
    more_gaps(&world, &epoch, away).await;
    let mut fake = Fake::new();
    fake.rhythm = 12;
    fake.begin(&publication);
    fake.push(&publication, 1_200);
    let again = Seen::of(&world, &publication).await;
    assert_eq!(again.epoch, epoch);
    assert!(again.goes_on(0));
}

#[tokio::test]
async fn a_stream_whose_publisher_never_returns_ends_with_its_last_picture_and_not_with_gaps() {
    for (with_video, with_audio) in [(true, true), (true, false), (false, true)] {
        let world = World::new(Config { grace_ms: 1_500, ..short() }).await;
        let publication = world.streams.publish("show").unwrap();
        let mut fake = Fake::new();
        (fake.with_video, fake.with_audio) = (with_video, with_audio);
        fake.begin(&publication);
        fake.push(&publication, 500);
        until("the worker", || publication.is_idle()).await;
        drop(publication);
        until("the end", || world.streams.list()[0].state == State::Ended).await;
        let playlists = Seen::now(&world).await.playlists;
        assert_eq!(playlists.len(), usize::from(with_video) + usize::from(with_audio));
        for playlist in &playlists {
            assert!(playlist.is_ended);
            let [.., gap, last] = &playlist.segments[..] else { panic!("{playlist:?}") };
            assert!(gap.is_gap && !last.is_gap && last.head.is_discontinuity);
            assert!((180_000..=220_000).contains(&last.duration), "{}", last.duration);
        }
    }
}
