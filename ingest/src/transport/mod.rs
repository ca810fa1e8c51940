//! What a session needs of a WebRTC stack: datagrams in and out, RTP and sender reports out.
//!
//! Sans-I/O: a [`Transport`] owns no socket and no clock. After each call that changes it, poll until both polls
//! give nothing, then sleep until [`Transport::poll_timeout`]. The one implementation is [`stack`]; the
//! trait keeps its types out of everything else, because such stacks change with every minor version.

pub mod repair;
pub mod stack;
mod tap;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// How a datagram travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// One datagram in one UDP packet.
    Udp,
    /// Framed by RFC 4571 in a TCP connection.
    Tcp,
}

/// Where a datagram came from or goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// UDP or TCP.
    pub protocol: Protocol,
    /// Our address, as it stands in a candidate.
    pub local: SocketAddr,
    /// The publisher's address.
    pub peer: SocketAddr,
}

/// A datagram to send.
#[derive(Clone, Debug)]
pub struct Transmit {
    /// Where to.
    pub route: Route,
    /// What.
    pub bytes: Bytes,
}

/// A media packet, decrypted, with retransmissions turned back into what they repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RtpPacket {
    /// The stream's SSRC.
    pub ssrc: u32,
    /// The payload type as negotiated.
    pub payload_type: u8,
    /// The sequence number.
    pub sequence: u16,
    /// The timestamp in the codec's clock rate.
    pub timestamp: u32,
    /// Whether it ends a picture.
    pub is_marked: bool,
    /// The simulcast layer, in packets that name it.
    pub rid: Option<String>,
    /// What the codec's payload format describes; without padding.
    pub payload: Bytes,
}

/// The relation between a stream's timestamps and the publisher's wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderReport {
    /// The stream's SSRC.
    pub ssrc: u32,
    /// The publisher's wall clock, in microseconds since 1900.
    pub ntp_us: i64,
    /// The RTP timestamp of that moment.
    pub timestamp: u32,
}

/// What a transport has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Media may come.
    Connected,
    /// A media packet, in order of arrival.
    Rtp(RtpPacket),
    /// A sender report.
    Report(SenderReport),
    /// The publisher said goodbye, or the stack gave up. Nothing follows.
    Closed,
}

/// What the network did to what was published; totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Packets missing at first.
    pub packets_missing: u64,
    /// Of these, repaired by a retransmission or late arrival.
    pub packets_repaired: u64,
    /// Negative acknowledgements sent, counted by packet asked for.
    pub packets_requested: u64,
    /// The round trip, as retransmissions and connectivity checks show it.
    pub round_trip: Option<Duration>,
}

/// Why an offer could not be answered by the stack, in its words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StackError(pub String);

/// An answer, and by what the publisher's datagrams will be known.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The SDP.
    pub sdp: String,
    /// Our user name fragment.
    pub ufrag: String,
    /// The password that the publisher's checks prove to know.
    pub password: String,
}

/// A WebRTC connection that receives media.
pub trait Transport: Send {
    /// A datagram arrived. The caller has checked that it belongs to this connection.
    fn handle_datagram(&mut self, now: Instant, route: Route, datagram: &[u8]);
    /// The deadline of `poll_timeout` has passed.
    fn handle_timeout(&mut self, now: Instant);
    /// When to call `handle_timeout`.
    fn poll_timeout(&mut self) -> Option<Instant>;
    /// The next datagram to send.
    fn poll_transmit(&mut self) -> Option<Transmit>;
    /// The next event.
    fn poll_event(&mut self) -> Option<Event>;
    /// Asks the publisher for a keyframe. Not limited here.
    fn request_keyframe(&mut self, ssrc: u32);
    /// Takes a candidate of the publisher, as it stands after `a=`.
    fn add_candidate(&mut self, candidate: &str) -> Result<(), StackError>;
    /// Restarts ICE with the publisher's new offer. One that can't be taken leaves the connection as it was.
    fn restart(&mut self, now: Instant, offer: &str) -> Result<Answer, StackError>;
    /// What the network did.
    fn figures(&mut self, now: Instant) -> Figures;
    /// Says goodbye; transmits remain to be polled.
    fn close(&mut self, now: Instant);
}
