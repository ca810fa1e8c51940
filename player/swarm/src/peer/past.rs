//! Viewers of what was published long ago: behind the live edge with three neighbors that have it all, and of a recording.

use super::world::{EPOCH, config, drain, record, sign};
use crate::{
    BLOCK_BYTES_MAX, Config, FallbackReason, Input, Output, Peer, PieceId, Place, Span, Target, Time,
    bits::Bits,
    wire::{Control, Flags, RefuseReason, SetsBuilder, VERSION},
};

const OLD: PieceId = PieceId { rendition: 0, msn: 4, part: 0 };
const BLOCKS: u32 = 40;

fn welcomed(is_recording: bool) -> Peer {
    welcomed_with(Config { is_recording, ..config() })
}

fn welcomed_with(config: Config) -> Peer {
    let mut peer = Peer::new(config, 1);
    let report_interval = Span::ZERO;
    let welcome = Input::Welcome { peer: 1, neighbors_max: 8, upload_ratio_percent: 200, report_interval };
    peer.handle_input(Time::from_ms(1), welcome);
    peer.handle_input(Time::from_ms(1), Input::Playing { renditions: &[0] });
    peer
}

fn meet(peer: &mut Peer, neighbor: u32, wants_haves: bool) {
    let now = Time::from_ms(2);
    peer.handle_input(now, Input::NeighborConnected { peer: neighbor, rtt: None });
    let flags = Flags { shares: true, wants_haves, ..Default::default() };
    let hello = Control::Hello { version: VERSION, flags, uplink_class: 12, epoch: EPOCH, peer: neighbor };
    peer.handle_input(now, Input::Message { peer: neighbor, bytes: &hello.to_bytes() });
}

fn play(peer: &mut Peer, position_ms: u64) {
    let playhead =
        Input::Playhead { position_ms, buffered_until_ms: 1_000_000, rate_percent: 100, is_stalled: false };
    peer.handle_input(Time::from_ms(2), playhead);
}

fn viewer() -> Peer {
    let mut peer = welcomed(false);
    [11, 12, 13].into_iter().for_each(|neighbor| meet(&mut peer, neighbor, false));
    let live = PieceId { msn: 34, ..OLD };
    let live = sign(&record(live, BLOCK_BYTES_MAX, 1_060_000, 500, true));
    peer.handle_input(Time::from_ms(2), Input::Record { record: &live });
    play(&mut peer, 980_000);
    // The viewer is a root: of new pieces, not of old ones.
    let place = |stripe| Place { stripe, is_root: true, parent: None, children: &[], expected: Span::ZERO };
    let places: Vec<_> = (0..4).map(place).collect();
    peer.handle_input(Time::from_ms(2), Input::Plan { rendition: 0, stripes: 4, places: &places });
    drain(&mut peer);
    peer
}

/// A viewer of a recording with half a minute in its buffer, and one neighbor.
fn viewer_of_recording() -> Peer {
    let mut peer = welcomed(true);
    meet(&mut peer, 11, true);
    play(&mut peer, 970_000);
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

/// How many pieces of each rendition a newcomer is told of by a viewer that has 100 of video and of audio; and of how many
/// when he says anew that he wants to know.
fn told_of(is_recording: bool) -> [[usize; 2]; 2] {
    let mut peer = welcomed(is_recording);
    for (rendition, msn) in (0..200).map(|at| (at % 2, u64::from(at) / 2)) {
        let id = PieceId { rendition, msn, part: 0 };
        let signed = sign(&record(id, 5_000, 1_000_000 + 500 * msn, 500, true));
        peer.handle_input(Time::from_ms(2), Input::Record { record: &signed });
        let digests = &signed.record().blocks;
        let loaded = Input::Loaded { piece: id, length: 5_000, digests, took: Span::from_ms(9) };
        peer.handle_input(Time::from_ms(2), loaded);
    }
    drain(&mut peer);
    let told = |peer: &mut Peer| {
        let mut told = [0; 2];
        for output in drain(peer) {
            if let Output::SendControl { bytes, .. } = output
                && let Ok(Control::Have(sets)) = Control::parse(&bytes)
            {
                sets.iter().for_each(|set| told[usize::from(set.piece.rendition)] += 1);
            }
        }
        told
    };
    meet(&mut peer, 11, true);
    let first = told(&mut peer);
    for wants_haves in [false, true] {
        let flags = Flags { shares: true, wants_haves, ..Default::default() };
        let state = Control::State { flags, uplink_class: 12 }.to_bytes();
        peer.handle_input(Time::from_ms(3), Input::Message { peer: 11, bytes: &state });
    }
    [first, told(&mut peer)]
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
    assert_eq!(told_of(false), [[24, 24]; 2]);
    assert_eq!(told_of(true), [[100, 100], [24, 24]], "and of everything once");
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
    play(&mut peer, 997_000);
    let (_, fetched_at) = want_what_a_neighbor_has(&mut peer);
    assert!(fetched_at.is_some_and(|at| at < 200), "{fetched_at:?}");
}

/// Hands a piece's record over, unasked: from a neighbor or, as of a live stream, from the tracker.
fn told_record(peer: &mut Peer, piece: PieceId, from: Option<u32>) -> Vec<Output> {
    let signed = sign(&record(piece, 5_000, 1_000_000 + 500 * piece.msn, 500, true));
    match from {
        Some(from) => {
            let bytes = Control::Record(signed.bytes()).to_bytes();
            peer.handle_input(Time::from_ms(4), Input::Message { peer: from, bytes: &bytes });
        }
        None => peer.handle_input(Time::from_ms(4), Input::Record { record: &signed }),
    }
    drain(peer)
}

#[test]
fn records_that_nobody_asked_for_do_not_make_a_viewer_load_the_past() {
    let mut of_recording = viewer_of_recording();
    for msn in 60..70 {
        told_record(&mut of_recording, PieceId { msn, ..OLD }, Some(11));
    }
    assert_eq!(first_fetch_ms(&mut of_recording), None);
    assert!(of_recording.pieces.is_empty(), "nor remember them");
    // Ahead of who has gone back, and long published.
    let mut behind = viewer();
    told_record(&mut behind, OLD, None);
    assert!(behind.pieces.contains_key(&OLD));
    let is_of_old = |output: &Output| matches!(output, Output::Fetch { piece, .. } if *piece == OLD);
    for ms in 4..2_004 {
        behind.handle_input(Time::from_ms(ms), Input::Wake);
        assert!(!drain(&mut behind).iter().any(is_of_old), "after {ms} ms");
    }
}

#[test]
fn what_the_player_does_not_want_any_more_of_the_past_is_not_loaded_on() {
    let mut peer = viewer_of_recording();
    want(&mut peer, OLD);
    told_record(&mut peer, OLD, None);
    assert!(first_fetch_ms(&mut peer).is_some());
    peer.handle_input(Time::from_ms(2_100), Input::Unwant { request: 5 });
    assert!(drain(&mut peer).iter().any(|output| matches!(output, Output::CancelFetch { .. })));
}

#[test]
fn a_segment_some_of_whose_records_do_not_exist_is_not_waited_for() {
    let mut peer = viewer_of_recording();
    let target = Target::Segment { rendition: 0, msn: OLD.msn };
    peer.handle_input(Time::from_ms(3), Input::Want { request: 5, target, deadline: None });
    let signed = sign(&record(OLD, 5_000, 1_000_000, 500, false));
    peer.handle_input(Time::from_ms(4), Input::Record { record: &signed });
    drain(&mut peer);
    peer.handle_input(Time::from_ms(4), Input::RecordFailed { piece: OLD });
    let reason = FallbackReason::NoRecord;
    assert!(drain(&mut peer).contains(&Output::Fallback { request: 5, reason }));
}

#[test]
fn what_a_neighbor_has_of_a_long_recording_is_known_however_much_it_is() {
    let mut peer = viewer_of_recording();
    // Half an hour, told newest first in many messages; some is missing.
    for msn in (0..1_000).rev().filter(|msn| msn % 100 != 7) {
        let mut sets = SetsBuilder::default();
        sets.add(PieceId { msn, ..OLD }, None);
        let have = Control::Have(sets.sets().expect("not empty")).to_bytes();
        peer.handle_input(Time::from_ms(3), Input::Message { peer: 11, bytes: &have });
    }
    for (msn, is_there) in [(3, true), (700, true), (999, true), (1_000, false)] {
        let piece = PieceId { msn, ..OLD };
        peer.handle_input(Time::from_ms(3), Input::Unwant { request: 5 });
        want(&mut peer, piece);
        let outputs = told_record(&mut peer, piece, None);
        let is_question = |output: &Output| match output {
            Output::SendControl { bytes, .. } => matches!(Control::parse(bytes), Ok(Control::Request(_))),
            _ => false,
        };
        assert_eq!(outputs.iter().any(is_question), is_there, "{msn}");
    }
}

#[test]
fn what_was_fetched_from_the_past_stays_longer_than_what_is_long_there() {
    let mut peer = welcomed_with(Config { pieces_max: 8, ..config() });
    let load = |peer: &mut Peer, ms: u64, msn: u64| {
        let id = PieceId { msn, ..OLD };
        let signed = sign(&record(id, 5_000, 1_000_000 + 500 * msn, 500, true));
        peer.handle_input(Time::from_ms(ms), Input::Record { record: &signed });
        let digests = &signed.record().blocks;
        let loaded = Input::Loaded { piece: id, length: 5_000, digests, took: Span::from_ms(9) };
        peer.handle_input(Time::from_ms(ms), loaded);
        drain(peer);
    };
    play(&mut peer, 980_000);
    (0..8).for_each(|at| load(&mut peer, 500 * at, 100 + at));
    want(&mut peer, OLD);
    load(&mut peer, 5_000, OLD.msn);
    (0..4).for_each(|at| load(&mut peer, 5_500 + 500 * at, 108 + at));
    assert!(peer.pieces.contains_key(&OLD), "{:?}", peer.pieces.keys_where(&|_, _| true));
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
                sets.iter()
                    .flat_map(|set| set.listed().iter().map(|block| (*peer, block)).collect::<Vec<_>>()),
            );
        }
    }
    let of = |neighbor| asked.iter().filter(|(peer, _)| *peer == neighbor).count();
    assert!(of(11) > 8 && of(12) > 8 && of(13) > 8, "several give: {asked:?}");
    assert!(asked.contains(&(13, 17)) && asked.contains(&(13, 29)), "the rare ones first: {asked:?}");
}
