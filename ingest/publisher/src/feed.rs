//! How encoded frames get from a source to the sessions that send them, and keyframe requests back.
//!
//! A source that runs in real time on its own thread has one [`Fanout`]; each session has a [`Feed`]. A session
//! that can't keep up loses frames, never holds up the source or other sessions, and continues at a keyframe.

use crate::{
    error::Error,
    frame::{Frame, Track},
    timeline::Timeline,
};
use parking_lot::{Condvar, Mutex};
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use tokio::sync::mpsc;

/// Frames that wait for one session: about a second of video and audio. A session that is further behind than
/// that has a problem that waiting does not solve.
const QUEUE_MAX: usize = 80;

/// A session's end: frames in decode order within each track, in real time.
#[derive(Debug)]
pub(crate) struct Feed {
    pub(crate) frames: mpsc::Receiver<Frame>,
    pub(crate) timeline: Timeline,
    /// RTP ticks that the audio track gains in a second of the timeline: 48,000 unless the sound card drifts.
    pub(crate) audio_rate: f64,
    keyframes: Arc<KeyframeRequest>,
}

impl Feed {
    pub(crate) fn new(
        frames: mpsc::Receiver<Frame>,
        timeline: Timeline,
        audio_rate: f64,
        keyframes: Arc<KeyframeRequest>,
    ) -> Self {
        Self { frames, timeline, audio_rate, keyframes }
    }

    /// The next video frame shall be a keyframe, if the source can make one.
    pub(crate) fn request_keyframe(&self) {
        self.keyframes.set();
    }

    /// RTP ticks in a second of the timeline.
    pub(crate) fn rate(&self, track: Track) -> f64 {
        match track {
            Track::Video => f64::from(Track::Video.clock_rate()),
            Track::Audio => self.audio_rate,
        }
    }
}

/// Set by sessions, taken by their source. Requests that come before the source looks are one request.
#[derive(Debug, Default)]
pub(crate) struct KeyframeRequest {
    is_wanted: AtomicBool,
}

impl KeyframeRequest {
    pub(crate) fn set(&self) {
        self.is_wanted.store(true, Ordering::Release);
    }

    pub(crate) fn take(&self) -> bool {
        self.is_wanted.swap(false, Ordering::AcqRel)
    }
}

#[derive(Debug)]
struct Subscriber {
    frames: mpsc::Sender<Frame>,
    needs_keyframe: bool,
}

/// A real-time source's end. Clones share everything.
#[derive(Clone, Debug)]
pub(crate) struct Fanout {
    drift_ppm: f64,
    audio_rate: f64,
    keyframes: Arc<KeyframeRequest>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    subscribers: Mutex<Vec<Subscriber>>,
    /// The source starts with its first session: a file does not play while nobody is connected.
    timeline: OnceLock<Timeline>,
    started: Condvar,
    is_stopped: AtomicBool,
    frames_skipped: AtomicU64,
    failure: Mutex<Option<Error>>,
}

impl Fanout {
    pub(crate) fn new(drift_ppm: f64, audio_rate: f64) -> Self {
        Self { drift_ppm, audio_rate, keyframes: Arc::default(), shared: Arc::default() }
    }

    /// A feed for one more session; it begins with a keyframe as soon as the source can make one.
    pub(crate) fn subscribe(&self) -> Feed {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        // Under the lock that `finish` takes: nobody may subscribe to a source that has ended and wait forever.
        let mut subscribers = self.shared.subscribers.lock();
        let timeline = *self.shared.timeline.get_or_init(|| Timeline::start_now(self.drift_ppm));
        if !self.is_stopped() {
            subscribers.push(Subscriber { frames: sender, needs_keyframe: true });
        }
        self.shared.started.notify_all();
        drop(subscribers);
        self.keyframes.set();
        Feed::new(receiver, timeline, self.audio_rate, self.keyframes.clone())
    }

    /// The source's thread waits here for its first session. Nothing: finished before there was one.
    pub(crate) fn wait_for_start(&self) -> Option<Timeline> {
        let mut subscribers = self.shared.subscribers.lock();
        while !self.is_stopped() {
            if let Some(timeline) = self.shared.timeline.get() {
                return Some(*timeline);
            }
            self.shared.started.wait(&mut subscribers);
        }
        None
    }

    pub(crate) fn take_keyframe_request(&self) -> bool {
        self.keyframes.take()
    }

    /// Hands a frame to every session that is ready for it.
    pub(crate) fn send(&self, frame: &Frame) {
        self.shared.subscribers.lock().retain_mut(|subscriber| {
            if frame.track == Track::Video {
                if subscriber.needs_keyframe && !frame.is_keyframe {
                    return !subscriber.frames.is_closed();
                }
                subscriber.needs_keyframe = false;
            }
            match subscriber.frames.try_send(frame.clone()) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Closed(_)) => false,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    self.count_skipped();
                    if frame.track == Track::Video {
                        subscriber.needs_keyframe = true;
                        self.keyframes.set();
                    }
                    true
                }
            }
        });
    }

    /// Ends the source: its thread stops at the next look, sessions see the end of their feeds.
    pub(crate) fn finish(&self, failure: Option<Error>) {
        let mut subscribers = self.shared.subscribers.lock();
        self.shared.is_stopped.store(true, Ordering::Release);
        self.shared.started.notify_all();
        subscribers.clear();
        if let Some(failure) = failure {
            self.shared.failure.lock().get_or_insert(failure);
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.shared.is_stopped.load(Ordering::Acquire)
    }

    /// Why the source ended, if not by request or at its end. Taken once.
    pub(crate) fn take_failure(&self) -> Option<Error> {
        self.shared.failure.lock().take()
    }

    /// A frame was left out because the source was behind.
    pub(crate) fn count_skipped(&self) {
        self.shared.frames_skipped.fetch_add(1, Ordering::Relaxed);
    }

    /// Frames that this machine was too slow to make or to send in time.
    pub(crate) fn frames_skipped(&self) -> u64 {
        self.shared.frames_skipped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn video(is_keyframe: bool, ticks: i64) -> Frame {
        Frame { track: Track::Video, ticks, position_us: 0, is_keyframe, payloads: Arc::new([]) }
    }

    fn drain(feed: &mut Feed) -> Vec<i64> {
        std::iter::from_fn(|| feed.frames.try_recv().ok()).map(|frame| frame.ticks).collect()
    }

    #[test]
    fn a_session_begins_with_a_keyframe_and_resumes_at_one_after_falling_behind() {
        let fanout = Fanout::new(0.0, 48_000.0);
        let mut feed = fanout.subscribe();
        assert!(fanout.take_keyframe_request(), "a new session asks for a keyframe");
        fanout.send(&video(false, 1));
        fanout.send(&video(true, 2));
        fanout.send(&video(false, 3));
        assert_eq!(drain(&mut feed), [2, 3]);

        for ticks in 0..QUEUE_MAX as i64 + 1 {
            fanout.send(&video(false, ticks));
        }
        assert!(fanout.take_keyframe_request(), "the lost frame asks for a keyframe");
        assert_eq!(fanout.frames_skipped(), 1);
        drain(&mut feed);
        fanout.send(&video(false, 100));
        fanout.send(&video(true, 101));
        assert_eq!(drain(&mut feed), [101]);
    }

    #[test]
    fn feeds_end_with_their_source() {
        let fanout = Fanout::new(0.0, 48_000.0);
        let mut before = fanout.subscribe();
        fanout.finish(None);
        let mut after = fanout.subscribe();
        for feed in [&mut before, &mut after] {
            assert_eq!(feed.frames.try_recv().unwrap_err(), mpsc::error::TryRecvError::Disconnected);
        }
    }
}
