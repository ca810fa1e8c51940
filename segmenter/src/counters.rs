//! Exact figures of one stream: bytes of media that existed, and bytes that the origin sent.
//!
//! "Sent" counts what was handed to the connection, not what a response announced: a client that goes away early is
//! counted for what it took.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// What a response carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Part,
    Segment,
    Init,
    Playlist,
    Digest,
    Picture,
}

const CLASSES: [(Class, &str); 6] = [
    (Class::Part, "part"),
    (Class::Segment, "segment"),
    (Class::Init, "init"),
    (Class::Playlist, "playlist"),
    (Class::Digest, "digest"),
    (Class::Picture, "picture"),
];

/// See the module.
pub(crate) struct Counters {
    sent: [AtomicU64; 6],
    requests: [AtomicU64; 6],
    blocked: AtomicU64,
    media_bytes: AtomicU64,
    parts: AtomicU64,
    exported: Exported,
}

/// The same figures in the process's metrics.
struct Exported {
    sent: [metrics::Counter; 6],
    requests: [metrics::Counter; 6],
    blocked: metrics::Counter,
    media_bytes: metrics::Counter,
    parts: metrics::Counter,
}

impl std::fmt::Debug for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}

/// Bytes or requests by what the response carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ByClass {
    /// Parts.
    pub part: u64,
    /// Whole segments.
    pub segment: u64,
    /// Initialization sections.
    pub init: u64,
    /// Playlists of both kinds.
    pub playlist: u64,
    /// Signed digest records.
    pub digest: u64,
    /// Posters and thumbnails.
    pub picture: u64,
}

/// The figures of one publication, since it started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StreamStats {
    /// The stream's name.
    pub name: String,
    /// The publication's epoch in hex.
    pub epoch: String,
    /// What the stream is doing.
    pub state: crate::State,
    /// Media bytes that existed: the sum of all parts of all renditions that were published.
    pub media_bytes: u64,
    /// The number of these parts.
    pub parts: u64,
    /// Media bytes that the origin sent: parts and segments, without initialization sections.
    pub media_sent_bytes: u64,
    /// Body bytes sent, by class.
    pub sent_bytes: ByClass,
    /// Requests answered, by class, errors included.
    pub requests: ByClass,
    /// Requests that had to wait for their playlist or part.
    pub blocked_requests: u64,
    /// Media bytes in memory now.
    pub held_bytes: u64,
    /// Whether all that was published is stored, where it is to be.
    pub is_stored: bool,
}

impl Counters {
    pub(crate) fn new(stream: &str) -> Self {
        let by_class = |name: &'static str| {
            CLASSES.map(|(_, class)| metrics::counter!(name, "stream" => stream.to_owned(), "class" => class))
        };
        let one = |name: &'static str| metrics::counter!(name, "stream" => stream.to_owned());
        Self {
            sent: Default::default(),
            requests: Default::default(),
            blocked: AtomicU64::new(0),
            media_bytes: AtomicU64::new(0),
            parts: AtomicU64::new(0),
            exported: Exported {
                sent: by_class("origin_sent_bytes_total"),
                requests: by_class("origin_requests_total"),
                blocked: one("origin_blocked_requests_total"),
                media_bytes: one("segmenter_media_bytes_total"),
                parts: one("segmenter_parts_total"),
            },
        }
    }

    pub(crate) fn add_sent(&self, class: Class, bytes: usize) {
        self.sent[class as usize].fetch_add(bytes as u64, Ordering::Relaxed);
        self.exported.sent[class as usize].increment(bytes as u64);
    }

    pub(crate) fn add_request(&self, class: Class) {
        self.requests[class as usize].fetch_add(1, Ordering::Relaxed);
        self.exported.requests[class as usize].increment(1);
    }

    pub(crate) fn add_blocked(&self) {
        self.blocked.fetch_add(1, Ordering::Relaxed);
        self.exported.blocked.increment(1);
    }

    pub(crate) fn add_media(&self, bytes: usize) {
        self.media_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.parts.fetch_add(1, Ordering::Relaxed);
        self.exported.media_bytes.increment(bytes as u64);
        self.exported.parts.increment(1);
    }

    pub(crate) fn stats(&self, live: &crate::live::Live) -> StreamStats {
        let by_class = |counters: &[AtomicU64; 6]| {
            let [part, segment, init, playlist, digest, picture] =
                std::array::from_fn(|index| counters[index].load(Ordering::Relaxed));
            ByClass { part, segment, init, playlist, digest, picture }
        };
        let sent_bytes = by_class(&self.sent);
        StreamStats {
            name: live.name.to_string(),
            epoch: live.epoch_hex(),
            state: live.state(),
            media_bytes: self.media_bytes.load(Ordering::Relaxed),
            parts: self.parts.load(Ordering::Relaxed),
            media_sent_bytes: sent_bytes.part + sent_bytes.segment,
            sent_bytes,
            requests: by_class(&self.requests),
            blocked_requests: self.blocked.load(Ordering::Relaxed),
            held_bytes: live.held_bytes() as u64,
            is_stored: live.is_stored(),
        }
    }
}
