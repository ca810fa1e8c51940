//! One rendition of a live stream: its window, and what the multivariant playlist says about it.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::config::Constants;
use crate::rendered::Cached;
use crate::window::{Progress, Window};

/// One encoded version of the stream.
#[derive(Debug)]
pub(crate) struct Rendition {
    pub(crate) number: u8,
    pub(crate) name: String,
    pub(super) window: Mutex<Window>,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) description: Mutex<Description>,
    pub(super) playlists: [Cached; 2],
    /// Whether a ladder publishes it, rather than the stream's worker.
    pub(super) is_of_ladder: bool,
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
    pub(super) fn like(self, other: &Self) -> Self {
        let Self { codecs, resolution, .. } = self;
        Self { codecs, resolution, ..other.clone() }
    }

    /// Counts a part of the segment in the making.
    pub(super) fn add_part(&mut self, bytes: usize, duration_us: i64) {
        self.open_bytes += bytes as u64;
        self.open_us += duration_us.unsigned_abs();
    }

    pub(super) fn end_segment(&mut self, target_us: u64) {
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
