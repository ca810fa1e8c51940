//! One connection of the endpoint: the `rtc` engine as answerer, with its sockets.

use super::{Command, Seen, Shared};
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
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::mpsc,
};

/// Answers an offer with one candidate for each socket.
pub(super) fn answer(
    offer: String,
    local: SocketAddr,
    tcp: Option<SocketAddr>,
) -> (RTCPeerConnection, String) {
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

/// A connection with its sockets.
pub(super) struct Driver {
    connection: RTCPeerConnection,
    socket: UdpSocket,
    listener: TcpListener,
    shared: Arc<Shared>,
    /// The publisher's TCP connection.
    stream: Option<(TcpStream, SocketAddr)>,
    decoder: TcpFrameDecoder,
    video: Option<(RTCRtpReceiverId, u32)>,
    media_datagrams: u32,
}

impl Driver {
    pub(super) fn new(
        connection: RTCPeerConnection,
        socket: UdpSocket,
        listener: TcpListener,
        shared: Arc<Shared>,
    ) -> Self {
        let (stream, decoder) = (None, TcpFrameDecoder::new());
        Self { connection, socket, listener, shared, stream, decoder, video: None, media_datagrams: 0 }
    }

    /// The connection's life.
    pub(super) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut buffer = vec![0; 2048];
        let mut tcp_buffer = vec![0; 8192];
        loop {
            self.transmit().await;
            self.note_tracks();
            self.hand_over();
            let wake =
                self.connection.poll_timeout().unwrap_or_else(|| Instant::now() + Duration::from_secs(60));
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Close) => return self.close().await,
                    Some(command) => self.ask_for_keyframe(command),
                    None => return,
                },
                accepted = self.listener.accept(), if self.stream.is_none() => {
                    self.stream = Some(accepted.unwrap());
                }
                length = read(&mut self.stream, &mut tcp_buffer) => self.take_bytes(&tcp_buffer[..length]),
                received = self.socket.recv_from(&mut buffer), if !self.shared.behavior.is_udp_dead => {
                    let Ok((length, peer_addr)) = received else { continue };
                    self.take_datagram(&buffer[..length], peer_addr);
                }
                () = tokio::time::sleep_until(wake.into()) => {
                    self.connection.handle_timeout(Instant::now()).unwrap();
                }
            }
        }
    }

    /// Sends what the engine wants sent.
    async fn transmit(&mut self) {
        while let Some(out) = self.connection.poll_write() {
            if out.transport.transport_protocol == TransportProtocol::TCP {
                if let Some((stream, _)) = &mut self.stream {
                    let _ = stream.write_all(&frame_packet(&out.message)).await;
                }
            } else if !self.shared.behavior.is_udp_dead {
                let _ = self.socket.send_to(&out.message, out.transport.peer_addr).await;
            }
        }
    }

    fn note_tracks(&mut self) {
        while let Some(event) = self.connection.poll_event() {
            if let RTCPeerConnectionEvent::OnTrack(RTCTrackEvent::OnOpen(open)) = event {
                let receiver = self.connection.rtp_receiver(open.receiver_id).unwrap();
                if receiver.track().kind() == rtc::rtp_transceiver::rtp_sender::RtpCodecKind::Video {
                    self.video = Some((open.receiver_id, open.ssrc));
                }
            }
        }
    }

    /// Hands what the engine has read to the test.
    fn hand_over(&mut self) {
        while let Some(message) = self.connection.poll_read() {
            let unix_us = unix_us();
            let is_video = |ssrc| self.video.is_some_and(|(_, video)| video == ssrc);
            match message.message {
                RTCMessage::RtpPacket(_, packet) => {
                    let is_video = is_video(packet.header.ssrc);
                    let _ = self.shared.seen.send(Seen::Rtp { is_video, packet, unix_us });
                }
                RTCMessage::RtcpPacket(_, packets) => {
                    for packet in packets {
                        let packet = packet.as_any();
                        if let Some(report) = packet.downcast_ref::<SenderReport>() {
                            let (is_video, report) = (is_video(report.ssrc), report.clone());
                            let _ = self.shared.seen.send(Seen::Report { is_video, report, unix_us });
                        } else if packet.is::<Goodbye>() {
                            let _ = self.shared.seen.send(Seen::Goodbye);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    async fn close(&mut self) {
        self.connection.close().unwrap();
        while let Some(out) = self.connection.poll_write() {
            let _ = self.socket.send_to(&out.message, out.transport.peer_addr).await;
        }
    }

    fn ask_for_keyframe(&mut self, command: Command) {
        let (receiver, ssrc) = self.video.expect("a keyframe request comes when there is video");
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
        let mut receiver = self.connection.rtp_receiver(receiver).unwrap();
        receiver.write_rtcp(Instant::now(), vec![report, request]).unwrap();
    }

    /// Takes what came over TCP; nothing means that the connection is closed.
    fn take_bytes(&mut self, bytes: &[u8]) {
        self.decoder.extend_from_slice(bytes);
        let (local_addr, peer_addr) = (self.listener.local_addr().unwrap(), self.stream.as_ref().unwrap().1);
        while let Some(packet) = self.decoder.next_packet() {
            self.receive(TransportProtocol::TCP, local_addr, peer_addr, &packet);
        }
        if bytes.is_empty() {
            self.stream = None;
        }
    }

    fn take_datagram(&mut self, bytes: &[u8], peer_addr: SocketAddr) {
        // RTP has version 2 and, unlike RTCP (RFC 5761, section 4), a payload type outside 64 to 95.
        let is_rtp = |bytes: &[u8]| bytes[0] >> 6 == 2 && !(64..96).contains(&(bytes[1] & 0x7f));
        if bytes.len() > 600 && is_rtp(bytes) {
            self.media_datagrams += 1;
            let each = self.shared.behavior.drop_each;
            if each > 0 && self.media_datagrams.is_multiple_of(each) {
                self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        let local_addr = self.socket.local_addr().unwrap();
        self.receive(TransportProtocol::UDP, local_addr, peer_addr, bytes);
    }

    fn receive(
        &mut self,
        transport_protocol: TransportProtocol,
        local_addr: SocketAddr,
        peer_addr: SocketAddr,
        bytes: &[u8],
    ) {
        let transport = TransportContext { local_addr, peer_addr, transport_protocol, ecn: None };
        let message = BytesMut::from(bytes);
        let _ = self.connection.handle_read(TaggedBytesMut { now: Instant::now(), transport, message });
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
