//! Signed digest records: what the bytes of a piece must hash to.
//!
//! The origin writes one [`Record`] for each piece at the moment the piece is published and signs it. The record
//! reaches viewers over the tracker socket, over HTTP beside the piece, and from other viewers: the signature
//! carries the trust, so the way does not matter. The swarm core compares the digest of each block that arrives
//! with the record before a byte goes to the player or to a peer.
//!
//! Pure: no I/O, no clock, no randomness; builds for WebAssembly. Who signs when: `segmenter`. Who verifies:
//! `player/swarm`. The encoding is described in `README.md` beside this file.

use std::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, Verifier, VerifyingKey};
use sha2::{Digest as _, Sha256};

/// The longest block in bytes: one data-channel message that no browser fragments badly.
pub const BLOCK_BYTES_MAX: u32 = 16 * 1024;

/// The usual length in bytes of the blocks of a short piece. Shorter ones would be mostly headers.
pub const BLOCK_BYTES_MIN: u32 = 4 * 1024;

/// The largest piece that a record can describe, in bytes. 64 MiB is a 10 s segment at 50 Mbit/s; a record that
/// claims more is refused before anything is allocated for it.
pub const PIECE_BYTES_MAX: u32 = 64 * 1024 * 1024;

/// The version of the encoding, its first byte.
pub const VERSION: u8 = 1;

/// Separates our signatures from any other use of the same key.
const SIGNING_CONTEXT: &[u8] = b"shoal digest record 1\0";
const HEADER_BYTES: usize = 1 + 16 + 1 + 1 + 8 + 2 + 8 + 4 + 4;
const SIGNATURE_BYTES: usize = 64;
const FLAG_LAST_IN_SEGMENT: u8 = 1;
const FLAG_INDEPENDENT: u8 = 2;
const FLAGS_KNOWN: u8 = FLAG_LAST_IN_SEGMENT | FLAG_INDEPENDENT;

/// The first 16 bytes of a block's SHA-256.
///
/// Half of SHA-256 keeps second preimages at 2^128 work and halves what every viewer receives for each piece.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockDigest(pub [u8; 16]);

impl BlockDigest {
    /// The digest of a block's bytes.
    #[must_use]
    pub fn of(block: &[u8]) -> Self {
        let full = Sha256::digest(block);
        let mut short = [0; 16];
        short.copy_from_slice(&full[..16]);
        Self(short)
    }
}

impl fmt::Debug for BlockDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One publication of a stream: random, new whenever a stream starts anew, part of every media URL and record.
/// It keeps the pieces of yesterday's broadcast out of today's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub [u8; 16]);

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a playlist names: a part, or a whole segment where there are no parts (then `part` is 0 and the record
/// says that it is the last). A segment with parts is the concatenation of its parts and has no piece of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PieceId {
    /// The rendition's number in the stream, in the order of the multivariant playlist.
    pub rendition: u8,
    /// The media sequence number of the segment.
    pub msn: u64,
    /// The part's index in its segment.
    pub part: u16,
}

/// What the origin vouches for about one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which publication the piece belongs to.
    pub epoch: Epoch,
    /// Which piece.
    pub piece: PieceId,
    /// Whether no further part follows in this segment.
    pub is_last_in_segment: bool,
    /// Whether decoding can start with this piece.
    pub is_independent: bool,
    /// The program date time of the piece's first sample, in milliseconds since the Unix epoch.
    pub start_ms: u64,
    /// The piece's duration in milliseconds, rounded.
    pub duration_ms: u32,
    /// The piece's length in bytes, 1 to [`PIECE_BYTES_MAX`].
    pub length: u32,
    /// The digest of each [`block_bytes`] slice, in order; the last slice may be shorter.
    pub blocks: Vec<BlockDigest>,
}

/// Why bytes are not a record that may be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are not a record of this version: too short, too long, an unknown version or flag, a length of
    /// zero or over the limit, or a number of digests that does not fit the length.
    #[error("not a digest record of version {VERSION}")]
    Malformed,
    /// The signature is not the origin's.
    #[error("the record's signature does not match the origin's key")]
    Forged,
    /// The key is not a point on the curve.
    #[error("not an Ed25519 public key")]
    BadKey,
}

/// The length of a block in a piece of `length` bytes; the last one may be shorter. A block is the smallest thing that is
/// requested, verified and passed on.
///
/// A block is passed on when it is there whole, so that on a short line its length decides how long it takes through a
/// tree. Pieces of low rates are therefore cut into up to 16 blocks, not into two or three.
#[must_use]
pub const fn block_bytes(length: u32) -> u32 {
    // Doubled for more than 16 blocks, twice at most; written so because it costs browsers less code than a `match`.
    BLOCK_BYTES_MIN << ((length > 16 * BLOCK_BYTES_MIN) as u32 + (length > 32 * BLOCK_BYTES_MIN) as u32)
}

/// The number of blocks in a piece of `length` bytes.
#[must_use]
pub fn block_count(length: u32) -> u32 {
    length.div_ceil(block_bytes(length))
}

impl Record {
    /// Computes the digests of `bytes` into a record.
    ///
    /// # Panics
    /// If `bytes` is empty or longer than [`PIECE_BYTES_MAX`]: the segmenter never publishes such a piece.
    #[must_use]
    pub fn of(
        epoch: Epoch,
        piece: PieceId,
        is_last_in_segment: bool,
        is_independent: bool,
        start_ms: u64,
        duration_ms: u32,
        bytes: &[u8],
    ) -> Self {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        assert!((1..=PIECE_BYTES_MAX).contains(&length), "a piece has 1 to {PIECE_BYTES_MAX} bytes");
        let blocks = bytes.chunks(block_bytes(length) as usize).map(BlockDigest::of).collect();
        Self { epoch, piece, is_last_in_segment, is_independent, start_ms, duration_ms, length, blocks }
    }

    /// The record's bytes, signed.
    #[must_use]
    pub fn sign(&self, key: &SigningKey) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + 16 * self.blocks.len() + SIGNATURE_BYTES);
        out.push(VERSION);
        out.extend_from_slice(&self.epoch.0);
        let last = if self.is_last_in_segment { FLAG_LAST_IN_SEGMENT } else { 0 };
        let independent = if self.is_independent { FLAG_INDEPENDENT } else { 0 };
        out.push(last | independent);
        out.push(self.piece.rendition);
        out.extend_from_slice(&self.piece.msn.to_be_bytes());
        out.extend_from_slice(&self.piece.part.to_be_bytes());
        out.extend_from_slice(&self.start_ms.to_be_bytes());
        out.extend_from_slice(&self.duration_ms.to_be_bytes());
        out.extend_from_slice(&self.length.to_be_bytes());
        self.blocks.iter().for_each(|block| out.extend_from_slice(&block.0));
        let signature = key.sign(&[SIGNING_CONTEXT, &out].concat());
        out.extend_from_slice(&signature.to_bytes());
        out
    }

    /// Reads a record and checks its signature.
    ///
    /// # Errors
    /// [`Error::Malformed`] or [`Error::Forged`]. Nothing is allocated before the lengths were found to agree.
    pub fn verify(bytes: &[u8], key: &OriginKey) -> Result<Self, Error> {
        let record = Self::decode_unverified(bytes)?;
        if key.has_signed(&Self::to_check(bytes)) { Ok(record) } else { Err(Error::Forged) }
    }

    /// What a record's signature is checked over, then the signature: for [`OriginKey::has_signed`], or what does the same
    /// elsewhere.
    #[must_use]
    pub fn to_check(bytes: &[u8]) -> Vec<u8> {
        [SIGNING_CONTEXT, bytes].concat()
    }

    /// Reads a record without looking at its signature: for the tracker, which needs lengths and trusts its
    /// origin's connection, and for simulations. Never for deciding that bytes may be played.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn decode_unverified(bytes: &[u8]) -> Result<Self, Error> {
        let body = bytes.len().checked_sub(HEADER_BYTES + SIGNATURE_BYTES).ok_or(Error::Malformed)?;
        let mut reader = Reader(bytes);
        let [version] = reader.take()?;
        let epoch = Epoch(reader.take()?);
        let [flags] = reader.take()?;
        let [rendition] = reader.take()?;
        let msn = u64::from_be_bytes(reader.take()?);
        let part = u16::from_be_bytes(reader.take()?);
        let start_ms = u64::from_be_bytes(reader.take()?);
        let duration_ms = u32::from_be_bytes(reader.take()?);
        let length = u32::from_be_bytes(reader.take()?);
        let known = version == VERSION && flags & !FLAGS_KNOWN == 0;
        let fits = (1..=PIECE_BYTES_MAX).contains(&length) && body == 16 * block_count(length) as usize;
        if !known || !fits {
            return Err(Error::Malformed);
        }
        let (digests, _) = reader.0[..body].as_chunks();
        let mut blocks = Vec::with_capacity(digests.len());
        for digest in digests {
            blocks.push(BlockDigest(*digest));
        }
        Ok(Self {
            epoch,
            piece: PieceId { rendition, msn, part },
            is_last_in_segment: flags & FLAG_LAST_IN_SEGMENT != 0,
            is_independent: flags & FLAG_INDEPENDENT != 0,
            start_ms,
            duration_ms,
            length,
            blocks,
        })
    }

    /// The length in bytes of block `index`, or none where the piece has no such block.
    #[must_use]
    pub fn block_length(&self, index: u32) -> Option<u32> {
        let block = block_bytes(self.length);
        (index < block_count(self.length)).then(|| block.min(self.length - index * block))
    }
}

/// The origin's public key. Viewers learn it from the multivariant playlist, over the same HTTP connection that
/// brings them the media when there are no peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginKey(VerifyingKey);

impl OriginKey {
    /// Reads a key's 32 bytes.
    ///
    /// # Errors
    /// [`Error::BadKey`].
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, Error> {
        VerifyingKey::from_bytes(bytes).map(Self).map_err(|_| Error::BadKey)
    }

    /// The public half of a signing key.
    #[must_use]
    pub fn of(key: &SigningKey) -> Self {
        Self(key.verifying_key())
    }

    /// Whether a message, followed by its signature of 64 bytes, was signed with this key (RFC 8032, section 5.1.7).
    #[must_use]
    pub fn has_signed(&self, signed: &[u8]) -> bool {
        let Some((message, signature)) = signed.split_last_chunk::<SIGNATURE_BYTES>() else { return false };
        self.0.verify(message, &Signature::from_bytes(signature)).is_ok()
    }

    /// The key's 32 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }
}

/// Takes fixed-size fields off the front of a message.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(Error::Malformed)?;
        self.0 = rest;
        Ok(*field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn record(length: usize) -> Record {
        let bytes: Vec<u8> = (0..length).map(|index| (index * 31 % 251) as u8).collect();
        let piece = PieceId { rendition: 2, msn: 1234, part: 3 };
        Record::of(Epoch([9; 16]), piece, true, false, 1_700_000_000_123, 500, &bytes)
    }

    #[test]
    fn signed_record_is_read_back_as_it_was() {
        for length in [1, 16_383, 16_384, 16_385, 187_500] {
            let record = record(length);
            let bytes = record.sign(&key());
            assert_eq!(Record::verify(&bytes, &OriginKey::of(&key())), Ok(record));
        }
    }

    #[test]
    fn any_changed_byte_is_refused() {
        let bytes = record(40_000).sign(&key());
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 1;
            assert!(Record::verify(&changed, &OriginKey::of(&key())).is_err(), "byte {index}");
        }
    }

    #[test]
    fn another_origins_record_is_forged() {
        let bytes = record(10).sign(&SigningKey::from_bytes(&[8; 32]));
        assert_eq!(Record::verify(&bytes, &OriginKey::of(&key())), Err(Error::Forged));
    }

    #[test]
    fn truncated_and_padded_records_are_malformed() {
        let bytes = record(40_000).sign(&key());
        for length in 0..bytes.len() {
            assert_eq!(Record::decode_unverified(&bytes[..length]), Err(Error::Malformed));
        }
        let padded = [bytes.as_slice(), &[0]].concat();
        assert_eq!(Record::decode_unverified(&padded), Err(Error::Malformed));
    }

    #[test]
    fn last_block_is_shorter() {
        let record = record(4096 + 5);
        assert_eq!(record.block_length(0), Some(4096));
        assert_eq!(record.block_length(1), Some(5));
        assert_eq!(record.block_length(2), None);
    }

    #[test]
    fn blocks_grow_with_the_piece() {
        let lengths = [1, 65_536, 65_537, 131_072, 131_073, PIECE_BYTES_MAX];
        assert_eq!(lengths.map(block_bytes), [4096, 4096, 8192, 8192, 16_384, 16_384]);
        assert_eq!(lengths.map(block_count), [1, 16, 9, 16, 9, 4096]);
    }
}
