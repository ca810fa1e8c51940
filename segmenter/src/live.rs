//! A live stream as the origin sees it: renditions with their windows, shared between the stream's worker, which is
//! the only writer, and any number of requests.
//!
//! `rendition.rs` is what each rendition holds, `publish.rs` is the writer's side; here is the stream's own state, and
//! what requests read.

mod publish;
mod rendition;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::SigningKey;
use parking_lot::Mutex;
use serde::Serialize;
use shoal_digest::{Epoch, OriginKey};
use shoal_playlist::RenditionReport;
use tokio::sync::broadcast;

pub(crate) use self::publish::NewPart;
pub(crate) use self::rendition::{Description, Rendition};
use crate::config::{Config, Constants};
use crate::counters::Counters;
use crate::events::{Event, RenditionInfo};
use crate::ladder::{self, LadderStatus};
use crate::pictures::{POSTER, Pictures, Studio};
use crate::recording::{NewRecording, Recorder, Recordings};
use crate::rendered::{Cached, Text};
use crate::transcode::Slots;
use crate::window::Window;

/// What a stream is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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
