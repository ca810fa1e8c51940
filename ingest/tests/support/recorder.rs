//! A segmenter's stand-in that writes down what it gets.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use shoal_ingest::sink::{PublishError, Sink, Streams};
use shoal_segmenter::KeyframeRequest;
use shoal_segmenter::frame::{Frame, Input, TrackId};
use tokio::sync::mpsc;

/// The streams, and everything that was pushed into any of them.
#[derive(Clone, Default)]
pub struct Recorder(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    busy: HashSet<String>,
    inputs: Vec<Input>,
    expected: Vec<TrackId>,
    wishes: Option<mpsc::Sender<KeyframeRequest>>,
    /// Streams that were ended on purpose.
    ended: Vec<String>,
    transcoders_taken: usize,
    has_no_transcoder: bool,
    problem: Option<&'static str>,
    is_broken: bool,
}

impl Recorder {
    pub fn ended(&self) -> Vec<String> {
        self.0.lock().ended.clone()
    }

    pub fn transcoders_taken(&self) -> usize {
        self.0.lock().transcoders_taken
    }

    /// From now on there is no room for transcoding.
    pub fn refuse_transcoding(&self) {
        self.0.lock().has_no_transcoder = true;
    }

    /// From now on it has this against whoever publishes.
    pub fn object(&self, words: &'static str) {
        self.0.lock().problem = Some(words);
    }

    /// From now on whoever hands something over panics.
    pub fn break_down(&self, is_broken: bool) {
        self.0.lock().is_broken = is_broken;
    }

    pub fn inputs(&self) -> Vec<Input> {
        self.0.lock().inputs.clone()
    }

    pub fn frames(&self, track: u8) -> Vec<Frame> {
        let inputs = self.inputs();
        let frames = inputs.into_iter().filter_map(|input| match input {
            Input::Frame(frame) if frame.track == TrackId(track) => Some(frame),
            _ => None,
        });
        frames.collect()
    }

    pub fn is_busy(&self, name: &str) -> bool {
        self.0.lock().busy.contains(name)
    }

    pub fn expected(&self) -> Vec<TrackId> {
        self.0.lock().expected.clone()
    }

    pub fn wish_keyframe(&self) {
        let wishes = self.0.lock().wishes.clone().expect("somebody publishes");
        wishes.try_send(KeyframeRequest { track: TrackId(1) }).unwrap();
    }
}

struct Publication {
    recorder: Recorder,
    name: String,
    wishes: Option<mpsc::Receiver<KeyframeRequest>>,
}

impl Streams for Recorder {
    fn publish(&self, name: &str) -> Result<Box<dyn Sink>, PublishError> {
        if name.len() > 64 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            return Err(PublishError::BadName);
        }
        let mut inner = self.0.lock();
        if !inner.busy.insert(name.to_owned()) {
            return Err(PublishError::Busy);
        }
        let (sender, wishes) = mpsc::channel(8);
        inner.wishes = Some(sender);
        Ok(Box::new(Publication { recorder: self.clone(), name: name.to_owned(), wishes: Some(wishes) }))
    }
}

impl Sink for Publication {
    fn expect_tracks(&mut self, tracks: &[TrackId]) {
        self.recorder.0.lock().expected = tracks.to_vec();
    }

    fn push(&mut self, input: Input) -> bool {
        let is_broken = self.recorder.0.lock().is_broken;
        assert!(!is_broken, "made for the test");
        self.recorder.0.lock().inputs.push(input);
        true
    }

    fn keyframe_requests(&mut self) -> mpsc::Receiver<KeyframeRequest> {
        self.wishes.take().expect("taken once")
    }

    fn reserve_transcoders(&mut self, count: usize) -> bool {
        let mut inner = self.recorder.0.lock();
        inner.transcoders_taken += count;
        !inner.has_no_transcoder
    }

    fn problem(&self) -> Option<&'static str> {
        self.recorder.0.lock().problem
    }

    fn end(self: Box<Self>) {
        self.recorder.0.lock().ended.push(self.name.clone());
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        self.recorder.0.lock().busy.remove(&self.name);
    }
}
