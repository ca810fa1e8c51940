//! A live stream as the origin sees it: renditions with their windows, shared between the stream's worker, which is
//! the only writer, and any number of requests.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use ed25519_dalek::SigningKey;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_digest::{Epoch, OriginKey, PieceId, Record};
use shoal_playlist::RenditionReport;
use tokio::sync::{broadcast, watch};

use crate::config::{Config, Constants};
use crate::counters::Counters;
use crate::events::{Event, Published, RenditionInfo};
use crate::ladder::{self, LadderStatus};
use crate::pictures::{Offer, POSTER, Pictures, SOURCE_SIDE, Studio};
use crate::recording::{NewRecording, Recorder, Recordings};
use crate::rendered::{Cached, Text};
use crate::transcode::Slots;
use crate::window::{PartEntry, Progress, Window};

/// What the worker knows of a part that it publishes.
#[derive(Debug)]
pub(crate) struct NewPart {
    pub(crate) bytes: Bytes,
    pub(crate) start_ms: i64,
    pub(crate) duration_us: i64,
    /// Whether it begins with a keyframe.
    pub(crate) is_independent: bool,
    /// Whether there is a keyframe anywhere in it.
    pub(crate) has_keyframe: bool,
    pub(crate) is_last: bool,
}

/// One encoded version of the stream.
#[derive(Debug)]
pub(crate) struct Rendition {
    pub(crate) number: u8,
    pub(crate) name: String,
    window: Mutex<Window>,
    progress: watch::Sender<Progress>,
    description: Mutex<Description>,
    playlists: [Cached; 2],
    /// Whether a ladder publishes it, rather than the stream's worker.
    is_of_ladder: bool,
    is_given_up: AtomicBool,
}

/// What the multivariant playlist says about a rendition.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Description {
    pub(crate) codecs: String,
    /// Width and height; none for audio.
    pub(crate) resolution: Option<(u32, u32)>,
    pub(crate) frame_rate_milli: u64,
    /// The highest bit rate of a segment so far, in bits per second.
    pub(crate) peak_bps: u64,
    media_bytes: u64,
    media_us: u64,
    /// Of the segment in the making.
    open_bytes: u64,
    open_us: u64,
}

impl Description {
    pub(crate) fn video(codecs: String, width: u32, height: u32) -> Self {
        Self { codecs, resolution: Some((width, height)), ..Default::default() }
    }

    pub(crate) fn audio(codecs: &str) -> Self {
        Self { codecs: codecs.to_owned(), ..Default::default() }
    }

    pub(crate) fn is_video(&self) -> bool {
        self.resolution.is_some()
    }

    /// Whether a segment is complete, so that its bit rate is known.
    pub(crate) fn is_measured(&self) -> bool {
        self.media_us > 0
    }

    pub(crate) fn average_bps(&self) -> u64 {
        bits_per_second(self.media_bytes, self.media_us)
    }

    /// Counts the segment in the making, which was cut short; its bit rate counts only if there is no other.
    pub(crate) fn end_open_segment(&mut self) {
        self.end_segment(0);
    }

    /// With the rates of another.
    fn like(self, other: &Self) -> Self {
        let Self { codecs, resolution, .. } = self;
        Self { codecs, resolution, ..other.clone() }
    }

    fn end_segment(&mut self, target_us: u64) {
        let (bytes, us) = (std::mem::take(&mut self.open_bytes), std::mem::take(&mut self.open_us));
        self.media_bytes += bytes;
        self.media_us += us;
        // Section 4.4.6.2: the peak counts segments of 0.5 to 1.5 target durations; the very first one counts anyhow.
        if self.peak_bps == 0 || (target_us / 2..=target_us * 3 / 2).contains(&us) {
            self.peak_bps = self.peak_bps.max(bits_per_second(bytes, us));
        }
    }
}

fn bits_per_second(bytes: u64, us: u64) -> u64 {
    (bytes * 8 * 1_000_000).checked_div(us).unwrap_or(0)
}

impl Rendition {
    pub(crate) fn new(
        number: u8,
        name: String,
        constants: Constants,
        init: Bytes,
        description: Description,
    ) -> Self {
        let window = Window::new(constants, init);
        let progress = watch::Sender::new(window.progress());
        Self {
            number,
            name,
            window: Mutex::new(window),
            progress,
            description: Mutex::new(description),
            playlists: Default::default(),
            is_of_ladder: false,
            is_given_up: AtomicBool::new(false),
        }
    }

    /// The same, to be published by a ladder.
    pub(crate) fn of_ladder(self) -> Self {
        Self { is_of_ladder: true, ..self }
    }

    /// It was given up: only gaps come.
    pub(crate) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Release);
    }

    /// Whether what is to be said of it will not become known.
    pub(crate) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Acquire)
    }

    /// Reads the window; hold it only for a moment.
    pub(crate) fn with_window<T>(&self, read: impl FnOnce(&Window) -> T) -> T {
        read(&self.window.lock())
    }

    pub(crate) fn description(&self) -> Description {
        self.description.lock().clone()
    }

    pub(crate) fn describe(&self, change: impl FnOnce(&mut Description)) {
        change(&mut self.description.lock());
    }

    /// Wakes whenever the rendition grew or ended.
    pub(crate) fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }
}

/// What a stream is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is to be pulled from another origin, and nothing has come yet.
    Waiting,
    /// Media is coming.
    Live,
    /// The publisher or the origin that it is pulled from is gone and may come back.
    Away,
    /// Nothing more will come.
    Ended,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) name: Arc<str>,
    pub(crate) epoch: Epoch,
    pub(crate) origin_key: OriginKey,
    pub(crate) started_ms: u64,
    pub(crate) constants: Constants,
    pub(crate) renditions: Vec<Arc<Rendition>>,
    pub(crate) counters: Counters,
    pub(crate) multivariant: Cached,
    state: Mutex<State>,
    /// How its ladder goes, if one was asked for.
    ladder: OnceLock<Arc<ladder::Shared>>,
    /// Rises with every change of any rendition: playlists report on each other.
    revision: AtomicU64,
    bytes_max: usize,
    /// Whether a segment began with something else than a keyframe.
    has_dependent_segment: AtomicBool,
    /// Keeps what is published, where something is to be kept.
    recorder: Option<Recorder>,
    /// Its poster and thumbnails, where there are to be some.
    pub(crate) pictures: Option<Arc<Pictures>>,
    shared: Shared,
}

/// What all streams of the process share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) signing_key: Arc<SigningKey>,
    pub(crate) events: broadcast::Sender<Event>,
    /// The room for encoders.
    pub(crate) slots: Arc<Slots>,
    /// Where there is a storage.
    pub(crate) recordings: Option<Arc<Recordings>>,
    /// Where pictures are to be made.
    pub(crate) studio: Option<Studio>,
}

/// How the recording of a live stream goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecordingStatus {
    /// Why it has ended, although the stream goes on; empty if it has not.
    pub failure: String,
    /// Where it can be played when the stream has ended.
    pub url: String,
}

impl Live {
    /// Makes the stream known.
    pub(crate) fn start(
        name: &Arc<str>,
        started_ms: u64,
        config: &Config,
        constants: Constants,
        shared: &Shared,
        renditions: Vec<Arc<Rendition>>,
    ) -> Self {
        let epoch = Epoch(rand::random());
        let origin_key = OriginKey::of(&shared.signing_key);
        let describe = |rendition: &Arc<Rendition>| (rendition.name.clone(), rendition.description());
        let recorder = shared.recordings.as_ref().map(|recordings| {
            recordings.start(NewRecording {
                stream: name,
                epoch: format!("{epoch:?}"),
                origin_key: STANDARD.encode(origin_key.to_bytes()),
                started_ms,
                target_duration_s: constants.target_duration_s,
                renditions: renditions.iter().map(describe).collect(),
            })
        });
        if recorder.is_some() {
            renditions.iter().for_each(|rendition| rendition.window.lock().watch_changes(config.has_dvr()));
        }
        let shelf = recorder.as_ref().and_then(Recorder::shelf);
        let live = Self {
            name: name.clone(),
            epoch,
            origin_key,
            started_ms,
            constants,
            renditions,
            counters: Counters::new(name),
            multivariant: Cached::default(),
            state: Mutex::new(State::Live),
            ladder: OnceLock::new(),
            revision: AtomicU64::new(0),
            bytes_max: config.stream_bytes_max,
            has_dependent_segment: AtomicBool::new(false),
            recorder,
            pictures: shared.studio.as_ref().map(|studio| studio.pictures(name, shelf)),
            shared: shared.clone(),
        };
        live.emit(Event::Started {
            stream: live.name.clone(),
            epoch: live.epoch,
            origin_key: Box::new(live.origin_key.clone()),
            renditions: live.rendition_infos(),
        });
        live
    }

    pub(crate) fn epoch_hex(&self) -> String {
        format!("{:?}", self.epoch)
    }

    pub(crate) fn state(&self) -> State {
        *self.state.lock()
    }

    pub(crate) fn set_state(&self, state: State) {
        let before = std::mem::replace(&mut *self.state.lock(), state);
        if state == State::Ended && before != State::Ended {
            for rendition in &self.renditions {
                rendition.description.lock().end_open_segment();
                self.change(rendition, Window::end);
            }
            if let Some(recorder) = &self.recorder {
                recorder.close();
            }
            self.emit(Event::Ended { stream: self.name.clone(), epoch: self.epoch });
        }
    }

    /// What is known of its ladder from now on. Once.
    pub(crate) fn set_ladder(&self, ladder: Arc<ladder::Shared>) {
        let _ = self.ladder.set(ladder);
    }

    /// How each rung of its ladder goes, largest first.
    pub(crate) fn ladder(&self) -> Vec<LadderStatus> {
        self.ladder.get().map_or_else(Vec::new, |ladder| ladder.statuses())
    }

    /// Whether its ladder has worked on all that it was given.
    pub(crate) fn is_ladder_idle(&self) -> bool {
        self.ladder.get().is_none_or(|ladder| ladder.is_idle())
    }

    /// What the multivariant playlist says about a rendition; none if that is not known yet. One whose segments are gaps
    /// so far, such as a layer that never came, is held to need as much as the best of its kind: it cannot be left out,
    /// because renditions have their numbers from their order in the playlist.
    pub(crate) fn described(&self, rendition: &Rendition) -> Option<Description> {
        let description = rendition.description();
        if description.is_measured() || rendition.with_window(Window::progress).is_ended {
            return Some(description);
        }
        let others = self.renditions.iter().map(|other| other.description());
        let others = others.filter(|other| other.is_measured() && other.is_video() == description.is_video());
        let best = others.max_by_key(|other| other.peak_bps);
        if rendition.with_window(Window::progress).msn > 0 && best.is_some() || rendition.is_given_up() {
            return Some(description.like(&best.unwrap_or_default()));
        }
        None
    }

    /// The renditions that the stream's worker publishes itself.
    pub(crate) fn own_renditions(&self) -> impl Iterator<Item = &Arc<Rendition>> {
        self.renditions.iter().filter(|rendition| !rendition.is_of_ladder)
    }

    pub(crate) fn rendition(&self, name: &str) -> Option<&Arc<Rendition>> {
        self.renditions.iter().find(|rendition| rendition.name == name)
    }

    pub(crate) fn rendition_infos(&self) -> Vec<RenditionInfo> {
        self.renditions
            .iter()
            .map(|rendition| {
                let Description { codecs, resolution, .. } = rendition.description();
                RenditionInfo { number: rendition.number, name: rendition.name.clone(), codecs, resolution }
            })
            .collect()
    }

    /// Media bytes that are held in memory.
    pub(crate) fn held_bytes(&self) -> usize {
        self.renditions.iter().map(|rendition| rendition.with_window(Window::bytes)).sum()
    }

    /// Signs a part, makes it available, wakes those who wait for it and tells the tracker.
    pub(crate) fn publish(&self, rendition: &Rendition, part: NewPart) {
        let NewPart { bytes, start_ms, duration_us, is_independent, has_keyframe, is_last } = part;
        let at = rendition.with_window(Window::progress);
        let piece = PieceId {
            rendition: rendition.number,
            msn: at.msn,
            // A segment of 10 s in parts of 200 ms has 50.
            part: u16::try_from(at.parts).expect("a segment has few parts"),
        };
        let duration_ms = u32::try_from((duration_us + 500) / 1000).unwrap_or(u32::MAX);
        let start_unsigned = u64::try_from(start_ms).unwrap_or(0);
        let record =
            Record::of(self.epoch, piece, is_last, is_independent, start_unsigned, duration_ms, &bytes);
        let record = Bytes::from(record.sign(&self.shared.signing_key));
        let length = bytes.len();
        self.counters.add_media(length);
        {
            let target_us = self.constants.target_duration_s * 1_000_000;
            let mut description = rendition.description.lock();
            description.open_bytes += length as u64;
            description.open_us += duration_us.unsigned_abs();
            if is_last {
                description.end_segment(target_us);
            }
        }
        if piece.part == 0 && is_independent {
            self.offer_picture(rendition, piece.msn, start_ms, &bytes);
        }
        let entry = PartEntry {
            duration_us,
            bytes,
            record: record.clone(),
            is_independent: has_keyframe,
            is_gap: false,
        };
        self.change(rendition, |window| {
            window.add_part(entry, start_ms);
            if is_last {
                window.end_segment();
            }
        });
        // Named as playlists name it.
        let file = match self.constants.has_parts {
            true => format!("part-{}-{}.m4s", piece.msn, piece.part),
            false => format!("seg-{}.m4s", piece.msn),
        };
        self.emit(Event::Published(Arc::new(Published {
            stream: self.name.clone(),
            epoch: self.epoch,
            piece,
            uri: format!("{}/{}/{file}", self.epoch_hex(), rendition.name),
            length: u32::try_from(length).unwrap_or(u32::MAX),
            duration_ms,
            is_last_in_segment: is_last,
            record,
        })));
        self.shed();
    }

    /// A segment begins with this part, and it with a keyframe: it may become a picture.
    fn offer_picture(&self, rendition: &Rendition, msn: u64, date_ms: i64, part: &Bytes) {
        let Some(pictures) = &self.pictures else { return };
        if !rendition.description.lock().is_video() {
            return;
        }
        let offer = Offer::new(
            msn,
            date_ms,
            self.constants.segment_us,
            self.picture_source() == Some(rendition.number),
        );
        pictures.offer(offer, || {
            let init = rendition.with_window(|window| window.newest_init().cloned());
            Some((init?, part.clone()))
        });
    }

    /// The rendition that pictures are made of: the smallest that is good enough, or else the largest.
    fn picture_source(&self) -> Option<u8> {
        let sizes = self.renditions.iter().filter_map(|rendition| {
            let (width, height) = rendition.description.lock().resolution?;
            Some((width.max(height), rendition.number))
        });
        // Those too small come behind all others, largest first.
        let rank = |(side, _): &(u32, u8)| if *side >= SOURCE_SIDE { *side } else { u32::MAX - *side };
        sizes.min_by_key(rank).map(|(_, number)| number)
    }

    /// Adds a part that has no media.
    pub(crate) fn publish_gap(&self, rendition: &Rendition, start_ms: i64, duration_us: i64, is_last: bool) {
        let entry = PartEntry {
            duration_us,
            bytes: Bytes::new(),
            record: Bytes::new(),
            is_independent: false,
            is_gap: true,
        };
        if is_last {
            rendition.description.lock().end_open_segment();
        }
        self.change(rendition, |window| {
            window.add_part(entry, start_ms);
            if is_last {
                window.end_segment();
            }
        });
    }

    /// Ends a rendition's segment behind the parts that it has; nothing where it has none.
    pub(crate) fn end_segment(&self, rendition: &Rendition) {
        rendition.description.lock().end_open_segment();
        self.change(rendition, Window::end_segment);
    }

    /// Ends all open segments, and brings renditions that are behind to the same media sequence number, which is
    /// returned, with gaps that reach to `until_ms` and are not longer than `gap_us`. Their date is that of the end of the
    /// rendition, as `end_ms` gives it by rendition number. A ladder is not touched: it does the same in its own time.
    pub(crate) fn align(&self, gap_us: i64, until_ms: i64, end_ms: impl Fn(u8) -> i64) -> u64 {
        for rendition in self.own_renditions() {
            self.end_segment(rendition);
        }
        let msn = |rendition: &Arc<Rendition>| rendition.with_window(Window::progress).msn;
        let newest = self.own_renditions().map(msn).max().unwrap_or(0);
        for rendition in self.own_renditions() {
            let behind = newest - msn(rendition);
            let from_ms = end_ms(rendition.number);
            let missing_us = until_ms.saturating_sub(from_ms).saturating_mul(1000);
            let gap_us = (missing_us / behind.max(1) as i64).clamp(1_000, gap_us);
            for index in 0..behind {
                tracing::warn!(rendition = rendition.name, "a segment is missing");
                let start_ms = from_ms + index as i64 * gap_us / 1000;
                self.publish_gap(rendition, start_ms, gap_us, true);
            }
        }
        newest
    }

    /// Changes a rendition's window and wakes those who wait for it.
    pub(crate) fn change(&self, rendition: &Rendition, change: impl FnOnce(&mut Window)) {
        let (progress, changes) = {
            let mut window = rendition.window.lock();
            // Under the lock, so that whoever sees the change renders it: a text of the revision before would be kept by
            // a CDN under a URL that asked for more. And first, so that a text of the new revision waits for the change.
            self.revision.fetch_add(1, Ordering::AcqRel);
            change(&mut window);
            if let Some(recorder) = &self.recorder {
                match recorder.stored_to(rendition.number) {
                    Some(msn) => window.set_stored(msn),
                    None => window.lose_storage(),
                }
            }
            (window.progress(), window.take_changes())
        };
        rendition.progress.send_replace(progress);
        if let (Some(recorder), false) = (&self.recorder, changes.is_empty()) {
            recorder.take(rendition.number, changes, || rendition.description());
        }
    }

    /// A segment began with something else than a keyframe.
    pub(crate) fn has_dependent_segment(&self) {
        if !self.has_dependent_segment.swap(true, Ordering::AcqRel) {
            self.revision.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Whether all segments so far began with keyframes.
    pub(crate) fn has_independent_segments(&self) -> bool {
        !self.has_dependent_segment.load(Ordering::Acquire)
    }

    /// How its recording goes, if there is to be one.
    pub(crate) fn recording(&self) -> Option<RecordingStatus> {
        let recorder = self.recorder.as_ref().filter(|recorder| recorder.is_kept())?;
        Some(RecordingStatus {
            failure: recorder.failure().unwrap_or_default(),
            url: format!("/vod/{}/{}/index.m3u8", self.name, self.epoch_hex()),
        })
    }

    /// The path of its poster, if there is one.
    pub(crate) fn poster_url(&self) -> Option<String> {
        let made = self.pictures.as_ref()?.made();
        (made > 0).then(|| format!("/live/{}/{POSTER}?{made}", self.name))
    }

    /// Whether all that was published is stored.
    pub(crate) fn is_stored(&self) -> bool {
        self.recorder.as_ref().is_none_or(Recorder::is_idle)
    }

    /// Lets the oldest media go while the stream holds more than its limit.
    fn shed(&self) {
        while self.held_bytes() > self.bytes_max {
            // The rendition with the oldest media first, so that the windows stay alike.
            let oldest = self
                .renditions
                .iter()
                .min_by_key(|rendition| rendition.with_window(|window| window.oldest().unwrap_or(u64::MAX)));
            let mut has_shed = false;
            if let Some(rendition) = oldest {
                self.change(rendition, |window| has_shed = window.shed());
            }
            if !has_shed {
                metrics::counter!("segmenter_over_limit_total", "stream" => self.name.to_string())
                    .increment(1);
                return;
            }
        }
    }

    /// The rendition's playlist as it is now, rendered once per revision.
    pub(crate) fn playlist(&self, rendition: &Rendition, with_delta: bool) -> Arc<Text> {
        rendition.playlists[usize::from(with_delta)].get(self.revision(), || {
            let reports = self.reports(rendition);
            rendition.with_window(|window| window.playlist(reports, with_delta)).render()
        })
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    fn reports(&self, of: &Rendition) -> Vec<RenditionReport> {
        let others = self.renditions.iter().filter(|other| other.number != of.number);
        others
            .filter_map(|other| {
                let (last_msn, last_part) = other.with_window(Window::last_part)?;
                let uri = format!("../{}/playlist.m3u8", other.name);
                Some(RenditionReport { uri, last_msn, last_part: Some(last_part) })
            })
            .collect()
    }

    fn emit(&self, event: Event) {
        // Nobody listening is no error: a program without a tracker.
        let _ = self.shared.events.send(event);
    }
}

#[cfg(test)]
mod tests;
