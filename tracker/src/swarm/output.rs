//! What a swarm wants done: messages to send and connections to close.

use std::sync::Arc;

use bytes::Bytes;
use shoal_tracker_protocol::{PeerId, TrackerMessage};

/// One connection of one viewer. A viewer that comes back on a new connection keeps its peer id and gets a new
/// session; what the old connection still says counts for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Session {
    /// The viewer.
    pub peer: PeerId,
    /// Which of its connections.
    pub number: u64,
}

/// Something that the owner of the swarm has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a message to one viewer.
    Send {
        /// To whom.
        to: PeerId,
        /// What.
        message: Box<TrackerMessage>,
    },
    /// Send a notice to one viewer.
    Notify {
        /// To whom.
        to: PeerId,
        /// What.
        notice: Arc<Notice>,
    },
    /// Send a notice to every viewer that has a connection.
    NotifyAll {
        /// What.
        notice: Arc<Notice>,
    },
    /// Close a connection after what was sent to it. The swarm has forgotten it already.
    Close {
        /// Which.
        session: Session,
        /// Why.
        reason: CloseReason,
    },
}

/// A message that goes to many viewers, written as JSON once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The message.
    pub message: TrackerMessage,
    /// The same as JSON.
    pub json: Bytes,
}

impl Notice {
    /// Writes the message once.
    #[must_use]
    pub fn new(message: TrackerMessage) -> Arc<Self> {
        let json = serde_json::to_vec(&message).expect("messages have string keys and no failing parts");
        Arc::new(Self { message, json: json.into() })
    }
}

/// Why a swarm gave up a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The viewer came back on another connection.
    Superseded,
    /// Nothing was heard for too long.
    Silent,
    /// It was told a fatal error.
    Refused,
}

/// What a swarm has counted since it began. The service exports the differences as metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Viewers that joined.
    pub joins: u64,
    /// Of these, viewers that got their old place back.
    pub resumes: u64,
    /// Pairs told to meet.
    pub introductions: u64,
    /// Of these, pairs of different networks.
    pub introductions_cross_network: u64,
    /// Pairs that reported an open data channel.
    pub connections: u64,
    /// Of these, pairs whose traffic leaves a network: of different autonomous systems, or of different networks where
    /// the systems are not known.
    pub connections_cross_network: u64,
    /// Pairs that could not connect.
    pub unreachable: u64,
    /// Introductions not made because a viewer's network had had its share.
    pub introductions_withheld: u64,
    /// Signals passed on.
    pub signals: u64,
    /// Signals refused.
    pub signals_refused: u64,
    /// Candidates removed.
    pub candidates_stripped: u64,
    /// Messages over the rate.
    pub messages_limited: u64,
    /// Messages of a connection that was no longer the viewer's.
    pub messages_stale: u64,
    /// Accusations that counted as evidence.
    pub accusations: u64,
    /// Viewers shut out on the evidence of several others.
    pub bans: u64,
    /// Pieces published.
    pub pieces: u64,
    /// Their bytes.
    pub piece_bytes: u64,
    /// Verified bytes that viewers said to have had from peers.
    pub peer_bytes: u64,
    /// Bytes that viewers said to have had from the origin.
    pub origin_bytes: u64,
    /// Bytes that viewers said to have had for nothing.
    pub waste_bytes: u64,
    /// Milliseconds that viewers said to have waited for data.
    pub rebuffer_ms: u64,
}
