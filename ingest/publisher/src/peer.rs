//! One WebRTC connection that only sends: the `rtc` engine, its UDP sockets, and nothing about media sources.
//!
//! The engine is sans-I/O; this file feeds it datagrams, timers and packets and sends what it wants sent. What is
//! sent, when, and with which timestamps is decided in `session.rs`.

use crate::{
    error::{Context as _, Error},
    frame::Track,
    options::VideoCodec,
};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use rtc::{
    interceptor::{Interceptor, NackResponderBuilder, Packet, Slot, StreamInfo, TaggedPacket},
    media_stream::MediaStreamTrack,
    peer_connection::{
        RTCPeerConnection, RTCPeerConnectionBuilder,
        configuration::{
            interceptor_registry::Registry,
            media_engine::{MIME_TYPE_H264, MIME_TYPE_OPUS, MIME_TYPE_RTX, MIME_TYPE_VP8, MediaEngine},
        },
        event::RTCPeerConnectionEvent,
        sdp::RTCSessionDescription,
        state::{RTCIceConnectionState, RTCPeerConnectionState},
        transport::{RTCDtlsTransportState, RTCIceCandidateInit},
    },
    rtcp,
    rtp::{Packet as RtpPacket, header::Header},
    rtp_transceiver::{
        RTCRtpSenderId, RTCRtpTransceiverDirection, RTCRtpTransceiverId, RTCRtpTransceiverInit,
        rtp_sender::{
            RTCPFeedback, RTCRtpCodec, RTCRtpCodecParameters, RTCRtpCodingParameters,
            RTCRtpEncodingParameters, RTCRtpHeaderExtensionCapability, RTCRtpRtxParameters, RtpCodecKind,
        },
    },
    sansio::Protocol,
    shared::{TaggedBytesMut, TransportContext, TransportProtocol, error::Error as RtcError},
};
use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};
use tokio::net::UdpSocket;

/// Packets kept for retransmission, for each track: 4 s at 2.5 Mbit/s, 1 s at 10 Mbit/s. A power of two.
const RESEND_BUFFER: u16 = 1024;
/// The largest datagram that a peer may send us: STUN, DTLS and RTCP stay far below.
const DATAGRAM_MAX: usize = 2048;
const MID_URI: &str = "urn:ietf:params:rtp-hdrext:sdes:mid";

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

/// A track that was offered.
#[derive(Debug)]
struct Sender {
    track: Track,
    id: RTCRtpSenderId,
    transceiver: RTCRtpTransceiverId,
    ssrc: u32,
    payload_type: u8,
    mid: Option<(u8, Bytes)>,
    sequence: u16,
}

/// The connection.
pub(crate) struct Peer {
    connection: RTCPeerConnection,
    sockets: Vec<LocalSocket>,
    senders: Vec<Sender>,
    buffer: Box<[u8; DATAGRAM_MAX]>,
    rtcp_seen: Arc<Mutex<Vec<Box<dyn rtcp::Packet>>>>,
    is_closed_by_server: bool,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer").field("senders", &self.senders).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct LocalSocket {
    socket: UdpSocket,
    /// What the candidate says: the engine compares it with where datagrams arrive.
    address: SocketAddr,
}

impl Peer {
    /// A connection that will send these tracks, with a socket for each address family by which `server` can be
    /// reached.
    pub(crate) async fn new(
        server: &[SocketAddr],
        codec: VideoCodec,
        profile_level_id: &str,
        tracks: &[Track],
    ) -> Result<Self, Error> {
        let sockets = bind(server).await?;
        let mut media_engine = media_engine(codec, profile_level_id).context("set up codecs")?;
        media_engine
            .register_header_extension(
                RTCRtpHeaderExtensionCapability { uri: MID_URI.into() },
                RtpCodecKind::Video,
                None,
            )
            .context("set up header extensions")?;
        // Our own sender reports (`session.rs`), no bandwidth feedback: only these two.
        let rtcp_seen = Arc::new(Mutex::new(Vec::new()));
        let registry = Registry::new()
            .with(Slot::NackResponder, NackResponderBuilder::new().with_size(RESEND_BUFFER).build())
            .with(
                Slot::Custom(14_000),
                TapRtcp { seen: rtcp_seen.clone(), reads: VecDeque::new(), writes: VecDeque::new() },
            );
        let mut connection = RTCPeerConnectionBuilder::new()
            .with_media_engine(media_engine)
            .with_interceptor_registry(registry)
            .build(Instant::now())
            .context("create the WebRTC connection")?;
        let mut senders = Vec::new();
        for &track in tracks {
            senders.push(add_sender(&mut connection, track, codec, profile_level_id)?);
        }
        Ok(Self {
            connection,
            sockets,
            senders,
            buffer: Box::new([0; DATAGRAM_MAX]),
            rtcp_seen,
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

    /// When [`Peer::handle_timeout`] wants to be called.
    pub(crate) fn poll_timeout(&mut self) -> Option<Instant> {
        self.connection.poll_timeout()
    }

    pub(crate) fn handle_timeout(&mut self) -> Result<(), Error> {
        self.connection.handle_timeout(Instant::now()).context("run the WebRTC timers")
    }

    /// Waits for datagrams and feeds them to the engine. Cancel-safe.
    pub(crate) async fn receive(&mut self) {
        let at = match self.sockets.as_slice() {
            [_] => self.sockets[0].socket.readable().await.map(|()| 0),
            [first, second, ..] => tokio::select! {
                ready = first.socket.readable() => ready.map(|()| 0),
                ready = second.socket.readable() => ready.map(|()| 1),
            },
            [] => return std::future::pending().await,
        };
        let Ok(at) = at else { return };
        // Bounded, so that media is not held up by a flood.
        for _ in 0..64 {
            let local = &self.sockets[at];
            match local.socket.try_recv_from(&mut self.buffer[..]) {
                Ok((length, peer_addr)) => {
                    let message = TaggedBytesMut {
                        now: Instant::now(),
                        transport: TransportContext {
                            local_addr: local.address,
                            peer_addr,
                            transport_protocol: TransportProtocol::UDP,
                            ecn: None,
                        },
                        message: BytesMut::from(&self.buffer[..length]),
                    };
                    if let Err(error) = self.connection.handle_read(message) {
                        tracing::debug!(%error, "datagram refused");
                    }
                    // RFC 7983: 20 to 63 is DTLS; after the handshake that is an alert or nothing of interest.
                    if (20..64).contains(&self.buffer[0]) {
                        self.is_closed_by_server |= self.is_dtls_closed();
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                // An ICMP error of an earlier datagram, reported here.
                Err(error) => tracing::trace!(%error, "socket error"),
            }
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

/// A socket for each address family that reaches the server, with the address that the route there uses.
async fn bind(server: &[SocketAddr]) -> Result<Vec<LocalSocket>, Error> {
    let mut sockets: Vec<LocalSocket> = Vec::new();
    for to in server {
        if sockets.iter().any(|local| local.address.is_ipv4() == to.is_ipv4()) {
            continue;
        }
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        // Connecting a UDP socket sends nothing; it asks the routing table.
        let Ok(probe) = UdpSocket::bind((any, 0)).await else { continue };
        if probe.connect(to).await.is_err() {
            continue;
        }
        let Ok(route) = probe.local_addr() else { continue };
        // Bound to all addresses: the server's candidates may lie behind another interface than its HTTP port.
        let socket = UdpSocket::bind((any, 0)).await.context("open a UDP socket")?;
        let port = socket.local_addr().context("open a UDP socket")?.port();
        sockets.push(LocalSocket { socket, address: SocketAddr::new(route.ip(), port) });
    }
    if sockets.is_empty() {
        return Err(Error::Io {
            step: "find a route to the server",
            source: std::io::Error::other("no network interface leads there"),
        });
    }
    Ok(sockets)
}

fn video_codec(codec: VideoCodec, profile_level_id: &str) -> RTCRtpCodec {
    let feedback = |typ: &str, parameter: &str| RTCPFeedback { typ: typ.into(), parameter: parameter.into() };
    let (mime_type, sdp_fmtp_line) = match codec {
        VideoCodec::H264 => (
            MIME_TYPE_H264,
            format!("level-asymmetry-allowed=1;packetization-mode=1;profile-level-id={profile_level_id}"),
        ),
        VideoCodec::Vp8 => (MIME_TYPE_VP8, String::new()),
    };
    RTCRtpCodec {
        mime_type: mime_type.into(),
        clock_rate: Track::Video.clock_rate(),
        channels: 0,
        sdp_fmtp_line,
        rtcp_feedback: vec![feedback("nack", ""), feedback("nack", "pli"), feedback("ccm", "fir")],
    }
}

fn audio_codec() -> RTCRtpCodec {
    RTCRtpCodec {
        mime_type: MIME_TYPE_OPUS.into(),
        clock_rate: Track::Audio.clock_rate(),
        channels: 2,
        sdp_fmtp_line: "minptime=10;stereo=1;sprop-stereo=1".into(),
        rtcp_feedback: vec![],
    }
}

fn media_engine(codec: VideoCodec, profile_level_id: &str) -> Result<MediaEngine, RtcError> {
    let mut engine = MediaEngine::default();
    let video = RTCRtpCodecParameters { rtp_codec: video_codec(codec, profile_level_id), payload_type: 102 };
    engine.register_codec(video, RtpCodecKind::Video)?;
    let rtx = RTCRtpCodec {
        mime_type: MIME_TYPE_RTX.into(),
        clock_rate: Track::Video.clock_rate(),
        channels: 0,
        sdp_fmtp_line: "apt=102".into(),
        rtcp_feedback: vec![],
    };
    engine
        .register_codec(RTCRtpCodecParameters { rtp_codec: rtx, payload_type: 103 }, RtpCodecKind::Video)?;
    let audio = RTCRtpCodecParameters { rtp_codec: audio_codec(), payload_type: 111 };
    engine.register_codec(audio, RtpCodecKind::Audio)?;
    Ok(engine)
}

fn add_sender(
    connection: &mut RTCPeerConnection,
    track: Track,
    codec: VideoCodec,
    profile_level_id: &str,
) -> Result<Sender, Error> {
    let ssrc = rand::random::<u32>();
    let (kind, name, rtp_codec, rtx) = match track {
        Track::Video => {
            let rtx = RTCRtpRtxParameters { ssrc: rand::random() };
            (RtpCodecKind::Video, "video", video_codec(codec, profile_level_id), Some(rtx))
        }
        Track::Audio => (RtpCodecKind::Audio, "audio", audio_codec(), None),
    };
    let encoding = RTCRtpEncodingParameters {
        rtp_coding_parameters: RTCRtpCodingParameters { ssrc: Some(ssrc), rtx, ..Default::default() },
        active: true,
        codec: rtp_codec,
        ..Default::default()
    };
    // One stream id for both tracks: the receiver keeps them in step.
    let media = MediaStreamTrack::new("shoal".into(), name.into(), name.into(), kind, vec![encoding.clone()]);
    let init = RTCRtpTransceiverInit {
        direction: RTCRtpTransceiverDirection::Sendonly,
        streams: vec!["shoal".into()],
        send_encodings: vec![encoding],
    };
    let transceiver = connection.add_transceiver_from_track(media, Some(init)).context("add a track")?;
    let id = connection
        .rtp_transceiver(transceiver)
        .and_then(|transceiver| transceiver.sender())
        .ok_or_else(|| Error::BadAnswer("the engine made no sender".into()))?;
    Ok(Sender { track, id, transceiver, ssrc, payload_type: 0, mid: None, sequence: rand::random() })
}

/// Copies every inbound RTCP packet for [`Peer::poll_event`]. Marking them for delivery instead would lose some: the
/// engine drops a compound packet when its first part names no SSRC, as in an empty receiver report before a PLI.
struct TapRtcp {
    seen: Arc<Mutex<Vec<Box<dyn rtcp::Packet>>>>,
    reads: VecDeque<TaggedPacket>,
    writes: VecDeque<TaggedPacket>,
}

impl Protocol<TaggedPacket, TaggedPacket, ()> for TapRtcp {
    type Rout = TaggedPacket;
    type Wout = TaggedPacket;
    type Eout = ();
    type Error = RtcError;
    type Time = Instant;

    fn handle_read(&mut self, message: TaggedPacket) -> Result<(), RtcError> {
        if let Packet::Rtcp(packets) = &message.message.packet {
            // Emptied after each batch of datagrams, which bounds it.
            self.seen.lock().extend(packets.iter().cloned());
        }
        self.reads.push_back(message);
        Ok(())
    }

    fn poll_read(&mut self) -> Option<TaggedPacket> {
        self.reads.pop_front()
    }

    fn handle_write(&mut self, message: TaggedPacket) -> Result<(), RtcError> {
        self.writes.push_back(message);
        Ok(())
    }

    fn poll_write(&mut self) -> Option<TaggedPacket> {
        self.writes.pop_front()
    }
}

impl Interceptor for TapRtcp {
    fn bind_local_stream(&mut self, _: &StreamInfo) {}
    fn unbind_local_stream(&mut self, _: &StreamInfo) {}
    fn bind_remote_stream(&mut self, _: &StreamInfo) {}
    fn unbind_remote_stream(&mut self, _: &StreamInfo) {}
}
