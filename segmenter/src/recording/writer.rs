//! Writes what happens to a stream's windows into the storage: the live half of a recording.
//!
//! Each rendition has a lane: a queue and a task that takes it in order. The order of its writes is what a restart
//! relies on: a part before its segment, a segment before the page that names it, the page before the parts go. A
//! stream's worker only ever puts into a queue; a queue that gets too long ends the recording, never the stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use futures::future;
use tokio::sync::{mpsc, watch};
use tracing::debug;

use super::layout::{
    self, OpenPart, Page, PartMeta, SegmentMeta, VERSION, init_name, json, open_name, page_name, page_number,
    segment_name,
};
use crate::live::Description;
use crate::storage::{Storage, StorageError};
use crate::window::{Change, PartHead};

/// What a change weighs in the queue besides its media.
const CHANGE_OVERHEAD_BYTES: usize = 512;

/// How the writing of one stream goes; shared by its worker and the lanes.
#[derive(Debug)]
pub(super) struct Status {
    queued_bytes: AtomicUsize,
    queue_bytes_max: usize,
    pub(super) written_bytes: AtomicU64,
    failure: watch::Sender<Option<String>>,
}

impl Status {
    pub(super) fn new(queue_bytes_max: usize) -> Self {
        Self {
            queued_bytes: AtomicUsize::new(0),
            queue_bytes_max,
            written_bytes: AtomicU64::new(0),
            failure: watch::Sender::new(None),
        }
    }

    /// Ends the writing; the first reason stays.
    pub(super) fn fail(&self, reason: String) {
        self.failure.send_if_modified(|failure| {
            let is_first = failure.is_none();
            failure.get_or_insert(reason);
            is_first
        });
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.failure.borrow().clone()
    }

    /// Returns once the writing has failed.
    pub(super) async fn failed(&self) {
        // The sender is `self`: this ends with a failure only.
        let _ = self.failure.subscribe().wait_for(Option::is_some).await;
    }
}

/// What a lane is told.
#[derive(Debug)]
enum Job {
    Change(Change, Box<Description>),
    /// Something beside the media.
    Keep(String, Bytes),
    Forget(String),
    Close,
}

/// A place beside a stream's media in the storage. Cloning gives another handle.
#[derive(Clone, Debug)]
pub(crate) struct Shelf {
    status: Arc<Status>,
    jobs: mpsc::UnboundedSender<Job>,
    is_kept: bool,
}

impl Shelf {
    /// Puts an object there, by its name in the publication's folder. Never blocks. It can be done without: when the
    /// storage is behind, or fails with it, it is left out.
    pub(crate) fn keep(&self, name: String, bytes: Bytes) {
        let weight = bytes.len() + CHANGE_OVERHEAD_BYTES;
        if self.status.queued_bytes.load(Ordering::Acquire) + weight > self.status.queue_bytes_max / 2 {
            return;
        }
        self.status.queued_bytes.fetch_add(weight, Ordering::AcqRel);
        if self.jobs.send(Job::Keep(name, bytes)).is_err() {
            // The stream has ended meanwhile.
            self.status.queued_bytes.fetch_sub(weight, Ordering::AcqRel);
        }
    }

    /// Takes an object away.
    pub(crate) fn forget(&self, name: String) {
        let _ = self.jobs.send(Job::Forget(name));
    }

    /// Whether what is put there can be relied upon.
    pub(crate) fn works(&self) -> bool {
        self.status.failure().is_none()
    }

    /// Whether it becomes part of a recording, rather than to go with the live window.
    pub(crate) fn is_kept(&self) -> bool {
        self.is_kept
    }
}

/// The stream's end of its recording.
#[derive(Debug)]
pub(crate) struct Recorder {
    status: Arc<Status>,
    /// In the order of the renditions' numbers.
    lanes: Vec<LaneHandle>,
    is_kept: bool,
}

#[derive(Debug)]
struct LaneHandle {
    jobs: mpsc::UnboundedSender<Job>,
    stored_to: Arc<AtomicU64>,
}

impl Recorder {
    /// A recorder and the lanes to be run for it, one for each of the renditions `names`.
    pub(super) fn new(
        storage: &Arc<Storage>,
        folder: &str,
        names: &[String],
        is_kept: bool,
        status: Arc<Status>,
    ) -> (Self, Vec<Lane>) {
        let (handles, lanes) = names
            .iter()
            .map(|name| {
                let (sender, jobs) = mpsc::unbounded_channel();
                let stored_to = Arc::new(AtomicU64::new(0));
                let handle = LaneHandle { jobs: sender, stored_to: stored_to.clone() };
                let lane = Lane {
                    storage: storage.clone(),
                    folder: folder.to_owned(),
                    rendition: name.clone(),
                    is_kept,
                    status: status.clone(),
                    jobs,
                    stored_to,
                    open: None,
                    page: Vec::new(),
                };
                (handle, lane)
            })
            .unzip();
        (Self { status, lanes: handles, is_kept }, lanes)
    }

    /// Takes what happened to a rendition's window. Never blocks.
    pub(crate) fn take(&self, rendition: u8, changes: Vec<Change>, description: impl Fn() -> Description) {
        let Some(lane) = self.lanes.get(usize::from(rendition)) else { return };
        for change in changes {
            let queued = self.status.queued_bytes.fetch_add(weight(&change), Ordering::AcqRel);
            if queued + weight(&change) > self.status.queue_bytes_max {
                self.status.fail("the storage can't keep up".to_owned());
            }
            // Refused only by a lane that has failed.
            let _ = lane.jobs.send(Job::Change(change, Box::new(description())));
        }
    }

    /// Segments of the rendition before this one are stored; none if nothing can be relied upon any more.
    pub(crate) fn stored_to(&self, rendition: u8) -> Option<u64> {
        let lane = self.lanes.get(usize::from(rendition))?;
        self.failure().is_none().then(|| lane.stored_to.load(Ordering::Acquire))
    }

    /// Why it ended before the stream.
    pub(crate) fn failure(&self) -> Option<String> {
        self.status.failure()
    }

    /// Whether there will be a recording, rather than a longer live window only.
    pub(crate) fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// A place for what belongs to the stream besides its media.
    pub(crate) fn shelf(&self) -> Option<Shelf> {
        let jobs = self.lanes.first()?.jobs.clone();
        Some(Shelf { status: self.status.clone(), jobs, is_kept: self.is_kept })
    }

    /// Whether everything that it took is stored.
    pub(crate) fn is_idle(&self) -> bool {
        self.status.queued_bytes.load(Ordering::Acquire) == 0
    }

    /// Nothing will come any more. What only serves the live window is needed until the stream is forgotten.
    pub(crate) fn close(&self) {
        if self.is_kept {
            for lane in &self.lanes {
                let _ = lane.jobs.send(Job::Close);
            }
        }
    }
}

fn weight(change: &Change) -> usize {
    let media = match change {
        Change::Part { part, .. } => part.bytes.len(),
        Change::Init { bytes, .. } => bytes.len(),
        Change::SegmentEnded { .. } | Change::Dropped { .. } => 0,
    };
    media + CHANGE_OVERHEAD_BYTES
}

/// The segment in the making, as it is stored.
#[derive(Debug)]
pub(super) struct OpenSegment {
    pub(super) msn: u64,
    pub(super) head: PartHead,
    pub(super) parts: Vec<(PartMeta, Bytes)>,
}

/// Writes one rendition.
#[derive(Debug)]
pub(super) struct Lane {
    storage: Arc<Storage>,
    folder: String,
    rendition: String,
    is_kept: bool,
    status: Arc<Status>,
    jobs: mpsc::UnboundedReceiver<Job>,
    stored_to: Arc<AtomicU64>,
    open: Option<OpenSegment>,
    page: Vec<SegmentMeta>,
}

impl Lane {
    /// Works until the stream's end or a failure, of this lane or another.
    pub(super) async fn run(mut self) {
        let status = self.status.clone();
        tokio::select! {
            biased;
            () = status.failed() => {}
            result = self.work() => {
                if let Err(error) = result {
                    status.fail(error.to_string());
                }
            }
        }
    }

    async fn work(&mut self) -> Result<(), StorageError> {
        while let Some(job) = self.jobs.recv().await {
            match job {
                Job::Change(change, description) => {
                    let weight = weight(&change);
                    self.change(change, *description).await?;
                    self.status.queued_bytes.fetch_sub(weight, Ordering::AcqRel);
                }
                Job::Keep(name, bytes) => {
                    let weight = bytes.len() + CHANGE_OVERHEAD_BYTES;
                    let name = format!("{}/{name}", self.folder);
                    if let Err(cause) = self.storage.put(&name, vec![bytes]).await {
                        debug!(name, %cause, "not stored");
                    }
                    self.status.queued_bytes.fetch_sub(weight, Ordering::AcqRel);
                }
                Job::Forget(name) => {
                    if let Err(cause) = self.storage.delete(vec![format!("{}/{name}", self.folder)]).await {
                        debug!(name, %cause, "not deleted");
                    }
                }
                Job::Close => break,
            }
        }
        Ok(())
    }

    async fn change(&mut self, change: Change, description: Description) -> Result<(), StorageError> {
        match change {
            Change::Init { number, bytes } => {
                self.storage.put(&init_name(&self.folder, &self.rendition, number), vec![bytes]).await
            }
            Change::Part { msn, index, head, part } => {
                let meta = PartMeta::of(&part);
                self.status.written_bytes.fetch_add(meta.bytes, Ordering::AcqRel);
                let open = OpenPart { version: VERSION, head, meta: meta.clone(), description };
                let object = open.encode(part.bytes.clone());
                self.open
                    .get_or_insert_with(|| OpenSegment { msn, head, parts: Vec::new() })
                    .parts
                    .push((meta, part.bytes));
                self.storage.put(&open_name(&self.folder, &self.rendition, msn, index), object).await
            }
            Change::SegmentEnded { msn } => {
                self.storage.check_room()?;
                if let Some(open) = self.open.take() {
                    end_segment(
                        &self.storage,
                        &self.folder,
                        &self.rendition,
                        open,
                        description,
                        &mut self.page,
                    )
                    .await?;
                }
                self.stored_to.store(msn + 1, Ordering::Release);
                Ok(())
            }
            Change::Dropped { .. } if self.is_kept => Ok(()),
            Change::Dropped { msn } => {
                let mut names = vec![segment_name(&self.folder, &self.rendition, msn)];
                if page_number(msn + 1) > page_number(msn) {
                    names.push(page_name(&self.folder, &self.rendition, msn));
                }
                self.storage.delete(names).await
            }
        }
    }
}

/// Makes one object of a segment's parts and writes it down in its page, which `page` holds.
pub(super) async fn end_segment(
    storage: &Storage,
    folder: &str,
    rendition: &str,
    open: OpenSegment,
    description: Description,
    page: &mut Vec<SegmentMeta>,
) -> Result<(), StorageError> {
    let OpenSegment { msn, head, parts } = open;
    let count = parts.len() as u64;
    let (metas, media): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    if metas.iter().any(|meta| meta.bytes > 0) {
        storage.put(&segment_name(folder, rendition, msn), media).await?;
    }
    if page.first().is_some_and(|first| page_number(first.msn) != page_number(msn)) {
        page.clear();
    }
    page.push(SegmentMeta { msn, head, parts: metas });
    let text = json(&Page { version: layout::VERSION, description, segments: page.clone() });
    storage.put(&page_name(folder, rendition, msn), vec![text]).await?;
    let parts = (0..count).map(|part| open_name(folder, rendition, msn, part));
    storage.delete(parts.collect()).await
}

/// Runs all lanes to their end.
pub(super) async fn run(lanes: Vec<Lane>) {
    future::join_all(lanes.into_iter().map(Lane::run)).await;
}
