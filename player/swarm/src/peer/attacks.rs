//! What hostile neighbors can do, and a control for each: with the check off, the test must see the damage.
//!
//! The names are those of the project's list of attacks: pollution, replay and rollback, forged records, liars and
//! stallers, late records, uplink drain, garbage.

use ed25519_dalek::SigningKey;
use proptest::prelude::*;
use shoal_digest::{BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, Epoch, PieceId};

use super::Unsafe;
use super::world::{Manner, World, config, drain, record, sign, truth};
use crate::{
    BlockDigest, DisconnectReason, Input, Output, Peer, Place, Span, Time,
    bits::Bits,
    upload::CHANNEL_BYTES_MAX,
    wire::{BlockHeader, Control, SetsBuilder, VERSION},
};

const ATTACKER: u32 = 666;

fn piece(part: u16) -> PieceId {
    PieceId { rendition: 0, msn: 9, part }
}

/// A peer with one greeted neighbor, the attacker.
fn victim(unsafe_mode: Unsafe) -> Peer {
    let mut peer = Peer::new(config(), 1);
    peer.unsafe_mode = unsafe_mode;
    let report_interval = Span::from_secs(1);
    let welcome = Input::Welcome { peer: 1, neighbors_max: 32, upload_ratio_percent: 200, report_interval };
    peer.handle_input(Time::from_ms(1), welcome);
    peer.handle_input(Time::from_ms(1), Input::Playing { renditions: &[0] });
    greet(&mut peer, ATTACKER);
    peer
}

fn greet(peer: &mut Peer, neighbor: u32) {
    peer.handle_input(Time::from_ms(1), Input::NeighborConnected { peer: neighbor, rtt: None });
    let flags = crate::wire::Flags { shares: true, ..Default::default() };
    let epoch = super::world::EPOCH;
    let hello = Control::Hello { version: VERSION, flags, uplink_class: 12, epoch, peer: neighbor };
    peer.handle_input(Time::from_ms(1), Input::Message { peer: neighbor, bytes: &hello.to_bytes() });
    drain(peer);
}

fn block_from(peer: &mut Peer, from: u32, id: PieceId, block: u16, digest: BlockDigest) -> Vec<Output> {
    let header = BlockHeader { piece: id, block, is_answer: false, hops: 0 }.to_bytes();
    let input = Input::Block { peer: from, header: &header, length: BLOCK_BYTES_MIN, digest };
    peer.handle_input(Time::from_ms(100), input);
    drain(peer)
}

fn stores(outputs: &[Output]) -> bool {
    outputs.iter().any(|output| matches!(output, Output::Store { .. }))
}

fn is_banned(outputs: &[Output]) -> bool {
    let reason = DisconnectReason::Banned;
    outputs.contains(&Output::Disconnect { peer: ATTACKER, reason })
}

/// Gives the peer the true record of a piece of four blocks.
fn teach(peer: &mut Peer, id: PieceId) {
    let record = sign(&record(id, 4 * BLOCK_BYTES_MIN, 1_000_000, 500, false));
    peer.handle_input(Time::from_ms(50), Input::Record { record: &record });
    drain(peer);
}

// Pollution.

fn polluted_world(unsafe_mode: Unsafe) -> World {
    let mut world = World::new(4, 3);
    world.viewers[1].manner = Manner::Pollutes;
    world.viewers.iter_mut().for_each(|viewer| viewer.peer.unsafe_mode = unsafe_mode);
    world.start();
    world.run_for(Span::from_secs(10));
    world
}

#[test]
fn a_polluter_is_banned_after_one_block_and_nothing_bad_is_played() {
    let world = polluted_world(Unsafe::default());
    let polluter = world.id(1);
    assert_eq!(world.bad_bytes(), 0);
    assert_eq!(world.rebuffer_ms(), 0);
    for viewer in world.viewers.iter().filter(|viewer| viewer.manner == Manner::Honest) {
        assert!(viewer.banned.contains(&polluter) && viewer.accused == [polluter]);
        assert!(viewer.banned.len() == 1, "honest viewers are not banned");
        let rejected = viewer.peer.stats().rejected_bytes;
        assert!(rejected <= u64::from(BLOCK_BYTES_MAX), "one block is enough: {rejected}");
    }
}

#[test]
fn without_digests_pollution_is_played() {
    let world = polluted_world(Unsafe { no_digests: true, ..Unsafe::default() });
    assert!(world.bad_bytes() > 0);
}

// Replay and rollback: true bytes in the wrong place.

fn replayed(unsafe_mode: Unsafe) -> Vec<Output> {
    let mut peer = victim(unsafe_mode);
    teach(&mut peer, piece(0));
    teach(&mut peer, piece(1));
    block_from(&mut peer, ATTACKER, piece(1), 2, truth(piece(0), 2))
}

#[test]
fn an_old_block_under_a_new_name_is_proof_of_malice() {
    let outputs = replayed(Unsafe::default());
    assert!(is_banned(&outputs) && !stores(&outputs));
    assert!(outputs.contains(&Output::Accuse { peer: ATTACKER, piece: piece(1) }));
}

#[test]
fn without_digests_an_old_block_is_stored_under_a_new_name() {
    assert!(stores(&replayed(Unsafe { no_digests: true, ..Unsafe::default() })));
}

#[test]
fn blocks_of_the_wrong_length_or_number_are_refused() {
    for (block, length) in
        [(0, BLOCK_BYTES_MIN - 1), (0, 0), (0, u32::MAX), (4, BLOCK_BYTES_MIN), (4095, BLOCK_BYTES_MIN)]
    {
        let mut peer = victim(Unsafe::default());
        teach(&mut peer, piece(0));
        let header = BlockHeader { piece: piece(0), block, is_answer: true, hops: 0 }.to_bytes();
        let digest = truth(piece(0), u32::from(block));
        let input = Input::Block { peer: ATTACKER, header: &header, length, digest };
        peer.handle_input(Time::from_ms(100), input);
        let outputs = drain(&mut peer);
        assert!(is_banned(&outputs) && !stores(&outputs), "block {block} of {length} bytes");
    }
}

fn record_of_yesterday(unsafe_mode: Unsafe) -> u64 {
    let mut peer = victim(unsafe_mode);
    peer.handle_input(Time::from_ms(55), Input::TrackerLost);
    let mut old = record(piece(0), 4 * BLOCK_BYTES_MIN, 1_000_000, 500, false);
    old.epoch = Epoch([6; 16]);
    let bytes = Control::Record(sign(&old).bytes()).to_bytes();
    peer.handle_input(Time::from_ms(60), Input::Message { peer: ATTACKER, bytes: &bytes });
    drain(&mut peer);
    peer.stats().records
}

#[test]
fn a_record_of_another_epoch_is_refused() {
    assert_eq!(record_of_yesterday(Unsafe::default()), 0);
}

#[test]
fn without_the_epoch_check_yesterdays_record_is_taken() {
    assert_eq!(record_of_yesterday(Unsafe { no_epoch: true, ..Unsafe::default() }), 1);
}

// Forged records.

fn forged(unsafe_mode: Unsafe) -> (u64, u64) {
    let mut peer = victim(unsafe_mode);
    peer.handle_input(Time::from_ms(55), Input::TrackerLost);
    let forged =
        record(piece(0), 4 * BLOCK_BYTES_MIN, 1_000_000, 500, false).sign(&SigningKey::from_bytes(&[9; 32]));
    let bytes = Control::Record(&forged).to_bytes();
    peer.handle_input(Time::from_ms(60), Input::Message { peer: ATTACKER, bytes: &bytes });
    drain(&mut peer);
    (peer.stats().records, peer.stats().strikes)
}

#[test]
fn a_forged_record_is_refused_and_counted_against_its_sender() {
    assert_eq!(forged(Unsafe::default()), (0, 1));
}

#[test]
fn without_signatures_a_forged_record_is_taken() {
    assert_eq!(forged(Unsafe { no_signatures: true, ..Unsafe::default() }).0, 1);
}

#[test]
fn a_second_record_for_the_same_piece_does_not_replace_the_first() {
    let mut peer = victim(Unsafe::default());
    teach(&mut peer, piece(0));
    let other = sign(&record(piece(0), 3 * BLOCK_BYTES_MIN, 1_000_000, 500, false));
    peer.handle_input(Time::from_ms(60), Input::RecordBytes { bytes: other.bytes() });
    drain(&mut peer);
    assert_eq!(peer.stats().records_refused, 1);
    assert!(stores(&block_from(&mut peer, ATTACKER, piece(0), 3, truth(piece(0), 3))));
}

#[test]
fn a_record_counts_from_its_check_on_and_once() {
    let mut peer = victim(Unsafe::default());
    let known = sign(&record(piece(0), 4 * BLOCK_BYTES_MIN, 1_000_000, 500, false));
    let hold = block_from(&mut peer, ATTACKER, piece(0), 1, truth(piece(0), 1));
    assert!(matches!(hold[..], [Output::Hold { hold: 1 }]), "{hold:?}");
    let tell = |peer: &mut Peer| {
        peer.handle_input(Time::from_ms(110), Input::RecordBytes { bytes: known.bytes() });
        let outputs: Vec<_> = std::iter::from_fn(|| peer.poll_output()).collect();
        outputs.iter().filter(|output| matches!(output, Output::CheckRecord { .. })).count()
    };
    let check = |peer: &mut Peer, check| {
        peer.handle_input(Time::from_ms(120), Input::RecordChecked { check, is_signed: true });
        (peer.stats().records, stores(&drain(peer)))
    };
    assert_eq!((tell(&mut peer), tell(&mut peer)), (1, 0), "one check serves both");
    assert_eq!(check(&mut peer, 2), (0, false), "nobody asked for that");
    assert_eq!(check(&mut peer, 1), (1, true), "what was held for it is stored");
    assert_eq!(check(&mut peer, 1), (1, false), "an answer counts once");
    assert_eq!(tell(&mut peer), 0, "what is known is not checked again");
}

// Records that come late.

#[test]
fn a_block_before_its_record_is_held_and_stored_when_the_record_comes() {
    let mut peer = victim(Unsafe::default());
    let outputs = block_from(&mut peer, ATTACKER, piece(0), 1, truth(piece(0), 1));
    assert!(matches!(outputs[..], [Output::Hold { hold: 1 }]), "{outputs:?}");
    let record = sign(&record(piece(0), 4 * BLOCK_BYTES_MIN, 1_000_000, 500, false));
    peer.handle_input(Time::from_ms(110), Input::Record { record: &record });
    let stored = drain(&mut peer);
    assert!(stored.iter().any(|output| matches!(output, Output::Store { held: Some(1), block: 1, .. })));
}

#[test]
fn a_bad_block_before_its_record_is_dropped_and_its_sender_banned_when_the_record_comes() {
    let mut peer = victim(Unsafe::default());
    block_from(&mut peer, ATTACKER, piece(0), 1, truth(piece(0), 2));
    block_from(&mut peer, ATTACKER, piece(0), 3, truth(piece(0), 3));
    let record = sign(&record(piece(0), 4 * BLOCK_BYTES_MIN, 1_000_000, 500, false));
    peer.handle_input(Time::from_ms(110), Input::Record { record: &record });
    let outputs = drain(&mut peer);
    assert!(is_banned(&outputs) && !stores(&outputs));
    let dropped = outputs.iter().filter(|output| matches!(output, Output::DropHeld { .. }));
    assert_eq!(dropped.count(), 2, "also what else it sent is dropped, each once: {outputs:?}");
}

#[test]
fn without_holding_a_block_without_a_record_is_stored() {
    let mut peer = victim(Unsafe { no_holding: true, ..Unsafe::default() });
    assert!(stores(&block_from(&mut peer, ATTACKER, piece(0), 1, truth(piece(0), 2))));
}

#[test]
fn one_neighbor_takes_a_quarter_of_the_holding_room_at_most_and_only_for_a_while() {
    let mut peer = victim(Unsafe::default());
    let holds = (0..200)
        .flat_map(|block| block_from(&mut peer, ATTACKER, piece(0), block, BlockDigest([0; 16])))
        .filter(|output| matches!(output, Output::Hold { .. }));
    let holds = holds.count();
    assert_eq!(holds, peer.config.held_max / 4);
    let mut dropped = 0;
    for ms in 0..80 {
        peer.handle_input(Time::from_ms(200 + ms * 100), Input::Wake);
        dropped += drain(&mut peer).iter().filter(|output| matches!(output, Output::DropHeld { .. })).count();
    }
    assert_eq!(dropped, holds);
}

// Liars and stallers.

fn stalled_world(unsafe_mode: Unsafe) -> World {
    let mut world = World::new(5, 4);
    world.viewers[2].manner = Manner::Stalls;
    world.viewers.iter_mut().for_each(|viewer| viewer.peer.unsafe_mode = unsafe_mode);
    world.start();
    world.run_for(Span::from_secs(15));
    world
}

#[test]
fn a_parent_that_pushes_nothing_is_complained_of_by_its_children() {
    let world = stalled_world(Unsafe::default());
    let staller = world.id(2);
    for viewer in world.viewers.iter().filter(|viewer| viewer.manner == Manner::Honest) {
        assert!(viewer.complaints.len() >= 2, "it has two or three stripes: {:?}", viewer.complaints);
        assert!(viewer.complaints.iter().all(|(peer, _)| *peer == staller), "{:?}", viewer.complaints);
    }
}

/// The control: honest parents are not complained of, so the test above does not see mere suspicion.
#[test]
fn parents_that_push_are_not_complained_of() {
    let mut world = World::new(5, 4);
    world.start();
    world.run_for(Span::from_secs(15));
    assert!(world.viewers.iter().all(|viewer| viewer.complaints.is_empty()));
}

fn planned_child() -> Peer {
    let mut peer = victim(Unsafe::default());
    let place = |stripe: u8| crate::Place {
        stripe,
        is_root: false,
        parent: Some(ATTACKER),
        children: &[],
        expected: Span::from_ms(100),
    };
    let places: Vec<_> = (0..4).map(place).collect();
    peer.handle_input(Time::from_ms(2), Input::Plan { rendition: 0, stripes: 4, places: &places });
    drain(&mut peer);
    peer
}

#[test]
fn a_child_that_is_sent_away_asks_the_tracker_for_another_parent_and_takes_the_old_one_back() {
    let mut peer = planned_child();
    let shed = Control::Shed { rendition: 0, stripe: 0 }.to_bytes();
    peer.handle_input(Time::from_ms(60), Input::Message { peer: ATTACKER, bytes: &shed });
    let complaint = Output::Complain { peer: ATTACKER, rendition: 0, stripe: 0 };
    assert_eq!(drain(&mut peer).iter().filter(|output| **output == complaint).count(), 1);
    assert_eq!(peer.plans.get(&0).map(|plan| plan.stripes[0].source()), Some(None));
    teach(&mut peer, piece(0));
    let block = (0..4)
        .find(|block| crate::stripe_of(piece(0), 4 * BLOCK_BYTES_MIN, *block, 4) == 0)
        .expect("one of four");
    block_from(&mut peer, ATTACKER, piece(0), block as u16, truth(piece(0), block));
    assert_eq!(peer.plans.get(&0).map(|plan| plan.stripes[0].source()), Some(Some(ATTACKER)));
}

#[test]
fn a_neighbor_that_promises_and_never_sends_stops_nobody() {
    let world = stalled_world(Unsafe::default());
    assert_eq!(world.rebuffer_ms(), 0);
    // What it should have brought in comes once more, by somebody's turn at the origin, not once for each viewer.
    assert!(world.copies() < 1.6, "{}", world.copies());
}

/// Two neighbors say that they have a piece, and neither ever sends: who was asked within a second?
fn asked_of(unsafe_mode: Unsafe) -> Vec<u32> {
    let mut peer = victim(unsafe_mode);
    greet(&mut peer, 7);
    teach(&mut peer, piece(0));
    let playhead = Input::Playhead {
        position_ms: 998_000,
        buffered_until_ms: 1_000_000,
        rate_percent: 100,
        is_stalled: false,
    };
    peer.handle_input(Time::from_ms(60), playhead);
    let mut sets = SetsBuilder::default();
    sets.add(piece(0), None);
    let have = Control::Have(sets.sets().expect("some")).to_bytes();
    peer.handle_input(Time::from_ms(61), Input::Message { peer: ATTACKER, bytes: &have });
    peer.handle_input(Time::from_ms(61), Input::Message { peer: 7, bytes: &have });
    let mut asked = Vec::new();
    for ms in 62..1000 {
        peer.handle_input(Time::from_ms(ms), Input::Wake);
        for output in drain(&mut peer) {
            if let Output::SendControl { peer: to, bytes } = output
                && let Ok(Control::Request(sets)) = Control::parse(&bytes)
                && sets.iter().any(|set| set.listed().contains(0))
            {
                asked.push(to);
            }
        }
    }
    asked
}

#[test]
fn who_does_not_answer_is_replaced_in_time() {
    let mut asked = asked_of(Unsafe::default());
    asked.sort_unstable();
    assert_eq!(asked, [7, ATTACKER], "each once");
}

#[test]
fn without_timeouts_a_staller_is_waited_for() {
    assert_eq!(asked_of(Unsafe { no_pull_timeout: true, ..Unsafe::default() }).len(), 1);
}

// Uplink drain.

/// An attacker asks for everything again and again; an honest neighbor asks for twelve blocks, one at a time, less than
/// half of what the rate allows. Says how many blocks each got.
fn drained(unsafe_mode: Unsafe) -> (usize, usize) {
    let mut peer = victim(unsafe_mode);
    greet(&mut peer, 7);
    let pieces: Vec<PieceId> = (0..8).map(piece).collect();
    for id in &pieces {
        teach(&mut peer, *id);
        let digests: Vec<BlockDigest> = (0..4).map(|block| truth(*id, block)).collect();
        let took = Span::from_ms(50);
        let loaded = Input::Loaded { piece: *id, length: 4 * BLOCK_BYTES_MIN, digests: &digests, took };
        peer.handle_input(Time::from_ms(90), loaded);
        drain(&mut peer);
    }
    let ask = |peer: &mut Peer, at: Time, from: u32, id: PieceId, blocks: u32| {
        let mut sets = SetsBuilder::default();
        sets.add(id, Some(&Bits::below(blocks)));
        let bytes = Control::Request(sets.sets().expect("some")).to_bytes();
        peer.handle_input(at, Input::Message { peer: from, bytes: &bytes });
    };
    let mut got = (0, 0);
    for ms in 0..4000 {
        let at = Time::from_ms(100 + ms);
        pieces.iter().for_each(|id| ask(&mut peer, at, ATTACKER, *id, 4));
        if ms % 300 == 50 && ms < 3600 {
            ask(&mut peer, at, 7, pieces[(ms / 300 % 8) as usize], 1);
        }
        for output in drain(&mut peer) {
            if let Output::SendBlock { peer: to, .. } = output {
                if to == ATTACKER {
                    got.0 += 1
                } else {
                    got.1 += 1
                }
                peer.handle_input(at, Input::SendQueue { peer: to, buffered: 0 });
            }
        }
        peer.check_limits();
    }
    got
}

#[test]
fn who_asks_for_everything_takes_nothing_from_those_who_ask_for_little() {
    let (attacker, honest) = drained(Unsafe { no_talk_limit: true, ..Unsafe::default() });
    assert!(honest >= 11, "attacker {attacker}, honest {honest}");
}

#[test]
fn without_shares_a_greedy_neighbor_crowds_out_an_honest_one() {
    let (attacker, honest) =
        drained(Unsafe { no_fair_answers: true, no_talk_limit: true, ..Unsafe::default() });
    assert!(honest < 8, "attacker {attacker}, honest {honest}");
}

#[test]
fn what_children_are_pushed_leaves_before_what_neighbors_ask_for() {
    const CHILD: u32 = 7;
    let mut peer = victim(Unsafe::default());
    greet(&mut peer, CHILD);
    (10..18).for_each(|neighbor| greet(&mut peer, neighbor));
    let place = Place { stripe: 0, is_root: true, parent: None, expected: Span::ZERO, children: &[CHILD] };
    let (ms, load) = (Time::from_ms, |peer: &mut Peer, at: Time, id: PieceId| {
        teach(peer, id);
        let digests: Vec<BlockDigest> = (0..4).map(|block| truth(id, block)).collect();
        let input =
            Input::Loaded { piece: id, length: 4 * BLOCK_BYTES_MIN, digests: &digests, took: Span::ZERO };
        peer.handle_input(at, input);
    });
    (0..8).for_each(|part| load(&mut peer, ms(60), piece(part)));
    drain(&mut peer);
    peer.handle_input(ms(70), Input::Plan { rendition: 0, stripes: 1, places: &[place] });
    // Eight neighbors ask for a piece each, more than the line sends at once; a tenth of a second later a new one is there.
    for (neighbor, id) in (10..18).zip((0..8).map(piece)) {
        let mut sets = SetsBuilder::default();
        sets.add(id, Some(&Bits::below(4)));
        let bytes = Control::Request(sets.sets().expect("some")).to_bytes();
        peer.handle_input(ms(100), Input::Message { peer: neighbor, bytes: &bytes });
    }
    let mut sent = Vec::new();
    for at in 100..3_000 {
        if at == 200 {
            load(&mut peer, ms(at), piece(8));
        }
        peer.handle_input(ms(at), Input::Wake);
        for output in drain(&mut peer) {
            if let Output::SendBlock { peer: to, .. } = output {
                sent.push((at, to));
                peer.handle_input(ms(at), Input::SendQueue { peer: to, buffered: 0 });
            }
        }
    }
    let asked = sent.iter().filter(|(_, to)| *to != CHILD).count();
    let late = sent.iter().filter(|(at, to)| *at >= 200 && *to != CHILD).count();
    let waited = sent.iter().position(|(at, to)| *at >= 200 && *to != CHILD);
    let pushed = sent.iter().rposition(|(_, to)| *to == CHILD);
    assert!(late > 0 && asked > late, "the line is busy with {late} of {asked} answers when the piece comes");
    assert!(pushed < waited, "{sent:?}");
}

// Identity and garbage.

#[test]
fn nobody_speaks_in_anothers_name_or_before_greeting() {
    let mut peer = victim(Unsafe::default());
    peer.handle_input(Time::from_ms(2), Input::NeighborConnected { peer: 5, rtt: None });
    let flags = crate::wire::Flags::default();
    let epoch = super::world::EPOCH;
    let hello = Control::Hello { version: VERSION, flags, uplink_class: 0, epoch, peer: 6 }.to_bytes();
    peer.handle_input(Time::from_ms(2), Input::Message { peer: 5, bytes: &hello });
    peer.handle_input(
        Time::from_ms(2),
        Input::Message { peer: 5, bytes: &Control::Ping { nonce: 1 }.to_bytes() },
    );
    assert_eq!(peer.stats().strikes, 2);
    assert!(!drain(&mut peer).iter().any(|output| matches!(output, Output::Disconnect { .. })));
}

fn struck(unsafe_mode: Unsafe) -> bool {
    let mut peer = victim(unsafe_mode);
    for _ in 0..10 {
        peer.handle_input(Time::from_ms(3), Input::Message { peer: ATTACKER, bytes: &[255, 1, 2] });
    }
    let reason = DisconnectReason::Malformed;
    let is_out = drain(&mut peer).contains(&Output::Disconnect { peer: ATTACKER, reason });
    peer.handle_input(Time::from_ms(4), Input::NeighborConnected { peer: ATTACKER, rtt: None });
    let reason = DisconnectReason::Banned;
    is_out && drain(&mut peer) == [Output::Disconnect { peer: ATTACKER, reason }]
}

#[test]
fn who_talks_garbage_is_put_out_for_good() {
    assert!(struck(Unsafe::default()));
}

#[test]
fn without_strikes_garbage_goes_on_for_ever() {
    assert!(!struck(Unsafe { no_strikes: true, ..Unsafe::default() }));
}

/// A message that may be well-formed.
fn message() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..80),
        (3_u8..7, proptest::collection::vec((0_u8..2, 8_u64..11, 0_u16..4, any::<u8>(), any::<u8>()), 1..5))
            .prop_map(|(kind, sets)| {
                let mut bytes = if kind == 6 { vec![kind, 1] } else { vec![kind] };
                for (rendition, msn, part, low, high) in sets {
                    bytes.push(rendition);
                    bytes.extend_from_slice(&msn.to_be_bytes());
                    bytes.extend_from_slice(&part.to_be_bytes());
                    bytes.extend_from_slice(&[0, 2, low, high]);
                }
                bytes
            }),
        (0_u8..3, 0_u8..14, 0_u8..14, 0_u8..2)
            .prop_map(|(rendition, stripes, stripe, on)| vec![9, rendition, stripes, stripe, on]),
        (0_u8..3, 0_u8..14).prop_map(|(rendition, stripe)| vec![8, rendition, stripe]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever neighbors send in whatever order: no panic, no limit exceeded, nothing stored that is not true.
    #[test]
    fn any_sequence_of_messages_leaves_the_limits_intact(
        steps in proptest::collection::vec((0_u32..3, message(), any::<bool>(), 0_u16..6, 0_u64..400), 1..60),
    ) {
        let mut peer = victim(Unsafe { no_strikes: true, ..Unsafe::default() });
        greet(&mut peer, 1000);
        greet(&mut peer, 1001);
        (0..3).for_each(|part| teach(&mut peer, piece(part)));
        let playhead = Input::Playhead {
            position_ms: 999_000,
            buffered_until_ms: 999_900,
            rate_percent: 100,
            is_stalled: false,
        };
        let mut now = Time::from_ms(200);
        peer.handle_input(now, playhead);
        for (from, bytes, is_block, block, ms) in steps {
            let from = if from == 2 { ATTACKER } else { 1000 + from };
            now += Span::from_ms(ms);
            if is_block {
                let id = piece(block % 4);
                let digest = if ms % 5 == 0 { BlockDigest([1; 16]) } else { truth(id, u32::from(block)) };
                let header = BlockHeader { piece: id, block, is_answer: ms % 2 == 0, hops: 3 }.to_bytes();
                peer.handle_input(now, Input::Block { peer: from, header: &header, length: BLOCK_BYTES_MIN, digest });
                let is_true = digest == truth(id, u32::from(block)) && block < 4;
                for output in drain(&mut peer) {
                    let is_stored = matches!(output, Output::Store { held: None, .. });
                    prop_assert!(is_true || !is_stored);
                }
            } else {
                peer.handle_input(now, Input::Message { peer: from, bytes: &bytes });
            }
            drain(&mut peer);
            peer.check_limits();
            prop_assert!(peer.next_deadline().is_none_or(|(at, _)| at > now));
        }
    }
}

#[test]
fn uplink_drain_by_a_neighbor_that_takes_nothing_ends() {
    // Whether a neighbor is left that goes on talking while what it was sent waits, or does not.
    let is_left = |unsafe_mode: Unsafe, takes: bool| {
        let mut peer = victim(unsafe_mode);
        let children = [ATTACKER];
        let places =
            [Place { stripe: 0, is_root: true, parent: None, children: &children, expected: Span::ZERO }];
        peer.handle_input(Time::from_ms(2), Input::Plan { rendition: 0, stripes: 1, places: &places });
        teach(&mut peer, piece(0));
        let digests: Vec<_> = (0..4).map(|block| truth(piece(0), block)).collect();
        let took = Span::from_ms(5);
        let loaded = Input::Loaded { piece: piece(0), length: 4 * BLOCK_BYTES_MIN, digests: &digests, took };
        peer.handle_input(Time::from_ms(60), loaded);
        let (mut is_sent, mut is_left) = (false, false);
        for second in 1..15 {
            for output in drain(&mut peer) {
                is_left |= matches!(output, Output::Disconnect { reason: DisconnectReason::Silent, .. });
                if matches!(output, Output::SendBlock { .. }) {
                    is_sent = true;
                    let buffered = if takes { 0 } else { CHANNEL_BYTES_MAX };
                    peer.handle_input(Time::from_ms(61), Input::SendQueue { peer: ATTACKER, buffered });
                }
            }
            let ping = Control::Ping { nonce: second }.to_bytes();
            let now = Time::from_ms(u64::from(second) * 1_000);
            peer.handle_input(now, Input::Message { peer: ATTACKER, bytes: &ping });
            peer.handle_input(now, Input::Wake);
        }
        assert!(is_sent, "it was sent something");
        is_left
    };
    assert!(is_left(Unsafe::default(), false));
    assert!(!is_left(Unsafe { no_stuck_limit: true, ..Unsafe::default() }, false), "control");
    assert!(!is_left(Unsafe::default(), true), "who takes what it is sent stays");
}
