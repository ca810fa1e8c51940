//! Neighbors that say more than honest ones do, or nothing at all: what it costs the viewer, and a control for each check.

use ed25519_dalek::SigningKey;

use super::{
    Unsafe,
    records::CHECKS_MAX,
    world::{EPOCH, config, drain, record, sign, truth},
};
use crate::{
    BLOCK_BYTES_MIN, DisconnectReason, Input, Output, Peer, PeerId, PieceId, Place, Span, Time,
    bits::Bits,
    wire::{BlockHeader, Control, Flags, SetsBuilder, VERSION},
};

const ATTACKER: PeerId = 666;

fn at(ms: u64) -> Time {
    Time::from_ms(ms)
}

fn piece(part: u16) -> PieceId {
    PieceId { rendition: 0, msn: 9, part }
}

/// A viewer that has joined, with one neighbor.
fn victim(unsafe_mode: Unsafe) -> Peer {
    let mut peer = Peer::new(config(), 1);
    peer.unsafe_mode = unsafe_mode;
    let report_interval = Span::ZERO;
    let welcome = Input::Welcome { peer: 1, neighbors_max: 32, upload_ratio_percent: 200, report_interval };
    peer.handle_input(at(1), welcome);
    peer.handle_input(at(1), Input::Playing { renditions: &[0] });
    meet(&mut peer, ATTACKER);
    peer
}

fn meet(peer: &mut Peer, neighbor: PeerId) {
    peer.handle_input(at(1), Input::NeighborConnected { peer: neighbor, rtt: None });
    let flags = Flags { shares: true, ..Default::default() };
    let hello = Control::Hello { version: VERSION, flags, uplink_class: 12, epoch: EPOCH, peer: neighbor };
    say(peer, 1, neighbor, &hello);
    drain(peer);
}

fn say(peer: &mut Peer, now_ms: u64, from: PeerId, message: &Control<'_>) {
    peer.handle_input(at(now_ms), Input::Message { peer: from, bytes: &message.to_bytes() });
}

fn is_put_out(outputs: &[Output]) -> bool {
    outputs.contains(&Output::Disconnect { peer: ATTACKER, reason: DisconnectReason::Malformed })
}

/// Blocks of so many pieces that nobody has, these of each.
fn sets(pieces: u16, blocks: Option<&Bits>) -> SetsBuilder {
    let mut sets = SetsBuilder::default();
    (0..pieces).for_each(|part| sets.add(piece(part), blocks));
    sets
}

/// The neighbor announces 64 pieces, this often a second for a minute. Whether it is put out, and how much it has said.
fn announces(unsafe_mode: Unsafe, per_second: u64) -> (bool, usize) {
    let mut peer = victim(unsafe_mode);
    let sets = sets(64, None);
    let have = Control::Have(sets.sets().expect("some"));
    let mut said = 0;
    for now_ms in (1..60_000).step_by(1_000 / per_second as usize) {
        say(&mut peer, now_ms, ATTACKER, &have);
        said += have.to_bytes().len();
        if is_put_out(&drain(&mut peer)) {
            return (true, said);
        }
    }
    (false, said)
}

#[test]
fn who_talks_more_than_anybody_has_to_say_is_put_out() {
    let (is_out, said) = announces(Unsafe::default(), 1_000);
    assert!(is_out && said < 200_000, "{said} bytes");
    assert!(!announces(Unsafe { no_talk_limit: true, ..Unsafe::default() }, 1_000).0, "control");
    assert!(
        !announces(Unsafe::default(), 10).0,
        "ten such a second are more than viewers without a tracker say"
    );
}

#[test]
fn a_question_for_more_than_anybody_needs_is_not_answered() {
    // As many bytes as they ask for: a metered viewer would pay for them.
    let answered = |unsafe_mode, blocks| {
        let mut peer = victim(unsafe_mode);
        peer.handle_input(at(2), Input::Metered { on: true });
        drain(&mut peer);
        let sets = sets(1, Some(&Bits::below(blocks)));
        say(&mut peer, 3, ATTACKER, &Control::Request(sets.sets().expect("some")));
        let is_answer = |output: &Output| matches!(output, Output::SendControl { .. });
        (drain(&mut peer).iter().any(is_answer), peer.stats().strikes)
    };
    assert_eq!(answered(Unsafe::default(), 65), (false, 1));
    assert_eq!(answered(Unsafe { no_talk_limit: true, ..Unsafe::default() }, 65), (true, 0), "control");
    assert_eq!(answered(Unsafe::default(), 64), (true, 0));
}

#[test]
fn records_that_nobody_asked_for_are_not_looked_at() {
    let taken = |unsafe_mode, has_tracker: bool| {
        let mut peer = victim(unsafe_mode);
        if !has_tracker {
            peer.handle_input(at(2), Input::TrackerLost);
        }
        let known = sign(&record(piece(0), 4 * BLOCK_BYTES_MIN, 1_000_000, 500, false));
        say(&mut peer, 3, ATTACKER, &Control::Record(known.bytes()));
        drain(&mut peer);
        assert_eq!(peer.stats().strikes, 0, "it may have been asked for a moment ago");
        peer.stats().records
    };
    assert_eq!(taken(Unsafe::default(), true), 0);
    assert_eq!(taken(Unsafe { no_record_limit: true, ..Unsafe::default() }, true), 1, "control");
    assert_eq!(taken(Unsafe::default(), false), 1, "who has no tracker asks for them");
}

#[test]
fn a_neighbor_has_few_records_checked_at_a_time() {
    let checks = |unsafe_mode| {
        let mut peer = victim(unsafe_mode);
        peer.handle_input(at(2), Input::TrackerLost);
        for part in 0..100 {
            let forged = record(piece(part), 4 * BLOCK_BYTES_MIN, 1_000_000, 500, false)
                .sign(&SigningKey::from_bytes(&[9; 32]));
            say(&mut peer, 3, ATTACKER, &Control::Record(&forged));
        }
        let outputs = std::iter::from_fn(|| peer.poll_output());
        outputs.filter(|output| matches!(output, Output::CheckRecord { .. })).count()
    };
    assert_eq!(checks(Unsafe::default()), CHECKS_MAX);
    assert_eq!(checks(Unsafe { no_record_limit: true, ..Unsafe::default() }), 100, "control");
}

#[test]
fn records_of_another_publication_put_their_sender_out() {
    let is_out = |unsafe_mode| {
        let mut peer = victim(unsafe_mode);
        peer.handle_input(at(2), Input::TrackerLost);
        for part in 0..8 {
            let mut old = record(piece(part), 4 * BLOCK_BYTES_MIN, 1_000_000, 500, false);
            old.epoch = shoal_digest::Epoch([6; 16]);
            say(&mut peer, 3, ATTACKER, &Control::Record(sign(&old).bytes()));
        }
        is_put_out(&drain(&mut peer))
    };
    assert!(is_out(Unsafe::default()));
    assert!(!is_out(Unsafe { no_epoch: true, ..Unsafe::default() }), "control");
}

/// For two seconds a neighbor pushes, again and again, what the viewer has. Whether it refuses its parents' pushes then.
fn refuses_pushes(unsafe_mode: Unsafe) -> bool {
    const LENGTH: u32 = 12 * BLOCK_BYTES_MIN;
    let mut peer = victim(unsafe_mode);
    meet(&mut peer, 7);
    let place = Place { stripe: 0, is_root: false, parent: Some(7), expected: Span::ZERO, children: &[] };
    peer.handle_input(at(2), Input::Plan { rendition: 0, stripes: 1, places: &[place] });
    let known = sign(&record(piece(0), LENGTH, 1_000_000, 500, false));
    peer.handle_input(at(3), Input::Record { record: &known });
    let digests: Vec<_> = (0..12).map(|block| truth(piece(0), block)).collect();
    peer.handle_input(
        at(4),
        Input::Loaded { piece: piece(0), length: LENGTH, digests: &digests, took: Span::from_ms(50) },
    );
    for now_ms in (10..3_500).step_by(250) {
        for block in 0..4 {
            let header = BlockHeader { piece: piece(0), block, is_answer: false, hops: 0 }.to_bytes();
            let digest = digests[usize::from(block)];
            let input = Input::Block { peer: ATTACKER, header: &header, length: BLOCK_BYTES_MIN, digest };
            peer.handle_input(at(now_ms), input);
        }
        peer.handle_input(at(now_ms + 1), Input::Wake);
    }
    peer.glut.is_on(peer.now)
}

#[test]
fn a_stranger_cannot_talk_a_viewer_out_of_its_trees() {
    assert!(!refuses_pushes(Unsafe::default()));
    assert!(refuses_pushes(Unsafe { any_push_counts: true, ..Unsafe::default() }), "control");
}

/// So many neighbors leave questions unanswered, forty each. Whether the viewer takes itself for starved.
fn starved_by(unsafe_mode: Unsafe, neighbors: u32) -> bool {
    let mut peer = victim(unsafe_mode);
    (0..neighbors).for_each(|neighbor| meet(&mut peer, neighbor));
    for _ in 0..40 {
        (0..neighbors).for_each(|neighbor| peer.note_unanswered(neighbor));
    }
    peer.starvation.is_on(peer.now)
}

#[test]
fn a_few_liars_make_nobody_believe_that_it_is_starved() {
    assert!(!starved_by(Unsafe::default(), 3));
    assert!(starved_by(Unsafe { no_talk_limit: true, ..Unsafe::default() }, 3), "control");
    assert!(starved_by(Unsafe::default(), 6), "where most are silent it is the viewer's own line");
}
