//! A publisher's hold on a stream: the way of its frames into the worker's queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::Entry;
use crate::frame::{Input, TrackId};
use crate::session::count_dropped;
use crate::transcode::{Slots, Transcoding};
use crate::worker::Message;

/// So many keyframe requests may wait for the ingest. One in half a second and track is made at most.
const KEYFRAME_REQUESTS_MAX: usize = 16;
/// What a queued input weighs besides its bytes.
const INPUT_OVERHEAD_BYTES: usize = 256;

/// The stream's worker can't keep up; the frame was dropped. The worker drops video up to the next keyframe and asks
/// for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream's queue is full")]
pub struct Overflow;

/// A request to the publisher for a keyframe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyframeRequest {
    /// The track that needs it.
    pub track: TrackId,
}

/// A publisher's hold on a stream. Dropping it means that the publisher is gone: the stream waits for it to come
/// back before it ends.
#[derive(Debug)]
pub struct Publication {
    entry: Arc<Entry>,
    transcoding: Mutex<Transcoding>,
    keyframes: Option<mpsc::Receiver<KeyframeRequest>>,
    is_ended: bool,
}

/// A publication's way into its worker's inbox.
#[derive(Clone, Debug)]
pub(crate) struct Feed {
    entry: Arc<Entry>,
    has_lost: Arc<AtomicBool>,
    queue_bytes_max: usize,
}

impl Feed {
    /// Hands an input to the worker. Never blocks.
    pub(crate) fn push(&self, input: Input) -> Result<(), Overflow> {
        let bytes = weight(&input);
        let queued = self.entry.queued_bytes.fetch_add(bytes, Ordering::AcqRel);
        if queued + bytes > self.queue_bytes_max {
            self.entry.queued_bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.lose();
            metrics::counter!("segmenter_overflow_total").increment(1);
            if matches!(input, Input::Frame(_)) {
                count_dropped("queue_full", 1);
            }
            return Err(Overflow);
        }
        self.entry.send(Message::Input(input));
        Ok(())
    }

    /// Lets the worker know that pictures are missing, so that it asks for a keyframe.
    pub(crate) fn lose(&self) {
        self.has_lost.store(true, Ordering::Release);
    }
}

impl Publication {
    /// Attaches a publisher to the stream's worker.
    pub(super) fn attach(entry: Arc<Entry>, queue_bytes_max: usize, slots: Arc<Slots>) -> Self {
        let (sender, keyframes) = mpsc::channel(KEYFRAME_REQUESTS_MAX);
        let has_lost = Arc::new(AtomicBool::new(false));
        entry.send(Message::Attach { keyframes: sender, has_lost: has_lost.clone() });
        let feed = Feed { entry: entry.clone(), has_lost, queue_bytes_max };
        let transcoding = Mutex::new(Transcoding::new(feed, slots));
        Self { entry, transcoding, keyframes: Some(keyframes), is_ended: false }
    }

    /// Says which tracks will come, so that the stream starts as soon as all of their formats are known and not
    /// before. Optional: otherwise the stream waits a moment for further tracks after the first.
    pub fn expect_tracks(&self, tracks: &[TrackId]) {
        self.entry.send(Message::Expect(tracks.to_vec()));
    }

    /// Makes sure that so many VP8 tracks can be transcoded; false when the machine has no room for them. What was
    /// reserved is given back when the publication is dropped.
    #[must_use]
    pub fn reserve_transcoders(&self, count: usize) -> bool {
        self.transcoding.lock().reserve(count)
    }

    /// What the publisher is to be told, in words, because it can't go on like this: its VP8 is more than the machine
    /// can transcode.
    #[must_use]
    pub fn problem(&self) -> Option<&'static str> {
        self.transcoding.lock().problem()
    }

    /// Hands an input to the stream's worker. Never blocks.
    ///
    /// # Errors
    /// [`Overflow`] if the worker, or what transcodes VP8 before it, is too far behind.
    pub fn push(&self, input: Input) -> Result<(), Overflow> {
        self.transcoding.lock().push(input)
    }

    /// The requests for keyframes that the stream makes of its publisher. The second call gets a closed channel.
    pub fn take_keyframe_requests(&mut self) -> mpsc::Receiver<KeyframeRequest> {
        self.keyframes.take().unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// Whether the stream's worker has taken everything that was pushed, and its ladder has encoded it.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.transcoding.lock().is_idle()
            && self.entry.queued_bytes.load(Ordering::Acquire) == 0
            && self.entry.live.borrow().as_ref().is_none_or(|live| live.is_ladder_idle())
    }

    /// Ends the stream at once: the publisher stopped on purpose and will not come back.
    pub fn end(mut self) {
        self.is_ended = true;
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        // In this order: whoever takes the name next must come after our leaving in the worker's queue.
        self.transcoding.get_mut().close();
        if self.is_ended {
            self.entry.is_closed.store(true, Ordering::Release);
            self.entry.send(Message::End);
        } else {
            self.entry.send(Message::Detach);
        }
        self.entry.has_publisher.store(false, Ordering::Release);
    }
}

/// What an input counts in the queue.
pub(crate) fn weight(input: &Input) -> usize {
    match input {
        Input::Frame(frame) => frame.data.len() + INPUT_OVERHEAD_BYTES,
        Input::Format { .. } | Input::Discontinuity => INPUT_OVERHEAD_BYTES,
    }
}
