//! Recordings: what is kept of streams, from their first part to their deletion.
//!
//! A live stream has a [`Recorder`], whose lanes write (`writer`); at its end, or after a restart, what is stored is
//! closed (`close`) and can be played and downloaded (`origin::recordings`, `mp4`). This file knows which recordings
//! there are, begins and closes them, and deletes what `retention` says. What stands where is in `layout`.

mod close;
pub(crate) mod layout;
pub(crate) mod mp4;
mod pages;
mod retention;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tracing::{error, info, warn};

use crate::config::Config;
use crate::live::Description;
use crate::pictures::POSTER;
use crate::pictures::sheet::VTT;
use crate::storage::{Storage, StorageError};
use crate::worker::unix_ms;
use layout::{HEADER, Header, Page, RecordingState, RenditionHeader, SegmentMeta, VERSION, json, page_name};
use pages::Pages;
use retention::{Candidate, Limits};
use writer::Status;
pub(crate) use writer::{Recorder, Shelf};

/// Limits are looked at this often, besides after each recording's end; and what could not be closed is tried again.
const UPKEEP: Duration = Duration::from_secs(60);

/// A recording is written to with every part. One that was not for so long has lost its origin.
const ABANDONED_MS: i64 = 10 * 60_000;

/// A recording in the list.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RecordingInfo {
    /// The stream's name.
    pub stream: String,
    /// Which of its publications, in hex.
    pub epoch: String,
    /// Where it stands.
    pub state: RecordingState,
    /// When the publication began, in milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// Its duration, once it is closed.
    pub duration_ms: u64,
    /// The bytes of its media, so far or for good.
    pub bytes: u64,
    /// Its renditions' names.
    pub renditions: Vec<String>,
    /// The path of its multivariant playlist, once it is closed.
    pub url: Option<String>,
    /// The path of its MP4 file, once it is closed.
    pub mp4_url: Option<String>,
    /// The path of its poster, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poster_url: Option<String>,
    /// The path of the WebVTT file of its thumbnails, if there are some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thumbnails_url: Option<String>,
    /// Why it ended before its stream; empty if it did not.
    pub failure: String,
}

/// What is to be recorded.
#[derive(Debug)]
pub(crate) struct NewRecording<'a> {
    pub(crate) stream: &'a str,
    pub(crate) epoch: String,
    /// In base64.
    pub(crate) origin_key: String,
    pub(crate) started_ms: u64,
    pub(crate) target_duration_s: u64,
    /// Numbers are the places in this list.
    pub(crate) renditions: Vec<(String, Description)>,
}

/// All recordings of this origin.
#[derive(Debug)]
pub(crate) struct Recordings {
    storage: Arc<Storage>,
    /// In base64: recordings of other origins in a shared store are left alone.
    origin_key: String,
    /// Where viewers of recordings find each other.
    tracker_url: String,
    is_kept: bool,
    queue_bytes_max: usize,
    limits: Limits,
    /// By folder: what this process is writing.
    active: Mutex<HashMap<String, Active>>,
    /// By folder.
    closed: Mutex<BTreeMap<String, Arc<Header>>>,
    pages: Mutex<Pages>,
    wakes_upkeep: Arc<Notify>,
    /// How many recordings are to be closed before the program ends.
    closing: watch::Sender<usize>,
}

#[derive(Debug)]
struct Active {
    header: Header,
    status: Arc<Status>,
}

impl Recordings {
    /// Opens the storage and begins to take stock of it.
    pub(crate) fn open(target: &str, config: &Config, origin_key: String) -> Result<Arc<Self>, StorageError> {
        let storage = Arc::new(Storage::open(target, config)?);
        let recordings = Arc::new(Self {
            storage: storage.clone(),
            origin_key,
            tracker_url: config.tracker_url.clone(),
            is_kept: config.recording,
            queue_bytes_max: config.storage_queue_bytes_max,
            limits: Limits {
                age_max_ms: (config.recordings_keep_hours > 0)
                    .then(|| u64::from(config.recordings_keep_hours) * 3_600_000),
                bytes_max: (config.recordings_bytes_max > 0).then_some(config.recordings_bytes_max),
            },
            active: Mutex::default(),
            closed: Mutex::default(),
            pages: Mutex::default(),
            wakes_upkeep: Arc::default(),
            closing: watch::Sender::new(0),
        });
        storage.spawn(upkeep(Arc::downgrade(&recordings), recordings.wakes_upkeep.clone()));
        Ok(recordings)
    }

    pub(crate) fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    /// Begins to record a stream.
    pub(crate) fn start(self: &Arc<Self>, new: NewRecording<'_>) -> Recorder {
        let renditions = new
            .renditions
            .into_iter()
            .zip(0..)
            .map(|((name, description), number)| RenditionHeader { number, name, description });
        let header = Header {
            version: VERSION,
            stream: new.stream.to_owned(),
            epoch: new.epoch,
            origin_key: new.origin_key,
            started_ms: new.started_ms,
            target_duration_s: new.target_duration_s,
            is_kept: self.is_kept,
            state: RecordingState::Recording,
            renditions: renditions.collect(),
            closed_ms: 0,
            duration_ms: 0,
            bytes: 0,
            failure: String::new(),
            has_pictures: false,
        };
        let folder = header.folder();
        let names: Vec<_> = header.renditions.iter().map(|rendition| rendition.name.clone()).collect();
        let status = Arc::new(Status::new(self.queue_bytes_max));
        let (recorder, lanes) = Recorder::new(&self.storage, &folder, &names, self.is_kept, status.clone());
        self.active.lock().insert(folder.clone(), Active { header: header.clone(), status: status.clone() });
        if self.is_kept {
            self.closing.send_modify(|closing| *closing += 1);
        }
        let recordings = self.clone();
        self.storage.spawn(async move {
            let started = match recordings.storage.check_room() {
                Ok(()) => recordings.storage.put(&format!("{folder}/{HEADER}"), vec![json(&header)]).await,
                Err(full) => Err(full),
            };
            match started {
                Ok(()) => writer::run(lanes).await,
                Err(cause) => {
                    status.fail(cause.to_string());
                    drop(lanes);
                }
            }
            if let Some(failure) = status.failure() {
                metrics::counter!("segmenter_recordings_failed_total").increment(1);
                error!(stream = header.stream, failure, "recording ended; the stream goes on");
            }
            recordings.end(header, status.failure().unwrap_or_default()).await;
            if recordings.is_kept {
                recordings.closing.send_modify(|closing| *closing -= 1);
            }
            recordings.wakes_upkeep.notify_one();
        });
        recorder
    }

    /// Closes what was being written, or deletes what only served the live window.
    async fn end(&self, mut header: Header, failure: String) {
        let folder = header.folder();
        header.failure = failure;
        if let Err(cause) = self.settle(header).await {
            // Upkeep tries again.
            warn!(folder, %cause, "a recording could not be closed");
        }
        self.active.lock().remove(&folder);
    }

    /// Brings a recording that nobody writes to its end.
    async fn settle(&self, header: Header) -> Result<(), StorageError> {
        let folder = header.folder();
        if !header.is_kept || header.state == RecordingState::Deleting {
            return self.storage.delete_folder(&folder, HEADER).await;
        }
        let now_ms = u64::try_from(unix_ms()).unwrap_or(0);
        if let Some(header) = close::close(&self.storage, header, &self.tracker_url, now_ms).await? {
            info!(folder, duration_ms = header.duration_ms, bytes = header.bytes, "recording closed");
            self.closed.lock().insert(folder, Arc::new(header));
        }
        Ok(())
    }

    /// Finds what is stored and not known yet, and settles what is not closed.
    async fn take_stock(&self) -> Result<(), StorageError> {
        for stream in self.storage.folders("").await? {
            for epoch in self.storage.folders(&stream).await? {
                let folder = format!("{stream}/{epoch}");
                if self.closed.lock().contains_key(&folder) || self.active.lock().contains_key(&folder) {
                    continue;
                }
                if let Err(cause) = self.take_in(&folder).await {
                    warn!(folder, %cause, "a recording cannot be used");
                }
            }
        }
        Ok(())
    }

    async fn take_in(&self, folder: &str) -> Result<(), StorageError> {
        let Some(text) = self.storage.get(&format!("{folder}/{HEADER}")).await? else { return Ok(()) };
        let damaged = |reason: String| StorageError::Damaged { name: format!("{folder}/{HEADER}"), reason };
        let header: Header = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if header.version != VERSION {
            return Err(damaged("it was written by another version".to_owned()));
        }
        if header.folder() != folder {
            return Err(damaged("it belongs elsewhere".to_owned()));
        }
        if header.state == RecordingState::Closed {
            self.closed.lock().insert(folder.to_owned(), Arc::new(header));
            return Ok(());
        }
        let is_known = self.active.lock().contains_key(folder) || self.closed.lock().contains_key(folder);
        if !is_known && (self.is_ours(&header) || self.is_abandoned(folder).await?) {
            info!(folder, "closing a recording that was left open");
            self.settle(header).await?;
        }
        Ok(())
    }

    /// Whether no other origin can be writing it or be in charge of it.
    fn is_ours(&self, header: &Header) -> bool {
        self.storage.is_exclusive() || header.origin_key == self.origin_key
    }

    /// Whether whoever was writing it has long stopped.
    async fn is_abandoned(&self, folder: &str) -> Result<bool, StorageError> {
        Ok(self.storage.written_ms(folder).await? + ABANDONED_MS < unix_ms())
    }

    async fn delete_expired(&self) {
        let candidate = |(folder, header): (&String, &Arc<Header>)| {
            self.is_ours(header).then(|| Candidate {
                folder: folder.clone(),
                closed_ms: header.closed_ms,
                bytes: header.bytes,
            })
        };
        let candidates: Vec<_> = self.closed.lock().iter().filter_map(candidate).collect();
        let written =
            |active: &Active| active.status.written_bytes.load(std::sync::atomic::Ordering::Acquire);
        let open_bytes = self.active.lock().values().map(written).sum();
        let now_ms = u64::try_from(unix_ms()).unwrap_or(0);
        for folder in retention::plan(candidates, open_bytes, now_ms, self.limits) {
            // Out of the list first: from here on it cannot be relied upon.
            let Some(header) = self.closed.lock().remove(&folder) else { continue };
            info!(folder, "recording deleted");
            metrics::counter!("segmenter_recordings_deleted_total").increment(1);
            if let Err(cause) = self.delete(&header).await {
                warn!(folder, %cause, "a recording could not be deleted");
            }
        }
    }

    async fn delete(&self, header: &Header) -> Result<(), StorageError> {
        let marked = Header { state: RecordingState::Deleting, ..header.clone() };
        let folder = header.folder();
        // So that a restart goes on deleting, and never serves half of it.
        self.storage.put(&format!("{folder}/{HEADER}"), vec![json(&marked)]).await?;
        self.storage.delete_folder(&folder, HEADER).await
    }

    /// The closed recording of a publication.
    pub(crate) fn find(&self, stream: &str, epoch: &str) -> Option<Arc<Header>> {
        self.closed.lock().get(&format!("{stream}/{epoch}")).cloned()
    }

    /// A segment as it is described in the storage.
    pub(crate) async fn segment(
        &self,
        folder: &str,
        rendition: &str,
        msn: u64,
    ) -> Result<Option<SegmentMeta>, StorageError> {
        let name = page_name(folder, rendition, msn);
        let known = self.pages.lock().get(&name, msn);
        let segments = match known {
            Some(segments) => segments,
            None => {
                let Some(text) = self.storage.get(&name).await? else { return Ok(None) };
                let page: Page = serde_json::from_slice(&text).map_err(|error| StorageError::Damaged {
                    name: name.clone(),
                    reason: error.to_string(),
                })?;
                let segments: Arc<[SegmentMeta]> = page.segments.into();
                self.pages.lock().put(name, segments.clone(), text.len());
                segments
            }
        };
        Ok(segments.iter().find(|segment| segment.msn == msn).cloned())
    }

    /// The signed records of a segment's parts, each after its length.
    pub(crate) async fn records(
        &self,
        folder: &str,
        rendition: &str,
        msn: u64,
    ) -> Result<Option<Bytes>, StorageError> {
        let segment = self.segment(folder, rendition, msn).await?;
        Ok(segment.map(|segment| join_records(segment.parts.iter().map(|part| &part.record))))
    }

    /// All recordings, newest first.
    pub(crate) fn list(&self) -> Vec<RecordingInfo> {
        let mut list = Vec::new();
        for active in self.active.lock().values().filter(|active| active.header.is_kept) {
            let bytes = active.status.written_bytes.load(std::sync::atomic::Ordering::Acquire);
            let failure = active.status.failure().unwrap_or_default();
            list.push(describe(&Header { bytes, failure, ..active.header.clone() }));
        }
        list.extend(self.closed.lock().values().map(|header| describe(header)));
        // What is just being closed is in both for a moment; the closed one comes later and wins.
        list.reverse();
        list.sort_by(|a, b| {
            b.started_ms.cmp(&a.started_ms).then_with(|| (&a.stream, &a.epoch).cmp(&(&b.stream, &b.epoch)))
        });
        list.dedup_by(|b, a| (&a.stream, &a.epoch) == (&b.stream, &b.epoch));
        list
    }

    /// Waits until nothing is left to be closed, but not for ever.
    pub(crate) async fn closed(&self, patience: Duration) {
        let mut closing = self.closing.subscribe();
        if tokio::time::timeout(patience, closing.wait_for(|closing| *closing == 0)).await.is_err() {
            warn!("a recording is not closed yet; the next start will do it");
        }
    }
}

/// Records in one body: each is preceded by its length.
pub(crate) fn join_records<'a>(records: impl Iterator<Item = &'a Bytes>) -> Bytes {
    let mut joined = BytesMut::new();
    for record in records {
        joined.put_u32(u32::try_from(record.len()).unwrap_or(0));
        joined.put_slice(record);
    }
    joined.freeze()
}

fn describe(header: &Header) -> RecordingInfo {
    let folder = header.folder();
    let path = |file: &str| (header.state == RecordingState::Closed).then(|| format!("/vod/{folder}/{file}"));
    RecordingInfo {
        stream: header.stream.clone(),
        epoch: header.epoch.clone(),
        state: header.state,
        started_ms: header.started_ms,
        duration_ms: header.duration_ms,
        bytes: header.bytes,
        renditions: header.renditions.iter().map(|rendition| rendition.name.clone()).collect(),
        url: path("index.m3u8"),
        mp4_url: path(mp4::FILE),
        poster_url: path(POSTER).filter(|_| header.has_pictures),
        thumbnails_url: path(VTT).filter(|_| header.has_pictures),
        failure: header.failure.clone(),
    }
}

/// Takes stock at the start and keeps to the limits, as long as the registry is there.
async fn upkeep(recordings: Weak<Recordings>, wakes: Arc<Notify>) {
    loop {
        let Some(recordings) = recordings.upgrade() else { return };
        if let Err(cause) = recordings.take_stock().await {
            warn!(%cause, "the storage cannot be listed");
        }
        recordings.delete_expired().await;
        drop(recordings);
        let _ = tokio::time::timeout(UPKEEP, wakes.notified()).await;
    }
}

impl Drop for Recordings {
    fn drop(&mut self) {
        // Lets the upkeep find out.
        self.wakes_upkeep.notify_one();
    }
}
