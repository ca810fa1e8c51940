//! The sans-I/O swarm core: decides, for one viewer, where each block comes from.
//!
//! A [`Peer`] is told what happens ([`Input`]) and says what to do ([`Output`]). It does no I/O, has no clock and no
//! unseeded randomness: the same inputs at the same times with the same seed give the same outputs, byte for byte.
//! The browser runs it as WebAssembly (`player/wasm`), the native viewer on tokio (`player`), the simulator ten
//! thousand times (`tests`).
//!
//! The core holds ids, lengths, bitmaps and digests, never media bytes; those stay in the driver's piece store. The
//! driver hashes each block that arrives ([`BlockDigest::of`]) and checks the signatures that the core asks about
//! ([`Output::CheckRecord`]); the core compares the digest with the origin's signed record before anything is stored,
//! delivered or passed on.
//!
//! # The driver's loop
//! 1. Something happens: call [`Peer::handle_input`] with the time and what it was.
//! 2. Call [`Peer::poll_output`] until it returns nothing and carry out each output, in order. `Store` and `Hold` without a
//!    hold number speak of the bytes of the input just handled: a driver must drain before it hands in the next input.
//! 3. Arm one timer for [`Peer::next_deadline`]; when it fires, the input is [`Input::Wake`].
//!
//! What peers say to each other is in `WIRE.md`, the policy and its limits in `README.md`.

mod bits;
mod config;
mod glut;
mod input;
mod map;
mod neighbor;
mod origin;
mod output;
mod peer;
mod piece;
mod plan;
mod player;
mod record;
#[cfg(any(test, feature = "log"))]
pub mod replay;
mod reports;
mod rng;
mod starvation;
mod stats;
mod time;
mod upload;
pub mod wire;

pub use config::Config;
pub use input::{CheckId, FetchId, HoldId, Input, PeerId, Place, RequestId, Target};
pub use output::{DisconnectReason, FallbackReason, Output, Report};
pub use peer::{Peer, Reason};
pub use record::SignedRecord;
pub use shoal_digest::{
    BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, BlockDigest, Epoch, OriginKey, PieceId, Record, block_bytes,
    block_count,
};
pub use stats::Stats;
pub use time::{Span, Time};

/// The stripe that a block belongs to, as in the tracker's `plan` message, in a piece of `length` bytes: blocks are dealt to the
/// stripes in turn, the shortest in pairs, and the first of a piece belongs to a different one each time. A root fetches a
/// pair in one range: a request costs the origin and a browser more than a block does. `stripes` is not zero.
#[must_use]
pub fn stripe_of(piece: PieceId, length: u32, block: u32, stripes: u8) -> u8 {
    let stripes = u64::from(stripes.max(1));
    let run = block >> u32::from(block_bytes(length) == BLOCK_BYTES_MIN);
    let sum = u64::from(run) + 7 * u64::from(piece.part) + 3 * (piece.msn % stripes);
    u8::try_from(sum % stripes).expect("a remainder by a u8 fits a u8")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stripes(length: u32, part: u16) -> Vec<u8> {
        let piece = PieceId { rendition: 0, msn: 8, part };
        (0..block_count(length)).map(|block| stripe_of(piece, length, block, 4)).collect()
    }

    #[test]
    fn short_blocks_go_to_a_stripe_in_pairs_and_longer_ones_alone() {
        assert_eq!(stripes(36 * 1024, 0), [0, 0, 1, 1, 2, 2, 3, 3, 0]);
        assert_eq!(stripes(68 * 1024, 0), [0, 1, 2, 3, 0, 1, 2, 3, 0]);
        assert_eq!(stripes(140 * 1024, 0), [0, 1, 2, 3, 0, 1, 2, 3, 0]);
    }

    #[test]
    fn the_first_block_of_a_piece_is_everybodys_in_turn() {
        let mut first: Vec<u8> = (0..4).map(|part| stripes(4_000, part)[0]).collect();
        first.sort_unstable();
        assert_eq!(first, [0, 1, 2, 3]);
    }
}
