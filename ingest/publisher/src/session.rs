//! One publisher's life: offer, media path, then frames from a feed as paced RTP with sender reports, until told
//! to stop.
//!
//! `peer.rs` below knows the WebRTC engine and the sockets; `publisher.rs` above knows sources and options.

use crate::{
    error::Error,
    feed::Feed,
    frame::{Frame, Track},
    options::{Options, Transport},
    peer::{Event, Peer},
    progress::{Progress, State},
    whip,
};
use bytes::Bytes;
use rtc::rtcp::{
    goodbye::Goodbye,
    payload_feedbacks::{
        full_intra_request::FullIntraRequest, picture_loss_indication::PictureLossIndication,
    },
    receiver_report::ReceiverReport,
    reception_report::ReceptionReport,
    sender_report::SenderReport,
    transport_feedbacks::transport_layer_nack::TransportLayerNack,
};
use std::{
    collections::VecDeque,
    pin::pin,
    time::{Duration, Instant},
};
use tokio::{
    sync::watch,
    time::{sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

/// Without a media path after this time UDP is blocked: on working networks it takes two round trips.
const PATH_TIMEOUT: Duration = Duration::from_secs(8);
/// TCP is tried when UDP has had this long: it is a way out, not an equal.
const TCP_DELAY: Duration = Duration::from_secs(2);
/// DTLS needs a few more round trips, and repeats lost flights after 1, 2 and 4 s.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(16);
/// A stop waits this long for the answer to an offer that is under way.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Sender reports and progress, once a second each.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Video leaves in bursts of at most this many packets, one each [`PACE_INTERVAL`]: 46 Mbit/s. A keyframe then takes
/// some milliseconds instead of overflowing the first small buffer on its way.
const PACE_BURST: usize = 10;
const PACE_INTERVAL: Duration = Duration::from_millis(2);
/// Stop taking frames when so many packets wait: the feed then drops whole frames, and continues at a keyframe.
const PACE_QUEUE_MAX: usize = 2000;
/// Keyframe requests within this time are one request: the receiver repeats them until the keyframe arrives.
const KEYFRAME_REQUEST_INTERVAL: Duration = Duration::from_millis(200);

/// What a session needs to know of what it is going to send.
#[derive(Clone, Debug)]
pub(crate) struct Offered {
    pub(crate) tracks: Vec<Track>,
    pub(crate) codec: crate::VideoCodec,
    pub(crate) profile_level_id: String,
}

/// A connected session.
#[derive(Debug)]
pub(crate) struct Session {
    peer: Peer,
    whip: whip::Session,
}

/// Offers, and waits until media can flow. `None`: stopped while connecting.
pub(crate) async fn connect(
    options: &Options,
    number: u32,
    offered: &Offered,
    stop: &CancellationToken,
) -> Result<Option<Session>, Error> {
    let endpoint = whip::Endpoint::new(options, number)?;
    let transport = options.transport;
    let url = endpoint.url();
    let unreachable = |reason: String| Error::Unreachable { url: url.to_string(), reason };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_or_known_default().unwrap_or(80);
    let addresses: Vec<_> = tokio::net::lookup_host((host, port))
        .await
        .map_err(|error| unreachable(format!("its name can't be resolved: {error}")))?
        .collect();
    let mut peer =
        Peer::new(&addresses, transport, offered.codec, &offered.profile_level_id, &offered.tracks).await?;
    let sdp = peer.offer()?;
    let mut posted = pin!(endpoint.offer(sdp));
    let accepted = tokio::select! {
        accepted = &mut posted => accepted?,
        () = stop.cancelled() => {
            // The server may be making a session right now: wait a little, to be able to delete it.
            if let Ok(Ok(accepted)) = timeout(STOP_GRACE, posted).await {
                accepted.session.delete().await;
            }
            return Ok(None);
        }
    };
    // From here on the server holds a session that has to be deleted whatever happens.
    let whip = accepted.session;
    let result = match peer.accept(accepted.answer) {
        Ok(()) => tokio::select! {
            () = stop.cancelled() => Ok(false),
            result = wait_for_path(&mut peer, transport) => result.map(|()| true),
        },
        Err(error) => Err(error),
    };
    match result {
        Ok(true) => Ok(Some(Session { peer, whip })),
        Ok(false) => {
            Session { peer, whip }.end().await;
            Ok(None)
        }
        Err(error) => {
            Session { peer, whip }.end().await;
            Err(error)
        }
    }
}

async fn wait_for_path(peer: &mut Peer, transport: Transport) -> Result<(), Error> {
    let start = Instant::now();
    let mut is_path_found = false;
    let mut dial_at = match transport {
        Transport::Auto => Some(start + TCP_DELAY),
        Transport::Tcp => Some(start),
        Transport::Udp => None,
    };
    loop {
        peer.flush().await;
        while let Some(event) = peer.poll_event() {
            match event {
                Event::Connected => return Ok(()),
                Event::PathFound => is_path_found = true,
                Event::Closed => return Err(Error::ClosedByServer),
                Event::Failed if is_path_found => {
                    return Err(Error::HandshakeFailed { after: start.elapsed() });
                }
                Event::Failed => return Err(Error::UdpBlocked { after: start.elapsed() }),
                Event::Rtcp(_) => {}
            }
        }
        let patience = if is_path_found { HANDSHAKE_TIMEOUT } else { PATH_TIMEOUT };
        let deadline = start + patience;
        let now = Instant::now();
        if now >= deadline {
            return Err(if is_path_found {
                Error::HandshakeFailed { after: patience }
            } else {
                Error::UdpBlocked { after: patience }
            });
        }
        if dial_at.is_some_and(|at| now >= at && !is_path_found) {
            peer.dial_tcp();
            dial_at = None;
        }
        let mut wake = peer.poll_timeout().map_or(deadline, |timer| timer.min(deadline));
        if let Some(at) = dial_at.filter(|_| !is_path_found) {
            wake = wake.min(at);
        }
        tokio::select! {
            () = peer.receive() => {}
            () = sleep_until(wake.into()) => {}
        }
        peer.handle_timeout()?;
    }
}

/// A track's place on the RTP clock: the base of its timestamps, and the latest moment that was sent.
#[derive(Clone, Copy, Debug)]
struct TrackClock {
    base: u32,
    latest: Option<(i64, i64)>,
    packets: u32,
    octets: u32,
    has_report: bool,
    is_acknowledged: bool,
}

impl TrackClock {
    fn new() -> Self {
        let (packets, octets) = (0, 0);
        Self {
            base: rand::random(),
            latest: None,
            packets,
            octets,
            has_report: false,
            is_acknowledged: false,
        }
    }

    fn timestamp(&self, ticks: i64) -> u32 {
        // RTP timestamps wrap; a truncating cast is exactly that.
        self.base.wrapping_add(ticks as u32)
    }
}

/// Sends a feed through a connected session.
struct Sending<'a> {
    peer: Peer,
    feed: Feed,
    video: TrackClock,
    audio: TrackClock,
    queue: VecDeque<(u32, bool, Bytes)>,
    next_burst: Instant,
    progress: Progress,
    watch: &'a watch::Sender<Progress>,
    /// How long earlier connections of this publisher were live, and since when this one is.
    live_before: Duration,
    live_since: Instant,
    last_keyframe_request: Option<Instant>,
    is_tcp_noted: bool,
    second: Second,
}

/// What the last second had.
#[derive(Debug, Default)]
struct Second {
    frames: u64,
    bytes: u64,
}

impl Session {
    /// Sends until stopped, until the time is over, or until the feed ends. The feed must be fresh: sending begins
    /// with its first frame.
    pub(crate) async fn send(
        self,
        feed: Feed,
        carried: Progress,
        span: Option<Duration>,
        stop: &CancellationToken,
        watch: &watch::Sender<Progress>,
    ) -> Result<Progress, Error> {
        let now = Instant::now();
        let mut sending = Sending {
            peer: self.peer,
            feed,
            video: TrackClock::new(),
            audio: TrackClock::new(),
            queue: VecDeque::new(),
            next_burst: now,
            progress: Progress { state: State::Live, live: 1, ..carried },
            watch,
            live_before: carried.live_for,
            live_since: now,
            last_keyframe_request: None,
            is_tcp_noted: false,
            second: Second::default(),
        };
        watch.send_replace(sending.progress.clone());
        let result = tokio::select! {
            () = stop.cancelled() => Ok(()),
            () = sleep_for(span) => Ok(()),
            result = sending.run() => result,
        };
        sending.say_goodbye();
        sending.progress.live_for = sending.live_before + sending.live_since.elapsed();
        // Also after an error: another attempt carries these figures on.
        watch.send_replace(sending.progress.clone());
        let (progress, peer) = (sending.progress, sending.peer);
        Session { peer, whip: self.whip }.end().await;
        result.map(|()| progress)
    }

    /// Closes the connection and deletes the WHIP session.
    pub(crate) async fn end(self) {
        self.peer.close().await;
        self.whip.delete().await;
    }
}

impl Sending<'_> {
    async fn run(&mut self) -> Result<(), Error> {
        let mut next_report = self.live_since + REPORT_INTERVAL;
        loop {
            self.send_burst()?;
            self.peer.flush().await;
            self.handle_events()?;
            let now = Instant::now();
            if now >= next_report {
                self.send_reports()?;
                self.tell(now - (next_report - REPORT_INTERVAL));
                next_report = now + REPORT_INTERVAL;
                continue;
            }
            let mut wake = next_report;
            if !self.queue.is_empty() {
                wake = wake.min(self.next_burst);
            }
            if let Some(timer) = self.peer.poll_timeout() {
                wake = wake.min(timer);
            }
            tokio::select! {
                () = self.peer.receive() => {}
                frame = self.feed.frames.recv(), if self.queue.len() < PACE_QUEUE_MAX => match frame {
                    Some(frame) => self.take(&frame)?,
                    None => return self.drain().await,
                },
                () = sleep_until(wake.into()) => {}
            }
            self.peer.handle_timeout()?;
        }
    }

    /// The source has ended: what is queued still goes out.
    async fn drain(&mut self) -> Result<(), Error> {
        while !self.queue.is_empty() {
            self.send_burst()?;
            self.peer.flush().await;
            sleep_until(self.next_burst.into()).await;
        }
        Ok(())
    }

    fn take(&mut self, frame: &Frame) -> Result<(), Error> {
        let payload_bytes: usize = frame.payloads.iter().map(Bytes::len).sum();
        let clock = match frame.track {
            Track::Video => &mut self.video,
            Track::Audio => &mut self.audio,
        };
        clock.latest = Some((frame.ticks, frame.position_us));
        clock.packets = clock.packets.wrapping_add(frame.payloads.len() as u32);
        clock.octets = clock.octets.wrapping_add(payload_bytes as u32);
        let timestamp = clock.timestamp(frame.ticks);
        let (is_first, is_labelled) = (!clock.has_report, !clock.is_acknowledged);
        self.progress.bytes_sent += payload_bytes as u64;
        self.second.bytes += (payload_bytes + 12 * frame.payloads.len()) as u64;
        match frame.track {
            Track::Video => {
                self.second.frames += 1;
                self.progress.frames_sent += 1;
                self.progress.keyframes_sent += u64::from(frame.is_keyframe);
                if self.queue.is_empty() {
                    self.next_burst = self.next_burst.max(Instant::now());
                }
                let last = frame.payloads.len().saturating_sub(1);
                for (number, payload) in frame.payloads.iter().enumerate() {
                    self.queue.push_back((timestamp, number == last, payload.clone()));
                }
            }
            // Small and steady: no reason to make it wait behind a keyframe.
            Track::Audio => {
                for payload in frame.payloads.iter() {
                    self.peer.send_rtp(Track::Audio, timestamp, true, is_labelled, payload.clone())?;
                }
            }
        }
        if is_first && frame.track == Track::Audio {
            self.send_report(Track::Audio, false)?;
        }
        Ok(())
    }

    fn send_burst(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        if now < self.next_burst {
            return Ok(());
        }
        let is_labelled = !self.video.is_acknowledged;
        for _ in 0..PACE_BURST {
            let Some((timestamp, is_last, payload)) = self.queue.pop_front() else { break };
            self.peer.send_rtp(Track::Video, timestamp, is_last, is_labelled, payload)?;
            self.next_burst = now + PACE_INTERVAL;
        }
        if !self.video.has_report {
            // Right after the first packets: before them the receiver does not know the SSRC, and later it would
            // have to guess how the tracks belong together.
            self.send_report(Track::Video, false)?;
        }
        Ok(())
    }

    fn send_reports(&mut self) -> Result<(), Error> {
        self.send_report(Track::Video, false)?;
        self.send_report(Track::Audio, false)
    }

    /// Tells how the track's timestamps relate to the publisher's wall clock (RFC 3550, section 6.4.1), and that it
    /// ends (a BYE never travels alone: section 6.1).
    fn send_report(&mut self, track: Track, is_last: bool) -> Result<(), Error> {
        let rate = self.feed.rate(track);
        let Some(ssrc) = self.peer.ssrc(track) else { return Ok(()) };
        let clock = match track {
            Track::Video => &mut self.video,
            Track::Audio => &mut self.audio,
        };
        let Some((ticks, position_us)) = clock.latest else { return Ok(()) };
        clock.has_report = true;
        let now_us = self.feed.timeline.position_us(Instant::now());
        let since = ((now_us - position_us) as f64 * rate / 1e6).round() as i64;
        let report = SenderReport {
            ssrc,
            ntp_time: self.feed.timeline.ntp(now_us),
            rtp_time: clock.timestamp(ticks + since),
            packet_count: clock.packets,
            octet_count: clock.octets,
            ..SenderReport::default()
        };
        let mut packets: Vec<Box<dyn rtc::rtcp::Packet>> = vec![Box::new(report)];
        if is_last {
            packets.push(Box::new(Goodbye { sources: vec![ssrc], ..Goodbye::default() }));
        }
        self.peer.send_rtcp(track, packets)
    }

    fn say_goodbye(&mut self) {
        for track in [Track::Video, Track::Audio] {
            if let Err(error) = self.send_report(track, true) {
                tracing::debug!(%error, "goodbye not sent");
            }
        }
    }

    fn handle_events(&mut self) -> Result<(), Error> {
        while let Some(event) = self.peer.poll_event() {
            match event {
                Event::Failed => return Err(Error::ConnectionLost),
                Event::Closed => return Err(Error::ClosedByServer),
                Event::Connected | Event::PathFound => {}
                Event::Rtcp(packets) => packets.iter().for_each(|packet| self.handle_rtcp(packet.as_any())),
            }
        }
        Ok(())
    }

    fn handle_rtcp(&mut self, packet: &dyn std::any::Any) {
        if let Some(report) = packet.downcast_ref::<ReceiverReport>() {
            report.reports.iter().for_each(|report| self.handle_reception(report));
        } else if let Some(report) = packet.downcast_ref::<SenderReport>() {
            report.reports.iter().for_each(|report| self.handle_reception(report));
        } else if packet.is::<PictureLossIndication>() || packet.is::<FullIntraRequest>() {
            self.progress.keyframe_requests += 1;
            let now = Instant::now();
            if self.last_keyframe_request.is_none_or(|last| now - last >= KEYFRAME_REQUEST_INTERVAL) {
                self.last_keyframe_request = Some(now);
                self.feed.request_keyframe();
            }
        } else if let Some(nack) = packet.downcast_ref::<TransportLayerNack>() {
            let lost = |pair: &rtc::rtcp::transport_feedbacks::transport_layer_nack::NackPair| {
                1 + u64::from(pair.lost_packets.count_ones())
            };
            self.progress.nacked_packets += nack.nacks.iter().map(lost).sum::<u64>();
        }
    }

    fn handle_reception(&mut self, report: &ReceptionReport) {
        if self.peer.ssrc(Track::Video) == Some(report.ssrc) {
            self.video.is_acknowledged = true;
        } else if self.peer.ssrc(Track::Audio) == Some(report.ssrc) {
            self.audio.is_acknowledged = true;
        } else {
            return;
        }
        self.progress.loss = f64::from(report.fraction_lost) / 256.0;
        if report.last_sender_report != 0 {
            let now = self.feed.timeline.ntp(self.feed.timeline.position_us(Instant::now()));
            self.progress.rtt_ms = round_trip_ms(now, report.last_sender_report, report.delay);
        }
    }

    fn tell(&mut self, span: Duration) {
        if self.peer.is_on_tcp() && !self.is_tcp_noted {
            self.is_tcp_noted = true;
            let note = self.progress.note.take().map(|note| note + "; ").unwrap_or_default();
            self.progress.note = Some(note + "sending over TCP");
        }
        let span = span.as_secs_f64();
        self.progress.live_for = self.live_before + self.live_since.elapsed();
        self.progress.bitrate_bps = (self.second.bytes as f64 * 8.0 / span) as u64;
        self.progress.fps = self.second.frames as f64 / span;
        self.second = Second::default();
        self.watch.send_replace(self.progress.clone());
    }
}

async fn sleep_for(span: Option<Duration>) {
    match span {
        Some(span) => tokio::time::sleep(span).await,
        None => std::future::pending().await,
    }
}

/// RFC 3550, section 6.4.1: now − last sender report − delay, all in 1/65536 s of the middle NTP bits.
fn round_trip_ms(ntp_now: u64, last_sender_report: u32, delay: u32) -> Option<f64> {
    let middle = (ntp_now >> 16) as u32;
    let ticks = middle.wrapping_sub(last_sender_report).wrapping_sub(delay);
    // Half the range and more is a negative round trip: clocks of a broken receiver.
    (ticks < 1 << 31).then(|| f64::from(ticks) * 1000.0 / 65_536.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_follows_the_example_of_rfc_3550() {
        // Section 6.4.1, figure 2: A = 0xb710:8000 (46864.500 s), DLSR = 5.250 s, LSR = 46853.125 s: 6.125 s.
        let now = 0xb710_8000u64 << 16;
        assert_eq!(round_trip_ms(now, 0xb705_2000, 0x0005_4000), Some(6125.0));
        assert_eq!(round_trip_ms(now, 0xb710_8001, 0), None);
    }

    #[test]
    fn timestamps_wrap() {
        let clock = TrackClock { base: u32::MAX - 10, ..TrackClock::new() };
        assert_eq!(clock.timestamp(11), 0);
        assert_eq!(clock.timestamp(-312), u32::MAX - 322);
    }
}
