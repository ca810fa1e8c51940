//! Transcodes a publisher's VP8, which no HLS player takes, in a thread of its own.
//!
//! Between [`crate::Publication`] and the stream's worker: once a VP8 track was announced, everything of that
//! publisher goes through here, so that it keeps its order; VP8 comes out as H.264, all else as it was. The queue is
//! bounded: where the machine is too slow, pictures up to the next keyframe are dropped, and who goes on like that is
//! told. How many tracks are transcoded at once is counted by [`Slots`]. What libavcodec does is in `picture.rs`.

pub(crate) mod h264;
pub(crate) mod libav;
mod picture;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::{debug, warn};

use self::picture::{PictureError, Transcoder};
use crate::frame::{Frame, Input, MediaTime, TrackFormat, TrackId, VideoCodec};
use crate::streams::{Feed, Overflow};

/// Pictures that may wait: half a second at 30 per second. What is further behind won't catch up by waiting.
const PICTURES_WAITING_MAX: usize = 15;
/// Inputs of any kind that may wait: audio packets are small, but there must be an end.
const INPUTS_WAITING_MAX: usize = 512;
/// A publisher whose pictures could not be kept up with so often within [`STRIKES_WITHIN`] is told to send less.
const STRIKES_MAX: u32 = 10;
const STRIKES_WITHIN: Duration = Duration::from_secs(60);
/// In words, for the publisher.
const TOO_SLOW: &str =
    "the server is too slow to transcode this picture: send H.264, VP9 or AV1, or a smaller picture";

/// How much may be encoded at once in this process, in thousandths of a transcoding: a VP8 track is one, a ladder's rung
/// what its size says.
#[derive(Debug)]
pub(crate) struct Slots {
    all: usize,
    free: AtomicUsize,
}

/// Thousandths of a transcoding.
const WHOLE: usize = 1000;

impl Slots {
    /// As many as given, or 0 for one for each core.
    pub(crate) fn new(configured: usize) -> Arc<Self> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let all = WHOLE * if configured == 0 { cores() } else { configured };
        Arc::new(Self { all, free: AtomicUsize::new(all) })
    }

    /// Takes so many thousandths, or none.
    pub(crate) fn take(self: &Arc<Self>, count: usize) -> Option<Reservation> {
        let taken =
            self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, |free| free.checked_sub(count));
        taken.ok().map(|_| Reservation { slots: Arc::clone(self), count })
    }

    /// All there are, in thousandths.
    pub(crate) fn all(&self) -> usize {
        self.all
    }

    /// Those that nobody has taken.
    pub(crate) fn free(&self) -> usize {
        self.free.load(Ordering::Acquire)
    }
}

/// Slots taken; given back when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    slots: Arc<Slots>,
    count: usize,
}

impl Reservation {
    /// Parts with so many of them.
    pub(crate) fn split_off(&mut self, count: usize) -> Self {
        let count = count.min(self.count);
        self.count -= count;
        Self { slots: Arc::clone(&self.slots), count }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.slots.free.fetch_add(self.count, Ordering::AcqRel);
    }
}

/// A publication's transcoding, if it has any.
#[derive(Debug)]
pub(crate) struct Transcoding {
    feed: Feed,
    slots: Arc<Slots>,
    reservation: Option<Reservation>,
    running: Option<Running>,
    /// Whether the thread may still hand things over: what it does after its publisher left is nobody's.
    is_open: Arc<Mutex<bool>>,
    strikes: u32,
    struck_at: Option<Instant>,
}

#[derive(Debug)]
struct Running {
    sender: mpsc::Sender<Input>,
    waiting: Arc<Waiting>,
    /// Tracks of which pictures were dropped, up to a keyframe.
    skipping: BTreeMap<TrackId, bool>,
}

#[derive(Debug, Default)]
struct Waiting {
    inputs: AtomicUsize,
    pictures: AtomicUsize,
}

impl Transcoding {
    pub(crate) fn new(feed: Feed, slots: Arc<Slots>) -> Self {
        let is_open = Arc::new(Mutex::new(true));
        Self { feed, slots, reservation: None, running: None, is_open, strikes: 0, struck_at: None }
    }

    /// Makes sure that so many tracks can be transcoded; false when the machine has no room for them.
    pub(crate) fn reserve(&mut self, count: usize) -> bool {
        let needed = count * WHOLE;
        let has_enough = self.reservation.as_ref().is_some_and(|reservation| reservation.count >= needed);
        if !has_enough {
            self.reservation = None;
            self.reservation = self.slots.take(needed);
        }
        self.reservation.is_some()
    }

    /// What is to be said to a publisher that can't be kept up with.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        (self.strikes >= STRIKES_MAX).then_some(TOO_SLOW)
    }

    /// Whether nothing waits here.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.as_ref().is_none_or(|running| running.waiting.inputs.load(Ordering::Acquire) == 0)
    }

    /// Hands an input over, by way of the thread if there is one.
    pub(crate) fn push(&mut self, input: Input) -> Result<(), Overflow> {
        let is_vp8 = matches!(&input, Input::Format { format, .. } if is_vp8(format));
        if is_vp8 && self.running.is_none() {
            // Nobody announced it: a source that isn't the ingest.
            if !self.reserve(1) {
                return self.feed.push(input);
            }
            self.running = Some(self.start());
        }
        let Some(running) = &mut self.running else { return self.feed.push(input) };
        if let Input::Format { track, format } = &input {
            if is_vp8 {
                running.skipping.entry(*track).or_insert(false);
            } else if matches!(format, TrackFormat::Video { .. }) {
                running.skipping.remove(track);
            }
        }
        let waiting = &running.waiting;
        if let Input::Frame(frame) = &input
            && let Some(is_skipping) = running.skipping.get_mut(&frame.track)
        {
            if *is_skipping && !frame.is_keyframe {
                return Err(Overflow);
            }
            if waiting.pictures.load(Ordering::Acquire) >= PICTURES_WAITING_MAX {
                *is_skipping = true;
                self.feed.lose();
                metrics::counter!("segmenter_transcode_overflow_total").increment(1);
                let now = Instant::now();
                let is_recent = self.struck_at.is_some_and(|at| now - at < STRIKES_WITHIN);
                self.strikes = if is_recent { self.strikes + 1 } else { 1 };
                self.struck_at = Some(now);
                return Err(Overflow);
            }
            *is_skipping = false;
            waiting.pictures.fetch_add(1, Ordering::AcqRel);
        }
        if waiting.inputs.fetch_add(1, Ordering::AcqRel) >= INPUTS_WAITING_MAX {
            waiting.inputs.fetch_sub(1, Ordering::AcqRel);
            return Err(Overflow);
        }
        // The thread ends only when this sender does, or with its own panic: the stream then has no picture.
        running.sender.send(input).map_err(|_| Overflow)
    }

    /// From here on the thread hands nothing over: the next publisher's frames come to the same worker.
    pub(crate) fn close(&mut self) {
        *self.is_open.lock() = false;
        self.running = None;
    }

    fn start(&self) -> Running {
        let (sender, inbox) = mpsc::channel();
        let waiting = Arc::<Waiting>::default();
        let work = Work {
            feed: self.feed.clone(),
            is_open: Arc::clone(&self.is_open),
            waiting: Arc::clone(&waiting),
            tracks: BTreeMap::new(),
        };
        let spawned =
            std::thread::Builder::new().name("transcode".to_owned()).spawn(move || work.run(&inbox));
        if let Err(cause) = spawned {
            warn!(%cause, "no thread for a transcoder");
        }
        Running { sender, waiting, skipping: BTreeMap::new() }
    }
}

fn is_vp8(format: &TrackFormat) -> bool {
    matches!(format, TrackFormat::Video { codec: VideoCodec::Vp8, .. })
}

struct Track {
    transcoder: Transcoder,
    /// As last told.
    format: Option<TrackFormat>,
    /// Pictures build on one that was lost.
    needs_keyframe: bool,
}

/// The thread's side.
struct Work {
    feed: Feed,
    is_open: Arc<Mutex<bool>>,
    waiting: Arc<Waiting>,
    tracks: BTreeMap<TrackId, Track>,
}

impl Work {
    fn run(mut self, inbox: &mpsc::Receiver<Input>) {
        while let Ok(input) = inbox.recv() {
            let is_picture = matches!(&input, Input::Frame(frame) if self.tracks.contains_key(&frame.track));
            let is_open = *self.is_open.lock();
            if is_open && let Err(cause) = self.handle(input) {
                warn!(%cause, "transcoding");
            }
            if is_picture {
                self.waiting.pictures.fetch_sub(1, Ordering::AcqRel);
            }
            self.waiting.inputs.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn handle(&mut self, input: Input) -> Result<(), PictureError> {
        match input {
            Input::Format { track, format } if is_vp8(&format) => {
                if let Entry::Vacant(entry) = self.tracks.entry(track) {
                    let transcoder = Transcoder::open()?;
                    entry.insert(Track { transcoder, format: None, needs_keyframe: true });
                }
            }
            Input::Frame(frame) if self.tracks.contains_key(&frame.track) => self.picture(frame)?,
            input => self.hand_over(input),
        }
        Ok(())
    }

    fn picture(&mut self, frame: Frame) -> Result<(), PictureError> {
        let Some(track) = self.tracks.get_mut(&frame.track) else { return Ok(()) };
        if track.needs_keyframe && !frame.is_keyframe {
            return Ok(());
        }
        track.needs_keyframe = false;
        let begun = Instant::now();
        let transcoded = match track.transcoder.push(frame.pts.0, frame.is_keyframe, &frame.data) {
            Ok(Some(transcoded)) => transcoded,
            Ok(None) => return Ok(()),
            Err(PictureError::Broken) => {
                debug!("a picture that can't be decoded");
                metrics::counter!("segmenter_transcode_broken_total").increment(1);
                track.needs_keyframe = true;
                self.feed.lose();
                return Ok(());
            }
            Err(cause) => {
                track.needs_keyframe = true;
                return Err(cause);
            }
        };
        metrics::histogram!("segmenter_transcode_ms").record(begun.elapsed().as_secs_f64() * 1000.0);
        if let Some(format) = transcoded.format
            && track.format.as_ref() != Some(&format)
        {
            track.format = Some(format.clone());
            self.hand_over(Input::Format { track: frame.track, format });
        }
        self.hand_over(Input::Frame(Frame {
            track: frame.track,
            pts: MediaTime(transcoded.pts_us),
            is_keyframe: transcoded.is_keyframe,
            data: transcoded.data,
        }));
        Ok(())
    }

    fn hand_over(&self, input: Input) {
        let is_open = self.is_open.lock();
        if *is_open {
            // The worker has counted it, and asks for a keyframe.
            let _ = self.feed.push(input);
        }
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::{Config, Event, Publication, State, Streams};

    const VIDEO: TrackId = TrackId(1);

    fn streams(config: Config) -> Streams {
        Streams::new(config, SigningKey::from_bytes(&[3; 32]))
    }

    fn format() -> Input {
        let config = bytes::Bytes::new();
        let format = TrackFormat::Video { codec: VideoCodec::Vp8, width: 320, height: 180, config };
        Input::Format { track: VIDEO, format }
    }

    fn until(what: &str, mut is_true: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is_true() {
            assert!(Instant::now() < deadline, "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Pushes pictures no faster than they are taken.
    fn push_all(publication: &Publication, pictures: &[(bool, bytes::Bytes)]) {
        for (number, (is_keyframe, data)) in pictures.iter().enumerate() {
            let pts = MediaTime(number as i64 * 33_333);
            let frame = Frame { track: VIDEO, pts, is_keyframe: *is_keyframe, data: data.clone() };
            publication.push(Input::Frame(frame)).expect("the queue has room");
            until("the transcoder", || publication.is_idle());
        }
    }

    #[test]
    fn vp8_is_published_as_h264() {
        let streams = streams(Config::default());
        let mut events = streams.subscribe();
        let publication = streams.publish("vp8").unwrap();
        publication.expect_tracks(&[VIDEO]);
        assert!(publication.reserve_transcoders(1));
        publication.push(format()).unwrap();
        push_all(&publication, &picture::tests::vp8(320, 180, 150, 60));
        until("a segment", || {
            std::iter::from_fn(|| events.try_recv().ok())
                .any(|event| matches!(event, Event::Published(part) if part.is_last_in_segment))
        });
        let [stream] = &streams.list()[..] else { panic!("one stream") };
        assert_eq!(stream.state, State::Live);
        let rendition = &stream.renditions[0];
        assert!(rendition.codecs.starts_with("avc1."), "{}", rendition.codecs);
        assert_eq!(rendition.resolution, Some((320, 180)));
    }

    #[test]
    fn no_more_tracks_are_transcoded_than_there_is_room_for() {
        let streams = streams(Config { transcodes_max: 2, ..Config::default() });
        let (one, two) = (streams.publish("one").unwrap(), streams.publish("two").unwrap());
        assert!(one.reserve_transcoders(2));
        assert!(one.reserve_transcoders(2), "they are its own already");
        assert!(!two.reserve_transcoders(1));
        drop(one);
        assert!(two.reserve_transcoders(1), "its publisher's going makes room");
    }

    #[test]
    fn pictures_that_come_too_fast_are_dropped_up_to_a_keyframe_and_who_goes_on_is_told() {
        let streams = streams(Config::default());
        let publication = streams.publish("fast").unwrap();
        publication.push(format()).unwrap();
        let pictures = picture::tests::vp8(1280, 720, 30, 30);
        let (mut refused, mut number) = (0, 0);
        while publication.problem().is_none() {
            let (is_keyframe, data) = &pictures[number % 30];
            let pts = MediaTime(number as i64 * 33_333);
            let frame = Frame { track: VIDEO, pts, is_keyframe: *is_keyframe, data: data.clone() };
            refused += usize::from(publication.push(Input::Frame(frame)).is_err());
            number += 1;
            assert!(number < 100_000, "never told");
        }
        assert!(refused > 0);
        until("the queue", || publication.is_idle());
    }
}
