//! Viewers for whom the swarm can do little: their player loads by itself, they can reach nobody, or nobody hears them.

use super::world::{EPOCH, config, record, sign};
use crate::{
    BLOCK_BYTES_MAX, Input, Output, Peer, PeerId, PieceId, Place, Span, Target, Time,
    bits::Bits,
    wire::{Control, Flags, SetsBuilder, VERSION},
};

const PIECE: PieceId = PieceId { rendition: 0, msn: 4, part: 0 };
/// When its first piece begins, in the program.
const START_MS: u64 = 1_000_000;

fn at(ms: u64) -> Time {
    Time::from_ms(ms)
}

/// A viewer whose playhead is so long before [`PIECE`] and who has everything up to there.
fn plays(ahead_ms: u64, is_stalled: bool) -> Peer {
    let mut peer = Peer::new(config(), 1);
    peer.handle_input(at(1), Input::Playing { renditions: &[0] });
    let position_ms = START_MS - ahead_ms;
    let playhead =
        Input::Playhead { position_ms, buffered_until_ms: START_MS, rate_percent: 100, is_stalled };
    peer.handle_input(at(1), playhead);
    peer
}

fn join(peer: &mut Peer, now_ms: u64) {
    let report_interval = Span::ZERO;
    let welcome = Input::Welcome { peer: 1, neighbors_max: 8, upload_ratio_percent: 200, report_interval };
    peer.handle_input(at(now_ms), welcome);
}

fn meet(peer: &mut Peer, now_ms: u64, neighbor: PeerId) {
    peer.handle_input(at(now_ms), Input::NeighborConnected { peer: neighbor, rtt: None });
    let flags = Flags { shares: true, ..Default::default() };
    let hello = Control::Hello { version: VERSION, flags, uplink_class: 12, epoch: EPOCH, peer: neighbor };
    peer.handle_input(at(now_ms), Input::Message { peer: neighbor, bytes: &hello.to_bytes() });
}

/// Publishes the piece of this number, so many half seconds after [`PIECE`].
fn publish(peer: &mut Peer, now_ms: u64, part: u16) -> PieceId {
    let piece = PieceId { part, ..PIECE };
    let start_ms = START_MS + 500 * u64::from(part);
    let known = sign(&record(piece, 12 * BLOCK_BYTES_MAX, start_ms, 500, false));
    peer.handle_input(at(now_ms), Input::Record { record: &known });
    piece
}

/// Lets the time pass up to then; gives what the core said meanwhile and when.
fn until(peer: &mut Peer, end_ms: u64) -> Vec<(u64, Output)> {
    let mut said = Vec::new();
    loop {
        while let Some(output) = peer.poll_output() {
            said.push((peer.now.as_us() / 1_000, output));
        }
        match peer.next_deadline() {
            Some((next, _)) if next < at(end_ms) => peer.handle_input(next, Input::Wake),
            _ => return said,
        }
    }
}

fn first_fetch(said: &[(u64, Output)]) -> Option<u64> {
    let fetches = said.iter().filter(|(_, output)| matches!(output, Output::Fetch { .. }));
    fetches.map(|(when, _)| *when).next()
}

fn says_that_it_has(peer: &mut Peer, now_ms: u64, neighbor: PeerId, piece: PieceId) {
    let mut all = Bits::default();
    (0..12).for_each(|block| {
        all.insert(block);
    });
    let mut sets = SetsBuilder::default();
    sets.add(piece, Some(&all));
    let has = Control::Have(sets.sets().expect("one fits")).to_bytes();
    peer.handle_input(at(now_ms), Input::Message { peer: neighbor, bytes: &has });
}

fn questions(said: &[(u64, Output)]) -> usize {
    let is_question = |output: &Output| match output {
        Output::SendControl { bytes, .. } => matches!(Control::parse(bytes), Ok(Control::Request(_))),
        _ => false,
    };
    said.iter().filter(|(_, output)| is_question(output)).count()
}

#[test]
fn what_the_player_was_told_to_load_itself_is_not_fetched_as_well() {
    let fetched_at = |does_ask: bool| {
        let mut peer = plays(0, true);
        if does_ask {
            let want = Input::Want { request: 1, target: Target::Piece(PIECE), deadline: None };
            peer.handle_input(at(2), want);
            let said = until(&mut peer, 3);
            assert!(said.iter().any(|(_, output)| matches!(output, Output::Fallback { .. })), "{said:?}");
        }
        join(&mut peer, 10);
        publish(&mut peer, 10, 0);
        first_fetch(&until(&mut peer, 5_000))
    };
    assert!(fetched_at(false) < Some(20), "a waiting player needs it");
    // The driver tells when it was loaded, and nothing when it failed.
    assert!(fetched_at(true) > Some(1_500), "it was not given time enough");
}

#[test]
fn what_the_player_asks_for_again_was_not_loaded() {
    let mut peer = plays(0, true);
    for (request, now_ms) in [(1, 2), (2, 20)] {
        let want = Input::Want { request, target: Target::Piece(PIECE), deadline: None };
        peer.handle_input(at(now_ms), want);
        join(&mut peer, 10);
        publish(&mut peer, 10, 0);
    }
    assert!(first_fetch(&until(&mut peer, 5_000)) < Some(30));
}

#[test]
fn what_the_player_asks_for_with_the_whole_segment_was_not_loaded_either() {
    let mut peer = plays(0, true);
    let part = Target::Piece(PieceId { part: 1, ..PIECE });
    peer.handle_input(at(2), Input::Want { request: 1, target: part, deadline: None });
    join(&mut peer, 10);
    (0..2).for_each(|part| {
        publish(&mut peer, 10, part);
    });
    let segment = Target::Segment { rendition: PIECE.rendition, msn: PIECE.msn };
    peer.handle_input(at(20), Input::Want { request: 2, target: segment, deadline: None });
    let said = until(&mut peer, 100);
    let is_fetched = |part: u16| {
        said.iter().any(|(_, output)| matches!(output, Output::Fetch { piece, .. } if piece.part == part))
    };
    assert!(is_fetched(0) && is_fetched(1), "{said:?}");
}

#[test]
fn who_can_reach_nobody_keeps_its_buffer_as_full_as_a_plain_player() {
    // After so long without neighbors the next piece, for which there are ten seconds, is fetched after this time.
    let waits = |alone_ms: u64, has_plan: bool| {
        let mut peer = plays(alone_ms + 10_000, false);
        join(&mut peer, 2);
        if has_plan {
            let place =
                Place { stripe: 0, is_root: false, parent: Some(7), children: &[], expected: Span::ZERO };
            peer.handle_input(at(2), Input::Plan { rendition: 0, stripes: 1, places: &[place] });
        }
        until(&mut peer, alone_ms);
        publish(&mut peer, alone_ms, 0);
        first_fetch(&until(&mut peer, alone_ms + 10_000)).map(|when| when - alone_ms)
    };
    for has_plan in [true, false] {
        assert!(waits(5_000, has_plan) > Some(5_000), "somebody may come yet");
        assert!(waits(20_000, has_plan) < Some(10), "nobody will");
    }
}

#[test]
fn who_is_not_heard_by_anybody_asks_nobody_for_a_while() {
    let mut peer = plays(60_000, false);
    join(&mut peer, 2);
    (11..19).for_each(|neighbor| meet(&mut peer, 2, neighbor));
    let nobody = Place { stripe: 0, is_root: false, parent: Some(7), children: &[], expected: Span::ZERO };
    peer.handle_input(at(2), Input::Plan { rendition: 0, stripes: 1, places: &[nobody] });
    let mut asked = Vec::new();
    for part in 0..20 {
        let now_ms = 100 + u64::from(part) * 500;
        let piece = publish(&mut peer, now_ms, part);
        // They are there: only what they are asked for they never give.
        (11..19).for_each(|neighbor| says_that_it_has(&mut peer, now_ms, neighbor, piece));
        asked.push(questions(&until(&mut peer, now_ms + 500)));
    }
    assert_eq!(peer.stats().starved, 1, "{asked:?}");
    assert!(asked[..5].iter().sum::<usize>() > 0 && asked[15..].iter().all(|asked| *asked == 0), "{asked:?}");
    assert_eq!(peer.plannable_bps(), 0);
}

#[test]
fn who_watches_from_further_back_does_not_ask_for_what_is_published_now() {
    let asks = |ahead_ms: u64| {
        let mut peer = plays(ahead_ms, false);
        join(&mut peer, 2);
        meet(&mut peer, 2, 11);
        let piece = publish(&mut peer, 3, 0);
        says_that_it_has(&mut peer, 3, 11, piece);
        questions(&until(&mut peer, 5_000)) > 0
    };
    assert!(asks(30_000));
    assert!(!asks(90_000));
}

#[test]
fn whom_a_viewer_asked_to_push_is_told_when_it_plays_something_else() {
    let mut peer = plays(5_000, false);
    join(&mut peer, 2);
    meet(&mut peer, 2, 11);
    let place = Place { stripe: 0, is_root: false, parent: Some(7), children: &[], expected: Span::ZERO };
    peer.handle_input(at(2), Input::Plan { rendition: 0, stripes: 1, places: &[place] });
    let subscribed = |peer: &mut Peer, end_ms: u64| {
        let said = until(peer, end_ms);
        let mut told = said.into_iter().filter_map(|(_, output)| match output {
            Output::SendControl { bytes, .. } => match Control::parse(&bytes) {
                Ok(Control::Subscribe { on, .. }) => Some(on),
                _ => None,
            },
            _ => None,
        });
        told.next_back()
    };
    assert_eq!(subscribed(&mut peer, 1_500), Some(true), "the parent never came");
    peer.handle_input(at(1_500), Input::Playing { renditions: &[1] });
    assert_eq!(subscribed(&mut peer, 3_000), Some(false));
}

/// A neighbor pushes all blocks of a piece.
fn is_pushed(peer: &mut Peer, now_ms: u64, from: PeerId, id: PieceId) {
    for block in 0..12 {
        let header = crate::wire::BlockHeader { piece: id, block, is_answer: false, hops: 0 }.to_bytes();
        let digest = super::world::truth(id, u32::from(block));
        let input = Input::Block { peer: from, header: &header, length: BLOCK_BYTES_MAX, digest };
        peer.handle_input(at(now_ms), input);
    }
}

fn loads(peer: &mut Peer, now_ms: u64, id: PieceId) {
    let digests: Vec<_> = (0..12).map(|block| super::world::truth(id, block)).collect();
    let took = Span::from_ms(200);
    peer.handle_input(
        at(now_ms),
        Input::Loaded { piece: id, length: 12 * BLOCK_BYTES_MAX, digests: &digests, took },
    );
}

/// What a viewer tells its parent of pushes in seven seconds in which it has every piece before they come, or not.
fn says_of_pushes(has_all: bool) -> Vec<bool> {
    const PARENT: PeerId = 7;
    let mut peer = plays(5_000, false);
    join(&mut peer, 2);
    meet(&mut peer, 2, PARENT);
    let place =
        Place { stripe: 0, is_root: false, parent: Some(PARENT), expected: Span::ZERO, children: &[] };
    peer.handle_input(at(3), Input::Plan { rendition: 0, stripes: 1, places: &[place] });
    until(&mut peer, 10);
    let mut said = Vec::new();
    for part in 0..24 {
        let now_ms = 10 + 500 * u64::from(part);
        let id = publish(&mut peer, now_ms, part);
        let ping = Control::Ping { nonce: 1 }.to_bytes();
        peer.handle_input(at(now_ms), Input::Message { peer: PARENT, bytes: &ping });
        if has_all {
            loads(&mut peer, now_ms + 1, id);
        }
        // Once it has said so, the parent pushes no more.
        if said.last() != Some(&true) {
            is_pushed(&mut peer, now_ms + 2, PARENT, id);
        }
        for (_, output) in until(&mut peer, now_ms + 500) {
            if let Output::SendControl { bytes, .. } = &output
                && let Ok(Control::State { flags, .. }) = Control::parse(bytes)
                && said.last() != Some(&flags.refuses_pushes)
            {
                said.push(flags.refuses_pushes);
            }
        }
    }
    said
}

#[test]
fn who_is_pushed_only_what_it_has_refuses_pushes_for_a_while() {
    assert!(says_of_pushes(true).starts_with(&[true, false]));
    assert!(!says_of_pushes(false).contains(&true));
}

#[test]
fn who_refuses_pushes_is_sent_only_what_it_asks_for() {
    const CHILD: PeerId = 7;
    let sent = |refuses_pushes: bool| {
        let mut peer = plays(5_000, false);
        join(&mut peer, 2);
        meet(&mut peer, 2, CHILD);
        let place =
            Place { stripe: 0, is_root: true, parent: None, expected: Span::ZERO, children: &[CHILD] };
        peer.handle_input(at(3), Input::Plan { rendition: 0, stripes: 1, places: &[place] });
        let id = publish(&mut peer, 5, 0);
        let flags = Flags { shares: true, refuses_pushes, ..Default::default() };
        loads(&mut peer, 6, id);
        let state = Control::State { flags, uplink_class: 12 }.to_bytes();
        peer.handle_input(at(6), Input::Message { peer: CHILD, bytes: &state });
        let at_once = until(&mut peer, 7).iter().filter(|(_, output)| is_block(output)).count();
        let mut sets = SetsBuilder::default();
        sets.add(id, Some(&Bits::below(2)));
        let asks = Control::Request(sets.sets().expect("some")).to_bytes();
        peer.handle_input(at(8), Input::SendQueue { peer: CHILD, buffered: 0 });
        peer.handle_input(at(8), Input::Message { peer: CHILD, bytes: &asks });
        let next = publish(&mut peer, 9, 1);
        loads(&mut peer, 9, next);
        let mut later = 0;
        for ms in 10..1_500 {
            later += until(&mut peer, ms).iter().filter(|(_, output)| is_block(output)).count();
            peer.handle_input(at(ms), Input::SendQueue { peer: CHILD, buffered: 0 });
        }
        at_once + later
    };
    // What had left before it said so, and the two that it asked for.
    assert!(sent(true) <= 6, "{}", sent(true));
    assert!(sent(false) > 12, "{}", sent(false));
}

fn is_block(output: &Output) -> bool {
    matches!(output, Output::SendBlock { .. })
}
