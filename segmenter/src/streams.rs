//! The registry of streams: who may publish under which name, what is live, and the way to its figures.
//!
//! Each stream has one worker thread (`worker.rs`), which does all media work, so that one stream's load or bug
//! never holds up another or a request. The registry only hands out queues to it: see `publication.rs`.

mod publication;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::SigningKey;
use parking_lot::Mutex;
use shoal_digest::OriginKey;
use tokio::sync::{broadcast, watch};

pub(crate) use self::publication::{Feed, weight};
pub use self::publication::{KeyframeRequest, Overflow, Publication};
use crate::config::Config;
use crate::counters::StreamStats;
use crate::events::{Event, RenditionInfo};
use crate::ladder::LadderStatus;
use crate::live::{Live, RecordingStatus, Shared, State};
use crate::pictures::Studio;
use crate::pull::{self, PullError, Puller, Upstream, UpstreamStatus};
use crate::recording::{RecordingInfo, Recordings};
use crate::storage::StorageError;
use crate::transcode::Slots;
use crate::worker::{Message, Worker};

/// So many events may wait for a slow subscriber before it misses some: 10 s of 64 streams.
const EVENTS_MAX: usize = 4096;

/// All streams of this process. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Streams(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    shared: Shared,
    table: Mutex<HashMap<Arc<str>, Arc<Entry>>>,
}

/// A name in use: from its first publisher's coming until its ended stream is forgotten.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: Arc<str>,
    messages: mpsc::Sender<Message>,
    has_publisher: AtomicBool,
    /// The worker takes no more publishers: a new one starts a new entry.
    pub(crate) is_closed: AtomicBool,
    pub(crate) queued_bytes: AtomicUsize,
    /// The current publication, once its first frame is in.
    pub(crate) live: watch::Sender<Option<Arc<Live>>>,
    /// Where it is pulled from, if it is.
    upstream: Option<Arc<Upstream>>,
    /// Whether all streams are to end.
    pub(crate) closing: watch::Sender<bool>,
}

/// Why a stream cannot be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// Another publisher holds the name.
    #[error("the stream already has a publisher")]
    Busy,
    /// The name is not 1 to 64 letters, digits, `-` or `_`.
    #[error("a stream's name has 1 to 64 letters, digits, '-' or '_'")]
    BadName,
    /// No room for another stream.
    #[error("the server has no room for another stream")]
    Full,
}

/// A stream in the list.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct StreamInfo {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub state: State,
    /// When its publication began, in milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// Its renditions.
    pub renditions: Vec<RenditionInfo>,
    /// The path of its poster, if there is one; another query, another picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poster_url: Option<String>,
    /// How each rung of its ladder goes, largest first; none where none was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ladder: Vec<LadderStatus>,
    /// How its recording goes, if there is to be one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recording: Option<RecordingStatus>,
    /// The origin that it is pulled from, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<UpstreamStatus>,
}

/// Whether `name` may be a stream's name.
#[must_use]
pub fn is_stream_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=64).contains(&name.len()) && name.bytes().all(is_allowed)
}

impl Streams {
    /// Makes an empty registry. Records of all streams are signed with `signing_key`. Recordings of earlier runs are
    /// found and closed in the background.
    ///
    /// # Errors
    /// [`StorageError`] if recordings or a long live window are wanted, and the storage for them cannot be used.
    pub fn open(config: Config, signing_key: SigningKey) -> Result<Self, StorageError> {
        // libavformat and libavcodec would else write to standard error whatever a publisher makes them say.
        ffmpeg_next::log::set_level(ffmpeg_next::log::Level::Fatal);
        let key = STANDARD.encode(OriginKey::of(&signing_key).to_bytes());
        let target = config.storage_target().map(str::to_owned);
        let recordings = target.map(|target| Recordings::open(&target, &config, key)).transpose()?;
        Ok(Self(Arc::new(Inner {
            shared: Shared {
                studio: Studio::open(&config),
                signing_key: Arc::new(signing_key),
                events: broadcast::Sender::new(EVENTS_MAX),
                slots: Slots::new(config.transcodes_max),
                recordings,
            },
            config,
            table: Mutex::default(),
        })))
    }

    /// [`Self::open`] for configurations that keep nothing, or where a storage that cannot be used is a bug.
    ///
    /// # Panics
    /// If the storage cannot be used.
    #[must_use]
    pub fn new(config: Config, signing_key: SigningKey) -> Self {
        Self::open(config, signing_key).expect("the storage can be used")
    }

    /// All recordings, newest first: those being made, and those that can be played.
    #[must_use]
    pub fn recordings(&self) -> Vec<RecordingInfo> {
        self.0.shared.recordings.as_ref().map_or_else(Vec::new, |recordings| recordings.list())
    }

    /// Whether there is a recording of this stream that can be played; `epoch` in hexadecimal, as in its URL.
    #[must_use]
    pub fn has_recording(&self, stream: &str, epoch: &str) -> bool {
        self.recording_registry().is_some_and(|recordings| recordings.find(stream, epoch).is_some())
    }

    pub(crate) fn recording_registry(&self) -> Option<&Arc<Recordings>> {
        self.0.shared.recordings.as_ref()
    }

    /// Waits until the recordings of ended streams are closed, or `patience` is over. What is not closed then, the next
    /// start closes.
    pub async fn recorded(&self, patience: Duration) {
        if let Some(recordings) = &self.0.shared.recordings {
            recordings.closed(patience).await;
        }
    }

    /// Takes a publisher for the stream `name`. Within the grace time after another one left, the stream goes on;
    /// otherwise a new one begins with the first frames.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn publish(&self, name: &str) -> Result<Publication, PublishError> {
        if !is_stream_name(name) {
            return Err(PublishError::BadName);
        }
        let mut table = self.0.table.lock();
        let known = table.get(name).filter(|entry| !entry.is_closed.load(Ordering::Acquire)).cloned();
        let entry = if let Some(entry) = known {
            entry
        } else {
            if table.len() >= self.0.config.streams_max && !table.contains_key(name) {
                return Err(PublishError::Full);
            }
            let entry = self.start(name);
            table.insert(entry.name.clone(), entry.clone());
            entry
        };
        if entry.has_publisher.swap(true, Ordering::AcqRel) {
            return Err(PublishError::Busy);
        }
        drop(table);
        let slots = self.0.shared.slots.clone();
        Ok(Publication::attach(entry, self.0.config.queue_bytes_max, slots))
    }

    fn start(&self, name: &str) -> Arc<Entry> {
        let (entry, inbox) = Entry::new(name, None);
        let (inner, owned) = (self.0.clone(), entry.clone());
        self.spawn(&entry, move || {
            Worker::new(owned, inbox, inner.config.clone(), inner.shared.clone()).run();
        });
        entry
    }

    /// Gives a stream its thread.
    fn spawn(&self, entry: &Arc<Entry>, work: impl FnOnce() + Send + 'static) {
        // Also on a panic in media code: the name must not stay taken.
        let guard = Forget { inner: self.0.clone(), entry: entry.clone() };
        std::thread::Builder::new()
            .name(format!("stream-{}", entry.name).chars().take(15).collect())
            .spawn(move || {
                let _guard = guard;
                work();
            })
            .expect("the system has threads for as many streams as the configuration allows");
    }

    /// Begins to pull the streams that `config` names from other origins. Their names are taken for as long as this
    /// registry is open.
    ///
    /// # Errors
    /// [`PullError`] if a stream's name is taken, or there is no room for it.
    pub fn pull(&self, config: &pull::Config) -> Result<(), PullError> {
        for source in &config.streams {
            let (fetcher, upstream, named) = pull::open(source, config)?;
            let (entry, _) = Entry::new(&source.name, Some(upstream.clone()));
            entry.has_publisher.store(true, Ordering::Release);
            {
                let mut table = self.0.table.lock();
                if table.contains_key(&entry.name) {
                    return Err(PullError(format!("the stream {} is there already", entry.name)));
                }
                if table.len() >= self.0.config.streams_max {
                    let text = format!("no room for {}: segmenter.streams_max is too small", entry.name);
                    return Err(PullError(text));
                }
                table.insert(entry.name.clone(), entry.clone());
            }
            let inner = &self.0;
            let puller = Puller::new(
                entry.clone(),
                inner.config.clone(),
                inner.shared.clone(),
                (fetcher, upstream),
                config,
                named,
            );
            self.spawn(&entry, move || puller.run());
        }
        Ok(())
    }

    /// Events from now on. A subscriber that is slower than thousands of events misses the oldest.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.shared.events.subscribe()
    }

    /// The streams that can be watched or are to be pulled, by name.
    #[must_use]
    pub fn list(&self) -> Vec<StreamInfo> {
        let info = |entry: &Arc<Entry>| {
            let live = entry.live.borrow().clone();
            let upstream = entry.upstream.as_ref().map(|upstream| upstream.status());
            // A publisher's stream is not shown before it begins; one to be pulled may need the operator.
            if live.is_none() && upstream.is_none() {
                return None;
            }
            let live = live.as_ref();
            Some(StreamInfo {
                name: entry.name.to_string(),
                state: live.map_or(State::Waiting, |live| live.state()),
                started_ms: live.map_or(0, |live| live.started_ms),
                renditions: live.map_or_else(Vec::new, |live| live.rendition_infos()),
                poster_url: live.and_then(|live| live.poster_url()),
                ladder: live.map_or_else(Vec::new, |live| live.ladder()),
                recording: live.and_then(|live| live.recording()),
                upstream,
            })
        };
        let mut list: Vec<_> = self.0.table.lock().values().filter_map(info).collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }

    /// The figures of all streams that can be watched, by name.
    #[must_use]
    pub fn stats(&self) -> Vec<StreamStats> {
        let mut stats: Vec<_> = self.lives().into_iter().map(|live| live.counters.stats(&live)).collect();
        stats.sort_by(|a, b| a.name.cmp(&b.name));
        stats
    }

    pub(crate) fn config(&self) -> &Config {
        &self.0.config
    }

    /// The public half of the signing key.
    #[must_use]
    pub fn origin_key(&self) -> OriginKey {
        OriginKey::of(&self.0.shared.signing_key)
    }

    /// Ends all streams: their playlists are closed, blocked requests answered. For a clean shutdown.
    pub fn close(&self) {
        for entry in self.0.table.lock().values() {
            entry.closing.send_replace(true);
            entry.send(Message::End);
        }
    }

    fn lives(&self) -> Vec<Arc<Live>> {
        self.0.table.lock().values().filter_map(|entry| entry.live.borrow().clone()).collect()
    }

    pub(crate) fn entry(&self, name: &str) -> Option<Arc<Entry>> {
        self.0.table.lock().get(name).cloned()
    }
}

impl Entry {
    fn new(name: &str, upstream: Option<Arc<Upstream>>) -> (Arc<Self>, mpsc::Receiver<Message>) {
        let (messages, inbox) = mpsc::channel();
        let entry = Self {
            name: name.into(),
            messages,
            has_publisher: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            queued_bytes: AtomicUsize::new(0),
            live: watch::Sender::new(None),
            upstream,
            closing: watch::Sender::new(false),
        };
        (Arc::new(entry), inbox)
    }

    pub(crate) fn send(&self, message: Message) {
        // The worker is gone only after it closed the entry: nobody needs the message then.
        let _ = self.messages.send(message);
    }
}

/// Takes the name out of the registry when the worker ends.
struct Forget {
    inner: Arc<Inner>,
    entry: Arc<Entry>,
}

impl Drop for Forget {
    fn drop(&mut self) {
        self.entry.is_closed.store(true, Ordering::Release);
        if let Some(live) = &*self.entry.live.borrow() {
            live.set_state(State::Ended);
        }
        let mut table = self.inner.table.lock();
        if table.get(&self.entry.name).is_some_and(|known| Arc::ptr_eq(known, &self.entry)) {
            table.remove(&self.entry.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Input, TrackId};

    fn streams(config: Config) -> Streams {
        Streams::new(config, SigningKey::from_bytes(&[1; 32]))
    }

    #[test]
    fn names_are_checked() {
        let streams = streams(Config::default());
        for bad in ["", "a b", "ü", "a/b", "..", &"x".repeat(65)] {
            assert_eq!(streams.publish(bad).unwrap_err(), PublishError::BadName, "{bad}");
        }
        assert!(streams.publish(&"x".repeat(64)).is_ok());
    }

    #[test]
    fn name_is_busy_until_its_publisher_leaves() {
        let streams = streams(Config::default());
        let first = streams.publish("a").unwrap();
        assert_eq!(streams.publish("a").unwrap_err(), PublishError::Busy);
        drop(first);
        assert!(streams.publish("a").is_ok());
    }

    #[test]
    fn server_takes_no_more_streams_than_configured() {
        let streams = streams(Config { streams_max: 1, ..Config::default() });
        let _first = streams.publish("a").unwrap();
        assert_eq!(streams.publish("b").unwrap_err(), PublishError::Full);
    }

    #[test]
    fn push_never_blocks_and_says_when_the_queue_is_full() {
        let streams = streams(Config { queue_bytes_max: 64 << 10, ..Config::default() });
        let publication = streams.publish("a").unwrap();
        let frame = crate::frame::Frame {
            track: TrackId(1),
            pts: crate::frame::MediaTime(0),
            is_keyframe: true,
            data: vec![0; 65 << 10].into(),
        };
        assert_eq!(publication.push(Input::Frame(frame)), Err(Overflow));
        assert_eq!(publication.push(Input::Discontinuity), Ok(()), "the refused frame does not stay counted");
    }
}
