//! What a driver tells the core.
//!
//! Everything that happens outside reaches the core as one [`Input`] with the time at which it happened. Inputs
//! borrow: the core copies the few bytes that it keeps and never keeps media.

use std::sync::Arc;

use shoal_digest::{BlockDigest, PieceId};

use crate::{Span, Time, record::SignedRecord};

/// A viewer's number in its swarm, issued by the tracker.
pub type PeerId = u32;
/// The driver's number for one request of the player.
pub type RequestId = u32;
/// The core's number for one fetch from the origin. Never used twice.
pub type FetchId = u32;
/// The core's number for a record whose signature it wants to have checked. Never used twice.
pub type CheckId = u32;
/// The core's number for block bytes that the driver keeps until their record is known. Never used twice.
pub type HoldId = u32;

/// What a request of the player asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// One piece: a part, or a segment without parts.
    Piece(PieceId),
    /// All parts of a segment, in order, to be handed over as one.
    Segment {
        /// The rendition's number.
        rendition: u8,
        /// The media sequence number.
        msn: u64,
    },
}

/// The local peer's place in one stripe's tree, as in the tracker's `plan` message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The stripe, below [`Input::Plan::stripes`].
    pub stripe: u8,
    /// Whether the local peer fetches the stripe's blocks from the origin the moment a piece is published.
    pub is_root: bool,
    /// Who pushes this stripe to the local peer.
    pub parent: Option<PeerId>,
    /// To whom the local peer pushes this stripe, strongest uplink first.
    pub children: &'a [PeerId],
    /// How long after publication the planner expects the stripe's blocks here. Zero where it does not know.
    pub expected: Span,
}

/// Something that happened outside the core.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// The time of [`Peer::next_deadline`](crate::Peer::next_deadline) has come. Early or superfluous wakes do no harm.
    Wake,

    /// The tracker took the local peer into the swarm, for the first time or again.
    Welcome {
        /// The local peer's number.
        peer: PeerId,
        /// At most this many neighbors.
        neighbors_max: u16,
        /// Upload at most this many percent of the stream's rate.
        upload_ratio_percent: u16,
        /// A [`Output::Report`](crate::Output::Report) is wanted this often.
        report_interval: Span,
    },
    /// The connection to the tracker is gone. The plan stays in force; records come from neighbors and over HTTP.
    TrackerLost,
    /// A record that the driver verified with [`SignedRecord::verify`], from the tracker or over HTTP. For drivers
    /// with many viewers in one process; browsers use [`Input::RecordBytes`].
    Record {
        /// The record.
        record: &'a Arc<SignedRecord>,
    },
    /// A signed record as bytes, from the tracker or over HTTP. Where it is news, the core wants its signature checked first.
    RecordBytes {
        /// One record as `shoal-digest` encodes it.
        bytes: &'a [u8],
    },
    /// What came of [`Output::CheckRecord`](crate::Output::CheckRecord). The core takes the driver's word for it, as it does for
    /// the digests of blocks.
    RecordChecked {
        /// Which.
        check: CheckId,
        /// Whether the origin's key has signed it.
        is_signed: bool,
    },
    /// The record asked for with [`Output::FetchRecord`](crate::Output::FetchRecord) could not be had; or where those of a
    /// segment were asked for: these were all, and all of them are checked.
    RecordFailed {
        /// Whose record.
        piece: PieceId,
    },
    /// Places in a rendition's seeding plan. Replaces what was said before of the stripes named; another number of
    /// stripes replaces everything of the rendition.
    Plan {
        /// The rendition.
        rendition: u8,
        /// How many stripes there are: see [`stripe_of`](crate::stripe_of).
        stripes: u8,
        /// The stripes that changed.
        places: &'a [Place<'a>],
    },
    /// The operator switched peer delivery on or off. Off: all neighbors are disconnected, everything comes from the
    /// origin.
    Sharing {
        /// Whether peers may be used.
        on: bool,
    },

    /// Both data channels to a peer are open.
    NeighborConnected {
        /// The peer, as the tracker introduced it.
        peer: PeerId,
        /// The round trip, where the driver knows it already.
        rtt: Option<Span>,
    },
    /// A connection is gone.
    NeighborLost {
        /// The peer.
        peer: PeerId,
    },
    /// A message arrived on a neighbor's control channel.
    Message {
        /// The sender.
        peer: PeerId,
        /// The whole message.
        bytes: &'a [u8],
    },
    /// A message arrived on a neighbor's blocks channel. If its bytes are to be kept, the next drain holds
    /// [`Output::Store`](crate::Output::Store) or [`Output::Hold`](crate::Output::Hold); otherwise the driver drops them.
    Block {
        /// The sender.
        peer: PeerId,
        /// The first [`BLOCK_HEADER_BYTES`](crate::wire::BLOCK_HEADER_BYTES) bytes of the message, or all where it
        /// is shorter.
        header: &'a [u8],
        /// How many bytes followed the header.
        length: u32,
        /// Their digest, computed by the driver.
        digest: BlockDigest,
    },
    /// How many bytes wait to be sent on a neighbor's blocks channel (`bufferedAmount`). To be told after each
    /// [`Output::SendBlock`](crate::Output::SendBlock) was carried out and when the number has fallen, at the latest
    /// when it reaches zero.
    SendQueue {
        /// The neighbor.
        peer: PeerId,
        /// Bytes handed over but not yet sent.
        buffered: u32,
    },

    /// A fetch from the origin delivered the bytes of one block. Same answer as for [`Input::Block`].
    FetchBlock {
        /// The fetch.
        fetch: FetchId,
        /// The block's index in its piece.
        block: u16,
        /// How many bytes it has.
        length: u32,
        /// Their digest.
        digest: BlockDigest,
    },
    /// A fetch from the origin has delivered its last byte.
    FetchFinished {
        /// The fetch.
        fetch: FetchId,
    },
    /// A fetch from the origin ended early.
    FetchFailed {
        /// The fetch.
        fetch: FetchId,
        /// The HTTP status, 0 where there was none.
        status: u16,
    },
    /// The driver loaded a whole piece itself (start-up, or after [`Output::Fallback`](crate::Output::Fallback)) and gave
    /// it to the player. Answered at some time with `KeepLoaded` or `DropLoaded`.
    Loaded {
        /// The piece.
        piece: PieceId,
        /// Its length in bytes.
        length: u32,
        /// The digests of its blocks.
        digests: &'a [BlockDigest],
        /// How long the load took, from request to last byte.
        took: Span,
    },

    /// The renditions being played. Only these are obtained ahead of the player's requests.
    Playing {
        /// Numbers of video and audio renditions.
        renditions: &'a [u8],
    },
    /// Where the player is. To be told when playback starts, stops, jumps or changes its rate, and about each second.
    Playhead {
        /// The program date time at the playhead now, Unix milliseconds.
        position_ms: u64,
        /// The program date time up to which the player holds media without a gap, Unix milliseconds.
        buffered_until_ms: u64,
        /// Playback rate in percent: 100 is normal, 0 is paused by the viewer.
        rate_percent: u16,
        /// Whether playback waits for data.
        is_stalled: bool,
    },
    /// The player asks for media. Answered once with `Deliver` or `Fallback`.
    Want {
        /// The driver's number for the request.
        request: RequestId,
        /// What it asks for.
        target: Target,
        /// When it must be there; where absent, the playhead decides.
        deadline: Option<Time>,
    },
    /// The player no longer wants an answer.
    Unwant {
        /// The request.
        request: RequestId,
    },

    /// The viewer turned giving on or off. Off: nothing is uploaded; peers may still give to us.
    Share {
        /// Whether the viewer gives.
        on: bool,
    },
    /// The viewer is leaving: neighbors are told, so that they need not find out.
    Leave,
    /// Whether the connection is metered (`saveData`, cellular). Metered: nothing is uploaded.
    Metered {
        /// Whether it is.
        on: bool,
    },
}
