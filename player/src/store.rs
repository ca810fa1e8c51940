//! The piece store: verified bytes, held for the player and for others.
//!
//! Holds what the core said to store and nothing else; what to evict is the core's decision too.

use std::collections::BTreeMap;

use bytes::Bytes;
use shoal_digest::{PieceId, block_bytes, block_count};

/// The media bytes of one viewer.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pieces: BTreeMap<PieceId, Vec<Option<Bytes>>>,
}

impl Store {
    /// Puts a verified block in its place.
    pub(crate) fn put(&mut self, piece: PieceId, block: u16, piece_length: u32, bytes: Bytes) {
        let blocks =
            self.pieces.entry(piece).or_insert_with(|| vec![None; block_count(piece_length) as usize]);
        if let Some(slot) = blocks.get_mut(usize::from(block)) {
            *slot = Some(bytes);
        }
    }

    /// Puts a whole verified piece in place.
    pub(crate) fn put_whole(&mut self, piece: PieceId, bytes: &Bytes) {
        // A piece's length fits in a record's four bytes.
        let step = block_bytes(bytes.len() as u32) as usize;
        let blocks = (0..bytes.len())
            .step_by(step)
            .map(|start| Some(bytes.slice(start..bytes.len().min(start + step))))
            .collect();
        self.pieces.insert(piece, blocks);
    }

    /// A block's bytes, if they are there.
    pub(crate) fn block(&self, piece: PieceId, block: u16) -> Option<Bytes> {
        self.pieces.get(&piece)?.get(usize::from(block))?.clone()
    }

    /// The length of a piece, if all of it is there.
    pub(crate) fn complete_length(&self, piece: PieceId) -> Option<u64> {
        self.pieces.get(&piece)?.iter().map(|block| block.as_ref().map(|bytes| bytes.len() as u64)).sum()
    }

    /// Forgets a piece.
    pub(crate) fn remove(&mut self, piece: PieceId) {
        self.pieces.remove(&piece);
    }
}

#[cfg(test)]
mod tests {
    use shoal_digest::BLOCK_BYTES_MIN;

    use super::*;

    #[test]
    fn piece_is_complete_when_its_last_block_came() {
        let piece = PieceId { rendition: 0, msn: 1, part: 0 };
        let mut store = Store::default();
        let length = BLOCK_BYTES_MIN + 3;
        store.put(piece, 1, length, Bytes::from_static(b"abc"));
        assert_eq!(store.complete_length(piece), None);
        store.put(piece, 0, length, Bytes::from(vec![1; BLOCK_BYTES_MIN as usize]));
        assert_eq!(store.complete_length(piece), Some(u64::from(length)));
        assert_eq!(store.block(piece, 1).as_deref(), Some(&b"abc"[..]));
        store.remove(piece);
        assert_eq!(store.block(piece, 1), None);
    }

    #[test]
    fn whole_piece_is_cut_into_blocks() {
        let piece = PieceId { rendition: 0, msn: 1, part: 0 };
        let mut store = Store::default();
        store.put_whole(piece, &Bytes::from(vec![7; 2 * BLOCK_BYTES_MIN as usize + 1]));
        assert_eq!(store.block(piece, 2).map(|block| block.len()), Some(1));
        assert_eq!(store.complete_length(piece), Some(2 * u64::from(BLOCK_BYTES_MIN) + 1));
    }
}
