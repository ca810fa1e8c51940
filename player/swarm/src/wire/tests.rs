//! The examples of `WIRE.md`, and garbage.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const TEXT: &str = include_str!("../../WIRE.md");

/// The hex of each example, by the name after its fence.
fn examples() -> BTreeMap<&'static str, Vec<u8>> {
    let fenced = TEXT.split("```").skip(1).step_by(2).filter_map(|fenced| fenced.split_once('\n'));
    let bytes = |hex: &str| {
        hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect::<Vec<u8>>()
    };
    fenced.map(|(name, hex)| (name, bytes(hex))).collect()
}

fn piece(rendition: u8, part: u16) -> PieceId {
    PieceId { rendition, msn: 7, part }
}

fn sets_of(sets: Sets<'_>) -> Vec<(PieceId, bool, Vec<u32>)> {
    sets.iter().map(|set| (set.piece, set.is_all(), set.listed().iter().collect())).collect()
}

#[test]
fn wire_v1_examples_decode() {
    let examples = examples();
    let parse = |name| Control::parse(&examples[name]).expect(name);
    let flags = Flags { shares: true, ..Flags::default() };
    let epoch = Epoch(std::array::from_fn(|index| index as u8));
    assert_eq!(parse("hello"), Control::Hello { version: 1, flags, uplink_class: 11, epoch, peer: 258 });
    let flags = Flags { shares: true, wants_records: true, ..Flags::default() };
    assert_eq!(parse("state"), Control::State { flags, uplink_class: 0 });
    let Control::Have(sets) = parse("have") else { panic!("have") };
    assert_eq!(sets_of(sets), [(piece(0, 2), true, vec![]), (piece(1, 3), false, vec![0, 3, 8])]);
    let Control::Request(sets) = parse("request") else { panic!("request") };
    assert_eq!(sets_of(sets), [(piece(0, 2), false, vec![1, 2])]);
    let Control::Cancel(sets) = parse("cancel") else { panic!("cancel") };
    assert_eq!(sets_of(sets), [(piece(0, 2), true, vec![])]);
    let Control::Refuse { reason: RefuseReason::Busy, sets } = parse("refuse") else { panic!("refuse") };
    assert_eq!(sets_of(sets), [(piece(0, 2), false, vec![2])]);
    assert_eq!(parse("record"), Control::Record(&[1, 2, 3]));
    assert_eq!(parse("shed"), Control::Shed { rendition: 0, stripe: 5 });
    assert_eq!(parse("subscribe"), Control::Subscribe { rendition: 0, stripes: 12, stripe: 5, on: true });
    assert_eq!(parse("ping"), Control::Ping { nonce: 42 });
    assert_eq!(parse("pong"), Control::Pong { nonce: 42 });
    assert_eq!(parse("goodbye"), Control::Goodbye);
    let header = BlockHeader { piece: piece(0, 2), block: 11, is_answer: false, hops: 2 };
    assert_eq!(BlockHeader::parse(&examples["block"]), Ok(header));
    assert_eq!(examples.len(), 13, "an example for each message, and a check for each example");
}

#[test]
fn wire_v1_examples_are_written_as_they_are_read() {
    for (name, bytes) in examples() {
        match name {
            "block" => assert_eq!(BlockHeader::parse(&bytes).expect(name).to_bytes(), bytes[..]),
            _ => assert_eq!(Control::parse(&bytes).expect(name).to_bytes(), bytes, "{name}"),
        }
    }
}

#[test]
fn every_truncation_and_extension_of_an_example_is_refused_or_another_message() {
    for (name, bytes) in examples() {
        if name == "block" || name == "record" {
            continue;
        }
        for length in 0..bytes.len() {
            let cut = Control::parse(&bytes[..length]);
            // A cut between two sets leaves a shorter message; nothing else may parse.
            assert!(cut.is_err() || name == "have", "{name} cut to {length}");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert_eq!(Control::parse(&longer), Err(Malformed), "{name}");
    }
}

#[test]
fn limits_hold_at_the_border() {
    let set = |length: u16, fill: u8| {
        let mut bytes = vec![0; 11];
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend(std::iter::repeat_n(fill, usize::from(length)));
        bytes
    };
    let message = |sets: &[Vec<u8>]| [vec![HAVE], sets.concat()].concat();
    assert!(Control::parse(&message(&[set(512, 1)])).is_ok());
    assert!(Control::parse(&message(&[set(513, 1)])).is_err(), "more blocks than a piece can have");
    assert!(Control::parse(&message(&vec![set(0, 0); SETS_MAX])).is_ok());
    assert!(Control::parse(&message(&vec![set(0, 0); SETS_MAX + 1])).is_err(), "too many sets");
    assert!(Control::parse(&message(&[set(2, 0)])).is_err(), "a bitmap that could be shorter");
    assert!(Control::parse(&message(&[])).is_err(), "no set");
    assert!(Control::parse(&[vec![REQUEST], set(0, 0)].concat()).is_err(), "a request for all");
    assert!(Control::parse(&[SUBSCRIBE, 0, 4, 4, 1]).is_err(), "a stripe that does not exist");
    assert!(Control::parse(&vec![RECORD; CONTROL_BYTES_MAX + 1]).is_err(), "too long");
    let block = BlockHeader { piece: piece(0, 0), block: 4096, is_answer: false, hops: 0 };
    assert!(BlockHeader::parse(&block.to_bytes()).is_err(), "a block that no piece has");
}

#[test]
fn full_builders_stay_within_a_message() {
    let mut sets = SetsBuilder::default();
    let all = Bits::below(BLOCKS_MAX);
    let mut added = 0;
    while !sets.is_full() {
        sets.add(piece(0, added), Some(&all));
        added += 1;
    }
    let bytes = Control::Have(sets.sets().expect("some")).to_bytes();
    assert!(bytes.len() <= CONTROL_BYTES_MAX && added > 20);
    assert!(Control::parse(&bytes).is_ok());
}

proptest! {
    #[test]
    fn garbage_never_panics_and_what_parses_is_written_back(
        kind in 0_u8..40,
        body in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let bytes = [vec![kind], body].concat();
        if let Ok(message) = Control::parse(&bytes) {
            let written = message.to_bytes();
            prop_assert_eq!(Control::parse(&written).map(|again| again.to_bytes()), Ok(written));
        }
        let _ = BlockHeader::parse(&bytes);
    }

    #[test]
    fn block_sets_survive_the_way(
        sets in proptest::collection::vec(
            (any::<u8>(), any::<u64>(), any::<u16>(), proptest::collection::btree_set(0_u32..BLOCKS_MAX, 1..30)),
            1..20,
        ),
    ) {
        let mut builder = SetsBuilder::default();
        for (rendition, msn, part, blocks) in &sets {
            let mut bits = Bits::default();
            blocks.iter().for_each(|block| { bits.insert(*block); });
            builder.add(PieceId { rendition: *rendition, msn: *msn, part: *part }, Some(&bits));
        }
        let bytes = Control::Request(builder.sets().expect("some")).to_bytes();
        let Ok(Control::Request(read)) = Control::parse(&bytes) else { panic!("a request") };
        let read: Vec<_> = read.iter().map(|set| (set.piece, set.listed().iter().collect::<Vec<_>>())).collect();
        let sent: Vec<_> = sets
            .iter()
            .map(|(rendition, msn, part, blocks)| {
                (PieceId { rendition: *rendition, msn: *msn, part: *part }, blocks.iter().copied().collect())
            })
            .collect();
        prop_assert_eq!(read, sent);
    }

    #[test]
    fn headers_survive_the_way(
        rendition: u8, msn: u64, part: u16, block in 0_u16..4096, is_answer: bool, hops: u8,
    ) {
        let header = BlockHeader { piece: PieceId { rendition, msn, part }, block, is_answer, hops };
        prop_assert_eq!(BlockHeader::parse(&header.to_bytes()), Ok(header));
    }
}
