//! What a session tells about itself: to the publish page, and to the metrics.

use std::time::Instant;

use parking_lot::Mutex;
use serde::Serialize;
use shoal_segmenter::frame::{Input, TrackFormat, TrackId};

use crate::metric;
use crate::rtp::receiver::{Receiver, TrackState, codec_name};
use crate::rtp::track::{Counters, Reason};
use crate::session::End;
use crate::transport::Figures;

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Answered, but nothing has come yet.
    Connecting,
    /// Media may come.
    Live,
    /// Over.
    Ended,
}

/// A track's part of the status.
#[derive(Clone, Debug, Serialize)]
pub struct TrackStatus {
    /// `audio` or `video`.
    pub kind: &'static str,
    /// The simulcast layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rid: Option<String>,
    /// The codec's name for people; null before the first keyframe.
    pub codec: Option<&'static str>,
    /// In pixels; null for audio.
    pub width: Option<u32>,
    /// In pixels; null for audio.
    pub height: Option<u32>,
    /// Media bits per second over the last second, retransmissions excluded.
    pub bitrate_bps: u64,
    /// Frames per second over the last second.
    pub frames_per_s: f64,
    /// Totals.
    pub frames: u64,
    /// Keyframes among them.
    pub keyframes: u64,
    /// Packets given up.
    pub packets_lost: u64,
    /// Frames thrown away, by reason.
    pub frames_dropped: std::collections::BTreeMap<&'static str, u64>,
    /// Whether pictures are frozen until a keyframe comes.
    pub is_awaiting_keyframe: bool,
}

/// A session's status, as `GET <session URL>/stats` returns it.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The stream's name.
    pub stream: String,
    /// Where it stands.
    pub state: State,
    /// Why it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<End>,
    /// What is wrong with what the publisher sends, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<&'static str>,
    /// Seconds since the offer.
    pub age_s: f64,
    /// The round trip to the publisher; null until measured.
    pub round_trip_ms: Option<f64>,
    /// Share of packets that were missing at first, over the last second.
    pub loss_percent: f64,
    /// Packets that were missing at first.
    pub packets_missing: u64,
    /// Of these, repaired in time.
    pub packets_repaired: u64,
    /// Audio first, then the video layers.
    pub tracks: Vec<TrackStatus>,
    /// When something last came from the publisher.
    #[serde(skip)]
    pub(crate) heard_at: Instant,
    #[serde(skip)]
    started: Instant,
    #[serde(skip)]
    updated: Instant,
    #[serde(skip)]
    figures: Figures,
    #[serde(skip)]
    counters: Vec<(TrackId, Counters)>,
    #[serde(skip)]
    packets_unknown: u64,
    #[serde(skip)]
    keyframe_at_us: Option<i64>,
}

impl Status {
    pub(crate) fn new(stream: &str, now: Instant) -> Self {
        Self {
            stream: stream.to_owned(),
            state: State::Connecting,
            ended: None,
            problem: None,
            age_s: 0.0,
            round_trip_ms: None,
            loss_percent: 0.0,
            packets_missing: 0,
            packets_repaired: 0,
            tracks: Vec::new(),
            heard_at: now,
            started: now,
            updated: now,
            figures: Figures::default(),
            counters: Vec::new(),
            packets_unknown: 0,
            keyframe_at_us: None,
        }
    }

    /// Brings everything up to date and counts what happened since the last time into the metrics.
    pub(crate) fn update(&mut self, now: Instant, receiver: &mut Receiver, figures: Figures) {
        let elapsed_s = now.saturating_duration_since(self.updated).as_secs_f64().max(0.001);
        self.updated = now;
        self.age_s = now.saturating_duration_since(self.started).as_secs_f64();
        self.round_trip_ms = figures.round_trip.map(|rtt| rtt.as_secs_f64() * 1000.0);
        self.packets_missing = figures.packets_missing;
        self.packets_repaired = figures.packets_repaired;
        let mut packets = 0;
        let mut counters = Vec::new();
        self.tracks = receiver
            .tracks()
            .iter()
            .map(|track| {
                let before =
                    self.counters.iter().find(|(id, _)| *id == track.id).map(|(_, counters)| *counters);
                let before = before.unwrap_or_default();
                packets += track.counters.packets - before.packets;
                count_track(track, &before);
                counters.push((track.id, track.counters));
                track_status(track, &before, elapsed_s)
            })
            .collect();
        self.counters = counters;
        let missing = figures.packets_missing - self.figures.packets_missing;
        let repaired = figures.packets_repaired - self.figures.packets_repaired;
        self.loss_percent = if missing == 0 {
            0.0
        } else {
            missing as f64 * 100.0 / (packets + missing).saturating_sub(repaired).max(1) as f64
        };
        metrics::counter!(metric::PACKETS_REPAIRED).increment(repaired);
        let unknown =
            receiver.packets_unknown - std::mem::replace(&mut self.packets_unknown, receiver.packets_unknown);
        // What belongs to no track has no kind.
        metrics::counter!(metric::PACKETS_DROPPED, "kind" => "unknown", "reason" => "unknown")
            .increment(unknown);
        let held = std::mem::take(&mut receiver.held);
        if held.frames > 0 {
            metrics::gauge!(metric::HELD_MAX_SECONDS).set(held.max.as_secs_f64());
        }
        self.figures = figures;
    }
}

fn count_track(track: &TrackState, before: &Counters) {
    let (kind, now) = (kind(track.id), &track.counters);
    metrics::counter!(metric::PACKETS, "kind" => kind).increment(now.packets - before.packets);
    metrics::counter!(metric::MEDIA_BYTES, "kind" => kind).increment(now.bytes - before.bytes);
    metrics::counter!(metric::PACKETS_LOST, "kind" => kind).increment(now.packets_lost - before.packets_lost);
    for (reason, dropped) in [
        ("late", now.packets_late - before.packets_late),
        ("duplicate", now.packets_duplicate - before.packets_duplicate),
    ] {
        metrics::counter!(metric::PACKETS_DROPPED, "kind" => kind, "reason" => reason).increment(dropped);
    }
    metrics::counter!(metric::FRAMES, "kind" => kind).increment(now.frames - before.frames);
    for (reason, (dropped, before)) in Reason::ALL.iter().zip(now.dropped.iter().zip(before.dropped)) {
        metrics::counter!(metric::FRAMES_DROPPED, "kind" => kind, "reason" => reason.name())
            .increment(dropped - before);
    }
}

fn track_status(track: &TrackState, before: &Counters, elapsed_s: f64) -> TrackStatus {
    let counters = &track.counters;
    let (width, height) = match track.format {
        Some(TrackFormat::Video { width, height, .. }) => (Some(width), Some(height)),
        _ => (None, None),
    };
    TrackStatus {
        kind: kind(track.id),
        rid: track.rid.clone(),
        codec: track.format.as_ref().map(codec_name),
        width,
        height,
        bitrate_bps: ((counters.bytes - before.bytes) as f64 * 8.0 / elapsed_s) as u64,
        frames_per_s: (counters.frames - before.frames) as f64 / elapsed_s,
        frames: counters.frames,
        keyframes: counters.keyframes,
        packets_lost: counters.packets_lost,
        frames_dropped: Reason::ALL
            .iter()
            .zip(counters.dropped)
            .filter(|(_, dropped)| *dropped > 0)
            .map(|(reason, dropped)| (reason.name(), dropped))
            .collect(),
        is_awaiting_keyframe: track.is_awaiting_keyframe,
    }
}

fn kind(track: TrackId) -> &'static str {
    if track.0 == 0 { "audio" } else { "video" }
}

/// Notes what only single inputs show: the distance of keyframes, and discontinuities.
pub(crate) fn count_input(status: &Mutex<Status>, input: &Input) {
    match input {
        Input::Discontinuity => metrics::counter!(metric::DISCONTINUITIES).increment(1),
        Input::Frame(frame) if frame.is_keyframe && frame.track == TrackId(1) => {
            let before = status.lock().keyframe_at_us.replace(frame.pts.0);
            if let Some(before) = before {
                metrics::histogram!(metric::GOP_MS).record((frame.pts.0 - before) as f64 / 1e3);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use metrics::{
        Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    };

    use super::*;
    use crate::rtp::receiver::Limits;
    use crate::sdp::Offer;
    use crate::transport::{Event, RtpPacket};

    const OFFER: &str = include_str!("../tests/support/chromium-offer.sdp");

    /// Counters by name and labels.
    #[derive(Clone, Default)]
    struct Counted(Arc<Mutex<BTreeMap<String, u64>>>);

    struct One(Counted, String);

    impl CounterFn for One {
        fn increment(&self, value: u64) {
            *self.0.0.lock().entry(self.1.clone()).or_default() += value;
        }
        fn absolute(&self, _: u64) {}
    }

    impl Recorder for Counted {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            let labels: String = key.labels().map(|label| format!(" {}", label.value())).collect();
            Counter::from_arc(Arc::new(One(self.clone(), format!("{}{labels}", key.name()))))
        }
        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::noop()
        }
        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    #[test]
    fn whatever_is_thrown_away_is_exported_with_its_reason() {
        let start = Instant::now();
        let limits = Limits {
            hold: Duration::from_millis(400),
            keyframe_interval_min: Duration::from_millis(500),
            frames_out_of_order_max: 30,
        };
        let mut receiver = Receiver::new(start, &Offer::parse(OFFER).unwrap(), limits);
        let mut status = Status::new("cam", start);
        let packet = |sequence: u16, timestamp: u32, payload_type: u8, payload: &[u8]| {
            Event::Rtp(RtpPacket {
                ssrc: 2222,
                payload_type,
                sequence,
                timestamp,
                is_marked: true,
                rid: None,
                payload: Bytes::copy_from_slice(payload),
            })
        };
        let mut keyframe = vec![0x78];
        for nal in ["6764001facd9405005bb011000000300100000030320f1831960", "68ebe3cb22c0", "65888001"] {
            let nal = hex::decode(nal).unwrap();
            keyframe.extend((nal.len() as u16).to_be_bytes());
            keyframe.extend(nal);
        }
        const DELTA: &[u8] = &[0x41, 0x9a, 0x80, 1];
        let at = |ms: u64| start + Duration::from_millis(ms);
        receiver.handle_event(at(0), packet(9, 0, 77, DELTA));
        receiver.handle_event(at(0), packet(10, 0, 102, &keyframe));
        receiver.handle_event(at(33), packet(11, 9000, 102, DELTA));
        receiver.handle_event(at(34), packet(11, 9000, 102, DELTA));
        receiver.handle_event(at(66), packet(12, 9000, 102, DELTA));
        receiver.handle_event(at(67), packet(13, 3000, 102, DELTA));
        receiver.handle_event(at(100), packet(15, 15_000, 102, DELTA));
        receiver.handle_event(at(101), packet(15, 15_000, 102, DELTA));
        receiver.handle_timeout(at(600));
        receiver.note_refused(TrackId(1));
        let counted = Counted::default();
        metrics::with_local_recorder(&counted, || {
            status.update(at(1000), &mut receiver, Figures::default());
            status.update(at(2000), &mut receiver, Figures::default());
        });
        let counted = counted.0.lock();
        for (name, expected) in [
            ("ingest_packets_dropped_total unknown unknown", 1),
            ("ingest_packets_dropped_total video late", 1),
            ("ingest_packets_dropped_total video duplicate", 1),
            ("ingest_packets_lost_total video", 1),
            ("ingest_frames_total video", 2),
            ("ingest_frames_dropped_total video same_time", 1),
            ("ingest_frames_dropped_total video out_of_order", 1),
            ("ingest_frames_dropped_total video awaiting_keyframe", 1),
            ("ingest_frames_dropped_total video queue_full", 1),
        ] {
            assert_eq!(counted.get(name), Some(&expected), "{name} in {counted:#?}");
        }
    }
}
