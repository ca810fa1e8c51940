//! The stream: pieces with sizes, records signed with a real key, and digests that stand for bytes nobody has.

use std::sync::Arc;

use ed25519_dalek::SigningKey;
use shoal_digest::{BlockDigest, Epoch, OriginKey, PieceId, Record, block_bytes, block_count};
use shoal_swarm::SignedRecord;

use crate::random::Random;
use crate::scenario::Media;

/// The stream has been live for this long when the simulation begins, so that the first viewer finds something to play.
const BEFORE_US: u64 = 20_000_000;
/// The camera's clock at the stream's beginning: some day in 2026, so that program date times look like ones.
const UNIX_MS: u64 = 1_790_000_000_000;

/// One piece of one rendition.
#[derive(Debug)]
pub(crate) struct Piece {
    /// Its id.
    pub(crate) id: PieceId,
    /// Its length in bytes.
    pub(crate) length: u32,
    /// Its signed record.
    pub(crate) record: Arc<SignedRecord>,
}

/// All pieces that exist so far. A piece's number counts from the stream's beginning, alike in all renditions.
#[derive(Debug)]
pub(crate) struct Stream {
    media: Media,
    key: SigningKey,
    epoch: Epoch,
    random: Random,
    pieces: Vec<Vec<Piece>>,
}

impl Stream {
    /// A stream without pieces.
    #[must_use]
    pub(crate) fn new(media: Media, random: Random) -> Self {
        let pieces = media.rates_kbps.iter().map(|_| Vec::new()).collect();
        Self { media, key: SigningKey::from_bytes(&[7; 32]), epoch: Epoch([9; 16]), random, pieces }
    }

    /// Who signs.
    #[must_use]
    pub(crate) fn key(&self) -> OriginKey {
        OriginKey::of(&self.key)
    }

    /// Which publication this is.
    #[must_use]
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How many renditions there are.
    #[must_use]
    pub(crate) fn renditions(&self) -> usize {
        self.pieces.len()
    }

    /// A piece's duration.
    #[must_use]
    pub(crate) fn piece_us(&self) -> u64 {
        u64::from(self.media.piece_ms) * 1_000
    }

    /// From a piece's last frame to its publication.
    #[must_use]
    pub(crate) fn publish_delay_us(&self) -> u64 {
        u64::from(self.media.publish_delay_ms) * 1_000
    }

    /// Pieces in a segment.
    #[must_use]
    pub(crate) fn parts(&self) -> u64 {
        u64::from(self.media.parts)
    }

    /// The camera's time now, since the stream's beginning.
    #[must_use]
    pub(crate) fn camera_us(now_us: u64) -> u64 {
        now_us + BEFORE_US
    }

    /// A time of the stream as a program date time.
    #[must_use]
    pub(crate) fn unix_ms(media_us: u64) -> u64 {
        UNIX_MS + media_us / 1_000
    }

    /// When a piece is published, in the simulation's time; 0 for those that were before.
    #[must_use]
    pub(crate) fn published_us(&self, number: u64) -> u64 {
        let ready = (number + 1) * self.piece_us() + u64::from(self.media.publish_delay_ms) * 1_000;
        ready.saturating_sub(BEFORE_US)
    }

    /// The number of the next piece to be published.
    #[must_use]
    pub(crate) fn next_number(&self) -> u64 {
        self.pieces[0].len() as u64
    }

    /// Publishes the next piece in all renditions.
    pub(crate) fn publish(&mut self) -> u64 {
        let number = self.next_number();
        let (msn, part) = (number / self.parts(), number % self.parts());
        let parts = self.parts() as f64;
        // The other pieces of a segment give what the one with the keyframe takes.
        let key_share = f64::from(self.media.keyframe_percent) / 100.0;
        let share = match (self.parts(), part) {
            (1, _) => 1.0,
            (_, 0) => key_share,
            _ => (parts - key_share).max(0.0) / (parts - 1.0),
        };
        let jitter = self.random.between(0.9, 1.1);
        for (rendition, pieces) in (0..).zip(&mut self.pieces) {
            let mean = f64::from(self.media.rates_kbps[usize::from(rendition)])
                * f64::from(self.media.piece_ms)
                / 8.0;
            let length = (mean * share * jitter).max(1.0) as u32;
            let id = PieceId { rendition, msn, part: part as u16 };
            let digest = |block| block_digest(rendition, number, block);
            let record = Record {
                epoch: self.epoch,
                piece: id,
                is_last_in_segment: part + 1 == u64::from(self.media.parts),
                is_independent: part == 0,
                start_ms: UNIX_MS + number * u64::from(self.media.piece_ms),
                duration_ms: self.media.piece_ms,
                length,
                blocks: (0..block_count(length)).map(digest).collect(),
            };
            let key = OriginKey::of(&self.key);
            let record =
                SignedRecord::verify(&record.sign(&self.key), &key).expect("signed with this very key");
            pieces.push(Piece { id, length, record });
        }
        number
    }

    /// A piece that was published.
    #[must_use]
    pub(crate) fn piece(&self, rendition: u8, number: u64) -> &Piece {
        &self.pieces[usize::from(rendition)][number as usize]
    }

    /// The number of a piece, if it was published.
    #[must_use]
    pub(crate) fn number(&self, id: PieceId) -> Option<u64> {
        let number = id.msn * self.parts() + u64::from(id.part);
        (number < self.next_number() && usize::from(id.rendition) < self.pieces.len()).then_some(number)
    }

    /// The length of a block.
    #[must_use]
    pub(crate) fn block_length(&self, rendition: u8, number: u64, block: u32) -> u32 {
        let length = self.piece(rendition, number).length;
        block_bytes(length).min(length.saturating_sub(block * block_bytes(length)))
    }
}

/// The digest of a block. Nobody simulates the bytes: the digest stands for them.
#[must_use]
pub(crate) fn block_digest(rendition: u8, number: u64, block: u32) -> BlockDigest {
    let mut digest = [0; 16];
    digest[0] = rendition;
    digest[1..9].copy_from_slice(&number.to_be_bytes());
    digest[9..13].copy_from_slice(&block.to_be_bytes());
    BlockDigest(digest)
}

/// The digest of garbage.
pub(crate) const GARBAGE: BlockDigest = BlockDigest([0xee; 16]);
