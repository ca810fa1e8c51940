//! A publisher without I/O for tests: the same WebRTC crate in its sending role, with pictures and sounds whose
//! bytes say what they are, so that every frame that comes out can be checked against what went in.

#![allow(dead_code, unused_imports, unreachable_pub, clippy::unwrap_used)] // each test binary uses a part

pub mod camera;
mod listener;
pub mod live;
mod log;
mod made;
pub mod net;
pub mod recorder;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use rtc::interceptor::{NackResponderBuilder, Registry, Slot};
use rtc::media_stream::MediaStreamTrack;
use rtc::peer_connection::configuration::media_engine::MediaEngine;
use rtc::peer_connection::event::RTCPeerConnectionEvent;
use rtc::peer_connection::sdp::RTCSessionDescription;
use rtc::peer_connection::state::RTCPeerConnectionState;
use rtc::peer_connection::transport::RTCIceCandidateInit;
use rtc::peer_connection::{RTCPeerConnection, RTCPeerConnectionBuilder};
use rtc::rtcp::sender_report::SenderReport;
use rtc::rtp::header::Header;
use rtc::rtp_transceiver::rtp_sender::{
    RTCPFeedback, RTCRtpCodec, RTCRtpCodecParameters, RTCRtpCodingParameters, RTCRtpEncodingParameters,
    RTCRtpRtxParameters, RtpCodecKind,
};
use rtc::rtp_transceiver::{RTCRtpSenderId, RTCRtpTransceiverDirection, RTCRtpTransceiverInit};
use rtc::sansio::Protocol as _;
use rtc::shared::{TaggedBytesMut, TransportContext, TransportProtocol};

pub use listener::Asked;
use listener::Listener;
pub use log::LogBuffer;
pub use made::{PPS, SPS_360, SPS_720, Style, fragment, picture, picture_number, slices, sound};

pub const FRAME_INTERVAL: Duration = Duration::from_nanos(33_333_333);
pub const SOUND_INTERVAL: Duration = Duration::from_millis(20);

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

impl Sending {
    /// Adds a track that only sends; its retransmissions have a stream of their own if there is a second number.
    fn add(
        connection: &mut RTCPeerConnection,
        (kind, name, codec): (RtpCodecKind, &str, RTCRtpCodec),
        (ssrc, rtx): (u32, Option<u32>),
        payload_type: u8,
    ) -> Self {
        let encoding = RTCRtpEncodingParameters {
            rtp_coding_parameters: RTCRtpCodingParameters {
                ssrc: Some(ssrc),
                rtx: rtx.map(|ssrc| RTCRtpRtxParameters { ssrc }),
                ..Default::default()
            },
            active: true,
            codec,
            ..Default::default()
        };
        let track = MediaStreamTrack::new("s".into(), name.into(), name.into(), kind, vec![encoding.clone()]);
        let init = RTCRtpTransceiverInit {
            direction: RTCRtpTransceiverDirection::Sendonly,
            streams: vec!["s".into()],
            send_encodings: vec![encoding],
        };
        let transceiver = connection.add_transceiver_from_track(track, Some(init)).unwrap();
        let id = connection.rtp_transceiver(transceiver).unwrap().sender().unwrap();
        // Close to the wrap, which every test so passes.
        let first_timestamp = u32::MAX - 90_000 * 2;
        Self { id, ssrc, payload_type, sequence: 65_500, first_timestamp, last_timestamp: 0, packets: 0 }
    }
}

/// Video, its retransmissions, audio.
fn codecs() -> [RTCRtpCodec; 3] {
    const H264: &str = "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=64001f";
    let feedback = |typ: &str, parameter: &str| RTCPFeedback { typ: typ.into(), parameter: parameter.into() };
    let codec = |mime: &str, clock_rate, channels, fmtp: &str, rtcp_feedback| RTCRtpCodec {
        mime_type: mime.into(),
        clock_rate,
        channels,
        sdp_fmtp_line: fmtp.into(),
        rtcp_feedback,
    };
    [
        codec("video/H264", 90_000, 0, H264, vec![feedback("nack", ""), feedback("nack", "pli")]),
        codec("video/rtx", 90_000, 0, "apt=102", vec![]),
        codec("audio/opus", 48_000, 2, "minptime=10;stereo=1;sprop-stereo=1", vec![]),
    ]
}

impl Publisher {
    pub fn new(now: Instant, local: SocketAddr) -> Self {
        let [video, rtx, audio] = codecs();
        let mut engine = MediaEngine::default();
        for (rtp_codec, payload_type, kind) in [
            (video.clone(), 102, RtpCodecKind::Video),
            (rtx, 103, RtpCodecKind::Video),
            (audio.clone(), 111, RtpCodecKind::Audio),
        ] {
            engine.register_codec(RTCRtpCodecParameters { rtp_codec, payload_type }, kind).unwrap();
        }
        let listener = Listener::default();
        let rtcp = Arc::clone(&listener.asked);
        let registry = Registry::new()
            .with(Slot::NackResponder, NackResponderBuilder::new().with_size(1024).build())
            .with(Slot::from(14_000), listener);
        let mut connection = RTCPeerConnectionBuilder::new()
            .with_media_engine(engine)
            .with_interceptor_registry(registry)
            .build(now)
            .unwrap();
        let (a, v) = (RtpCodecKind::Audio, RtpCodecKind::Video);
        let audio = Sending::add(&mut connection, (a, "a", audio), (1111, None), 111);
        let video = Sending::add(&mut connection, (v, "v", video), (2222, Some(3333)), 102);
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
