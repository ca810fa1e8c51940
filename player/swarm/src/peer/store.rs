//! What the driver keeps: within the limit at every moment, and what the core believes it keeps.

use std::collections::BTreeMap;

use super::world::{config, drain, record, sign, truth};
use crate::{BLOCK_BYTES_MAX, BlockDigest, Config, Input, Output, Peer, PieceId, Span, Time, block_count};

fn at(ms: u64) -> Time {
    Time::from_ms(ms)
}

fn piece(msn: u64) -> PieceId {
    PieceId { rendition: 0, msn, part: 0 }
}

fn learn(peer: &mut Peer, id: PieceId, length: u32) {
    let known = sign(&record(id, length, 1_000_000 + 6_000 * id.msn, 6_000, true));
    peer.handle_input(at(10), Input::Record { record: &known });
}

fn load(peer: &mut Peer, id: PieceId, length: u32) {
    let digests: Vec<BlockDigest> = (0..block_count(length)).map(|block| truth(id, block)).collect();
    let took = Span::from_ms(500);
    peer.handle_input(at(20), Input::Loaded { piece: id, length, digests: &digests, took });
}

#[test]
fn the_driver_never_has_to_keep_more_than_the_limit() {
    const LENGTH: u32 = 512 * BLOCK_BYTES_MAX;
    let limit = u64::from(LENGTH) * 3;
    let mut peer = Peer::new(Config { store_bytes_max: limit, ..config() }, 1);
    peer.handle_input(at(1), Input::Playing { renditions: &[0] });
    let mut kept = BTreeMap::new();
    for msn in 0..12 {
        learn(&mut peer, piece(msn), LENGTH);
        if msn % 2 == 0 {
            load(&mut peer, piece(msn), LENGTH);
        } else {
            // Block by block, as from neighbors or the origin.
            let target = crate::Target::Piece(piece(msn));
            let want = Input::Want { request: msn as u32, target, deadline: Some(at(10)) };
            peer.handle_input(at(20), want);
        }
        let mut blocks = Vec::new();
        loop {
            for output in drain(&mut peer) {
                match output {
                    Output::Store { piece, piece_length, .. } => {
                        kept.insert(piece, u64::from(piece_length));
                    }
                    Output::KeepLoaded { piece } => {
                        kept.insert(piece, u64::from(LENGTH));
                    }
                    Output::Evict { piece } => {
                        assert!(kept.remove(&piece).is_some(), "what is evicted was kept")
                    }
                    Output::Fetch { fetch, piece, offset, length, .. } => {
                        let first = offset / BLOCK_BYTES_MAX;
                        let last = (offset + length).div_ceil(BLOCK_BYTES_MAX);
                        blocks.extend((first..last).map(|block| (fetch, piece, block)));
                    }
                    _ => {}
                }
                assert!(kept.values().sum::<u64>() <= limit, "{} pieces", kept.len());
            }
            let Some((fetch, piece, block)) = blocks.pop() else { break };
            let (length, digest) = (BLOCK_BYTES_MAX, truth(piece, block));
            let block = u16::try_from(block).expect("a block's number");
            peer.handle_input(at(30), Input::FetchBlock { fetch, block, length, digest });
        }
    }
    assert_eq!(peer.stats().pieces, 12, "all of them were complete once");
    assert_eq!(kept.len(), 3);
}

#[test]
fn what_was_loaded_twice_before_its_record_is_not_believed_to_be_kept() {
    const LENGTH: u32 = 4 * BLOCK_BYTES_MAX;
    let mut peer = Peer::new(config(), 1);
    peer.handle_input(at(1), Input::Playing { renditions: &[0] });
    load(&mut peer, piece(1), LENGTH);
    assert_eq!(drain(&mut peer), []);
    load(&mut peer, piece(1), LENGTH);
    assert_eq!(drain(&mut peer), [Output::DropLoaded { piece: piece(1) }]);
    learn(&mut peer, piece(1), LENGTH);
    assert!(!drain(&mut peer).contains(&Output::KeepLoaded { piece: piece(1) }), "it was dropped");
    load(&mut peer, piece(1), LENGTH);
    assert!(drain(&mut peer).contains(&Output::KeepLoaded { piece: piece(1) }));
}
