//! What a viewer does before it has neighbors, and how little a stop of its own playback or of the tracker may cost the
//! others.

use super::world::{EPOCH, World, config, drain, record, sign};
use crate::{
    BLOCK_BYTES_MAX, Config, Input, Output, Peer, PieceId, Place, SignedRecord, Span, Time,
    wire::{Control, Flags, VERSION},
};

const PIECE: PieceId = PieceId { rendition: 0, msn: 4, part: 0 };

/// A viewer that plays, 1.5 s before the piece that it needs next.
fn playing(seed: u64) -> Peer {
    let mut peer = Peer::new(config(), seed);
    let report_interval = Span::ZERO;
    let welcome = Input::Welcome { peer: 1, neighbors_max: 8, upload_ratio_percent: 200, report_interval };
    peer.handle_input(Time::from_ms(1), welcome);
    peer.handle_input(Time::from_ms(1), Input::Playing { renditions: &[0] });
    playhead(&mut peer, 1, false);
    peer
}

fn playhead(peer: &mut Peer, now_ms: u64, is_stalled: bool) {
    wake_until(peer, Time::from_ms(now_ms), Span::ZERO);
    let playhead = Input::Playhead {
        position_ms: 998_500,
        buffered_until_ms: if is_stalled { 998_500 } else { 1_000_000 },
        rate_percent: 100,
        is_stalled,
    };
    peer.handle_input(Time::from_ms(now_ms), playhead);
}

/// Wakes the peer whenever it wants to be woken, each time so much late.
fn wake_until(peer: &mut Peer, end: Time, late: Span) {
    while let Some((at, _)) = peer.next_deadline().filter(|(at, _)| *at + late < end) {
        peer.handle_input(at + late, Input::Wake);
    }
}

fn the_record() -> std::sync::Arc<SignedRecord> {
    sign(&record(PIECE, 12 * BLOCK_BYTES_MAX, 1_000_000, 500, false))
}

/// The player has loaded so many pieces of 12 blocks itself, each in this time.
fn load(peer: &mut Peer, pieces: u16, took: Span) {
    for part in 0..pieces {
        let piece = PieceId { msn: 3, part, ..PIECE };
        let digests: Vec<_> = (0..12).map(|block| super::world::truth(piece, block)).collect();
        peer.handle_input(
            Time::from_ms(2),
            Input::Loaded { piece, length: 12 * BLOCK_BYTES_MAX, digests: &digests, took },
        );
    }
    drain(peer);
}

/// When the piece is fetched from the origin, in milliseconds.
fn fetched_at(peer: &mut Peer) -> u64 {
    peer.handle_input(Time::from_ms(2), Input::Record { record: &the_record() });
    loop {
        if drain(peer).iter().any(|output| matches!(output, Output::Fetch { .. })) {
            return peer.now.as_us() / 1_000;
        }
        let (at, _) = peer.next_deadline().expect("something is left to do");
        assert!(at < Time::from_ms(3_000), "it is never fetched");
        peer.handle_input(at, Input::Wake);
    }
}

#[test]
fn who_has_no_neighbors_yet_waits_for_them_until_the_last_call() {
    // The playhead is there after 1,500 ms, 150 ms are for appending, a page that starts is twice 50 ms late, and a fetch from
    // an unknown origin is taken to last 300 + 11 * 32 ms.
    for seed in 1..20 {
        assert_eq!(fetched_at(&mut playing(seed)), 599);
    }
    // With a neighbor that shares, one of them goes first.
    let mut early = 0;
    for seed in 1..20 {
        let mut peer = playing(seed);
        peer.handle_input(Time::from_ms(1), Input::NeighborConnected { peer: 11, rtt: None });
        let flags = Flags { shares: true, ..Default::default() };
        let epoch = super::world::EPOCH;
        let hello = Control::Hello { version: VERSION, flags, uplink_class: 12, epoch, peer: 11 };
        peer.handle_input(Time::from_ms(1), Input::Message { peer: 11, bytes: &hello.to_bytes() });
        early += u32::from(fetched_at(&mut peer) < 599);
    }
    assert!(early > 10, "{early}");
}

#[test]
fn what_the_player_loaded_itself_tells_how_long_fetches_take() {
    let mut peer = playing(1);
    load(&mut peer, 3, Span::from_ms(48));
    // 24 ms and half as much again, because three measurements are few; and 11 times 2 ms.
    assert_eq!(fetched_at(&mut peer), 1_501 - 150 - 100 - 36 - 22);
}

#[test]
fn what_a_waiting_player_needs_next_is_due_at_once_although_something_is_left_in_its_buffer() {
    let mut peer = playing(1);
    load(&mut peer, 10, Span::from_ms(24));
    // As before its first picture: half a second is left, which is too little to begin with.
    let playhead = Input::Playhead {
        position_ms: 999_500,
        buffered_until_ms: 1_000_000,
        rate_percent: 100,
        is_stalled: true,
    };
    peer.handle_input(Time::from_ms(2), playhead);
    assert!(fetched_at(&mut peer) < 5);
}

#[test]
fn a_request_waits_for_its_record_as_long_as_what_the_player_was_given_since_lasts() {
    let mut peer = playing(1);
    // Half a second is left, as far as the driver has said.
    let playhead = Input::Playhead {
        position_ms: 998_500,
        buffered_until_ms: 999_000,
        rate_percent: 100,
        is_stalled: false,
    };
    peer.handle_input(Time::from_ms(2), playhead);
    let mut give = |part: u16, start_ms: u64| {
        let piece = PieceId { msn: 3, part, ..PIECE };
        let known = sign(&record(piece, BLOCK_BYTES_MAX, start_ms, 500, part == 1));
        peer.handle_input(Time::from_ms(2), Input::Record { record: &known });
        let took = Span::from_ms(20);
        let digests: Vec<_> = known.record().blocks.clone();
        peer.handle_input(
            Time::from_ms(2),
            Input::Loaded { piece, length: BLOCK_BYTES_MAX, digests: &digests, took },
        );
    };
    give(0, 999_000);
    give(1, 999_500);
    let target = crate::Target::Piece(PIECE);
    peer.handle_input(Time::from_ms(400), Input::Want { request: 1, target, deadline: None });
    peer.handle_input(Time::from_ms(600), Input::Wake);
    let fell_back =
        |peer: &mut Peer| drain(peer).iter().any(|output| matches!(output, Output::Fallback { .. }));
    assert!(!fell_back(&mut peer), "a second is left");
    peer.handle_input(Time::from_ms(1_400), Input::Wake);
    assert!(fell_back(&mut peer), "now it would come too late");
}

#[test]
fn playback_that_waits_for_a_moment_costs_the_children_nothing_and_a_long_wait_three_quarters() {
    let mut peer = playing(1);
    let full = peer.stats().upload_rate_bps;
    assert!(full > 0);
    playhead(&mut peer, 1_000, true);
    playhead(&mut peer, 2_000, true);
    assert_eq!(peer.stats().upload_rate_bps, full);
    playhead(&mut peer, 4_500, true);
    assert_eq!(peer.stats().upload_rate_bps, full / 4);
    playhead(&mut peer, 5_000, false);
    assert_eq!(peer.stats().upload_rate_bps, full);
}

#[test]
fn a_granted_uplink_is_used_and_not_measured_and_two_thirds_of_it_are_planned_on() {
    let granted = |bps| Peer::new(Config { uplink_granted_bps: bps, ..config() }, 1);
    let told = |peer: Peer| (peer.usable_bps(), peer.plannable_bps());
    assert_eq!(told(granted(Some(1_000_000))), (920_000, 607_200));
    assert_eq!(told(granted(Some(0))), (0, 0));
    // Whatever the stream's rate is: half a megabyte in half a second.
    let mut helper = granted(Some(100_000_000));
    helper.handle_input(Time::from_ms(1), Input::Playing { renditions: &[0] });
    helper.handle_input(Time::from_ms(2), Input::Record { record: &the_record() });
    assert_eq!(told(helper).0, 92_000_000);
    assert_eq!(told(granted(None)), (1_000_000, 1_000_000), "half of what is assumed of an unknown line");
}

#[test]
fn who_is_short_of_processor_time_wants_no_children_until_that_is_over() {
    let mut peer = playing(1);
    let full = peer.plannable_bps();
    assert!(full > 0);
    wake_until(&mut peer, Time::from_ms(10_000), Span::from_ms(60));
    assert_eq!((peer.stats().starved, peer.plannable_bps()), (0, full), "a little late is as usual");
    wake_until(&mut peer, Time::from_ms(20_000), Span::from_ms(150));
    assert_eq!((peer.stats().starved, peer.plannable_bps()), (1, 0));
    wake_until(&mut peer, Time::from_ms(40_000), Span::ZERO);
    assert_eq!((peer.stats().starved, peer.plannable_bps()), (1, full));
}

#[test]
fn a_machine_that_slept_goes_on_giving() {
    let mut peer = playing(1);
    let full = peer.plannable_bps();
    wake_until(&mut peer, Time::from_ms(10_000), Span::ZERO);
    peer.handle_input(Time::from_ms(600_000), Input::Wake);
    wake_until(&mut peer, Time::from_ms(605_000), Span::ZERO);
    assert_eq!((peer.stats().starved, peer.plannable_bps()), (0, full));
}

#[test]
fn who_has_just_lost_its_tracker_is_told_the_newest_record_only_and_a_newcomer_the_last_sixteen() {
    let told = |world: &mut World, event: &dyn Fn(&mut World)| {
        world.record_outputs_of = Some(0);
        world.recorded_outputs.clear();
        event(world);
        world.run_for(Span::from_ms(40));
        let is_record = |output: &&Output| match output {
            Output::SendControl { bytes, .. } => matches!(Control::parse(bytes), Ok(Control::Record(_))),
            _ => false,
        };
        world.recorded_outputs.iter().filter(is_record).count()
    };
    let mut world = World::new(3, 1);
    world.start();
    world.run_for(Span::from_ms(12_300));
    assert_eq!(told(&mut world, &World::lose_tracker), 2, "one for each of two neighbors");
    let meet = |world: &mut World| {
        let newcomer = world.join_without_tracker();
        world.connect(newcomer, 0);
    };
    assert_eq!(told(&mut world, &meet), 16);
}

#[test]
fn a_newcomer_without_a_tracker_is_told_the_records_of_each_rendition() {
    let mut peer = playing(1);
    peer.handle_input(Time::from_ms(1), Input::Playing { renditions: &[0, 1] });
    for (rendition, part) in (0..40).map(|at| (at % 2, u16::from(at / 2))) {
        let id = PieceId { rendition, part, ..PIECE };
        let start_ms = 1_000_000 + 500 * u64::from(part);
        let known = sign(&record(id, 2 * BLOCK_BYTES_MAX, start_ms, 500, false));
        peer.handle_input(Time::from_ms(2), Input::Record { record: &known });
    }
    peer.handle_input(Time::from_ms(3), Input::NeighborConnected { peer: 7, rtt: None });
    drain(&mut peer);
    let flags = Flags { wants_records: true, ..Default::default() };
    let hello = Control::Hello { version: VERSION, flags, uplink_class: 12, epoch: EPOCH, peer: 7 };
    peer.handle_input(Time::from_ms(3), Input::Message { peer: 7, bytes: &hello.to_bytes() });
    let mut told = [0, 0];
    for output in drain(&mut peer) {
        if let Output::SendControl { bytes, .. } = &output
            && let Ok(Control::Record(bytes)) = Control::parse(bytes)
        {
            let record = shoal_digest::Record::decode_unverified(bytes).expect("a record");
            told[usize::from(record.piece.rendition)] += 1;
        }
    }
    assert_eq!(told, [16, 16]);
}

#[test]
fn what_a_waiting_player_asks_for_is_due_at_once_even_where_more_than_its_buffer_lies_before() {
    let mut peer = playing(1);
    load(&mut peer, 10, Span::from_ms(24));
    let target = crate::Target::Piece(PIECE);
    // As where hls.js has audio of the last second that it puts into the buffer with the next piece of video only.
    let playhead = Input::Playhead {
        position_ms: 998_500,
        buffered_until_ms: 999_000,
        rate_percent: 100,
        is_stalled: true,
    };
    peer.handle_input(Time::from_ms(2), playhead);
    peer.handle_input(Time::from_ms(2), Input::Want { request: 1, target, deadline: None });
    assert!(fetched_at(&mut peer) < 5);
}

#[test]
fn a_request_without_a_record_ends_when_playback_begins_to_wait() {
    let mut peer = playing(1);
    let target = crate::Target::Piece(PIECE);
    peer.handle_input(Time::from_ms(2), Input::Want { request: 1, target, deadline: None });
    let fell_back =
        |peer: &mut Peer| drain(peer).iter().any(|output| matches!(output, Output::Fallback { .. }));
    playhead(&mut peer, 100, false);
    assert!(!fell_back(&mut peer), "one and a half seconds are left");
    playhead(&mut peer, 200, true);
    assert!(fell_back(&mut peer));
}

#[test]
fn what_the_player_loaded_and_is_not_the_origins_comes_from_elsewhere() {
    let mut peer = playing(1);
    peer.handle_input(Time::from_ms(2), Input::Record { record: &the_record() });
    let mut digests = the_record().record().blocks.clone();
    digests[3] = super::world::truth(PIECE, 4);
    let loaded = Input::Loaded {
        piece: PIECE,
        length: 12 * BLOCK_BYTES_MAX,
        digests: &digests,
        took: Span::from_ms(9),
    };
    peer.handle_input(Time::from_ms(3), loaded);
    let outputs = drain(&mut peer);
    assert!(outputs.iter().any(|output| matches!(output, Output::DropLoaded { .. })), "{outputs:?}");
    // hls.js asks again. Whatever is between it and the origin would give it the same again.
    let target = crate::Target::Piece(PIECE);
    peer.handle_input(Time::from_ms(4), Input::Want { request: 1, target, deadline: None });
    wake_until(&mut peer, Time::from_ms(1_600), Span::ZERO);
    let outputs = drain(&mut peer);
    assert!(outputs.iter().any(|output| matches!(output, Output::Fetch { .. })), "{outputs:?}");
    assert!(!outputs.iter().any(|output| matches!(output, Output::Fallback { .. })), "{outputs:?}");
}

#[test]
fn the_tracker_hears_soon_what_is_played_instead() {
    let mut peer = Peer::new(config(), 1);
    let report_interval = Span::from_secs(60);
    let welcome = Input::Welcome { peer: 1, neighbors_max: 8, upload_ratio_percent: 200, report_interval };
    peer.handle_input(Time::from_ms(1), welcome);
    // Neither the line nor the sharing changes with it.
    peer.handle_input(Time::from_ms(1), Input::Metered { on: true });
    peer.handle_input(Time::from_ms(1), Input::Playing { renditions: &[0] });
    wake_until(&mut peer, Time::from_ms(5_000), Span::ZERO);
    drain(&mut peer);
    peer.handle_input(Time::from_ms(5_000), Input::Playing { renditions: &[1] });
    wake_until(&mut peer, Time::from_ms(7_000), Span::ZERO);
    let told = drain(&mut peer).into_iter().find_map(|output| match output {
        Output::Report(report) => Some(report.renditions),
        _ => None,
    });
    assert_eq!(told, Some(vec![1]));
}

#[test]
fn without_a_tracker_nobody_brings_in_what_he_does_not_play() {
    let fetched = |rendition: u8| {
        let mut peer = playing(1);
        let of_another = PieceId { rendition, ..PIECE };
        let known = sign(&record(of_another, BLOCK_BYTES_MAX, 1_000_000, 500, false));
        peer.handle_input(Time::from_ms(2), Input::Record { record: &known });
        peer.handle_input(Time::from_ms(3), Input::TrackerLost);
        wake_until(&mut peer, Time::from_ms(3_000), Span::ZERO);
        drain(&mut peer).iter().any(|output| matches!(output, Output::Fetch { .. }))
    };
    assert!(fetched(0));
    assert!(!fetched(1));
}

#[test]
fn a_piece_that_the_origin_refuses_does_not_stop_the_others() {
    let mut peer = playing(1);
    let places = [Place { stripe: 0, is_root: true, parent: None, children: &[], expected: Span::ZERO }];
    peer.handle_input(Time::from_ms(2), Input::Plan { rendition: 0, stripes: 1, places: &places });
    peer.handle_input(Time::from_ms(3), Input::Record { record: &the_record() });
    let next = PieceId { part: 1, ..PIECE };
    let known = sign(&record(next, 12 * BLOCK_BYTES_MAX, 1_000_500, 500, false));
    let target = crate::Target::Piece(PIECE);
    peer.handle_input(Time::from_ms(3), Input::Want { request: 1, target, deadline: None });
    let (mut refused, mut others, mut fell_back) = (0, 0, false);
    for step in 4..2_000 {
        if step == 200 {
            peer.handle_input(Time::from_ms(step), Input::Record { record: &known });
        }
        for output in drain(&mut peer) {
            match output {
                Output::Fetch { fetch, piece, .. } if piece == PIECE => {
                    refused += 1;
                    peer.handle_input(Time::from_ms(step), Input::FetchFailed { fetch, status: 404 });
                }
                Output::Fetch { piece, .. } => others += u32::from(piece == next),
                Output::Fallback { .. } => fell_back = true,
                _ => {}
            }
        }
        wake_until(&mut peer, Time::from_ms(step + 1), Span::ZERO);
        if step == 300 {
            assert_eq!(others, 1, "the next one was fetched at once");
        }
    }
    assert_eq!(refused, 3, "and it is not asked for any more");
    assert!(fell_back, "the player is told to load it by itself");
}

#[test]
fn a_cache_that_is_a_moment_behind_is_asked_again() {
    let mut peer = playing(1);
    let places = [Place { stripe: 0, is_root: true, parent: None, children: &[], expected: Span::ZERO }];
    peer.handle_input(Time::from_ms(2), Input::Plan { rendition: 0, stripes: 3, places: &places });
    peer.handle_input(Time::from_ms(3), Input::Record { record: &the_record() });
    // A root's ranges, and for 150 ms the cache has heard of none of them.
    let (mut refused, mut fetched) = (0, 0);
    for step in 4..600 {
        for output in drain(&mut peer) {
            let Output::Fetch { fetch, .. } = output else { continue };
            if step < 150 {
                refused += 1;
                peer.handle_input(Time::from_ms(step), Input::FetchFailed { fetch, status: 404 });
            } else {
                fetched += 1;
            }
        }
        wake_until(&mut peer, Time::from_ms(step + 1), Span::ZERO);
    }
    assert_eq!((refused, fetched), (8, 4), "four ranges each time");
}

#[test]
fn an_origin_that_became_slow_is_waited_for_longer() {
    let mut peer = playing(1);
    load(&mut peer, 10, Span::from_ms(24));
    let quick = peer.origin.patience();
    peer.handle_input(Time::from_ms(2), Input::Record { record: &the_record() });
    wake_until(&mut peer, Time::from_ms(6_000), Span::ZERO);
    assert!(peer.stats().fetches_failed > 0, "nothing came");
    assert!(peer.origin.patience() > quick + quick, "{:?} after {quick:?}", peer.origin.patience());
}
