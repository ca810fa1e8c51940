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
        /// The renditions that it is about to play, by number; empty when not known yet. A `report` says so later.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        renditions: Vec<u8>,
    },
    /// The viewer agreed to connect to peers. Needed only where [`Welcome::consent_required`] is set: before this
    /// nobody is introduced to it and no plan names it.
    Consent,
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
    /// What the viewer measured since its last report; every [`Welcome::report_interval_ms`], and at once when the
    /// renditions that it plays change.
    Report(Report),
    /// A neighbor sent bytes that do not match a signed record. Evidence, not a verdict.
    Accuse {
        /// The neighbor.
        peer: PeerId,
        /// The piece that the bytes were said to belong to.
        piece: Piece,
    },
    /// Nothing comes from the sender's parent in a stripe, though they are connected: asks for another one.
    Silent {
        /// The parent.
        peer: PeerId,
        /// The rendition.
        rendition: u8,
        /// The stripe.
        stripe: u8,
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
    /// The usable uplink in kbit/s: what may be planned on, after the viewer's own caps. 0 when nothing may be.
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
    /// Whether only relay candidates may be gathered (`iceTransportPolicy: "relay"`), so that no viewer learns
    /// another's address.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub relay_only: bool,
    /// Whether the viewer has to be asked, and `consent` sent, before the first candidate is gathered.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub consent_required: bool,
    /// At most this many neighbors at a time.
    pub neighbors_max: u32,
    /// Upload at most this many times the stream's rate, in percent.
    pub upload_ratio_max_percent: u32,
    /// Send a report this often, in milliseconds.
    pub report_interval_ms: u32,
    /// The tracker counts a viewer as gone after this time without a message, in milliseconds.
    pub silence_max_ms: u32,
    /// Published pieces of the last seconds, oldest first. The tracker may send them as `published` after the
    /// welcome instead, so that one long message does not grow every socket's write buffer.
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
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// The password is not shown, only whether there is one.
impl std::fmt::Debug for IceServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IceServer")
            .field("urls", &self.urls)
            .field("username", &self.username)
            .field("credential", &self.credential.as_ref().map(|_| ".."))
            .finish()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of PROTOCOL.md: direction and JSON text.
    fn examples() -> Vec<(&'static str, &'static str)> {
        let text = include_str!("../PROTOCOL.md");
        text.split("```json ")
            .skip(1)
            .map(|block| {
                let (direction, rest) = block.split_once('\n').unwrap();
                (direction, rest.split_once("\n```").unwrap().0)
            })
            .collect()
    }

    fn assert_round_trip<M: Serialize + for<'de> Deserialize<'de>>(text: &str) {
        let message: M = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let written: serde_json::Value = serde_json::to_value(&message).unwrap();
        let read: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(without_defaults(read), without_defaults(written), "{text}");
    }

    /// `expected_ms` is written even when it is 0.
    fn without_defaults(mut value: serde_json::Value) -> serde_json::Value {
        if let Some(places) = value.get_mut("places").and_then(|places| places.as_array_mut()) {
            for place in places {
                place.as_object_mut().unwrap().retain(|key, value| key != "expected_ms" || *value != 0);
            }
        }
        value
    }

    #[test]
    fn protocol_v1_examples_decode_and_are_written_back_unchanged() {
        let examples = examples();
        assert!(examples.len() >= 25, "found only {}", examples.len());
        for (direction, text) in examples {
            match direction {
                "viewer" => assert_round_trip::<ViewerMessage>(text),
                "tracker" => assert_round_trip::<TrackerMessage>(text),
                other => panic!("an example is marked {other:?}"),
            }
        }
    }

    /// Every `type` and every error code that the types can write.
    #[test]
    fn every_message_type_and_error_code_is_documented() {
        let text = include_str!("../PROTOCOL.md");
        let documented: Vec<&str> =
            text.split("{\"type\":\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        let source = include_str!("lib.rs");
        for name in ["ViewerMessage", "TrackerMessage"] {
            for variant in variants(source, name) {
                assert!(documented.contains(&variant.as_str()), "{name}::{variant} has no example");
            }
        }
        for code in variants(source, "ErrorCode") {
            assert!(text.contains(&format!("| `{code}` |")), "error code {code} is not in the table");
        }
    }

    /// The variants of an enum in this file, in snake case: what `rename_all` makes of them.
    fn variants(source: &str, name: &str) -> Vec<String> {
        let body = source.split_once(&format!("pub enum {name} {{\n")).unwrap().1;
        let body = body.split_once("\n}\n").unwrap().0;
        let lines = body.lines().filter_map(|line| line.strip_prefix("    "));
        let names = lines.filter(|line| line.starts_with(|first: char| first.is_ascii_uppercase()));
        let found: Vec<String> = names
            .map(|line| {
                let end = line.find(|letter: char| !letter.is_alphanumeric()).unwrap_or(line.len());
                let mut snake = String::new();
                for (at, letter) in line[..end].char_indices() {
                    if letter.is_uppercase() && at > 0 {
                        snake.push('_');
                    }
                    snake.push(letter.to_ascii_lowercase());
                }
                snake
            })
            .collect();
        assert!(!found.is_empty(), "{name} not found");
        found
    }

    #[test]
    fn unknown_fields_are_ignored_and_unknown_types_are_errors() {
        let join = r#"{"type":"join","version":1,"stream":"a","shares":true,"mood":"good"}"#;
        assert!(serde_json::from_str::<ViewerMessage>(join).is_ok());
        assert!(serde_json::from_str::<ViewerMessage>(r#"{"type":"jion"}"#).is_err());
        assert!(
            serde_json::from_str::<ViewerMessage>(r#"{"type":"connected","peer":-1,"rtt_ms":0}"#).is_err()
        );
    }
}
