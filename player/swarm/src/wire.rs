//! The messages between neighbors: bytes to types and back. `WIRE.md` is normative and says what they are for.
//!
//! Pure and bounded: a reader allocates no more than a small multiple of the bytes that it was given, and never
//! panics. What a message causes is decided elsewhere.

use shoal_digest::{Epoch, PieceId};

use crate::{bits::Bits, input::PeerId};

/// The version of the protocol, in `hello`.
pub const VERSION: u8 = 1;
/// The length of the header before a block's bytes.
pub const BLOCK_HEADER_BYTES: usize = 16;
/// The longest control message that is sent or accepted. Data channels carry 16 KiB messages in every browser.
pub const CONTROL_BYTES_MAX: usize = 16 * 1024;
/// At most this many block sets in one message: a neighbor that is many pieces behind asks again.
pub const SETS_MAX: usize = 64;
/// The label and id of the pre-negotiated ordered, reliable data channel.
pub const CONTROL_CHANNEL: (&str, u16) = ("control", 0);
/// The label and id of the pre-negotiated unordered, reliable data channel.
pub const BLOCKS_CHANNEL: (&str, u16) = ("blocks", 1);
