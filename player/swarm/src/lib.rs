//! The sans-I/O swarm core: decides, for one viewer, where each block comes from.
//!
//! A [`Peer`] is told what happens ([`Input`]) and says what to do ([`Output`]). It does no I/O, has no clock and no
//! unseeded randomness: the same inputs at the same times with the same seed give the same outputs, byte for byte.
//! The browser runs it as WebAssembly (`player/wasm`), the native viewer on tokio (`player`), the simulator ten
//! thousand times (`tests`).
//!
//! The core holds ids, lengths, bitmaps and digests, never media bytes; those stay in the driver's piece store. The
//! driver hashes each block that arrives ([`BlockDigest::of`]); the core compares the digest with the origin's signed
//! record before anything is stored, delivered or passed on.
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
pub mod replay;
mod rng;
mod stats;
mod time;
mod upload;
pub mod wire;

pub use config::Config;
pub use input::{FetchId, HoldId, Input, PeerId, Place, RequestId, Target};
pub use output::{DisconnectReason, FallbackReason, Output, Report};
pub use peer::{Peer, Reason};
pub use record::SignedRecord;
pub use shoal_digest::{
    BLOCK_BYTES_MAX, BlockDigest, Epoch, OriginKey, PieceId, Record, block_bytes, block_count,
};
pub use stats::Stats;
pub use time::{Span, Time};

/// The stripe that a block belongs to, as in the tracker's `plan` message, in a piece of `length` bytes: the piece is cut into as many
/// runs of neighboring blocks as there are stripes, so that a root fetches its share in one range, and the first run belongs
/// to a different stripe each time. `stripes` is not zero.
#[must_use]
pub fn stripe_of(piece: PieceId, length: u32, block: u32, stripes: u8) -> u8 {
    let stripes = u64::from(stripes.max(1));
    let run = u64::from(block) * stripes / u64::from(block_count(length).max(1));
    let sum = run + 7 * u64::from(piece.part) + 3 * (piece.msn % stripes);
    u8::try_from(sum % stripes).expect("a remainder by a u8 fits a u8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stripe_has_a_run_of_neighboring_blocks_and_none_gets_more_than_one_block_above_its_share() {
        for (length, stripes) in [(1, 4), (8_192, 5), (60_000, 8), (131_073, 12), (8_000_000, 7)] {
            for part in 0..9 {
                let piece = PieceId { rendition: 0, msn: 77, part };
                let blocks = block_count(length);
                let of: Vec<u8> = (0..blocks).map(|block| stripe_of(piece, length, block, stripes)).collect();
                let runs = 1 + of.windows(2).filter(|pair| pair[0] != pair[1]).count();
                assert_eq!(runs, blocks.min(u32::from(stripes)) as usize, "{length} bytes, {stripes} stripes");
                let share = blocks.div_ceil(u32::from(stripes)) as usize;
                assert!((0..stripes).all(|stripe| of.iter().filter(|other| **other == stripe).count() <= share));
            }
        }
    }

    #[test]
    fn the_first_block_of_a_piece_is_everybodys_in_turn() {
        let first = |part| stripe_of(PieceId { rendition: 0, msn: 3, part }, 4_000, 0, 4);
        let mut stripes: Vec<u8> = (0..4).map(first).collect();
        stripes.sort_unstable();
        assert_eq!(stripes, [0, 1, 2, 3]);
    }
}
