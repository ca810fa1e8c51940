//! A WHIP endpoint for tests: real HTTP, real UDP, the `rtc` engine as answerer, and everything that arrives handed
//! to the test. It judges nothing and repairs only what the engine repairs.

#![allow(dead_code)] // Each test file uses its part.

pub(crate) mod decode;

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{delete, post},
};
use bytes::BytesMut;
use rtc::{
    interceptor::{Attribute, Interceptor, Packet, Slot, StreamInfo, TaggedPacket},
    peer_connection::{
        RTCPeerConnection, RTCPeerConnectionBuilder,
        configuration::{
            interceptor_registry::{Registry, register_default_interceptors},
            media_engine::MediaEngine,
            setting_engine::SettingEngineBuilder,
        },
        event::{RTCPeerConnectionEvent, RTCTrackEvent},
        message::RTCMessage,
        sdp::RTCSessionDescription,
        transport::{RTCDtlsRole, RTCIceCandidateInit},
    },
    rtcp::{
        goodbye::Goodbye,
        payload_feedbacks::{
            full_intra_request::{FirEntry, FullIntraRequest},
            picture_loss_indication::PictureLossIndication,
        },
        receiver_report::ReceiverReport,
        sender_report::SenderReport,
    },
    rtp_transceiver::RTCRtpReceiverId,
    sansio::Protocol,
    shared::{
        TaggedBytesMut, TransportContext, TransportProtocol,
        error::Error as RtcError,
        tcp_framing::{TcpFrameDecoder, frame_packet},
    },
};
use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::mpsc,
};

/// What the endpoint saw.
#[derive(Debug)]
pub(crate) enum Seen {
    /// The offer of a new session.
    Offer { name: String, sdp: String, authorization: Option<String> },
    /// A media packet, after the engine undid SRTP and RTX.
    Rtp { is_video: bool, packet: rtc::rtp::Packet, unix_us: i64 },
    /// A sender report.
    Report { is_video: bool, report: SenderReport, unix_us: i64 },
    /// An RTCP BYE.
    Goodbye,
    /// DELETE of the session URL.
    Deleted { authorization: Option<String> },
}

/// How the endpoint behaves.
#[derive(Clone, Debug)]
pub(crate) struct Behavior {
    /// Answer POST with this instead of 201.
    pub(crate) refuse: Option<(StatusCode, &'static str)>,
    /// Answer POST for this name with 409.
    pub(crate) refuse_name: Option<&'static str>,
    /// Advertise a UDP port that nobody serves.
    pub(crate) is_udp_dead: bool,
    /// Accept media over TCP, too.
    pub(crate) has_tcp: bool,
    /// Drop each n-th video datagram on arrival (before the engine sees it); 0 drops none.
    pub(crate) drop_each: u32,
    /// `Location` is this prefix and the session's id.
    pub(crate) location_prefix: &'static str,
}

impl Default for Behavior {
    fn default() -> Self {
        Self {
            refuse: None,
            refuse_name: None,
            is_udp_dead: false,
            has_tcp: false,
            drop_each: 0,
            location_prefix: "/session/",
        }
    }
}

/// What a test can make the endpoint's connections do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Command {
    /// Ask for a keyframe by PLI.
    Pli,
    /// Ask for a keyframe by FIR.
    Fir,
    /// Close the connection from the server's side.
    Close,
}

/// A running endpoint.
pub(crate) struct Endpoint {
    address: SocketAddr,
    pub(crate) seen: mpsc::UnboundedReceiver<Seen>,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

struct Shared {
    behavior: Behavior,
    seen: mpsc::UnboundedSender<Seen>,
    sessions: Mutex<Vec<mpsc::UnboundedSender<Command>>>,
    dropped: AtomicU32,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Endpoint {
    pub(crate) async fn start(behavior: Behavior) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, seen) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            behavior,
            seen: sender,
            sessions: Mutex::default(),
            dropped: AtomicU32::new(0),
        });
        let router = Router::new()
            .route("/whip/{name}", post(offer))
            .route("/session/{id}", delete(end))
            .route("/whip/session/{id}", delete(end))
            .with_state(shared.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, seen, shared, server }
    }

    pub(crate) fn url(&self, name: &str) -> String {
        format!("http://{}/whip/{name}", self.address)
    }

    pub(crate) fn command(&self, command: Command) {
        for session in self.shared.sessions.lock().unwrap().iter() {
            let _ = session.send(command);
        }
    }

    /// Datagrams that were dropped on purpose.
    pub(crate) fn dropped(&self) -> u32 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// The next thing seen; panics when nothing happens for 10 s.
    pub(crate) async fn next(&mut self) -> Seen {
        tokio::time::timeout(Duration::from_secs(10), self.seen.recv())
            .await
            .expect("the publisher does something within 10 s")
            .expect("the endpoint runs")
    }

    /// What is seen until `enough` says so.
    pub(crate) async fn until(&mut self, mut enough: impl FnMut(&Seen) -> bool) -> Vec<Seen> {
        let mut all = Vec::new();
        loop {
            let seen = self.next().await;
            let is_enough = enough(&seen);
            all.push(seen);
            if is_enough {
                return all;
            }
        }
    }
}

async fn offer(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    sdp: String,
) -> Response {
    assert_eq!(headers[header::CONTENT_TYPE], "application/sdp");
    if let Some((status, body)) = shared.behavior.refuse {
        return (status, body).into_response();
    }
    if shared.behavior.refuse_name == Some(name.as_str()) {
        return StatusCode::CONFLICT.into_response();
    }
    let _ = shared.seen.send(Seen::Offer { name, sdp: sdp.clone(), authorization: authorization(&headers) });
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = shared.behavior.has_tcp.then(|| listener.local_addr().unwrap());
    let (connection, answer) = answer(sdp, socket.local_addr().unwrap(), tcp);
    if !shared.behavior.is_udp_dead || shared.behavior.has_tcp {
        let (sender, commands) = mpsc::unbounded_channel();
        shared.sessions.lock().unwrap().push(sender);
        tokio::spawn(drive(connection, socket, listener, shared.clone(), commands));
    }
    let location = format!("{}{}", shared.behavior.location_prefix, 7);
    let headers = [(header::CONTENT_TYPE, "application/sdp".to_owned()), (header::LOCATION, location)];
    (StatusCode::CREATED, headers, answer).into_response()
}

async fn end(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> StatusCode {
    let _ = shared.seen.send(Seen::Deleted { authorization: authorization(&headers) });
    StatusCode::OK
}

fn authorization(headers: &HeaderMap) -> Option<String> {
    headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned())
}

fn answer(offer: String, local: SocketAddr, tcp: Option<SocketAddr>) -> (RTCPeerConnection, String) {
    let mut media_engine = MediaEngine::default();
    media_engine.register_default_codecs().unwrap();
    let registry = register_default_interceptors(Registry::new(), &mut media_engine)
        .unwrap()
        .with(Slot::Custom(4_500), Tap::default());
    let settings = SettingEngineBuilder::new().with_answering_dtls_role(RTCDtlsRole::Server).build();
    let mut connection = RTCPeerConnectionBuilder::new()
        .with_media_engine(media_engine)
        .with_setting_engine(settings)
        .with_interceptor_registry(registry)
        .build(Instant::now())
        .unwrap();
    let offer = RTCSessionDescription::offer(offer).unwrap();
    connection.set_remote_description(Instant::now(), offer).unwrap();
    let candidate = format!("candidate:1 1 udp 2130706431 {} {} typ host", local.ip(), local.port());
    connection.add_local_candidate(RTCIceCandidateInit { candidate, ..Default::default() }).unwrap();
    if let Some(tcp) = tcp {
        let (ip, port) = (tcp.ip(), tcp.port());
        let candidate = format!("candidate:2 1 tcp 1671430143 {ip} {port} typ host tcptype passive");
        connection.add_local_candidate(RTCIceCandidateInit { candidate, ..Default::default() }).unwrap();
    }
    connection.add_local_candidate(RTCIceCandidateInit::default()).unwrap();
    let answer = connection.create_answer(None).unwrap();
    connection.set_local_description(Instant::now(), answer).unwrap();
    let sdp = connection.local_description().unwrap().sdp;
    (connection, sdp)
}

/// The connection's life.
async fn drive(
    mut connection: RTCPeerConnection,
    socket: UdpSocket,
    listener: TcpListener,
    shared: Arc<Shared>,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let local = socket.local_addr().unwrap();
    let mut video: Option<(RTCRtpReceiverId, u32)> = None;
    let mut media_datagrams = 0u32;
    let mut buffer = vec![0; 2048];
    let mut stream: Option<(TcpStream, SocketAddr)> = None;
    let mut tcp_buffer = vec![0; 8192];
    let mut decoder = TcpFrameDecoder::new();
    loop {
        while let Some(out) = connection.poll_write() {
            if out.transport.transport_protocol == TransportProtocol::TCP {
                if let Some((stream, _)) = &mut stream {
                    let _ = stream.write_all(&frame_packet(&out.message)).await;
                }
            } else if !shared.behavior.is_udp_dead {
                let _ = socket.send_to(&out.message, out.transport.peer_addr).await;
            }
        }
        while let Some(event) = connection.poll_event() {
            if let RTCPeerConnectionEvent::OnTrack(RTCTrackEvent::OnOpen(open)) = event {
                let receiver = connection.rtp_receiver(open.receiver_id).unwrap();
                if receiver.track().kind() == rtc::rtp_transceiver::rtp_sender::RtpCodecKind::Video {
                    video = Some((open.receiver_id, open.ssrc));
                }
            }
        }
        while let Some(message) = connection.poll_read() {
            let unix_us = unix_us();
            let is_video = |ssrc| video.is_some_and(|(_, video)| video == ssrc);
            match message.message {
                RTCMessage::RtpPacket(_, packet) => {
                    let is_video = is_video(packet.header.ssrc);
                    let _ = shared.seen.send(Seen::Rtp { is_video, packet, unix_us });
                }
                RTCMessage::RtcpPacket(_, packets) => {
                    for packet in packets {
                        let packet = packet.as_any();
                        if let Some(report) = packet.downcast_ref::<SenderReport>() {
                            let (is_video, report) = (is_video(report.ssrc), report.clone());
                            let _ = shared.seen.send(Seen::Report { is_video, report, unix_us });
                        } else if packet.is::<Goodbye>() {
                            let _ = shared.seen.send(Seen::Goodbye);
                        }
                    }
                }
                _ => {}
            }
        }
        let wake = connection.poll_timeout().unwrap_or_else(|| Instant::now() + Duration::from_secs(60));
        tokio::select! {
            command = commands.recv() => match (command, video) {
                (Some(Command::Close), _) => {
                    connection.close().unwrap();
                    while let Some(out) = connection.poll_write() {
                        let _ = socket.send_to(&out.message, out.transport.peer_addr).await;
                    }
                    return;
                }
                (Some(command), Some((receiver, ssrc))) => {
                    let request: Box<dyn rtc::rtcp::Packet> = match command {
                        Command::Fir => Box::new(FullIntraRequest {
                            sender_ssrc: 1,
                            media_ssrc: ssrc,
                            fir: vec![FirEntry { ssrc, sequence_number: 1 }],
                        }),
                        _ => Box::new(PictureLossIndication { sender_ssrc: 1, media_ssrc: ssrc }),
                    };
                    // As RFC 3550 wants it, and as many servers send it: a report first, here an empty one.
                    let report: Box<dyn rtc::rtcp::Packet> = Box::new(ReceiverReport::default());
                    let mut receiver = connection.rtp_receiver(receiver).unwrap();
                    receiver.write_rtcp(Instant::now(), vec![report, request]).unwrap();
                }
                (Some(_), None) => panic!("a keyframe request before there was video"),
                (None, _) => return,
            },
            accepted = listener.accept(), if stream.is_none() => stream = Some(accepted.unwrap()),
            length = read(&mut stream, &mut tcp_buffer) => {
                decoder.extend_from_slice(&tcp_buffer[..length]);
                let peer_addr = stream.as_ref().unwrap().1;
                while let Some(packet) = decoder.next_packet() {
                    let transport = TransportContext {
                        local_addr: listener.local_addr().unwrap(),
                        peer_addr,
                        transport_protocol: TransportProtocol::TCP,
                        ecn: None,
                    };
                    let message = BytesMut::from(&packet[..]);
                    let _ = connection.handle_read(TaggedBytesMut { now: Instant::now(), transport, message });
                }
                if length == 0 {
                    stream = None;
                }
            }
            received = socket.recv_from(&mut buffer), if !shared.behavior.is_udp_dead => {
                let Ok((length, peer_addr)) = received else { continue };
                // RTP has version 2 and, unlike RTCP (RFC 5761, section 4), a payload type outside 64 to 95.
                let is_rtp = buffer[0] >> 6 == 2 && !(64..96).contains(&(buffer[1] & 0x7f));
                if is_rtp && length > 600 {
                    media_datagrams += 1;
                    let each = shared.behavior.drop_each;
                    if each > 0 && media_datagrams.is_multiple_of(each) {
                        shared.dropped.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                }
                let transport = TransportContext {
                    local_addr: local,
                    peer_addr,
                    transport_protocol: TransportProtocol::UDP,
                    ecn: None,
                };
                let message = BytesMut::from(&buffer[..length]);
                let _ = connection.handle_read(TaggedBytesMut { now: Instant::now(), transport, message });
            }
            () = tokio::time::sleep_until(wake.into()) => connection.handle_timeout(Instant::now()).unwrap(),
        }
    }
}

async fn read(stream: &mut Option<(TcpStream, SocketAddr)>, buffer: &mut [u8]) -> usize {
    match stream {
        Some((stream, _)) => stream.read(buffer).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}

fn unix_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64
}

/// Marks RTCP for delivery to the test.
#[derive(Default)]
struct Tap {
    reads: VecDeque<TaggedPacket>,
    writes: VecDeque<TaggedPacket>,
}

impl Protocol<TaggedPacket, TaggedPacket, ()> for Tap {
    type Rout = TaggedPacket;
    type Wout = TaggedPacket;
    type Eout = ();
    type Error = RtcError;
    type Time = Instant;

    fn handle_read(&mut self, mut message: TaggedPacket) -> Result<(), RtcError> {
        if matches!(message.message.packet, Packet::Rtcp(_)) {
            message.message.add(Attribute::DeliverToApplication);
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

impl Interceptor for Tap {
    fn bind_local_stream(&mut self, _: &StreamInfo) {}
    fn unbind_local_stream(&mut self, _: &StreamInfo) {}
    fn bind_remote_stream(&mut self, _: &StreamInfo) {}
    fn unbind_remote_stream(&mut self, _: &StreamInfo) {}
}
