//! Messages between a viewer and the tracker, as JSON text frames of a WebSocket.
//!
//! `PROTOCOL.md` beside this crate is normative; a test reads its examples with these types. Pure: no I/O, no
//! clock. What viewers say to each other over data channels is not here: see `player/swarm/WIRE.md`.

use serde::{Deserialize, Serialize};

/// The version of the protocol, sent in `join` and checked by the tracker.
pub const VERSION: u32 = 1;

/// A viewer's number in its swarm: random, issued by the tracker, meaningless elsewhere.
pub type PeerId = u32;

/// Which piece of the stream; the same three numbers as in its signed digest record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Piece {
    /// The rendition's number in the stream.
    pub rendition: u8,
    /// The media sequence number of the segment.
    pub msn: u64,
    /// The part's index in its segment.
    pub part: u16,
}

/// What a viewer sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ViewerMessage {
    /// The first message: asks to be taken into a stream's swarm.
    Join {
        /// [`VERSION`].
        version: u32,
        /// The stream's name as in the watch URL.
        stream: String,
        /// A viewer token, where the stream wants one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<String>,
        /// What an earlier `welcome` gave, to keep the peer id and the neighbors after a lost connection.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resume: Option<String>,
        /// Whether this viewer gives: false on metered connections or by the viewer's choice.
        shares: bool,
    },
    /// WebRTC signaling for one introduced peer, passed on as it is.
    Signal {
        /// The receiver: a peer that was introduced to the sender.
        to: PeerId,
        /// The offer, answer or candidate.
        data: Signal,
    },
    /// A data channel to an introduced peer opened.
    Connected {
        /// The neighbor.
        peer: PeerId,
        /// The measured round trip in milliseconds, 0 if not known yet.
        rtt_ms: u32,
    },
    /// An introduced peer could not be reached, or a neighbor was lost.
    Lost {
        /// The peer.
        peer: PeerId,
        /// Whether a connection had been established before.
        was_connected: bool,
    },
    /// What the viewer measured since its last report; every [`Welcome::report_interval_ms`].
    Report(Report),
    /// A neighbor sent bytes that do not match a signed record. Evidence, not a verdict.
    Accuse {
        /// The neighbor.
        peer: PeerId,
        /// The piece that the bytes were said to belong to.
        piece: Piece,
    },
    /// The viewer turned giving on or off.
    Share {
        /// Whether it gives from now on.
        shares: bool,
    },
    /// Keeps the connection alive; answered with `pong`.
    Ping,
}

/// A viewer's measurements.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The usable uplink in kbit/s: what may be planned on, after the viewer's own caps. 0 when not known.
    pub uplink_kbps: u32,
    /// The renditions that are being played, by number.
    pub renditions: Vec<u8>,
    /// Media ahead of the playhead in milliseconds.
    pub buffer_ms: u32,
    /// How far the playhead is behind the newest published piece, in milliseconds.
    pub behind_ms: u32,
    /// Verified media bytes received from peers since the last report.
    pub peer_bytes: u64,
    /// Media bytes received from the origin since the last report.
    pub origin_bytes: u64,
    /// Media bytes sent to peers since the last report.
    pub sent_bytes: u64,
    /// Bytes received that were of no use (duplicate, late, rejected) since the last report.
    pub waste_bytes: u64,
    /// Milliseconds without playback for want of data since the last report.
    pub rebuffer_ms: u32,
}

/// WebRTC signaling between two introduced viewers. The tracker reads candidates to strip those that point
/// where they must not; it never logs them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Signal {
    /// An SDP offer.
    Offer {
        /// The session description.
        sdp: String,
    },
    /// An SDP answer.
    Answer {
        /// The session description.
        sdp: String,
    },
    /// A trickled ICE candidate.
    Candidate {
        /// The candidate line without `a=`; empty at the end of candidates.
        candidate: String,
        /// The media section it belongs to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mid: Option<String>,
    },
}

/// What the tracker sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TrackerMessage {
    /// The answer to `join`.
    Welcome(Welcome),
    /// Connect to this viewer.
    Introduce {
        /// The viewer to meet.
        peer: PeerId,
        /// Whether the receiver of this message makes the offer.
        offers: bool,
    },
    /// Signaling from an introduced peer.
    Signal {
        /// The sender.
        from: PeerId,
        /// The offer, answer or candidate.
        data: Signal,
    },
    /// A piece was published. Sent to every viewer of the swarm the moment the origin has it.
    Published {
        /// The piece.
        piece: Piece,
        /// Its URL, relative to the multivariant playlist's.
        uri: String,
        /// Its signed digest record, base64 (standard alphabet, padded).
        record: String,
    },
    /// The receiver's place in a rendition's seeding plan. Replaces what was said before of the stripes named.
    Plan {
        /// The rendition.
        rendition: u8,
        /// How many stripes the blocks of a piece are dealt to. Block `b` of piece (msn, part) belongs to stripe
        /// `(b + 7 × part + 3 × msn) mod stripes`.
        stripes: u8,
        /// The stripes that changed for the receiver.
        places: Vec<Place>,
    },
    /// A peer left or is no longer to be used: close the connection.
    Part {
        /// The peer.
        peer: PeerId,
    },
    /// Sharing was switched for the receiver by the operator. When off, play from the origin and close all
    /// peer connections, but keep this socket.
    Sharing {
        /// Whether peers may be used.
        on: bool,
    },
    /// The tracker is about to stop: keep playing and swapping, reconnect after a random part of this time.
    Drain {
        /// The upper limit of the delay in milliseconds.
        reconnect_within_ms: u32,
    },
    /// The stream has ended; no more pieces will come.
    Ended,
    /// The answer to `ping`.
    Pong,
    /// A message was refused. The connection stays open unless `fatal`.
    Error {
        /// What was wrong.
        code: ErrorCode,
        /// The same in words, for developers.
        message: String,
        /// Whether the tracker closes the connection after this.
        fatal: bool,
        /// When to try again at the earliest, in milliseconds; absent where trying again is of no use.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u32>,
    },
}

/// What a viewer needs to take part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol version that the tracker speaks.
    pub version: u32,
    /// The receiver's number.
    pub peer: PeerId,
    /// The swarm, opaque; cannot be computed from the stream's URL.
    pub swarm: String,
    /// Secret of the receiver: gives the same place back after a lost connection.
    pub resume: String,
    /// For `RTCPeerConnection`: STUN and TURN servers of the operator; usually none.
    pub ice_servers: Vec<IceServer>,
    /// Whether peers may be used at all (see `sharing`).
    pub sharing: bool,
    /// At most this many neighbors at a time.
    pub neighbors_max: u32,
    /// Upload at most this many times the stream's rate, in percent.
    pub upload_ratio_max_percent: u32,
    /// Send a report this often, in milliseconds.
    pub report_interval_ms: u32,
    /// The tracker counts a viewer as gone after this time without a message, in milliseconds.
    pub silence_max_ms: u32,
    /// Published pieces of the last seconds, oldest first, as in `published`.
    pub recent: Vec<PublishedPiece>,
}

/// A piece in [`Welcome::recent`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPiece {
    /// The piece.
    pub piece: Piece,
    /// Its URL, relative to the multivariant playlist's.
    pub uri: String,
    /// Its signed digest record, base64.
    pub record: String,
}

/// A STUN or TURN server, as `RTCIceServer` wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IceServer {
    /// `stun:` or `turn:` URLs.
    pub urls: Vec<String>,
    /// Time-limited user name, for TURN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Its password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
}

/// A viewer's place in one stripe's tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The stripe, 0 to `stripes` − 1.
    pub stripe: u8,
    /// Whether the receiver fetches this stripe's blocks from the origin the moment a piece is published.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub root: bool,
    /// Who pushes this stripe to the receiver; absent for a root and for a viewer that nobody could be found for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<PeerId>,
    /// To whom the receiver pushes this stripe, strongest uplink first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<PeerId>,
    /// How long after publication the stripe's blocks are expected at the receiver, in milliseconds, by the
    /// planner's estimate. Only to decide when to pull; never to go to the origin.
    #[serde(default)]
    pub expected_ms: u32,
}

/// Why a message was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// Not a message of this protocol.
    Malformed,
    /// The first message was not `join`, or a second `join` came.
    OutOfOrder,
    /// The tracker speaks another version.
    Version,
    /// No such stream is live.
    UnknownStream,
    /// The token is missing, expired, used up or for another stream.
    Refused,
    /// Signaling for a peer that was not introduced.
    NotIntroduced,
    /// Too many messages.
    RateLimited,
    /// The tracker has no room for more viewers.
    Full,
}
