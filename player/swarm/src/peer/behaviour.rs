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

#[test]
fn a_lying_edge_is_detected_and_gone_around() {
    let mut world = World::new(3, 3);
    world.start();
    world.run_for(Span::from_secs(5));
    world.origin_lies = true;
    world.run_for(Span::from_ms(1000));
    world.origin_lies = false;
    world.run_for(Span::from_secs(5));
    assert_eq!(world.bad_bytes(), 0);
    assert!(
        world.viewers.iter().all(|viewer| viewer.banned.is_empty()),
        "the origin's lies are nobody's fault"
    );
    assert!(world.viewers.iter().any(|viewer| viewer.peer.stats().rejected_bytes > 0));
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

/// A viewer that watches from a minute ago, with three neighbors that have it all.
mod from_the_past {
    use super::super::world::{EPOCH, config, record, sign};
    use crate::{
        BLOCK_BYTES_MAX, Config, Input, Output, Peer, PieceId, Place, Span, Target, Time,
        bits::Bits,
        wire::{Control, Flags, RefuseReason, SetsBuilder, VERSION},
    };

    const OLD: PieceId = PieceId { rendition: 0, msn: 4, part: 0 };
    const BLOCKS: u32 = 40;

    fn drain(peer: &mut Peer) -> Vec<Output> {
        std::iter::from_fn(|| peer.poll_output()).collect()
    }

    fn viewer() -> Peer {
        let mut peer = Peer::new(config(), 1);
        let report_interval = Span::ZERO;
        let welcome =
            Input::Welcome { peer: 1, neighbors_max: 8, upload_ratio_percent: 200, report_interval };
        peer.handle_input(Time::from_ms(1), welcome);
        peer.handle_input(Time::from_ms(1), Input::Playing { renditions: &[0] });
        for neighbor in [11, 12, 13] {
            peer.handle_input(Time::from_ms(1), Input::NeighborConnected { peer: neighbor, rtt: None });
            let flags = Flags { shares: true, ..Default::default() };
            let hello =
                Control::Hello { version: VERSION, flags, uplink_class: 12, epoch: EPOCH, peer: neighbor };
            peer.handle_input(Time::from_ms(1), Input::Message { peer: neighbor, bytes: &hello.to_bytes() });
        }
        let live = PieceId { msn: 34, ..OLD };
        let live = sign(&record(live, BLOCK_BYTES_MAX, 1_060_000, 500, true));
        peer.handle_input(Time::from_ms(2), Input::Record { record: &live });
        let playhead = Input::Playhead {
            position_ms: 980_000,
            buffered_until_ms: 1_000_000,
            rate_percent: 100,
            is_stalled: false,
        };
        peer.handle_input(Time::from_ms(2), playhead);
        // The viewer is a root: of new pieces, not of old ones.
        let place =
            |stripe| Place { stripe, is_root: true, parent: None, children: &[], expected: Span::ZERO };
        let places: Vec<_> = (0..4).map(place).collect();
        peer.handle_input(Time::from_ms(2), Input::Plan { rendition: 0, stripes: 4, places: &places });
        drain(&mut peer);
        peer
    }

    /// A viewer of a recording with half a minute in its buffer, and one neighbor.
    fn viewer_of_recording() -> Peer {
        let mut peer = Peer::new(Config { is_recording: true, ..config() }, 1);
        let report_interval = Span::ZERO;
        let welcome =
            Input::Welcome { peer: 1, neighbors_max: 8, upload_ratio_percent: 200, report_interval };
        peer.handle_input(Time::from_ms(1), welcome);
        peer.handle_input(Time::from_ms(1), Input::Playing { renditions: &[0] });
        peer.handle_input(Time::from_ms(1), Input::NeighborConnected { peer: 11, rtt: None });
        let flags = Flags { shares: true, wants_haves: true, ..Default::default() };
        let hello = Control::Hello { version: VERSION, flags, uplink_class: 12, epoch: EPOCH, peer: 11 };
        peer.handle_input(Time::from_ms(1), Input::Message { peer: 11, bytes: &hello.to_bytes() });
        let playhead = Input::Playhead {
            position_ms: 970_000,
            buffered_until_ms: 1_000_000,
            rate_percent: 100,
            is_stalled: false,
        };
        peer.handle_input(Time::from_ms(2), playhead);
        drain(&mut peer);
        peer
    }

    /// Lets time pass until the origin is asked for something, two seconds at most.
    fn first_fetch_ms(peer: &mut Peer) -> Option<u64> {
        (4..2_004).find(|ms| {
            peer.handle_input(Time::from_ms(*ms), Input::Wake);
            drain(peer).iter().any(|output| matches!(output, Output::Fetch { .. }))
        })
    }

    /// How many pieces of each rendition a newcomer is told of by a viewer that has 100 of video and of audio.
    fn told_of(is_recording: bool) -> [usize; 2] {
        let mut peer = Peer::new(Config { is_recording, ..config() }, 1);
        let welcome = Input::Welcome {
            peer: 1,
            neighbors_max: 8,
            upload_ratio_percent: 200,
            report_interval: Span::ZERO,
        };
        peer.handle_input(Time::from_ms(1), welcome);
        for (rendition, msn) in (0..200).map(|at| (at % 2, u64::from(at) / 2)) {
            let id = PieceId { rendition, msn, part: 0 };
            let signed = sign(&record(id, 5_000, 1_000_000 + 500 * msn, 500, true));
            peer.handle_input(Time::from_ms(2), Input::Record { record: &signed });
            let digests = &signed.record().blocks;
            let loaded = Input::Loaded { piece: id, length: 5_000, digests, took: Span::from_ms(9) };
            peer.handle_input(Time::from_ms(2), loaded);
        }
        drain(&mut peer);
        peer.handle_input(Time::from_ms(3), Input::NeighborConnected { peer: 11, rtt: None });
        let flags = Flags { shares: true, wants_haves: true, ..Default::default() };
        let hello = Control::Hello { version: VERSION, flags, uplink_class: 12, epoch: EPOCH, peer: 11 };
        peer.handle_input(Time::from_ms(3), Input::Message { peer: 11, bytes: &hello.to_bytes() });
        let mut told = [0; 2];
        for output in drain(&mut peer) {
            if let Output::SendControl { bytes, .. } = output
                && let Ok(Control::Have(sets)) = Control::parse(&bytes)
            {
                sets.iter().for_each(|set| told[usize::from(set.piece.rendition)] += 1);
            }
        }
        told
    }

    #[test]
    fn who_is_too_busy_to_answer_is_known_to_have_it() {
        for (reason, has_it) in [(RefuseReason::Busy, true), (RefuseReason::Absent, false)] {
            let mut peer = viewer();
            want(&mut peer, OLD);
            let record = sign(&record(OLD, 4_000, 1_000_000, 500, true));
            peer.handle_input(Time::from_ms(4), Input::Record { record: &record });
            let asked = drain(&mut peer).into_iter().find_map(|output| match output {
                Output::SendControl { peer, bytes } => {
                    matches!(Control::parse(&bytes), Ok(Control::Request(_))).then_some(peer)
                }
                _ => None,
            });
            let asked = asked.expect("somebody is asked");
            let mut sets = SetsBuilder::default();
            sets.add(OLD, Some(&Bits::below(1)));
            let refuse = Control::Refuse { reason, sets: sets.sets().expect("one") }.to_bytes();
            peer.handle_input(Time::from_ms(5), Input::Message { peer: asked, bytes: &refuse });
            assert_eq!(peer.pieces.get(&OLD).map(|piece| piece.has(asked, 0)), Some(has_it), "{reason:?}");
        }
    }

    #[test]
    fn a_newcomer_is_told_of_all_renditions_and_of_a_recording_of_everything() {
        assert_eq!(told_of(false), [24, 24]);
        assert_eq!(told_of(true), [100, 100]);
    }

    #[test]
    fn a_recording_is_not_waited_for_where_nobody_has_it() {
        let mut peer = viewer_of_recording();
        let target = Target::Segment { rendition: 0, msn: OLD.msn };
        peer.handle_input(Time::from_ms(3), Input::Want { request: 5, target, deadline: None });
        let of_all = Output::FetchRecord { piece: OLD, of_segment: true };
        assert!(drain(&mut peer).contains(&of_all), "the records of the whole segment at once");
        let record = sign(&record(OLD, BLOCKS * BLOCK_BYTES_MAX, 1_000_000, 500, true));
        peer.handle_input(Time::from_ms(4), Input::Record { record: &record });
        let at = first_fetch_ms(&mut peer);
        assert!(
            at.is_some_and(|at| at < 1_000),
            "the last call is in half a minute, and is not waited for: {at:?}"
        );
    }

    /// Asks for what the neighbor has; says whether it was asked, and when the origin.
    fn want_what_a_neighbor_has(peer: &mut Peer) -> (bool, Option<u64>) {
        want(peer, OLD);
        let mut sets = SetsBuilder::default();
        sets.add(OLD, Some(&Bits::below(BLOCKS)));
        let have = Control::Have(sets.sets().expect("not empty")).to_bytes();
        peer.handle_input(Time::from_ms(3), Input::Message { peer: 11, bytes: &have });
        let record = sign(&record(OLD, BLOCKS * BLOCK_BYTES_MAX, 1_000_000, 500, true));
        peer.handle_input(Time::from_ms(4), Input::Record { record: &record });
        let outputs = drain(peer);
        let is_question = |output: &Output| match output {
            Output::SendControl { bytes, .. } => matches!(Control::parse(bytes), Ok(Control::Request(_))),
            _ => false,
        };
        let is_fetch = |output: &Output| matches!(output, Output::Fetch { .. });
        let at_once = outputs.iter().any(is_fetch).then_some(4);
        (outputs.iter().any(is_question), at_once.or_else(|| first_fetch_ms(peer)))
    }

    #[test]
    fn what_a_neighbor_has_of_a_recording_is_taken_from_it() {
        let (was_asked, fetched_at) = want_what_a_neighbor_has(&mut viewer_of_recording());
        assert!(was_asked && fetched_at.is_none_or(|at| at > 1_000), "{was_asked} {fetched_at:?}");
    }

    #[test]
    fn with_little_of_a_recording_in_its_buffer_a_viewer_waits_for_nobody() {
        let mut peer = viewer_of_recording();
        let playhead = Input::Playhead {
            position_ms: 997_000,
            buffered_until_ms: 1_000_000,
            rate_percent: 100,
            is_stalled: false,
        };
        peer.handle_input(Time::from_ms(2), playhead);
        let (_, fetched_at) = want_what_a_neighbor_has(&mut peer);
        assert!(fetched_at.is_some_and(|at| at < 200), "{fetched_at:?}");
    }

    fn want(peer: &mut Peer, piece: PieceId) -> Vec<Output> {
        let want = Input::Want { request: 5, target: Target::Piece(piece), deadline: None };
        peer.handle_input(Time::from_ms(3), want);
        drain(peer)
    }

    #[test]
    fn the_record_of_an_old_piece_is_asked_for_and_that_of_a_new_one_waited_for() {
        assert!(want(&mut viewer(), OLD).contains(&Output::FetchRecord { piece: OLD, of_segment: false }));
        let new = PieceId { msn: 35, ..OLD };
        assert!(!want(&mut viewer(), new).iter().any(|output| matches!(output, Output::FetchRecord { .. })));
    }

    #[test]
    fn an_old_piece_comes_from_several_neighbors_and_the_rarest_blocks_are_asked_for_first() {
        let mut peer = viewer();
        want(&mut peer, OLD);
        // All have all, but for two blocks that only the last one has.
        let (mut all, mut rare) = (Bits::below(BLOCKS), Bits::default());
        for block in [17, 29] {
            all.remove(block);
            rare.insert(block);
        }
        let mut said = vec![(11, all.clone()), (12, all.clone()), (13, all), (13, rare)];
        for (from, bits) in said.drain(..) {
            let mut sets = SetsBuilder::default();
            sets.add(OLD, Some(&bits));
            let have = Control::Have(sets.sets().expect("not empty")).to_bytes();
            peer.handle_input(Time::from_ms(3), Input::Message { peer: from, bytes: &have });
        }
        drain(&mut peer);
        let record = sign(&record(OLD, BLOCKS * BLOCK_BYTES_MAX, 1_000_000, 500, true));
        peer.handle_input(Time::from_ms(4), Input::Record { record: &record });
        let outputs = drain(&mut peer);
        assert!(!outputs.iter().any(|output| matches!(output, Output::Fetch { .. })), "{outputs:?}");
        let mut asked = Vec::new();
        for output in &outputs {
            if let Output::SendControl { peer, bytes } = output
                && let Ok(Control::Request(sets)) = Control::parse(bytes)
            {
                asked.extend(
                    sets.iter().flat_map(|set| set.blocks().map(|block| (*peer, block)).collect::<Vec<_>>()),
                );
            }
        }
        let of = |neighbor| asked.iter().filter(|(peer, _)| *peer == neighbor).count();
        assert!(of(11) > 8 && of(12) > 8 && of(13) > 8, "several give: {asked:?}");
        assert!(asked.contains(&(13, 17)) && asked.contains(&(13, 29)), "the rare ones first: {asked:?}");
    }
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
