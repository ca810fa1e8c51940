//! What a few viewers together do when nobody attacks them.

use super::world::{World, config};
use crate::{Input, Span, replay};

#[test]
fn four_viewers_fetch_each_piece_about_once() {
    let mut world = World::new(4, 1);
    world.start();
    world.run_for(Span::from_secs(30));
    assert_eq!(world.rebuffer_ms(), 0);
    assert!(world.copies() < 1.15, "{}", world.copies());
    assert!(world.viewers.iter().all(|viewer| viewer.delivered > 50));
}

#[test]
fn a_lone_viewer_fetches_each_byte_once() {
    let mut world = World::new(1, 1);
    world.start();
    world.run_for(Span::from_secs(20));
    assert_eq!(world.rebuffer_ms(), 0);
    assert!(world.copies() < 1.05, "{}", world.copies());
}

#[test]
fn the_same_seed_gives_the_same_outputs() {
    let run = |seed| {
        let mut world = World::new(4, seed);
        world.start();
        world.run_for(Span::from_secs(8));
        world.vanish(2);
        world.run_for(Span::from_secs(8));
        world.fingerprint()
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn viewers_that_lose_a_root_without_notice_keep_playing_and_share_the_holes() {
    let mut world = World::new(4, 5);
    world.start();
    world.run_for(Span::from_secs(8));
    let (before, published) = (world.origin_bytes, world.published_bytes);
    world.vanish(2);
    world.run_for(Span::from_secs(12));
    let copies = (world.origin_bytes - before) as f64 / (world.published_bytes - published) as f64;
    assert_eq!(world.rebuffer_ms(), 0);
    assert!(copies < 1.25, "a quarter of the stripes has no root: {copies}");
    let outputs = world.viewers.iter().map(|viewer| viewer.outputs).max();
    assert!(outputs < Some(3000), "nothing spins: {outputs:?}");
}

#[test]
fn tiny_swarms_come_close_to_one_copy() {
    for viewers in [2, 3, 5, 8] {
        let mut world = World::new(viewers, 2);
        world.start();
        world.run_for(Span::from_secs(20));
        let (origin, published) = (world.origin_bytes, world.published_bytes);
        world.run_for(Span::from_secs(20));
        let copies = (world.origin_bytes - origin) as f64 / (world.published_bytes - published) as f64;
        assert_eq!(world.rebuffer_ms(), 0, "{viewers} viewers");
        assert!(copies < 1.02, "{viewers} viewers: {copies}");
    }
}

#[test]
fn slow_uplinks_share_what_they_can_and_nobody_waits() {
    let mut world = World::new(6, 2);
    // Half of 2 Mbit/s for a stream of 3 Mbit/s: the bound is a third of the bytes, and a sixth from the origin anyway.
    world.viewers.iter_mut().for_each(|viewer| viewer.uplink_bps = 2_000_000);
    world.start();
    world.run_for(Span::from_secs(30));
    let peers: u64 = world.viewers.iter().map(|viewer| viewer.peer.stats().peer_bytes).sum();
    let share = peers as f64 / (peers + world.origin_bytes) as f64;
    assert_eq!(world.rebuffer_ms(), 0);
    assert!(share > 0.2, "{share}");
}

#[test]
fn viewers_without_a_tracker_share_by_themselves() {
    let mut world = World::new(4, 7);
    world.start_without_tracker();
    world.run_for(Span::from_secs(20));
    assert_eq!(world.rebuffer_ms(), 0);
    assert!(world.copies() < 1.4, "{}", world.copies());
}

#[test]
fn a_tracker_that_vanishes_is_not_missed() {
    let mut world = World::new(4, 7);
    world.start();
    world.run_for(Span::from_secs(10));
    let (origin, published) = (world.origin_bytes, world.published_bytes);
    world.lose_tracker();
    world.run_for(Span::from_secs(20));
    let copies = (world.origin_bytes - origin) as f64 / (world.published_bytes - published) as f64;
    assert_eq!(world.rebuffer_ms(), 0);
    assert!(copies < 1.3, "{copies}");
}

#[test]
fn a_late_joiner_gets_recent_pieces_from_its_neighbors() {
    let mut world = World::new(4, 9);
    world.start();
    world.run_for(Span::from_secs(10));
    let before = world.origin_bytes;
    let published = world.published_bytes;
    let viewer = world.join();
    (0..4).for_each(|other| world.connect(viewer, other));
    world.run_for(Span::from_ms(700));
    world.plan();
    world.run_for(Span::from_secs(10));
    let copies = (world.origin_bytes - before) as f64 / (world.published_bytes - published) as f64;
    assert!(copies < 1.4, "{copies}");
    assert_eq!(world.viewers[viewer].rebuffer, Span::ZERO);
    assert!(world.viewers[viewer].delivered > 18);
}

#[test]
fn nothing_is_uploaded_while_metered_or_not_sharing() {
    for (metered, share) in [(true, true), (false, false)] {
        let mut world = World::new(3, 1);
        world.start();
        world.run_for(Span::from_secs(5));
        world.input(0, Input::Metered { on: metered });
        world.input(0, Input::Share { on: share });
        world.run_for(Span::from_ms(100));
        let before = world.viewers[0].sent;
        assert!(before > 0, "it did upload before");
        world.run_for(Span::from_secs(10));
        assert_eq!(world.viewers[0].sent, before);
        assert_eq!(world.rebuffer_ms(), 0);
    }
}

#[test]
fn switching_sharing_off_parts_from_all_and_plays_on() {
    let mut world = World::new(3, 1);
    world.start();
    world.run_for(Span::from_secs(5));
    (0..3).for_each(|viewer| world.input(viewer, Input::Sharing { on: false }));
    let sent: u64 = world.viewers.iter().map(|viewer| viewer.sent).sum();
    world.run_for(Span::from_secs(10));
    assert!(world.viewers.iter().all(|viewer| viewer.peer.stats().neighbors == 0));
    assert_eq!(world.viewers.iter().map(|viewer| viewer.sent).sum::<u64>(), sent);
    assert_eq!(world.rebuffer_ms(), 0);
}

#[test]
fn the_store_keeps_its_limit_and_the_newest_pieces() {
    let mut config = config();
    config.store_bytes_max = 2_000_000;
    let mut world = World::with_config(3, 1, config);
    world.start();
    world.run_for(Span::from_secs(20));
    assert_eq!(world.rebuffer_ms(), 0);
    for viewer in &world.viewers {
        let stats = viewer.peer.stats();
        assert!(stats.store_bytes <= 2_000_000 + 200_000 && stats.evicted > 20, "{stats:?}");
    }
}

/// What leaves the origin in the busiest second after it was away for six, over what one copy of the stream takes.
fn recovery_peak(never_down: bool) -> f64 {
    let mut world = World::new(12, 3);
    world.viewers.iter_mut().for_each(|viewer| viewer.peer.origin.never_down = never_down);
    world.start();
    world.run_for(Span::from_secs(6));
    world.origin_is_down = true;
    world.run_for(Span::from_secs(6));
    world.origin_is_down = false;
    let delivered = world.viewers[0].delivered;
    let mut peak = 0;
    for _ in 0..14 {
        let before = world.origin_bytes;
        world.run_for(Span::from_secs(1));
        peak = peak.max(world.origin_bytes - before);
    }
    assert!(world.viewers[0].delivered > delivered + 25, "{}", world.viewers[0].delivered - delivered);
    peak as f64 / (2.0 * 196_508.0)
}

#[test]
fn an_origin_that_returns_is_not_stormed() {
    let peak = recovery_peak(false);
    assert!(peak <= 2.0, "{peak}");
}

/// The control: where everybody keeps asking and wants all of it at once, the storm is seen.
#[test]
fn without_patience_an_origin_that_returns_is_stormed() {
    let peak = recovery_peak(true);
    assert!(peak > 3.0, "{peak}");
}

/// A cache gives wrong bytes for a second.
fn world_with_a_lying_edge(no_digests: bool) -> World {
    let mut world = World::new(3, 3);
    world.viewers.iter_mut().for_each(|viewer| viewer.peer.unsafe_mode.no_digests = no_digests);
    world.start();
    world.run_for(Span::from_secs(5));
    world.origin_lies = true;
    world.run_for(Span::from_ms(1000));
    world.origin_lies = false;
    world.run_for(Span::from_secs(5));
    world
}

#[test]
fn a_lying_edge_is_detected_and_gone_around() {
    let world = world_with_a_lying_edge(false);
    assert_eq!(world.bad_bytes(), 0);
    assert!(
        world.viewers.iter().all(|viewer| viewer.banned.is_empty()),
        "the origin's lies are nobody's fault"
    );
    assert!(world.viewers.iter().any(|viewer| viewer.peer.stats().rejected_bytes > 0));
}

#[test]
fn without_digests_a_lying_edge_is_played() {
    assert!(world_with_a_lying_edge(true).bad_bytes() > 0);
}

#[test]
fn a_log_replays_to_the_same_outputs() {
    let mut world = World::new(4, 11);
    world.viewers[1].peer.start_log();
    world.record_outputs_of = Some(1);
    world.start();
    world.run_for(Span::from_secs(8));
    world.vanish(3);
    world.run_for(Span::from_secs(8));
    let log = world.viewers[1].peer.take_log();
    let mut outputs = Vec::new();
    let peer = replay::replay(&log, |peer, now, input| {
        peer.handle_input(now, input);
        outputs.extend(std::iter::from_fn(|| peer.poll_output()));
    });
    assert_eq!(peer.expect("a log").stats(), world.viewers[1].peer.stats());
    assert!(outputs == world.recorded_outputs && outputs.len() > 300);
    for length in [0, 7, 60, log.len() / 2 + 1, log.len() - 1] {
        let _ = replay::replay(&log[..length], |_, _, _| {});
    }
}

#[test]
fn a_segment_is_delivered_when_its_last_part_has_come() {
    use super::world::{record, sign, truth};
    use crate::{Output, Peer, PieceId, Target, Time};
    use shoal_digest::BLOCK_BYTES_MIN;
    let mut peer = Peer::new(config(), 1);
    let report_interval = Span::ZERO;
    let welcome = Input::Welcome { peer: 1, neighbors_max: 8, upload_ratio_percent: 200, report_interval };
    peer.handle_input(Time::from_ms(1), welcome);
    let playhead = Input::Playhead {
        position_ms: 990_000,
        buffered_until_ms: 1_000_000,
        rate_percent: 100,
        is_stalled: false,
    };
    peer.handle_input(Time::from_ms(1), playhead);
    let target = Target::Segment { rendition: 0, msn: 4 };
    peer.handle_input(Time::from_ms(2), Input::Want { request: 77, target, deadline: None });
    let mut delivered = Vec::new();
    for part in 0..3_u16 {
        assert_eq!(peer.segment_parts(0, 4), None);
        let id = PieceId { rendition: 0, msn: 4, part };
        let record =
            sign(&record(id, 2 * BLOCK_BYTES_MIN, 1_000_000 + 500 * u64::from(part), 500, part == 2));
        peer.handle_input(Time::from_ms(3), Input::Record { record: &record });
        let digests = [truth(id, 0), truth(id, 1)];
        let took = Span::from_ms(30);
        let loaded = Input::Loaded { piece: id, length: 2 * BLOCK_BYTES_MIN, digests: &digests, took };
        peer.handle_input(Time::from_ms(4), loaded);
        let outputs = std::iter::from_fn(|| peer.poll_output());
        delivered.extend(outputs.filter(|output| matches!(output, Output::Deliver { .. })));
        assert_eq!(delivered.len(), usize::from(part == 2));
    }
    let first = PieceId { rendition: 0, msn: 4, part: 0 };
    assert_eq!(delivered, [Output::Deliver { request: 77, first, parts: 3 }]);
    assert_eq!(peer.segment_parts(0, 4).map(|parts| parts.len()), Some(3));
}

#[test]
fn before_playback_starts_nothing_waits_for_the_swarm() {
    use crate::{FallbackReason, Output, Peer, PieceId, Target, Time};
    let mut peer = Peer::new(config(), 1);
    let target = Target::Piece(PieceId { rendition: 0, msn: 4, part: 0 });
    peer.handle_input(Time::from_ms(2), Input::Want { request: 1, target, deadline: None });
    let answer = Output::Fallback { request: 1, reason: FallbackReason::Starting };
    assert_eq!(peer.poll_output(), Some(answer));
}

#[test]
fn a_root_fetches_its_share_of_a_piece_in_one_range() {
    use super::world::{record, sign};
    use crate::{Output, Peer, PieceId, Place, Time};
    use shoal_digest::BLOCK_BYTES_MIN;
    let mut peer = Peer::new(config(), 1);
    let report_interval = Span::ZERO;
    let welcome = Input::Welcome { peer: 1, neighbors_max: 8, upload_ratio_percent: 200, report_interval };
    peer.handle_input(Time::from_ms(1), welcome);
    let place =
        |stripe| Place { stripe, is_root: stripe == 1, parent: None, children: &[], expected: Span::ZERO };
    let places: Vec<_> = (0..4).map(place).collect();
    peer.handle_input(Time::from_ms(2), Input::Plan { rendition: 0, stripes: 4, places: &places });
    peer.handle_input(Time::from_ms(2), Input::Playing { renditions: &[0] });
    let id = PieceId { rendition: 0, msn: 4, part: 0 };
    let record = sign(&record(id, 12 * BLOCK_BYTES_MIN, 1_000_000, 500, false));
    peer.handle_input(Time::from_ms(3), Input::Record { record: &record });
    peer.handle_input(Time::from_ms(4), Input::Wake);
    let fetches: Vec<_> = std::iter::from_fn(|| peer.poll_output())
        .filter_map(|output| match output {
            Output::Fetch { offset, length, .. } => {
                Some((offset / BLOCK_BYTES_MIN, length / BLOCK_BYTES_MIN))
            }
            _ => None,
        })
        .collect();
    // Msn 4 of four stripes begins with stripe 0: of six pairs the second and the last are the root's of stripe 1.
    assert_eq!(fetches, [(2, 2), (10, 2)]);
}
