//! What the core asks its driver to do.

use shoal_digest::PieceId;

use crate::{
    input::{CheckId, FetchId, HoldId, PeerId, RequestId},
    wire::BLOCK_HEADER_BYTES,
};

/// Something the driver shall do now. Outputs are carried out in the order in which they are polled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a message on a neighbor's control channel.
    SendControl {
        /// The neighbor.
        peer: PeerId,
        /// The message, at most [`CONTROL_BYTES_MAX`](crate::wire::CONTROL_BYTES_MAX).
        bytes: Vec<u8>,
    },
    /// Send a message on a neighbor's blocks channel: the header, then the block's bytes from the piece store. Then tell
    /// [`Input::SendQueue`](crate::Input::SendQueue).
    SendBlock {
        /// The neighbor.
        peer: PeerId,
        /// The header.
        header: [u8; BLOCK_HEADER_BYTES],
        /// The piece; its block was stored before.
        piece: PieceId,
        /// The block's index.
        block: u16,
    },

    /// Fetch a byte range of a piece from the origin and hand in its blocks as they arrive. The range begins at a
    /// block's first byte and ends at a block's last.
    Fetch {
        /// The number to answer with.
        fetch: FetchId,
        /// The piece. The driver knows or derives its URL.
        piece: PieceId,
        /// The length of the whole piece, which says how long its blocks are.
        piece_length: u32,
        /// The first byte.
        offset: u32,
        /// How many bytes.
        length: u32,
        /// Whether this is the whole piece, so that no `Range` header is needed.
        is_whole: bool,
        /// Whether an earlier answer did not match its digest: go around HTTP caches (`Cache-Control: no-cache`).
        is_retry: bool,
    },
    /// Abort a fetch. Nothing more is expected of it; late inputs about it are ignored.
    CancelFetch {
        /// The fetch.
        fetch: FetchId,
    },
    /// Get the piece's signed record over HTTP (the piece's URL + `.digest`) and hand it in as
    /// [`Input::RecordBytes`](crate::Input::RecordBytes), or tell [`Input::RecordFailed`](crate::Input::RecordFailed).
    FetchRecord {
        /// The piece.
        piece: PieceId,
        /// The other parts of its segment are wanted, too: the segment's URL + `.digest` gives all their records, each behind
        /// its length in four bytes.
        of_segment: bool,
    },

    /// Check a record's signature with the origin's key
    /// ([`OriginKey::has_signed`](shoal_digest::OriginKey::has_signed)) and tell
    /// [`Input::RecordChecked`](crate::Input::RecordChecked), at once or in a moment.
    CheckRecord {
        /// The number to answer with.
        check: CheckId,
        /// What was signed, then the signature of 64 bytes.
        signed: Vec<u8>,
    },

    /// Put verified bytes into the piece store: those of the `Block` or `FetchBlock` input just handled, or those held.
    Store {
        /// The piece.
        piece: PieceId,
        /// The block's index; its place is `block * block_bytes(piece_length)`.
        block: u16,
        /// The length of the whole piece, to make room when its first block comes.
        piece_length: u32,
        /// Which held bytes; none for those of the input just handled.
        held: Option<HoldId>,
    },
    /// Keep the bytes of the `Block` input just handled aside: their record is not known yet. They must not be played
    /// or passed on.
    Hold {
        /// The number under which they will be stored or dropped.
        hold: HoldId,
    },
    /// Forget held bytes.
    DropHeld {
        /// Which.
        hold: HoldId,
    },
    /// The piece handed in with `Loaded` matches its record: put its bytes into the piece store.
    KeepLoaded {
        /// The piece.
        piece: PieceId,
    },
    /// The piece handed in with `Loaded` is not to be kept: it does not match its record, its record never came, or
    /// all of it is stored already.
    DropLoaded {
        /// The piece.
        piece: PieceId,
    },
    /// Remove a piece from the piece store.
    Evict {
        /// The piece.
        piece: PieceId,
    },

    /// Give the player the bytes of `parts` pieces from the piece store, beginning with `first` and counting its part up.
    /// Hand out a copy: the store's bytes are still needed.
    Deliver {
        /// The request answered.
        request: RequestId,
        /// The first piece.
        first: PieceId,
        /// How many pieces, one for [`Target::Piece`](crate::Target::Piece).
        parts: u16,
    },
    /// Load what the request asked for over plain HTTP: the core can't or shouldn't.
    Fallback {
        /// The request answered.
        request: RequestId,
        /// Why.
        reason: FallbackReason,
    },

    /// Close the connection to a peer; nothing more is sent to it. The core has already forgotten it.
    Disconnect {
        /// The peer.
        peer: PeerId,
        /// Why.
        reason: DisconnectReason,
    },
    /// Tell the tracker that a neighbor sent bytes that do not match a signed record.
    Accuse {
        /// The neighbor.
        peer: PeerId,
        /// The piece that the bytes were said to belong to.
        piece: PieceId,
    },
    /// Tell the tracker that a neighbor which the plan names as parent pushes nothing in a stripe, though it is connected,
    /// or has sent the local peer away: another parent is wanted.
    Complain {
        /// The parent.
        peer: PeerId,
        /// The rendition.
        rendition: u8,
        /// The stripe.
        stripe: u8,
    },
    /// Tell the tracker what was measured since the last report.
    Report(Report),
}

/// Why the driver shall load something itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum FallbackReason {
    /// Playback has not started: nothing may wait for the swarm.
    Starting = 1,
    /// The piece's record did not come in time.
    NoRecord = 2,
    /// The origin's answers did not match the record again and again, and no peer had the piece.
    BadOrigin = 3,
    /// Too many requests at once, or one that makes no sense.
    Refused = 4,
}

/// Why a connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum DisconnectReason {
    /// It sent bytes that do not match a signed record. It will not be accepted again.
    Banned = 1,
    /// It sent too many malformed messages. It will not be accepted again.
    Malformed = 2,
    /// It did not answer.
    Silent = 3,
    /// There are as many neighbors as allowed.
    Full = 4,
    /// It speaks another version or watches another epoch.
    Incompatible = 5,
    /// Peer delivery was switched off.
    SharingOff = 6,
    /// It said goodbye.
    Left = 7,
}

/// Measurements for the tracker, counted since the last report where not said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The uplink that may be planned on now, after all caps, in kbit/s; 0 when nothing may be uploaded.
    pub uplink_kbps: u32,
    /// The renditions being played.
    pub renditions: Vec<u8>,
    /// Media ahead of the playhead now, in milliseconds.
    pub buffer_ms: u32,
    /// How far the playhead is behind the newest known piece's end, in milliseconds.
    pub behind_ms: u32,
    /// Verified media bytes received from peers.
    pub peer_bytes: u64,
    /// Media bytes received from the origin.
    pub origin_bytes: u64,
    /// Media bytes sent to peers.
    pub sent_bytes: u64,
    /// Bytes received that were of no use: duplicate, late, rejected.
    pub waste_bytes: u64,
    /// Milliseconds without playback for want of data.
    pub rebuffer_ms: u32,
}
