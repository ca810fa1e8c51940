//! Frames in, or another origin's HLS ([`pull`]); CMAF parts, segments, playlists and digests out; the HTTP origin.
//!
//! The way of a frame: [`Publication::push`] puts it into its stream's queue (VP8 by way of `transcode`); the stream's `worker` hands it to the
//! `session`, which cuts (`cut`, `audio`), muxes (`mux`) and publishes into a `window`; `live` signs, counts and
//! wakes; [`origin`] answers the requests. What is decided is decided in pure modules: `cut`, `audio::cut`, `window`.

mod audio;
mod boxes;
mod causes;
mod codecs;
mod config;
#[cfg(test)]
mod conformance;
mod counters;
mod cut;
mod events;
pub mod frame;
mod ladder;
mod live;
mod multivariant;
mod mux;
pub mod origin;
mod pictures;
pub mod pull;
mod recording;
mod rendered;
mod self_test;
mod session;
mod storage;
mod streams;
mod transcode;
mod window;
mod worker;

pub use causes::with_causes;
pub use config::{Config, ConfigError};
pub use counters::{ByClass, StreamStats};
pub use events::{Event, Published, RenditionInfo};
pub use ladder::{LadderError, LadderRung, LadderState, LadderStatus};
pub use live::{RecordingStatus, State};
pub use origin::Origin;
pub use recording::RecordingInfo;
pub use recording::layout::RecordingState;
pub use self_test::{FfmpegError, check_ffmpeg};
pub use storage::StorageError;
pub use streams::{
    KeyframeRequest, Overflow, Publication, PublishError, StreamInfo, Streams, is_stream_name,
};
