//! A live stream of any bit rate without an encoder: frames of the right sizes at the right times, which nobody decodes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_segmenter::frame::{Frame, Input, MediaTime, TrackFormat, TrackId, VideoCodec};
use shoal_segmenter::{Event, Publication, Streams};
use tokio::sync::broadcast::error::RecvError;

use super::now_us;

const AUDIO: TrackId = TrackId(0);
const VIDEO: TrackId = TrackId(1);
const FRAMES_PER_SECOND: u64 = 30;
/// A keyframe every 2 s, as the default segments are long.
const FRAMES_PER_SEGMENT: u64 = 60;
/// 20 ms of silence.
const OPUS_SILENCE: &[u8] = &[0xfc, 0xff, 0xfe];
/// An `avcC` with parameter sets that nobody looks into.
const AVC_CONFIG: &[u8] = &[1, 0x42, 0xe0, 0x1f, 0xff, 0xe1, 0, 4, 0x67, 0x42, 0xe0, 0x1f, 1, 0, 2, 0x68, 0];
/// So much media is there at once, so that there is a window.
const PREFILL_S: u64 = 14;

/// A part of the video that was published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The stream.
    pub stream: String,
    /// The segment's number.
    pub msn: u64,
    /// The part's number in it.
    pub part: u64,
    /// Whether it is its segment's last.
    pub is_last: bool,
    /// Its URI relative to the multivariant playlist.
    pub uri: String,
    /// When its last frame was handed to the segmenter, in Unix microseconds.
    pub pushed_us: u64,
    /// When it could be fetched.
    pub published_us: u64,
}

/// A stream that is being published; ends when dropped.
#[derive(Debug)]
pub struct Source {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Source {
    /// Publishes a stream whose video segments have so many bytes, and reports each part of its video.
    ///
    /// # Panics
    /// If the name is taken.
    pub fn start(
        streams: &Streams,
        name: &str,
        segment_bytes: usize,
        mut on_part: impl FnMut(Part) + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut events = streams.subscribe();
        let publication = streams.publish(name).expect("the name is free");
        let frames = Arc::new(Mutex::new(Frames::default()));
        let reporting = {
            let (name, frames) = (name.to_owned(), frames.clone());
            // A thread of its own: the runtime has thousands of clients to wake at this very moment.
            thread::spawn(move || {
                loop {
                    match events.blocking_recv() {
                        Ok(Event::Published(published)) if *published.stream == *name => {
                            if published.piece.rendition == 0 {
                                let published_us = now_us();
                                let count =
                                    (u64::from(published.duration_ms) * FRAMES_PER_SECOND + 500) / 1000;
                                on_part(Part {
                                    stream: name.clone(),
                                    msn: published.piece.msn,
                                    part: published.piece.part.into(),
                                    is_last: published.is_last_in_segment,
                                    uri: published.uri.clone(),
                                    pushed_us: frames.lock().take(count),
                                    published_us,
                                });
                            }
                        }
                        Ok(Event::Ended { stream, .. }) if *stream == *name => return,
                        Ok(_) | Err(RecvError::Lagged(_)) => {}
                        Err(RecvError::Closed) => return,
                    }
                }
            })
        };
        let pushing = {
            let stop = stop.clone();
            thread::spawn(move || push(publication, segment_bytes, &frames, &stop))
        };
        Self { stop, threads: vec![pushing, reporting] }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // A panic in there was printed.
            let _ = thread.join();
        }
    }
}

/// When frames were handed over, that are in no part yet.
#[derive(Debug, Default)]
struct Frames(VecDeque<u64>);

impl Frames {
    /// The time of the last of the next so many.
    fn take(&mut self, count: u64) -> u64 {
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(self.0.len());
        self.0.drain(..count).next_back().unwrap_or(0)
    }
}

fn push(publication: Publication, segment_bytes: usize, frames: &Mutex<Frames>, stop: &AtomicBool) {
    publication.expect_tracks(&[AUDIO, VIDEO]);
    let formats = [
        (AUDIO, TrackFormat::Opus { channels: 2 }),
        (
            VIDEO,
            TrackFormat::Video {
                codec: VideoCodec::H264,
                width: 1280,
                height: 720,
                config: Bytes::from_static(AVC_CONFIG),
            },
        ),
    ];
    for (track, format) in formats {
        publication.push(Input::Format { track, format }).expect("the queue is empty");
    }
    let data = Bytes::from(vec![0x65; segment_bytes / FRAMES_PER_SEGMENT as usize]);
    let (began, mut packet) = (Instant::now(), 0_u64);
    for frame in 0.. {
        let micros = |frame: u64| frame * 1_000_000 / FRAMES_PER_SECOND;
        let due = Duration::from_micros(micros(frame)).saturating_sub(Duration::from_secs(PREFILL_S));
        // Slept in slices, so that an end is soon.
        while let Some(left) =
            (began + due).checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
        {
            thread::sleep(left.min(Duration::from_millis(50)));
        }
        if stop.load(Ordering::Acquire) {
            publication.end();
            return;
        }
        let pts = MediaTime(i64::try_from(micros(frame)).unwrap_or(i64::MAX));
        while packet * 20_000 < micros(frame) + 20_000 {
            let pts = MediaTime(i64::try_from(packet * 20_000).unwrap_or(i64::MAX));
            let data = Bytes::from_static(OPUS_SILENCE);
            // What does not fit is missed: the figures will show it.
            let _ = publication.push(Input::Frame(Frame { track: AUDIO, pts, is_keyframe: true, data }));
            packet += 1;
        }
        let is_keyframe = frame % FRAMES_PER_SEGMENT == 0;
        frames.lock().0.push_back(now_us());
        let input = Frame { track: VIDEO, pts, is_keyframe, data: data.clone() };
        let _ = publication.push(Input::Frame(input));
    }
}
