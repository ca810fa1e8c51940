//! [`Transport`] on the sans-I/O WebRTC crate `rtc`.
//!
//! Its chain of interceptors is ours where receiving depends on it (`repair.rs`, `tap.rs`) and the crate's for
//! receiver reports and transport-wide congestion control. Three of its limits are made up for here:
//! - It never leaves the pair that ICE selected first. Once it has selected, connectivity checks from any
//!   authenticated address are shown to it as coming from the selected one, and what it sends there goes to the
//!   address that the publisher uses: the one it nominated last, or the one from which its last media came.
//! - It reads candidates and everything else from the offer: see `sdp/reduce.rs` for what it gets to see.
//! - Its local candidate must match the address that a datagram is said to have come in on: `Route::local`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use parking_lot::Mutex;
use rtc::interceptor::{ReceiverReportBuilder, Registry, Slot, TwccReceiverBuilder};
use rtc::peer_connection::configuration::RTCConfigurationBuilder;
use rtc::peer_connection::configuration::media_engine::MediaEngine;
use rtc::peer_connection::configuration::setting_engine::SettingEngineBuilder;
use rtc::peer_connection::event::RTCPeerConnectionEvent;
use rtc::peer_connection::sdp::RTCSessionDescription;
use rtc::peer_connection::state::RTCPeerConnectionState;
use rtc::peer_connection::transport::{RTCDtlsRole, RTCDtlsTransportState, RTCIceCandidateInit};
use rtc::peer_connection::{RTCPeerConnection, RTCPeerConnectionBuilder};
use rtc::rtp_transceiver::rtp_sender::{
    RTCPFeedback, RTCRtpCodec, RTCRtpCodecParameters, RTCRtpHeaderExtensionCapability, RtpCodecKind,
};
use rtc::sansio::Protocol as _;
use rtc::shared::{TaggedBytesMut, TransportContext, TransportProtocol};
use rtc::statistics::StatsSelector;

use super::repair::{self, Repair};
use super::tap::{self, Tap};
use super::{Answer, Event, Figures, Protocol, Route, StackError, Transmit, Transport};
use crate::sdp::{self, Codec, Kind, Offer};
use crate::stun;

/// Repeats of a packet are told from new ones this far back: retransmissions may repeat the same packet up to
/// the hold later, and 400 ms at 20 Mbit/s are 830 packets. The stack's 64 are 240 ms at 2.5 Mbit/s.
const REPLAY_WINDOW_PACKETS: usize = 2048;
/// The stack's own idea of when a silent publisher is gone. The session's timer, which also sees media, decides;
/// these only have to be longer.
const ICE_DISCONNECTED: Duration = Duration::from_secs(15);
const ICE_FAILED: Duration = Duration::from_secs(30);
const ICE_KEEPALIVE: Duration = Duration::from_secs(2);

/// What all connections of a process share.
#[derive(Debug)]
pub struct Shared {
    /// Our candidates as they stand in an answer, without `a=`.
    pub candidates: Vec<String>,
    /// How long a missing packet is worth asking for.
    pub hold: Duration,
}

/// See the module.
pub struct Stack {
    connection: RTCPeerConnection,
    offer: Offer,
    shared: Arc<Shared>,
    now: Instant,
    /// What the stack believes to be the publisher's address, once it has selected a pair.
    selected: Option<Route>,
    /// Where the publisher really is.
    active: Option<Route>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
    is_connected: bool,
    is_closed: bool,
    tap: Arc<Mutex<tap::Shared>>,
    repair: Arc<Mutex<repair::Shared>>,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").field("is_connected", &self.is_connected).finish_non_exhaustive()
    }
}

impl Stack {
    /// Answers an offer.
    pub fn answer(now: Instant, offer: Offer, shared: Arc<Shared>) -> Result<(Self, Answer), StackError> {
        let extension = |uri: &str| {
            let found =
                offer.video.as_ref().and_then(|video| video.extensions.iter().find(|(_, u)| *u == uri));
            found.map(|(number, _)| *number)
        };
        let rid = extension(sdp::RID_URI);
        let apt: HashMap<u8, u8> = offer
            .sections()
            .flat_map(|section| &section.formats)
            .filter_map(|format| Some((format.rtx?, format.payload_type)))
            .collect();
        let (tap, repair) = (Arc::<Mutex<tap::Shared>>::default(), Arc::<Mutex<repair::Shared>>::default());
        let interceptors = Registry::new()
            .with(
                Slot::NackGenerator,
                Repair::new(apt, rid, extension(sdp::REPAIRED_RID_URI), shared.hold, Arc::clone(&repair)),
            )
            .with(Slot::TwccReceiver, TwccReceiverBuilder::new().build())
            .with(Slot::ReceiverReport, ReceiverReportBuilder::new().build())
            // Behind every other: nothing of a publisher's media goes further.
            .with(Slot::from(20_000), Tap::new(rid, Arc::clone(&tap)));

        let settings = SettingEngineBuilder::new()
            .with_answering_dtls_role(RTCDtlsRole::Server)
            .with_srtp_replay_protection_window(REPLAY_WINDOW_PACKETS)
            .with_ice_timeouts(Some(ICE_DISCONNECTED), Some(ICE_FAILED), Some(ICE_KEEPALIVE))
            .build();
        let connection = RTCPeerConnectionBuilder::new()
            .with_configuration(RTCConfigurationBuilder::new().build())
            .with_setting_engine(settings)
            .with_media_engine(media_engine(&offer).map_err(words)?)
            .with_interceptor_registry(interceptors)
            .build(now)
            .map_err(words)?;
        let mut stack = Self {
            connection,
            offer,
            shared,
            now,
            selected: None,
            active: None,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            is_connected: false,
            is_closed: false,
            tap,
            repair,
        };
        let offer = stack.offer.reduce(None);
        let answer = stack.negotiate(now, offer)?;
        Ok((stack, answer))
    }

    fn negotiate(&mut self, now: Instant, offer: String) -> Result<Answer, StackError> {
        let offer = RTCSessionDescription::offer(offer).map_err(words)?;
        self.connection.set_remote_description(now, offer).map_err(words)?;
        for candidate in &self.shared.candidates {
            let candidate = RTCIceCandidateInit { candidate: candidate.clone(), ..Default::default() };
            self.connection.add_local_candidate(candidate).map_err(words)?;
        }
        let answer = self.connection.create_answer(None).map_err(words)?;
        self.connection.set_local_description(now, answer).map_err(words)?;
        let answer = self.connection.local_description().ok_or_else(|| StackError("no answer".into()))?;
        let find = |prefix| {
            let found = sdp::attribute(&answer.sdp, prefix);
            found.map(str::to_owned).ok_or_else(|| StackError(format!("an answer without {prefix}")))
        };
        let (ufrag, password) = (find("a=ice-ufrag:")?, find("a=ice-pwd:")?);
        let sdp = sdp::finish_answer(&answer.sdp, &self.shared.candidates, &self.offer);
        Ok(Answer { sdp, ufrag, password })
    }

    fn notice_goodbye(&mut self) {
        let Some(id) = self.connection.get_receivers().next() else { return };
        let Some(receiver) = self.connection.rtp_receiver(id) else { return };
        let is_closed =
            receiver.transport().is_some_and(|dtls| dtls.state() == RTCDtlsTransportState::Closed);
        if is_closed && !self.is_closed {
            self.is_closed = true;
            self.events.push_back(Event::Closed);
        }
    }

    /// Drains the stack after a change; `source` is where the datagram came from that made it.
    fn drain(&mut self, source: Option<Route>) {
        while let Some(event) = self.connection.poll_event() {
            if let RTCPeerConnectionEvent::OnConnectionStateChangeEvent(state) = event {
                match state {
                    RTCPeerConnectionState::Connected if !self.is_connected => {
                        self.is_connected = true;
                        self.events.push_back(Event::Connected);
                    }
                    RTCPeerConnectionState::Closed | RTCPeerConnectionState::Failed if !self.is_closed => {
                        self.is_closed = true;
                        self.events.push_back(Event::Closed);
                    }
                    _ => {}
                }
            }
        }
        // Data channels aren't negotiated and media leaves by the tap.
        while self.connection.poll_read().is_some() {}
        while let Some(tagged) = self.connection.poll_write() {
            let protocol = match tagged.transport.transport_protocol {
                TransportProtocol::TCP => Protocol::Tcp,
                _ => Protocol::Udp,
            };
            let stated =
                Route { protocol, local: tagged.transport.local_addr, peer: tagged.transport.peer_addr };
            let is_check = stun::is_stun(&tagged.message);
            let is_response = is_check && tagged.message[0] == 1;
            if !is_check && self.selected.is_none() {
                // The first thing that isn't a check shows what the stack has selected.
                self.selected = Some(stated);
            }
            let route = match (source, self.selected, self.active) {
                // A check is answered to where it came from, whatever the stack was told.
                (Some(source), _, _) if is_response => source,
                (_, Some(selected), Some(active)) if selected == stated => active,
                _ => stated,
            };
            self.transmits.push_back(Transmit { route, bytes: tagged.message.freeze() });
        }
    }
}

impl Transport for Stack {
    fn handle_datagram(&mut self, now: Instant, route: Route, datagram: &[u8]) {
        self.now = now;
        let is_check = stun::is_stun(datagram);
        if is_check && stun::BindingRequest::parse(datagram).is_some_and(|request| request.is_nominating) {
            self.active = Some(route);
        }
        let shown = self.selected.filter(|_| is_check).unwrap_or(route);
        let had_media = self.tap.lock().events.len();
        let tagged = TaggedBytesMut {
            now,
            transport: TransportContext {
                local_addr: shown.local,
                peer_addr: shown.peer,
                transport_protocol: match shown.protocol {
                    Protocol::Udp => TransportProtocol::UDP,
                    Protocol::Tcp => TransportProtocol::TCP,
                },
                ecn: None,
            },
            message: BytesMut::from(datagram),
        };
        if let Err(error) = self.connection.handle_read(tagged) {
            tracing::debug!(%error, "datagram refused");
        }
        // RFC 7983: 20 to 63 is DTLS, which after the handshake means goodbye. The stack's connection state stays
        // `connected` then, as W3C defines it.
        if self.is_connected && datagram.first().is_some_and(|first| (20..64).contains(first)) {
            self.notice_goodbye();
        }
        // Only what decrypts may move the stream: an address once authenticated may have a new owner.
        if !is_check && self.tap.lock().events.len() > had_media {
            self.active = Some(route);
        }
        self.drain(Some(route));
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        if let Err(error) = self.connection.handle_timeout(now) {
            tracing::debug!(%error, "timeout refused");
        }
        self.drain(None);
    }

    fn poll_timeout(&mut self) -> Option<Instant> {
        self.connection.poll_timeout()
    }

    fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    fn poll_event(&mut self) -> Option<Event> {
        // State changes first: media of a connection follows its `Connected`, and `Closed` ends it.
        self.events.pop_front().or_else(|| self.tap.lock().events.pop_front())
    }

    fn request_keyframe(&mut self, ssrc: u32) {
        self.tap.lock().keyframes_wanted.push((self.now, ssrc));
        self.drain(None);
    }

    fn add_candidate(&mut self, candidate: &str) -> Result<(), StackError> {
        let candidate = RTCIceCandidateInit { candidate: candidate.to_owned(), ..Default::default() };
        self.connection.add_remote_candidate(candidate).map_err(words)?;
        self.drain(None);
        Ok(())
    }

    fn restart(&mut self, now: Instant, offer: &str) -> Result<Answer, StackError> {
        self.now = now;
        let answer = match self.negotiate(now, offer.to_owned()) {
            Ok(answer) => answer,
            Err(error) => {
                // The stack changes its ICE session last; what it has noted of the offer until then must not stay.
                let rollback = RTCSessionDescription::rollback(None).map_err(words)?;
                if let Err(error) = self.connection.set_remote_description(now, rollback) {
                    tracing::debug!(%error, "nothing to roll back");
                }
                return Err(error);
            }
        };
        // The stack selects anew; until then it is told where checks really come from.
        self.selected = None;
        self.drain(None);
        Ok(answer)
    }

    fn figures(&mut self, now: Instant) -> Figures {
        let mut figures = self.repair.lock().figures;
        // Repairs measure the round trip that matters; without loss there are only connectivity checks.
        if figures.round_trip.is_none() {
            let report = self.connection.get_stats(now, StatsSelector::None);
            let pair = report.candidate_pairs().find(|pair| pair.nominated);
            let seconds = pair.map_or(0.0, |pair| pair.current_round_trip_time);
            figures.round_trip = (seconds > 0.0).then(|| Duration::from_secs_f64(seconds.min(60.0)));
        }
        figures
    }

    fn close(&mut self, now: Instant) {
        self.now = now;
        if let Err(error) = self.connection.close() {
            tracing::debug!(%error, "close refused");
        }
        self.drain(None);
    }
}

fn words(error: rtc::shared::error::Error) -> StackError {
    StackError(error.to_string())
}

/// The codecs of the offer, as offered: what is to be answered was decided in `sdp/codecs.rs`.
fn media_engine(offer: &Offer) -> rtc::shared::error::Result<MediaEngine> {
    let mut engine = MediaEngine::default();
    let feedback = |typ: &str, parameter: &str| RTCPFeedback { typ: typ.into(), parameter: parameter.into() };
    for section in offer.sections() {
        let kind = if section.kind == Kind::Audio { RtpCodecKind::Audio } else { RtpCodecKind::Video };
        for format in &section.formats {
            let is_audio = format.codec == Codec::Opus;
            let (clock_rate, channels) = if is_audio { (48_000, 2) } else { (90_000, 0) };
            let rtcp_feedback = if is_audio {
                vec![feedback("transport-cc", "")]
            } else {
                vec![feedback("nack", ""), feedback("nack", "pli"), feedback("transport-cc", "")]
            };
            let codec = |mime_type: &str, sdp_fmtp_line: String| RTCRtpCodec {
                mime_type: mime_type.to_owned(),
                clock_rate,
                channels,
                sdp_fmtp_line,
                rtcp_feedback: rtcp_feedback.clone(),
            };
            let rtp_codec = codec(format.mime, format.fmtp.clone());
            let payload_type = format.payload_type;
            engine.register_codec(RTCRtpCodecParameters { rtp_codec, payload_type }, kind)?;
            if let Some(rtx) = format.rtx {
                let mut rtp_codec = codec("video/rtx", format!("apt={}", format.payload_type));
                rtp_codec.rtcp_feedback.clear();
                engine.register_codec(RTCRtpCodecParameters { rtp_codec, payload_type: rtx }, kind)?;
            }
        }
        for (_, uri) in &section.extensions {
            let capability = RTCRtpHeaderExtensionCapability { uri: (*uri).to_owned() };
            engine.register_header_extension(capability, kind, None)?;
        }
    }
    Ok(engine)
}

/// A host candidate line, without `a=`. Earlier ones are preferred.
pub fn candidate_line(index: usize, protocol: Protocol, address: std::net::SocketAddr) -> String {
    let (name, kind_preference, tail) = match protocol {
        Protocol::Udp => ("udp", 126u32, ""),
        // RFC 6544, 4.2: UDP is preferred where both work.
        Protocol::Tcp => ("tcp", 90, " tcptype passive"),
    };
    let priority = (kind_preference << 24) | ((65_535 - index.min(65_535) as u32) << 8) | 255;
    format!("candidate:{} 1 {name} {priority} {} {} typ host{tail}", index + 1, address.ip(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFER: &str = include_str!("../../tests/support/chromium-offer.sdp");

    #[test]
    fn a_restart_that_the_stack_refuses_leaves_it_as_it_was() {
        let offer = Offer::parse(OFFER).unwrap();
        let shared = Shared {
            candidates: vec![candidate_line(0, Protocol::Udp, ([127, 0, 0, 1], 9).into())],
            hold: Duration::from_millis(400),
        };
        let now = Instant::now();
        let (mut stack, _) = Stack::answer(now, offer.clone(), Arc::new(shared)).unwrap();
        let before = stack.connection.local_description().unwrap().sdp.clone();
        let good = offer.reduce(Some(("ysXw", "vw5LmwG4y/e6dPP/zAP9Gp5k")));
        for bad in ["nonsense".to_owned(), good.replace("a=mid:1", "a=mud:1")] {
            assert!(stack.restart(now, &bad).is_err());
            assert!(stack.connection.pending_remote_description().is_none());
            assert_eq!(stack.connection.local_description().unwrap().sdp, before);
        }
        let answer = stack.restart(now, &good).unwrap();
        assert!(!before.contains(&answer.ufrag));
    }
}
