//! The messages between neighbors: bytes to types and back. `WIRE.md` is normative and says what they are for.
//!
//! Pure and bounded: reading allocates nothing but block sets of at most 512 bytes each and never panics. What a
//! message causes is decided in `peer`.

#[cfg(test)]
mod tests;

use shoal_digest::{Epoch, PieceId};

use crate::{
    bits::{BLOCKS_MAX, Bits},
    input::PeerId,
};

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

const HELLO: u8 = 1;
const STATE: u8 = 2;
const HAVE: u8 = 3;
const REQUEST: u8 = 4;
const CANCEL: u8 = 5;
const REFUSE: u8 = 6;
const RECORD: u8 = 7;
const SHED: u8 = 8;
const SUBSCRIBE: u8 = 9;
const PING: u8 = 10;
const PONG: u8 = 11;
const GOODBYE: u8 = 12;
const BLOCK: u8 = 32;

/// What a peer is ready to do and wants to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// The sender uploads.
    pub shares: bool,
    /// The sender has no tracker: records that become known shall be relayed to it.
    pub wants_records: bool,
    /// The sender wants to be told of blocks as they are stored.
    pub wants_haves: bool,
    /// The sender is not to be sent blocks that it did not ask for: its line is full.
    pub refuses_pushes: bool,
}

impl Flags {
    fn to_byte(self) -> u8 {
        u8::from(self.shares)
            | u8::from(self.wants_records) << 1
            | u8::from(self.wants_haves) << 2
            | u8::from(self.refuses_pushes) << 3
    }

    /// Unknown bits are ignored, so that later versions can add some.
    fn from_byte(byte: u8) -> Self {
        Self {
            shares: byte & 1 != 0,
            wants_records: byte & 2 != 0,
            wants_haves: byte & 4 != 0,
            refuses_pushes: byte & 8 != 0,
        }
    }
}

/// Why blocks are not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum RefuseReason {
    /// The sender does not have them (any more, or yet).
    Absent = 1,
    /// The sender can't send them soon enough.
    Busy = 2,
    /// The sender does not upload.
    NotSharing = 3,
}

/// A message on the control channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control<'a> {
    /// The first message in each direction.
    Hello {
        /// [`VERSION`] of the sender.
        version: u8,
        /// What it does and wants.
        flags: Flags,
        /// A measure of its uplink: the binary logarithm of kbit/s, rounded down; 0 when it does not upload.
        uplink_class: u8,
        /// Which publication it watches.
        epoch: Epoch,
        /// Its number in the swarm.
        peer: PeerId,
    },
    /// The flags or the uplink changed.
    State {
        /// What the sender does and wants.
        flags: Flags,
        /// As in `Hello`.
        uplink_class: u8,
    },
    /// The sender stored these blocks.
    Have(Sets<'a>),
    /// The sender asks for these blocks.
    Request(Sets<'a>),
    /// The sender no longer wants these blocks, because it has them or needs them no more.
    Cancel(Sets<'a>),
    /// The sender will not send these blocks, which were asked of it.
    Refuse {
        /// Why.
        reason: RefuseReason,
        /// The blocks.
        sets: Sets<'a>,
    },
    /// A signed digest record, passed on as it is.
    Record(&'a [u8]),
    /// The sender stops pushing a stripe to the receiver.
    Shed {
        /// The rendition.
        rendition: u8,
        /// The stripe.
        stripe: u8,
    },
    /// The sender asks the receiver to push a stripe to it from now on, or to stop doing so. Refused with `Shed`.
    Subscribe {
        /// The rendition.
        rendition: u8,
        /// How many stripes the sender's plan has; the receiver refuses if it knows another number.
        stripes: u8,
        /// The stripe.
        stripe: u8,
        /// Whether to push from now on.
        on: bool,
    },
    /// Asks for `Pong`.
    Ping {
        /// Comes back in the answer.
        nonce: u32,
    },
    /// The answer to `Ping`.
    Pong {
        /// As in the question.
        nonce: u32,
    },
    /// The sender is about to close the connection.
    Goodbye,
}

/// Why bytes are not a message of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message of the swarm protocol, version {VERSION}")]
pub struct Malformed;

/// Sets of blocks, each of one piece, in a message that was found to be well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sets<'a>(&'a [u8]);

/// The blocks of one piece in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set<'a> {
    /// The piece.
    pub piece: PieceId,
    bitmap: &'a [u8],
}

impl<'a> Set<'a> {
    /// Whether the set stands for all blocks of the piece.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.bitmap.is_empty()
    }

    /// The blocks that are named; none if the set stands for all.
    pub(crate) fn listed(&self) -> Bits {
        let mut bits = Bits::default();
        bits.add_bitmap(self.bitmap);
        bits
    }

    pub(crate) fn bits(&self) -> Bits {
        if self.is_all() {
            return Bits::below(BLOCKS_MAX);
        }
        self.listed()
    }
}

impl<'a> Sets<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        let mut count = 0;
        while !reader.0.is_empty() {
            let set = reader.set()?;
            count += 1;
            // A set must have one encoding only: the bitmap's last byte holds a block.
            if count > SETS_MAX || set.bitmap.last() == Some(&0) {
                return Err(Malformed);
            }
        }
        if count == 0 { Err(Malformed) } else { Ok(Self(bytes)) }
    }

    /// The sets, in the message's order.
    pub fn iter(&self) -> impl Iterator<Item = Set<'a>> + use<'a> {
        let mut reader = Reader(self.0);
        std::iter::from_fn(move || reader.set().ok())
    }
}

impl<'a> Control<'a> {
    /// Reads a message of the control channel.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if bytes.len() > CONTROL_BYTES_MAX {
            return Err(Malformed);
        }
        let mut reader = Reader(bytes);
        let message = match reader.u8()? {
            HELLO => {
                let version = reader.u8()?;
                let flags = Flags::from_byte(reader.u8()?);
                let uplink_class = reader.u8()?;
                let epoch = Epoch(reader.take()?);
                let peer = u32::from_be_bytes(reader.take()?);
                // Later versions may say more here; what is needed to part politely stays where it is.
                if version != VERSION {
                    reader.0 = &[];
                }
                Self::Hello { version, flags, uplink_class, epoch, peer }
            }
            STATE => Self::State { flags: Flags::from_byte(reader.u8()?), uplink_class: reader.u8()? },
            HAVE => Self::Have(reader.sets()?),
            REQUEST => {
                let sets = reader.sets()?;
                // Who asks has the record, hence knows the blocks; "all" would also be a cheap way to ask for much.
                if sets.iter().any(|set| set.is_all()) {
                    return Err(Malformed);
                }
                Self::Request(sets)
            }
            CANCEL => Self::Cancel(reader.sets()?),
            REFUSE => {
                let reason = match reader.u8()? {
                    1 => RefuseReason::Absent,
                    2 => RefuseReason::Busy,
                    3 => RefuseReason::NotSharing,
                    _ => return Err(Malformed),
                };
                Self::Refuse { reason, sets: reader.sets()? }
            }
            RECORD => Self::Record(std::mem::take(&mut reader.0)),
            SHED => Self::Shed { rendition: reader.u8()?, stripe: reader.u8()? },
            SUBSCRIBE => {
                let (rendition, stripes, stripe) = (reader.u8()?, reader.u8()?, reader.u8()?);
                let on = match reader.u8()? {
                    0 => false,
                    1 => true,
                    _ => return Err(Malformed),
                };
                if stripe >= stripes {
                    return Err(Malformed);
                }
                Self::Subscribe { rendition, stripes, stripe, on }
            }
            PING => Self::Ping { nonce: u32::from_be_bytes(reader.take()?) },
            PONG => Self::Pong { nonce: u32::from_be_bytes(reader.take()?) },
            GOODBYE => Self::Goodbye,
            _ => return Err(Malformed),
        };
        if reader.0.is_empty() { Ok(message) } else { Err(Malformed) }
    }

    /// The message's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Hello { version, flags, uplink_class, epoch, peer } => {
                let mut out = with_body(&[HELLO, *version, flags.to_byte(), *uplink_class], &epoch.0);
                out.extend_from_slice(&peer.to_be_bytes());
                out
            }
            Self::State { flags, uplink_class } => with_body(&[STATE, flags.to_byte(), *uplink_class], &[]),
            Self::Have(sets) => with_body(&[HAVE], sets.0),
            Self::Request(sets) => with_body(&[REQUEST], sets.0),
            Self::Cancel(sets) => with_body(&[CANCEL], sets.0),
            Self::Refuse { reason, sets } => with_body(&[REFUSE, *reason as u8], sets.0),
            Self::Record(bytes) => with_body(&[RECORD], bytes),
            Self::Shed { rendition, stripe } => with_body(&[SHED, *rendition, *stripe], &[]),
            Self::Subscribe { rendition, stripes, stripe, on } => {
                with_body(&[SUBSCRIBE, *rendition, *stripes, *stripe, u8::from(*on)], &[])
            }
            Self::Ping { nonce } => with_body(&[PING], &nonce.to_be_bytes()),
            Self::Pong { nonce } => with_body(&[PONG], &nonce.to_be_bytes()),
            Self::Goodbye => with_body(&[GOODBYE], &[]),
        }
    }
}

fn with_body(head: &[u8], body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(head.len() + body.len());
    out.extend_from_slice(head);
    out.extend_from_slice(body);
    out
}

/// Builds the block sets of `have`, `request`, `cancel` and `refuse`, several messages where one would be too long.
#[derive(Debug, Default)]
pub(crate) struct SetsBuilder {
    bytes: Vec<u8>,
    count: usize,
}

impl SetsBuilder {
    /// Whether the set must go into another message.
    pub(crate) fn is_full(&self) -> bool {
        self.count == SETS_MAX || self.bytes.len() + 13 + BLOCKS_MAX as usize / 8 + 2 > CONTROL_BYTES_MAX
    }

    /// Adds a set; `None` stands for all blocks. Empty sets are left out.
    pub(crate) fn add(&mut self, piece: PieceId, bits: Option<&Bits>) {
        debug_assert!(!self.is_full());
        if bits.is_some_and(Bits::is_empty) {
            return;
        }
        self.count += 1;
        self.bytes.push(piece.rendition);
        self.bytes.extend_from_slice(&piece.msn.to_be_bytes());
        self.bytes.extend_from_slice(&piece.part.to_be_bytes());
        let length_at = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        let first = self.bytes.len();
        if let Some(bits) = bits {
            for word in bits.words() {
                self.bytes.extend_from_slice(&word.to_le_bytes());
            }
            while self.bytes.len() > first && self.bytes.last() == Some(&0) {
                self.bytes.pop();
            }
        }
        let length = u16::try_from(self.bytes.len() - first).expect("a bitmap has at most 512 bytes");
        self.bytes[length_at..first].copy_from_slice(&length.to_be_bytes());
    }

    /// The sets, or nothing if none was added.
    pub(crate) fn sets(&self) -> Option<Sets<'_>> {
        (self.count > 0).then_some(Sets(&self.bytes))
    }
}

/// The header before a block's bytes on the blocks channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// The piece.
    pub piece: PieceId,
    /// The block's index in the piece.
    pub block: u16,
    /// Whether the block was asked for, rather than pushed.
    pub is_answer: bool,
    /// Through how many peers it came before the sender got it, at most 255. For statistics only: it is not verified.
    pub hops: u8,
}

impl BlockHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        if reader.u8()? != BLOCK {
            return Err(Malformed);
        }
        let is_answer = reader.u8()? & 1 != 0;
        let hops = reader.u8()?;
        let piece = reader.piece()?;
        let block = reader.u16()?;
        if u32::from(block) >= BLOCKS_MAX || !reader.0.is_empty() {
            return Err(Malformed);
        }
        Ok(Self { piece, block, is_answer, hops })
    }

    /// The header's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; BLOCK_HEADER_BYTES] {
        let mut out = [0; BLOCK_HEADER_BYTES];
        out[0] = BLOCK;
        out[1] = u8::from(self.is_answer);
        out[2] = self.hops;
        out[3] = self.piece.rendition;
        out[4..12].copy_from_slice(&self.piece.msn.to_be_bytes());
        out[12..14].copy_from_slice(&self.piece.part.to_be_bytes());
        out[14..16].copy_from_slice(&self.block.to_be_bytes());
        out
    }
}

/// Takes fields off the front of a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*field)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.take().map(u16::from_be_bytes)
    }

    fn piece(&mut self) -> Result<PieceId, Malformed> {
        let rendition = self.u8()?;
        let msn = u64::from_be_bytes(self.take()?);
        Ok(PieceId { rendition, msn, part: self.u16()? })
    }

    fn set(&mut self) -> Result<Set<'a>, Malformed> {
        let piece = self.piece()?;
        let length = usize::from(self.u16()?);
        if length > BLOCKS_MAX as usize / 8 {
            return Err(Malformed);
        }
        let (bitmap, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(Set { piece, bitmap })
    }

    fn sets(&mut self) -> Result<Sets<'a>, Malformed> {
        Sets::parse(std::mem::take(&mut self.0))
    }
}
