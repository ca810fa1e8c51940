//! One WebRTC connection that only sends: the `rtc` engine, its UDP sockets, and nothing about media sources.
//!
//! The engine is sans-I/O; this file feeds it datagrams, timers and packets and sends what it wants sent. What is
//! sent, when, and with which timestamps is decided in `session.rs`.

mod media;
mod tap;
mod tcp;
mod udp;

use crate::{
    error::{Context as _, Error},
    frame::Track,
    options::{Transport, VideoCodec},
};
use bytes::{Bytes, BytesMut};
use media::{MID_URI, Sender};
use rtc::{
    interceptor::{NackResponderBuilder, Slot},
    peer_connection::{
        RTCPeerConnection, RTCPeerConnectionBuilder,
        configuration::{interceptor_registry::Registry, media_engine::MIME_TYPE_RTX},
        event::RTCPeerConnectionEvent,
        sdp::RTCSessionDescription,
        state::{RTCIceConnectionState, RTCPeerConnectionState},
        transport::{RTCDtlsTransportState, RTCIceCandidateInit},
    },
    rtcp,
    rtp::{Packet as RtpPacket, header::Header},
    rtp_transceiver::rtp_sender::RTCRtpCodecParameters,
    sansio::Protocol,
    shared::{TaggedBytesMut, TransportContext, TransportProtocol, error::Error as RtcError},
};
use std::{net::SocketAddr, time::Instant};
use tap::{Seen, TapRtcp};
use tcp::TcpLinks;
use udp::LocalSocket;

/// Packets kept for retransmission, for each track: 4 s at 2.5 Mbit/s, 1 s at 10 Mbit/s. A power of two.
const RESEND_BUFFER: u16 = 1024;
/// The largest datagram that a peer may send us: STUN, DTLS and RTCP stay far below.
const DATAGRAM_MAX: usize = 2048;

/// What the connection reports.
#[derive(Debug)]
pub(crate) enum Event {
    /// Media can be sent.
    Connected,
    /// ICE found a path; DTLS follows.
    PathFound,
    /// The path went away for good.
    Failed,
    /// The server ended it.
    Closed,
    /// Feedback about what we send.
    Rtcp(Vec<Box<dyn rtcp::Packet>>),
}

/// The connection.
pub(crate) struct Peer {
    connection: RTCPeerConnection,
    sockets: Vec<LocalSocket>,
    senders: Vec<Sender>,
    buffer: Box<[u8; DATAGRAM_MAX]>,
    rtcp_seen: Seen,
    tcp: TcpLinks,
    /// Where the server accepts TCP, from its answer.
    tcp_candidates: Vec<SocketAddr>,
    last_protocol: TransportProtocol,
    is_closed_by_server: bool,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer").field("senders", &self.senders).finish_non_exhaustive()
    }
}

impl Peer {
    /// A connection that will send these tracks, with a socket for each address family by which `server` can be
    /// reached.
    pub(crate) async fn new(
        server: &[SocketAddr],
        transport: Transport,
        codec: VideoCodec,
        profile_level_id: &str,
        tracks: &[Track],
    ) -> Result<Self, Error> {
        let sockets = match transport {
            Transport::Tcp => Vec::new(),
            Transport::Auto | Transport::Udp => udp::bind(server).await?,
        };
        let media_engine = media::media_engine(codec, profile_level_id).context("set up codecs")?;
        // Our own sender reports (`session.rs`), no bandwidth feedback: only these two.
        let rtcp_seen = Seen::default();
        let registry = Registry::new()
            .with(Slot::NackResponder, NackResponderBuilder::new().with_size(RESEND_BUFFER).build())
            .with(Slot::Custom(14_000), TapRtcp::new(rtcp_seen.clone()));
        let mut connection = RTCPeerConnectionBuilder::new()
            .with_media_engine(media_engine)
            .with_interceptor_registry(registry)
            .build(Instant::now())
            .context("create the WebRTC connection")?;
        let mut senders = Vec::new();
        for &track in tracks {
            senders.push(media::add_sender(&mut connection, track, codec, profile_level_id)?);
        }
        Ok(Self {
            connection,
            sockets,
            senders,
            buffer: Box::new([0; DATAGRAM_MAX]),
            rtcp_seen,
            tcp: TcpLinks::default(),
            tcp_candidates: Vec::new(),
            last_protocol: TransportProtocol::UDP,
            is_closed_by_server: false,
        })
    }

    /// The offer, with all our candidates.
    pub(crate) fn offer(&mut self) -> Result<String, Error> {
        for (number, local) in self.sockets.iter().enumerate() {
            let (ip, port) = (local.address.ip(), local.address.port());
            // RFC 8445, section 5.1.2.1: type preference 126 for host, local preference, component 1.
            let priority = (126u32 << 24) + ((65_535 - number as u32) << 8) + 255;
            let candidate = format!("candidate:{} 1 udp {priority} {ip} {port} typ host", number + 1);
            self.connection
                .add_local_candidate(RTCIceCandidateInit { candidate, ..Default::default() })
                .context("add a candidate")?;
        }
        self.connection
            .add_local_candidate(RTCIceCandidateInit::default())
            .context("end the list of candidates")?;
        let offer = self.connection.create_offer(None).context("create the offer")?;
        self.connection.set_local_description(Instant::now(), offer).context("apply the offer")?;
        let local = self.connection.local_description();
        local.map(|description| description.sdp).ok_or_else(|| Error::BadAnswer("no offer was made".into()))
    }

    /// Applies the server's answer. Tracks that it refuses are left out; all refused is an error.
    pub(crate) fn accept(&mut self, sdp: String) -> Result<(), Error> {
        let unusable = |error: RtcError| Error::BadAnswer(error.to_string());
        self.tcp_candidates = tcp::candidates(&sdp);
        let answer = RTCSessionDescription::answer(sdp).map_err(unusable)?;
        self.connection.set_remote_description(Instant::now(), answer).map_err(unusable)?;
        for at in (0..self.senders.len()).rev() {
            if !self.negotiate(at) {
                self.senders.remove(at);
            }
        }
        if self.senders.is_empty() {
            return Err(Error::CodecsRefused { status: 201, body: "the answer takes no track".into() });
        }
        Ok(())
    }

    /// Takes payload type and extension ids from what was agreed for a sender.
    fn negotiate(&mut self, at: usize) -> bool {
        let sender = &mut self.senders[at];
        let Some(transceiver) = self.connection.rtp_transceiver(sender.transceiver) else { return false };
        if !transceiver.current_direction().has_send() {
            return false;
        }
        let mid = transceiver.mid().clone();
        let Some(mut rtp_sender) = self.connection.rtp_sender(sender.id) else { return false };
        let parameters = &rtp_sender.get_parameters().rtp_parameters;
        let is_media =
            |codec: &&RTCRtpCodecParameters| !codec.rtp_codec.mime_type.eq_ignore_ascii_case(MIME_TYPE_RTX);
        let Some(codec) = parameters.codecs.iter().find(is_media) else { return false };
        sender.payload_type = codec.payload_type;
        let extension = parameters.header_extensions.iter().find(|extension| extension.uri == MID_URI);
        sender.mid = extension.zip(mid).map(|(extension, mid)| (extension.id as u8, Bytes::from(mid)));
        true
    }

    pub(crate) fn ssrc(&self, track: Track) -> Option<u32> {
        self.senders.iter().find(|sender| sender.track == track).map(|sender| sender.ssrc)
    }

    /// Queues an RTP packet; [`Peer::flush`] sends it. The header extension that names the m-line goes along with
    /// `is_labelled`: servers that don't evaluate SSRC lines need it in the first packets.
    pub(crate) fn send_rtp(
        &mut self,
        track: Track,
        timestamp: u32,
        is_last: bool,
        is_labelled: bool,
        payload: Bytes,
    ) -> Result<(), Error> {
        let Some(sender) = self.senders.iter_mut().find(|sender| sender.track == track) else {
            return Ok(());
        };
        let mut header = Header {
            version: 2,
            marker: is_last && track == Track::Video,
            payload_type: sender.payload_type,
            sequence_number: sender.sequence,
            timestamp,
            ssrc: sender.ssrc,
            ..Default::default()
        };
        sender.sequence = sender.sequence.wrapping_add(1);
        if is_labelled && let Some((id, mid)) = &sender.mid {
            header.set_extension(*id, mid.clone()).context("label a packet")?;
        }
        let Some(mut rtp_sender) = self.connection.rtp_sender(sender.id) else { return Ok(()) };
        rtp_sender.write_rtp(Instant::now(), RtpPacket { header, payload }).context("send media")
    }

    /// Queues RTCP packets of a track.
    pub(crate) fn send_rtcp(
        &mut self,
        track: Track,
        packets: Vec<Box<dyn rtcp::Packet>>,
    ) -> Result<(), Error> {
        let Some(sender) = self.senders.iter().find(|sender| sender.track == track) else { return Ok(()) };
        let Some(mut rtp_sender) = self.connection.rtp_sender(sender.id) else { return Ok(()) };
        rtp_sender.write_rtcp(Instant::now(), packets).context("send a report")
    }

    /// Sends everything that is queued.
    pub(crate) async fn flush(&mut self) {
        while let Some(out) = self.connection.poll_write() {
            let to = out.transport.peer_addr;
            self.last_protocol = out.transport.transport_protocol;
            if self.last_protocol == TransportProtocol::TCP {
                self.tcp.send(to, &out.message);
                continue;
            }
            let Some(local) = self.sockets.iter().find(|local| local.address.is_ipv4() == to.is_ipv4())
            else {
                continue;
            };
            // Unreachable candidates and closed ports are normal while ICE looks for a path; later ICE notices.
            if let Err(error) = local.socket.send_to(&out.message, to).await {
                tracing::trace!(%error, "datagram not sent");
            }
        }
    }

    /// Tries to reach the server over TCP too, if it accepts that.
    pub(crate) fn dial_tcp(&mut self) {
        self.tcp.dial(&self.tcp_candidates);
    }

    /// Whether what was sent last went over TCP.
    pub(crate) fn is_on_tcp(&self) -> bool {
        self.last_protocol == TransportProtocol::TCP
    }

    /// When [`Peer::handle_timeout`] wants to be called.
    pub(crate) fn poll_timeout(&mut self) -> Option<Instant> {
        self.connection.poll_timeout()
    }

    pub(crate) fn handle_timeout(&mut self) -> Result<(), Error> {
        self.connection.handle_timeout(Instant::now()).context("run the WebRTC timers")
    }

    /// Waits for datagrams and feeds them to the engine. Cancel-safe.
    pub(crate) async fn receive(&mut self) {
        let ready = async {
            match self.sockets.as_slice() {
                [] => std::future::pending().await,
                [only] => only.socket.readable().await.map(|()| 0),
                [first, second, ..] => tokio::select! {
                    ready = first.socket.readable() => ready.map(|()| 0),
                    ready = second.socket.readable() => ready.map(|()| 1),
                },
            }
        };
        tokio::select! {
            ready = ready => match ready {
                Ok(at) => self.receive_udp(at),
                Err(error) => tracing::debug!(%error, "socket not readable"),
            },
            event = self.tcp.next() => self.handle_tcp(event),
        }
    }

    fn receive_udp(&mut self, at: usize) {
        // Bounded, so that media is not held up by a flood.
        for _ in 0..64 {
            let local = &self.sockets[at];
            match local.socket.try_recv_from(&mut self.buffer[..]) {
                Ok((length, peer_addr)) => {
                    let (local_addr, message) = (local.address, BytesMut::from(&self.buffer[..length]));
                    self.handle_datagram(local_addr, peer_addr, TransportProtocol::UDP, message);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                // An ICMP error of an earlier datagram, reported here.
                Err(error) => tracing::trace!(%error, "socket error"),
            }
        }
    }

    fn handle_tcp(&mut self, event: tcp::Event) {
        match event {
            tcp::Event::Connected(local_addr) => {
                // Only now, so that the engine does not give the pair up before there is a connection. RFC 6544,
                // section 4.5: the port of an active candidate is 9; its direction preference is 6.
                let priority = (126u32 << 24) + (((6 << 13) + 8191) << 8) + 255;
                let ip = local_addr.ip();
                let candidate = format!("candidate:9 1 tcp {priority} {ip} 9 typ host tcptype active");
                let candidate = RTCIceCandidateInit { candidate, ..Default::default() };
                if let Err(error) = self.connection.add_local_candidate(candidate) {
                    tracing::debug!(%error, "TCP candidate refused");
                }
            }
            tcp::Event::Packet { local_addr, peer_addr, message } => {
                self.handle_datagram(local_addr, peer_addr, TransportProtocol::TCP, message);
            }
        }
    }

    fn handle_datagram(
        &mut self,
        local_addr: SocketAddr,
        peer_addr: SocketAddr,
        transport_protocol: TransportProtocol,
        message: BytesMut,
    ) {
        // RFC 7983: 20 to 63 is DTLS; after the handshake that is an alert or nothing of interest.
        let is_dtls = message.first().is_some_and(|first| (20..64).contains(first));
        let transport = TransportContext { local_addr, peer_addr, transport_protocol, ecn: None };
        let message = TaggedBytesMut { now: Instant::now(), transport, message };
        if let Err(error) = self.connection.handle_read(message) {
            tracing::debug!(%error, "datagram refused");
        }
        if is_dtls {
            self.is_closed_by_server |= self.is_dtls_closed();
        }
    }

    /// The engine's connection state stays `connected` when the peer closes DTLS (as W3C defines it), so look below.
    fn is_dtls_closed(&mut self) -> bool {
        let Some(sender) = self.senders.first() else { return false };
        let Some(sender) = self.connection.rtp_sender(sender.id) else { return false };
        sender.transport().is_some_and(|transport| transport.state() == RTCDtlsTransportState::Closed)
    }

    /// What has happened since the last call.
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        if std::mem::take(&mut self.is_closed_by_server) {
            return Some(Event::Closed);
        }
        while let Some(event) = self.connection.poll_event() {
            match event {
                RTCPeerConnectionEvent::OnConnectionStateChangeEvent(state) => match state {
                    RTCPeerConnectionState::Connected => return Some(Event::Connected),
                    RTCPeerConnectionState::Failed => return Some(Event::Failed),
                    RTCPeerConnectionState::Closed => return Some(Event::Closed),
                    _ => {}
                },
                RTCPeerConnectionEvent::OnIceConnectionStateChangeEvent(
                    RTCIceConnectionState::Connected | RTCIceConnectionState::Completed,
                ) => return Some(Event::PathFound),
                _ => {}
            }
        }
        while self.connection.poll_read().is_some() {}
        let packets = std::mem::take(&mut *self.rtcp_seen.lock());
        (!packets.is_empty()).then_some(Event::Rtcp(packets))
    }

    /// Says goodbye to the server.
    pub(crate) async fn close(mut self) {
        // Before closing: the engine drops what it still has queued.
        self.flush().await;
        if let Err(error) = self.connection.close() {
            tracing::debug!(%error, "close");
        }
        self.flush().await;
    }
}
