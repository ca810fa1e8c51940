//! A native WHIP publisher: a file or a test pattern, encoded by FFmpeg, sent over WebRTC.
//!
//! For people without a camera, for tests and for load: it speaks the same protocol to the WHIP endpoint as a
//! browser does. [`run`] is what `shoal publish` calls; [`Publisher`] is the same as a handle for tests and for
//! many publishers in one process. It knows nothing of the server's crates: `ingest` is on the other side of the
//! wire. The command-line subcommand itself lives in `infra`.

pub mod clock;
mod encode;
mod error;
mod feed;
mod frame;
mod options;
mod packetize;
mod pattern;
mod peer;
mod progress;
mod publisher;
mod session;
mod source;
mod timeline;
mod whip;

pub use error::Error;
pub use options::{Bitrate, Options, Size, Source, Transcode, Transport, VideoCodec};
pub use progress::{Progress, State, Summary};
pub use publisher::{Publisher, run};
