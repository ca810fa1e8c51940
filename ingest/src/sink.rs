//! Where frames go: traits of ours, and the segmenter behind them.
//!
//! Tests and examples put something else behind them; the ingest needs no more of the segmenter than this.

use shoal_segmenter::frame::{Input, TrackId};
use shoal_segmenter::{KeyframeRequest, Publication};
use tokio::sync::mpsc;

/// Why a stream can't be published to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// Somebody else publishes. 409.
    #[error("the stream already has a publisher")]
    Busy,
    /// Not a stream's name. 404.
    #[error("a stream's name has 1 to 64 characters out of A-Z a-z 0-9 _ -")]
    BadName,
    /// The segmenter has too much to do. 503.
    #[error("the server has no room for another stream")]
    Overloaded,
}

/// The streams that can be published to.
pub trait Streams: Send + Sync + 'static {
    /// Takes a stream for one publisher.
    fn publish(&self, name: &str) -> Result<Box<dyn Sink>, PublishError>;
}

/// A stream that is being published to; dropped when the publisher is gone and may come back.
pub trait Sink: Send + 'static {
    /// Says which tracks were announced.
    fn expect_tracks(&mut self, tracks: &[TrackId]);
    /// Hands over a format, a frame or a discontinuity; false when there was no room for it. Never blocks.
    fn push(&mut self, input: Input) -> bool;
    /// The segmenter's wishes for keyframes. Taken once.
    fn keyframe_requests(&mut self) -> mpsc::Receiver<KeyframeRequest>;
    /// Makes sure that so many VP8 tracks can be transcoded; false when there is no room for them.
    fn reserve_transcoders(&mut self, count: usize) -> bool;
    /// Why this publisher can't go on like this, in words for it.
    fn problem(&self) -> Option<&'static str>;
    /// Ends the stream at once: the publisher stopped on purpose and will not come back.
    fn end(self: Box<Self>);
}

impl Streams for shoal_segmenter::Streams {
    fn publish(&self, name: &str) -> Result<Box<dyn Sink>, PublishError> {
        match self.publish(name) {
            Ok(publication) => Ok(Box::new(publication)),
            Err(shoal_segmenter::PublishError::Busy) => Err(PublishError::Busy),
            Err(shoal_segmenter::PublishError::BadName) => Err(PublishError::BadName),
            // Whatever else it may come to say: it can't be done now.
            Err(_) => Err(PublishError::Overloaded),
        }
    }
}

impl Sink for Publication {
    fn expect_tracks(&mut self, tracks: &[TrackId]) {
        Publication::expect_tracks(self, tracks);
    }

    fn push(&mut self, input: Input) -> bool {
        Publication::push(self, input).is_ok()
    }

    fn keyframe_requests(&mut self) -> mpsc::Receiver<KeyframeRequest> {
        self.take_keyframe_requests()
    }

    fn reserve_transcoders(&mut self, count: usize) -> bool {
        Publication::reserve_transcoders(self, count)
    }

    fn problem(&self) -> Option<&'static str> {
        Publication::problem(self)
    }

    fn end(self: Box<Self>) {
        Publication::end(*self);
    }
}
