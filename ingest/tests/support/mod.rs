//! A publisher without I/O for tests: the same WebRTC crate in its sending role, with pictures and sounds whose
//! bytes say what they are, so that every frame that comes out can be checked against what went in.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // each test binary uses a part

pub mod camera;
pub mod live;
pub mod net;
pub mod recorder;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use rtc::interceptor::{Interceptor, NackResponderBuilder, Packet, Registry, Slot, StreamInfo, TaggedPacket};
use rtc::media_stream::MediaStreamTrack;
use rtc::peer_connection::configuration::media_engine::MediaEngine;
use rtc::peer_connection::event::RTCPeerConnectionEvent;
use rtc::peer_connection::sdp::RTCSessionDescription;
use rtc::peer_connection::state::RTCPeerConnectionState;
use rtc::peer_connection::transport::RTCIceCandidateInit;
use rtc::peer_connection::{RTCPeerConnection, RTCPeerConnectionBuilder};
use rtc::rtcp::payload_feedbacks::picture_loss_indication::PictureLossIndication;
use rtc::rtcp::sender_report::SenderReport;
use rtc::rtcp::transport_feedbacks::transport_layer_nack::TransportLayerNack;
use rtc::rtp::header::Header;
use rtc::rtp_transceiver::rtp_sender::{
    RTCPFeedback, RTCRtpCodec, RTCRtpCodecParameters, RTCRtpCodingParameters, RTCRtpEncodingParameters,
    RTCRtpRtxParameters, RtpCodecKind,
};
use rtc::rtp_transceiver::{RTCRtpSenderId, RTCRtpTransceiverDirection, RTCRtpTransceiverInit};
use rtc::sansio::Protocol as _;
use rtc::shared::error::Error as RtcError;
use rtc::shared::{TaggedBytesMut, TransportContext, TransportProtocol};

/// x264's parameter sets for 1280x720 and 640x360, high profile.
pub const SPS_720: &str = "6764001facd9405005bb011000000300100000030320f1831960";
pub const SPS_360: &str = "6764001eacd940a02ff970110000030001000003003c0f162d96";
pub const PPS: &str = "68ebe3cb22c0";

pub const FRAME_INTERVAL: Duration = Duration::from_nanos(33_333_333);
pub const SOUND_INTERVAL: Duration = Duration::from_millis(20);
const PAYLOAD_MAX: usize = 1100;

/// What the server asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    pub keyframes: u64,
    pub retransmissions: u64,
}

/// Media that was encoded beforehand, sent in a loop.
pub struct Reel {
    /// The NAL units of each picture; the first is a keyframe.
    pub pictures: Vec<Vec<Vec<u8>>>,
    pub sounds: Vec<Bytes>,
}

/// Where pictures and sounds come from.
pub enum Media {
    /// Bytes that follow from their numbers.
    Made,
    /// Real pictures, keyframes when asked for; sounds as above.
    Camera(camera::Camera),
    /// Real both.
    Reel(Reel),
}

/// How pictures are put into packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Parameter sets in a STAP-A, as libwebrtc does.
    Browser,
    /// Parameter sets in packets of their own, four slices.
    Obs,
}

/// See the module.
pub struct Publisher {
    connection: RTCPeerConnection,
    video: Sending,
    audio: Sending,
    rtcp: Arc<Mutex<Asked>>,
    pub local: SocketAddr,
    protocol: TransportProtocol,
    pub style: Style,
    pub sps: &'static str,
    pub media: Media,
    pub is_connected: bool,
    /// The publisher's clock runs fast by this many parts per million.
    pub drift_ppm: i64,
    /// Its sound card's clock runs fast by this many parts per million, where it has one of its own: then packets come
    /// faster, and their timestamps count samples.
    pub audio_ppm: Option<i64>,
    /// Bytes of a picture that isn't a keyframe.
    pub picture_bytes: usize,
    pub wants_keyframe: bool,
    start: Instant,
    sent_at: Option<Instant>,
    pub pictures: u32,
    pub sounds: u32,
    answered_keyframes: u64,
}

struct Sending {
    id: RTCRtpSenderId,
    ssrc: u32,
    payload_type: u8,
    sequence: u16,
    first_timestamp: u32,
    last_timestamp: u32,
    packets: u32,
}

impl Publisher {
    pub fn new(now: Instant, local: SocketAddr) -> Self {
        let feedback =
            |typ: &str, parameter: &str| RTCPFeedback { typ: typ.into(), parameter: parameter.into() };
        let codec = |mime: &str, clock_rate, channels, fmtp: &str, rtcp_feedback| RTCRtpCodec {
            mime_type: mime.into(),
            clock_rate,
            channels,
            sdp_fmtp_line: fmtp.into(),
            rtcp_feedback,
        };
        const H264: &str = "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=64001f";
        let video = codec("video/H264", 90_000, 0, H264, vec![feedback("nack", ""), feedback("nack", "pli")]);
        let rtx = codec("video/rtx", 90_000, 0, "apt=102", vec![]);
        let audio = codec("audio/opus", 48_000, 2, "minptime=10;stereo=1;sprop-stereo=1", vec![]);
        let mut engine = MediaEngine::default();
        for (rtp_codec, payload_type, kind) in [
            (video.clone(), 102, RtpCodecKind::Video),
            (rtx, 103, RtpCodecKind::Video),
            (audio.clone(), 111, RtpCodecKind::Audio),
        ] {
            engine.register_codec(RTCRtpCodecParameters { rtp_codec, payload_type }, kind).unwrap();
        }
        let rtcp = Arc::<Mutex<Asked>>::default();
        let registry = Registry::new()
            .with(Slot::NackResponder, NackResponderBuilder::new().with_size(1024).build())
            .with(
                Slot::from(14_000),
                Listener { asked: Arc::clone(&rtcp), reads: VecDeque::new(), writes: VecDeque::new() },
            );
        let mut connection = RTCPeerConnectionBuilder::new()
            .with_media_engine(engine)
            .with_interceptor_registry(registry)
            .build(now)
            .unwrap();
        let mut add = |kind, name: &str, rtp_codec, ssrc: u32, rtx: Option<u32>, payload_type| {
            let encoding = RTCRtpEncodingParameters {
                rtp_coding_parameters: RTCRtpCodingParameters {
                    ssrc: Some(ssrc),
                    rtx: rtx.map(|ssrc| RTCRtpRtxParameters { ssrc }),
                    ..Default::default()
                },
                active: true,
                codec: rtp_codec,
                ..Default::default()
            };
            let track =
                MediaStreamTrack::new("s".into(), name.into(), name.into(), kind, vec![encoding.clone()]);
            let init = RTCRtpTransceiverInit {
                direction: RTCRtpTransceiverDirection::Sendonly,
                streams: vec!["s".into()],
                send_encodings: vec![encoding],
            };
            let transceiver = connection.add_transceiver_from_track(track, Some(init)).unwrap();
            let id = connection.rtp_transceiver(transceiver).unwrap().sender().unwrap();
            // Close to the wrap, which every test so passes.
            let first_timestamp = u32::MAX - 90_000 * 2;
            let sequence = 65_500;
            Sending { id, ssrc, payload_type, sequence, first_timestamp, last_timestamp: 0, packets: 0 }
        };
        let audio = add(RtpCodecKind::Audio, "a", audio, 1111, None, 111);
        let video = add(RtpCodecKind::Video, "v", video, 2222, Some(3333), 102);
        Self {
            connection,
            video,
            audio,
            rtcp,
            local,
            protocol: TransportProtocol::UDP,
            style: Style::Browser,
            sps: SPS_720,
            media: Media::Made,
            is_connected: false,
            drift_ppm: 0,
            audio_ppm: None,
            picture_bytes: 4000,
            wants_keyframe: true,
            start: now,
            sent_at: None,
            pictures: 0,
            sounds: 0,
            answered_keyframes: 0,
        }
    }

    /// A publisher whose only way is a TCP connection that it opens.
    pub fn over_tcp(now: Instant, local: SocketAddr) -> Self {
        Self { protocol: TransportProtocol::TCP, ..Self::new(now, local) }
    }

    pub fn offer(&mut self, now: Instant) -> String {
        let candidate = match self.protocol {
            TransportProtocol::TCP => {
                format!(
                    "candidate:1 1 tcp 1518280447 {} {} typ host tcptype active",
                    self.local.ip(),
                    self.local.port()
                )
            }
            _ => format!("candidate:1 1 udp 2130706431 {} {} typ host", self.local.ip(), self.local.port()),
        };
        self.connection.add_local_candidate(RTCIceCandidateInit { candidate, ..Default::default() }).unwrap();
        let offer = self.connection.create_offer(None).unwrap();
        self.connection.set_local_description(now, offer).unwrap();
        self.connection.local_description().unwrap().sdp
    }

    /// The offer that was answered last.
    pub fn sent_offer(&self) -> String {
        self.connection.local_description().unwrap().sdp
    }

    /// An offer that restarts ICE.
    pub fn restart_offer(&mut self, now: Instant) -> String {
        self.connection.restart_ice();
        self.offer(now)
    }

    pub fn accept(&mut self, now: Instant, answer: String) {
        let answer = RTCSessionDescription::answer(answer).unwrap();
        self.connection.set_remote_description(now, answer).unwrap();
    }

    /// Applies the fragment that answered a restart: the previous answer with the new ICE parameters.
    pub fn accept_restart(&mut self, now: Instant, fragment: &str) {
        let old = self.connection.current_remote_description().unwrap().sdp.clone();
        let new = |prefix: &str| fragment.lines().find(|line| line.starts_with(prefix)).unwrap();
        let lines = old.lines().map(|line| match line {
            _ if line.starts_with("a=ice-ufrag:") => new("a=ice-ufrag:"),
            _ if line.starts_with("a=ice-pwd:") => new("a=ice-pwd:"),
            _ => line,
        });
        let answer = lines.flat_map(|line| [line, "\r\n"]).collect();
        self.accept(now, answer);
    }

    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        let tagged = TaggedBytesMut {
            now,
            transport: TransportContext {
                local_addr: self.local,
                peer_addr: from,
                transport_protocol: self.protocol,
                ecn: None,
            },
            message: BytesMut::from(bytes),
        };
        self.connection.handle_read(tagged).unwrap();
        self.poll();
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        self.connection.handle_timeout(now).unwrap();
        self.poll();
    }

    pub fn poll_timeout(&mut self) -> Option<Instant> {
        self.connection.poll_timeout()
    }

    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Bytes)> {
        self.connection.poll_write().map(|out| (out.transport.peer_addr, out.message.freeze()))
    }

    pub fn asked(&self) -> Asked {
        *self.rtcp.lock()
    }

    pub fn close(&mut self) {
        self.connection.close().unwrap();
    }

    fn poll(&mut self) {
        while let Some(event) = self.connection.poll_event() {
            if let RTCPeerConnectionEvent::OnConnectionStateChangeEvent(state) = event {
                self.is_connected = state == RTCPeerConnectionState::Connected;
            }
        }
        while self.connection.poll_read().is_some() {}
        let keyframes = self.rtcp.lock().keyframes;
        if keyframes > self.answered_keyframes {
            self.answered_keyframes = keyframes;
            self.wants_keyframe = true;
        }
    }

    /// The publisher's time since it began to send, as its own clock has it.
    fn media_time(&mut self, now: Instant) -> Duration {
        let begun = *self.sent_at.get_or_insert(now);
        let elapsed = (now - begun).as_nanos() as i128;
        Duration::from_nanos((elapsed + elapsed * i128::from(self.drift_ppm) / 1_000_000) as u64)
    }

    /// Sends the next picture.
    pub fn send_picture(&mut self, now: Instant) {
        let elapsed = self.media_time(now);
        let timestamp = self.video.first_timestamp.wrapping_add((elapsed.as_nanos() * 9 / 100_000) as u32);
        let is_keyframe = std::mem::take(&mut self.wants_keyframe);
        let number = self.pictures;
        self.pictures += 1;
        let bytes = if is_keyframe { self.picture_bytes * 4 } else { self.picture_bytes };
        let real = match &mut self.media {
            Media::Made => None,
            Media::Camera(camera) => Some(camera.picture(number, is_keyframe)),
            Media::Reel(reel) => Some(reel.pictures[number as usize % reel.pictures.len()].clone()),
        };
        let mut payloads: Vec<Bytes> = Vec::new();
        if let Some(nals) = real {
            // As libwebrtc does: parameter sets in one packet, then what is too large for one in several.
            let (sets, slices): (Vec<_>, Vec<_>) =
                nals.into_iter().partition(|nal| matches!(nal[0] & 31, 7 | 8));
            if !sets.is_empty() {
                let mut stap = vec![0x78];
                for nal in sets {
                    stap.extend((nal.len() as u16).to_be_bytes());
                    stap.extend(nal);
                }
                payloads.push(stap.into());
            }
            for nal in slices {
                fragment(&nal, &mut payloads);
            }
            let count = payloads.len();
            for (index, payload) in payloads.into_iter().enumerate() {
                self.send(now, true, timestamp, index + 1 == count, payload);
            }
            return;
        }
        if is_keyframe {
            let (sps, pps) = (hex::decode(self.sps).unwrap(), hex::decode(PPS).unwrap());
            match self.style {
                Style::Browser => {
                    let mut stap = vec![0x78];
                    for nal in [sps, pps] {
                        stap.extend((nal.len() as u16).to_be_bytes());
                        stap.extend(nal);
                    }
                    payloads.push(stap.into());
                }
                Style::Obs => payloads.extend([sps.into(), pps.into()]),
            }
        }
        for nal in slices(number, is_keyframe, bytes, self.style) {
            fragment(&nal, &mut payloads);
        }
        let count = payloads.len();
        for (index, payload) in payloads.into_iter().enumerate() {
            self.send(now, true, timestamp, index + 1 == count, payload);
        }
    }

    /// Sends the next 20 ms of sound.
    pub fn send_sound(&mut self, now: Instant) {
        let elapsed = self.media_time(now);
        let ticks = match self.audio_ppm {
            Some(_) => self.sounds.wrapping_mul(960),
            None => (elapsed.as_nanos() * 48 / 1_000_000) as u32,
        };
        let timestamp = self.audio.first_timestamp.wrapping_add(ticks);
        let payload = match &self.media {
            Media::Reel(reel) => reel.sounds[self.sounds as usize % reel.sounds.len()].clone(),
            Media::Made | Media::Camera(_) => sound(self.sounds),
        };
        self.sounds += 1;
        self.send(now, false, timestamp, false, payload);
    }

    /// Sends an empty packet, as browsers do when they share a screen.
    pub fn send_empty_packet(&mut self, now: Instant) {
        let timestamp = self.video.last_timestamp;
        self.send(now, true, timestamp, false, Bytes::new());
    }

    /// Sends sender reports for both tracks.
    pub fn send_reports(&mut self, now: Instant) {
        let elapsed = self.media_time(now);
        // Any epoch will do: the publisher's wall clock says 1,000,000 s when it begins.
        let ntp_ns = 1_000_000_000_000_000 + elapsed.as_nanos();
        let ntp_time = ((ntp_ns / 1_000_000_000) << 32) as u64
            | (((ntp_ns % 1_000_000_000) << 32) / 1_000_000_000) as u64;
        for is_video in [true, false] {
            let sending = if is_video { &self.video } else { &self.audio };
            let rate = if is_video { 90_000u128 } else { 48_000 };
            // A sound card's samples are counted against true time, not against the computer's clock.
            let elapsed = match self.audio_ppm.filter(|_| !is_video) {
                Some(ppm) => {
                    let true_ns = self.sent_at.map_or(0, |begun| (now - begun).as_nanos() as i128);
                    Duration::from_nanos((true_ns + true_ns * i128::from(ppm) / 1_000_000) as u64)
                }
                None => elapsed,
            };
            let report = SenderReport {
                ssrc: sending.ssrc,
                ntp_time,
                rtp_time: sending
                    .first_timestamp
                    .wrapping_add((elapsed.as_nanos() * rate / 1_000_000_000) as u32),
                packet_count: sending.packets,
                ..Default::default()
            };
            let id = sending.id;
            self.connection.rtp_sender(id).unwrap().write_rtcp(now, vec![Box::new(report)]).unwrap();
        }
    }

    fn send(&mut self, now: Instant, is_video: bool, timestamp: u32, marker: bool, payload: Bytes) {
        let sending = if is_video { &mut self.video } else { &mut self.audio };
        let header = Header {
            version: 2,
            marker,
            payload_type: sending.payload_type,
            sequence_number: sending.sequence,
            timestamp,
            ssrc: sending.ssrc,
            ..Default::default()
        };
        sending.sequence = sending.sequence.wrapping_add(1);
        sending.last_timestamp = timestamp;
        sending.packets += 1;
        let id = sending.id;
        let packet = rtc::rtp::Packet { header, payload };
        self.connection.rtp_sender(id).unwrap().write_rtp(now, packet).unwrap();
    }
}

/// The NAL units of a picture: real slice headers, then its number, then bytes that follow from it.
pub fn slices(number: u32, is_keyframe: bool, bytes: usize, style: Style) -> Vec<Vec<u8>> {
    let count = if style == Style::Obs { 4 } else { 1 };
    (0..count)
        .map(|index| {
            // first_mb_in_slice 0 for the first, 1 for the others; slice_type I or P; picture parameter set 0
            let mut nal = match (is_keyframe, index) {
                (true, 0) => vec![0x65, 0x88, 0x80],
                (true, _) => vec![0x65, 0x42, 0x20],
                (false, 0) => vec![0x41, 0x9a, 0x80],
                (false, _) => vec![0x41, 0x46, 0xa0],
            };
            nal.extend(number.to_be_bytes());
            nal.push(index as u8);
            let mut state = number.wrapping_mul(2_654_435_761).wrapping_add(index);
            while nal.len() < bytes / count as usize {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                nal.push((state >> 24) as u8);
            }
            nal
        })
        .collect()
}

/// A picture as it should come out.
pub fn picture(number: u32, is_keyframe: bool, bytes: usize, style: Style) -> Bytes {
    let bytes = if is_keyframe { bytes * 4 } else { bytes };
    let mut out = Vec::new();
    for nal in slices(number, is_keyframe, bytes, style) {
        out.extend((nal.len() as u32).to_be_bytes());
        out.extend(nal);
    }
    out.into()
}

/// The number of a picture that came out.
pub fn picture_number(data: &[u8]) -> u32 {
    u32::from_be_bytes(data[7..11].try_into().unwrap())
}

/// A stereo CELT packet of 20 ms with its number.
pub fn sound(number: u32) -> Bytes {
    let mut packet = vec![0xfc];
    packet.extend(number.to_be_bytes());
    packet.resize(80, 0);
    packet.into()
}

fn fragment(nal: &[u8], payloads: &mut Vec<Bytes>) {
    if nal.len() <= PAYLOAD_MAX {
        payloads.push(Bytes::copy_from_slice(nal));
        return;
    }
    let chunks: Vec<&[u8]> = nal[1..].chunks(PAYLOAD_MAX).collect();
    for (index, chunk) in chunks.iter().enumerate() {
        let start = if index == 0 { 0x80 } else { 0 };
        let end = if index + 1 == chunks.len() { 0x40 } else { 0 };
        let mut payload = vec![nal[0] & 0xe0 | 28, start | end | nal[0] & 0x1f];
        payload.extend_from_slice(chunk);
        payloads.push(payload.into());
    }
}

/// Counts what the server asks for.
struct Listener {
    asked: Arc<Mutex<Asked>>,
    reads: VecDeque<TaggedPacket>,
    writes: VecDeque<TaggedPacket>,
}

impl rtc::sansio::Protocol<TaggedPacket, TaggedPacket, ()> for Listener {
    type Rout = TaggedPacket;
    type Wout = TaggedPacket;
    type Eout = ();
    type Error = RtcError;
    type Time = Instant;

    fn handle_read(&mut self, message: TaggedPacket) -> Result<(), RtcError> {
        if let Packet::Rtcp(packets) = &message.message.packet {
            let mut asked = self.asked.lock();
            for packet in packets {
                if packet.as_any().is::<PictureLossIndication>() {
                    asked.keyframes += 1;
                }
                if let Some(nack) = packet.as_any().downcast_ref::<TransportLayerNack>() {
                    asked.retransmissions += nack
                        .nacks
                        .iter()
                        .map(|pair| 1 + u64::from(pair.lost_packets.count_ones()))
                        .sum::<u64>();
                }
            }
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

impl Interceptor for Listener {
    fn bind_local_stream(&mut self, _: &StreamInfo) {}
    fn unbind_local_stream(&mut self, _: &StreamInfo) {}
    fn bind_remote_stream(&mut self, _: &StreamInfo) {}
    fn unbind_remote_stream(&mut self, _: &StreamInfo) {}
}

/// Where a test's log goes.
#[derive(Clone, Default)]
pub struct LogBuffer(Arc<Mutex<Vec<u8>>>);

impl LogBuffer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }
}

impl std::io::Write for LogBuffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl tracing_subscriber::fmt::MakeWriter<'_> for LogBuffer {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
