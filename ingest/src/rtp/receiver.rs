//! Everything that one publisher sends: its tracks, their clock, and the keyframes to ask for.
//!
//! Pure: transport events and the time in, segmenter inputs and keyframe requests out.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use shoal_segmenter::frame::{Frame, Input, MediaTime, TrackFormat, TrackId, VideoCodec};

use super::clock::Clock;
use super::track::{Counters, Output, Reason, Track};
use crate::sdp::{Codec, Offer};
use crate::transport::{Event, RtpPacket};

/// One track's fixed properties.
#[derive(Clone, Debug)]
struct Role {
    id: TrackId,
    codec: Codec,
    rid: Option<String>,
}

struct Source {
    role: Role,
    track: Track,
    /// When a keyframe was last asked for, and whether one is wanted since.
    asked_at: Option<Instant>,
    is_wanted: bool,
}

/// Limits that come from the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long missing video packets are waited for.
    pub hold: Duration,
    /// The least time between two keyframe requests for a stream.
    pub keyframe_interval_min: Duration,
    /// How many frames may be presented out of order within ten seconds before the publisher is refused.
    pub frames_out_of_order_max: u64,
}

/// A track's state for status pages.
#[derive(Clone, Debug)]
pub struct TrackState {
    /// The track.
    pub id: TrackId,
    /// Its simulcast layer.
    pub rid: Option<String>,
    /// Its encoding, once known.
    pub format: Option<TrackFormat>,
    /// Totals.
    pub counters: Counters,
    /// Whether it waits for a keyframe.
    pub is_awaiting_keyframe: bool,
}

/// See the module.
pub struct Receiver {
    /// The start of the timeline.
    origin: Instant,
    limits: Limits,
    codecs: BTreeMap<u8, Codec>,
    rids: Vec<String>,
    is_stereo: bool,
    clock: Clock,
    sources: BTreeMap<u32, Source>,
    inputs: VecDeque<(Input, Option<Arrivals>)>,
    keyframes: VecDeque<u32>,
    /// Packets that belong to nothing that was negotiated.
    pub packets_unknown: u64,
    /// How long frames were in here, since taken.
    pub held: Held,
}

/// How long frames took from the arrival of their first packet until they were complete.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    /// Frames counted.
    pub frames: u64,
    /// The longest.
    pub max: Duration,
}

/// When a frame's packets came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrivals {
    /// The first of them: until the last there was the publisher's pacing.
    pub first: Instant,
    /// The one that it was complete with, or that let it out: from here on it was us.
    pub last: Instant,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("sources", &self.sources.len()).finish_non_exhaustive()
    }
}

impl Receiver {
    /// A receiver for what an offer announced; times count from `origin`.
    pub fn new(origin: Instant, offer: &Offer, limits: Limits) -> Self {
        let formats = offer.sections().flat_map(|section| &section.formats);
        Self {
            origin,
            limits,
            codecs: formats.map(|format| (format.payload_type, format.codec)).collect(),
            rids: offer.video.as_ref().map(|video| video.rids.clone()).unwrap_or_default(),
            is_stereo: offer.audio.as_ref().is_some_and(|audio| audio.is_stereo),
            clock: Clock::default(),
            sources: BTreeMap::new(),
            inputs: VecDeque::new(),
            keyframes: VecDeque::new(),
            packets_unknown: 0,
            held: Held::default(),
        }
    }

    /// Takes what the transport says; `now` is when the datagram came that it says it of.
    pub fn handle_event(&mut self, now: Instant, event: Event) {
        match event {
            Event::Rtp(packet) => {
                let ssrc = packet.ssrc;
                if !self.sources.contains_key(&ssrc) && !self.adopt(&packet) {
                    self.packets_unknown += 1;
                    return;
                }
                let source = self.sources.get_mut(&ssrc).expect("it was there or was adopted");
                source.track.push(now, packet);
                self.pump(now, ssrc);
            }
            Event::Report(report) => self.clock.report(report.ssrc, report.ntp_us, report.timestamp),
            Event::Connected | Event::Closed => {}
        }
    }

    /// The deadline of `poll_timeout` has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let ssrcs: Vec<u32> = self.sources.keys().copied().collect();
        for ssrc in ssrcs {
            self.pump(now, ssrc);
        }
    }

    /// When to call `handle_timeout`.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let deadlines = self.sources.values().flat_map(|source| {
            let ask = source
                .asked_at
                .filter(|_| source.is_wanted || source.track.needs_keyframe())
                .map(|asked_at| asked_at + self.limits.keyframe_interval_min);
            source.track.deadline().into_iter().chain(ask)
        });
        deadlines.min()
    }

    /// The next input for the segmenter.
    pub fn poll_input(&mut self) -> Option<Input> {
        self.inputs.pop_front().map(|(input, _)| input)
    }

    /// The same, with the arrival of a frame's packets.
    pub fn poll_timed_input(&mut self) -> Option<(Input, Option<Arrivals>)> {
        self.inputs.pop_front()
    }

    /// The next stream that a keyframe is to be asked of.
    pub fn poll_keyframe_request(&mut self) -> Option<u32> {
        self.keyframes.pop_front()
    }

    /// Wants a keyframe of every video track, so that all layers can be cut at the same place.
    pub fn want_keyframes(&mut self, now: Instant) {
        let ssrcs: Vec<u32> = self.sources.keys().copied().collect();
        for ssrc in ssrcs {
            if let Some(source) = self.sources.get_mut(&ssrc) {
                source.is_wanted = source.role.codec != Codec::Opus;
            }
            self.ask(now, ssrc);
        }
    }

    /// Why the publisher must be refused after all, in words.
    pub fn refusal(&self, now: Instant) -> Option<&'static str> {
        let max = self.limits.frames_out_of_order_max;
        self.sources
            .values()
            .any(|source| source.track.out_of_order_lately(now) > max)
            .then_some("the encoder uses B-frames, which WebRTC can't carry in order: turn them off")
    }

    /// A frame that came out was not taken.
    pub fn note_refused(&mut self, track: TrackId) {
        let source = self.sources.values_mut().find(|source| source.role.id == track);
        if let Some(source) = source {
            source.track.counters.dropped[Reason::QueueFull as usize] += 1;
        }
    }

    /// The tracks' states.
    pub fn tracks(&self) -> Vec<TrackState> {
        let mut tracks: Vec<TrackState> = self
            .sources
            .values()
            .map(|source| TrackState {
                id: source.role.id,
                rid: source.role.rid.clone(),
                format: source.track.format().cloned(),
                counters: source.track.counters,
                is_awaiting_keyframe: source.track.is_awaiting_keyframe(),
            })
            .collect();
        tracks.sort_by_key(|track| track.id);
        tracks
    }

    /// Makes a new SSRC a track, if it is one that was announced.
    fn adopt(&mut self, packet: &RtpPacket) -> bool {
        let Some(&codec) = self.codecs.get(&packet.payload_type) else { return false };
        let (id, rid) = match codec {
            Codec::Opus => (TrackId(0), None),
            Codec::Video(_) if self.rids.is_empty() => (TrackId(1), None),
            Codec::Video(_) => {
                // Layers name themselves in their first packets until a report of ours shows that they were heard.
                let layer = packet.rid.as_ref().and_then(|rid| self.rids.iter().position(|r| r == rid));
                let Some(layer) = layer else { return false };
                (TrackId(1 + layer as u8), packet.rid.clone())
            }
        };
        // A publisher that changes its SSRC ends the old stream of that track.
        let replaced: Vec<u32> =
            self.sources.iter().filter(|(_, source)| source.role.id == id).map(|(ssrc, _)| *ssrc).collect();
        let (mut counters, mut last_us) = (Counters::default(), None);
        for ssrc in replaced {
            counters = self.sources.remove(&ssrc).expect("it was listed").track.retire();
            last_us = self.clock.remove(ssrc).max(last_us);
        }
        let (mut track, rate) = match codec {
            Codec::Opus => (Track::opus(self.is_stereo), 48_000),
            Codec::Video(codec) => (Track::video(codec, self.limits.hold), 90_000),
        };
        track.counters = counters;
        self.clock.add_after(packet.ssrc, rate, last_us);
        let role = Role { id, codec, rid };
        self.sources.insert(packet.ssrc, Source { role, track, asked_at: None, is_wanted: false });
        true
    }

    fn pump(&mut self, now: Instant, ssrc: u32) {
        let Some(source) = self.sources.get_mut(&ssrc) else { return };
        let id = source.role.id;
        while let Some(output) = source.track.poll(now) {
            match output {
                Output::Format(format) => {
                    self.inputs.push_back((Input::Format { track: id, format }, None));
                }
                Output::Frame { timestamp, arrival, is_keyframe, data } => {
                    let held = now.saturating_duration_since(arrival);
                    self.held.frames += 1;
                    self.held.max = self.held.max.max(held);
                    let arrival_us = arrival.saturating_duration_since(self.origin).as_micros() as i64;
                    let Some(stamp) = self.clock.stamp(ssrc, timestamp, arrival_us) else { continue };
                    if stamp.is_discontinuous {
                        self.inputs.push_back((Input::Discontinuity, None));
                    }
                    if is_keyframe {
                        source.is_wanted = false;
                    }
                    let pts = MediaTime(stamp.pts_us);
                    let arrivals = Arrivals { first: arrival, last: now };
                    let frame = Frame { track: id, pts, is_keyframe, data };
                    self.inputs.push_back((Input::Frame(frame), Some(arrivals)));
                }
            }
        }
        self.ask(now, ssrc);
    }

    /// Asks for a keyframe if one is wanted and the limit allows it.
    fn ask(&mut self, now: Instant, ssrc: u32) {
        let Some(source) = self.sources.get_mut(&ssrc) else { return };
        let is_due =
            source.asked_at.is_none_or(|asked_at| now >= asked_at + self.limits.keyframe_interval_min);
        if (source.is_wanted || source.track.needs_keyframe()) && is_due {
            source.asked_at = Some(now);
            // One request is one keyframe; if it gets lost, the segmenter asks again, or the track still waits.
            source.is_wanted = false;
            self.keyframes.push_back(ssrc);
        }
    }
}

/// The name of a codec for people.
pub fn codec_name(format: &TrackFormat) -> &'static str {
    match format {
        TrackFormat::Opus { .. } => "Opus",
        TrackFormat::Video { codec: VideoCodec::H264, .. } => "H.264",
        TrackFormat::Video { codec: VideoCodec::Vp8, .. } => "VP8",
        TrackFormat::Video { codec: VideoCodec::Vp9, .. } => "VP9",
        TrackFormat::Video { codec: VideoCodec::Av1, .. } => "AV1",
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::transport::SenderReport;

    const OFFER: &str = include_str!("../../tests/support/chromium-offer.sdp");
    const LIMITS: Limits = Limits {
        hold: Duration::from_millis(400),
        keyframe_interval_min: Duration::from_millis(500),
        frames_out_of_order_max: 30,
    };

    fn receiver(origin: Instant) -> Receiver {
        Receiver::new(origin, &Offer::parse(OFFER).unwrap(), LIMITS)
    }

    fn video(sequence: u16, timestamp: u32, payload: &[u8]) -> Event {
        Event::Rtp(RtpPacket {
            ssrc: 2222,
            payload_type: 102,
            sequence,
            timestamp,
            is_marked: true,
            rid: None,
            payload: Bytes::copy_from_slice(payload),
        })
    }

    fn keyframe() -> Vec<u8> {
        let mut stap = vec![0x78];
        for nal in ["6764001facd9405005bb011000000300100000030320f1831960", "68ebe3cb22c0", "65888001"] {
            let nal = hex::decode(nal).unwrap();
            stap.extend((nal.len() as u16).to_be_bytes());
            stap.extend(nal);
        }
        stap
    }

    #[test]
    fn b_frames_are_refused_with_a_reason() {
        let start = Instant::now();
        let mut receiver = receiver(start);
        let mut sequence = 0u16;
        receiver.handle_event(start, video(0, 0, &keyframe()));
        for group in 1..40u32 {
            // Decoded P then B: the second is shown before the first.
            for timestamp in [group * 6000, group * 6000 - 3000] {
                sequence += 1;
                let now = start + Duration::from_millis(u64::from(sequence) * 33);
                receiver.handle_event(now, video(sequence, timestamp, &[0x41, 0x9a, 0x80, 1]));
            }
        }
        let now = start + Duration::from_millis(u64::from(sequence) * 33);
        assert!(receiver.refusal(now).is_some_and(|words| words.contains("B-frames")));
        let mut last = i64::MIN;
        while let Some(input) = receiver.poll_input() {
            if let Input::Frame(frame) = input {
                assert!(frame.pts.0 > last);
                last = frame.pts.0;
            }
        }
    }

    #[test]
    fn hours_of_a_rare_reorder_or_of_equal_times_refuse_nobody() {
        let start = Instant::now();
        let mut receiver = receiver(start);
        receiver.handle_event(start, video(0, 0, &keyframe()));
        let mut sequence = 0u16;
        for second in 1..3 * 3600u32 {
            let now = start + Duration::from_secs(second.into());
            // One step back each second, and two frames of the same time.
            for timestamp in [second * 90_000, second * 90_000 - 3000, second * 90_000] {
                sequence = sequence.wrapping_add(1);
                receiver.handle_event(now, video(sequence, timestamp, &[0x41, 0x9a, 0x80, 1]));
            }
            assert_eq!(receiver.refusal(now), None, "after {second} s");
        }
        let dropped = receiver.tracks()[0].counters.dropped;
        assert_eq!(dropped[Reason::OutOfOrder as usize], 10_799);
        assert_eq!(dropped[Reason::SameTime as usize], 10_799);
    }

    #[test]
    fn keyframes_are_asked_for_at_most_every_half_second_and_again_until_one_comes() {
        let start = Instant::now();
        let mut receiver = receiver(start);
        receiver.handle_event(start, video(0, 0, &keyframe()));
        assert_eq!(receiver.poll_keyframe_request(), None, "a stream that begins with one needs none");
        let mut asked = Vec::new();
        for frame in 1..100u16 {
            // Number 3 is lost for good.
            let now = start + Duration::from_millis(u64::from(frame) * 33);
            let sequence = if frame < 3 { frame } else { frame + 1 };
            receiver.handle_event(now, video(sequence, u32::from(frame) * 3000, &[0x41, 0x9a, 0x80, 1]));
            receiver.handle_timeout(now);
            while receiver.poll_keyframe_request().is_some() {
                asked.push((now - start).as_millis());
            }
        }
        assert!((4..=6).contains(&asked.len()), "{asked:?}");
        assert!(asked.windows(2).all(|pair| pair[1] - pair[0] >= 500), "{asked:?}");
        receiver.handle_event(start + Duration::from_secs(4), video(101, 400_000, &keyframe()));
        receiver.handle_timeout(start + Duration::from_secs(6));
        assert_eq!(receiver.poll_keyframe_request(), None, "one came");
    }

    #[test]
    fn all_layers_are_asked_for_keyframes_at_once() {
        let start = Instant::now();
        let offer = OFFER.replace("a=mid:1", "a=mid:1\r\na=simulcast:send h;m;l");
        let mut receiver = Receiver::new(start, &Offer::parse(&offer).unwrap(), LIMITS);
        for (ssrc, rid) in [(10, "l"), (11, "h"), (12, "m"), (13, "unknown")] {
            let Event::Rtp(mut packet) = video(0, 0, &keyframe()) else { unreachable!() };
            (packet.ssrc, packet.rid) = (ssrc, Some(rid.to_owned()));
            receiver.handle_event(start, Event::Rtp(packet));
        }
        receiver.want_keyframes(start + Duration::from_secs(2));
        let asked: Vec<u32> = std::iter::from_fn(|| receiver.poll_keyframe_request()).collect();
        assert_eq!(asked, [10, 11, 12]);
        let layers: Vec<_> = receiver.tracks().iter().map(|track| (track.id.0, track.rid.clone())).collect();
        assert_eq!(layers, [(1, Some("h".into())), (2, Some("m".into())), (3, Some("l".into()))]);
        assert_eq!(receiver.packets_unknown, 1);
    }

    #[test]
    fn a_new_ssrc_takes_its_track_over() {
        let start = Instant::now();
        let mut receiver = receiver(start);
        receiver.handle_event(start, video(0, 0, &keyframe()));
        let Event::Rtp(mut packet) = video(500, 77_000_000, &keyframe()) else { unreachable!() };
        packet.ssrc = 4444;
        receiver.handle_event(start + Duration::from_secs(1), Event::Rtp(packet));
        let frames = std::iter::from_fn(|| receiver.poll_input()).filter(|i| matches!(i, Input::Frame(_)));
        assert_eq!(frames.count(), 2);
        assert_eq!((receiver.tracks().len(), receiver.tracks()[0].counters.frames), (1, 2));
    }

    #[test]
    fn a_new_ssrc_continues_behind_what_was_ahead_of_its_arrival() {
        let start = Instant::now();
        let mut receiver = receiver(start);
        // A burst: 100 ms of video in every 10 ms.
        for frame in 0..4u16 {
            let now = start + Duration::from_millis(u64::from(frame) * 10);
            receiver.handle_event(now, video(frame, u32::from(frame) * 9000, &keyframe()));
        }
        let Event::Rtp(mut packet) = video(900, 5_000_000, &keyframe()) else { unreachable!() };
        packet.ssrc = 4444;
        receiver.handle_event(start + Duration::from_millis(50), Event::Rtp(packet));
        let times: Vec<i64> = std::iter::from_fn(|| receiver.poll_input())
            .filter_map(|input| match input {
                Input::Frame(frame) => Some(frame.pts.0),
                _ => None,
            })
            .collect();
        assert_eq!(times.len(), 5);
        assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Whatever arrives, nothing panics, each track's times only grow, and nothing piles up.
        #[test]
        fn garbage_never_panics_and_time_never_goes_back(
            events in proptest::collection::vec(
                (0u8..4, any::<u16>(), any::<u32>(), any::<bool>(), 0u64..300,
                 proptest::collection::vec(any::<u8>(), 0..40)),
                1..200,
            ),
        ) {
            let start = Instant::now();
            let mut receiver = receiver(start);
            let (mut now, mut last) = (start, [i64::MIN; 8]);
            for (kind, sequence, timestamp, is_marked, wait_ms, mut payload) in events {
                now += Duration::from_millis(wait_ms);
                let (ssrc, payload_type) = if kind == 0 { (1111, 111) } else { (2222, 102) };
                if kind == 2 { payload = keyframe(); }
                receiver.handle_event(now, if kind == 3 {
                    Event::Report(SenderReport { ssrc, ntp_us: i64::from(timestamp) << 20, timestamp })
                } else {
                    Event::Rtp(RtpPacket {
                        ssrc, payload_type, sequence, timestamp, is_marked, rid: None, payload: payload.into(),
                    })
                });
                receiver.handle_timeout(now);
                if let Some(deadline) = receiver.poll_timeout() { prop_assert!(deadline > now); }
                while let Some(input) = receiver.poll_input() {
                    if let Input::Frame(frame) = input {
                        let last = &mut last[usize::from(frame.track.0)];
                        prop_assert!(frame.pts.0 > *last);
                        *last = frame.pts.0;
                    }
                }
            }
        }
    }
}
